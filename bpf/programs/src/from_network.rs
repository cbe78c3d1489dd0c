//! Ingress of an underlay device: packets for pods of this node skip the node's stack, answers to masqueraded ones too.

use aya_ebpf::bindings::__sk_buff;
use podwire_abi::{DropReason, Endpoint, NodeConfig, Point, service::scope};

use crate::{
    DROP, NEXT,
    balance::{self, Outcome},
    deliver,
    masquerade::{self, Arrival},
    packet::{self, Ipv4},
    report, route, service, state,
    transport::Way,
};

#[inline(always)]
pub fn run(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the kernel hands every classifier a valid context.
    let (protocol, pkt_type, vlan) = unsafe { ((*skb).protocol, (*skb).pkt_type, (*skb).vlan_present) };
    // A frame to another host's address (a bridge floods what it has not learnt) must not be delivered twice.
    if protocol != packet::PROTOCOL_IPV4 || pkt_type != packet::TO_THIS_HOST || vlan != 0 {
        return NEXT;
    }
    let Some(config) = state::config() else { return NEXT };
    let Some(ip) = packet::ipv4(skb) else {
        report::dropped(skb, Point::FromNetwork, DropReason::Malformed, None, 0);
        return DROP;
    };
    if ip.has_martian_source() {
        return dropped(skb, DropReason::InvalidSourceIp, &ip);
    }
    let from_beyond = state::beyond_native(config, ip.src);
    if let Some(endpoint) = state::endpoint(ip.dst) {
        if service::has_balanced(scope::INSIDE) {
            match balance::known(skb, Way::In) {
                Outcome::Translated(ip) => return deliver(skb, config, &ip, endpoint),
                Outcome::Dropped(reason) => return dropped(skb, reason, &ip),
                Outcome::NotOurs | Outcome::Nobody => {}
            }
        }
        if from_beyond && let Err(reason) = masquerade::arriving_at_pod(skb) {
            return dropped(skb, reason, &ip);
        }
        return deliver(skb, config, &ip, endpoint);
    }
    let serves = service::serves_outside();
    if serves {
        match balance::call(skb, Way::In, scope::OUTSIDE) {
            Outcome::Translated(ip) => return balanced(skb, config, &ip),
            Outcome::Dropped(reason) => return dropped(skb, reason, &ip),
            // Where nobody answers, the stack refuses: the port is the node's, and no socket has it.
            Outcome::NotOurs | Outcome::Nobody => {}
        }
    }
    if !from_beyond && !serves {
        return to_no_pod(skb, config, &ip);
    }
    match masquerade::arriving(skb, &ip) {
        Arrival::NotOurs => to_no_pod(skb, config, &ip),
        Arrival::Failed => dropped(skb, DropReason::WriteError, &ip),
        Arrival::Translated => {
            let Some(mut ip) = packet::ipv4(skb) else { return DROP };
            let Some(endpoint) = state::endpoint(ip.dst) else {
                // The node's own, or of a pod that is gone.
                return to_no_pod(skb, config, &ip);
            };
            // A pod called a service whose backend is beyond the native network.
            if service::has_balanced(scope::INSIDE)
                && let Outcome::Translated(new) = balance::known(skb, Way::In)
            {
                ip = new;
            }
            deliver(skb, config, &ip, endpoint)
        }
    }
}

/// A call of a service, or an answer from another node, with its new ends: to a pod of this node, to the node, or on.
#[inline(always)]
fn balanced(skb: *mut __sk_buff, config: &NodeConfig, ip: &Ipv4) -> i32 {
    if let Some(endpoint) = state::endpoint(ip.dst) {
        return deliver(skb, config, ip, endpoint);
    }
    route::route_balanced(skb, Point::FromNetwork as u32)
}

#[inline(always)]
fn dropped(skb: *mut __sk_buff, reason: DropReason, ip: &Ipv4) -> i32 {
    report::dropped(skb, Point::FromNetwork, reason, Some(ip), 0);
    DROP
}

#[inline(always)]
fn deliver(skb: *mut __sk_buff, config: &NodeConfig, ip: &Ipv4, endpoint: &Endpoint) -> i32 {
    if ip.has_options() {
        // Options are the stack's work; it forwards the packet to the pod itself.
        return NEXT;
    }
    deliver::routed(skb, config, Point::FromNetwork, 0, ip, endpoint)
}

/// The node's own packets, and what it forwards.
#[inline(always)]
fn to_no_pod(skb: *mut __sk_buff, config: &NodeConfig, ip: &Ipv4) -> i32 {
    if state::in_own_pod_cidr(config, ip.dst) && ip.dst != config.router_ip {
        // The stack might send it back to where it came from, by the default route.
        return dropped(skb, DropReason::StaleOrUnroutable, ip);
    }
    NEXT
}
