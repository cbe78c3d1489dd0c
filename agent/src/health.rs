//! How each part of the agent is, for logs and `podwire status`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// How one part is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// It does its work.
    pub ok: bool,
    /// What it has to say: state if ok, cause and mend if not.
    pub messages: Vec<String>,
    /// Since when it is (not) ok.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
}

/// How all parts are.
#[derive(Debug, Default)]
pub struct Health {
    parts: Mutex<BTreeMap<&'static str, Part>>,
}

impl Health {
    /// A part is well.
    pub fn ok(&self, part: &'static str, message: impl Into<String>) {
        self.set(part, true, vec![message.into()]);
    }

    /// A part is not well.
    pub fn fail(&self, part: &'static str, message: impl Into<String>) {
        self.set(part, false, vec![message.into()]);
    }

    /// A part is not well for several reasons, or well if there are none.
    pub fn report(&self, part: &'static str, errors: Vec<String>, message: impl Into<String>) {
        if errors.is_empty() { self.ok(part, message) } else { self.set(part, false, errors) }
    }

    fn set(&self, part: &'static str, ok: bool, messages: Vec<String>) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let before = parts.get(part);
        // Logged once, not on every run that finds the same.
        if !ok && before.is_none_or(|b| b.messages != messages) {
            for message in &messages {
                tracing::error!("{part}: {message}");
            }
        } else if ok && before.is_some_and(|b| !b.ok) {
            tracing::info!("{part}: recovered");
        }
        let since = before.filter(|b| b.ok == ok).map_or_else(OffsetDateTime::now_utc, |b| b.since);
        parts.insert(part, Part { ok, messages, since });
    }

    /// A copy of everything.
    pub fn parts(&self) -> BTreeMap<String, Part> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter().map(|(name, part)| ((*name).to_owned(), part.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_changes_only_with_the_state() {
        let health = Health::default();
        health.ok("routes", "2 installed");
        let first = health.parts()["routes"].clone();
        health.ok("routes", "3 installed");
        let second = health.parts()["routes"].clone();
        assert_eq!((first.since, second.messages), (second.since, vec!["3 installed".to_owned()]));
        health.report("routes", vec!["a".into(), "b".into()], "");
        let third = health.parts()["routes"].clone();
        assert!(!third.ok && third.messages.len() == 2);
    }
}
