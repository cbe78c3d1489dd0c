//! The answer: verdicts, evidence and what they rest on.

use std::fmt;
use std::time::Duration;

use serde::ser::{Serialize, SerializeStruct, Serializer};

use super::native::Outcome;
use super::scan::Scan;
use super::{Context, Evidence, Expectation, Role};
use crate::read::Format;
use crate::report::{Lang, render};

/// Version of the JSON report's schema. Grows by one when a field changes its meaning or goes away.
pub const SCHEMA_VERSION: u32 = 1;
/// Flows listed in the report.
const MAX_FLOWS: usize = 40;

/// The answer to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It holds, and the capture proves it.
    Held,
    /// It does not hold, and the evidence shows why.
    Failed,
    /// The capture cannot tell.
    Inconclusive,
    /// The question was not asked.
    Skipped,
}

impl Verdict {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Failed => "failed",
            Self::Inconclusive => "inconclusive",
            Self::Skipped => "skipped",
        }
    }

    /// The verdict over several: one failure fails all, one doubt leaves doubt; nothing asked is skipped.
    pub fn over(verdicts: impl IntoIterator<Item = Self>) -> Self {
        let weight = |verdict: &Self| match verdict {
            Self::Skipped => 0,
            Self::Held => 1,
            Self::Inconclusive => 2,
            Self::Failed => 3,
        };
        verdicts.into_iter().max_by_key(weight).unwrap_or(Self::Skipped)
    }

    /// Exit code of a program that ends with this verdict: 0 held, 1 failed or inconclusive, 3 nothing was run.
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Held => 0,
            Self::Failed | Self::Inconclusive => 1,
            Self::Skipped => 3,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A sentence that can be said in every language of the reports: a key into the message tables and what to fill in.
/// Serializes with its English text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Key of the sentence.
    pub key: &'static str,
    /// What stands in its gaps.
    pub args: Vec<(&'static str, String)>,
}

impl Message {
    pub(crate) fn new(key: &'static str) -> Self {
        Self { key, args: Vec::new() }
    }

    #[expect(clippy::needless_pass_by_value, reason = "callers hand over numbers, texts and addresses alike")]
    pub(crate) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.args.push((name, value.to_string()));
        self
    }
}

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Message", 3)?;
        out.serialize_field("key", self.key)?;
        let args: serde_json::Map<_, _> =
            self.args.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into())).collect();
        out.serialize_field("args", &args)?;
        out.serialize_field("text", &render(Lang::En, self))?;
        out.end()
    }
}

/// A number that a verdict rests on.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Count {
    /// What is counted: key of its label in the message tables.
    pub label: &'static str,
    /// How many.
    pub value: u64,
}

/// One question and its answer.
#[derive(Debug, Clone, serde::Serialize)]
pub struct CheckResult {
    /// Stable name, for scripts.
    pub id: &'static str,
    /// The question.
    pub question: Message,
    /// The answer.
    pub verdict: Verdict,
    /// Why.
    pub explanation: Vec<Message>,
    /// What was counted.
    pub counts: Vec<Count>,
    /// The packets that prove it.
    pub evidence: Vec<Evidence>,
}

/// A question: its stable name, and its key in the message tables.
pub(super) type Question = (&'static str, &'static str);

impl CheckResult {
    /// An answer, with as many packets as the reader wants to see of one.
    pub(super) fn new(
        (id, question): Question,
        verdict: Verdict,
        explanation: Vec<Message>,
        counts: Vec<Count>,
        mut evidence: Vec<Evidence>,
        context: &Context,
    ) -> Self {
        evidence.truncate(context.evidence_limit);
        Self { id, question: Message::new(question), verdict, explanation, counts, evidence }
    }

    /// Without pod networks no packet can be told to be a pod's, and the question is not asked.
    pub(super) fn without_pods(question: Question, context: &Context) -> Self {
        let why = vec![Message::new("why-no-pod-cidr")];
        Self::new(question, Verdict::Skipped, why, Vec::new(), Vec::new(), context)
    }
}

/// A file that was checked.
#[derive(Debug, Clone, serde::Serialize)]
pub struct FileReport {
    /// Its path, as given.
    pub path: String,
    /// Its format.
    pub format: Format,
    /// Its length in bytes.
    pub bytes: u64,
    /// Packets in it.
    pub packets: u64,
    /// Time of the first packet, RFC 3339.
    pub first: Option<String>,
    /// Time of the last packet, RFC 3339.
    pub last: Option<String>,
    /// Where the record begins that the file's end cuts off.
    pub truncated_at: Option<u64>,
    /// The interfaces it was captured on.
    pub interfaces: Vec<InterfaceReport>,
}

