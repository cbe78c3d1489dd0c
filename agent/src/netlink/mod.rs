//! rtnetlink, synchronous: a socket, the few messages that the agent sends, and a monitor.
//!
//! A pod is wired in a handful of system calls: several messages go to the kernel in one `sendmsg`, each is acknowledged.
//! A socket stays in the network namespace in which it was opened, whatever its thread does later.

pub mod address;
pub mod link;
pub mod monitor;
pub mod route;
mod socket;

pub use socket::{Netlink, NetlinkError, Op};
