//! What came of a flow: the verdict, where it ended, why, and what mends it. Pure.
//!
//! Evidence decides in this order: what the taps saw arrive; what an agent says that it dropped; what the routing table of the machine
//! that had the packet last says of it; who did not answer ARP; who sent an ICMP error. That a packet was *not* seen is evidence only
//! while the taps lost nothing: otherwise the trace is incomplete.

use std::net::Ipv4Addr;

use podwire_api::names;
use podwire_conformance::dissect::TcpFlags;
use serde::Serialize;

use super::evidence::{Evidence, refusal_of, silent_hop, taken};
use super::follow::{Hop, Journey, Leg, Way};
use super::plan::{Plan, Tap};
use super::probe::Outcome;
use super::route::{Ask, Route, Told};
use super::sighting::Kind;
use super::why::{Cause, Scene};
use super::world::{Owner, World};

/// What came of the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It arrived, and the answer came back.
    Answered,
    /// It arrived, and was refused; or the source's own system refused to send.
    Refused,
    /// It arrived, and nothing came out in answer.
    Unanswered,
    /// It, or its answer, ended on the way.
    Died,
    /// It went in a circle.
    Loop,
    /// The taps lost packets: what was not seen may have been there.
    Incomplete,
}

/// The verdict and its reasons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What came of it.
    pub verdict: Verdict,
    /// Which way it was going when it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub way: Option<Way>,
    /// Where it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<At>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The same in sentences.
    pub why: Vec<String>,
    /// What to do about it.
    pub mend: Vec<String>,
}

/// A tap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct At {
    /// The machine or pod.
    pub place: String,
    /// The device.
    pub device: String,
}

/// The agent's word for a Service that nobody serves.
const NO_BACKEND: &str = "Service backend not found";

/// What is looked into.
pub struct Case<'a> {
    /// The lab.
    pub world: &'a World,
    /// The flow that was meant.
    pub plan: &'a Plan,
    /// Where was tapped.
    pub taps: &'a [Tap],
    /// What was seen of it.
    pub journey: Option<&'a Journey>,
    /// ` --lab NAME` where a command needs it.
    pub flag: &'a str,
}

/// How a leg ended.
struct End<'a> {
    way: Way,
    leg: &'a Leg,
    hop: &'a Hop,
    tap: &'a Tap,
}

