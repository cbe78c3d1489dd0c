//! The Container Network Interface, versions 0.3.1 to 1.1.0, as far as plugin and agent share it.
//!
//! `podwire-cni` reads its [environment](environment::Environment) and its [configuration](config::NetConf), refuses
//! what the specification refuses, and hands the call with the opened network namespace to the agent over a
//! [socket](wire). The agent does the work and answers with the finished [result](result) or an [error](error::CniError).
//!
//! Source of every rule here: <https://github.com/containernetworking/cni/blob/main/SPEC.md>.

pub mod config;
pub mod environment;
pub mod error;
pub mod plugin;
pub mod result;
pub mod version;
pub mod wire;

/// Whether `name` may be a container ID or a network name: it starts with a letter or digit and holds only letters,
/// digits, `_`, `.` and `-`.
pub(crate) fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}
