//! The operator of a cluster; see [`podwire_agent::operator`].

use std::process::ExitCode;

use clap::Parser;
use podwire_agent::{logging, operator};
use podwire_api::names::SYSTEM_NAMESPACE;

/// Podwire's operator: the NodeNetwork resource, and pod CIDRs in mode cluster-pool.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Namespace of ConfigMap podwire-config.
    #[arg(long, default_value = SYSTEM_NAMESPACE)]
    config_map_namespace: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    logging::start();
    match operator::run(&args.config_map_namespace).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
