//! Egress of an underlay device: whatever leaves the node passes here, by the programs' way or by the stack's.

use aya_ebpf::bindings::__sk_buff;

use crate::{NEXT, masquerade, packet, state};

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
    if !state::beyond_native(config, ip.dst) {
        return NEXT;
    }
    masquerade::leaving(skb, config, &ip)
}
