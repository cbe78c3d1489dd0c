//! Which connection a packet belongs to: ports, the identifier of an echo, or the packet that an ICMP error quotes.

use aya_ebpf::bindings::__sk_buff;
use podwire_abi::connection::{
    ConnectionKey, ECHO_ASKED_HERE, ECHO_ASKED_THERE, FragmentKey, FragmentPorts, seen,
};

use crate::{
    packet::{self, ETHERNET, Ipv4},
    state,
};

/// Which end of a packet is this node's side.
#[derive(Clone, Copy, PartialEq)]
pub enum Way {
    /// The source: it leaves.
    Out,
    /// The destination: it comes in.
    In,
}

/// A packet of a connection.
pub struct Flow {
    pub key: ConnectionKey,
    /// Where its layer-4 header begins in the frame.
    pub offset: u32,
    /// Whether it has one: a later piece of a fragmented packet has none.
    pub has_header: bool,
    /// Bits of [`seen`].
    pub seen: u8,
    /// Whether it can be a connection's first: not a RST, and not the answer to an echo request.
    pub may_open: bool,
}

/// What a packet is.
pub enum Content {
    Flow(Flow),
    /// An ICMP error, whose header begins at this offset of the frame.
    IcmpError(u32),
    /// A later piece of a packet whose first piece was not seen.
    LostFragment,
    /// Nothing that a port or an identifier distinguishes.
    Unsupported,
    Malformed,
}

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
const UNREACHABLE: u8 = 3;
const SOURCE_QUENCH: u8 = 4;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;

/// Bytes of a TCP header without options.
const TCP_HEADER: u32 = 20;
/// Bytes of a UDP header, and of the fixed part of an ICMP message.
const OTHER_HEADER: u32 = 8;
const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;

/// Reads a packet's layer 4.
#[inline(always)]
pub fn read(skb: *mut __sk_buff, ip: &Ipv4, way: Way) -> Content {
    let offset = ETHERNET as u32 + ip.header_len();
    if !matches!(ip.protocol, packet::TCP | packet::UDP | packet::ICMP) {
        return Content::Unsupported;
    }
    let flow = |(local_port, remote_port), has_header, seen, may_open| {
        let (local, remote) = if way == Way::Out { (ip.src, ip.dst) } else { (ip.dst, ip.src) };
        let key =
            ConnectionKey { local, remote, local_port, remote_port, protocol: ip.protocol, pad: [0; 3] };
        Content::Flow(Flow { key, offset, has_header, seen, may_open })
    };
    if ip.is_later_fragment() {
        // SAFETY: two ports are copied out; if the entry is reused at this moment, a wrong checksum tells the receiver.
        return match unsafe { state::FRAGMENTED.get(fragment_key(ip)) } {
            Some(ports) => flow((ports.local_port, ports.remote_port), false, seen::DATA, false),
            None => Content::LostFragment,
        };
    }
    let header_len = if ip.protocol == packet::TCP { TCP_HEADER } else { OTHER_HEADER };
    if offset + header_len > ip.end(skb) {
        // Ports that are there without the checksum behind them cannot be translated; what is behind the packet's end are none.
        return Content::Malformed;
    }
    match ip.protocol {
        packet::TCP => {
            let Some(header) = packet::load::<[u8; TCP_FLAGS + 1]>(skb, offset) else {
                return Content::Malformed;
            };
            let ports = ports(way, [header[0], header[1], header[2], header[3]]);
            flow(ports, true, tcp_seen(header[TCP_FLAGS]), header[TCP_FLAGS] & RST == 0)
        }
        packet::UDP => match packet::load::<[u8; 4]>(skb, offset) {
            Some(header) => flow(ports(way, header), true, seen::DATA, true),
            None => Content::Malformed,
        },
        _ => match packet::load::<[u8; 8]>(skb, offset) {
            Some([kind @ (ECHO_REQUEST | ECHO_REPLY), _, _, _, high, low, ..]) => {
                flow(echo(way, kind, [high, low]), true, seen::DATA, kind == ECHO_REQUEST)
            }
            Some([UNREACHABLE | SOURCE_QUENCH | TIME_EXCEEDED | PARAMETER_PROBLEM, ..]) => {
                Content::IcmpError(offset)
            }
            Some(_) => Content::Unsupported,
            None => Content::Malformed,
        },
    }
}

