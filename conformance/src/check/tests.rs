//! For every check a capture in which it holds and captures in which it must not.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use super::{Context, Expectation, FlowHint, Report, Verdict, run};
use crate::link::LinkType;
use crate::testing::{Build, pcap, pcap_of, pcapng};

const POD_A: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 5);
const POD_B: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 7);
const NODE_A: Ipv4Addr = Ipv4Addr::new(192, 168, 10, 100);
const NODE_B: Ipv4Addr = Ipv4Addr::new(192, 168, 10, 101);
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 20);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 200);
const SYN: u8 = 2;
const SYN_ACK: u8 = 18;
const ACK: u8 = 16;

/// Taps of the captures below.
const TAPS: [&str; 4] = ["node-a:lxc1", "node-a:eth1", "node-b:eth1", "node-b:lxc2"];
const POD_SIDE_A: usize = 0;
const WIRE: usize = 1;

fn context() -> Context {
    Context {
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        node_pod_cidrs: [
            ("node-a".to_owned(), vec!["10.244.0.0/24".parse().unwrap()]),
            ("node-b".to_owned(), vec!["10.244.1.0/24".parse().unwrap()]),
        ]
        .into(),
        nodes: [("node-a".to_owned(), vec![NODE_A]), ("node-b".to_owned(), vec![NODE_B])].into(),
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        pod_names: [(POD_A, "default/curl-pod".to_owned()), (POD_B, "default/webpod-1".to_owned())].into(),
        ..Context::default()
    }
}

fn check(bytes: &[u8], context: &Context) -> Report {
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().join("x.pcapng");
    std::fs::write(&path, bytes).unwrap();
    run(&[path], Expectation::Native, context).unwrap()
}

fn verdicts(report: &Report) -> Vec<(&'static str, Verdict)> {
    report.checks.iter().map(|check| (check.id, check.verdict)).collect()
}

fn verdict(report: &Report, id: &str) -> Verdict {
    report.checks.iter().find(|check| check.id == id).unwrap().verdict
}

fn keys(report: &Report, id: &str) -> Vec<&'static str> {
    report
        .checks
        .iter()
        .find(|check| check.id == id)
        .unwrap()
        .explanation
        .iter()
        .map(|message| message.key)
        .collect()
}

/// The first packets of a connection from `client` to `server`:80.
fn handshake(client: Ipv4Addr, server: Ipv4Addr, port: u16, numbers: (u32, u32)) -> Vec<Build> {
    let (mine, theirs) = numbers;
    vec![
        Build::tcp((client, server), (port, 80), (mine, 0), SYN, b""),
        Build::tcp((server, client), (80, port), (theirs, mine + 1), SYN_ACK, b""),
        Build::tcp((client, server), (port, 80), (mine + 1, theirs + 1), ACK, b"GET / HTTP/1.1\r\n\r\n"),
    ]
}

fn at(tap: usize, packets: Vec<Build>) -> Vec<(usize, Vec<u8>)> {
    packets.into_iter().map(|packet| (tap, packet.frame())).collect()
}

/// What native routing looks like at the sender's pod and at the wire.
fn native() -> Vec<(usize, Vec<u8>)> {
    let mut frames = at(POD_SIDE_A, handshake(POD_A, POD_B, 40000, (1000, 9000)));
    frames.extend(at(WIRE, handshake(POD_A, POD_B, 40000, (1000, 9000))));
    frames.push((WIRE, Build::echo((POD_A, POD_B), true, 7, 1, b"0123456789abcdef").frame()));
    frames.push((WIRE, Build::echo((POD_B, POD_A), false, 7, 1, b"0123456789abcdef").frame()));
    frames
}

fn captured(frames: &[(usize, Vec<u8>)]) -> Vec<u8> {
    pcapng(&TAPS, frames, 0)
}

#[test]
fn native_traffic_holds_every_check_with_its_packets() {
    let report = check(&captured(&native()), &context());
    for (id, verdict) in verdicts(&report) {
        assert_eq!(verdict, Verdict::Held, "{id}: {:?}", keys(&report, id));
    }
    assert_eq!((report.verdict, report.exit_code()), (Verdict::Held, 0));
    let shown = &report.checks[0].evidence;
    assert_eq!((shown[0].frame, shown[0].interface.as_str()), (4, "node-a:eth1"));
    assert_eq!((shown[0].source.as_str(), shown[0].destination.as_str()), ("10.244.0.5", "10.244.1.7"));
    assert_eq!(shown[0].timestamp.as_deref(), Some("2026-01-01T00:00:00.003Z"));
    assert!(shown[0].hex.starts_with("02 00 00 00 00 02"), "{}", shown[0].hex);
    assert_eq!(report.flows[0].source_name.as_deref(), Some("default/curl-pod"));
}

