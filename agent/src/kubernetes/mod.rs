//! All that the agent knows of Kubernetes: how to reach the API server, what it watches, and what the objects mean to it.

pub mod client;
pub mod model;
pub mod node_network;
pub mod startup;
pub mod watch;
