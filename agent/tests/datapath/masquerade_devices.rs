//! Several devices and addresses: each way out has its own, and what has lost its address goes.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Duration};

use podwire_abi::{DropReason, identity};
use podwire_agent::{
    controllers::masquerade::apply,
    datapath::{Datapath, Direction, Hook},
    masquerade::{
        collect::{Collected, all, collect, since_boot},
        connections::{ANY, TCP_ESTABLISHED},
    },
};
use podwire_api::values::Values;

use crate::{
    net::{Node, TCX, ifindex, inside, isolated, make_namespace, sh},
    outside::{COMPANY, PODS, ROUTER, Tcp, ask, assert_no_drops, cluster, ip, udp},
};

const NODE_NAT: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

/// A second device, as VirtualBox gives it: eth0 with the default route, and a network behind it.
fn add_eth0(node: &Node) {
    make_namespace("provider");
    sh(&format!("ip -n provider link add nat type veth peer name eth0 netns {}", node.name));
    for command in [
        "-n provider addr add 10.0.2.2/24 dev nat",
        "-n provider link set nat up",
        "-n provider addr add 203.0.113.9/32 dev lo",
        &format!("-n {} addr add 10.0.2.15/24 dev eth0", node.name),
        &format!("-n {} link set eth0 up", node.name),
        &format!("-n {} route add default via 10.0.2.2", node.name),
    ] {
        sh(&format!("ip {command}"));
    }
}

fn values(devices: &[&str]) -> Values {
    Values { devices: devices.iter().map(|d| (*d).to_owned()).collect(), ..Values::default() }
}

fn applied(node: &Node, values: &Values) {
    inside(&node.name, || apply(&node.datapath, values, node.ip()).unwrap());
}

fn masquerading(datapath: &Datapath) -> BTreeSet<u32> {
    let attached = datapath.attachments().unwrap().into_iter();
    attached.filter(|(hook, _)| *hook == Hook::ToNetwork).map(|(_, ifindex)| ifindex).collect()
}

#[test]
fn each_way_out_has_its_own_address() {
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let a = one.pod(10);
        add_eth0(one);
        // A second subnet on eth1, whose address the kernel lists first.
        sh("ip -n node1 addr flush dev eth1");
        sh("ip -n node1 addr add 172.30.0.1/24 dev eth1");
        sh("ip -n node1 addr add 192.168.10.1/24 dev eth1");
        sh("ip -n node1 route add 10.10.0.0/16 via 192.168.10.200");
        sh("ip -n router addr add 172.30.0.200/24 dev eth1");
        applied(one, &values(&[]));
        let near = Ipv4Addr::new(172, 30, 0, 200);
        for (netns, target, expected) in [
            ("provider", INTERNET, NODE_NAT),
            (ROUTER, COMPANY, one.ip()),
            (ROUTER, near, Ipv4Addr::new(172, 30, 0, 1)),
        ] {
            let mut tcp = Tcp::open(&a.netns, (a.ip, 0), netns, target);
            assert_eq!(ip(tcp.seen), expected);
            tcp.assert_alive(10_000);
            assert_eq!(ip(ask(&udp(&a.netns, a.ip, 0), &udp(netns, target, 0), 10)), expected);
            a.assert_reaches(target);
        }
        assert_no_drops(one);
        let eth0 = ifindex(&one.name, "eth0");
        assert_eq!(masquerading(&one.datapath), BTreeSet::from([eth0, one.eth1]));
        // Named devices are the only ones, and twice is once.
        for _ in 0..2 {
            applied(one, &values(&["eth1"]));
            assert_eq!(masquerading(&one.datapath), BTreeSet::from([one.eth1]));
        }
        let off = Values { enable_ipv4_masquerade: false, ..values(&[]) };
        applied(one, &off);
        assert_eq!(masquerading(&one.datapath), BTreeSet::new());
        let attached = one.datapath.attachments().unwrap();
        assert!(attached.contains(&(Hook::FromNetwork, one.eth1)), "pods are reached all the same");
        assert!(!attached.contains(&(Hook::FromNetwork, eth0)));
    });
}

