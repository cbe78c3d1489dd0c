//! Map keys, map values and events: the one thing that the eBPF programs and the agent share.
//!
//! Every struct is `repr(C)` without implicit padding. IPv4 addresses are kept in network byte order, as they stand in
//! the packet (`u32::from_ne_bytes(addr.octets())`); ports likewise.
#![no_std]

use core::{fmt, net::Ipv4Addr};

pub mod connection;
pub mod service;

/// Version of everything in this crate. It is part of the pin path, so programs and maps of different layouts never meet.
pub const ABI_VERSION: u32 = 6;

/// Names of the maps, as they are pinned.
pub mod maps {
    /// Hash: [`super::EndpointKey`] to [`super::Endpoint`]: the pods of this node.
    pub const ENDPOINTS: &str = "podwire_ep";
    /// LPM trie: prefix and address to [`super::IpcacheEntry`]: who owns an address, cluster-wide.
    pub const IPCACHE: &str = "podwire_ipcache";
    /// Array of one [`super::NodeConfig`].
    pub const CONFIG: &str = "podwire_config";
    /// Per-CPU array, indexed by [`super::metric_index`], of [`super::Counter`].
    pub const METRICS: &str = "podwire_metrics";
    /// Ring buffer of [`super::Event`].
    pub const EVENTS: &str = "podwire_events";
    /// Hash: [`super::connection::ConnectionKey`] to [`super::connection::Connection`]: what leaves, as pods send it.
    pub const CONNECTIONS_OUT: &str = "podwire_ct_out";
    /// As [`CONNECTIONS_OUT`]: what comes in, as the wire has it.
    pub const CONNECTIONS_IN: &str = "podwire_ct_in";
    /// LRU hash: [`super::connection::FragmentKey`] to [`super::connection::FragmentPorts`].
    pub const FRAGMENTED: &str = "podwire_frag";
    /// LPM trie: [`super::connection::MasqueradeKey`] to the address (network byte order) that stands in for pods there.
    pub const MASQUERADE: &str = "podwire_masq";
    /// LPM trie: prefix and address to 1: destinations that see pods' own addresses (ip-masq-agent).
    pub const NON_MASQUERADE: &str = "podwire_ipmasq";
    /// Hash: [`super::service::ServiceKey`] to [`super::service::Service`].
    pub const SERVICES: &str = "podwire_lb_svc";
    /// Hash: [`super::service::BackendKey`] to [`super::service::Target`].
    pub const BACKENDS: &str = "podwire_lb_be";
    /// Array of one [`super::service::ServiceConfig`].
    pub const SERVICE_CONFIG: &str = "podwire_lb_cfg";
    /// Hash: number of a list to [`super::service::MaglevTable`]: which backend of the list a caller from outside gets.
    pub const MAGLEV: &str = "podwire_lb_mag";
    /// Hash: [`super::service::Tuple`] to [`super::service::Balanced`]: connections that are balanced packet by packet.
    pub const BALANCED: &str = "podwire_lb_ct";
    /// Per-CPU array of one [`super::service::Opening`].
    pub const OPENING: &str = "podwire_lb_tmp";
    /// Array of [`super::service::CALLERS`] numbers: not 0 while the table of balanced connections has such callers.
    pub const BALANCED_CALLERS: &str = "podwire_lb_act";
    /// LRU hash: [`super::service::PeerKey`] to [`super::service::Target`]: the service that a socket meant to speak to.
    pub const PEERS: &str = "podwire_lb_peer";
    /// LRU hash: [`super::service::AffinityKey`] to [`super::service::Affinity`].
    pub const AFFINITY: &str = "podwire_lb_aff";
}

/// Capacity of the endpoint map. A node's pod CIDR of /24 needs 254; /16 is the largest that is sensible.
pub const MAX_ENDPOINTS: u32 = 65_536;
/// Capacity of the ipcache, as in Cilium.
pub const MAX_IPCACHE: u32 = 512_000;
/// Size of the event ring in bytes (a power of two and a multiple of the page).
pub const EVENT_RING_BYTES: u32 = 1 << 20;

