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

/// What the agent says of its node. In mode cluster-pool the pod CIDRs are the operator's field, and left out.
pub fn desired(node: &OwnNode, router: Option<Ipv4Addr>, pod_cidrs: Option<&[Ipv4Net]>) -> Value {
    let mut object = json!({
        "apiVersion": "podwire.dev/v1",
        "kind": "NodeNetwork",
        "metadata": {
            "name": node.name,
            // Goes with its Node.
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid }],
        },
        "spec": { "addresses": addresses(node.internal_ip, router) },
    });
    if let Some(cidrs) = pod_cidrs {
        object["spec"]["ipam"] = json!({ "podCIDRs": cidrs });
    }
    object
}

/// Whether `present` says what the agent says.
pub fn is_current(present: &NodeNetwork, desired: &Value) -> bool {
    let Ok(wanted) = serde_json::from_value::<NodeNetwork>(desired.clone()) else { return false };
    let cidrs_match = desired["spec"].get("ipam").is_none() || present.spec.ipam == wanted.spec.ipam;
    present.spec.addresses == wanted.spec.addresses && cidrs_match
}

/// Creates or updates the object (server-side apply: fields of others stay).
pub async fn apply(client: &Client, name: &str, desired: &Value) -> kube::Result<NodeNetwork> {
    let api: Api<NodeNetwork> = Api::all(client.clone());
    api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(desired)).await
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
        let cidrs = ["10.244.0.0/24".parse().unwrap()];
        let wanted = desired(&node, Some(Ipv4Addr::new(10, 244, 0, 1)), Some(&cidrs));
        let mut present: NodeNetwork = serde_json::from_value(wanted.clone()).unwrap();
        assert!(is_current(&present, &wanted));
        present.spec.ipam.pod_cidrs.clear();
        assert!(!is_current(&present, &wanted));
        let pool = desired(&node, Some(Ipv4Addr::new(10, 244, 0, 1)), None);
        assert!(is_current(&present, &pool), "the operator's field does not count");
        present.spec.addresses.pop();
        assert!(!is_current(&present, &pool));
    }
}
