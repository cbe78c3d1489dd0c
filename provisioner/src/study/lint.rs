//! What a reader of the files cannot see but a learner would stumble over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use podwire_conformance::report::Lang;
use toml::Spanned;

use super::check::Check;
use super::course::{Course, Exercise, Step};
use super::fact::{Fact, gaps};
use super::show::{exercise_heading, step_heading};
use super::text::{Block, COLUMNS, Text, blocks, columns};
use crate::lab::{Diagnostic, Lab, Source, hint, line_of};

/// Commands are shown with two columns and a prompt before them; longer ones are typed in more than one line anyway.
const COMMAND_COLUMNS: usize = 400;

/// Findings in one exercise's file.
struct Finder<'a> {
    file: &'a str,
    text: &'a str,
    found: &'a mut Vec<Diagnostic>,
}

impl Finder<'_> {
    fn add(&mut self, offset: usize, message: String) {
        let diagnostic = Diagnostic { file: self.file.to_owned(), line: line_of(self.text, offset), message };
        if !self.found.contains(&diagnostic) {
            self.found.push(diagnostic);
        }
    }
}

/// Lints an exercise.
pub fn exercise(course: &Course, exercise: &Exercise, text: &str, found: &mut Vec<Diagnostic>) {
    let mut finder = Finder { file: &exercise.file, text, found };
    let body = &exercise.body;
    if let Err(error) = Lab::load(body.lab.get_ref()) {
        finder.add(body.lab.span().start, error.to_string());
    }
    if let (Ok(source), Ok(mut lab)) = (Source::find(body.lab.get_ref()), Lab::load(body.lab.get_ref())) {
        for app in &body.apps {
            if let Err(cause) = lab.add_app(&source, app.get_ref()) {
                finder.add(app.span().start, cause);
            }
        }
    }
    for (name, id) in body.after.iter().zip(exercise.needed()) {
        if course.exercise(&id).is_none() {
            let known: Vec<&str> = course.exercises().filter_map(|e| Some(e.id.split_once('/')?.1)).collect();
            let mend = hint(name.get_ref(), known, "the exercises are");
            finder.add(
                name.span().start,
                format!("after {:?}: there is no such exercise; {mend}", name.get_ref()),
            );
        }
    }
    let settings: Vec<&str> =
        body.set.iter().map(String::as_str).chain(body.setup.iter().map(|c| c.get_ref().as_str())).collect();
    prose(&mut finder, &body.title, &settings);
    prose(&mut finder, &body.intro, &settings);
    let all: Vec<String> = body.steps.iter().flat_map(grounds).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).chain(settings.iter().copied()).collect();
    prose(&mut finder, &body.done, &all);
    if body.steps.is_empty() {
        finder.add(0, "the exercise has no step; write a [[step]]".into());
    }
    for (lang, title) in [(Lang::En, &body.title.en), (Lang::Ko, &body.title.ko)] {
        heading(&mut finder, title, &exercise_heading(lang, exercise));
    }
    let mut ids = BTreeSet::new();
    for step in &body.steps {
        if !ids.insert(step.id.get_ref()) {
            let message = format!("step {:?} stands twice; give each its own id", step.id.get_ref());
            finder.add(step.id.span().start, message);
        }
        self::step(&mut finder, step, &settings);
        let steps = body.steps.len();
        for (lang, title) in [(Lang::En, &step.title.en), (Lang::Ko, &step.title.ko)] {
            heading(&mut finder, title, &step_heading(lang, title.get_ref(), steps, steps));
        }
    }
}

/// A heading is one line.
fn heading(finder: &mut Finder<'_>, title: &Spanned<String>, shown: &str) {
    if columns(shown) > COLUMNS {
        let message =
            format!("the heading {shown:?} takes {} columns of {COLUMNS}; shorten the title", columns(shown));
        finder.add(title.span().start, message);
    }
}

/// What a step's prose may state because a command or a check of the step stands for it.
fn grounds(step: &Step) -> Vec<String> {
    let commands = step.commands.iter().map(|c| c.get_ref().clone());
    // A check's settings, as they are written.
    let checks = step.checks.iter().map(|c| format!("{c:?}"));
    commands.chain(checks).collect()
}

fn step(finder: &mut Finder<'_>, step: &Step, settings: &[&str]) {
    let at = step.id.span().start;
    if step.checks.is_empty() {
        finder.add(at, format!("step {:?} asks nothing; write a [[step.check]]", step.id.get_ref()));
    }
    if step.commands.is_empty() {
        finder.add(at, format!("step {:?} has no command; write `commands = [...]`", step.id.get_ref()));
    }
    if step.hints.is_empty() {
        finder.add(at, format!("step {:?} has no hint; write `hints = [{{ en, ko }}]`", step.id.get_ref()));
    }
    for command in &step.commands {
        if columns(command.get_ref()) > COMMAND_COLUMNS || command.get_ref().contains('\n') {
            finder.add(
                command.span().start,
                "a command is one line that a person can type; make it two commands".into(),
            );
        }
    }
    let grounds = grounds(step);
    let grounds: Vec<&str> = grounds.iter().map(String::as_str).chain(settings.iter().copied()).collect();
    let texts = [&step.title, &step.text].into_iter().chain(&step.hints).chain(&step.seen);
    for text in texts {
        prose(finder, text, &grounds);
    }
    for text in step.checks.iter().flat_map(Check::with_facts) {
        known_facts(finder, text);
    }
    for check in &step.checks {
        if let Check::Answer { question, is } = check {
            prose(finder, question, &grounds);
            if gaps(is.get_ref()).is_empty() {
                let message = "an answer is measured; write a fact, for example is = \"{node.k8s-w1.ip}\"";
                finder.add(is.span().start, message.into());
            }
        }
    }
}

