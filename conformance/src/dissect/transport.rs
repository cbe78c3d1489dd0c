//! TCP (RFC 9293), UDP (RFC 768), ICMP (RFC 792).

use super::{Net, ip, read_u16, read_u32};

/// Protocol number of ICMP.
pub(super) const ICMP: u8 = 1;
/// Protocol number of TCP.
pub(super) const TCP: u8 = 6;
/// Protocol number of UDP.
pub(super) const UDP: u8 = 17;
/// Protocol number of ICMP for IPv6.
pub(super) const ICMPV6: u8 = 58;

/// What an IP packet carries.
#[derive(Debug, Clone, Copy)]
pub enum Transport<'a> {
    /// TCP.
    Tcp(Tcp<'a>),
    /// UDP.
    Udp(Udp<'a>),
    /// ICMP for IPv4.
    Icmp(Icmp<'a>),
    /// ICMP for IPv6, by its type.
    Icmpv6 {
        /// Type.
        kind: u8,
    },
    /// A later fragment, which has no header of its own.
    Fragment {
        /// Protocol of the whole packet.
        protocol: u8,
    },
    /// Another protocol.
    Other(u8),
    /// The captured bytes end before the header does.
    Truncated {
        /// The protocol.
        protocol: u8,
    },
    /// A header that contradicts itself, and how.
    Malformed(&'static str),
}

impl Transport<'_> {
    /// Source and destination port of TCP and UDP.
    pub fn ports(&self) -> Option<(u16, u16)> {
        match self {
            Self::Tcp(tcp) => Some((tcp.source, tcp.destination)),
            Self::Udp(udp) => Some((udp.source, udp.destination)),
            _ => None,
        }
    }
}

/// TCP's flags, as in its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data.
    pub const FIN: u8 = 1;
    /// Opens a connection.
    pub const SYN: u8 = 2;
    /// Aborts a connection.
    pub const RST: u8 = 4;
    /// Hand the data up at once.
    pub const PSH: u8 = 8;
    /// The acknowledgment number holds.
    pub const ACK: u8 = 16;

    /// Whether any of `bits` is set.
    pub fn has(self, bits: u8) -> bool {
        self.0 & bits != 0
    }

    /// Opens a connection: SYN without ACK.
    pub fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK) == Self::SYN
    }
}

/// A TCP segment.
#[derive(Debug, Clone, Copy)]
pub struct Tcp<'a> {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgment number.
    pub acknowledgment: u32,
    /// Flags.
    pub flags: TcpFlags,
    /// Window, unscaled.
    pub window: u16,
    /// Data, as far as it was captured.
    pub payload: &'a [u8],
}

/// A UDP datagram.
#[derive(Debug, Clone, Copy)]
pub struct Udp<'a> {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Length by the header, header included.
    pub len: u16,
    /// Data, as far as it was captured.
    pub payload: &'a [u8],
}

/// An ICMP message.
#[derive(Debug, Clone, Copy)]
pub struct Icmp<'a> {
    /// Type: 0 echo reply, 3 unreachable, 5 redirect, 8 echo request, 11 time exceeded, ...
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Identifier, in echo messages.
    pub id: u16,
    /// Sequence number, in echo messages; the next hop's MTU in "fragmentation needed".
    pub sequence: u16,
    /// What follows the 8 bytes of header.
    pub payload: &'a [u8],
}

impl<'a> Icmp<'a> {
    /// Echo request.
    pub fn is_request(&self) -> bool {
        self.kind == 8
    }

    /// Echo request or reply.
    pub fn is_echo(&self) -> bool {
        matches!(self.kind, 0 | 8)
    }

    /// A message about another packet: unreachable, source quench, redirect, time exceeded, parameter problem.
    pub fn is_error(&self) -> bool {
        matches!(self.kind, 3 | 4 | 5 | 11 | 12)
    }

    /// The packet that an error is about, usually its first bytes only.
    pub fn quoted(&self) -> Option<Net<'a>> {
        self.is_error().then(|| ip::ipv4(self.payload))
    }
}

#[inline]
pub(super) fn parse(protocol: u8, data: &[u8]) -> Transport<'_> {
    let truncated = Transport::Truncated { protocol };
    match protocol {
        TCP => tcp(data).unwrap_or(truncated),
        UDP => udp(data).unwrap_or(truncated),
        ICMP => icmp(data).unwrap_or(truncated),
        ICMPV6 => data.first().map_or(truncated, |kind| Transport::Icmpv6 { kind: *kind }),
        other => Transport::Other(other),
    }
}

fn tcp(data: &[u8]) -> Option<Transport<'_>> {
    let head = data.first_chunk::<20>()?;
    let offset = usize::from(head[12] >> 4) * 4;
    if offset < 20 {
        return Some(Transport::Malformed("TCP header shorter than 20 bytes"));
    }
    Some(Transport::Tcp(Tcp {
        source: read_u16(head, 0)?,
        destination: read_u16(head, 2)?,
        sequence: read_u32(head, 4)?,
        acknowledgment: read_u32(head, 8)?,
        flags: TcpFlags(head[13]),
        window: read_u16(head, 14)?,
        payload: data.get(offset..).unwrap_or_default(),
    }))
}

fn udp(data: &[u8]) -> Option<Transport<'_>> {
    let head = data.first_chunk::<8>()?;
    let len = read_u16(head, 4)?;
    // 0 is what a segmentation-offload super-packet may carry; then the datagram ends with the packet.
    if (1..8).contains(&len) {
        return Some(Transport::Malformed("UDP length shorter than its header"));
    }
    let end = if len == 0 { data.len() } else { usize::from(len).min(data.len()) };
    let payload = &data[8..end];
    Some(Transport::Udp(Udp { source: read_u16(head, 0)?, destination: read_u16(head, 2)?, len, payload }))
}

fn icmp(data: &[u8]) -> Option<Transport<'_>> {
    let head = data.first_chunk::<8>()?;
    Some(Transport::Icmp(Icmp {
        kind: head[0],
        code: head[1],
        id: read_u16(head, 4)?,
        sequence: read_u16(head, 6)?,
        payload: &data[8..],
    }))
}
