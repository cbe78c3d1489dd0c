//! Services: defaults, addresses and node ports.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::pod::is_port;
use crate::apiserver::object::{as_map, child_mut, default, filled, list, meta};
use crate::apiserver::status::{ApiError, Cause};
use crate::store::Txn;

/// Ports that a Service of type NodePort may have on every node.
const NODE_PORTS: std::ops::RangeInclusive<i64> = 30_000..=32_767;

/// Defaults of a Service.
pub fn default_service(object: &mut Value) {
    let spec = child_mut(object, "spec");
    default(spec, "type", "ClusterIP");
    default(spec, "sessionAffinity", "None");
    let kind = spec["type"].as_str().unwrap_or_default().to_owned();
    if kind != "ExternalName" {
        default(spec, "ipFamilies", json!(["IPv4"]));
        default(spec, "ipFamilyPolicy", "SingleStack");
        default(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "NodePort" || kind == "LoadBalancer" {
        default(spec, "externalTrafficPolicy", "Cluster");
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let port = as_map(port);
        default(port, "protocol", "TCP");
        if let Some(number) = port.get("port").cloned() {
            default(port, "targetPort", number);
        }
    }
}

/// Checks a Service.
pub fn check_service(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    let kind = spec["type"].as_str().unwrap_or_default();
    let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    if !kinds.contains(&kind) {
        causes.push(Cause::unsupported("spec.type", &spec["type"], &kinds));
    }
    let ports = list(spec, "ports");
    let headless = spec["clusterIP"] == "None";
    if ports.is_empty() && !headless && kind != "ExternalName" {
        causes.push(Cause::required("spec.ports", ""));
    }
    if kind == "ExternalName" && !filled(&spec["externalName"]) {
        causes.push(Cause::required("spec.externalName", ""));
    }
    if headless && (kind == "NodePort" || kind == "LoadBalancer") {
        causes.push(Cause::invalid(
            "spec.clusterIP",
            &spec["clusterIP"],
            "may not be set to 'None' for NodePort and LoadBalancer services",
        ));
    }
    let mut seen = BTreeSet::new();
    let mut names = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let at = format!("spec.ports[{i}]");
        if !is_port(&port["port"]) {
            causes.push(Cause::invalid(
                &format!("{at}.port"),
                &port["port"],
                "must be between 1 and 65535, inclusive",
            ));
        }
        if port["targetPort"].is_number() && !is_port(&port["targetPort"]) {
            causes.push(Cause::invalid(
                &format!("{at}.targetPort"),
                &port["targetPort"],
                "must be between 1 and 65535, inclusive",
            ));
        }
        if !["TCP", "UDP", "SCTP"].iter().any(|p| port["protocol"] == *p) {
            causes.push(Cause::unsupported(
                &format!("{at}.protocol"),
                &port["protocol"],
                &["SCTP", "TCP", "UDP"],
            ));
        }
        let name = port["name"].as_str().unwrap_or_default();
        if name.is_empty() && ports.len() > 1 {
            causes.push(Cause::required(&format!("{at}.name"), ""));
        } else if !name.is_empty() && !names.insert(name) {
            causes.push(Cause::duplicate(&format!("{at}.name"), &port["name"]));
        }
        if !seen.insert((port["port"].to_string(), port["protocol"].to_string())) {
            causes.push(Cause::duplicate(&at, &json!(format!("{}/{}", port["port"], port["protocol"]))));
        }
    }
}

/// What a client that replaces a Service may leave out.
pub fn carry_over(old: &Value, object: &mut Value) {
    if object["spec"]["type"] == "ExternalName" {
        return;
    }
    let spec = child_mut(object, "spec");
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let empty = spec.get(field).is_none_or(|v| !filled(v));
        if empty && let Some(value) = old["spec"].get(field) {
            spec.insert(field.to_owned(), value.clone());
        }
    }
    let old_ports = list(&old["spec"], "ports");
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let same = old_ports.iter().find(|p| {
            p["port"] == port["port"] && (port["protocol"].is_null() || p["protocol"] == port["protocol"])
        });
        if !filled(&port["nodePort"])
            && let Some(same) = same
            && !same["nodePort"].is_null()
        {
            port["nodePort"] = same["nodePort"].clone();
        }
    }
}

/// The address stays.
pub fn check_change(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let external = |o: &Value| o["spec"]["type"] == "ExternalName";
    let (was, is) = (&old["spec"]["clusterIP"], &new["spec"]["clusterIP"]);
    if was != is && filled(was) && !external(old) && !external(new) {
        causes.push(Cause::invalid("spec.clusterIPs[0]", &json!([is]), "may not change once set"));
    }
}

