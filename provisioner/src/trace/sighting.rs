//! What the taps saw, as far as a flow can be followed by it: each packet with its inner and outer addresses, and a print of what no
//! router and no translation changes.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::Ipv4Addr;
use std::path::Path;

use podwire_conformance::dissect::{
    Encapsulation, Frame, Icmp, Ipv4, Net, TcpFlags, Transport, dissect, tunnel,
};
use podwire_conformance::read::{CaptureFile, Direction, ReadError};

use super::probe::Mark;

/// A packet at a tap.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// Its number in the capture, from 1.
    pub frame: u64,
    /// Nanoseconds since 1970.
    pub time: i64,
    /// The tap, by its place among the taps.
    pub tap: usize,
    /// It left by the interface.
    pub out: bool,
    /// The Ethernet address that it was sent to.
    pub to: Option<[u8; 6]>,
    /// What was seen.
    pub what: What,
}

/// What was seen.
#[derive(Clone, Debug)]
pub enum What {
    /// An IPv4 packet; the innermost, if it was wrapped.
    Packet(Packet),
    /// A question of ARP, or an answer.
    Arp {
        /// It asks.
        asks: bool,
        /// Whose Ethernet address is wanted; of an answer, whose it is.
        about: Ipv4Addr,
    },
}

/// An IPv4 packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// From where to where.
    pub ends: Ends,
    /// Time to live.
    pub ttl: u8,
    /// What it is.
    pub kind: Kind,
    /// The packet around it.
    pub outer: Option<Outer>,
    /// The same for all sightings of one packet.
    pub print: u64,
    /// It is marked as the probe's.
    pub marked: bool,
}

/// The packet around a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// How.
    pub encapsulation: Encapsulation,
    /// Its source.
    pub source: Ipv4Addr,
    /// Its destination.
    pub destination: Ipv4Addr,
    /// Its time to live.
    pub ttl: u8,
}

/// From where to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ends {
    /// IP protocol number.
    pub protocol: u8,
    /// Address and port; of an echo, its identifier.
    pub source: (Ipv4Addr, u16),
    /// The same of the destination.
    pub destination: (Ipv4Addr, u16),
}

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP, with its flags.
    Tcp(TcpFlags),
    /// UDP.
    Udp,
    /// A ping, or the answer to one.
    Echo {
        /// It asks.
        request: bool,
    },
    /// ICMP about another packet.
    Error {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// The MTU, where it says "fragmentation needed".
        mtu: u16,
        /// The packet that it is about.
        about: Ends,
    },
    /// Something else.
    Other,
}

impl Ends {
    /// Those of an answer.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source, ..self }
    }

    /// An end as it is written: identifiers of pings are no ports.
    pub fn text(&self, (ip, port): (Ipv4Addr, u16)) -> String {
        if self.protocol == ICMP { ip.to_string() } else { format!("{ip}:{port}") }
    }
}

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.text(self.source), self.text(self.destination))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(flags) => {
                let names = [
                    (TcpFlags::SYN, "SYN"),
                    (TcpFlags::RST, "RST"),
                    (TcpFlags::FIN, "FIN"),
                    (TcpFlags::PSH, "data"),
                    (TcpFlags::ACK, "ACK"),
                ];
                let set: Vec<&str> =
                    names.iter().filter(|(bit, _)| flags.has(*bit)).map(|(_, name)| *name).collect();
                write!(f, "TCP {}", set.join(" "))
            }
            Self::Udp => f.write_str("UDP datagram"),
            Self::Echo { request: true } => f.write_str("ping"),
            Self::Echo { request: false } => f.write_str("answer to a ping"),
            Self::Error { kind, code, mtu, .. } => f.write_str(&error_name(*kind, *code, *mtu)),
            Self::Other => f.write_str("packet"),
        }
    }
}

/// ICMP's errors in words (RFC 792, RFC 1812 5.2.7.1).
fn error_name(kind: u8, code: u8, mtu: u16) -> String {
    match (kind, code) {
        (3, 0) => "ICMP network unreachable".into(),
        (3, 1) => "ICMP host unreachable".into(),
        (3, 2) => "ICMP protocol unreachable".into(),
        (3, 3) => "ICMP port unreachable".into(),
        (3, 4) => format!("ICMP fragmentation needed, MTU {mtu}"),
        (3, 9 | 10 | 13) => "ICMP prohibited by a filter".into(),
        (3, code) => format!("ICMP unreachable (code {code})"),
        (5, _) => "ICMP redirect".into(),
        (11, 0) => "ICMP time exceeded".into(),
        (kind, code) => format!("ICMP type {kind} code {code}"),
    }
}

/// Protocol number of ICMP.
const ICMP: u8 = 1;
/// Bytes of a payload that count: a packet that is wrapped is cut earlier by a tap than one that is not.
const PRINTED: usize = 256;
/// Wrappings inside each other that are followed.
const MAX_DEPTH: usize = 4;

