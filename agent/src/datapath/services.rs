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
        Affinity, AffinityKey, BackendKey, MAX_BACKENDS, MAX_SERVICES, NO_SERVICES, Service, ServiceKey,
        Target,
    },
    to_wire,
};

use super::{Datapath, DatapathError, Pins, Result, lock, typed};

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

    const fn number(self) -> u8 {
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
    /// ClusterIP and port.
    pub at: SocketAddrV4,
    /// Protocol.
    pub protocol: Protocol,
}

/// Who answers for a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backends {
    /// Addresses and ports; if there is none, whoever calls is refused.
    pub at: BTreeSet<SocketAddrV4>,
    /// So many seconds may a client be silent and still come back to the same one; 0 if any will do.
    pub affinity_seconds: u32,
}

/// What the maps of services should hold, or hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceTable {
    /// Every address that is a service's, with ports or without: nothing that is sent there leaves the node.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Frontends and who answers there.
    pub frontends: BTreeMap<Frontend, Backends>,
}

/// The maps.
pub(super) struct ServiceMaps {
    services: HashMap<MapData, ServiceKey, Service>,
    backends: HashMap<MapData, BackendKey, Target>,
    range: Array<MapData, PodCidr>,
    affinity: HashMap<MapData, AffinityKey, Affinity>,
}

type Lists = BTreeMap<u32, BTreeMap<u32, Target>>;

fn target(at: SocketAddrV4) -> Target {
    Target { addr: to_wire(*at.ip()), port: at.port().to_be(), pad: 0 }
}

fn socket_address(addr: u32, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(from_wire(addr), u16::from_be(port))
}

fn address_key(ip: Ipv4Addr) -> ServiceKey {
    ServiceKey { addr: to_wire(ip), port: 0, protocol: 0, pad: 0 }
}

fn frontend_key(frontend: Frontend) -> ServiceKey {
    let Target { addr, port, .. } = target(frontend.at);
    ServiceKey { addr, port, protocol: frontend.protocol.number(), pad: 0 }
}

/// The smallest CIDR with all these addresses in it.
fn range_of(addresses: impl IntoIterator<Item = Ipv4Addr>) -> PodCidr {
    let mut all = addresses.into_iter().map(u32::from);
    let Some(first) = all.next() else { return NO_SERVICES };
    let differing = all.fold(0, |bits, address| bits | (address ^ first));
    let prefix = u8::try_from(differing.leading_zeros()).unwrap_or(32);
    PodCidr::new(Ipv4Addr::from(first), prefix)
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
            range: typed(pins, maps::SERVICE_RANGE)?,
            affinity: typed(pins, maps::AFFINITY)?,
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

    fn set_range(&mut self, range: PodCidr) -> Result<()> {
        self.range.set(0, range, 0).map_err(DatapathError::map("write", maps::SERVICE_RANGE))
    }

    /// Brings the maps to what they should hold. A service is changed as a whole: its new list is complete before it is
    /// pointed to, and the old one goes afterwards. Returns how many services changed.
    fn bring(&mut self, desired: &ServiceTable) -> Result<usize> {
        let (present, mut lists) = self.present()?;
        let of_present = present.keys().map(|key| from_wire(key.addr));
        self.set_range(range_of(of_present.chain(desired.addresses.iter().copied())))?;
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
            });
            let list = match same {
                Some(before) => before.list,
                None if at.is_empty() => 0,
                None => {
                    number = free_number(number, &lists);
                    self.write_list(number, &at)?;
                    lists.insert(number, (0..count).zip(at).collect());
                    number
                }
            };
            used.insert(list);
            let service = Service { list, count, affinity_seconds: backends.affinity_seconds };
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
        self.forget_clients(desired)?;
        self.set_range(range_of(desired.addresses.iter().copied()))?;
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
        let (services, lists) = lock(&self.inner.services).present()?;
        let mut table = ServiceTable::default();
        for (key, service) in services {
            let Some(protocol) = Protocol::of_number(key.protocol) else {
                table.addresses.insert(from_wire(key.addr));
                continue;
            };
            let frontend = Frontend { at: socket_address(key.addr, key.port), protocol };
            let slots = lists.get(&service.list).filter(|_| service.count > 0);
            let at = slots.into_iter().flat_map(BTreeMap::values).map(|b| socket_address(b.addr, b.port));
            let backends = Backends { at: at.collect(), affinity_seconds: service.affinity_seconds };
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
