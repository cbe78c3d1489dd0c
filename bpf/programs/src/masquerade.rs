//! Masquerade: what pods send beyond the native network carries an address of the node, and answers find back.
//!
//! The decision is made once a connection; its packets then follow the table of connections. A connection that comes from
//! outside to a pod's own address is in the table too, untranslated: its answers must not be masqueraded.

use aya_ebpf::bindings::__sk_buff;
use podwire_abi::{
    DropReason, NodeConfig, Point,
    connection::{ConnectionKey, seen},
    identity,
};

use crate::{
    DROP, NEXT, balance,
    connection::{self, Mapping},
    overlay,
    packet::{self, Ipv4},
    report,
    rewrite::{self, Change, End},
    state::{self, CONNECTIONS_IN, CONNECTIONS_OUT},
    transport::{self, Content, Flow, Way},
};

/// In `skb->mark`: this packet is done, should it pass a second device of ours on its way out (a device upon another).
const MARK_DONE: u32 = 0x0300;
const MARK_MASK: u32 = 0x0f00;

/// Whether this destination sees pods' own addresses.
#[inline(always)]
fn keeps_pod_address(remote: u32) -> bool {
    // Another pod is nobody's node: where it lies beyond the native CIDRs, it sees the node's address.
    state::owner(remote).is_some_and(|owner| match owner.identity {
        identity::HOST => true,
        // Where there is a tunnel, the network between the nodes need not know the way to pods.
        identity::REMOTE_NODE => !overlay::is_used(),
        _ => false,
    }) || state::is_non_masquerade(remote)
}

/// A packet leaves by a device of the underlay, to beyond the native network.
#[inline(always)]
pub fn leaving(skb: *mut __sk_buff, config: &NodeConfig, ip: &Ipv4) -> i32 {
    if ip.is_to_many() || is_done(skb) {
        return NEXT;
    }
    // A pod that is gone may have packets under way still.
    let from_pod = state::endpoint(ip.src).is_some() || state::in_own_pod_cidr(config, ip.src);
    let outcome = match transport::read(skb, ip, Way::Out) {
        Content::Flow(flow) => leaving_flow(skb, ip, &flow, from_pod),
        Content::IcmpError(icmp) => leaving_error(skb, ip, icmp, from_pod),
        _ if !from_pod || keeps_pod_address(ip.dst) => Ok(()),
        Content::LostFragment => Err(DropReason::FragmentNotFound),
        Content::Unsupported => Err(DropReason::NatUnsupportedProtocol),
        Content::Malformed => Err(DropReason::Malformed),
    };
    match outcome {
        Ok(()) => NEXT,
        Err(reason) => {
            let sender = state::endpoint(ip.src).map_or(0, |sender| sender.id);
            report::dropped(skb, Point::ToNetwork, reason, Some(ip), sender);
            DROP
        }
    }
}

#[inline(always)]
fn leaving_flow(skb: *mut __sk_buff, ip: &Ipv4, flow: &Flow, from_pod: bool) -> Result<(), DropReason> {
    if let Some(present) = CONNECTIONS_OUT.get_ptr_mut(flow.key) {
        // SAFETY: the entry's memory stays an entry's while the program runs; the context is valid.
        let (by, now_by) = unsafe { ((*present).ifindex, (*skb).ifindex) };
        // An established TCP connection cannot change its address, wherever it leaves.
        let begins = flow.key.protocol != packet::TCP || flow.seen & seen::SYN != 0;
        let mapping = connection::note(skb, present, flow.seen);
        if by == 0 || by == now_by || !begins {
            return translate_out(skb, ip, flow, mapping);
        }
        connection::close(&flow.key, mapping);
    }
    let addr = if from_pod {
        if keeps_pod_address(ip.dst) {
            return Ok(());
        }
        // Without an address there is no answer either.
        state::masquerade_address(device(skb), ip.dst).ok_or(DropReason::NatNoMapping)?
    } else if is_a_pods(&flow.key) {
        // The node's own packet has a port that was given to a pod: the node gets another, the pod keeps it.
        ip.src
    } else {
        return Ok(());
    };
    if !flow.may_open {
        return Err(DropReason::UnknownConnection);
    }
    match connection::open(skb, &flow.key, addr) {
        0 => {}
        reason if reason == DropReason::ConnectionInsertFailed as u32 => {
            return Err(DropReason::ConnectionInsertFailed);
        }
        _ => return Err(DropReason::NatNoMapping),
    }
    let opened = CONNECTIONS_OUT.get_ptr_mut(flow.key).ok_or(DropReason::NatNoMapping)?;
    let mapping = connection::note(skb, opened, flow.seen);
    translate_out(skb, ip, flow, mapping)
}

/// The device at which the packet is.
#[inline(always)]
fn device(skb: *mut __sk_buff) -> u32 {
    // SAFETY: a valid context.
    unsafe { (*skb).ifindex }
}

/// Whether what answers a packet of the node goes to a pod, or to who called a service.
#[inline(always)]
fn is_a_pods(key: &ConnectionKey) -> bool {
    // SAFETY: only its presence is asked.
    unsafe { CONNECTIONS_IN.get(key) }.is_some() || balance::has_way_back(key)
}

