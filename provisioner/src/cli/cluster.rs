//! `lab status`, `lab upgrade`, `lab kubeconfig` and the forwarder.

use std::net::SocketAddrV4;

use clap::Args;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt};
use podwire_api::names;
use podwire_api::values::Values;
use serde::Serialize;
use serde_json::Value;

use super::lifecycle::ValueArgs;
use super::{Ended, Format, Output, print_json, print_text, runtime};
use crate::access;
use crate::deploy;
use crate::error::{Failure, OrFailure};
use crate::forward;
use crate::netns;
use crate::state::{LabState, Running, StateRoot};

/// A kubeconfig that works on this machine.
#[derive(Args)]
pub(super) struct Kubeconfig {
    /// The lab, where several run
    lab: Option<String>,
    /// The same
    #[arg(long = "lab", value_name = "LAB", conflicts_with = "lab", hide = true)]
    named: Option<String>,
}

impl Kubeconfig {
    pub(super) fn run(self) -> Result<(), Ended> {
        let (state, running) = StateRoot::from_env().pick(self.lab.or(self.named).as_deref())?;
        print_text(&access::kubeconfig_text(&state, &running)?);
        Ok(())
    }
}

/// The process behind `lab kubeconfig`.
#[derive(Args)]
pub(super) struct Forward {
    /// Network namespace of the control plane's node
    #[arg(long)]
    namespace: String,
    /// The API server in it
    #[arg(long)]
    server: SocketAddrV4,
    /// Port to listen on, if it is free; 0 for any
    #[arg(long)]
    port: u16,
}

impl Forward {
    pub(super) fn run(self) -> Result<(), Ended> {
        Ok(forward::serve(&self.namespace, self.server, self.port)?)
    }
}

/// Change the agent's values.
#[derive(Args)]
pub(super) struct Upgrade {
    /// The lab, where several run
    lab: Option<String>,
    #[command(flatten)]
    values: ValueArgs,
}

impl Upgrade {
    pub(super) fn run(self) -> Result<(), Ended> {
        let (state, _) = StateRoot::from_env().pick(self.lab.as_deref())?;
        let (_lock, mut running) = access::locked(&state)?;
        let before = running.lab.typed_values().map_err(|e| Ended::Wrong(format!("values: {e}")))?;
        running.lab.values = self.values.over(running.lab.values.clone())?;
        let after = running.lab.typed_values().map_err(|e| Ended::Wrong(format!("values: {e}")))?;
        runtime()?.block_on(async {
            let client = access::client_locked(&state, &running).await?;
            let used = deploy::pod_cidrs(&client).await?;
            Values::check_upgrade(&before, &after, &used)
                .map_err(|e| Ended::Wrong(format!("values: {e}")))?;
            Ok::<_, Ended>(deploy::write_config(&client, &after).await?)
        })?;
        state.set_running(&running)?;
        tell_changes(&before, &after);
        Ok(())
    }
}

fn tell_changes(before: &Values, after: &Values) {
    let list = after.ip_masq_agent.config_map_text();
    let list_changed = list != before.ip_masq_agent.config_map_text();
    if let Some(list) = list.filter(|_| list_changed) {
        eprintln!("ConfigMap {}: {list}", names::IP_MASQ_AGENT_CONFIG_MAP);
    }
    let (before, after) = (before.to_config_map(), after.to_config_map());
    let changed: Vec<&String> = after.keys().filter(|k| before.get(*k) != after.get(*k)).collect();
    if changed.is_empty() && before.len() == after.len() {
        if !list_changed {
            eprintln!("nothing changed");
        }
        return;
    }
    for key in changed {
        let was = before.get(key).map_or("(none)", String::as_str);
        eprintln!("{key}: {was} -> {}", after[key]);
    }
    eprintln!(
        "agents act on it when they restart: kubectl -n {} rollout restart ds/{} deploy/{}",
        names::SYSTEM_NAMESPACE,
        names::AGENT_DAEMON_SET,
        names::OPERATOR_DEPLOYMENT
    );
}

/// What runs.
#[derive(Args)]
pub(super) struct Status {
    /// The lab, where several run
    lab: Option<String>,
    /// The same
    #[arg(long = "lab", value_name = "LAB", conflicts_with = "lab", hide = true)]
    named: Option<String>,
    #[command(flatten)]
    format: Format,
}