/// Key of the endpoint map: the pod's address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointKey {
    /// IPv4 address, network byte order.
    pub ip: u32,
}

/// One pod of this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Index of the node's end of the pod's veth.
    pub ifindex: u32,
    /// The agent's number of this endpoint.
    pub id: u16,
    /// MAC of the pod's end.
    pub pod_mac: [u8; 6],
    /// MAC of the node's end: the source of frames that the pod receives.
    pub node_mac: [u8; 6],
    /// Zero.
    pub pad: [u8; 2],
    /// Security identity.
    pub identity: u32,
}

/// Who owns an address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpcacheEntry {
    /// Security identity; see [`identity`].
    pub identity: u32,
    /// Address of the node that has the pod, network byte order; 0 for this node and for the world.
    pub node_ip: u32,
}

/// Reserved identities, numbered as in Cilium.
pub mod identity {
    /// This node.
    pub const HOST: u32 = 1;
    /// Outside the cluster.
    pub const WORLD: u32 = 2;
    /// A pod whose labels are not known.
    pub const UNMANAGED: u32 = 3;
    /// Another node.
    pub const REMOTE_NODE: u32 = 6;
    /// The node or nodes that serve the API.
    pub const KUBE_APISERVER: u32 = 7;
    /// First identity that is computed from labels.
    pub const FIRST_USER: u32 = 256;
}

/// How many pod CIDRs of a node the programs know by heart.
pub const MAX_POD_CIDRS: usize = 4;

/// How many native CIDRs the programs know by heart.
pub const MAX_NATIVE_CIDRS: usize = 8;

/// One CIDR, to compare with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodCidr {
    /// Network address, network byte order.
    pub net: u32,
    /// Mask, network byte order; 0 in an unused slot.
    pub mask: u32,
}

/// What the programs need to know of the node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeConfig {
    /// The node's InternalIP, network byte order.
    pub node_ip: u32,
    /// The node's address in the pod network (the pods' gateway), network byte order.
    pub router_ip: u32,
    /// Bits of [`flags`].
    pub flags: u32,
    /// Index of the device that wraps packets for other nodes' pods; 0 if they go as they are.
    pub tunnel_ifindex: u32,
    /// What is longer, from the IP header on, does not fit into the tunnel.
    pub tunnel_mtu: u32,
    /// Zero.
    pub pad: u32,
    /// The node's own pod CIDRs: an address in there without a pod is unroutable, and is dropped here so that no
    /// default route carries it in a circle.
    pub pod_cidrs: [PodCidr; 4], // MAX_POD_CIDRS; by name, struct update syntax in another crate crashes rustc 1.95
    /// What is sent there keeps the pod's address.
    pub native_cidrs: [PodCidr; 8], // MAX_NATIVE_CIDRS
}

const _: () =
    assert!(size_of::<NodeConfig>() == 24 + (MAX_POD_CIDRS + MAX_NATIVE_CIDRS) * size_of::<PodCidr>());

impl PodCidr {
    /// The CIDR of a network address and a prefix length.
    pub fn new(net: Ipv4Addr, prefix: u8) -> Self {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0).to_be();
        Self { net: to_wire(net) & mask, mask }
    }
}

impl NodeConfig {
    /// The configuration of a node with these addresses and pod CIDRs (network address and prefix length, at most
    /// [`MAX_POD_CIDRS`]; further ones are left out and merely lack the protection against circles).
    pub fn new(
        node_ip: Ipv4Addr,
        router_ip: Ipv4Addr,
        pod_cidrs: impl IntoIterator<Item = (Ipv4Addr, u8)>,
    ) -> Self {
        let mut config = Self { node_ip: to_wire(node_ip), router_ip: to_wire(router_ip), ..Self::default() };
        for (slot, (net, prefix)) in config.pod_cidrs.iter_mut().zip(pod_cidrs) {
            *slot = PodCidr::new(net, prefix);
        }
        config
    }

