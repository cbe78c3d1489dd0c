//! Brings the kernel's table to what is planned.

use std::collections::{BTreeMap, BTreeSet};

use podwire_api::names::ENDPOINT_DEVICE_PREFIX;
use serde::{Deserialize, Serialize};

use super::Route;
use super::diff::{diff, kernel_form};
use super::plan::Plan;
use crate::netlink::{Netlink, NetlinkError, Op};
use crate::store::{Store, StoreError};

/// File of the agent's own record of routes, in its state directory.
const RECORD: &str = "routes.json";

/// A run failed as a whole.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The kernel could not be asked.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The record could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a run found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Routes that are wanted.
    pub desired: usize,
    /// Routes that are wanted and installed.
    pub installed: usize,
    /// What was changed, in words.
    pub changes: Vec<String>,
    /// What is not as it should be, in words.
    pub errors: Vec<String>,
}

/// The reconciler with its record.
#[derive(Debug)]
pub struct Reconciler {
    store: Store,
    own: BTreeSet<Route>,
}

impl Reconciler {
    /// Takes the record of the agent before up.
    pub fn open(store: Store) -> Result<Self, StoreError> {
        let own = store.load_file(RECORD)?;
        Ok(Self { store, own })
    }

    /// One run: looks at the whole table and brings it to the plan.
    pub fn run(&mut self, netlink: &mut Netlink, plan: &Plan) -> Result<Outcome, ReconcileError> {
        let devices: BTreeMap<String, u32> =
            netlink.links()?.into_iter().map(|l| (l.name, l.index)).collect();
        let mut actions = diff(&plan.routes, &self.own, &netlink.routes()?, &devices);
        if plan.partial {
            actions.delete.clear();
        }
        // What is there already is ours if it was before, or if it hangs on a pod's device; somebody else's route that happens
        // to be the same stays theirs.
        let kept = |r: &&Route| self.own.contains(*r) || r.dev.starts_with(ENDPOINT_DEVICE_PREFIX);
        let changed = || actions.add.iter().chain(&actions.replace);
        let refused = |r: &&Route| !actions.conflicts.iter().any(|(c, _)| c == *r);
        let mut after: BTreeSet<Route> =
            plan.routes.iter().filter(kept).filter(refused).chain(changed()).cloned().collect();
        if plan.partial {
            after.extend(self.own.iter().cloned());
        }
        // On record before it is installed, so that it is known as ours whenever the agent is killed.
        self.record(self.own.union(&after).cloned().collect())?;
        let mut outcome = Outcome {
            desired: plan.routes.len(),
            installed: actions.present,
            changes: Vec::new(),
            errors: plan.errors.iter().chain(actions.conflicts.iter().map(|(_, why)| why)).cloned().collect(),
        };
        let mut carry_out = |verb: &str, route: &Route, op: Option<Op>| {
            let Some(op) = op else { return false };
            match netlink.one(op) {
                Ok(_) => outcome.changes.push(format!("{verb} {route}")),
                // The device or the route went away meanwhile; the monitor has us run again.
                Err(e) if e.is_absent() => return false,
                Err(e) => {
                    outcome.errors.push(e.to_string());
                    return false;
                }
            }
            true
        };
        let form = |route: &Route| kernel_form(route, &devices);
        // What is no longer wanted goes last: there is no moment without a way.
        let mut added = 0;
        // Link routes first: a gateway must be reachable before it is used.
        let (link, via): (Vec<_>, Vec<_>) = actions.add.iter().partition(|r| r.via.is_none());
        for route in link {
            added += usize::from(carry_out("added", route, form(route).map(|f| f.add())));
        }
        for route in &actions.replace {
            added += usize::from(carry_out("replaced", route, form(route).map(|f| f.replace())));
        }
        for route in via {
            added += usize::from(carry_out("added", route, form(route).map(|f| f.add())));
        }
        for route in &actions.delete {
            carry_out("deleted", route, form(route).map(|f| f.delete()));
        }
        outcome.installed += added;
        self.record(after)?;
        Ok(outcome)
    }

    fn record(&mut self, routes: BTreeSet<Route>) -> Result<(), StoreError> {
        if routes != self.own {
            self.store.save_file(RECORD, &routes)?;
            self.own = routes;
        }
        Ok(())
    }
}
