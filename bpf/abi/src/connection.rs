//! Connections between this node's pods and what is outside the native network: who has which port, and which may go.
//!
//! A connection is two entries, one a direction, so that each packet finds its own by one lookup and no two directions
//! write the same memory.

/// Capacity of each of the two maps of connections. Nothing is preallocated: it bounds, it does not cost.
pub const MAX_CONNECTIONS: u32 = 262_144;
/// Capacity of the map of fragmented packets under way. The oldest gives way.
pub const MAX_FRAGMENTED: u32 = 8192;
/// Capacity of the map of masquerade addresses: devices times routes.
pub const MAX_MASQUERADE_ADDRESSES: u32 = 16_384;
/// Capacity of the list of destinations that are not masqueraded.
pub const MAX_NON_MASQUERADE: u32 = 16_384;
/// First port that is given where the pod's own is taken; the last is 65535. Below are the node ports of Services.
pub const FIRST_PORT: u16 = 32_768;
/// How many ports are looked at for a free one before a connection is refused.
pub const PORT_TRIES: u32 = 32;
/// How often a port is claimed before a connection is refused: another CPU, or a socket of the node, may have it after all.
pub const PORT_CLAIMS: u32 = 3;

/// Both ends of a connection, in network byte order as they stand in the packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionKey {
    /// Address of this side: outgoing, the pod's; incoming, the one that the packet is sent to.
    pub local: u32,
    /// Address of the other side.
    pub remote: u32,
    /// Port of this side, or the identifier of an ICMP echo.
    pub local_port: u16,
    /// Port of the other side; of an ICMP echo [`ECHO_ASKED_HERE`] or [`ECHO_ASKED_THERE`].
    pub remote_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// In the place of a remote port: this side sent the echo request.
pub const ECHO_ASKED_HERE: u16 = 0;
/// In the place of a remote port: the other side sent the echo request.
pub const ECHO_ASKED_THERE: u16 = 1;

/// One direction of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// When its last packet was seen: nanoseconds since boot (`bpf_ktime_get_boot_ns`).
    pub last_seen: u64,
    /// Packets; a GSO packet counts once.
    pub packets: u64,
    /// Bytes, from the IP header on.
    pub bytes: u64,
    /// What is written in the place of the key's local address, network byte order. The same if nothing is translated.
    pub addr: u32,
    /// Device by which the connection leaves; 0 of the incoming direction, and of one that came from outside.
    pub ifindex: u32,
    /// What is written in the place of the key's local port, network byte order.
    pub port: u16,
    /// Bits of [`seen`].
    pub seen: u8,
    /// Zero.
    pub pad: [u8; 5],
}

/// What was seen of a TCP connection in one direction since its last SYN.
pub mod seen {
    /// A SYN.
    pub const SYN: u8 = 1;
    /// A FIN.
    pub const FIN: u8 = 2;
    /// A RST.
    pub const RST: u8 = 4;
    /// A packet without SYN.
    pub const DATA: u8 = 8;
}

/// Key of the map of fragmented packets: what all pieces of one share (RFC 791, 3.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// Source address before translation.
    pub src: u32,
    /// Destination address before translation.
    pub dst: u32,
    /// Identification.
    pub id: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// What only the first piece of a packet says.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentPorts {
    /// As in [`ConnectionKey`].
    pub local_port: u16,
    /// As in [`ConnectionKey`].
    pub remote_port: u16,
}

/// Data of a key of the LPM trie of masquerade addresses; the prefix length counts the device's bits too.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MasqueradeKey {
    /// Index of the device, in network byte order: all its bits count.
    pub ifindex: u32,
    /// Destination, network byte order.
    pub dst: u32,
}

/// Bits of a device's index in a [`MasqueradeKey`].
pub const MASQUERADE_DEVICE_BITS: u32 = 32;

#[cfg(feature = "user")]
mod user {
    use super::{Connection, ConnectionKey, FragmentKey, FragmentPorts, MasqueradeKey};
    // SAFETY: repr(C), Copy, no padding and no pointers: every bit pattern is a value.
    unsafe impl aya::Pod for ConnectionKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Connection {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FragmentKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FragmentPorts {}
    // SAFETY: as above.
    unsafe impl aya::Pod for MasqueradeKey {}
}

const _: () = assert!(size_of::<ConnectionKey>() == 16);
const _: () = assert!(size_of::<Connection>() == 40);
const _: () = assert!(size_of::<FragmentKey>() == 12);
const _: () = assert!(size_of::<MasqueradeKey>() == 8);
