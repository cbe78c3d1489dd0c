//! Markdown, for issues and merge requests.

use std::fmt::Write as _;

use super::messages::phrase;
use super::{Lang, grouped, render};
use crate::check::{Expectation, Message, Report, Verdict};

/// The report as Markdown (CommonMark with tables).
pub fn markdown(report: &Report, lang: Lang) -> String {
    let say = |key| phrase(lang, key);
    let mut out = String::new();
    let title = report
        .context
        .title
        .as_deref()
        .map_or_else(|| say("title").to_owned(), |title| format!("{} — {}", say("title"), escape(title)));
    let _ = writeln!(out, "# {title}\n");
    let _ = writeln!(
        out,
        "**{}: {}.** {}\n",
        say(expectation_key(report.expectation)),
        verdict(report.verdict, lang),
        say(summary_key(report.verdict))
    );
    let _ =
        writeln!(out, "| {} | {} | {} |\n|---|---|---|", say("t-check"), say("t-verdict"), say("t-question"));
    for check in &report.checks {
        let _ = writeln!(
            out,
            "| `{}` | {} {} | {} |",
            check.id,
            mark(check.verdict),
            verdict(check.verdict, lang),
            render(lang, &check.question)
        );
    }
    context(&mut out, report, lang);
    files(&mut out, report, lang);
    for check in &report.checks {
        let _ = writeln!(out, "\n## {} {}\n", mark(check.verdict), render(lang, &check.question));
        for message in &check.explanation {
            let _ = writeln!(out, "{}\n", escape(&render(lang, message)));
        }
        for count in &check.counts {
            let _ = writeln!(out, "- {}: {}", say(count.label), grouped(count.value));
        }
        if check.evidence.is_empty() {
            continue;
        }
        let heads = ["t-frame", "t-interface", "t-time", "t-from", "t-to", "t-protocol", "t-info"].map(say);
        let _ = writeln!(out, "\n| {} |\n|{}", heads.join(" | "), "---|".repeat(heads.len()));
        for packet in &check.evidence {
            let note =
                packet.note.as_ref().map(|note| format!(" — {}", render(lang, note))).unwrap_or_default();
            let cells = [
                format!("{} #{}", packet.file, packet.frame),
                packet.interface.clone(),
                packet.timestamp.clone().unwrap_or_default(),
                packet.source.clone(),
                packet.destination.clone(),
                packet.protocol.clone(),
                format!("{}{note}", packet.info),
            ];
            let _ = writeln!(out, "| {} |", cells.map(|cell| escape(&cell)).join(" | "));
        }
    }
    if !report.notes.is_empty() {
        let _ = writeln!(out, "\n## {}\n", say("h-notes"));
        for note in &report.notes {
            let _ = writeln!(out, "- {}", escape(&render(lang, note)));
        }
    }
    if let Some(command) = &report.context.command {
        // A fence longer than any run of backticks inside cannot be closed by the command itself.
        let _ = writeln!(
            out,
            "\n## {}\n\n``````sh\n{}\n``````",
            say("h-reproduce"),
            command.replace("``````", "")
        );
    }
    out
}

fn context(out: &mut String, report: &Report, lang: Lang) {
    let say = |key| phrase(lang, key);
    let list = |items: Vec<String>| {
        if items.is_empty() { say("t-unknown").to_owned() } else { escape(&items.join(", ")) }
    };
    let nodes = report.context.nodes.iter().map(|(name, addresses)| {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        format!("{name} {}", addresses.join(" "))
    });
    let nets = |nets: &[ipnet::Ipv4Net]| nets.iter().map(ToString::to_string).collect();
    let _ = writeln!(out, "\n## {}\n", say("h-context"));
    let _ = writeln!(out, "- {}: {}", say("t-nodes"), list(nodes.collect()));
    let _ = writeln!(out, "- {}: {}", say("t-pod-cidrs"), list(nets(&report.context.pod_cidrs)));
    let _ = writeln!(out, "- {}: {}", say("t-service-cidrs"), list(nets(&report.context.service_cidrs)));
}

fn files(out: &mut String, report: &Report, lang: Lang) {
    let say = |key| phrase(lang, key);
    let heads = ["t-file", "t-interface", "t-role", "t-link", "t-packets", "t-lost"].map(say);
    let _ = writeln!(
        out,
        "\n## {}\n\n| {} |\n|{}",
        say("h-files"),
        heads.join(" | "),
        "---|".repeat(heads.len())
    );
    for file in &report.files {
        for interface in &file.interfaces {
            let lost = interface.dropped.map_or("–".to_owned(), grouped);
            let role = say(super::html::role_key(interface.role)).to_owned();
            let cells = [
                file.path.clone(),
                interface.name.clone(),
                role,
                interface.link.clone(),
                grouped(interface.packets),
                lost,
            ];
            let _ = writeln!(out, "| {} |", cells.map(|cell| escape(&cell)).join(" | "));
        }
    }
}

/// The phrase for what was expected.
pub(super) fn expectation_key(expectation: Expectation) -> &'static str {
    match expectation {
        Expectation::Native => "expectation-native",
        Expectation::Vxlan => "expectation-vxlan",
        Expectation::NoLoop => "expectation-no-loop",
    }
}

pub(super) fn summary_key(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Held => "summary-held",
        Verdict::Failed => "summary-failed",
        Verdict::Inconclusive => "summary-inconclusive",
        Verdict::Skipped => "summary-skipped",
    }
}

pub(super) fn verdict(verdict: Verdict, lang: Lang) -> String {
    let key = match verdict {
        Verdict::Held => "verdict-held",
        Verdict::Failed => "verdict-failed",
        Verdict::Inconclusive => "verdict-inconclusive",
        Verdict::Skipped => "verdict-skipped",
    };
    render(lang, &Message::new(key))
}

fn mark(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Held => "✓",
        Verdict::Failed => "✗",
        Verdict::Inconclusive => "?",
        Verdict::Skipped => "–",
    }
}

/// Names come from captures and clusters: whatever Markdown or HTML would read in them is escaped.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '|' | '\\' | '`' | '*' | '_' | '[' | ']' | '#' | '~' | '!' => {
                out.push('\\');
                out.push(character);
            }
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            character if character.is_control() => out.push('\u{fffd}'),
            character => out.push(character),
        }
    }
    out
}
