//! The one form of error that a user reads: the thing, the cause, the mend.

use std::fmt::Display;

/// Something could not be done.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{thing}: {cause}; {mend}")]
pub struct Failure {
    /// What it is about.
    pub thing: String,
    /// Why it went wrong.
    pub cause: String,
    /// What the user can do.
    pub mend: String,
}

impl Failure {
    /// An error about `thing`.
    pub fn new(thing: impl Into<String>, cause: impl Display, mend: impl Into<String>) -> Self {
        Self { thing: thing.into(), cause: cause.to_string(), mend: mend.into() }
    }
}

/// Turns any error into a [`Failure`].
pub trait OrFailure<T> {
    /// Says what failed and what to do about it.
    fn or_failure(self, thing: impl Into<String>, mend: impl Into<String>) -> Result<T, Failure>;
}

impl<T, E: Display> OrFailure<T> for Result<T, E> {
    fn or_failure(self, thing: impl Into<String>, mend: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|e| Failure::new(thing, e, mend))
    }
}
