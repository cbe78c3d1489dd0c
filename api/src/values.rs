//! The agent's settings, in the names of Cilium's Helm values, and their form as ConfigMap keys.
//!
//! A user writes values (`--set routingMode=native`, a values file, a lab's `[values]`); the cluster carries them as
//! the keys of ConfigMap `podwire-config`; the agent reads those keys once, when it starts.

use std::fmt;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

macro_rules! word_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant),+ }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word),+ })
            }
        }

        impl FromStr for $name {
            type Err = String;
            fn from_str(s: &str) -> Result<Self, String> {
                match s {
                    $($word => Ok(Self::$variant),)+
                    _ => Err([$($word),+].join(" or ")),
                }
            }
        }
    };
}

mod cidrs;
mod config_map;
mod ip_masq_agent;
mod load_balancer;
mod no_conntrack;
mod tunnel;
mod upgrade;

pub use self::ip_masq_agent::{IpMasqAgent, IpMasqConfig};
pub use self::load_balancer::{Algorithm, LoadBalancer, Mode, SocketLb};

/// How many native CIDRs the datapath compares with.
pub const MAX_NATIVE_CIDRS: usize = 8;

/// All values, with their defaults. Unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "they are the chart's")]
pub struct Values {
    /// Address of the API server as agents reach it; needed because nothing serves `kubernetes.default` before the agent runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k8s_service_host: Option<String>,
    /// Port of the API server.
    pub k8s_service_port: u16,
    /// How nodes get pod CIDRs and pods get addresses.
    pub ipam: Ipam,
    /// Native routing or an overlay.
    pub routing_mode: RoutingMode,
    /// How packets are wrapped (`routingMode=tunnel`).
    pub tunnel_protocol: TunnelProtocol,
    /// UDP port of the wrapped packets, the same on every node; 0: the protocol's usual one.
    pub tunnel_port: u16,
    /// Install a route to each peer's pod CIDR where the peer is on the same L2 network.
    pub auto_direct_node_routes: bool,
    /// Skip peers that are not on the same L2 network instead of reporting an error for each.
    #[serde(rename = "directRoutingSkipUnreachable")]
    pub direct_routing_skip_unreachable: bool,
    /// Traffic to these CIDRs keeps the pod's address. One CIDR, or a list: while nodes move from one pod CIDR to another
    /// (`ipam.migration=side-by-side`), name both.
    #[serde(rename = "ipv4NativeRoutingCIDR", with = "cidrs", skip_serializing_if = "Vec::is_empty")]
    pub ipv4_native_routing_cidr: Vec<Ipv4Net>,
    /// Addresses of Services. The operator never gives them to a node. A lab fills it in; elsewhere write what the API server
    /// was started with.
    #[serde(rename = "serviceCIDR", skip_serializing_if = "Option::is_none")]
    pub service_cidr: Option<Ipv4Net>,
    /// Per-pod routes.
    pub endpoint_routes: Toggle,
    /// What the eBPF programs do.
    pub bpf: Bpf,
    /// Masquerade what leaves the native CIDR.
    #[serde(rename = "enableIPv4Masquerade")]
    pub enable_ipv4_masquerade: bool,
    /// Destinations beyond the native CIDR that see pods' own addresses: ConfigMap `ip-masq-agent`.
    pub ip_masq_agent: IpMasqAgent,
    /// Backends for sockets.
    #[serde(rename = "socketLB")]
    pub socket_lb: SocketLb,
    /// Callers of Services from outside.
    pub load_balancer: LoadBalancer,
    /// Keep pods' packets out of the kernel's connection tracking, by nftables rules.
    pub install_no_conntrack_iptables_rules: bool,
    /// Devices that carry the programs, that of the underlay first; empty: the device of the node's InternalIP, and for
    /// masquerade every other one that leads out of the node.
    pub devices: Vec<String>,
    /// MTU of pods; 0: that of the underlay device, less the encapsulation.
    #[serde(rename = "MTU")]
    pub mtu: u32,
    /// The operator.
    pub operator: Operator,
    /// Verbose logs.
    pub debug: Toggle,
}

