//! The embedded Kubernetes of the netns provider: an API server on a durable store, the controllers and the scheduler
//! that the labs need, and a node runtime that plays kubelet.
//!
//! It serves what kubectl, kube-rs and the course need, answers what it does not serve with a proper Status error, and
//! is never a special case inside the agent.

pub mod apiserver;
pub mod controllers;
pub mod images;
pub mod node;
pub mod pki;
pub mod scheduler;
pub mod store;
