//! What is learned beside the packets, and what causes it shows. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::Protocol;
use super::follow::Unanswered;
use super::probe::Outcome;
use super::route::{Ask, Route, Told};
use super::sighting::Ends;
use super::why::Cause;

/// What was learned beside the packets.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// What the sender experienced.
    pub outcome: Outcome,
    /// What agents say that they dropped.
    pub drops: Vec<Drop>,
    /// Questions of ARP that nobody answered.
    pub arp: Vec<Unanswered>,
    /// Why the taps did not see everything, a line each.
    pub lost: Vec<String>,
    /// What else could not be learned, a line each.
    pub notes: Vec<String>,
    /// What routing tables say.
    pub(super) routes: BTreeMap<Ask, Told>,
}

/// A packet that an agent dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drop {
    /// The node.
    pub node: String,
    /// Why.
    pub reason: String,
    /// Where in its datapath.
    pub point: String,
    /// From where to where; pings without their identifier.
    pub ends: Ends,
}

impl Evidence {
    /// What the agent of a machine says of a packet that it had last.
    pub(super) fn drop_of(&self, machine: &str, ends: Ends) -> Option<Cause> {
        let pings = ends.protocol == Protocol::Icmp.number();
        let is_it = |drop: &&Drop| {
            drop.node == machine
                && if pings {
                    (drop.ends.protocol, drop.ends.source.0, drop.ends.destination.0)
                        == (ends.protocol, ends.source.0, ends.destination.0)
                } else {
                    drop.ends == ends
                }
        };
        let found = self.drops.iter().find(is_it)?;
        Some(Cause::Dropped { reason: found.reason.clone(), point: found.point.clone() })
    }
}

/// The route that a machine takes.
pub(super) fn taken(machine: &str, told: &Told) -> Vec<(String, Route)> {
    let route = told.route.as_ref().and_then(|route| route.as_ref().ok());
    route.map(|route| (machine.to_owned(), route.clone())).into_iter().collect()
}

/// What the routing table refuses.
pub(super) fn refusal_of(told: &Told) -> Option<Cause> {
    let says = told.route.as_ref()?.as_ref().err()?;
    if let Some(route) = told.forbidding() {
        return Some(Cause::Forbidden { route: route.to_string() });
    }
    // Which of the two it says depends on the kernel's version.
    if told.reverse_path && (says.contains("cross-device") || says.contains("Invalid argument")) {
        return Some(Cause::ReversePath);
    }
    Some(Cause::NoRoute { says: says.clone() })
}

/// The next hop, or the destination itself, that does not answer ARP: it was asked just now, or a moment before.
pub(super) fn silent_hop(
    told: &Told,
    place: &str,
    destination: Ipv4Addr,
    arp: &[Unanswered],
) -> Option<Cause> {
    let route = told.route.as_ref()?.as_ref().ok()?;
    let seen = arp.iter().filter(|arp| arp.place == place).map(|arp| (arp.device.as_str(), arp.address));
    let known = told.silent.iter().map(|(device, address)| (device.as_str(), *address));
    let mut silent = seen.chain(known);
    let (device, next_hop) = silent.find(|(device, address)| {
        route.ways().any(|(via, dev)| dev == *device && via.unwrap_or(destination) == *address)
    })?;
    Some(Cause::SilentNextHop {
        route: Some(route.to_string()),
        by_default: route.is_default(),
        next_hop,
        device: device.to_owned(),
    })
}
