//! What a check of a capture must know of a lab's network.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use podwire_api::nodenetwork::NodeNetwork;
use podwire_api::values::IpamMode;
use podwire_conformance::check::Context;

use crate::error::{Failure, OrFailure};
use crate::state::{LabState, Running};

/// What is known of a running lab's network. What only its API server knows is left out if that does not answer.
pub(crate) async fn context_of(state: &LabState, running: &Running) -> Context {
    let lab = &running.lab;
    let mut context = Context {
        title: Some(lab.name.clone()),
        pod_cidrs: vec![lab.kubernetes.pod_cidr],
        service_cidrs: vec![lab.kubernetes.service_cidr],
        ..Context::default()
    };
    if let Ok(values) = lab.typed_values()
        && values.ipam.mode == IpamMode::ClusterPool
    {
        context.pod_cidrs.extend(values.ipam.operator.pod_cidr_list);
    }
    for node in &lab.nodes {
        let addresses = node.interfaces.iter().map(|i| i.address.addr());
        let own = node.networks.iter().map(|n| n.address.addr());
        context.nodes.insert(node.name.clone(), addresses.chain(own).collect());
    }
    // Best effort: a capture can be checked after its cluster is gone.
    if let Ok(live) = live(state, running).await {
        add_live(&mut context, &live);
        context.identities = identities(state, running, &live);
    }
    context
}

/// Identities of pods, as the first agent that answers has them; none if none answers.
fn identities(state: &LabState, running: &Running, live: &Live) -> BTreeMap<Ipv4Addr, u32> {
    let list = ["podwire", "-o", "json", "bpf", "ipcache", "list"];
    let mut told = live.nodes.iter().filter_map(|node| {
        let out = super::output_on(state, running, &node.name_any(), &list).ok()?;
        serde_json::from_slice::<Vec<Owner>>(&out.stdout).ok().filter(|_| out.status.success())
    });
    let owners = told.next().unwrap_or_default();
    let pods = owners.into_iter().filter(|o| o.prefix.prefix_len() == 32 && o.identity >= FIRST_OF_PODS);
    pods.map(|owner| (owner.prefix.addr(), owner.identity)).collect()
}

/// Smaller identities are reserved: the node, the world, pods that nobody knows yet.
const FIRST_OF_PODS: u32 = 256;

/// What is read of a row of the agent's ipcache.
#[derive(serde::Deserialize)]
struct Owner {
    prefix: Ipv4Net,
    identity: u32,
}

/// What the API server knows.
struct Live {
    nodes: Vec<Node>,
    networks: Vec<NodeNetwork>,
    pods: Vec<Pod>,
}

async fn live(state: &LabState, running: &Running) -> Result<Live, Failure> {
    let client = super::client(state, running, Duration::from_secs(2)).await?;
    let params = ListParams::default();
    let (nodes, pods) = (Api::<Node>::all(client.clone()), Api::<Pod>::all(client.clone()));
    let networks = Api::<NodeNetwork>::all(client);
    let (nodes, networks, pods) =
        futures::try_join!(nodes.list(&params), networks.list(&params), pods.list(&params))
            .or_failure("API server", "see its log on the node")?;
    Ok(Live { nodes: nodes.items, networks: networks.items, pods: pods.items })
}

/// The CIDRs out of which a node gives addresses: its `NodeNetwork`'s, else those of the controller manager.
fn add_live(context: &mut Context, live: &Live) {
    for node in &live.nodes {
        let name = node.name_any();
        let network = live.networks.iter().find(|n| n.name_any() == name).map(|n| &n.spec.ipam.pod_cidrs);
        let cidrs: Vec<Ipv4Net> = match network {
            Some(cidrs) if !cidrs.is_empty() => cidrs.clone(),
            _ => node
                .spec
                .iter()
                .flat_map(|s| s.pod_cidrs.iter().flatten())
                .filter_map(|c| c.parse().ok())
                .collect(),
        };
        // The router address, the first of a node's pod CIDR, is the node's and no pod's.
        let router = cidrs.iter().filter_map(|c| c.hosts().next());
        context.nodes.entry(name.clone()).or_default().extend(router);
        context.node_pod_cidrs.insert(name, cidrs);
    }
    let pods = &live.pods;
    for pod in pods.iter().filter(|p| p.spec.as_ref().is_none_or(|s| s.host_network != Some(true))) {
        let ip = pod.status.as_ref().and_then(|s| s.pod_ip.as_ref()).and_then(|ip| ip.parse().ok());
        if let Some(ip) = ip {
            let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
            context.pod_names.insert(ip, name);
        }
    }
}
