//! `podwire`: asks the agent of this node.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use podwire_agent::local_api::client::{ClientError, ask, ask_once};
use podwire_agent::local_api::masquerade::{self, ConnectionRow};
use podwire_agent::local_api::services::{self, BalancedRow, ServiceRow};
use podwire_agent::local_api::{EndpointRow, IpcacheRow, MetricRow, Request, Status, render};
use podwire_api::names::API_SOCKET;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Asks the Podwire agent of this node.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The agent's socket.
    #[arg(long, global = true, default_value = API_SOCKET)]
    socket: PathBuf,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// How the agent is. Exit code 1 while it cannot wire pods.
    Status {
        /// One line.
        #[arg(long)]
        brief: bool,
    },
    /// The configuration with which the agent runs.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// The pods of this node.
    #[command(subcommand)]
    Endpoint(ListCommand),
    /// Services and who answers for them, as the API server tells.
    #[command(subcommand)]
    Service(ListCommand),
    /// The datapath's maps.
    #[command(subcommand)]
    Bpf(BpfCommand),
    /// Packets as the datapath sees them: drops, or with `--type trace` all.
    Monitor {
        /// Which packets.
        #[arg(long = "type", value_enum, default_value_t = Kind::Drop)]
        kind: Kind,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Prints every key with its value.
    View,
}

#[derive(Subcommand)]
enum ListCommand {
    /// Prints a table.
    List,
}

#[derive(Subcommand)]
enum BpfCommand {
    /// Who owns which address.
    #[command(subcommand)]
    Ipcache(ListCommand),
    /// Packets and bytes counted.
    #[command(subcommand)]
    Metrics(ListCommand),
    /// Connections in which an address of the node stands in for a pod.
    #[command(subcommand)]
    Nat(ListCommand),
    /// Every connection between pods of this node and what is beyond the native network.
    #[command(subcommand)]
    Ct(ListCommand),
    /// Destinations beyond the native network that see pods' own addresses.
    #[command(subcommand)]
    Ipmasq(ListCommand),
    /// Services and who answers for them, as the datapath has it.
    #[command(subcommand)]
    Lb(LbCommand),
}

#[derive(Subcommand)]
enum LbCommand {
    /// Who answers for which address and port.
    List,
    /// Connections that are balanced packet by packet: calls from outside, and calls that no socket of the node made.
    Connections,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Drop,
    Trace,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("podwire: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode, ClientError> {
    match &args.command {
        Command::Status { brief } => {
            let value = ask_once(&args.socket, Request::Status)?;
            let status: Status = parse(value.clone())?;
            match (args.output, brief) {
                (Output::Json, _) => print(&format!("{value:#}\n")),
                (Output::Text, true) => print(&format!("{}\n", render::brief(&status))),
                (Output::Text, false) => print(&render::status(&status)),
            };
            return Ok(if status.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Config(ConfigCommand::View) => {
            show(args, Request::Config, |c: BTreeMap<String, String>| render::config(&c))?;
        }
        Command::Endpoint(ListCommand::List) => {
            show(args, Request::Endpoints, |rows: Vec<EndpointRow>| render::endpoints(&rows))?;
        }
        Command::Bpf(BpfCommand::Ipcache(ListCommand::List)) => {
            show(args, Request::Ipcache, |rows: Vec<IpcacheRow>| render::ipcache(&rows))?;
        }
        Command::Bpf(BpfCommand::Metrics(ListCommand::List)) => {
            show(args, Request::Metrics, |rows: Vec<MetricRow>| render::metrics(&rows))?;
        }
        Command::Bpf(BpfCommand::Nat(ListCommand::List)) => {
            show(args, Request::Nat, |rows: Vec<ConnectionRow>| masquerade::nat(&rows))?;
        }
        Command::Bpf(BpfCommand::Ct(ListCommand::List)) => {
            show(args, Request::Connections, |rows: Vec<ConnectionRow>| masquerade::connections(&rows))?;
        }
        Command::Bpf(BpfCommand::Ipmasq(ListCommand::List)) => {
            show(args, Request::NonMasquerade, |cidrs: Vec<String>| masquerade::non_masquerade(&cidrs))?;
        }
        Command::Bpf(BpfCommand::Lb(LbCommand::List)) => {
            show(args, Request::LoadBalancing, |rows: Vec<ServiceRow>| services::load_balancing(&rows))?;
        }
        Command::Bpf(BpfCommand::Lb(LbCommand::Connections)) => {
            show(args, Request::Balanced, |rows: Vec<BalancedRow>| services::balanced(&rows))?;
        }
        Command::Service(ListCommand::List) => {
            show(args, Request::Services, |rows: Vec<ServiceRow>| services::services(&rows))?;
        }
        Command::Monitor { kind } => monitor(args, *kind)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn parse<T: DeserializeOwned>(value: Value) -> Result<T, ClientError> {
    serde_json::from_value(value).map_err(|e| ClientError::Broken(e.to_string()))
}

fn show<T: DeserializeOwned>(
    args: &Args,
    request: Request,
    text: impl FnOnce(T) -> String,
) -> Result<(), ClientError> {
    let value = ask_once(&args.socket, request)?;
    match args.output {
        Output::Json => print(&format!("{value:#}\n")),
        Output::Text => print(&text(parse(value)?)),
    };
    Ok(())
}

fn monitor(args: &Args, kind: Kind) -> Result<(), ClientError> {
    let request = Request::Monitor { trace: kind == Kind::Trace };
    for message in ask(&args.socket, request)? {
        let message = message?;
        // From here on nothing is missed.
        if message.get("listening").is_some() {
            eprintln!("podwire: listening; Ctrl-C ends");
            continue;
        }
        let lost = message.get("lost").and_then(Value::as_u64);
        let line = match (args.output, lost) {
            (_, Some(lost)) => {
                eprintln!("podwire: {lost} flows were lost; print less, or filter");
                continue;
            }
            (Output::Json, None) => message["flow"].to_string(),
            (Output::Text, None) => message["line"].as_str().unwrap_or_default().to_owned(),
        };
        if !print(&format!("{line}\n")) {
            return Ok(());
        }
    }
    Err(ClientError::Broken("it ended".into()))
}

/// Prints; false if nobody reads any more (`podwire monitor | head`).
fn print(text: &str) -> bool {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}
