//! Ingress of a pod's device: what the pod sends, to another pod of this node, to the node, or by its routing table.

use aya_ebpf::bindings::__sk_buff;
use podwire_abi::{DropReason, Point, service::scope};

use crate::{
    DROP, NEXT,
    balance::{self, Outcome},
    deliver, masquerade,
    packet::{self, Ipv4},
    report,
    route::{self, Sender},
    service, state,
    transport::Way,
    unreachable,
};

#[inline(always)]
pub fn run(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the kernel hands every classifier a valid context.
    let (protocol, vlan, ifindex) = unsafe { ((*skb).protocol, (*skb).vlan_present, (*skb).ifindex) };
    if protocol != packet::PROTOCOL_IPV4 || vlan != 0 {
        return not_ipv4(skb, protocol, vlan);
    }
    let Some(config) = state::config() else { return DROP };
    let Some(ip) = packet::ipv4(skb) else {
        report::dropped(skb, Point::FromEndpoint, DropReason::Malformed, None, 0);
        return DROP;
    };
    let sender = match state::endpoint(ip.src) {
        Some(sender) if sender.ifindex == ifindex => sender,
        _ => {
            report::dropped(skb, Point::FromEndpoint, DropReason::InvalidSourceIp, Some(&ip), 0);
            return DROP;
        }
    };
    // SAFETY: as above.
    if ip.has_options() || unsafe { (*skb).pkt_type } != packet::TO_THIS_HOST {
        // Options and frames to everybody are the stack's work.
        report::forwarded(skb, config, Point::ToStack, &ip, sender.id, 0);
        return NEXT;
    }
    let ip = match balanced(skb, &ip) {
        Outcome::NotOurs => ip,
        Outcome::Translated(new) => {
            if new.src != ip.src {
                // The answer of a backend: it has its service's address, and is not to be masqueraded.
                masquerade::mark_done(skb);
            }
            new
        }
        Outcome::Nobody => {
            let reason = DropReason::ServiceBackendNotFound;
            report::dropped(skb, Point::FromEndpoint, reason, Some(&ip), sender.id);
            return unreachable::answer_unreachable(skb);
        }
        Outcome::Dropped(reason) => {
            report::dropped(skb, Point::FromEndpoint, reason, Some(&ip), sender.id);
            return DROP;
        }
    };
    if let Some(endpoint) = state::endpoint(ip.dst) {
        return deliver::routed(skb, config, Point::FromEndpoint, sender.id, &ip, endpoint);
    }
    if ip.dst == config.router_ip || ip.dst == config.node_ip {
        report::forwarded(skb, config, Point::ToStack, &ip, sender.id, 0);
        return NEXT;
    }
    if state::in_own_pod_cidr(config, ip.dst) {
        // No pod has it. The routing table could only send it to podwire_host, or out by the default route and back.
        report::dropped(skb, Point::FromEndpoint, DropReason::StaleOrUnroutable, Some(&ip), sender.id);
        return DROP;
    }
    let sender = Sender { received: Point::FromEndpoint, id: sender.id, identity: sender.identity };
    route::onward(skb, config, sender, &ip)
}

/// A pod's packet may be a call of a service that no socket made, or a backend's answer to one.
#[inline(always)]
fn balanced(skb: *mut __sk_buff, ip: &Ipv4) -> Outcome {
    let to_service = service::has_address(ip.dst);
    if to_service || service::sees_every_packet() {
        return match balance::call(skb, Way::Out, scope::INSIDE) {
            // An echo request, a piece of a packet, another protocol: it must not reach the wire.
            Outcome::NotOurs if to_service => Outcome::Nobody,
            outcome => outcome,
        };
    }
    if service::has_balanced(scope::OUTSIDE) || service::has_balanced(scope::INSIDE) {
        return balance::known(skb, Way::Out);
    }
    Outcome::NotOurs
}

/// ARP is the stack's: it answers for the pods' gateway, a local address of the node. Everything else is dropped. What
/// is sent to a group is counted only: a pod's kernel chats IPv6 neighbour discovery and MLD whatever one does, and that would
/// bury the drops that matter.
#[inline(always)]
fn not_ipv4(skb: *mut __sk_buff, protocol: u32, vlan: u32) -> i32 {
    if protocol == packet::PROTOCOL_ARP && vlan == 0 {
        return NEXT;
    }
    // SAFETY: a valid context.
    if unsafe { (*skb).pkt_type } == packet::TO_THIS_HOST {
        report::dropped(skb, Point::FromEndpoint, DropReason::UnsupportedL3, None, 0);
    } else {
        report::count(skb, Point::FromEndpoint, DropReason::UnsupportedL3);
    }
    DROP
}
