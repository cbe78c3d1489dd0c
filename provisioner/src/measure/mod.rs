//! A client that calls a Service's pods again and again while something else goes on, and what came of its calls.
//!
//! The [client](client) runs inside a pod through the Kubernetes API alone (exec), so it works on any cluster, and follows
//! the pod when that is made anew. Each call is one line of a [journal](journal); a [summary] counts them
//! per second and per pod; a [picture] draws summaries one below the other.

pub mod client;
pub mod journal;
pub mod picture;
pub mod summary;
