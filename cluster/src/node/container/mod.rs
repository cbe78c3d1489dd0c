//! Containers as processes: what one is ([`spec`]), the monitor that owns it ([`shim`]), its inside ([`inside`]), a
//! further command in it ([`enter`]).
//!
//! The node runtime never is the parent of a container. It starts a shim for each, which owns the container's output and
//! records its end in a file, so that containers live on when the runtime dies and a new one finds them again.

pub mod enter;
pub mod handle;
pub mod inside;
pub mod process;
pub mod shim;
pub mod spec;
