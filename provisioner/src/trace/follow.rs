//! Follows one flow through what the taps saw. Pure.
//!
//! The probe's first packet is known by its mark, at the source. All sightings with its print are the same packet, under
//! whatever addresses; all packets with one of those addresses are the same flow; and what goes the other way between them answers.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;

use super::plan::{Source, Tap};
use super::sighting::{Ends, Kind, Outer, Packet, Sighting, What};
use super::world::World;

/// One flow, as far as it was seen.
#[derive(Clone, Debug)]
pub struct Journey {
    /// Its first packet.
    pub there: Leg,
    /// The first packet of the answer.
    pub back: Option<Leg>,
    /// The first later packet that did not arrive.
    pub stuck: Option<(Way, Leg)>,
    /// ICMP errors about packets of the flow, each on its own way.
    pub errors: Vec<Leg>,
    /// How many packets went there and back, each counted once.
    pub packets: (usize, usize),
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// From the source.
    There,
    /// To the source.
    Back,
}

/// The way of one packet.
#[derive(Clone, Debug)]
pub struct Leg {
    /// What it is.
    pub kind: Kind,
    /// Where it was seen, in the order of time. At least one.
    pub hops: Vec<Hop>,
    /// It came to where it was sent.
    pub arrived: bool,
    /// It went in a circle.
    pub cycle: Option<Cycle>,
}

/// A packet at a tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Its number in the capture.
    pub frame: u64,
    /// Nanoseconds since 1970.
    pub time: i64,
    /// The tap, by its place among the taps.
    pub tap: usize,
    /// It left by the interface.
    pub out: bool,
    /// From where to where.
    pub ends: Ends,
    /// Time to live.
    pub ttl: u8,
    /// The packet around it.
    pub outer: Option<Outer>,
    /// The Ethernet address that it was sent to.
    pub to: Option<[u8; 6]>,
}

/// A circle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cycle {
    /// The hop at which it was entered.
    pub first: usize,
    /// Hops of one round.
    pub length: usize,
    /// How often the packet came to that hop.
    pub passes: usize,
}

/// Somebody asked by ARP, and nobody answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// Who asked: a machine or a pod.
    pub place: String,
    /// By which device.
    pub device: String,
    /// Whose address is wanted.
    pub address: Ipv4Addr,
}

impl Hop {
    /// The TTL that routers take from: of a wrapped packet, the outer one.
    pub fn routed_ttl(&self) -> u8 {
        self.outer.map_or(self.ttl, |outer| outer.ttl)
    }
}

impl Leg {
    /// The hop at which it was seen last.
    pub fn last(&self) -> Option<&Hop> {
        self.hops.last()
    }
}

/// What a flow is known by.
struct Flow<'s> {
    /// Addresses of the packets that go there, as any tap saw them.
    there: HashSet<Ends>,
    /// Sightings of each of its packets, by way and print.
    packets: BTreeMap<(bool, u64), Vec<&'s Sighting>>,
}

/// Follows the probe. None if it was not seen at its source.
pub fn follow(sightings: &[Sighting], taps: &[Tap], world: &World, source: &Source) -> Option<Journey> {
    let start = sightings
        .iter()
        .filter(|s| at_source(taps.get(s.tap), source))
        .filter_map(|s| packet(s).filter(|p| p.marked).map(|p| (s.time, p)))
        .min_by_key(|(time, _)| *time)?
        .1;
    let flow = Flow::of(start, sightings);
    let mut there = Vec::new();
    let mut back = Vec::new();
    for ((answers, _), seen) in &flow.packets {
        let way = if *answers { &mut back } else { &mut there };
        way.extend(leg(seen, |hop| arrives(hop, *answers, taps, world, source)));
    }
    let began = |leg: &Leg| leg.hops.first().map(|hop| hop.time);
    there.sort_by_key(began);
    back.sort_by_key(began);
    let packets = (there.len(), back.len());
    let mut later: Vec<(Way, &Leg)> = there.iter().skip(1).map(|leg| (Way::There, leg)).collect();
    later.extend(back.iter().skip(1).map(|leg| (Way::Back, leg)));
    later.sort_by_key(|(_, leg)| began(leg));
    let stuck = later.into_iter().find(|(_, leg)| !leg.arrived).map(|(way, leg)| (way, leg.clone()));
    let errors = errors(sightings, &flow, taps, source);
    Some(Journey { there: there.into_iter().next()?, back: back.into_iter().next(), stuck, errors, packets })
}

