//! Services packet by packet: calls from outside, and those that no socket of the node made.
//!
//! A connection is two entries, one a direction, each under both ends of the packet as it comes and with both ends as they
//! are written. So one lookup says what becomes of a packet, whichever side it is of.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    helpers::bpf_ktime_get_boot_ns,
    macros::map,
    maps::{HashMap, PerCpuArray},
};
use podwire_abi::{
    DropReason,
    connection::{ConnectionKey, PORT_CLAIMS, seen},
    identity,
    service::{Balanced, CLIENT_ADDRESS, MAX_BALANCED, Opening, ServiceKey, Target, Tuple, scope},
};

use crate::{
    connection, overlay,
    packet::{self, ETHERNET, Ipv4},
    rewrite::{self, Change, End},
    service::{self, Caller, Choice},
    state,
    transport::{self, Content, Flow, Way},
};

/// Not preallocated: what is not used costs nothing.
#[map(name = "podwire_lb_ct")]
static BALANCED: HashMap<Tuple, Balanced> = HashMap::pinned(MAX_BALANCED, BPF_F_NO_PREALLOC);

#[map(name = "podwire_lb_tmp")]
static OPENING: PerCpuArray<Opening> = PerCpuArray::pinned(1, 0);

const EEXIST: i32 = -17;

/// What became of a packet.
pub enum Outcome {
    /// It belongs to no service.
    NotOurs,
    /// Both ends are as they should be now.
    Translated(Ipv4),
    /// It calls a service that nobody answers for.
    Nobody,
    /// It must go no further.
    Dropped(DropReason),
}

// What a subprogram answers, besides the number of a [`DropReason`]: it gives a register only.
const NOT_OURS: u32 = 0x100;
const TRANSLATED: u32 = 0x101;
const NOBODY: u32 = 0x102;
const OPENED: u32 = 0x103;

/// Which end of the packet is this node's side, for a subprogram.
const LEAVES: u32 = 1;
const ARRIVES: u32 = 0;

/// Translates a packet of a balanced connection.
#[inline(always)]
pub fn known(skb: *mut __sk_buff, way: Way) -> Outcome {
    outcome(skb, balance_known(skb, number(way)))
}

/// The same; one that is of none may begin one. `callers` is a number of [`scope`].
#[inline(always)]
pub fn call(skb: *mut __sk_buff, way: Way, callers: u8) -> Outcome {
    let mut answer = balance_known(skb, number(way));
    if answer == NOT_OURS {
        answer = balance_new(skb, number(way) | u32::from(callers) << 8);
        if answer == OPENED {
            answer = balance_known(skb, number(way));
        }
    }
    outcome(skb, answer)
}

#[inline(always)]
fn number(way: Way) -> u32 {
    if way == Way::Out { LEAVES } else { ARRIVES }
}

#[inline(always)]
fn outcome(skb: *mut __sk_buff, answer: u32) -> Outcome {
    match answer {
        NOT_OURS => Outcome::NotOurs,
        NOBODY => Outcome::Nobody,
        TRANSLATED => packet::ipv4(skb).map_or(Outcome::NotOurs, Outcome::Translated),
        reason if reason == DropReason::NatNoMapping as u32 => Outcome::Dropped(DropReason::NatNoMapping),
        reason if reason == DropReason::WriteError as u32 => Outcome::Dropped(DropReason::WriteError),
        _ => Outcome::Dropped(DropReason::ConnectionInsertFailed),
    }
}

/// Translates a packet of a connection that is in the table. A function that the linker sees is verified once, alone, not anew
/// from each place of each hook that calls it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn balance_known(skb: *mut __sk_buff, way: u32) -> u32 {
    let Some(ip) = packet::ipv4(skb) else { return NOT_OURS };
    let way = if way == LEAVES { Way::Out } else { Way::In };
    match transport::read(skb, &ip, way) {
        Content::Flow(flow) if flow.key.protocol != packet::ICMP => {
            let tuple = tuple(&flow.key, way);
            match BALANCED.get_ptr_mut(tuple) {
                Some(present) if !begins_anew(&tuple, present, flow.seen) => {
                    translate(skb, &ip, &flow, &tuple, present)
                }
                _ => NOT_OURS,
            }
        }
        Content::IcmpError(icmp) => error(skb, &ip, icmp, way),
        _ => NOT_OURS,
    }
}

