//! How long the operator takes to give every node of a large cluster its pod CIDR, and how long the API server takes to write
//! as many NodeNetworks for a client that does nothing else: once before, once after.
//!
//! ```text
//! operator_rate OPERATOR NODES     prints {"operator_s": T, "writes_s": [T, T], "operator_mib": M}
//! ```
//!
//! The API server is that of $KUBECONFIG, and empty. The operator's time runs from its start until the watch has told the last
//! pod CIDR.

use std::collections::HashSet;
use std::error::Error;
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, CustomResourceExt as _, ResourceExt as _};
use podwire_agent::kubernetes::client::connect;
use podwire_api::names::{CONFIG_MAP, SYSTEM_NAMESPACE};
use podwire_api::nodenetwork::NodeNetwork;
use podwire_api::values::Values;
use serde_json::{from_value, json};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Writes at once, as the operator has them.
const AT_ONCE: usize = 8;

/// Longer than this takes only what hangs.
const PATIENCE: Duration = Duration::from_mins(2);

#[tokio::main]
async fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [operator, count] = args.as_slice() else { return Err("usage: operator_rate OPERATOR NODES".into()) };
    let (client, _) = connect("operator_rate").await?;
    tokio::time::timeout(PATIENCE, measure(&client, operator, count.parse()?)).await?
}

async fn measure(client: &Client, operator: &str, count: usize) -> Outcome<()> {
    prepare(client, count).await?;
    let networks: Api<NodeNetwork> = Api::all(client.clone());
    let mut told = pin!(watcher(networks.clone(), watcher::Config::default()));
    all(&mut told, count, |_| true).await?;
    let before = write_all(&networks, &mut told, count, "before").await?;
    let start = Instant::now();
    let running = Running(Command::new(operator).stdin(Stdio::null()).stderr(Stdio::null()).spawn()?);
    all(&mut told, count, |network| !network.spec.ipam.pod_cidrs.is_empty()).await?;
    let given = start.elapsed().as_secs_f64();
    let memory = running.resident_mib()?;
    drop(running);
    let after = write_all(&networks, &mut told, count, "after").await?;
    println!("{}", json!({ "operator_s": given, "writes_s": [before, after], "operator_mib": memory }));
    Ok(())
}

/// A cluster of nodes whose agents wait for pod CIDRs.
async fn prepare(client: &Client, count: usize) -> Outcome<()> {
    let post = PostParams::default();
    let kinds: Api<CustomResourceDefinition> = Api::all(client.clone());
    kinds.create(&post, &NodeNetwork::crd()).await?;
    let values = Values::from_value(json!({ "ipv4NativeRoutingCIDR": "10.0.0.0/8", "ipam": {
        "mode": "cluster-pool",
        "operator": { "clusterPoolIPv4PodCIDRList": ["10.0.0.0/8"], "clusterPoolIPv4MaskSize": 24 },
    }}))?;
    let map = json!({ "metadata": { "name": CONFIG_MAP }, "data": values.to_config_map() });
    Api::<ConfigMap>::namespaced(client.clone(), SYSTEM_NAMESPACE).create(&post, &from_value(map)?).await?;
    let (nodes, networks) = (Api::<Node>::all(client.clone()), Api::<NodeNetwork>::all(client.clone()));
    while networks.list(&ListParams::default()).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let made = (0..count).map(async |i| -> Outcome<()> {
        let name = format!("node-{i:04}");
        let node = json!({ "metadata": { "name": name } });
        let uid = nodes.create(&post, &from_value(node)?).await?.metadata.uid;
        let [high, low] = u16::try_from(i)?.to_be_bytes();
        let network = json!({
            "metadata": { "name": name, "ownerReferences": [
                { "apiVersion": "v1", "kind": "Node", "name": name, "uid": uid }] },
            "spec": { "addresses": [{ "type": "InternalIP", "ip": format!("192.168.{high}.{low}") }] },
        });
        networks.create(&post, &from_value(network)?).await?;
        Ok(())
    });
    futures::stream::iter(made).buffer_unordered(AT_ONCE).try_collect().await
}

/// Waits until each of `count` NodeNetworks has been told as `wanted`.
async fn all(
    told: &mut (impl Stream<Item = watcher::Result<Event<NodeNetwork>>> + Unpin),
    count: usize,
    wanted: impl Fn(&NodeNetwork) -> bool,
) -> Outcome<()> {
    let mut names = HashSet::new();
    while names.len() < count {
        if let Event::InitApply(network) | Event::Apply(network) =
            told.try_next().await?.ok_or("the watch ended")?
            && wanted(&network)
        {
            names.insert(network.name_any());
        }
    }
    Ok(())
}

/// Writes every NodeNetwork once; returns the seconds until the watch has told the last of them.
async fn write_all(
    networks: &Api<NodeNetwork>,
    told: &mut (impl Stream<Item = watcher::Result<Event<NodeNetwork>>> + Unpin),
    count: usize,
    word: &str,
) -> Outcome<f64> {
    let mut objects = networks.list(&ListParams::default()).await?.items;
    for object in &mut objects {
        object.annotations_mut().insert("bench".into(), word.into());
    }
    let start = Instant::now();
    let writes = objects.iter().map(async |object| -> Outcome<()> {
        networks.replace(&object.name_any(), &PostParams::default(), object).await?;
        Ok(())
    });
    let written = futures::stream::iter(writes).buffer_unordered(AT_ONCE).try_collect::<()>();
    let seen = all(told, count, |network| network.annotations().get("bench").is_some_and(|w| w == word));
    tokio::try_join!(written, seen)?;
    Ok(start.elapsed().as_secs_f64())
}

/// The operator; it ends with this.
struct Running(Child);

impl Running {
    fn resident_mib(&self) -> Outcome<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("the operator has ended")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended already is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
