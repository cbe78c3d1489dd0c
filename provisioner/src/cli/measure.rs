//! `lab measure`: what a client of a Service sees while something else goes on.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use podwire_conformance::report::Lang;
use serde::{Deserialize, Serialize};

use super::{Ended, Format, Output, print_json, print_text, runtime};
use crate::access;
use crate::error::{Failure, OrFailure};
use crate::measure::client::{self, Options};
use crate::measure::journal::Journal;
use crate::measure::picture;
use crate::measure::summary::Summary;
use crate::netns::process::{MARKER, Process};
use crate::record::{Entry, Record};
use crate::state::{LAB_VARIABLE, LabState, StateRoot, write_whole};

/// In the lab's state directory: the client that runs.
const FILE: &str = "measure.json";
/// How long the client may take to end: its calls under way have their time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Call a Service's pods again and again, and count what is lost.
#[derive(Args)]
pub(super) struct Measure {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start the client in the background and return after its first answer
    Start(Start),
    /// End the client
    Stop {
        /// The lab, where several run
        #[arg(long)]
        lab: Option<String>,
    },
    /// Add up journals: per second and per pod
    Show(Show),
    /// The client itself
    #[command(hide = true)]
    Run(Start),
}

#[derive(Args)]
struct Start {
    /// The journal to write
    #[arg(short, long, value_name = "FILE")]
    write: PathBuf,
    /// The pod that calls; it needs sh and curl
    #[arg(long, default_value = "curl-pod", value_name = "POD")]
    from: String,
    /// The Service whose Ready pods are called in turn
    #[arg(long, default_value = "webpod", value_name = "SERVICE")]
    to: String,
    /// Calls a second
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rate: u32,
    /// The lab, where several run
    #[arg(long)]
    lab: Option<String>,
}

#[derive(Args)]
struct Show {
    /// Journals that `lab measure start -w FILE` has written
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Draw them all in one SVG file
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    /// Language of the picture
    #[arg(long, default_value = "en")]
    lang: Lang,
    #[command(flatten)]
    format: Format,
}

/// The client that runs, as it is on record.
#[derive(Serialize, Deserialize)]
struct UnderWay {
    process: Process,
    file: PathBuf,
}

impl Measure {
    pub(super) fn run(self) -> Result<(), Ended> {
        match self.verb {
            Verb::Start(start) => start.begin(),
            Verb::Run(start) => start.stay(),
            Verb::Stop { lab } => stop(lab.as_deref()),
            Verb::Show(show) => show.run(),
        }
    }
}

/// The client that runs in a lab.
pub(crate) fn under_way(state: &LabState, id: &str) -> Option<PathBuf> {
    found(state, id).map(|u| u.file)
}

fn found(state: &LabState, id: &str) -> Option<UnderWay> {
    let found: UnderWay = serde_json::from_slice(&fs::read(state.dir().join(FILE)).ok()?).ok()?;
    (found.process.is_alive() && found.process.has_marker(id)).then_some(found)
}

