//! The sockets of a node's processes, pods' among them: a service's address is replaced before there is a packet.

use core::ptr;

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
};
use podwire_abi::service::{PeerKey, ServiceKey, Target, scope};

use crate::{
    packet,
    service::{self, Caller, Choice},
};

/// Let the call go on.
const GO_ON: i32 = 1;
/// Let the call fail.
const FAIL: i32 = 0;

const ECONNREFUSED: i32 = 111;

/// The address and port that the call is about.
#[inline(always)]
fn target(ctx: *mut bpf_sock_addr) -> Target {
    // SAFETY: the kernel hands every program a valid context. Volatile, for the kernel allows whole fields only.
    unsafe {
        let addr = ptr::read_volatile(&raw const (*ctx).user_ip4);
        let port = ptr::read_volatile(&raw const (*ctx).user_port) as u16;
        Target { addr, port, pad: 0 }
    }
}

#[inline(always)]
fn set_target(ctx: *mut bpf_sock_addr, to: Target) {
    // SAFETY: as above; both fields may be written.
    unsafe {
        ptr::write_volatile(&raw mut (*ctx).user_ip4, to.addr);
        ptr::write_volatile(&raw mut (*ctx).user_port, u32::from(to.port));
    }
}

/// A socket connects, or sends without being connected. Who calls a service that nobody answers for is told at once.
#[inline(always)]
pub fn connecting(ctx: *mut bpf_sock_addr) -> i32 {
    let meant = target(ctx);
    // SAFETY: a valid context.
    let protocol = unsafe { ptr::read_volatile(&raw const (*ctx).protocol) } as u8;
    let key = ServiceKey { addr: meant.addr, port: meant.port, protocol, scope: scope::INSIDE };
    if key.port == 0 || !matches!(protocol, packet::TCP | packet::UDP) {
        // A resolver that asks for a route only, or a ping: that is refused where it becomes a packet.
        return GO_ON;
    }
    // SAFETY: a valid context.
    let client = unsafe { bpf_get_netns_cookie(ctx.cast()) };
    match service::choose(key, &Caller { client, hash: 0 }, client) {
        Choice::NoService => GO_ON,
        Choice::Backend(backend) => {
            // SAFETY: a valid context.
            let socket = unsafe { bpf_get_socket_cookie(ctx.cast()) };
            // An LRU map has room always; if not, the socket is told the backend's address for the service's.
            let _ = service::PEERS.insert(PeerKey { socket, backend }, meant, 0);
            set_target(ctx, backend);
            GO_ON
        }
        Choice::Nobody => {
            // SAFETY: a plain helper call.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            FAIL
        }
    }
}

/// A socket is told with whom it speaks: with the service that it meant.
#[inline(always)]
pub fn naming_peer(ctx: *mut bpf_sock_addr) -> i32 {
    let backend = target(ctx);
    // SAFETY: a valid context.
    let socket = unsafe { bpf_get_socket_cookie(ctx.cast()) };
    // SAFETY: eight bytes are copied.
    if let Some(meant) = unsafe { service::PEERS.get(PeerKey { socket, backend }) } {
        set_target(ctx, *meant);
    }
    GO_ON
}
