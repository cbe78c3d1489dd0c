//! Tests of [`super`]: what was seen and learned, and what comes of it.

use podwire_conformance::dissect::Encapsulation;
use std::collections::BTreeMap;

use super::super::evidence::Drop;
use super::super::follow::{follow, unanswered};
use super::super::plan::plan;
use super::super::sighting::{Outer, Sighting};
use super::super::testing::{CTR, CURL, GATEWAY, Seen, W1, WEB_FAR, WEB_NEAR, ends, taps, world};
use super::*;

const SYN: Kind = Kind::Tcp(TcpFlags(TcpFlags::SYN));
const SYN_ACK: Kind = Kind::Tcp(TcpFlags(TcpFlags::SYN | TcpFlags::ACK));
const RST: Kind = Kind::Tcp(TcpFlags(TcpFlags::RST | TcpFlags::ACK));
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 200);

/// What is learned beside the packets, if a test says nothing else.
fn evidence() -> Evidence {
    Evidence {
        outcome: Outcome::Silent,
        drops: Vec::new(),
        arp: Vec::new(),
        lost: Vec::new(),
        notes: Vec::new(),
        routes: BTreeMap::new(),
    }
}

/// Explains a flow of curl-pod; every question is answered with `told`, if there is something.
fn explain(to: &str, seen: &Seen, mut evidence: Evidence, told: Option<&Told>) -> Finding {
    explain_from("curl-pod", to, &seen.list(), &mut evidence, |_| told.cloned())
}

fn explain_from(
    from: &str,
    to: &str,
    sightings: &[Sighting],
    evidence: &mut Evidence,
    told: impl Fn(&Ask) -> Option<Told>,
) -> Finding {
    let (world, taps) = (world(), taps());
    let plan = plan(&world, from, to, None).unwrap();
    let journey = follow(sightings, &taps, &world, &plan.source);
    let case = Case { world: &world, plan: &plan, taps: &taps, journey: journey.as_ref(), flag: "" };
    evidence.arp.extend(unanswered(sightings, &taps));
    for ask in case.questions(&evidence.outcome) {
        if let Some(told) = told(&ask) {
            evidence.routes.insert(ask, told);
        }
    }
    case.explain(evidence)
}

fn route(json: &str) -> Told {
    Told { route: Told::read_route(Ok(&format!("[{json}]"))), forwards: Some(true), ..Told::default() }
}

fn no_route(says: &str) -> Told {
    Told { route: Some(Err(says.to_owned())), forwards: Some(true), ..Told::default() }
}

const DEFAULT: &str = r#"{"dst":"default","gateway":"10.0.2.2","dev":"eth0"}"#;

/// The SYN of curl-pod to web-far, as far as the router.
fn to_the_router() -> Seen {
    let mut seen = Seen::default();
    let flow = ends((CURL, 20_001), (WEB_FAR, 80));
    seen.marked("curl-pod:eth0", true, flow, 64, SYN, 1);
    seen.packet("k8s-ctr:lxc1", false, flow, 64, SYN, 1);
    seen.packet("k8s-ctr:eth1", true, flow, 63, SYN, 1);
    seen.packet("router:eth1", false, flow, 63, SYN, 1);
    seen
}

/// The same with its answer, as far as the router.
fn and_back_to_the_router() -> Seen {
    let mut seen = to_the_router();
    let flow = ends((CURL, 20_001), (WEB_FAR, 80));
    seen.packet("router:eth2", true, flow, 62, SYN, 1);
    seen.packet("web-far:eth0", false, flow, 61, SYN, 1);
    seen.packet("web-far:eth0", true, flow.reversed(), 64, SYN_ACK, 2);
    seen.packet("router:eth2", false, flow.reversed(), 63, SYN_ACK, 2);
    seen
}

fn at(finding: &Finding) -> String {
    finding.at.as_ref().map(|at| format!("{}:{}", at.place, at.device)).unwrap_or_default()
}

