//! `lab exec` and `lab shell`.

use std::io::IsTerminal as _;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicI32, Ordering};

use clap::Args;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::Ended;
use crate::access::{environment, node_init};
use crate::error::{Failure, OrFailure};
use crate::netns::enter;
use crate::state::StateRoot;

/// Run a command on a node.
#[derive(Args)]
pub(super) struct Exec {
    /// The node
    node: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<String>,
    /// The lab, where several run
    #[arg(long)]
    lab: Option<String>,
}

/// A shell on a node.
#[derive(Args)]
pub(super) struct Shell {
    /// The node
    node: String,
    /// The lab, where several run
    #[arg(long)]
    lab: Option<String>,
}

impl Exec {
    pub(super) fn run(self) -> Result<(), Ended> {
        run_on(self.lab.as_deref(), &self.node, &self.command)
    }
}

impl Shell {
    pub(super) fn run(self) -> Result<(), Ended> {
        let shell = if std::path::Path::new("/bin/bash").exists() { "/bin/bash" } else { "/bin/sh" };
        let mut words = vec![shell.to_owned()];
        // A script on standard input wants neither prompts nor a word about job control.
        if std::io::stdin().is_terminal() {
            words.push("-i".to_owned());
        }
        run_on(self.lab.as_deref(), &self.node, &words)
    }
}

fn run_on(lab: Option<&str>, node: &str, words: &[String]) -> Result<(), Ended> {
    let (state, running) = StateRoot::from_env().pick(lab)?;
    let init = node_init(&state, &running, node).map_err(|e| Ended::Wrong(e.to_string()))?;
    let Some((program, args)) = words.split_first() else {
        return Err(Ended::Wrong("lab exec: no command; write lab exec NODE -- CMD".into()));
    };
    let mut command = Command::new(program);
    command.args(args);
    let child = match enter::spawn(init, &environment(&running, node), command) {
        Ok(child) => child,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!(
                "error: {program}: there is no such command on {node}; check its name and the node's PATH"
            );
            return Err(Ended::Code(127));
        }
        Err(e) => {
            return Err(
                Failure::new(format!("{program} on {node}"), e, "run as root; see `lab doctor`").into()
            );
        }
    };
    match code(wait(child)?) {
        0 => Ok(()),
        code => Err(Ended::Code(code)),
    }
}

/// As a shell says it: the exit code, or 128 and the signal's number.
pub(super) fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(255);
    u8::try_from(code).unwrap_or(255)
}

/// The command that gets the signals sent to us.
static CHILD: AtomicI32 = AtomicI32::new(0);

/// Waits for the command. The terminal's signals reach it directly, being in the same foreground group; those sent to
/// this process are passed on.
fn wait(mut child: Child) -> Result<ExitStatus, Failure> {
    CHILD.store(i32::try_from(child.id()).unwrap_or_default(), Ordering::SeqCst);
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    let forward = SigAction::new(SigHandler::Handler(pass_on), SaFlags::SA_RESTART, SigSet::empty());
    for (signal, action) in [
        (Signal::SIGINT, &ignore),
        (Signal::SIGQUIT, &ignore),
        (Signal::SIGTERM, &forward),
        (Signal::SIGHUP, &forward),
        (Signal::SIGUSR1, &forward),
        (Signal::SIGUSR2, &forward),
    ] {
        // SAFETY: the handler only loads an atomic and calls kill, both async-signal-safe.
        let _ = unsafe { sigaction(signal, action) };
    }
    child.wait().or_failure("lab exec", "run it again")
}

extern "C" fn pass_on(signal: i32) {
    let pid = CHILD.load(Ordering::SeqCst);
    if pid > 0 {
        // SAFETY: kill takes two integers; the child is ours and not yet waited for.
        unsafe { libc::kill(pid, signal) };
    }
}
