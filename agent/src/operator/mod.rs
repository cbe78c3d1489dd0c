//! What one process does for the whole cluster: the CRD, NodeNetworks of nodes that are gone, and in mode cluster-pool
//! the nodes' pod CIDRs.
//!
//! Several may run: [the one that holds a Lease](leader) works. It [looks](view) at the cluster, [plans](mod@plan) and [writes](write).
//! What it gave stands in its [record] before it is given.

mod faults;
pub mod leader;
pub mod plan;
mod pool;
pub mod record;
pub mod view;
mod write;

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::runtime::reflector::Store;
use kube::runtime::watcher;
use kube::{Api, Client, CustomResourceExt, ResourceExt};
use podwire_api::names::OPERATOR_DEPLOYMENT;
use podwire_api::nodenetwork::NodeNetwork;
use podwire_api::values::Values;
use tokio::signal::unix::{SignalKind, signal};

use crate::health::Health;
use crate::kubernetes::client::{ClientError, connect};
use crate::kubernetes::startup::{StartupError, only, values};
use crate::kubernetes::watch::watch;
use crate::signal::Signal;
use leader::Candidate;
use plan::plan;
use view::View;
use write::{WriteError, Writer};

/// Name under which the operator's fields are applied.
const MANAGER: &str = "podwire-operator";

/// Pause before what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// So long may giving the Lease back take at the end.
const FAREWELL: Duration = Duration::from_millis(800);

/// The operator cannot run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each says itself what it is")]
pub enum OperatorError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Startup(#[from] StartupError),
    #[error("signals cannot be handled: {0}")]
    Signal(io::Error),
    #[error("/proc/sys/kernel/random/uuid: {0}; is /proc mounted?")]
    Identity(io::Error),
    #[error("a watch ended; is the API server shutting down?")]
    WatchEnded,
    #[error(
        "Lease {OPERATOR_DEPLOYMENT} could not be renewed in time: ending, so that another operator can lead; is the API server up?"
    )]
    LeaseLost,
}

