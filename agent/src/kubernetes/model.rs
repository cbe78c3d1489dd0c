//! What Kubernetes' objects mean to the agent. Pure.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use podwire_api::nodenetwork::{NodeAddress, NodeNetwork};

use crate::identity::identity;
use crate::ipcache::{NodeAddresses, PodAddress};
use crate::routes::plan::Peer;

/// Kind of a node's underlay address, in Node and NodeNetwork.
pub const INTERNAL_IP: &str = "InternalIP";
/// Kind of a node's router address, in NodeNetwork.
pub const ROUTER_IP: &str = "PodwireInternalIP";

/// The node's IPv4 InternalIP.
pub fn internal_ip(node: &Node) -> Option<Ipv4Addr> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses.iter().filter(|a| a.type_ == INTERNAL_IP).find_map(|a| a.address.parse().ok())
}

/// The node's IPv4 pod CIDRs as the controller manager gave them.
pub fn pod_cidrs(node: &Node) -> Vec<Ipv4Net> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let many = spec.pod_cidrs.iter().flatten();
    let mut cidrs: Vec<Ipv4Net> = many.filter_map(|c| c.parse().ok()).collect();
    if cidrs.is_empty() {
        cidrs.extend(spec.pod_cidr.as_ref().and_then(|c| c.parse::<Ipv4Net>().ok()));
    }
    cidrs
}

/// A pod's address with its owner, if it has one of its own: not that of its node, and not that of a finished pod, which
/// may be another pod's by now.
pub fn pod_address(pod: &Pod) -> Option<PodAddress> {
    let host_network = pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false);
    let status = pod.status.as_ref()?;
    let finished = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if host_network || finished {
        return None;
    }
    let ip = status.pod_ip.as_deref()?.parse().ok()?;
    let node_ip = status.host_ip.as_deref().and_then(|ip| ip.parse().ok());
    Some(PodAddress { owner: owner(pod), ip, node_ip, identity: pod_identity(pod) })
}

/// `namespace/pod`.
pub fn owner(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

/// A pod's identity.
pub fn pod_identity(pod: &Pod) -> u32 {
    identity(&pod.namespace().unwrap_or_default(), pod.labels())
}

fn address_of(node: &NodeNetwork, kind: &str) -> Option<Ipv4Addr> {
    node.spec.addresses.iter().find(|a| a.kind == kind).map(|a| a.ip)
}

/// A node of the cluster as the ipcache needs it.
pub fn node_addresses(node: &NodeNetwork, own_name: &str) -> NodeAddresses {
    NodeAddresses {
        own: node.name_any() == own_name,
        name: node.name_any(),
        internal_ip: address_of(node, INTERNAL_IP),
        router: address_of(node, ROUTER_IP),
        pod_cidrs: node.spec.ipam.pod_cidrs.clone(),
    }
}

/// A node of the cluster as the routes need it.
pub fn peer(node: &NodeNetwork) -> Peer {
    Peer {
        name: node.name_any(),
        internal_ip: address_of(node, INTERNAL_IP),
        pod_cidrs: node.spec.ipam.pod_cidrs.clone(),
    }
}

/// The addresses of a NodeNetwork.
pub fn addresses(internal: Ipv4Addr, router: Option<Ipv4Addr>) -> Vec<NodeAddress> {
    let address = |kind: &str, ip| NodeAddress { kind: kind.into(), ip };
    let mut all = vec![address(INTERNAL_IP, internal)];
    all.extend(router.map(|ip| address(ROUTER_IP, ip)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: &serde_json::Value, status: &serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "default", "labels": {"app": "x"}},
            "spec": spec,
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn only_addresses_of_their_own_count() {
        let running = json!({"phase": "Running", "podIP": "10.244.0.5", "hostIP": "192.168.10.100"});
        let found = pod_address(&pod(&json!({"containers": []}), &running)).unwrap();
        assert_eq!((found.owner.as_str(), found.node_ip), ("default/a", "192.168.10.100".parse().ok()));
        assert_eq!(pod_address(&pod(&json!({"containers": [], "hostNetwork": true}), &running)), None);
        let done = json!({"phase": "Succeeded", "podIP": "10.244.0.5"});
        assert_eq!(pod_address(&pod(&json!({"containers": []}), &done)), None);
        assert_eq!(pod_address(&pod(&json!({"containers": []}), &json!({}))), None);
    }

    #[test]
    fn a_nodes_cidrs_and_address() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "k8s-ctr"},
            "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24", "fd00::/64"]},
            "status": {"addresses": [
                {"type": "Hostname", "address": "k8s-ctr"},
                {"type": "InternalIP", "address": "fd00::1"},
                {"type": "InternalIP", "address": "192.168.10.100"},
            ]},
        }))
        .unwrap();
        assert_eq!(pod_cidrs(&node), ["10.244.0.0/24".parse().unwrap()]);
        assert_eq!(internal_ip(&node), "192.168.10.100".parse().ok());
        assert_eq!(pod_cidrs(&Node::default()), []);
    }
}
