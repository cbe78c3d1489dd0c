//! Questions about captures, answered with a verdict and the packets that prove it.
//!
//! ```no_run
//! use podwire_conformance::check::{self, Context, Expectation};
//! use podwire_conformance::report;
//!
//! let context = Context {
//!     pod_cidrs: vec!["10.244.0.0/16".parse()?],
//!     nodes: [("k8s-ctr".to_owned(), vec!["192.168.10.100".parse()?])].into(),
//!     ..Context::default()
//! };
//! let found = check::run(&["wire.pcapng".into()], Expectation::Native, &context)?;
//! print!("{}", report::text(&found, report::Lang::En));
//! report::write_all(&found, "report".as_ref(), report::Lang::En)?;
//! std::process::exit(found.exit_code());
//! # #[allow(unreachable_code)]
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is decided, and from what
//!
//! *Between pods* is a packet whose source and destination are both pod addresses, or the inner packet of an
//! encapsulation with a pod address. A packet with a pod at one end and anything else at the other is legitimate in many
//! cases: a kubelet's probe, the API server, a client outside, a NodePort. It counts as a pod's packet in disguise only
//! when there is proof:
//!
//! - **Correlation.** The same packet is elsewhere in the capture with another pod's address in that place: TCP by its
//!   sequence and acknowledgment numbers, an echo by its sequence too, it and UDP by identification and payload. This
//!   is why tapping the pods' interfaces and the wire together decides most.
//! - **A named flow** ([`FlowHint`]): you say that SRC sent to DST:PORT. If packets to DST:PORT come from a node and none
//!   from SRC, the node stands in SRC's place.
//!
//! Who spoke first matters: a conversation that the pod itself opened towards a node's address (the API server, a
//! NodePort) is never held against it. A conversation that a node opened, on a wire where the node's own pods were not
//! tapped, cannot be told from masquerade: the verdict is `inconclusive` and says how to decide it. Destination
//! translation by Services (addresses of the Service CIDR) is not a violation; translation of the source is.
//!
//! A negative answer is worth nothing if packets are missing, so every one needs its positive control (packets between
//! pods were seen) and a complete capture (no drops, no truncated file, no header cut by the snap length); otherwise it
//! is `inconclusive`, never `held`.

mod classify;
mod context;
mod conversation;
mod correlate;
mod evidence;
mod native;
mod no_loop;
mod result;
mod scan;
mod soundness;
mod vxlan;
mod wrapped;

use std::path::PathBuf;
use std::time::Instant;

pub use context::{Context, Expectation, FlowHint, FlowHintError, Role};
pub use evidence::Evidence;
pub use result::{
    CheckResult, Count, FileReport, FlowRow, InterfaceReport, Message, Report, SCHEMA_VERSION, Verdict,
};

use crate::link::LinkType;
use crate::read::{CaptureFile, ReadError};

/// Why no verdict could be reached at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// No file was given.
    #[error("no capture to check: name at least one pcap or pcapng file")]
    NoFiles,
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ReadError,
    },
    /// Packets of a link type that is not dissected.
    #[error("{}: interface {interface:?} has {link}, which is not read here; Ethernet, Linux cooked, raw IP and BSD loopback are", path.display())]
    UnsupportedLink {
        /// The file.
        path: PathBuf,
        /// The interface's name or number.
        interface: String,
        /// The link type.
        link: LinkType,
    },
}

/// Asks every question of `expectation` about `files`, taken together as one observation.
pub fn run(files: &[PathBuf], expectation: Expectation, context: &Context) -> Result<Report, CheckError> {
    if files.is_empty() {
        return Err(CheckError::NoFiles);
    }
    let started = Instant::now();
    let opened = files
        .iter()
        .map(|path| CaptureFile::open(path).map_err(|source| CheckError::File { path: path.clone(), source }))
        .collect::<Result<Vec<_>, _>>()?;
    let scan = scan::scan(&opened, context)?;
    let outcome = match expectation {
        Expectation::Native => native::judge(&scan, &opened, context)?,
        Expectation::NoLoop => no_loop::judge(&scan, &opened, context)?,
        Expectation::Vxlan => vxlan::judge(&scan, &opened, context)?,
    };
    Ok(result::assemble(expectation, context, scan, outcome, started.elapsed()))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vxlan_tests;
