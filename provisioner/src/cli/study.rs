//! `lab study`: the course.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use podwire_conformance::report::Lang;
use serde::Serialize;

use super::{Ended, Format, Output, Programs, print_json, runtime};
use crate::error::{Failure, OrFailure};
use crate::lab::{check_lab_name, hint};
use crate::study::course::{Course, Exercise};
use crate::study::desk::Desk;
use crate::study::load::{self, Place};
use crate::study::phrases::said;
use crate::study::progress::Progress;
use crate::study::proof::{self, Proof};
use crate::study::show::Screen;
use crate::study::walk::{End, Walk};

/// Name of the learner's lab.
const LAB: &str = "study";

/// Work through the course, step by step, on a lab of your own.
#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that the user types")]
pub(super) struct Study {
    /// A week (3) or an exercise (3/ipam-kubernetes); none lists the course
    #[arg(value_name = "WEEK[/EXERCISE]")]
    what: Option<String>,
    /// Type the commands, and prove of every check that it fails before its step and holds after it
    #[arg(long, conflicts_with_all = ["check", "solve", "reset", "lint"])]
    auto: bool,
    /// Say what is missing in the step that is under way
    #[arg(long, conflicts_with_all = ["solve", "reset", "lint"])]
    check: bool,
    /// Type the commands of all that is left of the exercise
    #[arg(long, conflicts_with_all = ["reset", "lint"])]
    solve: bool,
    /// Take the exercise back to its beginning, with a new lab
    #[arg(long, conflicts_with = "lint")]
    reset: bool,
    /// Read the course's files, and say what is wrong with them
    #[arg(long)]
    lint: bool,
    /// Language; default: that of the locale
    #[arg(long)]
    lang: Option<Lang>,
    /// A course of your own: a directory with N/week.toml in it
    #[arg(long, value_name = "DIR")]
    course: Option<PathBuf>,
    /// Where progress, captures and pictures are kept; default: ~/.local/state/podwire/study (--auto: nowhere)
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Name of the lab; it is taken down and brought up as exercises need it
    #[arg(long, default_value = LAB)]
    lab: String,
    #[command(flatten)]
    programs: Programs,
    #[command(flatten)]
    format: Format,
}

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_: i32) {
    STOP.store(true, Ordering::Release);
}

impl Study {
    pub(super) fn run(self) -> Result<(), Ended> {
        let place = self.course.as_deref().map_or(Place::Inside, Place::Directory);
        let course = load::course(&place)?;
        let lang = self.lang.unwrap_or_else(from_locale);
        if self.lint {
            let steps: usize = course.exercises().map(|e| e.body.steps.len()).sum();
            eprintln!(
                "{} exercises with {steps} steps, in both languages: nothing is wrong",
                course.exercises().count()
            );
            return Ok(());
        }
        let chosen = choose(&course, self.what.as_deref())?;
        if self.auto {
            return self.prove(&course, &chosen, lang);
        }
        let directory = self.dir.clone().map_or_else(home, Ok)?;
        let Some(what) = &self.what else { return self.list(&course, &directory, lang) };
        let desk = self.desk(&directory, lang)?;
        let mut progress = Progress::read(&desk.directory)?;
        let screen = Screen::new(lang);
        let current = current(&chosen, &progress);
        if self.check {
            return self.check(&desk, &screen, current, &progress);
        }
        if self.reset {
            desk.fresh(current)?;
            let part = progress.of(&current.id);
            *part =
                crate::study::progress::Part { lab: desk.lab_id().unwrap_or_default(), ..Default::default() };
            progress.keep()?;
            screen.say("reset-done", &[("exercise", &current.id)]);
            return Ok(());
        }
        if self.solve {
            return solve(&desk, &screen, current, &mut progress);
        }
        walk(&desk, &screen, &course, what, &mut progress)
    }

    fn desk(&self, directory: &Path, lang: Lang) -> Result<Desk, Ended> {
        check_lab_name(&self.lab).map_err(|cause| Ended::Wrong(format!("--lab {:?} {cause}", self.lab)))?;
        let bin_dir = self.programs.with(&super::PROGRAMS)?;
        Ok(Desk::new(directory, &self.lab, lang, bin_dir, runtime()?)?)
    }

    fn list(&self, course: &Course, directory: &Path, lang: Lang) -> Result<(), Ended> {
        let progress = Progress::read(directory)?;
        if self.format.output == Output::Json {
            let rows: Vec<Row<'_>> = course.exercises().map(|e| row(e, &progress, lang)).collect();
            return print_json(&rows);
        }
        Screen::new(lang).course(course, &progress);
        Ok(())
    }

