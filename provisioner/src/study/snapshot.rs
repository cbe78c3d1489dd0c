//! The state of the learner's lab at one moment, as far as checks and facts ask for it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Service};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use podwire_api::names;
use podwire_api::nodenetwork::NodeNetwork;
use serde::Deserialize;

use crate::access;
use crate::error::{Failure, OrFailure};
use crate::state::{LabState, Running};

/// Written into a workload's pod template by `kubectl rollout restart`.
const RESTARTED_AT: &str = "kubectl.kubernetes.io/restartedAt";

/// What is asked for beyond the Kubernetes objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The configuration with which each agent runs.
    pub agents: bool,
    /// Each node's routes.
    pub routes: bool,
    /// The control plane's command line.
    pub processes: bool,
}

impl std::ops::BitOr for Needs {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self {
            agents: self.agents || other.agents,
            routes: self.routes || other.routes,
            processes: self.processes || other.processes,
        }
    }
}

/// The state.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// `podwire-config`.
    pub config: BTreeMap<String, String>,
    /// Kubernetes nodes by name.
    pub nodes: BTreeMap<String, NodeSeen>,
    /// NodeNetworks by node.
    pub networks: BTreeMap<String, NetworkSeen>,
    /// All pods.
    pub pods: Vec<PodSeen>,
    /// Services with a ClusterIP, by name; those of other namespaces than default by `namespace/name`.
    pub services: BTreeMap<String, ServiceSeen>,
    /// `deploy/NAME` and `ds/NAME` of kube-system.
    pub workloads: BTreeMap<String, WorkloadSeen>,
    /// What each node's agent runs with; empty unless asked for.
    pub agents: BTreeMap<String, BTreeMap<String, String>>,
    /// Each machine's routes, the routers' too; empty unless asked for.
    pub routes: BTreeMap<String, Vec<RouteSeen>>,
    /// The CIDR that the controller manager was started with; none unless asked for.
    pub cluster_cidr: Option<String>,
}

/// A Kubernetes node.
#[derive(Clone, Debug, Default)]
pub struct NodeSeen {
    /// Its InternalIP.
    pub ip: Option<Ipv4Addr>,
    /// `spec.podCIDR`.
    pub pod_cidr: Option<Ipv4Net>,
}

/// A NodeNetwork.
#[derive(Clone, Debug, Default)]
pub struct NetworkSeen {
    /// Its pod CIDRs.
    pub cidrs: Vec<Ipv4Net>,
    /// The node's address in the pod network.
    pub router: Option<Ipv4Addr>,
    /// What the operator could not do; empty if all is well.
    pub complaint: String,
}

/// A pod.
#[derive(Clone, Debug, Default)]
pub struct PodSeen {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its node.
    pub node: String,
    /// Its address, unless it is its node's.
    pub ip: Option<Ipv4Addr>,
    /// Why it is not Ready.
    pub trouble: Option<String>,
    /// It is being deleted.
    pub ending: bool,
}

/// A workload of kube-system.
#[derive(Clone, Copy, Debug, Default)]
pub struct WorkloadSeen {
    /// `kubectl rollout restart` was typed.
    pub restarted: bool,
    /// Every pod is of the newest template and available.
    pub rolled_out: bool,
}

/// A route, as `ip -j route` has it.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RouteSeen {
    /// `default`, an address, or a CIDR.
    pub dst: String,
    /// Next hop.
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
    /// Device.
    #[serde(default)]
    pub dev: String,
}

impl RouteSeen {
    /// The destination; none for the default route.
    pub fn to(&self) -> Option<Ipv4Net> {
        self.dst.parse().ok().or_else(|| Ipv4Net::new(self.dst.parse().ok()?, 32).ok())
    }
}

/// What is seen of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceSeen {
    /// Its ClusterIP.
    pub ip: Ipv4Addr,
    /// The port of nodes of its first port that has one.
    pub node_port: Option<i32>,
}