    /// Masquerades what pods send elsewhere than to these CIDRs (at most [`MAX_NATIVE_CIDRS`]).
    #[must_use]
    pub fn masquerading(mut self, native_cidrs: impl IntoIterator<Item = (Ipv4Addr, u8)>) -> Self {
        self.flags |= flags::MASQUERADE;
        for (slot, (net, prefix)) in self.native_cidrs.iter_mut().zip(native_cidrs) {
            *slot = PodCidr::new(net, prefix);
        }
        self
    }

    /// Wraps packets for other nodes' pods by this device.
    #[must_use]
    pub fn tunnelling(mut self, ifindex: u32, mtu: u32) -> Self {
        (self.tunnel_ifindex, self.tunnel_mtu) = (ifindex, mtu);
        self
    }
}

/// An address as the shared structs keep it.
pub const fn to_wire(ip: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(ip.octets())
}

/// The address that a shared struct keeps as `wire`.
pub const fn from_wire(wire: u32) -> Ipv4Addr {
    let [a, b, c, d] = wire.to_ne_bytes();
    Ipv4Addr::new(a, b, c, d)
}

/// Bits of [`NodeConfig::flags`].
pub mod flags {
    /// Somebody listens: report forwarded packets too, not only drops.
    pub const TRACE: u32 = 1;
    /// Pods' addresses do not leave the native network.
    pub const MASQUERADE: u32 = 2;
}

/// Counter of packets and bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets; a GSO packet counts once.
    pub packets: u64,
    /// Bytes, from the IP header on.
    pub bytes: u64,
}

/// Where in the datapath something was seen.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Received from a pod.
    FromEndpoint = 0,
    /// Delivered to a pod.
    ToEndpoint = 1,
    /// Received from the wire.
    FromNetwork = 2,
    /// Sent to the wire.
    ToNetwork = 3,
    /// Handed to the node's own network stack.
    ToStack = 4,
    /// Received from the node itself.
    FromHost = 5,
    /// Received through the tunnel.
    FromOverlay = 6,
    /// Sent into the tunnel.
    ToOverlay = 7,
}

/// Number of [`Point`]s.
pub const POINTS: u32 = 8;

impl Point {
    /// Every point, in the order of their numbers.
    pub const ALL: [Self; POINTS as usize] = [
        Self::FromEndpoint,
        Self::ToEndpoint,
        Self::FromNetwork,
        Self::ToNetwork,
        Self::ToStack,
        Self::FromHost,
        Self::FromOverlay,
        Self::ToOverlay,
    ];

    /// The field's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromEndpoint => "from-endpoint",
            Self::ToEndpoint => "to-endpoint",
            Self::FromNetwork => "from-network",
            Self::ToNetwork => "to-network",
            Self::ToStack => "to-stack",
            Self::FromHost => "from-host",
            Self::FromOverlay => "from-overlay",
            Self::ToOverlay => "to-overlay",
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl From<Point> for u8 {
    fn from(point: Point) -> Self {
        point as u8
    }
}

impl TryFrom<u8> for Point {
    type Error = UnknownNumber;

    fn try_from(number: u8) -> Result<Self, UnknownNumber> {
        Self::ALL.get(usize::from(number)).copied().ok_or(UnknownNumber { kind: "point", number })
    }
}

/// A number that this version of the ABI gives no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownNumber {
    /// What it should have been the number of.
    pub kind: &'static str,
    /// The number.
    pub number: u8,
}

impl fmt::Display for UnknownNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} is unknown to ABI version {ABI_VERSION}", self.kind, self.number)
    }
}

impl core::error::Error for UnknownNumber {}

