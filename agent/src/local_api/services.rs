//! Services, as `podwire service list` and `podwire bpf lb list` show them.

use serde::{Deserialize, Serialize};

use super::render::table;
use crate::datapath::{Backends, Frontend, ServiceTable};
use crate::services::plan::Plan;

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRow {
    /// `namespace/service:port`; empty where only the datapath was asked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Address and port.
    pub frontend: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// Addresses and ports of those who answer; if there is none, who calls is refused.
    pub backends: Vec<String>,
    /// Seconds that a client may be silent and still come back to the same backend; 0 if any will do.
    pub affinity_seconds: u32,
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
            vec![row.name.clone(), format!("{}/{}", row.frontend, row.protocol), affinity(row), backends(row)]
        })
        .collect();
    table(&["SERVICE", "FRONTEND", "AFFINITY", "BACKENDS"], &cells)
}

/// `podwire bpf lb list`.
pub fn load_balancing(rows: &[ServiceRow]) -> String {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| vec![format!("{}/{}", row.frontend, row.protocol), affinity(row), backends(row)])
        .collect();
    table(&["SERVICE ADDRESS", "AFFINITY", "BACKEND ADDRESSES"], &cells)
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
        let row = |backends: &[&str], affinity_seconds| ServiceRow {
            name: "default/webpod:http".into(),
            frontend: "10.96.0.20:80".into(),
            protocol: "TCP".into(),
            backends: backends.iter().map(ToString::to_string).collect(),
            affinity_seconds,
        };
        let rows = [row(&["10.244.0.2:80", "10.244.1.2:80"], 0), row(&[], 30)];
        assert_eq!(
            services(&rows),
            "SERVICE              FRONTEND           AFFINITY  BACKENDS\n\
             default/webpod:http  10.96.0.20:80/TCP  -         10.244.0.2:80, 10.244.1.2:80\n\
             default/webpod:http  10.96.0.20:80/TCP  30s       none: refused\n"
        );
        assert!(load_balancing(&rows).starts_with("SERVICE ADDRESS    AFFINITY  BACKEND ADDRESSES\n"));
    }
}
