//! What the agent must know before it can do anything: its values, its node's address, its pod CIDRs. Each is waited for.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watch_object};
use kube::{Api, Client, ResourceExt};
use podwire_api::names::CONFIG_MAP;
use podwire_api::nodenetwork::NodeNetwork;
use podwire_api::values::{IpamMode, Values, ValuesError};

use super::model::{internal_ip, pod_cidrs};
use crate::health::Health;

/// The agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    /// The values are wrong.
    #[error("{0}")]
    Values(#[from] ValuesError),
    /// A watch ended, which it never does.
    #[error("the watch of {0} ended; is the API server shutting down?")]
    WatchEnded(&'static str),
}

/// Pause between two tries to reach an API server that is not there.
const RETRY: Duration = Duration::from_millis(250);

/// Reads the values out of the ConfigMap in `namespace`, waiting until it is there.
pub async fn values(
    client: &Client,
    namespace: &str,
    health: &Health,
) -> Result<(ConfigMap, Values), StartupError> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    loop {
        match api.get_opt(CONFIG_MAP).await {
            Ok(Some(map)) => {
                let values = Values::from_config_map(map.data.as_ref().unwrap_or(&BTreeMap::default()))?;
                health.ok("config", format!("ConfigMap {namespace}/{CONFIG_MAP}"));
                return Ok((map, values));
            }
            Ok(None) => health.fail(
                "config",
                format!(
                    "ConfigMap {namespace}/{CONFIG_MAP} does not exist yet; create it, the agent waits for it"
                ),
            ),
            Err(cause) => health.fail(
                "config",
                format!("ConfigMap {namespace}/{CONFIG_MAP}: {cause}; is the API server up? (trying again)"),
            ),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// What the API server knows of the agent's own node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnNode {
    /// Name.
    pub name: String,
    /// UID, for owner references.
    pub uid: String,
    /// InternalIP.
    pub internal_ip: Ipv4Addr,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<Ipv4Net>,
}

/// Waits until the own Node has an address and, where it must, pod CIDRs.
pub async fn own_node(
    client: &Client,
    name: &str,
    mode: IpamMode,
    health: &Health,
) -> Result<OwnNode, StartupError> {
    let api: Api<Node> = Api::all(client.clone());
    let mut stream = Box::pin(watch_object(api, name).default_backoff());
    loop {
        let node = match stream.try_next().await {
            Ok(Some(Some(node))) => node,
            Ok(Some(None)) => {
                health.fail(
                    "node",
                    format!("Node {name} does not exist; does the kubelet run with this name? (waiting)"),
                );
                continue;
            }
            Ok(None) => return Err(StartupError::WatchEnded("the own Node")),
            Err(cause) => {
                health.fail("node", format!("Node {name}: {cause}; is the API server up? (trying again)"));
                continue;
            }
        };
        let Some(internal_ip) = internal_ip(&node) else {
            health.fail(
                "node",
                format!("Node {name} has no InternalIP yet; start its kubelet with --node-ip (waiting)"),
            );
            continue;
        };
        let pod_cidrs = pod_cidrs(&node);
        if pod_cidrs.is_empty() && mode == IpamMode::Kubernetes {
            health.fail(
                "node",
                format!(
                    "Node {name} has no spec.podCIDR, which ipam.mode=kubernetes needs; start the controller manager with \
                     --allocate-node-cidrs=true --cluster-cidr=..., or use ipam.mode=cluster-pool (waiting)"
                ),
            );
            continue;
        }
        health.ok("node", format!("{name} {internal_ip}"));
        return Ok(OwnNode {
            name: name.into(),
            uid: node.uid().unwrap_or_default(),
            internal_ip,
            pod_cidrs,
        });
    }
}

/// Waits until the operator has given the own NodeNetwork its pod CIDRs (mode cluster-pool).
pub async fn own_cidrs(client: &Client, name: &str, health: &Health) -> Result<Vec<Ipv4Net>, StartupError> {
    let api: Api<NodeNetwork> = Api::all(client.clone());
    let mut stream = Box::pin(watch_object(api, name).default_backoff());
    loop {
        match stream.try_next().await {
            Ok(Some(Some(node))) if !node.spec.ipam.pod_cidrs.is_empty() => {
                health.ok("ipam", "pod CIDRs from the operator");
                return Ok(node.spec.ipam.pod_cidrs);
            }
            Ok(Some(node)) => {
                let status = node.and_then(|n| n.status).and_then(|s| s.ipam.operator_status);
                let why = status.map_or("is podwire-operator running?".into(), |s| s.error);
                health.fail(
                    "ipam",
                    format!("NodeNetwork {name} has no spec.ipam.podCIDRs yet; {why} (waiting)"),
                );
            }
            Ok(None) => return Err(StartupError::WatchEnded("the own NodeNetwork")),
            Err(cause) => {
                health
                    .fail("ipam", format!("NodeNetwork {name}: {cause}; does the CRD exist? (trying again)"));
            }
        }
    }
}

/// A watch configuration for one object by name.
pub fn only(name: &str) -> watcher::Config {
    watcher::Config::default().fields(&format!("metadata.name={name}"))
}
