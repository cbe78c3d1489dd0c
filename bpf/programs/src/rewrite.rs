//! Writing another address and port into a packet, every checksum kept right by difference (RFC 1624).
//!
//! A checksum that the device shall complete (`CHECKSUM_PARTIAL`) holds the pseudo header only: the helpers know, if they
//! are told which changes are of the pseudo header. A UDP checksum of zero means none, and stays.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::{bpf_l3_csum_replace, bpf_l4_csum_replace},
};

use crate::{
    packet::{self, ETHERNET},
    transport::{Flow, Quoted},
};

/// Which end of a packet is written.
#[derive(Clone, Copy, PartialEq)]
pub enum End {
    Source,
    Destination,
}

/// One end of a packet before and after; network byte order.
#[derive(Clone, Copy)]
pub struct Change {
    pub end: End,
    pub old: (u32, u16),
    pub new: (u32, u16),
}

const IP_CHECK: u32 = 10;

/// Where in the layer-4 header the checksum stands.
#[inline(always)]
fn check_offset(protocol: u8) -> u32 {
    match protocol {
        packet::TCP => 16,
        packet::UDP => 6,
        _ => 2,
    }
}

/// Where in the layer-4 header the port stands, or the identifier of an echo.
#[inline(always)]
fn port_offset(protocol: u8, end: End) -> u32 {
    match (protocol, end) {
        (packet::ICMP, _) => 4,
        (_, End::Source) => 0,
        (_, End::Destination) => 2,
    }
}

/// Replaces a field of `size` bytes in the sum of a layer-4 checksum.
#[inline(always)]
fn l4_sum(skb: *mut __sk_buff, check: u32, old: u32, new: u32, size: u32, protocol: u8, flags: u32) -> bool {
    let zero_is_none = if protocol == packet::UDP { BPF_F_MARK_MANGLED_0 } else { 0 };
    let flags = u64::from(size | flags | zero_is_none);
    // SAFETY: a valid context; the helper checks the offset.
    unsafe { bpf_l4_csum_replace(skb, check, u64::from(old), u64::from(new), flags) == 0 }
}

/// Writes an address into the IP header that begins at `ip`.
#[inline(always)]
fn address(skb: *mut __sk_buff, ip: u32, end: End, old: u32, new: u32) -> bool {
    let field = if end == End::Source { 12 } else { 16 };
    // SAFETY: a valid context; the helper checks the offset.
    let summed = unsafe { bpf_l3_csum_replace(skb, ip + IP_CHECK, u64::from(old), u64::from(new), 4) };
    summed == 0 && packet::store(skb, ip + field, &new)
}

/// Writes only the address of a packet: of an ICMP error, or of a later piece of a fragmented packet.
#[inline(always)]
pub fn outer(skb: *mut __sk_buff, end: End, old: u32, new: u32) -> bool {
    address(skb, ETHERNET as u32, end, old, new)
}

/// Writes one end of a packet of a connection; of a later piece of a fragmented packet the address.
#[inline(always)]
pub fn packet(skb: *mut __sk_buff, flow: &Flow, change: &Change) -> bool {
    if flow.has_header {
        translate(skb, flow.offset, flow.key.protocol, change)
    } else {
        outer(skb, change.end, change.old.0, change.new.0)
    }
}

/// Writes address and port of a packet whose layer-4 header begins at `l4`.
#[inline(always)]
fn translate(skb: *mut __sk_buff, l4: u32, protocol: u8, change: &Change) -> bool {
    let check = l4 + check_offset(protocol);
    let (old, new) = (change.old, change.new);
    if protocol != packet::ICMP && !l4_sum(skb, check, old.0, new.0, 4, protocol, BPF_F_PSEUDO_HDR) {
        return false;
    }
    if old.1 != new.1 {
        let port = l4 + port_offset(protocol, change.end);
        if !l4_sum(skb, check, old.1.into(), new.1.into(), 2, protocol, 0)
            || !packet::store(skb, port, &new.1)
        {
            return false;
        }
    }
    outer(skb, change.end, old.0, new.0)
}

/// Writes address and port of the packet that an ICMP error quotes, whose header begins at `icmp`. What is quoted is summed
/// like any payload, not as a header of this packet.
#[inline(always)]
pub fn quoted(skb: *mut __sk_buff, icmp: u32, quoted: &Quoted, change: &Change) -> bool {
    let (l4, protocol) = (quoted.l4, quoted.key.protocol);
    let outer_check = icmp + check_offset(packet::ICMP);
    let (old, new) = (change.old, change.new);
    // The error's own checksum covers the quoted address and the quoted header's checksum, whose changes cancel out.
    if !address(skb, quoted.at, change.end, old.0, new.0) {
        return false;
    }
    if old.1 != new.1 {
        let port = l4 + port_offset(protocol, change.end);
        if !packet::store(skb, port, &new.1)
            || !l4_sum(skb, outer_check, old.1.into(), new.1.into(), 2, packet::ICMP, 0)
        {
            return false;
        }
    }
    let check = l4 + check_offset(protocol);
    // Read anew: room on the stack is short. Behind the error's end nothing is quoted, even if there are bytes.
    let Some(error) = packet::ipv4(skb) else { return false };
    check + 2 > error.end(skb) || quoted_check(skb, outer_check, check, protocol, change)
}

/// Keeps the quoted packet's own layer-4 checksum right, where it is quoted at all: tools tell their probes apart by it.
#[inline(always)]
fn quoted_check(skb: *mut __sk_buff, outer_check: u32, check: u32, protocol: u8, change: &Change) -> bool {
    let (old, new) = (change.old, change.new);
    let Some(before) = packet::load::<u16>(skb, check) else { return false };
    if protocol == packet::UDP && before == 0 {
        return true;
    }
    if protocol != packet::ICMP && !l4_sum(skb, check, old.0, new.0, 4, protocol, 0) {
        return false;
    }
    if old.1 != new.1 && !l4_sum(skb, check, old.1.into(), new.1.into(), 2, protocol, 0) {
        return false;
    }
    let Some(after) = packet::load::<u16>(skb, check) else { return false };
    l4_sum(skb, outer_check, before.into(), after.into(), 2, packet::ICMP, 0)
}
