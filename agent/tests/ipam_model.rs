//! No address is ever given twice, under any order of crash, restart and deletion of agent, operator and API server.
//!
//! The operator's planner, its record, the node's pool and its store are the real ones. The API server is a model with versions:
//! a write that is built on an old one is refused. Two operators act, each on caches as old as they come, each of which may stop
//! before any write and go on much later: so the proof does not lean on the election of a leader. A Node that is deleted is a machine that is gone: its pods are dead when another node
//! may get its CIDR; one that only lost its NodeNetwork lives on.
//!
//! The pool lies apart from what the controller manager gives. Where it does not, there are two who give without knowing of each
//! other: a Node that comes after its CIDR was given to another gets it too when the mode becomes kubernetes. The operator tells
//! that fault; it cannot mend it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::jiff::Timestamp;
use podwire_agent::endpoint::Endpoint;
use podwire_agent::ipam::Pool;
use podwire_agent::operator::plan::{may_release, plan};
use podwire_agent::operator::record::Record;
use podwire_agent::operator::view::{Machine, Network, PodIp, View};
use podwire_agent::store::Store;
use podwire_api::values::{IpamMode, Migration, Values};
use proptest::prelude::*;

const NODES: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Copy, Debug)]
enum Cache {
    Nodes,
    Networks,
    Pods,
}

#[derive(Clone, Debug)]
enum Event {
    /// A watch of an operator catches up.
    Refresh(usize, Cache),
    /// An operator decides.
    Plan(usize),
    /// An operator makes its next write.
    Step(usize),
    OperatorCrash(usize),
    /// An operator sees everything, decides and makes all its writes.
    OperatorRound(usize),
    /// An agent that is not delayed: started if need be, its watch fresh, its controller run.
    AgentRound(usize),
    AgentStart(usize),
    /// An agent's watch catches up.
    AgentRefresh(usize),
    /// An agent's controller runs.
    AgentSync(usize),
    AgentKill(usize),
    /// A pod comes; the agent is killed on the way, or not.
    PodAdd(usize, bool),
    /// A pod's address becomes known to the API server.
    PodPost(prop::sample::Index),
    PodDelete(prop::sample::Index, bool),
    NetworkDelete(usize),
    NodeDelete(usize),
    NodeReturn(usize),
    /// Pods of Nodes that are gone are forgotten.
    PodGc,
    PoolGrow,
    Mode(IpamMode, Migration),
    /// The API server dies with each operator's next write under way: made or not, nobody learns of it. When it is back,
    /// watches list anew, operators by their caches, agents by what they see.
    ApiRestart([bool; 2]),
}

fn event() -> impl Strategy<Value = Event> {
    let node = || 0..NODES.len();
    let op = || 0..2_usize;
    let cache = prop_oneof![Just(Cache::Nodes), Just(Cache::Networks), Just(Cache::Pods)];
    let mode =
        prop_oneof![Just(IpamMode::Kubernetes), Just(IpamMode::ClusterPool), Just(IpamMode::ClusterPool)];
    let migration = prop_oneof![Just(Migration::Replace), Just(Migration::SideBySide)];
    prop_oneof![
        8 => (op(), cache).prop_map(|(o, c)| Event::Refresh(o, c)),
        6 => op().prop_map(Event::Plan),
        16 => op().prop_map(Event::Step),
        1 => op().prop_map(Event::OperatorCrash),
        10 => op().prop_map(Event::OperatorRound),
        14 => node().prop_map(Event::AgentRound),
        6 => node().prop_map(Event::AgentStart),
        6 => node().prop_map(Event::AgentRefresh),
        6 => node().prop_map(Event::AgentSync),
        1 => node().prop_map(Event::AgentKill),
        8 => (node(), prop::bool::weighted(0.1)).prop_map(|(n, k)| Event::PodAdd(n, k)),
        3 => any::<prop::sample::Index>().prop_map(Event::PodPost),
        4 => (any::<prop::sample::Index>(), prop::bool::weighted(0.1)).prop_map(|(i, k)| Event::PodDelete(i, k)),
        4 => node().prop_map(Event::NetworkDelete),
        1 => node().prop_map(Event::NodeDelete),
        3 => node().prop_map(Event::NodeReturn),
        1 => Just(Event::PodGc),
        1 => Just(Event::PoolGrow),
        2 => any::<[bool; 2]>().prop_map(Event::ApiRestart),
        5 => (mode, migration).prop_map(|(m, s)| Event::Mode(m, s)),
    ]
}

