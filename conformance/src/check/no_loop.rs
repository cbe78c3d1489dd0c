//! Expectation `no-loop`: no packet passes the same place twice.
//!
//! A router takes one off the TTL (RFC 791, 3.2) and leaves the rest of a packet as it is, so a packet that comes to a tap
//! again, in the same direction and with a lower TTL, has been sent in a circle. A retransmission comes again too, but with the TTL
//! of the first; a packet that a router sends back out of the device it came in by goes the other way. Where a file does not say
//! which way packets went, the third sighting with a falling TTL is the proof.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::net::Ipv4Addr;

use super::correlate::{each_packet, resolve};
use super::native::Outcome;
use super::result::{CheckResult, Message, Verdict};
use super::scan::{PacketRef, Scan};
use super::soundness::{capture_complete, count, negative};
use super::{CheckError, Context};
use crate::dissect::{Ipv4, Net, dissect};
use crate::read::{CaptureFile, Direction};

/// Packets that are remembered at once; a packet comes round again long before as many others have passed.
const REMEMBERED: usize = 1 << 20;
/// Loops that are kept with their packets.
const MAX_LOOPS: usize = 1024;
/// Sightings of one loop that are kept.
const MAX_SIGHTINGS: usize = 16;

/// Where a packet was seen, and what it was: everything but what a router changes.
type Key = (usize, usize, Option<Direction>, u64);

/// A packet that came again.
#[derive(Debug)]
struct Loop {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    /// The tap and the packet, whichever way it went.
    packet: (usize, usize, u64),
    /// The file says which way the packets went.
    directed: bool,
    sightings: Vec<(PacketRef, u8)>,
}

/// What was seen of each packet, the newest only: two generations, of which the older is forgotten when the younger is full.
struct Memory {
    young: HashMap<Key, (PacketRef, u8)>,
    old: HashMap<Key, (PacketRef, u8)>,
}

impl Memory {
    /// The last sighting before this one.
    fn replace(&mut self, key: Key, place: PacketRef, ttl: u8) -> Option<(PacketRef, u8)> {
        if self.young.len() >= REMEMBERED {
            self.old = std::mem::take(&mut self.young);
        }
        let before = self.young.insert(key, (place, ttl));
        before.or_else(|| self.old.remove(&key))
    }
}

/// Asks whether anything loops.
pub(super) fn judge(scan: &Scan, files: &[CaptureFile], context: &Context) -> Result<Outcome, CheckError> {
    let (seen, loops) = find(files)?;
    Ok(Outcome {
        checks: vec![
            saw_packets(seen, context),
            capture_complete(scan, context),
            no_loop(scan, files, context, seen, &loops)?,
        ],
        notes: Vec::new(),
    })
}

fn find(files: &[CaptureFile]) -> Result<(u64, Vec<Loop>), CheckError> {
    // Seeded anew in each run: nobody can prepare packets that are taken for one another.
    let hasher = RandomState::new();
    let mut memory = Memory { young: HashMap::new(), old: HashMap::new() };
    let mut index: HashMap<Key, usize> = HashMap::new();
    let mut loops: Vec<Loop> = Vec::new();
    let mut seen = 0;
    each_packet(files, |place, packet| {
        let frame = dissect(packet.link, packet.data);
        let Net::Ipv4(ip) = &frame.net else { return true };
        seen += 1;
        let key = (place.file, packet.interface, packet.direction(), print(&hasher, ip));
        let Some((first, before)) = memory.replace(key, place, ip.ttl) else { return true };
        if ip.ttl >= before {
            return true;
        }
        if let Some(found) = index.get(&key).and_then(|at| loops.get_mut(*at)) {
            if found.sightings.len() < MAX_SIGHTINGS {
                found.sightings.push((place, ip.ttl));
            }
        } else if loops.len() < MAX_LOOPS {
            index.insert(key, loops.len());
            let sightings = vec![(first, before), (place, ip.ttl)];
            let (source, destination, directed) = (ip.source, ip.destination, key.2.is_some());
            let packet = (key.0, key.1, key.3);
            loops.push(Loop { source, destination, packet, directed, sightings });
        }
        true
    })?;
    loops.retain(|found| found.sightings.len() >= if found.directed { 2 } else { 3 });
    // On its way out of the device it came in by, a packet is seen twice in each round.
    let mut told = HashSet::new();
    loops.retain(|found| told.insert(found.packet));
    Ok((seen, loops))
}

/// Everything of a packet that a router leaves as it is.
fn print(hasher: &RandomState, ip: &Ipv4<'_>) -> u64 {
    let more = (ip.more_fragments, ip.fragment_offset, ip.total_len);
    hasher.hash_one((ip.source, ip.destination, ip.protocol, ip.id, more, ip.payload))
}

