//! A cgroup for each machine: what the machine's agent attaches to sockets concerns the machine's processes alone, and what
//! it takes for the root of the hierarchy is the machine's own.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::statfs;

use super::process::Process;
use crate::error::{Failure, OrFailure};

/// Where a machine sees its own hierarchy.
pub const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// Where the host's may be: alone, or beside those of v1.
const HIERARCHIES: [&str; 2] = [MOUNT_POINT, "/sys/fs/cgroup/unified"];

/// The file of a cgroup whose writers name a process that joins it.
const PROCS: &str = "cgroup.procs";

/// The host's cgroup v2 hierarchy, if it has one that this process may write.
pub fn hierarchy() -> Option<PathBuf> {
    let usable = |path: &&&str| {
        statfs::statfs(**path).is_ok_and(|kind| kind.filesystem_type() == statfs::CGROUP2_SUPER_MAGIC)
            && nix::unistd::access(**path, nix::unistd::AccessFlags::W_OK).is_ok()
    };
    HIERARCHIES.iter().find(usable).map(PathBuf::from)
}

/// The cgroup of the machine with this network namespace, whose name no other machine of the host has.
pub fn of(namespace: &str) -> Option<PathBuf> {
    Some(hierarchy()?.join(format!("podwire-lab-{namespace}")))
}

/// Makes it, if it is not there.
pub fn create(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// Puts this process into it.
pub fn join(path: &Path) -> io::Result<()> {
    fs::write(path.join(PROCS), "0")
}

/// The file by which a process joins the cgroup of a running machine; none if that has no cgroup of its own.
pub fn door(init: Process) -> Option<File> {
    let path = format!("/proc/{}/root{MOUNT_POINT}/{PROCS}", init.pid);
    fs::OpenOptions::new().write(true).open(path).ok()
}

/// Removes it with those that the machine has made below it. Its processes have ended; the kernel may need a moment to let go
/// of them.
pub fn remove(path: &Path) -> Result<(), Failure> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match remove_tree(path) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                let thing = format!("cgroup {}", path.display());
                return Err(e).or_failure(
                    thing,
                    format!("see who is in it: cat {}/{PROCS}; then lab down again", path.display()),
                );
            }
            _ => return Ok(()),
        }
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
