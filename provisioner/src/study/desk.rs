//! The learner's desk: a lab of their own, a directory for what they make, and an environment in which `kubectl` and
//! `lab` mean that lab.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use podwire_conformance::check::Expectation;
use podwire_conformance::report::Lang;
use tokio::runtime::Runtime;

use super::check::dns;
use super::check::live::{self, Reached};
use super::check::{Check, Outcome};
use super::course::{Exercise, Step};
use super::fact::{self, Known};
use super::phrases::phrase;
use super::snapshot::{Needs, Snapshot};
use super::typist::{self, Typed};
use crate::access;
use crate::error::{Failure, OrFailure};
use crate::state::{LAB_VARIABLE, LabState, Running, StateRoot, write_whole};

const KUBECONFIG: &str = "kubeconfig";
/// Shows how the lab stands when a setup has failed.
const EVIDENCE: &str = "kubectl get pods -A -o wide; kubectl get nn -o yaml; kubectl -n kube-system get lease -o yaml; \
                        kubectl -n kube-system logs deploy/podwire-operator --tail=40";

/// See above.
pub struct Desk {
    /// Where progress, captures, journals and pictures are.
    pub directory: PathBuf,
    /// Name of the lab.
    pub lab: String,
    /// Language of everything that is said.
    pub lang: Lang,
    bin_dir: PathBuf,
    runtime: Runtime,
}

/// What was seen at one moment.
pub struct Seen {
    /// The lab's state.
    pub snapshot: Snapshot,
    reached: Option<Vec<Reached>>,
}

impl Desk {
    /// Prepares a desk; the lab need not exist.
    pub fn new(
        directory: &Path,
        lab: &str,
        lang: Lang,
        bin_dir: PathBuf,
        runtime: Runtime,
    ) -> Result<Self, Failure> {
        let thing = directory.display().to_string();
        std::fs::create_dir_all(directory).or_failure(&thing, "give a writable directory with --dir")?;
        let directory = directory.canonicalize().or_failure(thing, "give another directory with --dir")?;
        let desk = Self { directory, lab: lab.to_owned(), lang, bin_dir, runtime };
        let path =
            desk.env().into_iter().find(|(key, _)| key == "PATH").map(|(_, value)| value).unwrap_or_default();
        for program in ["kubectl", "bash"] {
            if !std::env::split_paths(&path).any(|dir| dir.join(program).is_file()) {
                let mend = "install it: make setup, or see lab doctor";
                return Err(Failure::new(program, "the exercises type it, and it is not in PATH", mend));
            }
        }
        Ok(desk)
    }

    /// The environment of what is typed, beside the caller's own.
    pub fn env(&self) -> Vec<(String, String)> {
        let own = std::env::var_os("PATH").unwrap_or_default();
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
        let podwire = std::env::var_os("PODWIRE_CACHE").map_or_else(|| cache.join("podwire"), PathBuf::from);
        // Where `make setup` puts kubectl comes last: what the user has is the user's choice.
        let dirs = std::iter::once(self.bin_dir.clone())
            .chain(std::env::split_paths(&own))
            .chain(std::iter::once(podwire.join("bin")));
        let path = std::env::join_paths(dirs).unwrap_or(own);
        vec![
            ("PATH".into(), path.to_string_lossy().into_owned()),
            ("KUBECONFIG".into(), self.directory.join(KUBECONFIG).display().to_string()),
            (LAB_VARIABLE.into(), self.lab.clone()),
        ]
    }

    /// The lab, if it runs.
    pub fn running(&self) -> Option<(LabState, Running)> {
        let state = StateRoot::from_env().lab(&self.lab);
        let running = state.running()?;
        Some((state, running))
    }

    /// Id of the lab that runs.
    pub fn lab_id(&self) -> Option<String> {
        self.running().map(|(_, running)| running.id)
    }

    fn must_run(&self) -> Result<(LabState, Running), Failure> {
        self.running().ok_or_else(|| {
            Failure::new(
                format!("lab {:?}", self.lab),
                "it is not running",
                "begin the exercise anew: lab study --reset",
            )
        })
    }

    /// Brings the exercise's lab up anew and into the exercise's state.
    pub fn fresh(&self, exercise: &Exercise) -> Result<(), Failure> {
        let text = phrase(self.lang, "lab-comes").replace("{lab}", &self.lab);
        eprintln!("{text}");
        self.down()?;
        let body = &exercise.body;
        let mut words = vec!["up", body.lab.get_ref(), "--name", &self.lab];
        for set in &body.set {
            words.extend(["--set", set]);
        }
        for app in &body.apps {
            words.extend(["--app", app.get_ref()]);
        }
        Self::lab_command(&words)?;
        self.write_kubeconfig()?;
        for line in &body.setup {
            let line = self.measured(line.get_ref())?;
            let typed = self.type_for(&line, |_| ())?;
            if typed.code != 0 {
                let thing = format!("{}: setup: {line}", exercise.file);
                let cause = format!("exit code {}: {}", typed.code, typed.output.trim());
                // What an author needs to see of the lab, which may be gone in a moment.
                self.type_for(EVIDENCE, |text| eprint!("{text}"))?;
                return Err(Failure::new(thing, cause, "mend the exercise's setup"));
            }
        }
        Ok(())
    }

    /// A kubeconfig for what is typed.
    pub fn write_kubeconfig(&self) -> Result<(), Failure> {
        let (state, running) = self.must_run()?;
        let text = access::kubeconfig_text(&state, &running)?;
        write_whole(&self.directory.join(KUBECONFIG), text.as_bytes())
    }

    /// Takes the lab down.
    pub fn down(&self) -> Result<(), Failure> {
        if StateRoot::from_env().lab(&self.lab).exists() {
            Self::lab_command(&["down", &self.lab])
        } else {
            Ok(())
        }
    }

