//! Bringing a plan up, looking at what of it runs, and taking it down by the record.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::process::{self, Process};
use super::{cgroup, namespace, wire};
use crate::error::{Failure, OrFailure};
use crate::lab::Role;
use crate::node::Greeting;
use crate::plan::{Machine, Plan, Switch, machine_dir};
use crate::record::{self, Entry, Record};
use crate::state::{LabState, Running, StateRoot, write_whole};

const AGAIN: &str = "take the lab down and up again: lab down && lab up";

/// What of a plan is there.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// Names of the subnets' namespaces that are whole.
    pub switches: Vec<String>,
    /// Every machine.
    pub machines: Vec<MachineState>,
}

/// One machine as it is.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineState {
    /// Its name.
    pub name: String,
    /// Its first process, if it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// What is missing, in words; none if it is whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

impl Inspection {
    /// True if nothing is missing.
    pub fn is_whole(&self, plan: &Plan) -> bool {
        self.switches.len() == plan.switches.len() && self.machines.iter().all(|m| m.missing.is_none())
    }
}

/// The first process of a machine, if it runs and is of this lab.
pub fn init_of(state: &LabState, id: &str, node: &str) -> Option<Process> {
    let text = fs::read(machine_dir(&state.dir(), node).join("init.json")).ok()?;
    let process: Process = serde_json::from_slice(&text).ok()?;
    (process.is_alive() && process.has_marker(id)).then_some(process)
}

/// Compares a plan with what there is.
pub fn inspect(state: &LabState, running: &Running) -> Inspection {
    let plan = &running.plan;
    let switches: Vec<String> =
        plan.switches.iter().filter(|s| switch_is_whole(s)).map(|s| s.namespace.clone()).collect();
    let machines = plan.machines.iter().map(|machine| {
        let process = init_of(state, &running.id, &machine.name);
        let missing = if namespace::identity(&machine.namespace).is_none() {
            Some(format!("network namespace {}", machine.namespace))
        } else if process.is_none() {
            Some("its first process, podwire-node".to_owned())
        } else {
            let unplugged = |s: &&Switch| {
                !switches.contains(&s.namespace) && s.ports.iter().any(|p| p.namespace == machine.namespace)
            };
            plan.switches.iter().find(unplugged).map(|s| format!("its link to {}", s.namespace))
        };
        MachineState { name: machine.name.clone(), process, missing }
    });
    Inspection { machines: machines.collect(), switches }
}

