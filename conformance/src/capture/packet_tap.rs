//! A tap on a Linux interface: an AF_PACKET socket with a ring, opened inside the interface's network namespace.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns};

use super::ring::{self, Keep, Ring};
use super::{CaptureError, DEFAULT_SNAPLEN};
use crate::link::LinkType;
use crate::node::{Tap, TapStatistics, TappedPacket};

/// Linux hardware types, include/uapi/linux/if_arp.h.
const ARPHRD_ETHER: u16 = 1;
const ARPHRD_LOOPBACK: u16 = 772;
const ARPHRD_NONE: u16 = 0xfffe;

/// A tap on one interface. Sees what the interface receives and what it sends, whole frames, with the kernel's
/// nanosecond timestamps.
#[derive(Debug)]
pub struct PacketTap {
    // Declared before the socket: the ring is unmapped before its socket closes.
    ring: Ring,
    socket: OwnedFd,
    name: String,
    link: LinkType,
    keep: Keep,
    total: TapStatistics,
}

/// Opens a tap on `interface` of the network namespace `netns` (this process's own if `None`). `node` names the
/// machine in the capture file and in errors.
///
/// The namespace is entered by a thread made for it, so the caller's threads stay where they are.
pub fn open_packet_tap(
    netns: Option<BorrowedFd<'_>>,
    node: &str,
    interface: &str,
) -> Result<PacketTap, CaptureError> {
    open(netns, node, interface, None)
}

/// As [`open_packet_tap`], but of each packet only the first `snaplen` bytes are kept, in an eighth of the memory: for one who opens many
/// taps and looks at headers. The kernel cuts packets before they take room, so that large ones do not push others out.
pub fn open_short_packet_tap(
    netns: Option<BorrowedFd<'_>>,
    node: &str,
    interface: &str,
    snaplen: u32,
) -> Result<PacketTap, CaptureError> {
    open(netns, node, interface, Some(snaplen))
}

fn open(
    netns: Option<BorrowedFd<'_>>,
    node: &str,
    interface: &str,
    cut: Option<u32>,
) -> Result<PacketTap, CaptureError> {
    let name = format!("{node}:{interface}");
    let opened = match netns {
        None => open_here(node, interface, &name, cut),
        Some(netns) => std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(netns, CloneFlags::CLONE_NEWNET)
                    .map_err(|errno| system(&name, "enter the network namespace", errno.into()))?;
                open_here(node, interface, &name, cut)
            });
            inside.join().unwrap_or_else(|_| {
                Err(system(&name, "open the socket", io::Error::other("the opening thread panicked")))
            })
        }),
    };
    opened.map(|(socket, ring, link, loopback)| PacketTap {
        ring,
        socket,
        name,
        link,
        keep: Keep { snaplen: cut.unwrap_or(DEFAULT_SNAPLEN), loopback },
        total: TapStatistics::default(),
    })
}

fn system(name: &str, action: &'static str, source: io::Error) -> CaptureError {
    CaptureError::System { name: name.to_owned(), action, source }
}

type Opened = (OwnedFd, Ring, LinkType, bool);

