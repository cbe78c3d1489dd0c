//! What a command needs of a lab that runs: its API server, its machines, what is known of its network.

use std::process::{Command, Stdio};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, AttachParams};
use tokio::io::AsyncReadExt;

use crate::deploy;
use crate::error::Failure;
use crate::forward;
use crate::netns::{enter, init_of, process};
use crate::record::{Entry, Record};
use crate::state::{LabState, Lock, Running};

mod network;

pub(crate) use network::context_of;

/// How long the API server of a lab that runs may take to answer.
pub(crate) const QUICK: Duration = Duration::from_secs(5);

/// A client for a running lab, restarting its forwarder if that is gone.
pub(crate) async fn client(
    state: &LabState,
    running: &Running,
    patience: Duration,
) -> Result<Client, Failure> {
    deploy::connect(&kubeconfig_text(state, running)?, patience).await
}

/// A kubeconfig that works on this machine; starts the forwarder to the API server if it is gone.
pub(crate) fn kubeconfig_text(state: &LabState, running: &Running) -> Result<String, Failure> {
    let forwarder = if let Some(found) = forward::find(state, &running.id) {
        found
    } else {
        let (_lock, running) = locked(state)?;
        let mut record = Record::open(&state.dir())?;
        let entry = Entry::Process { what: "forwarder to the API server".into() };
        forward::ensure(state, &running, || record.note(entry))?
    };
    deploy::host_kubeconfig(state, forwarder.port)
}

/// The lab's lock, and the lab as the command that had the lock before has left it.
pub(crate) fn locked(state: &LabState) -> Result<(Lock, Running), Failure> {
    let lock = state.lock(|| eprintln!("another command works on lab {:?}; waiting for it", state.name()))?;
    if let Some(running) = state.running() {
        return Ok((lock, running));
    }
    lock.remove();
    let mend = format!("start it: lab up {}", state.name());
    Err(Failure::new(format!("lab {:?}", state.name()), "it was taken down", mend))
}

/// As [`client`], for one who has the lab's lock.
pub(crate) async fn client_locked(state: &LabState, running: &Running) -> Result<Client, Failure> {
    let mut record = Record::open(&state.dir())?;
    let entry = Entry::Process { what: "forwarder to the API server".into() };
    let forwarder = forward::ensure(state, running, || record.note(entry))?;
    deploy::connect(&deploy::host_kubeconfig(state, forwarder.port)?, QUICK).await
}

/// A node's environment for a command that a user types.
pub(crate) fn environment(running: &Running, node: &str) -> Vec<(String, String)> {
    let machine = running.plan.machines.iter().find(|m| m.name == node);
    let mut env = machine.map(|m| m.env.clone()).unwrap_or_default();
    for key in ["TERM", "LANG", "LC_ALL", "COLORTERM"] {
        env.extend(std::env::var(key).ok().map(|value| (key.to_owned(), value)));
    }
    env.push(("PS1".into(), format!("{node}:\\w# ")));
    env.push((process::MARKER.into(), running.id.clone()));
    env
}

/// The first process of a node, or why there is none.
pub(crate) fn node_init(
    state: &LabState,
    running: &Running,
    node: &str,
) -> Result<process::Process, Failure> {
    if running.lab.node(node).is_none() {
        let names: Vec<&str> = running.lab.nodes.iter().map(|n| n.name.as_str()).collect();
        let mend = format!("the nodes of lab {:?} are {}", state.name(), names.join(", "));
        return Err(Failure::new(format!("node {node:?}"), "there is no such node", mend));
    }
    init_of(state, &running.id, node).ok_or_else(|| {
        let mend = format!("repair the lab: lab up {}", state.name());
        Failure::new(format!("node {node:?}"), "it does not run", mend)
    })
}

/// Runs a command on a node to its end and collects what it says.
pub(crate) fn output_on(
    state: &LabState,
    running: &Running,
    node: &str,
    words: &[&str],
) -> std::io::Result<std::process::Output> {
    let init = node_init(state, running, node).map_err(std::io::Error::other)?;
    let (program, args) = words.split_first().ok_or_else(|| std::io::Error::other("no command"))?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    enter::spawn(init, &environment(running, node), command)?.wait_with_output()
}

/// Runs a command in a pod; its standard output. The error is what it said, or why it could not run.
pub(crate) async fn exec_in_pod(
    pods: &Api<Pod>,
    name: &str,
    argv: &[&str],
    patience: Duration,
) -> Result<String, String> {
    let params = AttachParams::default().stdin(false).stdout(true).stderr(true);
    let work = async {
        let mut process = pods.exec(name, argv.iter().copied(), &params).await.map_err(|e| e.to_string())?;
        let (mut out, mut err) = (String::new(), String::new());
        let (stdout, stderr, status) = (process.stdout(), process.stderr(), process.take_status());
        let read_out = async {
            if let Some(mut stdout) = stdout {
                // What is no text cannot be an answer.
                let _ = stdout.read_to_string(&mut out).await;
            }
        };
        let read_err = async {
            if let Some(mut stderr) = stderr {
                let _ = stderr.read_to_string(&mut err).await;
            }
        };
        futures::join!(read_out, read_err);
        let status = match status {
            Some(status) => status.await,
            None => None,
        };
        if status.as_ref().is_some_and(|s| s.status.as_deref() == Some("Success")) {
            return Ok(out);
        }
        let said = if err.trim().is_empty() { out.trim().to_owned() } else { err.trim().to_owned() };
        let how = status.and_then(|s| s.message).unwrap_or_else(|| "no exit status".into());
        Err(format!("{how}: {said}"))
    };
    tokio::time::timeout(patience, work).await.unwrap_or_else(|_| Err("it did not end".into()))
}
