//! Egress of an underlay device: whatever leaves the node passes here, by the programs' way or by the stack's.

use aya_ebpf::bindings::__sk_buff;

use podwire_abi::{DropReason, Point, service::scope};

use crate::{
    DROP, NEXT,
    balance::{self, Outcome},
    masquerade,
    packet::{self, Ipv4},
    report, service, state,
    transport::Way,
};

#[inline(always)]
pub fn run(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the kernel hands every classifier a valid context.
    let (protocol, vlan) = unsafe { ((*skb).protocol, (*skb).vlan_present) };
    if protocol != packet::PROTOCOL_IPV4 || vlan != 0 {
        return NEXT;
    }
    let Some(config) = state::config() else { return NEXT };
    // What is malformed is not ours to judge here: it is the node's, a pod's was refused where it came from.
    let Some(ip) = packet::ipv4(skb) else { return NEXT };
    let beyond = state::beyond_native(config, ip.dst);
    if service::has_balanced(scope::OUTSIDE) && !masquerade::is_done(skb) {
        match balance::known(skb, Way::Out) {
            // The answer of a server of the node itself.
            Outcome::Translated(_) => return NEXT,
            Outcome::Dropped(reason) => return dropped(skb, reason, &ip),
            Outcome::NotOurs | Outcome::Nobody => {}
        }
        // Within the native network nothing is masqueraded; but the node has to keep its own connections to other nodes' pods
        // apart from those that it balances.
        if !beyond && ip.src != config.node_ip {
            return NEXT;
        }
    } else if !beyond {
        return NEXT;
    }
    masquerade::leaving(skb, config, &ip)
}

#[inline(always)]
fn dropped(skb: *mut __sk_buff, reason: DropReason, ip: &Ipv4) -> i32 {
    report::dropped(skb, Point::ToNetwork, reason, Some(ip), 0);
    DROP
}
