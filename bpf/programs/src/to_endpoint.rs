//! Egress of a pod's device: what the node's stack sends to the pod, the answers of the node's own servers among it. What the
//! programs deliver goes by another way.

use aya_ebpf::bindings::__sk_buff;
use podwire_abi::{Point, service::scope};

use crate::{
    DROP, NEXT,
    balance::{self, Outcome},
    packet, report, service,
    transport::Way,
};

#[inline(always)]
pub fn run(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the kernel hands every classifier a valid context.
    if unsafe { (*skb).protocol } != packet::PROTOCOL_IPV4 || !service::has_balanced(scope::INSIDE) {
        return NEXT;
    }
    if let Outcome::Dropped(reason) = balance::known(skb, Way::In) {
        report::dropped(skb, Point::ToEndpoint, reason, packet::ipv4(skb).as_ref(), 0);
        return DROP;
    }
    NEXT
}
