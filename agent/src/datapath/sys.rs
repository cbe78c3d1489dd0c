//! The few `bpf(2)` commands on links that aya offers by device name only, or not at all.
//!
//! Layouts are those of `union bpf_attr` and `struct bpf_link_info` in `include/uapi/linux/bpf.h`.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

const BPF_LINK_TYPE_CGROUP: u32 = 3;
const BPF_LINK_TYPE_TCX: u32 = 11;

/// Where at a device a tcx link attaches (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum TcxPoint {
    /// `BPF_TCX_INGRESS`
    Ingress = 46,
    /// `BPF_TCX_EGRESS`
    Egress = 47,
}

/// Where at a cgroup's sockets a program attaches (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum CgroupPoint {
    /// `BPF_CGROUP_INET4_CONNECT`
    Connect = 10,
    /// `BPF_CGROUP_UDP4_SENDMSG`
    SendMsg = 14,
    /// `BPF_CGROUP_UDP4_RECVMSG`
    RecvMsg = 19,
    /// `BPF_CGROUP_INET4_GETPEERNAME`
    GetPeerName = 29,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    /// A device's index, or a cgroup's descriptor.
    target: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    pad: u32,
    expected_revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct ObjectPath {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoByFd {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
struct ProgQuery {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    tcx_ifindex: u32,
    tcx_attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct RawCgroupLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    cgroup_id: u64,
    attach_type: u32,
    tail: u32,
}

/// What the kernel tells about a tcx link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TcxInfo {
    /// Number of the program that it runs.
    pub program: u32,
    /// Index of its device; 0 once the device is gone.
    pub ifindex: u32,
    /// `enum bpf_attach_type`.
    pub attach_type: u32,
}

/// One `bpf(2)` call.
fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is the command's leading part of `union bpf_attr`, initialised, of the size given; pointers in it
    // are to memory that outlives the call (see the callers).
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as libc::c_int) }
}

fn fd_number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn owned(fd: libc::c_int) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor to us; nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

/// Attaches a program to a device by a new link, before what is attached already.
pub(super) fn link_create(program: BorrowedFd<'_>, ifindex: u32, point: TcxPoint) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        prog_fd: fd_number(program),
        target: ifindex,
        attach_type: point as u32,
        ..LinkCreate::default()
    };
    bpf(BPF_LINK_CREATE, &mut attr).map(owned)
}

/// Attaches a program to a cgroup by a new link, beside what others have attached.
pub(super) fn link_create_at_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    point: CgroupPoint,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        prog_fd: fd_number(program),
        target: fd_number(cgroup),
        attach_type: point as u32,
        ..LinkCreate::default()
    };
    bpf(BPF_LINK_CREATE, &mut attr).map(owned)
}

/// Cookie of the network namespace in which this thread is (Linux 5.14 and newer).
pub(super) fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the socket is open, and the kernel writes at most `length` bytes to where there is room for as many.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if outcome == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// To which cgroup, by its inode, and at which point a link is attached; `None` if it is no link of a cgroup.
pub(super) fn cgroup_of_link(link: BorrowedFd<'_>) -> io::Result<Option<(u64, u32)>> {
    let mut info = RawCgroupLinkInfo::default();
    let mut attr = InfoByFd {
        bpf_fd: fd_number(link),
        info_len: size_of::<RawCgroupLinkInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok((info.kind == BPF_LINK_TYPE_CGROUP).then_some((info.cgroup_id, info.attach_type)))
}

/// Puts another program in the place of the link's, atomically.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr =
        LinkUpdate { link_fd: fd_number(link), new_prog_fd: fd_number(program), ..LinkUpdate::default() };
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Takes the link's program from its device at once; dropping the last reference does so some time later.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    // The command's part is the descriptor alone; the kernel wants the rest zero.
    let mut attr = LinkUpdate { link_fd: fd_number(link), ..LinkUpdate::default() };
    bpf(BPF_LINK_DETACH, &mut attr).map(drop)
}

/// What a link is attached to; `None` if it is no tcx link.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<Option<TcxInfo>> {
    let mut info = RawLinkInfo::default();
    let mut attr = InfoByFd {
        bpf_fd: fd_number(link),
        info_len: size_of::<RawLinkInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok((info.kind == BPF_LINK_TYPE_TCX).then_some(TcxInfo {
        program: info.prog_id,
        ifindex: info.tcx_ifindex,
        attach_type: info.tcx_attach_type,
    }))
}

/// Pins an object at a path on a BPF file system.
pub(super) fn pin(object: &impl AsFd, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr =
        ObjectPath { pathname: path.as_ptr() as u64, bpf_fd: fd_number(object.as_fd()), file_flags: 0 };
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Opens the object pinned at a path.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjectPath { pathname: path.as_ptr() as u64, ..ObjectPath::default() };
    bpf(BPF_OBJ_GET, &mut attr).map(owned)
}

/// Whether the kernel has tcx links, by asking it for the programs at a device.
pub(super) fn has_tcx() -> bool {
    // Every network namespace has the loopback device, and it is the first. A kernel without tcx does not know the
    // attach type, whatever the device.
    let mut attr =
        ProgQuery { target_ifindex: 1, attach_type: TcxPoint::Ingress as u32, ..ProgQuery::default() };
    match bpf(BPF_PROG_QUERY, &mut attr) {
        Ok(_) => true,
        Err(error) => error.raw_os_error() == Some(libc::ENODEV),
    }
}
