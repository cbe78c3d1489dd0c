//! What all requests share.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::Ipv4Net;
use tokio::sync::mpsc;

use super::registry::Registry;
use super::token::Tokens;
use crate::store::{Key, Store};

/// How to run the API server.
#[derive(Clone, Debug)]
pub struct ApiServerConfig {
    /// Where to listen. Port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// Certificates, made by [`crate::pki::create`].
    pub pki: PathBuf,
    /// Directory of the store.
    pub data_dir: PathBuf,
    /// Addresses of Services.
    pub service_cidr: Ipv4Net,
}

/// Something the garbage collector looks into.
#[derive(Debug)]
pub enum Concern {
    /// The owner with this uid is gone.
    Gone(String),
    /// This object has owners that may not exist, or waits for its dependents.
    Check(Key),
    /// This object goes: its definition is being deleted.
    Remove(Key),
}

/// What all requests share.
pub struct Api {
    /// The objects.
    pub store: Store,
    /// What is served.
    pub registry: Registry,
    /// How the server runs.
    pub config: ApiServerConfig,
    /// ServiceAccount tokens.
    pub tokens: Tokens,
    /// For connections to node runtimes.
    pub kubelet_tls: Arc<rustls::ClientConfig>,
    /// The garbage collector's queue.
    pub gc: mpsc::UnboundedSender<Concern>,
}
