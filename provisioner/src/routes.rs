//! The routes to pods that a machine needs: what to tell a network team, and what it costs when the cluster grows. Pure.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::Serialize;

use crate::lab::{Lab, Node};

/// A route to a node's pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PodRoute {
    /// The node's pod CIDR.
    pub to: Ipv4Net,
    /// Next hop.
    pub via: Ipv4Addr,
    /// The node.
    pub node: String,
}

/// How routes are written.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Commands of iproute2.
    Ip,
    /// Lines of an FRR configuration.
    Frr,
    /// Lines of a Cisco IOS configuration.
    Cisco,
}

/// The routes that a machine of the lab needs to reach every other node's pods. `cidrs` are the nodes' pod CIDRs.
///
/// A node that shares a subnet with the machine is the next hop itself; the way to any other is that of the machine's own static
/// route to the node's address. A node that the machine has no way to is left out and named in the second list.
pub fn pod_routes(
    lab: &Lab,
    machine: &Node,
    cidrs: &[(String, Vec<Ipv4Net>)],
) -> (Vec<PodRoute>, Vec<String>) {
    let (mut routes, mut unreachable) = (Vec::new(), Vec::new());
    for (name, nets) in cidrs.iter().filter(|(name, _)| *name != machine.name) {
        let via = lab.node(name).and_then(|node| next_hop(machine, node));
        match via {
            Some(via) => routes.extend(nets.iter().map(|to| PodRoute { to: *to, via, node: name.clone() })),
            None => unreachable.push(name.clone()),
        }
    }
    routes.sort_by_key(|route| route.to);
    (routes, unreachable)
}

fn next_hop(machine: &Node, node: &Node) -> Option<Ipv4Addr> {
    let shared = node
        .interfaces
        .iter()
        .find(|there| machine.interfaces.iter().any(|here| here.subnet == there.subnet))
        .map(|there| there.address.addr());
    shared.or_else(|| {
        let address = node.internal_ip()?;
        let ways = machine.routes.iter().filter(|route| route.to.contains(&address));
        // The longest prefix wins, as in the kernel.
        ways.max_by_key(|route| route.to.prefix_len()).map(|route| route.via)
    })
}

/// Writes routes, a line each.
pub fn write(routes: &[PodRoute], form: Form) -> String {
    routes
        .iter()
        .map(|route| match form {
            Form::Ip => format!("ip route replace {} via {}\n", route.to, route.via),
            Form::Frr => format!("ip route {} {}\n", route.to, route.via),
            Form::Cisco => {
                format!("ip route {} {} {}\n", route.to.network(), route.to.netmask(), route.via)
            }
        })
        .collect()
}

/// What routing costs at a size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Projection {
    /// How many nodes.
    pub nodes: u64,
    /// Entries for other nodes' pods on each node, natively routed on one subnet.
    pub native_on_node: u64,
    /// Entries for pods on a router between the nodes.
    pub native_on_router: u64,
    /// The same with an overlay: a node has a route into the tunnel for each other node, a router sees nodes only.
    pub overlay_on_node: u64,
    /// And on the router.
    pub overlay_on_router: u64,
    /// Where that ends.
    pub limits: Vec<Limit>,
}

/// What a cloud's route table holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Limit {
    /// Whose.
    pub table: &'static str,
    /// Entries without asking for more.
    pub entries: u64,
    /// It holds a route for every node.
    pub fits: bool,
}

/// Route table quotas before one asks for more. They change: read them anew before you rely on them. AWS: quota L-93826ACB of
/// "Amazon VPC quotas", 500 since 2025 and up to 1,000 on request. Azure: routes per route table in "Azure subscription limits", 400
/// (1,000 with Virtual Network Manager).
const LIMITS: [(&str, u64); 2] = [("AWS VPC route table", 500), ("Azure route table", 400)];

/// Computes what native routing costs at `nodes` nodes, each with one pod CIDR.
pub fn project(nodes: u64) -> Projection {
    let limits =
        LIMITS.iter().map(|(table, entries)| Limit { table, entries: *entries, fits: nodes <= *entries });
    Projection {
        nodes,
        native_on_node: nodes.saturating_sub(1),
        native_on_router: nodes,
        overlay_on_node: nodes.saturating_sub(1),
        overlay_on_router: 0,
        limits: limits.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs() -> Vec<(String, Vec<Ipv4Net>)> {
        [("k8s-ctr", "172.20.0.0/24"), ("k8s-w1", "172.20.1.0/24"), ("k8s-w0", "172.20.2.0/24")]
            .map(|(node, net)| (node.to_owned(), vec![net.parse().unwrap()]))
            .into()
    }

    fn of(machine: &str, form: Form) -> String {
        let lab = Lab::load("cross-subnet").unwrap();
        let (routes, unreachable) = pod_routes(&lab, lab.node(machine).unwrap(), &cidrs());
        assert!(unreachable.is_empty());
        write(&routes, form)
    }

    #[test]
    fn the_router_needs_one_for_each_node() {
        let ip = "ip route replace 172.20.0.0/24 via 192.168.10.100\nip route replace 172.20.1.0/24 via 192.168.10.101\n\
                  ip route replace 172.20.2.0/24 via 192.168.20.100\n";
        assert_eq!(of("router", Form::Ip), ip);
        assert!(of("router", Form::Frr).contains("\nip route 172.20.2.0/24 192.168.20.100\n"));
        assert!(of("router", Form::Cisco).starts_with("ip route 172.20.0.0 255.255.255.0 192.168.10.100\n"));
    }

    #[test]
    fn a_node_behind_a_router_is_reached_by_it() {
        let ip = "ip route replace 172.20.1.0/24 via 192.168.10.101\nip route replace 172.20.2.0/24 via 192.168.10.200\n";
        assert_eq!(of("k8s-ctr", Form::Ip), ip);
    }

    #[test]
    fn a_node_without_a_way_is_named() {
        let mut lab = Lab::load("cross-subnet").unwrap();
        lab.nodes.iter_mut().for_each(|node| node.routes.clear());
        let (routes, unreachable) = pod_routes(&lab, lab.node("k8s-ctr").unwrap(), &cidrs());
        assert_eq!((routes.len(), unreachable), (1, vec!["k8s-w0".to_owned()]));
    }

    #[test]
    fn the_network_between_grows_with_the_nodes_under_native_routing_only() {
        let (one, many) = (project(1), project(1000));
        assert_eq!((one.native_on_node, one.overlay_on_node), (0, 0));
        assert_eq!((many.native_on_node, many.native_on_router), (999, 1000));
        assert_eq!((many.overlay_on_node, many.overlay_on_router), (999, 0));
        assert!(many.limits.iter().all(|limit| limit.fits == (limit.entries >= 1000)));
    }
}
