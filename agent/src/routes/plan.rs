//! Which routes the node needs. Pure.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use podwire_api::names::HOST_DEVICE;
use podwire_api::values::{RoutingMode, Values};

use super::Route;
use crate::wiring::host_net;

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its InternalIP, if it has told.
    pub internal_ip: Option<Ipv4Addr>,
    /// Its pod CIDRs.
    pub pod_cidrs: Vec<Ipv4Net>,
}

/// How other nodes' pods are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToPeers {
    /// By routes that somebody else installs.
    #[default]
    ByOthers,
    /// By a route to each peer on the same L2 network (`autoDirectNodeRoutes`).
    Direct {
        /// Value `directRoutingSkipUnreachable`.
        skip_unreachable: bool,
    },
    /// Through the tunnel (`routingMode=tunnel`).
    Tunnel,
}

impl ToPeers {
    /// What these values ask for.
    pub fn of(values: &Values) -> Self {
        match (values.routing_mode, values.auto_direct_node_routes) {
            (RoutingMode::Tunnel, _) => Self::Tunnel,
            (RoutingMode::Native, true) => {
                Self::Direct { skip_unreachable: values.direct_routing_skip_unreachable }
            }
            (RoutingMode::Native, false) => Self::ByOthers,
        }
    }
}

/// Everything from which the routes follow.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// The device on the underlay.
    pub device: String,
    /// The node's addresses on that device, with their subnets.
    pub subnets: Vec<Ipv4Net>,
    /// The node's router address.
    pub router: Option<Ipv4Addr>,
    /// The node's pod CIDRs.
    pub pod_cidrs: Vec<Ipv4Net>,
    /// The other nodes; none while nobody has told yet who they are.
    pub peers: Option<Vec<Peer>>,
    /// The pods of this node: address and device.
    pub endpoints: Vec<(Ipv4Addr, String)>,
    /// How other nodes' pods are reached.
    pub to_peers: ToPeers,
    /// Value `endpointRoutes.enabled`.
    pub endpoint_routes: bool,
}

/// What follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Routes to have.
    pub routes: BTreeSet<Route>,
    /// Peers to which there cannot be one, in words.
    pub errors: Vec<String>,
    /// The other nodes are not known yet: what the agent before installed stays until they are.
    pub partial: bool,
}

/// Plans the routes.
pub fn plan(inputs: &Inputs) -> Plan {
    let mut plan = Plan { partial: inputs.peers.is_none(), ..Plan::default() };
    if inputs.endpoint_routes {
        let to_pods = inputs.endpoints.iter();
        plan.routes.extend(to_pods.map(|(ip, dev)| Route {
            dst: host_net(*ip),
            via: None,
            dev: dev.clone(),
            src: None,
        }));
    } else if let Some(router) = inputs.router {
        plan.routes.extend(inputs.pod_cidrs.iter().map(|cidr| through_host(*cidr, router)));
    }
    if let Some(router) = inputs.router.filter(|_| uses_host_device(inputs)) {
        plan.routes.insert(Route { dst: host_net(router), via: None, dev: HOST_DEVICE.into(), src: None });
    }
    if inputs.to_peers != ToPeers::ByOthers {
        plan_peers(inputs, &mut plan);
    }
    plan
}

/// Whether routes lead to podwire_host, whose program knows the rest of the way.
fn uses_host_device(inputs: &Inputs) -> bool {
    inputs.to_peers == ToPeers::Tunnel || !inputs.endpoint_routes
}

/// What the node itself sends there has its router address: pods know the way back to that one.
fn through_host(dst: Ipv4Net, router: Ipv4Addr) -> Route {
    Route { dst, via: Some(router), dev: HOST_DEVICE.into(), src: Some(router) }
}

