//! Ingress of the tunnel's device: packets that other nodes have wrapped, for pods of this node and for the node itself.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_change_type};
use podwire_abi::{DropReason, NodeConfig, Point, identity, service::scope};

use crate::{
    DROP, NEXT,
    balance::{self, Outcome},
    deliver, masquerade,
    packet::{self, Ipv4},
    report, route, service, state,
    transport::Way,
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
    if ip.has_martian_source() {
        return dropped(skb, DropReason::InvalidSourceIp, &ip);
    }
    // The outer packet was for this host. The frame inside has addresses of the other node's devices, which mean nothing here.
    // SAFETY: as above. It fails for no type that a received frame can have.
    unsafe { bpf_skb_change_type(skb, packet::TO_THIS_HOST) };
    if let Some(endpoint) = state::endpoint(ip.dst) {
        if service::has_balanced(scope::INSIDE) {
            match balance::known(skb, Way::In) {
                Outcome::Translated(ip) => {
                    return deliver::routed(skb, config, Point::FromOverlay, 0, &ip, endpoint);
                }
                Outcome::Dropped(reason) => return dropped(skb, reason, &ip),
                Outcome::NotOurs | Outcome::Nobody => {}
            }
        }
        if is_from_node(config, ip.src)
            && let Err(reason) = masquerade::arriving_at_pod(skb)
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
    // Another node's pod answers a call from outside.
    if service::has_balanced(scope::OUTSIDE) {
        match balance::known(skb, Way::In) {
            Outcome::Translated(_) => return route::route_balanced(skb, Point::FromOverlay as u32),
            Outcome::Dropped(reason) => return dropped(skb, reason, &ip),
            Outcome::NotOurs | Outcome::Nobody => {}
        }
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

#[inline(always)]
fn dropped(skb: *mut __sk_buff, reason: DropReason, ip: &Ipv4) -> i32 {
    report::dropped(skb, Point::FromOverlay, reason, Some(ip), 0);
    DROP
}

/// Whether another node sent it from its own address. The pod's answer goes there without the tunnel, and must keep the pod's
/// address.
#[inline(always)]
fn is_from_node(config: &NodeConfig, src: u32) -> bool {
    state::beyond_native(config, src) && state::owner(src).is_some_and(|owner| owner.node_ip == src)
}
