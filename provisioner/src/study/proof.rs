//! Proves exercises: types the commands as a learner would, and shows of every check that it fails before its step and
//! holds after it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::check::live;
use super::check::{Check, Outcome};
use super::course::{Exercise, Step};
use super::desk::{Desk, Seen};
use super::phrases::{said, say};
use super::show::Screen;
use crate::error::Failure;

/// How long the lab may take to come to what a step's commands ask for. It bounds a hang.
const PATIENCE: Duration = Duration::from_mins(3);

/// What came of an exercise.
#[derive(Clone, Debug, Serialize)]
pub struct Proof {
    /// The exercise.
    pub exercise: String,
    /// Its steps, as far as they were done.
    pub steps: Vec<StepProof>,
    /// What is wrong; empty if all is proven.
    pub faults: Vec<String>,
}

/// What came of a step.
#[derive(Clone, Debug, Serialize)]
pub struct StepProof {
    /// The step.
    pub step: String,
    /// Its checks.
    pub checks: Vec<CheckProof>,
}

/// What came of a check.
#[derive(Clone, Debug, Serialize)]
pub struct CheckProof {
    /// Its name.
    pub check: String,
    /// It did not hold before the step.
    pub failed_before: bool,
    /// It held after the step.
    pub held_after: bool,
    /// What it saw in the end.
    pub said: String,
}

/// Plays an exercise to its end on a fresh lab.
pub fn prove(desk: &Desk, screen: &Screen, exercise: &Exercise, stop: &AtomicBool) -> Result<Proof, Failure> {
    screen.exercise(exercise);
    desk.fresh(exercise)?;
    let body = &exercise.body;
    screen.prose(&desk.measured(body.intro.of(desk.lang))?);
    let mut proof = Proof { exercise: exercise.id.clone(), steps: Vec::new(), faults: Vec::new() };
    for (n, step) in body.steps.iter().enumerate() {
        if stop.load(Ordering::Acquire) {
            proof.faults.push(say(desk.lang, "interrupted", &[]));
            return Ok(proof);
        }
        let faults = proof.faults.len();
        self::step(desk, screen, step, (n + 1, body.steps.len()), &mut proof)?;
        for fault in &proof.faults[faults..] {
            screen.fault(fault);
        }
        if proof.faults.len() > faults {
            // What follows builds on this step.
            return Ok(proof);
        }
    }
    screen.line("");
    screen.prose(&desk.measured(body.done.of(desk.lang))?);
    Ok(proof)
}

fn step(
    desk: &Desk,
    screen: &Screen,
    step: &Step,
    (number, of): (usize, usize),
    proof: &mut Proof,
) -> Result<(), Failure> {
    let (before, _) = desk.ask(step, &BTreeMap::new())?;
    for (check, outcome) in step.checks.iter().zip(&before).filter(|(_, outcome)| outcome.held) {
        let said = said(desk.lang, &outcome.said);
        proof.faults.push(say(desk.lang, "holds-before", &[("check", check.name()), ("said", &said)]));
    }
    let after = carry_out(desk, screen, step, (number, of), &mut proof.faults)?;
    let checks = step.checks.iter().zip(&before).zip(&after).map(|((check, before), after)| CheckProof {
        check: check.name().to_owned(),
        failed_before: !before.held,
        held_after: after.held,
        said: said(desk.lang, &after.said),
    });
    proof.steps.push(StepProof { step: step.id.get_ref().clone(), checks: checks.collect() });
    if let Some(text) = &step.seen {
        screen.line("");
        screen.prose(&desk.measured(text.of(desk.lang))?);
    }
    Ok(())
}

/// Does a step as a learner would, to the last answer, and shows what its checks then see. One that does not hold is a fault.
fn carry_out(
    desk: &Desk,
    screen: &Screen,
    step: &Step,
    place: (usize, usize),
    faults: &mut Vec<String>,
) -> Result<Vec<Outcome>, Failure> {
    let printed = perform(desk, screen, step, place, faults)?;
    let seen = until_held(desk, step)?;
    let answers = answer(desk, screen, step, &printed, &seen, faults);
    let (outcomes, _) = desk.ask(step, &answers)?;
    screen.outcomes(&outcomes);
    for (check, outcome) in step.checks.iter().zip(&outcomes).filter(|(_, outcome)| !outcome.held) {
        let said = said(desk.lang, &outcome.said);
        faults.push(say(desk.lang, "never-held", &[("check", check.name()), ("said", &said)]));
    }
    Ok(outcomes)
}

