//! What the operator decides by, taken from Kubernetes' objects. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use podwire_api::nodenetwork::NodeNetwork;
use podwire_api::values::Values;

use super::pool::{in_pool, overlap};
use super::record::Record;
use crate::ipam::{ROUTER, router_address};
use crate::kubernetes::model::{internal_ip, pod_address, pod_cidrs};

/// A NodeNetwork.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Name: its node's.
    pub name: String,
    /// UID.
    pub uid: String,
    /// When it was made.
    pub arrival: Option<Timestamp>,
    /// `spec.ipam.podCIDRs`.
    pub cidrs: Vec<Ipv4Net>,
    /// `status.ipam.used`.
    pub used: BTreeMap<Ipv4Addr, String>,
    /// `status.ipam.operator-status.error`.
    pub error: Option<String>,
}

impl Network {
    /// What counts of the object.
    pub fn of(object: &NodeNetwork) -> Self {
        let status = object.status.as_ref().map(|s| &s.ipam);
        let used =
            status.map(|s| s.used.iter().filter_map(|(ip, who)| Some((ip.parse().ok()?, who.clone()))));
        Self {
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
            arrival: object.creation_timestamp().map(|t| t.0),
            cidrs: object.spec.ipam.pod_cidrs.clone(),
            used: used.map(Iterator::collect).unwrap_or_default(),
            error: status.and_then(|s| s.operator_status.as_ref()).map(|s| s.error.clone()),
        }
    }

    /// Whether a pod has an address of `cidr`, by what the agent reported.
    pub fn uses(&self, cidr: Ipv4Net) -> bool {
        self.used.range(cidr.network()..=cidr.broadcast()).any(|(_, owner)| owner != ROUTER)
    }
}

/// A Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Its InternalIP.
    pub internal_ip: Option<Ipv4Addr>,
    /// `spec.podCIDRs`: what its agent uses in mode kubernetes.
    pub cidrs: Vec<Ipv4Net>,
}

/// An address that a running pod has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodIp {
    /// The pod's node.
    pub node: String,
    /// The address.
    pub ip: Ipv4Addr,
}

/// Everything the operator decides by.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The values.
    pub values: Values,
    /// Addresses of Services.
    pub services: Option<Ipv4Net>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Machine>,
    /// NodeNetworks.
    pub networks: Vec<Network>,
    /// Running pods.
    pub pods: Vec<PodIp>,
    /// What is on record.
    pub record: Record,
}

impl View {
    /// Takes what counts out of the objects.
    pub fn of(
        values: &Values,
        services: Option<Ipv4Net>,
        nodes: &[Arc<Node>],
        networks: &[Arc<NodeNetwork>],
        pods: &[Arc<Pod>],
        record: Record,
    ) -> Self {
        let machine =
            |n: &Arc<Node>| (n.name_any(), Machine { internal_ip: internal_ip(n), cidrs: pod_cidrs(n) });
        Self {
            values: values.clone(),
            services,
            nodes: nodes.iter().map(machine).collect(),
            networks: networks.iter().map(|n| Network::of(n)).collect(),
            pods: pods.iter().filter_map(|p| pod_ip(p)).collect(),
            record,
        }
    }

    /// The CIDR out of which the node's agent gives addresses.
    fn front(&self, network: &Network) -> Option<Ipv4Net> {
        let pool = &self.values.ipam.operator;
        network.cidrs.iter().find(|c| in_pool(pool, **c)).or(network.cidrs.first()).copied()
    }

    /// Whether the node's agent has told that it works with the CIDRs that the NodeNetwork has now: what it used before is
    /// then only what `used` names.
    pub fn is_acknowledged(&self, network: &Network) -> bool {
        let router = self.front(network).map(router_address);
        router.is_some_and(|ip| network.used.get(&ip).is_some_and(|owner| owner == ROUTER))
    }

    /// Whether some pod of the node has an address of `cidr`: by what its agent says or by what the pods say.
    pub fn is_used(&self, network: &Network, cidr: Ipv4Net) -> bool {
        network.uses(cidr) || self.pods.iter().any(|p| p.node == network.name && cidr.contains(&p.ip))
    }

    /// Whether a CIDR on record is certainly no longer its node's. `network` and `exists` (the Node does) must be newer than the
    /// record.
    pub fn may_release(&self, cidr: Ipv4Net, network: Option<&Network>, exists: bool) -> bool {
        match network {
            None => !exists && !self.pods.iter().any(|p| cidr.contains(&p.ip)),
            Some(network) => {
                self.is_acknowledged(network)
                    && !network.cidrs.iter().any(|c| overlap(*c, cidr))
                    && !self.is_used(network, cidr)
            }
        }
    }
}

/// The address of a running pod.
fn pod_ip(pod: &Pod) -> Option<PodIp> {
    let node = pod.spec.as_ref()?.node_name.clone()?;
    Some(PodIp { node, ip: pod_address(pod)?.ip })
}
