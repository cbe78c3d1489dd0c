//! What is installed into a lab's cluster once its API server answers.

mod apply;
mod cluster;
pub mod manifest;
mod wait;

use std::net::IpAddr;
use std::time::Duration;

use podwire_api::names;
use podwire_api::nodenetwork::NodeNetwork;
use podwire_api::values::{IpamMode, Values};
use podwire_cluster::pki::{self, Pki, PkiNode, PkiRequest};
use serde_json::{Value, json};

use crate::error::{Failure, OrFailure};
use crate::lab::{Lab, embedded};
use crate::plan::machine_dir;
use crate::state::{LabState, write_whole};

pub use cluster::connect;
pub(crate) use wait::pod_trouble;
pub use wait::{MadeAgain, Ready, wait_ready};

const MEND: &str = "report this as a bug";

/// Makes the cluster's certificates and kubeconfigs in the lab's state directory, as far as they are missing.
pub fn make_credentials(state: &LabState, lab: &Lab) -> Result<(), Failure> {
    let server = lab
        .control_plane()
        .and_then(|n| Some((n, n.internal_ip()?)))
        .ok_or_else(|| Failure::new(format!("lab {:?}", lab.name), "it has no control plane", MEND))?;
    let first_service = lab.kubernetes.service_cidr.hosts().next();
    let node = |n: &crate::lab::Node| PkiNode {
        name: n.name.clone(),
        ips: n.interfaces.iter().map(|i| IpAddr::V4(i.address.addr())).collect(),
    };
    let request = PkiRequest {
        server_names: vec![server.0.name.clone()],
        server_ips: [Some(server.1), first_service].into_iter().flatten().map(IpAddr::V4).collect(),
        nodes: lab.kubernetes_nodes().map(node).collect(),
    };
    let thing = format!("certificates of lab {:?}", lab.name);
    let pki = pki::create(&state.dir().join("pki"), &request)
        .or_failure(&thing, "take the lab down and up again")?;
    let url = format!("https://{}:{}", server.1, names::API_SERVER_PORT);
    let write = |user: &str, path: std::path::PathBuf| -> Result<(), Failure> {
        let text = pki::kubeconfig(&pki, &url, user).or_failure(&thing, MEND)?;
        write_whole(&path, text.as_bytes())
    };
    write("admin", state.dir().join("admin.conf"))?;
    for node in lab.kubernetes_nodes() {
        let dir = machine_dir(&state.dir(), &node.name);
        std::fs::create_dir_all(&dir)
            .or_failure(dir.display().to_string(), "free space in the state directory")?;
        write(&format!("kubelet-{}", node.name), dir.join("kubelet.conf"))?;
    }
    Ok(())
}

/// The administrator's kubeconfig for use on the host: the API server through the forwarder on `port`.
pub fn host_kubeconfig(state: &LabState, port: u16) -> Result<String, Failure> {
    let pki = Pki::open(state.dir().join("pki"));
    let thing = format!("kubeconfig of lab {:?}", state.name());
    pki::kubeconfig(&pki, &format!("https://127.0.0.1:{port}"), "admin")
        .or_failure(thing, "repair the lab: lab up")
}

/// The objects that carry Podwire itself, in the order in which they are applied.
pub fn podwire_objects(values: &Values) -> Result<Vec<Value>, Failure> {
    use kube::CustomResourceExt;
    let mut objects = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": names::SYSTEM_NAMESPACE}}),
        serde_json::to_value(NodeNetwork::crd()).or_failure("CRD nodenetworks.podwire.dev", MEND)?,
    ];
    objects.extend(config_maps(values));
    let port = values.k8s_service_port.to_string();
    let replicas = values.operator.replicas.to_string();
    let fills = [
        ("k8sServiceHost", values.k8s_service_host.as_deref().unwrap_or_default()),
        ("k8sServicePort", port.as_str()),
        ("operatorReplicas", replicas.as_str()),
    ];
    for name in ["agent", "operator"] {
        let thing = format!("labs/manifests/{name}.yaml");
        let text = embedded(&format!("manifests/{name}.yaml"))
            .ok_or_else(|| Failure::new(&thing, "it is not in the program", MEND))?;
        let text = manifest::fill(text, &fills).or_failure(&thing, MEND)?;
        objects.extend(manifest::objects(&text).or_failure(thing, MEND)?);
    }
    Ok(objects)
}

