//! What more than one Podwire crate speaks: the agent's [values](values::Values) and their ConfigMap keys, the
//! [`NodeNetwork`](nodenetwork::NodeNetwork) resource, and the [names](names) that a user may rely on.
//!
//! Pure types: nothing in this crate does I/O.
#![forbid(unsafe_code)]

pub mod names;
pub mod nodenetwork;
pub mod values;
