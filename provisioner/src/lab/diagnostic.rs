//! What is wrong with a lab file, and where.

use std::fmt;

/// One error of a lab file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file, as the user named it.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// The thing, the cause and the mend.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.message)
    }
}

/// Why a lab cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// There is no such lab.
    #[error("lab {wanted:?}: {cause}; {mend}")]
    NotFound {
        /// What was asked for.
        wanted: String,
        /// Why it is not there.
        cause: String,
        /// What to do.
        mend: String,
    },
    /// The file cannot be read.
    #[error("{path}: {cause}; {mend}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        cause: String,
        /// What to do.
        mend: String,
    },
    /// The file says something wrong. One error a line.
    #[error("{}", join(.0))]
    Invalid(Vec<Diagnostic>),
}

fn join(diagnostics: &[Diagnostic]) -> String {
    let lines: Vec<String> = diagnostics.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// Errors found so far.
#[derive(Debug)]
pub(super) struct Report {
    file: String,
    found: Vec<Diagnostic>,
}

impl Report {
    pub(super) fn new(file: &str) -> Self {
        Self { file: file.to_owned(), found: Vec::new() }
    }

    pub(super) fn add(&mut self, line: usize, message: impl Into<String>) {
        let diagnostic = Diagnostic { file: self.file.clone(), line, message: message.into() };
        if !self.found.contains(&diagnostic) {
            self.found.push(diagnostic);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(super) fn into_sorted(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|d| d.line);
        self.found
    }
}