fn open_here(node: &str, interface: &str, name: &str, cut: Option<u32>) -> Result<Opened, CaptureError> {
    let missing = || CaptureError::NoInterface { node: node.to_owned(), interface: interface.to_owned() };
    let index = nix::net::if_::if_nametoindex(interface).map_err(|_| missing())?;
    // Protocol 0 receives nothing: no packet of another interface slips in between socket() and bind().
    // SAFETY: no pointers are involved; the result is checked.
    let fd = unsafe {
        libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
    };
    if fd < 0 {
        return Err(match Errno::last() {
            Errno::EPERM => CaptureError::NotPermitted { name: name.to_owned() },
            errno => system(name, "open a packet socket", errno.into()),
        });
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let (link, loopback) = match hardware(&socket, interface)
        .map_err(|source| system(name, "read the hardware type", source))?
    {
        ARPHRD_ETHER => (LinkType::Ethernet, false),
        ARPHRD_LOOPBACK => (LinkType::Ethernet, true),
        ARPHRD_NONE => (LinkType::Raw, false),
        hardware => return Err(CaptureError::UnsupportedHardware { name: name.to_owned(), hardware }),
    };
    let version = libc::tpacket_versions::TPACKET_V3 as libc::c_int;
    set_option(fd, libc::PACKET_VERSION, &version)
        .map_err(|source| system(name, "ask for TPACKET_V3", source))?;
    if let Some(snaplen) = cut {
        cut_after(&socket, snaplen).map_err(|source| system(name, "cut packets", source))?;
    }
    let block = if cut.is_some() { ring::SMALL_BLOCK } else { ring::BLOCK };
    let ring = Ring::new(&socket, block).map_err(|source| system(name, "make the packet ring", source))?;
    bind(fd, index).map_err(|source| system(name, "bind to the interface", source))?;
    // Frames for other addresses count too; the membership goes with the socket.
    let promiscuous = libc::packet_mreq {
        mr_ifindex: index.cast_signed(),
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set_option(fd, libc::PACKET_ADD_MEMBERSHIP, &promiscuous)
        .map_err(|source| system(name, "listen to all frames", source))?;
    Ok((socket, ring, link, loopback))
}

/// Has the kernel keep the first bytes of each packet only: the one instruction of a classic BPF program, which returns their number.
fn cut_after(socket: &OwnedFd, snaplen: u32) -> io::Result<()> {
    let mut keep = libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: snaplen };
    let program = libc::sock_fprog { len: 1, filter: &raw mut keep };
    // SAFETY: pointer and length describe `program`, and its pointer one instruction; both outlive the call, which copies them.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as u32,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets an option of level SOL_PACKET.
pub(super) fn set_option<T>(fd: RawFd, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: pointer and length describe `value`, a plain C struct or integer that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_PACKET,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as u32,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn bind(fd: RawFd, index: u32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: pointer and length describe `address`, which outlives the call.
    let result = unsafe { libc::bind(fd, (&raw const address).cast(), size_of_val(&address) as u32) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Index of the interface that the socket is bound to.
fn bound_index(socket: &OwnedFd) -> io::Result<i32> {
    // SAFETY: all-zero bytes are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: pointer and length describe `address`, which outlives the call.
    let result = unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut len) };
    if result == 0 { Ok(address.sll_ifindex) } else { Err(io::Error::last_os_error()) }
}

/// The interface's ARPHRD number.
fn hardware(socket: &OwnedFd, interface: &str) -> io::Result<u16> {
    let name = CString::new(interface)?;
    let bytes = name.as_bytes_with_nul();
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if bytes.len() > request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    // SAFETY: SIOCGIFHWADDR reads the name and fills ifr_hwaddr of the request, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so the union holds ifr_hwaddr.
    Ok(unsafe { request.ifr_ifru.ifru_hwaddr.sa_family })
}

impl PacketTap {
    /// An error if the interface is gone. One that only went down may come back, and the socket with it.
    fn check_alive(&self) -> io::Result<()> {
        let error = nix::sys::socket::getsockopt(&self.socket, nix::sys::socket::sockopt::SocketError)?;
        if error == 0 {
            return Ok(());
        }
        // The kernel sets the bound index to -1 when the interface is removed.
        if bound_index(&self.socket)? < 0 { Err(io::Error::from_raw_os_error(error)) } else { Ok(()) }
    }
}

impl Tap for PacketTap {
    fn name(&self) -> &str {
        &self.name
    }

    fn link(&self) -> LinkType {
        self.link
    }

    fn snaplen(&self) -> u32 {
        self.keep.snaplen
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn drain(&mut self, sink: &mut dyn FnMut(TappedPacket<'_>)) -> Result<(), CaptureError> {
        self.ring.drain(self.keep, sink);
        self.check_alive().map_err(|source| CaptureError::InterfaceLost { name: self.name.clone(), source })
    }

    fn statistics(&mut self) -> Result<TapStatistics, CaptureError> {
        let mut counters = libc::tpacket_stats_v3 { tp_packets: 0, tp_drops: 0, tp_freeze_q_cnt: 0 };
        let mut len = size_of_val(&counters) as libc::socklen_t;
        // SAFETY: pointer and length describe `counters`, which outlives the call and may hold any bits.
        let result = unsafe {
            let value = (&raw mut counters).cast();
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                value,
                &raw mut len,
            )
        };
        if result != 0 {
            return Err(system(&self.name, "read the packet counters", io::Error::last_os_error()));
        }
        // The kernel resets its counters when they are read.
        self.total.received += u64::from(counters.tp_packets);
        self.total.dropped += u64::from(counters.tp_drops);
        Ok(self.total)
    }
}
