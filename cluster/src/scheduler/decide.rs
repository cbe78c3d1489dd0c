//! Where a pod goes, or why it can go nowhere. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;

use super::fit::{
    Place, node_selected, pod_affinity_holds, ports_free, short_of, spread_excess, term_holds, untolerated,
};
use crate::controllers::meta::controller_of;

/// The scheduler's decision on one pod.
#[derive(Debug, PartialEq)]
pub enum Decision {
    /// Bind it to this node.
    Place(String),
    /// It fits nowhere: the message for its event and condition.
    Nowhere(String),
}

fn refusal(pod: &Pod, place: &Place, places: &[Place]) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let node = &place.node;
    if let Some(taint) = untolerated(spec, node, &["NoSchedule", "NoExecute"]) {
        if taint.key == super::fit::UNSCHEDULABLE {
            return Some("node(s) were unschedulable".to_owned());
        }
        let value = taint.value.unwrap_or_default();
        return Some(format!("node(s) had untolerated taint {{{}: {value}}}", taint.key));
    }
    if !node_selected(spec, node) {
        return Some("node(s) didn't match Pod's node affinity/selector".to_owned());
    }
    if !ports_free(pod, place) {
        return Some("node(s) didn't have free ports for the requested pod ports".to_owned());
    }
    if let Some(reason) = short_of(pod, place) {
        return Some(reason);
    }
    if let Err(reason) = pod_affinity_holds(pod, node, places) {
        return Some(reason.to_owned());
    }
    (spread_excess(pod, node, places, "DoNotSchedule") > 0)
        .then(|| "node(s) didn't match pod topology spread constraints".to_owned())
}

/// Sum of the weights of the pod's preferred node affinity that the node satisfies.
fn preference(pod: &Pod, node: &Node) -> i32 {
    let preferred = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.affinity.as_ref())
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref());
    preferred
        .into_iter()
        .flatten()
        .filter(|term| term_holds(&term.preference, node))
        .map(|term| term.weight)
        .sum()
}

/// What speaks against a place, weightiest first: uneven spreading, preferences not met, a taint, pods of the same owner,
/// pods in all.
type Cost = (i32, i32, bool, usize, usize);

