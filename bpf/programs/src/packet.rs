//! Reading and rewriting a frame in place.

use core::{mem::MaybeUninit, ptr};

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes},
};
use podwire_abi::Endpoint;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options.
pub const IPV4: usize = 20;

/// `ETH_P_IP` as `__sk_buff::protocol` has it.
pub const PROTOCOL_IPV4: u32 = 0x0800_u16.to_be() as u32;
/// `ETH_P_ARP`.
pub const PROTOCOL_ARP: u32 = 0x0806_u16.to_be() as u32;

/// `IPPROTO_ICMP`.
pub const ICMP: u8 = 1;
/// `IPPROTO_TCP`.
pub const TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const UDP: u8 = 17;

/// `PACKET_HOST`: the frame is addressed to this device.
pub const TO_THIS_HOST: u32 = 0;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// IPv4 header without options (RFC 791, 3.1), multi-byte fields in network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv4 {
    version_ihl: u8,
    pub tos: u8,
    total_length: u16,
    id: u16,
    fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    check: u16,
    pub src: u32,
    pub dst: u32,
}

const _: () = assert!(size_of::<Ipv4>() == IPV4);

impl Ipv4 {
    /// Whether there are options between this header and the payload.
    #[inline(always)]
    pub fn has_options(&self) -> bool {
        self.version_ihl != 0x45
    }

    /// Total length in bytes, as the header says.
    #[inline(always)]
    pub fn total_length(&self) -> u16 {
        u16::from_be(self.total_length)
    }

    #[inline(always)]
    pub fn dont_fragment(&self) -> bool {
        self.fragment & DONT_FRAGMENT.to_be() != 0
    }

    /// Whether this is a piece of a larger packet: then ports are at best in the first piece.
    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        self.fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET).to_be() != 0
    }

    /// Whether this is a piece of a larger packet, but not its first.
    #[inline(always)]
    pub fn is_later_fragment(&self) -> bool {
        self.fragment & FRAGMENT_OFFSET.to_be() != 0
    }

    /// What all pieces of a packet have in common; network byte order.
    #[inline(always)]
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Bytes of this header, options included.
    #[inline(always)]
    pub fn header_len(&self) -> u32 {
        u32::from(self.version_ihl & 0x0f) * 4
    }

    /// Whether this is an IPv4 header at all.
    #[inline(always)]
    pub fn is_whole(&self) -> bool {
        self.version_ihl >> 4 == 4 && self.header_len() >= IPV4 as u32
    }

    /// Where the packet ends in the frame: what is behind it (a short frame is padded) is not the packet's.
    #[inline(always)]
    pub fn end(&self, skb: *mut __sk_buff) -> u32 {
        match self.total_length() {
            // A GSO packet beyond 64 KiB, see `ipv4`.
            // SAFETY: the kernel hands every classifier a valid context.
            0 => unsafe { (*skb).len },
            length => ETHERNET as u32 + u32::from(length),
        }
    }

    /// Whether it says to come from where nothing can come from: no host has this address on any wire. (Of 240.0.0.0/4
    /// hosts may have addresses, as Linux has it.)
    #[inline(always)]
    pub fn has_martian_source(&self) -> bool {
        is_nowhere(self.src) || u32::from_be(self.src) >> 28 == 0xe || self.src == u32::MAX
    }

    /// Whether it is for no host on any wire.
    #[inline(always)]
    pub fn is_to_nowhere(&self) -> bool {
        is_nowhere(self.dst)
    }

    /// Multicast (RFC 5771) or the limited broadcast.
    #[inline(always)]
    pub fn is_to_many(&self) -> bool {
        u32::from_be(self.dst) >= 0xe000_0000
    }
}

/// 0.0.0.0, and the loopback network.
#[inline(always)]
fn is_nowhere(addr: u32) -> bool {
    addr == 0 || u32::from_be(addr) >> 24 == 127
}

/// Where `len` bytes of the frame from `offset` on stand, if they can be read in place.
#[inline(always)]
fn at(skb: *mut __sk_buff, offset: usize, len: usize) -> Option<*mut u8> {
    // SAFETY: the kernel hands every classifier a valid context.
    let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    if data + offset + len > end { None } else { Some((data + offset) as *mut u8) }
}

