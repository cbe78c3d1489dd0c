//! The heart of the agent: which endpoints exist, and [ADD, DEL, CHECK, GC and STATUS](calls) on them.
//!
//! It knows nothing of Kubernetes: what it needs (pod CIDRs, settings, identities) is given to it. An endpoint's record
//! is on disk before anything of it is made and until everything of it is gone.

mod calls;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use ipnet::Ipv4Net;
use podwire_abi::identity::UNMANAGED;

use crate::datapath_ops::DatapathOps;
use crate::endpoint::{Endpoint, Key};
use crate::ipam::Pool;
use crate::netlink::{Netlink, NetlinkError};
use crate::signal::Signal;
use crate::store::{Store, StoreError};
use crate::wiring::{Wiring, abi_endpoint};

/// What the agent decided before it serves pods.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// How pods are wired.
    pub wiring: Wiring,
    /// MTU of pods in bytes.
    pub mtu: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Wiring,
    Ready,
    Unwiring,
}

#[derive(Clone, Debug)]
struct Entry {
    endpoint: Arc<Endpoint>,
    stage: Stage,
    ifindex: u32,
    identity: u32,
    /// Its program is attached as it shall be in the long run.
    settled: bool,
}

#[derive(Debug)]
struct State {
    pool: Pool,
    entries: BTreeMap<Key, Entry>,
    /// Devices whose record could not be read: the address that they hold, if the datapath knows it.
    lost: BTreeMap<String, Option<Ipv4Addr>>,
    last_id: u16,
}

/// An endpoint that is wired, for whoever plans routes, owners or a listing.
#[derive(Clone, Debug)]
pub struct Live {
    /// What is on record.
    pub endpoint: Arc<Endpoint>,
    /// Index of the node's end.
    pub ifindex: u32,
    /// Security identity.
    pub identity: u32,
}

/// The agent's core.
pub struct Core {
    settings: NodeSettings,
    store: Store,
    datapath: Arc<dyn DatapathOps>,
    state: Mutex<State>,
    /// `namespace/pod` to identity, as far as the API server told.
    identities: ArcSwap<BTreeMap<String, u32>>,
    changed: Signal,
    adds: AtomicU64,
}

/// What was found at the start.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Endpoints that live on.
    pub kept: usize,
    /// Endpoints whose device was gone.
    pub orphans: usize,
    /// What could not be restored, in words.
    pub problems: Vec<String>,
}

/// The agent could not take over what is on the node.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state directory is out of order.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kernel could not be asked.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The datapath could not be asked.
    #[error("datapath: {0}")]
    Datapath(crate::datapath_ops::Failure),
}

