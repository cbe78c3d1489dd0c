//! Services: which address and port stands for which pods.
//!
//! A socket of a pod is given a backend when it connects, or when it sends without being connected: the packets then carry
//! the backend's own address, and nothing need be translated back. So a connection lasts as long as its two ends do,
//! whatever becomes of the Service.
//!
//! Who calls from outside, and what no socket of the node sends, is balanced packet by packet: the first packet of a
//! connection chooses, and both directions then follow the table of balanced connections.

use crate::connection::ConnectionKey;

/// Capacity of the map of services: frontends, one for each address, port and protocol, and one for each address.
pub const MAX_SERVICES: u32 = 65_536;
/// Capacity of the map of backends: slots of all services together.
pub const MAX_BACKENDS: u32 = 262_144;
/// Capacity of the map that says to which service a socket meant to speak. The oldest gives way.
pub const MAX_PEERS: u32 = 65_536;
/// Capacity of the map of clients that come back to the backend that they had. The oldest gives way.
pub const MAX_AFFINITY: u32 = 16_384;

/// Capacity of the table of balanced connections: two entries each. Nothing is preallocated.
pub const MAX_BALANCED: u32 = 524_288;
/// Capacity of the map of Maglev tables: one for each list that callers from outside get, if it has two backends or more.
pub const MAX_MAGLEV: u32 = 16_384;
/// Entries of a Maglev table: a prime, much larger than the number of backends; Cilium's default (`maglev.tableSize`).
pub const MAGLEV_SIZE: usize = 16_381;

/// For each hash the slot of the backend in its list.
pub type MaglevTable = [u16; MAGLEV_SIZE];

/// Whose calls a frontend is for.
pub mod scope {
    /// Pods' and nodes'.
    pub const INSIDE: u8 = 0;
    /// Those that come by the wire.
    pub const OUTSIDE: u8 = 1;
}

/// Kinds of callers that are balanced packet by packet, by the numbers of [`scope`].
pub const CALLERS: u32 = 2;

/// Where a service is called: as it stands in the packet, in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The ClusterIP; 0 stands for every address of a node (NodePort).
    pub addr: u32,
    /// The port; 0 in the entry that says only that the address is a service's.
    pub port: u16,
    /// IP protocol number; 0 with port 0.
    pub protocol: u8,
    /// Of [`scope`]; 0 with port 0.
    pub scope: u8,
}

/// A service, and where its backends are.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Under which number its backends stand. A changed list gets a new one, so that none is ever seen half changed.
    pub list: u32,
    /// How many backends there are; with none, whoever calls is refused.
    pub count: u32,
    /// So many seconds may a client be silent and still come back to the same backend; 0 if any will do.
    pub affinity_seconds: u32,
    /// Bits of [`flags`].
    pub flags: u32,
}

/// Bits of [`Service::flags`].
pub mod flags {
    /// The list has a Maglev table.
    pub const MAGLEV: u32 = 1;
}

/// What the programs need to know of all services together.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Cookie of the node's own network namespace: there 127.0.0.1 is the node.
    pub host_netns: u64,
    /// The smallest CIDR with every service's own address in it.
    pub range: crate::PodCidr,
    /// First port of NodePorts, host byte order. Larger than the last if there is none.
    pub first_node_port: u16,
    /// Last port of NodePorts, host byte order.
    pub last_node_port: u16,
    /// Bits of [`config_flags`].
    pub flags: u32,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self { host_netns: 0, range: NO_SERVICES, first_node_port: 1, last_node_port: 0, flags: 0 }
    }
}

/// Bits of [`ServiceConfig::flags`].
pub mod config_flags {
    /// Some frontend is for callers from outside.
    pub const OUTSIDE: u32 = 1;
    /// Sockets are not given backends: whatever pods send is looked at.
    pub const EVERY_PACKET: u32 = 2;
}

/// Both ends of a packet, network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Source address.
    pub src: u32,
    /// Destination address.
    pub dst: u32,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// What becomes of packets with a [`Tuple`], and what was seen of them. The other direction is the entry of the tuple that is