#[test]
fn the_default_route_of_a_router_is_no_way_to_pods() {
    let mut seen = to_the_router();
    seen.arp("router:eth0", true, GATEWAY);
    let finding = explain("web-far:80", &seen, evidence(), Some(&route(DEFAULT)));
    assert_eq!((finding.verdict, finding.way), (Verdict::Died, Some(Way::There)));
    assert_eq!(at(&finding), "router:eth1");
    let cause = Cause::SilentNextHop {
        route: Some("default via 10.0.2.2 dev eth0".into()),
        by_default: true,
        next_hop: GATEWAY,
        device: "eth0".into(),
    };
    assert_eq!(finding.cause, Some(cause));
    assert!(
        finding.why[0].contains("no route to 172.20.2.0/24, where the pods of k8s-w0 are"),
        "{finding:?}"
    );
    assert_eq!(finding.mend[0], "lab exec router -- ip route add 172.20.2.0/24 via 192.168.20.100");
    assert!(finding.mend[1].ends_with("lab routes --for router"));

    // The neighbour may have been asked in vain a moment before.
    let told = Told { silent: vec![("eth0".into(), GATEWAY)], ..route(DEFAULT) };
    let again = explain("web-far:80", &to_the_router(), evidence(), Some(&told));
    assert_eq!(again.cause, finding.cause);
}

#[test]
fn a_device_behind_which_nothing_is_swallows_packets() {
    let mut seen = to_the_router();
    seen.packet("router:eth0", true, ends((CURL, 20_001), (WEB_FAR, 80)), 62, SYN, 1);
    let finding = explain("web-far:80", &seen, evidence(), Some(&route(DEFAULT)));
    assert!(
        matches!(&finding.cause, Some(Cause::Nowhere { by_default: true, device, .. }) if device == "eth0")
    );
    assert_eq!(at(&finding), "router:eth0");
    assert_eq!(finding.mend[0], "lab exec router -- ip route add 172.20.2.0/24 via 192.168.20.100");
}

#[test]
fn the_answer_may_die_too() {
    let finding = explain(
        "web-far:80",
        &and_back_to_the_router(),
        evidence(),
        Some(&Told { silent: vec![("eth0".into(), GATEWAY)], ..route(DEFAULT) }),
    );
    assert_eq!((finding.verdict, finding.way), (Verdict::Died, Some(Way::Back)));
    assert_eq!(finding.mend[0], "lab exec router -- ip route add 172.20.0.0/24 via 192.168.10.100");
}

