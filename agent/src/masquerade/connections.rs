//! Connections as a person reads them, and which of them may go. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use podwire_abi::connection::{Connection, ConnectionKey, seen};
use podwire_abi::{from_wire, to_wire};

use crate::datapath::Connections;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// How long a TCP connection on which both sides have spoken may be silent. This and what follows are the defaults of
/// Cilium's agent: its options `bpf-ct-timeout-regular-tcp`, `-tcp-syn`, `-tcp-fin` and `-any`.
pub const TCP_ESTABLISHED: Duration = Duration::from_secs(8000);
/// How long a TCP connection may take to be answered.
pub const TCP_OPENING: Duration = Duration::from_mins(1);
/// How long a TCP connection that both sides have ended, or one has reset, is kept for what is under way still.
pub const TCP_CLOSING: Duration = Duration::from_secs(10);
/// How long anything else may be silent.
pub const ANY: Duration = Duration::from_mins(1);
/// How long one direction is kept without the other: a program writes them one after the other.
pub const HALF: Duration = Duration::from_secs(10);

/// State of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// TCP, not answered yet.
    Opening,
    /// TCP, both sides have spoken.
    Established,
    /// TCP, ended by both sides or reset.
    Closing,
    /// Of a protocol without states.
    Active,
}

impl State {
    /// The state of a connection, by what was seen ([`seen`]) in either direction; 0 of one that is missing.
    pub const fn of(protocol: u8, one: u8, other: u8) -> Self {
        if protocol != TCP {
            Self::Active
        } else if (one | other) & seen::RST != 0 || one & other & seen::FIN != 0 {
            Self::Closing
        } else if one != 0 && other != 0 && (one | other) & seen::DATA != 0 {
            Self::Established
        } else {
            Self::Opening
        }
    }

    /// How long it may be silent.
    pub const fn timeout(self) -> Duration {
        match self {
            Self::Opening => TCP_OPENING,
            Self::Established => TCP_ESTABLISHED,
            Self::Closing => TCP_CLOSING,
            Self::Active => ANY,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Active => "active",
        })
    }
}

/// A connection: both its directions, if both are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// What leaves.
    pub out: Option<(ConnectionKey, Connection)>,
    /// What comes in.
    pub back: Option<(ConnectionKey, Connection)>,
}

/// Where the other direction of an entry is.
fn counterpart(key: &ConnectionKey, entry: &Connection) -> ConnectionKey {
    ConnectionKey { local: entry.addr, local_port: entry.port, ..*key }
}

/// Brings the two directions together, in the order of pod, protocol and port.
pub fn tracked(out: Connections, mut back: Connections) -> Vec<Tracked> {
    let mut all: Vec<Tracked> = out
        .into_iter()
        .map(|(key, entry)| {
            let other = counterpart(&key, &entry);
            let is_its = back.get(&other).is_some_and(|entry| counterpart(&other, entry) == key);
            let back = if is_its { back.remove_entry(&other) } else { None };
            Tracked { out: Some((key, entry)), back }
        })
        .collect();
    all.extend(back.into_iter().map(|entry| Tracked { out: None, back: Some(entry) }));
    all.sort_by_key(|tracked| {
        let key = tracked.pod_key();
        (
            from_wire(key.local),
            key.protocol,
            u16::from_be(key.local_port),
            from_wire(key.remote),
            key.remote_port,
        )
    });
    all
}

impl Tracked {
    /// The connection as the pod has it.
    pub fn pod_key(&self) -> ConnectionKey {
        match (self.out, self.back) {
            (Some((key, _)), _) => key,
            (None, Some((key, entry))) => counterpart(&key, &entry),
            (None, None) => {
                ConnectionKey { local: 0, remote: 0, local_port: 0, remote_port: 0, protocol: 0, pad: [0; 3] }
            }
        }
    }

    /// The connection as the wire has it.
    pub fn wire_key(&self) -> ConnectionKey {
        match (self.back, self.out) {
            (Some((key, _)), _) => key,
            (None, Some((key, entry))) => counterpart(&key, &entry),
            (None, None) => self.pod_key(),
        }
    }

    /// Whether something else stands in the pod's place on the wire.
    pub fn is_translated(&self) -> bool {
        self.pod_key() != self.wire_key()
    }

    /// Its state.
    pub fn state(&self) -> State {
        let bits = |side: Option<(ConnectionKey, Connection)>| side.map_or(0, |(_, entry)| entry.seen);
        State::of(self.pod_key().protocol, bits(self.out), bits(self.back))
    }

    /// When a packet of it was last seen: nanoseconds since boot.
    fn last_seen(&self) -> u64 {
        let of = |side: Option<(ConnectionKey, Connection)>| side.map_or(0, |(_, entry)| entry.last_seen);
        of(self.out).max(of(self.back))
    }

    /// How long it has been silent, by the time since boot.
    pub fn silent(&self, now: Duration) -> Duration {
        now.saturating_sub(Duration::from_nanos(self.last_seen()))
    }

    /// How long it will be kept if it stays silent.
    pub fn remaining(&self, now: Duration) -> Duration {
        self.state().timeout().saturating_sub(self.silent(now))
    }

