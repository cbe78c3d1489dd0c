//! One event as a person or a program reads it: decoding, the packet's summary, the line.

use std::{fmt, net::Ipv4Addr};

use nix::time::{ClockId, clock_gettime};
use podwire_abi::{DropReason, EVENT_HEADER_BYTES, Event, Point, UnknownNumber, identity};
use serde::{Serialize, Serializer};
use thiserror::Error;
use time::{Duration, OffsetDateTime, macros::format_description};

/// The wall clock beside the clock since boot that the programs read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    boot: OffsetDateTime,
}

impl Clock {
    pub(super) fn now() -> Self {
        let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME)
            .map_or(Duration::ZERO, |t| Duration::new(t.tv_sec(), t.tv_nsec() as i32));
        Self { boot: OffsetDateTime::now_utc() - since_boot }
    }

    fn at(self, nanoseconds: u64) -> OffsetDateTime {
        self.boot + std::time::Duration::from_nanos(nanoseconds)
    }
}

/// A record of the event ring that this agent cannot read.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// Shorter than an event.
    #[error("a record of {0} bytes is no event")]
    Short(usize),
    /// A point or a reason without a meaning.
    #[error(transparent)]
    Unknown(#[from] UnknownNumber),
}

/// One packet, seen at one point of the datapath.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FlowEvent {
    /// When, to the clock's precision.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// Where.
    #[serde(serialize_with = "by_name")]
    pub point: Point,
    /// Why it was dropped; [`DropReason::None`] if it was not.
    #[serde(serialize_with = "by_name")]
    pub reason: DropReason,
    /// Device on which it was seen.
    pub ifindex: u32,
    /// Device to which it was sent on; 0 if none.
    pub out_ifindex: u32,
    /// Identity of the source; 0 if unknown.
    pub src_identity: u32,
    /// Identity of the destination; 0 if unknown.
    pub dst_identity: u32,
    /// The endpoint it concerns; 0 if none.
    pub endpoint_id: u16,
    /// Bytes, from the IP header on.
    pub length: u32,
    /// The packet's fields; `None` if it is not IPv4, or malformed.
    pub flow: Option<Flow>,
}

fn by_name<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// Who talks to whom, as the packet's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Flow {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Time to live, as the packet left the hook.
    pub ttl: u8,
    /// The layer above.
    pub l4: L4,
}

/// The layer above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum L4 {
    /// TCP.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// The flag byte: FIN is bit 0, CWR bit 7.
        flags: u8,
    },
    /// UDP.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// ICMP.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// A later piece of a fragmented packet, or a header cut short.
    Fragment {
        /// IP protocol number.
        protocol: u8,
        /// Offset of this piece in bytes.
        offset: u16,
    },
    /// Something else.
    Other {
        /// IP protocol number.
        protocol: u8,
    },
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const TCP_FLAGS: [(u8, &str); 8] = [
    (0x02, "SYN"),
    (0x10, "ACK"),
    (0x01, "FIN"),
    (0x04, "RST"),
    (0x08, "PSH"),
    (0x20, "URG"),
    (0x40, "ECE"),
    (0x80, "CWR"),
];
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;

impl L4 {
    fn parse(protocol: u8, offset: u16, payload: &[u8]) -> Self {
        let port = |at: usize| Some(u16::from_be_bytes([*payload.get(at)?, *payload.get(at + 1)?]));
        let whole = match protocol {
            _ if offset != 0 => None,
            TCP => port(0)
                .zip(port(2))
                .zip(payload.get(13))
                .map(|((source, destination), flags)| Self::Tcp { source, destination, flags: *flags }),
            UDP => port(0).zip(port(2)).map(|(source, destination)| Self::Udp { source, destination }),
            ICMP => payload
                .first()
                .zip(payload.get(1))
                .map(|(kind, code)| Self::Icmp { kind: *kind, code: *code }),
            _ => Some(Self::Other { protocol }),
        };
        whole.unwrap_or(Self::Fragment { protocol, offset })
    }

    /// Source and destination port, where there are ports.
    pub const fn ports(self) -> Option<(u16, u16)> {
        match self {
            Self::Tcp { source, destination, .. } | Self::Udp { source, destination } => {
                Some((source, destination))
            }
            _ => None,
        }
    }

    /// Whether the packet answers another; `None` where one packet alone does not tell.
    pub const fn is_reply(self) -> Option<bool> {
        match self {
            Self::Tcp { flags, .. } if flags & SYN != 0 => Some(flags & ACK != 0),
            Self::Icmp { kind: ECHO_REQUEST, .. } => Some(false),
            Self::Icmp { kind: ECHO_REPLY, .. } => Some(true),
            _ => None,
        }
    }
}

