//! Tells when links, IPv4 addresses or IPv4 routes of the namespace change.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, SockFlag, recv};
use tokio::io::unix::AsyncFd;

use super::NetlinkError;
use super::socket::open;

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV4_ROUTE` of linux/rtnetlink.h.
const LINKS: u32 = 0x1;
const ADDRESSES: u32 = 0x10;
const ROUTES: u32 = 0x40;

/// A subscription. What changed is not told: who reconciles looks at everything anyway.
#[derive(Debug)]
pub struct Monitor {
    fd: AsyncFd<OwnedFd>,
}

impl Monitor {
    /// Subscribes to everything, in the calling thread's network namespace. Needs a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::of(LINKS | ADDRESSES | ROUTES)
    }

    /// As `open`, to IPv4 addresses only.
    pub fn of_addresses() -> Result<Self, NetlinkError> {
        Self::of(ADDRESSES)
    }

    fn of(groups: u32) -> Result<Self, NetlinkError> {
        let fd = open(groups, SockFlag::SOCK_NONBLOCK)?;
        // SAFETY: the descriptor is owned, so it stays open and the same until the registration is dropped with it.
        let fd = unsafe { AsyncFd::register(fd) }
            .map_err(|e| NetlinkError::Socket { what: "watching the socket", source: e.into() })?;
        Ok(Self { fd })
    }

    /// Waits until something has changed and swallows all that is known by then. Changes that the kernel could not
    /// queue (`ENOBUFS`) are changes too.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut buffer = [0_u8; 8192];
        let mut seen = false;
        loop {
            let mut ready = self.fd.readable().await?;
            loop {
                match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
                    Ok(_) | Err(nix::Error::ENOBUFS) => seen = true,
                    Err(nix::Error::EAGAIN) => break,
                    Err(nix::Error::EINTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            ready.clear_ready();
            if seen {
                return Ok(());
            }
        }
    }
}