/// Why a packet was dropped. The words are those of the field.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Not a drop.
    None = 0,
    /// A pod sent with an address that is not its own, or the wire brought a packet from one that no host can have.
    InvalidSourceIp = 1,
    /// Neither IPv4 nor ARP.
    UnsupportedL3 = 2,
    /// Shorter than its headers say, or a bad version or header length.
    Malformed = 3,
    /// The kernel's routing table has no way (unreachable, blackhole, prohibit).
    FibLookupFailed = 4,
    /// TTL would reach zero; the node's stack answers ICMP time exceeded.
    TtlExceeded = 5,
    /// Larger than the MTU; the node's stack answers ICMP fragmentation needed.
    FragmentationNeeded = 6,
    /// Pod address of this node without a pod.
    StaleOrUnroutable = 7,
    /// The frame could not be written.
    WriteError = 8,
    /// No port is free, or the device has no address.
    NatNoMapping = 9,
    /// A protocol without ports or identifiers, which cannot be masqueraded.
    NatUnsupportedProtocol = 10,
    /// The map of connections is full.
    ConnectionInsertFailed = 11,
    /// A piece of a packet whose first piece, the one with the ports, was not seen.
    FragmentNotFound = 12,
    /// A RST, an echo reply or an ICMP error that belongs to no connection that is known.
    UnknownConnection = 13,
    /// Sent to a service's address by other means than a socket that was given a backend.
    ServiceBackendNotFound = 14,
    /// The address belongs to the tunnel, but no node is known to have it.
    NoTunnelEndpoint = 15,
}

/// Number of [`DropReason`]s.
pub const DROP_REASONS: u32 = 16;

impl DropReason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; DROP_REASONS as usize] = [
        Self::None,
        Self::InvalidSourceIp,
        Self::UnsupportedL3,
        Self::Malformed,
        Self::FibLookupFailed,
        Self::TtlExceeded,
        Self::FragmentationNeeded,
        Self::StaleOrUnroutable,
        Self::WriteError,
        Self::NatNoMapping,
        Self::NatUnsupportedProtocol,
        Self::ConnectionInsertFailed,
        Self::FragmentNotFound,
        Self::UnknownConnection,
        Self::ServiceBackendNotFound,
        Self::NoTunnelEndpoint,
    ];

    /// The field's words for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "Forwarded",
            Self::InvalidSourceIp => "Invalid source ip",
            Self::UnsupportedL3 => "Unsupported L3 protocol",
            Self::Malformed => "Malformed packet",
            Self::FibLookupFailed => "FIB lookup failed",
            Self::TtlExceeded => "TTL exceeded",
            Self::FragmentationNeeded => "Fragmentation needed",
            Self::StaleOrUnroutable => "Stale or unroutable IP",
            Self::WriteError => "Error writing to packet",
            Self::NatNoMapping => "No mapping for NAT masquerade",
            Self::NatUnsupportedProtocol => "Unsupported protocol for NAT masquerade",
            Self::ConnectionInsertFailed => "CT: Map insertion failed",
            Self::FragmentNotFound => "First logical datagram fragment not found",
            Self::UnknownConnection => "Unknown connection tracking state",
            Self::ServiceBackendNotFound => "Service backend not found",
            Self::NoTunnelEndpoint => "No tunnel/encapsulation endpoint",
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl From<DropReason> for u8 {
    fn from(reason: DropReason) -> Self {
        reason as u8
    }
}

impl TryFrom<u8> for DropReason {
    type Error = UnknownNumber;

    fn try_from(number: u8) -> Result<Self, UnknownNumber> {
        Self::ALL.get(usize::from(number)).copied().ok_or(UnknownNumber { kind: "drop reason", number })
    }
}

/// Number of slots of the metrics map.
pub const METRIC_SLOTS: u32 = POINTS * DROP_REASONS;

/// Slot of the metrics map for a point and a reason ([`DropReason::None`] counts what was forwarded).
#[inline]
pub const fn metric_index(point: Point, reason: DropReason) -> u32 {
    point as u32 * DROP_REASONS + reason as u32
}

