//! The maps of services, and the choice of a backend.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_boot_ns},
    macros::map,
    maps::{Array, HashMap, LruHashMap},
};
use podwire_abi::{
    PodCidr,
    service::{
        Affinity, AffinityKey, BackendKey, MAX_AFFINITY, MAX_BACKENDS, MAX_PEERS, MAX_SERVICES, PeerKey,
        Service, ServiceKey, Target,
    },
};

/// Not preallocated: a cluster has far fewer services than there is room for.
#[map(name = "podwire_lb_svc")]
static SERVICES: HashMap<ServiceKey, Service> = HashMap::pinned(MAX_SERVICES, BPF_F_NO_PREALLOC);

#[map(name = "podwire_lb_be")]
static BACKENDS: HashMap<BackendKey, Target> = HashMap::pinned(MAX_BACKENDS, BPF_F_NO_PREALLOC);

#[map(name = "podwire_lb_range")]
static SERVICE_RANGE: Array<PodCidr> = Array::pinned(1, 0);

#[map(name = "podwire_lb_peer")]
pub static PEERS: LruHashMap<PeerKey, Target> = LruHashMap::pinned(MAX_PEERS, 0);

#[map(name = "podwire_lb_aff")]
static AFFINITY: LruHashMap<AffinityKey, Affinity> = LruHashMap::pinned(MAX_AFFINITY, 0);

const NANOSECONDS: u64 = 1_000_000_000;

/// So often is looked again if the list of backends changes between two looks.
const TRIES: u32 = 3;

/// Whether the address may be a service's. No hash is asked: it is the question of every packet that leaves a pod.
#[inline(always)]
fn in_range(addr: u32) -> bool {
    SERVICE_RANGE.get(0).is_some_and(|range| addr & range.mask == range.net)
}

/// Whether the address is a service's.
#[inline(always)]
pub fn has_address(addr: u32) -> bool {
    // SAFETY: only its presence is asked.
    in_range(addr) && unsafe { SERVICES.get(ServiceKey { addr, port: 0, protocol: 0, pad: 0 }) }.is_some()
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

/// Chooses a backend for a client, which is its network namespace's cookie.
#[inline(always)]
pub fn choose(service: ServiceKey, client: u64) -> Choice {
    if !in_range(service.addr) {
        return Choice::NoService;
    }
    for _ in 0..TRIES {
        // SAFETY: three numbers are copied. An entry that is replaced meanwhile is seen old or new: its memory is reused
        // for another entry only after the next look.
        let Some(entry) = (unsafe { SERVICES.get(service) }) else {
            return if has_address(service.addr) { Choice::Nobody } else { Choice::NoService };
        };
        let Service { list, count, affinity_seconds } = *entry;
        if count == 0 {
            return Choice::Nobody;
        }
        let chosen = if affinity_seconds == 0 {
            any_of(list, count)
        } else {
            the_same_of(list, count, service, client, affinity_seconds)
        };
        if let Some(backend) = chosen {
            return Choice::Backend(backend);
        }
    }
    Choice::Nobody
}

#[inline(always)]
fn any_of(list: u32, count: u32) -> Option<Target> {
    // SAFETY: a plain helper call.
    let slot = unsafe { bpf_get_prandom_u32() } % count;
    // SAFETY: eight bytes are copied.
    unsafe { BACKENDS.get(BackendKey { list, slot }) }.copied()
}

/// The backend that the client had, if it was not silent for too long; else any. The agent forgets those that are gone.
#[inline(always)]
fn the_same_of(list: u32, count: u32, service: ServiceKey, client: u64, seconds: u32) -> Option<Target> {
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
    let backend = any_of(list, count)?;
    // An LRU map has room always; if not, the next choice is free again.
    let _ = AFFINITY.insert(key, Affinity { last_seen: now, backend }, 0);
    Some(backend)
}
