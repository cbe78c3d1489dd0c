//! The maps of services: what stands in them, and how they are brought to what should.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
};

use aya::maps::{Array, HashMap, MapData, MapError};
use podwire_abi::{
    PodCidr, from_wire, maps,
    service::{
        Affinity, AffinityKey, BackendKey, Balanced, MAGLEV_SIZE, MAX_BACKENDS, MAX_SERVICES, MaglevTable,
        NO_SERVICES, Service, ServiceConfig, ServiceKey, Target, Tuple, config_flags, flags, scope,
    },
    to_wire,
};

use super::{Datapath, DatapathError, Pins, Result, lock, sys, typed};
use crate::services::maglev;

/// A protocol with ports that services can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The one of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        match name {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            _ => None,
        }
    }

    /// Its number in the IP header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    const fn of_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// Where a service is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// Address and port; 0.0.0.0 stands for every address of every node (NodePort).
    pub at: SocketAddrV4,
    /// Protocol.
    pub protocol: Protocol,
    /// Whose calls it is for.
    pub caller: Caller,
}

/// Who calls a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Caller {
    /// A pod, or a node.
    Inside,
    /// Whoever comes by the wire.
    Outside,
}

impl Caller {
    const fn scope(self) -> u8 {
        match self {
            Self::Inside => scope::INSIDE,
            Self::Outside => scope::OUTSIDE,
        }
    }
}

impl Frontend {
    /// Whether this is a port of every node.
    pub const fn is_node_port(&self) -> bool {
        self.at.ip().is_unspecified()
    }
}

/// Who answers for a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backends {
    /// Addresses and ports; if there is none, whoever calls is refused.
    pub at: BTreeSet<SocketAddrV4>,
    /// So many seconds may a client be silent and still come back to the same one; 0 if any will do.
    pub affinity_seconds: u32,
    /// Callers are spread by a hash of their ends, the same on every node, instead of at random.
    pub maglev: bool,
}

/// What the maps of services should hold, or hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceTable {
    /// Every address that is a service's, with ports or without: nothing that is sent there leaves the node.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Frontends and who answers there.
    pub frontends: BTreeMap<Frontend, Backends>,
    /// Sockets are not given backends: whatever pods send is looked at.
    pub every_packet: bool,
}

/// The maps.
pub(super) struct ServiceMaps {
    services: HashMap<MapData, ServiceKey, Service>,
    backends: HashMap<MapData, BackendKey, Target>,
    config: Array<MapData, ServiceConfig>,
    affinity: HashMap<MapData, AffinityKey, Affinity>,
    maglev: HashMap<MapData, u32, MaglevTable>,
    /// Of the network namespace in which the agent runs.
    netns: u64,
}

/// Connections that are balanced packet by packet.
pub type BalancedConnections = std::collections::HashMap<Tuple, Balanced>;

type Lists = BTreeMap<u32, BTreeMap<u32, Target>>;

fn target(at: SocketAddrV4) -> Target {
    Target { addr: to_wire(*at.ip()), port: at.port().to_be(), pad: 0 }
}

fn socket_address(addr: u32, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(from_wire(addr), u16::from_be(port))
}

fn address_key(ip: Ipv4Addr) -> ServiceKey {
    ServiceKey { addr: to_wire(ip), port: 0, protocol: 0, scope: scope::INSIDE }
}

fn frontend_key(frontend: Frontend) -> ServiceKey {
    let Target { addr, port, .. } = target(frontend.at);
    ServiceKey { addr, port, protocol: frontend.protocol.number(), scope: frontend.caller.scope() }
}

/// The smallest CIDR with all these addresses in it.
fn range_of(addresses: impl IntoIterator<Item = Ipv4Addr>) -> PodCidr {
    let mut all = addresses.into_iter().map(u32::from);
    let Some(first) = all.next() else { return NO_SERVICES };
    let differing = all.fold(0, |bits, address| bits | (address ^ first));
    let prefix = u8::try_from(differing.leading_zeros()).unwrap_or(32);
    PodCidr::new(Ipv4Addr::from(first), prefix)
}

/// Whom a frontend is for, and where it is: for a port of every node, 0.0.0.0 and the port.
type Place = (u8, SocketAddrV4);