impl Snapshot {
    /// Looks at a lab that runs.
    pub async fn take(
        client: &Client,
        state: &LabState,
        running: &Running,
        needs: Needs,
    ) -> Result<Self, Failure> {
        let thing = "the lab's API server";
        let mend = "see: lab status";
        let every = ListParams::default();
        let system = names::SYSTEM_NAMESPACE;
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), system);
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), system);
        let daemon_sets: Api<DaemonSet> = Api::namespaced(client.clone(), system);
        let (nodes, networks) = (Api::<Node>::all(client.clone()), Api::<NodeNetwork>::all(client.clone()));
        let pods = Api::<Pod>::all(client.clone());
        let services = Api::<Service>::all(client.clone());
        let (config, nodes, networks, pods, services, deployments, daemon_sets) = futures::try_join!(
            maps.get_opt(names::CONFIG_MAP),
            nodes.list(&every),
            networks.list(&every),
            pods.list(&every),
            services.list(&every),
            deployments.list(&every),
            daemon_sets.list(&every),
        )
        .or_failure(thing, mend)?;
        let mut snapshot = Self {
            config: config.and_then(|c| c.data).unwrap_or_default(),
            nodes: nodes.items.iter().map(|n| (n.name_any(), node(n))).collect(),
            networks: networks.items.iter().map(|n| (n.name_any(), network(n))).collect(),
            pods: pods.items.iter().map(pod).collect(),
            services: services.items.iter().filter_map(service).collect(),
            ..Self::default()
        };
        snapshot.workloads.extend(deployments.items.iter().map(deployment));
        snapshot.workloads.extend(daemon_sets.items.iter().map(daemon_set));
        let (state, running) = (state.clone(), running.clone());
        // Programs on the nodes: they block.
        let seen = tokio::task::spawn_blocking(move || {
            snapshot.add_nodes(&state, &running, needs);
            snapshot
        });
        seen.await.or_failure(thing, "report this as a bug")
    }

    /// What only programs on the nodes can say. What a node does not answer is left out, and no check holds by it.
    fn add_nodes(&mut self, state: &LabState, running: &Running, needs: Needs) {
        let said = |node: &str, words: &[&str]| {
            let output = access::output_on(state, running, node, words).ok()?;
            output.status.success().then_some(output.stdout)
        };
        for machine in &running.lab.nodes {
            let node = machine.name.as_str();
            if needs.agents
                && machine.role.is_kubernetes()
                && let Some(text) = said(node, &["podwire", "config", "view", "-o", "json"])
                && let Ok(config) = serde_json::from_slice(&text)
            {
                self.agents.insert(node.to_owned(), config);
            }
            if needs.routes
                && let Some(text) = said(node, &["ip", "-j", "route"])
                && let Ok(routes) = serde_json::from_slice(&text)
            {
                self.routes.insert(node.to_owned(), routes);
            }
        }
        if needs.processes
            && let Some(node) = running.lab.control_plane()
            && let Some(text) = said(&node.name, &["ps", "axww", "-o", "args="])
        {
            self.cluster_cidr = cluster_cidr(&String::from_utf8_lossy(&text));
        }
    }

    /// Pods with a label `key=value` that are not being deleted.
    pub fn labelled(&self, label: &str) -> impl Iterator<Item = &PodSeen> {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        let (key, value) = (key.to_owned(), value.to_owned());
        self.pods.iter().filter(move |p| !p.ending && p.labels.get(&key) == Some(&value))
    }

    /// The device by which a machine would send to an address: that of the longest prefix.
    pub fn way(&self, machine: &str, to: Ipv4Addr) -> Option<&str> {
        let routes = self.routes.get(machine)?.iter();
        let length = |route: &&RouteSeen| match route.to() {
            Some(net) => net.contains(&to).then_some(net.prefix_len() + 1),
            None => Some(0),
        };
        let best = routes.filter(|r| length(r).is_some()).max_by_key(length)?;
        Some(&best.dev)
    }

    /// A pod of namespace default.
    pub fn pod(&self, name: &str) -> Option<&PodSeen> {
        self.pods.iter().find(|p| p.namespace == "default" && p.name == name && !p.ending)
    }
}

/// Of the control plane that gives out node CIDRs.
fn cluster_cidr(processes: &str) -> Option<String> {
    let line = processes.lines().find(|l| l.contains("--allocate-node-cidrs"))?;
    let rest = line.split_once("--cluster-cidr")?.1;
    rest.trim_start_matches(['=', ' ']).split_whitespace().next().map(str::to_owned)
}

fn node(node: &Node) -> NodeSeen {
    let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    let ip = addresses.filter(|a| a.type_ == "InternalIP").find_map(|a| a.address.parse().ok());
    let pod_cidr = node.spec.as_ref().and_then(|s| s.pod_cidr.as_ref()?.parse().ok());
    NodeSeen { ip, pod_cidr }
}

