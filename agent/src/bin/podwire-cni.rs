//! The CNI plugin. It checks the call and hands it to the agent; see [`podwire_agent::cni`].

use std::process::ExitCode;

fn main() -> ExitCode {
    podwire_agent::cni::plugin::main()
}
