//! Packets with a pod at one end and no pod at the other, gathered by conversation, and what tells one packet from every
//! other after its addresses were rewritten.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::net::Ipv4Addr;

use super::scan::PacketRef;
use crate::dissect::{Ipv4, TcpFlags, Transport};

/// Conversations remembered; one more is only counted, and the negative verdicts become inconclusive.
const MAX_CONVERSATIONS: usize = 65_536;
/// Packets remembered of a conversation, per direction.
const MAX_MARKS: usize = 6;

/// Who talks with which pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) pod: Ipv4Addr,
    pub(super) other: Ipv4Addr,
    pub(super) protocol: u8,
    /// Ports at the two ends; of ICMP the identifier at both.
    pub(super) pod_port: u16,
    pub(super) other_port: u16,
}

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Pod,
    Other,
}

/// A remembered packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    pub(super) print: Fingerprint,
    pub(super) from: End,
    pub(super) packet: PacketRef,
    pub(super) timestamp: Option<i64>,
}

/// What is known of a conversation.
#[derive(Debug, Clone)]
pub(super) struct Conversation {
    /// Who opened it; `None` for a TCP connection whose opening was not captured.
    pub(super) opener: Option<End>,
    pub(super) packets: u64,
    /// Packets on a wire, or where that is not known.
    pub(super) wire_packets: u64,
    pub(super) first: PacketRef,
    pub(super) marks: Vec<Mark>,
}

/// All conversations.
#[derive(Debug, Default)]
pub(super) struct Conversations {
    pub(super) found: HashMap<Key, Conversation>,
    pub(super) overflow: bool,
}

impl Conversations {
    /// Adds a packet whose pod end is `pod_end` (source or destination). Errors about other packets are not conversations.
    pub(super) fn add(
        &mut self,
        ip: &Ipv4<'_>,
        pod_is_source: bool,
        on_wire: bool,
        packet: PacketRef,
        timestamp: Option<i64>,
    ) {
        let transport = ip.transport();
        let (source_port, destination_port) = match transport {
            Transport::Tcp(tcp) => (tcp.source, tcp.destination),
            Transport::Udp(udp) => (udp.source, udp.destination),
            Transport::Icmp(icmp) if icmp.is_error() => return,
            Transport::Icmp(icmp) => (icmp.id, icmp.id),
            // A later fragment belongs to the conversation of its first one.
            Transport::Fragment { .. } => return,
            _ => (0, 0),
        };
        let from = if pod_is_source { End::Pod } else { End::Other };
        let key = if pod_is_source {
            Key {
                pod: ip.source,
                other: ip.destination,
                protocol: ip.protocol,
                pod_port: source_port,
                other_port: destination_port,
            }
        } else {
            Key {
                pod: ip.destination,
                other: ip.source,
                protocol: ip.protocol,
                pod_port: destination_port,
                other_port: source_port,
            }
        };
        let room = self.found.len() < MAX_CONVERSATIONS;
        let conversation = match self.found.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) if room => {
                let opener = if matches!(transport, Transport::Tcp(_)) { None } else { Some(from) };
                entry.insert(Conversation {
                    opener,
                    packets: 0,
                    wire_packets: 0,
                    first: packet,
                    marks: Vec::new(),
                })
            }
            Entry::Vacant(_) => {
                self.overflow = true;
                return;
            }
        };
        conversation.packets += 1;
        conversation.wire_packets += u64::from(on_wire);
        conversation.learn_opener(&transport, from);
        if conversation.marks.iter().filter(|mark| mark.from == from).count() < MAX_MARKS
            && let Some(print) = Fingerprint::of(ip)
        {
            conversation.marks.push(Mark { print, from, packet, timestamp });
        }
    }
}

impl Conversation {
    fn learn_opener(&mut self, transport: &Transport<'_>, from: End) {
        let opposite = if from == End::Pod { End::Other } else { End::Pod };
        match transport {
            Transport::Tcp(tcp) if tcp.flags.opens() => self.opener = Some(from),
            Transport::Tcp(tcp) if tcp.flags.has(TcpFlags::SYN) => self.opener = Some(opposite),
            Transport::Icmp(icmp) if icmp.is_echo() => {
                self.opener = Some(if icmp.is_request() { from } else { opposite });
            }
            _ => {}
        }
    }
}

/// What of a packet survives when its addresses and ports are rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint {
    pub(super) hash: u64,
    /// Enough of it is random that two packets do not share it by chance.
    pub(super) strong: bool,
}

impl Fingerprint {
    /// `None` where nothing tells the packet from another one.
    pub(super) fn of(ip: &Ipv4<'_>) -> Option<Self> {
        /// Bytes of a payload that are looked at: a snap length of 128 leaves that much of most packets.
        const SAMPLE: usize = 64;
        let hasher = BuildHasherDefault::<DefaultHasher>::new();
        match ip.transport() {
            // Lengths are left out: segmentation offload cuts one packet into many on its way, the first of which keeps the
            // numbers.
            Transport::Tcp(tcp) => {
                let bare_reset = tcp.flags.has(TcpFlags::RST) && !tcp.flags.has(TcpFlags::ACK);
                if tcp.sequence == 0 || bare_reset {
                    return None;
                }
                let kind = tcp.flags.0 & (TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST);
                let hash = hasher.hash_one((6u8, tcp.sequence, tcp.acknowledgment, kind));
                Some(Self { hash, strong: true })
            }
            Transport::Udp(udp) => {
                let sample = &udp.payload[..udp.payload.len().min(SAMPLE)];
                let hash = hasher.hash_one((17u8, ip.id, udp.len, sample));
                Some(Self { hash, strong: ip.id != 0 && sample.len() >= 8 })
            }
            // The message's identifier plays the part of a port and may be rewritten; that of the packet is not.
            Transport::Icmp(icmp) if icmp.is_echo() => {
                let sample = &icmp.payload[..icmp.payload.len().min(SAMPLE)];
                let hash = hasher.hash_one((1u8, ip.id, icmp.kind, icmp.sequence, ip.payload_len(), sample));
                Some(Self { hash, strong: sample.len() >= 16 })
            }
            _ => None,
        }
    }
}