/// An object with its version.
#[derive(Clone, Debug)]
struct Versioned<T> {
    version: u64,
    object: T,
}

#[derive(Default)]
struct Api {
    version: u64,
    nodes: BTreeMap<String, Machine>,
    networks: BTreeMap<String, Versioned<Network>>,
    record: Option<Versioned<BTreeMap<String, String>>>,
    /// Containers to node and address.
    pods: BTreeMap<String, PodIp>,
    values: Values,
}

impl Api {
    fn next(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    /// Writes a NodeNetwork if it is still the one that was seen.
    fn replace(&mut self, name: &str, seen: u64, change: impl FnOnce(&mut Network)) -> bool {
        let version = self.next();
        let Some(there) = self.networks.get_mut(name).filter(|n| n.version == seen) else { return false };
        change(&mut there.object);
        there.version = version;
        true
    }

    /// Makes a NodeNetwork, or changes what is there.
    fn apply(&mut self, name: &str, change: impl FnOnce(&mut Network)) {
        let version = self.next();
        let uid = format!("{name}-{version}");
        let arrival = Timestamp::from_second(i64::try_from(version).unwrap()).ok();
        let there = self.networks.entry(name.into()).or_insert_with(|| Versioned {
            version,
            object: Network { name: name.into(), uid, arrival, ..Network::default() },
        });
        there.version = version;
        change(&mut there.object);
    }
}

/// One write of an operator.
#[derive(Clone, Debug)]
enum Write {
    DeleteNetwork(String),
    Record(Record, Vec<(String, Ipv4Net)>, Box<View>),
    Cidrs(String, u64, Vec<Ipv4Net>),
    Error(String, u64, Option<String>),
}

#[derive(Default)]
struct Operator {
    values: Option<Values>,
    nodes: BTreeMap<String, Machine>,
    networks: BTreeMap<String, Versioned<Network>>,
    pods: Vec<PodIp>,
    /// The record as it was last read or written.
    record: Option<Versioned<BTreeMap<String, String>>>,
    writes: VecDeque<Write>,
}

struct Agent {
    values: Values,
    pool: Pool,
    seen: Option<Network>,
}

struct Host {
    store: Store,
    _dir: tempfile::TempDir,
    agent: Option<Agent>,
    /// What really runs: containers and their addresses.
    live: BTreeMap<String, Ipv4Addr>,
}

struct World {
    api: Api,
    operators: [Operator; 2],
    hosts: BTreeMap<&'static str, Host>,
    containers: u32,
    /// What operators gave: NodeNetwork's UID and CIDR.
    given: BTreeSet<(String, Ipv4Net)>,
}

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

/// What the controller manager gives.
fn node_cidr(i: usize) -> Ipv4Net {
    [net("10.244.0.0/29"), net("10.244.0.8/29"), net("10.244.0.16/29")][i]
}

impl World {
    /// A pool that is too small for all nodes.
    fn new(mode: IpamMode) -> Self {
        let mut api = Api::default();
        api.values.ipam.mode = mode;
        api.values.ipam.operator.pod_cidr_list = vec![net("172.30.0.0/28")];
        api.values.ipam.operator.mask_size = 29;
        let host = |name| {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path()).unwrap();
            (name, Host { store, _dir: dir, agent: None, live: BTreeMap::new() })
        };
        let hosts = NODES.into_iter().map(host).collect();
        Self { api, operators: Default::default(), hosts, containers: 0, given: BTreeSet::new() }
    }