    /// Whether it may go: it has been silent for too long, one of its directions is missing, or it has an address that the
    /// node has no more, `own` being those that it has.
    pub fn is_over(&self, now: Duration, own: &BTreeSet<Ipv4Addr>) -> bool {
        let whole = self.out.is_some() && self.back.is_some();
        let address_gone = self.is_translated() && !own.contains(&from_wire(self.wire_key().local));
        self.remaining(now).is_zero() || (!whole && self.silent(now) >= HALF) || address_gone
    }
}

/// Name of a protocol.
pub fn protocol(number: u8) -> String {
    match number {
        ICMP => "ICMP".into(),
        TCP => "TCP".into(),
        UDP => "UDP".into(),
        other => other.to_string(),
    }
}

/// An end of a connection: address and port, or for an echo the identifier.
pub fn end(address: u32, port: u16) -> String {
    format!("{}:{}", from_wire(address), u16::from_be(port))
}

/// The other end: of an echo there is an address only.
pub fn remote_end(key: &ConnectionKey) -> String {
    if key.protocol == ICMP { from_wire(key.remote).to_string() } else { end(key.remote, key.remote_port) }
}

/// For tests and tools: the key of a connection.
pub fn key(protocol: u8, local: (Ipv4Addr, u16), remote: (Ipv4Addr, u16)) -> ConnectionKey {
    ConnectionKey {
        local: to_wire(local.0),
        remote: to_wire(remote.0),
        local_port: local.1.to_be(),
        remote_port: remote.1.to_be(),
        protocol,
        pad: [0; 3],
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const POD: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 244, 0, 5), 40_000);
    const NODE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 168, 10, 100), 50_000);
    const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 10, 1, 200), 80);

    fn entry(to: (Ipv4Addr, u16), at: u64, seen: u8) -> Connection {
        let last_seen = at * 1_000_000_000;
        Connection { last_seen, addr: to_wire(to.0), port: to.1.to_be(), seen, ..Connection::default() }
    }

    fn connection(protocol: u8, out: (u64, u8), back: (u64, u8)) -> Tracked {
        let all = tracked(
            HashMap::from([(key(protocol, POD, SERVER), entry(NODE, out.0, out.1))]),
            HashMap::from([(key(protocol, NODE, SERVER), entry(POD, back.0, back.1))]),
        );
        assert_eq!(all.len(), 1);
        all[0]
    }

    fn own() -> BTreeSet<Ipv4Addr> {
        BTreeSet::from([NODE.0])
    }

    fn after(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn states_follow_what_was_seen() {
        use seen::{DATA, FIN, RST, SYN};
        for (out, back, state) in [
            (SYN, 0, State::Opening),
            (SYN, SYN, State::Opening),
            (SYN | DATA, SYN, State::Established),
            (SYN | DATA, SYN | DATA | FIN, State::Established),
            (SYN | DATA | FIN, SYN | DATA | FIN, State::Closing),
            (SYN, DATA | RST, State::Closing),
            (DATA, DATA, State::Established),
        ] {
            assert_eq!(connection(TCP, (1, out), (1, back)).state(), state, "{out} {back}");
        }
        assert_eq!(connection(UDP, (1, DATA), (1, 0)).state(), State::Active);
    }

    #[test]
    fn each_state_has_its_patience() {
        use seen::{DATA, FIN, SYN};
        for (protocol, out, back, seconds) in [
            (TCP, SYN, 0, 60),
            (TCP, SYN | DATA, SYN | DATA, 8000),
            (TCP, SYN | DATA | FIN, SYN | DATA | FIN, 10),
            (UDP, DATA, DATA, 60),
            (ICMP, DATA, DATA, 60),
        ] {
            // The direction that spoke last counts.
            let tracked = connection(protocol, (100, out), (90, back));
            assert!(!tracked.is_over(after(100 + seconds - 1), &own()), "{tracked:?}");
            assert_eq!(tracked.remaining(after(100 + seconds - 1)), after(1));
            assert!(tracked.is_over(after(100 + seconds), &own()), "{tracked:?}");
        }
    }

    #[test]
    fn halves_and_lost_addresses_go() {
        let out = HashMap::from([(key(UDP, POD, SERVER), entry(NODE, 100, seen::DATA))]);
        // The port on the wire is another connection's by now.
        let other = (POD.0, 1);
        let back = HashMap::from([(key(UDP, NODE, SERVER), entry(other, 100, seen::DATA))]);
        let halves = tracked(out, back);
        assert_eq!(halves.len(), 2);
        for half in &halves {
            assert!(half.is_translated());
            assert!(!half.is_over(after(109), &own()), "the other half may be on its way");
            assert!(half.is_over(after(110), &own()));
        }
        let whole = connection(UDP, (100, seen::DATA), (100, seen::DATA));
        assert!(!whole.is_over(after(100), &own()));
        assert!(whole.is_over(after(100), &BTreeSet::new()), "nobody answers to an address that is gone");
        // One that came from outside has the pod's own address, which is none of the node's.
        let direct = tracked(
            HashMap::from([(key(UDP, POD, SERVER), entry(POD, 100, seen::DATA))]),
            HashMap::from([(key(UDP, POD, SERVER), entry(POD, 100, seen::DATA))]),
        );
        assert!(!direct[0].is_translated() && !direct[0].is_over(after(100), &own()));
    }
}
