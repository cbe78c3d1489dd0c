//! Pods wired by the plugin talk to each other through the eBPF datapath, also while no agent runs.
#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

mod common;

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use common::{Namespace, TestNode};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use podwire_abi::NodeConfig;
use podwire_agent::datapath::Datapath;

/// Runs a test in a thread with mounts of its own, one of which is a BPF file system.
fn isolated(test: impl FnOnce(&Path) + Send) {
    let dir = tempfile::tempdir().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("bpf"), dir.path(), Some("bpf"), MsFlags::empty(), none).unwrap();
            test(dir.path());
        });
    });
}

/// Node `number`: 192.168.10.`number` on eth1, pods in 10.244.`number`.0/24, with the datapath attached as the daemon does.
fn node(number: u8, bpffs: &Path, endpoint_routes: bool) -> (TestNode, Datapath) {
    let mut node = TestNode::not_started(&format!("10.244.{number}.0/24"), endpoint_routes);
    node.ns.ip("link set lo up");
    let pins = bpffs.join(format!("node{number}"));
    let datapath = node.ns.run(|| Datapath::open(&pins).unwrap());
    node.real = Some(Arc::new(datapath.clone()));
    node.start();
    (node, datapath)
}

fn attach(number: u8, node: &TestNode, datapath: &Datapath, endpoint_routes: bool) {
    let cidr = node.cidr;
    node.ns.run(|| {
        let index = |name: &str| nix::net::if_::if_nametoindex(name).unwrap();
        let config = NodeConfig::new(
            Ipv4Addr::new(192, 168, 10, number),
            podwire_agent::ipam::router_address(cidr),
            [(cidr.network(), cidr.prefix_len())],
        );
        datapath.set_config(config).unwrap();
        datapath.attach_network_device(index("eth1")).unwrap();
        if !endpoint_routes {
            datapath.attach_host_device(index("podwire_host")).unwrap();
        }
    });
}

/// Two nodes, wired back to back.
fn two_nodes(bpffs: &Path, endpoint_routes: bool) -> [(TestNode, Datapath); 2] {
    let nodes = [1, 2].map(|number| node(number, bpffs, endpoint_routes));
    let far = nodes[1].0.ns.path();
    nodes[0].0.ns.ip(&format!("link add eth1 type veth peer name eth1 netns {far}"));
    for (number, (node, datapath)) in (1..).zip(&nodes) {
        let peer = 3 - number;
        node.ns.ip(&format!("address add 192.168.10.{number}/24 dev eth1"));
        node.ns.ip("link set eth1 up");
        node.ns.ip(&format!("route add 10.244.{peer}.0/24 via 192.168.10.{peer} dev eth1"));
        if !endpoint_routes {
            node.ns.ip(&format!("route add 10.244.{number}.1 dev podwire_host scope link"));
            node.ns.ip(&format!("route add 10.244.{number}.0/24 via 10.244.{number}.1 dev podwire_host"));
        }
        attach(number, node, datapath, endpoint_routes);
    }
    nodes
}

fn ping(from: &Namespace, to: Ipv4Addr) {
    let out = from.run(|| Command::new("ping").args(["-c1", "-W10", &to.to_string()]).output().unwrap());
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
}

#[test]
fn pods_reach_each_other_and_nodes_reach_pods() {
    for endpoint_routes in [true, false] {
        isolated(|bpffs| {
            let nodes = two_nodes(bpffs, endpoint_routes);
            let pods: Vec<Namespace> = (0..3).map(|_| Namespace::new()).collect();
            let a = nodes[0].0.add("a", &pods[0].path()).ip();
            let b = nodes[0].0.add("b", &pods[1].path()).ip();
            let c = nodes[1].0.add("c", &pods[2].path()).ip();
            ping(&pods[0], b);
            ping(&pods[0], c);
            ping(&pods[2], a);
            ping(&pods[0], Ipv4Addr::new(192, 168, 10, 1));
            ping(&pods[0], Ipv4Addr::new(192, 168, 10, 2));
            ping(&nodes[0].0.ns, a);
            ping(&nodes[0].0.ns, c);
            let endpoints = nodes[0].1.endpoints().unwrap();
            assert_eq!(endpoints.iter().map(|(ip, _)| *ip).collect::<Vec<_>>(), [a, b]);
            assert!(nodes[0].0.del("a", "").success);
            assert_eq!(nodes[0].1.endpoints().unwrap().len(), 1);
        });
    }
}

#[test]
fn no_packet_is_lost_while_the_agent_restarts() {
    isolated(|bpffs| {
        let mut nodes = two_nodes(bpffs, true);
        let pods: Vec<Namespace> = (0..2).map(|_| Namespace::new()).collect();
        let a = nodes[0].0.add("a", &pods[0].path()).ip();
        nodes[1].0.add("b", &pods[1].path()).ip();
        ping(&pods[1], a);
        // 200 requests, 5 ms apart, from the other node, while the agent goes and comes three times.
        let pinger = pods[1].run(|| {
            Command::new("ping")
                .args(["-i0.005", "-c200", "-W5", "-q", &a.to_string()])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        });
        let (node, datapath) = &mut nodes[0];
        for _ in 0..3 {
            node.stop();
            node.real = None;
            *datapath = node.ns.run(|| Datapath::open(&bpffs.join("node1")).unwrap());
            node.real = Some(Arc::new(datapath.clone()));
            assert_eq!(node.start().kept, 1);
            attach(1, node, datapath, true);
        }
        let out = pinger.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(text.contains("200 packets transmitted, 200 received"), "{text}");
        assert!(fs::read_dir(bpffs.join("node1")).unwrap().count() > 0, "pinned");
    });
}

#[test]
fn endpoints_settle_without_losing_a_packet() {
    isolated(|bpffs| {
        let nodes = two_nodes(bpffs, true);
        let pods: Vec<Namespace> = (0..2).map(|_| Namespace::new()).collect();
        let a = nodes[0].0.add("a", &pods[0].path()).ip();
        nodes[1].0.add("b", &pods[1].path()).ip();
        ping(&pods[1], a);
        let pinger = pods[1].run(|| {
            Command::new("ping")
                .args(["-i0.005", "-c100", "-W5", "-q", &a.to_string()])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        });
        for (node, datapath) in &nodes {
            let attached = || datapath.attachments().unwrap().len();
            let before = attached();
            assert_eq!(node.ns.run(|| node.core().settle_one()), Ok(false));
            assert_eq!(node.ns.run(|| node.core().settle_one()), Ok(false), "there was one");
            assert_eq!(attached(), before, "one attachment took the place of the other");
        }
        let out = pinger.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(text.contains("100 packets transmitted, 100 received"), "{text}");
        assert!(nodes[0].0.del("a", "").success);
        assert!(nodes[0].1.endpoints().unwrap().is_empty());
    });
}
