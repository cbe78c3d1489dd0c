//! What one process does for the whole cluster: the CRD, NodeNetworks of nodes that are gone, and in mode cluster-pool
//! the nodes' pod CIDRs.
//!
//! There is no leader election yet: run one replica (`operator.replicas=1`). Two would do the same work twice; the API
//! server's optimistic locking keeps them from giving one CIDR to two nodes only as long as they do not race on two
//! different NodeNetworks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client, CustomResourceExt, ResourceExt};
use podwire_api::nodenetwork::{NodeNetwork, OperatorStatus};
use podwire_api::values::{ClusterPool, IpamMode, Values};
use tokio::signal::unix::{SignalKind, signal};

use crate::health::Health;
use crate::kubernetes::client::{ClientError, connect};
use crate::kubernetes::startup::{StartupError, values};
use crate::kubernetes::watch::watch;
use crate::signal::Signal;

/// Name under which the operator's fields are applied.
const MANAGER: &str = "podwire-operator";

/// Pause before what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The operator cannot run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each says itself what it is")]
pub enum OperatorError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Startup(#[from] StartupError),
    #[error("signals cannot be handled: {0}")]
    Signal(std::io::Error),
    #[error("a watch ended; is the API server shutting down?")]
    WatchEnded,
}

/// Runs until it is told to end.
pub async fn run(config_map_namespace: &str) -> Result<(), OperatorError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(OperatorError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(OperatorError::Signal)?;
    tokio::select! {
        ended = work(config_map_namespace) => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

async fn work(config_map_namespace: &str) -> Result<(), OperatorError> {
    let (client, server) = connect().await?;
    tracing::info!("API server {server}");
    let health = Arc::new(Health::default());
    while let Err(cause) = apply_crd(&client).await {
        health.fail("crd", format!("{cause}; is the API server up? (trying again)"));
        tokio::time::sleep(RETRY).await;
    }
    let (_, values) = values(&client, config_map_namespace, &health).await?;
    let changed = Signal::default();
    let all = watcher::Config::default;
    let nodes =
        watch(Api::<Node>::all(client.clone()), all(), "watch-nodes", health.clone(), changed.clone());
    let networks = watch(
        Api::<NodeNetwork>::all(client.clone()),
        all(),
        "watch-node-networks",
        health.clone(),
        changed.clone(),
    );
    // Before both are known, an absent Node would look like one that is gone.
    nodes.wait_until_ready().await.map_err(|_| OperatorError::WatchEnded)?;
    networks.wait_until_ready().await.map_err(|_| OperatorError::WatchEnded)?;
    tracing::info!("ipam mode {}", values.ipam.mode);
    let mut news = changed.listen();
    let api: Api<NodeNetwork> = Api::all(client);
    loop {
        news.heard().await;
        let names: BTreeSet<String> = nodes.state().iter().map(|n| n.name_any()).collect();
        let present = networks.state();
        let mut done = Ok(());
        for gone in orphans(&names, &present) {
            tracing::info!("Node {gone} is gone; deleting its NodeNetwork");
            done = done.and(api.delete(&gone, &DeleteParams::default()).await.map(drop));
        }
        if values.ipam.mode == IpamMode::ClusterPool {
            done = done.and(give_cidrs(&api, &values, &present).await);
        }
        match done {
            Ok(()) => health.ok("nodes", "up to date"),
            // Gone already, or newer than what the watch has seen: the watch tells and this runs again.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(cause) => {
                health.fail("nodes", format!("{cause} (trying again)"));
                tokio::time::sleep(RETRY).await;
                changed.notify();
            }
        }
    }
}

/// Makes the NodeNetwork resource known, or brings it up to date.
async fn apply_crd(client: &Client) -> kube::Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let crd = NodeNetwork::crd();
    api.patch(&crd.name_any(), &PatchParams::apply(MANAGER).force(), &Patch::Apply(&crd)).await.map(drop)
}

/// NodeNetworks whose Node is gone.
fn orphans(nodes: &BTreeSet<String>, present: &[Arc<NodeNetwork>]) -> Vec<String> {
    present.iter().map(|n| n.name_any()).filter(|name| !nodes.contains(name)).collect()
}

