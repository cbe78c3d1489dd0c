//! Node lifecycle: a node that no longer renews its lease is marked, tainted, and loses its pods.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::events::Severity;
use super::informer::Change;
use super::meta::{is_active, now, or_gone};
use super::queue::Queue;
use super::{Cluster, pods};
use crate::scheduler::fit::tolerates;

/// Where nodes keep their leases.
pub const LEASE_NAMESPACE: &str = "kube-node-lease";
/// How long a node may be silent before it counts as lost.
pub const GRACE: Duration = Duration::from_secs(40);
/// Taint of a node that is silent.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// When each node was heard of last, by this process's own clock: a control plane that was away, or a machine that slept,
/// does not take its own silence for the nodes'. Cheap to clone.
#[derive(Clone, Default)]
pub struct Heard {
    last: Arc<Mutex<HashMap<String, Instant>>>,
}

impl Heard {
    /// The node has given a sign of life.
    pub fn hear(&self, node: &str) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).insert(node.to_owned(), Instant::now());
    }

    /// How long the node has been silent. A node of which nothing was known is heard of now.
    pub fn silence(&self, node: &str) -> Duration {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.entry(node.to_owned()).or_insert_with(Instant::now).elapsed()
    }

    /// The node is no more.
    pub fn forget(&self, node: &str) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).remove(node);
    }
}

/// What to make of a node.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It lives; look again after this time.
    Alive(Duration),
    /// It has been silent for too long.
    Lost,
}

/// Judges by how long the node has been silent.
pub fn judge(silent: Duration) -> Verdict {
    match GRACE.checked_sub(silent) {
        Some(left) if !left.is_zero() => Verdict::Alive(left),
        _ => Verdict::Lost,
    }
}

/// Conditions of a lost node: what it said itself is no longer known. `None` if they say so already.
fn lost_conditions(node: &Node) -> Option<Vec<NodeCondition>> {
    let mut conditions = node.status.as_ref()?.conditions.clone().unwrap_or_default();
    if conditions.iter().all(|c| c.status == "Unknown") {
        return None;
    }
    for condition in conditions.iter_mut().filter(|c| c.status != "Unknown") {
        "Unknown".clone_into(&mut condition.status);
        condition.reason = Some("NodeStatusUnknown".to_owned());
        condition.message = Some("Kubelet stopped posting node status.".to_owned());
        condition.last_transition_time = Some(now());
    }
    Some(conditions)
}

/// The node's taints with or without those of a lost node. `None` if they are right already.
fn taints(node: &Node, lost: bool) -> Option<Vec<Taint>> {
    let old = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let mut new: Vec<_> = old.iter().filter(|taint| taint.key != UNREACHABLE).cloned().collect();
    if lost {
        for effect in ["NoSchedule", "NoExecute"] {
            let known = old.iter().find(|taint| taint.key == UNREACHABLE && taint.effect == effect).cloned();
            new.push(known.unwrap_or_else(|| Taint {
                key: UNREACHABLE.to_owned(),
                effect: effect.to_owned(),
                time_added: Some(now()),
                ..Taint::default()
            }));
        }
    }
    (new != old).then_some(new)
}

/// Watches and judges for ever.
pub async fn run(cluster: Cluster) {
    let queue = Queue::default();
    let on_node = queue.clone();
    cluster.nodes.on_change(move |change| on_node.add(change.object().name_any()));
    let heard = Heard::default();
    let (on_lease, on_renewal) = (queue.clone(), heard.clone());
    let nodes = cluster.nodes.clone();
    cluster.leases.on_change(move |change| {
        let name = change.object().name_any();
        if let Change::Set { .. } = change {
            on_renewal.hear(&name);
        }
        // Renewals of a node that lives need no work: its own timer looks at the lease.
        if nodes.get(None, &name).is_some_and(|node| taints(&node, false).is_some()) {
            on_lease.add(name);
        }
    });
    cluster.synced().await;
    for node in cluster.nodes.list() {
        queue.add(node.name_any());
    }
    let (cluster, again, heard) = (&cluster, &queue.clone(), &heard);
    queue.work("node-lifecycle", |name| async move { reconcile(cluster, again, heard, &name).await }).await;
}

async fn reconcile(cluster: &Cluster, queue: &Queue, heard: &Heard, name: &str) -> Result<(), kube::Error> {
    let Some(node) = cluster.nodes.get(None, name) else {
        heard.forget(name);
        return Ok(());
    };
    let verdict = judge(heard.silence(name));
    let api: Api<Node> = Api::all(cluster.client.clone());
    let lost = verdict == Verdict::Lost;
    if let Some(conditions) = lost.then(|| lost_conditions(&node)).flatten() {
        tracing::warn!(node = name, "the node no longer renews its lease");
        cluster.recorder.about(
            node.as_ref(),
            Severity::Normal,
            "NodeNotReady",
            format!("Node {name} status is now: NodeNotReady"),
        );
        let patch = json!({"status": {"conditions": conditions}});
        if let Some(node) =
            or_gone(api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await)?
        {
            cluster.nodes.observe(node);
        }
    }
    if lost {
        for pod in cluster.pods.list_if(|pod| on(pod, name) && super::meta::is_ready(pod)) {
            unready(cluster, &pod).await?;
        }
    }
    if let Some(taints) = taints(&node, lost) {
        let patch = json!({"metadata": {"uid": node.metadata.uid}, "spec": {"taints": taints}});
        if let Some(node) = or_gone(api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await)? {
            cluster.nodes.observe(node);
        }
    }
    let look_again = match verdict {
        Verdict::Alive(left) => Some(left + Duration::from_secs(1)),
        Verdict::Lost => evict(cluster, &node).await?,
    };
    if let Some(delay) = look_again {
        queue.add_after(name, delay);
    }
    Ok(())
}

