//! Services: which address and port stands for which pods.
//!
//! A socket of a pod is given a backend when it connects, or when it sends without being connected: the packets then carry
//! the backend's own address, and nothing need be translated back. So a connection lasts as long as its two ends do,
//! whatever becomes of the Service.

/// Capacity of the map of services: frontends, one for each address, port and protocol, and one for each address.
pub const MAX_SERVICES: u32 = 65_536;
/// Capacity of the map of backends: slots of all services together.
pub const MAX_BACKENDS: u32 = 262_144;
/// Capacity of the map that says to which service a socket meant to speak. The oldest gives way.
pub const MAX_PEERS: u32 = 65_536;
/// Capacity of the map of clients that come back to the backend that they had. The oldest gives way.
pub const MAX_AFFINITY: u32 = 16_384;

/// Where a service is called: as it stands in the packet, in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The ClusterIP.
    pub addr: u32,
    /// The port; 0 in the entry that says only that the address is a service's.
    pub port: u16,
    /// IP protocol number; 0 with port 0.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
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

/// A client of a service with affinity: a pod, known by its network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    /// The namespace's cookie.
    pub client: u64,
    /// The service.
    pub service: ServiceKey,
}

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
    use super::{Affinity, AffinityKey, BackendKey, PeerKey, Service, ServiceKey, Target};
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
    unsafe impl aya::Pod for crate::PodCidr {}
}

const _: () = assert!(size_of::<ServiceKey>() == 8);
const _: () = assert!(size_of::<Service>() == 12);
const _: () = assert!(size_of::<Target>() == 8);
const _: () = assert!(size_of::<PeerKey>() == 16);
const _: () = assert!(size_of::<AffinityKey>() == 16);
const _: () = assert!(size_of::<Affinity>() == 16);
