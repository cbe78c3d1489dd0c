//! Counting and reporting what became of a packet.

use core::ptr;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_ktime_get_boot_ns, bpf_skb_load_bytes},
};
use podwire_abi::{DropReason, EVENT_HEADER_BYTES, Event, NodeConfig, Point, flags, metric_index};

use crate::{
    packet::{ETHERNET, Ipv4},
    state,
};

const _: () = assert!(EVENT_HEADER_BYTES.is_power_of_two());

/// Counts a packet in the slot of its point and reason.
#[inline(always)]
pub fn count(skb: *mut __sk_buff, point: Point, reason: DropReason) {
    if let Some(counter) = state::METRICS.get_ptr_mut(metric_index(point, reason)) {
        // SAFETY: the slot is this CPU's own, and the program is not preempted by another that writes it.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from((*skb).len.saturating_sub(ETHERNET as u32));
        }
    }
}

/// Counts a drop and reports it. The caller decides whether the packet ends here or the stack still answers for it.
#[inline(always)]
pub fn dropped(skb: *mut __sk_buff, point: Point, reason: DropReason, ip: Option<&Ipv4>, endpoint_id: u16) {
    count(skb, point, reason);
    let (src, dst) = ip.map_or((0, 0), |ip| (ip.src, ip.dst));
    emit(skb, src, dst, pack(point, reason, endpoint_id), 0);
}

/// Counts a forwarded packet, and reports it if somebody listens.
#[inline(always)]
pub fn forwarded(
    skb: *mut __sk_buff,
    config: &NodeConfig,
    point: Point,
    ip: &Ipv4,
    endpoint_id: u16,
    out_ifindex: u32,
) {
    count(skb, point, DropReason::None);
    if config.flags & flags::TRACE != 0 {
        emit(skb, ip.src, ip.dst, pack(point, DropReason::None, endpoint_id), out_ifindex);
    }
}

/// Point, reason and endpoint in one word: a subprogram takes at most five arguments.
#[inline(always)]
fn pack(point: Point, reason: DropReason, endpoint_id: u16) -> u32 {
    point as u32 | (reason as u32) << 8 | u32::from(endpoint_id) << 16
}

/// Writes one event; if the ring is full the event is lost, never the packet. Not inlined: it is off the hot path, and
/// every hook shares it.
#[inline(never)]
fn emit(skb: *mut __sk_buff, src: u32, dst: u32, what: u32, out_ifindex: u32) {
    let src_identity = state::owner(src).map_or(0, |owner| owner.identity);
    let dst_identity = state::owner(dst).map_or(0, |owner| owner.identity);
    let Some(mut entry) = state::EVENTS.reserve::<Event>(0) else { return };
    let event = entry.as_mut_ptr();
    // SAFETY: `event` points to a reserved record of that size, of which every field is written; the context is valid.
    unsafe {
        let length = (*skb).len.saturating_sub(ETHERNET as u32);
        (*event).time_ns = bpf_ktime_get_boot_ns();
        (*event).ifindex = (*skb).ifindex;
        (*event).out_ifindex = out_ifindex;
        (*event).src_identity = src_identity;
        (*event).dst_identity = dst_identity;
        (*event).length = length;
        (*event).endpoint_id = (what >> 16) as u16;
        (*event).point = what as u8;
        (*event).reason = (what >> 8) as u8;
        ptr::write_bytes(&raw mut (*event).header, 0, 1);
        // Read as if it could be anything: the compiler would drop the mask, by which the verifier sees the bounds.
        let wanted = ptr::read_volatile(&length.min(EVENT_HEADER_BYTES as u32));
        let wanted = (wanted.wrapping_sub(1) & (EVENT_HEADER_BYTES as u32 - 1)) + 1;
        // Fails for an empty packet only, whose header then stays zeroes.
        bpf_skb_load_bytes(skb.cast(), ETHERNET as u32, (&raw mut (*event).header).cast(), wanted);
    }
    entry.submit(0);
}
