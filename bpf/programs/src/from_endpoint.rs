//! Ingress of a pod's device: what the pod sends, to another pod of this node, to the node, or by its routing table.

use core::mem;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED,
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_PROHIBIT,
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE, bpf_fib_lookup as FibLookup,
        bpf_redir_neigh as NextHop,
    },
    helpers::{bpf_fib_lookup, bpf_redirect_neigh},
};
use podwire_abi::{DropReason, Endpoint, NodeConfig, Point, identity};

use crate::{
    DROP, NEXT, deliver, overlay,
    packet::{self, Ipv4},
    report, service, state,
};

const AF_INET: u32 = 2;

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
    if service::has_address(ip.dst) {
        // Sockets were given a backend; what still goes to the service is of none, and must not reach the wire.
        let reason = DropReason::ServiceBackendNotFound;
        report::dropped(skb, Point::FromEndpoint, reason, Some(&ip), sender.id);
        return DROP;
    }
    if let Some(node) = overlay::node_of(config, ip.dst) {
        return wrap(skb, config, sender, &ip, node);
    }
    route(skb, config, sender, &ip)
}

/// Sends it through the tunnel. The TTL stays: the node at the other end is the only router on the way.
#[inline(always)]
fn wrap(skb: *mut __sk_buff, config: &NodeConfig, sender: &Endpoint, ip: &Ipv4, node: u32) -> i32 {
    let length = packet::wire_length(skb, ip, &packet::ports(skb, ip));
    if u32::from(length) <= config.tunnel_mtu {
        return overlay::send(skb, config, ip, node, sender.identity, sender.id);
    }
    // From a pod whose device was made for a larger MTU. The stack answers or cuts it into pieces, which come back by
    // podwire_host.
    if ip.dont_fragment() {
        return to_stack_dropped(skb, sender, ip, DropReason::FragmentationNeeded);
    }
    report::forwarded(skb, config, Point::ToStack, ip, sender.id, 0);
    NEXT
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

/// Forwards by the kernel's routing table, policy rules included, or hands to the stack what a router answers for.
#[inline(always)]
fn route(skb: *mut __sk_buff, config: &NodeConfig, sender: &Endpoint, ip: &Ipv4) -> i32 {
    let ports = packet::ports(skb, ip);
    // SAFETY: integers only, for which zero is a value.
    let mut fib: FibLookup = unsafe { mem::zeroed() };
    fib.family = AF_INET as u8;
    fib.l4_protocol = ip.protocol;
    fib.sport = ports.source;
    fib.dport = ports.destination;
    fib.__bindgen_anon_1.tot_len = packet::wire_length(skb, ip, &ports);
    fib.__bindgen_anon_2.tos = ip.tos;
    fib.__bindgen_anon_3.ipv4_src = ip.src;
    fib.__bindgen_anon_4.ipv4_dst = ip.dst;
    // SAFETY: a valid context.
    fib.ifindex = unsafe { (*skb).ifindex };
    // SAFETY: the struct is initialised, of the size given, and outlives the call.
    let verdict =
        unsafe { bpf_fib_lookup(skb.cast(), &raw mut fib, size_of::<FibLookup>() as i32, 0) } as u32;
    match verdict {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => forward(skb, config, sender, ip, &fib),
        BPF_FIB_LKUP_RET_FRAG_NEEDED if ip.ttl > 1 && ip.dont_fragment() => {
            to_stack_dropped(skb, sender, ip, DropReason::FragmentationNeeded)
        }
        // "Not forwarded" is said of the node's own addresses and of addresses without any route.
        BPF_FIB_LKUP_RET_NOT_FWDED if !is_local(ip) => {
            to_stack_dropped(skb, sender, ip, DropReason::FibLookupFailed)
        }
        BPF_FIB_LKUP_RET_BLACKHOLE
        | BPF_FIB_LKUP_RET_UNREACHABLE
        | BPF_FIB_LKUP_RET_PROHIBIT
        | BPF_FIB_LKUP_RET_FWD_DISABLED => to_stack_dropped(skb, sender, ip, DropReason::FibLookupFailed),
        // A local address, a packet to be fragmented, a route with encapsulation: the stack does it.
        _ => {
            report::forwarded(skb, config, Point::ToStack, ip, sender.id, 0);
            NEXT
        }
    }
}

/// Whether the stack takes the packet for itself, as far as the ipcache knows the node's addresses.
#[inline(always)]
fn is_local(ip: &Ipv4) -> bool {
    ip.is_to_many() || state::owner(ip.dst).is_some_and(|owner| owner.identity == identity::HOST)
}

/// Reports a drop whose ICMP error, if there is one, the stack sends: it takes the same decision by the same table.
#[inline(always)]
fn to_stack_dropped(skb: *mut __sk_buff, sender: &Endpoint, ip: &Ipv4, reason: DropReason) -> i32 {
    report::dropped(skb, Point::FromEndpoint, reason, Some(ip), sender.id);
    NEXT
}

/// Sends the packet out by the device and the next hop that the lookup gave; the neighbour table adds the MAC address.
#[inline(always)]
fn forward(skb: *mut __sk_buff, config: &NodeConfig, sender: &Endpoint, ip: &Ipv4, fib: &FibLookup) -> i32 {
    if ip.ttl <= 1 {
        return to_stack_dropped(skb, sender, ip, DropReason::TtlExceeded);
    }
    if !packet::decrement_ttl(skb) {
        report::dropped(skb, Point::FromEndpoint, DropReason::WriteError, Some(ip), sender.id);
        return DROP;
    }
    // SAFETY: integers only, for which zero is a value.
    let mut next_hop: NextHop = unsafe { mem::zeroed() };
    // IPv6 where the route's gateway is one (RFC 8950).
    next_hop.nh_family = u32::from(fib.family);
    // SAFETY: both unions are four words of integers.
    next_hop.__bindgen_anon_1.ipv6_nh = unsafe { fib.__bindgen_anon_4.ipv6_dst };
    report::forwarded(skb, config, Point::ToNetwork, ip, sender.id, fib.ifindex);
    // SAFETY: the struct is initialised, of the size given, and outlives the call.
    unsafe { bpf_redirect_neigh(fib.ifindex, &raw mut next_hop, size_of::<NextHop>() as i32, 0) as i32 }
}
