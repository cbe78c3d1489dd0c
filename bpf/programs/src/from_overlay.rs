//! Ingress of the tunnel's device: packets that other nodes have wrapped, for pods of this node and for the node itself.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_change_type};
use podwire_abi::{DropReason, NodeConfig, Point, identity};

use crate::{
    DROP, NEXT, deliver, masquerade,
    packet::{self, Ipv4},
    report, state,
};

#[inline(always)]
pub fn run(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the kernel hands every classifier a valid context.
    let (protocol, vlan) = unsafe { ((*skb).protocol, (*skb).vlan_present) };
    if protocol != packet::PROTOCOL_IPV4 || vlan != 0 {
        report::count(skb, Point::FromOverlay, DropReason::UnsupportedL3);
        return DROP;
    }
    let Some(config) = state::config() else { return DROP };
    let Some(ip) = packet::ipv4(skb) else {
        report::dropped(skb, Point::FromOverlay, DropReason::Malformed, None, 0);
        return DROP;
    };
    // The outer packet was for this host. The frame inside has addresses of the other node's devices, which mean nothing here.
    // SAFETY: as above. It fails for no type that a received frame can have.
    unsafe { bpf_skb_change_type(skb, packet::TO_THIS_HOST) };
    if let Some(endpoint) = state::endpoint(ip.dst) {
        if is_from_node(config, ip.src)
            && let Err(reason) = masquerade::arriving_at_pod(skb, &ip)
        {
            report::dropped(skb, Point::FromOverlay, reason, Some(&ip), endpoint.id);
            return DROP;
        }
        if ip.has_options() {
            // Options are the stack's work; it forwards the packet to the pod itself.
            return NEXT;
        }
        return deliver::routed(skb, config, Point::FromOverlay, 0, &ip, endpoint);
    }
    if ip.dst == config.router_ip
        || state::owner(ip.dst).is_some_and(|owner| owner.identity == identity::HOST)
    {
        report::forwarded(skb, config, Point::ToStack, &ip, 0, 0);
        return NEXT;
    }
    // The stack would send it on, by the tunnel again if the other node knows better than this one.
    report::dropped(skb, Point::FromOverlay, DropReason::StaleOrUnroutable, Some(&ip), 0);
    DROP
}

/// Whether another node sent it from its own address. The pod's answer goes there without the tunnel, and must keep the pod's
/// address.
#[inline(always)]
fn is_from_node(config: &NodeConfig, src: u32) -> bool {
    state::beyond_native(config, src) && state::owner(src).is_some_and(|owner| owner.node_ip == src)
}
