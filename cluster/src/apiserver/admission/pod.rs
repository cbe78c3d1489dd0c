//! Pods, and pod templates of workloads.

use serde_json::{Value, json};

use super::names::{check_labels, is_dns_label};
use crate::apiserver::object::{as_map, child_mut, default, filled, list};
use crate::apiserver::status::Cause;
use crate::store::Txn;

/// Gives a pod its ServiceAccount and tolerations that every pod has.
pub fn account(_txn: &Txn<'_>, object: &mut Value) {
    let spec = child_mut(object, "spec");
    default(spec, "serviceAccountName", "default");
    let account = spec["serviceAccountName"].clone();
    spec.insert("serviceAccount".to_owned(), account);
    // As the admission plugin of the same name: five minutes of grace for a node that is not ready.
    let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
    if let Some(tolerations) = tolerations.as_array_mut() {
        for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
            let tolerated = tolerations.iter().any(|t| {
                let any = t["key"].is_null() && t["operator"] == "Exists";
                any || (t["key"] == key && (t["effect"].is_null() || t["effect"] == "NoExecute"))
            });
            if !tolerated {
                tolerations.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}));
            }
        }
    }
}

/// Defaults of a pod.
pub fn default_pod(object: &mut Value) {
    default_spec(object, "spec");
}

/// Defaults of the pod spec in a field.
pub fn default_spec(object: &mut Value, field: &str) {
    let spec = child_mut(object, field);
    default(spec, "restartPolicy", "Always");
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "dnsPolicy", "ClusterFirst");
    default(spec, "schedulerName", "default-scheduler");
    default(spec, "securityContext", json!({}));
    default(spec, "enableServiceLinks", true);
    if let Some(name) = spec.get("serviceAccountName").cloned() {
        spec.insert("serviceAccount".to_owned(), name);
    }
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            default_container(container, host_network);
        }
    }
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        default_volume(volume);
    }
}

