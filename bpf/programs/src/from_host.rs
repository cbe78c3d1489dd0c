//! Egress of podwire_host: the node's stack has routed a packet to the pod CIDR (endpointRoutes off).

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_redirect};
use podwire_abi::{DropReason, Point};

use crate::{DROP, NEXT, packet, report, state};

#[inline(always)]
pub fn run(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the kernel hands every classifier a valid context.
    if unsafe { (*skb).protocol } != packet::PROTOCOL_IPV4 {
        return NEXT;
    }
    let Some(config) = state::config() else { return NEXT };
    let Some(ip) = packet::ipv4(skb) else {
        report::dropped(skb, Point::FromHost, DropReason::Malformed, None, 0);
        return DROP;
    };
    let Some(endpoint) = state::endpoint(ip.dst) else {
        if ip.is_to_many() {
            return NEXT;
        }
        report::dropped(skb, Point::FromHost, DropReason::StaleOrUnroutable, Some(&ip), 0);
        return DROP;
    };
    // The TTL stays: the stack has decremented it, or the packet is its own.
    if !packet::address_to(skb, endpoint) {
        report::dropped(skb, Point::FromHost, DropReason::WriteError, Some(&ip), endpoint.id);
        return DROP;
    }
    report::forwarded(skb, config, Point::ToEndpoint, &ip, endpoint.id, endpoint.ifindex);
    // SAFETY: a plain helper call. Not bpf_redirect_peer: that works at ingress only.
    unsafe { bpf_redirect(endpoint.ifindex, 0) as i32 }
}
