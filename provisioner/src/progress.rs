//! What `lab up` tells on the way: a moving line on a terminal, plain lines elsewhere. All of it goes to stderr.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// The course of one command, part by part.
pub struct Progress {
    bar: Option<ProgressBar>,
    began: Instant,
    part: Option<(String, Instant)>,
    parts: Vec<(String, Duration)>,
    told: String,
}

impl Progress {
    /// Begins.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
        if let Some(bar) = &bar {
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(80));
        }
        Self { bar, began: Instant::now(), part: None, parts: Vec::new(), told: String::new() }
    }

    /// Ends the part that is under way and begins another.
    pub fn begin(&mut self, part: &str) {
        self.end_part(Instant::now());
        self.part = Some((part.to_owned(), Instant::now()));
        self.say(part);
    }

    /// Says what is being waited for.
    pub fn tell(&mut self, what: &str) {
        if self.told != what {
            what.clone_into(&mut self.told);
            let part = self.part.as_ref().map_or("", |(p, _)| p.as_str());
            self.say(&format!("{part}: waiting: {what}"));
        }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(line.to_owned()),
            None => eprintln!("{line}"),
        }
    }

    /// Ends the part that is under way, at a moment that may have passed, and begins another there.
    pub fn turn(&mut self, at: Instant, next: &str) {
        self.end_part(at);
        self.part = Some((next.to_owned(), at));
    }

    fn end_part(&mut self, at: Instant) {
        if let Some((name, began)) = self.part.take() {
            self.parts.push((name, at.saturating_duration_since(began)));
        }
    }

    /// Ends everything and returns the whole time with its parts.
    pub fn finish(mut self) -> (Duration, Vec<(String, Duration)>) {
        let now = Instant::now();
        self.end_part(now);
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        (now - self.began, self.parts)
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}
