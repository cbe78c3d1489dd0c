//! The agent's own socket, through which `podwire` asks. One JSON line is a request; the answer is one JSON line, for
//! `monitor` a line for each flow.

pub mod client;
pub mod masquerade;
pub mod render;
pub mod server;
pub mod services;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::health::Part;
use crate::routes::reconcile::Outcome;

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// How the agent is.
    Status,
    /// The configuration with which it runs.
    Config,
    /// Its endpoints.
    Endpoints,
    /// Who owns which address.
    Ipcache,
    /// Packets counted.
    Metrics,
    /// Connections beyond the native network.
    Connections,
    /// Those of them that are translated.
    Nat,
    /// Destinations beyond it that see pods' own addresses.
    NonMasquerade,
    /// Services, as the API server tells.
    Services,
    /// Services, as they stand in the datapath.
    LoadBalancing,
    /// Connections that are balanced packet by packet.
    Balanced,
    /// Flows as they happen. The first line, `{"listening": true}`, says that none is missed any more.
    Monitor {
        /// Forwarded packets too.
        trace: bool,
    },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// What was asked for.
    Ok(Value),
    /// Why there is nothing.
    Error(String),
}

/// How the agent is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The node's name.
    pub node: String,
    /// The agent's version.
    pub version: String,
    /// Pods can be wired.
    pub ready: bool,
    /// Address of the API server.
    pub api_server: String,
    /// What there is once the agent has started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// How each part is.
    pub parts: BTreeMap<String, Part>,
}

/// The node's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// The node's InternalIP.
    pub node_ip: Ipv4Addr,
    /// Its router address.
    pub router_ip: Ipv4Addr,
    /// The underlay device.
    pub device: String,
    /// Value `ipam.mode`.
    pub ipam: String,
    /// The pod CIDRs out of which the node gives addresses.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<Ipv4Net>,
    /// Pod CIDRs of before, which are served until their last pod is gone.
    #[serde(default, rename = "oldPodCIDRs", skip_serializing_if = "Vec::is_empty")]
    pub old_pod_cidrs: Vec<Ipv4Net>,
    /// Addresses in use.
    pub used: usize,
    /// Addresses there are.
    pub total: usize,
    /// Value `routingMode`.
    pub routing_mode: String,
    /// Value `endpointRoutes.enabled`.
    pub endpoint_routes: bool,
    /// MTU of pods.
    pub mtu: u32,
    /// How programs are attached.
    pub attach_mode: String,
    /// How many endpoints there are.
    pub endpoints: usize,
    /// The last look at the routes.
    pub routes: Outcome,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointRow {
    /// Its number.
    pub id: u16,
    /// Its identity.
    pub identity: u32,
    /// `namespace/pod`.
    pub pod: String,
    /// Its address.
    pub ipv4: Ipv4Addr,
    /// The node's end of its veth.
    pub device: String,
    /// Index of the device.
    pub ifindex: u32,
    /// MAC of the pod's end.
    pub mac: String,
    /// Its container.
    pub container_id: String,
}

/// One entry of the ipcache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpcacheRow {
    /// Prefix.
    pub prefix: Ipv4Net,
    /// Identity of who owns it.
    pub identity: u32,
    /// Node that has it; 0.0.0.0 for this one.
    pub node: Ipv4Addr,
    /// Name of who owns it, if it has one.
    pub name: String,
}

/// One counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetricRow {
    /// Where.
    pub point: String,
    /// `FORWARDED`, or why packets were dropped.
    pub reason: String,
    /// Packets.
    pub packets: u64,
    /// Bytes, from the IP header on.
    pub bytes: u64,
}