    fn act(&mut self, event: &Event) {
        match event {
            Event::Refresh(op, cache) => {
                let operator = &mut self.operators[*op];
                match cache {
                    Cache::Nodes => operator.nodes.clone_from(&self.api.nodes),
                    Cache::Networks => operator.networks.clone_from(&self.api.networks),
                    Cache::Pods => operator.pods = self.api.pods.values().cloned().collect(),
                }
            }
            Event::Plan(op) => self.plan(*op),
            Event::Step(op) => self.step(*op),
            Event::OperatorCrash(op) => {
                // The next one lists everything before it acts.
                self.operators[*op] = Operator {
                    nodes: self.api.nodes.clone(),
                    networks: self.api.networks.clone(),
                    pods: self.api.pods.values().cloned().collect(),
                    ..Operator::default()
                };
            }
            Event::OperatorRound(op) => {
                for cache in [Cache::Nodes, Cache::Networks, Cache::Pods] {
                    self.act(&Event::Refresh(*op, cache));
                }
                self.plan(*op);
                while !self.operators[*op].writes.is_empty() {
                    self.step(*op);
                }
            }
            Event::AgentRound(i) => {
                self.start_agent(*i);
                self.act(&Event::AgentRefresh(*i));
                self.sync_agent(*i);
            }
            Event::AgentStart(i) => self.start_agent(*i),
            Event::AgentRefresh(i) => {
                let seen = self.api.networks.get(NODES[*i]).map(|n| n.object.clone());
                if let Some(agent) = &mut self.hosts.get_mut(NODES[*i]).unwrap().agent {
                    agent.seen = seen;
                }
            }
            Event::AgentSync(i) => self.sync_agent(*i),
            Event::AgentKill(i) => self.hosts.get_mut(NODES[*i]).unwrap().agent = None,
            Event::PodAdd(i, killed) => self.add_pod(NODES[*i], *killed),
            Event::PodPost(pick) => {
                let of = |(name, host): (&&'static str, &Host)| {
                    let node = (*name).to_owned();
                    let pods = host.live.iter();
                    pods.map(|(c, ip)| (c.clone(), PodIp { node: node.clone(), ip: *ip })).collect::<Vec<_>>()
                };
                let all: Vec<_> = self.hosts.iter().flat_map(of).collect();
                if !all.is_empty() {
                    let (container, pod) = all[pick.index(all.len())].clone();
                    self.api.pods.insert(container, pod);
                }
            }
            Event::PodDelete(pick, killed) => self.delete_pod(*pick, *killed),
            Event::NetworkDelete(i) => drop(self.api.networks.remove(NODES[*i])),
            Event::NodeDelete(i) => {
                self.api.nodes.remove(NODES[*i]);
                // The machine is gone. Its disk may come back, its pods do not.
                let host = self.hosts.get_mut(NODES[*i]).unwrap();
                host.agent = None;
                host.live.clear();
            }
            Event::NodeReturn(i) => {
                let machine = Machine { internal_ip: None, cidrs: vec![node_cidr(*i)] };
                self.api.nodes.entry(NODES[*i].into()).or_insert(machine);
            }
            Event::PodGc => {
                let nodes = &self.api.nodes;
                self.api.pods.retain(|_, pod| nodes.contains_key(&pod.node));
            }
            Event::PoolGrow => {
                let list = &mut self.api.values.ipam.operator.pod_cidr_list;
                if list.len() == 1 {
                    list.push(net("172.20.0.0/28"));
                }
            }
            Event::Mode(mode, migration) => {
                self.api.values.ipam.mode = *mode;
                self.api.values.ipam.migration = *migration;
            }
            Event::ApiRestart(made) => {
                for (op, made) in made.iter().enumerate() {
                    if *made {
                        self.step(op);
                    }
                    // A write that has failed ends the plan, and what it was built on is read anew.
                    self.operators[op].writes.clear();
                    self.operators[op].record = None;
                    for cache in [Cache::Nodes, Cache::Networks, Cache::Pods] {
                        self.act(&Event::Refresh(op, cache));
                    }
                }
                for i in 0..NODES.len() {
                    self.act(&Event::AgentRefresh(i));
                }
            }
        }
    }

