//! Expectation `vxlan`: a capture in which every check holds, and captures in which one must not.

use std::net::Ipv4Addr;

use super::{Context, Expectation, Report, Verdict, run};
use crate::testing::{Build, pcapng};

const POD_A: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 5);
const POD_B: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 7);
const NODE_A: Ipv4Addr = Ipv4Addr::new(192, 168, 10, 100);
const NODE_B: Ipv4Addr = Ipv4Addr::new(192, 168, 10, 101);
const ROUTER_A: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 20);
const PORT: u16 = 8472;
const ID_A: u32 = 13_116_786;
const ID_B: u32 = 5_943_623;

const TAPS: [&str; 3] = ["node-a:lxc1", "node-a:eth1", "node-a:podwire_vxlan"];
const POD_SIDE: usize = 0;
const WIRE: usize = 1;
const OVERLAY: usize = 2;

fn context() -> Context {
    let nodes = [("node-a", vec![NODE_A, ROUTER_A]), ("node-b", vec![NODE_B])];
    Context {
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        node_pod_cidrs: [
            ("node-a".to_owned(), vec!["10.244.0.0/24".parse().unwrap()]),
            ("node-b".to_owned(), vec!["10.244.1.0/24".parse().unwrap()]),
        ]
        .into(),
        nodes: nodes.map(|(name, addresses)| (name.to_owned(), addresses)).into(),
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        identities: [(POD_A, ID_A), (POD_B, ID_B)].into(),
        ..Context::default()
    }
}

fn ask(source: Ipv4Addr, destination: Ipv4Addr) -> Build {
    Build::udp((source, destination), (4000, 4001), 1, b"0123456789abcdef")
}

/// A question and its answer as a tunnel carries them, seen at the pod, at the wire and at the tunnel's device.
fn wrapped() -> Vec<(usize, Vec<u8>)> {
    let mut frames = Vec::new();
    for (pods, nodes, vni) in
        [((POD_A, POD_B), (NODE_A, NODE_B), ID_A), ((POD_B, POD_A), (NODE_B, NODE_A), ID_B)]
    {
        let packet = || ask(pods.0, pods.1);
        frames.push((POD_SIDE, packet().frame()));
        frames.push((OVERLAY, packet().frame()));
        frames.push((WIRE, packet().in_network(vni, nodes, PORT).frame()));
    }
    frames
}

fn check_as(
    expectation: Expectation,
    frames: &[(usize, Vec<u8>)],
    dropped: u64,
    context: &Context,
) -> Report {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.pcapng");
    std::fs::write(&path, pcapng(&TAPS, frames, dropped)).unwrap();
    run(&[path], expectation, context).unwrap()
}

fn check(frames: &[(usize, Vec<u8>)]) -> Report {
    check_as(Expectation::Vxlan, frames, 0, &context())
}

/// The checks that do not hold, with the keys of their explanations.
fn broken(report: &Report) -> Vec<(&'static str, Verdict, Vec<&'static str>)> {
    let wrong = report.checks.iter().filter(|check| check.verdict != Verdict::Held);
    wrong.map(|c| (c.id, c.verdict, c.explanation.iter().map(|m| m.key).collect())).collect()
}

/// The frames of `wrapped` and one more on the wire.
fn and(packet: &Build) -> Vec<(usize, Vec<u8>)> {
    let mut frames = wrapped();
    frames.push((WIRE, packet.frame()));
    frames
}

#[test]
fn a_tunnel_holds_every_check_and_is_no_native_routing() {
    let report = check(&wrapped());
    assert_eq!(broken(&report), []);
    assert_eq!((report.verdict, report.exit_code()), (Verdict::Held, 0));
    let shown = &report.checks[0].evidence;
    assert_eq!((shown.len(), shown[0].frame, shown[0].interface.as_str()), (2, 3, "node-a:eth1"));
    let ttl = report.notes.iter().find(|note| note.key == "fact-ttl-inner").unwrap();
    assert_eq!(ttl.args, [("least", "63".to_owned()), ("most", "63".to_owned())]);
    let native = check_as(Expectation::Native, &wrapped(), 0, &context());
    assert_eq!(native.verdict, Verdict::Failed);
}

#[test]
fn native_routing_is_no_tunnel() {
    let plain = [(WIRE, ask(POD_A, POD_B).frame()), (WIRE, ask(POD_B, POD_A).frame())];
    let report = check(&plain);
    assert_eq!(report.verdict, Verdict::Failed);
    let found = broken(&report);
    assert_eq!(found[0], ("saw-vxlan-traffic", Verdict::Failed, vec!["why-no-wrapped-traffic"]));
    assert_eq!(found[1], ("all-in-vxlan", Verdict::Failed, vec!["why-not-wrapped"]));
    assert!(
        found[2..]
            .iter()
            .all(|(_, v, why)| *v == Verdict::Inconclusive && why == &["why-no-positive-control"])
    );
}

