//! A trace as a person or a program reads it. Pure.

use std::fmt::{self, Write};
use std::net::Ipv4Addr;

use podwire_conformance::dissect::Encapsulation;
use serde::Serialize;

use super::Protocol;
use super::evidence::Evidence;
use super::explain::{Finding, Verdict};
use super::follow::{Hop, Journey, Leg, Way};
use super::plan::{Plan, Tap};
use super::probe::Outcome;
use super::world::{Owner, Service, World};

/// A whole trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    /// Version of this form.
    pub podwire_trace: u8,
    /// The lab.
    pub lab: String,
    /// Who began.
    pub source: Party,
    /// Whom it meant.
    pub destination: Party,
    /// What it spoke.
    pub protocol: Protocol,
    /// The port that it meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The Service that has the port on every node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_port_of: Option<String>,
    /// Who was called instead of the Service's address, which was replaced at the socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<Party>,
    /// The first packet, its answer, and errors about them.
    pub legs: Vec<Shown>,
    /// Packets of the flow there and back, each counted once.
    pub packets: (usize, usize),
    /// Microseconds from the first packet to its answer, at the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_microseconds: Option<u64>,
    /// What the program that sent it said.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub said: String,
    /// What came of it.
    #[serde(flatten)]
    pub finding: Finding,
    /// What the taps missed, and what could not be tapped.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// One who talks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Party {
    /// `pod`, `service` or `machine`; none if nothing of the lab has the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// Its name, with its namespace unless that is `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// Its port, if it is another than the one that was meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

impl Party {
    fn of(world: &World, address: Ipv4Addr) -> Self {
        let (kind, name) = match (world.owner(address), world.service(address)) {
            (Some(Owner::Pod(pod)), _) => (Some("pod"), Some(pod.called())),
            (Some(Owner::Machine(machine)), _) => (Some("machine"), Some(machine.name.clone())),
            (None, Some(service)) => (Some("service"), Some(service.called())),
            (None, None) => (None, None),
        };
        Self { kind, name, address: Some(address), port: None }
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = match (self.address, self.port) {
            (Some(ip), Some(port)) => format!("{ip}:{port}"),
            (Some(ip), None) => ip.to_string(),
            (None, _) => String::new(),
        };
        let service = if self.kind == Some("service") { "Service " } else { "" };
        match &self.name {
            Some(name) if address.is_empty() => write!(f, "{service}{name}"),
            Some(name) => write!(f, "{service}{name} ({address})"),
            None => f.write_str(&address),
        }
    }
}

/// The way of one packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// `there`, `back`, or `error` for an ICMP error about one of them.
    pub way: &'static str,
    /// What the packet is.
    pub packet: String,
    /// It came to where it was sent.
    pub arrived: bool,
    /// How often it came to where it went in a circle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passes: Option<usize>,
    /// Where it was seen.
    pub hops: Vec<ShownHop>,
    /// The hops of the first round of a circle.
    #[serde(skip)]
    round: Option<std::ops::Range<usize>>,
}

/// A packet at a tap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShownHop {
    /// The machine or pod.
    pub place: String,
    /// The device.
    pub device: String,
    /// `in` or `out`.
    pub direction: &'static str,
    /// Source, with port.
    pub source: String,
    /// Destination, with port.
    pub destination: String,
    /// Time to live.
    pub ttl: u8,
    /// The packet around it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encapsulation: Option<Around>,
    /// What became of it since the hop before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
    /// Time since the flow's first packet.
    pub microseconds: u64,
    /// Its number in the capture.
    pub frame: u64,
}

/// The packet around a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Around {
    /// How: `VXLAN`, ...
    pub kind: String,
    /// Network identifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// Source.
    pub source: Ipv4Addr,
    /// Destination.
    pub destination: Ipv4Addr,
    /// Time to live.
    pub ttl: u8,
}

