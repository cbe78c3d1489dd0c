//! The agent of one node; see [`podwire_agent::daemon`].

use std::process::ExitCode;

use clap::Parser;
use podwire_agent::daemon::{Options, run};
use podwire_agent::logging;
use podwire_api::names::SYSTEM_NAMESPACE;

/// Podwire's agent: gives this node's pods addresses, wires them and keeps the routes to the other nodes.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Name of this node's Node object.
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    /// Namespace of ConfigMap podwire-config.
    #[arg(long, default_value = SYSTEM_NAMESPACE)]
    config_map_namespace: String,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let args = Args::parse();
    logging::start();
    let options = Options { node_name: args.node_name, config_map_namespace: args.config_map_namespace };
    match run(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