impl Start {
    fn begin(self) -> Result<(), Ended> {
        let (state, running) = StateRoot::from_env().pick(self.lab.as_deref())?;
        let thing = "the measuring client";
        let _lock =
            state.lock(|| eprintln!("another command works on lab {:?}; waiting for it", state.name()))?;
        if let Some(other) = found(&state, &running.id) {
            let cause = format!("one runs already and writes {}", other.file.display());
            return Err(Failure::new(thing, cause, "end it first: lab measure stop").into());
        }
        let file = std::path::absolute(&self.write).or_failure(thing, "give a writable file with -w")?;
        let log = state.dir().join("measure.log");
        let errors = fs::File::create(&log).or_failure(thing, "free space in the state directory")?;
        Record::open(&state.dir())?.note(Entry::Process { what: "measuring client".into() })?;
        let program = std::env::current_exe().or_failure(thing, "keep the program where it was started")?;
        let mut child = Command::new(program)
            .args(["measure", "run", "--from", &self.from, "--to", &self.to, "--lab", state.name()])
            .args(["--rate", &self.rate.to_string()])
            .arg("--write")
            .arg(&file)
            .env_remove(LAB_VARIABLE)
            .env(MARKER, &running.id)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .or_failure(thing, format!("see {}", log.display()))?;
        let process = i32::try_from(child.id()).ok().and_then(Process::of);
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            // Its end without a line is the client's end.
            let _ = BufReader::new(stdout).read_line(&mut line);
        }
        let (Some(process), true) = (process, line.starts_with("begun")) else {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let cause = if said.trim().is_empty() { "it ended at once" } else { said.trim() };
            let mend =
                format!("see that pod {} and the pods of Service {} run: lab status", self.from, self.to);
            return Err(Failure::new(thing, cause, mend).into());
        };
        let under_way = UnderWay { process, file };
        let text = serde_json::to_vec(&under_way).or_failure(thing, "report this as a bug")?;
        write_whole(&state.dir().join(FILE), &text)?;
        eprintln!(
            "{} calls the pods of Service {} {} times a second; journal {}; end it: lab measure stop",
            self.from,
            self.to,
            self.rate,
            self.write.display()
        );
        Ok(())
    }

    /// The client's own life.
    fn stay(self) -> Result<(), Ended> {
        // Its starter's terminal is not its own: Ctrl-C there is not meant for it.
        let _ = nix::unistd::setsid();
        let (state, running) = StateRoot::from_env().pick(self.lab.as_deref())?;
        let options =
            Options { lab: running.lab.name.clone(), from: self.from, to: self.to, rate: self.rate };
        let path: &Path = &self.write;
        runtime()?.block_on(async {
            let client = access::client(&state, &running, access::QUICK).await?;
            let (tell, told) = tokio::sync::watch::channel(false);
            let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
                .or_failure("signals", "report this as a bug")?;
            tokio::spawn(async move {
                terminate.recv().await;
                // The receiver is gone only if the client has ended.
                let _ = tell.send(true);
            });
            let begun = || print_text("begun\n");
            client::run(client, &options, path, told, begun).await
        })?;
        Ok(())
    }
}

fn stop(lab: Option<&str>) -> Result<(), Ended> {
    let (state, running) = StateRoot::from_env().pick(lab)?;
    let thing = "the measuring client";
    let Some(found) = found(&state, &running.id) else {
        return Err(Failure::new(thing, "none runs", "start one: lab measure start -w FILE").into());
    };
    let mend = "run as root, as the client was started";
    found.process.signal(libc::SIGTERM).or_failure(thing, mend)?;
    let end = Instant::now() + PATIENCE;
    while found.process.is_alive() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    if found.process.is_alive() {
        found.process.signal(libc::SIGKILL).or_failure(thing, mend)?;
    }
    // It names a process that is gone.
    let _ = fs::remove_file(state.dir().join(FILE));
    eprintln!("journal: {}", found.file.display());
    Ok(())
}

impl Show {
    fn run(self) -> Result<(), Ended> {
        let summaries = self
            .files
            .iter()
            .map(|file| {
                let name = file.file_stem().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
                Journal::read(file).map(|journal| Summary::of(&name, &journal))
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| Ended::Wrong(e.to_string()))?;
        match self.format.output {
            Output::Json => print_json(&summaries)?,
            Output::Text => {
                let texts: Vec<String> = summaries.iter().map(Summary::text).collect();
                print_text(&texts.join("\n"));
            }
        }
        if let Some(path) = &self.picture {
            let text = picture::svg(&summaries, self.lang)?;
            let thing = path.display().to_string();
            fs::write(path, text).or_failure(&thing, "give a writable file with --picture")?;
            eprintln!("picture: {thing}");
        }
        Ok(())
    }
}
