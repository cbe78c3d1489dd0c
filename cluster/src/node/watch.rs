//! Waiting for files to change (inotify), without polling.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Gives a descriptor to the event loop.
pub fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned, and so stays open and the same until the AsyncFd that owns it is dropped.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(Into::into)
}

/// Watches one file or directory.
pub struct Watch {
    fd: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Watches a file that grows.
    pub fn file(path: &Path) -> io::Result<Self> {
        Self::new(path, AddWatchFlags::IN_MODIFY)
    }

    /// Watches the files of a directory.
    pub fn dir(path: &Path) -> io::Result<Self> {
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE;
        Self::new(path, flags)
    }

    fn new(path: &Path, flags: AddWatchFlags) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(path, flags)?;
        Ok(Self { fd: register(inotify.into(), Interest::READABLE)? })
    }

    /// Waits for the next change; several at once count as one.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.fd.readable().await?;
            let mut buffer = [0; 4096];
            match nix::unistd::read(self.fd.get_ref(), &mut buffer) {
                Ok(_) => return Ok(()),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_new_file_wakes_the_watcher() {
        let dir = tempfile::tempdir().unwrap();
        let watch = Watch::dir(dir.path()).unwrap();
        std::fs::write(dir.path().join("a"), "x").unwrap();
        watch.changed().await.unwrap();
    }
}
