use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;

/// What the network is expected to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Expectation {
    /// Native routing: packets between pods cross the wire as they are, with the pods' addresses.
    Native,
    /// A tunnel: packets between pods cross the wire inside VXLAN only, from node to node.
    Vxlan,
    /// No packet passes the same place twice.
    NoLoop,
}

impl Expectation {
    /// Every expectation, in the order of documentation.
    pub const ALL: [Self; 3] = [Self::Native, Self::Vxlan, Self::NoLoop];

    /// True if nothing can be said without knowing the pods' networks.
    pub fn needs_pods(self) -> bool {
        self != Self::NoLoop
    }

    /// The word for it on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Vxlan => "vxlan",
            Self::NoLoop => "no-loop",
        }
    }
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An unknown expectation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an expectation; there are: native, vxlan, no-loop")]
pub struct ExpectationError(String);

impl FromStr for Expectation {
    type Err = ExpectationError;

    fn from_str(text: &str) -> Result<Self, ExpectationError> {
        Self::ALL
            .into_iter()
            .find(|known| known.name() == text)
            .ok_or_else(|| ExpectationError(text.to_owned()))
    }
}

/// Where an interface sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Between machines.
    Wire,
    /// At a pod: inside it or the host's end of its veth pair.
    Pod,
    /// The name does not tell; counted as a wire, but nothing is held against it that only a wire may not carry.
    Unknown,
}

/// A flow that the caller knows was sent, `SRC,DST[:PORT]` on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FlowHint {
    /// The pod that opened it.
    pub source: Ipv4Addr,
    /// The pod it went to.
    pub destination: Ipv4Addr,
    /// The port there; `None` for any, and for ICMP.
    pub port: Option<u16>,
}

/// Why a text is not a flow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("flow {text:?} is not SRC,DST or SRC,DST:PORT with IPv4 addresses, like 10.244.0.5,10.244.1.7:80")]
pub struct FlowHintError {
    text: String,
}

impl FromStr for FlowHint {
    type Err = FlowHintError;

    fn from_str(text: &str) -> Result<Self, FlowHintError> {
        let read = || {
            let (source, destination) = text.split_once(',')?;
            let (destination, port) = match destination.split_once(':') {
                Some((destination, port)) => (destination, Some(port.trim().parse().ok()?)),
                None => (destination, None),
            };
            Some(Self {
                source: source.trim().parse().ok()?,
                destination: destination.trim().parse().ok()?,
                port,
            })
        };
        read().ok_or_else(|| FlowHintError { text: text.to_owned() })
    }
}

impl fmt::Display for FlowHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {}", self.source, self.destination)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// What is known about the network a capture comes from.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Context {
    /// A name for the report: the lab or the cluster.
    pub title: Option<String>,
    /// Networks of pod addresses.
    pub pod_cidrs: Vec<Ipv4Net>,
    /// Each node's own pod networks, if known.
    pub node_pod_cidrs: BTreeMap<String, Vec<Ipv4Net>>,
    /// Each node's addresses. A node's address may lie inside a pod network (the router address): it then counts as the
    /// node's.
    pub nodes: BTreeMap<String, Vec<Ipv4Addr>>,
    /// Networks of Service addresses.
    pub service_cidrs: Vec<Ipv4Net>,
    /// Names of pods, `<namespace>/<pod>`, for the report.
    pub pod_names: BTreeMap<Ipv4Addr, String>,
    /// Security identities of pods, which a tunnel carries as its network identifier.
    pub identities: BTreeMap<Ipv4Addr, u32>,
    /// Flows that were sent on purpose.
    pub flows: Vec<FlowHint>,
    /// Where interfaces sit, by their name in the file, where the name alone would mislead.
    pub roles: BTreeMap<String, Role>,
    /// Packets shown as evidence, per check.
    pub evidence_limit: usize,
    /// The command that asks the same again, for the report.
    pub command: Option<String>,
}

impl Default for Context {
    fn default() -> Self {
        Self {
            title: None,
            pod_cidrs: Vec::new(),
            node_pod_cidrs: BTreeMap::new(),
            nodes: BTreeMap::new(),
            service_cidrs: Vec::new(),
            pod_names: BTreeMap::new(),
            identities: BTreeMap::new(),
            flows: Vec::new(),
            roles: BTreeMap::new(),
            evidence_limit: 8,
            command: None,
        }
    }
}

/// Names that CNI plugins and container runtimes give to the host's end of a pod's interface and to devices that are no
/// wire.
const POD_SIDE: [&str; 10] =
    ["lxc", "veth", "cali", "cni", "podwire", "cilium", "flannel", "docker", "gke", "tap"];
/// Names that Linux gives to network devices of machines.
const WIRE: [&str; 6] = ["eth", "en", "bond", "wl", "ib", "br"];

impl Context {
    /// Where the interface `name` sits: as told in [`Self::roles`], else by name. `<node>:<interface>` is a tap on a machine,
    /// `<node>/<pod>:<interface>` one inside a pod; a bare `eth0` could be either.
    pub fn role(&self, name: Option<&str>) -> Role {
        let Some(name) = name else { return Role::Unknown };
        if let Some(role) = self.roles.get(name) {
            return *role;
        }
        let (machine, device) = match name.rsplit_once(':') {
            Some((machine, device)) => (Some(machine), device),
            None => (None, name),
        };
        if machine.is_some_and(|machine| machine.contains('/'))
            || POD_SIDE.iter().any(|prefix| device.starts_with(prefix))
        {
            return Role::Pod;
        }
        if machine.is_some() && WIRE.iter().any(|prefix| device.starts_with(prefix)) {
            return Role::Wire;
        }
        Role::Unknown
    }

    /// The pod networks: those given, else those of the nodes.
    pub(super) fn all_pod_cidrs(&self) -> Vec<Ipv4Net> {
        if self.pod_cidrs.is_empty() {
            return self.node_pod_cidrs.values().flatten().copied().collect();
        }
        self.pod_cidrs.clone()
    }

    /// The node that has `address`.
    pub(super) fn node_of(&self, address: Ipv4Addr) -> Option<&str> {
        self.nodes.iter().find(|(_, addresses)| addresses.contains(&address)).map(|(name, _)| name.as_str())
    }

    /// The node whose pods have addresses like `address`.
    pub(super) fn home_of(&self, address: Ipv4Addr) -> Option<&str> {
        let owns = |nets: &Vec<Ipv4Net>| nets.iter().any(|net| net.contains(&address));
        self.node_pod_cidrs.iter().find(|(_, nets)| owns(nets)).map(|(name, _)| name.as_str())
    }

    /// What to call `address` in the report, besides its digits.
    pub(super) fn name_of(&self, address: Ipv4Addr) -> Option<String> {
        self.pod_names
            .get(&address)
            .cloned()
            .or_else(|| self.node_of(address).map(|node| format!("node {node}")))
    }
}