#[test]
fn one_plain_packet_among_wrapped_ones_is_found() {
    let report = check(&and(&ask(POD_A, POD_B)));
    assert_eq!(broken(&report), [("all-in-vxlan", Verdict::Failed, vec!["why-not-wrapped"])]);
    assert_eq!(report.checks[2].evidence[0].frame, 7);
}

#[test]
fn another_wrapping_is_found() {
    for other in [ask(POD_A, POD_B).in_geneve(NODE_A, NODE_B), ask(POD_A, POD_B).in_ipip(NODE_A, NODE_B)] {
        let report = check(&and(&other));
        assert_eq!(broken(&report), [("all-in-vxlan", Verdict::Failed, vec!["why-other-wrapping"])]);
        assert_eq!(report.checks[2].evidence[0].frame, 7);
    }
}

#[test]
fn outer_addresses_are_those_of_the_pods_nodes() {
    let strange = Ipv4Addr::new(192, 168, 10, 200);
    for nodes in [(NODE_B, NODE_A), (NODE_A, strange), (NODE_A, NODE_A)] {
        let report = check(&and(&ask(POD_A, POD_B).in_network(ID_A, nodes, PORT)));
        assert_eq!(broken(&report)[0].0, "outer-is-node", "{nodes:?}");
        assert_eq!(report.checks[3].verdict, Verdict::Failed);
    }
    let nameless = Context { nodes: [].into(), ..context() };
    let report = check_as(Expectation::Vxlan, &wrapped(), 0, &nameless);
    assert_eq!(broken(&report), [("outer-is-node", Verdict::Inconclusive, vec!["why-nodes-unknown"])]);
}

#[test]
fn inner_addresses_are_pods_or_nodes_in_the_pod_network() {
    let wrap = |packet: Build, vni| packet.in_network(vni, (NODE_A, NODE_B), PORT);
    assert_eq!(broken(&check(&and(&wrap(ask(ROUTER_A, POD_B), 1)))), [], "the node's own traffic");
    let service = check(&and(&wrap(ask(POD_A, SERVICE), ID_A)));
    assert_eq!(service.checks[4].verdict, Verdict::Failed);
    let masked = check(&and(&wrap(ask(NODE_A, POD_B), 1)));
    assert_eq!(broken(&masked), [("inner-is-pod", Verdict::Inconclusive, vec!["why-inner-undecided"])]);
}

#[test]
fn the_identifier_is_the_senders_identity() {
    let report = check(&and(&ask(POD_A, POD_B).in_network(ID_B, (NODE_A, NODE_B), PORT)));
    assert_eq!(broken(&report), [("vni-is-identity", Verdict::Failed, vec!["why-vni-wrong"])]);
    let untold = Context { identities: [].into(), ..context() };
    let report = check_as(Expectation::Vxlan, &wrapped(), 0, &untold);
    assert_eq!(broken(&report), [("vni-is-identity", Verdict::Skipped, vec!["why-identities-unknown"])]);
    assert_eq!(report.verdict, Verdict::Held, "what is not asked is not held against it");
}

#[test]
fn what_is_lost_or_named_and_unseen_is_not_held() {
    let report = check_as(Expectation::Vxlan, &wrapped(), 3, &context());
    assert_eq!(report.verdict, Verdict::Inconclusive);
    let flow = |text: &str| Context { flows: vec![text.parse().unwrap()], ..context() };
    let seen = flow("10.244.0.5,10.244.1.7:4001");
    assert_eq!(check_as(Expectation::Vxlan, &wrapped(), 0, &seen).verdict, Verdict::Held);
    let unseen = flow("10.244.0.5,10.244.1.7:80");
    let report = check_as(Expectation::Vxlan, &wrapped(), 0, &unseen);
    assert_eq!(broken(&report)[0].0, "saw-vxlan-traffic");
    assert_eq!(report.verdict, Verdict::Failed);
    let nothing = check_as(Expectation::Vxlan, &[], 0, &context());
    assert_eq!(nothing.verdict, Verdict::Failed);
    let knowing_nothing = check_as(Expectation::Vxlan, &wrapped(), 0, &Context::default());
    assert_eq!(knowing_nothing.exit_code(), 3);
}