#[test]
fn an_answer_that_never_leaves_its_machine_died_there() {
    let mut seen = Seen::default();
    let flow = ends((CURL, 20_001), (ROUTER, 80));
    seen.marked("curl-pod:eth0", true, flow, 64, SYN, 1);
    seen.packet("router:eth1", false, flow, 63, SYN, 1);
    let no_way = no_route("Network is unreachable");
    let finding = explain("10.10.1.200:80", &seen, evidence(), Some(&no_way));
    assert_eq!((finding.verdict, finding.way), (Verdict::Died, Some(Way::Back)));
    assert_eq!(finding.mend[0], "lab exec router -- ip route add 172.20.0.0/24 via 192.168.10.100");
    // Where it has a way, the machine itself did not answer.
    let way = route(r#"{"dst":"172.20.0.0/24","gateway":"192.168.10.100","dev":"eth1"}"#);
    let finding = explain("10.10.1.200:80", &seen, evidence(), Some(&way));
    assert_eq!((finding.verdict, finding.cause), (Verdict::Unanswered, Some(Cause::NoAnswer)));
    let filter = Told { rules: vec!["tcp dport 80 drop".into()], ..way };
    let finding = explain("10.10.1.200:80", &seen, evidence(), Some(&filter));
    assert!(matches!(finding.cause, Some(Cause::Filtered { .. })), "{finding:?}");
}

#[test]
fn what_came_back_was_answered_or_refused() {
    let answered = |kind| {
        let mut seen = and_back_to_the_router();
        let flow = ends((CURL, 20_001), (WEB_FAR, 80));
        seen.packet("curl-pod:eth0", false, flow.reversed(), 61, kind, 2);
        explain("web-far:80", &seen, evidence(), None)
    };
    assert_eq!(answered(SYN_ACK).verdict, Verdict::Answered);
    let refused = answered(RST);
    assert_eq!(refused.verdict, Verdict::Refused);
    assert_eq!(at(&refused), "web-far:eth0");
    assert!(refused.why[0].contains("TCP RST"), "{refused:?}");
}

#[test]
fn an_answer_counts_wherever_it_comes_from_and_a_reset_does_not() {
    let from_the_router = |kind| {
        let mut seen = to_the_router();
        let flow = ends((CURL, 20_001), (WEB_FAR, 80)).reversed();
        seen.packet("router:eth1", true, flow, 64, kind, 2);
        seen.packet("curl-pod:eth0", false, flow, 63, kind, 2);
        let rules = vec!["tcp dport 80 reject with tcp reset".to_owned()];
        explain("web-far:80", &seen, evidence(), Some(&Told { rules, ..Told::default() }))
    };
    assert_eq!(from_the_router(SYN_ACK).verdict, Verdict::Answered, "by whomever");
    let finding = from_the_router(RST);
    assert!(matches!(finding.cause, Some(Cause::Filtered { .. })), "{finding:?}");
    assert_eq!((finding.verdict, at(&finding)), (Verdict::Died, "router:eth1".to_owned()));
    assert!(
        finding.why.iter().any(|why| why == "router answered with a TCP RST in its name."),
        "{finding:?}"
    );
}

#[test]
fn a_port_that_is_unreachable_refuses() {
    let mut seen = to_the_router();
    let flow = ends((CURL, 20_001), (WEB_FAR, 80));
    seen.packet("web-far:eth0", false, flow, 61, SYN, 1);
    let error = Kind::Error { kind: 3, code: 3, mtu: 0, about: flow };
    let back = ends((WEB_FAR, 0), (CURL, 0));
    seen.packet("web-far:eth0", true, back, 64, error, 2);
    let alone = explain("web-far:80", &seen, evidence(), None);
    assert_eq!(alone.verdict, Verdict::Unanswered, "nobody at the source has heard it");
    seen.packet("curl-pod:eth0", false, back, 61, error, 2);
    let finding = explain("web-far:80", &seen, evidence(), None);
    assert_eq!(finding.verdict, Verdict::Refused);
}

#[test]
fn the_agent_says_what_it_dropped() {
    let mut seen = Seen::default();
    let flow = ends((CURL, 20_001), (WEB_FAR, 80));
    seen.marked("curl-pod:eth0", true, flow, 64, SYN, 1);
    seen.packet("k8s-ctr:lxc1", false, flow, 64, SYN, 1);
    let drop = |node: &str, ends| Drop {
        node: node.into(),
        reason: "FIB lookup failed".into(),
        point: "from-endpoint".into(),
        ends,
    };
    let with = |drop| explain("web-far:80", &seen, Evidence { drops: vec![drop], ..evidence() }, None);
    let finding = with(drop("k8s-ctr", flow));
    assert!(matches!(&finding.cause, Some(Cause::Dropped { reason, .. }) if reason == "FIB lookup failed"));
    assert_eq!(finding.mend, ["lab exec k8s-ctr -- ip route add 172.20.2.0/24 via 192.168.10.200"]);
    // Another packet's, another node's.
    assert_eq!(with(drop("k8s-ctr", ends((CURL, 20_002), (WEB_FAR, 80)))).cause, Some(Cause::Unknown));
    assert_eq!(with(drop("k8s-w1", flow)).cause, Some(Cause::Unknown));
    // What an agent says it dropped was dropped, whatever the taps lost.
    let lossy = Evidence { drops: vec![drop("k8s-ctr", flow)], lost: vec!["lost".into()], ..evidence() };
    assert_eq!(explain("web-far:80", &seen, lossy, None).verdict, Verdict::Died);
}

#[test]
fn what_a_machine_refuses_is_told() {
    let cause = |told: Told| explain("web-far:80", &to_the_router(), evidence(), Some(&told)).cause;
    assert!(matches!(cause(no_route("Network is unreachable")), Some(Cause::NoRoute { .. })));
    let blackhole = serde_json::from_str(r#"{"type":"blackhole","dst":"172.20.2.0/24"}"#).unwrap();
    let forbidden = Told { matching: vec![blackhole], ..no_route("Invalid argument") };
    assert_eq!(cause(forbidden), Some(Cause::Forbidden { route: "blackhole 172.20.2.0/24".into() }));
    let filter = Told { reverse_path: true, ..no_route("Invalid argument") };
    assert_eq!(cause(filter), Some(Cause::ReversePath));
    let right = r#"{"dst":"172.20.2.0/24","gateway":"192.168.20.100","dev":"eth2"}"#;
    let off = Told { forwards: Some(false), ..route(right) };
    assert_eq!(cause(off), Some(Cause::NotForwarding { device: "eth1".into() }));
    let rules = Told { rules: vec!["drop".into()], ..route(right) };
    assert_eq!(cause(rules), Some(Cause::Filtered { rules: vec!["drop".into()] }));
    assert_eq!(cause(route(right)), Some(Cause::Unknown));
}

#[test]
fn an_error_on_the_way_is_told_beside_its_cause() {
    let flow = ends((CURL, 20_001), (WEB_FAR, 80));
    let with = |kind, code, told: &Told| {
        let mut seen = to_the_router();
        let error = Kind::Error { kind, code, mtu: 1000, about: flow };
        let back = ends((Ipv4Addr::new(192, 168, 10, 200), 0), (CURL, 0));
        seen.packet("router:eth1", true, back, 64, error, 5);
        seen.packet("curl-pod:eth0", false, back, 63, error, 5);
        explain("web-far:80", &seen, evidence(), Some(told))
    };
    let silent = Told { silent: vec![("eth0".into(), GATEWAY)], ..route(DEFAULT) };
    let finding = with(3, 1, &silent);
    assert!(matches!(finding.cause, Some(Cause::SilentNextHop { .. })), "{finding:?}");
    assert!(finding.why.iter().any(|why| why.contains("router (192.168.10.200) answered with ICMP host")));
    // A packet too large says so itself, whatever the routes are; advice about routes says nothing.
    let finding = with(3, 4, &route(DEFAULT));
    assert!(matches!(&finding.cause, Some(Cause::Error { error, .. }) if error.contains("MTU 1000")));
    assert!(!matches!(with(5, 1, &route(DEFAULT)).cause, Some(Cause::Error { .. })));
}

#[test]
fn a_circle_is_a_loop_and_its_narrowest_route_goes() {
    let mut seen = Seen::default();
    let nobody = Ipv4Addr::new(172, 20, 200, 9);
    let flow = ends((CURL, 20_001), (nobody, 80));
    seen.marked("curl-pod:eth0", true, flow, 64, SYN, 1);
    for ttl in [63, 61, 59] {
        seen.packet("k8s-ctr:eth1", true, flow, ttl, SYN, 1);
        seen.packet("router:eth1", false, flow, ttl, SYN, 1);
        seen.packet("router:eth1", true, flow, ttl - 1, SYN, 1);
        seen.packet("k8s-ctr:eth1", false, flow, ttl - 1, SYN, 1);
    }
    let told = |ask: &Ask| {
        Some(match ask.machine.as_str() {
            "router" => route(r#"{"dst":"172.20.200.0/24","gateway":"192.168.10.100","dev":"eth1"}"#),
            _ => route(r#"{"dst":"172.20.0.0/16","gateway":"192.168.10.200","dev":"eth1"}"#),
        })
    };
    let to = "172.20.200.9:80";
    let finding = explain_from("curl-pod", to, &seen.list(), &mut evidence(), told);
    assert_eq!(finding.verdict, Verdict::Loop);
    let Some(Cause::Circle { machines, passes, ttl, routes }) = &finding.cause else { panic!("{finding:?}") };
    assert_eq!((machines.join(" "), *passes, *ttl), ("k8s-ctr router".into(), 3, (63, 58)));
    assert_eq!(routes.len(), 2);
    assert_eq!(finding.mend, ["lab exec router -- ip route del 172.20.200.0/24"]);
    assert!(finding.why.iter().any(|why| why == "Nothing of the lab has 172.20.200.9."));
    // That taps lost something does not undo what was seen.
    let mut lossy = Evidence { lost: vec!["lost".into()], ..evidence() };
    let again = explain_from("curl-pod", to, &seen.list(), &mut lossy, told);
    assert_eq!(again.verdict, Verdict::Loop);
}

#[test]
fn a_circle_with_a_pod_in_it_is_mended_by_the_right_route() {
    let mut seen = Seen::default();
    let flow = ends((CURL, 20_001), (WEB_FAR, 80));
    seen.marked("curl-pod:eth0", true, flow, 64, SYN, 1);
    for ttl in [63, 61] {
        seen.packet("k8s-ctr:eth1", true, flow, ttl, SYN, 1);
        seen.packet("router:eth1", false, flow, ttl, SYN, 1);
        seen.packet("router:eth1", true, flow, ttl - 1, SYN, 1);
        seen.packet("k8s-ctr:eth1", false, flow, ttl - 1, SYN, 1);
    }
    let told = |ask: &Ask| {
        Some(match ask.machine.as_str() {
            "router" => route(r#"{"dst":"172.20.2.0/24","gateway":"192.168.10.100","dev":"eth1"}"#),
            _ => route(r#"{"dst":"172.20.0.0/16","gateway":"192.168.10.200","dev":"eth1"}"#),
        })
    };
    let finding = explain_from("curl-pod", "web-far:80", &seen.list(), &mut evidence(), told);
    assert_eq!(finding.mend[0], "lab exec router -- ip route replace 172.20.2.0/24 via 192.168.20.100");
}

#[test]
fn a_lossy_capture_proves_no_death() {
    let lossy = || Evidence { lost: vec!["the tap at router:eth1 lost 3 packets".into()], ..evidence() };
    let finding = explain("web-far:80", &to_the_router(), lossy(), Some(&route(DEFAULT)));
    assert_eq!((finding.verdict, &finding.cause), (Verdict::Incomplete, &None));
    assert!(finding.why.iter().any(|why| why.contains("router:eth1 lost 3")), "{finding:?}");
    let mut seen = and_back_to_the_router();
    seen.packet("curl-pod:eth0", false, ends((WEB_FAR, 80), (CURL, 20_001)), 61, SYN_ACK, 2);
    assert_eq!(explain("web-far:80", &seen, lossy(), None).verdict, Verdict::Answered);
}

#[test]
fn a_service_that_nobody_serves_is_refused_before_a_packet_is_sent() {
    let refused = || Evidence { outcome: Outcome::Refused("refused".into()), ..evidence() };
    let nothing = Seen::default();
    let finding = explain("empty", &nothing, refused(), None);
    assert_eq!(finding.verdict, Verdict::Refused);
    assert_eq!(finding.cause, Some(Cause::NoBackend { service: "empty".into() }));
    let finding = explain("webpod:81", &nothing, refused(), None);
    let cause = Cause::NoServicePort { service: "webpod".into(), has: vec!["80/TCP".into()] };
    assert_eq!(finding.cause, Some(cause));
    let finding = explain("webpod", &nothing, refused(), None);
    assert!(matches!(finding.cause, Some(Cause::RefusedAtSource { .. })), "it has backends: {finding:?}");
    // Packet by packet it is the agent that finds nobody.
    let mut seen = Seen::default();
    let flow = ends((CURL, 20_001), (Ipv4Addr::new(10, 96, 1, 9), 80));
    seen.marked("curl-pod:eth0", true, flow, 64, SYN, 1);
    seen.packet("k8s-ctr:lxc1", false, flow, 64, SYN, 1);
    let drop =
        Drop { node: "k8s-ctr".into(), reason: NO_BACKEND.into(), point: "from-endpoint".into(), ends: flow };
    let finding = explain("empty", &seen, Evidence { drops: vec![drop], ..evidence() }, None);
    assert_eq!(finding.verdict, Verdict::Refused);
    assert_eq!(finding.cause, Some(Cause::NoBackend { service: "empty".into() }));
    // Not refused, not seen, and yet answered: the taps are to blame.
    let answered = Evidence { outcome: Outcome::Answered("HTTP 200".into()), ..evidence() };
    assert_eq!(explain("webpod", &nothing, answered, None).verdict, Verdict::Incomplete);
}

#[test]
fn a_node_without_a_pod_of_its_own_refuses_callers_from_outside() {
    let mut seen = Seen::default();
    let flow = ends((Ipv4Addr::new(192, 168, 10, 200), 20_001), (W1, 30_080));
    seen.marked("router:eth1", true, flow, 64, SYN, 1);
    seen.packet("k8s-w1:eth1", false, flow, 64, SYN, 1);
    seen.packet("k8s-w1:eth1", true, flow.reversed(), 64, RST, 2);
    seen.packet("router:eth1", false, flow.reversed(), 64, RST, 2);
    let (mut world, taps, sightings) = (world(), taps(), seen.list());
    let mut cause = |local_only, on_w1: bool| {
        let service = world.services.iter_mut().find(|s| s.name == "webpod").unwrap();
        service.local_only = local_only;
        service.ports[0].backends = vec![(if on_w1 { WEB_NEAR } else { WEB_FAR }, 80)];
        let plan = plan(&world, "router", "k8s-w1:30080", None).unwrap();
        let journey = follow(&sightings, &taps, &world, &plan.source);
        let case = Case { world: &world, plan: &plan, taps: &taps, journey: journey.as_ref(), flag: "" };
        let finding = case.explain(&evidence());
        assert_eq!(finding.verdict, Verdict::Refused);
        finding.cause
    };
    assert_eq!(cause(true, false), Some(Cause::NoLocalBackend { service: "webpod".into() }));
    assert!(matches!(cause(true, true), Some(Cause::Refused { .. })));
    assert!(matches!(cause(false, false), Some(Cause::Refused { .. })));
}

#[test]
fn a_machine_that_has_no_way_sends_nothing() {
    let mut refused = Evidence { outcome: Outcome::Refused("unreachable".into()), ..evidence() };
    let no_way = |_: &Ask| Some(no_route("Network is unreachable"));
    let finding = explain_from("k8s-w1", "192.168.20.100", &[], &mut refused, no_way);
    assert!(matches!(finding.cause, Some(Cause::NoRoute { .. })), "{finding:?}");
    assert_eq!(finding.mend[0], "lab exec k8s-w1 -- ip route add 192.168.20.0/24 via 192.168.10.200");
    let link = |_: &Ask| {
        let address = Ipv4Addr::new(192, 168, 10, 77);
        let told = route(r#"{"dst":"192.168.10.0/24","dev":"eth1"}"#);
        Some(Told { silent: vec![("eth1".into(), address)], ..told })
    };
    let finding = explain_from("k8s-w1", "192.168.10.77", &[], &mut evidence(), link);
    assert!(matches!(finding.cause, Some(Cause::SilentNextHop { .. })), "{finding:?}");
    assert!(finding.why.iter().any(|why| why.contains("Nothing of the lab has 192.168.10.77")));
}

#[test]
fn a_wrapped_packet_is_routed_by_its_outer_addresses() {
    let mut seen = Seen::default();
    let flow = ends((CURL, 20_001), (WEB_NEAR, 80));
    let encapsulation = Encapsulation::Vxlan { vni: 300, port: 8472 };
    let outer = Outer { encapsulation, source: CTR, destination: W1, ttl: 64 };
    seen.marked("curl-pod:eth0", true, flow, 64, SYN, 1);
    seen.wrapped("k8s-ctr:eth1", true, flow, 64, SYN, 1, outer);
    seen.wrapped("router:eth1", false, flow, 64, SYN, 1, outer);
    let told = |ask: &Ask| {
        assert_eq!((ask.source, ask.destination), (Some(CTR), W1));
        Some(no_route("Network is unreachable"))
    };
    let finding = explain_from("curl-pod", "web-near:80", &seen.list(), &mut evidence(), told);
    assert!(finding.why[0].contains("no route to 192.168.10.101"), "{finding:?}");
    // A node that does not unwrap.
    seen.wrapped("k8s-w1:eth1", false, flow, 64, SYN, 1, outer);
    let finding = explain("web-near:80", &seen, evidence(), None);
    assert_eq!(finding.cause, Some(Cause::NoTunnel));
}

#[test]
fn what_left_and_was_not_seen_again_was_lost_on_the_wire() {
    let mut seen = Seen::default();
    let flow = ends((CURL, 20_001), (WEB_FAR, 80));
    seen.marked("curl-pod:eth0", true, flow, 64, SYN, 1);
    seen.packet("k8s-ctr:eth1", true, flow, 63, SYN, 1);
    let finding = explain("web-far:80", &seen, evidence(), None);
    assert_eq!(finding.cause, Some(Cause::LostOnTheWire { to: Some("router:eth1".into()), down: false }));
}

#[test]
fn a_later_packet_that_dies_counts_only_if_the_connection_failed() {
    let mut seen = and_back_to_the_router();
    let flow = ends((CURL, 20_001), (WEB_FAR, 80));
    let data = Kind::Tcp(TcpFlags(TcpFlags::ACK | TcpFlags::PSH));
    seen.packet("curl-pod:eth0", false, flow.reversed(), 61, SYN_ACK, 2);
    seen.packet("curl-pod:eth0", true, flow, 64, data, 3);
    seen.packet("router:eth1", false, flow, 63, data, 3);
    let finding = explain("web-far:80", &seen, evidence(), Some(&route(DEFAULT)));
    assert_eq!((finding.verdict, finding.way), (Verdict::Died, Some(Way::There)));
    assert!(finding.why[0].contains("TCP data ACK"), "{finding:?}");
    let answered = Evidence { outcome: Outcome::Answered("HTTP 200".into()), ..evidence() };
    assert_eq!(explain("web-far:80", &seen, answered, None).verdict, Verdict::Answered);
}