/// Questions of ARP that nobody answered while the taps were open.
pub fn unanswered(sightings: &[Sighting], taps: &[Tap]) -> Vec<Unanswered> {
    let mut asked: BTreeSet<(usize, Ipv4Addr)> = BTreeSet::new();
    let mut answered = BTreeSet::new();
    for sighting in sightings {
        if let What::Arp { asks, about } = sighting.what {
            match (asks, sighting.out) {
                (true, true) => asked.insert((sighting.tap, about)),
                (false, false) => answered.insert((sighting.tap, about)),
                _ => false,
            };
        }
    }
    let open = asked.difference(&answered);
    open.filter_map(|(tap, address)| {
        let tap = taps.get(*tap)?;
        Some(Unanswered { place: tap.place().to_owned(), device: tap.device.clone(), address: *address })
    })
    .collect()
}

fn packet(sighting: &Sighting) -> Option<&Packet> {
    match &sighting.what {
        What::Packet(packet) => Some(packet),
        What::Arp { .. } => None,
    }
}

/// Whether a tap is where the source is.
fn at_source(tap: Option<&Tap>, source: &Source) -> bool {
    tap.is_some_and(|tap| match (&source.pod, &tap.pod) {
        (Some(pod), Some((_, ip))) => pod.ip == Some(*ip),
        (None, None) => tap.machine == source.machine,
        _ => false,
    })
}

impl<'s> Flow<'s> {
    fn of(start: &Packet, sightings: &'s [Sighting]) -> Self {
        let mut flow = Self { there: HashSet::from([start.ends]), packets: BTreeMap::new() };
        loop {
            flow.packets = flow.packets_of(sightings);
            // Each packet's other addresses, after a translation, are the flow's too.
            let known = flow.there.len();
            for ((answers, _), seen) in &flow.packets {
                let ends = seen.iter().filter_map(|s| packet(s)).map(|p| p.ends);
                flow.there.extend(ends.map(|ends| if *answers { ends.reversed() } else { ends }));
            }
            if flow.there.len() == known {
                return flow;
            }
        }
    }

