//! Named network namespaces, kept as iproute2 keeps them: bind-mounted in `/run/netns`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, fstatfs};

use crate::error::{Failure, OrFailure};

/// Where named network namespaces are.
pub const DIR: &str = "/run/netns";
/// f_type of the file system of namespaces, linux/magic.h.
pub(super) const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// The file of a named namespace.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(DIR).join(name)
}

/// True if the name is taken, be it by a file that is no namespace.
pub fn is_taken(name: &str) -> bool {
    fs::symlink_metadata(path(name)).is_ok()
}

/// Makes a named namespace; false if the name is taken. Its loopback is down, as the kernel makes it.
pub fn create(name: &str) -> Result<bool, Failure> {
    let thing = format!("network namespace {name}");
    let path = path(name);
    let mend = "run as root with CAP_SYS_ADMIN; see `lab doctor`";
    loop {
        fs::create_dir_all(DIR).or_failure(&thing, mend)?;
        match OpenOptions::new().create_new(true).write(true).open(&path) {
            Ok(_) => break,
            Err(e) if e.kind() == ErrorKind::NotFound => {} // another lab's down removed the directory just now
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(false),
            Err(e) => return Err(Failure::new(thing, e, mend)),
        }
    }
    // A thread of its own: its namespace is left behind with it.
    let made = std::thread::scope(|s| {
        let thread = s.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        });
        thread.join().unwrap_or(Err(nix::Error::EINVAL))
    });
    if let Err(e) = made {
        let _ = fs::remove_file(&path); // the error below is the one to report
        return Err(Failure::new(thing, e, mend));
    }
    Ok(true)
}

/// Opens a namespace; `NotFound` if the name is free or its file is no namespace.
pub fn open(name: &str) -> io::Result<File> {
    let file = File::open(path(name))?;
    if fstatfs(&file).is_ok_and(|s| s.filesystem_type() == NSFS_MAGIC) {
        return Ok(file);
    }
    Err(ErrorKind::NotFound.into())
}

/// Device and inode, which tell namespaces apart; none if there is no such namespace.
pub fn identity(name: &str) -> Option<(u64, u64)> {
    let meta = open(name).ok()?.metadata().ok()?;
    Some((meta.dev(), meta.ino()))
}

/// Runs `work` in the namespace, in a thread of its own.
pub fn inside<T: Send>(name: &str, work: impl FnOnce() -> Result<T, Failure> + Send) -> Result<T, Failure> {
    let thing = format!("network namespace {name}");
    let mend = "the lab is damaged; repair it: lab up";
    let file = open(name).or_failure(&thing, mend)?;
    std::thread::scope(|s| {
        let thread = s.spawn(|| {
            setns(&file, CloneFlags::CLONE_NEWNET).or_failure(&thing, "run as root with CAP_SYS_ADMIN")?;
            work()
        });
        thread
            .join()
            .unwrap_or_else(|_| Err(Failure::new(&thing, "a worker panicked", "report this as a bug")))
    })
}

/// Removes a name, whatever is mounted on it. The namespace goes when its last process and last other name are gone.
pub fn remove(name: &str) -> Result<(), Failure> {
    let path = path(name);
    let mend = format!("see what holds it: ip netns pids {name}");
    // Someone may have mounted twice; each umount takes one layer. EINVAL: nothing is mounted any more.
    while umount2(&path, MntFlags::MNT_DETACH).is_ok() {}
    match fs::remove_file(&path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(Failure::new(format!("network namespace {name}"), e, mend))
        }
        _ => Ok(()),
    }
}
