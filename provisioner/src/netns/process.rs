//! Finding and ending a lab's processes, however they were started and whoever lost sight of them.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use crate::error::Failure;

/// The variable that every process of a lab has in its environment; its value is the lab's id.
pub const MARKER: &str = "PODWIRE_LAB";

/// A process and when it started: together they name it even after its number is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::unsafe_derive_deserialize,
    reason = "its unsafe code trusts no field: the kernel checks the number"
)]
pub struct Process {
    /// Its number in the host's PID namespace.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks from boot to its start.
    pub start: u64,
}

impl Process {
    /// The process that has this number now, unless it is a zombie.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is a name in parentheses, which may hold anything, parentheses too.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        Some(Self { pid, start: fields.nth(18)?.parse().ok()? })
    }

    /// True while it runs.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// True if it belongs to the lab of this id.
    pub fn has_marker(&self, id: &str) -> bool {
        let wanted = format!("{MARKER}={id}");
        loop {
            // Asked first: it ends at any moment.
            let between = self.is_between_programs();
            // Unreadable: gone, or not ours.
            let Ok(environ) = fs::read(format!("/proc/{}/environ", self.pid)) else { return false };
            if environ.split(|b| *b == 0).any(|v| v == wanted.as_bytes()) {
                return true;
            }
            if !environ.is_empty() || !between {
                return false;
            }
            std::thread::yield_now();
        }
    }

    /// True for the moment in which an exec has taken the old program's memory away and not yet laid out the new one's,
    /// so that the environment reads as empty. A parent that spawned it goes on before this moment is over.
    fn is_between_programs(&self) -> bool {
        const KERNEL_THREAD: u64 = 0x0020_0000; // PF_KTHREAD of the kernel's sched.h: it never has an environment
        let line = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let Some((_, fields)) = line.rsplit_once(')') else { return false };
        // Counted as proc(5) does, where the state, which comes first here, is field 3.
        let field = |number: usize| fields.split_whitespace().nth(number - 3)?.parse::<u64>().ok();
        let (flags, start, environment_end) = (field(9), field(22), field(51));
        start == Some(self.start)
            && flags.is_some_and(|f| f & KERNEL_THREAD == 0)
            && environment_end == Some(0)
            && self.is_alive()
    }

    fn is_in(&self, namespaces: &BTreeSet<(u64, u64)>) -> bool {
        let meta = fs::metadata(format!("/proc/{}/ns/net", self.pid));
        meta.is_ok_and(|m| namespaces.contains(&(m.dev(), m.ino())))
    }

    /// A file descriptor that stands for the process, so that a signal cannot hit its successor.
    fn open(&self) -> Option<OwnedFd> {
        // SAFETY: pidfd_open takes two integers and returns a new file descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the descriptor was just made and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // Checked after opening: from here on the number cannot change its owner unnoticed.
        self.is_alive().then_some(fd)
    }

    /// Sends a signal. A process that is gone is fine.
    pub fn signal(&self, signal: i32) -> Result<(), Errno> {
        let Some(fd) = self.open() else { return Ok(()) };
        send(&fd, signal)
    }
}

fn send(fd: &OwnedFd, signal: i32) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open; a null siginfo asks for the default one.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    match Errno::result(sent) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(e) => Err(e),
    }
}

/// All processes but this one that carry the lab's id or live in one of its network namespaces.
pub fn find(id: Option<&str>, namespaces: &BTreeSet<(u64, u64)>) -> Vec<Process> {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let pids = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    pids.filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own)
        .filter_map(Process::of)
        .filter(|p| p.is_in(namespaces) || id.is_some_and(|id| p.has_marker(id)))
        .collect()
}

/// Kills all that [`find`] finds, until it finds none, and waits until they are gone. Returns how many there were.
pub fn kill_all(id: Option<&str>, namespaces: &BTreeSet<(u64, u64)>) -> Result<usize, Failure> {
    let mut killed = 0;
    loop {
        let found = find(id, namespaces);
        if found.is_empty() {
            return Ok(killed);
        }
        // All are signalled before any is waited for: they end side by side.
        let open: Vec<(Process, OwnedFd)> = found.into_iter().filter_map(|p| Some((p, p.open()?))).collect();
        for (process, fd) in &open {
            if let Err(e) = send(fd, libc::SIGKILL) {
                let thing = format!("process {}", process.pid);
                return Err(Failure::new(
                    thing,
                    e,
                    format!("run as root, or end it: kill -9 {}", process.pid),
                ));
            }
        }
        for (process, fd) in &open {
            wait_end(process, fd)?;
            killed += 1;
        }
    }
}

/// Waits until a killed process is gone. Only a process stuck in the kernel takes longer than the limit.
fn wait_end(process: &Process, fd: &OwnedFd) -> Result<(), Failure> {
    let limit = PollTimeout::try_from(20_000).unwrap_or(PollTimeout::MAX);
    loop {
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], limit) {
            Err(Errno::EINTR) => {}
            Ok(0) => {
                let thing = format!("process {}", process.pid);
                let mend =
                    format!("see where it hangs: cat /proc/{}/stack; then lab down again", process.pid);
                return Err(Failure::new(thing, "it does not end although it was killed", mend));
            }
            _ => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// A process that ends with the test, however that ends.
    struct Sleeper(std::process::Child);

    impl Sleeper {
        fn start(command: &mut Command) -> Self {
            // Its own output: what inherits the test's keeps a reader of it waiting.
            Self(command.arg("1000").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
        }

        fn process(&self) -> Process {
            Process::of(i32::try_from(self.0.id()).unwrap()).unwrap()
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_marked_process_is_found_and_killed() {
        let id = format!("test-{}", std::process::id());
        let sleeper = Sleeper::start(Command::new("sleep").env(MARKER, &id));
        let none = BTreeSet::new();
        let wanted = sleeper.process();
        assert_eq!(find(Some(&id), &none), [wanted]);
        assert_eq!(kill_all(Some(&id), &none).unwrap(), 1);
        assert!(find(Some(&id), &none).is_empty());
        assert!(!wanted.is_alive(), "a zombie is not alive");
        drop(sleeper);
        assert!(!wanted.is_alive());
        wanted.signal(libc::SIGKILL).unwrap();
    }

    #[test]
    fn a_process_is_found_from_its_first_moment() {
        let id = format!("test-first-{}", std::process::id());
        for _ in 0..300 {
            let sleeper = Sleeper::start(Command::new("sleep").env(MARKER, &id));
            assert!(sleeper.process().has_marker(&id));
        }
        // A program without any environment is no riddle.
        assert!(!Sleeper::start(Command::new("sleep").env_clear()).process().has_marker(&id));
    }
}
