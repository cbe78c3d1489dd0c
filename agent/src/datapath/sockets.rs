//! The programs at sockets: attached to a cgroup, by pinned links that outlive the agent.
//!
//! They are loaded apart from those at devices: a kernel that refuses them still forwards packets.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use aya::{EbpfLoader, programs::CgroupSockAddr};
use nix::sys::statfs;

use super::{
    Datapath, DatapathError, Result,
    pins::OBJECT,
    sys::{self, CgroupPoint},
};

const PROGRAMS: [(&str, CgroupPoint); 4] = [
    // Those that name the peer first: once a socket is given a backend, it may ask.
    ("getpeername4", CgroupPoint::GetPeerName),
    ("recvmsg4", CgroupPoint::RecvMsg),
    ("sendmsg4", CgroupPoint::SendMsg),
    ("connect4", CgroupPoint::Connect),
];

/// Where the node's cgroup v2 hierarchy is: alone, or beside those of v1.
const HIERARCHIES: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// The root of the node's cgroups, if it has cgroup v2. A lab's node sees its own cgroup as the root.
pub fn cgroup_root() -> Option<PathBuf> {
    let is_v2 = |path: &&&str| {
        statfs::statfs(**path).is_ok_and(|kind| kind.filesystem_type() == statfs::CGROUP2_SUPER_MAGIC)
    };
    HIERARCHIES.iter().find(is_v2).map(PathBuf::from)
}

impl Datapath {
    /// Gives every socket of the cgroup's processes, and of those in cgroups below, the backends of
    /// [`Self::set_services`]. What an earlier agent attached is exchanged, atomically.
    pub fn attach_sockets(&self, cgroup: &Path) -> Result<()> {
        let failed = |source| DatapathError::Cgroup { path: cgroup.to_owned(), source };
        let dir = fs::File::open(cgroup).map_err(failed)?;
        let id = dir.metadata().map_err(failed)?.ino();
        let mut object = EbpfLoader::new()
            .default_map_pin_directory(self.inner.pins.maps())
            .load(OBJECT)
            .map_err(|source| DatapathError::Object { source: Box::new(source) })?;
        let pins = self.inner.pins.root().join("cgroup");
        fs::create_dir_all(&pins).map_err(DatapathError::pin("make", &pins))?;
        for (name, point) in PROGRAMS {
            let program: &mut CgroupSockAddr = object
                .program_mut(name)
                .and_then(|program| program.try_into().ok())
                .ok_or(DatapathError::Missing { name })?;
            let refused = |error: &(dyn std::error::Error + 'static)| DatapathError::Socket {
                program: name,
                cause: super::error::chain(error),
            };
            program.load().map_err(|error| refused(&error))?;
            let program = program.fd().map_err(|error| refused(&error))?.as_fd();
            attach(program, dir.as_fd(), id, point, &pins.join(name)).map_err(|source| refused(&source))?;
        }
        Ok(())
    }
}

impl Datapath {
    /// Gives sockets no backends any more. Those that have one keep it. Idempotent.
    pub fn detach_sockets(&self) -> Result<()> {
        let pins = self.inner.pins.root().join("cgroup");
        for (name, _) in PROGRAMS.iter().rev() {
            let pin = pins.join(name);
            match sys::open_pin(&pin) {
                Ok(link) => {
                    // One of a cgroup that is gone is detached already.
                    if let Err(error) = sys::link_detach(link.as_fd()) {
                        tracing::debug!(pin = %pin.display(), %error, "the link was not detached at once");
                    }
                    fs::remove_file(&pin).map_err(DatapathError::pin("remove", &pin))?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(DatapathError::pin("open", &pin)(error)),
            }
        }
        Ok(())
    }
}

/// Puts the program into the pinned link if that is alive at this cgroup, else makes a new one.
fn attach(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    id: u64,
    point: CgroupPoint,
    pin: &Path,
) -> io::Result<()> {
    match sys::open_pin(pin) {
        Ok(link) => {
            if sys::cgroup_of_link(link.as_fd())? == Some((id, point as u32)) {
                return sys::link_update(link.as_fd(), program);
            }
            // Of a cgroup that is gone, or not ours any more.
            fs::remove_file(pin)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let link = sys::link_create_at_cgroup(program, cgroup, point)?;
    sys::pin(&link, pin)
}
