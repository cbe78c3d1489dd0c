//! Whether a pod may run on a node: selectors, affinity, taints, ports, resources. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodAffinityTerm, PodSpec, Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt as _;

use crate::controllers::meta::selects;

/// Taint that `kubectl cordon` stands for.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// A node with the pods that are placed on it.
#[derive(Clone)]
pub struct Place {
    /// The node.
    pub node: Arc<Node>,
    /// Its unfinished pods.
    pub pods: Vec<Arc<Pod>>,
}

/// The toleration covers the taint.
pub fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|t| {
        let key = t.key.as_deref().unwrap_or_default();
        let exists = t.operator.as_deref() == Some("Exists");
        t.effect.as_deref().is_none_or(|effect| effect.is_empty() || effect == taint.effect)
            && (key == taint.key || (key.is_empty() && exists))
            && (exists
                || t.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default())
    })
}

/// The node's taints, an unschedulable node's included.
pub fn taints(node: &Node) -> Vec<Taint> {
    let spec = node.spec.clone().unwrap_or_default();
    let mut taints = spec.taints.unwrap_or_default();
    if spec.unschedulable == Some(true) && !taints.iter().any(|taint| taint.key == UNSCHEDULABLE) {
        taints.push(Taint {
            key: UNSCHEDULABLE.to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        });
    }
    taints
}

fn requirement_holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = || value.is_some_and(|value| values.iter().any(|one| one == value));
    let number = |order: std::cmp::Ordering| {
        let have = value.and_then(|value| value.parse::<i64>().ok());
        let bound = values.first().and_then(|bound| bound.parse::<i64>().ok());
        matches!((have, bound), (Some(have), Some(bound)) if have.cmp(&bound) == order)
    };
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number(std::cmp::Ordering::Greater),
        "Lt" => number(std::cmp::Ordering::Less),
        _ => false,
    }
}

/// The node satisfies one term of a node selector.
pub fn term_holds(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|r| requirement_holds(r, node.labels().get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| r.key == "metadata.name" && requirement_holds(r, Some(&node.name_any())))
}

/// The node satisfies the pod's `nodeSelector` and its required node affinity.
pub fn node_selected(spec: &PodSpec, node: &Node) -> bool {
    let selected = spec.node_selector.iter().flatten().all(|(k, v)| node.labels().get(k) == Some(v));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    selected
        && required
            .is_none_or(|selector| selector.node_selector_terms.iter().any(|term| term_holds(term, node)))
}

/// The first taint of these effects that the pod does not tolerate.
pub fn untolerated(spec: &PodSpec, node: &Node, effects: &[&str]) -> Option<Taint> {
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    taints(node).into_iter().find(|t| effects.contains(&t.effect.as_str()) && !tolerates(tolerations, t))
}

/// The pod that `term` (of `owner`) speaks of.
fn term_selects(term: &PodAffinityTerm, owner: &Pod, other: &Pod) -> bool {
    let own_namespace = owner.metadata.namespace.as_ref();
    let listed = term.namespaces.as_deref().unwrap_or_default();
    // A namespaceSelector that is present and empty means every namespace.
    let any_namespace =
        term.namespace_selector.as_ref().is_some_and(|selector| *selector == LabelSelector::default());
    let right_namespace = any_namespace
        || other.metadata.namespace.as_ref().is_some_and(|namespace| listed.contains(namespace))
        || (listed.is_empty()
            && term.namespace_selector.is_none()
            && other.metadata.namespace.as_ref() == own_namespace);
    right_namespace
        && term
            .label_selector
            .as_ref()
            .is_some_and(|selector| selects(selector, other.metadata.labels.as_ref()))
}

fn domain<'a>(node: &'a Node, key: &str) -> Option<&'a String> {
    node.labels().get(key)
}

fn affinity_terms(pod: &Pod, anti: bool) -> &[PodAffinityTerm] {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    let terms = if anti {
        affinity
            .and_then(|a| a.pod_anti_affinity.as_ref())
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())
    } else {
        affinity
            .and_then(|a| a.pod_affinity.as_ref())
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())
    };
    terms.map(Vec::as_slice).unwrap_or_default()
}

