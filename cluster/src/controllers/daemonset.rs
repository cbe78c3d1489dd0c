//! DaemonSets: one pod on every node that matches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, PodTemplateSpec, Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::events::Severity;
use super::informer::{key, key_of};
use super::meta::{
    controller_of, is_available, is_conflict, is_controlled_by, is_finished, is_ready, or_gone,
    owner_reference, pod_from_template, scaled, template_hash,
};
use super::queue::Queue;
use super::{Cluster, pods};
use crate::scheduler::fit::{node_selected, untolerated};

/// Label that tells which revision of the template a pod is of.
pub const REVISION_HASH: &str = "controller-revision-hash";
/// Label of the template's generation, older than [`REVISION_HASH`] and still expected.
const GENERATION: &str = "pod-template-generation";

/// The pod spec as it runs on `node`: bound to it by affinity, tolerant of what makes nodes unfit for others.
fn spec_for(spec: &PodSpec, node: &str) -> PodSpec {
    let mut spec = spec.clone();
    let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
    let selector = affinity
        .required_during_scheduling_ignored_during_execution
        .get_or_insert(NodeSelector { node_selector_terms: Vec::new() });
    let by_name = vec![NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    }];
    if selector.node_selector_terms.is_empty() {
        selector.node_selector_terms.push(NodeSelectorTerm::default());
    }
    for term in &mut selector.node_selector_terms {
        term.match_fields = Some(by_name.clone());
    }
    let host_network = spec.host_network == Some(true);
    let tolerations = spec.tolerations.get_or_insert_default();
    tolerations.extend(standing_tolerations(host_network));
    spec
}

fn standing_tolerations(host_network: bool) -> Vec<Toleration> {
    let mut kinds = vec![
        ("not-ready", "NoExecute"),
        ("unreachable", "NoExecute"),
        ("disk-pressure", "NoSchedule"),
        ("memory-pressure", "NoSchedule"),
        ("pid-pressure", "NoSchedule"),
        ("unschedulable", "NoSchedule"),
    ];
    if host_network {
        // Agents that make the pod network must start before it is ready.
        kinds.extend([("network-unavailable", "NoSchedule"), ("not-ready", "NoSchedule")]);
    }
    kinds
        .into_iter()
        .map(|(key, effect)| Toleration {
            key: Some(format!("node.kubernetes.io/{key}")),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        })
        .collect()
}

/// What a node means to a DaemonSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// A pod belongs on the node.
    pub run: bool,
    /// A pod that is there may stay.
    pub stay: bool,
}

/// Whether the set's pods belong on `node`.
pub fn wish(template: &PodTemplateSpec, node: &Node) -> Wish {
    let Some(spec) = &template.spec else { return Wish { run: false, stay: false } };
    let spec = spec_for(spec, &node.name_any());
    let fits = node_selected(&spec, node) && node.metadata.deletion_timestamp.is_none();
    Wish {
        run: fits && untolerated(&spec, node, &["NoSchedule", "NoExecute"]).is_none(),
        stay: fits && untolerated(&spec, node, &["NoExecute"]).is_none(),
    }
}

/// What has to be done for one set.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Nodes on which a pod is to be made.
    pub create: Vec<String>,
    /// Pods to delete.
    pub delete: Vec<String>,
    /// The set's numbers.
    pub status: DaemonSetStatus,
}

/// The node a pod of the set is meant for, bound or not.
fn target(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    spec.node_name.as_deref().filter(|name| !name.is_empty()).or_else(|| {
        let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
        let selector = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
        let fields = selector.node_selector_terms.first()?.match_fields.as_ref()?;
        fields.first()?.values.as_ref()?.first().map(String::as_str)
    })
}