/// Where the IPv4 TTL is in an Ethernet frame.
const TTL: usize = 14 + 8;

#[test]
fn the_ttl_on_the_wire_is_not_that_at_the_pod() {
    let mut frames = native();
    for (tap, frame) in &mut frames {
        frame[TTL] = if *tap == POD_SIDE_A { 64 } else { 63 };
    }
    let report = check(&captured(&frames), &context());
    let fact = report.notes.iter().find(|note| note.key == "fact-ttl").unwrap();
    assert_eq!(fact.args, [("least", "63".to_owned()), ("most", "63".to_owned())]);
    assert_eq!((report.flows[0].ttl_min, report.flows[0].ttl_max), (63, 64));
}

#[test]
fn nothing_between_pods_fails_the_positive_control_and_decides_nothing_else() {
    let frames = at(WIRE, handshake(NODE_A, NODE_B, 40000, (1, 2)));
    let report = check(&captured(&frames), &context());
    assert_eq!(verdict(&report, "saw-pod-traffic"), Verdict::Failed);
    for id in ["real-source-ip", "no-encapsulation", "no-node-address"] {
        assert_eq!(verdict(&report, id), Verdict::Inconclusive, "{id}");
        assert_eq!(keys(&report, id), ["why-no-positive-control"]);
    }
    assert_eq!(report.exit_code(), 1);
}

#[test]
fn an_empty_capture_fails_too() {
    assert_eq!(verdict(&check(&captured(&[]), &context()), "saw-pod-traffic"), Verdict::Failed);
    assert_eq!(verdict(&check(&pcap_of(&[]), &context()), "saw-pod-traffic"), Verdict::Failed);
}

#[test]
fn packets_seen_at_pods_only_do_not_prove_the_wire() {
    let report = check(&captured(&at(POD_SIDE_A, handshake(POD_A, POD_B, 40000, (1, 2)))), &context());
    assert_eq!(verdict(&report, "saw-pod-traffic"), Verdict::Failed);
    assert_eq!(keys(&report, "saw-pod-traffic"), ["why-pods-not-on-wire"]);
    assert_eq!(verdict(&report, "no-encapsulation"), Verdict::Inconclusive);
}

#[test]
fn every_encapsulation_is_found() {
    let inner = || Build::echo((POD_A, POD_B), true, 7, 1, b"0123456789abcdef");
    let wrapped = [
        ("VXLAN (VNI 7, port 8472)", inner().in_vxlan(NODE_A, NODE_B, 8472)),
        ("VXLAN (VNI 7, port 4789)", inner().in_vxlan(NODE_A, NODE_B, 4789)),
        ("VXLAN (VNI 7, port 14789)", inner().in_vxlan(NODE_A, NODE_B, 14789)),
        ("Geneve (VNI 7)", inner().in_geneve(NODE_A, NODE_B)),
        ("IPIP", inner().in_ipip(NODE_A, NODE_B)),
        ("GRE", inner().in_gre(NODE_A, NODE_B)),
        ("IPIP", inner().in_vxlan(NODE_A, NODE_B, 8472).in_ipip(NODE_B, NODE_A)),
    ];
    for (name, packet) in wrapped {
        // Once among native packets and once alone.
        for mut frames in [native(), Vec::new()] {
            frames.push((WIRE, packet.frame()));
            let report = check(&captured(&frames), &context());
            assert_eq!(verdict(&report, "no-encapsulation"), Verdict::Failed, "{name}");
            assert_eq!(verdict(&report, "saw-pod-traffic"), Verdict::Held, "{name}");
            let found = &report.checks[3];
            assert_eq!(found.evidence[0].frame as usize, frames.len(), "{name}");
            let text = crate::report::render(crate::report::Lang::En, &found.explanation[0]);
            assert!(text.contains(&format!("{name} × 1")), "{text}");
        }
    }
}

