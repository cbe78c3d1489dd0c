//! Packets that carry packets: VXLAN (RFC 7348), Geneve (RFC 8926), IPIP (RFC 2003), 6in4 (RFC 4213), GRE (RFC 2784
//! and 2890), and what hides its content: WireGuard, ESP.

use std::fmt;

use super::transport::Transport;
use super::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_TRANSPARENT};
use super::{Frame, Net, bare, ethernet, network, read_u16, read_u32};

/// Linux's VXLAN port, which Cilium and Flannel use, and the registered one.
const VXLAN_PORTS: [u16; 2] = [8472, 4789];
const GENEVE_PORT: u16 = 6081;
/// Cilium's WireGuard port and the usual one.
const WIREGUARD_PORTS: [u16; 2] = [51871, 51820];

/// How a packet is carried in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encapsulation {
    /// VXLAN over UDP.
    Vxlan {
        /// Network identifier.
        vni: u32,
        /// UDP destination port.
        port: u16,
    },
    /// Geneve over UDP.
    Geneve {
        /// Network identifier.
        vni: u32,
    },
    /// IPv4 in IP, protocol 4.
    Ipip,
    /// IPv6 in IP, protocol 41.
    Ipv6InIp,
    /// GRE, protocol 47.
    Gre,
    /// WireGuard, by its port and message format; the content is encrypted.
    WireGuard,
    /// IPsec ESP, protocol 50; the content is encrypted.
    Esp,
}

impl Encapsulation {
    /// The content cannot be read.
    pub fn is_opaque(self) -> bool {
        matches!(self, Self::WireGuard | Self::Esp)
    }
}

impl fmt::Display for Encapsulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vxlan { vni, port } => write!(f, "VXLAN (VNI {vni}, port {port})"),
            Self::Geneve { vni } => write!(f, "Geneve (VNI {vni})"),
            Self::Ipip => f.write_str("IPIP"),
            Self::Ipv6InIp => f.write_str("IPv6-in-IP"),
            Self::Gre => f.write_str("GRE"),
            Self::WireGuard => f.write_str("WireGuard"),
            Self::Esp => f.write_str("ESP"),
        }
    }
}

/// A packet in a packet.
#[derive(Debug, Clone, Copy)]
pub struct Tunnel<'a> {
    /// How it is carried.
    pub encapsulation: Encapsulation,
    /// What is carried; `None` where it is encrypted or not a packet (a keep-alive).
    pub inner: Option<Frame<'a>>,
}

/// What `net` carries, if it is an encapsulation. The inner packet may be one again.
pub fn tunnel<'a>(net: &Net<'a>) -> Option<Tunnel<'a>> {
    let (protocol, payload, transport) = match net {
        Net::Ipv4(ip) if ip.fragment_offset == 0 => (ip.protocol, ip.payload, ip.transport()),
        Net::Ipv6(ip) if !ip.later_fragment => (ip.protocol, ip.payload, ip.transport()),
        _ => return None,
    };
    let carried = |encapsulation, inner| Some(Tunnel { encapsulation, inner });
    match protocol {
        4 => carried(Encapsulation::Ipip, Some(bare(network(ETHERTYPE_IPV4, payload)))),
        41 => carried(Encapsulation::Ipv6InIp, Some(bare(network(ETHERTYPE_IPV6, payload)))),
        47 => gre(payload),
        50 => carried(Encapsulation::Esp, None),
        17 => match transport {
            Transport::Udp(udp) => udp_tunnel(udp.source, udp.destination, udp.payload),
            _ => None,
        },
        _ => None,
    }
}

fn udp_tunnel(source: u16, port: u16, payload: &[u8]) -> Option<Tunnel<'_>> {
    if VXLAN_PORTS.contains(&port) {
        // The flag that the identifier is valid must be set; the other bits are reserved or extensions'.
        return payload.first().filter(|flags| *flags & 0x08 != 0).and_then(|_| vxlan(port, payload));
    }
    if port == GENEVE_PORT {
        return geneve(payload);
    }
    if WIREGUARD_PORTS.contains(&port) || WIREGUARD_PORTS.contains(&source) {
        return wireguard(payload);
    }
    looks_like_vxlan(payload).then(|| vxlan(port, payload)).flatten()
}

fn vxlan(port: u16, payload: &[u8]) -> Option<Tunnel<'_>> {
    let vni = read_u32(payload, 4)? >> 8;
    Some(Tunnel { encapsulation: Encapsulation::Vxlan { vni, port }, inner: Some(ethernet(&payload[8..])) })
}

/// VXLAN on a port of the operator's choice: reserved fields all zero and a sane IP or ARP frame inside.
fn looks_like_vxlan(payload: &[u8]) -> bool {
    let Some(head) = payload.first_chunk::<24>() else { return false };
    if head[..4] != [8, 0, 0, 0] || head[7] != 0 {
        return false;
    }
    match u16::from_be_bytes([head[20], head[21]]) {
        ETHERTYPE_IPV4 => head[22] >> 4 == 4 && head[22] & 15 >= 5,
        ETHERTYPE_IPV6 => head[22] >> 4 == 6,
        ETHERTYPE_ARP => head[22..24] == [0, 1],
        _ => false,
    }
}

fn geneve(payload: &[u8]) -> Option<Tunnel<'_>> {
    let head = payload.first_chunk::<8>()?;
    if head[0] >> 6 != 0 {
        return None;
    }
    let options = usize::from(head[0] & 0x3f) * 4;
    let vni = read_u32(head, 4)? >> 8;
    let inner = payload.get(8 + options..).unwrap_or_default();
    Some(Tunnel {
        encapsulation: Encapsulation::Geneve { vni },
        inner: carried_by_type(read_u16(head, 2)?, inner),
    })
}

fn gre(payload: &[u8]) -> Option<Tunnel<'_>> {
    let flags = read_u16(payload, 0)?;
    let protocol = read_u16(payload, 2)?;
    if flags & 7 != 0 {
        // Version 1 is PPTP's, which carries PPP.
        return Some(Tunnel { encapsulation: Encapsulation::Gre, inner: None });
    }
    let optional = [0x8000, 0x2000, 0x1000].iter().filter(|bit| flags & **bit != 0).count() * 4;
    let inner = payload.get(4 + optional..).unwrap_or_default();
    Some(Tunnel { encapsulation: Encapsulation::Gre, inner: carried_by_type(protocol, inner) })
}

fn carried_by_type(ethertype: u16, data: &[u8]) -> Option<Frame<'_>> {
    match ethertype {
        ETHERTYPE_TRANSPARENT => Some(ethernet(data)),
        ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => Some(bare(network(ethertype, data))),
        _ => None,
    }
}

fn wireguard(payload: &[u8]) -> Option<Tunnel<'_>> {
    is_wireguard(payload).then_some(Tunnel { encapsulation: Encapsulation::WireGuard, inner: None })
}

/// Message type 1 to 4, three zero bytes, and the length that belongs to the type; transport data (4) comes in
/// multiples of 16 and is told from chance by its zero counter bytes.
fn is_wireguard(payload: &[u8]) -> bool {
    let Some([kind, 0, 0, 0]) = payload.first_chunk::<4>() else { return false };
    match kind {
        1 => payload.len() == 148,
        2 => payload.len() == 92,
        3 => payload.len() == 64,
        4 => payload.len() >= 32 && payload.len().is_multiple_of(16) && payload[13..16] == [0, 0, 0],
        _ => false,
    }
}
