//! Leader election: of several operators one works, the one that holds a Lease.
//!
//! Clocks of different machines are never compared: a Lease counts as abandoned when this process has seen it unchanged for
//! its whole duration. The leader stops before that: its own deadline is shorter, and runs from before its last renewal.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

/// So long after its last renewal a Lease may be taken.
pub const DURATION: Duration = Duration::from_secs(15);
/// So long after its last renewal the leader stops if it cannot renew.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// Pause between renewals, and between looks at the Lease of another.
pub const PERIOD: Duration = Duration::from_secs(2);

/// What to do about the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nobody has it, or it is abandoned: try to take it.
    Take,
    /// It is ours: renew it.
    Renew,
    /// Another has it.
    Wait,
}

/// What was last seen of the Lease, and since when it is so.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    last: Option<(LeaseSpec, Instant)>,
}

impl Observed {
    /// Decides by what the API server says now.
    pub fn decide(&mut self, spec: &LeaseSpec, identity: &str, now: Instant) -> Decision {
        if self.last.as_ref().is_none_or(|(seen, _)| seen != spec) {
            self.last = Some((spec.clone(), now));
        }
        let since = self.last.as_ref().map_or(now, |(_, since)| *since);
        match spec.holder_identity.as_deref() {
            None | Some("") => Decision::Take,
            Some(holder) if holder == identity => Decision::Renew,
            Some(_) => {
                let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
                let duration = seconds.map_or(DURATION, Duration::from_secs);
                if now.duration_since(since) >= duration { Decision::Take } else { Decision::Wait }
            }
        }
    }
}

/// The Lease as this process wants it.
fn held(before: &LeaseSpec, identity: &str, now: Timestamp) -> LeaseSpec {
    let ours = before.holder_identity.as_deref() == Some(identity);
    let changes = before.lease_transitions.unwrap_or(0);
    LeaseSpec {
        holder_identity: Some(identity.into()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: before.acquire_time.clone().filter(|_| ours).or(Some(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if ours { changes } else { changes.saturating_add(1) }),
        ..LeaseSpec::default()
    }
}

/// One candidate.
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
    observed: Observed,
    /// Until when this process may act as leader.
    until: Option<Instant>,
}

impl Candidate {
    /// A candidate for the Lease `name`. No two processes, not even one after the other, may have the same `identity`.
    pub fn new(client: Client, namespace: &str, name: &str, identity: String) -> Self {
        let api = Api::namespaced(client, namespace);
        Self { api, name: name.into(), identity, observed: Observed::default(), until: None }
    }

    /// One try to take or renew the Lease. True if this process leads after it.
    pub async fn attempt(&mut self) -> kube::Result<bool> {
        // From before the request: whoever sees the renewal sees it later.
        let started = Instant::now();
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                spec: Some(held(&LeaseSpec::default(), &self.identity, Timestamp::now())),
            };
            let made = self.api.create(&PostParams::default(), &lease).await;
            return self.outcome(made, started);
        };
        let spec = lease.spec.take().unwrap_or_default();
        if self.observed.decide(&spec, &self.identity, started) == Decision::Wait {
            self.until = None;
            return Ok(false);
        }
        // The resourceVersion makes the API server refuse what is built on an old Lease.
        lease.spec = Some(held(&spec, &self.identity, Timestamp::now()));
        let written = self.api.replace(&self.name, &PostParams::default(), &lease).await;
        self.outcome(written, started)
    }

    fn outcome(&mut self, written: kube::Result<Lease>, started: Instant) -> kube::Result<bool> {
        match written {
            Ok(_) => self.until = Some(started + DEADLINE),
            // Another was quicker.
            Err(kube::Error::Api(status)) if status.code == 409 => self.until = None,
            Err(cause) => return Err(cause),
        }
        Ok(self.until.is_some())
    }

    /// Renews for as long as that goes; returns when this process must no longer act.
    pub async fn keep(&mut self) {
        while let Some(until) = self.until {
            let until = tokio::time::Instant::from_std(until);
            tokio::time::sleep_until(until.min(tokio::time::Instant::now() + PERIOD)).await;
            match tokio::time::timeout_at(until, self.attempt()).await {
                Ok(Ok(_)) => {}
                Ok(Err(cause)) => {
                    tracing::warn!("Lease {} cannot be renewed: {cause} (trying again)", self.name);
                }
                Err(_) => self.until = None,
            }
            if self.until.is_some_and(|until| Instant::now() >= until) {
                self.until = None;
            }
        }
    }

    /// Gives the Lease back, so that the next one need not wait.
    pub async fn release(&mut self) -> kube::Result<()> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else { return Ok(()) };
        let mut spec = lease.spec.take().unwrap_or_default();
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return Ok(());
        }
        self.until = None;
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        lease.spec = Some(spec);
        self.api.replace(&self.name, &PostParams::default(), &lease).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, second: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            renew_time: Timestamp::from_second(second).ok().map(MicroTime),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_is_abandoned_when_it_was_seen_unchanged_for_its_duration() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut observed = Observed::default();
        // However old or new its times are: they are another machine's.
        assert_eq!(observed.decide(&lease("a", 0), "b", at(0)), Decision::Wait);
        assert_eq!(observed.decide(&lease("a", 0), "b", at(14)), Decision::Wait);
        assert_eq!(observed.decide(&lease("a", 1), "b", at(14)), Decision::Wait);
        assert_eq!(observed.decide(&lease("a", 1), "b", at(28)), Decision::Wait);
        assert_eq!(observed.decide(&lease("a", 1), "b", at(29)), Decision::Take);
        assert_eq!(observed.decide(&lease("b", 2), "b", at(30)), Decision::Renew);
        assert_eq!(observed.decide(&LeaseSpec::default(), "b", at(31)), Decision::Take, "released");
    }

    #[test]
    fn the_leader_stops_before_its_lease_can_be_taken() {
        assert!(DEADLINE + PERIOD < DURATION);
    }

    #[test]
    fn a_change_of_hands_is_counted_and_a_renewal_is_not() {
        let first = held(&LeaseSpec::default(), "a", Timestamp::UNIX_EPOCH);
        let renewed = held(&first, "a", Timestamp::from_second(5).unwrap());
        assert_eq!(renewed.acquire_time, first.acquire_time);
        assert_ne!(renewed.renew_time, first.renew_time);
        assert_eq!(renewed.lease_transitions, first.lease_transitions);
        let taken = held(&renewed, "b", Timestamp::from_second(9).unwrap());
        assert_eq!(taken.lease_transitions, Some(2));
        assert_ne!(taken.acquire_time, renewed.acquire_time);
    }
}
