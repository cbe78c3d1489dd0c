//! The first pass over the captures: counts, flows between pods, encapsulated packets, conversations to look into.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use super::classify::{Classifier, Party};
use super::conversation::Conversations;
use super::evidence::{Evidence, rfc3339};
use super::result::{FileReport, InterfaceReport, Message};
use super::wrapped::{Wrapped, Wrapping};
use super::{CheckError, Context, FlowHint, Role};
use crate::dissect::{Encapsulation, Frame, Ipv4, Net, Transport, dissect, tunnel};
use crate::read::{CaptureFile, Packet, Reader};

/// Pairs of pods counted one by one; packets of more pairs still count in the totals.
const MAX_PAIRS: usize = 4096;
/// Slots of the cache in front of the address classification. A power of two.
const CACHE: usize = 4096;
/// Encapsulations inside each other that are followed.
const MAX_DEPTH: usize = 4;
/// Encapsulations told apart in the report.
const MAX_KINDS: usize = 64;

/// A packet's place: file index and frame number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PacketRef {
    pub(super) file: usize,
    pub(super) frame: u64,
}

/// Packets from one pod to another.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    pub(super) source: Ipv4Addr,
    pub(super) destination: Ipv4Addr,
    pub(super) packets: u64,
    pub(super) wire_packets: u64,
    pub(super) bytes: u64,
    pub(super) tcp: u64,
    pub(super) udp: u64,
    pub(super) icmp: u64,
    /// Least and greatest TTL, at every tap.
    pub(super) ttl: (u8, u8),
    /// The same on wires: a router between shows here, the step from the pod to its node does not.
    pub(super) wire_ttl: (u8, u8),
    /// Both addresses belong to one node's pods.
    same_node: bool,
}

/// A count with the first packets that made it.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) count: u64,
    pub(super) evidence: Vec<Evidence>,
}

/// What the first pass found.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) classifier: Classifier,
    pub(super) files: Vec<FileReport>,
    pub(super) pairs: Vec<Pair>,
    pub(super) pairs_overflow: bool,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    /// Plain packets between pods, everywhere and on wires.
    pub(super) between_pods: u64,
    pub(super) on_wire: Found,
    /// Packets whose inner packet has a pod's address.
    pub(super) encapsulated: Found,
    pub(super) encapsulations: Vec<(Encapsulation, u64)>,
    /// The same by addresses and kind, on wires.
    pub(super) wrapped: Wrapped,
    /// Encrypted packets between nodes, in which pods' packets may hide.
    pub(super) opaque: Found,
    /// Packets between two pods of the same node, on a known wire.
    pub(super) same_node_on_wire: Found,
    /// Packets of which too little was captured to read their addresses.
    pub(super) unread: Found,
    /// Shorter in the file than on the wire, whether or not that hid anything.
    pub(super) shortened: u64,
    pub(super) conversations: Conversations,
    /// Packets of each named flow, both ways, on wires.
    pub(super) hinted: Vec<u64>,
    /// The same inside others.
    pub(super) hinted_inside: Vec<u64>,
}

impl Scan {
    /// Packets that were lost, by the files' own account.
    pub(super) fn dropped(&self) -> u64 {
        self.files.iter().flat_map(|file| &file.interfaces).filter_map(|interface| interface.dropped).sum()
    }

    /// A tap at the pods of `node` that saw packets.
    pub(super) fn tapped_pods_of(&self, node: &str) -> bool {
        let at_node = |name: &str| name.split([':', '/']).next() == Some(node);
        self.files
            .iter()
            .flat_map(|file| &file.interfaces)
            .any(|interface| interface.role == Role::Pod && interface.packets > 0 && at_node(&interface.name))
    }
}

/// Runs the first pass.
pub(super) fn scan(files: &[CaptureFile], context: &Context) -> Result<Scan, CheckError> {
    let scan = Scan {
        classifier: Classifier::new(context),
        files: Vec::new(),
        pairs: Vec::new(),
        pairs_overflow: false,
        packets: 0,
        bytes: 0,
        between_pods: 0,
        on_wire: Found::default(),
        encapsulated: Found::default(),
        encapsulations: Vec::new(),
        wrapped: Wrapped::default(),
        opaque: Found::default(),
        same_node_on_wire: Found::default(),
        unread: Found::default(),
        shortened: 0,
        conversations: Conversations::default(),
        hinted: vec![0; context.flows.len()],
        hinted_inside: vec![0; context.flows.len()],
    };
    let cache = vec![Slot { source: 0, destination: 0, kind: Kind::Empty }; CACHE];
    let mut scanner = Scanner { scan, context, cache, index: HashMap::new(), place: Place::default() };
    for (number, file) in files.iter().enumerate() {
        scanner.file(number, file)?;
    }
    Ok(scanner.scan)
}

