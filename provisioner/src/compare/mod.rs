//! `lab compare`: is it really faster? Two modes side by side, measured in turns in one run.

pub mod load;
pub mod overhead;
pub mod run;
pub mod show;
pub mod stats;

use std::fmt;

use serde::{Deserialize, Serialize};

/// How packets for other nodes' pods leave a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// As they are, by routes
    Native,
    /// Wrapped in VXLAN
    Vxlan,
}

impl Mode {
    /// Values for `lab up --set`.
    pub const fn values(self) -> &'static [&'static str] {
        match self {
            Self::Native => &[],
            Self::Vxlan => &["routingMode=tunnel", "tunnelProtocol=vxlan", "autoDirectNodeRoutes=false"],
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Native => "native",
            Self::Vxlan => "vxlan",
        })
    }
}

/// Whose programs speak with each other, each on a node of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ends {
    /// Pods.
    Pods,
    /// The nodes themselves: what the network between them can do.
    Nodes,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quantity {
    /// One TCP stream, in Gbit a second.
    Throughput,
    /// Half of all questions of 64 bytes are answered within so many microseconds.
    LatencyMedian,
    /// 99 of 100 are.
    LatencyTail,
    /// Connections a second, each with a byte of an answer, one after the other.
    Connections,
    /// CPU seconds of the whole machine for a GiB of the stream.
    CpuPerGib,
}

impl Quantity {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 5] =
        [Self::Throughput, Self::LatencyMedian, Self::LatencyTail, Self::Connections, Self::CpuPerGib];

    /// Name and unit.
    pub const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Throughput => ("throughput, one stream", "Gbit/s"),
            Self::LatencyMedian => ("latency, median", "us"),
            Self::LatencyTail => ("latency, 99th percentile", "us"),
            Self::Connections => ("connections", "a second"),
            Self::CpuPerGib => ("CPU for a GiB", "s"),
        }
    }

    /// Whether more is better.
    pub const fn more_is_better(self) -> bool {
        matches!(self, Self::Throughput | Self::Connections)
    }
}
