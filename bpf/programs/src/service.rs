//! The maps of services, and the choice of a backend.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_boot_ns},
    macros::map,
    maps::{Array, HashMap, LruHashMap},
};
use podwire_abi::{
    identity,
    service::{
        Affinity, AffinityKey, BackendKey, CALLERS, MAGLEV_SIZE, MAX_AFFINITY, MAX_BACKENDS, MAX_MAGLEV,
        MAX_PEERS, MAX_SERVICES, MaglevTable, PeerKey, Service, ServiceConfig, ServiceKey, Target,
        config_flags, flags, scope,
    },
};

use crate::state;

/// Not preallocated: a cluster has far fewer services than there is room for.
#[map(name = "podwire_lb_svc")]
static SERVICES: HashMap<ServiceKey, Service> = HashMap::pinned(MAX_SERVICES, BPF_F_NO_PREALLOC);

#[map(name = "podwire_lb_be")]
static BACKENDS: HashMap<BackendKey, Target> = HashMap::pinned(MAX_BACKENDS, BPF_F_NO_PREALLOC);

#[map(name = "podwire_lb_cfg")]
static SERVICE_CONFIG: Array<ServiceConfig> = Array::pinned(1, 0);

#[map(name = "podwire_lb_mag")]
static MAGLEV: HashMap<u32, MaglevTable> = HashMap::pinned(MAX_MAGLEV, BPF_F_NO_PREALLOC);

#[map(name = "podwire_lb_act")]
static BALANCED_CALLERS: Array<u32> = Array::pinned(CALLERS, 0);

#[map(name = "podwire_lb_peer")]
pub static PEERS: LruHashMap<PeerKey, Target> = LruHashMap::pinned(MAX_PEERS, 0);

#[map(name = "podwire_lb_aff")]
static AFFINITY: LruHashMap<AffinityKey, Affinity> = LruHashMap::pinned(MAX_AFFINITY, 0);

const NANOSECONDS: u64 = 1_000_000_000;

/// So often is looked again if the list of backends changes between two looks.
const TRIES: u32 = 3;

#[inline(always)]
fn config() -> Option<&'static ServiceConfig> {
    SERVICE_CONFIG.get(0)
}

/// Whether the address may be a service's. No hash is asked: it is the question of every packet that leaves a pod.
#[inline(always)]
fn in_range(addr: u32) -> bool {
    config().is_some_and(|config| addr & config.range.mask == config.range.net)
}

/// Whether the address is a service's.
#[inline(always)]
pub fn has_address(addr: u32) -> bool {
    // SAFETY: only its presence is asked.
    in_range(addr)
        && unsafe { SERVICES.get(ServiceKey { addr, port: 0, protocol: 0, scope: scope::INSIDE }) }.is_some()
}

/// Whether connections of such callers (a number of [`scope`]) are balanced packet by packet.
#[inline(always)]
pub fn has_balanced(callers: u8) -> bool {
    BALANCED_CALLERS.get(callers.into()).is_some_and(|some| *some != 0)
}

/// Says so: the agent takes it back when there are no such connections any more.
#[inline(always)]
pub fn note_balanced(callers: u8) {
    if let Some(some) = BALANCED_CALLERS.get_ptr_mut(callers.into()) {
        // SAFETY: an element of an array is there for ever; whoever writes at the same time writes as much.
        unsafe {
            if *some == 0 {
                *some = 1;
            }
        }
    }
}

/// Whether what comes by the wire to the node itself may be a call of a service.
#[inline(always)]
pub fn serves_outside() -> bool {
    config().is_some_and(|config| config.flags & config_flags::OUTSIDE != 0) || has_balanced(scope::OUTSIDE)
}

/// Whether all that pods send is looked at.
#[inline(always)]
pub fn sees_every_packet() -> bool {
    config().is_some_and(|config| config.flags & config_flags::EVERY_PACKET != 0)
}

/// Who answers for an address and a port.
pub enum Choice {
    /// It is no service's address.
    NoService,
    /// This backend.
    Backend(Target),
    /// Nobody: the service has no backend, or not this port.
    Nobody,
}

