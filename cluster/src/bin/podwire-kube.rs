//! `podwire-kube`: the embedded Kubernetes. Its control plane, its node runtime, and the programs of built-in images.

use std::error::Error;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use http::HeaderValue;
use http::header::USER_AGENT;
use ipnet::Ipv4Net;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use podwire_api::names::{CNI_BIN_DIR, CNI_CONF_DIR, KUBELET_PORT};
use podwire_cluster::apiserver::{self, ApiServerConfig};
use podwire_cluster::controllers;
use podwire_cluster::images::{coredns, pause, web, whoami};
use podwire_cluster::node::{self, container};
use podwire_cluster::pki::{self, Pki};
use tokio::signal::unix::{SignalKind, signal};

/// The embedded Kubernetes of Podwire's netns provider.
#[derive(Parser)]
#[command(name = "podwire-kube", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs API server, controllers and scheduler. Prints "ready" on standard output once it serves.
    ControlPlane(ControlPlaneArgs),
    /// Runs one node: the kubelet's part.
    Node(NodeArgs),
    /// Image traefik/whoami: answers who it is, who asked, and what.
    Whoami {
        /// Port to listen on.
        #[arg(long, env = "WHOAMI_PORT_NUMBER", default_value_t = 80)]
        port: u16,
        /// Name to answer with.
        #[arg(long, env = "WHOAMI_NAME")]
        name: Option<String>,
        /// Accepted for compatibility: requests are not logged.
        #[arg(long)]
        verbose: bool,
    },
    /// A web server with one page.
    Web {
        /// Port to listen on.
        #[arg(long, default_value_t = 80)]
        port: u16,
        /// What the page says after "Web Server : ".
        #[arg(long, default_value = "podwire")]
        title: String,
    },
    /// Image coredns/coredns: the names of the cluster.
    Coredns {
        /// Port to listen on.
        #[arg(long = "dns.port", default_value_t = 53)]
        port: u16,
        /// Accepted for compatibility: what is answered is built in.
        #[arg(long)]
        conf: Option<PathBuf>,
    },
    /// Image pause: waits for the end.
    Pause,
    /// Monitors one container (started by the node runtime).
    #[command(hide = true)]
    Shim {
        /// Directory of the run.
        dir: PathBuf,
    },
    /// Runs a command in a container (started by the node runtime).
    #[command(hide = true)]
    Enter {
        /// Directory of the run.
        #[arg(long)]
        dir: PathBuf,
        /// Standard input is a terminal.
        #[arg(long)]
        tty: bool,
        /// Program and arguments.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
}

#[derive(Args)]
struct ControlPlaneArgs {
    /// Address of the API server.
    #[arg(long)]
    listen: SocketAddr,
    /// Directory of certificates, as `lab` makes it.
    #[arg(long)]
    pki: PathBuf,
    /// Directory of the store.
    #[arg(long)]
    data_dir: PathBuf,
    /// Where the nodes' pod networks are cut from.
    #[arg(long, default_value = "10.244.0.0/16")]
    cluster_cidr: Ipv4Net,
    /// Prefix length of one node's pod network.
    #[arg(long, default_value_t = 24)]
    node_cidr_mask_size: u8,
    /// Addresses of Services.
    #[arg(long, default_value = "10.96.0.0/16")]
    service_cidr: Ipv4Net,
    /// Give each node a pod network.
    #[arg(long)]
    allocate_node_cidrs: bool,
}

#[derive(Args)]
struct NodeArgs {
    /// The node's name.
    #[arg(long)]
    node_name: String,
    /// The node's address on its underlay.
    #[arg(long)]
    node_ip: Ipv4Addr,
    /// How to reach the API server.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Directory of certificates: ca.crt and the node's serving certificate.
    #[arg(long)]
    pki: PathBuf,
    /// Directory of the pods' state.
    #[arg(long, default_value = "/var/lib/kubelet")]
    root_dir: PathBuf,
    /// Directory of the built-in images' programs; default: that of this program.
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    /// The node has the control plane's role.
    #[arg(long)]
    control_plane_node: bool,
    /// Address of the cluster's DNS service.
    #[arg(long, default_value = "10.96.0.10")]
    cluster_dns: Ipv4Addr,
    /// Directory of CNI configurations.
    #[arg(long, default_value = CNI_CONF_DIR)]
    cni_conf_dir: PathBuf,
    /// Directory of CNI plugins.
    #[arg(long, default_value = CNI_BIN_DIR)]
    cni_bin_dir: PathBuf,
    /// Port of the node's API.
    #[arg(long, default_value_t = KUBELET_PORT)]
    port: u16,
}

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // These two run in namespaces of their own making: one thread, and no runtime.
    match &cli.command {
        Command::Shim { dir } => {
            return match container::shim::run(dir) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("podwire-kube shim: {}: {error}", dir.display());
                    ExitCode::FAILURE
                }
            };
        }
        Command::Enter { dir, tty, argv } => std::process::exit(container::enter::run(dir, *tty, argv)),
        Command::Pause => {
            return match pause::run() {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("podwire-kube pause: {error}");
                    ExitCode::FAILURE
                }
            };
        }
        _ => {}
    }
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("podwire-kube: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(inner) = cause {
                let inner_text = inner.to_string();
                // Many errors repeat their cause.
                if !text.contains(&inner_text) {
                    text = format!("{text}: {inner_text}");
                }
                cause = inner.source();
            }
            eprintln!("podwire-kube: {text}");
            ExitCode::FAILURE
        }
    }
}

