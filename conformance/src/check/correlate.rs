//! The second pass, only when there are conversations to look into: finds the packets of a pod whose address was replaced
//! on the way.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use super::CheckError;
use super::classify::{Classifier, Party};
use super::conversation::{Conversations, End, Fingerprint, Key};
use super::evidence::Evidence;
use super::result::Message;
use super::scan::PacketRef;
use crate::dissect::{Ipv4, Net, Transport, dissect};
use crate::read::CaptureFile;

/// Two sightings of one packet lie closer together than this; nanoseconds.
const WINDOW: i64 = 5_000_000_000;
/// As above where the packet itself says little.
const NARROW: i64 = 1_000_000_000;
/// Replacements that are kept with their packets.
const MAX_MATCHES: usize = 1024;

/// A pod's address that was replaced.
#[derive(Debug, Clone)]
pub(super) struct Replaced {
    /// The conversation with the replacement.
    pub(super) key: Key,
    /// The pod whose address is missing there.
    pub(super) pod: Ipv4Addr,
    /// The packet with the replacement.
    pub(super) disguised: PacketRef,
    /// The same packet with the pod's address.
    pub(super) original: PacketRef,
}

/// A packet to look for: conversation, who sent it, its place and time, and whether its fingerprint suffices.
type Wanted = (Key, End, PacketRef, Option<i64>, bool);

/// Looks for each conversation's packets among those between pods, and from pods to Services. One match per conversation.
pub(super) fn correlate(
    files: &[CaptureFile],
    classifier: &Classifier,
    conversations: &Conversations,
) -> Result<Vec<Replaced>, CheckError> {
    let mut wanted: HashMap<u64, Vec<Wanted>> = HashMap::new();
    for (key, conversation) in &conversations.found {
        // A pod that opened a conversation chose the other end by itself.
        if conversation.opener == Some(End::Pod) {
            continue;
        }
        for mark in &conversation.marks {
            let entry = (*key, mark.from, mark.packet, mark.timestamp, mark.print.strong);
            wanted.entry(mark.print.hash).or_default().push(entry);
        }
    }
    let mut matches: BTreeMap<Key, Replaced> = BTreeMap::new();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    each_packet(files, |place, packet| {
        let frame = dissect(packet.link, packet.data);
        let Net::Ipv4(ip) = &frame.net else { return true };
        let parties = (classifier.party(ip.source), classifier.party(ip.destination));
        if !matches!(parties, (Party::Pod, Party::Pod | Party::Service) | (Party::Service, Party::Pod)) {
            return true;
        }
        let Some(print) = Fingerprint::of(ip) else { return true };
        for candidate in wanted.get(&print.hash).into_iter().flatten() {
            if matches.len() < MAX_MATCHES
                && let Some(found) = replaced(candidate, ip, parties, place, packet.timestamp)
            {
                matches.entry(found.key).or_insert(found);
            }
        }
        true
    })?;
    Ok(matches.into_values().collect())
}

/// Whether `ip`, a packet between pods or of a pod and a Service, is the wanted packet before its address was replaced.
fn replaced(
    wanted: &Wanted,
    ip: &Ipv4<'_>,
    parties: (Party, Party),
    place: PacketRef,
    timestamp: Option<i64>,
) -> Option<Replaced> {
    let (key, from, packet, when, strong) = *wanted;
    let ports = match ip.transport() {
        Transport::Icmp(icmp) => (icmp.id, icmp.id),
        other => other.ports().unwrap_or_default(),
    };
    // The pod end of the conversation keeps its address in both sightings, unless a Service stood for it.
    let (pod, same_end, same_ports) = match from {
        End::Other => {
            let same_end = ip.destination == key.pod || parties.1 == Party::Service;
            let kept = ports.1 == key.pod_port || parties.1 == Party::Service || key.protocol == 1;
            (ip.source, same_end && kept, ports == (key.other_port, key.pod_port))
        }
        End::Pod => {
            let same_end = ip.source == key.pod || parties.0 == Party::Service;
            let kept = ports.0 == key.pod_port || parties.0 == Party::Service || key.protocol == 1;
            (ip.destination, same_end && kept, ports == (key.pod_port, key.other_port))
        }
    };
    let missing = if from == End::Other { parties.0 } else { parties.1 };
    // A pod that reaches itself through a Service needs its address replaced to see the answer.
    if ip.protocol != key.protocol || !same_end || missing != Party::Pod || pod == key.pod {
        return None;
    }
    let apart = match (when, timestamp) {
        (Some(a), Some(b)) => a.abs_diff(b).cast_signed(),
        _ => 0,
    };
    let close = if strong { apart <= WINDOW } else { apart <= NARROW && (same_ports || key.protocol == 1) };
    close.then_some(Replaced { key, pod, disguised: packet, original: place })
}

/// Calls `visit` with every packet until it answers false.
pub(super) fn each_packet(
    files: &[CaptureFile],
    mut visit: impl FnMut(PacketRef, &crate::read::Packet<'_>) -> bool,
) -> Result<(), CheckError> {
    for (number, file) in files.iter().enumerate() {
        let failed = |source| CheckError::File { path: file.path().to_owned(), source };
        let mut reader = file.reader().map_err(failed)?;
        while let Some(packet) = reader.next_packet().map_err(failed)? {
            if !visit(PacketRef { file: number, frame: packet.number }, &packet) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Reads the packets at `places` again, as evidence with the note that belongs to each.
pub(super) fn resolve(
    files: &[CaptureFile],
    places: &[(PacketRef, Message)],
) -> Result<Vec<Evidence>, CheckError> {
    let notes: BTreeMap<PacketRef, &Message> = places.iter().map(|(place, note)| (*place, note)).collect();
    let mut missing: BTreeSet<PacketRef> = notes.keys().copied().collect();
    let mut found: BTreeMap<PacketRef, Evidence> = BTreeMap::new();
    for (number, file) in files.iter().enumerate() {
        let failed = |source| CheckError::File { path: file.path().to_owned(), source };
        let mut reader = file.reader().map_err(failed)?;
        while missing.iter().any(|place| place.file == number) {
            let Some(packet) = reader.next_packet().map_err(failed)? else { break };
            let place = PacketRef { file: number, frame: packet.number };
            if !missing.remove(&place) {
                continue;
            }
            let interface = &reader.interfaces()[packet.interface];
            let name = interface.name.clone().unwrap_or_else(|| format!("interface {}", packet.interface));
            let note = notes.get(&place).map(|note| (*note).clone());
            found.insert(place, Evidence::of(&file.path().display().to_string(), &name, &packet, note));
        }
    }
    // In the order asked for: the replaced packet beside its original.
    Ok(places.iter().filter_map(|(place, _)| found.remove(place)).collect())
}