/// Required inter-pod affinity and anti-affinity, also that of pods already placed against the new one.
pub fn pod_affinity_holds(pod: &Pod, node: &Node, places: &[Place]) -> Result<(), &'static str> {
    let same_domain = |key: &str, place: &Place| {
        domain(node, key).is_some() && domain(node, key) == domain(&place.node, key)
    };
    for term in affinity_terms(pod, false) {
        let hit = |place: &Place| place.pods.iter().any(|other| term_selects(term, pod, other));
        if domain(node, &term.topology_key).is_none() {
            return Err("node(s) didn't match pod affinity rules");
        }
        let satisfied = places.iter().any(|place| same_domain(&term.topology_key, place) && hit(place));
        // The first pod of a group that wants its own kind near starts anywhere.
        let first = term_selects(term, pod, pod) && !places.iter().any(hit);
        if !satisfied && !first {
            return Err("node(s) didn't match pod affinity rules");
        }
    }
    for term in affinity_terms(pod, true) {
        if places.iter().any(|place| {
            same_domain(&term.topology_key, place)
                && place.pods.iter().any(|other| term_selects(term, pod, other))
        }) {
            return Err("node(s) didn't match pod anti-affinity rules");
        }
    }
    for place in places {
        for other in &place.pods {
            for term in affinity_terms(other, true) {
                if same_domain(&term.topology_key, place) && term_selects(term, other, pod) {
                    return Err("node(s) didn't satisfy existing pods anti-affinity rules");
                }
            }
        }
    }
    Ok(())
}

/// How much worse than the allowed skew the placement would make each constraint of `when`; 0 where all hold.
pub fn spread_excess(pod: &Pod, node: &Node, places: &[Place], when: &str) -> i32 {
    let Some(spec) = &pod.spec else { return 0 };
    let mut excess = 0;
    for constraint in spec.topology_spread_constraints.iter().flatten() {
        if constraint.when_unsatisfiable != when {
            continue;
        }
        let Some(here) = domain(node, &constraint.topology_key) else {
            excess += i32::MAX / 1024;
            continue;
        };
        let mut counts: BTreeMap<&String, i32> = BTreeMap::new();
        for place in places {
            let Some(there) = domain(&place.node, &constraint.topology_key) else { continue };
            if !node_selected(spec, &place.node) {
                continue;
            }
            let matching = place.pods.iter().filter(|other| {
                other.metadata.namespace == pod.metadata.namespace
                    && other.metadata.deletion_timestamp.is_none()
                    && constraint
                        .label_selector
                        .as_ref()
                        .is_some_and(|selector| selects(selector, other.metadata.labels.as_ref()))
            });
            *counts.entry(there).or_default() += i32::try_from(matching.count()).unwrap_or(i32::MAX);
        }
        let least = counts.values().min().copied().unwrap_or(0);
        let own =
            constraint.label_selector.as_ref().is_some_and(|s| selects(s, pod.metadata.labels.as_ref()));
        let skew = counts.get(here).copied().unwrap_or(0) + i32::from(own) - least;
        excess += (skew - constraint.max_skew).max(0);
    }
    excess
}

fn host_ports(pod: &Pod) -> impl Iterator<Item = (&str, i32)> {
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|spec| spec.host_network) == Some(true);
    spec.into_iter().flat_map(|spec| &spec.containers).flat_map(|c| c.ports.iter().flatten()).filter_map(
        move |port| {
            let number = port.host_port.or(host_network.then_some(port.container_port))?;
            (number != 0).then(|| (port.protocol.as_deref().unwrap_or("TCP"), number))
        },
    )
}

/// No pod of the node holds a host port that this pod wants.
pub fn ports_free(pod: &Pod, place: &Place) -> bool {
    host_ports(pod).all(|wanted| place.pods.iter().all(|other| host_ports(other).all(|held| held != wanted)))
}

