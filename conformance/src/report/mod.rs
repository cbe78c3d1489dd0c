//! A [`Report`] as JSON, JUnit, Markdown, one self-contained HTML page, or text for a terminal.

mod html;
mod junit;
mod markdown;
mod messages;
mod text;

use std::fs;
use std::path::{Path, PathBuf};

pub use html::html;
pub use junit::junit;
pub use markdown::markdown;
pub(crate) use messages::render;
pub use messages::{Entry, Lang, LangError, fill_phrase, phrase_of};
pub use text::text;

use crate::check::Report;

/// Why a report could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The page's template failed.
    #[error("the HTML report cannot be rendered: {0}")]
    Template(#[from] tera::Error),
    /// The JSON could not be made.
    #[error("the JSON report cannot be made: {0}")]
    Json(#[from] serde_json::Error),
    /// The JUnit file could not be made.
    #[error("the JUnit report cannot be made: {0}")]
    Junit(#[from] quick_junit::SerializeError),
    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// The report as JSON, for programs. `schema_version` tells its shape.
pub fn json(report: &Report) -> Result<String, ReportError> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    Ok(text)
}

/// Writes `report.json`, `junit.xml`, `report.md` and `index.html` into `directory`, which is made if it is missing.
/// Returns the page's path.
pub fn write_all(report: &Report, directory: &Path, lang: Lang) -> Result<PathBuf, ReportError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ReportError::Write { path, source }
    };
    fs::create_dir_all(directory).map_err(failed(directory))?;
    let page = directory.join("index.html");
    let files = [
        (directory.join("report.json"), json(report)?),
        (directory.join("junit.xml"), junit(report)?),
        (directory.join("report.md"), markdown(report, lang)),
        (page.clone(), html(report, lang)?),
    ];
    for (path, content) in files {
        fs::write(&path, content).map_err(failed(&path))?;
    }
    Ok(page)
}

/// A number with thin groups of three digits, as a reader counts.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests;
