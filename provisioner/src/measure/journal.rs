//! The journal of a measurement: JSON lines, the first about the measurement, each further one about one call. A line is
//! written as soon as its call has ended, so that a journal whose writer was killed lacks nothing but what was under way.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Failure, OrFailure};

/// What [`Header::podwire_measure`] says of this format.
const VERSION: u32 = 1;
/// No honest journal is larger: a day of ten calls a second.
const MAX_BYTES: u64 = 256 << 20;

/// A measurement is no longer than a day.
const MAX_AT: u64 = 24 * 60 * 60 * 1000;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Header {
    /// Version of the format.
    pub podwire_measure: u32,
    /// The lab.
    pub lab: String,
    /// The pod that calls.
    pub from: String,
    /// The Service whose pods are called.
    pub to: String,
    /// Calls a second.
    pub rate: u32,
    /// When it began, RFC 3339.
    pub began: String,
}

impl Header {
    /// A header for a measurement that begins now.
    pub fn now(lab: &str, from: &str, to: &str, rate: u32) -> Self {
        let began = time::OffsetDateTime::now_utc();
        Self {
            podwire_measure: VERSION,
            lab: lab.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
            rate,
            // Formatting fails only for years beyond four digits.
            began: began.format(&time::format_description::well_known::Rfc3339).unwrap_or_default(),
        }
    }
}

/// One call, or why there was none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Call {
    /// Milliseconds from the beginning to the moment the call was made.
    pub at: u64,
    /// Name of the pod that was called; empty if the Service had none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// Its address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ip: String,
    /// What came of it.
    pub result: Outcome,
    /// Why it was lost.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// What came of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// An answer.
    Answered,
    /// No answer in time, or an error, or nobody to call.
    Lost,
    /// There was no client: its own pod was being made anew. Nobody was let down.
    NotSent,
}

/// A whole journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// Its first line.
    pub header: Header,
    /// Its calls, in the order of their beginning.
    pub calls: Vec<Call>,
}

impl Journal {
    /// Reads a journal. A last line that its writer's death cut short is left out.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let thing = path.display().to_string();
        let mend = "give a file that `lab measure start -w FILE` has written";
        let file = File::open(path).or_failure(&thing, mend)?;
        Self::parse(file.take(MAX_BYTES)).map_err(|cause| Failure::new(thing, cause, mend))
    }

    fn parse(input: impl Read) -> Result<Self, String> {
        let mut lines = BufReader::new(input).lines().enumerate();
        let first = lines.next().ok_or("it is empty")?.1.map_err(|e| e.to_string())?;
        let header: Header = serde_json::from_str(&first).map_err(|e| format!("line 1 is no header: {e}"))?;
        if header.podwire_measure != VERSION {
            return Err(format!("version {} is not {VERSION}", header.podwire_measure));
        }
        let mut calls = Vec::new();
        let mut bad: Option<(usize, String)> = None;
        for (index, line) in lines {
            if let Some((line, cause)) = &bad {
                return Err(format!("line {line} is no call: {cause}"));
            }
            match serde_json::from_str::<Call>(&line.map_err(|e| e.to_string())?) {
                Ok(call) if call.at > MAX_AT => bad = Some((index + 1, "it is later than a day".into())),
                Ok(call) => calls.push(call),
                Err(e) => bad = Some((index + 1, e.to_string())),
            }
        }
        calls.sort_by_key(|call| call.at);
        Ok(Self { header, calls })
    }
}

/// Writes a line whole.
pub(super) fn write_line(file: &mut File, value: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    file.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = r#"{"podwireMeasure":1,"lab":"l","from":"curl-pod","to":"webpod","rate":10,"began":"2026-01-01T00:00:00Z"}"#;

    #[test]
    fn a_line_cut_short_is_left_out_only_at_the_end() {
        let good = r#"{"at":1,"pod":"a","ip":"10.0.0.1","result":"answered"}"#;
        let cut = r#"{"at":2,"pod":"#;
        let journal = Journal::parse(format!("{HEADER}\n{good}\n{cut}").as_bytes()).unwrap();
        assert_eq!(journal.calls.len(), 1);
        let error = Journal::parse(format!("{HEADER}\n{cut}\n{good}\n").as_bytes()).unwrap_err();
        assert!(error.starts_with("line 2"), "{error}");
    }

    #[test]
    fn what_is_no_journal_is_refused() {
        for text in ["", "{}", "no", &HEADER.replace(":1,", ":2,")] {
            assert!(Journal::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
