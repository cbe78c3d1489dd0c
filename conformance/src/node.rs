//! What conformance needs of a machine. Providers implement it; nothing here knows how a machine was made.

use std::io;
use std::os::fd::BorrowedFd;
use std::process::Output;

use crate::capture::CaptureError;
use crate::link::LinkType;
use crate::read::Direction;

/// A machine that commands run on and whose interfaces can be tapped.
pub trait Node {
    /// The machine's name, as in the lab or the cluster.
    fn name(&self) -> &str;
    /// Runs a command to its end.
    fn run(&self, argv: &[&str]) -> io::Result<Output>;
    /// Opens a tap on one of the machine's interfaces.
    fn tap(&self, interface: &str) -> Result<Box<dyn Tap>, CaptureError>;
}

/// A source of captured packets: one interface, from the moment it was opened.
pub trait Tap: Send {
    /// Name that the capture file gives the interface, `<node>:<interface>`.
    fn name(&self) -> &str;
    /// Words for the capture file's reader: where the tap sits.
    fn description(&self) -> Option<String> {
        None
    }
    /// What packets begin with.
    fn link(&self) -> LinkType;
    /// Longest captured length in bytes.
    fn snaplen(&self) -> u32;
    /// Becomes readable when there are packets; `None` for a tap that is polled at every turn.
    fn readiness(&self) -> Option<BorrowedFd<'_>>;
    /// Hands over what has arrived, oldest first, without waiting.
    fn drain(&mut self, sink: &mut dyn FnMut(TappedPacket<'_>)) -> Result<(), CaptureError>;
    /// Totals since the tap was opened.
    fn statistics(&mut self) -> Result<TapStatistics, CaptureError>;
}

/// A packet from a tap.
#[derive(Debug, Clone, Copy)]
pub struct TappedPacket<'a> {
    /// Nanoseconds since 1970-01-01 UTC.
    pub timestamp: u64,
    /// Length on the wire.
    pub original_len: u32,
    /// What was captured of it.
    pub data: &'a [u8],
    /// Which way it went.
    pub direction: Option<Direction>,
}

/// Counters of a tap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TapStatistics {
    /// Packets the interface showed the tap, lost ones included.
    pub received: u64,
    /// Packets lost because the tap's buffer was full.
    pub dropped: u64,
}
