//! A lab: its topology, the agent's values and its apps, as written in `lab.toml`.
//!
//! [`source`] finds the file, [`decode`] reads its tables, [`validate`] checks what they say together. Every error is a
//! [`Diagnostic`] with file, line, cause and mend, and all errors of a file are reported at once.

mod decode;
mod diagnostic;
mod source;
mod validate;
mod values;
mod words;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use podwire_api::values::{IpamMode, RoutingMode, Values, ValuesError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use diagnostic::{Diagnostic, LabError};
pub(crate) use source::embedded;
pub use source::{Source, embedded_names};
pub(crate) use source::{embedded_under, line_of, read_text};
pub(crate) use values::shape_errors;
pub(crate) use words::hint;

/// A checked lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lab {
    /// Its name, the first part of its namespaces' names.
    pub name: String,
    /// One line for `lab list`.
    pub title: String,
    /// The week of the course that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub week: Option<u8>,
    /// The cluster's addresses.
    pub kubernetes: Kubernetes,
    /// The underlay's subnets, each with a switch of its own.
    pub subnets: Vec<Subnet>,
    /// The machines, in the file's order.
    pub nodes: Vec<Node>,
    /// The agent's values, nested, as written.
    pub values: Map<String, Value>,
    /// What is deployed once the pod network is ready.
    pub apps: Vec<App>,
}

/// The cluster's addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kubernetes {
    /// All pods' addresses.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Ipv4Net,
    /// All services' addresses.
    #[serde(rename = "serviceCIDR")]
    pub service_cidr: Ipv4Net,
    /// Prefix length of one node's part of the pod CIDR.
    #[serde(rename = "nodeCIDRMaskSize")]
    pub node_cidr_mask_size: u8,
}

/// One subnet of the underlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// Its name, the second part of its switch's namespace.
    pub name: String,
    /// Its addresses.
    pub cidr: Ipv4Net,
}

/// What a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// A Kubernetes node that also runs the API server.
    ControlPlane,
    /// A Kubernetes node.
    Worker,
    /// Forwards between subnets; no Kubernetes.
    Router,
}

impl Role {
    /// True for the roles that run pods.
    pub fn is_kubernetes(self) -> bool {
        self != Self::Router
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ControlPlane => "control-plane",
            Self::Worker => "worker",
            Self::Router => "router",
        })
    }
}

/// One machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its host name.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// Its devices on subnets.
    pub interfaces: Vec<Interface>,
    /// Networks that exist on this machine only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<OwnNetwork>,
    /// Its static routes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Its web server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub web: Option<Web>,
}

/// One device on a subnet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// The device.
    pub name: String,
    /// The subnet's name.
    pub subnet: String,
    /// The address, with the subnet's prefix length.
    pub address: Ipv4Net,
}

/// A network behind a device of one machine that nothing else is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnNetwork {
    /// The device.
    pub device: String,
    /// The machine's address in it.
    pub address: Ipv4Net,
}

/// A static route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub to: Ipv4Net,
    /// Next hop, on one of the machine's subnets.
    pub via: Ipv4Addr,
}

/// A machine's web server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Web {
    /// TCP port, on every address of the machine.
    pub port: u16,
    /// What it calls itself.
    pub title: String,
}

/// Something to deploy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// Its name.
    pub name: String,
    /// Its Kubernetes manifests, YAML.
    pub manifest: String,
}

/// Refuses what cannot be a lab's name, and says why.
pub(crate) fn check_lab_name(name: &str) -> Result<(), String> {
    validate::check_name(name, validate::LAB_NAME_MAX)
}

impl Lab {
    /// Finds and reads a lab: a name of an embedded lab, a directory with a `lab.toml`, or a file.
    pub fn load(wanted: &str) -> Result<Self, LabError> {
        Self::parse(&Source::find(wanted)?)
    }

    /// Reads and checks a lab file, reporting all its errors at once.
    pub fn parse(source: &Source) -> Result<Self, LabError> {
        let (raw, mut report) = decode::decode(source);
        match validate::validate(&raw, source, &mut report) {
            Some(lab) if report.is_empty() => Ok(lab),
            _ => Err(LabError::Invalid(report.into_sorted())),
        }
    }

