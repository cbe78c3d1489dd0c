//! Running a command on a machine, as if typed there.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::sched::{CloneFlags, setns};
use nix::unistd::{chdir, chroot};

use super::cgroup;
use super::process::Process;

/// Starts `command` in all namespaces and the root of the machine whose first process is `init`. `command` says where its
/// input and output go; its environment is replaced by `env`.
///
/// The child is a child of this process, so its exit status is the command's own.
pub fn spawn(init: Process, env: &[(String, String)], mut command: Command) -> io::Result<Child> {
    let open = |name: &str| File::open(format!("/proc/{}/{name}", init.pid));
    let namespaces = ["ns/net", "ns/uts", "ns/ipc", "ns/cgroup", "ns/pid"].map(open);
    let (mount, root) = (open("ns/mnt")?, open("root")?);
    if !init.is_alive() {
        return Err(io::Error::other("its first process has just ended"));
    }
    let cgroup = cgroup::door(init);
    command.env_clear().envs(env.iter().map(|(k, v)| (OsStr::new(k), OsStr::new(v))));
    // SAFETY: between fork and exec only system calls are made, on descriptors that the closure owns.
    unsafe {
        command.pre_exec(move || {
            if let Some(mut door) = cgroup.as_ref() {
                door.write_all(b"0")?;
            }
            // Possible only after the fork: a thread shares its root and directory with its siblings.
            setns(&mount, CloneFlags::CLONE_NEWNS)?;
            nix::unistd::fchdir(&root)?;
            chroot(".")?;
            chdir("/root").or_else(|_| chdir("/"))?;
            Ok(())
        });
    }
    // The other namespaces belong to single threads: this one's children are born into the machine's.
    std::thread::scope(|s| {
        let thread = s.spawn(move || {
            for namespace in namespaces {
                setns(namespace?, CloneFlags::empty())?;
            }
            command.spawn()
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a worker panicked")))
    })
}
