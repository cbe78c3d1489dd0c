//! The maps of masquerade: connections, the node's addresses by device and destination, destinations that are left out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
};

use aya::maps::{LpmTrie, MapData, MapError, lpm_trie::Key};
use ipnet::Ipv4Net;
use podwire_abi::{
    connection::{Connection, ConnectionKey, MASQUERADE_DEVICE_BITS, MasqueradeKey},
    from_wire, maps, to_wire,
};

use super::{Datapath, DatapathError, Hook, Result, ipcache_key, lock};

/// One of the two directions in which a connection is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// As the pod sends.
    Out,
    /// As the wire brings it.
    In,
}

impl Direction {
    /// Name of the map.
    pub(super) const fn map(self) -> &'static str {
        match self {
            Self::Out => maps::CONNECTIONS_OUT,
            Self::In => maps::CONNECTIONS_IN,
        }
    }
}

/// Entries of one direction.
pub type Connections = HashMap<ConnectionKey, Connection>;

/// The address that stands in for pods, by device and destination.
pub type MasqueradeAddresses = BTreeMap<(u32, Ipv4Net), Ipv4Addr>;

/// An entry that is gone is as good as deleted.
fn unless_gone(result: std::result::Result<(), MapError>) -> std::result::Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes a trie hold what is wanted: first what is new, then without what is old, so that nothing is missing meanwhile.
fn bring<K: aya::Pod>(
    trie: &mut LpmTrie<MapData, K, u32>,
    name: &'static str,
    wanted: impl Iterator<Item = (Key<K>, u32)>,
    is_wanted: impl Fn(&Key<K>) -> bool,
) -> Result<()> {
    let mut present = Vec::new();
    for entry in trie.iter() {
        present.push(entry.map_err(DatapathError::map("read", name))?.0);
    }
    for (key, value) in wanted {
        trie.insert(&key, value, 0).map_err(DatapathError::map("write", name))?;
    }
    for key in present.iter().filter(|key| !is_wanted(key)) {
        unless_gone(trie.remove(key)).map_err(DatapathError::map("write", name))?;
    }
    Ok(())
}

fn address_key(ifindex: u32, net: Ipv4Net) -> Key<MasqueradeKey> {
    let key = MasqueradeKey { ifindex: ifindex.to_be(), dst: to_wire(net.network()) };
    Key::new(MASQUERADE_DEVICE_BITS + u32::from(net.prefix_len()), key)
}

fn net(prefix_len: u32, wire: u32) -> Ipv4Net {
    Ipv4Net::new_assert(from_wire(wire), u8::try_from(prefix_len).unwrap_or(32).min(32))
}

impl Datapath {
    /// Masquerades what leaves by a device, and translates back what comes in by it. Idempotent. The addresses come first:
    /// what leaves by a device without one is dropped.
    pub fn attach_masquerade(&self, ifindex: u32) -> Result<()> {
        // Answers must find back before the first question leaves.
        self.attach(Hook::FromNetwork, ifindex)?;
        self.attach(Hook::ToNetwork, ifindex)
    }

    /// Masquerades at a device no more; `network` says whether packets for pods still come in by it. Idempotent.
    pub fn detach_masquerade(&self, ifindex: u32, network: bool) -> Result<()> {
        self.inner.attachments.detach(Hook::ToNetwork, ifindex)?;
        if network { Ok(()) } else { self.detach_network_device(ifindex) }
    }

    /// Says which address stands in for pods where.
    pub fn set_masquerade_addresses(&self, addresses: &MasqueradeAddresses) -> Result<()> {
        let wanted = addresses.iter().map(|((ifindex, net), ip)| (address_key(*ifindex, *net), to_wire(*ip)));
        bring(&mut lock(&self.inner.masquerade), maps::MASQUERADE, wanted, |key| {
            let data = key.data();
            let length = key.prefix_len().saturating_sub(MASQUERADE_DEVICE_BITS);
            addresses.contains_key(&(u32::from_be(data.ifindex), net(length, data.dst)))
        })
    }

    /// Says which destinations see pods' own addresses.
    pub fn set_non_masquerade(&self, cidrs: &BTreeSet<Ipv4Net>) -> Result<()> {
        let wanted = cidrs.iter().map(|cidr| (ipcache_key(*cidr), 1));
        bring(&mut lock(&self.inner.non_masquerade), maps::NON_MASQUERADE, wanted, |key| {
            cidrs.contains(&net(key.prefix_len(), key.data()))
        })
    }

    /// Which destinations see pods' own addresses.
    pub fn non_masquerade(&self) -> Result<BTreeSet<Ipv4Net>> {
        lock(&self.inner.non_masquerade)
            .iter()
            .map(|entry| entry.map(|(key, _)| net(key.prefix_len(), key.data())))
            .collect::<std::result::Result<_, _>>()
            .map_err(DatapathError::map("read", maps::NON_MASQUERADE))
    }

    /// The connections of one direction. What is opened or closed meanwhile may be missing.
    pub fn connections(&self, direction: Direction) -> Result<Connections> {
        lock(&self.inner.connections[direction as usize])
            .iter()
            .collect::<std::result::Result<_, _>>()
            .map_err(DatapathError::map("read", direction.map()))
    }

    /// One direction of a connection, as it is now.
    pub fn connection(&self, direction: Direction, key: &ConnectionKey) -> Result<Option<Connection>> {
        match lock(&self.inner.connections[direction as usize]).get(key, 0) {
            Ok(connection) => Ok(Some(connection)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(DatapathError::map("read", direction.map())(error)),
        }
    }

    /// Writes one direction of a connection.
    pub fn put_connection(
        &self,
        direction: Direction,
        key: &ConnectionKey,
        connection: Connection,
    ) -> Result<()> {
        lock(&self.inner.connections[direction as usize])
            .insert(key, connection, 0)
            .map_err(DatapathError::map("write", direction.map()))
    }

    /// Forgets one direction of a connection. Idempotent.
    pub fn forget_connection(&self, direction: Direction, key: &ConnectionKey) -> Result<()> {
        unless_gone(lock(&self.inner.connections[direction as usize]).remove(key))
            .map_err(DatapathError::map("write", direction.map()))
    }
}