/// Where a key of the map is.
fn listed_at(key: ServiceKey) -> Place {
    (key.scope, socket_address(key.addr, key.port))
}

fn places(table: &ServiceTable) -> impl Iterator<Item = Place> {
    let addresses = table.addresses.iter().map(|ip| (scope::INSIDE, SocketAddrV4::new(*ip, 0)));
    addresses.chain(table.frontends.keys().map(|frontend| (frontend.caller.scope(), frontend.at)))
}

/// What the programs must know to find frontends at these places.
fn config_of(places: impl Iterator<Item = Place>, every_packet: bool, host_netns: u64) -> ServiceConfig {
    let mut config = ServiceConfig { host_netns, ..ServiceConfig::default() };
    if every_packet {
        config.flags |= config_flags::EVERY_PACKET;
    }
    let mut addresses = BTreeSet::new();
    let mut ports = BTreeSet::new();
    for (caller, at) in places {
        if caller == scope::OUTSIDE {
            config.flags |= config_flags::OUTSIDE;
        }
        if at.ip().is_unspecified() {
            ports.insert(at.port());
        } else {
            addresses.insert(*at.ip());
        }
    }
    if let (Some(first), Some(last)) = (ports.first(), ports.last()) {
        (config.first_node_port, config.last_node_port) = (*first, *last);
    }
    config.range = range_of(addresses);
    config
}

impl Backends {
    /// Whether there is a choice to be made by a hash.
    fn is_hashed(&self) -> bool {
        self.maglev && (2..=MAGLEV_SIZE).contains(&self.at.len())
    }

    fn maglev_table(&self) -> Option<Box<MaglevTable>> {
        let at: Vec<&SocketAddrV4> = self.at.iter().collect();
        if self.is_hashed() { maglev::table(&at) } else { None }
    }
}

/// An entry that is gone is as good as deleted.
fn unless_gone(result: std::result::Result<(), MapError>) -> std::result::Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        other => other,
    }
}

