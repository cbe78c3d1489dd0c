//! `lab routes`: what the network team has to install, and what it costs when the cluster grows.

use std::fmt::Write;

use clap::Args;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use podwire_api::nodenetwork::NodeNetwork;

use super::{Ended, Format, Output, print_json, print_text, runtime};
use crate::access;
use crate::error::OrFailure;
use crate::routes::{self, Form, Projection};
use crate::state::StateRoot;

/// The routes to pods that a machine needs.
#[derive(Args)]
pub(super) struct Routes {
    /// The lab, where several run
    lab: Option<String>,
    /// The same
    #[arg(long = "lab", value_name = "LAB", conflicts_with = "lab", hide = true)]
    named: Option<String>,
    /// The machine that needs them
    #[arg(long = "for", value_name = "NODE", required_unless_present = "project")]
    machine: Option<String>,
    /// How they are written
    #[arg(long, value_enum, default_value_t = Form::Ip)]
    form: Form,
    /// Instead: what native routing costs at so many nodes, beside an overlay
    #[arg(long, value_name = "N", conflicts_with_all = ["machine", "form"],
          value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    project: Option<u64>,
    #[command(flatten)]
    format: Format,
}

impl Routes {
    pub(super) fn run(self) -> Result<(), Ended> {
        if let Some(nodes) = self.project {
            let projection = routes::project(nodes);
            return match self.format.output {
                Output::Json => print_json(&projection),
                Output::Text => {
                    print_text(&text(&projection));
                    Ok(())
                }
            };
        }
        let wanted = self.machine.unwrap_or_default();
        let (state, running) = StateRoot::from_env().pick(self.lab.or(self.named).as_deref())?;
        let Some(machine) = running.lab.node(&wanted) else {
            let names: Vec<&str> = running.lab.nodes.iter().map(|n| n.name.as_str()).collect();
            let known = names.join(", ");
            return Err(Ended::Wrong(format!(
                "--for {wanted:?}: there is no such node; the nodes are {known}"
            )));
        };
        let networks = runtime()?.block_on(async {
            let client = access::client(&state, &running, access::QUICK).await?;
            Api::<NodeNetwork>::all(client)
                .list(&ListParams::default())
                .await
                .or_failure("NodeNetworks", "see: lab status")
        })?;
        let cidrs: Vec<_> =
            networks.items.iter().map(|n| (n.name_any(), n.spec.ipam.pod_cidrs.clone())).collect();
        let (found, unreachable) = routes::pod_routes(&running.lab, machine, &cidrs);
        match self.format.output {
            Output::Json => print_json(&found)?,
            Output::Text => print_text(&routes::write(&found, self.form)),
        }
        for node in &unreachable {
            eprintln!(
                "{wanted} has no way to {node}: neither a subnet in common nor a static route to its address"
            );
        }
        if unreachable.is_empty() { Ok(()) } else { Err(Ended::Code(1)) }
    }
}

fn text(projection: &Projection) -> String {
    let mut text = format!(
        "route table entries for pods at {} nodes, each with one pod CIDR\n\n{:<24} {:>10} {:>10}\n",
        projection.nodes, "", "native", "overlay"
    );
    let rows = [
        ("on each node", projection.native_on_node, projection.overlay_on_node),
        ("on a router between them", projection.native_on_router, projection.overlay_on_router),
    ];
    for (label, native, overlay) in rows {
        let _ = writeln!(text, "{label:<24} {native:>10} {overlay:>10}"); // a String takes everything
    }
    text += "\nwhere the router is a cloud's route table (quotas change: read them anew)\n";
    for limit in &projection.limits {
        let fits = if limit.fits { "fits" } else { "does not fit" };
        let _ = writeln!(text, "{:<32} {:>6}  {fits}", limit.table, limit.entries);
    }
    text
}
