//! Walks a learner through an exercise: shows a step, runs what they type, watches the lab, says what is missing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use podwire_conformance::report::Lang;
use reedline::ExternalPrinter;

use super::check::live::answer;
use super::check::{Check, Outcome};
use super::course::{Exercise, Step};
use super::desk::Desk;
use super::phrases::phrase;
use super::progress::Progress;
use super::prompt::Prompt;
use super::proof;
use super::show::{Screen, outcome_lines};
use crate::error::Failure;

/// How often the lab is looked at while the learner thinks or works in another terminal.
const GLANCE: Duration = Duration::from_secs(1);

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The exercise is done.
    Done,
    /// The learner stops here.
    Quit,
    /// The learner wants the exercise from its beginning.
    Reset,
}

/// What is walked through, and by whom.
pub struct Walk<'a> {
    /// The lab.
    pub desk: &'a Desk,
    /// The terminal.
    pub screen: &'a Screen,
    /// What is kept.
    pub progress: &'a mut Progress,
    prompt: Prompt,
}

impl<'a> Walk<'a> {
    /// Begins at a terminal, or with lines that come from elsewhere.
    pub fn new(desk: &'a Desk, screen: &'a Screen, progress: &'a mut Progress) -> Self {
        Self { desk, screen, progress, prompt: Prompt::new(&desk.directory) }
    }

    /// Walks through an exercise from where the learner has stopped.
    pub fn exercise(&mut self, exercise: &Exercise) -> Result<End, Failure> {
        loop {
            match self.once(exercise)? {
                End::Reset => {
                    self.restart(exercise)?;
                }
                end => return Ok(end),
            }
        }
    }

    /// What the learner has answered in the step that is under way.
    fn answers(&self, exercise: &Exercise) -> BTreeMap<usize, String> {
        self.progress.exercises.get(&exercise.id).map(|part| part.answers.clone()).unwrap_or_default()
    }

    fn restart(&mut self, exercise: &Exercise) -> Result<(), Failure> {
        self.desk.fresh(exercise)?;
        let lab = self.desk.lab_id().unwrap_or_default();
        let part = self.progress.of(&exercise.id);
        part.lab = lab;
        part.steps = 0;
        part.answers.clear();
        self.progress.keep()
    }

    fn once(&mut self, exercise: &Exercise) -> Result<End, Failure> {
        let body = &exercise.body;
        let lang = self.desk.lang;
        self.screen.exercise(exercise);
        let begun = self.progress.of(&exercise.id).clone();
        let steps_done = if begun.steps < body.steps.len() { begun.steps } else { 0 };
        if steps_done > 0 && self.desk.lab_id().is_some_and(|id| id == begun.lab) {
            self.desk.write_kubeconfig()?;
            self.screen.say("go-on", &[]);
        } else {
            self.restart(exercise)?;
            if steps_done > 0 {
                self.screen.say("lab-again", &[("steps", &steps_done.to_string())]);
                self.replay(exercise, steps_done)?;
            }
            self.screen.prose(&self.desk.measured(body.intro.of(lang))?);
        }
        self.screen.line("");
        self.screen.say("other-terminal", &[]);
        for (key, value) in self.desk.env().iter().filter(|(key, _)| key != "PATH") {
            self.screen.line(&format!("    export {key}={value}"));
        }
        for (n, step) in body.steps.iter().enumerate().skip(steps_done) {
            match self.step(exercise, step, (n + 1, body.steps.len()))? {
                End::Done => {}
                end => return Ok(end),
            }
            let part = self.progress.of(&exercise.id);
            part.steps = n + 1;
            part.answers.clear();
            self.progress.keep()?;
        }
        let part = self.progress.of(&exercise.id);
        part.done = true;
        self.progress.keep()?;
        self.screen.line("");
        self.screen.prose(&self.desk.measured(body.done.of(lang))?);
        self.screen.line("");
        self.screen.say("exercise-done", &[("exercise", &exercise.id)]);
        Ok(End::Done)
    }