/// Chooses among the places that fit: what the pod prefers, then even spreading, then the fewest pods.
pub fn decide(pod: &Pod, places: &[Place]) -> Decision {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut best: Option<(Cost, String)> = None;
    for place in places {
        if let Some(reason) = refusal(pod, place, places) {
            *reasons.entry(reason).or_default() += 1;
            continue;
        }
        let owner = controller_of(&pod.metadata).map(|owner| owner.uid.as_str());
        let siblings = place.pods.iter().filter(|other| {
            owner.is_some()
                && other.metadata.deletion_timestamp.is_none()
                && controller_of(&other.metadata).map(|owner| owner.uid.as_str()) == owner
        });
        let avoided = pod
            .spec
            .as_ref()
            .is_some_and(|spec| untolerated(spec, &place.node, &["PreferNoSchedule"]).is_some());
        let cost = (
            spread_excess(pod, &place.node, places, "ScheduleAnyway"),
            -preference(pod, &place.node),
            avoided,
            siblings.count(),
            place.pods.len(),
        );
        let name = place.node.name_any();
        if best.as_ref().is_none_or(|(least, least_name)| (&cost, &name) < (least, least_name)) {
            best = Some((cost, name));
        }
    }
    match best {
        Some((_, name)) => Decision::Place(name),
        None if places.is_empty() => Decision::Nowhere("no nodes available to schedule pods".to_owned()),
        None => {
            let mut reasons: Vec<_> =
                reasons.into_iter().map(|(reason, n)| format!("{n} {reason}")).collect();
            reasons.sort();
            let total = places.len();
            Decision::Nowhere(format!("0/{total} nodes are available: {}.", reasons.join(", ")))
        }
    }
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn place(name: &str, spec: Value, pods: &[Pod]) -> Place {
        let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "spec": spec,
                          "status": {"allocatable": {"cpu": "1", "pods": "3"}}});
        Place {
            node: Arc::new(serde_json::from_value(node).unwrap()),
            pods: pods.iter().cloned().map(Arc::new).collect(),
        }
    }

    fn pod(name: &str, owner: &str, spec: Value) -> Pod {
        let mut spec = spec;
        spec.as_object_mut().unwrap().entry("containers").or_insert(json!([]));
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default", "labels": {"app": owner}, "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": true}]},
            "spec": spec,
        }))
        .unwrap()
    }

    fn chosen(pod: &Pod, places: &[Place]) -> String {
        match decide(pod, places) {
            Decision::Place(name) => name,
            Decision::Nowhere(reason) => panic!("{reason}"),
        }
    }

    fn reason(pod: &Pod, places: &[Place]) -> String {
        match decide(pod, places) {
            Decision::Place(name) => panic!("placed on {name}"),
            Decision::Nowhere(reason) => reason,
        }
    }

    #[test]
    fn pods_of_one_owner_spread() {
        let other = pod("x", "db", json!({}));
        let places = [
            place("a", json!({}), &[pod("w1", "web", json!({}))]),
            place("b", json!({}), &[other.clone(), other]),
        ];
        assert_eq!(chosen(&pod("w2", "web", json!({})), &places), "b");
    }

    #[test]
    fn without_siblings_the_emptier_node_wins() {
        let places = [place("a", json!({}), &[pod("x", "db", json!({}))]), place("b", json!({}), &[])];
        assert_eq!(chosen(&pod("w", "web", json!({})), &places), "b");
    }

    #[test]
    fn the_reasons_are_counted_per_node() {
        let tainted = json!({"taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]});
        let places = [
            place("a", tainted.clone(), &[]),
            place("b", json!({"unschedulable": true}), &[]),
            place("c", tainted, &[]),
        ];
        assert_eq!(
            reason(&pod("w", "web", json!({})), &places),
            "0/3 nodes are available: 1 node(s) were unschedulable, \
             2 node(s) had untolerated taint {node.kubernetes.io/not-ready: }."
        );
        assert_eq!(reason(&pod("w", "web", json!({})), &[]), "no nodes available to schedule pods");
    }

    #[test]
    fn anti_affinity_on_hostname_keeps_pods_apart() {
        let spec = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}}});
        let first = pod("w1", "web", spec.clone());
        let places = [place("a", json!({}), std::slice::from_ref(&first)), place("b", json!({}), &[])];
        assert_eq!(chosen(&pod("w2", "web", spec.clone()), &places), "b");
        assert!(reason(&pod("w2", "web", spec), &places[..1]).contains("anti-affinity"));
        // The rule of a placed pod binds newcomers that have none.
        assert!(reason(&pod("w3", "web", json!({})), &places[..1]).contains("existing pods anti-affinity"));
    }

    #[test]
    fn affinity_lets_the_first_of_its_kind_start() {
        let spec = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}}});
        let first = pod("w1", "web", spec.clone());
        assert_eq!(chosen(&first, &[place("a", json!({}), &[])]), "a");
        let places = [place("a", json!({}), &[]), place("b", json!({}), std::slice::from_ref(&first))];
        assert_eq!(chosen(&pod("w2", "web", spec), &places), "b");
    }

    #[test]
    fn spread_constraints_bind_or_only_prefer() {
        let spec = |when: &str| {
            json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": when, "labelSelector": {"matchLabels": {"app": "web"}}}]})
        };
        let one = pod("w1", "web", json!({}));
        let places = [
            place("a", json!({}), std::slice::from_ref(&one)),
            place("b", json!({"unschedulable": true}), &[]),
        ];
        assert!(reason(&pod("w2", "web", spec("DoNotSchedule")), &places).contains("topology spread"));
        assert_eq!(chosen(&pod("w2", "web", spec("ScheduleAnyway")), &places), "a");
    }

    #[test]
    fn requests_and_ports_fill_a_node() {
        let hungry = |name: &str| {
            pod(
                name,
                name,
                json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "600m"}}}]}),
            )
        };
        let places = [place("a", json!({}), &[hungry("x")])];
        assert_eq!(reason(&hungry("y"), &places), "0/1 nodes are available: 1 Insufficient cpu.");
        let port = |name: &str| {
            pod(
                name,
                name,
                json!({"hostNetwork": true, "containers": [{"name": "c", "ports": [{"containerPort": 80}]}]}),
            )
        };
        assert!(reason(&port("y"), &[place("a", json!({}), &[port("x")])]).contains("free ports"));
        let full = [pod("1", "a", json!({})), pod("2", "a", json!({})), pod("3", "a", json!({}))];
        assert!(reason(&pod("4", "a", json!({})), &[place("a", json!({}), &full)]).contains("Too many pods"));
    }
}