/// Shows a step and types its commands; what they printed.
fn perform(
    desk: &Desk,
    screen: &Screen,
    step: &Step,
    (number, of): (usize, usize),
    faults: &mut Vec<String>,
) -> Result<String, Failure> {
    screen.step(step.title.of(desk.lang), number, of);
    screen.prose(&desk.measured(step.text.of(desk.lang))?);
    screen.line("");
    type_commands(desk, screen, step, faults)
}

/// Types a step's commands; what they printed.
pub fn type_commands(
    desk: &Desk,
    screen: &Screen,
    step: &Step,
    faults: &mut Vec<String>,
) -> Result<String, Failure> {
    let mut printed = String::new();
    let mut failed = false;
    for command in &step.commands {
        let line = desk.measured(command.get_ref())?;
        screen.command(&line);
        let typed = desk.type_for(&line, |text| screen.raw(text))?;
        if !typed.output.is_empty() && !typed.output.ends_with('\n') {
            screen.line("");
        }
        printed += &typed.output;
        failed |= typed.code != 0;
        if typed.code != 0 {
            let told = say(desk.lang, "command-failed", &[("code", &typed.code.to_string())]);
            screen.line(&format!("  ({told})"));
            if !step.failing {
                faults.push(format!("{line}: {told}"));
            }
        }
    }
    if step.failing && !failed {
        faults.push(say(desk.lang, "must-fail", &[]));
    }
    Ok(printed)
}

/// Waits until every check that is no question holds, or for as long as is sensible.
pub fn until_held(desk: &Desk, step: &Step) -> Result<Seen, Failure> {
    let end = Instant::now() + PATIENCE;
    loop {
        let (outcomes, seen) = desk.ask(step, &BTreeMap::new())?;
        // A question's answer must be measurable; whether it is given is another matter.
        let open = step.checks.iter().zip(&outcomes).any(|(check, outcome)| match check {
            Check::Answer { is, .. } => desk.right_answer(is.get_ref(), &seen).is_none(),
            _ => !outcome.held,
        });
        if !open || Instant::now() > end {
            return Ok(seen);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Answers the questions as a learner can: the answer must be in what the commands have printed. A wrong answer must be
/// refused.
fn answer(
    desk: &Desk,
    screen: &Screen,
    step: &Step,
    printed: &str,
    seen: &Seen,
    faults: &mut Vec<String>,
) -> BTreeMap<usize, String> {
    let mut answers = BTreeMap::new();
    for (n, check) in step.checks.iter().enumerate() {
        let Check::Answer { question, is } = check else { continue };
        screen.question(&desk.fill(question.of(desk.lang), seen));
        // What cannot be measured is told by the check itself.
        let Some(right) = desk.right_answer(is.get_ref(), seen) else { continue };
        screen.line(&format!("  > {right}"));
        let words = right.split([' ', ',']).filter(|w| !w.is_empty());
        if !words.clone().all(|word| printed.contains(word)) {
            faults.push(say(desk.lang, "not-in-output", &[("answer", &right)]));
        }
        if live::answer(Some(&format!("{right}0")), Some(&right)).held {
            faults.push(say(desk.lang, "wrong-taken", &[]));
        }
        answers.insert(n, right);
    }
    answers
}

/// Types everything from a step on and answers every question: the exercise as it should be at its end.
pub fn solve_from(
    desk: &Desk,
    screen: &Screen,
    exercise: &Exercise,
    from: usize,
) -> Result<Vec<String>, Failure> {
    let mut faults = Vec::new();
    let steps = &exercise.body.steps;
    for (n, step) in steps.iter().enumerate().skip(from) {
        carry_out(desk, screen, step, (n + 1, steps.len()), &mut faults)?;
        if !faults.is_empty() {
            break;
        }
    }
    Ok(faults)
}
