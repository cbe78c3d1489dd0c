//! Keeps masquerade at the devices that lead out of the node, with the addresses that the node has there, and takes away
//! connections that are over.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use podwire_abi::connection::MAX_CONNECTIONS;
use podwire_abi::{DropReason, Point};
use podwire_api::values::Values;

use crate::datapath::{Datapath, DatapathError, Hook};
use crate::health::Health;
use crate::host::{HostError, find_underlay};
use crate::masquerade::addresses::{Inputs, Plan, plan};
use crate::masquerade::collect::{Collected, collect, since_boot};
use crate::netlink::monitor::Monitor;
use crate::netlink::{Netlink, NetlinkError};

/// Name of this part in `podwire status`.
const PART: &str = "masquerade";

/// Pause between two runs of the collection.
const COLLECT_EVERY: Duration = Duration::from_secs(30);
/// The same while the table is more than half full.
const COLLECT_OFTEN: Duration = Duration::from_secs(5);

/// So long is waited for more changes after one.
const SETTLE: Duration = Duration::from_millis(200);

/// Whether these values ask for masquerade.
pub fn is_wanted(values: &Values) -> bool {
    values.enable_ipv4_masquerade && values.bpf.masquerade
}

/// The devices could not be brought to what they should be.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each says itself what it is")]
pub enum ApplyError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Datapath(#[from] DatapathError),
}

/// What should be on this node as it is now.
fn desired(values: &Values, node_ip: Ipv4Addr) -> Result<(Plan, u32), ApplyError> {
    let mut netlink = Netlink::open()?;
    let (links, addresses, routes) = (netlink.links()?, netlink.addresses()?, netlink.routes()?);
    let underlay = find_underlay(&mut netlink, node_ip, &values.devices)?.link.index;
    let inputs =
        Inputs { devices: &values.devices, node_ip, links: &links, addresses: &addresses, routes: &routes };
    let mut planned = plan(&inputs);
    if !is_wanted(values) {
        // Connections of before are judged by the node's addresses still.
        planned = Plan { own: planned.own, ..Plan::default() };
    }
    Ok((planned, underlay))
}

/// Brings the datapath to it. Returns what was in the way.
fn bring(datapath: &Datapath, planned: &Plan, underlay: u32) -> Result<Vec<String>, DatapathError> {
    datapath.set_masquerade_addresses(&planned.addresses)?;
    let mut errors = Vec::new();
    for (link, _) in &planned.devices {
        if let Err(cause) = datapath.attach_masquerade(link.index) {
            // One that vanished meanwhile is told by the next change; others carry on.
            errors.push(format!("device {}: {cause}", link.name));
        }
    }
    for (hook, ifindex) in datapath.attachments()? {
        let stays = planned.devices.iter().any(|(link, _)| link.index == ifindex);
        if hook == Hook::ToNetwork && !stays {
            datapath.detach_masquerade(ifindex, ifindex == underlay)?;
        }
    }
    Ok(errors)
}

/// Looks at the node, and brings the datapath to it: before the agent serves anybody.
pub fn apply(datapath: &Datapath, values: &Values, node_ip: Ipv4Addr) -> Result<(), ApplyError> {
    let (planned, underlay) = desired(values, node_ip)?;
    // What cannot be done now is tried again, and told, by the controller.
    bring(datapath, &planned, underlay)?;
    Ok(())
}

/// What the controller works with.
pub struct Controller {
    /// The datapath.
    pub datapath: Datapath,
    /// The values.
    pub values: Values,
    /// The node's InternalIP.
    pub node_ip: Ipv4Addr,
    /// Where this part says how it is.
    pub health: Arc<Health>,
}

/// What is kept from run to run.
#[derive(Default)]
struct Memory {
    plan: Plan,
    /// The plan is carried out.
    done: bool,
    /// What was in the way of it.
    device_errors: Vec<String>,
    collected: Collected,
    /// Drops counted until the last run: for want of a port, for want of room.
    drops: [u64; 2],
    /// What went wrong in the last run of the collection.
    collect_errors: Vec<String>,
}

