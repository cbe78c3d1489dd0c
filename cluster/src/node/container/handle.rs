//! The runtime's side of a container: start it, follow it to its end, signal it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt as _;

use super::process;
use super::spec::{ContainerSpec, Exited, RunDir, Started, write_atomically};

/// Why a container did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Files or the shim itself.
    #[error("cannot start the container's monitor: {0}")]
    Io(#[from] io::Error),
    /// The container's own fault, or its node's.
    #[error("{0}")]
    Container(String),
}

/// A container that has been started.
#[derive(Clone, Debug)]
pub struct Handle {
    /// Its files.
    pub dir: RunDir,
    /// Its processes.
    pub started: Started,
}

/// The directories of all runs of a container, oldest first.
pub fn runs(containers: &Path, name: &str) -> Vec<(u32, RunDir)> {
    let root = containers.join(name);
    let Ok(entries) = std::fs::read_dir(&root) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, RunDir(entry.path())))
        })
        .collect();
    found.sort_by_key(|(number, _)| *number);
    found
}

/// What is to be made of a run that, as it seems, has neither begun nor ended: the runtime before this one was killed while
/// it started it. The monitor may be about to begin: it looks for this end after it has noted its beginning, so that either
/// it sees this end and does not go on, or its beginning is seen here, and ended.
pub fn give_up(dir: &RunDir) -> Exited {
    let exited = Exited {
        code: 137,
        at: crate::controllers::meta::now().0.to_string(),
        error: Some("the node's runtime went down, and the container with it".to_owned()),
    };
    let noted = serde_json::to_vec(&exited).map_err(io::Error::other);
    if let Err(error) = noted.and_then(|text| write_atomically(&dir.exited(), &text)) {
        tracing::warn!(dir = %dir.0.display(), %error, "cannot note the end of a container");
    }
    if let Some(handle) = Handle::find(dir.clone()) {
        handle.signal(Signal::SIGKILL);
    }
    exited
}

/// Starts a container in `dir` through a shim (`program`, which is this binary).
pub async fn start(program: &Path, dir: PathBuf, spec: &ContainerSpec) -> Result<Handle, StartError> {
    tokio::fs::create_dir_all(&dir).await?;
    if let Some(parent) = spec.log.parent() {
        tokio::fs::create_dir_all(parent).await?;
    }
    let dir = RunDir(dir);
    tokio::fs::write(dir.spec(), serde_json::to_vec(spec).map_err(io::Error::other)?).await?;
    let mut child = tokio::process::Command::new(program)
        .arg("shim")
        .arg(&dir.0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .process_group(0)
        .spawn()?;
    let mut said = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut said).await?;
    }
    // Reaps it some day; it outlives us if we go first.
    tokio::spawn(async move { child.wait().await });
    match (said.trim(), dir.read_started()) {
        ("ok", Some(started)) => Ok(Handle { dir, started }),
        ("", _) => {
            Err(StartError::Container("the container's monitor ended before the container ran".to_owned()))
        }
        (text, _) => Err(StartError::Container(text.to_owned())),
    }
}

impl Handle {
    /// The container that runs (or ran) in `dir`, if its start was recorded.
    pub fn find(dir: RunDir) -> Option<Self> {
        let started = dir.read_started()?;
        Some(Self { dir, started })
    }

    /// Waits for the container's end.
    pub async fn ended(&self) -> Exited {
        match process::pidfd(self.started.shim_pid, self.started.shim_start) {
            Ok(Some(fd)) => {
                if let Err(error) = readable(fd).await {
                    tracing::error!(%error, "cannot wait for a container's monitor");
                }
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "cannot open a container's monitor"),
        }
        self.dir.read_exited().unwrap_or_else(|| Exited {
            code: 137,
            at: crate::controllers::meta::now().0.to_string(),
            error: Some("the container's monitor was killed, and the container with it".to_owned()),
        })
    }

    /// Sends the container's program a signal.
    pub fn signal(&self, signal: Signal) {
        let Started { init_pid, init_start, .. } = self.started;
        if let Err(error) = process::signal(init_pid, init_start, signal) {
            tracing::warn!(%error, %signal, "cannot signal a container");
        }
    }

    /// The container still runs.
    pub fn is_running(&self) -> bool {
        process::is_alive(self.started.shim_pid, self.started.shim_start) && !self.dir.exited().exists()
    }

    /// A command that runs `argv` in the container when spawned.
    pub fn command(&self, program: &Path, tty: bool, argv: &[String]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(program);
        command.arg("enter").arg("--dir").arg(&self.dir.0);
        if tty {
            command.arg("--tty");
        }
        command.arg("--").args(argv).kill_on_drop(true);
        command
    }
}

async fn readable(fd: OwnedFd) -> io::Result<()> {
    let fd = crate::node::watch::register(fd, tokio::io::Interest::READABLE)?;
    let _ready = fd.readable().await?;
    Ok(())
}
