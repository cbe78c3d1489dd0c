//! What an agent that was killed finds, keeps and collects when it starts again.

mod common;

use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{Namespace, TestNode, files};
use podwire_agent::core::Restored;

#[test]
fn addresses_are_kept_across_a_restart() {
    let mut node = TestNode::new("10.244.0.0/29");
    let pods: Vec<Namespace> = (0..4).map(|_| Namespace::new()).collect();
    let first = node.add("c0", &pods[0].path()).ip();
    let second = node.add("c1", &pods[1].path()).ip();
    let routes = node.ns.ip("route");
    node.stop();
    assert_eq!(node.ns.ip("route"), routes, "a dead agent costs no route");
    assert_eq!(node.start(), Restored { kept: 2, orphans: 0, problems: vec![] });
    assert_eq!(node.ns.ip("route"), routes);
    let third = node.add("c2", &pods[2].path()).ip();
    assert!(third != first && third != second);
    assert_eq!(node.core().pool().used()[&first], "default/pod-c0");
    assert!(node.del("c0", &pods[0].path()).success, "what an earlier agent made can be deleted");
    assert_eq!(pods[0].links(), ["lo"]);
}

#[test]
fn orphans_are_collected() {
    let mut node = TestNode::new("10.244.0.0/29");
    let (gone, alive) = (Namespace::new(), Namespace::new());
    let ip = node.add("gone", &gone.path()).ip();
    node.add("alive", &alive.path()).ip();
    node.stop();
    // The pod dies while no agent runs: its devices go with its namespace.
    gone.ip("link delete eth0");
    let restored = node.start();
    assert_eq!((restored.kept, restored.orphans), (1, 1));
    assert!(!node.datapath.endpoints.lock().unwrap().contains_key(&ip), "the datapath forgot it");
    assert_eq!(files(&node.state().join("endpoints")).len(), 1);
    assert!(!node.core().pool().used().contains_key(&ip));
}

#[test]
fn an_unreadable_record_keeps_its_address_reserved_until_del() {
    let mut node = TestNode::new("10.244.0.0/29");
    let pod = Namespace::new();
    let ip = node.add("c0", &pod.path()).ip();
    node.stop();
    let name = files(&node.state().join("endpoints")).remove(0);
    std::fs::write(node.state().join("endpoints").join(name), b"torn").unwrap();
    let restored = node.start();
    assert_eq!(restored.problems.len(), 1);
    assert!(restored.problems[0].contains(&ip.to_string()), "{restored:?}");
    assert!(node.core().pool().used().contains_key(&ip), "never given twice");
    assert!(node.del("c0", &pod.path()).success);
    assert!(!node.core().pool().used().contains_key(&ip));
    assert_eq!((pod.links(), files(&node.state().join("endpoints")).len()), (vec!["lo".to_owned()], 0));
}

#[test]
fn a_new_pod_cidr_leaves_old_pods_their_addresses() {
    let mut node = TestNode::new("10.244.0.0/24");
    let (old, new) = (Namespace::new(), Namespace::new());
    let old_ip = node.add("old", &old.path()).ip();
    node.stop();
    node.cidr = "172.20.0.0/24".parse().unwrap();
    assert_eq!(node.start().kept, 1);
    assert_eq!(node.core().live()[0].endpoint.ip, old_ip);
    assert_eq!(node.add("new", &new.path()).ip(), Ipv4Addr::new(172, 20, 0, 2));
    let addresses = node.ns.ip("-o -4 address show dev podwire_host");
    assert!(addresses.contains("172.20.0.1/32") && !addresses.contains("10.244.0.1"), "{addresses}");
    assert!(new.ip("route").contains("default via 172.20.0.1"));
}

/// Ends the agent; who waits longer than this for its end waits for ever.
fn ends(work: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    ended.recv_timeout(Duration::from_secs(20)).expect("the agent ends");
}

#[test]
fn a_caller_that_says_nothing_does_not_keep_the_agent_from_ending() {
    let mut node = TestNode::new("10.244.0.0/29");
    let silent = UnixStream::connect(node.socket()).unwrap();
    // Calls are taken in their order: once this one is answered, the silent one is being listened to.
    assert!(node.call("STATUS", "", "", &node.config("1.1.0")).success);
    let server = node.server.take();
    ends(move || drop(server));
    drop(silent);
}

#[test]
fn an_agent_that_ends_late_leaves_its_successor_the_socket() {
    let mut node = TestNode::new("10.244.0.0/29");
    let first = node.server.take();
    node.start();
    ends(move || drop(first));
    assert!(node.call("STATUS", "", "", &node.config("1.1.0")).success);
    let second = node.server.take();
    ends(move || drop(second));
    assert!(!node.socket().exists(), "the last one takes its own away");
}
