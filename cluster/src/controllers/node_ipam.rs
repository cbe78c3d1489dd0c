//! Node IPAM: cuts a pod network for each node out of the cluster's, in the order in which nodes arrive.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::Cluster;
use super::events::Severity;
use super::informer::Change;
use super::meta::or_gone;
use super::queue::Queue;

/// The pod networks of a cluster: which are taken, and by which node.
#[derive(Debug)]
pub struct Pool {
    networks: Vec<Ipv4Net>,
    taken: HashMap<Ipv4Net, String>,
}

impl Pool {
    /// Cuts `cluster` into networks of prefix length `mask`. `None` if `mask` is shorter than the cluster's prefix or
    /// longer than 32.
    pub fn new(cluster: Ipv4Net, mask: u8) -> Option<Self> {
        Some(Self { networks: cluster.subnets(mask).ok()?.collect(), taken: HashMap::new() })
    }

    /// Notes that `node` has `network`, whether it is one of the pool's or overlaps some of them.
    pub fn occupy(&mut self, network: Ipv4Net, node: &str) {
        let overlaps = |one: &&Ipv4Net| one.contains(&network) || network.contains(*one);
        for one in self.networks.iter().filter(overlaps) {
            self.taken.entry(*one).or_insert_with(|| node.to_owned());
        }
    }

    /// The first free network, now taken by `node`. `None` if the pool is exhausted.
    pub fn allocate(&mut self, node: &str) -> Option<Ipv4Net> {
        let free = self.networks.iter().find(|one| !self.taken.contains_key(one)).copied()?;
        self.taken.insert(free, node.to_owned());
        Some(free)
    }

    /// Frees what `node` has.
    pub fn release(&mut self, node: &str) {
        self.taken.retain(|_, owner| owner != node);
    }

    /// How many networks there are in all.
    pub fn size(&self) -> usize {
        self.networks.len()
    }
}

fn networks_of(node: &Node) -> Vec<Ipv4Net> {
    let spec = node.spec.clone().unwrap_or_default();
    let all: HashSet<String> = spec.pod_cidrs.into_iter().flatten().chain(spec.pod_cidr).collect();
    all.iter().filter_map(|text| text.parse().ok()).collect()
}

/// Watches nodes and gives each its network, for ever.
pub async fn run(cluster: Cluster, cidr: Ipv4Net, mask: u8) {
    let Some(pool) = Pool::new(cidr, mask) else {
        tracing::error!(%cidr, mask, "nodes get no pod networks: give --node-cidr-mask-size between the cluster CIDR's prefix length and 32");
        return;
    };
    let pool = Arc::new(Mutex::new(pool));
    let queue = Queue::default();
    let (on_node, nodes, held) = (queue.clone(), cluster.nodes.clone(), Arc::clone(&pool));
    cluster.nodes.on_change(move |change| match change {
        Change::Set { new, .. } if networks_of(new).is_empty() => on_node.add(new.name_any()),
        Change::Set { new, .. } => {
            let mut pool = held.lock().unwrap_or_else(PoisonError::into_inner);
            for network in networks_of(new) {
                pool.occupy(network, &new.name_any());
            }
        }
        Change::Gone(node) => {
            held.lock().unwrap_or_else(PoisonError::into_inner).release(&node.name_any());
            // A network is free again: nodes that went without may have it.
            for node in nodes.list_if(|node| networks_of(node).is_empty()) {
                on_node.add(node.name_any());
            }
        }
    });
    cluster.synced().await;
    let mut waiting = Vec::new();
    for node in cluster.nodes.list() {
        let networks = networks_of(&node);
        let mut pool = pool.lock().unwrap_or_else(PoisonError::into_inner);
        for network in &networks {
            pool.occupy(*network, &node.name_any());
        }
        if networks.is_empty() {
            waiting.push(node);
        }
    }
    waiting.sort_by_key(|node| (node.metadata.creation_timestamp.clone(), node.name_any()));
    for node in waiting {
        queue.add(node.name_any());
    }
    let (cluster, pool) = (&cluster, &pool);
    queue.work("node-ipam", |name| async move { reconcile(cluster, pool, &name).await }).await;
}

async fn reconcile(cluster: &Cluster, pool: &Mutex<Pool>, name: &str) -> Result<(), kube::Error> {
    let Some(node) = cluster.nodes.get(None, name) else { return Ok(()) };
    if !networks_of(&node).is_empty() {
        return Ok(());
    }
    let (network, size) = {
        let mut pool = pool.lock().unwrap_or_else(PoisonError::into_inner);
        // A try before this one may have failed to write.
        pool.release(name);
        (pool.allocate(name), pool.size())
    };
    let Some(network) = network else {
        let text = format!(
            "Node {name} gets no pod CIDR: all {size} networks of the cluster CIDR are taken; delete a node, or start \
             the cluster with a wider --cluster-cidr"
        );
        tracing::warn!(node = name, "{text}");
        cluster.recorder.about(node.as_ref(), Severity::Warning, "CIDRNotAvailable", text);
        return Ok(());
    };
    let api: Api<Node> = Api::all(cluster.client.clone());
    let patch = json!({"metadata": {"uid": node.metadata.uid},
                       "spec": {"podCIDR": network.to_string(), "podCIDRs": [network.to_string()]}});
    let written = or_gone(api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await)?;
    match written {
        Some(written) => {
            tracing::info!(node = name, %network, "pod network assigned");
            cluster.nodes.observe(written);
        }
        None => pool.lock().unwrap_or_else(PoisonError::into_inner).release(name),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(cidr: &str, mask: u8) -> Pool {
        Pool::new(cidr.parse().unwrap(), mask).unwrap()
    }

    #[test]
    fn networks_come_in_order_and_never_twice() {
        let mut pool = pool("10.244.0.0/22", 24);
        let all: Vec<_> = (0..4).map(|n| pool.allocate(&format!("n{n}")).unwrap().to_string()).collect();
        assert_eq!(all, ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"]);
        assert_eq!(pool.allocate("n4"), None);
    }

    #[test]
    fn a_released_network_is_used_again() {
        let mut pool = pool("10.244.0.0/23", 24);
        pool.allocate("a");
        pool.allocate("b");
        pool.release("a");
        assert_eq!(pool.allocate("c").unwrap().to_string(), "10.244.0.0/24");
    }

    #[test]
    fn what_nodes_have_already_is_not_given_out() {
        let mut pool = pool("10.244.0.0/22", 24);
        pool.occupy("10.244.0.0/24".parse().unwrap(), "old");
        pool.occupy("10.244.2.0/23".parse().unwrap(), "wide");
        pool.occupy("172.20.0.0/24".parse().unwrap(), "foreign");
        assert_eq!(pool.allocate("new").unwrap().to_string(), "10.244.1.0/24");
        assert_eq!(pool.allocate("more"), None);
    }

    #[test]
    fn a_mask_outside_the_cluster_cidr_is_refused() {
        assert!(Pool::new("10.244.0.0/16".parse().unwrap(), 8).is_none());
        assert!(Pool::new("10.244.0.0/16".parse().unwrap(), 33).is_none());
    }
}
