//! Where running labs keep their state: one directory a lab, with a lock beside it.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Failure, OrFailure};
use crate::lab::Lab;
use crate::plan::Plan;
use crate::record;

const MEND: &str = "run as root, or set PODWIRE_STATE to a directory that you may write";

/// Environment variable that says which lab a command means, as `--lab` does.
pub const LAB_VARIABLE: &str = "PODWIRE_LAB_NAME";

/// What the commands need to know of a lab that was brought up.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Running {
    /// Its unique id, in the environment of each of its processes as `PODWIRE_LAB`.
    pub id: String,
    /// The lab.
    pub lab: Lab,
    /// What was made of it.
    pub plan: Plan,
    /// Directory of the programs that it runs.
    pub bin_dir: PathBuf,
}

/// The directory of all labs' states.
#[derive(Clone, Debug)]
pub struct StateRoot(PathBuf);

impl StateRoot {
    /// `$PODWIRE_STATE`, else `/run/podwire-lab`.
    pub fn from_env() -> Self {
        let given = std::env::var_os("PODWIRE_STATE").filter(|dir| !dir.is_empty());
        let dir = given.map_or_else(|| "/run/podwire-lab".into(), PathBuf::from);
        // A lab's processes have another working directory. It fails only where there is none at all.
        Self(std::path::absolute(&dir).unwrap_or(dir))
    }

    /// The directory; it need not exist.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Removes the directory if it is empty, as the death of a command that had hardly begun leaves it.
    pub fn remove_if_empty(&self) {
        // Not there, or with labs in it: both are fine.
        let _ = fs::remove_dir(&self.0);
    }

    /// A lab's state; it need not exist.
    pub fn lab(&self, name: &str) -> LabState {
        LabState { root: self.0.clone(), name: name.to_owned() }
    }

    /// Names of the labs that have a state, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().filter_map(Result::ok);
        let mut names: Vec<String> = entries
            .filter(|e| is_state(&e.path()))
            .filter_map(|e| e.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// Names of the labs of which anything is left, be it a lock that its holder's death left behind.
    pub fn names_with_traces(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().filter_map(Result::ok);
        let locks = entries.filter_map(|e| Some(e.file_name().to_str()?.strip_suffix(".lock")?.to_owned()));
        let mut names: Vec<String> = self.names().into_iter().chain(locks).collect();
        names.sort();
        names.dedup();
        names
    }

    /// The running lab that a command means: the named one, else that of `$PODWIRE_LAB_NAME`, else the only one.
    pub fn pick(&self, wanted: Option<&str>) -> Result<(LabState, Running), Failure> {
        let from_env = std::env::var(LAB_VARIABLE).ok().filter(|name| !name.is_empty());
        if wanted.is_some() || from_env.is_none() {
            return self.pick_of(wanted);
        }
        self.pick_of(from_env.as_deref()).map_err(|mut failure| {
            failure.thing = format!("{} (of the environment variable {LAB_VARIABLE})", failure.thing);
            failure
        })
    }

    fn pick_of(&self, wanted: Option<&str>) -> Result<(LabState, Running), Failure> {
        let names = self.names();
        let name = match (wanted, names.as_slice()) {
            (Some(name), _) => name.to_owned(),
            (None, [only]) => only.clone(),
            (None, []) => return Err(Failure::new("lab", "none is running", "start one: lab up")),
            (None, several) => {
                let mend = format!("say which with --lab: {}", several.join(", "));
                return Err(Failure::new("lab", "several are running", mend));
            }
        };
        let state = self.lab(&name);
        match state.running() {
            Some(running) => Ok((state, running)),
            None if names.is_empty() => Err(Failure::new(
                format!("lab {name:?}"),
                "it is not running",
                format!("start it: lab up {name}"),
            )),
            None => {
                let mend = format!("start it: lab up {name}; running are: {}", names.join(", "));
                Err(Failure::new(format!("lab {name:?}"), "it is not running", mend))
            }
        }
    }
}

/// One lab's state directory.
#[derive(Clone, Debug)]
pub struct LabState {
    root: PathBuf,
    name: String,
}

impl LabState {
    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory.
    pub fn dir(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    /// True if anything of the lab may exist.
    pub fn exists(&self) -> bool {
        is_state(&self.dir()) || self.lock_path().exists()
    }

    fn lock_path(&self) -> PathBuf {
        self.root.join(format!("{}.lock", self.name))
    }

    /// What was brought up; none if the state is absent or was left by a crash before it was written.
    pub fn running(&self) -> Option<Running> {
        serde_json::from_slice(&fs::read(self.dir().join("lab.json")).ok()?).ok()
    }

    /// Writes what is brought up, whole or not at all.
    pub fn set_running(&self, running: &Running) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(running).or_failure("lab.json", "report this as a bug")?;
        write_whole(&self.dir().join("lab.json"), &text)
    }