/// What a pair of addresses is, remembered per slot.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Empty,
    /// Two pods: index into the pairs, or usize::MAX when the table is full.
    Pods(usize),
    /// One pod, and whether it is the source. Services do not come here.
    OnePod {
        pod_is_source: bool,
    },
    /// A pod and a Service address.
    Service,
    NoPod,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    source: u32,
    destination: u32,
    kind: Kind,
}

/// The file that is being read.
#[derive(Debug, Default)]
struct Place {
    file: usize,
    path: String,
    names: Vec<String>,
    roles: Vec<Role>,
}

struct Scanner<'c> {
    scan: Scan,
    context: &'c Context,
    cache: Vec<Slot>,
    index: HashMap<(Ipv4Addr, Ipv4Addr), usize>,
    place: Place,
}

impl Scanner<'_> {
    fn file(&mut self, number: usize, file: &CaptureFile) -> Result<(), CheckError> {
        let failed = |source| CheckError::File { path: file.path().to_owned(), source };
        let mut reader = file.reader().map_err(failed)?;
        self.place = Place { file: number, path: file.path().display().to_string(), ..Place::default() };
        let (mut first, mut last) = (None, None);
        let before = self.scan.packets;
        while let Some(packet) = reader.next_packet().map_err(failed)? {
            if packet.interface >= self.place.names.len() {
                self.meet_interfaces(&reader);
            }
            if let Some(time) = packet.timestamp {
                first.get_or_insert(time);
                last = Some(time);
            }
            self.packet(&packet);
            if !packet.link.is_supported() {
                let interface = self.place.names[packet.interface].clone();
                return Err(CheckError::UnsupportedLink {
                    path: file.path().to_owned(),
                    interface,
                    link: packet.link,
                });
            }
        }
        self.meet_interfaces(&reader);
        let interfaces = reader.interfaces().iter().zip(&self.place.names).zip(&self.place.roles).map(
            |((interface, name), role)| InterfaceReport {
                name: name.clone(),
                description: interface.description.clone(),
                link: interface.link.to_string(),
                role: *role,
                packets: interface.packets,
                received: interface.received,
                dropped: interface.dropped,
                snaplen: interface.snaplen,
            },
        );
        self.scan.files.push(FileReport {
            path: self.place.path.clone(),
            format: reader.format(),
            bytes: file.bytes().len() as u64,
            packets: self.scan.packets - before,
            first: first.and_then(rfc3339),
            last: last.and_then(rfc3339),
            truncated_at: reader.truncated_at(),
            interfaces: interfaces.collect(),
        });
        Ok(())
    }

    fn meet_interfaces(&mut self, reader: &Reader<'_>) {
        for (number, interface) in reader.interfaces().iter().enumerate().skip(self.place.names.len()) {
            self.place.roles.push(self.context.role(interface.name.as_deref()));
            self.place.names.push(interface.name.clone().unwrap_or_else(|| format!("interface {number}")));
        }
    }

    #[inline]
    fn packet(&mut self, packet: &Packet<'_>) {
        self.scan.packets += 1;
        self.scan.bytes += u64::from(packet.original_len);
        self.scan.shortened += u64::from((packet.data.len() as u32) < packet.original_len);
        let frame = dissect(packet.link, packet.data);
        match &frame.net {
            Net::Ipv4(ip) => self.ipv4(packet, &frame, ip),
            Net::Ipv6(_) => self.carried(packet, &frame),
            Net::Truncated => self.note_unread(packet),
            _ => {}
        }
    }

    #[inline]
    fn ipv4(&mut self, packet: &Packet<'_>, frame: &Frame<'_>, ip: &Ipv4<'_>) {
        let wire = self.place.roles[packet.interface] != Role::Pod;
        match self.kind(ip.source, ip.destination) {
            Kind::Pods(index) => self.between_pods(packet, ip, index, wire),
            Kind::OnePod { pod_is_source } => {
                if matches!(ip.transport(), Transport::Truncated { .. }) {
                    self.note_unread(packet);
                    return;
                }
                let place = PacketRef { file: self.place.file, frame: packet.number };
                self.scan.conversations.add(ip, pod_is_source, wire, place, packet.timestamp);
            }
            Kind::NoPod => {
                // Only these protocols carry packets.
                if matches!(ip.protocol, 4 | 17 | 41 | 47 | 50) {
                    self.carried(packet, frame);
                }
            }
            Kind::Service | Kind::Empty => {}
        }
    }

    #[inline]
    fn kind(&mut self, source: Ipv4Addr, destination: Ipv4Addr) -> Kind {
        let (source_bits, destination_bits) = (source.to_bits(), destination.to_bits());
        // Multiplying by an odd constant spreads neighbouring addresses over the upper bits.
        let mixed =
            (u64::from(source_bits) << 32 | u64::from(destination_bits)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let slot = (mixed >> 52) as usize % CACHE;
        let known = self.cache[slot];
        if known.source == source_bits
            && known.destination == destination_bits
            && !matches!(known.kind, Kind::Empty)
        {
            return known.kind;
        }
        let kind = self.classify(source, destination);
        self.cache[slot] = Slot { source: source_bits, destination: destination_bits, kind };
        kind
    }

    fn classify(&mut self, source: Ipv4Addr, destination: Ipv4Addr) -> Kind {
        match (self.scan.classifier.party(source), self.scan.classifier.party(destination)) {
            (Party::Pod, Party::Pod) => Kind::Pods(self.pair(source, destination)),
            (Party::Pod, Party::Service) | (Party::Service, Party::Pod) => Kind::Service,
            // Multicast and broadcast are nobody's address in a pod's place.
            (Party::Pod, Party::Other) if destination.is_multicast() || destination.is_broadcast() => {
                Kind::NoPod
            }
            (Party::Pod, _) => Kind::OnePod { pod_is_source: true },
            (_, Party::Pod) => Kind::OnePod { pod_is_source: false },
            _ => Kind::NoPod,
        }
    }

    fn pair(&mut self, source: Ipv4Addr, destination: Ipv4Addr) -> usize {
        if let Some(index) = self.index.get(&(source, destination)) {
            return *index;
        }
        if self.scan.pairs.len() >= MAX_PAIRS {
            self.scan.pairs_overflow = true;
            return usize::MAX;
        }
        let home = |address| self.context.home_of(address);
        let same_node = source != destination && home(source).is_some() && home(source) == home(destination);
        self.scan.pairs.push(Pair {
            source,
            destination,
            packets: 0,
            wire_packets: 0,
            bytes: 0,
            tcp: 0,
            udp: 0,
            icmp: 0,
            ttl: (u8::MAX, 0),
            wire_ttl: (u8::MAX, 0),
            same_node,
        });
        self.index.insert((source, destination), self.scan.pairs.len() - 1);
        self.scan.pairs.len() - 1
    }

    #[inline]
    fn between_pods(&mut self, packet: &Packet<'_>, ip: &Ipv4<'_>, index: usize, wire: bool) {
        self.scan.between_pods += 1;
        let mut first_of_pair = false;
        let mut same_node = false;
        if let Some(pair) = self.scan.pairs.get_mut(index) {
            first_of_pair = wire && pair.wire_packets == 0;
            same_node = pair.same_node;
            pair.packets += 1;
            pair.wire_packets += u64::from(wire);
            pair.bytes += u64::from(packet.original_len);
            pair.ttl = (pair.ttl.0.min(ip.ttl), pair.ttl.1.max(ip.ttl));
            if wire {
                pair.wire_ttl = (pair.wire_ttl.0.min(ip.ttl), pair.wire_ttl.1.max(ip.ttl));
            }
            match ip.protocol {
                6 => pair.tcp += 1,
                17 => pair.udp += 1,
                1 => pair.icmp += 1,
                _ => {}
            }
        }
        if !wire {
            return;
        }
        self.scan.on_wire.count += 1;
        // The first packet of every pair shows more than the first packets of one.
        if first_of_pair && self.scan.on_wire.evidence.len() < self.context.evidence_limit {
            let evidence = self.evidence(packet, None);
            self.scan.on_wire.evidence.push(evidence);
        }
        if same_node && self.place.roles[packet.interface] == Role::Wire {
            self.note(packet, Some(Message::new("note-same-node")), |scan| &mut scan.same_node_on_wire);
        }
        count_hints(&self.context.flows, ip, &mut self.scan.hinted);
    }

    /// Looks for a pod's packet inside `frame`.
    fn carried(&mut self, packet: &Packet<'_>, frame: &Frame<'_>) {
        let mut net = frame.net;
        let mut outermost = None;
        for _ in 0..MAX_DEPTH {
            let Some(found) = tunnel(&net) else { return };
            let encapsulation = *outermost.get_or_insert(found.encapsulation);
            if found.encapsulation.is_opaque() {
                if self.between_nodes(frame) {
                    self.note(packet, Some(Message::new("note-opaque")), |scan| &mut scan.opaque);
                }
                return;
            }
            let Some(inner) = found.inner else { return };
            match &inner.net {
                Net::Ipv4(ip) => {
                    let party = |address| self.scan.classifier.party(address);
                    if party(ip.source) == Party::Pod || party(ip.destination) == Party::Pod {
                        self.note_encapsulated(packet, frame, encapsulation, ip);
                        return;
                    }
                }
                Net::Truncated => return self.note_unread(packet),
                _ => {}
            }
            net = inner.net;
        }
    }

    fn between_nodes(&self, frame: &Frame<'_>) -> bool {
        match &frame.net {
            Net::Ipv4(ip) if self.scan.classifier.knows_nodes() => [ip.source, ip.destination]
                .into_iter()
                .all(|address| self.scan.classifier.party(address) == Party::Node),
            _ => true,
        }
    }

    fn note_encapsulated(
        &mut self,
        packet: &Packet<'_>,
        frame: &Frame<'_>,
        encapsulation: Encapsulation,
        inner: &Ipv4<'_>,
    ) {
        if self.place.roles[packet.interface] != Role::Pod {
            let outer = match &frame.net {
                Net::Ipv4(ip) => Some((ip.source, ip.destination)),
                _ => None,
            };
            let wrapping = Wrapping { outer, encapsulation, inner: (inner.source, inner.destination) };
            let place = PacketRef { file: self.place.file, frame: packet.number };
            self.scan.wrapped.add(wrapping, inner.ttl, place);
            count_hints(&self.context.flows, inner, &mut self.scan.hinted_inside);
        }
        let kinds = &mut self.scan.encapsulations;
        match kinds.iter().position(|(known, _)| *known == encapsulation) {
            Some(index) => kinds[index].1 += 1,
            // Hostile identifiers must not grow the list; the total counts them all.
            None if kinds.len() < MAX_KINDS => kinds.push((encapsulation, 1)),
            None => {}
        }
        let note = Message::new("note-encapsulated")
            .with("how", encapsulation)
            .with("source", inner.source)
            .with("destination", inner.destination);
        self.note(packet, Some(note), |scan| &mut scan.encapsulated);
    }

    fn note_unread(&mut self, packet: &Packet<'_>) {
        self.note(packet, Some(Message::new("note-unread")), |scan| &mut scan.unread);
    }

    fn note(&mut self, packet: &Packet<'_>, note: Option<Message>, which: impl Fn(&mut Scan) -> &mut Found) {
        let limit = self.context.evidence_limit;
        let found = which(&mut self.scan);
        found.count += 1;
        if found.evidence.len() < limit {
            let evidence = self.evidence(packet, note);
            which(&mut self.scan).evidence.push(evidence);
        }
    }

    fn evidence(&self, packet: &Packet<'_>, note: Option<Message>) -> Evidence {
        Evidence::of(&self.place.path, &self.place.names[packet.interface], packet, note)
    }
}

/// Counts the packet in the slot of each flow that it belongs to.
fn count_hints(flows: &[FlowHint], ip: &Ipv4<'_>, counts: &mut [u64]) {
    if flows.is_empty() {
        return;
    }
    let ports = ip.transport().ports();
    for (hint, count) in flows.iter().zip(counts) {
        let there = (ip.source, ip.destination) == (hint.source, hint.destination);
        let back = (ip.destination, ip.source) == (hint.source, hint.destination);
        let port = hint.port.is_none_or(|port| {
            ports
                .is_some_and(|(source, destination)| if there { destination == port } else { source == port })
        });
        *count += u64::from((there || back) && port);
    }
}