    fn check(
        &self,
        desk: &Desk,
        screen: &Screen,
        exercise: &Exercise,
        progress: &Progress,
    ) -> Result<(), Ended> {
        let part = progress.exercises.get(&exercise.id).cloned().unwrap_or_default();
        let step = exercise.body.steps.get(part.steps);
        let (Some(step), Some(id)) = (step, desk.lab_id()) else {
            let key = if part.done { "exercise-done" } else { "not-begun" };
            screen.say(key, &[("exercise", &exercise.id)]);
            return if part.done { Ok(()) } else { Err(Ended::Code(3)) };
        };
        if id != part.lab {
            screen.say("not-begun", &[("exercise", &exercise.id)]);
            return Err(Ended::Code(3));
        }
        let (outcomes, _) = desk.ask(step, &part.answers)?;
        if self.format.output == Output::Json {
            let rows: Vec<Checked<'_>> = step
                .checks
                .iter()
                .zip(&outcomes)
                .map(|(check, o)| Checked {
                    step: step.id.get_ref(),
                    check: check.name(),
                    held: o.held,
                    said: said(desk.lang, &o.said),
                })
                .collect();
            print_json(&rows)?;
        } else {
            screen.step(step.title.of(desk.lang), part.steps + 1, exercise.body.steps.len());
            if outcomes.iter().any(|o| !o.held) {
                screen.say("missing", &[]);
            }
            screen.outcomes(&outcomes);
        }
        if outcomes.iter().all(|o| o.held) { Ok(()) } else { Err(Ended::Code(1)) }
    }

    /// Plays exercises by itself; what they need beforehand is played too. Nothing is left of the lab.
    fn prove(&self, course: &Course, chosen: &[&Exercise], lang: Lang) -> Result<(), Ended> {
        // It goes when this function ends.
        let own = tempfile::tempdir().or_failure("a temporary directory", "give a directory with --dir")?;
        let desk = self.desk(self.dir.as_deref().unwrap_or(own.path()), lang)?;
        let screen = Screen::new(lang);
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let action = SigAction::new(SigHandler::Handler(stop), SaFlags::SA_RESTART, SigSet::empty());
            // SAFETY: the handler only stores an atomic.
            let _ = unsafe { sigaction(signal, &action) };
        }
        let mut proofs: Vec<Proof> = Vec::new();
        let mut played = || -> Result<(), Failure> {
            for wanted in chosen {
                let done = |id: &str| proofs.iter().any(|p| p.exercise == id);
                let mut order = course.needed_before(wanted, &done);
                if !done(&wanted.id) {
                    order.push(wanted);
                }
                for exercise in order {
                    if STOP.load(Ordering::Acquire) {
                        return Ok(());
                    }
                    proofs.push(proof::prove(&desk, &screen, exercise, &STOP)?);
                }
            }
            Ok(())
        };
        let outcome = played();
        let removed = desk.down();
        outcome?;
        removed?;
        let faults: usize = proofs.iter().map(|p| p.faults.len()).sum();
        if self.format.output == Output::Json {
            print_json(&proofs)?;
        }
        if STOP.load(Ordering::Acquire) {
            screen.say("interrupted", &[]);
            return Err(Ended::Code(130));
        }
        let steps: usize = proofs.iter().map(|p| p.steps.len()).sum();
        let checks: usize = proofs.iter().flat_map(|p| &p.steps).map(|s| s.checks.len()).sum();
        screen.line("");
        if faults > 0 {
            screen.say("not-proven", &[("faults", &faults.to_string())]);
            return Err(Ended::Code(1));
        }
        let count = [proofs.len(), steps, checks].map(|n| n.to_string());
        screen.say("proven", &[("exercises", &count[0]), ("steps", &count[1]), ("checks", &count[2])]);
        Ok(())
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    exercise: &'a str,
    title: &'a str,
    minutes: u32,
    steps: usize,
    steps_done: usize,
    done: bool,
}

fn row<'a>(exercise: &'a Exercise, progress: &Progress, lang: Lang) -> Row<'a> {
    let part = progress.exercises.get(&exercise.id).cloned().unwrap_or_default();
    Row {
        exercise: &exercise.id,
        title: exercise.body.title.of(lang),
        minutes: exercise.body.minutes,
        steps: exercise.body.steps.len(),
        steps_done: part.steps,
        done: part.done,
    }
}

#[derive(Serialize)]
struct Checked<'a> {
    step: &'a str,
    check: &'a str,
    held: bool,
    said: String,
}

/// `~/.local/state/podwire/study`, as the XDG Base Directory Specification places state.
fn home() -> Result<PathBuf, Ended> {
    let state = std::env::var_os("XDG_STATE_HOME").filter(|d| !d.is_empty()).map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let state = state.or_else(home).ok_or_else(|| {
        Failure::new("progress", "neither XDG_STATE_HOME nor HOME is set", "say where to keep it: --dir DIR")
    })?;
    Ok(state.join("podwire/study"))
}

/// Korean where the user's messages are Korean.
fn from_locale() -> Lang {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = set("LC_ALL").or_else(|| set("LC_MESSAGES")).or_else(|| set("LANG")).unwrap_or_default();
    if locale.starts_with("ko") { Lang::Ko } else { Lang::En }
}

