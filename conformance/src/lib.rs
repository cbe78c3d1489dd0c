//! Capture, dissect, check, report: verdicts with evidence on any capture, any cluster.
//!
//! The crate is a library of layers that can be used one by one:
//!
//! - [`capture`] taps interfaces into one pcapng file, an interface of the file per tap;
//! - [`read`] walks pcap and pcapng files of any writer;
//! - [`dissect`] reads the headers, encapsulations included;
//! - [`check`] asks typed questions and answers with a verdict and the packets that prove it;
//! - [`report`] writes the answers as JSON, JUnit, Markdown, HTML or text.
//!
//! Machines are seen through one small trait, [`Node`].

pub mod capture;
pub mod check;
pub mod dissect;
pub mod filter;
pub mod link;
mod node;
pub mod read;
pub mod report;
pub mod testing;
pub mod write;

pub use node::{Node, Tap, TapStatistics, TappedPacket};
