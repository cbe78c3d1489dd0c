//! Answers as a person reads them. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{EndpointRow, IpcacheRow, MetricRow, Status};

/// A table: columns as wide as their widest cell, two spaces between.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|h| h.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            let _ = write!(text, "{cell:width$}  ");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    };
    let mut out = line(header.to_vec());
    for row in rows {
        out.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    out
}

/// `podwire config view`: a key and its value a line, the values aligned.
pub fn config(config: &BTreeMap<String, String>) -> String {
    let width = config.keys().map(String::len).max().unwrap_or(0);
    config.iter().fold(String::new(), |mut out, (key, value)| {
        let _ = writeln!(out, "{}", format!("{key:width$}  {value}").trim_end());
        out
    })
}

/// `podwire endpoint list`.
pub fn endpoints(rows: &[EndpointRow]) -> String {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|r| {
            vec![
                r.id.to_string(),
                r.identity.to_string(),
                r.ipv4.to_string(),
                r.pod.clone(),
                r.device.clone(),
                r.mac.clone(),
            ]
        })
        .collect();
    table(&["ID", "IDENTITY", "IPv4", "POD", "DEVICE", "MAC"], &cells)
}

/// `podwire bpf ipcache list`.
pub fn ipcache(rows: &[IpcacheRow]) -> String {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|r| {
            let node = if r.node.is_unspecified() { "-".into() } else { r.node.to_string() };
            vec![r.prefix.to_string(), identity(r.identity), node, r.name.clone()]
        })
        .collect();
    table(&["PREFIX", "IDENTITY", "NODE", "NAME"], &cells)
}

fn identity(number: u32) -> String {
    use podwire_abi::identity::{HOST, KUBE_APISERVER, REMOTE_NODE, UNMANAGED, WORLD};
    let name = match number {
        HOST => "host",
        WORLD => "world",
        UNMANAGED => "unmanaged",
        REMOTE_NODE => "remote-node",
        KUBE_APISERVER => "kube-apiserver",
        _ => return number.to_string(),
    };
    format!("{number} ({name})")
}

/// `podwire bpf metrics list`.
pub fn metrics(rows: &[MetricRow]) -> String {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|r| vec![r.point.clone(), r.reason.clone(), r.packets.to_string(), r.bytes.to_string()])
        .collect();
    table(&["POINT", "REASON", "PACKETS", "BYTES"], &cells)
}

/// `podwire status`.
pub fn status(status: &Status) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "{:<18}{text}", format!("{name}:"));
    };
    let version = &status.version;
    line("Agent", format!("{} (podwire {version})", if status.ready { "Ready" } else { "Not ready" }));
    line("API server", status.api_server.clone());
    match &status.network {
        None => line("Node", status.node.clone()),
        Some(network) => {
            line("Node", format!("{} {} on {}", status.node, network.node_ip, network.device));
            let cidrs: Vec<String> = network.pod_cidrs.iter().map(ToString::to_string).collect();
            let cidrs = cidrs.join(", ");
            let old: Vec<String> = network.old_pod_cidrs.iter().map(ToString::to_string).collect();
            let old =
                if old.is_empty() { String::new() } else { format!("; pods of {} live on", old.join(", ")) };
            line(
                "IPAM",
                format!("{}: {}/{} allocated from {cidrs}{old}", network.ipam, network.used, network.total),
            );
            line("Router", format!("{} on {}", network.router_ip, podwire_api::names::HOST_DEVICE));
            let per_pod = if network.endpoint_routes { "a route per pod" } else { "one route for all pods" };
            line("Routing", format!("{}, {per_pod}, MTU {}", network.routing_mode, network.mtu));
            line("Routes", format!("{} of {} installed", network.routes.installed, network.routes.desired));
            line("Datapath", format!("{}, {} endpoints", network.attach_mode, network.endpoints));
        }
    }
    let failing = status.parts.values().filter(|p| !p.ok).count();
    line("Parts", format!("{} of {} healthy", status.parts.len() - failing, status.parts.len()));
    for (name, part) in &status.parts {
        let mark = if part.ok { "ok  " } else { "FAIL" };
        for message in &part.messages {
            let _ = writeln!(out, "  {mark}  {name:<14}{message}");
        }
    }
    out
}

/// `podwire status --brief`: one line.
pub fn brief(status: &Status) -> String {
    if status.ready {
        return "OK".into();
    }
    let waits: Vec<String> = status
        .parts
        .iter()
        .filter(|(_, p)| !p.ok)
        .map(|(name, p)| format!("{name}: {}", p.messages.join("; ")))
        .collect();
    format!("not ready: {}", if waits.is_empty() { "starting".into() } else { waits.join("; ") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Part;
    use time::OffsetDateTime;

    #[test]
    fn config_reads_like_the_course() {
        let map = BTreeMap::from([
            ("ipam".to_owned(), "kubernetes".to_owned()),
            ("routing-mode".to_owned(), "native".to_owned()),
            ("devices".to_owned(), String::new()),
        ]);
        let text = config(&map);
        let ipam = text.lines().find(|l| l.starts_with("ipam")).unwrap();
        assert_eq!(ipam.split_whitespace().collect::<Vec<_>>(), ["ipam", "kubernetes"]);
        assert!(text.contains("\nrouting-mode  native\n") && text.contains("devices\n"));
    }

    #[test]
    fn tables_are_aligned() {
        let rows =
            [MetricRow { point: "to-network".into(), reason: "FORWARDED".into(), packets: 7, bytes: 588 }];
        assert_eq!(
            metrics(&rows),
            "POINT       REASON     PACKETS  BYTES\nto-network  FORWARDED  7        588\n"
        );
        let rows = [IpcacheRow {
            prefix: "10.244.1.0/24".parse().unwrap(),
            identity: 3,
            node: "192.168.10.101".parse().unwrap(),
            name: String::new(),
        }];
        assert!(
            ipcache(&rows).contains("10.244.1.0/24  3 (unmanaged)  192.168.10.101\n"),
            "{}",
            ipcache(&rows)
        );
    }

    #[test]
    fn what_is_waited_for_is_said() {
        let part = Part { ok: false, messages: vec!["no CIDR".into()], since: OffsetDateTime::UNIX_EPOCH };
        let mut shown = Status {
            node: "k8s-ctr".into(),
            version: "0".into(),
            ready: false,
            api_server: "https://192.168.10.100:6443".into(),
            network: None,
            parts: BTreeMap::from([("node".to_owned(), part)]),
        };
        assert_eq!(brief(&shown), "not ready: node: no CIDR");
        assert!(status(&shown).contains("FAIL  node          no CIDR"), "{}", status(&shown));
        shown.ready = true;
        assert_eq!(brief(&shown), "OK");
    }
}