fn network(network: &NodeNetwork) -> NetworkSeen {
    let router = network.spec.addresses.iter().find(|a| a.kind == "PodwireInternalIP").map(|a| a.ip);
    let told = network.status.as_ref().and_then(|s| s.ipam.operator_status.as_ref());
    NetworkSeen {
        cidrs: network.spec.ipam.pod_cidrs.clone(),
        router,
        complaint: told.map_or_else(String::new, |t| t.error.clone()),
    }
}

fn pod(pod: &Pod) -> PodSeen {
    let spec = pod.spec.as_ref();
    let own = spec.is_none_or(|s| s.host_network != Some(true));
    PodSeen {
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        labels: pod.labels().clone(),
        node: spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        ip: pod.status.as_ref().filter(|_| own).and_then(|s| s.pod_ip.as_ref()?.parse().ok()),
        trouble: crate::deploy::pod_trouble(pod),
        ending: pod.metadata.deletion_timestamp.is_some(),
    }
}

fn service(service: &Service) -> Option<(String, ServiceSeen)> {
    let name = match service.namespace().as_deref() {
        None | Some("default") => service.name_any(),
        Some(namespace) => format!("{namespace}/{}", service.name_any()),
    };
    let spec = service.spec.as_ref()?;
    let node_port = spec.ports.iter().flatten().find_map(|port| port.node_port);
    Some((name, ServiceSeen { ip: spec.cluster_ip.as_ref()?.parse().ok()?, node_port }))
}

fn deployment(object: &Deployment) -> (String, WorkloadSeen) {
    let (spec, status) = (object.spec.as_ref(), object.status.as_ref());
    let wanted = spec.and_then(|s| s.replicas).unwrap_or(1);
    let annotations = spec.and_then(|s| s.template.metadata.as_ref()?.annotations.as_ref());
    let current = status.is_some_and(|s| {
        s.observed_generation == object.metadata.generation
            && s.updated_replicas == Some(wanted)
            && s.replicas == Some(wanted)
            && s.available_replicas == Some(wanted)
    });
    let restarted = annotations.is_some_and(|a| a.contains_key(RESTARTED_AT));
    (format!("deploy/{}", object.name_any()), WorkloadSeen { restarted, rolled_out: current })
}

fn daemon_set(object: &DaemonSet) -> (String, WorkloadSeen) {
    let annotations = object.spec.as_ref().and_then(|s| s.template.metadata.as_ref()?.annotations.as_ref());
    let current = object.status.as_ref().is_some_and(|s| {
        s.observed_generation == object.metadata.generation
            && s.updated_number_scheduled == Some(s.desired_number_scheduled)
            && s.number_available == Some(s.desired_number_scheduled)
    });
    let restarted = annotations.is_some_and(|a| a.contains_key(RESTARTED_AT));
    (format!("ds/{}", object.name_any()), WorkloadSeen { restarted, rolled_out: current })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_cidr_is_that_of_the_process_that_allocates() {
        let text =
            "other --cluster-cidr 1.0.0.0/8\nkube --cluster-cidr 10.244.0.0/16 --allocate-node-cidrs\n";
        assert_eq!(cluster_cidr(text).as_deref(), Some("10.244.0.0/16"));
        let text = "kube-controller-manager --allocate-node-cidrs=true --cluster-cidr=10.1.0.0/16 --x";
        assert_eq!(cluster_cidr(text).as_deref(), Some("10.1.0.0/16"));
        assert_eq!(cluster_cidr("kube --cluster-cidr 10.244.0.0/16"), None);
    }

    #[test]
    fn routes_are_read_as_ip_prints_them() {
        let text = r#"[{"dst":"default","gateway":"10.0.0.1","dev":"eth0"},{"dst":"10.1.0.7","dev":"lxc1"},{"dst":"10.2.0.0/24","gateway":"10.0.0.2","dev":"eth1"}]"#;
        let routes: Vec<RouteSeen> = serde_json::from_str(text).unwrap();
        let to: Vec<_> = routes.iter().map(RouteSeen::to).collect();
        assert_eq!(to, [None, "10.1.0.7/32".parse().ok(), "10.2.0.0/24".parse().ok()]);
        let seen = Snapshot { routes: [("r".to_owned(), routes)].into(), ..Snapshot::default() };
        let way = |to: &str| seen.way("r", to.parse().unwrap()).unwrap();
        assert_eq!((way("10.1.0.7"), way("10.2.0.9"), way("10.3.0.1")), ("lxc1", "eth1", "eth0"));
    }
}
