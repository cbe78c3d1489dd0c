//! On which devices pods are masqueraded, and with which of the node's addresses. Pure.
//!
//! The rule is the kernel's own for what the node itself sends: the address that the route prefers, else the one in the
//! subnet of the gateway, else the first of the device. So what a server sees of a pod is what it sees of the pod's node.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use podwire_abi::connection::MAX_MASQUERADE_ADDRESSES;
use podwire_api::names::{ENDPOINT_DEVICE_PREFIX, HOST_DEVICE, HOST_DEVICE_PEER, VXLAN_DEVICE};

use crate::datapath::MasqueradeAddresses;
use crate::netlink::link::Link;
use crate::netlink::route::KernelRoute;

/// Beginnings of names of devices that lead to no network outside the node: those of the agent, and those that container
/// runtimes, hypervisors and other plugins make for their own guests.
const NOT_OUTSIDE: [&str; 9] = [
    ENDPOINT_DEVICE_PREFIX,
    HOST_DEVICE,
    HOST_DEVICE_PEER,
    VXLAN_DEVICE,
    "docker",
    "br-",
    "cni",
    "virbr",
    "veth",
];

/// How many routes of a device are told apart. The map has room for four such devices.
const MAX_ROUTES: usize = MAX_MASQUERADE_ADDRESSES as usize / 4;

/// What there is on the node.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    /// Value `devices`.
    pub devices: &'a [String],
    /// The node's InternalIP.
    pub node_ip: Ipv4Addr,
    /// Links.
    pub links: &'a [Link],
    /// Addresses with the index of their link, in the kernel's order.
    pub addresses: &'a [(u32, Ipv4Net)],
    /// Routes of the main table.
    pub routes: &'a [KernelRoute],
}

/// Where and how to masquerade.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The devices, with the address that each has for pods where no route says otherwise.
    pub devices: Vec<(Link, Ipv4Addr)>,
    /// What the datapath is told.
    pub addresses: MasqueradeAddresses,
    /// Every address of the node.
    pub own: BTreeSet<Ipv4Addr>,
    /// What is wrong, each with its mend.
    pub errors: Vec<String>,
}

/// Plans.
pub fn plan(inputs: &Inputs<'_>) -> Plan {
    let mut plan =
        Plan { own: inputs.addresses.iter().map(|(_, net)| net.addr()).collect(), ..Plan::default() };
    for name in inputs.devices {
        if !inputs.links.iter().any(|link| link.name == *name) {
            plan.errors.push(format!(
                "device {name:?} of the value `devices` does not exist on this node; correct the value"
            ));
        }
    }
    for link in inputs.links.iter().filter(|link| is_outside(inputs, link)) {
        if link.mac.is_none() {
            // The programs read Ethernet frames; a tunnel's device has none.
            if inputs.devices.contains(&link.name) {
                plan.errors.push(format!(
                    "device {:?} of the value `devices` carries no Ethernet frames, so nothing can be masqueraded there; name \
                     another",
                    link.name
                ));
            }
            continue;
        }
        let of_link: Vec<Ipv4Net> = global(inputs.addresses, link.index);
        let Some(first) = of_link.first() else {
            // Without an address of its own a device is a part of another (a bridge's port, a bond's), or not in use.
            if inputs.devices.contains(&link.name) {
                plan.errors.push(format!(
                    "device {:?} of the value `devices` has no IPv4 address, so nothing can be masqueraded there; give it one",
                    link.name
                ));
            }
            continue;
        };
        let usual = of_link.iter().find(|net| net.addr() == inputs.node_ip).unwrap_or(first).addr();
        plan.devices.push((link.clone(), usual));
        let mut by_route = MasqueradeAddresses::new();
        let mut routes: Vec<_> =
            inputs.routes.iter().filter(|r| r.oif == Some(link.index) && r.unicast).collect();
        // Of routes to one destination the kernel takes that of the lowest metric: it is written last.
        routes.sort_by_key(|route| std::cmp::Reverse(route.metric));
        for route in routes {
            let preferred = route.src.filter(|src| plan.own.contains(src));
            let near = route.via.unwrap_or(route.dst.network());
            let in_subnet = || of_link.iter().find(|net| net.contains(&near)).map(Ipv4Net::addr);
            let address = preferred.or_else(in_subnet).unwrap_or(usual);
            by_route.insert((link.index, route.dst.trunc()), address);
        }
        // Where all routes agree there is nothing to tell apart.
        let differ = by_route.values().any(|address| *address != usual);
        if differ && by_route.len() > MAX_ROUTES {
            plan.errors.push(format!(
                "device {:?} has {} routes, more than the {MAX_ROUTES} that can each have an address for pods: all have {usual}; \
                 aggregate routes, or give them no preferred source",
                link.name,
                by_route.len()
            ));
        } else if differ {
            plan.addresses.extend(by_route);
        }
        plan.addresses.entry((link.index, Ipv4Net::default())).or_insert(usual);
    }
    plan
}