/// Decides for a set whose template has the hash `hash`, given the nodes and its namespace's pods.
pub fn plan(set: &DaemonSet, hash: &str, nodes: &[Arc<Node>], pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let Some(spec) = &set.spec else { return Plan::default() };
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let mut by_node: BTreeMap<&str, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| is_controlled_by(&pod.metadata, uid)) {
        by_node.entry(target(pod).unwrap_or_default()).or_default().push(pod);
    }
    let mut plan = Plan::default();
    let status = &mut plan.status;
    status.observed_generation = set.metadata.generation;
    status.collision_count = set.status.as_ref().and_then(|status| status.collision_count);
    let (mut updated, mut available) = (0, 0);
    // Pods of an old revision that could be replaced: (node's pod is unavailable, name).
    let mut stale: Vec<(bool, String)> = Vec::new();
    let mut unavailable_new = 0;
    let known: BTreeSet<_> = nodes.iter().map(|node| node.name_any()).collect();
    let min_ready = spec.min_ready_seconds.unwrap_or(0);

    for node in nodes {
        let name = node.name_any();
        let wish = wish(&spec.template, node);
        let all = by_node.get(name.as_str()).map(Vec::as_slice).unwrap_or_default();
        let (finished, live): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) =
            all.iter().copied().partition(|pod| is_finished(pod));
        plan.delete.extend(
            finished.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).map(|pod| pod.name_any()),
        );
        let mut active: Vec<_> =
            live.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
        active.sort_by_key(|pod| (pod.metadata.creation_timestamp.clone(), pod.name_any()));
        if wish.run || (wish.stay && !active.is_empty()) {
            if wish.run {
                status.desired_number_scheduled += 1;
            }
            match active.split_first() {
                // A pod that is ending still holds its node.
                None if live.is_empty() => plan.create.push(name),
                None => unavailable_new += 1,
                Some((pod, surplus)) => {
                    plan.delete.extend(surplus.iter().map(|pod| pod.name_any()));
                    let current = pod.labels().get(REVISION_HASH).map(String::as_str) == Some(hash);
                    let is_up = is_available(pod, min_ready, now);
                    status.current_number_scheduled += 1;
                    status.number_ready += i32::from(is_ready(pod));
                    available += i32::from(is_up);
                    updated += i32::from(current);
                    if current {
                        unavailable_new += i32::from(!is_up);
                    } else {
                        stale.push((is_up, pod.name_any()));
                    }
                }
            }
        } else {
            status.number_misscheduled += i32::from(!active.is_empty());
            plan.delete.extend(active.iter().map(|pod| pod.name_any()));
        }
    }
    for (node, pods) in &by_node {
        if !known.contains(*node) {
            let active = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
            plan.delete.extend(active.map(|pod| pod.name_any()));
        }
    }

    let strategy = spec.update_strategy.as_ref();
    if strategy.and_then(|s| s.type_.as_deref()) != Some("OnDelete") {
        let most = strategy.and_then(|s| s.rolling_update.as_ref()).and_then(|r| r.max_unavailable.as_ref());
        let most = scaled(most, "1", status.desired_number_scheduled, true).max(1);
        stale.sort();
        let mut budget = most - unavailable_new;
        for (is_up, name) in stale {
            if is_up {
                if budget <= 0 {
                    break;
                }
                budget -= 1;
            }
            // A pod that is down anyway costs nothing, but it counts as down while it is replaced.
            plan.delete.push(name);
            if !is_up {
                budget -= 1;
            }
        }
    }
    status.updated_number_scheduled = Some(updated);
    status.number_available = Some(available);
    status.number_unavailable = Some(status.desired_number_scheduled - available);
    plan
}

/// Watches and reconciles for ever.
pub async fn run(cluster: Cluster) {
    let queue = Queue::default();
    let on_set = queue.clone();
    cluster.daemon_sets.on_change(move |change| on_set.add(key_of(change.object().as_ref())));
    let on_pod = queue.clone();
    cluster.pods.on_change(move |change| {
        let pod = change.object();
        if let Some(owner) = controller_of(&pod.metadata).filter(|owner| owner.kind == "DaemonSet") {
            on_pod.add(key(pod.metadata.namespace.as_deref(), &owner.name));
        }
    });
    let (on_node, sets) = (queue.clone(), cluster.daemon_sets.clone());
    cluster.nodes.on_change(move |_| {
        for set in sets.list() {
            on_node.add(key_of(set.as_ref()));
        }
    });
    cluster.synced().await;
    for set in cluster.daemon_sets.list() {
        queue.add(key_of(set.as_ref()));
    }
    let (cluster, again) = (&cluster, &queue.clone());
    queue.work("daemonset", |key| async move { reconcile(cluster, again, &key).await }).await;
}