#[inline(always)]
fn translate_out(skb: *mut __sk_buff, ip: &Ipv4, flow: &Flow, new: Mapping) -> Result<(), DropReason> {
    let old = (flow.key.local, flow.key.local_port);
    transport::remember_fragment(ip, flow);
    if new == old {
        return Ok(());
    }
    if !rewrite::packet(skb, flow, &Change { end: End::Source, old, new }) {
        return Err(DropReason::WriteError);
    }
    mark_done(skb);
    Ok(())
}

/// Tells the programs on the way out that there is nothing for them to do.
#[inline(always)]
pub fn mark_done(skb: *mut __sk_buff) {
    // SAFETY: a valid context, whose mark may be written.
    unsafe { (*skb).mark = ((*skb).mark & !MARK_MASK) | MARK_DONE };
}

/// Whether a program has said so.
#[inline(always)]
pub fn is_done(skb: *mut __sk_buff) -> bool {
    // SAFETY: the kernel hands every classifier a valid context.
    unsafe { (*skb).mark & MARK_MASK == MARK_DONE }
}

/// An ICMP error about what came in translated: the pod's, or the node's on its behalf. Who gets it knows only the node's
/// address.
#[inline(always)]
fn leaving_error(skb: *mut __sk_buff, ip: &Ipv4, icmp: u32, from_pod: bool) -> Result<(), DropReason> {
    let about = transport::quoted(skb, ip, icmp, Way::Out).filter(|quoted| {
        // A pod speaks for itself only.
        !from_pod || quoted.key.local == ip.src
    });
    let found = about.and_then(|quoted| {
        // SAFETY: two fields are copied at once.
        let entry = unsafe { CONNECTIONS_OUT.get(quoted.key) }?;
        Some((quoted, (entry.addr, entry.port)))
    });
    let Some((quoted, new)) = found else {
        return if !from_pod || keeps_pod_address(ip.dst) {
            Ok(())
        } else {
            Err(DropReason::UnknownConnection)
        };
    };
    let old = (quoted.key.local, quoted.key.local_port);
    if new == old {
        return Ok(());
    }
    let change = Change { end: End::Destination, old, new };
    if !rewrite::quoted(skb, icmp, &quoted, &change)
        || (from_pod && !rewrite::outer(skb, End::Source, ip.src, new.0))
    {
        return Err(DropReason::WriteError);
    }
    mark_done(skb);
    Ok(())
}

/// What became of a packet that came in, to an address that is no pod's.
pub enum Arrival {
    /// It answers no connection of the table: the node's, and as it was.
    NotOurs,
    /// It has its pod's address again.
    Translated,
    /// It cannot be written.
    Failed,
}

/// A packet came in from beyond the native network, to an address that is no pod's.
#[inline(always)]
pub fn arriving(skb: *mut __sk_buff, ip: &Ipv4) -> Arrival {
    let outcome = match transport::read(skb, ip, Way::In) {
        Content::Flow(flow) => {
            let Some(present) = CONNECTIONS_IN.get_ptr_mut(flow.key) else { return Arrival::NotOurs };
            let new = connection::note(skb, present, flow.seen);
            transport::remember_fragment(ip, &flow);
            let old = (flow.key.local, flow.key.local_port);
            rewrite::packet(skb, &flow, &Change { end: End::Destination, old, new })
        }
        Content::IcmpError(icmp) => {
            let Some(quoted) = transport::quoted(skb, ip, icmp, Way::In) else { return Arrival::NotOurs };
            // SAFETY: two fields are copied at once.
            let Some(entry) = (unsafe { CONNECTIONS_IN.get(quoted.key) }) else { return Arrival::NotOurs };
            let new = (entry.addr, entry.port);
            let old = (quoted.key.local, quoted.key.local_port);
            if old.0 != ip.dst {
                return Arrival::NotOurs;
            }
            let change = Change { end: End::Source, old, new };
            rewrite::quoted(skb, icmp, &quoted, &change)
                && rewrite::outer(skb, End::Destination, old.0, new.0)
        }
        _ => return Arrival::NotOurs,
    };
    if outcome { Arrival::Translated } else { Arrival::Failed }
}

/// A packet came in from beyond the native network, to a pod's own address: its answers keep that address.
#[inline(always)]
pub fn arriving_at_pod(skb: *mut __sk_buff) -> Result<(), DropReason> {
    if note_at_pod(skb) == 0 { Ok(()) } else { Err(DropReason::ConnectionInsertFailed) }
}

/// Returns a [`DropReason`]'s number, 0 if the packet may go on. A function that the linker sees: verified once, and off the
/// stack of those who call it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn note_at_pod(skb: *mut __sk_buff) -> u32 {
    let Some(ip) = packet::ipv4(skb) else { return 0 };
    if ip.is_later_fragment() {
        return 0;
    }
    let Content::Flow(flow) = transport::read(skb, &ip, Way::In) else { return 0 };
    if let Some(present) = CONNECTIONS_IN.get_ptr_mut(flow.key) {
        connection::note(skb, present, flow.seen);
        return 0;
    }
    if !flow.may_open || keeps_pod_address(ip.src) {
        return 0;
    }
    if !connection::open_untranslated(&flow) {
        return DropReason::ConnectionInsertFailed as u32;
    }
    if let Some(opened) = CONNECTIONS_IN.get_ptr_mut(flow.key) {
        connection::note(skb, opened, flow.seen);
    }
    0
}
