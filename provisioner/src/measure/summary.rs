//! What a journal adds up to, per second and per pod.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::journal::{Journal, Outcome};

/// Calls, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Count {
    /// With an answer.
    pub answered: u64,
    /// Without one.
    pub lost: u64,
    /// Moments without a client.
    pub not_sent: u64,
}

impl Count {
    fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Answered => self.answered += 1,
            Outcome::Lost => self.lost += 1,
            Outcome::NotSent => self.not_sent += 1,
        }
    }
}

/// One pod's part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodPart {
    /// Its name; empty for calls that found nobody.
    pub pod: String,
    /// Its address.
    pub ip: String,
    /// All its calls.
    pub count: Count,
    /// Per second from the beginning; seconds without a call are left out.
    pub seconds: BTreeMap<u64, Count>,
}

/// A measurement, added up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Where it is from.
    pub name: String,
    /// All calls.
    pub count: Count,
    /// Calls a second that the client makes.
    pub rate: u32,
    /// How many seconds it lasted.
    pub length: u64,
    /// Per second from the beginning; seconds without a call are left out.
    pub seconds: BTreeMap<u64, Count>,
    /// Per pod, in the order in which they were first called.
    pub pods: Vec<PodPart>,
    /// Milliseconds from the first lost call to the last one; 0 if none was lost.
    pub outage_ms: u64,
    /// How often calls were lost for which reason.
    pub reasons: BTreeMap<String, u64>,
}

impl Summary {
    /// Adds up.
    pub fn of(name: &str, journal: &Journal) -> Self {
        let second = |at: u64| at / 1000;
        let mut summary = Self {
            name: name.to_owned(),
            count: Count::default(),
            rate: journal.header.rate,
            length: journal.calls.iter().map(|c| second(c.at) + 1).max().unwrap_or(0),
            seconds: BTreeMap::new(),
            pods: Vec::new(),
            outage_ms: 0,
            reasons: BTreeMap::new(),
        };
        let mut lost = (None, 0);
        for call in &journal.calls {
            summary.count.add(call.result);
            summary.seconds.entry(second(call.at)).or_default().add(call.result);
            if call.result == Outcome::NotSent {
                continue;
            }
            if call.result == Outcome::Lost {
                lost = (lost.0.or(Some(call.at)), call.at);
                *summary.reasons.entry(call.why.clone()).or_default() += 1;
            }
            let known = summary.pods.iter().position(|p| p.pod == call.pod && p.ip == call.ip);
            let index = known.unwrap_or_else(|| {
                summary.pods.push(PodPart {
                    pod: call.pod.clone(),
                    ip: call.ip.clone(),
                    count: Count::default(),
                    seconds: BTreeMap::new(),
                });
                summary.pods.len() - 1
            });
            let part = &mut summary.pods[index];
            part.count.add(call.result);
            part.seconds.entry(second(call.at)).or_default().add(call.result);
        }
        summary.outage_ms = lost.0.map_or(0, |first| lost.1 - first);
        summary
    }

    /// Seconds from the first lost call to the last one, to a tenth.
    pub fn outage_seconds(&self) -> String {
        let tenths = (self.outage_ms + 50) / 100;
        format!("{}.{}", tenths / 10, tenths % 10)
    }

    /// For reading in a terminal: totals, then one character a second, for all calls and for each pod.
    pub fn text(&self) -> String {
        let Count { answered, lost, not_sent } = self.count;
        let mut text = format!(
            "{}: {answered} answered, {lost} lost, {not_sent} not sent in {} s; first to last loss {} s\n",
            self.name,
            self.length,
            self.outage_seconds()
        );
        for (why, times) in &self.reasons {
            let _ = writeln!(text, "  lost {times}: {why}"); // a String takes everything
        }
        let row = |label: &str, seconds: &BTreeMap<u64, Count>| {
            let marks: String = (0..self.length).map(|s| mark(seconds.get(&s).copied())).collect();
            format!("  {label:<34} {marks}\n")
        };
        text += &row("all", &self.seconds);
        for part in &self.pods {
            let label = if part.pod.is_empty() { "no pod to call" } else { &part.pod };
            text += &row(&format!("{label} {}", part.ip), &part.seconds);
        }
        text += "  one mark a second: . all answered, x some lost, X all lost, - nothing sent\n";
        text
    }
}

fn mark(count: Option<Count>) -> char {
    let count = count.unwrap_or_default();
    match (count.answered, count.lost) {
        (0, 0) => '-',
        (_, 0) => '.',
        (0, _) => 'X',
        _ => 'x',
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::journal::{Call, Header};
    use super::*;

    pub(in super::super) fn journal() -> Journal {
        let call = |at, pod: &str, result, why: &str| Call {
            at,
            pod: pod.into(),
            ip: if pod.is_empty() { String::new() } else { "10.0.0.1".into() },
            result,
            why: why.into(),
        };
        Journal {
            header: Header::now("lab", "curl-pod", "webpod", 2),
            calls: vec![
                call(0, "a", Outcome::Answered, ""),
                call(500, "b<1>", Outcome::Lost, "timeout"),
                call(1000, "", Outcome::Lost, "no pod is Ready"),
                call(2000, "", Outcome::NotSent, "no client"),
                call(3700, "a", Outcome::Lost, "timeout"),
            ],
        }
    }

    #[test]
    fn calls_add_up_per_second_and_per_pod() {
        let summary = Summary::of("s", &journal());
        assert_eq!(summary.count, Count { answered: 1, lost: 3, not_sent: 1 });
        assert_eq!(summary.outage_ms, 3200);
        assert_eq!(summary.reasons["timeout"], 2);
        let marks: String = (0..summary.length).map(|s| mark(summary.seconds.get(&s).copied())).collect();
        assert_eq!(marks, "xX-X");
        assert_eq!(summary.pods.len(), 3, "a, b and nobody");
        assert_eq!(summary.pods[0].count, Count { answered: 1, lost: 1, not_sent: 0 });
        assert!(summary.text().contains("1 answered, 3 lost, 1 not sent in 4 s; first to last loss 3.2 s"));
    }

    #[test]
    fn an_empty_journal_adds_up_to_nothing() {
        let mut journal = journal();
        journal.calls.clear();
        let summary = Summary::of("s", &journal);
        assert_eq!((summary.count, summary.length, summary.outage_ms), (Count::default(), 0, 0));
    }
}
