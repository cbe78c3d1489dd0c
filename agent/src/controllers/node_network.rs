//! Keeps the node's own NodeNetwork: made anew if somebody deletes it, its status fresh.
//!
//! Unless the ConfigMap says another `ipam` mode than the agent runs with: then who deletes the NodeNetwork means to move the node,
//! and the agent that starts next makes it, in the new mode.

use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, ResourceExt};
use podwire_api::names::CONFIG_MAP;
use podwire_api::nodenetwork::NodeNetwork;
use podwire_api::values::Values;

use super::config::changes_ipam_mode;
use crate::core::Core;
use crate::health::Health;
use crate::kubernetes::node_network::{Desired, report_used};

/// Name of this part in `podwire status`.
const PART: &str = "node-network";

/// Pause before a run that failed is repeated, if nothing changes earlier.
const RETRY: Duration = Duration::from_secs(1);

/// What the controller works with.
pub struct Controller {
    /// The API server.
    pub client: Client,
    /// The agent's core.
    pub core: Arc<Core>,
    /// What the object must say.
    pub desired: Desired,
    /// The values with which the agent runs.
    pub values: Values,
    /// Namespace of the ConfigMap.
    pub namespace: String,
    /// What the watch saw.
    pub store: Store<NodeNetwork>,
    /// Where this part says how it is.
    pub health: Arc<Health>,
}

impl Controller {
    /// Runs until the node's pod CIDRs change: the agent then starts anew with them. Returns the new ones.
    pub async fn run(mut self) -> Vec<Ipv4Net> {
        let mut changes = self.core.signal().listen();
        let mut failed = false;
        let name = self.desired.node.name.clone();
        // Before, every NodeNetwork looks deleted. The watch ends only with the agent.
        let _ = self.store.wait_until_ready().await;
        loop {
            if failed {
                tokio::select! {
                    () = changes.heard() => {}
                    () = tokio::time::sleep(RETRY) => {}
                }
            } else {
                changes.heard().await;
            }
            let present = self.store.get(&ObjectRef::new(&name));
            let cidrs = present.as_ref().map(|p| p.spec.ipam.pod_cidrs.clone()).unwrap_or_default();
            // In mode kubernetes the CIDRs are our own field and are put right below.
            if self.desired.pod_cidrs.is_none() && !cidrs.is_empty() && cidrs != self.core.pod_cidrs() {
                return cidrs;
            }
            failed = match self.once(present.as_deref()).await {
                Ok(state) => {
                    self.health.ok(PART, state);
                    false
                }
                // Somebody wrote at the same time; the watch brings the newer object, or the retry reads it.
                Err(kube::Error::Api(status)) if status.code == 409 => true,
                Err(cause) => {
                    self.health.fail(
                        PART,
                        format!("NodeNetwork {name}: {cause}; is the API server up? (trying again)"),
                    );
                    true
                }
            };
        }
    }

    /// One run. Returns how it is.
    async fn once(&mut self, present: Option<&NodeNetwork>) -> kube::Result<&'static str> {
        let mut leave_cidrs = false;
        if !present.is_some_and(|p| self.desired.cidrs_are_current(p)) {
            // Asked, not taken from the watch, which may be behind the deletion.
            let api = Api::<ConfigMap>::namespaced(self.client.clone(), &self.namespace);
            let config = api.get_opt(CONFIG_MAP).await?.and_then(|map| map.data).unwrap_or_default();
            leave_cidrs = changes_ipam_mode(&self.values, &config);
            match present {
                None if leave_cidrs => {
                    return Ok("deleted; the agent makes it again when it restarts into the new ipam mode");
                }
                None if !self.find_node().await? => {
                    return Ok("the Node does not exist (any more); waiting for it");
                }
                _ => {}
            }
        }
        if !leave_cidrs && !present.is_some_and(|p| self.desired.cidrs_are_current(p)) {
            self.desired.apply_cidrs(&self.client).await?;
        }
        if !present.is_some_and(|p| self.desired.addresses_are_current(p)) {
            self.desired.apply_addresses(&self.client).await?;
        }
        report_used(&self.client, &self.desired.node.name, self.core.pool().used()).await?;
        Ok("up to date")
    }

    /// Whether the Node exists. One that was deleted and made again is another: the NodeNetwork goes with it.
    async fn find_node(&mut self) -> kube::Result<bool> {
        let api: Api<Node> = Api::all(self.client.clone());
        let uid = api.get_metadata_opt(&self.desired.node.name).await?.and_then(|node| node.uid());
        let exists = uid.is_some();
        if let Some(uid) = uid {
            self.desired.node.uid = uid;
        }
        Ok(exists)
    }
}