/// Names of ICMP messages: type and code (RFC 792), as the field writes them.
fn icmp_name(kind: u8, code: u8) -> String {
    match (kind, code) {
        (ECHO_REPLY, _) => "EchoReply".to_owned(),
        (ECHO_REQUEST, _) => "EchoRequest".to_owned(),
        (3, 0) => "DestinationUnreachable(Net)".to_owned(),
        (3, 1) => "DestinationUnreachable(Host)".to_owned(),
        (3, 3) => "DestinationUnreachable(Port)".to_owned(),
        (3, 4) => "DestinationUnreachable(FragmentationNeeded)".to_owned(),
        (3, _) => format!("DestinationUnreachable({code})"),
        (5, _) => "Redirect".to_owned(),
        (11, 0) => "TimeExceeded(TTLExceeded)".to_owned(),
        (11, _) => "TimeExceeded(FragmentReassemblyTimeExceeded)".to_owned(),
        _ => format!("Type {kind} Code {code}"),
    }
}

impl fmt::Display for L4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Tcp { flags, .. } => {
                let names: Vec<_> =
                    TCP_FLAGS.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
                write!(f, "TCP Flags: {}", names.join(", "))
            }
            Self::Udp { .. } => f.write_str("UDP"),
            Self::Icmp { kind, code } => write!(f, "ICMPv4 {}", icmp_name(kind, code)),
            Self::Fragment { protocol, offset } => {
                match protocol {
                    TCP => f.write_str("TCP")?,
                    UDP => f.write_str("UDP")?,
                    ICMP => f.write_str("ICMPv4")?,
                    other => write!(f, "Protocol {other}")?,
                }
                write!(f, " Fragment at {offset}")
            }
            Self::Other { protocol } => write!(f, "Protocol {protocol}"),
        }
    }
}

impl Flow {
    /// Reads the fields from a packet's first bytes, from the IP header on.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let header = packet.get(..20)?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        if header[0] >> 4 != 4 || header_len < 20 {
            return None;
        }
        let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
        let offset = (u16::from_be_bytes([header[6], header[7]]) & 0x1fff) * 8;
        Some(Self {
            source: address(12),
            destination: address(16),
            ttl: header[8],
            l4: L4::parse(header[9], offset, packet.get(header_len..).unwrap_or_default()),
        })
    }
}

/// What a line calls an address: `default/curl-pod`; `None` for one without a name.
pub type Names<'a> = dyn Fn(Ipv4Addr) -> Option<String> + 'a;

impl FlowEvent {
    /// Reads one record of the event ring.
    pub(super) fn decode(record: &[u8], clock: Clock) -> Result<Self, DecodeError> {
        if record.len() < size_of::<Event>() {
            return Err(DecodeError::Short(record.len()));
        }
        // SAFETY: the record is as long as the struct, of which every bit pattern is a value.
        let event = unsafe { record.as_ptr().cast::<Event>().read_unaligned() };
        Ok(Self {
            time: clock.at(event.time_ns),
            point: event.point.try_into()?,
            reason: event.reason.try_into()?,
            ifindex: event.ifindex,
            out_ifindex: event.out_ifindex,
            src_identity: event.src_identity,
            dst_identity: event.dst_identity,
            endpoint_id: event.endpoint_id,
            length: event.length,
            flow: Flow::parse(&event.header[..(event.length as usize).min(EVENT_HEADER_BYTES)]),
        })
    }

    /// Whether the packet was dropped.
    pub fn is_drop(&self) -> bool {
        self.reason != DropReason::None
    }

    /// The line that the field knows:
    /// `Aug  2 05:34:45.973: default/curl-pod (ID:12091) -> default/webpod (ID:56171) to-network FORWARDED (ICMPv4 EchoRequest)`.
    /// A reply is written from the asking side, with `<-`; `<>` where one packet does not tell.
    pub fn line(&self, names: &Names<'_>) -> String {
        let stamp = format_description!(
            "[month repr:short] [day padding:space] [hour]:[minute]:[second].[subsecond digits:3]"
        );
        let time = self.time.format(stamp).unwrap_or_else(|_| self.time.unix_timestamp().to_string());
        let verdict = if self.is_drop() {
            format!("{} DROPPED", self.reason)
        } else {
            format!("{} FORWARDED", self.point)
        };
        let Some(flow) = self.flow else {
            return format!("{time}: device {} {verdict} (length {})", self.ifindex, self.length);
        };
        let ports = flow.l4.ports();
        let side = |address: Ipv4Addr, port: Option<u16>, id: u32| {
            let name = names(address).unwrap_or_else(|| address.to_string());
            let port = port.map(|port| format!(":{port}")).unwrap_or_default();
            format!("{name}{port} {}", Identity(id))
        };
        let source = side(flow.source, ports.map(|p| p.0), self.src_identity);
        let destination = side(flow.destination, ports.map(|p| p.1), self.dst_identity);
        let talk = match flow.l4.is_reply() {
            Some(false) => format!("{source} -> {destination}"),
            Some(true) => format!("{destination} <- {source}"),
            None => format!("{source} <> {destination}"),
        };
        format!("{time}: {talk} {verdict} ({})", flow.l4)
    }
}