    fn packets_of(&self, sightings: &'s [Sighting]) -> BTreeMap<(bool, u64), Vec<&'s Sighting>> {
        let prints: HashMap<u64, bool> = sightings
            .iter()
            .filter_map(packet)
            .filter_map(|p| self.answers(p).map(|answers| (p.print, answers)))
            .collect();
        let mut packets: BTreeMap<(bool, u64), Vec<&Sighting>> = BTreeMap::new();
        for sighting in sightings {
            if let Some(packet) = packet(sighting)
                && let Some(answers) = prints.get(&packet.print)
            {
                packets.entry((*answers, packet.print)).or_default().push(sighting);
            }
        }
        packets
    }

    /// Whether a packet with these addresses is of the flow, and then whether it answers.
    fn answers(&self, packet: &Packet) -> Option<bool> {
        let (forth, reply) =
            (self.there.contains(&packet.ends), self.there.contains(&packet.ends.reversed()));
        match packet.kind {
            Kind::Error { .. } => None,
            // A ping of oneself has the same addresses both ways.
            Kind::Echo { request: true } => forth.then_some(false),
            Kind::Echo { request: false } => reply.then_some(true),
            _ if forth => Some(false),
            _ => reply.then_some(true),
        }
    }
}

/// Orders a packet's sightings. A packet that was sent twice is taken for one: what one of the two reached is reached.
fn leg(seen: &[&Sighting], is_goal: impl Fn(&Hop) -> bool) -> Option<Leg> {
    let mut seen: Vec<&Sighting> = seen.to_vec();
    seen.sort_by_key(|s| (s.time, packet(s).map(|p| order(p, s.out)), s.frame));
    let mut known = HashSet::new();
    let mut hops = Vec::new();
    let mut kind = Kind::Other;
    for sighting in seen {
        let packet = packet(sighting)?;
        kind = packet.kind;
        if known.insert((sighting.tap, sighting.out, packet.ttl, packet.outer.map(|outer| outer.ttl))) {
            hops.push(Hop {
                frame: sighting.frame,
                time: sighting.time,
                tap: sighting.tap,
                out: sighting.out,
                ends: packet.ends,
                ttl: packet.ttl,
                outer: packet.outer,
                to: sighting.to,
            });
        }
    }
    let arrived = hops.last().is_some_and(is_goal);
    let cycle = cycle(&hops);
    (!hops.is_empty()).then_some(Leg { kind, hops, arrived, cycle })
}

/// A packet that is handed on inside the kernel may keep its time. Then its TTL tells which tap it passed first, and else its wrapping:
/// on the way out it is not wrapped yet, on the way in it still is.
fn order(packet: &Packet, out: bool) -> (Reverse<u8>, bool, Reverse<Option<u8>>) {
    let around = packet.outer.map(|outer| outer.ttl);
    (Reverse(packet.ttl), around.is_some() == out, Reverse(around))
}

/// A tap that is passed again in the same direction has been reached in a circle: routers take from the TTL, and a tap that sees
/// the same TTL again sees the same packet sent again.
fn cycle(hops: &[Hop]) -> Option<Cycle> {
    let same = |a: &Hop, b: &Hop| a.tap == b.tap && a.out == b.out;
    hops.iter().enumerate().find_map(|(first, hop)| {
        let length = hops[first + 1..].iter().position(|later| same(hop, later))? + 1;
        let passes = hops[first..].iter().filter(|later| same(hop, later)).count();
        Some(Cycle { first, length, passes })
    })
}

/// Whether a hop is where the packet was sent: inside the pod that has the address, or on its way into the machine that has it.
/// Of an answer it is the source, wherever the address that it is sent to on its way may be.
fn arrives(hop: &Hop, answers: bool, taps: &[Tap], world: &World, source: &Source) -> bool {
    let Some(tap) = taps.get(hop.tap) else { return false };
    if hop.out || hop.outer.is_some() || (answers && !at_source(Some(tap), source)) {
        return false;
    }
    let (address, _) = hop.ends.destination;
    match &tap.pod {
        Some((_, ip)) => *ip == address || tap.device == "lo",
        None => {
            tap.device == "lo" || world.machine(&tap.machine).is_some_and(|m| m.device_of(address).is_some())
        }
    }
}

/// ICMP errors about packets of the flow.
fn errors(sightings: &[Sighting], flow: &Flow<'_>, taps: &[Tap], source: &Source) -> Vec<Leg> {
    let mut found: BTreeMap<u64, Vec<&Sighting>> = BTreeMap::new();
    for sighting in sightings {
        if let Some(packet) = packet(sighting)
            && let Kind::Error { about, .. } = packet.kind
            && (flow.there.contains(&about) || flow.there.contains(&about.reversed()))
        {
            found.entry(packet.print).or_default().push(sighting);
        }
    }
    let at_source = |hop: &Hop| !hop.out && at_source(taps.get(hop.tap), source);
    let mut errors: Vec<Leg> = found.values().filter_map(|seen| leg(seen, at_source)).collect();
    errors.sort_by_key(|leg| leg.hops.first().map(|hop| hop.time));
    errors
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use podwire_conformance::dissect::{Encapsulation, TcpFlags};

    use super::super::testing::{CTR, CURL, Seen, W1, WEB_FAR, WEB_NEAR, ends, taps, world};
    use super::*;
    use crate::trace::plan;

    const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 200);
    const SYN: Kind = Kind::Tcp(TcpFlags(TcpFlags::SYN));
    const SYN_ACK: Kind = Kind::Tcp(TcpFlags(TcpFlags::SYN | TcpFlags::ACK));

    fn journey(sightings: &[Sighting]) -> Option<Journey> {
        let world = world();
        let source = plan::plan(&world, "curl-pod", "web-far:80", None).unwrap().source;
        follow(sightings, &taps(), &world, &source)
    }

    fn places(leg: &Leg) -> Vec<String> {
        let taps = taps();
        leg.hops
            .iter()
            .map(|hop| {
                let tap = &taps[hop.tap];
                format!("{}:{} {} {}", tap.place(), tap.device, if hop.out { "out" } else { "in" }, hop.ttl)
            })
            .collect()
    }