/// How nodes get pod CIDRs and pods get addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Ipam {
    /// Who gives nodes their pod CIDR.
    pub mode: IpamMode,
    /// What becomes of a node's old pod CIDR when the mode becomes `cluster-pool`.
    pub migration: Migration,
    /// Settings of mode `cluster-pool`.
    pub operator: ClusterPool,
}

/// Settings of mode `cluster-pool`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterPool {
    /// CIDRs out of which nodes get theirs. May be extended, not edited.
    #[serde(rename = "clusterPoolIPv4PodCIDRList")]
    pub pod_cidr_list: Vec<Ipv4Net>,
    /// Prefix length of a node's CIDR; 30 is the smallest network.
    #[serde(rename = "clusterPoolIPv4MaskSize")]
    pub mask_size: u8,
}

/// A feature that is on or off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Toggle {
    /// On.
    pub enabled: bool,
}

/// What the eBPF programs do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Bpf {
    /// Masquerade in eBPF.
    pub masquerade: bool,
}

/// The operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Operator {
    /// How many operators run; one leads.
    pub replicas: u32,
}

impl Default for Values {
    fn default() -> Self {
        Self {
            k8s_service_host: None,
            k8s_service_port: crate::names::API_SERVER_PORT,
            ipam: Ipam::default(),
            routing_mode: RoutingMode::default(),
            tunnel_protocol: TunnelProtocol::default(),
            tunnel_port: 0,
            auto_direct_node_routes: false,
            direct_routing_skip_unreachable: false,
            ipv4_native_routing_cidr: Vec::new(),
            service_cidr: None,
            endpoint_routes: Toggle::default(),
            bpf: Bpf::default(),
            enable_ipv4_masquerade: true,
            ip_masq_agent: IpMasqAgent::default(),
            socket_lb: SocketLb::default(),
            load_balancer: LoadBalancer::default(),
            install_no_conntrack_iptables_rules: false,
            devices: Vec::new(),
            mtu: 0,
            operator: Operator::default(),
            debug: Toggle::default(),
        }
    }
}

impl Default for ClusterPool {
    fn default() -> Self {
        Self { pod_cidr_list: Vec::new(), mask_size: 24 }
    }
}

impl Default for Bpf {
    fn default() -> Self {
        Self { masquerade: true }
    }
}

impl Default for Operator {
    fn default() -> Self {
        Self { replicas: 1 }
    }
}

word_enum! {
    /// Who gives nodes their pod CIDR.
    IpamMode {
        /// The controller manager: node.spec.podCIDRs.
        #[default]
        Kubernetes = "kubernetes",
        /// podwire-operator: spec.ipam.podCIDRs of the NodeNetwork.
        ClusterPool = "cluster-pool",
    }
}

word_enum! {
    /// What becomes of a node's old pod CIDR when the mode becomes `cluster-pool`.
    Migration {
        /// A node keeps its old CIDR until its NodeNetwork is deleted; then it gets a new one, and its old pods lose their
        /// connections until they are restarted.
        #[default]
        Replace = "replace",
        /// A node gets a new CIDR beside its old one. New pods get new addresses, old pods go on with theirs, and the old CIDR
        /// goes when its last pod is gone. Nothing has to be deleted and no pod loses a packet.
        SideBySide = "side-by-side",
    }
}

word_enum! {
    /// How packets for other nodes' pods leave the node.
    RoutingMode {
        /// By the kernel's routing table, as they are.
        #[default]
        Native = "native",
        /// Encapsulated, node to node.
        Tunnel = "tunnel",
    }
}

word_enum! {
    /// How packets are wrapped.
    TunnelProtocol {
        /// VXLAN (RFC 7348), on the port that Linux had before there was a registered one.
        #[default]
        Vxlan = "vxlan",
        /// Geneve (RFC 8926).
        Geneve = "geneve",
    }
}

