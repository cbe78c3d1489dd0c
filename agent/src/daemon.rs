//! The agent as a process: what is started in which order, and how it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use futures::FutureExt;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::reflector::Store;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use podwire_abi::NodeConfig;
use podwire_api::names::{
    API_SOCKET, BPF_DIR, CNI_BIN_DIR, CNI_CONF_DIR, CNI_SOCKET, CONFIG_MAP, IP_MASQ_AGENT_CONFIG_MAP,
    STATE_DIR,
};
use podwire_api::nodenetwork::NodeNetwork;
use podwire_api::values::{IpamMode, RoutingMode, Values};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::cni_server::CniServer;
use crate::controllers::{
    config, ip_masq_agent, ipcache, masquerade, no_conntrack, node_network, routes, services, settle,
};
use crate::core::{Core, NodeSettings, RestoreError};
use crate::datapath::{Datapath, DatapathError};
use crate::flows::Flows;
use crate::health::Health;
use crate::host::{self, HostError, Underlay};
use crate::install::{InstallError, install_plugin, write_conflist};
use crate::ipam::{IpamError, Pool};
use crate::kubernetes::client::{ClientError, connect};
use crate::kubernetes::model::{node_addresses, owner, peer, pod_address, pod_identity};
use crate::kubernetes::node_network::Desired;
use crate::kubernetes::startup::{OwnNode, StartupError, only, own_cidrs, own_node, values};
use crate::kubernetes::watch::watch;
use crate::local_api;
use crate::netlink::{Netlink, NetlinkError};
use crate::overlay::{self, OverlayError};
use crate::routes::reconcile::Outcome;
use crate::services::plan::Plan as Services;
use crate::store::{Store as StateStore, StoreError};
use crate::wiring::Wiring;

const _: () = assert!(podwire_abi::MAX_NATIVE_CIDRS == podwire_api::values::MAX_NATIVE_CIDRS);

/// How the agent is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the own Node.
    pub node_name: String,
    /// Namespace of the ConfigMap.
    pub config_map_namespace: String,
}

