//! Kinds with few rules.

use serde_json::{Value, json};

use crate::apiserver::object::{as_map, child_mut, default, filled, list};
use crate::apiserver::registry::Resource;
use crate::apiserver::status::Cause;

/// Largest data of a ConfigMap or Secret.
const DATA_BYTES: usize = 1 << 20;

/// Fills in and checks an object.
pub fn admit(resource: &Resource, object: &mut Value, causes: &mut Vec<Cause>) {
    if resource.custom.is_some() {
        return;
    }
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "secrets") => secret(object, causes),
        ("", "configmaps") => {
            for field in ["data", "binaryData"] {
                check_keys(object, field, causes);
            }
            check_size(object, &["data", "binaryData"], causes);
        }
        ("", "nodes") => node(object, causes),
        ("discovery.k8s.io", _) => endpoint_slice(object, causes),
        ("coordination.k8s.io", _) => lease(object, causes),
        ("rbac.authorization.k8s.io", _) => rbac(object),
        ("", "events") | ("events.k8s.io", _) => default(as_map(object), "type", "Normal"),
        _ => {}
    }
}

fn secret(object: &mut Value, causes: &mut Vec<Cause>) {
    default(as_map(object), "type", "Opaque");
    if let Some(Value::Object(plain)) = as_map(object).shift_remove("stringData") {
        let data = child_mut(object, "data");
        for (key, value) in plain {
            let text = value.as_str().unwrap_or_default();
            let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
            data.insert(key, json!(encoded));
        }
    }
    check_keys(object, "data", causes);
    check_size(object, &["data"], causes);
}

fn check_keys(object: &Value, field: &str, causes: &mut Vec<Cause>) {
    for key in object[field].as_object().into_iter().flatten().map(|(key, _)| key) {
        let fine = (1..=253).contains(&key.len())
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            && key != "."
            && !key.starts_with("..");
        if !fine {
            let why = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
            causes.push(Cause::invalid(&format!("{field}[{key}]"), &json!(key), why));
        }
    }
}

fn check_size(object: &Value, fields: &[&str], causes: &mut Vec<Cause>) {
    let bytes: usize = fields
        .iter()
        .flat_map(|field| object[*field].as_object().into_iter().flatten())
        .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
        .sum();
    if bytes > DATA_BYTES {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            message: format!("Too long: may not be more than {DATA_BYTES} bytes"),
            field: String::new(),
        });
    }
}

fn node(object: &mut Value, causes: &mut Vec<Cause>) {
    let spec = child_mut(object, "spec");
    // One field is the first of the other.
    let first = spec.get("podCIDRs").and_then(|v| v.get(0)).cloned();
    match (spec.get("podCIDR").cloned(), first) {
        (Some(one), None) if filled(&one) => {
            spec.insert("podCIDRs".to_owned(), json!([one]));
        }
        (None, Some(first)) => {
            spec.insert("podCIDR".to_owned(), first);
        }
        _ => {}
    }
    for (i, cidr) in list(&object["spec"], "podCIDRs").iter().enumerate() {
        if cidr.as_str().is_none_or(|c| c.parse::<ipnet::IpNet>().is_err()) {
            let why = "must be a valid CIDR block, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            causes.push(Cause::invalid(&format!("spec.podCIDRs[{i}]"), cidr, why));
        }
    }
    for (i, taint) in list(&object["spec"], "taints").iter().enumerate() {
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        if !effects.iter().any(|e| taint["effect"] == *e) {
            causes.push(Cause::unsupported(&format!("spec.taints[{i}].effect"), &taint["effect"], &effects));
        }
    }
}

fn endpoint_slice(object: &mut Value, causes: &mut Vec<Cause>) {
    let kinds = ["FQDN", "IPv4", "IPv6"];
    if !kinds.iter().any(|k| object["addressType"] == *k) {
        causes.push(Cause::unsupported("addressType", &object["addressType"], &kinds));
    }
    for port in object["ports"].as_array_mut().into_iter().flatten() {
        let port = as_map(port);
        default(port, "protocol", "TCP");
        default(port, "name", "");
    }
    let ipv4 = object["addressType"] == "IPv4";
    for (i, endpoint) in list(object, "endpoints").iter().enumerate() {
        let addresses = list(endpoint, "addresses");
        if addresses.is_empty() {
            causes.push(Cause::required(
                &format!("endpoints[{i}].addresses"),
                "must contain at least 1 address",
            ));
        }
        for (j, address) in addresses.iter().enumerate() {
            if ipv4 && address.as_str().is_none_or(|a| a.parse::<std::net::Ipv4Addr>().is_err()) {
                causes.push(Cause::invalid(
                    &format!("endpoints[{i}].addresses[{j}]"),
                    address,
                    "must be a valid IPv4 address",
                ));
            }
        }
    }
}

fn lease(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    for field in ["leaseDurationSeconds", "leaseTransitions"] {
        let least = i64::from(field == "leaseDurationSeconds");
        if spec[field].as_i64().is_some_and(|n| n < least) {
            causes.push(Cause::invalid(
                &format!("spec.{field}"),
                &spec[field],
                &format!("must be at least {least}"),
            ));
        }
    }
}

fn rbac(object: &mut Value) {
    const GROUP: &str = "rbac.authorization.k8s.io";
    if let Some(Value::Object(role)) = object.get_mut("roleRef") {
        default(role, "apiGroup", GROUP);
    }
    for subject in object["subjects"].as_array_mut().into_iter().flatten() {
        let subject = as_map(subject);
        if subject.get("kind").is_some_and(|k| k == "User" || k == "Group") {
            default(subject, "apiGroup", GROUP);
        }
    }
}

/// Fields that do not change.
pub fn check_change(resource: &Resource, old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    if resource.custom.is_some() {
        return;
    }
    let fixed: &[&str] = match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "secrets") => &["/type"],
        ("discovery.k8s.io", _) => &["/addressType"],
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => &["/roleRef"],
        ("apps", "controllerrevisions") => &["/data"],
        ("", "nodes") => &["/spec/podCIDR"],
        _ => &[],
    };
    for pointer in fixed {
        let (was, is) =
            (old.pointer(pointer).unwrap_or(&Value::Null), new.pointer(pointer).unwrap_or(&Value::Null));
        // A node gets its pod CIDR once.
        let first = *pointer == "/spec/podCIDR" && !filled(was);
        if was != is && !first {
            let field = pointer.trim_start_matches('/').replace('/', ".");
            causes.push(Cause::invalid(&field, is, "field is immutable"));
        }
    }
    if old["immutable"] == true && (resource.is("", "secrets") || resource.is("", "configmaps")) {
        for field in ["data", "binaryData", "immutable"] {
            if old[field] != new[field] {
                causes.push(Cause::forbidden(field, "field is immutable when `immutable` is set"));
            }
        }
    }
}