/// Why values were refused. The message names the key, the cause and the mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValuesError {
    /// A key does not exist or its value has the wrong type.
    #[error("{0}")]
    Shape(String),
    /// A `--set` argument is not `key=value`.
    #[error("--set {0:?} is not key=value; write for example --set routingMode=native")]
    SetSyntax(String),
    /// `--set` goes through a key that is not a table.
    #[error("--set {path}: {at:?} holds a value, not a table; set {at} itself")]
    NotATable {
        /// The whole path.
        path: String,
        /// The part that is in the way.
        at: String,
    },
    /// Two values contradict each other or one is out of range.
    #[error("{key}: {cause}; {mend}")]
    Invalid {
        /// The value's name.
        key: &'static str,
        /// What is wrong.
        cause: String,
        /// What to write instead.
        mend: String,
    },
    /// A ConfigMap key has a value that cannot be read.
    #[error("ConfigMap podwire-config, key {key:?}: {value:?} is not {expected}")]
    ConfigKey {
        /// The ConfigMap's key.
        key: &'static str,
        /// What it holds.
        value: String,
        /// What it must hold.
        expected: String,
    },
}

impl Values {
    /// Reads values from their nested form (a lab's `[values]`, a values file), refusing unknown keys.
    pub fn from_value(value: Value) -> Result<Self, ValuesError> {
        let values: Self = serde_json::from_value(value).map_err(|e| ValuesError::Shape(e.to_string()))?;
        values.validate()?;
        Ok(values)
    }

    /// Lays `--set key.path=value` arguments over `base`. A value reads as a bool, a number, a list (`{a,b}`) or text, in that order,
    /// except that keys which hold CIDR lists accept a single CIDR.
    pub fn apply_sets<S: AsRef<str>>(base: &mut Map<String, Value>, sets: &[S]) -> Result<(), ValuesError> {
        for set in sets {
            let set = set.as_ref();
            let (path, raw) = set.split_once('=').ok_or_else(|| ValuesError::SetSyntax(set.into()))?;
            if path.is_empty() || path.split('.').any(str::is_empty) {
                return Err(ValuesError::SetSyntax(set.into()));
            }
            let keys: Vec<&str> = path.split('.').collect();
            let (last, parents) = keys.split_last().ok_or_else(|| ValuesError::SetSyntax(set.into()))?;
            let mut table = &mut *base;
            for (i, key) in parents.iter().enumerate() {
                table = table
                    .entry(*key)
                    .or_insert_with(|| Value::Object(Map::new()))
                    .as_object_mut()
                    .ok_or_else(|| ValuesError::NotATable { path: path.into(), at: keys[..=i].join(".") })?;
            }
            let list_key = matches!(*last, "clusterPoolIPv4PodCIDRList" | "devices" | "nonMasqueradeCIDRs");
            table.insert((*last).to_owned(), scalar_or_list(raw, list_key));
        }
        Ok(())
    }

