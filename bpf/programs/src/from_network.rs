//! Ingress of an underlay device: packets for pods of this node skip the node's stack.

use aya_ebpf::bindings::__sk_buff;
use podwire_abi::{DropReason, Point};

use crate::{DROP, NEXT, deliver, packet, report, state};

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
    let Some(endpoint) = state::endpoint(ip.dst) else {
        if state::in_own_pod_cidr(config, ip.dst) && ip.dst != config.router_ip {
            // The stack might send it back to where it came from, by the default route.
            report::dropped(skb, Point::FromNetwork, DropReason::StaleOrUnroutable, Some(&ip), 0);
            return DROP;
        }
        return NEXT;
    };
    if ip.has_options() {
        // Options are the stack's work; it forwards the packet to the pod itself.
        return NEXT;
    }
    deliver::routed(skb, config, Point::FromNetwork, 0, &ip, endpoint)
}