/// The exercises that are meant.
fn choose<'a>(course: &'a Course, what: Option<&str>) -> Result<Vec<&'a Exercise>, Ended> {
    let Some(what) = what else { return Ok(course.exercises().collect()) };
    let weeks = || course.weeks.keys().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let (week, name) = what.split_once('/').map_or((what, None), |(week, name)| (week, Some(name)));
    let found = week.parse().ok().and_then(|number: u32| course.weeks.get(&number));
    let Some(found) = found else {
        return Err(Ended::Wrong(format!("week {week:?}: there is no such week; there are: {}", weeks())));
    };
    let Some(name) = name else { return Ok(found.exercises.iter().collect()) };
    if let Some(exercise) = found.exercises.iter().find(|e| e.id == what) {
        return Ok(vec![exercise]);
    }
    let names: Vec<&str> = found.exercises.iter().filter_map(|e| Some(e.id.split_once('/')?.1)).collect();
    let mend = hint(name, names, "the exercises are");
    Err(Ended::Wrong(format!("exercise {what:?}: there is no such exercise; {mend}")))
}

/// The exercise that is under way, else the first that is not done, else the first.
fn current<'a>(chosen: &[&'a Exercise], progress: &Progress) -> &'a Exercise {
    let part = |e: &Exercise| progress.exercises.get(&e.id).cloned().unwrap_or_default();
    let under_way = chosen.iter().find(|e| {
        let part = part(e);
        !part.done && part.steps > 0
    });
    let open = || chosen.iter().find(|e| !part(e).done);
    under_way.or_else(open).unwrap_or(&chosen[0])
}

fn solve(desk: &Desk, screen: &Screen, exercise: &Exercise, progress: &mut Progress) -> Result<(), Ended> {
    let part = progress.of(&exercise.id).clone();
    let on_its_lab = desk.lab_id().is_some_and(|id| id == part.lab);
    let from = if on_its_lab && part.steps < exercise.body.steps.len() { part.steps } else { 0 };
    if from == 0 {
        desk.fresh(exercise)?;
    }
    let faults = proof::solve_from(desk, screen, exercise, from)?;
    if !faults.is_empty() {
        for fault in &faults {
            screen.fault(fault);
        }
        return Err(Ended::Code(1));
    }
    let part = progress.of(&exercise.id);
    part.lab = desk.lab_id().unwrap_or_default();
    part.steps = exercise.body.steps.len();
    part.answers.clear();
    part.done = true;
    progress.keep()?;
    screen.line("");
    screen.say("solved", &[("exercise", &exercise.id)]);
    Ok(())
}

fn walk(
    desk: &Desk,
    screen: &Screen,
    course: &Course,
    what: &str,
    progress: &mut Progress,
) -> Result<(), Ended> {
    // Ctrl-C is the running command's; at the prompt the editor reads it as a key.
    let action = SigAction::new(SigHandler::Handler(stop), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler only stores an atomic.
    let _ = unsafe { sigaction(Signal::SIGINT, &action) };
    let chosen = choose(course, Some(what))?;
    let single = what.contains('/');
    loop {
        let wanted = current(&chosen, progress);
        let done = |id: &str| progress.is_done(id);
        let before = course.needed_before(wanted, &done);
        let exercise = before.first().copied().unwrap_or(wanted);
        if exercise.id != wanted.id {
            screen.say("first", &[("exercise", &wanted.id), ("before", &exercise.id)]);
        }
        let end = Walk::new(desk, screen, progress).exercise(exercise)?;
        if end != End::Done {
            screen.line("");
            screen.say("kept", &[("exercise", &exercise.id), ("lab", &desk.lab)]);
            return Ok(());
        }
        let open = chosen.iter().find(|e| !progress.is_done(&e.id));
        match open {
            Some(_) if single && exercise.id != wanted.id => {}
            Some(next) if !single => screen.say("next", &[("exercise", &next.id)]),
            _ => {
                match course.exercises().skip_while(|e| e.id != exercise.id).nth(1) {
                    Some(next) if single => screen.say("next", &[("exercise", &next.id)]),
                    _ => screen.say("week-done", &[("lab", &desk.lab)]),
                }
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_course_inside_is_sound() {
        if let Err(error) = load::course(&Place::Inside) {
            panic!("{error}");
        }
    }

    #[test]
    fn a_wrong_name_is_refused_with_what_there_is() {
        let course = load::course(&Place::Inside).unwrap();
        let wrong = |what| match choose(&course, Some(what)) {
            Err(Ended::Wrong(message)) => message,
            _ => panic!("{what} was taken"),
        };
        assert!(wrong("99").contains("there are: 3, 4"), "{}", wrong("99"));
        assert!(wrong("3/ipam-kubernets").contains("did you mean \"ipam-kubernetes\"?"));
        assert_eq!(choose(&course, Some("3/ipam-kubernetes")).ok().map(|c| c.len()), Some(1));
    }
}