    /// Does the finished steps again on a new lab.
    fn replay(&mut self, exercise: &Exercise, steps: usize) -> Result<(), Failure> {
        for step in exercise.body.steps.iter().take(steps) {
            let mut faults = Vec::new();
            proof::type_commands(self.desk, self.screen, step, &mut faults)?;
            proof::until_held(self.desk, step)?;
        }
        self.progress.of(&exercise.id).steps = steps;
        self.progress.keep()
    }

    fn show_step(&self, step: &Step, (number, of): (usize, usize)) -> Result<(), Failure> {
        let (desk, screen) = (self.desk, self.screen);
        screen.step(step.title.of(desk.lang), number, of);
        let text = step.text.of(desk.lang);
        let commands = step.commands.iter().map(|c| c.get_ref().as_str());
        let wanted: Vec<&str> = std::iter::once(text).chain(commands).collect();
        let seen = desk.look_for(&wanted)?;
        screen.prose(&desk.fill(text, &seen));
        screen.line("");
        for command in &step.commands {
            screen.command(&desk.fill(command.get_ref(), &seen));
        }
        screen.line("");
        Ok(())
    }

    fn ask_open_questions(&self, step: &Step, answers: &BTreeMap<usize, String>) -> Result<(), Failure> {
        for (_, question, _) in open_questions(step, answers, self.desk.lang) {
            self.screen.question(&self.desk.measured(question)?);
        }
        Ok(())
    }

    fn step(&mut self, exercise: &Exercise, step: &Step, place: (usize, usize)) -> Result<End, Failure> {
        self.show_step(step, place)?;
        self.ask_open_questions(step, &self.answers(exercise))?;
        self.screen.say("prompt-help", &[]);
        let mut hints = step.hints.iter();
        loop {
            let answers = self.answers(exercise);
            let Some(line) = self.read_line(step, &answers)? else { return Ok(End::Quit) };
            match line.trim() {
                "quit" | "exit" => return Ok(End::Quit),
                "reset" => return Ok(End::Reset),
                "help" | "?" => self.screen.say("help", &[]),
                "text" => {
                    self.show_step(step, place)?;
                    self.ask_open_questions(step, &answers)?;
                }
                "hint" => match hints.next() {
                    Some(hint) => self.screen.prose(&self.desk.measured(hint.of(self.desk.lang))?),
                    None => self.screen.say("no-more-hints", &[]),
                },
                "solve" => {
                    self.solve(exercise, step)?;
                    if self.finished(exercise, step)? {
                        return Ok(End::Done);
                    }
                }
                "" => {
                    if self.finished(exercise, step)? {
                        return Ok(End::Done);
                    }
                }
                line => {
                    self.take(exercise, step, line)?;
                    if self.quietly_finished(exercise, step)? {
                        return Ok(End::Done);
                    }
                }
            }
        }
    }

    /// A line from the learner; none when they leave. At a terminal the lab is watched meanwhile.
    fn read_line(
        &mut self,
        step: &Step,
        answers: &BTreeMap<usize, String>,
    ) -> Result<Option<String>, Failure> {
        let typed = AtomicBool::new(false);
        let desk = self.desk;
        std::thread::scope(|scope| {
            if let Some(printer) = self.prompt.printer() {
                let typed = &typed;
                scope.spawn(move || watch(desk, step, answers, typed, &printer));
            }
            let line = self.prompt.read();
            typed.store(true, Ordering::Release);
            line
        })
    }

    /// Takes a line for an answer or for a command.
    fn take(&mut self, exercise: &Exercise, step: &Step, line: &str) -> Result<(), Failure> {
        let answers = self.answers(exercise);
        let open = open_questions(step, &answers, self.desk.lang);
        for (n, _, is) in &open {
            let seen = self.desk.look_for(&[is])?;
            let right = self.desk.right_answer(is, &seen);
            let outcome = answer(Some(line), right.as_deref());
            if outcome.held {
                self.screen.outcome(&outcome);
                self.progress.of(&exercise.id).answers.insert(*n, line.to_owned());
                return self.progress.keep();
            }
        }
        if !open.is_empty() && !self.is_command(line)? {
            let outcome = answer(Some(line), Some(""));
            self.screen.outcome(&outcome);
            return Ok(());
        }
        let typed = self.desk.hand_over(line)?;
        if typed.code != 0 {
            self.screen.say("command-failed", &[("code", &typed.code.to_string())]);
        }
        Ok(())
    }