    fn lab_command(words: &[&str]) -> Result<(), Failure> {
        let thing = format!("lab {}", words.join(" "));
        let program = std::env::current_exe().or_failure(&thing, "keep the program where it was started")?;
        let output = Command::new(program)
            .args(words)
            .env_remove(LAB_VARIABLE)
            .stdin(Stdio::null())
            .output()
            .or_failure(&thing, "free memory or raise the limit of processes")?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let cause = said.lines().rfind(|l| l.starts_with("error:")).unwrap_or("it failed").to_owned();
        Err(Failure::new(thing, cause.trim_start_matches("error: "), "see: lab doctor"))
    }

    /// Types a command and shows what it prints.
    pub fn type_for(&self, line: &str, show: impl FnMut(&str)) -> Result<Typed, Failure> {
        typist::run(line, &self.directory, &self.env(), show)
    }

    /// Lets a learner's command have the terminal.
    pub fn hand_over(&self, line: &str) -> Result<Typed, Failure> {
        typist::hand_over(line, &self.directory, &self.env())
    }

    /// Looks at what texts ask for.
    pub fn look_for(&self, texts: &[&str]) -> Result<Seen, Failure> {
        let facts = || texts.iter().flat_map(|text| fact::of(text));
        if facts().next().is_none() {
            return Ok(Seen { snapshot: Snapshot::default(), reached: None });
        }
        self.look(facts().fold(Needs::default(), |n, f| n | f.needs()), facts().any(|f| f.needs_calls()))
    }

    fn look(&self, needs: Needs, calls: bool) -> Result<Seen, Failure> {
        let (state, running) = self.must_run()?;
        self.runtime.block_on(async {
            let client = access::client(&state, &running, access::QUICK).await?;
            let snapshot = Snapshot::take(&client, &state, &running, needs).await?;
            let reached = if calls { Some(live::call_all(&client, &snapshot).await) } else { None };
            Ok(Seen { snapshot, reached })
        })
    }

    fn known<'a>(&'a self, seen: &'a Seen) -> Known<'a> {
        Known { snapshot: &seen.snapshot, reached: seen.reached.as_deref(), directory: &self.directory }
    }

    /// A text with its facts measured and filled in.
    pub fn measured(&self, text: &str) -> Result<String, Failure> {
        let seen = self.look_for(&[text])?;
        Ok(self.fill(text, &seen))
    }

    /// A text with the facts of one moment filled in.
    pub fn fill(&self, text: &str, seen: &Seen) -> String {
        fact::fill(text, &self.known(seen), phrase(self.lang, "unknown"))
    }

    /// The right answer to a question, if it can be known now.
    pub fn right_answer(&self, is: &str, seen: &Seen) -> Option<String> {
        let known = self.known(seen);
        fact::of(is).all(|f| f.measure(&known).is_some()).then(|| fact::fill(is, &known, ""))
    }

    /// Asks every check of a step. `answers` are the learner's, by the number of the check.
    pub fn ask(
        &self,
        step: &Step,
        answers: &BTreeMap<usize, String>,
    ) -> Result<(Vec<Outcome>, Seen), Failure> {
        let needs = step.checks.iter().fold(Needs::default(), |n, c| n | c.needs());
        let calls = step.checks.iter().any(Check::needs_calls);
        let seen = self.look(needs, calls)?;
        let outcomes = step.checks.iter().enumerate().map(|(n, check)| {
            let given = answers.get(&n).map(String::as_str);
            self.judge(check, given, &seen)
        });
        let outcomes = outcomes.collect::<Result<_, _>>()?;
        Ok((outcomes, seen))
    }

    fn judge(&self, check: &Check, given: Option<&str>, seen: &Seen) -> Result<Outcome, Failure> {
        if let Some(outcome) = check.judge(&seen.snapshot) {
            return Ok(outcome);
        }
        let (state, running) = self.must_run()?;
        let under_way = || crate::cli::measurement_under_way(&state, &running.id);
        Ok(match check {
            Check::Answer { is, .. } => {
                let right = self.right_answer(is.get_ref(), seen);
                live::answer(given, right.as_deref())
            }
            Check::Capture { file, expect } => {
                let context = self.runtime.block_on(access::context_of(&state, &running));
                live::capture_file(&self.directory, file, expect.unwrap_or(Expectation::Native), &context)
            }
            Check::Captured { file, from, to } => {
                let (from, to) = (self.fill(from.get_ref(), seen), self.fill(to.get_ref(), seen));
                live::captured(&self.directory, file, &from, &to)
            }
            Check::Compared { file } => live::compared(&self.directory, file),
            Check::Asked { file, name, only } => dns::asked(&self.directory, file, name, *only),
            Check::NotCaptured { file, address } => {
                live::not_captured(&self.directory, file, &self.fill(address.get_ref(), seen))
            }
            Check::Loop { file, found } => live::loops(&self.directory, file, *found),
            Check::Fetch { url } => {
                let url = self.fill(url.get_ref(), seen);
                self.runtime.block_on(async {
                    let client = access::client(&state, &running, access::QUICK).await?;
                    Ok::<_, Failure>(live::fetch(&client, &url).await)
                })?
            }
            Check::Measuring { file } => live::measuring(&self.directory, file, under_way().as_deref()),
            Check::Measured { file, lost } => {
                live::measured(&self.directory, file, *lost, under_way().as_deref())
            }
            Check::Picture { file } => live::picture(&self.directory, file),
            // Only `reach` is left: the state answers the others.
            _ => live::reach(seen.reached.as_deref().unwrap_or_default()),
        })
    }
}