/// Both languages say the same, as far as a program can tell, and say nothing that was not measured.
fn prose(finder: &mut Finder<'_>, text: &Text, grounds: &[&str]) {
    for one in [&text.en, &text.ko] {
        known_facts(finder, one);
        addresses(finder, one, grounds);
        for (block, place) in blocks(one.get_ref()) {
            if let Block::Verbatim(line) = block
                && columns(line) + 4 > COLUMNS
            {
                let message =
                    format!("this line takes {} columns of {COLUMNS}; shorten it", columns(line) + 4);
                finder.add(within(one, finder.text, place.start), message);
            }
        }
        if one.get_ref().trim().is_empty() {
            finder.add(one.span().start, "the text is empty; write it in both languages".into());
        }
    }
    let (en, ko) = (text.of(Lang::En), text.of(Lang::Ko));
    let ko_at = text.ko.span().start;
    if shape(en) != shape(ko) {
        let message = "the Korean text has other paragraphs, items or kept lines than the English one; make them the same";
        finder.add(ko_at, message.into());
    }
    if facts(en) != facts(ko) {
        finder
            .add(ko_at, "the Korean text states other facts than the English one; make them the same".into());
    }
    if codes(en) != codes(ko) {
        let message =
            "the Korean text has other words in backquotes than the English one; make them the same";
        finder.add(ko_at, message.into());
    }
    if !ko.chars().any(|c| ('가'..='힣').contains(&c)) {
        finder.add(ko_at, "the Korean text has no Korean in it; translate it".into());
    }
}

/// Kinds of blocks in their order; neighbours of one kind of list count each.
fn shape(text: &str) -> Vec<u8> {
    blocks(text)
        .iter()
        .map(|(block, _)| match block {
            Block::Paragraph(_) => 0,
            Block::Item(_) => 1,
            Block::Verbatim(_) => 2,
        })
        .collect()
}

fn facts(text: &str) -> BTreeSet<&str> {
    gaps(text).into_iter().map(|(_, words)| words).collect()
}

fn codes(text: &str) -> Vec<String> {
    let mut codes: Vec<String> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .map(|c| c.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    // The order of words differs between the languages.
    codes.sort();
    codes
}

fn known_facts(finder: &mut Finder<'_>, text: &Spanned<String>) {
    for (place, words) in gaps(text.get_ref()) {
        if Fact::parse(words).is_none() {
            let message = format!("{{{words}}} is no fact that can be measured; docs/course.md lists them");
            finder.add(within(text, finder.text, place.start), message);
        }
    }
}

/// An address in prose is a fact: it must be measured, or be what a command or a check of the step says.
fn addresses(finder: &mut Finder<'_>, text: &Spanned<String>, grounds: &[&str]) {
    let prose = text.get_ref();
    let mut from = 0;
    for word in prose.split(|c: char| !(c.is_ascii_digit() || c == '.')) {
        let address = word.trim_matches('.');
        if address.parse::<Ipv4Addr>().is_ok() && !grounds.iter().any(|g| g.contains(address)) {
            let at = prose[from..].find(word).map_or(from, |found| from + found);
            let message = format!(
                "{address} is stated but not measured; write a fact such as {{node.k8s-w1.ip}}, or check it in this step"
            );
            finder.add(within(text, finder.text, at), message);
        }
        from += prose[from..].find(word).unwrap_or(0) + word.len();
    }
}

/// The place in the file of an offset in a text: exact for texts in triple quotes, which is how longer ones are written.
fn within(text: &Spanned<String>, file: &str, offset: usize) -> usize {
    let span = text.span();
    let lines_before = text.get_ref()[..offset.min(text.get_ref().len())].matches('\n').count();
    let raw = &file[span.start..span.end.min(file.len())];
    // The line break after the opening quotes is no part of the text.
    let skip = usize::from(raw.starts_with("\"\"\"\n") || raw.starts_with("'''\n")) + lines_before;
    let mut at = 0;
    for _ in 0..skip {
        match raw[at..].find('\n') {
            Some(found) => at += found + 1,
            None => break,
        }
    }
    span.start + at
}

/// Finds circles in `after`.
pub fn circles(course: &Course, files: &BTreeMap<String, String>, found: &mut Vec<Diagnostic>) {
    for exercise in course.exercises() {
        let mut path = vec![exercise.id.clone()];
        if let Some(circle) = circle(course, &mut path)
            // Each circle is told once, of its first exercise.
            && circle.iter().min() == Some(&exercise.id)
            && let (Some(text), Some(after)) = (files.get(&exercise.file), exercise.body.after.first())
        {
            let message =
                format!("`after` runs in a circle: {}; take one of them out", circle.join(" after "));
            found.push(Diagnostic {
                file: exercise.file.clone(),
                line: line_of(text, after.span().start),
                message,
            });
        }
    }
}

fn circle(course: &Course, path: &mut Vec<String>) -> Option<Vec<String>> {
    let last = path.last()?;
    for next in course.exercise(last).map(Exercise::needed).unwrap_or_default() {
        if next == path[0] {
            path.push(next);
            return Some(path.clone());
        }
        if path.contains(&next) {
            continue;
        }
        path.push(next);
        if let Some(found) = circle(course, path) {
            return Some(found);
        }
        path.pop();
    }
    None
}
