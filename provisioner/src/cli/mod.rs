//! What a user types.

mod capture;
mod check;
mod cluster;
mod compare;
mod conformance;
mod doctor;
mod exec;
mod lifecycle;
mod measure;
mod render;
mod routes;
mod study;
mod trace;

pub(crate) use measure::under_way as measurement_under_way;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use serde::Serialize;

use crate::error::Failure;

/// Boots small Kubernetes networks in namespaces of this machine, and proves what goes over their wires.
#[derive(Parser)]
#[command(name = "lab", version, arg_required_else_help = true, infer_subcommands = false)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Bring a lab up, or repair what is missing of it
    Up(lifecycle::Up),
    /// Take a lab down; leaves nothing behind, also after a crash
    Down(lifecycle::Down),
    /// Labs that exist and labs that run
    List(Format),
    /// What runs: machines, nodes, agents, pods
    Status(cluster::Status),
    /// What this machine lacks, and the command that installs it
    Doctor(Format),
    /// Change the agent's values, keeping the others; agents act on them when they restart
    Upgrade(cluster::Upgrade),
    /// A kubeconfig that works on this machine
    Kubeconfig(cluster::Kubeconfig),
    /// Run a command on a node
    Exec(exec::Exec),
    /// A shell on a node
    Shell(exec::Shell),
    /// Capture packets of any interfaces of any nodes into one pcapng file
    Capture(capture::Capture),
    /// Is it really faster? Measure two modes side by side
    Compare(compare::Compare),
    /// Follow one flow hop by hop, and say where and why it ends
    Trace(trace::Trace),
    /// Ask a capture file whether the network did what it should
    Check(check::Check),
    /// Send traffic, capture it, check it, and report
    Conformance(conformance::Conformance),
    /// Work through the course, step by step, on a lab of your own
    Study(study::Study),
    /// Call a Service's pods again and again, and count what is lost
    Measure(measure::Measure),
    /// The routes to pods that a machine needs
    Routes(routes::Routes),
    /// The Vagrantfile of a lab, on standard output
    Render(render::Render),
    /// The process behind `lab kubeconfig`
    #[command(hide = true)]
    Forward(cluster::Forward),
    /// Completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// How data is printed.
#[derive(Args, Clone, Copy)]
struct Format {
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
enum Output {
    /// For reading
    Text,
    /// For programs
    Json,
}

/// Directory of the project's programs.
#[derive(Args, Clone)]
struct Programs {
    /// Directory of podwire-node, podwire-kube and the agent; default: that of `lab`
    #[arg(long, env = "PODWIRE_BIN_DIR", hide_env = true, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

/// Everything that a deployed lab runs of this project.
const PROGRAMS: [&str; 6] =
    ["podwire-node", "podwire-kube", "podwire-agent", "podwire-cni", "podwire-operator", "podwire"];

impl Programs {
    /// Their directory, where all of `needed` must be.
    fn with(&self, needed: &[&str]) -> Result<PathBuf, Failure> {
        let dir = self.dir()?;
        match needed.iter().find(|name| !dir.join(name).is_file()) {
            None => Ok(dir),
            Some(name) => {
                let mend = "build it: make setup; or say with --bin-dir where it is";
                Err(Failure::new(format!("program {name}"), format!("it is not in {}", dir.display()), mend))
            }
        }
    }

    fn dir(&self) -> Result<PathBuf, Failure> {
        use crate::error::OrFailure;
        let dir = match &self.bin_dir {
            Some(dir) => dir.clone(),
            None => std::env::current_exe()
                .ok()
                .and_then(|p| p.parent().map(PathBuf::from))
                .ok_or_else(|| Failure::new("lab", "its own directory is not known", "give --bin-dir"))?,
        };
        dir.canonicalize()
            .or_failure(dir.display().to_string(), "give the directory of the programs with --bin-dir")
    }
}

/// Why a command ended without success.
enum Ended {
    /// With a message, and exit code 1.
    Failed(Failure),
    /// Wrong use or a bad file: each line is an error, and the exit code is 2.
    Wrong(String),
    /// Everything is said already.
    Code(u8),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<crate::lab::LabError> for Ended {
    fn from(error: crate::lab::LabError) -> Self {
        Self::Wrong(error.to_string())
    }
}

/// Runs the program and gives its exit code.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Cmd::Up(up) => up.run(),
        Cmd::Down(down) => down.run(),
        Cmd::List(format) => lifecycle::list(format.output),
        Cmd::Status(status) => status.run(),
        Cmd::Doctor(format) => doctor::run(format.output),
        Cmd::Upgrade(upgrade) => upgrade.run(),
        Cmd::Kubeconfig(kubeconfig) => kubeconfig.run(),
        Cmd::Capture(capture) => capture.run(),
        Cmd::Compare(compare) => compare.run(),
        Cmd::Trace(trace) => trace.run(),
        Cmd::Check(check) => check.run(),
        Cmd::Conformance(conformance) => conformance.run(),
        Cmd::Study(study) => study.run(),
        Cmd::Measure(measure) => measure.run(),
        Cmd::Routes(routes) => routes.run(),
        Cmd::Render(render) => render.run(),
        Cmd::Forward(forward) => forward.run(),
        Cmd::Exec(exec) => exec.run(),
        Cmd::Shell(shell) => shell.run(),
        Cmd::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "lab", &mut std::io::stdout());
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Ended::Code(code)) => ExitCode::from(code),
        Err(Ended::Failed(failure)) => {
            eprintln!("error: {failure}");
            ExitCode::from(1)
        }
        Err(Ended::Wrong(message)) => {
            for line in message.lines() {
                eprintln!("error: {line}");
            }
            ExitCode::from(2)
        }
    }
}

/// Has Ctrl-C and the like call this, which may only store an atomic.
fn on_interrupt(handler: extern "C" fn(i32)) {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let action = SigAction::new(SigHandler::Handler(handler), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler only stores an atomic. It fails for no signal that exists.
        let _ = unsafe { sigaction(signal, &action) };
    }
}

/// What runs the commands that talk to the API server.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    use crate::error::OrFailure;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .or_failure("lab", "free memory or raise the limit of processes")
}

/// Prints data on stdout. A reader that went away, as `head` does, is fine.
fn print_text(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn print_json(value: &impl Serialize) -> Result<(), Ended> {
    let text =
        serde_json::to_string_pretty(value).map_err(|e| Failure::new("output", e, "report this as a bug"))?;
    print_text(&format!("{text}\n"));
    Ok(())
}