/// Runs until it is told to end, or until it led and may no longer lead: who supervises it then starts it anew.
pub async fn run(namespace: &str) -> Result<(), OperatorError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(OperatorError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(OperatorError::Signal)?;
    let (client, server) = connect(concat!("podwire-operator/", env!("CARGO_PKG_VERSION"))).await?;
    let mut candidate = Candidate::new(client.clone(), namespace, OPERATOR_DEPLOYMENT, identity()?);
    tracing::info!("API server {server}");
    let ended = tokio::select! {
        ended = work(&client, namespace, &mut candidate) => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    // Dropped above: nothing is written any more.
    match tokio::time::timeout(FAREWELL, candidate.release()).await {
        Ok(Ok(())) => {}
        Ok(Err(cause)) => tracing::warn!("the Lease could not be given back: {cause}"),
        Err(_) => tracing::warn!("the Lease could not be given back in time"),
    }
    ended
}

/// A name that no other process has, nor had: the machine's, and a number of this run.
fn identity() -> Result<String, OperatorError> {
    let read = |path| std::fs::read_to_string(path).map_err(OperatorError::Identity);
    let machine = read("/proc/sys/kernel/hostname")?;
    let run = read("/proc/sys/kernel/random/uuid")?;
    Ok(format!("{}_{}", machine.trim(), run.trim()))
}

async fn work(client: &Client, namespace: &str, candidate: &mut Candidate) -> Result<(), OperatorError> {
    let health = Arc::new(Health::default());
    elect(client, namespace, candidate, &health).await;
    tracing::info!("leading");
    tokio::select! {
        ended = lead(client, namespace, &health) => ended,
        () = candidate.keep() => Err(OperatorError::LeaseLost),
    }
}

/// Returns when this process leads.
async fn elect(client: &Client, namespace: &str, candidate: &mut Candidate, health: &Arc<Health>) {
    let changed = Signal::default();
    let api = Api::<Lease>::namespaced(client.clone(), namespace);
    // A Lease that is given back is taken at once.
    let _lease = watch(api, only(OPERATOR_DEPLOYMENT), "watch-lease", health.clone(), changed.clone());
    let mut news = changed.listen();
    loop {
        match candidate.attempt().await {
            Ok(true) => return health.ok("lease", "leading"),
            Ok(false) => health.ok("lease", "another operator leads"),
            Err(cause) => health.fail(
                "lease",
                format!("Lease {OPERATOR_DEPLOYMENT}: {cause}; is the API server up? (trying again)"),
            ),
        }
        tokio::select! {
            () = news.heard() => {}
            () = tokio::time::sleep(leader::PERIOD) => {}
        }
    }
}

/// What is watched while this process leads.
struct Stores {
    nodes: Store<Node>,
    networks: Store<NodeNetwork>,
    pods: Store<Pod>,
    services: Store<Service>,
}

impl Stores {
    /// Watches, until everything is known: an absent Node would look like one that is gone.
    async fn open(client: &Client, health: &Arc<Health>, changed: &Signal) -> Result<Self, OperatorError> {
        let all = watcher::Config::default;
        let api = || client.clone();
        let services = Api::<Service>::namespaced(api(), "default");
        let (h, c) = (|| health.clone(), || changed.clone());
        let stores = Self {
            nodes: watch(Api::all(api()), all(), "watch-nodes", h(), c()),
            networks: watch(Api::all(api()), all(), "watch-node-networks", h(), c()),
            pods: watch(Api::all(api()), all(), "watch-pods", h(), c()),
            services: watch(services, only("kubernetes"), "watch-services", h(), c()),
        };
        let ended = |_| OperatorError::WatchEnded;
        stores.nodes.wait_until_ready().await.map_err(ended)?;
        stores.networks.wait_until_ready().await.map_err(ended)?;
        stores.pods.wait_until_ready().await.map_err(ended)?;
        stores.services.wait_until_ready().await.map_err(ended)?;
        Ok(stores)
    }

    /// Addresses of Services: what the values say, else at least that of the API server's own.
    fn service_cidr(&self, values: &Values) -> Option<Ipv4Net> {
        let spec = || self.services.state().first().and_then(|s| s.spec.as_ref()?.cluster_ip.clone());
        values.service_cidr.or_else(|| Some(Ipv4Net::from(spec()?.parse::<Ipv4Addr>().ok()?)))
    }
}

async fn lead(client: &Client, namespace: &str, health: &Arc<Health>) -> Result<(), OperatorError> {
    while let Err(cause) = apply_crd(client).await {
        health.fail("crd", format!("{cause}; is the API server up? (trying again)"));
        tokio::time::sleep(RETRY).await;
    }
    let (_, values) = values(client, namespace, health).await?;
    let changed = Signal::default();
    let stores = Stores::open(client, health, &changed).await?;
    tracing::info!("ipam mode {}", values.ipam.mode);
    let mut news = changed.listen();
    let mut writer = Writer::new(client.clone());
    loop {
        news.heard().await;
        match once(&stores, &values, &mut writer).await {
            Ok(()) => health.ok("nodes", "up to date"),
            Err(outdated) if outdated.is_outdated() => changed.notify(),
            Err(cause) => {
                health.fail("nodes", format!("{cause} (trying again)"));
                tokio::time::sleep(RETRY).await;
                changed.notify();
            }
        }
    }
}

async fn once(stores: &Stores, values: &Values, writer: &mut Writer) -> Result<(), WriteError> {
    // First: what is decided by objects must be decided by ones that are no older.
    let record = writer.record().await?;
    let objects = stores.networks.state();
    let view = View::of(
        values,
        stores.service_cidr(values),
        &stores.nodes.state(),
        &objects,
        &stores.pods.state(),
        record,
    );
    let objects: BTreeMap<String, Arc<NodeNetwork>> =
        objects.into_iter().map(|n| (n.name_any(), n)).collect();
    writer.carry_out(&view, plan(&view), &objects).await
}

/// Makes the NodeNetwork resource known, or brings it up to date.
async fn apply_crd(client: &Client) -> kube::Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let crd = NodeNetwork::crd();
    api.patch(&crd.name_any(), &PatchParams::apply(MANAGER).force(), &Patch::Apply(&crd)).await.map(drop)
}
