//! One node of Podwire: everything that the agent, the CNI plugin, the operator and the on-node CLI are made of.

pub mod cni;
pub mod cni_server;
pub mod controllers;
pub mod core;
pub mod daemon;
pub mod datapath;
pub mod datapath_ops;
pub mod endpoint;
pub mod flows;
pub mod health;
pub mod host;
pub mod identity;
pub mod install;
pub mod ipam;
pub mod ipcache;
pub mod kubernetes;
pub mod local_api;
pub mod logging;
pub mod masquerade;
pub mod netlink;
pub mod operator;
pub mod overlay;
pub mod routes;
pub mod signal;
pub mod store;
pub mod wiring;
