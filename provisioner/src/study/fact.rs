//! What prose and commands may say of the lab: `{node.k8s-w1.ip}` stands for what is measured when the line is printed.

use std::ops::Range;
use std::path::Path;

use clap::ValueEnum;

use super::check::live::Reached;
use super::snapshot::{Needs, Snapshot};
use crate::compare::Mode;
use crate::compare::run::Results;
use crate::measure::journal::Journal;
use crate::measure::summary::Summary;

/// One thing that can be measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// `cluster-cidr`: out of which the controller manager gives.
    ClusterCidr,
    /// `node.N.ip`: InternalIP.
    NodeIp(String),
    /// `node.N.pod-cidr`: the Node's own `spec.podCIDR`.
    NodePodCidr(String),
    /// `node.N.network`: the pod CIDRs of its NodeNetwork.
    NodeNetwork(String),
    /// `node.N.router`: its address in the pod network.
    NodeRouter(String),
    /// `complaint.N`: what the operator says that it cannot do for the node.
    Complaint(String),
    /// `config.KEY`: of ConfigMap podwire-config.
    Config(String),
    /// `agent.KEY`: with which the control plane's agent runs.
    Agent(String),
    /// `pod.NAME.ip`.
    PodIp(String),
    /// `pod.NAME.device`: the node's end of its veth pair.
    PodDevice(String),
    /// `service.NAME.ip`: a Service's `ClusterIP`; `service.NAMESPACE/NAME.ip` of another namespace than default.
    ServiceIp(String),
    /// `service.NAME.node-port`: its port on every node.
    NodePort(String),
    /// `webpod.NODE.ip`: of the web server on a node.
    WebIp(String),
    /// `way.MACHINE.NODE`: the device by which a machine sends to the web server on a node.
    Way(String, String),
    /// `answering`: how many web servers answer curl-pod.
    Answering,
    /// `source`: the source address that the web server on another node sees of curl-pod.
    Source,
    /// `ttl.NODE`: of the answer to a ping of the web server on a node.
    Ttl(String),
    /// `compare.FILE.MODE.mtu`: pods' MTU, of results of `lab compare` in the study's directory.
    ComparedMtu(String, Mode),
    /// `compare.FILE.MODE.headers`: bytes of headers of each packet.
    ComparedHeaders(String, Mode),
    /// `measure.FILE.lost`: of a journal in the study's directory.
    Lost(String),
    /// `measure.FILE.answered`.
    Answered(String),
    /// `measure.FILE.outage`: seconds from the first loss to the last.
    Outage(String),
}

/// What must be known to measure facts.
pub struct Known<'a> {
    /// The lab's state.
    pub snapshot: &'a Snapshot,
    /// What calls from curl-pod found, if any fact asks for it.
    pub reached: Option<&'a [Reached]>,
    /// Where journals are.
    pub directory: &'a Path,
}

impl Known<'_> {
    fn results(&self, file: &str) -> Option<Results> {
        Results::read(&self.directory.join(format!("{file}.json"))).ok()
    }
}

fn mode(word: &str) -> Option<Mode> {
    Mode::from_str(word, false).ok()
}