    /// Refuses values that contradict each other.
    pub fn validate(&self) -> Result<(), ValuesError> {
        let invalid =
            |key, cause: String, mend: &str| Err(ValuesError::Invalid { key, cause, mend: mend.into() });
        self.validate_tunnel()?;
        self.validate_load_balancer()?;
        self.validate_no_conntrack()?;
        if self.routing_mode == RoutingMode::Native && self.ipv4_native_routing_cidr.is_empty() {
            return invalid(
                "ipv4NativeRoutingCIDR",
                "routingMode=native needs to know which addresses are native".into(),
                "set it to the pod CIDR, for example ipv4NativeRoutingCIDR=10.244.0.0/16",
            );
        }
        if self.ipv4_native_routing_cidr.len() > MAX_NATIVE_CIDRS {
            return invalid(
                "ipv4NativeRoutingCIDR",
                format!("{} CIDRs are more than {MAX_NATIVE_CIDRS}", self.ipv4_native_routing_cidr.len()),
                "join neighbours into larger CIDRs, or list destinations in ConfigMap ip-masq-agent",
            );
        }
        if self.enable_ipv4_masquerade && !self.bpf.masquerade {
            return invalid(
                "bpf.masquerade",
                "false leaves masquerade to iptables, which is not implemented".into(),
                "write bpf.masquerade=true, or enableIPv4Masquerade=false for none",
            );
        }
        if self.ip_masq_agent.enabled && !self.enable_ipv4_masquerade {
            return invalid(
                "ipMasqAgent.enabled",
                "true makes exceptions from masquerade, which is off".into(),
                "write enableIPv4Masquerade=true, or ipMasqAgent.enabled=false",
            );
        }
        self.ip_masq_agent.validate()?;
        if self.ipam.operator.mask_size > 30 || self.ipam.operator.mask_size == 0 {
            return invalid(
                "ipam.operator.clusterPoolIPv4MaskSize",
                format!("{} leaves a node no addresses", self.ipam.operator.mask_size),
                "write a prefix length from 1 to 30, for example 24",
            );
        }
        for cidr in &self.ipam.operator.pod_cidr_list {
            if cidr.prefix_len() > self.ipam.operator.mask_size {
                return invalid(
                    "ipam.operator.clusterPoolIPv4PodCIDRList",
                    format!("{cidr} is smaller than one node's /{}", self.ipam.operator.mask_size),
                    "use a larger CIDR or a larger clusterPoolIPv4MaskSize",
                );
            }
        }
        if self.ipam.mode == IpamMode::ClusterPool && self.ipam.operator.pod_cidr_list.is_empty() {
            return invalid(
                "ipam.operator.clusterPoolIPv4PodCIDRList",
                "ipam.mode=cluster-pool needs a pool".into(),
                "set it, for example ipam.operator.clusterPoolIPv4PodCIDRList=172.20.0.0/16",
            );
        }
        if self.mtu != 0 && !(576..=65535).contains(&self.mtu) {
            return invalid("MTU", format!("{} is no MTU", self.mtu), "write 0 (automatic) or 576 to 65535");
        }
        Ok(())
    }
}

fn scalar_or_list(raw: &str, list_key: bool) -> Value {
    if let Some(inner) = raw.strip_prefix('{').and_then(|r| r.strip_suffix('}')) {
        let items = inner.split(',').map(str::trim).filter(|s| !s.is_empty());
        return Value::Array(items.map(scalar).collect());
    }
    if list_key { Value::Array(vec![scalar(raw)]) } else { scalar(raw) }
}