/// Begins a connection with a packet that calls a service. It is translated as one that is known then.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn balance_new(skb: *mut __sk_buff, asked: u32) -> u32 {
    let Some(ip) = packet::ipv4(skb) else { return NOT_OURS };
    let way = if asked & 0xff == LEAVES { Way::Out } else { Way::In };
    let callers = (asked >> 8) as u8;
    let Content::Flow(flow) = transport::read(skb, &ip, way) else { return NOT_OURS };
    if flow.key.protocol == packet::ICMP || !flow.may_open {
        return NOT_OURS;
    }
    let Some(opening) = OPENING.get_ptr_mut(0) else { return NOT_OURS };
    // SAFETY: the element is this CPU's own, and the program is not preempted by another that uses it.
    let opening = unsafe { &mut *opening };
    opening.called = tuple(&flow.key, way);
    let tuple = &opening.called;
    let service = ServiceKey { addr: tuple.dst, port: tuple.dport, protocol: tuple.protocol, scope: callers };
    let caller = Caller { client: CLIENT_ADDRESS | u64::from(tuple.src), hash: hash(tuple) };
    opening.backend = match service::choose(service, &caller, 0) {
        Choice::NoService => return NOT_OURS,
        Choice::Nobody => return NOBODY,
        Choice::Backend(backend) => backend,
    };
    match open(skb, opening, callers) {
        0 => OPENED,
        reason => reason,
    }
}

/// Opens a connection to a backend. Returns a [`DropReason`]'s number, 0 if it is open.
///
/// The backend sees the caller's own address wherever its answers come by here: it is of this node, or the caller is. If not, or
/// if the same two ends speak to each other already by another name, it sees an address of this node.
#[inline(always)]
fn open(skb: *mut __sk_buff, opening: &Opening, callers: u8) -> u32 {
    let Some(config) = state::config() else { return DropReason::NatNoMapping as u32 };
    let (caller, backend) = (opening.called.src, opening.backend.addr);
    let is_here = state::endpoint(backend).is_some()
        || state::owner(backend).is_some_and(|owner| owner.identity == identity::HOST);
    let own = if backend == caller || overlay::node_of(config, backend).is_some() {
        // By this address the answer finds back, through the tunnel too.
        config.router_ip
    } else {
        config.node_ip
    };
    if backend != caller && (is_here || callers == scope::INSIDE) {
        let reason = balance_claim(skb, caller, callers.into());
        if reason != DropReason::NatNoMapping as u32 {
            return reason;
        }
    }
    // Answers to an address of the node come by as those to callers outside do.
    balance_claim(skb, own, scope::OUTSIDE.into())
}