/// Puts a trace together.
pub fn trace(
    world: &World,
    plan: &Plan,
    taps: &[Tap],
    journey: Option<&Journey>,
    evidence: &Evidence,
    finding: Finding,
) -> Trace {
    let began = journey.and_then(|j| j.there.hops.first()).map_or(0, |hop| hop.time);
    let shown = |way, leg: &Leg| shown(world, taps, way, leg, began);
    let mut legs: Vec<Shown> = Vec::new();
    if let Some(journey) = journey {
        legs.push(shown("there", &journey.there));
        legs.extend(journey.back.iter().map(|leg| shown("back", leg)));
        // What went wrong later is shown if it is what the verdict is about.
        if finding.verdict != Verdict::Answered
            && let Some((way, leg)) = &journey.stuck
            && journey.back.as_ref().is_some_and(|back| back.arrived)
        {
            legs.push(shown(if *way == Way::There { "there" } else { "back" }, leg));
        }
        legs.extend(journey.errors.iter().map(|leg| shown("error", leg)));
    }
    let first = journey.and_then(|j| j.there.hops.first());
    let source = Party {
        kind: Some(if plan.source.pod.is_some() { "pod" } else { "machine" }),
        name: Some(plan.source.name.clone()),
        address: plan.source.pod.as_ref().and_then(|pod| pod.ip).or(first.map(|hop| hop.ends.source.0)),
        port: None,
    };
    let backend = first.map(|hop| hop.ends.destination).filter(|(ip, _)| *ip != plan.target.address);
    let answer_microseconds = journey.and_then(|journey| {
        let back = journey.back.as_ref().filter(|back| back.arrived)?.last()?;
        u64::try_from((back.time - began) / 1000).ok()
    });
    let said = match &evidence.outcome {
        Outcome::Answered(said) | Outcome::Refused(said) | Outcome::Odd(said) => said.clone(),
        Outcome::Silent if plan.protocol == Protocol::Tcp => "no HTTP answer in time".to_owned(),
        Outcome::Silent => String::new(),
    };
    Trace {
        podwire_trace: 1,
        lab: world.lab.name.clone(),
        source,
        destination: Party::of(world, plan.target.address),
        protocol: plan.protocol,
        port: plan.port,
        node_port_of: plan.target.service.as_ref().filter(|_| plan.target.by_node).map(Service::called),
        backend: backend.map(|(ip, port)| Party { port: Some(port), ..Party::of(world, ip) }),
        legs,
        packets: journey.map_or((0, 0), |journey| journey.packets),
        answer_microseconds,
        said,
        finding,
        notes: evidence.lost.iter().chain(&evidence.notes).cloned().collect(),
    }
}

fn shown(world: &World, taps: &[Tap], way: &'static str, leg: &Leg, began: i64) -> Shown {
    let mut hops: Vec<ShownHop> = Vec::new();
    let mut before: Option<&Hop> = None;
    for hop in &leg.hops {
        let tap = taps.get(hop.tap);
        hops.push(ShownHop {
            place: tap.map(|tap| tap.place().to_owned()).unwrap_or_default(),
            device: tap.map(|tap| tap.device.clone()).unwrap_or_default(),
            direction: if hop.out { "out" } else { "in" },
            source: hop.ends.text(hop.ends.source),
            destination: hop.ends.text(hop.ends.destination),
            ttl: hop.ttl,
            encapsulation: hop.outer.map(|outer| {
                let (kind, vni) = match outer.encapsulation {
                    Encapsulation::Vxlan { vni, .. } => ("VXLAN".to_owned(), Some(vni)),
                    Encapsulation::Geneve { vni } => ("Geneve".to_owned(), Some(vni)),
                    other => (other.to_string(), None),
                };
                Around { kind, vni, source: outer.source, destination: outer.destination, ttl: outer.ttl }
            }),
            changes: before.map(|before| changes(world, before, hop)).unwrap_or_default(),
            microseconds: u64::try_from((hop.time - began) / 1000).unwrap_or_default(),
            frame: hop.frame,
        });
        before = Some(hop);
    }
    Shown {
        way,
        packet: leg.kind.to_string(),
        arrived: leg.arrived,
        passes: leg.cycle.map(|cycle| cycle.passes),
        hops,
        round: leg.cycle.map(|cycle| cycle.first..cycle.first + cycle.length),
    }
}

