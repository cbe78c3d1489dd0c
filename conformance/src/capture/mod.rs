//! Capturing from several interfaces of several machines into one pcapng file.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use podwire_conformance::capture::{self, CaptureOptions};
//! use std::sync::atomic::AtomicBool;
//!
//! let netns = std::fs::File::open("/run/netns/native-routing-k8s-ctr")?;
//! let tap = capture::open_packet_tap(Some(std::os::fd::AsFd::as_fd(&netns)), "k8s-ctr", "eth1")?;
//! let options = CaptureOptions { duration: Some(std::time::Duration::from_secs(5)), ..CaptureOptions::default() };
//! let stop = AtomicBool::new(false);
//! let stats = capture::run(vec![Box::new(tap)], &options, "wire.pcapng".as_ref(), &stop, || println!("listening"))?;
//! println!("{} packets", stats.written);
//! # Ok(())
//! # }
//! ```

mod error;
mod packet_tap;
mod ring;
mod run;

pub use error::CaptureError;
pub use packet_tap::{PacketTap, open_packet_tap, open_short_packet_tap};
pub use run::{CaptureOptions, CaptureStats, InterfaceStats, run};

/// Longest captured length by default: more than any packet, segmentation-offload super-packets included.
pub const DEFAULT_SNAPLEN: u32 = 262_144;