/// Who calls.
pub struct Caller {
    /// As in [`AffinityKey`].
    pub client: u64,
    /// Picks from a Maglev table, if there is one.
    pub hash: u32,
}

/// As the frontend stands in the map, if it can be one: a node's address and a port of NodePorts stand for every node.
#[inline(always)]
fn listed(mut key: ServiceKey, netns: u64) -> Option<ServiceKey> {
    let config = config()?;
    if key.addr & config.range.mask == config.range.net {
        return Some(key);
    }
    let port = u16::from_be(key.port);
    if port < config.first_node_port || port > config.last_node_port {
        return None;
    }
    let is_node = (key.addr & LOOPBACK_MASK == LOOPBACK && netns == config.host_netns)
        || state::owner(key.addr)
            .is_some_and(|owner| matches!(owner.identity, identity::HOST | identity::REMOTE_NODE));
    key.addr = 0;
    is_node.then_some(key)
}

const LOOPBACK: u32 = 0x7f00_0000_u32.to_be();
const LOOPBACK_MASK: u32 = 0xff00_0000_u32.to_be();

/// Chooses a backend. `netns` is the caller's network namespace's cookie, if it is known.
#[inline(always)]
pub fn choose(called: ServiceKey, caller: &Caller, netns: u64) -> Choice {
    let Some(service) = listed(called, netns) else { return Choice::NoService };
    for _ in 0..TRIES {
        // SAFETY: four numbers are copied. An entry that is replaced meanwhile is seen old or new: its memory is reused
        // for another entry only after the next look.
        let Some(entry) = (unsafe { SERVICES.get(service) }) else {
            // A node's port without a service is the node's own.
            let ours = service.addr != 0 && has_address(service.addr);
            return if ours { Choice::Nobody } else { Choice::NoService };
        };
        let Service { list, count, affinity_seconds, flags } = *entry;
        if count == 0 {
            return Choice::Nobody;
        }
        let slot = move || slot_of(list, count, flags, caller.hash);
        let chosen = if affinity_seconds == 0 {
            backend(list, slot())
        } else {
            the_same_of(list, slot, service, caller.client, affinity_seconds)
        };
        if let Some(backend) = chosen {
            return Choice::Backend(backend);
        }
    }
    Choice::Nobody
}

#[inline(always)]
fn slot_of(list: u32, count: u32, flags: u32, hash: u32) -> u32 {
    if flags & flags::MAGLEV != 0 {
        // SAFETY: one number is read.
        if let Some(table) = unsafe { MAGLEV.get(list) } {
            let at = ((u64::from(hash) * MAGLEV_SIZE as u64) >> 32) as usize;
            if at < MAGLEV_SIZE {
                return table[at].into();
            }
        }
    }
    // SAFETY: a plain helper call.
    unsafe { bpf_get_prandom_u32() % count }
}

#[inline(always)]
fn backend(list: u32, slot: u32) -> Option<Target> {
    // SAFETY: eight bytes are copied.
    unsafe { BACKENDS.get(BackendKey { list, slot }) }.copied()
}

/// The backend that the client had, if it was not silent for too long; else the one of the slot. The agent forgets those that
/// are gone.
#[inline(always)]
fn the_same_of(
    list: u32,
    slot: impl Fn() -> u32,
    service: ServiceKey,
    client: u64,
    seconds: u32,
) -> Option<Target> {
    let key = AffinityKey { client, service };
    // SAFETY: a plain helper call.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if let Some(had) = AFFINITY.get_ptr_mut(key) {
        // SAFETY: the entry's memory stays an entry's while the program runs, and every bit pattern is a value.
        let had = unsafe { &mut *had };
        if now.saturating_sub(had.last_seen) < u64::from(seconds) * NANOSECONDS {
            had.last_seen = now;
            return Some(had.backend);
        }
    }
    let backend = backend(list, slot())?;
    // An LRU map has room always; if not, the next choice is free again.
    let _ = AFFINITY.insert(key, Affinity { last_seen: now, backend }, 0);
    Some(backend)
}
