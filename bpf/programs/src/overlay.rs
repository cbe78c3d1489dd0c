//! The tunnel's sending side: packets for pods of other nodes, wrapped in packets from node to node.
//!
//! The wrapping is the kernel's: a vxlan device without settings of its own takes the other node and the network
//! identifier from each packet. The outer packet goes by the node's routing table.

use core::mem::{self, offset_of};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_ZERO_CSUM_TX, bpf_tunnel_key as TunnelKey},
    helpers::{bpf_redirect, bpf_skb_set_tunnel_key},
};
use podwire_abi::{DropReason, NodeConfig, Point};

use crate::{DROP, masquerade, packet::Ipv4, report, state};

/// As much of the struct as kernels before 5.19 know; the outer source follows from the route.
const KEY_BYTES: u32 = offset_of!(TunnelKey, __bindgen_anon_3) as u32;

/// Whether packets for other nodes' pods go through the tunnel.
#[inline(always)]
pub fn is_used() -> bool {
    state::config().is_some_and(|config| config.tunnel_ifindex != 0)
}

/// The node to which a packet for this address goes through the tunnel, network byte order. None for the node's address
/// itself, on which the tunnel stands.
#[inline(always)]
pub fn node_of(config: &NodeConfig, dst: u32) -> Option<u32> {
    if config.tunnel_ifindex == 0 {
        return None;
    }
    state::owner(dst).map(|owner| owner.node_ip).filter(|node| *node != 0 && *node != dst)
}

/// Sends the packet to the node, with the identity of who sent it as the network identifier.
#[inline(always)]
pub fn send(
    skb: *mut __sk_buff,
    config: &NodeConfig,
    ip: &Ipv4,
    node: u32,
    identity: u32,
    sender: u16,
) -> i32 {
    // SAFETY: integers only, for which zero is a value: no TTL and TOS of ours, no flags.
    let mut key: TunnelKey = unsafe { mem::zeroed() };
    key.tunnel_id = identity;
    key.__bindgen_anon_1.remote_ipv4 = u32::from_be(node);
    // The inner packet has its own checksums (RFC 7348, 4.1).
    let flags = u64::from(BPF_F_ZERO_CSUM_TX);
    // SAFETY: a valid context; the struct is initialised, larger than the size given, and outlives the call.
    if unsafe { bpf_skb_set_tunnel_key(skb, &raw mut key, KEY_BYTES, flags) } != 0 {
        report::dropped(skb, Point::ToOverlay, DropReason::WriteError, Some(ip), sender);
        return DROP;
    }
    masquerade::mark_done(skb);
    report::forwarded(skb, config, Point::ToOverlay, ip, sender, config.tunnel_ifindex);
    // SAFETY: a plain helper call; a device that is gone makes the kernel drop the packet.
    unsafe { bpf_redirect(config.tunnel_ifindex, 0) as i32 }
}
