//! The way out: through the tunnel, or by the kernel's routing table.

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
use podwire_abi::{DropReason, NodeConfig, Point, identity};

use crate::{
    DROP, NEXT, masquerade, overlay,
    packet::{self, Ipv4},
    report, state,
};

const AF_INET: u32 = 2;

/// Whose packet it is.
#[derive(Clone, Copy)]
pub struct Sender {
    /// Where it came in.
    pub received: Point,
    /// Number of the endpoint that sent it, if one did.
    pub id: u16,
    /// Identity, for the tunnel.
    pub identity: u32,
}

/// Sends a packet on that is for no pod of this node and not for the node.
#[inline(always)]
pub fn onward(skb: *mut __sk_buff, config: &NodeConfig, sender: Sender, ip: &Ipv4) -> i32 {
    if let Some(node) = overlay::node_of(config, ip.dst) {
        return wrap(skb, config, sender, ip, node);
    }
    by_table(skb, config, sender, ip)
}

/// Sends a packet on that has the ends now that a service's balancing gave it, and is for no pod of this node. `received` is a
/// [`Point`]'s number. A function that the linker sees: verified once, and off the stack of those who call it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn route_balanced(skb: *mut __sk_buff, received: u32) -> i32 {
    let (Some(config), Some(ip)) = (state::config(), packet::ipv4(skb)) else { return DROP };
    if ip.has_options() || state::owner(ip.dst).is_some_and(|owner| owner.identity == identity::HOST) {
        // For the node itself, or more than the programs can do.
        report::forwarded(skb, config, Point::ToStack, &ip, 0, 0);
        return NEXT;
    }
    masquerade::mark_done(skb);
    let received =
        if received == Point::FromOverlay as u32 { Point::FromOverlay } else { Point::FromNetwork };
    onward(skb, config, Sender { received, id: 0, identity: identity::HOST }, &ip)
}

/// Sends it through the tunnel. The TTL stays: the node at the other end is the only router on the way.
#[inline(always)]
fn wrap(skb: *mut __sk_buff, config: &NodeConfig, sender: Sender, ip: &Ipv4, node: u32) -> i32 {
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

/// Forwards by the kernel's routing table, policy rules included, or hands to the stack what a router answers for.
#[inline(always)]
fn by_table(skb: *mut __sk_buff, config: &NodeConfig, sender: Sender, ip: &Ipv4) -> i32 {
    if ip.is_to_nowhere() {
        // A default route would carry it away; the stack drops it as a martian.
        return to_stack_dropped(skb, sender, ip, DropReason::FibLookupFailed);
    }
    if ip.is_to_many() {
        // Whatever the frame's address says: not by a route to a single host.
        report::forwarded(skb, config, Point::ToStack, ip, sender.id, 0);
        return NEXT;
    }
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
fn to_stack_dropped(skb: *mut __sk_buff, sender: Sender, ip: &Ipv4, reason: DropReason) -> i32 {
    report::dropped(skb, sender.received, reason, Some(ip), sender.id);
    NEXT
}

/// Sends the packet out by the device and the next hop that the lookup gave; the neighbour table adds the MAC address.
#[inline(always)]
fn forward(skb: *mut __sk_buff, config: &NodeConfig, sender: Sender, ip: &Ipv4, fib: &FibLookup) -> i32 {
    if ip.ttl <= 1 {
        return to_stack_dropped(skb, sender, ip, DropReason::TtlExceeded);
    }
    if !packet::decrement_ttl(skb) {
        report::dropped(skb, sender.received, DropReason::WriteError, Some(ip), sender.id);
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