    #[test]
    fn both_ways_are_followed_through_a_translation() {
        let mut seen = Seen::default();
        let (inside, outside) = (ends((CURL, 20_001), (ROUTER, 80)), ends((CTR, 50_000), (ROUTER, 80)));
        seen.marked("curl-pod:eth0", true, inside, 64, SYN, 1);
        seen.packet("k8s-ctr:lxc1", false, inside, 64, SYN, 1);
        seen.packet("k8s-ctr:eth1", true, outside, 63, SYN, 1);
        seen.packet("router:eth1", false, outside, 63, SYN, 1);
        seen.packet("router:eth1", true, outside.reversed(), 64, SYN_ACK, 2);
        seen.packet("k8s-ctr:eth1", false, outside.reversed(), 64, SYN_ACK, 2);
        seen.packet("curl-pod:eth0", false, inside.reversed(), 63, SYN_ACK, 2);
        // Somebody else's, at the same time.
        seen.packet("k8s-ctr:eth1", true, ends((CTR, 50_001), (ROUTER, 80)), 63, SYN, 3);
        let journey = journey(&seen.list()).unwrap();
        assert!(journey.there.arrived && journey.there.hops.len() == 4);
        assert_eq!(journey.there.hops[2].ends, outside);
        let back = journey.back.unwrap();
        assert_eq!(places(&back), ["router:eth1 out 64", "k8s-ctr:eth1 in 64", "curl-pod:eth0 in 63"]);
        assert!(back.arrived && back.kind == SYN_ACK);
        assert_eq!(journey.packets, (1, 1));
    }

    #[test]
    fn an_answer_that_stops_at_the_source_s_node_has_not_arrived() {
        let mut seen = Seen::default();
        let (inside, outside) = (ends((CURL, 20_001), (ROUTER, 80)), ends((CTR, 50_000), (ROUTER, 80)));
        seen.marked("curl-pod:eth0", true, inside, 64, SYN, 1);
        seen.packet("router:eth1", false, outside, 63, SYN, 1);
        seen.packet("k8s-ctr:eth1", false, outside.reversed(), 64, SYN_ACK, 2);
        let back = journey(&seen.list()).unwrap().back.unwrap();
        assert!(!back.arrived, "the node's address is on it, but the pod has not seen it");
    }

    #[test]
    fn a_packet_in_a_tunnel_is_one_packet() {
        let mut seen = Seen::default();
        let flow = ends((CURL, 20_001), (WEB_NEAR, 80));
        let outer = Outer {
            encapsulation: Encapsulation::Vxlan { vni: 300, port: 8472 },
            source: CTR,
            destination: W1,
            ttl: 64,
        };
        seen.marked("curl-pod:eth0", true, flow, 64, SYN, 1);
        seen.wrapped("k8s-ctr:eth1", true, flow, 64, SYN, 1, outer);
        seen.wrapped("k8s-w1:eth1", false, flow, 64, SYN, 1, outer);
        let before = journey(&seen.list()).unwrap();
        assert!(!before.there.arrived, "what is wrapped is not there yet");
        seen.packet("web-near:eth0", false, flow, 63, SYN, 1);
        let there = journey(&seen.list()).unwrap().there;
        assert!(there.arrived);
        assert_eq!(there.hops[2].outer, Some(outer));
    }

    #[test]
    fn a_circle_is_found_and_a_retransmission_is_none() {
        let mut seen = Seen::default();
        let flow = ends((CURL, 7), (Ipv4Addr::new(172, 20, 200, 9), 7));
        let ping = Kind::Echo { request: true };
        seen.marked("curl-pod:eth0", true, flow, 64, ping, 1);
        for ttl in [63, 61, 59] {
            seen.packet("k8s-ctr:eth1", true, flow, ttl, ping, 1);
            seen.packet("router:eth1", false, flow, ttl, ping, 1);
            seen.packet("router:eth1", true, flow, ttl - 1, ping, 1);
            seen.packet("k8s-ctr:eth1", false, flow, ttl - 1, ping, 1);
        }
        let there = journey(&seen.list()).unwrap().there;
        assert_eq!(there.cycle, Some(Cycle { first: 1, length: 4, passes: 3 }));
        assert!(!there.arrived);

        let mut again = Seen::default();
        for _ in 0..3 {
            again.marked("curl-pod:eth0", true, flow, 64, ping, 1);
            again.packet("k8s-ctr:eth1", true, flow, 63, ping, 1);
        }
        let there = journey(&again.list()).unwrap().there;
        assert_eq!((there.cycle, there.hops.len()), (None, 2));

        // In a tunnel it is the outer packet that goes round.
        let mut wrapped = Seen::default();
        wrapped.marked("curl-pod:eth0", true, flow, 64, ping, 1);
        for ttl in [64, 62] {
            let encapsulation = Encapsulation::Vxlan { vni: 300, port: 8472 };
            let outer = Outer { encapsulation, source: CTR, destination: W1, ttl };
            wrapped.wrapped("k8s-ctr:eth1", true, flow, 64, ping, 1, outer);
            wrapped.wrapped("router:eth1", false, flow, 64, ping, 1, outer);
        }
        let there = journey(&wrapped.list()).unwrap().there;
        assert_eq!(there.cycle, Some(Cycle { first: 1, length: 2, passes: 2 }));
    }