#[test]
fn encapsulation_of_others_is_none_of_ours() {
    let mut frames = native();
    frames
        .push((WIRE, Build::echo((OUTSIDE, NODE_A), true, 7, 1, b"").in_vxlan(NODE_A, NODE_B, 8472).frame()));
    // DNS between nodes.
    frames
        .push((WIRE, Build::udp((NODE_A, NODE_B), (5353, 53), 3, b"\x08\0\0\0 not a tunnel at all").frame()));
    let report = check(&captured(&frames), &context());
    assert_eq!(verdict(&report, "no-encapsulation"), Verdict::Held);
}

#[test]
fn encrypted_packets_between_nodes_leave_a_doubt() {
    let mut frames = native();
    let mut message = vec![4, 0, 0, 0];
    message.resize(96, 0);
    frames.push((WIRE, Build::udp((NODE_A, NODE_B), (51871, 51871), 3, &message).frame()));
    let report = check(&captured(&frames), &context());
    assert_eq!(verdict(&report, "no-encapsulation"), Verdict::Inconclusive);
    assert_eq!(keys(&report, "no-encapsulation"), ["why-opaque"]);
}

/// A pod's connection whose source the sender's node replaced, seen before and after.
fn masqueraded() -> Vec<(usize, Vec<u8>)> {
    let mut frames = native();
    frames.extend(at(POD_SIDE_A, handshake(POD_A, POD_B, 41000, (5000, 7000))));
    // Masquerade took another port as well.
    frames.extend(at(WIRE, handshake(NODE_A, POD_B, 62000, (5000, 7000))));
    frames
}

#[test]
fn masquerade_is_proven_by_the_same_packets_at_the_pod() {
    let report = check(&captured(&masqueraded()), &context());
    assert_eq!(verdict(&report, "real-source-ip"), Verdict::Failed);
    assert_eq!(verdict(&report, "no-node-address"), Verdict::Failed);
    assert_eq!(verdict(&report, "no-encapsulation"), Verdict::Held);
    let shown = &report.checks[4].evidence;
    assert_eq!((shown[0].source.as_str(), shown[0].interface.as_str()), ("192.168.10.100", "node-a:eth1"));
    assert_eq!((shown[1].source.as_str(), shown[1].interface.as_str()), ("10.244.0.5", "node-a:lxc1"));
    assert!(shown[0].info.starts_with("62000 → 80 [SYN]"), "{}", shown[0].info);
    assert!(shown[1].info.starts_with("41000 → 80 [SYN]"), "{}", shown[1].info);
}

#[test]
fn masqueraded_ping_and_udp_are_proven_too() {
    let payload = b"0123456789abcdefghij";
    let udp = |from| Build::udp((from, POD_B), (5555, 9000), 77, payload);
    let ping = |from, id| Build::echo((from, POD_B), true, id, 3, payload);
    for (there, here) in [(udp(POD_A), udp(NODE_A)), (ping(POD_A, 5), ping(NODE_A, 6))] {
        let mut frames = native();
        frames.push((POD_SIDE_A, there.frame()));
        frames.push((WIRE, here.frame()));
        let report = check(&captured(&frames), &context());
        assert_eq!(verdict(&report, "no-node-address"), Verdict::Failed);
        assert_eq!(verdict(&report, "real-source-ip"), Verdict::Failed);
    }
}

#[test]
fn pings_that_only_look_alike_are_two() {
    // A pod and its node ping the same pod with the same bytes, as some programs do: each packet has its own number.
    let ping = |from, id, number: u16| {
        let mut frame = Build::echo((from, POD_B), true, id, 1, &[0; 56]).frame();
        frame[18..20].copy_from_slice(&number.to_be_bytes());
        frame
    };
    let mut frames = native();
    frames.push((POD_SIDE_A, ping(POD_A, 5, 100)));
    frames.push((WIRE, ping(POD_A, 5, 100)));
    frames.push((WIRE, ping(NODE_A, 6, 200)));
    assert_eq!(check(&captured(&frames), &context()).verdict, Verdict::Held);
    frames.push((WIRE, ping(NODE_A, 7, 100)));
    assert_eq!(check(&captured(&frames), &context()).verdict, Verdict::Failed);
}

#[test]
fn a_replaced_address_that_is_no_nodes_fails_only_the_real_address() {
    let mut frames = native();
    frames.extend(at(POD_SIDE_A, handshake(POD_A, POD_B, 41000, (5000, 7000))));
    frames.extend(at(WIRE, handshake(OUTSIDE, POD_B, 41000, (5000, 7000))));
    let report = check(&captured(&frames), &context());
    assert_eq!(verdict(&report, "real-source-ip"), Verdict::Failed);
    assert_eq!(verdict(&report, "no-node-address"), Verdict::Held);
}

