//! Keeps the datapath's services as Services and EndpointSlices say, and the programs at sockets that use them.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::reflector::Store;
use podwire_api::values::{Algorithm, Values};
use tokio::sync::oneshot;

use super::retry::retry;
use crate::core::Core;
use crate::datapath::{Datapath, DatapathError, ServiceTable, cgroup_root};
use crate::health::Health;
use crate::masquerade::collect::since_boot;
use crate::services::balanced;
use crate::services::plan::{Plan, Site, plan};

/// Name of this part in `podwire status`.
const PART: &str = "services";

/// Longest pause between two looks for connections that are over.
const COLLECT_EVERY: Duration = Duration::from_secs(30);

/// What the controller works with.
pub struct Controller {
    /// The agent's core.
    pub core: Arc<Core>,
    /// The datapath.
    pub datapath: Datapath,
    /// Name of the own Node.
    pub node: String,
    /// The values.
    pub values: Values,
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
    /// What was asked for is done about sockets, or cannot be done.
    sockets: Sockets,
    /// Connections that are balanced packet by packet.
    balanced: usize,
    /// What went wrong in the last run of the collection.
    collect_error: Option<String>,
}

/// Who gives backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Sockets {
    /// Nothing was done yet.
    #[default]
    Open,
    /// Programs at sockets do.
    Attached,
    /// Programs at devices do, packet by packet: as the values say.
    Off,
    /// The same, because sockets have no programs, for this reason.
    Failed(String),
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
                () = tokio::time::sleep(COLLECT_EVERY) => {}
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
        let maglev = self.values.load_balancer.algorithm == Algorithm::Maglev;
        let site = Site { node: &self.node, maglev };
        let wanted = plan(&self.services.state(), &self.slices.state(), site);
        let before = memory.sockets.clone();
        let every_packet = |sockets: &Sockets| matches!(sockets, Sockets::Off | Sockets::Failed(_));
        if memory.planned.as_ref() != Some(&wanted)
            && let Err(cause) = self.write(&wanted, every_packet(&before))
        {
            self.health.fail(PART, cause.to_string());
            return false;
        }
        self.shown.store(Arc::new(wanted.clone()));
        // Only then: a program that finds no service yet would let its address pass.
        if memory.sockets != Sockets::Attached && memory.sockets != Sockets::Off {
            memory.sockets = self.sockets();
        }
        if every_packet(&memory.sockets) != every_packet(&before)
            && let Err(cause) = self.look_at_every_packet(&wanted, every_packet(&memory.sockets))
        {
            memory.sockets = Sockets::Failed(cause.to_string());
        }
        self.collect(&wanted, memory);
        let how = if every_packet(&memory.sockets) { "packet by packet" } else { "by sockets" };
        let state = format!(
            "{} frontends of {} addresses, {how}; {} connections balanced packet by packet",
            wanted.ports.len(),
            wanted.addresses.len(),
            memory.balanced
        );
        let attach_error = match &memory.sockets {
            Sockets::Failed(cause) => Some(format!(
                "sockets are given no backends, so ClusterIPs are served packet by packet, to pods only: {cause}"
            )),
            _ => None,
        };
        let errors = wanted.errors.iter().cloned().chain(attach_error).chain(memory.collect_error.clone());
        self.health.report(PART, errors.collect(), state);
        memory.planned = Some(wanted);
        !matches!(memory.sockets, Sockets::Failed(_))
    }

    fn write(&self, wanted: &Plan, every_packet: bool) -> Result<(), DatapathError> {
        let table = ServiceTable { every_packet, ..wanted.table() };
        let changed = self.datapath.set_services(&table)?;
        if changed > 0 {
            tracing::info!("{PART}: {changed} changed");
        }
        Ok(())
    }

    fn look_at_every_packet(&self, wanted: &Plan, yes: bool) -> Result<(), DatapathError> {
        if yes {
            self.datapath.see_every_packet()?;
        }
        self.write(wanted, yes)
    }

    fn sockets(&self) -> Sockets {
        if !self.values.socket_lb.enabled {
            return match self.datapath.detach_sockets() {
                Ok(()) => Sockets::Off,
                Err(cause) => Sockets::Failed(cause.to_string()),
            };
        }
        let Some(cgroup) = cgroup_root() else {
            return Sockets::Failed(
                "there is no cgroup v2 at /sys/fs/cgroup; mount it there (in a pod: as a hostPath volume), or boot with \
                 systemd.unified_cgroup_hierarchy=1"
                    .into(),
            );
        };
        match self.datapath.attach_sockets(&cgroup) {
            Ok(()) => Sockets::Attached,
            Err(cause) => Sockets::Failed(cause.to_string()),
        }
    }

    /// Takes away connections that are over.
    fn collect(&self, wanted: &Plan, memory: &mut Memory) {
        let backends = wanted
            .ports
            .iter()
            .flat_map(|port| port.backends.at.iter().map(|at| (*at, port.frontend.protocol.number())));
        match balanced::collect(&self.datapath, since_boot(), &backends.collect()) {
            Ok(left) => (memory.balanced, memory.collect_error) = (left, None),
            Err(cause) => memory.collect_error = Some(cause.to_string()),
        }
    }
}