/// The way out moves to another device: what begins anew has that one's address, by the port that it had.
#[test]
fn a_flow_that_moves_to_another_device_takes_its_address() {
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let a = one.pod(10);
        add_eth0(one);
        applied(one, &values(&[]));
        sh("ip -n router addr add 203.0.113.9/32 dev lo");
        let client = udp(&a.netns, a.ip, 45_000);
        assert_eq!(ip(ask(&client, &udp("provider", INTERNET, 5353), 10)), NODE_NAT);
        sh("ip -n node1 route add 203.0.113.0/24 via 192.168.10.200");
        applied(one, &values(&[]));
        assert_eq!(ip(ask(&client, &udp(ROUTER, INTERNET, 5353), 10)), one.ip());
        assert_eq!(one.datapath.connections(Direction::Out).unwrap().len(), 1);
        assert_eq!(one.datapath.connections(Direction::In).unwrap().len(), 1, "the old one is gone");
        assert_no_drops(one);
    });
}

/// A device without an address lets nothing of a pod out.
#[test]
fn without_an_address_nothing_leaves() {
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let a = one.pod(10);
        let mut events = one.events();
        one.datapath.set_masquerade_addresses(&std::collections::BTreeMap::new()).unwrap();
        assert!(!a.ping(&format!("-c 1 -W 1 {COMPANY}")).0);
        events.wait_for_drop(DropReason::NatNoMapping, a.ip);
        applied(one, &values(&[]));
        a.assert_reaches(COMPANY);
    });
}

/// Connections go by their own clocks, or with the address that they need; the others go on.
#[test]
fn what_is_over_is_collected_and_nothing_else() {
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let a = one.pod(10);
        let own = BTreeSet::from([one.ip()]);
        let run = |now: Duration, own: &BTreeSet<Ipv4Addr>| collect(&one.datapath, now, own).unwrap();
        let mut tcp = Tcp::open(&a.netns, (a.ip, 0), ROUTER, COMPANY);
        let closed = Tcp::open(&a.netns, (a.ip, 0), ROUTER, COMPANY);
        drop(closed);
        let (client, server) = (udp(&a.netns, a.ip, 0), udp(ROUTER, COMPANY, 0));
        let seen = ask(&client, &server, 10);
        crate::net::eventually("both sides have ended one connection", || {
            all(&one.datapath).unwrap().iter().any(|tracked| tracked.state().to_string() == "closing")
        });
        let now = since_boot();
        assert_eq!(run(now, &own), Collected { kept: 3, removed: 0 });
        assert_eq!(run(now + Duration::from_secs(30), &own), Collected { kept: 2, removed: 1 });
        assert_eq!(run(now + ANY, &own), Collected { kept: 1, removed: 1 });
        tcp.assert_alive(1000);
        // The question is asked anew from the same port.
        assert_eq!(ask(&client, &server, 10), seen);
        assert_eq!(run(now, &BTreeSet::from([NODE_NAT])), Collected { kept: 0, removed: 2 });
        // Even then: the port is free, so that the connection is opened as it was.
        tcp.assert_alive(1000);
        assert_eq!(run(since_boot() + TCP_ESTABLISHED, &own), Collected { kept: 0, removed: 1 });
        for direction in [Direction::Out, Direction::In] {
            assert_eq!(one.datapath.connections(direction).unwrap().len(), 0);
        }
        assert_no_drops(one);
    });
}

/// Another node's addresses are kept from masquerade by their identity, whatever else is known.
#[test]
fn identities_decide_who_is_a_node() {
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let a = one.pod(10);
        sh("ip -n router route add 10.244.1.0/24 via 192.168.10.1");
        for (identity, expected) in [
            (identity::REMOTE_NODE, a.ip),
            (identity::HOST, a.ip),
            (identity::WORLD, one.ip()),
            (identity::KUBE_APISERVER, one.ip()),
            (identity::FIRST_USER, one.ip()),
        ] {
            let entry = podwire_abi::IpcacheEntry { identity, node_ip: 0 };
            one.datapath.ipcache_upsert(COMPANY.into(), entry).unwrap();
            assert_eq!(ip(Tcp::open(&a.netns, (a.ip, 0), ROUTER, COMPANY).seen), expected, "{identity}");
        }
    });
}
