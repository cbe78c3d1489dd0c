//! Packets and captures made of nothing, for tests of this crate and of those that use it.

use std::net::Ipv4Addr;

use crate::link::LinkType;
use crate::read::Direction;
use crate::write::{InterfaceHeader, PcapngWriter};

/// Time of the first packet of a made capture: 2026-01-01T00:00:00Z, in nanoseconds.
pub const EPOCH: u64 = 1_767_225_600_000_000_000;

/// A packet under construction, from the network layer outward.
#[derive(Debug, Clone)]
pub struct Build {
    bytes: Vec<u8>,
}

impl Build {
    /// A TCP segment with `flags` (SYN 2, ACK 16, ...).
    pub fn tcp(
        (source, destination): (Ipv4Addr, Ipv4Addr),
        ports: (u16, u16),
        numbers: (u32, u32),
        flags: u8,
        payload: &[u8],
    ) -> Self {
        let mut segment = Vec::new();
        segment.extend(ports.0.to_be_bytes());
        segment.extend(ports.1.to_be_bytes());
        segment.extend(numbers.0.to_be_bytes());
        segment.extend(numbers.1.to_be_bytes());
        segment.extend([0x50, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
        segment.extend(payload);
        Self::ip(source, destination, 6, 1, &segment)
    }

    /// A UDP datagram.
    pub fn udp(
        (source, destination): (Ipv4Addr, Ipv4Addr),
        ports: (u16, u16),
        id: u16,
        payload: &[u8],
    ) -> Self {
        Self::ip(source, destination, 17, id, &udp_segment(ports, payload))
    }

    /// An echo request, or its reply.
    pub fn echo(
        (source, destination): (Ipv4Addr, Ipv4Addr),
        request: bool,
        id: u16,
        sequence: u16,
        payload: &[u8],
    ) -> Self {
        let mut message = vec![if request { 8 } else { 0 }, 0, 0, 0];
        message.extend(id.to_be_bytes());
        message.extend(sequence.to_be_bytes());
        message.extend(payload);
        Self::ip(source, destination, 1, 0, &message)
    }

    /// An IPv4 packet of `protocol`.
    pub fn ip(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, id: u16, payload: &[u8]) -> Self {
        let total = u16::try_from(20 + payload.len()).unwrap_or(0);
        let mut bytes = vec![0x45, 0];
        bytes.extend(total.to_be_bytes());
        bytes.extend(id.to_be_bytes());
        bytes.extend([0x40, 0, 63, protocol, 0, 0]);
        bytes.extend(source.octets());
        bytes.extend(destination.octets());
        bytes.extend(payload);
        Self { bytes }
    }

    /// The packet in a VXLAN packet between two machines, with network identifier 7.
    #[must_use]
    pub fn in_vxlan(self, source: Ipv4Addr, destination: Ipv4Addr, port: u16) -> Self {
        self.in_network(7, (source, destination), port)
    }

    /// The packet in a VXLAN packet between two machines, with a network identifier.
    #[must_use]
    pub fn in_network(self, vni: u32, (source, destination): (Ipv4Addr, Ipv4Addr), port: u16) -> Self {
        let mut payload = vec![8, 0, 0, 0];
        payload.extend((vni << 8).to_be_bytes());
        payload.extend(self.frame());
        Self::udp((source, destination), (54321, port), 9, &payload)
    }

    /// The packet in a Geneve packet between two machines.
    #[must_use]
    pub fn in_geneve(self, source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        let mut payload = vec![1, 0, 0x65, 0x58, 0, 0, 7, 0, 0, 0, 0, 0];
        payload.extend(self.frame());
        Self::udp((source, destination), (54321, 6081), 9, &payload)
    }

    /// The packet in an IPIP packet between two machines.
    #[must_use]
    pub fn in_ipip(self, source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        Self::ip(source, destination, 4, 9, &self.bytes)
    }

    /// The packet in a GRE packet with a key between two machines.
    #[must_use]
    pub fn in_gre(self, source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        let mut payload = vec![0x20, 0, 8, 0, 0, 0, 0, 7];
        payload.extend(&self.bytes);
        Self::ip(source, destination, 47, 9, &payload)
    }

    /// The packet without a link header.
    pub fn packet(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    /// The packet in an Ethernet frame.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
        frame.extend(&self.bytes);
        frame
    }

    /// The packet in an Ethernet frame with VLAN tags.
    pub fn tagged(&self, vlans: &[u16]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        for vlan in vlans {
            frame.extend([0x81, 0]);
            frame.extend(vlan.to_be_bytes());
        }
        frame.extend([8, 0]);
        frame.extend(&self.bytes);
        frame
    }
}

fn udp_segment(ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(ports.0.to_be_bytes());
    segment.extend(ports.1.to_be_bytes());
    segment.extend(u16::try_from(8 + payload.len()).unwrap_or(0).to_be_bytes());
    segment.extend([0, 0]);
    segment.extend(payload);
    segment
}

/// A little-endian microsecond pcap of Ethernet frames, a millisecond apart.
pub fn pcap_of(frames: &[&[u8]]) -> Vec<u8> {
    pcap(frames, false, false, LinkType::Ethernet)
}

/// A pcap of frames, a millisecond apart, in the byte order and resolution asked for.
pub fn pcap(frames: &[&[u8]], big_endian: bool, nanoseconds: bool, link: LinkType) -> Vec<u8> {
    let u32_bytes = |value: u32| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
    let u16_bytes = |value: u16| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
    let mut file = Vec::new();
    file.extend(u32_bytes(if nanoseconds { 0xa1b2_3c4d } else { 0xa1b2_c3d4 }));
    file.extend(u16_bytes(2));
    file.extend(u16_bytes(4));
    file.extend([0; 8]);
    file.extend(u32_bytes(262_144));
    file.extend(u32_bytes(u32::from(link.number())));
    for (index, frame) in frames.iter().enumerate() {
        let time = EPOCH + index as u64 * 1_000_000;
        let fraction = time % 1_000_000_000;
        file.extend(u32_bytes((time / 1_000_000_000) as u32));
        file.extend(u32_bytes(if nanoseconds { fraction } else { fraction / 1000 } as u32));
        file.extend(u32_bytes(frame.len() as u32));
        file.extend(u32_bytes(frame.len() as u32));
        file.extend(*frame);
    }
    file
}

/// A pcapng with named Ethernet interfaces and frames, each on one of them by its index, a millisecond apart; every
/// interface with statistics that say `dropped` packets were lost.
pub fn pcapng(interfaces: &[&str], frames: &[(usize, Vec<u8>)], dropped: u64) -> Vec<u8> {
    let build = || -> std::io::Result<Vec<u8>> {
        let mut writer = PcapngWriter::new(Vec::new(), "podwire test", None)?;
        for name in interfaces {
            writer.interface(&InterfaceHeader {
                name,
                description: None,
                link: LinkType::Ethernet,
                snaplen: 262_144,
                filter: None,
            })?;
        }
        for (index, (interface, frame)) in frames.iter().enumerate() {
            let time = EPOCH + index as u64 * 1_000_000;
            writer.packet(*interface as u32, time, frame.len() as u32, frame, Some(Direction::Inbound))?;
        }
        for interface in 0..interfaces.len() {
            let received = frames.iter().filter(|(at, _)| *at == interface).count() as u64;
            writer.statistics(interface as u32, (EPOCH, EPOCH + 1_000_000_000), received, dropped)?;
        }
        Ok(writer.into_inner())
    };
    // A Vec takes every write.
    build().unwrap_or_default()
}
