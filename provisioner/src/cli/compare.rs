//! `lab compare`: two modes side by side.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;

use super::capture::duration;
use super::{Ended, Format, Output, print_json, print_text};
use crate::compare::Mode;
use crate::compare::run::{self, Options, Results};
use crate::compare::show;
use crate::lab::check_lab_name;

/// Is it really faster? Measure two modes side by side: throughput, latency, connections, CPU, what each packet costs.
#[derive(Args)]
pub(super) struct Compare {
    /// One mode
    #[arg(value_enum, default_value_t = Mode::Native)]
    first: Mode,
    /// The other
    #[arg(value_enum, default_value_t = Mode::Vxlan)]
    second: Mode,
    /// How often everything is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How long each measurement takes
    #[arg(long = "for", value_name = "TIME", default_value = "1s", value_parser = span)]
    time: Duration,
    /// Five short rounds: for a first look
    #[arg(long, conflicts_with_all = ["rounds", "time"])]
    quick: bool,
    /// What the two labs are called, with the mode behind
    #[arg(long, default_value = "compare")]
    name: String,
    /// Keep the captures that prove the modes in this directory
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Write the results to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    #[command(flatten)]
    format: Format,
}

/// Between a hundredth of a second and ten minutes.
fn span(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    let limits = Duration::from_millis(10)..=Duration::from_mins(10);
    limits.contains(&time).then_some(time).ok_or_else(|| "write a time from 10ms to 10m".to_owned())
}

/// Exit code after Ctrl-C, as a shell has it.
const INTERRUPTED: u8 = 130;

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_: i32) {
    STOP.store(true, Ordering::Release);
}

impl Compare {
    pub(super) fn run(self) -> Result<(), Ended> {
        if self.first == self.second {
            return Err(Ended::Wrong(format!(
                "lab compare: {} twice is no comparison; name two modes, for example: lab compare native vxlan",
                self.first
            )));
        }
        let modes = [self.first, self.second];
        for mode in modes {
            check_lab_name(&run::lab_name(&self.name, mode)).map_err(|cause| {
                Ended::Wrong(format!("--name {:?}: with the mode behind, it {cause}", self.name))
            })?;
        }
        let (rounds, time) =
            if self.quick { (5, Duration::from_millis(150)) } else { (self.rounds, self.time) };
        super::on_interrupt(stop);
        let options = Options { modes, name: self.name, rounds, time, keep: self.keep };
        let measured = run::run(&options, &STOP, |what| eprintln!("{what}")).map_err(|failure| {
            if STOP.load(Ordering::Acquire) {
                eprintln!("interrupted");
                return Ended::Code(INTERRUPTED);
            }
            Ended::Failed(failure)
        })?;
        let results = Results { rounds, seconds: time.as_secs_f64(), modes: measured };
        if let Some(file) = &self.save {
            results.write(file)?;
        }
        match self.format.output {
            Output::Json => print_json(&results),
            Output::Text => {
                print_text(&show::text(&results.modes, rounds));
                Ok(())
            }
        }
    }
}
