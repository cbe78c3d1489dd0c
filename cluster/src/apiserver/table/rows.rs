//! Columns and cells of the built-in kinds.

use serde_json::{Value, json};

use super::pod;
use super::text::{age, containers, labels, or};
use crate::apiserver::object::{filled, list, meta};
use crate::apiserver::verbs::scale::selector_text;

type Cell = fn(&Value) -> Value;
/// Heading, type, priority, cell.
type Columns = &'static [(&'static str, &'static str, i64, Cell)];

/// The object's name.
pub fn name(object: &Value) -> Value {
    json!(meta(object, "name"))
}

/// The object's age.
pub fn age_cell(object: &Value) -> Value {
    json!(age(meta(object, "creationTimestamp")))
}

const AGE: (&str, &str, i64, Cell) = ("Age", "date", 0, age_cell);

/// Columns of a built-in resource besides its name; kinds that are not listed have an age.
pub fn columns(group: &str, plural: &str) -> Columns {
    match (group, plural) {
        ("", "pods") => PODS,
        ("", "nodes") => NODES,
        ("", "services") => SERVICES,
        ("", "endpoints") => ENDPOINTS,
        ("", "namespaces") => NAMESPACES,
        ("", "configmaps") => CONFIG_MAPS,
        ("", "secrets") => SECRETS,
        ("", "serviceaccounts") => SERVICE_ACCOUNTS,
        (_, "events") => EVENTS,
        ("apps", "deployments") => DEPLOYMENTS,
        ("apps", "replicasets") => REPLICA_SETS,
        ("apps", "daemonsets") => DAEMON_SETS,
        ("apps", "controllerrevisions") => REVISIONS,
        ("discovery.k8s.io", _) => SLICES,
        ("coordination.k8s.io", _) => LEASES,
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => BINDINGS,
        ("rbac.authorization.k8s.io" | "apiextensions.k8s.io", _) => CREATED,
        _ => &[AGE],
    }
}

const CREATED: Columns = &[("Created At", "date", 0, |o| json!(meta(o, "creationTimestamp")))];

const PODS: Columns = &[
    ("Ready", "string", 0, |o| json!(pod::state(o).ready)),
    ("Status", "string", 0, |o| json!(pod::state(o).status)),
    ("Restarts", "string", 0, |o| json!(pod::state(o).restarts.to_string())),
    AGE,
    ("IP", "string", 1, |o| json!(or(&o["status"]["podIP"], "<none>"))),
    ("Node", "string", 1, |o| json!(or(&o["spec"]["nodeName"], "<none>"))),
    ("Nominated Node", "string", 1, |o| json!(or(&o["status"]["nominatedNodeName"], "<none>"))),
    ("Readiness Gates", "string", 1, |_| json!("<none>")),
];

fn node_address(node: &Value, kind: &str) -> Value {
    let address = list(&node["status"], "addresses").iter().find(|a| a["type"] == kind);
    json!(address.map_or_else(|| "<none>".to_owned(), |a| or(&a["address"], "<none>")))
}

fn node_info(node: &Value, field: &str) -> Value {
    json!(or(&node["status"]["nodeInfo"][field], "<unknown>"))
}

