//! Identity of processes: a PID alone may be another process tomorrow, with its start time it is not.

use std::os::fd::{FromRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::signal::Signal;

/// Start time of a process in clock ticks since boot (`/proc/PID/stat`, field 22). `None` if there is none.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_start_time(&stat)
}

fn parse_start_time(stat: &str) -> Option<u64> {
    // The command name, in parentheses, may hold anything: count fields after the last one.
    let rest = &stat[stat.rfind(')')? + 1..];
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    // A zombie has ended.
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The process still is the one that started then.
pub fn is_alive(pid: i32, start: u64) -> bool {
    start_time(pid) == Some(start)
}

/// A descriptor of exactly this process; readable when it has ended. `None` if it has ended already.
pub fn pidfd(pid: i32, start: u64) -> nix::Result<Option<OwnedFd>> {
    // SAFETY: pidfd_open takes a PID and flags and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match Errno::result(fd) {
        Ok(fd) => {
            // SAFETY: the kernel has just given us this descriptor, nobody else has it.
            let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(|_| Errno::EBADF)?) };
            // Opened first, compared second: a PID that was reused in between shows another start time.
            Ok(is_alive(pid, start).then_some(fd))
        }
        Err(Errno::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sends a signal to exactly this process; one that has ended is fine.
pub fn signal(pid: i32, start: u64, signal: Signal) -> nix::Result<()> {
    use std::os::fd::AsRawFd as _;
    let Some(fd) = pidfd(pid, start)? else { return Ok(()) };
    // SAFETY: the descriptor lives until after the call; a null siginfo means the kernel's default.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd.as_raw_fd(),
            signal as i32,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    match Errno::result(sent) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_times_survive_odd_command_names() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 0 0";
        assert_eq!(parse_start_time(stat), Some(12345));
        assert_eq!(parse_start_time(&stat.replace(" S ", " Z ")), None);
    }

    #[test]
    fn a_process_is_itself_and_nobody_else() {
        let me = i32::try_from(std::process::id()).unwrap();
        let start = start_time(me).unwrap();
        assert!(is_alive(me, start));
        assert!(pidfd(me, start).unwrap().is_some());
        assert!(pidfd(me, start + 1).unwrap().is_none());
    }
}
