//! `lab conformance`: a suite of cases. A case sends traffic while it captures, then asks the capture.

mod case;
mod probes;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use podwire_conformance::check::Verdict;
use podwire_conformance::report::Lang;

use super::check::{Form, print_report, write_report};
use super::{Ended, runtime};
use crate::state::StateRoot;

/// Send traffic, capture it, check it, and report.
#[derive(Args)]
pub(super) struct Conformance {
    /// The lab, where several run
    lab: Option<String>,
    /// The same
    #[arg(long = "lab", value_name = "LAB", conflicts_with = "lab", hide = true)]
    named: Option<String>,
    /// What to run
    #[arg(long, value_enum, default_value_t = Suite::Quick)]
    suite: Suite,
    /// Write report.json, junit.xml, report.md, index.html and the capture there
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Language of the report
    #[arg(long, default_value = "en")]
    lang: Lang,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Form::Text)]
    output: Form,
}

#[derive(ValueEnum, Clone, Copy)]
enum Suite {
    /// Under a minute: pod to pod across nodes, natively routed
    Quick,
}

impl Conformance {
    pub(super) fn run(self) -> Result<(), Ended> {
        let Suite::Quick = self.suite;
        let (state, running) = StateRoot::from_env().pick(self.lab.or(self.named).as_deref())?;
        let outcome =
            runtime()?.block_on(case::pod_to_pod_native(&state, &running, self.report.as_deref()))?;
        for step in &outcome.traffic {
            let word = if step.trouble.is_none() { "ok" } else { "FAILED" };
            eprintln!("{word:<6} {}", step.what);
            if let Some(trouble) = &step.trouble {
                eprintln!("       {trouble}");
            }
        }
        print_report(&outcome.report, self.output, self.lang)?;
        if let Some(directory) = &self.report {
            write_report(&outcome.report, directory, self.lang)?;
        }
        let sent = outcome.traffic.iter().all(|step| step.trouble.is_none());
        match outcome.report.verdict {
            Verdict::Held if sent => Ok(()),
            Verdict::Held => Err(Ended::Code(1)),
            verdict => Err(Ended::Code(u8::try_from(verdict.exit_code()).unwrap_or(1))),
        }
    }
}