/// Whether pods' addresses must not leave by this device.
fn is_outside(inputs: &Inputs<'_>, link: &Link) -> bool {
    if !inputs.devices.is_empty() {
        return inputs.devices.contains(&link.name);
    }
    let has_node_ip = inputs.addresses.contains_by(link.index, inputs.node_ip);
    // One that is down too: when it comes up, masquerade is there already.
    link.name != "lo" && (has_node_ip || !NOT_OUTSIDE.iter().any(|prefix| link.name.starts_with(prefix)))
}

trait ContainsBy {
    fn contains_by(&self, index: u32, ip: Ipv4Addr) -> bool;
}

impl ContainsBy for [(u32, Ipv4Net)] {
    fn contains_by(&self, index: u32, ip: Ipv4Addr) -> bool {
        self.iter().any(|(i, net)| *i == index && net.addr() == ip)
    }
}

/// A link's addresses that others can answer to; one that is of the link only (RFC 3927) counts where there is no other.
fn global(addresses: &[(u32, Ipv4Net)], index: u32) -> Vec<Ipv4Net> {
    let mut of_link: Vec<Ipv4Net> = addresses
        .iter()
        .filter(|(i, net)| *i == index && !net.addr().is_loopback())
        .map(|(_, net)| *net)
        .collect();
    of_link.sort_by_key(|net| net.addr().is_link_local());
    of_link
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Mac;

    fn link(index: u32, name: &str) -> Link {
        Link { index, name: name.into(), mtu: 1500, up: true, arp: true, mac: Some(Mac([2; 6])) }
    }

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    fn route(dst: &str, oif: u32, via: Option<&str>) -> KernelRoute {
        KernelRoute { via: via.map(ip), ..KernelRoute::new(net(dst), oif, 2) }
    }

    /// A VirtualBox VM of the course: eth0 leads out, eth1 is the nodes' network.
    struct Node {
        links: Vec<Link>,
        addresses: Vec<(u32, Ipv4Net)>,
        routes: Vec<KernelRoute>,
    }

    fn node() -> Node {
        Node {
            links: ["lo", "eth0", "eth1", "podwire_host", "podwire_net", "lxc1", "docker0", "eth2"]
                .into_iter()
                .zip(1..)
                .map(|(name, index)| link(index, name))
                .collect(),
            addresses: vec![
                (1, net("127.0.0.1/8")),
                (2, net("10.0.2.15/24")),
                (3, net("192.168.10.100/24")),
                (4, net("10.244.0.1/32")),
                (7, net("172.17.0.1/16")),
            ],
            routes: vec![
                route("0.0.0.0/0", 2, Some("10.0.2.2")),
                route("10.0.2.0/24", 2, None),
                route("192.168.10.0/24", 3, None),
                route("10.10.0.0/16", 3, Some("192.168.10.200")),
                route("10.244.0.7/32", 6, None),
            ],
        }
    }

    fn planned(node: &Node, devices: &[String]) -> Plan {
        plan(&Inputs {
            devices,
            node_ip: ip("192.168.10.100"),
            links: &node.links,
            addresses: &node.addresses,
            routes: &node.routes,
        })
    }

    #[test]
    fn each_device_that_leads_out_has_its_own_address() {
        let plan = planned(&node(), &[]);
        let names: Vec<_> = plan.devices.iter().map(|(link, ip)| (link.name.as_str(), *ip)).collect();
        assert_eq!(names, [("eth0", ip("10.0.2.15")), ("eth1", ip("192.168.10.100"))]);
        let everywhere = |index, address| ((index, net("0.0.0.0/0")), ip(address));
        assert_eq!(
            plan.addresses,
            MasqueradeAddresses::from([everywhere(2, "10.0.2.15"), everywhere(3, "192.168.10.100")])
        );
        assert!(plan.errors.is_empty());
    }

    #[test]
    fn named_devices_are_the_only_ones() {
        let plan = planned(&node(), &["eth1".into(), "eth2".into(), "eth7".into()]);
        assert_eq!(plan.devices.len(), 1);
        assert_eq!(plan.devices[0].0.name, "eth1");
        assert!(plan.errors[0].contains("\"eth7\"") && plan.errors[0].contains("does not exist"));
        assert!(plan.errors[1].contains("\"eth2\"") && plan.errors[1].contains("give it one"));
    }

    #[test]
    fn of_several_addresses_the_one_that_the_kernel_would_take() {
        let mut node = node();
        // Listed before the InternalIP, as the kernel does with the address that was added first.
        node.addresses.insert(2, (3, net("172.30.0.5/24")));
        node.addresses.push((3, net("192.168.10.222/24")));
        node.routes.push(route("172.30.0.0/24", 3, None));
        node.routes.push(route("198.51.100.0/24", 3, Some("172.30.0.1")));
        node.routes.push(KernelRoute {
            src: Some(ip("192.168.10.222")),
            metric: 10,
            ..route("203.0.113.0/24", 3, Some("192.168.10.200"))
        });
        node.routes.push(KernelRoute { metric: 20, ..route("203.0.113.0/24", 3, Some("172.30.0.1")) });
        let plan = planned(&node, &[]);
        let at = |dst: &str| plan.addresses[&(3, net(dst))];
        assert_eq!(at("0.0.0.0/0"), ip("192.168.10.100"));
        assert_eq!(at("10.10.0.0/16"), ip("192.168.10.100"));
        assert_eq!(at("172.30.0.0/24"), ip("172.30.0.5"));
        assert_eq!(at("198.51.100.0/24"), ip("172.30.0.5"));
        assert_eq!(at("203.0.113.0/24"), ip("192.168.10.222"));
        assert_eq!(plan.addresses.len(), 7, "eth0 has one for all: {:?}", plan.addresses);
    }

    #[test]
    fn too_many_routes_are_told_and_have_one_address() {
        let mut node = node();
        node.addresses.push((3, net("172.30.0.5/24")));
        let far = |i: usize| format!("100.{}.{}.0/24", i / 256, i % 256);
        node.routes.extend((0..MAX_ROUTES).map(|i| route(&far(i), 3, Some("192.168.10.200"))));
        let plan_one = planned(&node, &[]);
        assert_eq!((plan_one.addresses.len(), plan_one.errors.len()), (2, 0), "all of them agree");
        node.routes.push(route("172.30.0.0/24", 3, None));
        let plan = planned(&node, &[]);
        assert!(plan.errors[0].contains("\"eth1\" has 4099 routes"), "{:?}", plan.errors);
        assert_eq!(plan.addresses, plan_one.addresses);
    }

    #[test]
    fn a_tunnel_carries_nothing_and_a_device_that_is_down_will() {
        let mut node = node();
        node.links[1].up = false;
        node.links.push(Link { mac: None, ..link(9, "wg0") });
        node.addresses.push((9, net("10.9.0.1/24")));
        let plan = planned(&node, &["wg0".into()]);
        assert!(plan.errors[0].contains("no Ethernet frames"), "{:?}", plan.errors);
        let plan = planned(&node, &[]);
        let names: Vec<_> = plan.devices.iter().map(|(link, _)| link.name.as_str()).collect();
        assert_eq!(names, ["eth0", "eth1"]);
        assert!(plan.own.contains(&ip("10.9.0.1")), "its address is the node's all the same");
    }
}
