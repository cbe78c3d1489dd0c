//! Case pod-to-pod-native: TCP, ICMP and UDP between pods of two nodes, both ways, under capture.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use podwire_api::names;
use podwire_api::values::RoutingMode;
use podwire_conformance::Tap;
use podwire_conformance::capture::CaptureOptions;
use podwire_conformance::check::{self, Expectation, FlowHint, Report};

use super::probes::{Probe, Probes};
use crate::access;
use crate::capturing::Capturing;
use crate::cli::capture as taps;
use crate::error::{Failure, OrFailure};
use crate::netns::{self, namespace};
use crate::state::{LabState, Running};

const PATIENCE: Duration = Duration::from_secs(10);

/// One thing that was sent.
pub(super) struct Step {
    /// What, in words.
    pub(super) what: String,
    /// Why it failed, if it did.
    pub(super) trouble: Option<String>,
}

/// What came of the case.
pub(super) struct Outcome {
    pub(super) traffic: Vec<Step>,
    pub(super) report: Report,
}

/// A web server that says whom it sees.
struct Web {
    name: String,
    node: String,
    ip: Ipv4Addr,
}

/// Runs the case. The capture is kept in `directory` if there is one.
pub(super) async fn pod_to_pod_native(
    state: &LabState,
    running: &Running,
    directory: Option<&Path>,
) -> Result<Outcome, Failure> {
    let client = access::client(state, running, PATIENCE).await?;
    let nodes: Vec<String> = running.lab.kubernetes_nodes().map(|n| n.name.clone()).collect();
    let webs = web_servers(&client).await?;
    let probes = Probes::make(&client, &nodes).await?;
    let outcome = run(state, running, &probes, &webs, directory).await;
    let removed = probes.remove().await;
    let outcome = outcome?;
    removed?;
    Ok(outcome)
}

async fn run(
    state: &LabState,
    running: &Running,
    probes: &Probes,
    webs: &[Web],
    directory: Option<&Path>,
) -> Result<Outcome, Failure> {
    let (file, keep) = match directory {
        Some(directory) => {
            let thing = directory.display().to_string();
            std::fs::create_dir_all(directory).or_failure(thing, "give a writable directory")?;
            (directory.join("capture.pcapng"), true)
        }
        None => (state.dir().join("conformance.pcapng"), false),
    };
    // Before the capture begins, so that its own requests are not in it.
    let mut context = access::context_of(state, running).await;
    context.command = Some(format!("lab conformance {} --suite quick", running.lab.name));
    // The commands that cause the traffic come and go by the API server and the node runtime: not ours to judge.
    let control = format!("not (tcp port {} or tcp port {})", names::API_SERVER_PORT, names::KUBELET_PORT);
    let options = CaptureOptions {
        filter: Some(control.parse().or_failure("capture", "report this as a bug")?),
        ..CaptureOptions::default()
    };
    let capture = Capturing::begin(open_taps(running, probes)?, options, &file).await?;
    let (traffic, flows) = send(probes, webs).await;
    capture.end().await?;
    context.flows = flows;
    let report = check::run(std::slice::from_ref(&file), expectation(running), &context)
        .or_failure("check", "report this as a bug");
    if !keep {
        // It goes with the lab at the latest.
        let _ = std::fs::remove_file(&file);
    }
    Ok(Outcome { traffic, report: report? })
}

/// What the lab's values promise.
fn expectation(running: &Running) -> Expectation {
    match running.lab.typed_values() {
        Ok(values) if values.routing_mode == RoutingMode::Tunnel => Expectation::Vxlan,
        _ => Expectation::Native,
    }
}

async fn web_servers(client: &kube::Client) -> Result<Vec<Web>, Failure> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let found = pods
        .list(&ListParams::default().labels("app=webpod"))
        .await
        .or_failure("pods of app webpod", "see the API server's log")?;
    Ok(found
        .items
        .iter()
        .filter(|p| crate::deploy::pod_trouble(p).is_none())
        .filter_map(|p| {
            let ip = p.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
            Some(Web { name: p.name_any(), node: p.spec.as_ref()?.node_name.clone()?, ip })
        })
        .collect())
}

/// Taps on the wire and at the pods of every Kubernetes node.
fn open_taps(running: &Running, probes: &Probes) -> Result<Vec<Box<dyn Tap>>, Failure> {
    let mut open = Vec::new();
    for node in running.lab.kubernetes_nodes().filter(|n| probes.all.iter().any(|p| p.node == n.name)) {
        open.push(taps::open(running, &node.name, names::UNDERLAY_DEVICE)?);
        let name = crate::plan::namespace(&running.lab.name, &node.name);
        let devices = namespace::inside(&name, netns::device_names)?;
        for device in devices.iter().filter(|d| d.starts_with(names::ENDPOINT_DEVICE_PREFIX)) {
            open.push(taps::open(running, &node.name, device)?);
        }
    }
    Ok(open)
}

/// Sends everything, from each probe to the others' nodes. Returns what was tried, and the flows that must be seen.
async fn send(probes: &Probes, webs: &[Web]) -> (Vec<Step>, Vec<FlowHint>) {
    let mut steps = Vec::new();
    let mut flows = Vec::new();
    for from in &probes.all {
        for web in webs.iter().filter(|w| w.node != from.node) {
            let what = format!("TCP   {} ({}) -> {} ({})", from.node, from.ip, web.name, web.ip);
            steps.push(Step { what, trouble: curl(probes, from, web).await.err() });
            flows.push(FlowHint { source: from.ip, destination: web.ip, port: Some(80) });
        }
        for to in probes.all.iter().filter(|p| p.node != from.node) {
            let ip = to.ip.to_string();
            let ping = ["ping", "-n", "-c", "3", "-i", "0.2", "-W", "5", &ip];
            let what = format!("ICMP  {} ({}) -> {} ({ip})", from.node, from.ip, to.node);
            steps.push(Step { what, trouble: probes.run(from, &ping).await.err() });
            flows.push(FlowHint { source: from.ip, destination: to.ip, port: None });
            let udp = ["iperf3", "-c", &ip, "-u", "-b", "2M", "-n", "64K", "--connect-timeout", "5000"];
            let what = format!("UDP   {} ({}) -> {} ({ip})", from.node, from.ip, to.node);
            steps.push(Step { what, trouble: probes.run(from, &udp).await.err() });
            flows.push(FlowHint { source: from.ip, destination: to.ip, port: Some(5201) });
        }
    }
    (steps, flows)
}

/// The server must be the one that was asked, and must see the pod's own address.
async fn curl(probes: &Probes, from: &Probe, web: &Web) -> Result<(), String> {
    let url = format!("http://{}/", web.ip);
    let answer = probes.run(from, &["curl", "-sS", "--max-time", "10", &url]).await?;
    let line =
        |key: &str| answer.lines().find_map(|l| l.strip_prefix(key)).map(str::trim).unwrap_or_default();
    if line("Hostname:") != web.name {
        return Err(format!("{} answered, not {}", line("Hostname:"), web.name));
    }
    let seen = line("RemoteAddr:");
    if seen.rsplit_once(':').map(|(ip, _)| ip) != Some(from.ip.to_string().as_str()) {
        return Err(format!("the server saw {seen}, not the pod's own address {}", from.ip));
    }
    Ok(())
}