/// A quantity in thousandths of its unit: `1` and `1000m` are 1000, `1Ki` is 1024000. `None` if it is no quantity.
pub fn milli(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let split =
        text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-' || c == '+')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: f64 = match unit {
        "n" => 1e-6,
        "u" => 1e-3,
        "m" => 1.0,
        "" => 1e3,
        "k" => 1e6,
        "M" => 1e9,
        "G" => 1e12,
        "T" => 1e15,
        "Ki" => 1024e3,
        "Mi" => 1_048_576e3,
        "Gi" => 1_073_741_824e3,
        "Ti" => 1_099_511_627_776e3,
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    Some((number * factor).ceil() as i128)
}

/// What the pod asks for: the sum of its containers, or its largest init container.
pub fn requests(pod: &Pod) -> BTreeMap<String, i128> {
    let Some(spec) = &pod.spec else { return BTreeMap::new() };
    let of = |container: &k8s_openapi::api::core::v1::Container| -> Vec<(String, i128)> {
        let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        requests.into_iter().flatten().filter_map(|(k, q)| Some((k.clone(), milli(q)?))).collect()
    };
    let mut sum = BTreeMap::new();
    for (name, amount) in spec.containers.iter().flat_map(of) {
        *sum.entry(name).or_insert(0) += amount;
    }
    for (name, amount) in spec.init_containers.iter().flatten().flat_map(of) {
        let entry = sum.entry(name).or_insert(0);
        *entry = amount.max(*entry);
    }
    sum
}

/// The first resource of which the node has too little left. Only resources that the node declares are counted.
pub fn short_of(pod: &Pod, place: &Place) -> Option<String> {
    let allocatable = place.node.status.as_ref().and_then(|status| status.allocatable.as_ref())?;
    if let Some(most) = allocatable.get("pods").and_then(milli)
        && (place.pods.len() as i128 + 1) * 1000 > most
    {
        return Some("Too many pods".to_owned());
    }
    requests(pod).into_iter().find_map(|(name, wanted)| {
        let total = allocatable.get(&name).and_then(milli)?;
        let used: i128 = place.pods.iter().filter_map(|other| requests(other).get(&name).copied()).sum();
        (wanted > 0 && used + wanted > total).then(|| format!("Insufficient {name}"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn taint(key: &str, effect: &str) -> Taint {
        Taint { key: key.into(), effect: effect.into(), ..Taint::default() }
    }

    #[test]
    fn tolerations_follow_the_api() {
        let all: Vec<Toleration> = serde_json::from_value(json!([{"operator": "Exists"}])).unwrap();
        let one: Vec<Toleration> =
            serde_json::from_value(json!([{"key": "a", "operator": "Exists", "effect": "NoSchedule"}]))
                .unwrap();
        let equal: Vec<Toleration> = serde_json::from_value(json!([{"key": "a", "value": "x"}])).unwrap();
        assert!(tolerates(&all, &taint("anything", "NoExecute")));
        assert!(tolerates(&one, &taint("a", "NoSchedule")));
        assert!(!tolerates(&one, &taint("a", "NoExecute")));
        assert!(!tolerates(&equal, &taint("a", "NoSchedule")), "the value differs");
    }

    #[test]
    fn quantities_have_units() {
        let milli = |text: &str| super::milli(&Quantity(text.into()));
        assert_eq!(milli("1"), Some(1000));
        assert_eq!(milli("250m"), Some(250));
        assert_eq!(milli("0.5"), Some(500));
        assert_eq!(milli("1Ki"), Some(1_024_000));
        assert_eq!(milli("many"), None);
    }

    #[test]
    fn a_cordoned_node_is_tainted() {
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"unschedulable": true}}))
                .unwrap();
        assert_eq!(taints(&node)[0].key, UNSCHEDULABLE);
    }

    #[test]
    fn node_affinity_by_name() {
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n1", "labels": {"zone": "a"}}})).unwrap();
        let spec = |value: serde_json::Value| -> PodSpec {
            serde_json::from_value(json!({"containers": [], "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [value]}}}}))
            .unwrap()
        };
        let by_name = |name: &str| {
            spec(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}))
        };
        assert!(node_selected(&by_name("n1"), &node));
        assert!(!node_selected(&by_name("n2"), &node));
        assert!(!node_selected(&spec(json!({})), &node), "an empty term selects nothing");
        let zone = spec(json!({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}));
        assert!(!node_selected(&zone, &node));
    }
}
