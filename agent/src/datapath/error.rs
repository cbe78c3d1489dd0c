//! What can go wrong with the datapath, each with its mend.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};
use thiserror::Error;

use super::{
    attach::{AttachMode, Hook},
    probe::Feature,
};

/// A failure of the datapath. The message names the thing, the cause and the mend.
#[derive(Debug, Error)]
pub enum DatapathError {
    /// The pin directory is not on a BPF file system.
    #[error(
        "{} is not on a BPF file system, so nothing could be pinned; mount one: mount -t bpf bpf /sys/fs/bpf",
        path.display()
    )]
    NotBpffs {
        /// The pin directory.
        path: PathBuf,
    },
    /// A file or directory below the pin directory cannot be handled.
    #[error("cannot {action} {}: {source}{}", path.display(), mend(source))]
    Pin {
        /// What was tried.
        action: &'static str,
        /// The pin.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The object cannot be loaded at all: its maps cannot be made.
    #[error(
        "cannot create the datapath's maps: {}{}",
        chain(source.as_ref()),
        mend_ebpf(source)
    )]
    Object {
        /// aya's answer.
        source: Box<EbpfError>,
    },
    /// The kernel does not take a program.
    #[error(
        "the kernel refuses eBPF program {}: {cause}; the datapath needs Linux 5.10 or newer with CONFIG_BPF_SYSCALL \
         and CONFIG_NET_CLS_BPF, `lab doctor` says what this kernel lacks{}",
        hook.program(),
        if log.is_empty() { String::new() } else { format!("\nend of the verifier's log:\n{log}") }
    )]
    Load {
        /// The program's hook.
        hook: Hook,
        /// The kernel's answer, without the verifier's log.
        cause: String,
        /// The last lines of the verifier's log.
        log: String,
    },
    /// The kernel lacks what the datapath needs.
    #[error("this kernel cannot run the datapath, it has no {lacking}\nwhat was tried: {cause}")]
    Kernel {
        /// What it lacks, each with its mend.
        lacking: String,
        /// What failed for it.
        cause: Box<DatapathError>,
    },
    /// A pinned program cannot be opened.
    #[error("cannot open pinned program {}: {}", path.display(), chain(source.as_ref()))]
    Program {
        /// The pin.
        path: PathBuf,
        /// aya's answer.
        source: Box<ProgramError>,
    },
    /// The object has no such program or map: it was made for another version of the agent.
    #[error("the embedded eBPF object has no {name}; build the agent again: cargo build -p podwire-agent")]
    Missing {
        /// What it lacks.
        name: &'static str,
    },
    /// A map cannot be read or written.
    #[error("cannot {action} map {map}: {}{}", chain(source.as_ref()), mend_map(source))]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What was tried.
        action: &'static str,
        /// aya's answer.
        source: Box<MapError>,
    },
    /// A program cannot be attached.
    #[error("cannot attach {} to device {ifindex} by {mode}: {source}{}", hook.program(), mend_attach(source))]
    Attach {
        /// The program's hook.
        hook: Hook,
        /// Index of the device.
        ifindex: u32,
        /// How it was tried.
        mode: AttachMode,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The cgroup cannot be opened.
    #[error("cgroup {}: {source}; is cgroup v2 mounted there?", path.display())]
    Cgroup {
        /// The cgroup.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A program at sockets cannot be loaded or attached.
    #[error("socket program {program}: {cause}; services need Linux 5.18 or newer with CONFIG_CGROUP_BPF")]
    Socket {
        /// The program.
        program: &'static str,
        /// The kernel's answer.
        cause: String,
    },
    /// There is no room for so many.
    #[error(
        "{services} addresses and ports of services with {backends} backends are more than the maps hold; \
         delete services that nobody uses"
    )]
    TooManyServices {
        /// Frontends.
        services: usize,
        /// Their backends together.
        backends: usize,
    },
    /// The asked-for way of attaching does not exist in this kernel.
    #[error(
        "this kernel has no tcx links (Linux 6.6 has); leave the mode to the agent, it then takes clsact"
    )]
    NoTcx,
    /// Somebody reads the events already.
    #[error("the events of this node have a reader already; end it before a second one starts")]
    EventsTaken,
    /// The event ring cannot be waited for.
    #[error("cannot wait for datapath events: {source}")]
    Events {
        /// The cause.
        source: io::Error,
    },
}

impl DatapathError {
    /// Says which of the kernel's features are missing, if that is why loading failed.
    pub(super) fn explained(self, features: impl FnOnce() -> Vec<Feature>) -> Self {
        if !matches!(self, Self::Object { .. } | Self::Load { .. }) {
            return self;
        }
        let missing = features().into_iter().filter(|f| f.needed && !f.available);
        let lacking: Vec<_> = missing.map(|f| format!("{} ({})", f.name, f.mend)).collect();
        if lacking.is_empty() {
            return self;
        }
        Self::Kernel { lacking: lacking.join(", no "), cause: Box::new(self) }
    }

    /// For `map_err` of a file operation on a pin.
    pub(super) fn pin(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Pin { action, path, source }
    }

    /// For `map_err` of a map operation.
    pub(super) fn map(action: &'static str, map: &'static str) -> impl FnOnce(MapError) -> Self {
        move |source| Self::Map { map, action, source: Box::new(source) }
    }

    /// A refused program: the verifier's log is cut to its end, where the reason stands.
    pub(super) fn load(hook: Hook, error: &ProgramError) -> Self {
        const LINES: usize = 20;
        let (cause, log) = match error {
            ProgramError::LoadError { io_error, verifier_log } => {
                let log = verifier_log.to_string();
                let lines: Vec<_> = log.lines().filter(|line| !line.trim().is_empty()).collect();
                (io_error.to_string(), lines[lines.len().saturating_sub(LINES)..].join("\n"))
            }
            other => (chain(other), String::new()),
        };
        Self::Load { hook, cause, log }
    }
}

/// An error with its causes, each said once.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// The innermost I/O error of a chain.
fn io_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io);
        }
        cause = error.source();
    }
    None
}

const PRIVILEGE: &str = "; it takes root, or the capabilities CAP_BPF and CAP_NET_ADMIN";

fn mend(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => PRIVILEGE,
        _ => "",
    }
}

fn mend_attach(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENODEV) => "; the device is gone",
        _ => mend(source),
    }
}

fn mend_ebpf(source: &EbpfError) -> &'static str {
    match io_cause(source).and_then(io::Error::raw_os_error) {
        Some(libc::EPERM) => {
            "; it takes root or CAP_BPF and CAP_NET_ADMIN, and before Linux 5.11 also `ulimit -l unlimited`"
        }
        _ => "",
    }
}

fn mend_map(source: &MapError) -> &'static str {
    match io_cause(source).and_then(io::Error::raw_os_error) {
        Some(libc::E2BIG | libc::ENOSPC) => "; the map is full: fewer pods or prefixes fit than are wanted",
        Some(libc::EPERM) => PRIVILEGE,
        _ => "",
    }
}