    fn plan(&mut self, op: usize) {
        let operator = &mut self.operators[op];
        let values = operator.values.get_or_insert_with(|| self.api.values.clone()).clone();
        if operator.record.is_none() {
            operator.record.clone_from(&self.api.record);
        }
        let data = operator.record.as_ref().map(|r| r.object.clone()).unwrap_or_default();
        let view = View {
            values,
            services: None,
            nodes: operator.nodes.clone(),
            networks: operator.networks.values().map(|n| n.object.clone()).collect(),
            pods: operator.pods.clone(),
            record: Record::parse(&data).unwrap(),
        };
        let plan = plan(&view);
        let version = |name: &String| operator.networks[name].version;
        let mut writes: VecDeque<Write> = plan.orphans.into_iter().map(Write::DeleteNetwork).collect();
        writes.push_back(Write::Record(plan.record, plan.releases, Box::new(view)));
        writes.extend(
            plan.cidrs.into_iter().map(|(name, cidrs)| Write::Cidrs(name.clone(), version(&name), cidrs)),
        );
        writes.extend(plan.errors.into_iter().map(|(name, e)| Write::Error(name.clone(), version(&name), e)));
        operator.writes = writes;
    }

    fn step(&mut self, op: usize) {
        let operator = &mut self.operators[op];
        let Some(write) = operator.writes.pop_front() else { return };
        let done = match write {
            Write::DeleteNetwork(name) => {
                self.api.networks.remove(&name);
                true
            }
            Write::Record(mut record, releases, view) => {
                for (node, cidr) in releases {
                    let network = self.api.networks.get(&node).map(|n| &n.object);
                    if may_release(&view, cidr, network, self.api.nodes.contains_key(&node)) {
                        record.release(&node, cidr);
                    }
                }
                let seen = operator.record.take();
                if record == view.record {
                    operator.record = seen;
                    true
                } else if seen.map(|r| r.version) == self.api.record.as_ref().map(|r| r.version) {
                    let version = self.api.next();
                    self.api.record = Some(Versioned { version, object: record.data() });
                    operator.record.clone_from(&self.api.record);
                    true
                } else {
                    false
                }
            }
            Write::Cidrs(name, seen, cidrs) => {
                let done = self.api.replace(&name, seen, |n| n.cidrs.clone_from(&cidrs));
                if done {
                    let uid = self.api.networks[&name].object.uid.clone();
                    self.given.insert((uid, cidrs[0]));
                }
                // The real one writes several at once: one that is refused keeps no other from being written.
                true
            }
            Write::Error(name, seen, error) => self.api.replace(&name, seen, |n| n.error = error),
        };
        if !done {
            self.operators[op].writes.clear();
        }
    }

    fn start_agent(&mut self, i: usize) {
        let name = NODES[i];
        let host = self.hosts.get_mut(name).unwrap();
        if host.agent.is_some() || !self.api.nodes.contains_key(name) {
            return;
        }
        let values = self.api.values.clone();
        let (cidrs, pools) = match values.ipam.mode {
            IpamMode::Kubernetes => (vec![node_cidr(i)], Vec::new()),
            IpamMode::ClusterPool => {
                if !self.api.networks.contains_key(name) {
                    self.api.apply(name, |_| {});
                }
                let cidrs = self.api.networks[name].object.cidrs.clone();
                (cidrs, values.ipam.operator.pod_cidr_list.clone())
            }
        };
        // It waits for CIDRs.
        let Ok(mut pool) = Pool::within(&cidrs, &pools) else { return };
        for endpoint in host.store.load().unwrap().endpoints {
            if host.live.contains_key(&endpoint.container_id) {
                assert!(pool.keep(endpoint.ip, &endpoint.owner()), "{} twice on record", endpoint.ip);
                pool.continue_after(endpoint.ip);
            } else {
                host.store.remove(&endpoint.key().device()).unwrap();
            }
        }
        let seen = self.api.networks.get(name).map(|n| n.object.clone());
        host.agent = Some(Agent { values, pool, seen });
    }

