//! IPv4 (RFC 791) and as much IPv6 (RFC 8200) as tells what a packet carries.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::transport::{self, Transport};
use super::{Net, read_u16};

/// An IPv4 packet.
#[derive(Debug, Clone, Copy)]
pub struct Ipv4<'a> {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Protocol number of the payload.
    pub protocol: u8,
    /// Time to live.
    pub ttl: u8,
    /// Type of service.
    pub tos: u8,
    /// Identification, which survives forwarding and address translation.
    pub id: u16,
    /// The don't-fragment flag.
    pub dont_fragment: bool,
    /// More fragments follow.
    pub more_fragments: bool,
    /// Where this fragment's payload belongs, in bytes.
    pub fragment_offset: u16,
    /// Header length in bytes, options included.
    pub header_len: u8,
    /// Length by the header; 0 in a super-packet that the sender's device was to cut (it then ends with the frame).
    pub total_len: u16,
    /// The payload, as far as it was captured; link padding removed.
    pub payload: &'a [u8],
    /// Fewer bytes were captured than the header declares.
    pub cut: bool,
}

impl<'a> Ipv4<'a> {
    /// The header inside.
    #[inline]
    pub fn transport(&self) -> Transport<'a> {
        if self.fragment_offset > 0 {
            return Transport::Fragment { protocol: self.protocol };
        }
        transport::parse(self.protocol, self.payload)
    }

    /// Length of the payload by the header, in bytes.
    pub fn payload_len(&self) -> usize {
        match self.total_len {
            0 => self.payload.len(),
            total => usize::from(total).saturating_sub(usize::from(self.header_len)),
        }
    }
}

#[inline]
pub(super) fn ipv4(data: &[u8]) -> Net<'_> {
    let Some(head) = data.first_chunk::<20>() else { return Net::Truncated };
    if head[0] >> 4 != 4 {
        return Net::Malformed("IPv4 whose version is not 4");
    }
    let header_len = usize::from(head[0] & 15) * 4;
    if header_len < 20 {
        return Net::Malformed("IPv4 header shorter than 20 bytes");
    }
    let total = u16::from_be_bytes([head[2], head[3]]);
    if total != 0 && usize::from(total) < header_len {
        return Net::Malformed("IPv4 total length shorter than its header");
    }
    if data.len() < header_len {
        return Net::Truncated;
    }
    let end = if total == 0 { data.len() } else { usize::from(total).min(data.len()) };
    let fragment = u16::from_be_bytes([head[6], head[7]]);
    Net::Ipv4(Ipv4 {
        source: Ipv4Addr::new(head[12], head[13], head[14], head[15]),
        destination: Ipv4Addr::new(head[16], head[17], head[18], head[19]),
        protocol: head[9],
        ttl: head[8],
        tos: head[1],
        id: u16::from_be_bytes([head[4], head[5]]),
        dont_fragment: fragment & 0x4000 != 0,
        more_fragments: fragment & 0x2000 != 0,
        // 13 bits of 8-byte units always fit 16 bits.
        fragment_offset: (fragment & 0x1fff) << 3,
        header_len: header_len as u8,
        total_len: total,
        payload: &data[header_len..end],
        cut: usize::from(total) > data.len(),
    })
}

/// An IPv6 packet, extension headers skipped.
#[derive(Debug, Clone, Copy)]
pub struct Ipv6<'a> {
    /// Source address.
    pub source: Ipv6Addr,
    /// Destination address.
    pub destination: Ipv6Addr,
    /// Protocol number after the extension headers that could be read.
    pub protocol: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Not the first fragment of its packet.
    pub later_fragment: bool,
    /// What follows the headers, as far as it was captured.
    pub payload: &'a [u8],
}

impl<'a> Ipv6<'a> {
    /// The header inside.
    pub fn transport(&self) -> Transport<'a> {
        if self.later_fragment {
            return Transport::Fragment { protocol: self.protocol };
        }
        transport::parse(self.protocol, self.payload)
    }
}

pub(super) fn ipv6(data: &[u8]) -> Net<'_> {
    let Some(head) = data.first_chunk::<40>() else { return Net::Truncated };
    if head[0] >> 4 != 6 {
        return Net::Malformed("IPv6 whose version is not 6");
    }
    let address = |at: usize| {
        let mut octets = [0u8; 16];
        octets.copy_from_slice(&head[at..at + 16]);
        Ipv6Addr::from(octets)
    };
    let declared = usize::from(u16::from_be_bytes([head[4], head[5]]));
    let end = if declared == 0 { data.len() } else { (40 + declared).min(data.len()) };
    let mut payload = &data[40..end];
    let mut protocol = head[6];
    let mut later_fragment = false;
    // Hop-by-hop 0, routing 43, fragment 44, destination options 60; more than eight in a row is nobody's packet.
    for _ in 0..8 {
        let len = match (protocol, payload) {
            (0 | 43 | 60, [_, len, ..]) => (usize::from(*len) + 1) * 8,
            (44, [_, _, _, _, ..]) => {
                later_fragment |= read_u16(payload, 2).is_some_and(|field| field >> 3 != 0);
                8
            }
            _ => break,
        };
        let Some(rest) = payload.get(len..) else { break };
        protocol = payload[0];
        payload = rest;
    }
    let (source, destination) = (address(8), address(24));
    Net::Ipv6(Ipv6 { source, destination, protocol, hop_limit: head[7], later_fragment, payload })
}