/// Gives every NodeNetwork without pod CIDRs its own, the oldest first.
async fn give_cidrs(
    api: &Api<NodeNetwork>,
    values: &Values,
    present: &[Arc<NodeNetwork>],
) -> kube::Result<()> {
    let mut taken: Vec<Ipv4Net> = present.iter().flat_map(|n| n.spec.ipam.pod_cidrs.clone()).collect();
    let mut waiting: Vec<&Arc<NodeNetwork>> =
        present.iter().filter(|n| n.spec.ipam.pod_cidrs.is_empty()).collect();
    waiting.sort_by_key(|n| (n.creation_timestamp(), n.name_any()));
    for network in waiting {
        let name = network.name_any();
        // The resourceVersion makes the API server refuse what is built on an old object.
        let mut object = network.as_ref().clone();
        if let Some(cidr) = next_cidr(&values.ipam.operator, &taken) {
            tracing::info!("{name} gets {cidr}");
            object.spec.ipam.pod_cidrs = vec![cidr];
            let object = api.replace(&name, &PostParams::default(), &object).await?;
            taken.push(cidr);
            set_error(api, object, None).await?;
        } else {
            let pools: Vec<String> =
                values.ipam.operator.pod_cidr_list.iter().map(ToString::to_string).collect();
            let error = format!(
                "no free /{} in {}; add a CIDR to ipam.operator.clusterPoolIPv4PodCIDRList, or delete a node",
                values.ipam.operator.mask_size,
                pools.join(", ")
            );
            set_error(api, object, Some(error)).await?;
        }
    }
    Ok(())
}

async fn set_error(
    api: &Api<NodeNetwork>,
    mut object: NodeNetwork,
    error: Option<String>,
) -> kube::Result<()> {
    let wanted = error.map(|error| OperatorStatus { error });
    let mut status = object.status.take().unwrap_or_default();
    if status.ipam.operator_status == wanted {
        return Ok(());
    }
    status.ipam.operator_status = wanted;
    object.status = Some(status);
    api.replace_status(&object.name_any(), &PostParams::default(), &object).await.map(drop)
}

/// The first network of the mask's size in the pools that overlaps with none that is taken.
fn next_cidr(pool: &ClusterPool, taken: &[Ipv4Net]) -> Option<Ipv4Net> {
    // `validate` of the values refuses pools that are smaller than one node's network.
    let networks = pool.pod_cidr_list.iter().flat_map(|p| p.subnets(pool.mask_size).into_iter().flatten());
    networks.into_iter().find(|n| !taken.iter().any(|t| t.contains(n) || n.contains(t)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use podwire_api::nodenetwork::NodeNetworkSpec;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn cidrs_are_given_in_order_and_never_twice() {
        let pool =
            ClusterPool { pod_cidr_list: vec![net("172.20.0.0/23"), net("172.30.0.0/24")], mask_size: 24 };
        let mut taken = vec![net("10.244.0.0/24")];
        let mut given = Vec::new();
        while let Some(cidr) = next_cidr(&pool, &taken) {
            taken.push(cidr);
            given.push(cidr.to_string());
        }
        assert_eq!(given, ["172.20.0.0/24", "172.20.1.0/24", "172.30.0.0/24"]);
        taken.retain(|c| *c != net("172.20.1.0/24"));
        assert_eq!(next_cidr(&pool, &taken), Some(net("172.20.1.0/24")));
        // One that overlaps (a larger one of an earlier setting) is in the way too.
        assert_eq!(next_cidr(&pool, &[net("172.20.0.0/16")]), Some(net("172.30.0.0/24")));
    }

    #[test]
    fn only_networks_of_absent_nodes_are_orphans() {
        let network = |name: &str| Arc::new(NodeNetwork::new(name, NodeNetworkSpec::default()));
        let nodes = BTreeSet::from(["k8s-ctr".to_owned()]);
        assert_eq!(orphans(&nodes, &[network("k8s-ctr"), network("k8s-w9")]), ["k8s-w9"]);
    }
}
