//! One line a packet, in the columns that Wireshark's users know.

use std::fmt::Write as _;

use super::transport::{Icmp, Tcp, TcpFlags, Transport};
use super::{Frame, Net, tunnel};

/// Encapsulations followed inside each other before giving up.
const MAX_DEPTH: usize = 4;

/// A packet in a packet list.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Summary {
    /// Where it comes from, outermost address.
    pub source: String,
    /// Where it goes, outermost address.
    pub destination: String,
    /// Innermost protocol.
    pub protocol: String,
    /// The rest in words.
    pub info: String,
}

/// Describes a packet.
pub fn summarise(frame: &Frame<'_>) -> Summary {
    summarise_net(frame, MAX_DEPTH)
}

fn summarise_net(frame: &Frame<'_>, depth: usize) -> Summary {
    let mut summary = match &frame.net {
        Net::Ipv4(ip) => {
            let (protocol, mut info) = describe(&ip.transport(), ip.payload_len());
            if ip.fragment_offset > 0 || ip.more_fragments {
                let _ = write!(info, " fragment at {} id {:#06x}", ip.fragment_offset, ip.id);
            }
            let _ = write!(info, " ttl {}", ip.ttl);
            Summary { source: ip.source.to_string(), destination: ip.destination.to_string(), protocol, info }
        }
        Net::Ipv6(ip) => {
            let (protocol, info) = describe(&ip.transport(), ip.payload.len());
            Summary { source: ip.source.to_string(), destination: ip.destination.to_string(), protocol, info }
        }
        Net::Arp(arp) => Summary {
            source: arp.sender.to_string(),
            destination: arp.target.to_string(),
            protocol: "ARP".into(),
            info: match arp.operation {
                1 => format!("who has {}? tell {}", arp.target, arp.sender),
                2 => format!("{} is at {}", arp.sender, mac(arp.sender_mac)),
                other => format!("operation {other}"),
            },
        },
        Net::Other(ethertype) => link_level(frame, format!("EtherType {ethertype:#06x}")),
        Net::Truncated => link_level(frame, "cut before the network header ends".into()),
        Net::Malformed(why) => link_level(frame, format!("malformed: {why}")),
        Net::UnsupportedLink => link_level(frame, "link type is not dissected".into()),
    };
    if let Some(carried) = tunnel(&frame.net) {
        match carried.inner {
            Some(inner) if depth > 0 => {
                let inner = summarise_net(&inner, depth - 1);
                let Summary { source, destination, protocol, info } = inner;
                summary.info = format!("{}: {source} → {destination} {info}", carried.encapsulation);
                summary.protocol = protocol;
            }
            _ => {
                summary.protocol = carried.encapsulation.to_string();
            }
        }
    }
    for vlan in frame.vlans.iter().flatten() {
        let _ = write!(summary.info, " vlan {vlan}");
    }
    summary
}

fn link_level(frame: &Frame<'_>, info: String) -> Summary {
    let address = |which: fn(&super::Ethernet) -> [u8; 6]| {
        frame.ethernet.as_ref().map(|found| mac(which(found))).unwrap_or_default()
    };
    Summary {
        source: address(|e| e.source),
        destination: address(|e| e.destination),
        protocol: "Ethernet".into(),
        info,
    }
}

fn mac(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

fn describe(transport: &Transport<'_>, len: usize) -> (String, String) {
    match transport {
        Transport::Tcp(tcp) => ("TCP".into(), describe_tcp(tcp)),
        Transport::Udp(udp) => {
            let data = usize::from(udp.len).checked_sub(8).unwrap_or(udp.payload.len());
            ("UDP".into(), format!("{} → {} len {data}", udp.source, udp.destination))
        }
        Transport::Icmp(icmp) => ("ICMP".into(), describe_icmp(icmp)),
        Transport::Icmpv6 { kind } => ("ICMPv6".into(), format!("type {kind}")),
        Transport::Fragment { protocol } => (protocol_name(*protocol), "later part of a packet,".into()),
        Transport::Other(protocol) => (protocol_name(*protocol), format!("len {len}")),
        Transport::Truncated { protocol } => (protocol_name(*protocol), "cut before its header ends".into()),
        Transport::Malformed(why) => ("IP".into(), format!("malformed: {why}")),
    }
}

fn describe_tcp(tcp: &Tcp<'_>) -> String {
    let names = [
        (TcpFlags::SYN, "SYN"),
        (TcpFlags::FIN, "FIN"),
        (TcpFlags::RST, "RST"),
        (TcpFlags::PSH, "PSH"),
        (TcpFlags::ACK, "ACK"),
    ];
    let set: Vec<&str> = names.iter().filter(|(bit, _)| tcp.flags.has(*bit)).map(|(_, name)| *name).collect();
    let mut line = format!("{} → {} [{}] seq {}", tcp.source, tcp.destination, set.join(", "), tcp.sequence);
    if tcp.flags.has(TcpFlags::ACK) {
        let _ = write!(line, " ack {}", tcp.acknowledgment);
    }
    let _ = write!(line, " win {} len {}", tcp.window, tcp.payload.len());
    line
}

fn describe_icmp(icmp: &Icmp<'_>) -> String {
    let mut line = match icmp.kind {
        0 => format!("echo reply id {} seq {}", icmp.id, icmp.sequence),
        8 => format!("echo request id {} seq {}", icmp.id, icmp.sequence),
        3 if icmp.code == 4 => format!("fragmentation needed, MTU {}", icmp.sequence),
        3 => format!("unreachable (code {})", icmp.code),
        5 => "redirect".into(),
        11 => "time exceeded".into(),
        other => format!("type {other} code {}", icmp.code),
    };
    if let Some(Net::Ipv4(about)) = icmp.quoted() {
        let _ = write!(line, " about {} → {}", about.source, about.destination);
    }
    line
}

fn protocol_name(protocol: u8) -> String {
    match protocol {
        1 => "ICMP".into(),
        2 => "IGMP".into(),
        4 => "IPIP".into(),
        6 => "TCP".into(),
        17 => "UDP".into(),
        41 => "IPv6".into(),
        47 => "GRE".into(),
        50 => "ESP".into(),
        58 => "ICMPv6".into(),
        89 => "OSPF".into(),
        132 => "SCTP".into(),
        other => format!("protocol {other}"),
    }
}
