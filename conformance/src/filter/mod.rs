//! A small filter language for captures, a subset of what tcpdump's users type:
//!
//! ```text
//! tcp | udp | icmp | arp | ip | ip6          the protocol
//! [src|dst] host ADDRESS                     an IPv4 or IPv6 address (of ARP: sender or target)
//! [src|dst] net ADDRESS/LEN                  a network
//! [src|dst] port NUMBER                      a TCP or UDP port
//! not E    E and E    E or E    (E)          also ! && ||
//! tcp port 80                                two side by side are both required
//! ```
//!
//! `not` binds tighter than `and`, `and` tighter than `or`. Only the outermost packet of an encapsulation is looked at.
//!
//! ```
//! use podwire_conformance::filter::Filter;
//! let filter: Filter = "icmp and not host 10.244.0.5".parse()?;
//! let error = "tcp port http".parse::<Filter>().unwrap_err();
//! assert_eq!(error.to_string(), "filter, column 10: a port number from 0 to 65535 is needed after \"port\", not \"http\"");
//! # Ok::<(), podwire_conformance::filter::FilterError>(())
//! ```

mod parse;

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

pub use parse::FilterError;

use crate::dissect::{Frame, Net, Transport};

/// A parsed filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    source: String,
    expression: Expression,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Expression {
    Not(Box<Expression>),
    And(Box<Expression>, Box<Expression>),
    Or(Box<Expression>, Box<Expression>),
    Protocol(Protocol),
    Address(Side, IpNet),
    Port(Side, u16),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
    Icmp,
    Arp,
    Ip,
    Ip6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Either,
    Source,
    Destination,
}

impl Side {
    fn holds<T>(self, source: T, destination: T, test: impl Fn(T) -> bool) -> bool {
        match self {
            Self::Either => test(source) || test(destination),
            Self::Source => test(source),
            Self::Destination => test(destination),
        }
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(source: &str) -> Result<Self, FilterError> {
        Ok(Self { source: source.to_owned(), expression: parse::parse(source)? })
    }
}

impl Filter {
    /// The expression as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the packet is wanted.
    pub fn matches(&self, frame: &Frame<'_>) -> bool {
        self.expression.matches(&Facts::of(frame))
    }
}

/// What a filter can ask about a packet.
struct Facts {
    protocol: Option<Protocol>,
    addresses: Option<(IpAddr, IpAddr)>,
    ports: Option<(u16, u16)>,
}

impl Facts {
    fn of(frame: &Frame<'_>) -> Self {
        let (family, addresses, transport) = match &frame.net {
            Net::Ipv4(ip) => {
                (Protocol::Ip, (ip.source.into(), ip.destination.into()), Some((ip.protocol, ip.transport())))
            }
            Net::Ipv6(ip) => (
                Protocol::Ip6,
                (ip.source.into(), ip.destination.into()),
                Some((ip.protocol, ip.transport())),
            ),
            Net::Arp(arp) => (Protocol::Arp, (arp.sender.into(), arp.target.into()), None),
            _ => return Self { protocol: None, addresses: None, ports: None },
        };
        let protocol = match transport.as_ref().map(|(number, _)| *number) {
            Some(6) => Protocol::Tcp,
            Some(17) => Protocol::Udp,
            Some(1) => Protocol::Icmp,
            _ => family,
        };
        let ports = transport.and_then(|(_, transport): (u8, Transport<'_>)| transport.ports());
        Self { protocol: Some(protocol), addresses: Some(addresses), ports }
    }
}

impl Expression {
    fn matches(&self, facts: &Facts) -> bool {
        match self {
            Self::Not(inner) => !inner.matches(facts),
            Self::And(a, b) => a.matches(facts) && b.matches(facts),
            Self::Or(a, b) => a.matches(facts) || b.matches(facts),
            Self::Protocol(wanted) => match wanted {
                Protocol::Ip => {
                    facts.protocol != Some(Protocol::Arp)
                        && facts.addresses.is_some_and(|(source, _)| source.is_ipv4())
                }
                Protocol::Ip6 => facts.addresses.is_some_and(|(source, _)| source.is_ipv6()),
                other => facts.protocol == Some(*other),
            },
            Self::Address(side, net) => {
                facts.addresses.is_some_and(|(a, b)| side.holds(a, b, |address| net.contains(&address)))
            }
            Self::Port(side, port) => {
                facts.ports.is_some_and(|(a, b)| side.holds(a, b, |found| found == *port))
            }
        }
    }
}

#[cfg(test)]
mod tests;