async fn reconcile(cluster: &Cluster, queue: &Queue, key: &str) -> Result<(), kube::Error> {
    let Some(set) = cluster.daemon_sets.get_key(key) else { return Ok(()) };
    if set.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let Some(spec) = &set.spec else { return Ok(()) };
    let (namespace, name) = (set.namespace().unwrap_or_default(), set.name_any());
    let hash = template_hash(&spec.template, 0);
    record_revision(cluster, &set, &namespace, &hash).await?;

    let nodes = cluster.nodes.list();
    let now = Timestamp::now();
    let first = plan(&set, &hash, &nodes, &pods::in_namespace(&cluster.pods, &namespace), now);
    for pod in &first.delete {
        pods::delete(cluster, &namespace, pod, &DeleteParams::default()).await?;
        cluster.recorder.about(
            set.as_ref(),
            Severity::Normal,
            "SuccessfulDelete",
            format!("Deleted pod: {pod}"),
        );
    }
    let generation = set.metadata.generation.unwrap_or(1).to_string();
    let labels = [(REVISION_HASH, hash.as_str()), (GENERATION, generation.as_str())];
    let new = first.create.iter().map(|node| {
        let owner = owner_reference(set.as_ref());
        let mut pod = pod_from_template(&spec.template, &namespace, &name, owner, &labels);
        pod.spec = pod.spec.as_ref().map(|spec| spec_for(spec, node));
        pod
    });
    pods::create(cluster, set.as_ref(), &namespace, new.collect()).await?;

    let status = plan(&set, &hash, &nodes, &pods::in_namespace(&cluster.pods, &namespace), now).status;
    if set.status.as_ref() != Some(&status) {
        let sets: Api<DaemonSet> = Api::namespaced(cluster.client.clone(), &namespace);
        let patch = json!({ "status": status });
        let written = sets.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        if let Some(written) = or_gone(written)? {
            cluster.daemon_sets.observe(written);
        }
    }
    if spec.min_ready_seconds.unwrap_or(0) > 0 && status.number_available != Some(status.number_ready) {
        queue.add_after(key, std::time::Duration::from_secs(1));
    }
    Ok(())
}

