//! The sandbox: the pod's namespaces and its attachment to the network.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::Worker;
use crate::controllers::events::Severity;
use crate::node::bundle::{self, host_network};
use crate::node::cni::{Attachment, CniError, NetworkConfig};
use crate::node::sandbox::Namespaces;

impl Worker {
    fn store(&self) -> Result<(), String> {
        self.state
            .store(&self.node.pods_dir(), &self.uid)
            .map_err(|error| format!("cannot write the pod's state below {}: {error}", self.dir.display()))
    }

    /// Makes namespaces and network, afresh if what was there is damaged.
    pub(super) async fn make_sandbox(&mut self, pod: &Pod) -> Result<(), String> {
        self.state.pod = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
        if host_network(pod) {
            self.store()?;
        } else {
            let config = NetworkConfig::load(&self.node.cni.conf_dir).map_err(|error| error.to_string())?;
            self.release_sandbox()
                .await
                .map_err(|error| format!("failed to tear down what the try before has made: {error}"))?;
            if self.slots.iter().any(|slot| slot.running.is_some()) {
                // Containers in a broken sandbox cannot be reached.
                self.kill_all().await;
            }
            let namespaces = Namespaces::named(&self.dir);
            self.state.namespaces = Some(namespaces.clone());
            let attachment = Attachment {
                config,
                container_id: container_id(),
                netns: namespaces.net.clone(),
                interface: "eth0".to_owned(),
                args: String::new(),
                abilities: abilities(pod),
                result: None,
            };
            let mut attachment = Attachment { args: cni_args(pod, &attachment.container_id), ..attachment };
            self.state.attachment = Some(attachment.clone());
            self.store()?;
            namespaces.create(&bundle::hostname(pod)).map_err(|error| error.to_string())?;
            let added = self.node.cni.add(&mut attachment, &self.cni_file()).await;
            self.state.attachment = Some(attachment);
            if let Err(error) = added {
                if matches!(&error, CniError::Plugin { .. }) && error.is_try_again_later() {
                    tracing::debug!(pod = self.state.pod, "the network asks to be tried again later");
                }
                // What cannot be undone now is undone before the next try.
                let _ = self.release_sandbox().await;
                return Err(format!("rpc error: failed to set up the pod's network: {error}"));
            }
        }
        self.write_etc(pod).map_err(|error| format!("cannot write the pod's /etc files: {error}"))?;
        // Last: a runtime that comes after this one takes what is on record for complete.
        self.store()
    }

    fn write_etc(&self, pod: &Pod) -> std::io::Result<()> {
        let etc = self.dir.join("etc");
        std::fs::create_dir_all(&etc)?;
        let of_node = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let resolv = bundle::resolv_conf(pod, &self.node.options.cluster_dns, &of_node);
        std::fs::write(etc.join("resolv.conf"), resolv)?;
        std::fs::write(etc.join("hosts"), bundle::hosts_file(pod, &self.addresses().pod))?;
        std::fs::write(etc.join("hostname"), bundle::hostname(pod) + "\n")
    }

    /// File that hands the plugins their input.
    fn cni_file(&self) -> PathBuf {
        self.dir.join("cni.json")
    }

    /// DEL, then the namespaces. After an error everything stays, and on record, for the next try.
    pub(super) async fn release_sandbox(&mut self) -> Result<(), CniError> {
        self.sandbox_ready = false;
        if let Some(attachment) = self.state.attachment.clone() {
            if let Some(namespaces) = &self.state.namespaces {
                namespaces.remove_empty_mount_point();
            }
            if let Err(error) = self.detach(&attachment).await {
                tracing::warn!(pod = self.state.pod, %error, "CNI DEL failed, trying again");
                let text = format!("Failed to tear down the pod's network: {error}");
                self.event(None, Severity::Warning, "FailedKillPod", text);
                return Err(error);
            }
            self.state.attachment = None;
            // A try that has failed had no address to give back: waiting pods would only wake each other.
            if attachment.result.is_some() {
                self.node.network_changed.notify_waiters();
            }
        }
        if let Some(namespaces) = self.state.namespaces.take() {
            namespaces.remove();
            if let Err(error) = self.store() {
                tracing::warn!(pod = self.state.pod, error);
            }
        }
        Ok(())
    }

    /// DEL, by what ADD was given. Where that never works, there must be another way to the end: somebody has mended the
    /// configuration, replaced it by another network's, or taken the plugin away.
    async fn detach(&self, attachment: &Attachment) -> Result<(), CniError> {
        let (cni, file) = (&self.node.cni, self.cni_file());
        let Err(error) = cni.del(attachment, &file).await else { return Ok(()) };
        let present = NetworkConfig::load(&cni.conf_dir).ok();
        let given_up = match present {
            Some(config) if config.name == attachment.config.name => {
                let unchanged = config == attachment.config;
                let mended = Attachment { config, ..attachment.clone() };
                !unchanged && cni.del(&mended, &file).await.is_ok()
            }
            // ADD did not succeed, and nobody will mend a network that is configured no longer.
            Some(_) => attachment.result.is_none(),
            None => false,
        };
        if given_up || error.is_missing_plugin() {
            tracing::warn!(pod = self.state.pod, %error, "CNI DEL failed, and will not be tried again");
            return Ok(());
        }
        Err(error)
    }
}

/// 64 random hexadecimal digits.
pub(super) fn container_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

fn cni_args(pod: &Pod, id: &str) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={}",
        pod.namespace().unwrap_or_default(),
        pod.name_any(),
        pod.uid().unwrap_or_default()
    )
}

/// What plugins with capabilities may want to know.
fn abilities(pod: &Pod) -> BTreeMap<String, Value> {
    let ports = pod.spec.iter().flat_map(|spec| &spec.containers).flat_map(|c| c.ports.iter().flatten());
    let mappings: Vec<Value> = ports
        .filter_map(|port| {
            let host = port.host_port.filter(|number| *number != 0)?;
            let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
            let mut mapping =
                json!({"hostPort": host, "containerPort": port.container_port, "protocol": protocol});
            if let Some(ip) = port.host_ip.as_deref().filter(|ip| !ip.is_empty()) {
                mapping["hostIP"] = json!(ip);
            }
            Some(mapping)
        })
        .collect();
    if mappings.is_empty() {
        BTreeMap::new()
    } else {
        BTreeMap::from([("portMappings".to_owned(), json!(mappings))])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ports_become_port_mappings() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [{"name": "c", "ports": [
            {"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}]}]}}))
            .unwrap();
        let wanted = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
        assert_eq!(abilities(&pod)["portMappings"], wanted);
    }

    #[test]
    fn arguments_for_plugins_name_the_pod() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}})).unwrap();
        assert_eq!(
            cni_args(&pod, "c"),
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=n;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u"
        );
    }

    #[test]
    fn container_ids_are_64_hexadecimal_digits() {
        let id = container_id();
        assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
