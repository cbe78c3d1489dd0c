use std::io;
use std::path::PathBuf;

/// Why a capture could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// No such interface where the tap was to sit.
    #[error("{node} has no interface {interface:?}: `lab exec {node} -- ip -br link` lists what it has")]
    NoInterface {
        /// The machine.
        node: String,
        /// The interface.
        interface: String,
    },
    /// Packet sockets need the capability.
    #[error("{name}: opening a packet socket was refused: capturing needs root (CAP_NET_RAW)")]
    NotPermitted {
        /// The tap.
        name: String,
    },
    /// The interface's kind cannot be captured.
    #[error(
        "{name}: the interface has hardware type {hardware}, which has no link type here; tap an Ethernet, veth or tun interface"
    )]
    UnsupportedHardware {
        /// The tap.
        name: String,
        /// ARPHRD number of the kernel.
        hardware: u16,
    },
    /// The interface went away or down while capturing.
    #[error("{name}: the interface went away while capturing: {source}")]
    InterfaceLost {
        /// The tap.
        name: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{name}: cannot {action}: {source}")]
    System {
        /// The tap.
        name: String,
        /// What was tried.
        action: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The output file cannot be written.
    #[error("cannot write the capture {}: {source}", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// `run` was given nothing to tap.
    #[error("no interface to capture from: name at least one NODE:INTERFACE")]
    NoTaps,
}
