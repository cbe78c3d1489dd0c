//! Provider `netns`: carries a plan out with network namespaces, on one Linux machine, without touching its own network.

pub mod cgroup;
pub mod enter;
pub mod namespace;
mod pods;
pub mod process;
mod provider;
mod wire;

pub use pods::pod_namespaces;
pub use provider::{Inspection, MachineState, down, init_of, inspect, up};
pub use wire::{device_names, try_devices};
