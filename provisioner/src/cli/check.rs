//! `lab check`: works on any capture, and knows more when a lab runs.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ipnet::Ipv4Net;
use podwire_conformance::check::{self, Context, Expectation, FlowHint, Report};
use podwire_conformance::report::{self, Lang};

use super::{Ended, print_text, runtime};
use crate::access::context_of;
use crate::error::{Failure, OrFailure};
use crate::state::StateRoot;

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
        if self.expect.needs_pods() && context.pod_cidrs.is_empty() {
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
            Some((state, running)) => runtime()?.block_on(context_of(&state, &running)),
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
