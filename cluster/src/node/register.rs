//! The node's own object: registration, conditions, taint, lease.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, Node as NodeObject, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec,
    NodeStatus, NodeSystemInfo, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, ResourceExt as _};
use podwire_api::names::{CONTROL_PLANE_LABEL, NOT_READY_TAINT};
use serde_json::json;
use tokio::sync::Notify;

use super::watch::Watch;
use super::{Node, NodeError};
use crate::controllers::events::Severity;
use crate::controllers::informer::Informer;
use crate::controllers::meta::{is_conflict, is_not_found, now};
use crate::controllers::node_lifecycle::LEASE_NAMESPACE;

/// How long a lease holds, seconds.
const LEASE: i32 = 40;
/// How often it is renewed.
const RENEW: Duration = Duration::from_secs(10);
/// Wait before the API server is asked again.
const RETRY: Duration = Duration::from_millis(100);
/// Most pods of a node.
const PODS: &str = "110";

fn read(path: &str) -> String {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn os_image() -> String {
    let release = read("/etc/os-release");
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn system_info() -> NodeSystemInfo {
    NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: concat!("podwire://", env!("CARGO_PKG_VERSION")).to_owned(),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: concat!("v1.35.0-podwire.", env!("CARGO_PKG_VERSION")).to_owned(),
        machine_id: read("/etc/machine-id"),
        operating_system: "linux".to_owned(),
        os_image: os_image(),
        system_uuid: read("/sys/class/dmi/id/product_uuid"),
        swap: None,
    }
}

fn capacity() -> std::collections::BTreeMap<String, Quantity> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB").map(str::to_owned));
    let mut all = vec![("cpu", cpus.to_string()), ("pods", PODS.to_owned())];
    all.extend(memory.map(|kib| ("memory", format!("{kib}Ki"))));
    all.into_iter().map(|(name, amount)| (name.to_owned(), Quantity(amount))).collect()
}

/// Ready, or why not.
fn conditions(network: Result<(), String>, before: &[NodeCondition]) -> Vec<NodeCondition> {
    let (ready, reason, message) = match network {
        Ok(()) => (true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        Err(cause) => (
            false,
            "KubeletNotReady",
            format!(
                "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
                 message:Network plugin returns error: cni plugin not initialized ({cause})"
            ),
        ),
    };
    let well = [
        ("MemoryPressure", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ];
    let mut all: Vec<(&str, &str, &str, String)> =
        well.iter().map(|(kind, reason, message)| (*kind, "False", *reason, (*message).to_owned())).collect();
    all.push(("Ready", if ready { "True" } else { "False" }, reason, message));
    all.into_iter()
        .map(|(kind, status, reason, message)| {
            let since = before
                .iter()
                .find(|known| known.type_ == kind && known.status == status)
                .and_then(|known| known.last_transition_time.clone());
            NodeCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_heartbeat_time: Some(now()),
                last_transition_time: Some(since.unwrap_or_else(now)),
            }
        })
        .collect()
}

/// The conditions say the same, whenever they were written.
fn same_conditions(a: &[NodeCondition], b: &[NodeCondition]) -> bool {
    b.iter().all(|new| {
        a.iter().any(|old| {
            old.type_ == new.type_
                && old.status == new.status
                && old.reason == new.reason
                && old.message == new.message
        })
    })
}

/// The taints with or without the one of a node without network. `None` if they are right.
fn taints(before: &[Taint], ready: bool) -> Option<Vec<Taint>> {
    let mut after: Vec<_> = before.to_vec();
    if ready {
        after.retain(|taint| taint.key != NOT_READY_TAINT);
    } else if !after.iter().any(|taint| taint.key == NOT_READY_TAINT) {
        after.push(not_ready());
    }
    (after.len() != before.len()).then_some(after)
}

fn not_ready() -> Taint {
    Taint { key: NOT_READY_TAINT.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() }
}

fn labels(node: &Node) -> Vec<(String, String)> {
    let mut labels = vec![
        ("kubernetes.io/hostname".to_owned(), node.options.name.clone()),
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("kubernetes.io/arch".to_owned(), architecture().to_owned()),
        ("beta.kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("beta.kubernetes.io/arch".to_owned(), architecture().to_owned()),
    ];
    if node.options.control_plane {
        labels.push((CONTROL_PLANE_LABEL.to_owned(), String::new()));
    }
    labels
}

fn status(node: &Node) -> NodeStatus {
    let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
    NodeStatus {
        addresses: Some(vec![
            address("InternalIP", node.options.ip.to_string()),
            address("Hostname", node.options.name.clone()),
        ]),
        capacity: Some(capacity()),
        allocatable: Some(capacity()),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(node.options.port) }),
        }),
        node_info: Some(system_info()),
        ..NodeStatus::default()
    }
}