#[test]
fn a_reply_whose_source_was_replaced_is_found() {
    let mut frames = native();
    frames.push((WIRE, Build::tcp((POD_B, POD_A), (80, 43000), (3333, 4444), ACK, b"").frame()));
    frames.push((2, Build::tcp((NODE_B, POD_A), (80, 43000), (3333, 4444), ACK, b"").frame()));
    let report = check(&captured(&frames), &context());
    assert_eq!(verdict(&report, "no-node-address"), Verdict::Failed);
}

#[test]
fn a_service_keeps_its_clients_address_or_fails() {
    // Destination translation alone is what a Service does.
    let mut frames = native();
    frames.extend(at(POD_SIDE_A, handshake(POD_A, SERVICE, 42000, (6000, 8000))));
    frames.extend(at(WIRE, handshake(POD_A, POD_B, 42000, (6000, 8000))));
    let report = check(&captured(&frames), &context());
    assert_eq!(report.verdict, Verdict::Held, "{:?}", verdicts(&report));
    // With the source replaced as well, the pod's address is lost.
    let mut frames = native();
    frames.extend(at(POD_SIDE_A, handshake(POD_A, SERVICE, 42000, (6000, 8000))));
    frames.extend(at(WIRE, handshake(NODE_A, POD_B, 42000, (6000, 8000))));
    let report = check(&captured(&frames), &context());
    assert_eq!(verdict(&report, "no-node-address"), Verdict::Failed);
}

#[test]
fn a_pod_that_talks_to_a_node_by_itself_is_no_violation() {
    // To the API server on a node, and to a NodePort that leads to a pod of the other node.
    let mut frames = native();
    frames.extend(at(WIRE, handshake(POD_B, NODE_A, 50000, (11, 22))));
    let to_node_port = Build::tcp((POD_A, NODE_B), (51000, 30080), (888, 0), SYN, b"");
    let translated = Build::tcp((POD_A, POD_B), (51000, 80), (888, 0), SYN, b"");
    frames.push((POD_SIDE_A, to_node_port.frame()));
    frames.push((WIRE, translated.frame()));
    let report = check(&captured(&frames), &context());
    assert_eq!(report.verdict, Verdict::Held, "{:?}", verdicts(&report));
    assert!(report.notes.iter().any(|note| note.key == "fact-pod-to-node"));
}

#[test]
fn a_node_that_talks_to_a_pod_is_undecided_on_a_wire_alone_and_decided_by_more() {
    let probe = at(WIRE, handshake(NODE_A, POD_B, 50500, (777, 999)));
    let wire_only = || {
        let mut frames: Vec<_> = native().into_iter().filter(|(tap, _)| *tap == WIRE).collect();
        frames.extend(probe.clone());
        pcapng(&["x", "node-a:eth1"], &frames, 0)
    };
    let report = check(&wire_only(), &context());
    assert_eq!(verdict(&report, "no-node-address"), Verdict::Inconclusive);
    assert_eq!(keys(&report, "no-node-address"), ["why-undecided"]);
    assert_eq!(report.checks[4].evidence[0].source, "192.168.10.100");
    assert_eq!(verdict(&report, "real-source-ip"), Verdict::Held);

    // The node's pods were tapped and none of them sent it: the node's own.
    let mut frames = native();
    frames.extend(probe.clone());
    let report = check(&captured(&frames), &context());
    assert_eq!(report.verdict, Verdict::Held);
    assert_eq!(keys(&report, "no-node-address"), ["why-no-node", "why-node-own"]);

    // The flows that were sent go elsewhere.
    let elsewhere = FlowHint { source: POD_A, destination: POD_B, port: Some(80) };
    let probe_8080 = Build::tcp((NODE_A, POD_B), (50500, 8080), (777, 0), SYN, b"");
    let mut frames: Vec<_> = native().into_iter().filter(|(tap, _)| *tap == WIRE).collect();
    frames.push((WIRE, probe_8080.frame()));
    let hinted = Context { flows: vec![elsewhere], ..context() };
    assert_eq!(check(&pcapng(&["x", "node-a:eth1"], &frames, 0), &hinted).verdict, Verdict::Held);
}

