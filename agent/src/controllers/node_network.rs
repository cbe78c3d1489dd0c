//! Keeps the node's own NodeNetwork: made anew if somebody deletes it, its status fresh.

use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use kube::Client;
use kube::runtime::reflector::{ObjectRef, Store};
use podwire_api::nodenetwork::NodeNetwork;
use serde_json::Value;

use crate::core::Core;
use crate::health::Health;
use crate::kubernetes::node_network::{apply, is_current, report_used};

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
    /// The node's name.
    pub name: String,
    /// What the object must say.
    pub desired: Value,
    /// What the watch saw.
    pub store: Store<NodeNetwork>,
    /// Where this part says how it is.
    pub health: Arc<Health>,
}

impl Controller {
    /// Runs until the node's pod CIDRs change: the agent then starts anew with them. Returns the new ones.
    pub async fn run(self) -> Vec<Ipv4Net> {
        let mut changes = self.core.signal().listen();
        let mut failed = false;
        loop {
            if failed {
                tokio::select! {
                    () = changes.heard() => {}
                    () = tokio::time::sleep(RETRY) => {}
                }
            } else {
                changes.heard().await;
            }
            let present = self.store.get(&ObjectRef::new(&self.name));
            let cidrs = present.as_ref().map(|p| p.spec.ipam.pod_cidrs.clone()).unwrap_or_default();
            // In mode kubernetes the CIDRs are our own field and are put right below.
            if self.desired["spec"].get("ipam").is_none()
                && !cidrs.is_empty()
                && cidrs != self.core.pod_cidrs()
            {
                return cidrs;
            }
            failed = match self.once(present.as_deref()).await {
                Ok(()) => {
                    self.health.ok(PART, "up to date");
                    false
                }
                // Somebody wrote at the same time; the watch brings the newer object, or the retry reads it.
                Err(kube::Error::Api(status)) if status.code == 409 => true,
                Err(cause) => {
                    self.health.fail(
                        PART,
                        format!("NodeNetwork {}: {cause}; is the API server up? (trying again)", self.name),
                    );
                    true
                }
            };
        }
    }

    async fn once(&self, present: Option<&NodeNetwork>) -> kube::Result<()> {
        if !present.is_some_and(|p| is_current(p, &self.desired)) {
            apply(&self.client, &self.name, &self.desired).await?;
        }
        report_used(&self.client, &self.name, self.core.pool().used()).await?;
        Ok(())
    }
}