/// Gives a Service its address and its node ports. `old` is what it was, if it is no new one.
pub fn allocate(
    txn: &Txn<'_>,
    services: Ipv4Net,
    object: &mut Value,
    old: Option<&Value>,
    causes: &mut Vec<Cause>,
) -> Result<(), ApiError> {
    let others: Vec<_> = txn
        .list("core/services", None)
        .into_iter()
        .filter(|s| {
            (s.key.namespace.as_str(), s.key.name.as_str())
                != (meta(object, "namespace"), meta(object, "name"))
        })
        .collect();
    let kind = object["spec"]["type"].as_str().unwrap_or_default().to_owned();
    let spec = child_mut(object, "spec");
    if kind == "ExternalName" {
        spec.shift_remove("clusterIP");
        spec.shift_remove("clusterIPs");
        return Ok(());
    }
    let first = spec.get("clusterIPs").and_then(|v| v.get(0)).cloned();
    let wanted = spec.get("clusterIP").filter(|v| filled(v)).cloned().or(first);
    let wanted = wanted.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
    let kept = old.is_some_and(|o| o["spec"]["clusterIP"] == wanted && !wanted.is_empty());
    let taken: BTreeSet<Ipv4Addr> =
        others.iter().filter_map(|s| s.value["spec"]["clusterIP"].as_str()?.parse().ok()).collect();
    let address = match wanted.as_str() {
        "None" => "None".to_owned(),
        _ if kept => wanted,
        "" => match free(services, &taken) {
            Some(address) => address.to_string(),
            None => {
                return Err(ApiError::internal(format!(
                    "failed to allocate a service IP: every address of {services} is taken; delete a Service or use a larger --service-cidr"
                )));
            }
        },
        text => match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) if !services.contains(&address) => {
                let why = format!(
                    "failed to allocate IP {text}: the provided IP is not in the valid range. The range of valid IPs is {services}"
                );
                causes.push(Cause::invalid("spec.clusterIPs", &json!([text]), &why));
                return Ok(());
            }
            Ok(IpAddr::V4(address)) if taken.contains(&address) => {
                let why = format!("failed to allocate IP {text}: provided IP is already allocated");
                causes.push(Cause::invalid("spec.clusterIPs", &json!([text]), &why));
                return Ok(());
            }
            Ok(IpAddr::V4(_)) => text.to_owned(),
            _ => {
                causes.push(Cause::invalid(
                    "spec.clusterIPs[0]",
                    &json!(text),
                    "must be a valid IPv4 address",
                ));
                return Ok(());
            }
        },
    };
    spec.insert("clusterIP".to_owned(), json!(address));
    spec.insert("clusterIPs".to_owned(), json!([address]));
    node_ports(&kind, spec, &others, causes);
    Ok(())
}

fn node_ports(
    kind: &str,
    spec: &mut serde_json::Map<String, Value>,
    others: &[std::sync::Arc<crate::store::Stored>],
    causes: &mut Vec<Cause>,
) {
    let Some(ports) = spec.get_mut("ports").and_then(Value::as_array_mut) else { return };
    if kind != "NodePort" && kind != "LoadBalancer" {
        for port in ports {
            as_map(port).shift_remove("nodePort");
        }
        return;
    }
    let mut taken: BTreeSet<i64> = others
        .iter()
        .flat_map(|s| list(&s.value["spec"], "ports").iter().filter_map(|p| p["nodePort"].as_i64()))
        .collect();
    for (i, port) in ports.iter_mut().enumerate() {
        let field = format!("spec.ports[{i}].nodePort");
        match port["nodePort"].as_i64().filter(|n| *n != 0) {
            Some(number) if !NODE_PORTS.contains(&number) => {
                let why = format!(
                    "provided port is not in the valid range. The range of valid ports is {}-{}",
                    NODE_PORTS.start(),
                    NODE_PORTS.end()
                );
                causes.push(Cause::invalid(&field, &json!(number), &why));
            }
            Some(number) if !taken.insert(number) => {
                causes.push(Cause::invalid(&field, &json!(number), "provided port is already allocated"));
            }
            Some(_) => {}
            None => match NODE_PORTS.into_iter().find(|n| !taken.contains(n)) {
                Some(number) => {
                    taken.insert(number);
                    port["nodePort"] = json!(number);
                }
                None => causes.push(Cause::forbidden(&field, "every node port is taken")),
            },
        }
    }
}

/// A free address: from the upper part of the range first, so that addresses that are asked for by number stay free.
fn free(services: Ipv4Net, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let (network, broadcast) = (u32::from(services.network()), u32::from(services.broadcast()));
    let (first, last) = (network.checked_add(1)?, broadcast.checked_sub(1)?);
    let size = last.checked_sub(first)?;
    // As Kubernetes: between 16 and 256 addresses, a sixteenth of the range, are kept for such requests.
    let band = (size / 16).clamp(16, 256).min(size);
    let start = first + band;
    (start..=last).chain(first..start).map(Ipv4Addr::from).find(|address| !taken.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_once_until_there_are_none() {
        let net: Ipv4Net = "10.96.0.0/28".parse().unwrap();
        let mut taken = BTreeSet::new();
        while let Some(address) = free(net, &taken) {
            assert!(net.contains(&address) && address != net.network() && address != net.broadcast());
            assert!(taken.insert(address));
        }
        assert_eq!(taken.len(), 14);
        let net: Ipv4Net = "10.96.0.0/16".parse().unwrap();
        assert_eq!(free(net, &BTreeSet::new()), Some("10.96.1.1".parse().unwrap()));
    }
}
