//! Services, as `podwire service list` and `podwire bpf lb list|connections` show them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::masquerade::Traffic;
use super::render::table;
use crate::datapath::{Backends, Caller, Frontend, ServiceTable};
use crate::services::balanced::Connection;
use crate::services::plan::Plan;

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRow {
    /// `namespace/service:port`; empty where only the datapath was asked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `ClusterIP` or `NodePort`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whose calls it is for: `inside` or `outside`.
    pub callers: String,
    /// Address and port; 0.0.0.0 stands for every address of every node.
    pub frontend: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// Addresses and ports of those who answer; if there is none, who calls is refused.
    pub backends: Vec<String>,
    /// Seconds that a client may be silent and still come back to the same backend; 0 if any will do.
    pub affinity_seconds: u32,
    /// How a backend is chosen: `maglev` or `random`.
    pub algorithm: String,
}

/// What the API server has told.
pub fn of_plan(plan: &Plan) -> Vec<ServiceRow> {
    plan.ports.iter().map(|port| row(port.name.clone(), port.frontend, &port.backends)).collect()
}

/// What stands in the maps.
pub fn of_maps(maps: &ServiceTable) -> Vec<ServiceRow> {
    maps.frontends.iter().map(|(frontend, backends)| row(String::new(), *frontend, backends)).collect()
}

fn row(name: String, frontend: Frontend, backends: &Backends) -> ServiceRow {
    ServiceRow {
        name,
        kind: if frontend.is_node_port() { "NodePort" } else { "ClusterIP" }.into(),
        callers: match frontend.caller {
            Caller::Inside => "inside",
            Caller::Outside => "outside",
        }
        .into(),
        algorithm: if backends.maglev { "maglev" } else { "random" }.into(),
        frontend: frontend.at.to_string(),
        protocol: frontend.protocol.to_string(),
        backends: backends.at.iter().map(ToString::to_string).collect(),
        affinity_seconds: backends.affinity_seconds,
    }
}

/// `podwire service list`.
pub fn services(rows: &[ServiceRow]) -> String {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.name.clone(),
                row.kind.clone(),
                format!("{}/{}", row.frontend, row.protocol),
                row.callers.clone(),
                affinity(row),
                backends(row),
            ]
        })
        .collect();
    table(&["SERVICE", "TYPE", "FRONTEND", "CALLERS", "AFFINITY", "BACKENDS"], &cells)
}

/// `podwire bpf lb list`.
pub fn load_balancing(rows: &[ServiceRow]) -> String {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                format!("{}/{}", row.frontend, row.protocol),
                row.callers.clone(),
                row.algorithm.clone(),
                affinity(row),
                backends(row),
            ]
        })
        .collect();
    table(&["SERVICE ADDRESS", "CALLERS", "ALGORITHM", "AFFINITY", "BACKEND ADDRESSES"], &cells)
}

/// A connection that is balanced packet by packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BalancedRow {
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// As [`super::masquerade::ConnectionRow::state`].
    pub state: String,
    /// Who calls.
    pub caller: String,
    /// What is called.
    pub service: String,
    /// Whom the backend sees; the caller, unless its answers would miss this node.
    pub seen: String,
    /// Who answers.
    pub backend: String,
    /// Seconds that it may go on being silent.
    pub expires_in: u64,
    /// What the caller sent.
    pub sent: Traffic,
    /// What it got.
    pub received: Traffic,
}

impl BalancedRow {
    /// A connection at a time since boot.
    pub fn new(connection: &Connection, now: Duration) -> Self {
        let (protocol, caller, service) = Connection::ends(&connection.caller_tuple());
        let (_, seen, backend) = Connection::ends(&connection.backend_tuple());
        let [sent, received] = connection.traffic().map(|(packets, bytes)| Traffic { packets, bytes });
        let (state, expires_in) = (connection.state().to_string(), connection.remaining(now).as_secs());
        Self { protocol, state, caller, service, seen, backend, expires_in, sent, received }
    }
}

/// `podwire bpf lb connections`.
pub fn balanced(rows: &[BalancedRow]) -> String {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.protocol.clone(),
                row.state.clone(),
                row.caller.clone(),
                row.service.clone(),
                if row.seen == row.caller { "-".into() } else { row.seen.clone() },
                row.backend.clone(),
                format!("{}s", row.expires_in),
                row.sent.packets.to_string(),
                row.received.packets.to_string(),
            ]
        })
        .collect();
    let header = [
        "PROTOCOL",
        "STATE",
        "CALLER",
        "SERVICE ADDRESS",
        "SEEN AS",
        "BACKEND",
        "EXPIRES",
        "TX PACKETS",
        "RX PACKETS",
    ];
    table(&header, &cells)
}

fn affinity(row: &ServiceRow) -> String {
    if row.affinity_seconds == 0 { "-".into() } else { format!("{}s", row.affinity_seconds) }
}

fn backends(row: &ServiceRow) -> String {
    if row.backends.is_empty() { "none: refused".into() } else { row.backends.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_without_backends_says_what_becomes_of_callers() {
        let row = |backends: &[&str], affinity_seconds, kind: &str, frontend: &str| ServiceRow {
            name: "default/webpod:http".into(),
            kind: kind.into(),
            callers: "inside".into(),
            frontend: frontend.into(),
            protocol: "TCP".into(),
            backends: backends.iter().map(ToString::to_string).collect(),
            affinity_seconds,
            algorithm: "random".into(),
        };
        let rows = [
            row(&["10.244.0.2:80", "10.244.1.2:80"], 0, "ClusterIP", "10.96.0.20:80"),
            row(&[], 30, "NodePort", "0.0.0.0:30080"),
        ];
        assert_eq!(
            services(&rows),
            "SERVICE              TYPE       FRONTEND           CALLERS  AFFINITY  BACKENDS\n\
             default/webpod:http  ClusterIP  10.96.0.20:80/TCP  inside   -         10.244.0.2:80, 10.244.1.2:80\n\
             default/webpod:http  NodePort   0.0.0.0:30080/TCP  inside   30s       none: refused\n"
        );
        assert!(
            load_balancing(&rows)
                .starts_with("SERVICE ADDRESS    CALLERS  ALGORITHM  AFFINITY  BACKEND ADDRESSES\n")
        );
    }
}
