//! What a capture must be so that the absence of a packet in it proves anything.

use super::Context;
use super::result::{CheckResult, Count, Message, Question, Verdict};
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

/// `Held` if there was a `control` and the capture is whole, so that a negative answer counts, else `Inconclusive` with
/// the reasons.
pub(super) fn negative(scan: &Scan, control: u64, held: Message) -> (Verdict, Vec<Message>) {
    let losses = losses(scan);
    if control == 0 {
        return (Verdict::Inconclusive, vec![Message::new("why-no-positive-control")]);
    }
    if losses.is_empty() {
        return (Verdict::Held, vec![held]);
    }
    let mut explanation = vec![Message::new("why-incomplete")];
    explanation.extend(losses);
    (Verdict::Inconclusive, explanation)
}

/// Whether the capture kept every packet: asked whatever else is.
pub(super) const CAPTURE_COMPLETE: Question = ("capture-complete", "q-capture-complete");

/// The answer to [`CAPTURE_COMPLETE`].
pub(super) fn capture_complete(scan: &Scan, context: &Context) -> CheckResult {
    let mut explanation = losses(scan);
    let whole = explanation.is_empty();
    if whole {
        let mut interfaces = scan.files.iter().flat_map(|file| &file.interfaces);
        let counted = interfaces.all(|interface| interface.dropped.is_some());
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
    let verdict = if whole { Verdict::Held } else { Verdict::Inconclusive };
    let evidence = scan.unread.evidence.clone();
    CheckResult::new(CAPTURE_COMPLETE, verdict, explanation, counts, evidence, context)
}

pub(super) fn count(label: &'static str, value: u64) -> Count {
    Count { label, value }
}