/// Reads a capture. Its interfaces are the taps, in their order. Packets without a time or that are neither IPv4 nor ARP tell nothing.
pub fn read(path: &Path, mark: Mark) -> Result<Vec<Sighting>, ReadError> {
    let file = CaptureFile::open(path)?;
    let mut reader = file.reader()?;
    let mut sightings = Vec::new();
    while let Some(packet) = reader.next_packet()? {
        let frame = dissect(packet.link, packet.data);
        let (Some(time), Some(what)) = (packet.timestamp, what(&frame, mark)) else { continue };
        sightings.push(Sighting {
            frame: packet.number,
            time,
            tap: packet.interface,
            out: packet.direction() == Some(Direction::Outbound),
            to: frame.ethernet.map(|ethernet| ethernet.destination),
            what,
        });
    }
    Ok(sightings)
}

fn what(frame: &Frame<'_>, mark: Mark) -> Option<What> {
    match &frame.net {
        Net::Arp(arp) => {
            let asks = arp.operation == 1;
            Some(What::Arp { asks, about: if asks { arp.target } else { arp.sender } })
        }
        Net::Ipv4(ip) => Some(What::Packet(packet(ip, &frame.net, None, mark, MAX_DEPTH))),
        _ => None,
    }
}

fn packet(ip: &Ipv4<'_>, net: &Net<'_>, outer: Option<Outer>, mark: Mark, depth: usize) -> Packet {
    if depth > 0
        && let Some(carried) = tunnel(net)
        && let Some(inner) = carried.inner
        && let Net::Ipv4(inside) = &inner.net
    {
        let around = Outer {
            encapsulation: carried.encapsulation,
            source: ip.source,
            destination: ip.destination,
            ttl: ip.ttl,
        };
        return packet(inside, &inner.net, Some(around), mark, depth - 1);
    }
    let transport = ip.transport();
    let ends = ends(ip, &transport);
    let holds = |payload: &[u8]| matches!(mark, Mark::Token(token) if payload.windows(8).any(|w| w == token));
    let mut hasher = DefaultHasher::new();
    (ip.protocol, ip.id, ip.payload_len()).hash(&mut hasher);
    let (kind, marked) = match &transport {
        Transport::Tcp(tcp) => {
            (tcp.sequence, tcp.acknowledgment, tcp.flags.0, head(tcp.payload)).hash(&mut hasher);
            let from_range = matches!(mark, Mark::Ports(first, last) if (first..=last).contains(&tcp.source));
            (Kind::Tcp(tcp.flags), from_range && tcp.flags.opens())
        }
        Transport::Udp(udp) => {
            head(udp.payload).hash(&mut hasher);
            (Kind::Udp, holds(udp.payload))
        }
        Transport::Icmp(icmp) if icmp.is_echo() => {
            (icmp.kind, icmp.sequence, head(icmp.payload)).hash(&mut hasher);
            (Kind::Echo { request: icmp.is_request() }, icmp.is_request() && holds(icmp.payload))
        }
        Transport::Icmp(icmp) => {
            // The quoted packet is translated with the error: its own number stays.
            (icmp.kind, icmp.code, quoted_id(icmp)).hash(&mut hasher);
            (error(icmp), false)
        }
        _ => {
            head(ip.payload).hash(&mut hasher);
            (Kind::Other, false)
        }
    };
    Packet { ends, ttl: ip.ttl, kind, outer, print: hasher.finish(), marked }
}

fn head(payload: &[u8]) -> &[u8] {
    &payload[..payload.len().min(PRINTED)]
}

fn ends(ip: &Ipv4<'_>, transport: &Transport<'_>) -> Ends {
    let (from, to) = match transport {
        Transport::Icmp(icmp) if icmp.is_echo() => (icmp.id, icmp.id),
        // Of a quoted packet the first eight bytes may be all there is: the ports are in them.
        Transport::Truncated { protocol: 6 | 17 } => ip
            .payload
            .first_chunk::<4>()
            .map(|p| (u16::from_be_bytes([p[0], p[1]]), u16::from_be_bytes([p[2], p[3]])))
            .unwrap_or_default(),
        other => other.ports().unwrap_or_default(),
    };
    Ends { protocol: ip.protocol, source: (ip.source, from), destination: (ip.destination, to) }
}

fn quoted_id(icmp: &Icmp<'_>) -> u16 {
    match icmp.quoted() {
        Some(Net::Ipv4(about)) => about.id,
        _ => 0,
    }
}

fn error(icmp: &Icmp<'_>) -> Kind {
    let Some(quoted) = icmp.quoted() else { return Kind::Other };
    let Net::Ipv4(about) = &quoted else { return Kind::Other };
    // An error about a wrapped packet concerns the one inside.
    let inner = tunnel(&quoted).and_then(|carried| carried.inner);
    let about = match inner.as_ref().map(|frame| &frame.net) {
        Some(Net::Ipv4(inside)) => inside,
        _ => about,
    };
    Kind::Error {
        kind: icmp.kind,
        code: icmp.code,
        mtu: icmp.sequence,
        about: ends(about, &about.transport()),
    }
}

