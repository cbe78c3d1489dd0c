//! `lab trace`: one flow, hop by hop.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::capture::duration;
use super::{Ended, Format, Output, print_json, print_text, runtime};
use crate::state::StateRoot;
use crate::trace::Protocol;
use crate::trace::explain::Verdict;
use crate::trace::plan::Problem;
use crate::trace::run::{self, Options};
use crate::trace::show;

/// Follow one flow through the lab.
#[derive(Args)]
pub(super) struct Trace {
    /// Who sends: a pod (NAMESPACE/NAME, or NAME in default) or a machine
    #[arg(value_name = "SRC")]
    from: String,
    /// To whom: a pod, a Service, a machine or an IPv4 address, and a port
    #[arg(value_name = "DST[:PORT]")]
    to: String,
    /// What to send; default: TCP to a port, ICMP without one, and to a Service its first port's
    #[arg(long, value_enum)]
    protocol: Option<Protocol>,
    /// How long to wait for an answer
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = patience)]
    timeout: Duration,
    /// Keep the capture in this pcapng file
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// The lab, where several run
    #[arg(long)]
    lab: Option<String>,
    #[command(flatten)]
    format: Format,
}

/// Between a tenth of a second and five minutes.
fn patience(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    let limits = Duration::from_millis(100)..=Duration::from_mins(5);
    limits.contains(&time).then_some(time).ok_or_else(|| "write a time from 100ms to 5m".to_owned())
}

impl Trace {
    pub(super) fn run(self) -> Result<(), Ended> {
        let (state, running) = StateRoot::from_env().pick(self.lab.as_deref())?;
        let options = Options {
            protocol: self.protocol,
            timeout: self.timeout,
            write: self.write,
            flag: self.lab.map(|lab| format!(" --lab {lab}")).unwrap_or_default(),
        };
        let work = run::run(&state, &running, &self.from, &self.to, &options);
        let trace = runtime()?.block_on(work).map_err(|problem| match problem {
            Problem::Wrong(message) => Ended::Wrong(message),
            Problem::Failed(failure) => Ended::Failed(failure),
        })?;
        match self.format.output {
            Output::Json => print_json(&trace)?,
            Output::Text => print_text(&show::text(&trace)),
        }
        if trace.finding.verdict == Verdict::Answered { Ok(()) } else { Err(Ended::Code(1)) }
    }
}