impl Controller {
    /// Runs for ever, in the network namespace in which the runtime was built.
    pub async fn run(self) {
        let mut monitor = match Monitor::open() {
            Ok(monitor) => monitor,
            Err(cause) => return self.health.fail(PART, cause.to_string()),
        };
        let mut memory = Memory { drops: self.drops().unwrap_or_default(), ..Memory::default() };
        let mut controller = self;
        let mut last_collection: Option<Instant> = None;
        loop {
            let pause = if !memory.done || memory.collected.kept > MAX_CONNECTIONS as usize / 2 {
                COLLECT_OFTEN
            } else {
                COLLECT_EVERY
            };
            // Changes of the node, however many, do not put it off.
            let collect = last_collection.is_none_or(|last| last.elapsed() >= pause);
            let joined = tokio::task::spawn_blocking(move || {
                let addresses_changed = controller.look(&mut memory);
                let collect = collect || addresses_changed;
                if collect {
                    controller.collect(&mut memory);
                }
                controller.report(&memory);
                (controller, memory, collect)
            });
            // The blocking part panics only by a bug; the part then shows its last state and the runtime logs the panic.
            let Ok(back) = joined.await else { return };
            let collected;
            (controller, memory, collected) = back;
            if collected {
                last_collection = Some(Instant::now());
            }
            tokio::select! {
                event = monitor.changed() => {
                    if let Err(cause) = event {
                        tracing::error!("{PART}: netlink monitor: {cause}");
                        tokio::time::sleep(COLLECT_OFTEN).await;
                    }
                    // Pods come with several changes each, which do not concern the way out.
                    tokio::time::sleep(SETTLE).await;
                    while monitor.changed().now_or_never().is_some_and(|event| event.is_ok()) {}
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Returns whether the node has other addresses than before.
    fn look(&self, memory: &mut Memory) -> bool {
        let (planned, underlay) = match desired(&self.values, self.node_ip) {
            Ok(desired) => desired,
            Err(cause) => {
                memory.done = false;
                memory.device_errors = vec![cause.to_string()];
                return false;
            }
        };
        if memory.done && planned == memory.plan {
            return false;
        }
        memory.device_errors =
            bring(&self.datapath, &planned, underlay).unwrap_or_else(|e| vec![e.to_string()]);
        memory.done = memory.device_errors.is_empty();
        memory.device_errors.extend(planned.errors.iter().cloned());
        let changed = planned.own != memory.plan.own;
        memory.plan = planned;
        changed
    }

    fn collect(&self, memory: &mut Memory) {
        memory.collect_errors.clear();
        if memory.plan.own.is_empty() {
            // The node's addresses are not known yet: nothing is judged by them.
            return;
        }
        match collect(&self.datapath, since_boot(), &memory.plan.own) {
            Ok(collected) => memory.collected = collected,
            Err(cause) => memory.collect_errors.push(cause.to_string()),
        }
        let drops = match self.drops() {
            Ok(drops) => drops,
            Err(cause) => return memory.collect_errors.push(cause.to_string()),
        };
        let since = [0, 1].map(|i: usize| drops[i].saturating_sub(memory.drops[i]));
        memory.drops = drops;
        memory.collect_errors.extend(complaints(since));
    }

    fn drops(&self) -> Result<[u64; 2], DatapathError> {
        let metrics = self.datapath.metrics()?;
        let count = |reason| {
            let of = metrics.iter().filter(|(point, why, _)| {
                *why == reason && matches!(point, Point::ToNetwork | Point::FromNetwork)
            });
            of.map(|(_, _, counter)| counter.packets).sum()
        };
        Ok([count(DropReason::NatNoMapping), count(DropReason::ConnectionInsertFailed)])
    }

    fn report(&self, memory: &Memory) {
        let state = if is_wanted(&self.values) {
            let devices: Vec<String> =
                memory.plan.devices.iter().map(|(link, ip)| format!("{} {ip}", link.name)).collect();
            format!("{}; {} connections", devices.join(", "), memory.collected.kept)
        } else {
            "off".to_owned()
        };
        let errors = memory.device_errors.iter().chain(&memory.collect_errors).cloned().collect();
        self.health.report(PART, errors, state);
    }
}

/// What to say of packets that were dropped since the last look: for want of a port, for want of room.
fn complaints([ports, room]: [u64; 2]) -> Vec<String> {
    let mut complaints = Vec::new();
    if ports > 0 {
        complaints.push(format!(
            "{ports} packets had no port or address of the node to leave by since the last look ({}); spread connections over \
             more servers or nodes, or end idle ones: podwire bpf nat list",
            DropReason::NatNoMapping
        ));
    }
    if room > 0 {
        complaints.push(format!(
            "{room} packets found the table of {MAX_CONNECTIONS} connections full since the last look ({}); see who opens so \
             many: podwire bpf ct list",
            DropReason::ConnectionInsertFailed
        ));
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ran_out_is_told_with_a_mend() {
        assert_eq!(complaints([0, 0]), [""; 0]);
        let both = complaints([3, 1]);
        assert!(
            both[0].starts_with("3 packets had no port") && both[0].contains("No mapping for NAT masquerade")
        );
        assert!(
            both[1].contains("the table of 262144 connections full")
                && both[1].ends_with("podwire bpf ct list")
        );
    }
}
