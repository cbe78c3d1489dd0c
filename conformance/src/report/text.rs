//! The report for a terminal: the verdicts first, then what they rest on.

use std::fmt::Write as _;

use super::messages::phrase;
use super::{Lang, grouped, render};
use crate::check::{Evidence, Report, Verdict};

/// Packets shown of a check; the page shows all.
const SHOWN: usize = 4;

/// The report as plain text without colour.
pub fn text(report: &Report, lang: Lang) -> String {
    let mut out = String::new();
    for check in &report.checks {
        let _ = writeln!(out, "{:<12}  {:<17}  {}", check.verdict, check.id, render(lang, &check.question));
        for message in &check.explanation {
            let _ = writeln!(out, "{:33}{}", "", printable(&render(lang, message)));
        }
        if check.verdict != Verdict::Held {
            for evidence in check.evidence.iter().take(SHOWN) {
                let _ = writeln!(out, "{:33}{}", "", printable(&line(evidence, lang)));
            }
        }
    }
    for note in &report.notes {
        let _ = writeln!(out, "{:31}- {}", "", printable(&render(lang, note)));
    }
    let packets: u64 = report.files.iter().map(|file| file.packets).sum();
    let label = phrase(lang, "n-packets");
    let _ = writeln!(out, "\n{} ({}; {} {label})", report.verdict, report.expectation, grouped(packets));
    out
}

fn line(evidence: &Evidence, lang: Lang) -> String {
    let Evidence { file, interface, frame, source, destination, protocol, info, .. } = evidence;
    let note = evidence.note.as_ref().map(|note| format!("  [{}]", render(lang, note))).unwrap_or_default();
    format!("{file} #{frame} {interface}: {source} → {destination} {protocol} {info}{note}")
}

/// Names in a capture are its writer's: control characters must not reach the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}
