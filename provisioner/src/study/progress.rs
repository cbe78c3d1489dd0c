//! How far a learner has come, kept after every step.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Failure, OrFailure};
use crate::state::write_whole;

const FILE: &str = "progress.json";

/// All exercises that were begun.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// By id.
    pub exercises: BTreeMap<String, Part>,
    #[serde(skip)]
    path: PathBuf,
}

/// One exercise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Part {
    /// Id of the lab that it is being done on.
    pub lab: String,
    /// Steps that are done.
    pub steps: usize,
    /// Answers given in the step that is under way, by the number of the check.
    pub answers: BTreeMap<usize, String>,
    /// It was done to its end at least once.
    pub done: bool,
}

impl Progress {
    /// Reads the progress that is kept in a directory; there may be none.
    pub fn read(directory: &Path) -> Result<Self, Failure> {
        let path = directory.join(FILE);
        let thing = path.display().to_string();
        let mut progress: Self = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .or_failure(&thing, "move the file away to begin the course anew, or give another --dir")?,
            Err(e) if e.kind() == ErrorKind::NotFound => Self::default(),
            Err(e) => return Err(Failure::new(thing, e, "make it readable, or give another --dir")),
        };
        progress.path = path;
        Ok(progress)
    }

    /// An exercise's part, made if it is not there.
    pub fn of(&mut self, id: &str) -> &mut Part {
        self.exercises.entry(id.to_owned()).or_default()
    }

    /// True if the exercise was done to its end.
    pub fn is_done(&self, id: &str) -> bool {
        self.exercises.get(id).is_some_and(|part| part.done)
    }

    /// Keeps it.
    pub fn keep(&self) -> Result<(), Failure> {
        let thing = self.path.display().to_string();
        let text = serde_json::to_vec_pretty(self).or_failure(thing, "report this as a bug")?;
        write_whole(&self.path, &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_kept_and_a_damaged_file_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut progress = Progress::read(dir.path()).unwrap();
        progress.of("3/a").steps = 2;
        progress.of("3/a").answers.insert(1, "x".into());
        progress.keep().unwrap();
        assert_eq!(Progress::read(dir.path()).unwrap(), progress);
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(Progress::read(dir.path()).unwrap_err().to_string().contains("--dir"));
    }
}