#[test]
fn a_named_flow_that_only_a_node_shows_fails_on_the_wire_alone() {
    let flow = FlowHint { source: POD_A, destination: POD_B, port: Some(80) };
    let hinted = Context { flows: vec![flow], ..context() };
    let mut frames = vec![(1, Build::echo((POD_A, POD_B), true, 7, 1, b"0123456789abcdef").frame())];
    frames.extend(at(WIRE, handshake(NODE_A, POD_B, 50500, (777, 999))));
    let report = check(&pcapng(&["x", "node-a:eth1"], &frames, 0), &hinted);
    assert_eq!(verdict(&report, "no-node-address"), Verdict::Failed);
    assert_eq!(keys(&report, "no-node-address"), ["why-node-hinted"]);
    assert_eq!(verdict(&report, "saw-pod-traffic"), Verdict::Failed);
    // The same capture without the hint cannot tell.
    let report = check(&pcapng(&["x", "node-a:eth1"], &frames, 0), &context());
    assert_eq!(verdict(&report, "no-node-address"), Verdict::Inconclusive);
}

#[test]
fn without_nodes_only_strangers_that_open_conversations_leave_a_doubt() {
    let unnamed = Context { nodes: [].into(), ..context() };
    assert_eq!(check(&captured(&native()), &unnamed).verdict, Verdict::Held);
    let mut frames = native();
    frames.extend(at(WIRE, handshake(OUTSIDE, POD_B, 50500, (777, 999))));
    let report = check(&captured(&frames), &unnamed);
    assert_eq!(keys(&report, "no-node-address"), ["why-undecided-nodes"]);
    // A client from outside the cluster is no node once the nodes are known.
    assert_eq!(check(&captured(&frames), &context()).verdict, Verdict::Held);
}

#[test]
fn icmp_errors_of_nodes_and_routers_are_legitimate() {
    let mut error = vec![3, 4, 0, 0, 0, 0, 5, 0];
    error.extend(Build::udp((POD_A, POD_B), (1, 2), 3, b"12345678").packet());
    let mut frames = native();
    frames.push((WIRE, Build::ip(NODE_B, POD_A, 1, 9, &error).frame()));
    assert_eq!(check(&captured(&frames), &context()).verdict, Verdict::Held);
}

#[test]
fn pods_of_one_node_have_no_business_on_the_wire() {
    let neighbour = Ipv4Addr::new(10, 244, 0, 9);
    let mut frames = native();
    frames.push((WIRE, Build::echo((POD_A, neighbour), true, 1, 1, b"").frame()));
    let report = check(&captured(&frames), &context());
    assert_eq!(keys(&report, "real-source-ip"), ["why-same-node"]);
    assert_eq!(verdict(&report, "real-source-ip"), Verdict::Failed);
    // At the pods themselves it is what is to be expected.
    let mut frames = native();
    frames.push((POD_SIDE_A, Build::echo((POD_A, neighbour), true, 1, 1, b"").frame()));
    assert_eq!(check(&captured(&frames), &context()).verdict, Verdict::Held);
}

#[test]
fn losses_make_negative_answers_inconclusive() {
    let report = check(&pcapng(&TAPS, &native(), 3), &context());
    assert_eq!(verdict(&report, "saw-pod-traffic"), Verdict::Held);
    for id in ["capture-complete", "real-source-ip", "no-encapsulation", "no-node-address"] {
        assert_eq!(verdict(&report, id), Verdict::Inconclusive, "{id}");
    }
    // A violation that was seen stays one.
    let report = check(&pcapng(&TAPS, &masqueraded(), 3), &context());
    assert_eq!(verdict(&report, "no-node-address"), Verdict::Failed);
}

#[test]
fn a_file_that_ends_too_early_is_named() {
    let mut bytes = captured(&native());
    let whole = check(&bytes, &context());
    assert_eq!(whole.files[0].truncated_at, None);
    let statistics = 4 * 76;
    bytes.truncate(bytes.len() - statistics - 5);
    let report = check(&bytes, &context());
    assert!(report.files[0].truncated_at.is_some());
    assert_eq!(keys(&report, "capture-complete"), ["loss-truncated"]);
    assert_eq!(verdict(&report, "no-encapsulation"), Verdict::Inconclusive);
    assert_eq!(verdict(&report, "saw-pod-traffic"), Verdict::Held);
}

