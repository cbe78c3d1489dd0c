//! Reading frames from a device, and sending forged ones.

use std::{
    io::{ErrorKind, Read, Write},
    net::Ipv4Addr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use crate::net::{PATIENCE, inside};

/// A packet socket on one device.
pub struct Tap {
    socket: std::fs::File,
}

/// What a test looks at in a frame.
#[derive(Clone, Debug)]
pub struct Frame {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub ttl: u8,
    pub protocol: u8,
    /// Whether the header checksum is right.
    pub checksum_holds: bool,
    pub offset: u16,
    pub payload: Vec<u8>,
}

impl Frame {
    fn parse(frame: &[u8]) -> Option<Self> {
        if frame.get(12..14)? != [8, 0] {
            return None;
        }
        let ip = frame.get(14..)?;
        let header = ip.get(..usize::from(ip[0] & 15) * 4)?;
        let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
        Some(Self {
            source: address(12),
            destination: address(16),
            ttl: header[8],
            protocol: header[9],
            checksum_holds: checksum(header) == 0,
            offset: (u16::from_be_bytes([header[6], header[7]]) & 0x1fff) * 8,
            payload: ip[header.len()..].to_vec(),
        })
    }

    /// What a VXLAN packet (RFC 7348) carries, with its network identifier.
    pub fn in_vxlan(&self) -> Option<(u32, Self)> {
        if self.udp_ports()?.1 != 8472 || self.payload.get(8)? & 8 == 0 {
            return None;
        }
        let vni = u32::from_be_bytes(self.payload.get(12..16)?.try_into().unwrap()) >> 8;
        Some((vni, Self::parse(self.payload.get(16..)?)?))
    }

    pub fn udp_ports(&self) -> Option<(u16, u16)> {
        (self.protocol == 17 && self.offset == 0 && self.payload.len() >= 4).then(|| {
            let port = |at: usize| u16::from_be_bytes([self.payload[at], self.payload[at + 1]]);
            (port(0), port(2))
        })
    }
}

/// RFC 1071.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

impl Tap {
    /// Opens a socket on a device inside a namespace.
    pub fn open(netns: &str, device: &str) -> Self {
        inside(netns, || {
            let everything = (libc::ETH_P_ALL as u16).to_be();
            // SAFETY: plain system calls; the descriptor is new and ours, the address is initialised and outlives the call.
            let socket = unsafe {
                let fd =
                    libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(everything));
                assert!(fd >= 0, "packet socket: {}", std::io::Error::last_os_error());
                let socket = OwnedFd::from_raw_fd(fd);
                let mut address: libc::sockaddr_ll = std::mem::zeroed();
                address.sll_family = libc::AF_PACKET as u16;
                address.sll_protocol = everything;
                address.sll_ifindex = nix::net::if_::if_nametoindex(device).unwrap().cast_signed();
                let length = size_of::<libc::sockaddr_ll>() as u32;
                assert_eq!(libc::bind(fd, (&raw const address).cast(), length), 0);
                socket
            };
            let timeout = libc::timeval { tv_sec: 0, tv_usec: 100_000 };
            // SAFETY: as above.
            let set = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_RCVTIMEO,
                    (&raw const timeout).cast(),
                    size_of::<libc::timeval>() as u32,
                )
            };
            assert_eq!(set, 0);
            Self { socket: socket.into() }
        })
    }

    /// One IPv4 packet, if one comes soon.
    fn next(&mut self) -> Option<Frame> {
        let mut buffer = vec![0; 65_536];
        match self.socket.read(&mut buffer) {
            Ok(length) => Frame::parse(&buffer[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => None,
            // The device went down, as it does when a namespace is made up.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => None,
            Err(error) => panic!("tap: {error}"),
        }
    }

    /// The next packet that holds.
    pub fn wait_for(&mut self, what: &str, holds: impl Fn(&Frame) -> bool) -> Frame {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "no packet: {what}");
            if let Some(frame) = self.next()
                && holds(&frame)
            {
                return frame;
            }
        }
    }

    /// All packets that have come until now.
    pub fn drain(&mut self) -> Vec<Frame> {
        let mut all = Vec::new();
        let mut quiet = Duration::ZERO;
        while quiet < Duration::from_millis(200) {
            let start = Instant::now();
            match self.next() {
                Some(frame) => all.push(frame),
                None => quiet += start.elapsed(),
            }
        }
        all
    }

    /// Sends a frame as it is.
    pub fn send(&mut self, frame: &[u8]) {
        assert_eq!(self.socket.write(frame).unwrap(), frame.len());
    }
}

/// An Ethernet frame with a UDP packet from one address to another, port 4000 to port 4001.
pub fn udp_frame(to: [u8; 6], from: [u8; 6], source: Ipv4Addr, destination: Ipv4Addr, ttl: u8) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 32, 0, 1, 0, 0, ttl, 17, 0, 0];
    ip.extend(source.octets());
    ip.extend(destination.octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = Vec::from(to);
    frame.extend(from);
    frame.extend([8, 0]);
    frame.extend(ip);
    frame.extend([0x0f, 0xa0, 0x0f, 0xa1, 0, 12, 0, 0, 1, 2, 3, 4]);
    frame
}

/// As `udp_frame`, between ports, with a payload and the checksum that is due.
pub fn summed_udp_frame(
    to: [u8; 6],
    from: [u8; 6],
    source: (Ipv4Addr, u16),
    destination: (Ipv4Addr, u16),
    ttl: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = udp_frame(to, from, source.0, destination.0, ttl);
    frame.truncate(34);
    let length = (8 + payload.len() as u16).to_be_bytes();
    let mut udp = Vec::from(source.1.to_be_bytes());
    udp.extend(destination.1.to_be_bytes());
    udp.extend(length);
    udp.extend([0, 0]);
    udp.extend(payload);
    let mut summed = frame[26..34].to_vec();
    summed.extend([0, 17]);
    summed.extend(length);
    summed.extend(&udp);
    udp[6..8].copy_from_slice(&checksum(&summed).to_be_bytes());
    frame.extend(udp);
    frame[16..18].copy_from_slice(&(28 + payload.len() as u16).to_be_bytes());
    frame[24..26].copy_from_slice(&[0, 0]);
    let sum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}
