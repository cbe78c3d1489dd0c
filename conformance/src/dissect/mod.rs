//! A zero-copy dissector for what a container network puts on its wires.
//!
//! Layers are read when they are asked for: [`dissect`] finds the network header, [`Ipv4::transport`] the one
//! inside it, [`tunnel`] a packet carried in the packet. A packet that was cut short yields as much as is there and
//! says [`Net::Truncated`] or [`Transport::Truncated`] where it ends; a header that contradicts itself is
//! `Malformed` with the reason. Nothing here panics on any input.

mod ip;
mod summary;
mod transport;
mod tunnel;

use std::net::Ipv4Addr;

pub use ip::{Ipv4, Ipv6};
pub use summary::{Summary, summarise};
pub use transport::{Icmp, Tcp, TcpFlags, Transport, Udp};
pub use tunnel::{Encapsulation, Tunnel, tunnel};

use crate::link::LinkType;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// EtherType of Ethernet inside another protocol (GRE, Geneve).
const ETHERTYPE_TRANSPARENT: u16 = 0x6558;

/// A packet down to its network header.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// Ethernet addresses, where the link has them.
    pub ethernet: Option<Ethernet>,
    /// VLAN identifiers, outermost first; `None` where there is no tag.
    pub vlans: [Option<u16>; 2],
    /// The network layer.
    pub net: Net<'a>,
}

/// Ethernet addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ethernet {
    /// Destination address.
    pub destination: [u8; 6],
    /// Source address.
    pub source: [u8; 6],
}

/// The network layer of a frame.
#[derive(Debug, Clone, Copy)]
pub enum Net<'a> {
    /// IPv4.
    Ipv4(Ipv4<'a>),
    /// IPv6.
    Ipv6(Ipv6<'a>),
    /// ARP for IPv4.
    Arp(Arp),
    /// Another EtherType (or 802.3 length).
    Other(u16),
    /// The captured bytes end before the network header does.
    Truncated,
    /// A header that contradicts itself, and how.
    Malformed(&'static str),
    /// The link type is not dissected here.
    UnsupportedLink,
}

/// An ARP packet for IPv4 over Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// 1 request, 2 reply.
    pub operation: u16,
    /// Who asks or answers.
    pub sender_mac: [u8; 6],
    /// Address of the sender.
    pub sender: Ipv4Addr,
    /// Address that is asked for, or of the one who asked.
    pub target: Ipv4Addr,
}

/// Dissects a captured packet.
#[inline]
pub fn dissect(link: LinkType, data: &[u8]) -> Frame<'_> {
    match link {
        LinkType::Ethernet => ethernet(data),
        LinkType::Raw | LinkType::Ipv4 | LinkType::Ipv6 => bare(by_version(data)),
        LinkType::LinuxSll => bare(match read_u16(data, 14) {
            Some(ethertype) => network(ethertype, data.get(16..).unwrap_or_default()),
            None => Net::Truncated,
        }),
        LinkType::LinuxSll2 => bare(match read_u16(data, 0) {
            Some(ethertype) if data.len() >= 20 => network(ethertype, &data[20..]),
            _ => Net::Truncated,
        }),
        // The family's number differs between systems; the packet's version nibble tells the same.
        LinkType::Null | LinkType::Loop => bare(by_version(data.get(4..).unwrap_or_default())),
        LinkType::Other(_) => bare(Net::UnsupportedLink),
    }
}

fn bare(net: Net<'_>) -> Frame<'_> {
    Frame { ethernet: None, vlans: [None; 2], net }
}

#[inline]
fn ethernet(data: &[u8]) -> Frame<'_> {
    let Some(head) = data.first_chunk::<14>() else { return bare(Net::Truncated) };
    let (mut destination, mut source) = ([0; 6], [0; 6]);
    destination.copy_from_slice(&head[..6]);
    source.copy_from_slice(&head[6..12]);
    let mut frame =
        Frame { ethernet: Some(Ethernet { destination, source }), vlans: [None; 2], net: Net::Truncated };
    let mut ethertype = u16::from_be_bytes([head[12], head[13]]);
    let mut rest = &data[14..];
    for vlan in &mut frame.vlans {
        if !matches!(ethertype, 0x8100 | 0x88a8 | 0x9100) {
            break;
        }
        let (Some(tag), Some(next)) = (read_u16(rest, 0), read_u16(rest, 2)) else { return frame };
        *vlan = Some(tag & 0x0fff);
        ethertype = next;
        rest = &rest[4..];
    }
    frame.net = network(ethertype, rest);
    frame
}

#[inline]
fn network(ethertype: u16, data: &[u8]) -> Net<'_> {
    match ethertype {
        ETHERTYPE_IPV4 => ip::ipv4(data),
        ETHERTYPE_IPV6 => ip::ipv6(data),
        ETHERTYPE_ARP => arp(data),
        other => Net::Other(other),
    }
}

fn by_version(data: &[u8]) -> Net<'_> {
    match data.first().map(|byte| byte >> 4) {
        None => Net::Truncated,
        Some(4) => ip::ipv4(data),
        Some(6) => ip::ipv6(data),
        Some(_) => Net::Malformed("neither IPv4 nor IPv6"),
    }
}

fn arp(data: &[u8]) -> Net<'_> {
    let Some(head) = data.first_chunk::<28>() else { return Net::Truncated };
    // Ethernet (1), IPv4, address lengths 6 and 4: anything else is not ours to read.
    if head[..6] != [0, 1, 8, 0, 6, 4] {
        return Net::Malformed("ARP that is not for IPv4 over Ethernet");
    }
    let mut sender_mac = [0; 6];
    sender_mac.copy_from_slice(&head[8..14]);
    Net::Arp(Arp {
        operation: u16::from_be_bytes([head[6], head[7]]),
        sender_mac,
        sender: Ipv4Addr::new(head[14], head[15], head[16], head[17]),
        target: Ipv4Addr::new(head[24], head[25], head[26], head[27]),
    })
}

#[inline]
fn read_u16(data: &[u8], at: usize) -> Option<u16> {
    data.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
}

#[inline]
fn read_u32(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..at + 4).map(|bytes| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

#[cfg(test)]
mod tests;
