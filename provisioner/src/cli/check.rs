//! `lab check`: works on any capture, and knows more when a lab runs.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt};
use podwire_api::values::IpamMode;
use podwire_conformance::check::{self, Context, Expectation, FlowHint, Report};
use podwire_conformance::report::{self, Lang};

use super::{Ended, print_text};
use crate::error::{Failure, OrFailure};
use crate::state::{LabState, Running, StateRoot};

/// Ask a capture file.
#[derive(Args)]
pub(super) struct Check {
    /// pcap or pcapng files, taken together
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What the network should have done
    #[arg(long, default_value = "native", value_name = "EXPECTATION")]
    expect: Expectation,
    /// A network of pod addresses; default: that of the running lab
    #[arg(long = "pod-cidr", value_name = "CIDR")]
    pod_cidrs: Vec<Ipv4Net>,
    /// An address of a node; default: those of the running lab
    #[arg(long = "node", value_name = "NAME=IP", value_parser = node_address)]
    nodes: Vec<(String, Ipv4Addr)>,
    /// A flow that was sent and must be seen, for example 10.244.0.5,10.244.1.7:80
    #[arg(long = "flow", value_name = "SRC,DST[:PORT]")]
    flows: Vec<FlowHint>,
    /// Write report.json, junit.xml, report.md and index.html there
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Language of the report
    #[arg(long, default_value = "en")]
    lang: Lang,
    /// The lab that the capture is from, where several run
    #[arg(long)]
    lab: Option<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Form::Text)]
    output: Form,
}

/// Forms of a report on standard output.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// For reading
    Text,
    /// For programs
    Json,
    /// For CI
    Junit,
    /// For a pull request
    Markdown,
}

fn node_address(text: &str) -> Result<(String, Ipv4Addr), String> {
    let (name, ip) = text.split_once('=').ok_or("write NAME=IP, for example k8s-ctr=192.168.10.100")?;
    let ip = ip
        .parse()
        .map_err(|_| format!("{ip:?} is no IPv4 address; write for example {name}=192.168.10.100"))?;
    Ok((name.to_owned(), ip))
}

impl Check {
    pub(super) fn run(self) -> Result<(), Ended> {
        let mut context = self.context()?;
        context.flows.extend(&self.flows);
        if context.pod_cidrs.is_empty() {
            let message = "check: the pods' addresses are not known; give --pod-cidr 10.244.0.0/16, or --lab where several labs run";
            return Err(Ended::Wrong(message.into()));
        }
        let report =
            check::run(&self.files, self.expect, &context).map_err(|e| Ended::Wrong(e.to_string()))?;
        print_report(&report, self.output, self.lang)?;
        if let Some(directory) = &self.report {
            write_report(&report, directory, self.lang)?;
        }
        match report.exit_code() {
            0 => Ok(()),
            code => Err(Ended::Code(u8::try_from(code).unwrap_or(1))),
        }
    }

    /// What is given on the command line, else what the running lab knows.
    fn context(&self) -> Result<Context, Ended> {
        let root = StateRoot::from_env();
        let found = if self.lab.is_some() {
            Some(root.pick(self.lab.as_deref())?)
        } else if self.pod_cidrs.is_empty() {
            root.pick(None).ok()
        } else {
            None
        };
        let mut context = match found {
            Some((state, running)) => context_of(&state, &running),
            None => Context::default(),
        };
        if !self.pod_cidrs.is_empty() {
            context.pod_cidrs.clone_from(&self.pod_cidrs);
            context.node_pod_cidrs.clear();
        }
        for (name, ip) in &self.nodes {
            context.nodes.entry(name.clone()).or_default().push(*ip);
        }
        Ok(context)
    }
}

/// Prints a report on standard output.
pub(super) fn print_report(report: &Report, form: Form, lang: Lang) -> Result<(), Failure> {
    let bug = "report this as a bug";
    print_text(&match form {
        Form::Text => report::text(report, lang),
        Form::Json => report::json(report).or_failure("report", bug)?,
        Form::Junit => report::junit(report).or_failure("report", bug)?,
        Form::Markdown => report::markdown(report, lang),
    });
    Ok(())
}

/// Writes a report in every form and says where.
pub(super) fn write_report(report: &Report, directory: &std::path::Path, lang: Lang) -> Result<(), Failure> {
    let thing = format!("report {}", directory.display());
    let page = report::write_all(report, directory, lang).or_failure(thing, "give a writable directory")?;
    eprintln!("report: {}", page.display());
    Ok(())
}

/// What is known of a running lab's network. What only its API server knows is left out if that does not answer.
pub(super) fn context_of(state: &LabState, running: &Running) -> Context {
    let lab = &running.lab;
    let mut context = Context {
        title: Some(lab.name.clone()),
        pod_cidrs: vec![lab.kubernetes.pod_cidr],
        service_cidrs: vec![lab.kubernetes.service_cidr],
        ..Context::default()
    };
    if let Ok(values) = lab.typed_values()
        && values.ipam.mode == IpamMode::ClusterPool
    {
        context.pod_cidrs.extend(values.ipam.operator.pod_cidr_list);
    }
    for node in &lab.nodes {
        let addresses = node.interfaces.iter().map(|i| i.address.addr());
        let own = node.networks.iter().map(|n| n.address.addr());
        context.nodes.insert(node.name.clone(), addresses.chain(own).collect());
    }
    // Best effort: a capture can be checked after its cluster is gone.
    if let Ok(live) = live(state, running) {
        add_live(&mut context, &live.0, &live.1);
    }
    context
}

fn live(state: &LabState, running: &Running) -> Result<(Vec<Node>, Vec<Pod>), Failure> {
    super::runtime()?.block_on(async {
        let client = super::cluster::client(state, running, Duration::from_secs(2)).await?;
        let params = kube::api::ListParams::default();
        let (nodes, pods) = (Api::<Node>::all(client.clone()), Api::<Pod>::all(client));
        let (nodes, pods) = futures::try_join!(nodes.list(&params), pods.list(&params))
            .or_failure("API server", "see its log on the node")?;
        Ok((nodes.items, pods.items))
    })
}

fn add_live(context: &mut Context, nodes: &[Node], pods: &[Pod]) {
    for node in nodes {
        let name = node.name_any();
        let cidrs: Vec<Ipv4Net> = node
            .spec
            .iter()
            .flat_map(|s| s.pod_cidrs.iter().flatten().chain(&s.pod_cidr))
            .filter_map(|c| c.parse().ok())
            .collect();
        // The router address, the first of a node's pod CIDR, is the node's and no pod's.
        let router = cidrs.iter().filter_map(|c| c.hosts().next());
        context.nodes.entry(name.clone()).or_default().extend(router);
        let entry = context.node_pod_cidrs.entry(name).or_default();
        for cidr in cidrs {
            if !entry.contains(&cidr) {
                entry.push(cidr);
            }
        }
    }
    for pod in pods.iter().filter(|p| p.spec.as_ref().is_none_or(|s| s.host_network != Some(true))) {
        let ip = pod.status.as_ref().and_then(|s| s.pod_ip.as_ref()).and_then(|ip| ip.parse().ok());
        if let Some(ip) = ip {
            let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
            context.pod_names.insert(ip, name);
        }
    }
}
