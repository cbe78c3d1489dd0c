//! The first process of a lab machine. `lab up` starts it; nobody types it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use podwire_provisioner::node;

/// The first process of a lab machine. `lab up` starts it.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// What to make of the machine.
    #[arg(long)]
    spec: PathBuf,
    /// The machine's cgroup, if it has one.
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// Run as PID 1 of the machine's namespaces.
    #[arg(long, hide = true)]
    init: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let cgroup = args.cgroup.as_deref();
    let done = if args.init { node::init(&args.spec, cgroup) } else { node::enter(&args.spec, cgroup) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            node::report(&error);
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