fn on(pod: &Pod, node: &str) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node)
}

async fn unready(cluster: &Cluster, pod: &Pod) -> Result<(), kube::Error> {
    let mut conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    for ready in conditions.iter_mut().filter(|c| c.type_ == "Ready") {
        "False".clone_into(&mut ready.status);
        ready.last_transition_time = Some(now());
    }
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &pod.namespace().unwrap_or_default());
    let patch = json!({"status": {"conditions": conditions}});
    let written = api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await;
    if let Some(pod) = or_gone(written)? {
        cluster.pods.observe(pod);
    }
    Ok(())
}

/// How long a pod bears the NoExecute taint of a lost node; `None` is for ever.
fn bears(pod: &Pod) -> Option<Duration> {
    let taint = Taint { key: UNREACHABLE.to_owned(), effect: "NoExecute".to_owned(), ..Taint::default() };
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let matching: Vec<_> =
        tolerations.iter().filter(|one| tolerates(std::slice::from_ref(*one), &taint)).collect();
    if matching.is_empty() {
        // What the API server gives every pod by default elsewhere.
        return Some(Duration::from_mins(5));
    }
    let limits: Option<Vec<i64>> = matching.iter().map(|one| one.toleration_seconds).collect();
    limits.and_then(|all| all.into_iter().min()).map(|s| Duration::from_secs(u64::try_from(s).unwrap_or(0)))
}

/// Deletes the pods that bear the taint no longer; says when the next is due.
async fn evict(cluster: &Cluster, node: &Node) -> Result<Option<Duration>, kube::Error> {
    let since = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.as_ref())
        .and_then(|taints| taints.iter().find(|t| t.key == UNREACHABLE && t.effect == "NoExecute"))
        .and_then(|taint| taint.time_added.as_ref().map(|time| time.0));
    let Some(since) = since else { return Ok(None) };
    let waited = Duration::try_from(Timestamp::now().duration_since(since)).unwrap_or_default();
    let mut next: Option<Duration> = None;
    for pod in cluster.pods.list_if(|pod| on(pod, &node.name_any()) && is_active(pod)) {
        match bears(&pod) {
            None => {}
            Some(limit) if limit <= waited => {
                let namespace = pod.namespace().unwrap_or_default();
                pods::delete(cluster, &namespace, &pod.name_any(), &DeleteParams::default()).await?;
            }
            Some(limit) => {
                let left = limit.saturating_sub(waited);
                next = Some(next.map_or(left, |n| n.min(left)));
            }
        }
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_judged_by_our_own_clock() {
        assert_eq!(judge(Duration::from_secs(10)), Verdict::Alive(Duration::from_secs(30)));
        assert_eq!(judge(GRACE), Verdict::Lost);
        let heard = Heard::default();
        assert!(
            matches!(judge(heard.silence("n")), Verdict::Alive(_)),
            "its lease may be as old as it wants"
        );
        let long_ago = Instant::now().checked_sub(GRACE * 2).unwrap();
        heard.last.lock().unwrap().insert("n".into(), long_ago);
        assert_eq!(judge(heard.silence("n")), Verdict::Lost);
        heard.hear("n");
        assert!(matches!(judge(heard.silence("n")), Verdict::Alive(_)));
    }

    #[test]
    fn taints_come_and_go_and_others_stay() {
        let node: Node = serde_json::from_value(
            json!({"metadata": {}, "spec": {"taints": [{"key": "mine", "effect": "NoSchedule"}]}}),
        )
        .unwrap();
        assert!(taints(&node, false).is_none());
        let lost = taints(&node, true).unwrap();
        assert_eq!(lost.len(), 3);
        let mut back = node.clone();
        back.spec.as_mut().unwrap().taints = Some(lost);
        assert!(taints(&back, true).is_none());
        assert_eq!(taints(&back, false).unwrap(), node.spec.unwrap().taints.unwrap());
    }

    #[test]
    fn pods_bear_a_lost_node_as_long_as_they_say() {
        let pod = |tolerations: serde_json::Value| -> Pod {
            serde_json::from_value(
                json!({"metadata": {}, "spec": {"containers": [], "tolerations": tolerations}}),
            )
            .unwrap()
        };
        assert_eq!(bears(&pod(json!([]))), Some(Duration::from_mins(5)));
        assert_eq!(bears(&pod(json!([{"operator": "Exists"}]))), None);
        let timed = json!([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]);
        assert_eq!(bears(&pod(timed)), Some(Duration::from_secs(5)));
    }
}