fn default_container(container: &mut Value, host_network: bool) {
    let container = as_map(container);
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    // A tag is behind the last ':' that is no port of a registry.
    let last = image.rsplit('/').next().unwrap_or_default();
    let latest = !image.contains('@') && (!last.contains(':') || last.ends_with(":latest"));
    default(container, "imagePullPolicy", if latest { "Always" } else { "IfNotPresent" });
    default(container, "terminationMessagePath", "/dev/termination-log");
    default(container, "terminationMessagePolicy", "File");
    default(container, "resources", json!({}));
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let port = as_map(port);
        default(port, "protocol", "TCP");
        if host_network && let Some(number) = port.get("containerPort").cloned() {
            default(port, "hostPort", number);
        }
    }
    for variable in container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(Value::Object(field)) = variable.get_mut("valueFrom").and_then(|v| v.get_mut("fieldRef"))
        {
            default(field, "apiVersion", "v1");
        }
    }
    if let Some(Value::Object(limits)) = container["resources"].get("limits").cloned() {
        let requests = child_mut(&mut container["resources"], "requests");
        for (name, value) in limits {
            default(requests, &name, value);
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(Value::Object(probe)) = container.get_mut(probe) else { continue };
        for (field, value) in
            [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
        {
            default(probe, field, value);
        }
        if let Some(Value::Object(get)) = probe.get_mut("httpGet") {
            default(get, "path", "/");
            default(get, "scheme", "HTTP");
        }
        if let Some(Value::Object(grpc)) = probe.get_mut("grpc") {
            default(grpc, "service", "");
        }
    }
}

fn default_volume(volume: &mut Value) {
    const SOURCES: &[&str] = &["secret", "configMap", "projected", "downwardAPI"];
    let volume = as_map(volume);
    for source in SOURCES {
        if let Some(Value::Object(source)) = volume.get_mut(*source) {
            default(source, "defaultMode", 0o644);
        }
    }
    if let Some(Value::Object(host)) = volume.get_mut("hostPath") {
        default(host, "type", "");
    }
    for source in volume
        .get_mut("projected")
        .and_then(|p| p.get_mut("sources"))
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(Value::Object(token)) = source.get_mut("serviceAccountToken") {
            default(token, "expirationSeconds", 3600);
        }
    }
    // A volume that says nothing is an empty directory.
    if volume.keys().all(|k| k == "name") {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
}

/// Guaranteed, Burstable or BestEffort.
pub fn qos_class(spec: &Value) -> &'static str {
    let containers = || list(spec, "containers").iter().chain(list(spec, "initContainers"));
    let any = containers().any(|c| filled(&c["resources"]["limits"]) || filled(&c["resources"]["requests"]));
    if !any {
        return "BestEffort";
    }
    let guaranteed = containers().all(|c| {
        ["cpu", "memory"].iter().all(|r| {
            let limit = &c["resources"]["limits"][r];
            !limit.is_null() && *limit == c["resources"]["requests"][r]
        })
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

/// Checks a pod.
pub fn check_pod(object: &Value, causes: &mut Vec<Cause>) {
    check_spec(&object["spec"], "spec", causes);
}

/// Checks a pod spec that stands at `at`.
pub fn check_spec(spec: &Value, at: &str, causes: &mut Vec<Cause>) {
    if list(spec, "containers").is_empty() {
        causes.push(Cause::required(&format!("{at}.containers"), ""));
    }
    let mut seen: Vec<&str> = Vec::new();
    let volumes: Vec<&str> = list(spec, "volumes").iter().filter_map(|v| v["name"].as_str()).collect();
    for field in ["initContainers", "containers"] {
        for (i, container) in list(spec, field).iter().enumerate() {
            let at = format!("{at}.{field}[{i}]");
            let name = container["name"].as_str().unwrap_or_default();
            if name.is_empty() {
                causes.push(Cause::required(&format!("{at}.name"), ""));
            } else if !is_dns_label(name) {
                causes.push(Cause::invalid(&format!("{at}.name"), &container["name"], LABEL));
            } else if seen.contains(&name) {
                causes.push(Cause::duplicate(&format!("{at}.name"), &container["name"]));
            }
            seen.push(name);
            check_container(container, &at, &volumes, causes);
        }
    }
    for (i, name) in list(spec, "volumes").iter().map(|v| v["name"].as_str().unwrap_or_default()).enumerate()
    {
        let field = format!("{at}.volumes[{i}].name");
        if name.is_empty() {
            causes.push(Cause::required(&field, ""));
        } else if !is_dns_label(name) {
            causes.push(Cause::invalid(&field, &json!(name), LABEL));
        } else if volumes[..i].contains(&name) {
            causes.push(Cause::duplicate(&field, &json!(name)));
        }
    }
    one_of(&spec["restartPolicy"], &format!("{at}.restartPolicy"), &["Always", "OnFailure", "Never"], causes);
    let dns = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    one_of(&spec["dnsPolicy"], &format!("{at}.dnsPolicy"), &dns, causes);
    not_negative(
        &spec["terminationGracePeriodSeconds"],
        &format!("{at}.terminationGracePeriodSeconds"),
        causes,
    );
    check_labels(&format!("{at}.nodeSelector"), &spec["nodeSelector"], causes);
    for (i, toleration) in list(spec, "tolerations").iter().enumerate() {
        let at = format!("{at}.tolerations[{i}]");
        if toleration["operator"] == "Exists" && filled(&toleration["value"]) {
            causes.push(Cause::invalid(
                &format!("{at}.operator"),
                &toleration["operator"],
                "value must be empty when `operator` is 'Exists'",
            ));
        }
        if filled(&toleration["effect"]) {
            one_of(
                &toleration["effect"],
                &format!("{at}.effect"),
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
                causes,
            );
        }
    }
}

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
and must start and end with an alphanumeric character";

fn one_of(value: &Value, field: &str, allowed: &[&str], causes: &mut Vec<Cause>) {
    if let Some(text) = value.as_str()
        && !allowed.contains(&text)
    {
        causes.push(Cause::unsupported(field, value, allowed));
    }
}

fn not_negative(value: &Value, field: &str, causes: &mut Vec<Cause>) {
    if value.as_i64().is_some_and(|n| n < 0) {
        causes.push(Cause::invalid(field, value, "must be greater than or equal to 0"));
    }
}

/// Whether a number is a port.
pub fn is_port(value: &Value) -> bool {
    value.as_i64().is_some_and(|n| (1..=65535).contains(&n))
}

fn check_container(container: &Value, at: &str, volumes: &[&str], causes: &mut Vec<Cause>) {
    if !filled(&container["image"]) {
        causes.push(Cause::required(&format!("{at}.image"), ""));
    }
    one_of(
        &container["imagePullPolicy"],
        &format!("{at}.imagePullPolicy"),
        &["Always", "IfNotPresent", "Never"],
        causes,
    );
    for (i, port) in list(container, "ports").iter().enumerate() {
        for field in ["containerPort", "hostPort"] {
            let value = &port[field];
            let missing = value.is_null() && field == "hostPort";
            if !missing && !is_port(value) {
                causes.push(Cause::invalid(
                    &format!("{at}.ports[{i}].{field}"),
                    value,
                    "must be between 1 and 65535, inclusive",
                ));
            }
        }
        one_of(&port["protocol"], &format!("{at}.ports[{i}].protocol"), &["TCP", "UDP", "SCTP"], causes);
    }
    for (i, variable) in list(container, "env").iter().enumerate() {
        if !filled(&variable["name"]) {
            causes.push(Cause::required(&format!("{at}.env[{i}].name"), ""));
        }
    }
    for (i, mount) in list(container, "volumeMounts").iter().enumerate() {
        let name = mount["name"].as_str().unwrap_or_default();
        if !volumes.contains(&name) {
            causes.push(Cause {
                reason: "FieldValueNotFound",
                message: format!("Not found: {name:?}"),
                field: format!("{at}.volumeMounts[{i}].name"),
            });
        }
        if !filled(&mount["mountPath"]) {
            causes.push(Cause::required(&format!("{at}.volumeMounts[{i}].mountPath"), ""));
        }
    }
    for field in ["limits", "requests"] {
        for (name, value) in container["resources"][field].as_object().into_iter().flatten() {
            if quantity(value).is_none_or(|n| n < 0.0) {
                let why = "quantities must be a number that is not negative, with an optional suffix such as m, k, M, Mi";
                causes.push(Cause::invalid(&format!("{at}.resources.{field}[{name}]"), value, why));
            }
        }
        let requests = &container["resources"]["requests"];
        for (name, limit) in container["resources"]["limits"].as_object().into_iter().flatten() {
            if field == "requests"
                && let (Some(request), Some(limit)) = (quantity(&requests[name]), quantity(limit))
                && request > limit
            {
                let why = format!("must be less than or equal to {name} limit");
                causes.push(Cause::invalid(&format!("{at}.resources.requests"), &requests[name], &why));
            }
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let (probe, at) = (&container[probe], format!("{at}.{probe}"));
        if probe.is_null() {
            continue;
        }
        let handlers =
            ["exec", "httpGet", "tcpSocket", "grpc"].iter().filter(|h| probe[**h].is_object()).count();
        if handlers != 1 {
            causes.push(Cause::required(&at, "must specify exactly one handler type"));
        }
        for field in
            ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            not_negative(&probe[field], &format!("{at}.{field}"), causes);
        }
    }
}

/// A quantity such as `100m` or `1Gi` as a number.
pub fn quantity(value: &Value) -> Option<f64> {
    if let Some(number) = value.as_f64() {
        return Some(number);
    }
    let text = value.as_str()?;
    let end = text.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '-' | '+')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let factor = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        "Ti" => 1_099_511_627_776.0,
        "Pi" => 1_125_899_906_842_624.0,
        "Ei" => 1_152_921_504_606_846_976.0,
        // The rest is an exponent, or nothing.
        _ => return text.parse().ok(),
    };
    number.parse::<f64>().ok().map(|n| n * factor)
}

/// A pod's spec does not change, but for images, deadlines and more tolerations.
pub fn check_change(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let fixed = |object: &Value| {
        let mut spec = object["spec"].clone();
        for field in ["containers", "initContainers"] {
            for container in spec[field].as_array_mut().into_iter().flatten() {
                as_map(container).shift_remove("image");
            }
        }
        let map = as_map(&mut spec);
        for field in [
            "tolerations",
            "activeDeadlineSeconds",
            "terminationGracePeriodSeconds",
            "schedulingGates",
            "initContainers",
        ] {
            if map.get(field).is_some_and(|v| field != "initContainers" || !filled(v)) {
                map.shift_remove(field);
            }
        }
        spec
    };
    if fixed(old) != fixed(new) {
        causes.push(Cause::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`, `spec.initContainers[*].image`, \
             `spec.activeDeadlineSeconds`, `spec.tolerations` (only additions to existing tolerations)",
        ));
    }
    let kept = list(&new["spec"], "tolerations");
    if list(&old["spec"], "tolerations").iter().any(|t| !kept.contains(t)) {
        causes.push(Cause::forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
}