/// Claims a port of `addr` for the backend's answers and writes both directions. What another CPU has opened meanwhile is as
/// good. Returns a [`DropReason`]'s number, 0 if it is open.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn balance_claim(skb: *mut __sk_buff, addr: u32, callers: u32) -> u32 {
    let Some(opening) = OPENING.get_ptr_mut(0) else { return DropReason::NatNoMapping as u32 };
    // SAFETY: the element is this CPU's own, and the program is not preempted by another that uses it.
    let opening = unsafe { &mut *opening };
    let Tuple { src, dst, sport, dport, protocol, .. } = opening.called;
    let Target { addr: backend, port: backend_port, .. } = opening.backend;
    let keeps = addr == src;
    let way_back = &mut opening.way_back;
    (way_back.local, way_back.local_port) = (addr, sport);
    (way_back.remote, way_back.remote_port) = (backend, backend_port);
    (way_back.protocol, way_back.pad) = (protocol, [0; 3]);
    begin(&mut opening.back, callers);
    (opening.back.src, opening.back.sport, opening.back.dst, opening.back.dport) = (dst, dport, src, sport);
    for round in 0..PORT_CLAIMS {
        if round > 0 {
            let port = connection::some_port(&opening.way_back, addr);
            if keeps || port == connection::NO_PORT {
                break;
            }
            opening.way_back.local_port = port as u16;
        }
        if !keeps && connection::is_taken(skb, &opening.way_back) {
            continue;
        }
        opening.answer = tuple(&opening.way_back, Way::In);
        let claimed = match BALANCED.insert(&opening.answer, &opening.back, u64::from(BPF_NOEXIST)) {
            Ok(()) => true,
            Err(EEXIST) if answers(&opening.answer, &opening.called) => false,
            Err(EEXIST) => continue,
            Err(_) => return DropReason::ConnectionInsertFailed as u32,
        };
        let call = &mut opening.call;
        begin(call, callers);
        call.call = 1;
        (call.src, call.sport, call.dst, call.dport) =
            (addr, opening.way_back.local_port, backend, backend_port);
        return match BALANCED.insert(&opening.called, &opening.call, u64::from(BPF_NOEXIST)) {
            Ok(()) => 0,
            Err(error) => {
                if claimed {
                    // It cannot be gone already; if it is, all the better.
                    let _ = BALANCED.remove(&opening.answer);
                }
                if error == EEXIST { 0 } else { DropReason::ConnectionInsertFailed as u32 }
            }
        };
    }
    DropReason::NatNoMapping as u32
}

/// An entry as it begins, without a packet counted; its ends and its direction are the caller's to write.
#[inline(always)]
fn begin(entry: &mut Balanced, callers: u32) {
    // SAFETY: a plain helper call.
    entry.last_seen = unsafe { bpf_ktime_get_boot_ns() };
    (entry.packets, entry.bytes) = (0, 0);
    (entry.seen, entry.call, entry.scope, entry.pad) = (0, 0, callers as u8, 0);
}

/// Both ends as the packet has them.
#[inline(always)]
fn tuple(key: &ConnectionKey, way: Way) -> Tuple {
    let (here, there) = ((key.local, key.local_port), (key.remote, key.remote_port));
    let (source, destination) = if way == Way::Out { (here, there) } else { (there, here) };
    Tuple {
        src: source.0,
        dst: destination.0,
        sport: source.1,
        dport: destination.1,
        protocol: key.protocol,
        pad: [0; 3],
    }
}

/// Whether a caller uses for a new connection the port of one that is over. That one is forgotten: its backend may be gone.
#[inline(always)]
fn begins_anew(tuple: &Tuple, present: *mut Balanced, seen_now: u8) -> bool {
    const OVER: u8 = seen::FIN | seen::RST;
    if tuple.protocol != packet::TCP || seen_now & seen::SYN == 0 {
        return false;
    }
    // SAFETY: the entry's memory stays an entry's while the program runs, and every bit pattern is a value.
    let entry = unsafe { *present };
    if entry.call == 0 {
        return false;
    }
    let back = entry.counterpart(tuple.protocol);
    // SAFETY: one byte is read.
    let seen_back = unsafe { BALANCED.get(back) }.map_or(0, |back| back.seen);
    if (entry.seen | seen_back) & OVER == 0 {
        return false;
    }
    // What is gone already needs no forgetting.
    let _ = BALANCED.remove(tuple);
    let _ = BALANCED.remove(back);
    true
}

