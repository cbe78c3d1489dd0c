//! The scheduler: gives every pod without a node one, or says why it cannot.

pub mod decide;
pub mod fit;

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use crate::controllers::Cluster;
use crate::controllers::events::{Recorder, Severity};
use crate::controllers::informer::{Change, Informer, key_of};
use crate::controllers::meta::{is_conflict, is_finished, is_not_found, now};
use crate::controllers::queue::Queue;
use decide::{Decision, decide};
use fit::Place;

/// The name under which pods ask for this scheduler (and get it by default).
pub const NAME: &str = "default-scheduler";

fn waits(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.node_name.as_deref().unwrap_or_default().is_empty()
        && spec.scheduler_name.as_deref().unwrap_or(NAME) == NAME
        && spec.scheduling_gates.as_deref().unwrap_or_default().is_empty()
        && pod.metadata.deletion_timestamp.is_none()
        && !is_finished(pod)
}

/// The change of a pod alters what the others' rules (affinity, spreading, resources, ports) see of it.
fn may_help_others(change: &Change<Pod>) -> bool {
    let seen = |pod: &Pod| {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        (node, pod.metadata.labels.clone(), pod.metadata.deletion_timestamp.is_some(), is_finished(pod))
    };
    match change {
        Change::Gone(_) => true,
        Change::Set { old: None, new } => !waits(new),
        // A pod without a node is in nobody's way, and attracts nobody.
        Change::Set { old: Some(old), new } => !waits(new) && seen(old) != seen(new),
    }
}

fn places(nodes: &Informer<Node>, pods: &Informer<Pod>) -> Vec<Place> {
    let mut by_node: HashMap<String, Vec<Arc<Pod>>> = HashMap::new();
    for pod in pods.list_if(|pod| !is_finished(pod)) {
        if let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) {
            by_node.entry(node).or_default().push(pod);
        }
    }
    nodes
        .list_if(|node| node.metadata.deletion_timestamp.is_none())
        .into_iter()
        .map(|node| Place { pods: by_node.remove(&node.name_any()).unwrap_or_default(), node })
        .collect()
}

/// Watches and places pods for ever.
pub async fn run(cluster: Cluster) {
    let recorder = Recorder::start(cluster.client.clone(), NAME, None);
    let queue = Queue::default();
    // What changes where pods are, or what a node offers, may open a place for any pod that waits.
    let wake = {
        let (queue, pods) = (queue.clone(), cluster.pods.clone());
        move || {
            for pod in pods.list_if(waits) {
                queue.add(key_of(pod.as_ref()));
            }
        }
    };
    let (on_pod, wake_on_pod) = (queue.clone(), wake.clone());
    cluster.pods.on_change(move |change| {
        if let Change::Set { new, .. } = change
            && waits(new)
        {
            on_pod.add(key_of(new.as_ref()));
        }
        if may_help_others(change) {
            wake_on_pod();
        }
    });
    let wake_on_node = wake.clone();
    cluster.nodes.on_change(move |change| {
        if let Change::Set { old: Some(old), new } = change
            && old.spec == new.spec
            && old.metadata.labels == new.metadata.labels
            && old.status.as_ref().map(|status| &status.allocatable)
                == new.status.as_ref().map(|status| &status.allocatable)
        {
            return;
        }
        wake_on_node();
    });
    cluster.synced().await;
    wake();
    let (cluster, recorder, wake) = (&cluster, &recorder, &wake);
    queue.work("scheduler", |key| async move { schedule(cluster, recorder, wake, &key).await }).await;
}

async fn schedule(
    cluster: &Cluster,
    recorder: &Recorder,
    wake: impl Fn(),
    key: &str,
) -> Result<(), kube::Error> {
    let Some(pod) = cluster.pods.get_key(key) else { return Ok(()) };
    if !waits(&pod) {
        return Ok(());
    }
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &pod.namespace().unwrap_or_default());
    match decide(&pod, &places(&cluster.nodes, &cluster.pods)) {
        Decision::Place(node) => match bind(cluster, &api, &pod, &node).await {
            Ok(()) => {
                let text = format!("Successfully assigned {key} to {node}");
                recorder.about(pod.as_ref(), Severity::Normal, "Scheduled", text);
                // Others may want to be near this pod.
                wake();
                Ok(())
            }
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(error),
        },
        Decision::Nowhere(reason) => {
            let known =
                pod.status.as_ref().and_then(|s| s.conditions.as_ref()).into_iter().flatten().any(|c| {
                    c.type_ == "PodScheduled" && c.status == "False" && c.message.as_deref() == Some(&reason)
                });
            if known {
                return Ok(());
            }
            recorder.about(pod.as_ref(), Severity::Warning, "FailedScheduling", reason.clone());
            let mut conditions: Vec<_> =
                pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
            conditions.retain(|c| c.type_ != "PodScheduled");
            let mut conditions = json!(conditions);
            if let Some(list) = conditions.as_array_mut() {
                list.push(json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                                 "message": reason, "lastTransitionTime": now()}));
            }
            let patch = json!({"status": {"phase": "Pending", "conditions": conditions}});
            match api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(pod) => cluster.pods.observe(pod),
                Err(error) if is_not_found(&error) || is_conflict(&error) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        }
    }
}

async fn bind(cluster: &Cluster, api: &Api<Pod>, pod: &Pod, node: &str) -> Result<(), kube::Error> {
    let binding = Binding {
        metadata: ObjectMeta {
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let body = serde_json::to_vec(&binding).map_err(kube::Error::SerdeError)?;
    let request = http::Request::post(format!("{}/{}/binding", api.resource_url(), pod.name_any()))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(kube::Error::HttpError)?;
    let _: serde_json::Value = cluster.client.request(request).await?;
    // The next decision must count this pod where it now is, before the watch tells.
    cluster.pods.assume(pod, |pod| {
        if let Some(spec) = &mut pod.spec {
            spec.node_name = Some(node.to_owned());
        }
    });
    Ok(())
}
