//! The datapath with real packets: two nodes on a bridge, pods behind veth pairs, all in namespaces of the test's own.
//!
//! Every test has a mount namespace of its own, with an empty /run/netns and its own BPF file system: names cannot
//! collide, and all is gone with the test's last thread, also after a crash. Needs root.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod forwarding;
mod fuzz;
mod malformed;
mod masquerade;
mod masquerade_devices;
mod masquerade_errors;
mod masquerade_limits;
mod net;
mod no_conntrack;
mod node_port;
mod outside;
mod refusals;
mod services;
mod takeover;
mod tap;
mod tunnel;
