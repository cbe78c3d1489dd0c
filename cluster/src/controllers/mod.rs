//! The controllers of the embedded Kubernetes. Each is a client of the API server like any other: informers tell what
//! is, a pure function decides what to do, and the controller writes it.

pub mod daemonset;
pub mod deployment;
pub mod endpointslice;
pub mod events;
pub mod informer;
pub mod meta;
pub mod namespaces;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod pod_gc;
pub mod pods;
pub mod queue;
pub mod replicaset;
pub mod rollout;

use ipnet::Ipv4Net;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::task::JoinSet;

use events::Recorder;
use informer::Informer;

/// What the controllers (and the scheduler) know of the cluster, and how they write to it. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    /// The API server.
    pub client: Client,
    /// Events in the controllers' name.
    pub recorder: Recorder,
    /// Every pod.
    pub pods: Informer<Pod>,
    /// Every node.
    pub nodes: Informer<Node>,
    /// Every ReplicaSet.
    pub replica_sets: Informer<ReplicaSet>,
    /// Every Deployment.
    pub deployments: Informer<Deployment>,
    /// Every DaemonSet.
    pub daemon_sets: Informer<DaemonSet>,
    /// Every Service.
    pub services: Informer<Service>,
    /// Every EndpointSlice.
    pub endpoint_slices: Informer<EndpointSlice>,
    /// Every Namespace.
    pub namespaces: Informer<Namespace>,
    /// The leases by which nodes say that they live.
    pub leases: Informer<Lease>,
}

impl Cluster {
    /// Informers that have not started yet: controllers register their listeners first.
    pub fn new(client: Client) -> Self {
        Self {
            recorder: Recorder::start(client.clone(), "controller-manager", None),
            client,
            pods: Informer::default(),
            nodes: Informer::default(),
            replica_sets: Informer::default(),
            deployments: Informer::default(),
            daemon_sets: Informer::default(),
            services: Informer::default(),
            endpoint_slices: Informer::default(),
            namespaces: Informer::default(),
            leases: Informer::default(),
        }
    }

    fn start(&self) {
        let (client, config) = (&self.client, watcher::Config::default());
        self.pods.start(Api::all(client.clone()), config.clone());
        self.nodes.start(Api::all(client.clone()), config.clone());
        self.replica_sets.start(Api::all(client.clone()), config.clone());
        self.deployments.start(Api::all(client.clone()), config.clone());
        self.daemon_sets.start(Api::all(client.clone()), config.clone());
        self.services.start(Api::all(client.clone()), config.clone());
        self.endpoint_slices.start(Api::all(client.clone()), config.clone());
        self.namespaces.start(Api::all(client.clone()), config.clone());
        self.leases.start(Api::namespaced(client.clone(), node_lifecycle::LEASE_NAMESPACE), config);
    }

    /// Waits until everything has been listed once.
    pub async fn synced(&self) {
        tokio::join!(
            self.pods.synced(),
            self.nodes.synced(),
            self.replica_sets.synced(),
            self.deployments.synced(),
            self.daemon_sets.synced(),
            self.services.synced(),
            self.endpoint_slices.synced(),
            self.namespaces.synced(),
            self.leases.synced(),
        );
    }
}

/// How the controllers behave.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the nodes' pod networks are cut from.
    pub cluster_cidr: Ipv4Net,
    /// Prefix length of one node's pod network.
    pub node_cidr_mask_size: u8,
    /// Whether nodes get pod networks at all.
    pub allocate_node_cidrs: bool,
    /// The cluster's CA certificate (PEM), published in every namespace.
    pub root_ca: String,
}

/// Runs every controller and the scheduler until the future is dropped, or one of them panics.
pub async fn run(client: Client, options: Options) {
    let cluster = Cluster::new(client);
    let mut tasks = JoinSet::new();
    tasks.spawn(namespaces::run(cluster.clone(), options.root_ca.clone()));
    if options.allocate_node_cidrs {
        tasks.spawn(node_ipam::run(cluster.clone(), options.cluster_cidr, options.node_cidr_mask_size));
    }
    tasks.spawn(deployment::run(cluster.clone()));
    tasks.spawn(replicaset::run(cluster.clone()));
    tasks.spawn(daemonset::run(cluster.clone()));
    tasks.spawn(endpointslice::run(cluster.clone()));
    tasks.spawn(node_lifecycle::run(cluster.clone()));
    tasks.spawn(pod_gc::run(cluster.clone()));
    tasks.spawn(crate::scheduler::run(cluster.clone()));
    // Let every task register its listeners before the first object arrives; each lists what it missed after the sync.
    tokio::task::yield_now().await;
    cluster.start();
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            tracing::error!(%error, "a controller panicked");
            return;
        }
    }
}