/// Bytes of the packet, from the IP header on, that an event carries.
pub const EVENT_HEADER_BYTES: usize = 64;

/// One event of the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Nanoseconds since boot (`bpf_ktime_get_boot_ns`).
    pub time_ns: u64,
    /// Device on which the packet was seen.
    pub ifindex: u32,
    /// Device to which it was redirected; 0 if none.
    pub out_ifindex: u32,
    /// Identity of the source; 0 if unknown.
    pub src_identity: u32,
    /// Identity of the destination; 0 if unknown.
    pub dst_identity: u32,
    /// Length of the packet in bytes, from the IP header on.
    pub length: u32,
    /// The endpoint it concerns; 0 if none.
    pub endpoint_id: u16,
    /// A [`Point`].
    pub point: u8,
    /// A [`DropReason`].
    pub reason: u8,
    /// The packet's first bytes, from the IP header on; zeroes after its end.
    pub header: [u8; EVENT_HEADER_BYTES],
}

#[cfg(feature = "user")]
mod user {
    use super::{Counter, Endpoint, EndpointKey, IpcacheEntry, NodeConfig};
    // SAFETY: repr(C), Copy, no padding and no pointers: every bit pattern is a value.
    unsafe impl aya::Pod for EndpointKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Endpoint {}
    // SAFETY: as above.
    unsafe impl aya::Pod for IpcacheEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for NodeConfig {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Counter {}
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn numbers_and_points_agree() {
        for (number, point) in Point::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(u8::from(point)), number);
            assert_eq!(Point::try_from(number as u8), Ok(point));
        }
        for (number, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(u8::from(reason)), number);
            assert_eq!(DropReason::try_from(number as u8), Ok(reason));
        }
        assert!(Point::try_from(POINTS as u8).is_err());
        assert!(DropReason::try_from(DROP_REASONS as u8).is_err());
        assert_eq!(metric_index(Point::ToOverlay, DropReason::NoTunnelEndpoint), METRIC_SLOTS - 1);
    }

    #[test]
    fn structs_have_no_padding() {
        assert_eq!(size_of::<Endpoint>(), 4 + 2 + 6 + 6 + 2 + 4);
        assert_eq!(size_of::<IpcacheEntry>(), 8);
        assert_eq!(size_of::<NodeConfig>(), 24 + 8 * (MAX_POD_CIDRS + MAX_NATIVE_CIDRS));
        assert_eq!(size_of::<Event>(), 8 + 5 * 4 + 2 + 1 + 1 + EVENT_HEADER_BYTES);
    }

    #[test]
    fn config_takes_addresses_as_they_stand_in_the_packet() {
        let config = NodeConfig::new(
            Ipv4Addr::new(192, 168, 10, 100),
            Ipv4Addr::new(10, 244, 0, 1),
            [(Ipv4Addr::new(10, 244, 0, 7), 24), (Ipv4Addr::UNSPECIFIED, 0)],
        );
        assert_eq!(config.node_ip.to_ne_bytes(), [192, 168, 10, 100]);
        assert_eq!(from_wire(config.pod_cidrs[0].net), Ipv4Addr::new(10, 244, 0, 0));
        assert_eq!(config.pod_cidrs[0].mask.to_ne_bytes(), [255, 255, 255, 0]);
        assert_eq!(config.pod_cidrs[1].mask, 0, "a CIDR of everything is no pod CIDR");
        assert_eq!(config.pod_cidrs[3], PodCidr::default());
        assert_eq!(config.flags & flags::MASQUERADE, 0);
        let config = config.masquerading([(Ipv4Addr::new(10, 244, 0, 0), 16)]);
        assert_eq!(config.native_cidrs[0], PodCidr::new(Ipv4Addr::new(10, 244, 3, 4), 16));
        assert_eq!(config.flags, flags::MASQUERADE);
    }
}