/// An interface of a file.
#[derive(Debug, Clone, serde::Serialize)]
pub struct InterfaceReport {
    /// Its name, `<node>:<interface>` in podwire's captures.
    pub name: String,
    /// Its description.
    pub description: Option<String>,
    /// Link type.
    pub link: String,
    /// Where it sits.
    pub role: Role,
    /// Packets in the file.
    pub packets: u64,
    /// Packets that the tap saw.
    pub received: Option<u64>,
    /// Packets that were lost.
    pub dropped: Option<u64>,
    /// Longest captured length; 0 for unlimited.
    pub snaplen: u32,
}

/// Packets from one pod to another.
#[derive(Debug, Clone, serde::Serialize)]
pub struct FlowRow {
    /// From.
    pub source: String,
    /// Its name.
    pub source_name: Option<String>,
    /// To.
    pub destination: String,
    /// Its name.
    pub destination_name: Option<String>,
    /// Packets on all interfaces.
    pub packets: u64,
    /// Packets on wires.
    pub wire_packets: u64,
    /// Bytes on all interfaces.
    pub bytes: u64,
    /// TCP packets.
    pub tcp: u64,
    /// UDP packets.
    pub udp: u64,
    /// ICMP packets.
    pub icmp: u64,
    /// Least time to live, at every tap.
    pub ttl_min: u8,
    /// Greatest time to live, at every tap.
    pub ttl_max: u8,
}

/// Everything that is known after a check.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Version of this crate.
    pub podwire_version: &'static str,
    /// When it was made, RFC 3339.
    pub generated: String,
    /// Seconds that the check took.
    pub seconds: f64,
    /// What was expected.
    pub expectation: Expectation,
    /// The verdict over all checks.
    pub verdict: Verdict,
    /// What was known beforehand.
    pub context: Context,
    /// The captures.
    pub files: Vec<FileReport>,
    /// The questions.
    pub checks: Vec<CheckResult>,
    /// The busiest flows between pods.
    pub flows: Vec<FlowRow>,
    /// Flows between pods, listed or not; a lower bound if it is 4096.
    pub flows_total: usize,
    /// What else is worth knowing.
    pub notes: Vec<Message>,
}

impl Report {
    /// Exit code of a program that ends with this report.
    pub fn exit_code(&self) -> i32 {
        self.verdict.exit_code()
    }
}

pub(super) fn assemble(
    expectation: Expectation,
    context: &Context,
    scan: Scan,
    outcome: Outcome,
    elapsed: Duration,
) -> Report {
    let mut pairs = scan.pairs;
    pairs.sort_by(|a, b| {
        b.packets.cmp(&a.packets).then_with(|| (a.source, a.destination).cmp(&(b.source, b.destination)))
    });
    let flows_total = pairs.len();
    let flows = pairs.into_iter().take(MAX_FLOWS).map(|pair| FlowRow {
        source: pair.source.to_string(),
        source_name: context.name_of(pair.source),
        destination: pair.destination.to_string(),
        destination_name: context.name_of(pair.destination),
        packets: pair.packets,
        wire_packets: pair.wire_packets,
        bytes: pair.bytes,
        tcp: pair.tcp,
        udp: pair.udp,
        icmp: pair.icmp,
        ttl_min: pair.ttl.0,
        ttl_max: pair.ttl.1,
    });
    let now =
        time::OffsetDateTime::now_utc().replace_nanosecond(0).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    Report {
        schema_version: SCHEMA_VERSION,
        podwire_version: env!("CARGO_PKG_VERSION"),
        generated: now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default(),
        seconds: elapsed.as_secs_f64(),
        expectation,
        verdict: Verdict::over(outcome.checks.iter().map(|check| check.verdict)),
        context: context.clone(),
        files: scan.files,
        flows: flows.collect(),
        flows_total,
        checks: outcome.checks,
        notes: outcome.notes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_verdict_wins_and_nothing_is_skipped() {
        use Verdict::{Failed, Held, Inconclusive, Skipped};
        assert_eq!(Verdict::over([Held, Failed, Inconclusive]), Failed);
        assert_eq!(Verdict::over([Held, Inconclusive, Skipped]), Inconclusive);
        assert_eq!(Verdict::over([Skipped, Held]), Held);
        assert_eq!(Verdict::over([]), Skipped);
        assert_eq!([Held, Failed, Inconclusive, Skipped].map(Verdict::exit_code), [0, 1, 1, 3]);
    }
}