/// Everything that `lab status` knows.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    lab: String,
    /// True if every machine, node and pod is as it should be.
    healthy: bool,
    machines: Vec<MachineRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_server: Option<String>,
    nodes: Vec<NodeRow>,
    pods: Vec<PodRow>,
    state: std::path::PathBuf,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MachineRow {
    name: String,
    role: String,
    address: String,
    namespace: String,
    state: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeRow {
    name: String,
    ready: String,
    #[serde(rename = "podCIDR")]
    pod_cidr: String,
    /// What the node's agent says of itself.
    agent: Value,
    agent_healthy: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PodRow {
    namespace: String,
    name: String,
    node: String,
    ip: String,
    state: String,
}

impl Status {
    pub(super) fn run(self) -> Result<(), Ended> {
        let (state, running) = StateRoot::from_env().pick(self.lab.or(self.named).as_deref())?;
        let report = gather(&state, &running)?;
        match self.format.output {
            Output::Json => print_json(&report)?,
            Output::Text => print_text(&report.to_string()),
        }
        if report.healthy { Ok(()) } else { Err(Ended::Code(1)) }
    }
}

fn gather(state: &LabState, running: &Running) -> Result<Report, Failure> {
    let inspection = netns::inspect(state, running);
    let machines: Vec<MachineRow> = inspection
        .machines
        .iter()
        .filter_map(|found| Some((found, running.lab.node(&found.name)?)))
        .map(|(found, node)| MachineRow {
            name: node.name.clone(),
            role: node.role.to_string(),
            address: node.internal_ip().map(|ip| ip.to_string()).unwrap_or_default(),
            namespace: crate::plan::namespace(&running.lab.name, &node.name),
            state: found.missing.as_ref().map_or_else(|| "running".into(), |what| format!("damaged: {what}")),
        })
        .collect();
    let whole = inspection.is_whole(&running.plan);
    let mut report = Report {
        lab: running.lab.name.clone(),
        healthy: whole,
        machines,
        api_server: None,
        nodes: Vec::new(),
        pods: Vec::new(),
        state: state.dir(),
    };
    let asked: Result<(Vec<Node>, Vec<Pod>), Failure> = runtime()?.block_on(async {
        let client = access::client(state, running, access::QUICK).await?;
        let params = kube::api::ListParams::default();
        let (nodes, pods) = (Api::<Node>::all(client.clone()), Api::<Pod>::all(client));
        let (nodes, pods) = futures::try_join!(nodes.list(&params), pods.list(&params)).or_failure(
            "API server",
            "see its log: lab exec k8s-ctr -- cat /var/log/podwire/control-plane.log",
        )?;
        Ok((nodes.items, pods.items))
    });
    match asked {
        Err(failure) => {
            report.healthy = false;
            report.api_server = Some(failure.to_string());
        }
        Ok((nodes, pods)) => {
            report.nodes = nodes.iter().map(|n| node_row(state, running, n)).collect();
            report.pods = pods.iter().map(pod_row).collect();
            report.healthy &= report.nodes.iter().all(|n| n.ready == "Ready" && n.agent_healthy)
                && pods.iter().all(|p| deploy::pod_trouble(p).is_none());
        }
    }
    Ok(report)
}

fn node_row(state: &LabState, running: &Running, node: &Node) -> NodeRow {
    let name = node.name_any();
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|c| c.type_ == "Ready");
    let ready = match ready {
        Some(c) if c.status == "True" => "Ready".to_owned(),
        Some(c) => format!("NotReady: {}", c.message.as_deref().unwrap_or_default()),
        None => "unknown".to_owned(),
    };
    let (agent_healthy, agent) = agent_status(state, running, &name);
    NodeRow {
        ready,
        pod_cidr: node.spec.as_ref().and_then(|s| s.pod_cidr.clone()).unwrap_or_default(),
        agent,
        agent_healthy,
        name,
    }
}

/// What `podwire status` says on the node.
fn agent_status(state: &LabState, running: &Running, node: &str) -> (bool, Value) {
    match access::output_on(state, running, node, &["podwire", "status", "-o", "json"]) {
        Err(cause) => (false, Value::String(cause.to_string())),
        Ok(output) => {
            let text = String::from_utf8_lossy(if output.status.success() {
                &output.stdout
            } else {
                &output.stderr
            });
            let text = text.trim();
            let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
            (output.status.success(), value)
        }
    }
}

fn pod_row(pod: &Pod) -> PodRow {
    let status = pod.status.as_ref();
    let phase = status.and_then(|s| s.phase.clone()).unwrap_or_else(|| "Pending".into());
    PodRow {
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        node: pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default(),
        ip: status.and_then(|s| s.pod_ip.clone()).unwrap_or_default(),
        state: deploy::pod_trouble(pod).unwrap_or(phase),
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "lab {}: {}", self.lab, if self.healthy { "healthy" } else { "not healthy" })?;
        writeln!(f, "\n{:<12} {:<14} {:<16} {:<28} STATE", "MACHINE", "ROLE", "ADDRESS", "NAMESPACE")?;
        for m in &self.machines {
            writeln!(f, "{:<12} {:<14} {:<16} {:<28} {}", m.name, m.role, m.address, m.namespace, m.state)?;
        }
        if let Some(cause) = &self.api_server {
            return writeln!(f, "\nAPI server: {cause}");
        }
        writeln!(f, "\n{:<12} {:<18} {:<10} STATE", "NODE", "POD CIDR", "AGENT")?;
        for n in &self.nodes {
            let agent = if n.agent_healthy { "healthy" } else { "ill" };
            writeln!(f, "{:<12} {:<18} {:<10} {}", n.name, n.pod_cidr, agent, n.ready)?;
            if !n.agent_healthy {
                writeln!(
                    f,
                    "  agent: {}",
                    n.agent.as_str().map_or_else(|| n.agent.to_string(), str::to_owned)
                )?;
            }
        }
        writeln!(f, "\n{:<14} {:<36} {:<10} {:<16} STATE", "NAMESPACE", "POD", "NODE", "ADDRESS")?;
        for p in &self.pods {
            writeln!(f, "{:<14} {:<36} {:<10} {:<16} {}", p.namespace, p.name, p.node, p.ip, p.state)?;
        }
        writeln!(f, "\nlogs: {}/nodes/NODE/log/", self.state.display())
    }
}