    /// True if a shell would find a program, a builtin or a keyword in the line's first word.
    fn is_command(&self, line: &str) -> Result<bool, Failure> {
        let word = line.split_whitespace().next().unwrap_or_default().replace('\'', "'\\''");
        let assignment = word.contains('=') || word.starts_with(['(', '{', '!', '$']);
        Ok(assignment || self.desk.type_for(&format!("type '{word}'"), |_| ())?.code == 0)
    }

    fn solve(&mut self, exercise: &Exercise, step: &Step) -> Result<(), Failure> {
        let mut faults = Vec::new();
        proof::type_commands(self.desk, self.screen, step, &mut faults)?;
        let seen = proof::until_held(self.desk, step)?;
        let answers = self.answers(exercise);
        for (n, question, is) in open_questions(step, &answers, self.desk.lang) {
            if let Some(right) = self.desk.right_answer(is, &seen) {
                self.screen.question(&self.desk.fill(question, &seen));
                self.screen.line(&format!("  > {right}"));
                self.progress.of(&exercise.id).answers.insert(n, right);
            }
        }
        self.progress.keep()
    }

    /// Says how the step stands; true if it is done.
    fn finished(&self, exercise: &Exercise, step: &Step) -> Result<bool, Failure> {
        let answers = self.answers(exercise);
        let (outcomes, _) = self.desk.ask(step, &answers)?;
        self.screen.outcomes(&outcomes);
        if outcomes.iter().all(|outcome| outcome.held) {
            self.after(step)?;
            return Ok(true);
        }
        self.ask_open_questions(step, &answers)?;
        Ok(false)
    }

    /// The same after a command, which need not have been the last one: what is missing is said on request.
    fn quietly_finished(&self, exercise: &Exercise, step: &Step) -> Result<bool, Failure> {
        let (outcomes, _) = self.desk.ask(step, &self.answers(exercise))?;
        let done = outcomes.iter().all(|outcome| outcome.held);
        if done {
            self.screen.outcomes(&outcomes);
            self.after(step)?;
        }
        Ok(done)
    }

    fn after(&self, step: &Step) -> Result<(), Failure> {
        if let Some(text) = &step.seen {
            self.screen.line("");
            self.screen.prose(&self.desk.measured(text.of(self.desk.lang))?);
        }
        self.screen.say("step-done", &[]);
        Ok(())
    }
}

/// Number, text and answer of each question that is open.
fn open_questions<'a>(
    step: &'a Step,
    answers: &BTreeMap<usize, String>,
    lang: Lang,
) -> Vec<(usize, &'a str, &'a str)> {
    step.checks
        .iter()
        .enumerate()
        .filter_map(|(n, check)| match check {
            Check::Answer { question, is } if !answers.contains_key(&n) => {
                Some((n, question.of(lang), is.get_ref().as_str()))
            }
            _ => None,
        })
        .collect()
}

/// Looks at the lab again and again; says once that nothing is missing.
fn watch(
    desk: &Desk,
    step: &Step,
    answers: &BTreeMap<usize, String>,
    typed: &AtomicBool,
    printer: &ExternalPrinter<String>,
) {
    let mut before: Option<Vec<Outcome>> = None;
    let mut waited = Duration::ZERO;
    let nap = Duration::from_millis(50);
    while !typed.load(Ordering::Acquire) {
        std::thread::sleep(nap);
        waited += nap;
        if waited < GLANCE {
            continue;
        }
        waited = Duration::ZERO;
        // A lab that does not answer just now is said when the learner asks.
        let Ok((outcomes, _)) = desk.ask(step, answers) else { continue };
        if typed.load(Ordering::Acquire) {
            return;
        }
        if let Some(before) = &before {
            for (was, is) in before.iter().zip(&outcomes) {
                if is.held && !was.held {
                    // Only a prompt that is gone takes no line.
                    let _ = printer.print(outcome_lines(desk.lang, is).join("\n"));
                }
            }
            if outcomes.iter().all(|o| o.held) && !before.iter().all(|o| o.held) {
                let _ = printer.print(phrase(desk.lang, "holds").to_owned());
            }
        }
        before = Some(outcomes);
    }
}
