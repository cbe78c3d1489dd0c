//! Connections that are balanced packet by packet: as a person reads them, and which of them may go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;
use std::time::Duration;

use podwire_abi::service::{Balanced, Tuple, scope};
use podwire_abi::{from_wire, to_wire};

use crate::datapath::{BalancedConnections, Datapath, DatapathError};
use crate::masquerade::connections::{HALF, State, end, protocol};

/// A connection: what the caller sends, and what it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// What the caller sends.
    pub call: Option<(Tuple, Balanced)>,
    /// What comes back.
    pub answer: Option<(Tuple, Balanced)>,
}

/// Backends by IP protocol number: those that are in some service's list.
pub type Alive = BTreeSet<(SocketAddrV4, u8)>;

/// Brings the two directions together, in the order of callers.
pub fn connections(entries: BalancedConnections) -> Vec<Connection> {
    let (calls, mut answers): (BTreeMap<_, _>, BTreeMap<_, _>) =
        entries.into_iter().partition(|(_, entry)| entry.call != 0);
    let mut all: Vec<Connection> = calls
        .into_iter()
        .map(|(key, entry)| {
            let other = entry.counterpart(key.protocol);
            let is_its = answers.get(&other).is_some_and(|entry| entry.counterpart(key.protocol) == key);
            let answer = if is_its { answers.remove_entry(&other) } else { None };
            Connection { call: Some((key, entry)), answer }
        })
        .collect();
    all.extend(answers.into_iter().map(|entry| Connection { call: None, answer: Some(entry) }));
    all
}

impl Connection {
    /// Both ends as the caller has them.
    pub fn caller_tuple(&self) -> Tuple {
        match (self.call, self.answer) {
            (Some((key, _)), _) => key,
            (None, Some((key, entry))) => entry.counterpart(key.protocol),
            (None, None) => Tuple { src: 0, dst: 0, sport: 0, dport: 0, protocol: 0, pad: [0; 3] },
        }
    }

    /// Both ends as the backend has them.
    pub fn backend_tuple(&self) -> Tuple {
        match (self.call, self.answer) {
            (Some((key, e)), _) => Tuple { src: e.src, dst: e.dst, sport: e.sport, dport: e.dport, ..key },
            (None, Some((key, _))) => {
                Tuple { src: key.dst, dst: key.src, sport: key.dport, dport: key.sport, ..key }
            }
            (None, None) => self.caller_tuple(),
        }
    }

    fn sides(&self) -> impl Iterator<Item = (Tuple, Balanced)> {
        self.call.into_iter().chain(self.answer)
    }

    /// Its state.
    pub fn state(&self) -> State {
        let bits = |side: Option<(Tuple, Balanced)>| side.map_or(0, |(_, entry)| entry.seen);
        State::of(self.caller_tuple().protocol, bits(self.call), bits(self.answer))
    }

    /// How long it has been silent, by the time since boot.
    fn silent(&self, now: Duration) -> Duration {
        let last = self.sides().map(|(_, entry)| entry.last_seen).max().unwrap_or(0);
        now.saturating_sub(Duration::from_nanos(last))
    }

    /// How long it will be kept if it stays silent.
    pub fn remaining(&self, now: Duration) -> Duration {
        self.state().timeout().saturating_sub(self.silent(now))
    }

    /// Whether it may go: silent for too long, a direction missing, or its backend gone, unless both speak TCP: that they end
    /// themselves.
    pub fn is_over(&self, now: Duration, alive: &Alive) -> bool {
        let backend = self.backend_tuple();
        let at = SocketAddrV4::new(from_wire(backend.dst), u16::from_be(backend.dport));
        let gone = !alive.contains(&(at, backend.protocol)) && self.state() != State::Established;
        let whole = self.call.is_some() && self.answer.is_some();
        gone || self.remaining(now).is_zero() || (!whole && self.silent(now) >= HALF)
    }

    /// `TCP 10.0.0.9:5000 -> 192.168.10.100:30080`, ends as [`Self::caller_tuple`] or [`Self::backend_tuple`] gives them.
    pub fn ends(tuple: &Tuple) -> (String, String, String) {
        (protocol(tuple.protocol), end(tuple.src, tuple.sport), end(tuple.dst, tuple.dport))
    }

    /// Packets and bytes of the call and of the answer.
    pub fn traffic(&self) -> [(u64, u64); 2] {
        [self.call, self.answer].map(|side| side.map_or((0, 0), |(_, e)| (e.packets, e.bytes)))
    }
}

/// One run of the collection. Returns how many connections are left.
pub fn collect(datapath: &Datapath, now: Duration, alive: &Alive) -> Result<usize, DatapathError> {
    let mut kept = [0_usize; 2];
    for connection in connections(datapath.balanced()?) {
        // Looked at twice: meanwhile it may have spoken, or its other half may have come.
        if connection.is_over(now, alive) && again(datapath, &connection)?.is_over(now, alive) {
            for (key, _) in connection.sides() {
                datapath.forget_balanced(&key)?;
            }
        } else {
            for callers in connection.sides().map(|(_, entry)| entry.scope).take(1) {
                kept[usize::from(callers != scope::INSIDE)] += 1;
            }
        }
    }
    for (callers, count) in [scope::INSIDE, scope::OUTSIDE].into_iter().zip(kept) {
        if count == 0 {
            // One that begins just now says so again, with each packet of its.
            datapath.set_balanced_callers(callers, false)?;
        }
    }
    Ok(kept.iter().sum())
}