impl Core {
    /// Takes over what is on the node: endpoints on record whose device lives are kept with their addresses, the others
    /// are collected, and what the datapath knows beyond them is forgotten.
    pub fn restore(
        settings: NodeSettings,
        mut pool: Pool,
        store: Store,
        datapath: Arc<dyn DatapathOps>,
    ) -> Result<(Self, Restored), RestoreError> {
        let mut restored = Restored::default();
        let loaded = store.load()?;
        let known = datapath.endpoints().map_err(RestoreError::Datapath)?;
        let links: BTreeMap<String, u32> =
            Netlink::open()?.links()?.into_iter().map(|l| (l.name, l.index)).collect();
        let mut entries = BTreeMap::new();
        let mut lost = BTreeMap::new();
        for (device, cause) in loaded.unreadable {
            let Some(index) = links.get(&device) else {
                store.remove(&device)?;
                continue;
            };
            let ip = known.iter().find(|(_, e)| e.ifindex == *index).map(|(ip, _)| *ip);
            restored.problems.push(format!(
                "the record of {device} is unreadable ({cause}); its address {} stays reserved; delete and recreate its pod",
                ip.map_or("(unknown)".into(), |ip| ip.to_string())
            ));
            ip.map(|ip| pool.keep(ip, &format!("unknown pod on {device}")));
            lost.insert(device, ip);
        }
        for endpoint in loaded.endpoints {
            let (key, device) = (endpoint.key(), endpoint.key().device());
            let Some(&ifindex) = links.get(&device) else {
                // What the datapath still knows of it goes below.
                store.remove(&device)?;
                restored.orphans += 1;
                continue;
            };
            if !pool.keep(endpoint.ip, &endpoint.owner()) {
                restored.problems.push(format!(
                    "{} and {} both have {} on record; restart {}",
                    endpoint.owner(),
                    pool.used()[&endpoint.ip],
                    endpoint.ip,
                    endpoint.owner()
                ));
            }
            pool.continue_after(endpoint.ip);
            let known_identity = known.iter().find(|(ip, _)| *ip == endpoint.ip).map(|(_, e)| e.identity);
            let identity = known_identity.unwrap_or(UNMANAGED);
            if let Err(cause) = datapath.add_endpoint(endpoint.ip, abi_endpoint(&endpoint, ifindex, identity))
            {
                restored.problems.push(format!("{} ({device}): datapath: {cause}", endpoint.owner()));
            }
            restored.kept += 1;
            let endpoint = Arc::new(endpoint);
            entries.insert(key, Entry { endpoint, stage: Stage::Ready, ifindex, identity, settled: true });
        }
        for (ip, stale) in known {
            let in_use =
                entries.values().any(|e| e.endpoint.ip == ip) || lost.values().any(|l| *l == Some(ip));
            if !in_use && let Err(cause) = datapath.remove_endpoint(ip, stale.ifindex) {
                restored.problems.push(format!("forgetting stale endpoint {ip}: datapath: {cause}"));
            }
        }
        let last_id = entries.values().map(|e| e.endpoint.id).max().unwrap_or(0);
        let state = Mutex::new(State { pool, entries, lost, last_id });
        let identities = ArcSwap::default();
        Ok((
            Self {
                settings,
                store,
                datapath,
                state,
                identities,
                changed: Signal::default(),
                adds: AtomicU64::new(0),
            },
            restored,
        ))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything can panic, so a poisoned lock holds a good state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells when endpoints have come or gone; whoever knows of other changes that concern the controllers tells them here.
    pub fn signal(&self) -> &Signal {
        &self.changed
    }

    /// The state directory.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Every endpoint that is wired.
    pub fn live(&self) -> Vec<Live> {
        let state = self.state();
        let ready = state.entries.values().filter(|e| e.stage == Stage::Ready);
        ready
            .map(|e| Live { endpoint: e.endpoint.clone(), ifindex: e.ifindex, identity: e.identity })
            .collect()
    }

    /// A copy of the addresses in use.
    pub fn pool(&self) -> Pool {
        self.state().pool.clone()
    }

    /// Tells the identities of pods (`namespace/pod`); endpoints whose identity changed are updated in the datapath.
    pub fn set_identities(&self, identities: BTreeMap<String, u32>) -> Vec<String> {
        self.identities.store(Arc::new(identities));
        let identities = self.identities.load();
        let mut problems = Vec::new();
        let mut state = self.state();
        for entry in state.entries.values_mut().filter(|e| e.stage == Stage::Ready) {
            let Some(&identity) = identities.get(&entry.endpoint.owner()) else { continue };
            if identity == entry.identity {
                continue;
            }
            let update = abi_endpoint(&entry.endpoint, entry.ifindex, identity);
            match self.datapath.update_endpoint(entry.endpoint.ip, update) {
                Ok(()) => entry.identity = identity,
                Err(cause) => problems.push(format!("{}: datapath: {cause}", entry.endpoint.owner())),
            }
        }
        problems
    }

    /// Settles one endpoint that was wired lately, if none is being wired now. Returns whether more are left.
    pub fn settle_one(&self) -> Result<bool, String> {
        let (key, entry, left) = {
            let state = self.state();
            let mut open = state.entries.iter().filter(|(_, e)| e.stage == Stage::Ready && !e.settled);
            let Some((key, entry)) = open.next() else { return Ok(false) };
            (key.clone(), entry.clone(), open.next().is_some())
        };
        let outcome = self.datapath.settle_endpoint(entry.ifindex);
        let mut state = self.state();
        match state.entries.get_mut(&key) {
            Some(now) if now.ifindex == entry.ifindex && now.stage == Stage::Ready => {
                // Also when it failed: the filter does the same work, and a restart tries again.
                now.settled = true;
                outcome.map(|()| left).map_err(|e| format!("{}: datapath: {e}", entry.endpoint.owner()))
            }
            _ => {
                drop(state);
                // Deleted meanwhile: what was attached too late goes too.
                self.detach(entry.endpoint.ip, entry.ifindex);
                Ok(left)
            }
        }
    }

    /// How many endpoints were given addresses so far: who sees the same number twice knows that it was quiet.
    pub fn adds(&self) -> u64 {
        self.adds.load(Ordering::Relaxed)
    }

    /// The datapath.
    pub fn datapath(&self) -> &Arc<dyn DatapathOps> {
        &self.datapath
    }

    /// The pod CIDRs out of which addresses are given.
    pub fn pod_cidrs(&self) -> Vec<Ipv4Net> {
        self.state().pool.cidrs().to_vec()
    }
}
