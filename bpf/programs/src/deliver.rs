//! The last hop: to a pod of this node.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_redirect_peer};
use podwire_abi::{DropReason, Endpoint, NodeConfig, Point};

use crate::{
    DROP, NEXT,
    packet::{self, Ipv4},
    report,
};

/// Puts the packet straight into the pod's namespace, as a router one hop before it: the TTL goes down by one.
/// `received` is where the packet came in, `sender` the number of the endpoint that sent it, if one did.
#[inline(always)]
pub fn routed(
    skb: *mut __sk_buff,
    config: &NodeConfig,
    received: Point,
    sender: u16,
    ip: &Ipv4,
    endpoint: &Endpoint,
) -> i32 {
    if ip.ttl <= 1 {
        // The stack takes the same decision and answers ICMP time exceeded.
        report::dropped(skb, received, DropReason::TtlExceeded, Some(ip), sender);
        return NEXT;
    }
    if !packet::decrement_ttl(skb) || !packet::address_to(skb, endpoint) {
        report::dropped(skb, received, DropReason::WriteError, Some(ip), sender);
        return DROP;
    }
    report::forwarded(skb, config, Point::ToEndpoint, ip, endpoint.id, endpoint.ifindex);
    // SAFETY: a plain helper call; a device that is gone makes the kernel drop the packet.
    unsafe { bpf_redirect_peer(endpoint.ifindex, 0) as i32 }
}
