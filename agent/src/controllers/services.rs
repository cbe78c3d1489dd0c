//! Keeps the datapath's services as Services and EndpointSlices say, and the programs at sockets that use them.

use std::sync::Arc;

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::reflector::Store;
use tokio::sync::oneshot;

use super::retry::retry;
use crate::core::Core;
use crate::datapath::{Datapath, cgroup_root};
use crate::health::Health;
use crate::services::plan::{Plan, plan};

/// Name of this part in `podwire status`.
const PART: &str = "services";

/// What the controller works with.
pub struct Controller {
    /// The agent's core.
    pub core: Arc<Core>,
    /// The datapath.
    pub datapath: Datapath,
    /// Name of the own Node.
    pub node: String,
    /// The Services.
    pub services: Store<Service>,
    /// Their endpoints.
    pub slices: Store<EndpointSlice>,
    /// Where the last plan is shown.
    pub shown: Arc<ArcSwap<Plan>>,
    /// Where this part says how it is.
    pub health: Arc<Health>,
}

/// What is kept from run to run.
#[derive(Default)]
struct Memory {
    /// The plan that is carried out.
    planned: Option<Plan>,
    /// The programs at sockets are attached.
    attached: bool,
}

impl Controller {
    /// Runs for ever. `first` is told when the datapath has been brought to what should be for the first time, or could not be.
    pub async fn run(self, first: oneshot::Sender<()>) {
        let mut first = Some(first);
        // Until the API server has told all, what the agent before was told holds. A writer that is gone tells nothing.
        if self.services.wait_until_ready().await.is_err() || self.slices.wait_until_ready().await.is_err() {
            return;
        }
        let mut changes = self.core.signal().listen();
        let mut memory = Memory::default();
        let mut failed = false;
        loop {
            tokio::select! {
                () = changes.heard() => {}
                () = retry(failed) => {}
            }
            failed = !self.once(&mut memory);
            if let Some(first) = first.take() {
                // Nobody may wait for it.
                let _ = first.send(());
            }
        }
    }

    /// One run. Returns false if it should be repeated soon.
    fn once(&self, memory: &mut Memory) -> bool {
        let wanted = plan(&self.services.state(), &self.slices.state(), &self.node);
        if memory.planned.as_ref() != Some(&wanted) {
            match self.datapath.set_services(&wanted.table()) {
                Ok(0) => {}
                Ok(count) => tracing::info!("{PART}: {count} changed"),
                Err(cause) => {
                    self.health.fail(PART, cause.to_string());
                    return false;
                }
            }
            self.shown.store(Arc::new(wanted.clone()));
        }
        // Only then: a program that finds no service yet would let its address pass.
        let attach_error = if memory.attached { None } else { self.attach().err() };
        memory.attached = attach_error.is_none();
        let state = format!("{} ports of {} addresses", wanted.ports.len(), wanted.addresses.len());
        let errors = wanted.errors.iter().cloned().chain(attach_error).collect();
        self.health.report(PART, errors, state);
        memory.planned = Some(wanted);
        memory.attached
    }

    fn attach(&self) -> Result<(), String> {
        let Some(cgroup) = cgroup_root() else {
            return Err("ClusterIPs are not served: there is no cgroup v2 at /sys/fs/cgroup; mount it there (in a pod: \
                        as a hostPath volume), or boot with systemd.unified_cgroup_hierarchy=1"
                .into());
        };
        self.datapath.attach_sockets(&cgroup).map_err(|cause| format!("ClusterIPs are not served: {cause}"))
    }
}