/// Registers the node and keeps its object and lease fresh, for ever.
pub async fn run(node: Arc<Node>) -> Result<(), NodeError> {
    let dir = &node.options.cni_conf_dir;
    std::fs::create_dir_all(dir).map_err(NodeError::io(format!("make directory {}", dir.display())))?;
    let network = Watch::dir(dir).map_err(NodeError::io(format!("watch directory {}", dir.display())))?;
    let api: Api<NodeObject> = Api::all(node.client.clone());
    let own: Informer<NodeObject> = Informer::default();
    let changed = Arc::new(Notify::new());
    let on_change = Arc::clone(&changed);
    own.on_change(move |_| on_change.notify_one());
    register(&node, &api).await;
    node.recorder.record(reference(&node), Severity::Normal, "Starting", "Starting the node runtime.");
    let only_own = watcher::Config::default().fields(&format!("metadata.name={}", node.options.name));
    own.start(api.clone(), only_own);
    own.synced().await;

    let mut renew = tokio::time::interval(RENEW);
    renew.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut was_ready = false;
    loop {
        match keep(&node, &api, &own).await {
            Ok(ready) => {
                if ready && !was_ready {
                    tracing::info!("the node is ready");
                    node.network_changed.notify_waiters();
                }
                was_ready = ready;
            }
            Err(error) if is_conflict(&error) => {
                tokio::time::sleep(RETRY).await;
                continue;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot keep the node's object up to date, trying again");
                tokio::time::sleep(RETRY * 10).await;
                continue;
            }
        }
        tokio::select! {
            () = changed.notified() => {}
            event = network.changed() => {
                event.map_err(NodeError::io(format!("watch directory {}", dir.display())))?;
            }
            _ = renew.tick() => {
                if let Err(error) = renew_lease(&node, &own).await {
                    tracing::warn!(%error, "cannot renew the node's lease");
                }
            }
        }
    }
}

/// What events about the node refer to.
fn reference(node: &Node) -> k8s_openapi::api::core::v1::ObjectReference {
    k8s_openapi::api::core::v1::ObjectReference {
        kind: Some("Node".to_owned()),
        name: Some(node.options.name.clone()),
        uid: Some(node.options.name.clone()),
        ..Default::default()
    }
}