/// This side's port and the other's.
#[inline(always)]
fn ports(way: Way, [a, b, c, d]: [u8; 4]) -> (u16, u16) {
    let (source, destination) = (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]));
    if way == Way::Out { (source, destination) } else { (destination, source) }
}

/// What stands for ports in an echo: its identifier, and who asked.
#[inline(always)]
fn echo(way: Way, kind: u8, identifier: [u8; 2]) -> (u16, u16) {
    let asked_here = (kind == ECHO_REQUEST) == (way == Way::Out);
    (u16::from_ne_bytes(identifier), if asked_here { ECHO_ASKED_HERE } else { ECHO_ASKED_THERE })
}

#[inline(always)]
fn tcp_seen(flags: u8) -> u8 {
    let mut bits = if flags & SYN == 0 { seen::DATA } else { seen::SYN };
    if flags & FIN != 0 {
        bits |= seen::FIN;
    }
    if flags & RST != 0 {
        bits |= seen::RST;
    }
    bits
}

#[inline(always)]
fn fragment_key(ip: &Ipv4) -> FragmentKey {
    FragmentKey { src: ip.src, dst: ip.dst, id: ip.id(), protocol: ip.protocol, pad: 0 }
}

/// Remembers the ports of a first piece for those that follow. Called before the packet is translated.
#[inline(always)]
pub fn remember_fragment(ip: &Ipv4, flow: &Flow) {
    if ip.is_fragment() && flow.has_header {
        let ports = FragmentPorts { local_port: flow.key.local_port, remote_port: flow.key.remote_port };
        // An LRU map has room always; if not, the pieces that follow are counted as lost.
        let _ = state::FRAGMENTED.insert(fragment_key(ip), ports, 0);
    }
}

/// The packet that an ICMP error quotes.
pub struct Quoted {
    /// Its connection, as the packet belongs to it that the error answers.
    pub key: ConnectionKey,
    /// Where its IP header begins in the frame.
    pub at: u32,
    /// Where its layer-4 header begins.
    pub l4: u32,
}

/// Reads what the ICMP error `error` quotes. An error that comes in is about what left: the quoted source is this side's.
#[inline(always)]
pub fn quoted(skb: *mut __sk_buff, error: &Ipv4, icmp: u32, way: Way) -> Option<Quoted> {
    let at = icmp + OTHER_HEADER;
    let ip: Ipv4 = packet::load(skb, at)?;
    if !ip.is_whole() || ip.is_later_fragment() {
        return None;
    }
    let l4 = at + ip.header_len();
    // RFC 792 promises eight bytes.
    if l4 + 8 > error.end(skb) {
        return None;
    }
    let header: [u8; 8] = packet::load(skb, l4)?;
    let (quoted_way, local, remote) =
        if way == Way::In { (Way::Out, ip.src, ip.dst) } else { (Way::In, ip.dst, ip.src) };
    let (local_port, remote_port) = match ip.protocol {
        packet::TCP | packet::UDP => ports(quoted_way, [header[0], header[1], header[2], header[3]]),
        packet::ICMP if matches!(header[0], ECHO_REQUEST | ECHO_REPLY) => {
            echo(quoted_way, header[0], [header[4], header[5]])
        }
        _ => return None,
    };
    let key = ConnectionKey { local, remote, local_port, remote_port, protocol: ip.protocol, pad: [0; 3] };
    Some(Quoted { key, at, l4 })
}