#[cfg(test)]
mod tests {
    use podwire_conformance::testing::{Build, pcapng};

    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 3);
    const B: Ipv4Addr = Ipv4Addr::new(172, 20, 1, 2);
    const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 10, 100);
    const PEER: Ipv4Addr = Ipv4Addr::new(192, 168, 10, 101);
    const MARK: Mark = Mark::Ports(20_000, 20_009);

    fn seen(frames: &[Vec<u8>], mark: Mark) -> Vec<Sighting> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.pcapng");
        let frames: Vec<(usize, Vec<u8>)> = frames.iter().map(|frame| (0, frame.clone())).collect();
        std::fs::write(&path, pcapng(&["n:eth1"], &frames, 0)).unwrap();
        read(&path, mark).unwrap()
    }

    fn packet(sighting: &Sighting) -> &Packet {
        match &sighting.what {
            What::Packet(packet) => packet,
            What::Arp { .. } => panic!("{sighting:?}"),
        }
    }

    #[test]
    fn a_packet_keeps_its_print_when_it_is_wrapped_or_translated() {
        let syn = |source, port| Build::tcp((source, B), (port, 80), (77, 0), TcpFlags::SYN, b"");
        let mut routed = syn(A, 20_003).frame();
        routed[14 + 8] = 62;
        let frames = [
            syn(A, 20_003).frame(),
            routed,
            syn(NODE, 50_000).frame(),
            syn(A, 20_003).in_network(300, (NODE, PEER), 8472).frame(),
            Build::tcp((A, B), (20_003, 80), (78, 0), TcpFlags::SYN, b"").frame(),
        ];
        let seen = seen(&frames, MARK);
        let packets: Vec<&Packet> = seen.iter().map(packet).collect();
        assert!(packets[..4].iter().all(|p| p.print == packets[0].print), "{packets:?}");
        assert_ne!(packets[4].print, packets[0].print, "another connection");
        assert_eq!((packets[0].ttl, packets[1].ttl), (63, 62));
        assert!(packets[0].marked && !packets[2].marked, "by its source port");
        let outer = packets[3].outer.unwrap();
        assert_eq!((outer.source, outer.destination), (NODE, PEER));
        assert_eq!(outer.encapsulation, Encapsulation::Vxlan { vni: 300, port: 8472 });
        assert_eq!(packets[3].ends, packets[0].ends, "the inner ones");
    }

    #[test]
    fn a_packet_that_is_cut_keeps_its_print() {
        let data = Build::tcp((A, B), (20_003, 80), (77, 5), TcpFlags::ACK, &[7; 1000]);
        let wrapped = data.clone().in_network(300, (NODE, PEER), 8472);
        let other = Build::tcp((A, B), (20_003, 80), (77, 5), TcpFlags::ACK, &[7; 999]);
        let cut = |build: &Build| build.frame()[..512].to_vec();
        let seen = seen(&[cut(&data), cut(&wrapped), cut(&other)], MARK);
        assert_eq!(packet(&seen[0]).print, packet(&seen[1]).print);
        assert_ne!(packet(&seen[0]).print, packet(&seen[2]).print, "its length tells");
    }

    #[test]
    fn the_token_marks_pings_and_datagrams() {
        let token = *b"abcdefgh";
        let frames = [
            Build::echo((A, B), true, 9, 1, b"0123456789012345abcdefghabcdefgh").frame(),
            Build::echo((B, A), false, 9, 1, b"0123456789012345abcdefghabcdefgh").frame(),
            Build::udp((A, B), (40_000, 9), 5, b"podwire trace abcdefgh").frame(),
            Build::udp((A, B), (40_000, 9), 5, b"podwire trace abcdefgi").frame(),
        ];
        let marked: Vec<bool> = seen(&frames, Mark::Token(token)).iter().map(|s| packet(s).marked).collect();
        assert_eq!(marked, [true, false, true, false]);
    }

    #[test]
    fn an_error_names_the_packet_that_it_is_about() {
        let lost = Build::tcp((A, B), (20_003, 80), (77, 0), TcpFlags::SYN, b"");
        let ends = Ends { protocol: 6, source: (A, 20_003), destination: (B, 80) };
        let quote = |packet: &[u8]| {
            let mut message = vec![3, 1, 0, 0, 0, 0, 0, 0];
            message.extend(packet);
            Build::ip(PEER, A, 1, 3, &message).frame()
        };
        let short = &lost.packet()[..28];
        let wrapped = lost.clone().in_network(300, (NODE, PEER), 8472).packet();
        for quoted in [&lost.packet()[..], short, &wrapped] {
            let seen = seen(&[quote(quoted)], MARK);
            let Kind::Error { kind: 3, code: 1, about, .. } = packet(&seen[0]).kind else {
                panic!("{seen:?}")
            };
            assert_eq!(about, ends, "{} bytes", quoted.len());
        }
    }

    #[test]
    fn questions_of_arp_are_seen() {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1]);
        frame.extend(A.octets());
        frame.extend([0; 6]);
        frame.extend(B.octets());
        assert!(matches!(seen(&[frame], MARK)[0].what, What::Arp { asks: true, about } if about == B));
    }
}
