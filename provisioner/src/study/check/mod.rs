//! The checks that a step can ask. Each answers with what it saw, so that a learner reads what is missing.

pub mod dns;
pub mod live;
mod state;

use ipnet::Ipv4Net;
use podwire_conformance::check::Expectation;
use serde::Deserialize;
use toml::Spanned;

use super::fact::{self, Fact};
use super::phrases;
use super::snapshot::{Needs, Snapshot};
use super::text::Text;

/// A typed question about the lab. In a file: `[[step.check]]`, then the check's name and its settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Check {
    /// The learner has answered a question right. The right answer is measured.
    Answer {
        /// The question.
        question: Text,
        /// The answer, made of facts.
        is: Spanned<String>,
    },
    /// ConfigMap podwire-config has a value.
    Config {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// Every agent runs with a value.
    AgentsRun {
        /// The key, as in the `ConfigMap`.
        key: String,
        /// Its value.
        value: String,
    },
    /// Every NodeNetwork (or that of one node) has pod CIDRs, all of them in a network.
    NodeNetworks {
        /// The network.
        within: Ipv4Net,
        /// Only this node's.
        #[serde(default)]
        node: Option<String>,
        /// Just one pod CIDR each.
        #[serde(default)]
        single: bool,
    },
    /// Every NodeNetwork has a pod CIDR in each of two networks.
    NodeNetworksBoth {
        /// One.
        new: Ipv4Net,
        /// The other.
        old: Ipv4Net,
    },
    /// There is no NodeNetwork of a node.
    NodeNetworkGone {
        /// The node.
        node: String,
    },
    /// All pods with a label are Ready and have addresses in a network.
    Pods {
        /// `key=value`.
        label: String,
        /// The network.
        within: Ipv4Net,
    },
    /// There is no pod with a label.
    NoPods {
        /// `key=value`.
        label: String,
    },
    /// A pod of namespace default runs on a node, with an address of the node's NodeNetwork.
    Pod {
        /// Its name.
        name: String,
        /// The node.
        on: String,
    },
    /// Every node has a route by eth1 and the owner's InternalIP to each other node's pod CIDRs, and these are in a network.
    Routes {
        /// The network.
        within: Ipv4Net,
    },
    /// No node has a route into a network.
    NoRoutes {
        /// The network.
        within: Ipv4Net,
    },
    /// curl-pod reaches every web server, which sees the pod's own address.
    Reach {},
    /// A capture in the study's directory proves native routing, or another expectation of `lab check`.
    Capture {
        /// Its name.
        file: String,
        /// The expectation; none for `native`.
        #[serde(default)]
        expect: Option<Expectation>,
    },
    /// A capture in the study's directory has an IPv4 packet from one address to another.
    Captured {
        /// Its name.
        file: String,
        /// The source, as it is or made of facts.
        from: Spanned<String>,
        /// The destination.
        to: Spanned<String>,
    },
    /// A capture has a question to a DNS server for a name.
    Asked {
        /// The capture's name.
        file: String,
        /// The name, without the dot at its end.
        name: String,
        /// No other name was asked for.
        #[serde(default)]
        only: bool,
    },
    /// A capture has packets, and none of them has an address.
    NotCaptured {
        /// Its name.
        file: String,
        /// The address, as it is or made of facts.
        address: Spanned<String>,
    },
    /// A capture shows a packet that loops, or proves that none does.
    Loop {
        /// Its name.
        file: String,
        /// What it must show.
        found: bool,
    },
    /// curl-pod gets an answer from a web server.
    Fetch {
        /// Where it is, as it is or made of facts.
        url: Spanned<String>,
    },
    /// `kubectl rollout restart` was typed for a workload of kube-system, and is through.
    Restarted {
        /// `deploy/NAME` or `ds/NAME`.
        workload: String,
    },
    /// The operator says that it cannot do something for a node.
    Complaint {
        /// The node.
        node: String,
        /// Words of it.
        words: String,
    },
    /// The operator has nothing to complain about.
    NoComplaint {},
    /// `lab measure` runs and writes a journal.
    Measuring {
        /// The journal's name, without its ending.
        file: String,
    },
    /// `lab measure` has ended; its journal has answers, and losses or none.
    Measured {
        /// The journal's name, without its ending.
        file: String,
        /// Whether calls were lost.
        lost: Lost,
    },
    /// Results of `lab compare` are there, of two modes.
    Compared {
        /// The file's name, without its ending.
        file: String,
    },
    /// A picture of measurements was drawn.
    Picture {
        /// Its name.
        file: String,
    },
}