fn scalar(raw: &str) -> Value {
    match raw {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        "null" => Value::Null,
        _ => raw.parse::<u64>().map_or_else(|_| Value::String(raw.into()), Value::from),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn week3() -> Values {
        let mut base = Map::new();
        Values::apply_sets(
            &mut base,
            &[
                "ipam.mode=kubernetes",
                "routingMode=native",
                "autoDirectNodeRoutes=true",
                "ipv4NativeRoutingCIDR=10.244.0.0/16",
                "endpointRoutes.enabled=true",
            ],
        )
        .unwrap();
        Values::from_value(Value::Object(base)).unwrap()
    }

    #[test]
    fn config_map_round_trip() {
        let mut v = week3();
        assert_eq!(Values::from_config_map(&v.to_config_map()).unwrap(), v);
        v.ipam.mode = IpamMode::ClusterPool;
        v.ipam.operator.pod_cidr_list =
            vec!["172.20.0.0/16".parse().unwrap(), "172.21.0.0/16".parse().unwrap()];
        v.devices = vec!["eth1".into()];
        v.ip_masq_agent.enabled = true;
        v.ipam.migration = Migration::SideBySide;
        v.service_cidr = "10.96.0.0/16".parse().ok();
        assert_eq!(v.to_config_map()["ipv4-native-routing-cidr"], "10.244.0.0/16", "one reads as ever");
        v.ipv4_native_routing_cidr.push("172.20.0.0/15".parse().unwrap());
        assert_eq!(v.to_config_map()["ipv4-native-routing-cidr"], "10.244.0.0/16 172.20.0.0/15");
        assert_eq!(Values::from_config_map(&v.to_config_map()).unwrap(), v);
    }

    #[test]
    fn sets_read_as_the_course_types_them() {
        let mut base = serde_json::to_value(week3()).unwrap().as_object().unwrap().clone();
        Values::apply_sets(
            &mut base,
            &[
                "ipam.mode=cluster-pool",
                "ipam.operator.clusterPoolIPv4PodCIDRList={172.20.0.0/16}",
                "ipv4NativeRoutingCIDR=172.20.0.0/16",
            ],
        )
        .unwrap();
        let v = Values::from_value(Value::Object(base.clone())).unwrap();
        assert_eq!(v.ipam.mode, IpamMode::ClusterPool);
        assert_eq!(v.ipam.operator.pod_cidr_list, vec!["172.20.0.0/16".parse().unwrap()]);
        assert!(v.auto_direct_node_routes, "earlier values are kept");
        assert_eq!(serde_json::to_value(&v).unwrap()["ipv4NativeRoutingCIDR"], "172.20.0.0/16");
        let sets = ["ipam.migration=side-by-side", "ipv4NativeRoutingCIDR={10.244.0.0/16,172.20.0.0/16}"];
        Values::apply_sets(&mut base, &sets).unwrap();
        let v = Values::from_value(Value::Object(base)).unwrap();
        assert_eq!((v.ipam.migration, v.ipv4_native_routing_cidr.len()), (Migration::SideBySide, 2));
        assert_eq!(Values::from_value(serde_json::to_value(&v).unwrap()).unwrap(), v);
    }

    #[test]
    fn unknown_keys_and_contradictions_are_refused_with_a_mend() {
        let err = Values::from_value(serde_json::json!({"routingmode": "native"})).unwrap_err().to_string();
        assert!(err.contains("unknown field `routingmode`") && err.contains("routingMode"), "{err}");
        let err = Values::from_value(serde_json::json!({"routingMode": "native"})).unwrap_err().to_string();
        assert!(err.contains("ipv4NativeRoutingCIDR=10.244.0.0/16"), "{err}");
        let mut base = Map::new();
        assert!(matches!(Values::apply_sets(&mut base, &["routingMode"]), Err(ValuesError::SetSyntax(_))));
        base.insert("ipam".into(), Value::String("x".into()));
        assert!(matches!(
            Values::apply_sets(&mut base, &["ipam.mode=kubernetes"]),
            Err(ValuesError::NotATable { .. })
        ));
        let refusal = |sets: &[&str]| {
            let mut base = serde_json::to_value(week3()).unwrap().as_object().unwrap().clone();
            Values::apply_sets(&mut base, sets).unwrap();
            Values::from_value(Value::Object(base)).unwrap_err().to_string()
        };
        let err = refusal(&["bpf.masquerade=false"]);
        assert!(err.contains("not implemented") && err.contains("enableIPv4Masquerade=false"), "{err}");
        let err = refusal(&["ipMasqAgent.enabled=true", "enableIPv4Masquerade=false"]);
        assert!(err.starts_with("ipMasqAgent.enabled: "), "{err}");
        let many: Vec<String> = (0..9).map(|i| format!("10.{i}.0.0/16")).collect();
        let err = refusal(&[&format!("ipv4NativeRoutingCIDR={{{}}}", many.join(","))]);
        assert!(err.contains("9 CIDRs are more than 8"), "{err}");
        let map = BTreeMap::from([("mtu".to_owned(), "big".to_owned())]);
        assert!(Values::from_config_map(&map).unwrap_err().to_string().contains("\"mtu\""));
    }
}