fn plan_peers(inputs: &Inputs, plan: &mut Plan) {
    // In the order of their names, so that every node decides alike when two peers claim the same addresses.
    let mut peers: Vec<&Peer> = inputs.peers.iter().flatten().collect();
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    let own = inputs.pod_cidrs.iter().map(|c| (*c, "this node".to_owned()));
    let mut claimed: Vec<(Ipv4Net, String)> = own.collect();
    for peer in peers {
        let Some(ip) = peer.internal_ip.filter(|_| !peer.pod_cidrs.is_empty()) else { continue };
        // On the same L2 network: a subnet of the device holds it, so no gateway is between.
        if let ToPeers::Direct { skip_unreachable } = inputs.to_peers
            && !inputs.subnets.iter().any(|s| s.contains(&ip))
        {
            if !skip_unreachable {
                plan.errors.push(format!(
                    "route to node {} is not reachable. Add \"direct-routing-skip-unreachable\" to skip unreachable routes \
                     ({ip} is not in a subnet of {})",
                    peer.name, inputs.device
                ));
            }
            continue;
        }
        for cidr in &peer.pod_cidrs {
            if let Some((other, owner)) = claimed.iter().find(|(c, _)| c.contains(cidr) || cidr.contains(c)) {
                plan.errors.push(format!(
                    "pod CIDR {cidr} of node {} overlaps with {other} of {owner}; give each node a CIDR of its own",
                    peer.name
                ));
                continue;
            }
            claimed.push((*cidr, format!("node {}", peer.name)));
            if inputs.to_peers != ToPeers::Tunnel {
                plan.routes.insert(Route {
                    dst: *cidr,
                    via: Some(ip),
                    dev: inputs.device.clone(),
                    src: None,
                });
            } else if let Some(router) = inputs.router {
                plan.routes.insert(through_host(*cidr, router));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, ip: &str, cidr: &str) -> Peer {
        Peer {
            name: name.into(),
            internal_ip: Some(ip.parse().unwrap()),
            pod_cidrs: vec![cidr.parse().unwrap()],
        }
    }

    /// k8s-ctr of week 4: w1 is on its subnet, w0 is behind the router.
    fn inputs() -> Inputs {
        Inputs {
            device: "eth1".into(),
            subnets: vec!["192.168.10.100/24".parse().unwrap()],
            router: Some("10.244.0.1".parse().unwrap()),
            pod_cidrs: vec!["10.244.0.0/24".parse().unwrap()],
            peers: Some(vec![
                peer("k8s-w1", "192.168.10.101", "10.244.1.0/24"),
                peer("k8s-w0", "192.168.20.100", "10.244.2.0/24"),
            ]),
            endpoints: vec![("10.244.0.7".parse().unwrap(), "lxc1".into())],
            to_peers: ToPeers::Direct { skip_unreachable: false },
            endpoint_routes: true,
        }
    }

    fn lines(plan: &Plan) -> Vec<String> {
        plan.routes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn same_l2_only_and_the_error_names_the_flag() {
        let planned = plan(&inputs());
        assert_eq!(
            lines(&planned),
            [
                "10.244.0.7 dev lxc1 proto kernel scope link",
                "10.244.1.0/24 via 192.168.10.101 dev eth1 proto kernel"
            ]
        );
        assert_eq!(planned.errors.len(), 1);
        assert!(planned.errors[0].starts_with(
            "route to node k8s-w0 is not reachable. Add \"direct-routing-skip-unreachable\" to skip unreachable routes"
        ));
        let skipped = plan(&Inputs { to_peers: ToPeers::Direct { skip_unreachable: true }, ..inputs() });
        assert_eq!((skipped.routes, skipped.errors.len()), (planned.routes, 0));
    }

    #[test]
    fn without_endpoint_routes_the_cidr_goes_to_podwire_host() {
        let planned = plan(&Inputs { endpoint_routes: false, to_peers: ToPeers::ByOthers, ..inputs() });
        assert_eq!(
            lines(&planned),
            [
                "10.244.0.0/24 via 10.244.0.1 dev podwire_host proto kernel src 10.244.0.1",
                "10.244.0.1 dev podwire_host proto kernel scope link"
            ]
        );
    }

    #[test]
    fn a_tunnel_reaches_every_node_by_podwire_host() {
        let planned = plan(&Inputs { to_peers: ToPeers::Tunnel, ..inputs() });
        assert_eq!(
            lines(&planned),
            [
                "10.244.0.1 dev podwire_host proto kernel scope link",
                "10.244.0.7 dev lxc1 proto kernel scope link",
                "10.244.1.0/24 via 10.244.0.1 dev podwire_host proto kernel src 10.244.0.1",
                "10.244.2.0/24 via 10.244.0.1 dev podwire_host proto kernel src 10.244.0.1",
            ]
        );
        assert_eq!(planned.errors, [""; 0]);
    }

    #[test]
    fn overlapping_cidrs_get_one_route_and_an_error() {
        let mut input = inputs();
        input.peers = Some(vec![
            peer("b", "192.168.10.102", "10.244.1.0/24"),
            peer("a", "192.168.10.101", "10.244.0.0/16"),
            peer("c", "192.168.10.103", "10.244.1.128/25"),
        ]);
        let planned = plan(&input);
        assert!(
            planned.errors[0].contains("10.244.0.0/16 of node a overlaps with 10.244.0.0/24 of this node")
        );
        assert!(
            planned.errors[1].contains("10.244.1.128/25 of node c overlaps with 10.244.1.0/24 of node b")
        );
        assert_eq!(planned.routes.len(), 2);
    }

    #[test]
    fn peers_that_have_not_told_everything_are_waited_for() {
        let mut input = inputs();
        let peers = input.peers.as_mut().unwrap();
        peers[0].internal_ip = None;
        peers[1].pod_cidrs.clear();
        let planned = plan(&input);
        assert_eq!((planned.routes.len(), planned.errors.len(), planned.partial), (1, 0, false));
        let planned = plan(&Inputs { peers: None, ..inputs() });
        assert_eq!((planned.routes.len(), planned.errors.len(), planned.partial), (1, 0, true));
    }
}