/// What was changed between two taps, the TTL apart: that is shown at each.
fn changes(world: &World, before: &Hop, after: &Hop) -> Vec<String> {
    let mut changes = Vec::new();
    let rewritten = |what: &str, from, to| {
        (from != to)
            .then(|| format!("{what} rewritten: {} -> {}", before.ends.text(from), after.ends.text(to)))
    };
    changes.extend(rewritten("source", before.ends.source, after.ends.source));
    changes.extend(rewritten("destination", before.ends.destination, after.ends.destination));
    match (before.outer, after.outer) {
        (None, Some(outer)) => {
            let how = match outer.encapsulation {
                Encapsulation::Vxlan { vni, port } => {
                    let whose = identity(world, vni).map(|name| format!(" (the identity of {name})"));
                    format!("VXLAN, VNI {vni}{}, UDP port {port}", whose.unwrap_or_default())
                }
                other => other.to_string(),
            };
            changes.push(format!(
                "wrapped in {how}: {} -> {}, ttl {}",
                outer.source, outer.destination, outer.ttl
            ));
        }
        (Some(_), None) => changes.push("unwrapped".to_owned()),
        (Some(from), Some(to)) if (from.source, from.destination) != (to.source, to.destination) => {
            changes.push(format!("outer addresses rewritten: {} -> {}", to.source, to.destination));
        }
        _ => {}
    }
    changes
}

/// Who has an identity: the node itself, or pods. Pods of one workload share theirs.
fn identity(world: &World, number: u32) -> Option<String> {
    if number == 1 {
        return Some("the node".to_owned());
    }
    let mut pods = world.pods.iter().filter(|pod| pod.identity == Some(number));
    let first = pods.next()?.called();
    Some(if pods.next().is_some() { format!("{first} and others of its kind") } else { first })
}

/// A trace for a terminal.
pub fn text(trace: &Trace) -> String {
    let mut text = String::new();
    let port = trace.port.map(|port| format!(" port {port}")).unwrap_or_default();
    let _ = writeln!(text, "{} -> {}, {}{port}", trace.source, trace.destination, trace.protocol);
    if let Some(service) = &trace.node_port_of {
        let _ = writeln!(text, "the port is that of Service {service} on every node");
    }
    if let Some(backend) = &trace.backend {
        let _ = writeln!(text, "the address is replaced at the socket: {backend} is called instead");
    }
    let hops = || trace.legs.iter().flat_map(|leg| &leg.hops);
    let width = |of: fn(&ShownHop) -> usize| hops().map(of).max().unwrap_or_default();
    let widths = Widths {
        place: width(|hop| hop.place.len()),
        device: width(|hop| hop.device.len()),
        ends: width(|hop| hop.source.len() + hop.destination.len() + 4),
    };
    for leg in &trace.legs {
        let _ = writeln!(text, "\n{}: {}", leg.way, leg.packet);
        write_leg(&mut text, leg, widths);
    }
    text.push('\n');
    write_finding(&mut text, trace);
    text
}

#[derive(Clone, Copy)]
struct Widths {
    place: usize,
    device: usize,
    ends: usize,
}

/// Rounds of a circle that are shown; the last hop always is.
const ROUNDS: usize = 2;

