//! Connections and exceptions of masquerade, as `podwire bpf nat|ct|ipmasq list` shows them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::render::table;
use crate::masquerade::connections::{Tracked, end, protocol, remote_end};

/// One connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionRow {
    /// `TCP`, `UDP` or `ICMP`.
    pub protocol: String,
    /// The pod's end: address and port, or identifier of an echo.
    pub pod: String,
    /// The other end.
    pub remote: String,
    /// What stands in the pod's place on the wire; the same as `pod` if nothing does.
    pub wire: String,
    /// Something else stands in the pod's place.
    pub translated: bool,
    /// `opening`, `established`, `closing`; `active` for what has no states.
    pub state: String,
    /// Seconds that it may go on being silent.
    pub expires_in: u64,
    /// What left the node.
    pub sent: Traffic,
    /// What came in.
    pub received: Traffic,
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the IP header on.
    pub bytes: u64,
}

impl ConnectionRow {
    /// A connection at a time since boot.
    pub fn new(tracked: &Tracked, now: Duration) -> Self {
        let (pod, wire) = (tracked.pod_key(), tracked.wire_key());
        let traffic = |side: Option<(_, podwire_abi::connection::Connection)>| {
            side.map_or_else(Traffic::default, |(_, c)| Traffic { packets: c.packets, bytes: c.bytes })
        };
        Self {
            protocol: protocol(pod.protocol),
            pod: end(pod.local, pod.local_port),
            remote: remote_end(&pod),
            wire: end(wire.local, wire.local_port),
            translated: tracked.is_translated(),
            state: tracked.state().to_string(),
            expires_in: tracked.remaining(now).as_secs(),
            sent: traffic(tracked.out),
            received: traffic(tracked.back),
        }
    }
}

/// `podwire bpf nat list`: who stands in for whom.
pub fn nat(rows: &[ConnectionRow]) -> String {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .filter(|row| row.translated)
        .map(|row| vec![row.protocol.clone(), row.pod.clone(), row.wire.clone(), row.remote.clone()])
        .collect();
    table(&["PROTOCOL", "POD", "ON THE WIRE", "REMOTE"], &cells)
}

/// `podwire bpf ct list`: every connection.
pub fn connections(rows: &[ConnectionRow]) -> String {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.protocol.clone(),
                row.state.clone(),
                row.pod.clone(),
                row.remote.clone(),
                if row.translated { row.wire.clone() } else { "-".into() },
                format!("{}s", row.expires_in),
                row.sent.packets.to_string(),
                row.sent.bytes.to_string(),
                row.received.packets.to_string(),
                row.received.bytes.to_string(),
            ]
        })
        .collect();
    let header = [
        "PROTOCOL",
        "STATE",
        "POD",
        "REMOTE",
        "TRANSLATED",
        "EXPIRES",
        "TX PACKETS",
        "TX BYTES",
        "RX PACKETS",
        "RX BYTES",
    ];
    table(&header, &cells)
}

/// `podwire bpf ipmasq list`.
pub fn non_masquerade(cidrs: &[String]) -> String {
    let cells: Vec<Vec<String>> = cidrs.iter().map(|cidr| vec![cidr.clone()]).collect();
    table(&["IP PREFIX/ADDRESS"], &cells)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::Ipv4Addr;

    use podwire_abi::connection::{Connection, seen};
    use podwire_abi::to_wire;

    use super::*;
    use crate::masquerade::connections::{key, tracked};

    #[test]
    fn a_connection_reads_from_the_pod_to_the_server() {
        let pod = (Ipv4Addr::new(10, 244, 0, 5), 40_000);
        let node = (Ipv4Addr::new(192, 168, 10, 100), 50_000);
        let server = (Ipv4Addr::new(10, 10, 1, 200), 80);
        let entry = |to: (Ipv4Addr, u16), packets| Connection {
            last_seen: 7_000_000_000,
            packets,
            bytes: packets * 60,
            addr: to_wire(to.0),
            port: to.1.to_be(),
            seen: seen::SYN | seen::DATA,
            ..Connection::default()
        };
        let all = tracked(
            HashMap::from([(key(6, pod, server), entry(node, 3))]),
            HashMap::from([(key(6, node, server), entry(pod, 2))]),
        );
        let rows = [ConnectionRow::new(&all[0], Duration::from_secs(10))];
        assert_eq!(
            nat(&rows),
            "PROTOCOL  POD               ON THE WIRE           REMOTE\n\
             TCP       10.244.0.5:40000  192.168.10.100:50000  10.10.1.200:80\n"
        );
        let text = connections(&rows);
        let words: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(
            words,
            [
                "TCP",
                "established",
                "10.244.0.5:40000",
                "10.10.1.200:80",
                "192.168.10.100:50000",
                "7997s",
                "3",
                "180",
                "2",
                "120"
            ]
        );
        assert_eq!(non_masquerade(&["10.10.0.0/16".into()]), "IP PREFIX/ADDRESS\n10.10.0.0/16\n");
    }
}
