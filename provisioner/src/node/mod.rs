//! The first process of a machine: `podwire-node`.
//!
//! Started on the host it enters the machine's network namespace, makes the other namespaces, and leaves behind a
//! child that is PID 1 in them. That one builds the [root file system](root) and [supervises](supervise) the machine's services until
//! it is told to stop. When it dies, the kernel ends everything on the machine.

mod root;
mod supervise;

use std::io::Write;
use std::path::Path;
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{sethostname, setsid};
use serde::{Deserialize, Serialize};

use crate::error::{Failure, OrFailure};
use crate::netns::{self, namespace};
use crate::plan::Machine;

/// What podwire-node says to the one who starts it, one JSON value a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Greeting {
    /// The first process's number on the host.
    Pid(i32),
    /// The file system stands; services are being started.
    Ready,
    /// It could not be made.
    Error(String),
}

impl Greeting {
    fn say(&self) {
        // If nobody listens any more, nobody needs to know.
        if let Ok(line) = serde_json::to_string(self) {
            let _ = writeln!(std::io::stdout(), "{line}");
        }
    }
}

/// On the host: makes the machine's namespaces and its first process, and says that one's number.
pub fn enter(spec: &Path, cgroup: Option<&Path>) -> Result<(), Failure> {
    let machine = read_spec(spec)?;
    let thing = format!("node {}", machine.name);
    let mend = "run as root with CAP_SYS_ADMIN; see `lab doctor`";
    let network = namespace::open(&machine.namespace).or_failure(&thing, mend)?;
    setns(&network, CloneFlags::CLONE_NEWNET).or_failure(&thing, mend)?;
    let mut flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
    if let Some(cgroup) = cgroup {
        // Before the namespace is made: its root is where this process then is.
        netns::cgroup::join(cgroup).or_failure(&thing, mend)?;
        flags |= CloneFlags::CLONE_NEWCGROUP;
    }
    unshare(flags | CloneFlags::CLONE_NEWPID).or_failure(&thing, mend)?;
    let own = std::env::current_exe().or_failure(&thing, "keep the program where it was started")?;
    let mut init = Command::new(own);
    init.arg("--init").arg("--spec").arg(spec);
    init.args(cgroup.iter().flat_map(|path| [Path::new("--cgroup"), path]));
    let child = init.spawn().or_failure(&thing, mend)?;
    Greeting::Pid(i32::try_from(child.id()).unwrap_or_default()).say();
    Ok(())
}

/// In the new namespaces, as PID 1: builds the machine and runs it. Returns when the machine was told to stop.
pub fn init(spec: &Path, cgroup: Option<&Path>) -> Result<(), Failure> {
    let machine = read_spec(spec)?;
    let thing = format!("node {}", machine.name);
    // A session of its own: signals of the terminal in which the lab was started are not for it.
    setsid().or_failure(&thing, "start podwire-node through `lab up`")?;
    sethostname(&machine.name).or_failure(&thing, "use a kernel with CONFIG_UTS_NS")?;
    root::build(&machine, cgroup.is_some())?;
    let mut supervisor = supervise::Supervisor::new(&machine)?;
    Greeting::Ready.say();
    supervise::detach_output();
    supervisor.run();
    Ok(())
}

/// Says an error to the one who waits for the greeting.
pub fn report(error: &Failure) {
    Greeting::Error(error.to_string()).say();
}

fn read_spec(spec: &Path) -> Result<Machine, Failure> {
    let thing = spec.display().to_string();
    let text = std::fs::read(spec).or_failure(&thing, "start podwire-node through `lab up`")?;
    serde_json::from_slice(&text).or_failure(thing, "use lab and podwire-node of one build")
}