fn node_status(node: &Value) -> Value {
    let ready = list(&node["status"], "conditions").iter().find(|c| c["type"] == "Ready");
    let mut status = match ready.and_then(|c| c["status"].as_str()) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if node["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    json!(status)
}

fn node_roles(node: &Value) -> Value {
    const PREFIX: &str = "node-role.kubernetes.io/";
    let labels = node["metadata"]["labels"].as_object().into_iter().flatten();
    let mut roles: Vec<String> = labels
        .filter_map(|(key, value)| match key.strip_prefix(PREFIX) {
            Some(role) if !role.is_empty() => Some(role.to_owned()),
            _ if key == "kubernetes.io/role" => value.as_str().map(str::to_owned),
            _ => None,
        })
        .collect();
    roles.sort();
    json!(if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") })
}

const NODES: Columns = &[
    ("Status", "string", 0, node_status),
    ("Roles", "string", 0, node_roles),
    AGE,
    ("Version", "string", 0, |o| json!(or(&o["status"]["nodeInfo"]["kubeletVersion"], ""))),
    ("Internal-IP", "string", 1, |o| node_address(o, "InternalIP")),
    ("External-IP", "string", 1, |o| node_address(o, "ExternalIP")),
    ("OS-Image", "string", 1, |o| node_info(o, "osImage")),
    ("Kernel-Version", "string", 1, |o| node_info(o, "kernelVersion")),
    ("Container-Runtime", "string", 1, |o| node_info(o, "containerRuntimeVersion")),
];

fn service_external(service: &Value) -> Value {
    let spec = &service["spec"];
    let ips = |list: &[Value]| {
        let texts: Vec<String> =
            list.iter().filter_map(|v| v.as_str().or(v["ip"].as_str())).map(str::to_owned).collect();
        texts.join(",")
    };
    let external = ips(list(spec, "externalIPs"));
    json!(match spec["type"].as_str() {
        Some("ExternalName") => or(&spec["externalName"], "<none>"),
        Some("LoadBalancer") => {
            let given = ips(list(&service["status"]["loadBalancer"], "ingress"));
            match (given.is_empty(), external.is_empty()) {
                (true, true) => "<pending>".to_owned(),
                (false, true) => given,
                (true, false) => external,
                (false, false) => format!("{given},{external}"),
            }
        }
        _ if external.is_empty() => "<none>".to_owned(),
        _ => external,
    })
}

fn service_ports(service: &Value) -> Value {
    let ports: Vec<String> = list(&service["spec"], "ports")
        .iter()
        .map(|port| {
            let protocol = or(&port["protocol"], "TCP");
            match port["nodePort"].as_i64().filter(|n| *n > 0) {
                Some(node) => format!("{}:{node}/{protocol}", port["port"]),
                None => format!("{}/{protocol}", port["port"]),
            }
        })
        .collect();
    json!(if ports.is_empty() { "<none>".to_owned() } else { ports.join(",") })
}

const SERVICES: Columns = &[
    ("Type", "string", 0, |o| json!(or(&o["spec"]["type"], ""))),
    ("Cluster-IP", "string", 0, |o| json!(or(&o["spec"]["clusterIP"], "<none>"))),
    ("External-IP", "string", 0, service_external),
    ("Port(s)", "string", 0, service_ports),
    AGE,
    ("Selector", "string", 1, |o| json!(labels(&o["spec"]["selector"]))),
];

/// The first few of a list, and how many more there are.
fn some(mut items: Vec<String>, most: usize) -> String {
    if items.is_empty() {
        return "<none>".to_owned();
    }
    let more = items.len().saturating_sub(most);
    items.truncate(most);
    let text = items.join(",");
    if more > 0 { format!("{text} + {more} more...") } else { text }
}

fn endpoints(object: &Value) -> Value {
    let mut items = Vec::new();
    for subset in list(object, "subsets") {
        for address in list(subset, "addresses") {
            let ports = list(subset, "ports");
            if ports.is_empty() {
                items.push(or(&address["ip"], ""));
            }
            items.extend(ports.iter().map(|p| format!("{}:{}", or(&address["ip"], ""), p["port"])));
        }
    }
    json!(some(items, 3))
}

const ENDPOINTS: Columns = &[("Endpoints", "string", 0, endpoints), AGE];

const NAMESPACES: Columns = &[("Status", "string", 0, |o| json!(or(&o["status"]["phase"], ""))), AGE];

fn count(value: &Value) -> usize {
    value.as_object().map_or(0, serde_json::Map::len)
}

const CONFIG_MAPS: Columns =
    &[("Data", "integer", 0, |o| json!(count(&o["data"]) + count(&o["binaryData"]))), AGE];

const SECRETS: Columns = &[
    ("Type", "string", 0, |o| json!(or(&o["type"], ""))),
    ("Data", "integer", 0, |o| json!(count(&o["data"]))),
    AGE,
];

const SERVICE_ACCOUNTS: Columns = &[("Secrets", "integer", 0, |o| json!(list(o, "secrets").len())), AGE];

/// Fields of events have two names each.
fn event<'a>(event: &'a Value, core: &str, new: &str) -> &'a Value {
    if filled(&event[core]) { &event[core] } else { &event[new] }
}

fn last_seen(object: &Value) -> Value {
    let last = event(object, "lastTimestamp", "deprecatedLastTimestamp");
    let time = [
        last,
        &object["series"]["lastObservedTime"],
        &object["eventTime"],
        &object["metadata"]["creationTimestamp"],
    ];
    let time = time.iter().find(|t| filled(t)).and_then(|t| t.as_str()).unwrap_or_default();
    json!(age(time))
}

const EVENTS: Columns = &[
    ("Last Seen", "string", 0, last_seen),
    ("Type", "string", 0, |o| json!(or(&o["type"], ""))),
    ("Reason", "string", 0, |o| json!(or(&o["reason"], ""))),
    ("Object", "string", 0, |o| {
        let about = event(o, "involvedObject", "regarding");
        json!(format!("{}/{}", or(&about["kind"], "").to_lowercase(), or(&about["name"], "")))
    }),
    ("Subobject", "string", 1, |o| json!(or(&event(o, "involvedObject", "regarding")["fieldPath"], ""))),
    ("Source", "string", 1, |o| {
        let source = event(o, "source", "deprecatedSource");
        let component =
            or(&source["component"], &or(event(o, "reportingComponent", "reportingController"), ""));
        let host = or(&source["host"], "");
        json!(if host.is_empty() { component } else { format!("{component}, {host}") })
    }),
    ("Message", "string", 0, |o| json!(or(event(o, "message", "note"), "").trim())),
    ("First Seen", "string", 1, |o| {
        let first = event(o, "firstTimestamp", "deprecatedFirstTimestamp");
        json!(age(first.as_str().unwrap_or(meta(o, "creationTimestamp"))))
    }),
    ("Count", "integer", 1, |o| json!(event(o, "count", "deprecatedCount").as_i64().unwrap_or(1))),
    ("Name", "string", 1, name),
];

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