/// Notes the packet, and writes both ends. Two CPUs that see packets of one direction at once may lose a count, never more.
#[inline(always)]
fn translate(skb: *mut __sk_buff, ip: &Ipv4, flow: &Flow, old: &Tuple, entry: *mut Balanced) -> u32 {
    // SAFETY: the entry's memory stays an entry's while the program runs, and every bit pattern is a value; the context is
    // valid.
    let new = unsafe {
        let entry = &mut *entry;
        entry.last_seen = bpf_ktime_get_boot_ns();
        entry.packets += 1;
        entry.bytes += u64::from((*skb).len.saturating_sub(ETHERNET as u32));
        let before = if flow.seen & seen::SYN == 0 { entry.seen } else { 0 };
        if before | flow.seen != entry.seen {
            entry.seen = before | flow.seen;
        }
        *entry
    };
    service::note_balanced(new.scope);
    transport::remember_fragment(ip, flow);
    let source = Change { end: End::Source, old: (old.src, old.sport), new: (new.src, new.sport) };
    let destination = Change { end: End::Destination, old: (old.dst, old.dport), new: (new.dst, new.dport) };
    if written(skb, flow, &source) && written(skb, flow, &destination) {
        TRANSLATED
    } else {
        DropReason::WriteError as u32
    }
}

#[inline(always)]
fn written(skb: *mut __sk_buff, flow: &Flow, change: &Change) -> bool {
    change.old == change.new || rewrite::packet(skb, flow, change)
}

/// The caller as one number, well mixed. The address that was called is left out: a port of every node stands for the same
/// service, and whichever node a packet comes to should choose the same backend.
#[inline(always)]
fn hash(tuple: &Tuple) -> u32 {
    let ports = u32::from(tuple.sport) << 16 | u32::from(tuple.dport);
    mixed(tuple.src ^ mixed(ports ^ mixed(u32::from(tuple.protocol))))
}

/// The finalizer of MurmurHash3.
#[inline(always)]
fn mixed(mut bits: u32) -> u32 {
    bits = (bits ^ (bits >> 16)).wrapping_mul(0x85eb_ca6b);
    bits = (bits ^ (bits >> 13)).wrapping_mul(0xc2b2_ae35);
    bits ^ (bits >> 16)
}

/// Whether packets of this tuple are answers to that call already.
#[inline(always)]
fn answers(answer: &Tuple, call: &Tuple) -> bool {
    // SAFETY: four fields are compared at once.
    unsafe { BALANCED.get(answer) }.is_some_and(|entry| entry.counterpart(call.protocol) == *call)
}

/// Whether a balanced connection's answers come in so: the port of this side is not to be had.
#[inline(always)]
pub fn has_way_back(key: &ConnectionKey) -> bool {
    // SAFETY: only its presence is asked.
    unsafe { BALANCED.get(tuple(key, Way::In)) }.is_some()
}

/// An ICMP error about a packet of a balanced connection: who gets it knows that packet by its other ends.
#[inline(always)]
fn error(skb: *mut __sk_buff, ip: &Ipv4, icmp: u32, way: Way) -> u32 {
    let Some(quoted) = transport::quoted(skb, ip, icmp, way) else { return NOT_OURS };
    // The direction of the error is that of the answers to what it quotes.
    let answer = tuple(&quoted.key, way);
    // SAFETY: four fields are copied at once.
    let Some(entry) = (unsafe { BALANCED.get(answer) }) else { return NOT_OURS };
    let new = entry.counterpart(answer.protocol);
    let (old_source, old_destination) = ((answer.dst, answer.dport), (answer.src, answer.sport));
    let changes = [
        Change { end: End::Source, old: old_source, new: (new.src, new.sport) },
        Change { end: End::Destination, old: old_destination, new: (new.dst, new.dport) },
    ];
    let mut done = true;
    for change in &changes {
        done &= change.old == change.new || rewrite::quoted(skb, icmp, &quoted, change);
    }
    // Who received the packet that is quoted may have written the error itself; a router on the way keeps its address.
    if ip.src == answer.src {
        done &= rewrite::outer(skb, End::Source, ip.src, new.dst);
    }
    done &= rewrite::outer(skb, End::Destination, ip.dst, new.src);
    if done { TRANSLATED } else { DropReason::WriteError as u32 }
}
