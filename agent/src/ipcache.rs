//! Who owns which address, cluster-wide, as the datapath is told. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use podwire_abi::IpcacheEntry;
use podwire_abi::identity::{HOST, REMOTE_NODE, UNMANAGED};

use crate::wiring::{abi_ip, host_net};

/// A pod of the cluster that has an address of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodAddress {
    /// `namespace/pod`.
    pub owner: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its node's address.
    pub node_ip: Option<Ipv4Addr>,
    /// Its identity.
    pub identity: u32,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddresses {
    /// Its name.
    pub name: String,
    /// This node.
    pub own: bool,
    /// Its InternalIP.
    pub internal_ip: Option<Ipv4Addr>,
    /// Its router address.
    pub router: Option<Ipv4Addr>,
    /// Its pod CIDRs.
    pub pod_cidrs: Vec<Ipv4Net>,
}

/// A pod of this node as the agent itself knows it, which is before the API server does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its identity.
    pub identity: u32,
}

/// The owners that the datapath must know; `own` are all addresses of this node, also those of which the cluster does not know.
pub fn plan(
    nodes: &[NodeAddresses],
    own: &[Ipv4Addr],
    pods: &[PodAddress],
    local: &[LocalPod],
) -> BTreeMap<Ipv4Net, IpcacheEntry> {
    let host = IpcacheEntry { identity: HOST, node_ip: 0 };
    let mut map: BTreeMap<_, _> = own.iter().map(|ip| (host_net(*ip), host)).collect();
    for node in nodes {
        let node_ip = if node.own { 0 } else { node.internal_ip.map_or(0, abi_ip) };
        let identity = if node.own { HOST } else { REMOTE_NODE };
        if !node.own {
            let entry = IpcacheEntry { identity: UNMANAGED, node_ip };
            map.extend(node.pod_cidrs.iter().map(|cidr| (*cidr, entry)));
        }
        let own_addresses = node.internal_ip.into_iter().chain(node.router);
        map.extend(own_addresses.map(|ip| (host_net(ip), IpcacheEntry { identity, node_ip })));
    }
    let own_ip = nodes.iter().find(|n| n.own).and_then(|n| n.internal_ip);
    for pod in pods {
        let node_ip = pod.node_ip.filter(|ip| Some(*ip) != own_ip).map_or(0, abi_ip);
        map.insert(host_net(pod.ip), IpcacheEntry { identity: pod.identity, node_ip });
    }
    for pod in local {
        map.insert(host_net(pod.ip), IpcacheEntry { identity: pod.identity, node_ip: 0 });
    }
    map
}

/// What to change so that `present` becomes `desired`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// To be written.
    pub upsert: Vec<(Ipv4Net, IpcacheEntry)>,
    /// To be deleted.
    pub delete: Vec<Ipv4Net>,
}

/// Compares.
pub fn diff(desired: &BTreeMap<Ipv4Net, IpcacheEntry>, present: &BTreeMap<Ipv4Net, IpcacheEntry>) -> Changes {
    Changes {
        upsert: desired
            .iter()
            .filter(|(net, e)| present.get(net) != Some(e))
            .map(|(n, e)| (*n, *e))
            .collect(),
        delete: present.keys().filter(|net| !desired.contains_key(net)).copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn node(name: &str, own: bool, internal: &str, cidr: &str) -> NodeAddresses {
        let cidr = net(cidr);
        NodeAddresses {
            name: name.into(),
            own,
            internal_ip: Some(ip(internal)),
            router: Some(crate::ipam::router_address(cidr)),
            pod_cidrs: vec![cidr],
        }
    }

    #[test]
    fn nodes_pods_and_what_only_the_agent_knows() {
        let nodes = [
            node("k8s-ctr", true, "192.168.10.100", "10.244.0.0/24"),
            node("k8s-w1", false, "192.168.10.101", "10.244.1.0/24"),
        ];
        let pod = |ip_text: &str, node: &str| PodAddress {
            owner: "default/a".into(),
            ip: ip(ip_text),
            node_ip: Some(ip(node)),
            identity: 300,
        };
        let pods = [pod("10.244.0.5", "192.168.10.100"), pod("10.244.1.5", "192.168.10.101")];
        let local = [LocalPod { ip: ip("10.244.0.6"), identity: UNMANAGED }];
        let own = [ip("192.168.10.100"), ip("10.0.2.15")];
        let map = plan(&nodes, &own, &pods, &local);
        let w1 = abi_ip(ip("192.168.10.101"));
        let entry = |identity, node_ip| IpcacheEntry { identity, node_ip };
        assert_eq!(map[&net("10.244.1.0/24")], entry(UNMANAGED, w1));
        assert_eq!(map[&net("192.168.10.100/32")], entry(HOST, 0));
        assert_eq!(map[&net("10.0.2.15/32")], entry(HOST, 0), "an address that only the kernel tells");
        assert_eq!(map[&net("192.168.10.101/32")], entry(REMOTE_NODE, w1));
        assert_eq!(map[&net("10.244.0.1/32")], entry(HOST, 0));
        assert_eq!(map[&net("10.244.1.1/32")], entry(REMOTE_NODE, w1));
        assert_eq!(map[&net("10.244.0.5/32")], entry(300, 0));
        assert_eq!(map[&net("10.244.1.5/32")], entry(300, w1));
        assert_eq!(map[&net("10.244.0.6/32")], entry(UNMANAGED, 0));
        assert!(!map.contains_key(&net("10.244.0.0/24")));

        let mut present = map.clone();
        present.remove(&net("10.244.0.6/32"));
        present.insert(net("10.244.9.9/32"), entry(300, w1));
        present.insert(net("10.244.0.5/32"), entry(301, 0));
        let changes = diff(&map, &present);
        assert_eq!(changes.delete, [net("10.244.9.9/32")]);
        assert_eq!(
            changes.upsert.iter().map(|(n, _)| *n).collect::<Vec<_>>(),
            [net("10.244.0.5/32"), net("10.244.0.6/32")]
        );
        assert_eq!(diff(&map, &map), Changes::default());
    }
}