    /// Makes the directory.
    pub fn create(&self) -> Result<(), Failure> {
        fs::create_dir_all(self.dir()).or_failure(self.dir().display().to_string(), MEND)
    }

    /// Takes the lab's lock, waiting for another command that has it; `waiting` is called once before that.
    ///
    /// A process that was forked but has not yet executed its program shares the lock: whoever gets it sees every
    /// process of the lab with its final environment.
    ///
    /// A directory that holds something else than a lab is refused: what is locked may be filled and removed.
    pub fn lock(&self, waiting: impl FnOnce()) -> Result<Lock, Failure> {
        if self.dir().exists() && !is_state(&self.dir()) {
            return Err(not_a_state(&self.dir()));
        }
        let path = self.lock_path();
        let thing = path.display().to_string();
        let mut waiting = Some(waiting);
        loop {
            fs::create_dir_all(&self.root).or_failure(self.root.display().to_string(), MEND)?;
            let file = match File::options().create(true).append(true).open(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == ErrorKind::NotFound => continue, // the directory went away just now
                Err(e) => return Err(Failure::new(thing, e, MEND)),
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    if let Some(waiting) = waiting.take() {
                        waiting();
                    }
                    file.lock().or_failure(&thing, MEND)?;
                }
                Err(TryLockError::Error(e)) => return Err(Failure::new(thing, e, MEND)),
            }
            // The one who had it may have removed the file: then this lock is that of nothing.
            let same = |meta: fs::Metadata| file.metadata().is_ok_and(|own| own.ino() == meta.ino());
            if fs::metadata(&path).is_ok_and(same) {
                return Ok(Lock { _file: file, path });
            }
        }
    }

    /// Removes the directory, the record last, so that an interrupted removal can be taken up again.
    pub fn remove(&self) -> Result<(), Failure> {
        let dir = self.dir();
        let thing = dir.display().to_string();
        let mend = format!("see what holds it: findmnt -R {thing}");
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Failure::new(thing, e, mend)),
        };
        if !is_state(&dir) {
            return Err(not_a_state(&dir));
        }
        for entry in entries.filter_map(Result::ok).filter(|e| e.file_name() != record::FILE) {
            let path = entry.path();
            let removed = if path.is_dir() && !path.is_symlink() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.or_failure(path.display().to_string(), &mend)?;
        }
        fs::remove_dir_all(&dir).or_failure(thing, mend)
    }
}

/// True for a directory with a lab's record, and for an empty one: that is how a lab begins and how it ends.
fn is_state(dir: &Path) -> bool {
    dir.join(record::FILE).is_file() || fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

fn not_a_state(dir: &Path) -> Failure {
    let mend =
        "set PODWIRE_STATE to a directory that is for labs alone, or name the lab otherwise: lab up --name";
    Failure::new(dir.display().to_string(), "it holds something else than a lab", mend)
}

/// Holds a lab's lock until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Removes the lock file too, and the directory of all labs if it is empty. For when the lab is gone.
    pub fn remove(self) {
        // Absence of either is what is wanted; others' labs keep the directory.
        let _ = fs::remove_file(&self.path);
        if let Some(root) = self.path.parent() {
            let _ = fs::remove_dir(root);
        }
    }
}

/// Writes a file so that a reader sees the old text or the new one.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let partial = path.with_extension("partial");
    let thing = path.display().to_string();
    fs::write(&partial, bytes).or_failure(&thing, MEND)?;
    fs::rename(&partial, path).or_failure(thing, MEND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_is_exclusive_and_its_removal_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let root = StateRoot(dir.path().join("state"));
        let state = root.lab("a");
        let lock = state.lock(|| panic!("nobody has it")).unwrap();
        let other = std::thread::spawn({
            let state = state.clone();
            move || state.lock(|| ()).unwrap()
        });
        lock.remove();
        let second = other.join().unwrap();
        assert!(second.path.exists(), "the second lock is that of a file that exists");
    }

    #[test]
    fn what_is_no_lab_is_neither_listed_nor_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = StateRoot(dir.path().to_owned());
        fs::create_dir(dir.path().join("letters")).unwrap();
        fs::write(dir.path().join("letters/one"), "text").unwrap();
        let letters = root.lab("letters");
        assert!(root.names().is_empty() && !letters.exists());
        assert!(letters.lock(|| ()).unwrap_err().to_string().contains("PODWIRE_STATE"));
        letters.remove().unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no lock is left there");
        assert!(dir.path().join("letters/one").exists());
    }

    #[test]
    fn the_only_lab_needs_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let root = StateRoot(dir.path().to_owned());
        assert!(root.pick_of(None).unwrap_err().to_string().contains("lab up"));
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();
        assert!(root.pick_of(None).unwrap_err().to_string().contains("--lab: a, b"));
    }
}
