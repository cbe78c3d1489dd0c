//! `lab trace`: one flow, hop by hop.
//!
//! [`plan`] finds out who talks to whom, [`look`] what there is, [`run`] sends one probe while every interface on its way is tapped.
//! [`follow`] finds the probe's packets at each tap, whatever was rewritten or wrapped between them, [`explain`] says what came of
//! them and why, [`show`] prints it. All but `look` and `run` are pure.

pub mod evidence;
pub mod explain;
pub mod follow;
mod look;
mod monitor;
pub mod plan;
pub mod probe;
mod route;
pub mod run;
pub mod show;
pub mod sighting;
#[cfg(test)]
mod testing;
mod unseen;
mod why;
pub mod world;

use serde::Serialize;

/// What the probe speaks.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// A connection with one HTTP request.
    Tcp,
    /// One datagram.
    Udp,
    /// One ping.
    Icmp,
}

impl Protocol {
    /// Its number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Icmp => 1,
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Icmp => "ICMP",
        })
    }
}
