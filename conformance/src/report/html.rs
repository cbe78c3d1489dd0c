//! One self-contained HTML page.

use serde_json::{Value, json};
use tera::Tera;

use super::markdown::{expectation_key, summary_key, verdict};
use super::messages::{all, phrase};
use super::{Lang, ReportError, grouped, render};
use crate::check::{CheckResult, Evidence, Message, Report, Role};

/// The page. Everything that comes from a capture or a cluster is escaped by the template engine.
pub fn html(report: &Report, lang: Lang) -> Result<String, ReportError> {
    let mut tera = Tera::default();
    // The name's ending switches escaping on.
    tera.add_raw_template("report.html", include_str!("template.html"))?;
    let context = tera::Context::from_serialize(values(report, lang))?;
    Ok(tera.render("report.html", &context)?)
}

pub(super) fn role_key(role: Role) -> &'static str {
    match role {
        Role::Wire => "role-wire",
        Role::Pod => "role-pod",
        Role::Unknown => "role-unknown",
    }
}

fn values(report: &Report, lang: Lang) -> Value {
    let phrases: serde_json::Map<String, Value> =
        all(lang).map(|(key, text)| (key.replace('-', "_"), text.into())).collect();
    let packets: u64 = report.files.iter().map(|file| file.packets).sum();
    let made = Message::new("t-made")
        .with("when", &report.generated)
        .with("seconds", format!("{:.2}", report.seconds))
        .with("version", report.podwire_version);
    let hidden = report.flows_total.saturating_sub(report.flows.len());
    json!({
        "lang": lang.to_string(),
        "say": phrases,
        "title": report.context.title,
        "expectation": phrase(lang, expectation_key(report.expectation)),
        "verdict": report.verdict.name(),
        "verdict_word": verdict(report.verdict, lang),
        "summary": phrase(lang, summary_key(report.verdict)),
        "packets": grouped(packets),
        "made": render(lang, &made),
        "context": context(report),
        "files": report.files.iter().map(|file| json!({
            "path": file.path,
            "format": file.format,
            "bytes": grouped(file.bytes),
            "first": file.first,
            "last": file.last,
            "truncated": file.truncated_at,
            "interfaces": file.interfaces.iter().map(|interface| json!({
                "name": interface.name,
                "description": interface.description,
                "role": phrase(lang, role_key(interface.role)),
                "link": interface.link,
                "packets": grouped(interface.packets),
                "dropped": interface.dropped.map(grouped),
                "lossy": interface.dropped.is_some_and(|dropped| dropped > 0),
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "checks": report.checks.iter().map(|found| check(found, lang)).collect::<Vec<_>>(),
        "flows": report.flows.iter().map(|flow| json!({
            "source": flow.source,
            "source_name": flow.source_name,
            "destination": flow.destination,
            "destination_name": flow.destination_name,
            "packets": grouped(flow.packets),
            "wire": grouped(flow.wire_packets),
            "protocols": protocols(&[("TCP", flow.tcp), ("UDP", flow.udp), ("ICMP", flow.icmp)]),
            "ttl": if flow.ttl_min == flow.ttl_max { flow.ttl_min.to_string() } else { format!("{}–{}", flow.ttl_min, flow.ttl_max) },
        })).collect::<Vec<_>>(),
        "more_flows": (hidden > 0).then(|| render(lang, &Message::new("t-more-flows").with("count", hidden))),
        "notes": report.notes.iter().map(|note| render(lang, note)).collect::<Vec<_>>(),
        "command": report.context.command,
    })
}

fn protocols(counts: &[(&str, u64)]) -> String {
    let seen: Vec<String> = counts
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name} {}", grouped(*count)))
        .collect();
    seen.join(", ")
}

fn context(report: &Report) -> Value {
    let nodes = report.context.nodes.iter().map(|(name, addresses)| {
        let pods = report.context.node_pod_cidrs.get(name).map(|nets| join(nets));
        json!({ "name": name, "addresses": join(addresses), "pods": pods })
    });
    json!({
        "nodes": nodes.collect::<Vec<_>>(),
        "pod_cidrs": join(&report.context.pod_cidrs),
        "service_cidrs": join(&report.context.service_cidrs),
        "flows": join(&report.context.flows),
    })
}

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn check(found: &CheckResult, lang: Lang) -> Value {
    json!({
        "id": found.id,
        "verdict": found.verdict.name(),
        "verdict_word": verdict(found.verdict, lang),
        "question": render(lang, &found.question),
        "explanation": found.explanation.iter().map(|message| render(lang, message)).collect::<Vec<_>>(),
        "counts": found.counts.iter().map(|count| json!({ "label": phrase(lang, count.label), "value": grouped(count.value) })).collect::<Vec<_>>(),
        "evidence": found.evidence.iter().map(|packet| evidence(packet, lang)).collect::<Vec<_>>(),
    })
}

fn evidence(packet: &Evidence, lang: Lang) -> Value {
    // The date stands in the table of captures; a packet list is read by the clock.
    let clock = packet
        .timestamp
        .as_deref()
        .and_then(|time| time.split_once('T'))
        .map(|(_, clock)| clock.trim_end_matches('Z'));
    let arrow = packet.direction.map(|direction| match direction {
        crate::read::Direction::Inbound => "↓",
        crate::read::Direction::Outbound => "↑",
    });
    json!({
        "file": packet.file,
        "frame": packet.frame,
        "interface": packet.interface,
        "arrow": arrow,
        "timestamp": packet.timestamp,
        "clock": clock,
        "source": packet.source,
        "destination": packet.destination,
        "protocol": packet.protocol,
        "protocol_class": packet.protocol.to_ascii_lowercase().chars().filter(char::is_ascii_alphanumeric).collect::<String>(),
        "info": packet.info,
        "length": packet.length,
        "hex": packet.hex,
        "note": packet.note.as_ref().map(|note| render(lang, note)),
    })
}