fn template(object: &Value, field: &str) -> Value {
    json!(containers(&object["spec"]["template"]["spec"], field))
}

fn selector(object: &Value) -> Value {
    let text = selector_text(&object["spec"]["selector"]);
    json!(if text.is_empty() { "<none>".to_owned() } else { text })
}

const DEPLOYMENTS: Columns = &[
    ("Ready", "string", 0, |o| {
        json!(format!("{}/{}", number(&o["status"]["readyReplicas"]), number(&o["spec"]["replicas"])))
    }),
    ("Up-to-date", "integer", 0, |o| json!(number(&o["status"]["updatedReplicas"]))),
    ("Available", "integer", 0, |o| json!(number(&o["status"]["availableReplicas"]))),
    AGE,
    ("Containers", "string", 1, |o| template(o, "name")),
    ("Images", "string", 1, |o| template(o, "image")),
    ("Selector", "string", 1, selector),
];

const REPLICA_SETS: Columns = &[
    ("Desired", "integer", 0, |o| json!(number(&o["spec"]["replicas"]))),
    ("Current", "integer", 0, |o| json!(number(&o["status"]["replicas"]))),
    ("Ready", "integer", 0, |o| json!(number(&o["status"]["readyReplicas"]))),
    AGE,
    ("Containers", "string", 1, |o| template(o, "name")),
    ("Images", "string", 1, |o| template(o, "image")),
    ("Selector", "string", 1, selector),
];

const DAEMON_SETS: Columns = &[
    ("Desired", "integer", 0, |o| json!(number(&o["status"]["desiredNumberScheduled"]))),
    ("Current", "integer", 0, |o| json!(number(&o["status"]["currentNumberScheduled"]))),
    ("Ready", "integer", 0, |o| json!(number(&o["status"]["numberReady"]))),
    ("Up-to-date", "integer", 0, |o| json!(number(&o["status"]["updatedNumberScheduled"]))),
    ("Available", "integer", 0, |o| json!(number(&o["status"]["numberAvailable"]))),
    ("Node Selector", "string", 0, |o| json!(labels(&o["spec"]["template"]["spec"]["nodeSelector"]))),
    AGE,
    ("Containers", "string", 1, |o| template(o, "name")),
    ("Images", "string", 1, |o| template(o, "image")),
    ("Selector", "string", 1, selector),
];

const REVISIONS: Columns = &[
    ("Controller", "string", 0, |o| {
        let owner = list(&o["metadata"], "ownerReferences").iter().find(|r| r["controller"] == true);
        json!(owner.map_or_else(
            || "<none>".to_owned(),
            |r| format!(
                "{}.{}/{}",
                or(&r["kind"], "").to_lowercase(),
                or(&r["apiVersion"], "").split('/').next().unwrap_or_default(),
                or(&r["name"], "")
            )
        ))
    }),
    ("Revision", "integer", 0, |o| json!(number(&o["revision"]))),
    AGE,
];

const SLICES: Columns = &[
    ("AddressType", "string", 0, |o| json!(or(&o["addressType"], ""))),
    ("Ports", "string", 0, |o| {
        let ports = list(o, "ports").iter().map(|p| or(&p["port"], "*")).collect::<Vec<_>>();
        json!(if ports.is_empty() { "<unset>".to_owned() } else { some(ports, 3) })
    }),
    ("Endpoints", "string", 0, |o| {
        let addresses = list(o, "endpoints").iter().flat_map(|e| list(e, "addresses"));
        let addresses: Vec<String> = addresses.filter_map(Value::as_str).map(str::to_owned).collect();
        json!(if addresses.is_empty() { "<unset>".to_owned() } else { some(addresses, 3) })
    }),
    AGE,
];

const LEASES: Columns = &[("Holder", "string", 0, |o| json!(or(&o["spec"]["holderIdentity"], ""))), AGE];

fn subjects(object: &Value, kind: &str) -> Value {
    let of_kind = list(object, "subjects").iter().filter(|s| s["kind"] == kind);
    let names: Vec<String> = of_kind
        .map(|s| match s["namespace"].as_str() {
            Some(namespace) if kind == "ServiceAccount" => format!("{namespace}/{}", or(&s["name"], "")),
            _ => or(&s["name"], ""),
        })
        .collect();
    json!(names.join(", "))
}

const BINDINGS: Columns = &[
    ("Role", "string", 0, |o| {
        json!(format!("{}/{}", or(&o["roleRef"]["kind"], ""), or(&o["roleRef"]["name"], "")))
    }),
    AGE,
    ("Users", "string", 1, |o| subjects(o, "User")),
    ("Groups", "string", 1, |o| subjects(o, "Group")),
    ("ServiceAccounts", "string", 1, |o| subjects(o, "ServiceAccount")),
];
