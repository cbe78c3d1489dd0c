//! `podwire-kube pause`: does nothing but reap and wait for the end.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

/// Waits until SIGTERM or SIGINT; reaps whatever is left to it meanwhile.
///
/// # Errors
/// The signals cannot be blocked or waited for.
pub fn run() -> nix::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    loop {
        match signals.wait()? {
            Signal::SIGCHLD => {
                while matches!(
                    waitpid(None, Some(WaitPidFlag::WNOHANG)),
                    Ok(status) if status != WaitStatus::StillAlive
                ) {}
            }
            _ => return Ok(()),
        }
    }
}
