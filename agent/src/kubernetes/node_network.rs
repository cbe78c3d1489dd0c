//! The node's own NodeNetwork: what the agent tells the cluster of its node.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use podwire_api::nodenetwork::{NodeIpamStatus, NodeNetwork, NodeNetworkStatus};
use serde_json::{Value, json};

use super::model::addresses;
use super::startup::OwnNode;

/// Name under which the agent's fields are applied.
const MANAGER: &str = "podwire-agent";

/// Name under which an agent in mode kubernetes applies the pod CIDRs. A manager of their own: an agent that comes after it in
/// mode cluster-pool leaves them as they are, so that a NodeNetwork keeps its CIDRs until it is deleted.
const IPAM_MANAGER: &str = "podwire-agent-ipam";

/// What the agent says of its node.
#[derive(Clone, Debug)]
pub struct Desired {
    /// The node.
    pub node: OwnNode,
    /// Its router address, once it has one.
    pub router: Option<Ipv4Addr>,
    /// Its pod CIDRs in mode kubernetes. In mode cluster-pool they are the operator's field.
    pub pod_cidrs: Option<Vec<Ipv4Net>>,
}

impl Desired {
    fn object(&self, spec: &Value) -> Value {
        json!({
            "apiVersion": "podwire.dev/v1",
            "kind": "NodeNetwork",
            "metadata": { "name": self.node.name },
            "spec": spec,
        })
    }

    fn addresses_object(&self) -> Value {
        let mut object = self.object(&json!({ "addresses": addresses(self.node.internal_ip, self.router) }));
        // Goes with its Node.
        object["metadata"]["ownerReferences"] =
            json!([{ "apiVersion": "v1", "kind": "Node", "name": self.node.name, "uid": self.node.uid }]);
        object
    }

    /// Whether `present` has the pod CIDRs that the agent says.
    pub fn cidrs_are_current(&self, present: &NodeNetwork) -> bool {
        self.pod_cidrs.as_ref().is_none_or(|cidrs| present.spec.ipam.pod_cidrs == *cidrs)
    }

    /// Whether `present` has the addresses that the agent says.
    pub fn addresses_are_current(&self, present: &NodeNetwork) -> bool {
        present.spec.addresses == addresses(self.node.internal_ip, self.router)
    }

    /// Creates or updates the object's pod CIDRs, if they are the agent's. Before the addresses: the operator never sees a
    /// NodeNetwork of mode kubernetes that waits for CIDRs.
    pub async fn apply_cidrs(&self, client: &Client) -> kube::Result<()> {
        let Some(cidrs) = &self.pod_cidrs else { return Ok(()) };
        let object = self.object(&json!({ "ipam": { "podCIDRs": cidrs } }));
        apply(client, IPAM_MANAGER, &self.node.name, &object).await
    }

    /// Makes the object, if there is none.
    pub async fn create(&self, client: &Client) -> kube::Result<()> {
        let api: Api<NodeNetwork> = Api::all(client.clone());
        if api.get_metadata_opt(&self.node.name).await?.is_some() {
            return Ok(());
        }
        self.apply_addresses(client).await
    }

    /// Creates or updates the object's addresses.
    pub async fn apply_addresses(&self, client: &Client) -> kube::Result<()> {
        apply(client, MANAGER, &self.node.name, &self.addresses_object()).await
    }
}

/// Server-side apply: fields of others stay.
async fn apply(client: &Client, manager: &str, name: &str, object: &Value) -> kube::Result<()> {
    let api: Api<NodeNetwork> = Api::all(client.clone());
    api.patch(name, &PatchParams::apply(manager).force(), &Patch::Apply(object)).await.map(drop)
}

/// Writes which addresses are in use, if that changed; the operator's part of the status stays. A conflict is an error:
/// the next run sees the newer object.
pub async fn report_used(
    client: &Client,
    name: &str,
    used: &BTreeMap<Ipv4Addr, String>,
) -> kube::Result<bool> {
    let api: Api<NodeNetwork> = Api::all(client.clone());
    let Some(mut object) = api.get_opt(name).await? else { return Ok(false) };
    let used: BTreeMap<String, String> =
        used.iter().map(|(ip, owner)| (ip.to_string(), owner.clone())).collect();
    let status = object.status.take().unwrap_or_default();
    if status.ipam.used == used {
        return Ok(false);
    }
    let operator_status = status.ipam.operator_status;
    object.status = Some(NodeNetworkStatus { ipam: NodeIpamStatus { used, operator_status } });
    api.replace_status(name, &PostParams::default(), &object).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn current_or_not() {
        let node = OwnNode {
            name: "k8s-ctr".into(),
            uid: "u".into(),
            internal_ip: Ipv4Addr::new(192, 168, 10, 100),
            pod_cidrs: vec![],
        };
        let cidrs = vec!["10.244.0.0/24".parse().unwrap()];
        let router = Some(Ipv4Addr::new(10, 244, 0, 1));
        let wanted = Desired { node, router, pod_cidrs: Some(cidrs.clone()) };
        let mut present: NodeNetwork = serde_json::from_value(wanted.addresses_object()).unwrap();
        assert!(wanted.addresses_are_current(&present) && !wanted.cidrs_are_current(&present));
        let pool = Desired { pod_cidrs: None, ..wanted.clone() };
        assert!(pool.cidrs_are_current(&present), "the operator's field does not count");
        present.spec.ipam.pod_cidrs = cidrs;
        assert!(wanted.cidrs_are_current(&present));
        present.spec.addresses.pop();
        assert!(!wanted.addresses_are_current(&present));
    }
}