impl ServiceMaps {
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        Ok(Self {
            services: typed(pins, maps::SERVICES)?,
            backends: typed(pins, maps::BACKENDS)?,
            config: typed(pins, maps::SERVICE_CONFIG)?,
            affinity: typed(pins, maps::AFFINITY)?,
            maglev: typed(pins, maps::MAGLEV)?,
            // A kernel that does not tell knows no calls of 127.0.0.1.
            netns: sys::netns_cookie().unwrap_or(0),
        })
    }

    fn present(&self) -> Result<(BTreeMap<ServiceKey, Service>, Lists)> {
        let services = self.services.iter().collect::<std::result::Result<_, _>>();
        let services = services.map_err(DatapathError::map("read", maps::SERVICES))?;
        let mut lists = Lists::new();
        for entry in &self.backends {
            let (key, backend) = entry.map_err(DatapathError::map("read", maps::BACKENDS))?;
            lists.entry(key.list).or_default().insert(key.slot, backend);
        }
        Ok((services, lists))
    }

    fn set_service(&mut self, key: ServiceKey, service: Service) -> Result<()> {
        self.services.insert(key, service, 0).map_err(DatapathError::map("write", maps::SERVICES))
    }

    fn set_config(&mut self, config: ServiceConfig) -> Result<()> {
        self.config.set(0, config, 0).map_err(DatapathError::map("write", maps::SERVICE_CONFIG))
    }

    fn config(&self) -> Result<ServiceConfig> {
        self.config.get(&0, 0).map_err(DatapathError::map("read", maps::SERVICE_CONFIG))
    }

    /// Numbers of the lists that have a Maglev table.
    fn hashed_lists(&self) -> Result<BTreeSet<u32>> {
        self.maglev
            .keys()
            .collect::<std::result::Result<_, _>>()
            .map_err(DatapathError::map("read", maps::MAGLEV))
    }

    /// Brings the maps to what they should hold. A service is changed as a whole: its new list is complete before it is
    /// pointed to, and the old one goes afterwards. Returns how many services changed.
    fn bring(&mut self, desired: &ServiceTable) -> Result<usize> {
        let (present, mut lists) = self.present()?;
        let hashed = self.hashed_lists()?;
        // As long as both are in the maps, the programs look for both.
        let old = present.keys().copied().map(listed_at);
        self.set_config(config_of(old.chain(places(desired)), desired.every_packet, self.netns))?;
        let mut changed = 0;
        let mut wanted: BTreeSet<ServiceKey> = BTreeSet::new();
        for ip in &desired.addresses {
            let key = address_key(*ip);
            wanted.insert(key);
            if !present.contains_key(&key) {
                self.set_service(key, Service::default())?;
            }
        }
        let mut number = lists.keys().copied().max().unwrap_or(0);
        let mut used = BTreeSet::new();
        for (frontend, backends) in &desired.frontends {
            let key = frontend_key(*frontend);
            wanted.insert(key);
            let at: Vec<Target> = backends.at.iter().map(|at| target(*at)).collect();
            let count = u32::try_from(at.len()).unwrap_or(u32::MAX);
            let before = present.get(&key).copied();
            let same = before.filter(|before| {
                before.count == count
                    && (count == 0 || lists.get(&before.list).is_some_and(|list| list.values().eq(&at)))
                    && backends.is_hashed() == hashed.contains(&before.list)
            });
            let list = match same {
                Some(before) => before.list,
                None if at.is_empty() => 0,
                None => {
                    number = free_number(number, &lists);
                    self.write_list(number, &at)?;
                    if let Some(table) = backends.maglev_table() {
                        self.maglev
                            .insert(number, *table, 0)
                            .map_err(DatapathError::map("write", maps::MAGLEV))?;
                    }
                    lists.insert(number, (0..count).zip(at).collect());
                    number
                }
            };
            used.insert(list);
            let flags = if backends.is_hashed() { flags::MAGLEV } else { 0 };
            let service = Service { list, count, affinity_seconds: backends.affinity_seconds, flags };
            if before != Some(service) {
                self.set_service(key, service)?;
                changed += 1;
            }
        }
        for key in present.keys().filter(|key| !wanted.contains(key)) {
            unless_gone(self.services.remove(key)).map_err(DatapathError::map("write", maps::SERVICES))?;
            changed += 1;
        }
        for (list, slots) in lists.iter().filter(|(list, _)| !used.contains(list)) {
            for slot in slots.keys() {
                unless_gone(self.backends.remove(&BackendKey { list: *list, slot: *slot }))
                    .map_err(DatapathError::map("write", maps::BACKENDS))?;
            }
        }
        for list in hashed.iter().filter(|list| !used.contains(list)) {
            unless_gone(self.maglev.remove(list)).map_err(DatapathError::map("write", maps::MAGLEV))?;
        }
        self.forget_clients(desired)?;
        self.set_config(config_of(places(desired), desired.every_packet, self.netns))?;
        Ok(changed)
    }

    fn write_list(&mut self, list: u32, at: &[Target]) -> Result<()> {
        for (slot, backend) in (0..).zip(at) {
            self.backends
                .insert(BackendKey { list, slot }, backend, 0)
                .map_err(DatapathError::map("write", maps::BACKENDS))?;
        }
        Ok(())
    }

    /// Forgets clients whose backend does not answer for their service any more.
    fn forget_clients(&mut self, desired: &ServiceTable) -> Result<()> {
        let valid: BTreeMap<ServiceKey, &Backends> = desired
            .frontends
            .iter()
            .map(|(frontend, backends)| (frontend_key(*frontend), backends))
            .collect();
        let mut gone = Vec::new();
        for entry in &self.affinity {
            let (key, had) = entry.map_err(DatapathError::map("read", maps::AFFINITY))?;
            let backend = socket_address(had.backend.addr, had.backend.port);
            if !valid.get(&key.service).is_some_and(|backends| backends.at.contains(&backend)) {
                gone.push(key);
            }
        }
        for key in gone {
            unless_gone(self.affinity.remove(&key)).map_err(DatapathError::map("write", maps::AFFINITY))?;
        }
        Ok(())
    }
}

/// The next number under which no list stands; 0 is that of services without backends.
fn free_number(last: u32, lists: &Lists) -> u32 {
    let mut number = last.wrapping_add(1);
    while number == 0 || lists.contains_key(&number) {
        number = number.wrapping_add(1);
    }
    number
}