impl Case<'_> {
    /// Which routing tables must be asked.
    pub(super) fn questions(&self, outcome: &Outcome) -> Vec<Ask> {
        let Some(journey) = self.journey else { return self.at_source().into_iter().collect() };
        let mut asks: Vec<Ask> = Vec::new();
        match self.unfinished(journey, outcome) {
            Some(end) => {
                asks.push(self.ask(&end));
                if let Some(cycle) = end.leg.cycle {
                    let round = &end.leg.hops[cycle.first..cycle.first + cycle.length];
                    asks.extend(
                        round.iter().filter(|hop| !hop.out).filter_map(|hop| {
                            Some(self.ask(&End { hop, tap: self.taps.get(hop.tap)?, ..end }))
                        }),
                    );
                }
            }
            None => asks.extend(self.way_back(journey)),
        }
        asks.sort();
        asks.dedup();
        asks
    }

    /// The machine that the flow arrived at, about its answer.
    fn way_back(&self, journey: &Journey) -> Option<Ask> {
        let hop = journey.there.last().filter(|_| journey.there.arrived && journey.back.is_none())?;
        let tap = self.taps.get(hop.tap).filter(|tap| tap.pod.is_none())?;
        let ((source, _), (destination, _)) = (hop.ends.destination, hop.ends.source);
        Some(Ask { machine: tap.machine.clone(), source: Some(source), destination, by: None })
    }

    /// The question about a packet that ended at a machine. What left it was sent by a route, too: that of its last way in.
    fn ask(&self, end: &End<'_>) -> Ask {
        if let Some(destination) = self.tunnel_end(end) {
            return Ask { machine: end.tap.machine.clone(), source: None, destination, by: None };
        }
        let (source, destination) = addresses(end.hop);
        let came_in = end.leg.hops.iter().rev().find(|hop| {
            !hop.out
                && self.taps.get(hop.tap).is_some_and(|t| t.machine == end.tap.machine && t.pod.is_none())
        });
        Ask {
            machine: end.tap.machine.clone(),
            source: Some(source),
            destination,
            by: came_in.and_then(|hop| Some(self.taps.get(hop.tap)?.device.clone())),
        }
    }

    /// Of a packet that entered the tunnel and did not come out on this side: the node that it is to be wrapped for.
    fn tunnel_end(&self, end: &End<'_>) -> Option<Ipv4Addr> {
        let entered = end.hop.out && end.tap.pod.is_none() && end.tap.device == names::VXLAN_DEVICE;
        let (node, _) = self.world.pod_cidr(end.hop.ends.destination.0).filter(|_| entered)?;
        self.world.lab.node(node)?.internal_ip()
    }

    /// The leg that ended before its time, if one did.
    fn unfinished<'j>(&'j self, journey: &'j Journey, outcome: &Outcome) -> Option<End<'j>> {
        let (way, leg) = match (&journey.back, &journey.stuck) {
            // Whom an answer reaches has been heard, wherever that was. A RST proves less: others send it in somebody's name.
            (back, _)
                if !journey.there.arrived && !back.as_ref().is_some_and(|b| b.arrived && !is_reset(b)) =>
            {
                (Way::There, &journey.there)
            }
            (Some(back), _) if !back.arrived => (Way::Back, back),
            // The last packets of a connection that was answered end with the capture.
            (Some(_), Some((way, leg))) if !matches!(outcome, Outcome::Answered(_)) => (*way, leg),
            _ => return None,
        };
        let hop = leg.last()?;
        Some(End { way, leg, hop, tap: self.taps.get(hop.tap)? })
    }

    /// Says what came of the flow.
    pub fn explain(&self, evidence: &Evidence) -> Finding {
        let mut finding = match self.journey {
            None => self.unseen(evidence),
            Some(journey) => match self.unfinished(journey, &evidence.outcome) {
                Some(end) => self.ended(&end, journey, evidence),
                None => self.arrived(journey, evidence),
            },
        };
        let rests_on_absence = match finding.verdict {
            Verdict::Died => !matches!(finding.cause, Some(Cause::Dropped { .. })),
            Verdict::Unanswered => true,
            _ => false,
        };
        if rests_on_absence && !evidence.lost.is_empty() {
            finding.verdict = Verdict::Incomplete;
            finding.cause = None;
            finding.why = vec![
                "The taps did not see everything, so where the flow ended is not known; what is shown was seen.".into(),
            ];
            finding.why.extend(evidence.lost.iter().cloned());
            finding.mend = vec!["trace again when there is less traffic".into()];
        }
        finding
    }

    /// The first packet arrived, and so did its answer, if there was one.
    fn arrived(&self, journey: &Journey, evidence: &Evidence) -> Finding {
        let there = &journey.there;
        let plain = |verdict| Finding {
            verdict,
            way: None,
            at: None,
            cause: None,
            why: Vec::new(),
            mend: Vec::new(),
        };
        let Some((hop, tap)) = there.last().and_then(|hop| Some((hop, self.taps.get(hop.tap)?))) else {
            return plain(Verdict::Incomplete);
        };
        let scene = |source, destination, what| Scene {
            world: self.world,
            flag: self.flag,
            place: tap.place(),
            machine: &tap.machine,
            source,
            destination,
            what,
        };
        let (source, destination) = addresses(hop);
        let forth = scene(source, destination, there.kind.to_string());
        let refusal = match &journey.back {
            Some(back) if is_reset(back) => Some("a TCP RST".to_owned()),
            Some(_) => return plain(Verdict::Answered),
            None => refusing_error(journey).map(ToString::to_string),
        };
        if let Some(with) = refusal {
            let cause = self.unserved(Some(tap)).unwrap_or(Cause::Refused { with });
            return self.finding(Verdict::Refused, None, Some(tap), cause, &forth, &[]);
        }
        if let Some(cause) = evidence.drop_of(&tap.machine, hop.ends) {
            return self.finding(Verdict::Died, Some(Way::There), Some(tap), cause, &forth, &[]);
        }
        // No answer was seen. Perhaps it has no way out of the machine.
        let told =
            self.way_back(journey).and_then(|ask| Some((ask.machine.clone(), evidence.routes.get(&ask)?)));
        if let Some((machine, told)) = &told
            && let Some(cause) =
                refusal_of(told).or_else(|| silent_hop(told, tap.place(), source, &evidence.arp))
        {
            let back = scene(destination, source, "answer".into());
            let taken = taken(machine, told);
            return self.finding(Verdict::Died, Some(Way::Back), Some(tap), cause, &back, &taken);
        }
        let rules = told.map(|(_, told)| told.rules.clone()).unwrap_or_default();
        let cause = if rules.is_empty() { Cause::NoAnswer } else { Cause::Filtered { rules } };
        self.finding(Verdict::Unanswered, None, Some(tap), cause, &forth, &[])
    }

    /// A leg ended on the way.
    fn ended(&self, end: &End<'_>, journey: &Journey, evidence: &Evidence) -> Finding {
        let (source, destination) = addresses(end.hop);
        let destination = self.tunnel_end(end).unwrap_or(destination);
        let told = evidence.routes.get(&self.ask(end));
        let what = match end.way {
            Way::There => end.leg.kind.to_string(),
            Way::Back => "answer".into(),
        };
        let mut scene = Scene {
            world: self.world,
            flag: self.flag,
            place: end.tap.place(),
            machine: &end.tap.machine,
            source,
            destination,
            what,
        };
        if let Some(cycle) = end.leg.cycle {
            let round = &end.leg.hops[cycle.first..cycle.first + cycle.length];
            let mut machines: Vec<String> = Vec::new();
            for tap in round.iter().filter_map(|hop| self.taps.get(hop.tap)) {
                if machines.last() != Some(&tap.machine) {
                    machines.push(tap.machine.clone());
                }
            }
            // The round ends where it began.
            if machines.len() > 1 && machines.first() == machines.last() {
                machines.pop();
            }
            let asked = evidence.routes.iter().filter(|(ask, _)| machines.contains(&ask.machine));
            let taken: Vec<(String, Route)> =
                asked.flat_map(|(ask, told)| taken(&ask.machine, told)).collect();
            let mut routes: Vec<(String, String)> =
                taken.iter().map(|(machine, route)| (machine.clone(), route.to_string())).collect();
            routes.dedup();
            let entry = self.taps.get(end.leg.hops[cycle.first].tap);
            if let Some(tap) = entry {
                (scene.place, scene.machine) = (tap.place(), &tap.machine);
            }
            let ttl = (end.leg.hops[cycle.first].routed_ttl(), end.hop.routed_ttl());
            let cause = Cause::Circle { machines, passes: cycle.passes, ttl, routes };
            return self.finding(Verdict::Loop, Some(end.way), entry, cause, &scene, &taken);
        }
        let error = error_about(journey, end.leg);
        let dropped = evidence.drop_of(&end.tap.machine, end.hop.ends);
        // Nobody serves it: that is more than where the packet was dropped for it.
        if matches!(&dropped, Some(Cause::Dropped { reason, .. }) if reason == NO_BACKEND)
            && let Some(cause) = self.unserved(Some(end.tap))
        {
            return self.finding(Verdict::Refused, None, Some(end.tap), cause, &scene, &[]);
        }
        let cause = dropped
            .or_else(|| {
                if end.hop.out {
                    self.outward(end, told, evidence)
                } else {
                    self.inward(end, told, error, evidence)
                }
            })
            .or_else(|| error.map(|leg| self.error(leg)))
            .or_else(|| {
                let rules = told.map(|told| told.rules.clone()).unwrap_or_default();
                (!rules.is_empty()).then_some(Cause::Filtered { rules })
            })
            .unwrap_or(Cause::Unknown);
        let taken = told.map(|told| taken(&end.tap.machine, told)).unwrap_or_default();
        let reset = journey.back.as_ref().filter(|back| end.way == Way::There && is_reset(back));
        let mut finding = self.finding(Verdict::Died, Some(end.way), Some(end.tap), cause, &scene, &taken);
        if let Some(leg) = error
            && !matches!(finding.cause, Some(Cause::Error { .. }))
        {
            finding.why.extend(self.error(leg).words(&scene));
        }
        if let Some(tap) = reset.and_then(|back| self.taps.get(back.hops.first()?.tap)) {
            finding.why.push(format!("{} answered with a TCP RST in its name.", tap.place()));
        }
        finding
    }

    /// It left by a device.
    fn outward(&self, end: &End<'_>, told: Option<&Told>, evidence: &Evidence) -> Option<Cause> {
        let (machine, device) = (&end.tap.machine, &end.tap.device);
        let route = told.and_then(|told| told.route.as_ref()?.as_ref().ok());
        if self.world.leads_nowhere(machine, device) {
            return Some(Cause::Nowhere {
                route: route.map(Route::to_string),
                by_default: route.is_some_and(Route::is_default),
                device: device.clone(),
            });
        }
        if let Some(peer) = self.tunnel_end(end) {
            let told = told?;
            return refusal_of(told).or_else(|| silent_hop(told, machine, peer, &evidence.arp));
        }
        let owner = self.world.mac_owner(end.hop.to?);
        Some(Cause::LostOnTheWire {
            to: owner.map(|(m, d)| format!("{}:{}", m.name, d.name)),
            down: owner.is_some_and(|(_, device)| !device.up),
        })
    }

    /// It came in by a device, and nothing left.
    fn inward(
        &self,
        end: &End<'_>,
        told: Option<&Told>,
        error: Option<&Leg>,
        evidence: &Evidence,
    ) -> Option<Cause> {
        let place = end.tap.place();
        if let Some(outer) = end.hop.outer
            && self.world.machine(place).is_some_and(|m| m.device_of(outer.destination).is_some())
        {
            return Some(Cause::NoTunnel);
        }
        // Its TTL, its size, a filter: the machine itself said so.
        if let Some(Leg { kind: Kind::Error { kind, code, .. }, .. }) = error
            && matches!((kind, code), (11, _) | (3, 4 | 9 | 10 | 13))
        {
            return error.map(|leg| self.error(leg));
        }
        let told = told?;
        if told.forwards == Some(false) {
            return Some(Cause::NotForwarding { device: end.tap.device.clone() });
        }
        let (_, destination) = addresses(end.hop);
        refusal_of(told).or_else(|| silent_hop(told, place, destination, &evidence.arp)).or_else(|| {
            let route = told.route.as_ref()?.as_ref().ok()?;
            let (_, device) = route.ways().find(|(_, dev)| self.world.leads_nowhere(place, dev))?;
            Some(Cause::Nowhere {
                route: Some(route.to_string()),
                by_default: route.is_default(),
                device: device.to_owned(),
            })
        })
    }

    fn error(&self, leg: &Leg) -> Cause {
        let from = leg.hops.first().map_or(Ipv4Addr::UNSPECIFIED, |hop| hop.ends.source.0);
        Cause::Error { error: leg.kind.to_string(), from: self.world.with_name(from) }
    }

    pub(super) fn finding(
        &self,
        verdict: Verdict,
        way: Option<Way>,
        tap: Option<&Tap>,
        cause: Cause,
        scene: &Scene<'_>,
        taken: &[(String, Route)],
    ) -> Finding {
        let at = tap.map(|tap| At { place: tap.place().to_owned(), device: tap.device.clone() });
        let mut why = cause.words(scene);
        if let Cause::Refused { .. } = cause
            && let Some(Owner::Pod(pod)) = self.world.owner(scene.destination)
        {
            why.push(format!(
                "See what {} serves: kubectl -n {} describe pod {}",
                pod.called(),
                pod.namespace,
                pod.name
            ));
        }
        let mend = cause.mends(scene, taken);
        Finding { verdict, way, at, cause: Some(cause), why, mend }
    }
}

/// The addresses by which a packet is routed: of a wrapped one, the outer.
fn addresses(hop: &Hop) -> (Ipv4Addr, Ipv4Addr) {
    hop.outer.map_or((hop.ends.source.0, hop.ends.destination.0), |outer| (outer.source, outer.destination))
}

fn is_reset(leg: &Leg) -> bool {
    matches!(leg.kind, Kind::Tcp(flags) if flags.has(TcpFlags::RST))
}

/// The first ICMP error about a packet, redirects apart: they are advice.
fn error_about<'j>(journey: &'j Journey, leg: &Leg) -> Option<&'j Leg> {
    journey.errors.iter().find(|error| {
        matches!(error.kind, Kind::Error { kind: 3 | 11 | 12, about, .. }
            if leg.hops.iter().any(|hop| hop.ends == about))
    })
}

/// "Port unreachable" and "protocol unreachable" come from the destination itself.
fn refusing_error(journey: &Journey) -> Option<&Kind> {
    let refuses = |leg: &&Leg| leg.arrived && matches!(leg.kind, Kind::Error { kind: 3, code: 2 | 3, .. });
    journey.errors.iter().find(refuses).map(|leg| &leg.kind)
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