impl Fact {
    /// Reads the text between the braces.
    pub fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split('.').collect();
        let own = |word: &str| word.to_owned();
        Some(match words.as_slice() {
            ["cluster-cidr"] => Self::ClusterCidr,
            ["answering"] => Self::Answering,
            ["source"] => Self::Source,
            ["node", node, "ip"] => Self::NodeIp(own(node)),
            ["node", node, "pod-cidr"] => Self::NodePodCidr(own(node)),
            ["node", node, "network"] => Self::NodeNetwork(own(node)),
            ["node", node, "router"] => Self::NodeRouter(own(node)),
            ["complaint", node] => Self::Complaint(own(node)),
            ["config", key] => Self::Config(own(key)),
            ["agent", key] => Self::Agent(own(key)),
            ["pod", name, "ip"] => Self::PodIp(own(name)),
            ["pod", name, "device"] => Self::PodDevice(own(name)),
            ["service", name, "ip"] => Self::ServiceIp(own(name)),
            ["service", name, "node-port"] => Self::NodePort(own(name)),
            ["webpod", node, "ip"] => Self::WebIp(own(node)),
            ["way", machine, node] => Self::Way(own(machine), own(node)),
            ["ttl", node] => Self::Ttl(own(node)),
            ["compare", file, mode, "mtu"] => Self::ComparedMtu(own(file), self::mode(mode)?),
            ["compare", file, mode, "headers"] => Self::ComparedHeaders(own(file), self::mode(mode)?),
            ["measure", file, "lost"] => Self::Lost(own(file)),
            ["measure", file, "answered"] => Self::Answered(own(file)),
            ["measure", file, "outage"] => Self::Outage(own(file)),
            _ => return None,
        })
    }

    /// What has to be looked at.
    pub fn needs(&self) -> Needs {
        Needs {
            agents: matches!(self, Self::Agent(_)),
            routes: matches!(self, Self::PodDevice(_) | Self::Way(..)),
            processes: matches!(self, Self::ClusterCidr),
        }
    }

    /// True if pods have to be called.
    pub fn needs_calls(&self) -> bool {
        matches!(self, Self::Answering | Self::Source | Self::Ttl(_))
    }

    /// What it is now; none if it cannot be known now.
    pub fn measure(&self, known: &Known<'_>) -> Option<String> {
        let seen = known.snapshot;
        match self {
            Self::ClusterCidr => seen.cluster_cidr.clone(),
            Self::NodeIp(node) => seen.nodes.get(node)?.ip.map(|ip| ip.to_string()),
            Self::NodePodCidr(node) => seen.nodes.get(node)?.pod_cidr.map(|c| c.to_string()),
            Self::NodeNetwork(node) => {
                let cidrs: Vec<String> =
                    seen.networks.get(node)?.cidrs.iter().map(ToString::to_string).collect();
                (!cidrs.is_empty()).then(|| cidrs.join(", "))
            }
            Self::NodeRouter(node) => seen.networks.get(node)?.router.map(|ip| ip.to_string()),
            Self::Complaint(node) => {
                Some(&seen.networks.get(node)?.complaint).filter(|c| !c.is_empty()).cloned()
            }
            Self::Config(key) => seen.config.get(key).cloned(),
            Self::Agent(key) => {
                let control_plane = seen.agents.iter().find(|(node, _)| node.ends_with("ctr"));
                control_plane.or_else(|| seen.agents.iter().next())?.1.get(key).cloned()
            }
            Self::PodIp(name) => seen.pod(name)?.ip.map(|ip| ip.to_string()),
            Self::PodDevice(name) => {
                let pod = seen.pod(name)?;
                let own = ipnet::Ipv4Net::new(pod.ip?, 32).ok();
                seen.routes.get(&pod.node)?.iter().find(|r| r.to() == own).map(|r| r.dev.clone())
            }
            Self::ComparedMtu(file, mode) => {
                known.results(file)?.of(*mode).map(|measured| measured.mtu.to_string())
            }
            Self::ComparedHeaders(file, mode) => {
                known.results(file)?.of(*mode).map(|measured| measured.headers.all.to_string())
            }
            Self::ServiceIp(name) => seen.services.get(name).map(|service| service.ip.to_string()),
            Self::NodePort(name) => seen.services.get(name)?.node_port.map(|port| port.to_string()),
            Self::WebIp(node) => {
                let web = seen.labelled("app=webpod").find(|p| p.node == *node)?;
                web.ip.map(|ip| ip.to_string())
            }
            Self::Way(machine, node) => {
                let web = seen.labelled("app=webpod").find(|p| p.node == *node)?;
                seen.way(machine, web.ip?).map(str::to_owned)
            }
            Self::Answering => Some(known.reached?.iter().filter(|r| r.answered()).count().to_string()),
            Self::Source => known.reached?.iter().filter(|r| r.elsewhere).find_map(Reached::source),
            Self::Ttl(node) => {
                known.reached?.iter().find(|r| r.node == *node)?.ttl.map(|ttl| ttl.to_string())
            }
            Self::Lost(file) => summary(known, file).map(|s| s.count.lost.to_string()),
            Self::Answered(file) => summary(known, file).map(|s| s.count.answered.to_string()),
            Self::Outage(file) => summary(known, file).map(|s| s.outage_seconds()),
        }
    }
}

fn summary(known: &Known<'_>, file: &str) -> Option<Summary> {
    let journal = Journal::read(&known.directory.join(format!("{file}.jsonl"))).ok()?;
    Some(Summary::of(file, &journal))
}

/// What stands in braces and could be a fact: its place in the text, and its words.
pub fn gaps(text: &str) -> Vec<(Range<usize>, &str)> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(open) = text[from..].find('{').map(|at| from + at) {
        let inside = &text[open + 1..];
        let length =
            inside.find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || "-./".contains(c)));
        if let Some(length) = length
            && length > 0
            && inside[length..].starts_with('}')
            && inside.as_bytes()[0].is_ascii_lowercase()
        {
            found.push((open..open + length + 2, &inside[..length]));
            from = open + length + 2;
        } else {
            from = open + 1;
        }
    }
    found
}

/// The facts of a text.
pub fn of(text: &str) -> impl Iterator<Item = Fact> + '_ {
    gaps(text).into_iter().filter_map(|(_, words)| Fact::parse(words))
}

/// Fills the facts in; `unknown` stands for what cannot be measured now. What is no fact stays as it is: commands have
/// braces of their own.
pub fn fill(text: &str, known: &Known<'_>, unknown: &str) -> String {
    let mut filled = String::with_capacity(text.len());
    let mut from = 0;
    for (place, words) in gaps(text) {
        let Some(fact) = Fact::parse(words) else { continue };
        filled.push_str(&text[from..place.start]);
        filled.push_str(&fact.measure(known).unwrap_or_else(|| unknown.to_owned()));
        from = place.end;
    }
    filled.push_str(&text[from..]);
    filled
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::NodeSeen;
    use super::*;

    #[test]
    fn braces_of_other_languages_are_no_gaps() {
        let found: Vec<&str> =
            gaps(r#"{range .items[*]}{.metadata.name}{"\n"}{end} a={10.0.0.0/8} {node.a.ip}"#)
                .into_iter()
                .map(|(_, words)| words)
                .collect();
        assert_eq!(found, ["end", "node.a.ip"]);
        assert!(Fact::parse("end").is_none());
    }

    #[test]
    fn facts_are_filled_in_with_what_is_so_now() {
        let mut snapshot = Snapshot::default();
        snapshot.nodes.insert("a".into(), NodeSeen { ip: "10.0.0.1".parse().ok(), pod_cidr: None });
        let known = Known { snapshot: &snapshot, reached: None, directory: Path::new("/nonexistent") };
        assert_eq!(fill("{node.a.ip}, {node.a.pod-cidr}, {end}", &known, "?"), "10.0.0.1, ?, {end}");
    }
}
