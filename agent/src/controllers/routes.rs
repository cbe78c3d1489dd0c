//! Keeps the node's devices and routes.

use std::net::Ipv4Addr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use podwire_api::values::{RoutingMode, Values};

use super::retry::retry;
use crate::core::Core;
use crate::datapath_ops::Failure;
use crate::health::Health;
use crate::host::{HostError, ensure_host_device, find_underlay};
use crate::netlink::monitor::Monitor;
use crate::netlink::{Netlink, NetlinkError};
use crate::overlay::{self, OverlayError};
use crate::routes::plan::{Inputs, Peer, ToPeers, plan};
use crate::routes::reconcile::{Outcome, ReconcileError, Reconciler};

/// Name of this part in `podwire status`.
const PART: &str = "routes";

/// Gives devices to the datapath.
pub type Attach = Box<dyn Fn(u32) -> Result<(), Failure> + Send>;

/// The devices that carry programs.
pub struct Devices {
    /// Attaches to the underlay device.
    pub attach_underlay: Attach,
    /// Attaches to podwire_host, or where no routes lead there takes the program from it.
    pub set_host: Attach,
    /// Gives the tunnel's device to the datapath.
    pub set_overlay: Attach,
}

/// Whether routes lead to podwire_host, where the program knows the rest of the way.
pub fn needs_host_program(values: &Values) -> bool {
    values.routing_mode == RoutingMode::Tunnel || !values.endpoint_routes.enabled
}

/// What the controller works with.
pub struct Controller {
    /// The agent's core.
    pub core: Arc<Core>,
    /// The values.
    pub values: Values,
    /// The node's InternalIP.
    pub node_ip: Ipv4Addr,
    /// The other nodes, as the API server tells; none while it has not told yet.
    pub peers: Box<dyn Fn() -> Option<Vec<Peer>> + Send>,
    /// The datapath's part.
    pub devices: Devices,
    /// MTU of podwire_host, and of the tunnel's device.
    pub mtu: u32,
    /// Where the last outcome is shown.
    pub outcome: Arc<ArcSwap<Outcome>>,
    /// Where this part says how it is.
    pub health: Arc<Health>,
}

/// A run failed.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Reconcile(#[from] ReconcileError),
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    #[error("datapath: {0}")]
    Datapath(Failure),
}

/// What is kept from run to run.
struct Memory {
    reconciler: Reconciler,
    underlay: Option<u32>,
    host: Option<u32>,
    overlay: Option<u32>,
}

impl Controller {
    /// Runs for ever, in the network namespace in which the runtime was built.
    pub async fn run(self) {
        let mut changes = self.core.signal().listen();
        let (mut monitor, reconciler) = match (Monitor::open(), Reconciler::open(self.core.store().clone())) {
            (Ok(monitor), Ok(reconciler)) => (monitor, reconciler),
            (Err(cause), _) => return self.health.fail(PART, cause.to_string()),
            (_, Err(cause)) => return self.health.fail(PART, cause.to_string()),
        };
        let memory = Memory { reconciler, underlay: None, host: None, overlay: None };
        let mut state = Some((self, memory));
        let mut failed = false;
        loop {
            tokio::select! {
                () = changes.heard() => {}
                event = monitor.changed() => if let Err(cause) = event {
                    tracing::error!("{PART}: netlink monitor: {cause}");
                },
                () = retry(failed) => {}
            }
            let Some((controller, mut memory)) = state.take() else { return };
            let joined = tokio::task::spawn_blocking(move || {
                let ok = controller.once(&mut memory);
                (controller, memory, ok)
            });
            // The blocking part panics only by a bug; the part then shows its last state and the runtime logs the panic.
            let Ok((controller, memory, ok)) = joined.await else { return };
            failed = !ok;
            state = Some((controller, memory));
        }
    }

    /// One run. Returns false if it should be repeated soon.
    fn once(&self, memory: &mut Memory) -> bool {
        match self.reconcile(memory) {
            Ok(outcome) => {
                for change in &outcome.changes {
                    tracing::info!("{PART}: {change}");
                }
                let state = format!("{} of {} installed", outcome.installed, outcome.desired);
                self.health.report(PART, outcome.errors.clone(), state);
                self.outcome.store(Arc::new(outcome));
                true
            }
            Err(cause) => {
                self.health.fail(PART, cause.to_string());
                false
            }
        }
    }

    fn reconcile(&self, memory: &mut Memory) -> Result<Outcome, RunError> {
        let mut netlink = Netlink::open()?;
        let pool = self.core.pool();
        let (host, _) = ensure_host_device(&mut netlink, &pool.routers(), self.mtu)?;
        // The program is on podwire_host as long as a route to pods leads there.
        let by_host = needs_host_program(&self.values);
        if by_host {
            self.set_host(memory, host.index)?;
        }
        let underlay = find_underlay(&mut netlink, self.node_ip, &self.values.devices)?;
        if memory.underlay != Some(underlay.link.index) {
            (self.devices.attach_underlay)(underlay.link.index).map_err(RunError::Datapath)?;
            memory.underlay = Some(underlay.link.index);
        }
        if self.values.routing_mode == RoutingMode::Tunnel {
            let device = overlay::ensure(&mut netlink, self.values.tunnel_port(), self.mtu)?;
            if memory.overlay != Some(device.index) {
                (self.devices.set_overlay)(device.index).map_err(RunError::Datapath)?;
                memory.overlay = Some(device.index);
            }
        }
        let live = self.core.live();
        let inputs = Inputs {
            device: underlay.link.name,
            subnets: underlay.subnets,
            router: Some(pool.router()),
            pod_cidrs: pool.cidrs().to_vec(),
            peers: (self.peers)(),
            endpoints: live.iter().map(|l| (l.endpoint.ip, l.endpoint.key().device())).collect(),
            to_peers: ToPeers::of(&self.values),
            endpoint_routes: self.values.endpoint_routes.enabled,
        };
        let outcome = memory.reconciler.run(&mut netlink, &plan(&inputs))?;
        if !by_host {
            self.set_host(memory, host.index)?;
        }
        Ok(outcome)
    }

    fn set_host(&self, memory: &mut Memory, index: u32) -> Result<(), RunError> {
        if memory.host != Some(index) {
            (self.devices.set_host)(index).map_err(RunError::Datapath)?;
            memory.host = Some(index);
        }
        Ok(())
    }
}
