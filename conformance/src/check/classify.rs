//! Which party an address belongs to.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use super::Context;

/// The party of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Party {
    Pod,
    Node,
    Service,
    Other,
}

/// Answers [`Party`] questions quickly.
#[derive(Debug)]
pub(super) struct Classifier {
    pods: Vec<(u32, u32)>,
    services: Vec<(u32, u32)>,
    nodes: HashSet<u32>,
}

impl Classifier {
    pub(super) fn new(context: &Context) -> Self {
        let masked = |nets: &[ipnet::Ipv4Net]| {
            nets.iter().map(|net| (net.network().to_bits(), net.netmask().to_bits())).collect()
        };
        Self {
            pods: masked(&context.all_pod_cidrs()),
            services: masked(&context.service_cidrs),
            nodes: context.nodes.values().flatten().map(|address| address.to_bits()).collect(),
        }
    }

    pub(super) fn knows_pods(&self) -> bool {
        !self.pods.is_empty()
    }

    pub(super) fn knows_nodes(&self) -> bool {
        !self.nodes.is_empty()
    }

    /// A node's address wins over the pod network it may lie in.
    pub(super) fn party(&self, address: Ipv4Addr) -> Party {
        let bits = address.to_bits();
        let within = |nets: &[(u32, u32)]| nets.iter().any(|(net, mask)| bits & mask == *net);
        if self.nodes.contains(&bits) {
            Party::Node
        } else if within(&self.pods) {
            Party::Pod
        } else if within(&self.services) {
            Party::Service
        } else {
            Party::Other
        }
    }
}
