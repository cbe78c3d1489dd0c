//! The table of connections: noting packets, and opening a connection with a port that nobody else has.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_CURRENT_NETNS, BPF_NOEXIST, bpf_sock_tuple},
    helpers::{
        bpf_get_prandom_u32, bpf_ktime_get_boot_ns, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp,
    },
};
use podwire_abi::{
    DropReason,
    connection::{Connection, ConnectionKey, FIRST_PORT, PORT_CLAIMS, PORT_TRIES, seen},
};

use crate::{
    balance,
    packet::{self, ETHERNET},
    state::{CONNECTIONS_IN, CONNECTIONS_OUT},
    transport::Flow,
};

const EEXIST: i32 = -17;

/// What to write into a packet in the place of this side's address and port.
pub type Mapping = (u32, u16);

/// Notes a packet of a connection. Two CPUs that see packets of one direction at once may lose a count, never more.
#[inline(always)]
pub fn note(skb: *mut __sk_buff, connection: *mut Connection, seen_now: u8) -> Mapping {
    // SAFETY: the entry's memory stays an entry's while the program runs, and every bit pattern is a value; the context is
    // valid.
    unsafe {
        let connection = &mut *connection;
        connection.last_seen = bpf_ktime_get_boot_ns();
        connection.packets += 1;
        connection.bytes += u64::from((*skb).len.saturating_sub(ETHERNET as u32));
        // A SYN begins anew what the pair of ports was used for before.
        let before = if seen_now & seen::SYN == 0 { connection.seen } else { 0 };
        if before | seen_now != connection.seen {
            connection.seen = before | seen_now;
        }
        (connection.addr, connection.port)
    }
}

/// A connection's entry as it begins, without a packet counted.
#[inline(always)]
fn fresh((addr, port): Mapping, ifindex: u32) -> Connection {
    // SAFETY: a plain helper call.
    let last_seen = unsafe { bpf_ktime_get_boot_ns() };
    Connection { last_seen, packets: 0, bytes: 0, addr, ifindex, port, seen: 0, pad: [0; 5] }
}

/// Opens a connection of a pod, or of the node if `addr` is the key's own address: claims a port of `addr` and writes both
/// directions. What another CPU has opened meanwhile is as good. Returns a [`DropReason`]'s number, 0 if it is open.
///
/// Not inlined: it is of a connection's first packet only, and its loop would be in every hook's stack.
#[inline(never)]
pub fn open(skb: *mut __sk_buff, key: &ConnectionKey, addr: u32) -> u32 {
    // SAFETY: a valid context.
    let ifindex = unsafe { (*skb).ifindex };
    let own = key.local == addr;
    for round in 0..PORT_CLAIMS {
        // The pod's own port if it is free. The node's own is known to be taken.
        let port = if round == 0 && !own { u32::from(key.local_port) } else { free_port(key, addr) };
        if port == NO_PORT {
            return DropReason::NatNoMapping as u32;
        }
        let port = port as u16;
        let incoming = ConnectionKey { local: addr, local_port: port, ..*key };
        if is_the_nodes(skb, &incoming) || balance::has_way_back(&incoming) {
            continue;
        }
        let claim = fresh((key.local, key.local_port), 0);
        let claimed = match CONNECTIONS_IN.insert(incoming, claim, u64::from(BPF_NOEXIST)) {
            Ok(()) => true,
            Err(EEXIST) if belongs_to(&incoming, key) => false,
            Err(EEXIST) => continue,
            Err(_) => return DropReason::ConnectionInsertFailed as u32,
        };
        let mapping = fresh((addr, port), ifindex);
        return match CONNECTIONS_OUT.insert(key, mapping, u64::from(BPF_NOEXIST)) {
            Ok(()) => 0,
            Err(error) => {
                if claimed {
                    // It cannot be gone already; if it is, all the better.
                    let _ = CONNECTIONS_IN.remove(incoming);
                }
                if error == EEXIST { 0 } else { DropReason::ConnectionInsertFailed as u32 }
            }
        };
    }
    DropReason::NatNoMapping as u32
}