/// Done at SIGTERM or SIGINT.
fn stop() -> Result<impl Future<Output = ()> + Send + 'static, Failure> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}

async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::ControlPlane(args) => control_plane(args).await,
        Command::Node(args) => run_node(args).await,
        Command::Whoami { port, name, .. } => {
            let stop = stop()?;
            whoami::serve(port, name, stop).await.map_err(|error| format!("port {port}: {error}").into())
        }
        Command::Web { port, title } => {
            let stop = stop()?;
            web::serve(port, &title, stop).await.map_err(|error| format!("port {port}: {error}").into())
        }
        Command::Coredns { port, .. } => {
            let stop = stop()?;
            let mut config = Config::incluster_env()?;
            let program = concat!("podwire-coredns/", env!("CARGO_PKG_VERSION"));
            config.headers.push((USER_AGENT, HeaderValue::from_static(program)));
            let client = Client::try_from(config)?;
            coredns::serve(client, port, stop)
                .await
                .map_err(|error| format!("DNS, port {port}: {error}").into())
        }
        // Handled before the runtime started.
        Command::Pause | Command::Shim { .. } | Command::Enter { .. } => Ok(()),
    }
}

async fn client(text: &str) -> Result<Client, Failure> {
    let mut config =
        Config::from_custom_kubeconfig(Kubeconfig::from_yaml(text)?, &KubeConfigOptions::default()).await?;
    let program = concat!("podwire-kube/", env!("CARGO_PKG_VERSION"));
    config.headers.push((USER_AGENT, HeaderValue::from_static(program)));
    Ok(Client::try_from(config)?)
}

async fn control_plane(args: ControlPlaneArgs) -> Result<(), Failure> {
    let stop = stop()?;
    let (ready, listening) = tokio::sync::oneshot::channel();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let config = ApiServerConfig {
        listen: args.listen,
        pki: args.pki.clone(),
        data_dir: args.data_dir.clone(),
        service_cidr: args.service_cidr,
    };
    let mut server = tokio::spawn(apiserver::serve(config, ready, async {
        let _ = ended.await;
    }));
    let address = tokio::select! {
        address = listening => address,
        result = &mut server => {
            result??;
            return Ok(());
        }
    };
    let Ok(address) = address else {
        // It has given up before it listened: its own error says why.
        server.await??;
        return Ok(());
    };
    let pki = Pki::open(&args.pki);
    let reachable = if address.ip().is_unspecified() {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port())
    } else {
        address
    };
    let kubeconfig = pki::kubeconfig(&pki, &format!("https://{reachable}"), "controller-manager")?;
    let options = controllers::Options {
        cluster_cidr: args.cluster_cidr,
        node_cidr_mask_size: args.node_cidr_mask_size,
        allocate_node_cidrs: args.allocate_node_cidrs,
        root_ca: Pki::read(&pki.ca_cert())?,
    };
    let mut managers = tokio::spawn(controllers::run(client(&kubeconfig).await?, options));
    tracing::info!(%address, "the control plane serves");
    // Nobody may be reading.
    let _ = writeln!(std::io::stdout(), "ready");
    let _ = std::io::stdout().flush();
    tokio::pin!(stop);
    tokio::select! {
        () = &mut stop => {}
        result = &mut server => {
            result??;
            return Err("the API server has ended".into());
        }
        result = &mut managers => {
            result?;
            return Err("the controllers have ended".into());
        }
    }
    managers.abort();
    let _ = end.send(());
    server.await??;
    Ok(())
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()).into())
}

async fn run_node(args: NodeArgs) -> Result<(), Failure> {
    let stop = stop()?;
    let client = client(&read(&args.kubeconfig)?)
        .await
        .map_err(|error| format!("{}: {error}", args.kubeconfig.display()))?;
    let own_dir = || -> Result<PathBuf, Failure> {
        Ok(std::env::current_exe()?.parent().ok_or("this program has no directory")?.to_owned())
    };
    let options = node::Options {
        name: args.node_name,
        ip: args.node_ip,
        root: std::path::absolute(args.root_dir)?,
        bin_dir: args.bin_dir.map_or_else(own_dir, Ok)?,
        pki: args.pki,
        control_plane: args.control_plane_node,
        cluster_dns: args.cluster_dns.to_string(),
        cni_conf_dir: args.cni_conf_dir,
        cni_bin_dir: args.cni_bin_dir,
        port: args.port,
    };
    node::run(client, options, stop).await?;
    Ok(())
}
