//! ReplicaSets: as many pods as wanted, adopted or made.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::events::Severity;
use super::informer::{Change, key, key_of};
use super::meta::{
    controller_of, is_active, is_available, is_controlled_by, is_ready, or_gone, owner_reference, phase,
    pod_from_template, ready_since, selects,
};
use super::queue::Queue;
use super::{Cluster, pods};

/// What has to be done so that the set has its pods.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// How many pods to make.
    pub create: usize,
    /// Names of the pods to delete, the most dispensable first.
    pub delete: Vec<String>,
    /// Names of orphans that the set takes over.
    pub adopt: Vec<String>,
    /// Names of pods that the set no longer selects.
    pub release: Vec<String>,
}

/// Decides what to do with `pods` (of the set's namespace).
pub fn plan(set: &ReplicaSet, pods: &[Arc<Pod>]) -> Plan {
    let Some(spec) = &set.spec else { return Plan::default() };
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let mut plan = Plan::default();
    let mut mine: Vec<&Pod> = Vec::new();
    for pod in pods.iter().map(Arc::as_ref).filter(|pod| is_active(pod)) {
        let selected = selects(&spec.selector, pod.metadata.labels.as_ref());
        match controller_of(&pod.metadata) {
            Some(owner) if owner.uid == uid && selected => mine.push(pod),
            Some(owner) if owner.uid == uid => plan.release.push(pod.name_any()),
            None if selected && set.metadata.deletion_timestamp.is_none() => {
                plan.adopt.push(pod.name_any());
                mine.push(pod);
            }
            _ => {}
        }
    }
    if set.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    plan.create = wanted.saturating_sub(mine.len());
    let surplus = mine.len().saturating_sub(wanted);
    if surplus > 0 {
        let mut on_node: HashMap<&str, usize> = HashMap::new();
        for pod in &mine {
            *on_node.entry(node_of(pod)).or_default() += 1;
        }
        mine.sort_by(|a, b| dispensable(a, b, &on_node));
        plan.delete = mine.iter().take(surplus).map(|pod| pod.name_any()).collect();
    }
    plan
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// Orders pods so that those whose loss costs least come first: not placed, not running, not ready, crowded, young.
fn dispensable(a: &Pod, b: &Pod, on_node: &HashMap<&str, usize>) -> Ordering {
    let rank = |pod: &Pod| {
        (
            !node_of(pod).is_empty(),
            match phase(pod) {
                "Pending" => 0,
                "Unknown" => 1,
                _ => 2,
            },
            is_ready(pod),
        )
    };
    let crowd = |pod: &Pod| on_node.get(node_of(pod)).copied().unwrap_or(0);
    rank(a)
        .cmp(&rank(b))
        .then(crowd(b).cmp(&crowd(a)))
        .then(ready_since(b).cmp(&ready_since(a)))
        .then(b.metadata.creation_timestamp.cmp(&a.metadata.creation_timestamp))
        .then(a.metadata.name.cmp(&b.metadata.name))
}

/// The set's status as its pods make it.
pub fn status(set: &ReplicaSet, pods: &[Arc<Pod>], now: Timestamp) -> ReplicaSetStatus {
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let spec = set.spec.clone().unwrap_or_default();
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let template_labels = spec.template.and_then(|t| t.metadata).and_then(|m| m.labels).unwrap_or_default();
    let mine: Vec<_> =
        pods.iter().filter(|pod| is_active(pod) && is_controlled_by(&pod.metadata, uid)).collect();
    let count = |test: &dyn Fn(&Pod) -> bool| -> i32 {
        mine.iter().filter(|pod| test(pod)).count().try_into().unwrap_or(i32::MAX)
    };
    ReplicaSetStatus {
        replicas: mine.len().try_into().unwrap_or(i32::MAX),
        fully_labeled_replicas: Some(count(&|pod| {
            super::meta::selects_all(&template_labels, pod.metadata.labels.as_ref())
        })),
        ready_replicas: Some(count(&is_ready)),
        available_replicas: Some(count(&|pod| is_available(pod, min_ready, now))),
        observed_generation: set.metadata.generation,
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
        ..ReplicaSetStatus::default()
    }
}

/// Watches and reconciles for ever.
pub async fn run(cluster: Cluster) {
    let queue = Queue::default();
    let on_set = queue.clone();
    cluster.replica_sets.on_change(move |change| on_set.add(key_of(change.object().as_ref())));
    let (on_pod, sets) = (queue.clone(), cluster.replica_sets.clone());
    cluster.pods.on_change(move |change| {
        let mut owners = vec![change.object()];
        if let Change::Set { old: Some(old), .. } = change {
            owners.push(old);
        }
        for pod in owners {
            let namespace = pod.metadata.namespace.as_deref();
            match controller_of(&pod.metadata) {
                Some(owner) if owner.kind == "ReplicaSet" => on_pod.add(key(namespace, &owner.name)),
                Some(_) => {}
                None => {
                    for set in sets.list_if(|set| {
                        set.metadata.namespace == pod.metadata.namespace
                            && set
                                .spec
                                .as_ref()
                                .is_some_and(|spec| selects(&spec.selector, pod.metadata.labels.as_ref()))
                    }) {
                        on_pod.add(key_of(set.as_ref()));
                    }
                }
            }
        }
    });
    cluster.synced().await;
    for set in cluster.replica_sets.list() {
        queue.add(key_of(set.as_ref()));
    }
    let (cluster, again) = (&cluster, &queue.clone());
    queue.work("replicaset", |key| async move { reconcile(cluster, again, &key).await }).await;
}

async fn reconcile(cluster: &Cluster, queue: &Queue, key: &str) -> Result<(), kube::Error> {
    let Some(set) = cluster.replica_sets.get_key(key) else { return Ok(()) };
    let (namespace, name) = (set.namespace().unwrap_or_default(), set.name_any());
    let all = pods::in_namespace(&cluster.pods, &namespace);
    let plan = plan(&set, &all);
    for pod in &plan.adopt {
        pods::adopt(cluster, &namespace, pod, owner_reference(set.as_ref())).await?;
    }
    for pod in &plan.release {
        pods::release(cluster, &namespace, pod, set.metadata.uid.as_deref().unwrap_or_default()).await?;
    }
    if let Some(template) = set.spec.as_ref().and_then(|spec| spec.template.as_ref()) {
        let new = (0..plan.create)
            .map(|_| pod_from_template(template, &namespace, &name, owner_reference(set.as_ref()), &[]));
        pods::create(cluster, set.as_ref(), &namespace, new.collect()).await?;
    }
    for pod in &plan.delete {
        pods::delete(cluster, &namespace, pod, &DeleteParams::default()).await?;
        let text = format!("Deleted pod: {pod}");
        cluster.recorder.about(set.as_ref(), Severity::Normal, "SuccessfulDelete", text);
    }

    let now = Timestamp::now();
    let all = pods::in_namespace(&cluster.pods, &namespace);
    let status = status(&set, &all, now);
    if set.status.as_ref() != Some(&status) {
        let sets: Api<ReplicaSet> = Api::namespaced(cluster.client.clone(), &namespace);
        let patch = json!({ "status": status });
        let written = sets.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        if let Some(written) = or_gone(written)? {
            cluster.replica_sets.observe(written);
        }
    }
    let min_ready = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    if min_ready > 0 && status.available_replicas != status.ready_replicas {
        queue.add_after(key, Duration::from_secs(1));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "set"},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                     "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}},
        }))
        .unwrap()
    }

    fn pod(name: &str, node: &str, phase: &str, ready: bool, owner: Option<&str>) -> Arc<Pod> {
        let owners = owner.map(|uid| {
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": uid, "controller": true}])
        });
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}, "ownerReferences": owners},
                "spec": {"containers": [], "nodeName": node},
                "status": {"phase": phase,
                           "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
            }))
            .unwrap(),
        )
    }

    #[test]
    fn missing_pods_are_made_and_orphans_adopted() {
        let pods = [pod("a", "n1", "Running", true, Some("set")), pod("orphan", "n1", "Running", true, None)];
        let plan = plan(&set(3), &pods);
        assert_eq!(plan, Plan { create: 1, adopt: vec!["orphan".into()], ..Plan::default() });
    }

    #[test]
    fn pods_of_others_and_finished_pods_do_not_count() {
        let pods = [
            pod("other", "n1", "Running", true, Some("someone")),
            pod("done", "n1", "Failed", false, Some("set")),
        ];
        assert_eq!(plan(&set(1), &pods), Plan { create: 1, ..Plan::default() });
    }

    #[test]
    fn the_least_useful_pod_goes_first() {
        let pods = [
            pod("ready-crowded", "n1", "Running", true, Some("set")),
            pod("ready-crowded-too", "n1", "Running", true, Some("set")),
            pod("ready-alone", "n2", "Running", true, Some("set")),
            pod("not-ready", "n2", "Running", false, Some("set")),
            pod("not-placed", "", "Pending", false, Some("set")),
        ];
        assert_eq!(plan(&set(3), &pods).delete, ["not-placed", "not-ready"]);
        assert_eq!(plan(&set(2), &pods[..3]).delete, ["ready-crowded"]);
    }

    #[test]
    fn a_pod_that_lost_the_label_is_released() {
        let mut changed = Pod::clone(&pod("a", "n1", "Running", true, Some("set")));
        changed.metadata.labels = None;
        let plan = plan(&set(1), &[Arc::new(changed)]);
        assert_eq!(plan, Plan { create: 1, release: vec!["a".into()], ..Plan::default() });
    }

    #[test]
    fn status_counts_own_active_pods() {
        let pods = [
            pod("a", "n1", "Running", true, Some("set")),
            pod("b", "n1", "Running", false, Some("set")),
            pod("c", "n1", "Running", true, Some("someone")),
        ];
        let status = status(&set(2), &pods, Timestamp::now());
        assert_eq!(
            (status.replicas, status.ready_replicas, status.available_replicas),
            (2, Some(1), Some(1))
        );
    }
}
