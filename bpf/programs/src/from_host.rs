//! Egress of podwire_host: the node's stack has routed a packet to a pod: of this node with endpointRoutes off, of another
//! through the tunnel.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_redirect};
use podwire_abi::{DropReason, NodeConfig, Point, identity};

use crate::{
    DROP, NEXT, overlay,
    packet::{self, Ipv4},
    report, state,
};

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
        return to_no_pod(skb, config, &ip);
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

/// The packet is the node's own, or one of a pod that the stack had to look at.
#[inline(always)]
fn to_no_pod(skb: *mut __sk_buff, config: &NodeConfig, ip: &Ipv4) -> i32 {
    if let Some(node) = overlay::node_of(config, ip.dst) {
        let (identity, id) =
            state::endpoint(ip.src).map_or((identity::HOST, 0), |pod| (pod.identity, pod.id));
        return overlay::send(skb, config, ip, node, identity, id);
    }
    let reason = if config.tunnel_ifindex == 0 || state::in_own_pod_cidr(config, ip.dst) {
        DropReason::StaleOrUnroutable
    } else {
        DropReason::NoTunnelEndpoint
    };
    report::dropped(skb, Point::FromHost, reason, Some(ip), 0);
    DROP
}