/// Keeps a ControllerRevision of the template, which `kubectl rollout history` and `undo` read.
async fn record_revision(
    cluster: &Cluster,
    set: &DaemonSet,
    namespace: &str,
    hash: &str,
) -> Result<(), kube::Error> {
    let api: Api<ControllerRevision> = Api::namespaced(cluster.client.clone(), namespace);
    let name = format!("{}-{hash}", set.name_any());
    let uid = set.uid().unwrap_or_default();
    let mut known = api.list(&ListParams::default()).await?.items;
    known.retain(|one| is_controlled_by(&one.metadata, &uid));
    let last = known.iter().map(|one| one.revision).max().unwrap_or(0);
    if let Some(mine) = known.iter().find(|one| one.name_any() == name) {
        if mine.revision < last {
            let patch = json!({"revision": last + 1});
            or_gone(api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await)?;
        }
        return Ok(());
    }
    let spec = set.spec.clone().unwrap_or_default();
    let mut template = serde_json::to_value(&spec.template).map_err(kube::Error::SerdeError)?;
    template["$patch"] = json!("replace");
    let mut labels = spec.template.metadata.and_then(|meta| meta.labels).unwrap_or_default();
    labels.insert(REVISION_HASH.to_owned(), hash.to_owned());
    let revision = ControllerRevision {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels),
            annotations: set.metadata.annotations.clone(),
            owner_references: Some(vec![owner_reference(set)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(json!({"spec": {"template": template}}))),
        revision: last + 1,
    };
    match api.create(&PostParams::default(), &revision).await {
        Ok(_) => {}
        Err(error) if is_conflict(&error) => {}
        Err(error) => return Err(error),
    }
    let keep = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or(usize::MAX);
    known.sort_by_key(|one| one.revision);
    for old in known.iter().take(known.len().saturating_sub(keep)) {
        or_gone(api.delete(&old.name_any(), &DeleteParams::default()).await)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set() -> DaemonSet {
        serde_json::from_value(json!({
            "metadata": {"name": "agent", "namespace": "kube-system", "uid": "ds", "generation": 3},
            "spec": {"selector": {"matchLabels": {"app": "agent"}}, "template": {
                "metadata": {"labels": {"app": "agent"}},
                "spec": {"containers": [], "nodeSelector": {"os": "linux"}, "hostNetwork": true}}},
        }))
        .unwrap()
    }

    fn node(name: &str, spec: Value) -> Arc<Node> {
        let node = json!({"metadata": {"name": name, "labels": {"os": "linux"}}, "spec": spec});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn pod(name: &str, node: &str, hash: &str, ready: bool) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "labels": {REVISION_HASH: hash}, "ownerReferences": [
                    {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "uid": "ds", "controller": true}]},
                "spec": {"containers": [], "nodeName": node},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]},
            }))
            .unwrap(),
        )
    }

    fn planned(nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> Plan {
        plan(&set(), "new", nodes, pods, Timestamp::now())
    }

    #[test]
    fn every_matching_node_gets_one_also_while_it_is_not_ready() {
        let not_ready = json!({"taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]});
        let foreign = json!({"taints": [{"key": "mine", "effect": "NoSchedule"}]});
        let plan = planned(&[node("a", not_ready), node("b", json!({})), node("c", foreign)], &[]);
        assert_eq!(plan.create, ["a", "b"]);
        assert_eq!(plan.status.desired_number_scheduled, 2);
    }

    #[test]
    fn a_pod_that_waits_for_the_scheduler_counts() {
        let mut waiting = Pod::clone(&pod("p", "", "new", false));
        waiting.spec = Some(spec_for(&PodSpec::default(), "a"));
        let plan = planned(&[node("a", json!({}))], &[Arc::new(waiting)]);
        assert_eq!((plan.create.len(), plan.delete.len()), (0, 0));
        assert_eq!(plan.status.current_number_scheduled, 1);
    }

    #[test]
    fn surplus_misplaced_and_finished_pods_go() {
        let mut failed = Pod::clone(&pod("failed", "a", "new", false));
        failed.status.as_mut().unwrap().phase = Some("Failed".into());
        let pods = [
            pod("a1", "a", "new", true),
            pod("a2", "a", "new", true),
            pod("lost", "gone", "new", true),
            Arc::new(failed),
        ];
        let plan = planned(&[node("a", json!({}))], &pods);
        assert_eq!(plan.delete, ["failed", "a2", "lost"]);
    }

    #[test]
    fn an_update_replaces_one_available_pod_at_a_time() {
        let nodes = [node("a", json!({})), node("b", json!({}))];
        let plan = planned(&nodes, &[pod("pa", "a", "old", true), pod("pb", "b", "old", true)]);
        assert_eq!(plan.delete, ["pa"]);
        let waiting = planned(&nodes, &[pod("pa", "a", "new", false), pod("pb", "b", "old", true)]);
        assert!(waiting.delete.is_empty());
        let next = planned(&nodes, &[pod("pa", "a", "new", true), pod("pb", "b", "old", true)]);
        assert_eq!(next.delete, ["pb"]);
        assert_eq!(next.status.updated_number_scheduled, Some(1));
    }

    #[test]
    fn stale_pods_that_are_down_are_replaced_at_once() {
        let nodes = [node("a", json!({})), node("b", json!({}))];
        let plan = planned(&nodes, &[pod("pa", "a", "old", false), pod("pb", "b", "old", true)]);
        assert_eq!(plan.delete, ["pa"]);
    }
}
