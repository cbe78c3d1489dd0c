//! How the course looks in a terminal: 80 columns, colours only where a terminal shows them.

use std::fmt::Write as _;

use console::{Style, Term};
use podwire_conformance::report::Lang;

use super::check::Outcome;
use super::course::{Course, Exercise};
use super::phrases::{phrase, said, say};
use super::progress::Progress;
use super::text::{COLUMNS, columns, lay_out};

/// Prints everything to standard output.
pub struct Screen {
    /// Language of what the course says by itself.
    pub lang: Lang,
    term: Term,
    width: usize,
}

impl Screen {
    /// The terminal that this process writes to.
    pub fn new(lang: Lang) -> Self {
        let term = Term::stdout();
        let width = match term.size_checked() {
            Some((_, columns)) if term.is_term() => usize::from(columns).clamp(40, COLUMNS),
            _ => COLUMNS,
        };
        Self { lang, term, width }
    }

    /// One line. A reader that went away, as `head` does, is fine.
    pub fn line(&self, text: &str) {
        let _ = self.term.write_line(text);
    }

    /// What a command prints, as it prints it.
    pub fn raw(&self, text: &str) {
        let _ = self.term.write_str(text);
    }

    /// A phrase.
    pub fn say(&self, key: &'static str, args: &[(&str, &str)]) {
        self.prose(&say(self.lang, key, args));
    }

    /// Prose, laid out.
    pub fn prose(&self, text: &str) {
        for line in lay_out(text, self.width) {
            self.line(&Self::marked(&line));
        }
    }

    /// Words in backquotes stand out; without colours the quotes stay.
    fn marked(line: &str) -> String {
        if !console::colors_enabled() || line.starts_with("    ") {
            return line.to_owned();
        }
        let code = Style::new().cyan();
        line.split('`').enumerate().fold(String::new(), |mut done, (n, part)| {
            let _ = if n % 2 == 1 { write!(done, "{}", code.apply_to(part)) } else { write!(done, "{part}") };
            done
        })
    }

    /// Begins an exercise.
    pub fn exercise(&self, exercise: &Exercise) {
        let title = exercise_heading(self.lang, exercise);
        self.line("");
        self.line(&Style::new().bold().apply_to(&title).to_string());
        self.line(&"=".repeat(columns(&title).min(self.width)));
        self.line("");
    }

    /// Begins a step.
    pub fn step(&self, title: &str, number: usize, of: usize) {
        let title = step_heading(self.lang, title, number, of);
        self.line("");
        self.line(&Style::new().bold().apply_to(&title).to_string());
        self.line(&"-".repeat(columns(&title).min(self.width)));
    }

    /// A command to type, or that is typed.
    pub fn command(&self, line: &str) {
        self.line(&format!("  {} {}", Style::new().dim().apply_to("$"), Style::new().cyan().apply_to(line)));
    }

    /// A question to answer.
    pub fn question(&self, text: &str) {
        let lines = lay_out(text, self.width.saturating_sub(2));
        for (n, line) in lines.iter().enumerate() {
            let mark = if n == 0 { Style::new().yellow().apply_to("?").to_string() } else { " ".to_owned() };
            self.line(&format!("{mark} {}", Self::marked(line)));
        }
    }

    /// What a check saw.
    pub fn outcome(&self, outcome: &Outcome) {
        for line in outcome_lines(self.lang, outcome) {
            self.line(&line);
        }
    }

    /// What all checks of a step saw.
    pub fn outcomes(&self, outcomes: &[Outcome]) {
        for outcome in outcomes {
            self.outcome(outcome);
        }
    }

    /// Something that is wrong with the exercise itself.
    pub fn fault(&self, text: &str) {
        let lines = lay_out(text, self.width.saturating_sub(10));
        for (n, line) in lines.iter().enumerate() {
            let mark = if n == 0 {
                Style::new().red().bold().apply_to("FAULT  ").to_string()
            } else {
                " ".repeat(7)
            };
            self.line(&format!("  {mark} {line}"));
        }
    }

    /// The whole course with the learner's progress.
    pub fn course(&self, course: &Course, progress: &Progress) {
        for week in course.weeks.values() {
            let title = week.title.of(self.lang);
            let line = say(self.lang, "week", &[("number", &week.number.to_string()), ("title", title)]);
            self.line(&Style::new().bold().apply_to(line).to_string());
            for exercise in &week.exercises {
                let body = &exercise.body;
                let part = progress.exercises.get(&exercise.id);
                let state = match part {
                    Some(part) if part.done => phrase(self.lang, "done-mark").to_owned(),
                    Some(part) if part.steps > 0 => format!("{}/{}", part.steps, body.steps.len()),
                    _ => String::new(),
                };
                let minutes = say(self.lang, "minutes", &[("minutes", &body.minutes.to_string())]);
                let (id, title) = (&exercise.id, body.title.of(self.lang));
                self.line(&format!("  {}  {} ({minutes})  {state}", pad(id, 24), title));
            }
            self.line("");
        }
        self.say("list-end", &[]);
    }
}

/// What a check saw, in lines.
pub(super) fn outcome_lines(lang: Lang, outcome: &Outcome) -> Vec<String> {
    let mark = if outcome.held {
        Style::new().green().apply_to("ok     ")
    } else {
        Style::new().red().apply_to("missing")
    };
    let lines = lay_out(&said(lang, &outcome.said), COLUMNS - 10);
    let indented = |(n, line): (usize, String)| {
        if n == 0 { format!("  {mark} {line}") } else { format!("          {line}") }
    };
    lines.into_iter().enumerate().map(indented).collect()
}

/// The line above an exercise.
pub(super) fn exercise_heading(lang: Lang, exercise: &Exercise) -> String {
    let minutes = say(lang, "minutes", &[("minutes", &exercise.body.minutes.to_string())]);
    format!("{}  {} ({minutes})", exercise.id, exercise.body.title.of(lang))
}

/// The line above a step.
pub(super) fn step_heading(lang: Lang, title: &str, number: usize, of: usize) -> String {
    let place = say(lang, "step-of", &[("step", &number.to_string()), ("steps", &of.to_string())]);
    format!("{title} ({place})")
}

/// Fills a cell of a table up to its width in columns.
fn pad(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(columns(text))))
}