    fn sync_agent(&mut self, i: usize) {
        let name = NODES[i];
        let host = self.hosts.get_mut(name).unwrap();
        let Some(agent) = &host.agent else { return };
        let own = (agent.values.ipam.mode == IpamMode::Kubernetes).then(|| vec![node_cidr(i)]);
        let cidrs = agent.seen.as_ref().map(|n| n.cidrs.clone()).unwrap_or_default();
        if own.is_none() && !cidrs.is_empty() && cidrs != agent.pool.cidrs() {
            host.agent = None;
            return;
        }
        let pending = self.api.values.ipam.mode != agent.values.ipam.mode;
        let current = agent.seen.is_some() && own.as_ref().is_none_or(|own| *own == cidrs);
        if agent.seen.is_none() && (pending || !self.api.nodes.contains_key(name)) {
            return;
        }
        if !current && !pending {
            self.api.apply(name, |n| {
                if let Some(own) = own {
                    n.cidrs = own;
                }
            });
        }
        if let Some(seen) = self.api.networks.get(name).map(|n| n.version) {
            let used = agent.pool.used().clone();
            self.api.replace(name, seen, |n| n.used = used);
        }
    }

    fn add_pod(&mut self, name: &'static str, killed: bool) {
        let host = self.hosts.get_mut(name).unwrap();
        let Some(agent) = &mut host.agent else { return };
        self.containers += 1;
        let container_id = format!("c{}", self.containers);
        let Ok(ip) = agent.pool.allocate(&container_id) else { return };
        let endpoint = Endpoint {
            id: 1,
            ip,
            gateway: agent.pool.router(),
            mtu: 1500,
            network: "podwire".into(),
            container_id: container_id.clone(),
            ifname: "eth0".into(),
            netns: String::new(),
            namespace: String::new(),
            pod: String::new(),
        };
        host.store.save(&endpoint).unwrap();
        if killed {
            // On record, but its device was never made.
            host.agent = None;
        } else {
            host.live.insert(container_id, ip);
        }
    }

    fn delete_pod(&mut self, pick: prop::sample::Index, killed: bool) {
        let hosts = self.hosts.values().flat_map(|h| h.live.keys().cloned());
        let all: Vec<String> = hosts.collect();
        if all.is_empty() {
            return;
        }
        let container = &all[pick.index(all.len())];
        let host = self.hosts.values_mut().find(|h| h.live.contains_key(container)).unwrap();
        let Some(agent) = &mut host.agent else { return };
        let ip = host.live.remove(container).unwrap();
        self.api.pods.remove(container);
        if killed {
            // The device is gone, the record is not.
            host.agent = None;
            return;
        }
        let device = podwire_agent::endpoint::Key::new(container, "eth0").device();
        host.store.remove(&device).unwrap();
        agent.pool.free(ip);
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let mut owners: BTreeMap<Ipv4Addr, &str> = BTreeMap::new();
        for (name, host) in &self.hosts {
            for ip in host.live.values() {
                if let Some(other) = owners.insert(*ip, name) {
                    return Err(TestCaseError::fail(format!("{ip} is on {other} and on {name}")));
                }
            }
        }
        let mut held: Vec<(&str, Ipv4Net)> = Vec::new();
        for network in self.api.networks.values().map(|n| &n.object) {
            for cidr in &network.cidrs {
                if !self.given.contains(&(network.uid.clone(), *cidr)) {
                    continue;
                }
                let same = held.iter().find(|(_, other)| other.contains(cidr) || cidr.contains(other));
                prop_assert!(
                    same.is_none(),
                    "{} and {} were both given {cidr}",
                    network.name,
                    same.unwrap().0
                );
                held.push((&network.name, *cidr));
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_address_is_ever_given_twice(
        pool in prop::bool::weighted(0.7),
        events in prop::collection::vec(event(), 1..300),
    ) {
        let mut world = World::new(if pool { IpamMode::ClusterPool } else { IpamMode::Kubernetes });
        for i in 0..NODES.len() {
            world.act(&Event::NodeReturn(i));
        }
        for event in &events {
            world.act(event);
            world.check()?;
        }
    }
}