/// The agent cannot run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each says itself what it is")]
pub enum DaemonError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Startup(#[from] StartupError),
    #[error("pod CIDRs of this node: {0}")]
    Ipam(#[from] IpamError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Restore(#[from] RestoreError),
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    #[error(transparent)]
    Masquerade(#[from] masquerade::ApplyError),
    #[error(transparent)]
    Install(#[from] InstallError),
    #[error("socket {path}: {source}; is /run/podwire a writable directory?")]
    Socket { path: &'static str, source: io::Error },
    #[error("signals cannot be handled: {0}")]
    Signal(io::Error),
}

/// What the local API shows.
pub struct Agent {
    /// Name of the own Node.
    pub node_name: String,
    /// How each part is.
    pub health: Arc<Health>,
    api_server: OnceLock<String>,
    running: OnceLock<Running>,
    ready: AtomicBool,
}

/// What there is once the agent has taken over the node.
pub struct Running {
    /// The core.
    pub core: Arc<Core>,
    /// The datapath.
    pub datapath: Datapath,
    /// The values.
    pub values: Values,
    /// The ConfigMap, as it was read.
    pub config: BTreeMap<String, String>,
    /// The node's InternalIP.
    pub node_ip: Ipv4Addr,
    /// The underlay device.
    pub device: String,
    /// MTU of pods.
    pub mtu: u32,
    /// The last look at the routes.
    pub routes: Arc<ArcSwap<Outcome>>,
    /// Names of addresses.
    pub names: Arc<ArcSwap<ipcache::Names>>,
    /// Services, as the API server tells.
    pub services: Arc<ArcSwap<Services>>,
    /// Flows.
    pub flows: Arc<Flows>,
}

impl Agent {
    fn new(node_name: &str) -> Self {
        Self {
            node_name: node_name.into(),
            health: Arc::default(),
            api_server: OnceLock::new(),
            running: OnceLock::new(),
            ready: AtomicBool::new(false),
        }
    }

    /// What there is, once there is something.
    pub fn running(&self) -> Option<&Running> {
        self.running.get()
    }

    /// Whether pods can be wired.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::SeqCst)
    }

    /// Address of the API server.
    pub fn api_server(&self) -> String {
        self.api_server.get().cloned().unwrap_or_default()
    }
}

/// Runs the agent until it is told to end, or until its pod CIDRs change: who supervises it then starts it anew, and
/// since everything is pinned or on record, no packet is lost over that.
pub async fn run(options: Options) -> Result<(), DaemonError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Signal)?;
    tokio::select! {
        ended = serve(&options) => ended,
        _ = terminate.recv() => { tracing::info!("SIGTERM: ending; pods stay connected"); Ok(()) }
        _ = interrupt.recv() => { tracing::info!("SIGINT: ending; pods stay connected"); Ok(()) }
    }
}

async fn serve(options: &Options) -> Result<(), DaemonError> {
    let agent = Arc::new(Agent::new(&options.node_name));
    let api_socket = std::path::Path::new(API_SOCKET);
    local_api::server::serve(agent.clone(), api_socket)
        .map_err(|source| DaemonError::Socket { path: API_SOCKET, source })?;
    let (client, server) = connect(concat!("podwire-agent/", env!("CARGO_PKG_VERSION"))).await?;
    tracing::info!("node {}, API server {server}", options.node_name);
    // Set once, here.
    let _ = agent.api_server.set(server);
    let health = agent.health.clone();
    let (config_map, values) = values(&client, &options.config_map_namespace, &health).await?;
    let node = own_node(&client, &options.node_name, values.ipam.mode, &health).await?;
    let cidrs = pod_cidrs(&client, &node, &values, &health).await?;
    tracing::info!("{} {}: pod CIDRs {cidrs:?}, {values:?}", node.name, node.internal_ip);

    let prepared = prepare(&node, &values, &cidrs, &health)?;
    let core = prepared.core.clone();
    let desired = Desired {
        node: node.clone(),
        router: Some(core.pool().router()),
        pod_cidrs: (values.ipam.mode == IpamMode::Kubernetes).then(|| cidrs.clone()),
    };
    let stores = Stores::open(&client, &core, &health);
    let names: Arc<ArcSwap<ipcache::Names>> = Arc::default();
    let outcome: Arc<ArcSwap<Outcome>> = Arc::default();
    let flows = Arc::new(Flows::new(prepared.datapath.clone(), names.clone(), node.name.clone())?);
    tokio::spawn(flows.clone().run(health.clone()));
    tokio::spawn(routes_controller(&prepared, &node, &values, &stores, &outcome, &health).run());
    tokio::spawn(ipcache_controller(&core, &node, &stores, &names, &health).run());
    tokio::spawn(settle::run(core.clone(), health.clone()));
    tokio::spawn(no_conntrack::run(values.clone(), health.clone()));
    let maps = Api::<ConfigMap>::namespaced(client.clone(), &options.config_map_namespace);
    let maps = watch(maps, only(CONFIG_MAP), "watch-config", health.clone(), core.signal().clone());
    tokio::spawn(config::run(core.clone(), values.clone(), maps, health.clone()));
    masquerade_controllers(&client, options, &prepared, &node, &values, &health);
    let (services, first_services) = services_controller(&client, &prepared, &node, &values, &health);
    let node_network = node_network::Controller {
        client,
        core: core.clone(),
        desired,
        values: values.clone(),
        namespace: options.config_map_namespace.clone(),
        store: stores.nodes.clone(),
        health: health.clone(),
    };
    let running = Running {
        core: core.clone(),
        datapath: prepared.datapath,
        values,
        config: config_map.data.unwrap_or_default(),
        node_ip: node.internal_ip,
        device: prepared.underlay.link.name,
        mtu: prepared.mtu,
        routes: outcome,
        names,
        services,
        flows,
    };
    // Set once, here.
    let _ = agent.running.set(running);

    let _cni = CniServer::start(core, &PathBuf::from(CNI_SOCKET))
        .map_err(|source| DaemonError::Socket { path: CNI_SOCKET, source })?;
    install_plugin(CNI_BIN_DIR.as_ref())?;
    // A pod may call a service with its first packet. The controller ends by a bug only, which the runtime logs.
    let _ = first_services.await;
    // Last: from now on the runtime asks for pods.
    let conflist = write_conflist(CNI_CONF_DIR.as_ref())?;
    agent.ready.store(true, Ordering::SeqCst);
    health.ok("cni", format!("serving {CNI_SOCKET}, configured by {}", conflist.display()));
    tracing::info!("ready");
    let new_cidrs = node_network.run().await;
    tracing::warn!(
        "the node's pod CIDRs changed from {cidrs:?} to {new_cidrs:?}: ending, to start anew with them"
    );
    Ok(())
}

/// The node's pod CIDRs, waited for where they are not there yet.
async fn pod_cidrs(
    client: &Client,
    node: &OwnNode,
    values: &Values,
    health: &Health,
) -> Result<Vec<ipnet::Ipv4Net>, DaemonError> {
    if values.ipam.mode == IpamMode::Kubernetes {
        return Ok(node.pod_cidrs.clone());
    }
    // The operator gives CIDRs to NodeNetworks, so there must be one. What stands in it is put right later.
    let desired = Desired { node: node.clone(), router: None, pod_cidrs: None };
    while let Err(cause) = desired.create(client).await {
        health.fail(
            "node-network",
            format!("NodeNetwork {}: {cause}; does the CRD exist? (trying again)", node.name),
        );
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    Ok(own_cidrs(client, &node.name, health).await?)
}

/// What [`prepare`] made.
struct Prepared {
    core: Arc<Core>,
    datapath: Datapath,
    underlay: Underlay,
    mtu: u32,
}

/// Takes over the node: sysctls, devices, datapath, endpoints.
fn prepare(
    node: &OwnNode,
    values: &Values,
    cidrs: &[ipnet::Ipv4Net],
    health: &Health,
) -> Result<Prepared, DaemonError> {
    // First, as it is what a kernel may refuse: then nothing has been made.
    let datapath = Datapath::open(BPF_DIR.as_ref())?;
    host::apply_sysctls()?;
    let mut netlink = Netlink::open()?;
    let underlay = host::find_underlay(&mut netlink, node.internal_ip, &values.devices)?;
    let tunnel = values.routing_mode == RoutingMode::Tunnel;
    let overhead = if tunnel { overlay::OVERHEAD } else { 0 };
    let mtu = if values.mtu == 0 { underlay.link.mtu.saturating_sub(overhead) } else { values.mtu };
    let pools: &[ipnet::Ipv4Net] = match values.ipam.mode {
        IpamMode::Kubernetes => &[],
        IpamMode::ClusterPool => &values.ipam.operator.pod_cidr_list,
    };
    let pool = Pool::within(cidrs, pools)?;
    let (host_link, _) = host::ensure_host_device(&mut netlink, &pool.routers(), mtu)?;
    // Without CIDRs of before: the programs would drop what goes to their router addresses.
    let pod_cidrs = pool.given().iter().map(|c| (c.network(), c.prefix_len()));
    let mut config = NodeConfig::new(node.internal_ip, pool.router(), pod_cidrs);
    if masquerade::is_wanted(values) {
        let native = values.ipv4_native_routing_cidr.iter();
        config = config.masquerading(native.map(|cidr| (cidr.network(), cidr.prefix_len())));
    }
    let overlay = if tunnel {
        let device = overlay::ensure(&mut netlink, values.tunnel_port(), mtu)?;
        // At once: an agent that starts must not stop the tunnel that the one before has left.
        config = config.tunnelling(device.index, mtu);
        Some(device.index)
    } else {
        None
    };
    datapath.set_config(config)?;
    // Endpoints first: what comes from the wire then finds them.
    let store = StateStore::open(STATE_DIR.as_ref())?;
    let wiring = Wiring { endpoint_routes: values.endpoint_routes.enabled, ipv6: host::has_ipv6() };
    let settings = NodeSettings { wiring, mtu };
    let (core, restored) = Core::restore(settings, pool, store, Arc::new(datapath.clone()))?;
    tracing::info!("{} endpoints kept, {} orphans collected", restored.kept, restored.orphans);
    health.report("endpoints", restored.problems, format!("{} restored", restored.kept));
    if routes::needs_host_program(values) {
        datapath.attach_host_device(host_link.index)?;
    }
    if let Some(index) = overlay {
        datapath.attach_overlay_device(index, mtu)?;
    } else {
        datapath.detach_overlay_devices()?;
        overlay::remove(&mut netlink)?;
    }
    datapath.attach_network_device(underlay.link.index)?;
    masquerade::apply(&datapath, values, node.internal_ip)?;
    Ok(Prepared { core: Arc::new(core), datapath, underlay, mtu })
}

/// Starts what keeps masquerade as it should be.
fn masquerade_controllers(
    client: &Client,
    options: &Options,
    prepared: &Prepared,
    node: &OwnNode,
    values: &Values,
    health: &Arc<Health>,
) {
    let controller = masquerade::Controller {
        datapath: prepared.datapath.clone(),
        values: values.clone(),
        node_ip: node.internal_ip,
        health: health.clone(),
    };
    tokio::spawn(controller.run());
    if !values.ip_masq_agent.enabled {
        if let Err(cause) = prepared.datapath.set_non_masquerade(&BTreeSet::new()) {
            health.fail("ip-masq-agent", cause.to_string());
        }
        return;
    }
    let (core, datapath) = (prepared.core.clone(), prepared.datapath.clone());
    let maps = Api::<ConfigMap>::namespaced(client.clone(), &options.config_map_namespace);
    let one = only(IP_MASQ_AGENT_CONFIG_MAP);
    let store = watch(maps, one, "watch-ip-masq", health.clone(), core.signal().clone());
    tokio::spawn(ip_masq_agent::run(core, datapath, store, health.clone()));
}

/// Starts what keeps services. Returns where it shows them, and what hears when the datapath has them for the first time.
fn services_controller(
    client: &Client,
    prepared: &Prepared,
    node: &OwnNode,
    values: &Values,
    health: &Arc<Health>,
) -> (Arc<ArcSwap<Services>>, oneshot::Receiver<()>) {
    let (first, first_services) = oneshot::channel();
    let shown: Arc<ArcSwap<Services>> = Arc::default();
    let all = watcher::Config::default;
    let signal = || prepared.core.signal().clone();
    let services = Api::<Service>::all(client.clone());
    let slices = Api::<EndpointSlice>::all(client.clone());
    let controller = services::Controller {
        core: prepared.core.clone(),
        datapath: prepared.datapath.clone(),
        node: node.name.clone(),
        values: values.clone(),
        services: watch(services, all(), "watch-svc", health.clone(), signal()),
        slices: watch(slices, all(), "watch-slices", health.clone(), signal()),
        shown: shown.clone(),
        health: health.clone(),
    };
    tokio::spawn(controller.run(first));
    (shown, first_services)
}

/// What is watched for as long as the agent runs.
#[derive(Clone)]
struct Stores {
    nodes: Store<NodeNetwork>,
    pods: Store<Pod>,
}

impl Stores {
    fn open(client: &Client, core: &Core, health: &Arc<Health>) -> Self {
        let all = watcher::Config::default;
        let signal = || core.signal().clone();
        Self {
            nodes: watch(Api::all(client.clone()), all(), "watch-nodes", health.clone(), signal()),
            pods: watch(Api::<Pod>::all(client.clone()), all(), "watch-pods", health.clone(), signal()),
        }
    }
}

/// Whether a watch has seen every object once. Until then an empty store means nothing: an agent that starts must not take away
/// what the one before made of them.
fn is_told<K>(store: &Store<K>) -> bool
where
    K: Resource + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    store.wait_until_ready().now_or_never().is_some_and(|told| told.is_ok())
}

fn routes_controller(
    prepared: &Prepared,
    node: &OwnNode,
    values: &Values,
    stores: &Stores,
    outcome: &Arc<ArcSwap<Outcome>>,
    health: &Arc<Health>,
) -> routes::Controller {
    let (nodes, own) = (stores.nodes.clone(), node.name.clone());
    let (for_underlay, for_host) = (prepared.datapath.clone(), prepared.datapath.clone());
    let (for_overlay, mtu) = (prepared.datapath.clone(), prepared.mtu);
    let through_host = routes::needs_host_program(values);
    let set_host = move |index| {
        if through_host { for_host.attach_host_device(index) } else { for_host.detach_host_device(index) }
    };
    routes::Controller {
        core: prepared.core.clone(),
        values: values.clone(),
        node_ip: node.internal_ip,
        peers: Box::new(move || {
            let told = is_told(&nodes);
            told.then(|| nodes.state().iter().map(|n| peer(n)).filter(|p| p.name != own).collect())
        }),
        devices: routes::Devices {
            attach_underlay: Box::new(move |index| Ok(for_underlay.attach_network_device(index)?)),
            set_host: Box::new(move |index| Ok(set_host(index)?)),
            set_overlay: Box::new(move |index| Ok(for_overlay.attach_overlay_device(index, mtu)?)),
        },
        mtu: prepared.mtu,
        outcome: outcome.clone(),
        health: health.clone(),
    }
}

fn ipcache_controller(
    core: &Arc<Core>,
    node: &OwnNode,
    stores: &Stores,
    names: &Arc<ArcSwap<ipcache::Names>>,
    health: &Arc<Health>,
) -> ipcache::Controller {
    let (nodes, pods, same_pods) = (stores.nodes.clone(), stores.pods.clone(), stores.pods.clone());
    let all = stores.clone();
    let (own, own_again) = (node.name.clone(), node.name.clone());
    ipcache::Controller {
        core: core.clone(),
        complete: Box::new(move || is_told(&all.nodes) && is_told(&all.pods)),
        nodes: Box::new(move || nodes.state().iter().map(|n| node_addresses(n, &own)).collect()),
        pods: Box::new(move || pods.state().iter().filter_map(|p| pod_address(p)).collect()),
        identities: Box::new(move || {
            let here = |p: &&Arc<Pod>| p.spec.as_ref().and_then(|s| s.node_name.as_ref()) == Some(&own_again);
            same_pods.state().iter().filter(here).map(|p| (owner(p), pod_identity(p))).collect()
        }),
        names: names.clone(),
        health: health.clone(),
    }
}
