//! The API server as its clients see it: real kubectl, kube-rs and plain HTTP against a server on a loopback port.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "api/hostile.rs"]
mod hostile;
#[path = "api/kubectl.rs"]
mod kubectl;
#[path = "api/semantics.rs"]
mod semantics;
#[path = "api/server.rs"]
mod server;