/// The connection as it is now.
fn again(datapath: &Datapath, connection: &Connection) -> Result<Connection, DatapathError> {
    let (caller, backend) = (connection.caller_tuple(), connection.backend_tuple());
    let answer =
        Tuple { src: backend.dst, dst: backend.src, sport: backend.dport, dport: backend.sport, ..backend };
    let read = |key: Tuple| Ok(datapath.balanced_entry(&key)?.map(|entry| (key, entry)));
    Ok(Connection {
        call: if connection.call.is_some() { read(caller)? } else { None },
        answer: if connection.answer.is_some() { read(answer)? } else { None },
    })
}

/// For tests and tools: a tuple.
pub fn tuple(protocol: u8, from: SocketAddrV4, to: SocketAddrV4) -> Tuple {
    Tuple {
        src: to_wire(*from.ip()),
        dst: to_wire(*to.ip()),
        sport: from.port().to_be(),
        dport: to.port().to_be(),
        protocol,
        pad: [0; 3],
    }
}

#[cfg(test)]
mod tests {
    use podwire_abi::connection::seen;

    use super::*;

    const TCP: u8 = 6;
    const UDP: u8 = 17;
    const SPOKEN: u8 = seen::SYN | seen::DATA;

    fn at(text: &str) -> SocketAddrV4 {
        text.parse().unwrap()
    }

    fn entry(written: Tuple, seconds: u64, seen: u8, call: u8) -> Balanced {
        let Tuple { src, dst, sport, dport, .. } = written;
        let last_seen = seconds * 1_000_000_000;
        let scope = scope::OUTSIDE;
        Balanced { last_seen, packets: 1, bytes: 60, src, dst, sport, dport, seen, call, scope, pad: 0 }
    }

    /// 10.10.1.200:5000 calls 192.168.10.100:30080; 10.244.1.7:80 is asked by 192.168.10.100:5000.
    fn entries(protocol: u8, seen: [u8; 2]) -> BalancedConnections {
        let (caller, service) = (at("10.10.1.200:5000"), at("192.168.10.100:30080"));
        let (backend, own) = (at("10.244.1.7:80"), at("192.168.10.100:5000"));
        let tuple = |from, to| tuple(protocol, from, to);
        BalancedConnections::from([
            (tuple(caller, service), entry(tuple(own, backend), 100, seen[0], 1)),
            (tuple(backend, own), entry(tuple(service, caller), 100, seen[1], 0)),
        ])
    }

    fn alive(protocol: u8) -> Alive {
        Alive::from([(at("10.244.1.7:80"), protocol)])
    }

    #[test]
    fn two_directions_are_one_connection() {
        let all = connections(entries(TCP, [SPOKEN, SPOKEN]));
        assert_eq!(all.len(), 1);
        let own = |text: &str| text.to_owned();
        assert_eq!(
            Connection::ends(&all[0].caller_tuple()),
            (own("TCP"), own("10.10.1.200:5000"), own("192.168.10.100:30080"))
        );
        assert_eq!(
            Connection::ends(&all[0].backend_tuple()),
            (own("TCP"), own("192.168.10.100:5000"), own("10.244.1.7:80"))
        );
        assert_eq!(all[0].state(), State::Established);
        // Each half knows both names too.
        for half in entries(TCP, [SPOKEN, SPOKEN]) {
            let alone = connections([half].into());
            assert_eq!(alone[0].caller_tuple(), all[0].caller_tuple());
            assert_eq!(alone[0].backend_tuple(), all[0].backend_tuple());
        }
    }

    #[test]
    fn what_is_over_goes() {
        let after = Duration::from_secs;
        let one = |protocol, seen| connections(entries(protocol, seen))[0];
        let (udp, tcp) = (one(UDP, [seen::DATA; 2]), one(TCP, [SPOKEN; 2]));
        assert!(!udp.is_over(after(159), &alive(UDP)) && udp.is_over(after(160), &alive(UDP)));
        assert!(!tcp.is_over(after(8099), &alive(TCP)) && tcp.is_over(after(8100), &alive(TCP)));
        // A backend that is gone: who speaks TCP with it ends that himself, others are to get another one.
        let none = Alive::new();
        assert!(udp.is_over(after(100), &none));
        assert!(!tcp.is_over(after(100), &none));
        assert!(one(TCP, [seen::SYN, 0]).is_over(after(100), &none));
        let half = connections(entries(UDP, [seen::DATA; 2]).into_iter().take(1).collect())[0];
        assert!(!half.is_over(after(109), &alive(UDP)) && half.is_over(after(110), &alive(UDP)));
    }
}