fn saw_packets(seen: u64, context: &Context) -> CheckResult {
    let (verdict, why) = if seen > 0 {
        (Verdict::Held, Message::new("why-saw-packets").with("count", seen))
    } else {
        (Verdict::Failed, Message::new("why-no-packets"))
    };
    let counts = vec![count("n-ipv4", seen)];
    CheckResult::new(("saw-packets", "q-saw-packets"), verdict, vec![why], counts, Vec::new(), context)
}

fn no_loop(
    scan: &Scan,
    files: &[CaptureFile],
    context: &Context,
    seen: u64,
    loops: &[Loop],
) -> Result<CheckResult, CheckError> {
    let (verdict, explanation) = if !loops.is_empty() {
        let all = Message::new("why-loops").with("count", loops.len());
        (Verdict::Failed, std::iter::once(all).chain(loops.iter().take(4).map(example)).collect())
    } else if seen == 0 {
        (Verdict::Inconclusive, vec![Message::new("why-no-packets")])
    } else {
        negative(scan, seen, Message::new("why-no-loop").with("count", seen))
    };
    let places: Vec<(PacketRef, Message)> = loops
        .iter()
        .flat_map(|found| &found.sightings)
        .take(context.evidence_limit)
        .map(|(place, ttl)| (*place, Message::new("note-ttl").with("ttl", ttl)))
        .collect();
    let counts = vec![count("n-ipv4", seen), count("n-loops", loops.len() as u64)];
    let evidence = resolve(files, &places)?;
    Ok(CheckResult::new(("no-loop", "q-no-loop"), verdict, explanation, counts, evidence, context))
}

fn example(found: &Loop) -> Message {
    let ttls: Vec<String> = found.sightings.iter().map(|(_, ttl)| ttl.to_string()).collect();
    Message::new("why-loop-example")
        .with("source", found.source)
        .with("destination", found.destination)
        .with("ttls", ttls.join(", "))
}

#[cfg(test)]
mod tests {
    use crate::check::{Context, Expectation, Verdict, run};
    use crate::testing::{Build, pcap_of, pcapng};

    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 2);
    const B: Ipv4Addr = Ipv4Addr::new(172, 20, 9, 9);

    /// A packet with a TTL; `sequence` tells packets apart.
    fn packet(ttl: u8, sequence: u16) -> Vec<u8> {
        let mut frame = Build::echo((A, B), true, 7, sequence, b"0123456789abcdef").frame();
        frame[14 + 8] = ttl;
        frame
    }

    fn verdict(bytes: &[u8]) -> (Verdict, crate::check::Report) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.pcapng");
        std::fs::write(&path, bytes).unwrap();
        let report = run(&[path], Expectation::NoLoop, &Context::default()).unwrap();
        let found = report.checks.iter().find(|check| check.id == "no-loop").unwrap().verdict;
        (found, report)
    }

    #[test]
    fn a_packet_that_comes_round_again_is_a_loop() {
        let frames = [(0, packet(63, 1)), (1, packet(62, 1)), (0, packet(61, 1)), (0, packet(59, 1))];
        let (found, report) = verdict(&pcapng(&["r:eth1", "n:eth1"], &frames, 0));
        assert_eq!(found, Verdict::Failed);
        let check = report.checks.iter().find(|check| check.id == "no-loop").unwrap();
        assert_eq!(check.evidence.len(), 3, "each sighting at the one tap");
        let example = check.explanation.iter().find(|m| m.key == "why-loop-example").unwrap();
        assert!(example.args.contains(&("ttls", "63, 61, 59".to_owned())), "{example:?}");
        assert_eq!(report.exit_code(), 1);
    }

    #[test]
    fn what_only_looks_like_a_loop_is_none() {
        // The same packet at two taps, a retransmission, another packet with a lower TTL.
        let frames = [(0, packet(63, 1)), (1, packet(62, 1)), (0, packet(63, 1)), (0, packet(60, 2))];
        let (found, report) = verdict(&pcapng(&["r:eth1", "n:eth1"], &frames, 0));
        assert_eq!((found, report.exit_code()), (Verdict::Held, 0));
    }

    #[test]
    fn without_directions_the_third_sighting_decides() {
        let of = |ttls: &[u8]| {
            let frames: Vec<Vec<u8>> = ttls.iter().map(|ttl| packet(*ttl, 1)).collect();
            let slices: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            verdict(&pcap_of(&slices)).0
        };
        assert_eq!(of(&[63, 62]), Verdict::Held, "in and out of one device");
        assert_eq!(of(&[63, 62, 61]), Verdict::Failed);
    }

    #[test]
    fn nothing_seen_or_something_lost_proves_nothing() {
        assert_eq!(verdict(&pcapng(&["r:eth1"], &[], 0)).0, Verdict::Inconclusive);
        assert_eq!(verdict(&pcapng(&["r:eth1"], &[(0, packet(63, 1))], 3)).0, Verdict::Inconclusive);
        let frames = [(0, packet(63, 1)), (0, packet(61, 1))];
        assert_eq!(verdict(&pcapng(&["r:eth1"], &frames, 3)).0, Verdict::Failed, "what was seen was seen");
    }
}