/// Makes the node's object, or brings the labels of an old one up to date.
async fn register(node: &Node, api: &Api<NodeObject>) {
    let labels: std::collections::BTreeMap<_, _> = labels(node).into_iter().collect();
    let mut initial = status(node);
    initial.conditions = Some(conditions(node.cni.status().map_err(|error| error.to_string()), &[]));
    let ready = node.cni.status().is_ok();
    let object = NodeObject {
        metadata: ObjectMeta {
            name: Some(node.options.name.clone()),
            labels: Some(labels.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec { taints: (!ready).then(|| vec![not_ready()]), ..NodeSpec::default() }),
        status: Some(initial.clone()),
    };
    loop {
        let result = match api.create(&PostParams::default(), &object).await {
            Ok(_) => Ok(()),
            Err(error) if is_conflict(&error) => {
                let patch = json!({"metadata": {"labels": labels}});
                api.patch(&node.options.name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
            }
            Err(error) => Err(error),
        };
        let result = match result {
            Ok(()) => {
                let mut status = initial.clone();
                status.conditions = None;
                let patch = json!({ "status": status });
                api.patch_status(&node.options.name, &PatchParams::default(), &Patch::Merge(&patch))
                    .await
                    .map(drop)
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => return,
            Err(error) => {
                tracing::debug!(%error, "cannot register the node yet");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Writes what has changed; says whether the node is ready.
async fn keep(node: &Node, api: &Api<NodeObject>, own: &Informer<NodeObject>) -> Result<bool, kube::Error> {
    let name = &node.options.name;
    let Some(known) = own.get(None, name) else {
        tracing::warn!("the node's object is gone: registering again");
        register(node, api).await;
        match api.get(name).await {
            Ok(object) => own.observe(object),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error),
        }
        return Ok(false);
    };
    let network = node.cni.status().map_err(|error| error.to_string());
    let ready = network.is_ok();
    let before = known.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let after = conditions(network, &before);
    if !same_conditions(&before, &after) {
        let patch = json!({"status": {"conditions": after}});
        own.observe(api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await?);
        let reason = if ready { "NodeReady" } else { "NodeNotReady" };
        let text = format!("Node {name} status is now: {reason}");
        node.recorder.record(reference(node), Severity::Normal, reason, text);
    }
    let known = own.get(None, name).unwrap_or(known);
    let before = known.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    if let Some(taints) = taints(&before, ready) {
        let patch =
            json!({"metadata": {"resourceVersion": known.resource_version()}, "spec": {"taints": taints}});
        own.observe(api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?);
    }
    Ok(ready)
}

async fn renew_lease(node: &Node, own: &Informer<NodeObject>) -> Result<(), kube::Error> {
    let name = &node.options.name;
    let api: Api<Lease> = Api::namespaced(node.client.clone(), LEASE_NAMESPACE);
    let renewed = MicroTime(Timestamp::now());
    let patch =
        json!({"spec": {"renewTime": renewed, "holderIdentity": name, "leaseDurationSeconds": LEASE}});
    match api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Err(error) if is_not_found(&error) => {}
        result => return result.map(drop),
    }
    let owner = own.get(None, name).and_then(|object| object.uid()).map(|uid| {
        vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: name.clone(),
            uid,
            ..OwnerReference::default()
        }]
    });
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(LEASE_NAMESPACE.to_owned()),
            owner_references: owner,
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: Some(LEASE),
            renew_time: Some(renewed),
            ..LeaseSpec::default()
        }),
    };
    match api.create(&PostParams::default(), &lease).await {
        Err(error) if !is_conflict(&error) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_taint_comes_and_goes_with_the_network() {
        let foreign = Taint { key: "mine".into(), effect: "NoSchedule".into(), ..Taint::default() };
        let tainted = taints(std::slice::from_ref(&foreign), false).unwrap();
        assert_eq!(tainted.len(), 2);
        assert!(taints(&tainted, false).is_none());
        assert_eq!(taints(&tainted, true).unwrap(), [foreign]);
        assert!(taints(&[], true).is_none());
    }

    #[test]
    fn conditions_say_why_and_keep_their_times() {
        let down = conditions(Err("no conf".into()), &[]);
        let ready = down.iter().find(|c| c.type_ == "Ready").unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("False", Some("KubeletNotReady")));
        assert!(ready.message.as_ref().unwrap().contains("cni plugin not initialized (no conf)"));
        assert!(same_conditions(&down, &conditions(Err("no conf".into()), &down)));
        let up = conditions(Ok(()), &down);
        assert!(!same_conditions(&down, &up));
        let pressure = |all: &[NodeCondition]| {
            all.iter().find(|c| c.type_ == "DiskPressure").unwrap().last_transition_time.clone()
        };
        assert_eq!(pressure(&down), pressure(&up));
    }

    #[test]
    fn capacity_is_the_machines() {
        let capacity = capacity();
        assert!(capacity.contains_key("memory") && capacity["cpu"].0.parse::<u32>().unwrap() > 0);
    }
}
