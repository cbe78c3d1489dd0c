//! The pod sandbox: the namespaces that a pod's containers share, kept alive by bind mounts, without a process.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

/// Where named network namespaces are.
pub const NETNS_DIR: &str = "/run/netns";

/// Why a sandbox could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the pod's namespaces: {step}: {source}")]
pub struct SandboxError {
    step: &'static str,
    source: io::Error,
}

fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> SandboxError {
    move |source| SandboxError { step, source: source.into() }
}

/// The namespaces of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Network.
    pub net: PathBuf,
    /// Host name.
    pub uts: PathBuf,
    /// System V IPC and message queues.
    pub ipc: PathBuf,
}

impl Namespaces {
    /// Names for new namespaces; `dir` is the pod's own directory.
    pub fn named(dir: &Path) -> Self {
        Self {
            net: Path::new(NETNS_DIR).join(format!("cni-{}", uuid::Uuid::new_v4())),
            uts: dir.join("ns/uts"),
            ipc: dir.join("ns/ipc"),
        }
    }

    fn all(&self) -> [(&Path, &'static str); 3] {
        [(&self.net, "net"), (&self.uts, "uts"), (&self.ipc, "ipc")]
    }

    /// Makes the namespaces, with the loopback device up and the pod's name as host name.
    pub fn create(&self, hostname: &str) -> Result<(), SandboxError> {
        let (names, hostname) = (self.clone(), hostname.to_owned());
        // Namespaces belong to a thread: a thread of its own, which ends with them mounted elsewhere.
        let made = std::thread::spawn(move || names.create_here(&hostname))
            .join()
            .unwrap_or_else(|_| Err(at("run")(io::Error::other("the thread panicked"))));
        if made.is_err() {
            self.remove();
        }
        made
    }

    fn create_here(&self, hostname: &str) -> Result<(), SandboxError> {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC)
            .map_err(at("unshare"))?;
        nix::unistd::sethostname(hostname).map_err(at("set the host name"))?;
        loopback_up().map_err(at("set lo up"))?;
        for (path, kind) in self.all() {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(at("make a directory"))?;
            }
            fs::File::create(path).map_err(at("make a mount point"))?;
            let source = format!("/proc/thread-self/ns/{kind}");
            let none: Option<&str> = None;
            mount(Some(source.as_str()), path, none, MsFlags::MS_BIND, none)
                .map_err(at("keep a namespace"))?;
        }
        Ok(())
    }

    /// The namespaces are still there (they are not after a restart of the node).
    pub fn exist(&self) -> bool {
        self.all().iter().all(|(path, _)| {
            nix::sys::statfs::statfs(*path)
                .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
        })
    }

    /// Removes the file of a network namespace that is not, or no longer, mounted on it: its maker or remover was
    /// killed. Plugins take a path that does not exist for a namespace that is gone, but fail on any other file.
    pub fn remove_empty_mount_point(&self) {
        let is_mounted = nix::sys::statfs::statfs(&self.net)
            .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::NSFS_MAGIC);
        if !is_mounted
            && let Err(error) = fs::remove_file(&self.net)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.net.display(), %error, "cannot remove a namespace's mount point");
        }
    }

    /// Removes them, as far as they are there.
    pub fn remove(&self) {
        for (path, _) in self.all() {
            // Mounted more than once if a try before this one was cut short.
            while umount2(path, MntFlags::MNT_DETACH).is_ok() {}
            if let Err(error) = fs::remove_file(path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "cannot remove a namespace's mount point");
            }
        }
    }
}

fn loopback_up() -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let control = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l'.cast_signed();
    request.ifr_name[1] = b'o'.cast_signed();
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is a valid ifreq that outlives the call.
    Errno::result(unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })?;
    Ok(())
}

/// Runs `f` in a thread of its own that is in the network namespace at `netns` (or in this one's, if `None`).
pub fn in_netns<T: Send>(netns: Option<&Path>, f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let Some(netns) = netns else { return f() };
    let file = fs::File::open(netns)?;
    std::thread::scope(|scope| {
        scope
            .spawn(move || {
                nix::sched::setns(file, CloneFlags::CLONE_NEWNET)?;
                f()
            })
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}
