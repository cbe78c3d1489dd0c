//! The append-only record of what a lab made: each entry is written before the thing is made, so that `lab down` can
//! undo a lab whose maker was killed at any moment.
//!
//! An entry survives the death of every process because it is in the page cache once `write` returns; the state
//! directory itself does not outlive a reboot, as nothing of a lab does.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Failure, OrFailure};

/// File name of the record in a lab's state directory.
pub const FILE: &str = "record.jsonl";

/// Something that is about to be made outside the lab's state directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "make", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Entry {
    /// The lab begins. Every process of it carries this id in its environment.
    Lab {
        /// The lab's unique id.
        id: String,
    },
    /// A directory that may be shared with others: removed only when empty.
    Directory {
        /// Its path.
        path: PathBuf,
    },
    /// A named network namespace, with every link, address and route in it.
    Namespace {
        /// Its name.
        name: String,
    },
    /// A namespace that was announced turned out to be somebody else's: its entry counts no more.
    NotOurs {
        /// Its name.
        namespace: String,
    },
    /// A cgroup, with those below it.
    Cgroup {
        /// Its path.
        path: PathBuf,
    },
    /// A process, found by its environment: it has no pid yet.
    Process {
        /// What it is.
        what: String,
    },
}

/// An open record.
#[derive(Debug)]
pub struct Record {
    file: File,
    path: PathBuf,
    entries: Vec<Entry>,
    fault: Option<usize>,
}

impl Record {
    /// Opens the record of the lab whose state directory is `dir`, or begins it.
    pub fn open(dir: &Path) -> Result<Self, Failure> {
        let path = dir.join(FILE);
        let entries = read(dir);
        let mend = "make the state directory writable, or set PODWIRE_STATE to another";
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .open(&path)
            .or_failure(path.display().to_string(), mend)?;
        // A line that its writer's death cut short must not swallow the next entry.
        let mut text = Vec::new();
        file.read_to_end(&mut text).or_failure(path.display().to_string(), mend)?;
        if text.last().is_some_and(|b| *b != b'\n') {
            file.write_all(b"\n").or_failure(path.display().to_string(), mend)?;
        }
        Ok(Self { file, path, entries, fault: fault_from_env() })
    }

    /// Notes that `entry` is about to be made. Noting the same thing again is free.
    pub fn note(&mut self, entry: Entry) -> Result<(), Failure> {
        let known = match &entry {
            Entry::Namespace { name } => namespaces(&self.entries).contains(name),
            Entry::NotOurs { namespace } => !namespaces(&self.entries).contains(namespace),
            other => self.entries.contains(other),
        };
        if known {
            return Ok(());
        }
        let thing = self.path.display().to_string();
        let mut line = serde_json::to_string(&entry).or_failure(&thing, "report this as a bug")?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).or_failure(&thing, "free space in the state directory")?;
        self.entries.push(entry);
        self.die_if_asked();
        Ok(())
    }

    /// What was noted, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// For tests of crashes: `PODWIRE_FAULT=after:N` kills this process, as `kill -9` does, once N entries are written.
    fn die_if_asked(&self) {
        if self.fault == Some(self.entries.len()) {
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        }
    }
}

fn fault_from_env() -> Option<usize> {
    std::env::var("PODWIRE_FAULT").ok()?.strip_prefix("after:")?.parse().ok()
}

/// Names of the namespaces that are the lab's by its record.
pub fn namespaces(entries: &[Entry]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in entries {
        match entry {
            Entry::Namespace { name } => drop(names.insert(name.clone())),
            Entry::NotOurs { namespace } => drop(names.remove(namespace)),
            _ => {}
        }
    }
    names
}

/// The entries of the record in `dir`; none when there is no record. Lines that were cut short are left out: what they
/// announce was not made.
pub fn read(dir: &Path) -> Vec<Entry> {
    let text = std::fs::read(dir.join(FILE)).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_and_a_torn_line_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let namespace = |n: &str| Entry::Namespace { name: n.into() };
        let mut record = Record::open(dir.path()).unwrap();
        record.note(namespace("a")).unwrap();
        record.note(namespace("a")).unwrap();
        drop(record);
        let mut file = OpenOptions::new().append(true).open(dir.path().join(FILE)).unwrap();
        file.write_all(b"{\"make\":\"name").unwrap();
        let mut record = Record::open(dir.path()).unwrap();
        record.note(namespace("b")).unwrap();
        assert_eq!(read(dir.path()), [namespace("a"), namespace("b")]);
    }

    #[test]
    fn a_namespace_of_somebody_else_counts_only_once_it_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = Record::open(dir.path()).unwrap();
        let ours = |record: &Record| namespaces(record.entries()).contains("a");
        record.note(Entry::Namespace { name: "a".into() }).unwrap();
        assert!(ours(&record));
        record.note(Entry::NotOurs { namespace: "a".into() }).unwrap();
        assert!(!ours(&record));
        record.note(Entry::Namespace { name: "a".into() }).unwrap();
        assert!(ours(&record) && ours(&Record::open(dir.path()).unwrap()));
    }

    #[test]
    fn no_record_has_no_entries() {
        assert!(read(Path::new("/nonexistent")).is_empty());
    }
}
