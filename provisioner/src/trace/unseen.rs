//! Flows of which no packet was seen, and Services that nobody serves. Pure.

use std::net::Ipv4Addr;

use super::evidence::{Evidence, refusal_of, silent_hop};
use super::explain::{Case, Finding, Verdict};
use super::follow::Way;
use super::plan::Tap;
use super::probe::Outcome;
use super::route::Ask;
use super::why::{Cause, Scene};
use super::world::Owner;

impl Case<'_> {
    /// The machine that the source is, about its own packet.
    pub(super) fn at_source(&self) -> Option<Ask> {
        let source = &self.plan.source;
        source.pod.is_none().then(|| Ask {
            machine: source.machine.clone(),
            source: None,
            destination: self.plan.target.address,
            by: None,
        })
    }

    /// No packet of the probe was seen.
    pub(super) fn unseen(&self, evidence: &Evidence) -> Finding {
        let source = &self.plan.source;
        let place = &source.name;
        let refused = matches!(evidence.outcome, Outcome::Refused(_));
        let told = self.at_source().and_then(|ask| evidence.routes.get(&ask));
        let silent = evidence.arp.iter().find(|arp| arp.place == *place);
        let cause = match (&self.plan.target.service, &evidence.outcome) {
            (_, Outcome::Answered(_)) => None,
            (Some(_), _) if refused => self.unserved(None).or_else(|| Some(at_source(&evidence.outcome))),
            _ => told
                .and_then(|told| {
                    refusal_of(told)
                        .or_else(|| silent_hop(told, place, self.plan.target.address, &evidence.arp))
                })
                .or_else(|| {
                    silent.map(|arp| Cause::SilentNextHop {
                        route: None,
                        by_default: false,
                        next_hop: arp.address,
                        device: arp.device.clone(),
                    })
                })
                .or_else(|| Some(at_source(&evidence.outcome))),
        };
        let Some(cause) = cause else {
            return Finding {
                verdict: Verdict::Incomplete,
                way: None,
                at: None,
                cause: None,
                why: vec!["The probe was answered, but no tap saw it go.".into()],
                mend: vec!["trace again; if it stays so, report this as a bug".into()],
            };
        };
        let scene = Scene {
            world: self.world,
            flag: self.flag,
            place,
            machine: &source.machine,
            source: source.pod.as_ref().and_then(|pod| pod.ip).unwrap_or(Ipv4Addr::UNSPECIFIED),
            destination: self.plan.target.address,
            what: "packet".into(),
        };
        let by_service = matches!(cause, Cause::NoBackend { .. } | Cause::NoServicePort { .. });
        let verdict = if by_service { Verdict::Refused } else { Verdict::Died };
        let way = (!by_service).then_some(Way::There);
        let mut finding = self.finding(verdict, way, None, cause, &scene, &[]);
        if by_service {
            finding.why.push(format!("{place}'s own kernel refused to connect, so no packet was sent."));
        }
        finding
    }

    /// Why nobody serves what was meant of a Service: at all, or to callers from outside at this node.
    pub(super) fn unserved(&self, at: Option<&Tap>) -> Option<Cause> {
        let service = self.plan.target.service.as_ref()?;
        let called = service.called();
        let Some(port) = self.plan.service_port() else {
            return Some(Cause::NoServicePort { service: called, has: service.serves() });
        };
        if port.backends.is_empty() {
            return Some(Cause::NoBackend { service: called });
        }
        let node = &at.filter(|_| self.plan.target.by_node && service.local_only)?.machine;
        let is_own = |ip| matches!(self.world.owner(ip), Some(Owner::Pod(pod)) if pod.node == *node);
        let served = port.backends.iter().any(|(ip, _)| is_own(*ip));
        (!served).then_some(Cause::NoLocalBackend { service: called })
    }
}

fn at_source(outcome: &Outcome) -> Cause {
    match outcome {
        Outcome::Refused(says) | Outcome::Odd(says) => Cause::RefusedAtSource { says: says.clone() },
        _ => Cause::Unknown,
    }
}
