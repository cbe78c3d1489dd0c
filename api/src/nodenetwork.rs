//! `NodeNetwork`: what the cluster knows of one node's pod network. It plays the part that `CiliumNode` plays in
//! the course.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Desired network of one node. The object's name is the node's name.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "podwire.dev",
    version = "v1",
    kind = "NodeNetwork",
    plural = "nodenetworks",
    singular = "nodenetwork",
    shortname = "nn",
    status = "NodeNetworkStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"PodCIDRs","type":"string","jsonPath":".spec.ipam.podCIDRs"}"#,
    printcolumn = r#"{"name":"InternalIP","type":"string","jsonPath":".spec.addresses[?(@.type==\"InternalIP\")].ip"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct NodeNetworkSpec {
    /// The node's addresses; peers route to the `InternalIP`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<NodeAddress>,
    /// Which addresses the node may give to its pods.
    #[serde(default)]
    pub ipam: NodeIpamSpec,
}

/// One address of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeAddress {
    /// `InternalIP`, or `PodwireInternalIP` for the node's address in the pod network (its router address).
    #[serde(rename = "type")]
    pub kind: String,
    /// The address.
    #[schemars(with = "String")]
    pub ip: Ipv4Addr,
}

/// Which addresses a node may give to its pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeIpamSpec {
    /// The node's pod CIDRs, in the order in which they are used.
    #[serde(default, rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub pod_cidrs: Vec<Ipv4Net>,
}

/// What the agent reports of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeNetworkStatus {
    /// State of the node's addresses.
    #[serde(default)]
    pub ipam: NodeIpamStatus,
}

/// State of the node's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeIpamStatus {
    /// Address to owner (`namespace/pod`, or `router`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub used: BTreeMap<String, String>,
    /// What the operator could not do for this node.
    #[serde(default, rename = "operator-status", skip_serializing_if = "Option::is_none")]
    pub operator_status: Option<OperatorStatus>,
}

/// What the operator could not do for a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OperatorStatus {
    /// The thing, the cause and the mend, in words.
    #[serde(default)]
    pub error: String,
}
