//! What a container is made of, as the runtime hands it to the shim (a JSON file), and what the shim answers.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// One mount inside the container. Mounts are made in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mount {
    /// An empty file system in memory.
    Tmpfs {
        /// Where.
        target: PathBuf,
        /// Mount options, such as `mode=0755,size=64m`.
        options: String,
    },
    /// A file or directory of the node.
    Bind {
        /// On the node.
        source: PathBuf,
        /// In the container.
        target: PathBuf,
        /// The container may not write.
        read_only: bool,
        /// Mounts made later travel: not at all, from the node, or both ways.
        propagation: Propagation,
    },
    /// A fresh /proc of the container's PID namespace.
    Proc {
        /// The container may not change the kernel's settings through it.
        guarded: bool,
    },
    /// A fresh /sys of the pod's network namespace.
    Sysfs {
        /// The container may not write.
        read_only: bool,
    },
    /// A small /dev with its own terminals.
    Dev,
}

/// How mounts made later below a bind mount travel (`mountPropagation` of a volume mount).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Not at all.
    None,
    /// From the node into the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// The identity of the container's processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Numbers of the capabilities to keep; all if `None` (privileged).
    pub capabilities: Option<Vec<u8>>,
    /// Programs cannot gain privileges.
    pub no_new_privileges: bool,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Its ID: 64 hexadecimal digits.
    pub id: String,
    /// Network namespace to join; the node's if `None`.
    pub netns: Option<PathBuf>,
    /// UTS namespace to join; the node's if `None`.
    pub uts: Option<PathBuf>,
    /// IPC namespace to join; the node's if `None`.
    pub ipc: Option<PathBuf>,
    /// Use the node's PID namespace.
    pub host_pid: bool,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: PathBuf,
    /// Mounts, in order.
    pub mounts: Vec<Mount>,
    /// Who the processes are.
    pub identity: Identity,
    /// The root file system may not be written.
    pub read_only_root: bool,
    /// File that takes the output, a line an entry, in the CRI's format.
    pub log: PathBuf,
}

/// What the shim records once the container's program runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The shim's process ID.
    pub shim_pid: i32,
    /// Start time of the shim in clock ticks since boot: with the PID, its identity.
    pub shim_start: u64,
    /// Process ID, on the node, of the container's first process.
    pub init_pid: i32,
    /// Start time of that process.
    pub init_start: u64,
    /// When the program started, RFC 3339.
    pub at: String,
}

/// What the shim records at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// Exit code; 128 + n after signal n.
    pub code: i32,
    /// When, RFC 3339.
    pub at: String,
    /// Why the program could not be started, if it could not.
    pub error: Option<String>,
}

/// The files of one run of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir(pub PathBuf);

impl RunDir {
    /// [`ContainerSpec`].
    pub fn spec(&self) -> PathBuf {
        self.0.join("spec.json")
    }

    /// [`Started`].
    pub fn started(&self) -> PathBuf {
        self.0.join("started.json")
    }

    /// [`Exited`].
    pub fn exited(&self) -> PathBuf {
        self.0.join("exit.json")
    }

    /// Reads [`Started`], if it has been recorded.
    pub fn read_started(&self) -> Option<Started> {
        read_json(&self.started())
    }

    /// Reads [`Exited`], if it has been recorded.
    pub fn read_exited(&self) -> Option<Exited> {
        read_json(&self.exited())
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Writes a file so that it is there whole or not at all.
pub fn write_atomically(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    std::fs::write(&beside, content)?;
    std::fs::rename(&beside, path)
}
