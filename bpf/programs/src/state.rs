//! The maps, shared by every hook and pinned by the agent.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, lpm_trie::Key},
};
use podwire_abi::{
    Counter, EVENT_RING_BYTES, Endpoint, EndpointKey, IpcacheEntry, MAX_ENDPOINTS, MAX_IPCACHE, METRIC_SLOTS,
    NodeConfig, PodCidr,
    connection::{
        Connection, ConnectionKey, FragmentKey, FragmentPorts, MASQUERADE_DEVICE_BITS, MAX_CONNECTIONS,
        MAX_FRAGMENTED, MAX_MASQUERADE_ADDRESSES, MAX_NON_MASQUERADE, MasqueradeKey,
    },
    flags,
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

/// Not preallocated: what is not used costs nothing.
#[map(name = "podwire_ct_out")]
pub static CONNECTIONS_OUT: HashMap<ConnectionKey, Connection> =
    HashMap::pinned(MAX_CONNECTIONS, BPF_F_NO_PREALLOC);

#[map(name = "podwire_ct_in")]
pub static CONNECTIONS_IN: HashMap<ConnectionKey, Connection> =
    HashMap::pinned(MAX_CONNECTIONS, BPF_F_NO_PREALLOC);

#[map(name = "podwire_frag")]
pub static FRAGMENTED: LruHashMap<FragmentKey, FragmentPorts> = LruHashMap::pinned(MAX_FRAGMENTED, 0);

#[map(name = "podwire_masq")]
static MASQUERADE: LpmTrie<MasqueradeKey, u32> = LpmTrie::pinned(MAX_MASQUERADE_ADDRESSES, BPF_F_NO_PREALLOC);

#[map(name = "podwire_ipmasq")]
static NON_MASQUERADE: LpmTrie<u32, u32> = LpmTrie::pinned(MAX_NON_MASQUERADE, BPF_F_NO_PREALLOC);

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
    lies_in(&config.pod_cidrs, ip)
}

#[inline(always)]
fn lies_in(cidrs: &[PodCidr], ip: u32) -> bool {
    cidrs.iter().any(|cidr| cidr.mask != 0 && ip & cidr.mask == cidr.net)
}

/// Whether pods' addresses may have to be kept from what is sent to, or comes from, this address. No map is asked: it is
/// the question of every packet.
#[inline(always)]
pub fn beyond_native(config: &NodeConfig, ip: u32) -> bool {
    config.flags & flags::MASQUERADE != 0 && !lies_in(&config.native_cidrs, ip)
}

/// Whether this destination sees pods' own addresses although it lies beyond the native CIDRs: the list of ip-masq-agent.
#[inline(always)]
pub fn is_non_masquerade(ip: u32) -> bool {
    NON_MASQUERADE.get(Key::new(32, ip)).is_some()
}

/// The address that stands in for pods in what leaves by this device to this destination.
#[inline(always)]
pub fn masquerade_address(ifindex: u32, dst: u32) -> Option<u32> {
    let key = MasqueradeKey { ifindex: ifindex.to_be(), dst };
    MASQUERADE.get(Key::new(MASQUERADE_DEVICE_BITS + 32, key)).copied()
}