impl Datapath {
    /// The services that sockets of this node find.
    pub fn services(&self) -> Result<ServiceTable> {
        let maps = lock(&self.inner.services);
        let (services, lists) = maps.present()?;
        let every_packet = maps.config()?.flags & config_flags::EVERY_PACKET != 0;
        drop(maps);
        let mut table = ServiceTable { every_packet, ..ServiceTable::default() };
        for (key, service) in services {
            let Some(protocol) = Protocol::of_number(key.protocol) else {
                table.addresses.insert(from_wire(key.addr));
                continue;
            };
            let caller = if key.scope == scope::OUTSIDE { Caller::Outside } else { Caller::Inside };
            let frontend = Frontend { at: socket_address(key.addr, key.port), protocol, caller };
            let slots = lists.get(&service.list).filter(|_| service.count > 0);
            let at = slots.into_iter().flat_map(BTreeMap::values).map(|b| socket_address(b.addr, b.port));
            let backends = Backends {
                at: at.collect(),
                affinity_seconds: service.affinity_seconds,
                maglev: service.flags & flags::MAGLEV != 0,
            };
            table.frontends.insert(frontend, backends);
        }
        Ok(table)
    }

    /// Makes these the services. What did not change is not touched, and no socket ever finds a service half changed.
    /// Returns how many changed.
    pub fn set_services(&self, desired: &ServiceTable) -> Result<usize> {
        let backends: usize = desired.frontends.values().map(|backends| backends.at.len()).sum();
        let services = desired.addresses.len() + desired.frontends.len();
        // Old lists and new ones stand beside each other for a moment.
        if services > MAX_SERVICES as usize || backends > MAX_BACKENDS as usize / 2 {
            return Err(DatapathError::TooManyServices { services, backends });
        }
        lock(&self.inner.services).bring(desired)
    }

    /// The connections that are balanced packet by packet. What is opened or closed meanwhile may be missing.
    pub fn balanced(&self) -> Result<BalancedConnections> {
        lock(&self.inner.balanced)
            .iter()
            .collect::<std::result::Result<_, _>>()
            .map_err(DatapathError::map("read", maps::BALANCED))
    }

    /// One direction of such a connection, as it is now.
    pub fn balanced_entry(&self, key: &Tuple) -> Result<Option<Balanced>> {
        match lock(&self.inner.balanced).get(key, 0) {
            Ok(entry) => Ok(Some(entry)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(DatapathError::map("read", maps::BALANCED)(error)),
        }
    }

    /// Forgets one direction of such a connection. Idempotent.
    pub fn forget_balanced(&self, key: &Tuple) -> Result<()> {
        unless_gone(lock(&self.inner.balanced).remove(key))
            .map_err(DatapathError::map("write", maps::BALANCED))
    }

    /// Says whether there are such connections of callers of a scope: the programs look for them only then.
    pub fn set_balanced_callers(&self, scope: u8, some: bool) -> Result<()> {
        lock(&self.inner.balanced_callers)
            .set(scope.into(), u32::from(some), 0)
            .map_err(DatapathError::map("write", maps::BALANCED_CALLERS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_the_smallest_that_holds_all() {
        let ip = |a, b| Ipv4Addr::new(10, 96, a, b);
        assert_eq!(range_of([]), NO_SERVICES);
        assert_eq!(range_of([ip(0, 1)]), PodCidr::new(ip(0, 1), 32));
        assert_eq!(range_of([ip(0, 1), ip(0, 10)]), PodCidr::new(ip(0, 0), 28));
        assert_eq!(range_of([ip(0, 10), ip(3, 1), ip(1, 1)]), PodCidr::new(ip(0, 0), 22));
        let all = range_of([Ipv4Addr::new(1, 0, 0, 1), Ipv4Addr::new(200, 0, 0, 1)]);
        assert_eq!((all.net, all.mask), (0, 0), "the CIDR of everything holds every address");
        assert_ne!(to_wire(ip(0, 1)) & NO_SERVICES.mask, NO_SERVICES.net, "no service, no address");
    }

    #[test]
    fn numbers_of_lists_are_free() {
        let lists = Lists::from([(1, BTreeMap::new()), (u32::MAX, BTreeMap::new())]);
        assert_eq!(free_number(1, &lists), 2);
        assert_eq!(free_number(u32::MAX - 1, &lists), 2, "beyond the last comes the first that is free");
    }
}