/// The IPv4 header of a frame, checked against the frame (RFC 1812, 5.2.2): `None` if it is malformed. The checksum is
/// not looked at: an update by difference keeps a wrong one wrong, and the receiver finds it.
#[inline(always)]
pub fn ipv4(skb: *mut __sk_buff) -> Option<Ipv4> {
    let header = if let Some(header) = at(skb, ETHERNET, IPV4) {
        header
    } else {
        // SAFETY: a valid context. Frames come mostly with their headers in the linear part; this is for the others.
        if unsafe { bpf_skb_pull_data(skb, (ETHERNET + IPV4) as u32) } != 0 {
            return None;
        }
        at(skb, ETHERNET, IPV4)?
    };
    // SAFETY: `at` has checked the bounds.
    let header = unsafe { ptr::read_unaligned(header.cast::<Ipv4>()) };
    let header_len = header.header_len();
    let total = u32::from(header.total_length());
    // SAFETY: as above.
    let (frame, gso) = unsafe { ((*skb).len, (*skb).gso_size) };
    // A GSO packet beyond 64 KiB (BIG TCP) says 0.
    let length_holds = (total >= header_len && total + ETHERNET as u32 <= frame) || (total == 0 && gso != 0);
    (header.is_whole() && length_holds).then_some(header)
}

/// What stands at an offset of the frame, wherever the kernel keeps it. Any bytes must be a value of `T`.
#[inline(always)]
pub fn load<T: Copy>(skb: *mut __sk_buff, offset: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: a valid context; the helper writes `size_of::<T>()` bytes or fails.
    unsafe {
        if bpf_skb_load_bytes(skb.cast(), offset, value.as_mut_ptr().cast(), size_of::<T>() as u32) != 0 {
            return None;
        }
        Some(value.assume_init())
    }
}

/// Writes at an offset of the frame. `false` if it cannot be written. Invalidates what `at` has given.
#[inline(always)]
pub fn store<T: Copy>(skb: *mut __sk_buff, offset: u32, value: &T) -> bool {
    // SAFETY: a valid context, and `value` is initialised memory of the size given.
    unsafe { bpf_skb_store_bytes(skb, offset, ptr::from_ref(value).cast(), size_of::<T>() as u32, 0) == 0 }
}

/// The layer-4 fields that policy routing and multipath hashing look at.
#[derive(Clone, Copy, Default)]
pub struct Ports {
    /// Network byte order; 0 if the packet has none.
    pub source: u16,
    /// Network byte order; 0 if the packet has none.
    pub destination: u16,
    /// Bytes of the layer-4 header.
    pub header_len: u8,
}

/// The ports of an unfragmented TCP or UDP packet without IP options, where they can be read in place.
#[inline(always)]
pub fn ports(skb: *mut __sk_buff, ip: &Ipv4) -> Ports {
    let mut ports = Ports::default();
    if ip.is_fragment() || (ip.protocol != TCP && ip.protocol != UDP) {
        return ports;
    }
    let Some(l4) = at(skb, ETHERNET + IPV4, 8) else { return ports };
    // SAFETY: `at` has checked 8 bytes, and the ports are the first four.
    unsafe {
        ports.source = ptr::read_unaligned(l4.cast());
        ports.destination = ptr::read_unaligned(l4.add(2).cast());
    }
    ports.header_len = 8;
    if ip.protocol == TCP
        && let Some(data_offset) = at(skb, ETHERNET + IPV4 + 12, 1)
    {
        // SAFETY: `at` has checked the byte.
        ports.header_len = unsafe { *data_offset >> 4 } * 4;
    }
    ports
}

/// Bytes that this packet will have on the wire, from the IP header on: of a GSO packet those of one segment; 0 if
/// that cannot be told.
#[inline(always)]
pub fn wire_length(skb: *mut __sk_buff, ip: &Ipv4, ports: &Ports) -> u16 {
    // SAFETY: a valid context.
    let gso = unsafe { (*skb).gso_size };
    if gso == 0 {
        return ip.total_length();
    }
    if ports.header_len == 0 { 0 } else { (IPV4 as u32 + u32::from(ports.header_len) + gso) as u16 }
}

/// Takes one from the TTL and keeps the checksum right (RFC 1624). `false` if the frame cannot be written.
#[inline(always)]
pub fn decrement_ttl(skb: *mut __sk_buff) -> bool {
    let Some(header) = at(skb, ETHERNET, IPV4) else { return false };
    let header = header.cast::<Ipv4>();
    // SAFETY: `at` has checked the bounds.
    unsafe {
        let check =
            u32::from(ptr::read_unaligned(&raw const (*header).check)) + u32::from(0x0100_u16.to_be());
        ptr::write_unaligned(&raw mut (*header).check, (check + u32::from(check >= 0xffff)) as u16);
        (*header).ttl -= 1;
    }
    true
}

/// Addresses the frame to the pod, from the node's end of its veth. `false` if the frame cannot be written.
#[inline(always)]
pub fn address_to(skb: *mut __sk_buff, endpoint: &Endpoint) -> bool {
    let Some(frame) = at(skb, 0, ETHERNET) else { return false };
    let frame = frame.cast::<[u8; 6]>();
    // SAFETY: `at` has checked the bounds.
    unsafe {
        ptr::write_unaligned(frame, endpoint.pod_mac);
        ptr::write_unaligned(frame.add(1), endpoint.node_mac);
    }
    true
}