    /// Gives the lab another name, by the rules for names in a lab file. The error is the cause and the mend.
    pub fn rename(&mut self, name: &str) -> Result<(), String> {
        check_lab_name(name)?;
        name.clone_into(&mut self.name);
        Ok(())
    }

    /// Adds an app, by its name or, for a lab from a file, by the path of a manifest beside that; one that the lab has already is
    /// left as it is. The error is the cause and the mend.
    pub fn add_app(&mut self, source: &Source, wanted: &str) -> Result<(), String> {
        let (name, manifest) = source.app(wanted)?;
        if self.apps.iter().all(|app| app.name != name) {
            crate::deploy::manifest::objects(&manifest)?;
            self.apps.push(App { name, manifest });
        }
        Ok(())
    }

    /// The name that a user means by a lab's name or by the path of its file.
    pub fn name_of(wanted: &str) -> Result<String, LabError> {
        if source::is_path(wanted) {
            return Ok(Self::load(wanted)?.name);
        }
        match validate::check_name(wanted, validate::LAB_NAME_MAX) {
            Ok(()) => Ok(wanted.to_owned()),
            Err(cause) => Err(LabError::NotFound {
                wanted: wanted.to_owned(),
                cause: format!("that name {cause}"),
                mend: "see the labs' names: lab list".to_owned(),
            }),
        }
    }

    /// The node that runs the API server. Validation made sure that there is one.
    pub fn control_plane(&self) -> Option<&Node> {
        self.nodes.iter().find(|n| n.role == Role::ControlPlane)
    }

    /// The nodes that run pods.
    pub fn kubernetes_nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|n| n.role.is_kubernetes())
    }

    /// A machine by its name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|n| n.name == name)
    }

    /// The agent's values, typed. `deployed` fills in what only the deployment knows (the API server's address).
    ///
    /// A pool that the controller manager gives out of too is refused: one CIDR could be given to two nodes. So is a native
    /// CIDR that misses the pods: it would masquerade them to each other.
    pub fn typed_values(&self) -> Result<Values, ValuesError> {
        let mut values = Values::from_value(Value::Object(self.values.clone()))?;
        let cluster = self.kubernetes.pod_cidr;
        let overlaps = |pool: &&Ipv4Net| pool.contains(&cluster) || cluster.contains(*pool);
        if values.ipam.mode == IpamMode::ClusterPool
            && let Some(pool) = values.ipam.operator.pod_cidr_list.iter().find(overlaps)
        {
            return Err(ValuesError::Invalid {
                key: "ipam.operator.clusterPoolIPv4PodCIDRList",
                cause: format!(
                    "{pool} overlaps {cluster}, out of which the controller manager gives CIDRs too"
                ),
                mend: "choose a pool apart from kubernetes.podCIDR".into(),
            });
        }
        let pods = match values.ipam.mode {
            IpamMode::Kubernetes => std::slice::from_ref(&cluster),
            IpamMode::ClusterPool => &values.ipam.operator.pod_cidr_list,
        };
        let is_native = |pod: &Ipv4Net| values.ipv4_native_routing_cidr.iter().any(|n| n.contains(pod));
        if values.routing_mode == RoutingMode::Native
            && values.enable_ipv4_masquerade
            && let Some(missed) = pods.iter().find(|pod| !is_native(pod))
        {
            return Err(ValuesError::Invalid {
                key: "ipv4NativeRoutingCIDR",
                cause: format!("it misses {missed}: pods of different nodes would see each other's nodes"),
                mend: format!("let it hold the pods' networks, for example ipv4NativeRoutingCIDR={missed}"),
            });
        }
        if let Some(ip) = self.control_plane().and_then(Node::internal_ip) {
            values.k8s_service_host.get_or_insert_with(|| ip.to_string());
        }
        values.service_cidr.get_or_insert(self.kubernetes.service_cidr);
        Ok(values)
    }
}

impl Node {
    /// The node's address on the underlay: that of eth1, else of the first interface.
    pub fn internal_ip(&self) -> Option<Ipv4Addr> {
        let underlay = self.interfaces.iter().find(|i| i.name == podwire_api::names::UNDERLAY_DEVICE);
        underlay.or(self.interfaces.first()).map(|i| i.address.addr())
    }
}
