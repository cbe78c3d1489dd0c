//! The maps, shared by every hook and pinned by the agent.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf, lpm_trie::Key},
};
use podwire_abi::{
    Counter, EVENT_RING_BYTES, Endpoint, EndpointKey, IpcacheEntry, MAX_ENDPOINTS, MAX_IPCACHE, METRIC_SLOTS,
    NodeConfig,
};

/// Not preallocated: a node has far fewer pods than there is room for.
#[map(name = "podwire_ep")]
static ENDPOINTS: HashMap<EndpointKey, Endpoint> = HashMap::pinned(MAX_ENDPOINTS, BPF_F_NO_PREALLOC);

#[map(name = "podwire_ipcache")]
static IPCACHE: LpmTrie<u32, IpcacheEntry> = LpmTrie::pinned(MAX_IPCACHE, BPF_F_NO_PREALLOC);

#[map(name = "podwire_config")]
static CONFIG: Array<NodeConfig> = Array::pinned(1, 0);

#[map(name = "podwire_metrics")]
pub static METRICS: PerCpuArray<Counter> = PerCpuArray::pinned(METRIC_SLOTS, 0);

#[map(name = "podwire_events")]
pub static EVENTS: RingBuf = RingBuf::pinned(EVENT_RING_BYTES, 0);

/// The pod of this node that has this address.
#[inline(always)]
pub fn endpoint(ip: u32) -> Option<&'static Endpoint> {
    // SAFETY: the memory stays a map entry while the program runs. If the entry is deleted meanwhile it may be reused:
    // then one packet goes astray to a pod whose MAC address it does not have, as one to a deleted pod may.
    unsafe { ENDPOINTS.get(EndpointKey { ip }) }
}

/// Who owns this address, by the longest prefix.
#[inline(always)]
pub fn owner(ip: u32) -> Option<&'static IpcacheEntry> {
    IPCACHE.get(Key::new(32, ip))
}

/// The node's configuration; zeroes until the agent has written it.
#[inline(always)]
pub fn config() -> Option<&'static NodeConfig> {
    CONFIG.get(0)
}

/// Whether the address lies in a pod CIDR of this node.
#[inline(always)]
pub fn in_own_pod_cidr(config: &NodeConfig, ip: u32) -> bool {
    config.pod_cidrs.iter().any(|cidr| cidr.mask != 0 && ip & cidr.mask == cidr.net)
}