/// written here, reversed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balanced {
    /// When the last packet was seen: nanoseconds since boot (`bpf_ktime_get_boot_ns`).
    pub last_seen: u64,
    /// Packets; a GSO packet counts once.
    pub packets: u64,
    /// Bytes, from the IP header on.
    pub bytes: u64,
    /// Source address that is written.
    pub src: u32,
    /// Destination address that is written.
    pub dst: u32,
    /// Source port that is written.
    pub sport: u16,
    /// Destination port that is written.
    pub dport: u16,
    /// Bits of [`crate::connection::seen`].
    pub seen: u8,
    /// 1 of what the caller sends, 0 of what it gets.
    pub call: u8,
    /// [`scope::INSIDE`] if a pod calls and is answered at its own address, else [`scope::OUTSIDE`].
    pub scope: u8,
    /// Zero.
    pub pad: u8,
}

impl Balanced {
    /// The key of the other direction.
    #[inline]
    pub const fn counterpart(&self, protocol: u8) -> Tuple {
        Tuple { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, protocol, pad: [0; 3] }
    }
}

/// What a balanced connection's opening works on. A program's stack is too small for it, and on one CPU one packet is opened
/// for at a time.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Opening {
    /// Both ends as the caller has them.
    pub called: Tuple,
    /// Both ends of the answers, as the backend sends them.
    pub answer: Tuple,
    /// The same, as sockets and masqueraded connections are looked up.
    pub way_back: ConnectionKey,
    /// The backend.
    pub backend: Target,
    /// The entry of what the caller sends.
    pub call: Balanced,
    /// The entry of what it gets.
    pub back: Balanced,
}

/// One place of a list of backends.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendKey {
    /// The list's number.
    pub list: u32,
    /// From 0 up to the service's count.
    pub slot: u32,
}

/// An address and a port, network byte order: a backend, or the service that a socket meant.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Address.
    pub addr: u32,
    /// Port.
    pub port: u16,
    /// Zero.
    pub pad: u16,
}

/// A socket and the backend that it was given.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerKey {
    /// The socket's cookie.
    pub socket: u64,
    /// The backend.
    pub backend: Target,
}

/// A client of a service with affinity: a pod, known by its network namespace, or an address outside.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    /// The namespace's cookie, or [`CLIENT_ADDRESS`] and the address as it stands in the packet.
    pub client: u64,
    /// The service.
    pub service: ServiceKey,
}

/// In [`AffinityKey::client`]: the client is an address. Cookies are counted from 1 and never come so far.
pub const CLIENT_ADDRESS: u64 = 1 << 63;

/// The backend that a client had.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// When it was last asked for: nanoseconds since boot (`bpf_ktime_get_boot_ns`).
    pub last_seen: u64,
    /// The backend.
    pub backend: Target,
}

/// What stands in the place of the CIDR of all services if there is none: no address lies in it, for a masked address is 0.
pub const NO_SERVICES: crate::PodCidr = crate::PodCidr { net: u32::MAX, mask: 0 };

#[cfg(feature = "user")]
mod user {
    use super::{
        Affinity, AffinityKey, BackendKey, Balanced, PeerKey, Service, ServiceConfig, ServiceKey, Target,
        Tuple,
    };
    // SAFETY: repr(C), Copy, no padding and no pointers: every bit pattern is a value.
    unsafe impl aya::Pod for ServiceKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Service {}
    // SAFETY: as above.
    unsafe impl aya::Pod for BackendKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Target {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PeerKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for AffinityKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Affinity {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ServiceConfig {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Tuple {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Balanced {}
}

const _: () = assert!(size_of::<ServiceKey>() == 8);
const _: () = assert!(size_of::<Service>() == 16);
const _: () = assert!(size_of::<ServiceConfig>() == 24);
const _: () = assert!(size_of::<Tuple>() == 16);
const _: () = assert!(size_of::<Balanced>() == 40);
const _: () = assert!(size_of::<Target>() == 8);
const _: () = assert!(size_of::<PeerKey>() == 16);
const _: () = assert!(size_of::<AffinityKey>() == 16);
const _: () = assert!(size_of::<Affinity>() == 16);