/// ConfigMap `podwire-config`, and `ip-masq-agent` if the values say what is in it.
fn config_maps(values: &Values) -> Vec<Value> {
    let config_map = |name: &str, data: Value| {
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": names::SYSTEM_NAMESPACE},
            "data": data,
        })
    };
    let mut maps = vec![config_map(names::CONFIG_MAP, json!(values.to_config_map()))];
    if let Some(text) = values.ip_masq_agent.config_map_text() {
        maps.push(config_map(names::IP_MASQ_AGENT_CONFIG_MAP, json!({ "config": text })));
    }
    maps
}

/// Installs Podwire and the lab's apps.
pub async fn install(client: &kube::Client, lab: &Lab, values: &Values) -> Result<(), Failure> {
    let mut objects = podwire_objects(values)?;
    for app in &lab.apps {
        objects.extend(manifest::objects(&app.manifest).or_failure(format!("app {:?}", app.name), MEND)?);
    }
    apply::apply_all(client, &objects).await
}

/// Waits until the control plane's node is registered, with its pod CIDR if the controller manager gives one.
pub async fn wait_first_node(kubeconfig: &str, lab: &Lab, patience: Duration) -> Result<(), Failure> {
    use k8s_openapi::api::core::v1::Node;
    use kube::runtime::wait::await_condition;

    let client = connect(kubeconfig, patience.min(API_PATIENCE)).await?;
    let name = lab.control_plane().map(|n| n.name.clone()).unwrap_or_default();
    let allocated = lab.typed_values().is_ok_and(|v| v.ipam.mode == IpamMode::Kubernetes);
    let registered = move |node: Option<&Node>| {
        let has_cidr = |n: &Node| n.spec.as_ref().is_some_and(|s| s.pod_cidr.is_some());
        node.is_some_and(|n| !allocated || has_cidr(n))
    };
    let thing = format!("node {name:?}");
    let mend = "see its log: lab exec k8s-ctr -- cat /var/log/podwire/node.log";
    let waited =
        tokio::time::timeout(patience, await_condition(kube::Api::all(client), &name, registered)).await;
    let waited = waited.map_err(|_| Failure::new(&thing, "it was not registered in time", mend))?;
    waited.map(drop).or_failure(thing, mend)
}

/// The pod CIDRs that nodes hold.
pub async fn pod_cidrs(client: &kube::Client) -> Result<Vec<ipnet::Ipv4Net>, Failure> {
    let api = kube::Api::<NodeNetwork>::all(client.clone());
    let networks = api.list(&kube::api::ListParams::default()).await;
    let networks = networks.or_failure("NodeNetworks", "look with: kubectl get nn")?;
    Ok(networks.items.into_iter().flat_map(|n| n.spec.ipam.pod_cidrs).collect())
}

/// Writes `podwire-config` anew.
pub async fn write_config(client: &kube::Client, values: &Values) -> Result<(), Failure> {
    apply::apply_all(client, &config_maps(values)).await
}

/// How long the API server may take to answer.
pub const API_PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn podwires_own_objects() {
        let lab = Lab::load("native-routing").unwrap();
        let values = lab.typed_values().unwrap();
        let objects = podwire_objects(&values).unwrap();
        let kinds: Vec<&str> = objects.iter().filter_map(|o| o["kind"].as_str()).collect();
        assert_eq!(kinds[..3], ["Namespace", "CustomResourceDefinition", "ConfigMap"]);
        let agent = objects.iter().find(|o| o["kind"] == "DaemonSet").unwrap();
        let env = &agent["spec"]["template"]["spec"]["containers"][0]["env"];
        assert_eq!(env[1]["value"], "192.168.10.100");
        assert_eq!(env[2]["value"], "6443");
        assert_eq!(objects[2]["data"]["routing-mode"], "native");
        let operator =
            objects.iter().find(|o| o["metadata"]["name"] == "podwire-operator" && o["kind"] == "Deployment");
        assert_eq!(operator.unwrap()["spec"]["replicas"], 1);
    }
}
