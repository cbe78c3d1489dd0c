//! Whether the capture has every packet: without that no negative answer is worth anything.

use super::Context;
use super::result::{CheckResult, Count, Message, Verdict};
use super::scan::Scan;

/// What makes the capture incomplete; empty if it is whole.
pub(super) fn losses(scan: &Scan) -> Vec<Message> {
    let mut losses = Vec::new();
    for file in &scan.files {
        for interface in
            file.interfaces.iter().filter(|interface| interface.dropped.is_some_and(|dropped| dropped > 0))
        {
            let dropped = interface.dropped.unwrap_or(0);
            losses.push(
                Message::new("loss-dropped")
                    .with("count", dropped)
                    .with("interface", &interface.name)
                    .with("file", &file.path),
            );
        }
        if let Some(offset) = file.truncated_at {
            losses.push(Message::new("loss-truncated").with("file", &file.path).with("offset", offset));
        }
    }
    if scan.unread.count > 0 {
        losses.push(Message::new("loss-unread").with("count", scan.unread.count));
    }
    if scan.conversations.overflow {
        losses.push(Message::new("loss-overflow"));
    }
    losses
}

fn count(label: &'static str, value: u64) -> Count {
    Count { label, value }
}

/// Check `capture-complete`.
pub(super) fn capture_complete(scan: &Scan, context: &Context) -> CheckResult {
    let losses = losses(scan);
    let mut explanation = losses.clone();
    let verdict = if losses.is_empty() { Verdict::Held } else { Verdict::Inconclusive };
    if losses.is_empty() {
        let counted =
            scan.files.iter().flat_map(|file| &file.interfaces).all(|interface| interface.dropped.is_some());
        explanation.push(Message::new(if counted { "why-complete" } else { "why-complete-uncounted" }));
    }
    if scan.shortened > 0 {
        explanation.push(Message::new("why-shortened").with("count", scan.shortened));
    }
    let counts = vec![
        count("n-packets", scan.packets),
        count("n-dropped", scan.dropped()),
        count("n-unread", scan.unread.count),
        count("n-shortened", scan.shortened),
    ];
    let mut evidence = scan.unread.evidence.clone();
    evidence.truncate(context.evidence_limit);
    CheckResult {
        id: "capture-complete",
        question: Message::new("q-capture-complete"),
        verdict,
        explanation,
        counts,
        evidence,
    }
}
