//! Loops that bring what is to what should be: each waits for a change, looks at everything, and acts on the difference.

pub mod config;
pub mod ip_masq_agent;
pub mod ipcache;
pub mod masquerade;
pub mod no_conntrack;
pub mod node_network;
mod retry;
pub mod routes;
pub mod services;
pub mod settle;