fn write_leg(text: &mut String, leg: &Shown, widths: Widths) {
    let last = leg.hops.len().saturating_sub(1);
    let shown_to = leg.round.as_ref().map_or(last, |round| round.start + ROUNDS * round.len());
    let mut before = None;
    for (number, hop) in leg.hops.iter().enumerate() {
        if number > shown_to && number < last {
            if number == shown_to + 1 {
                let _ = writeln!(
                    text,
                    "      ... and round again, {} times in all",
                    leg.passes.unwrap_or_default()
                );
            }
            before = Some(hop.ttl);
            continue;
        }
        for change in &hop.changes {
            let _ = writeln!(text, "      {change}");
        }
        let lower = match before {
            Some(before) if before > hop.ttl && number <= shown_to => format!(" (-{})", before - hop.ttl),
            _ => String::new(),
        };
        let around = hop
            .encapsulation
            .as_ref()
            .map(|around| format!("  in {}, ttl {}", around.kind, around.ttl))
            .unwrap_or_default();
        let line = format!(
            "{:>4}  {:<place$}  {:<device$}  {:<3}  {:<ends$}  ttl {}{lower}{around}",
            number + 1,
            hop.place,
            hop.device,
            hop.direction,
            format!("{} -> {}", hop.source, hop.destination),
            hop.ttl,
            place = widths.place,
            device = widths.device,
            ends = widths.ends,
        );
        let _ = writeln!(text, "{}", line.trim_end());
        before = Some(hop.ttl);
    }
}

fn write_finding(text: &mut String, trace: &Trace) {
    let finding = &trace.finding;
    let at = finding.at.as_ref().map(|at| format!("{} ({})", at.place, at.device));
    let at = at.map(|at| format!(" at {at}")).unwrap_or_default();
    let way = match finding.way {
        Some(Way::There) => " on the way there",
        Some(Way::Back) => " on the way back",
        None => "",
    };
    let line = match finding.verdict {
        Verdict::Answered => {
            let after =
                trace.answer_microseconds.map(|us| format!(" after {}.{:03} ms", us / 1000, us % 1000));
            let said = if trace.said.is_empty() { String::new() } else { format!("; {}", trace.said) };
            format!(
                "answered{}{said}; packets: {} there, {} back",
                after.unwrap_or_default(),
                trace.packets.0,
                trace.packets.1
            )
        }
        Verdict::Refused => format!("refused{at}"),
        Verdict::Unanswered => format!("arrived{at}, not answered"),
        Verdict::Died => format!("died{way}{at}"),
        Verdict::Loop => format!("loop{way}{at}"),
        Verdict::Incomplete => "incomplete".to_owned(),
    };
    let _ = writeln!(text, "{line}");
    for why in &finding.why {
        let _ = writeln!(text, "{}", sentence("  why   ", why));
    }
    for mend in &finding.mend {
        let _ = writeln!(text, "  mend  {mend}");
    }
    for note in trace.notes.iter().filter(|note| !finding.why.contains(note)) {
        let _ = writeln!(text, "{}", sentence("  note  ", note));
    }
}

