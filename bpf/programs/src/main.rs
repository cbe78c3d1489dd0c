//! The datapath: classifiers at the devices of a node, one file a hook, and programs at the sockets of its processes.
//!
//! Forwarding is by the kernel's own routing table (`bpf_fib_lookup`); the maps know only which addresses are pods of
//! this node. Whatever the programs do not forward themselves goes on to the node's network stack, which then answers
//! as a router does: ARP, ICMP errors, fragmentation, IP options.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the classifier macro makes public functions of its own")]
#![allow(
    clippy::inline_always,
    reason = "every call costs instructions, and a subprogram loses what the verifier knows of the packet"
)]
#![allow(
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::cast_ptr_alignment,
    reason = "the helpers' signatures; packets are read unaligned"
)]
#![allow(clippy::needless_pass_by_value, reason = "the classifier macro passes its context so")]

use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier},
    programs::{SockAddrContext, TcContext},
};

mod balance;
mod connection;
mod deliver;
mod from_endpoint;
mod from_host;
mod from_network;
mod from_overlay;
mod masquerade;
mod overlay;
mod packet;
mod report;
mod rewrite;
mod route;
mod service;
mod socket;
mod state;
mod to_endpoint;
mod to_network;
mod transport;
mod unreachable;

/// Let the next program, and then the network stack, have the packet (`TC_ACT_UNSPEC`, the `TCX_NEXT` of tcx links).
const NEXT: i32 = -1;
/// Drop the packet (`TC_ACT_SHOT`).
const DROP: i32 = 2;

/// Ingress of a pod's device on the node: what the pod sends.
#[classifier]
pub fn from_endpoint(ctx: TcContext) -> i32 {
    from_endpoint::run(ctx.skb.skb)
}

/// Egress of a pod's device on the node: what the node's stack sends to the pod.
#[classifier]
pub fn to_endpoint(ctx: TcContext) -> i32 {
    to_endpoint::run(ctx.skb.skb)
}

/// Ingress of a device of the underlay: what the wire brings.
#[classifier]
pub fn from_network(ctx: TcContext) -> i32 {
    from_network::run(ctx.skb.skb)
}

/// Egress of podwire_host: what the node's stack routes to the pod CIDR.
#[classifier]
pub fn from_host(ctx: TcContext) -> i32 {
    from_host::run(ctx.skb.skb)
}

/// Egress of a device of the underlay: what leaves the node.
#[classifier]
pub fn to_network(ctx: TcContext) -> i32 {
    to_network::run(ctx.skb.skb)
}

/// A socket connects.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    socket::connecting(ctx.sock_addr)
}

/// A socket that is not connected sends.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    socket::connecting(ctx.sock_addr)
}

/// A socket is told where a datagram came from.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::naming_peer(ctx.sock_addr)
}

/// A socket is told to whom it is connected.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    socket::naming_peer(ctx.sock_addr)
}

/// Ingress of the tunnel's device: what other nodes have wrapped for this one.
#[classifier]
pub fn from_overlay(ctx: TcContext) -> i32 {
    from_overlay::run(ctx.skb.skb)
}

/// `bpf_redirect_neigh` and `bpf_redirect_peer` are GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here panics: the verifier would refuse the endless loop if this could be reached.
    loop {}
}