/// No port.
pub const NO_PORT: u32 = 1 << 16;

/// As [`some_port`]. A loop of its own: the verifier follows every try, and the claim is much to follow.
#[inline(never)]
fn free_port(key: &ConnectionKey, addr: u32) -> u32 {
    some_port(key, addr)
}

/// A port, or an identifier, that no connection has at this moment.
#[inline(always)]
pub fn some_port(key: &ConnectionKey, addr: u32) -> u32 {
    for _ in 0..PORT_TRIES {
        // SAFETY: a plain helper call.
        let port = (FIRST_PORT | unsafe { bpf_get_prandom_u32() } as u16).to_be();
        let incoming = ConnectionKey { local: addr, local_port: port, ..*key };
        // SAFETY: only its presence is asked.
        if unsafe { CONNECTIONS_IN.get(incoming) }.is_none() {
            return u32::from(port);
        }
    }
    NO_PORT
}

/// Whether what comes in so is translated to this end already.
#[inline(always)]
fn belongs_to(incoming: &ConnectionKey, key: &ConnectionKey) -> bool {
    // SAFETY: two fields are compared at once.
    unsafe { CONNECTIONS_IN.get(incoming) }
        .is_some_and(|entry| entry.addr == key.local && entry.port == key.local_port)
}

/// Whether what comes in so is another connection's, or would be a socket's of the node.
#[inline(always)]
pub fn is_taken(skb: *mut __sk_buff, incoming: &ConnectionKey) -> bool {
    // SAFETY: only its presence is asked.
    unsafe { CONNECTIONS_IN.get(incoming) }.is_some() || is_the_nodes(skb, incoming)
}

/// `bpf_sock_tuple`, as far as it is of IPv4.
#[repr(C)]
struct SockTuple {
    saddr: u32,
    daddr: u32,
    sport: u16,
    dport: u16,
}

/// Whether a socket of the node would get what comes in so: its own connections and its servers come first.
#[inline(always)]
fn is_the_nodes(skb: *mut __sk_buff, key: &ConnectionKey) -> bool {
    const CURRENT_NETNS: u64 = BPF_F_CURRENT_NETNS as i64 as u64;
    if key.protocol == packet::ICMP {
        return false;
    }
    // Of the union only this part is looked at, which the size says; all of it would be much on a small stack.
    let mut tuple =
        SockTuple { saddr: key.remote, daddr: key.local, sport: key.remote_port, dport: key.local_port };
    let size = size_of::<SockTuple>() as u32;
    let at = (&raw mut tuple).cast::<bpf_sock_tuple>();
    // SAFETY: a valid context, and a tuple of the size given.
    let socket = unsafe {
        if key.protocol == packet::TCP {
            bpf_skc_lookup_tcp(skb.cast(), at, size, CURRENT_NETNS, 0)
        } else {
            bpf_sk_lookup_udp(skb.cast(), at, size, CURRENT_NETNS, 0)
        }
    };
    if socket.is_null() {
        return false;
    }
    // SAFETY: the lookup took a reference, which is given back once.
    unsafe { bpf_sk_release(socket.cast()) };
    true
}

/// Remembers a connection that came from outside to a pod's own address, so that its answers keep it. `false` if there is
/// no room.
#[inline(always)]
pub fn open_untranslated(flow: &Flow) -> bool {
    let mapping = (flow.key.local, flow.key.local_port);
    for map in [&CONNECTIONS_OUT, &CONNECTIONS_IN] {
        match map.insert(flow.key, fresh(mapping, 0), u64::from(BPF_NOEXIST)) {
            Ok(()) | Err(EEXIST) => {}
            Err(_) => return false,
        }
    }
    true
}

/// Forgets a connection that leaves by another device than it used to: there it needs another address.
#[inline(always)]
pub fn close(key: &ConnectionKey, (addr, port): Mapping) {
    // What is gone already needs no closing.
    let _ = CONNECTIONS_OUT.remove(key);
    let _ = CONNECTIONS_IN.remove(ConnectionKey { local: addr, local_port: port, ..*key });
}