#[test]
fn a_header_cut_by_the_snap_length_is_a_doubt_a_cut_payload_is_not() {
    let whole: Vec<Vec<u8>> = native().into_iter().map(|(_, frame)| frame).collect();
    for (keep, expected) in [(60, Verdict::Held), (30, Verdict::Inconclusive)] {
        let mut file = pcap(&[], false, true, LinkType::Ethernet);
        for frame in &whole {
            let kept = &frame[..frame.len().min(keep)];
            for value in [1_800_000_000, 0, kept.len() as u32, frame.len() as u32] {
                file.extend(u32::to_le_bytes(value));
            }
            file.extend(kept);
        }
        let report = check(&file, &context());
        assert_eq!(verdict(&report, "capture-complete"), expected, "snap length {keep}");
    }
}

#[test]
fn a_router_address_inside_the_pod_network_counts_as_the_nodes() {
    let router = Ipv4Addr::new(10, 244, 0, 1);
    let with_router = Context { nodes: [("node-a".to_owned(), vec![NODE_A, router])].into(), ..context() };
    let mut frames = native();
    frames.extend(at(POD_SIDE_A, handshake(POD_A, POD_B, 41000, (5000, 7000))));
    frames.extend(at(WIRE, handshake(router, POD_B, 41000, (5000, 7000))));
    assert_eq!(verdict(&check(&captured(&frames), &with_router), "no-node-address"), Verdict::Failed);
}

#[test]
fn without_pod_networks_nothing_is_asked() {
    let report = check(&captured(&native()), &Context::default());
    assert!(report.checks.iter().all(|check| check.verdict == Verdict::Skipped));
    assert_eq!(report.exit_code(), 3);
}

#[test]
fn several_files_are_one_observation() {
    let directory = tempfile::tempdir().unwrap();
    let (pod, wire) = (directory.path().join("pod.pcap"), directory.path().join("wire.pcapng"));
    let at_pod: Vec<Vec<u8>> =
        handshake(POD_A, POD_B, 41000, (5000, 7000)).iter().map(Build::frame).collect();
    let at_pod: Vec<&[u8]> = at_pod.iter().map(Vec::as_slice).collect();
    std::fs::write(&pod, pcap(&at_pod, true, true, LinkType::Ethernet)).unwrap();
    std::fs::write(
        &wire,
        pcapng(&["node-a:eth1"], &[(0, handshake(NODE_A, POD_B, 41000, (5000, 7000))[0].frame())], 0),
    )
    .unwrap();
    let report = run(&[pod, wire.clone()], Expectation::Native, &context()).unwrap();
    let shown = &report.checks[4].evidence;
    assert_eq!(report.checks[4].verdict, Verdict::Failed);
    assert_eq!((shown[0].file.clone(), shown[0].frame), (wire.display().to_string(), 1));
}

#[test]
fn bad_files_are_refused_with_their_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bad.pcap");
    let failing = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        run(std::slice::from_ref(&path), Expectation::Native, &context()).unwrap_err().to_string()
    };
    assert!(failing(b"").ends_with("bad.pcap: the file is empty: no capture was written to it"));
    assert!(failing(b"GIF89a..").contains("not a capture: it begins with 47 49 46 38"));
    let wireless = pcap(&[&[0; 40]], false, false, LinkType::Other(105));
    assert!(failing(&wireless).contains("link type 105, which is not read here"));
    let missing =
        run(&[directory.path().join("none")], Expectation::Native, &context()).unwrap_err().to_string();
    assert_eq!(missing.matches("/none").count(), 1, "{missing}");
    assert_eq!(
        run(&[], Expectation::Native, &context()).unwrap_err().to_string(),
        "no capture to check: name at least one pcap or pcapng file"
    );
}

#[test]
fn words_of_the_command_line() {
    assert_eq!(
        "10.244.0.5,10.244.1.7:80".parse(),
        Ok(FlowHint { source: POD_A, destination: POD_B, port: Some(80) })
    );
    assert_eq!(
        "10.244.0.5, 10.244.1.7".parse(),
        Ok(FlowHint { source: POD_A, destination: POD_B, port: None })
    );
    assert!("10.244.0.5".parse::<FlowHint>().unwrap_err().to_string().contains("is not SRC,DST"));
    assert!("10.244.0.5,10.244.1.7:http".parse::<FlowHint>().is_err());
    assert_eq!("native".parse(), Ok(Expectation::Native));
    assert_eq!(
        "nativ".parse::<Expectation>().unwrap_err().to_string(),
        "\"nativ\" is not an expectation; there are: native, vxlan, no-loop"
    );
}
