//! `podwire-kube enter`: runs one more command in a container (kubectl exec, probes, hooks). Single-threaded.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::inside::{self, InsideError, step};
use super::process;
use super::spec::{ContainerSpec, RunDir};

/// Runs `argv` in the container of `dir` and returns its exit code. Standard streams are this process's own; with `tty`
/// standard input is the terminal that the command gets as its controlling one.
pub fn run(dir: &Path, tty: bool, argv: &[String]) -> i32 {
    match enter(dir, tty, argv) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            // What shells answer: 127 not found, 126 not executable.
            match error {
                InsideError::NotFound(_) => 127,
                _ => 126,
            }
        }
    }
}

fn enter(dir: &Path, tty: bool, argv: &[String]) -> Result<i32, InsideError> {
    let dir = RunDir(dir.to_owned());
    let read = |source| InsideError::Step { step: "read the container's description", source };
    let text = std::fs::read(dir.spec()).map_err(read)?;
    let spec: ContainerSpec = serde_json::from_slice(&text).map_err(|error| read(io::Error::other(error)))?;
    let gone = || InsideError::Step {
        step: "enter the container",
        source: io::Error::new(io::ErrorKind::NotFound, "it is not running"),
    };
    let started = dir.read_started().ok_or_else(gone)?;
    let kinds = [
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("net", CloneFlags::CLONE_NEWNET),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    let mut namespaces = Vec::new();
    for (name, flag) in kinds {
        let path = format!("/proc/{}/ns/{name}", started.init_pid);
        namespaces.push((File::open(path).map_err(|_| gone())?, flag));
    }
    if !process::is_alive(started.init_pid, started.init_start) {
        return Err(gone());
    }
    for (file, flag) in namespaces {
        setns(file, flag).map_err(step("enter the container's namespaces"))?;
    }
    SigSet::all().thread_block().map_err(step("block signals"))?;
    // The child of a setns into a PID namespace is in it.
    // SAFETY: this process has one thread.
    match unsafe { fork() }.map_err(step("fork the command"))? {
        ForkResult::Child => {
            let error = match become_command(&spec, tty, argv) {
                Ok(never) => match never {},
                Err(error) => error,
            };
            eprintln!("{error}");
            std::process::exit(if matches!(error, InsideError::NotFound(_)) { 127 } else { 126 });
        }
        ForkResult::Parent { child } => loop {
            match SigSet::all().wait() {
                Ok(Signal::SIGCHLD) => match waitpid(child, Some(nix::sys::wait::WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::Exited(_, code)) => return Ok(code),
                    Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
                    Ok(_) => {}
                    Err(error) => return Err(step("wait for the command")(error)),
                },
                Ok(signal) => {
                    let _ = nix::sys::signal::kill(child, signal);
                }
                Err(error) => return Err(step("wait for the command")(error)),
            }
        },
    }
}

fn become_command(spec: &ContainerSpec, tty: bool, argv: &[String]) -> Result<Infallible, InsideError> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(step("tie the command to its parent"))?;
    nix::unistd::setsid().map_err(step("start a session"))?;
    if tty {
        // SAFETY: descriptor 0 is the terminal; the argument 0 means not to steal it from another session.
        let set = unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) };
        Errno::result(set).map_err(step("take the terminal"))?;
    }
    inside::reset_signals()?;
    inside::assume(&spec.identity)?;
    let mut env = spec.env.clone();
    if tty && !env.iter().any(|(name, _)| name == "TERM") {
        env.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    // setuid clears the tie to the parent: renew it.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(step("tie the command to its parent"))?;
    Err(inside::exec(argv, &env, &spec.cwd))
}