/// A sentence with a word before it. (Commands are not broken.)
fn sentence(word: &str, text: &str) -> String {
    textwrap::fill(text, textwrap::Options::new(100).initial_indent(word).subsequent_indent("        "))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use podwire_conformance::dissect::TcpFlags;

    use super::super::explain::Case;
    use super::super::follow::follow;
    use super::super::plan::plan;
    use super::super::sighting::{Kind, Outer};
    use super::super::testing::{CTR, CURL, Seen, W1, WEB_NEAR, ends, taps, world};
    use super::*;

    const SYN: Kind = Kind::Tcp(TcpFlags(TcpFlags::SYN));
    const SYN_ACK: Kind = Kind::Tcp(TcpFlags(TcpFlags::SYN | TcpFlags::ACK));

    fn of(to: &str, seen: &Seen, outcome: Outcome) -> Trace {
        let (world, taps) = (world(), taps());
        let plan = plan(&world, "curl-pod", to, None).unwrap();
        let journey = follow(&seen.list(), &taps, &world, &plan.source);
        let (arp, drops, lost) = (Vec::new(), Vec::new(), Vec::new());
        let notes = vec!["what the agent of k8s-w1 drops is not known: it is gone".to_owned()];
        let evidence = Evidence { outcome, drops, arp, lost, notes, routes: BTreeMap::new() };
        let case =
            Case { world: &world, plan: &plan, taps: &taps, journey: journey.as_ref(), flag: " --lab x" };
        let finding = case.explain(&evidence);
        trace(&world, &plan, &taps, journey.as_ref(), &evidence, finding)
    }

    /// A Service's backend behind the tunnel.
    fn service() -> Trace {
        let mut seen = Seen::default();
        let flow = ends((CURL, 20_001), (WEB_NEAR, 80));
        let outer = |source, destination, vni| Outer {
            encapsulation: Encapsulation::Vxlan { vni, port: 8472 },
            source,
            destination,
            ttl: 64,
        };
        seen.marked("curl-pod:eth0", true, flow, 64, SYN, 1);
        seen.packet("k8s-ctr:lxc1", false, flow, 64, SYN, 1);
        seen.wrapped("k8s-ctr:eth1", true, flow, 64, SYN, 1, outer(CTR, W1, 300));
        seen.wrapped("k8s-w1:eth1", false, flow, 64, SYN, 1, outer(CTR, W1, 300));
        seen.packet("web-near:eth0", false, flow, 63, SYN, 1);
        seen.packet("web-near:eth0", true, flow.reversed(), 64, SYN_ACK, 2);
        seen.wrapped("k8s-w1:eth1", true, flow.reversed(), 64, SYN_ACK, 2, outer(W1, CTR, 301));
        seen.packet("curl-pod:eth0", false, flow.reversed(), 63, SYN_ACK, 2);
        of("webpod", &seen, Outcome::Answered("HTTP 200".into()))
    }

    #[test]
    fn a_service_behind_a_tunnel() {
        insta::assert_snapshot!(text(&service()));
    }

    #[test]
    fn a_circle_is_shown_by_its_first_rounds() {
        let mut seen = Seen::default();
        let flow = ends((CURL, 20_001), (Ipv4Addr::new(172, 20, 200, 9), 80));
        seen.marked("curl-pod:eth0", true, flow, 64, SYN, 1);
        for ttl in (1..=63).rev().step_by(2) {
            seen.packet("k8s-ctr:eth1", true, flow, ttl, SYN, 1);
            seen.packet("router:eth1", false, flow, ttl, SYN, 1);
            if ttl > 1 {
                seen.packet("router:eth1", true, flow, ttl - 1, SYN, 1);
                seen.packet("k8s-ctr:eth1", false, flow, ttl - 1, SYN, 1);
            }
        }
        insta::assert_snapshot!(text(&of("172.20.200.9:80", &seen, Outcome::Silent)));
    }

    #[test]
    fn a_translation_is_shown_between_its_hops() {
        let mut seen = Seen::default();
        let router = Ipv4Addr::new(10, 10, 1, 200);
        let (inside, outside) = (ends((CURL, 20_001), (router, 80)), ends((CTR, 50_000), (router, 80)));
        seen.marked("curl-pod:eth0", true, inside, 64, SYN, 1);
        seen.packet("k8s-ctr:eth1", true, outside, 63, SYN, 1);
        let shown = of("10.10.1.200:80", &seen, Outcome::Silent);
        let changed = "source rewritten: 172.20.0.3:20001 -> 192.168.10.100:50000";
        assert_eq!(shown.legs[0].hops[1].changes, [changed]);
        assert!(
            text(&shown).contains(&format!("ttl 64\n      {changed}\n   2  k8s-ctr")),
            "{}",
            text(&shown)
        );
    }

    #[test]
    fn programs_find_the_same() {
        let json = serde_json::to_value(service()).unwrap();
        assert_eq!((json["podwireTrace"].as_u64(), json["verdict"].as_str()), (Some(1), Some("answered")));
        assert_eq!(json["destination"]["kind"], "service");
        assert_eq!(
            (json["backend"]["name"].as_str(), json["backend"]["port"].as_u64()),
            (Some("web-near"), Some(80))
        );
        let hop = &json["legs"][0]["hops"][2];
        assert_eq!(hop["encapsulation"]["vni"], 300);
        assert_eq!((hop["place"].as_str(), hop["direction"].as_str()), (Some("k8s-ctr"), Some("out")));
        assert_eq!(json["answerMicroseconds"], 7);
    }
}