    #[test]
    fn the_first_later_packet_that_does_not_arrive_is_kept() {
        let mut seen = Seen::default();
        let flow = ends((CURL, 20_001), (WEB_FAR, 80));
        let data = Kind::Tcp(TcpFlags(TcpFlags::ACK | TcpFlags::PSH));
        for (print, kind, way) in [(1, SYN, false), (2, SYN_ACK, true)] {
            let flow = if way { flow.reversed() } else { flow };
            seen.marked("curl-pod:eth0", !way, flow, 64, kind, print);
            seen.packet("web-far:eth0", way, flow, 62, kind, print);
        }
        assert!(journey(&seen.list()).unwrap().stuck.is_none());
        seen.packet("curl-pod:eth0", true, flow, 64, data, 3);
        seen.packet("router:eth1", false, flow, 63, data, 3);
        let (way, leg) = journey(&seen.list()).unwrap().stuck.unwrap();
        assert_eq!((way, leg.hops.len(), leg.kind), (Way::There, 2, data));
    }

    #[test]
    fn errors_and_questions_without_an_answer_are_found() {
        let mut seen = Seen::default();
        let flow = ends((CURL, 20_001), (WEB_FAR, 80));
        let gateway = Ipv4Addr::new(10, 0, 2, 2);
        seen.marked("curl-pod:eth0", true, flow, 64, SYN, 1);
        seen.packet("router:eth1", false, flow, 63, SYN, 1);
        seen.arp("router:eth0", true, gateway);
        seen.arp("router:eth2", true, WEB_FAR);
        seen.arp("router:eth2", false, WEB_FAR);
        let error = |about| Kind::Error { kind: 3, code: 1, mtu: 0, about };
        let from_router = ends((Ipv4Addr::new(192, 168, 10, 200), 0), (CURL, 0));
        seen.packet("router:eth1", true, from_router, 64, error(flow), 9);
        seen.packet("curl-pod:eth0", false, from_router, 63, error(flow), 9);
        seen.packet("router:eth1", true, from_router, 64, error(ends((CURL, 1), (WEB_FAR, 2))), 10);
        let sightings = seen.list();
        let journey = journey(&sightings).unwrap();
        assert_eq!(journey.errors.len(), 1, "the other is about something else");
        assert!(journey.errors[0].arrived && journey.back.is_none());
        let asked = unanswered(&sightings, &taps());
        assert_eq!(asked, [Unanswered { place: "router".into(), device: "eth0".into(), address: gateway }]);
    }

    #[test]
    fn sightings_of_one_time_are_ordered_by_what_they_are() {
        let mut seen = Seen::default();
        let flow = ends((CURL, 20_001), (WEB_NEAR, 80));
        let vxlan = Encapsulation::Vxlan { vni: 300, port: 8472 };
        let outer = Outer { encapsulation: vxlan, source: CTR, destination: W1, ttl: 64 };
        seen.marked("curl-pod:eth0", true, flow, 64, SYN, 1);
        seen.packet("web-near:eth0", false, flow, 63, SYN, 1);
        seen.packet("k8s-w1:podwire_host", false, flow, 64, SYN, 1);
        seen.wrapped("k8s-w1:eth1", false, flow, 64, SYN, 1, outer);
        let mut sightings = seen.list();
        let time = sightings[1].time;
        sightings[2..].iter_mut().for_each(|sighting| sighting.time = time);
        let there = journey(&sightings).unwrap().there;
        let wanted =
            ["curl-pod:eth0 out 64", "k8s-w1:eth1 in 64", "k8s-w1:podwire_host in 64", "web-near:eth0 in 63"];
        assert_eq!(places(&there), wanted);
    }

    #[test]
    fn what_was_not_seen_at_its_source_is_not_followed() {
        let mut seen = Seen::default();
        let flow = ends((CURL, 20_001), (WEB_FAR, 80));
        seen.marked("k8s-ctr:eth1", true, flow, 63, SYN, 1);
        assert!(journey(&seen.list()).is_none());
    }
}