/// Whether calls were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lost {
    /// None.
    None,
    /// At least one.
    Some,
}

/// What a check came to, and what it saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// It holds.
    pub held: bool,
    /// What it saw: a phrase of [`super::phrases`] and what fills its gaps.
    pub said: Said,
}

/// A phrase and what fills its gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The phrase.
    pub key: &'static str,
    /// Name and value of each gap.
    pub args: Vec<(&'static str, String)>,
}

impl Outcome {
    fn new(held: bool, key: &'static str, args: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        debug_assert!(phrases::exists(key), "{key} is no phrase");
        Self { held, said: Said { key, args: args.into_iter().collect() } }
    }
}

impl Check {
    /// Its name in files.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Answer { .. } => "answer",
            Self::Config { .. } => "config",
            Self::AgentsRun { .. } => "agents-run",
            Self::NodeNetworks { .. } => "node-networks",
            Self::NodeNetworksBoth { .. } => "node-networks-both",
            Self::NodeNetworkGone { .. } => "node-network-gone",
            Self::Pods { .. } => "pods",
            Self::NoPods { .. } => "no-pods",
            Self::Pod { .. } => "pod",
            Self::Routes { .. } => "routes",
            Self::NoRoutes { .. } => "no-routes",
            Self::Reach {} => "reach",
            Self::Capture { .. } => "capture",
            Self::Captured { .. } => "captured",
            Self::NotCaptured { .. } => "not-captured",
            Self::Asked { .. } => "asked",
            Self::Loop { .. } => "loop",
            Self::Fetch { .. } => "fetch",
            Self::Restarted { .. } => "restarted",
            Self::Complaint { .. } => "complaint",
            Self::NoComplaint {} => "no-complaint",
            Self::Measuring { .. } => "measuring",
            Self::Measured { .. } => "measured",
            Self::Compared { .. } => "compared",
            Self::Picture { .. } => "picture",
        }
    }

    /// Its settings that may be made of facts.
    pub fn with_facts(&self) -> Vec<&Spanned<String>> {
        match self {
            Self::Answer { is, .. } => vec![is],
            Self::Captured { from, to, .. } => vec![from, to],
            Self::NotCaptured { address, .. } => vec![address],
            Self::Fetch { url } => vec![url],
            _ => Vec::new(),
        }
    }

    fn facts(&self) -> impl Iterator<Item = Fact> {
        self.with_facts().into_iter().flat_map(|text| fact::of(text.get_ref()))
    }

    /// What has to be looked at.
    pub fn needs(&self) -> Needs {
        match self {
            Self::AgentsRun { .. } => Needs { agents: true, ..Needs::default() },
            Self::Routes { .. } | Self::NoRoutes { .. } => Needs { routes: true, ..Needs::default() },
            _ => self.facts().fold(Needs::default(), |needs, fact| needs | fact.needs()),
        }
    }

    /// True if pods have to be called.
    pub fn needs_calls(&self) -> bool {
        matches!(self, Self::Reach {}) || self.facts().any(|fact| fact.needs_calls())
    }

    /// What the lab's state alone answers; none for checks that have to look further.
    pub fn judge(&self, seen: &Snapshot) -> Option<Outcome> {
        state::judge(self, seen)
    }
}