fn switch_is_whole(switch: &Switch) -> bool {
    let looked = namespace::inside(&switch.namespace, || {
        wire::with_netlink(|handle| async move {
            let mut names: Vec<&str> = switch.ports.iter().map(|p| p.name.as_str()).collect();
            names.push(&switch.bridge);
            for name in names {
                if wire::index_of(&handle, name).await.is_none() {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    });
    looked.unwrap_or(false)
}

/// Makes what is missing of the lab. Returns the names of the machines that were made.
///
/// `before_workers` is called when everything but workers runs, if there are workers to be started.
pub fn up(
    state: &LabState,
    running: &Running,
    record: Record,
    before_workers: impl FnOnce() -> Result<(), Failure>,
) -> Result<Vec<String>, Failure> {
    let plan = &running.plan;
    let before = inspect(state, running);
    // One that this process may not enter looks like a broken one: better refused than cleared away.
    let there =
        |s: &&Switch| !before.switches.contains(&s.namespace) && namespace::open(&s.namespace).is_ok();
    plan.switches.iter().filter(there).try_for_each(|s| namespace::inside(&s.namespace, || Ok(())))?;
    let switches: Vec<&Switch> =
        plan.switches.iter().filter(|s| !before.switches.contains(&s.namespace)).collect();
    let machines: Vec<&Machine> = plan
        .machines
        .iter()
        .zip(&before.machines)
        .filter(|(_, state)| state.missing.is_some())
        .map(|(machine, _)| machine)
        .collect();
    clear(plan, state, running, &switches, &machines, record.entries())?;

    let record = Mutex::new(record);
    let note = |entry: Entry| record.lock().unwrap_or_else(PoisonError::into_inner).note(entry);
    if !Path::new(namespace::DIR).exists() || other_lab_made_directory(state.name()) {
        note(Entry::Directory { path: namespace::DIR.into() })?;
    }
    let names: Vec<&String> =
        switches.iter().map(|s| &s.namespace).chain(machines.iter().map(|m| &m.namespace)).collect();
    // Looked at before any is made or recorded: whatever the record names is this lab's to remove.
    if let Some(taken) = names.iter().find(|name| namespace::is_taken(name)) {
        return Err(not_ours(taken));
    }
    side_by_side(names, |name| {
        note(Entry::Namespace { name: name.clone() })?;
        if namespace::create(name)? {
            return Ok(());
        }
        note(Entry::NotOurs { namespace: name.clone() })?;
        Err(not_ours(name))
    })?;
    side_by_side(&plan.switches, |switch| connect(switch, &switches, &machines))?;
    let (workers, others): (Vec<&Machine>, Vec<&Machine>) =
        machines.iter().partition(|machine| machine.role == Role::Worker);
    side_by_side(others, |machine| boot(state, running, machine, &note))?;
    if !workers.is_empty() {
        before_workers()?;
        side_by_side(workers, |machine| boot(state, running, machine, &note))?;
    }
    Ok(machines.iter().map(|m| m.name.clone()).collect())
}

fn not_ours(namespace: &str) -> Failure {
    Failure::new(
        format!("network namespace {namespace}"),
        "it exists already and is not this lab's",
        format!("if nothing uses it: ip netns del {namespace}; or name the lab otherwise: lab up --name"),
    )
}

/// Runs `work` for each item in a thread of its own, and returns the first error.
fn side_by_side<T: Send>(
    items: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> Result<(), Failure> + Sync,
) -> Result<(), Failure> {
    let work = &work;
    std::thread::scope(|s| {
        let threads: Vec<_> = items.into_iter().map(|item| s.spawn(move || work(item))).collect();
        let panicked = || Err(Failure::new("lab up", "a worker panicked", "report this as a bug"));
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| panicked())).fold(Ok(()), Result::and)
    })
}

/// Removes what is left of damaged machines and switches.
fn clear(
    plan: &Plan,
    state: &LabState,
    running: &Running,
    switches: &[&Switch],
    machines: &[&Machine],
    recorded: &[Entry],
) -> Result<(), Failure> {
    let names: Vec<&String> =
        switches.iter().map(|s| &s.namespace).chain(machines.iter().map(|m| &m.namespace)).collect();
    // Only namespaces that this lab has made: one of the same name may be somebody else's.
    let recorded = record::namespaces(recorded);
    let ours = |name: &&&String| recorded.contains(**name);
    let namespaces: BTreeSet<_> = names.iter().filter(ours).filter_map(|n| namespace::identity(n)).collect();
    for machine in machines {
        if let Some(init) = init_of(state, &running.id, &machine.name) {
            init.signal(libc::SIGKILL).or_failure(format!("node {}", machine.name), AGAIN)?;
        }
    }
    process::kill_all(None, &namespaces)?;
    side_by_side(machines.iter().filter(|m| ours(&&&m.namespace)), |machine| {
        say_goodbye(&machine.namespace);
        Ok(())
    })?;
    for switch in &plan.switches {
        let ports: Vec<_> =
            switch.ports.iter().filter(|p| machines.iter().any(|m| m.namespace == p.namespace)).collect();
        let whole = !switches.iter().any(|s| s.namespace == switch.namespace);
        if whole && !ports.is_empty() {
            namespace::inside(&switch.namespace, || {
                wire::with_netlink(|handle| async move {
                    for port in ports {
                        wire::remove_port(&handle, port).await?;
                    }
                    Ok(())
                })
            })?;
        }
    }
    names.iter().filter(ours).try_for_each(|name| namespace::remove(name))
}

/// Waits until the peers of a dead machine's TCP connections have its last words. Were its link removed before, they would
/// wait for more for minutes: nothing answers them that they are talking to nobody.
fn say_goodbye(namespace: &str) {
    /// A peer that is gone too says nothing.
    const PATIENCE: Duration = Duration::from_millis(250);
    let deadline = Instant::now() + PATIENCE;
    // Without its namespace the machine has no connection either.
    let _ = namespace::inside(namespace, || {
        while unanswered_goodbyes() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    });
}

/// True if the calling thread's namespace has a connection whose end was sent and not confirmed.
fn unanswered_goodbyes() -> bool {
    // States of linux/tcp_states.h: FIN_WAIT1, LAST_ACK, CLOSING.
    const WAITING: [&str; 3] = ["04", "09", "0B"];
    let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap_or_default();
    table.lines().skip(1).any(|line| line.split_whitespace().nth(3).is_some_and(|st| WAITING.contains(&st)))
}

fn other_lab_made_directory(own: &str) -> bool {
    let root = StateRoot::from_env();
    let others = root.names().into_iter().filter(|n| n != own);
    others.flat_map(|n| record::read(&root.lab(&n).dir())).any(|e| matches!(e, Entry::Directory { .. }))
}

/// Makes a new switch's bridge, and the ports of new machines.
fn connect(switch: &Switch, new: &[&Switch], machines: &[&Machine]) -> Result<(), Failure> {
    let is_new = new.iter().any(|s| s.namespace == switch.namespace);
    let mut ports = Vec::new();
    for port in switch.ports.iter().filter(|p| machines.iter().any(|m| m.namespace == p.namespace)) {
        let file = namespace::open(&port.namespace)
            .or_failure(format!("network namespace {}", port.namespace), AGAIN)?;
        ports.push((port, OwnedFd::from(file)));
    }
    namespace::inside(&switch.namespace, || {
        if is_new {
            wire::write_sysctls(&switch.sysctls)?;
        }
        wire::with_netlink(|handle| async move {
            if is_new {
                wire::make_bridge(&handle, switch).await?;
            }
            let bridge = wire::index_of(&handle, &switch.bridge).await;
            let bridge = bridge.ok_or_else(|| {
                Failure::new(format!("switch {}", switch.namespace), "it has no bridge", AGAIN)
            })?;
            for (port, machine) in &ports {
                wire::make_port(&handle, bridge, port, machine).await?;
            }
            Ok(())
        })
    })
}

/// Configures a machine's network and starts its first process.
fn boot(
    state: &LabState,
    running: &Running,
    machine: &Machine,
    note: &(impl Fn(Entry) -> Result<(), Failure> + Sync),
) -> Result<(), Failure> {
    namespace::inside(&machine.namespace, || {
        wire::write_sysctls(&machine.sysctls)?;
        wire::with_netlink(|handle| async move { wire::configure(&handle, machine).await })
    })?;
    let thing = format!("node {}", machine.name);
    let dir = machine_dir(&state.dir(), &machine.name);
    for sub in ["root", "log", "data"] {
        fs::create_dir_all(dir.join(sub)).or_failure(&thing, "free space in the state directory")?;
    }
    let spec = dir.join("spec.json");
    let text = serde_json::to_vec_pretty(machine).or_failure(&thing, "report this as a bug")?;
    write_whole(&spec, &text)?;
    let cgroup = cgroup::of(&machine.namespace);
    if let Some(path) = &cgroup {
        note(Entry::Cgroup { path: path.clone() })?;
    }
    // A machine without one runs; its agent says that ClusterIPs do not.
    let cgroup = cgroup.filter(|path| cgroup::create(path).is_ok());
    note(Entry::Process { what: format!("podwire-node of {}", machine.name) })?;
    let log = dir.join("log/podwire-node.log");
    let process =
        start_init(&running.id, &running.bin_dir, &spec, cgroup.as_deref(), &log).map_err(|trouble| {
            // What podwire-node itself says ends with a mend.
            let doctor = (trouble.as_str(), "see `lab doctor` for what this machine lacks");
            let (cause, mend) = trouble.rsplit_once("; ").unwrap_or(doctor);
            Failure::new(&thing, cause, mend)
        })?;
    let text = serde_json::to_vec(&process).or_failure(&thing, "report this as a bug")?;
    write_whole(&dir.join("init.json"), &text)
}

/// Starts `podwire-node` and waits for its greeting. The error is a cause.
fn start_init(
    id: &str,
    bin_dir: &Path,
    spec: &Path,
    cgroup: Option<&Path>,
    log: &Path,
) -> Result<Process, String> {
    let program = bin_dir.join("podwire-node");
    let log_path = log;
    let log = fs::OpenOptions::new().create(true).append(true).open(log_path).map_err(|e| e.to_string())?;
    let mut child = Command::new(&program)
        .arg("--spec")
        .arg(spec)
        .args(cgroup.iter().flat_map(|path| [Path::new("--cgroup"), path]))
        .env_clear()
        .env(process::MARKER, id)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|e| format!("{} does not start: {e}", program.display()))?;
    // Its parent says its number and it says that it is ready: either may come first.
    let (mut pid, mut ready, mut trouble) = (None, false, None);
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            match serde_json::from_str(&line) {
                Ok(Greeting::Pid(number)) => pid = Some(number),
                Ok(Greeting::Ready) => ready = true,
                Ok(Greeting::Error(cause)) => trouble = Some(cause),
                Err(_) => {}
            }
            if ready && pid.is_some() {
                break;
            }
        }
    }
    // It ends as soon as the machine's first process runs by itself.
    child.wait().map_err(|e| e.to_string())?;
    if let Some(cause) = trouble {
        return Err(cause);
    }
    if !ready {
        let log = fs::read_to_string(log_path).unwrap_or_default();
        let last = log.trim_end().lines().last().unwrap_or("it said nothing");
        return Err(format!("podwire-node ended before its file system was ready: {last}"));
    }
    pid.and_then(Process::of).ok_or_else(|| "podwire-node was ready and ended at once".into())
}

/// Undoes everything that the lab's record names, and removes its state. Does nothing for a lab that has none.
pub fn down(state: &LabState) -> Result<(), Failure> {
    let entries = record::read(&state.dir());
    let id = entries.iter().find_map(|e| match e {
        Entry::Lab { id } => Some(id.as_str()),
        _ => None,
    });
    let names = record::namespaces(&entries);
    let namespaces: BTreeSet<_> = names.iter().filter_map(|n| namespace::identity(n)).collect();
    process::kill_all(id, &namespaces)?;
    for name in &names {
        namespace::remove(name)?;
    }
    for entry in &entries {
        match entry {
            Entry::Cgroup { path } => cgroup::remove(path)?,
            Entry::Directory { path } => {
                // Not empty or in use: then it is others' too.
                let _ = fs::remove_dir(path);
            }
            _ => {}
        }
    }
    state.remove()
}
