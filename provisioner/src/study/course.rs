//! What a course is made of. The files are described in docs/course.md.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::check::Check;
use super::text::Text;

/// Everything that can be studied.
#[derive(Clone, Debug)]
pub struct Course {
    /// Weeks by their numbers.
    pub weeks: BTreeMap<u32, Week>,
}

/// A week: `weeks/N/week.toml` and a file for each of its exercises.
#[derive(Clone, Debug)]
pub struct Week {
    /// Its number in the course.
    pub number: u32,
    /// What it is about.
    pub title: Text,
    /// Its exercises, in the order in which they are meant to be done.
    pub exercises: Vec<Exercise>,
}

/// The text of `week.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeekFile {
    /// What it is about.
    pub title: Text,
    /// Names of its exercises; each has a file of that name.
    pub exercises: Vec<Spanned<String>>,
}

/// An exercise, complete.
#[derive(Clone, Debug)]
pub struct Exercise {
    /// Week and name, as it is typed: `3/ipam-kubernetes`.
    pub id: String,
    /// Its file, as it is named in errors.
    pub file: String,
    /// What the file says.
    pub body: Body,
}

/// The text of an exercise's file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    /// A few words.
    pub title: Text,
    /// How long a reader needs.
    pub minutes: u32,
    /// The lab that it needs, new from `lab up`.
    pub lab: Spanned<String>,
    /// Exercises of the same week whose results it uses.
    #[serde(default)]
    pub after: Vec<Spanned<String>>,
    /// Values for `lab up --set`.
    #[serde(default)]
    pub set: Vec<String>,
    /// Apps besides those of the lab, for `lab up --app`.
    #[serde(default)]
    pub apps: Vec<Spanned<String>>,
    /// Commands that bring the lab into the exercise's state, a fault for example. The learner does not see them.
    #[serde(default)]
    pub setup: Vec<Spanned<String>>,
    /// What it is about, and why.
    pub intro: Text,
    /// What was learned.
    pub done: Text,
    /// Its steps.
    #[serde(rename = "step")]
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Its name, for progress and errors.
    pub id: Spanned<String>,
    /// A few words.
    pub title: Text,
    /// What to do, and why.
    pub text: Text,
    /// What to type.
    pub commands: Vec<Spanned<String>>,
    /// One of its commands is meant to fail.
    #[serde(default)]
    pub failing: bool,
    /// Help, from a nudge to the answer.
    #[serde(default)]
    pub hints: Vec<Text>,
    /// What holds after the step, and not before it.
    #[serde(rename = "check")]
    pub checks: Vec<Check>,
    /// What was seen, said once the checks hold.
    #[serde(default)]
    pub seen: Option<Text>,
}

impl Course {
    /// The exercise of this id.
    pub fn exercise(&self, id: &str) -> Option<&Exercise> {
        self.exercises().find(|e| e.id == id)
    }

    /// All exercises in their order.
    pub fn exercises(&self) -> impl Iterator<Item = &Exercise> {
        self.weeks.values().flat_map(|week| &week.exercises)
    }

    /// What `wanted` has to be done after, nearest last, without those that `done` says are done.
    pub fn needed_before<'a>(
        &'a self,
        wanted: &'a Exercise,
        done: &dyn Fn(&str) -> bool,
    ) -> Vec<&'a Exercise> {
        let mut order: Vec<&Exercise> = Vec::new();
        self.collect(wanted, done, &mut order);
        order
    }

    fn collect<'a>(&'a self, of: &'a Exercise, done: &dyn Fn(&str) -> bool, order: &mut Vec<&'a Exercise>) {
        // The lint excludes circles, so this ends.
        for id in of.needed() {
            if let Some(before) = self.exercise(&id)
                && !done(&id)
                && !order.iter().any(|e| e.id == id)
            {
                self.collect(before, done, order);
                order.push(before);
            }
        }
    }
}

impl Exercise {
    /// Ids of the exercises that come before.
    pub fn needed(&self) -> Vec<String> {
        let week = self.id.split_once('/').map_or("", |(week, _)| week);
        self.body.after.iter().map(|name| format!("{week}/{}", name.get_ref())).collect()
    }
}