/// An identity in a line: reserved ones by name.
struct Identity(u32);

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            // The ipcache has no entry: outside the cluster.
            0 | identity::WORLD => f.write_str("(world)"),
            identity::HOST => f.write_str("(host)"),
            identity::UNMANAGED => f.write_str("(unmanaged)"),
            identity::REMOTE_NODE => f.write_str("(remote-node)"),
            identity::KUBE_APISERVER => f.write_str("(kube-apiserver)"),
            id => write!(f, "(ID:{id})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    /// A packet 10.0.0.1 > 10.0.0.2, TTL 64.
    fn packet(protocol: u8, fragment: [u8; 2], payload: &[u8]) -> Vec<u8> {
        let [high, low] = (20 + payload.len() as u16).to_be_bytes();
        let mut packet = vec![0x45, 0, high, low, 0, 1, fragment[0], fragment[1], 64, protocol, 0, 0];
        packet.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend(payload);
        packet
    }

    fn event(point: Point, reason: DropReason, packet: &[u8]) -> FlowEvent {
        FlowEvent {
            time: datetime!(2025-08-02 05:34:45.973_1 UTC),
            point,
            reason,
            ifindex: 7,
            out_ifindex: 0,
            src_identity: 12091,
            dst_identity: 0,
            endpoint_id: 3,
            length: packet.len() as u32,
            flow: Flow::parse(packet),
        }
    }

    fn name(ip: Ipv4Addr) -> Option<String> {
        (ip == Ipv4Addr::new(10, 0, 0, 1)).then(|| "default/curl-pod".to_owned())
    }

    #[test]
    fn lines_are_those_of_the_field() {
        let request = event(Point::ToNetwork, DropReason::None, &packet(ICMP, [0, 0], &[8, 0, 0, 0]));
        assert_eq!(
            request.line(&name),
            "Aug  2 05:34:45.973: default/curl-pod (ID:12091) -> 10.0.0.2 (world) to-network FORWARDED (ICMPv4 \
             EchoRequest)"
        );
        let reply = event(Point::ToEndpoint, DropReason::None, &packet(ICMP, [0, 0], &[0, 0, 0, 0]));
        assert_eq!(
            reply.line(&name),
            "Aug  2 05:34:45.973: 10.0.0.2 (world) <- default/curl-pod (ID:12091) to-endpoint FORWARDED (ICMPv4 \
             EchoReply)"
        );
        let mut tcp = vec![0x9c, 0x40, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02];
        let syn = event(Point::FromEndpoint, DropReason::InvalidSourceIp, &packet(TCP, [0, 0], &tcp));
        assert_eq!(
            syn.line(&name),
            "Aug  2 05:34:45.973: default/curl-pod:40000 (ID:12091) -> 10.0.0.2:80 (world) Invalid source ip DROPPED \
             (TCP Flags: SYN)"
        );
        tcp[13] = 0x18;
        let data = event(Point::ToEndpoint, DropReason::None, &packet(TCP, [0, 0], &tcp));
        assert!(data.line(&name).contains(" <> "), "{}", data.line(&name));
        assert!(data.line(&name).ends_with("(TCP Flags: ACK, PSH)"));
        let piece = event(Point::ToEndpoint, DropReason::None, &packet(UDP, [0x00, 0xb9], &[1, 2, 3, 4]));
        assert!(piece.line(&name).ends_with("(UDP Fragment at 1480)"), "{}", piece.line(&name));
        let other = event(Point::FromEndpoint, DropReason::UnsupportedL3, &[0x60, 0, 0, 0]);
        assert_eq!(
            other.line(&name),
            "Aug  2 05:34:45.973: device 7 Unsupported L3 protocol DROPPED (length 4)"
        );
    }

    #[test]
    fn events_are_json_too() {
        let request =
            event(Point::ToNetwork, DropReason::None, &packet(UDP, [0, 0], &[0, 53, 0, 54, 0, 8, 0, 0]));
        let json = serde_json::to_value(&request).unwrap();
        assert_eq!(json["point"], "to-network");
        assert_eq!(json["time"], "2025-08-02T05:34:45.9731Z");
        assert_eq!(json["flow"]["l4"]["udp"]["source"], 53);
    }

    #[test]
    fn short_and_unknown_records_are_refused() {
        let clock = Clock::now();
        assert!(matches!(FlowEvent::decode(&[0; 4], clock), Err(DecodeError::Short(4))));
        let mut record = [0; size_of::<Event>()];
        assert!(FlowEvent::decode(&record, clock).is_ok());
        record[30] = 200; // the point
        assert!(matches!(FlowEvent::decode(&record, clock), Err(DecodeError::Unknown(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_make_a_line(record in prop::collection::vec(any::<u8>(), 96..120)) {
            let mut record = record;
            record[30] %= podwire_abi::POINTS as u8;
            record[31] %= podwire_abi::DROP_REASONS as u8;
            let event = FlowEvent::decode(&record, Clock::now()).unwrap();
            prop_assert!(!event.line(&name).is_empty());
        }
    }
}
