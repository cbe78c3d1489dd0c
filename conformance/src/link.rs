//! Link types: how the first bytes of a captured packet are to be read.

use std::fmt;

/// What a packet of an interface begins with. Numbers are the LINKTYPE registry's of the pcap formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkType {
    /// BSD loopback (0): address family in the writer's byte order, then the packet.
    Null,
    /// Ethernet (1).
    Ethernet,
    /// Raw IPv4 or IPv6 (101; 12 and 14 in old files).
    Raw,
    /// OpenBSD loopback (108): address family in network byte order.
    Loop,
    /// Linux cooked capture version 1 (113): `tcpdump -i any` of old.
    LinuxSll,
    /// Raw IPv4 (228).
    Ipv4,
    /// Raw IPv6 (229).
    Ipv6,
    /// Linux cooked capture version 2 (276): `tcpdump -i any` of today.
    LinuxSll2,
    /// A link type that is not dissected here.
    Other(u16),
}

impl LinkType {
    /// The type for a number from a file header.
    pub fn from_number(number: u16) -> Self {
        match number {
            0 => Self::Null,
            1 => Self::Ethernet,
            12 | 14 | 101 => Self::Raw,
            108 => Self::Loop,
            113 => Self::LinuxSll,
            228 => Self::Ipv4,
            229 => Self::Ipv6,
            276 => Self::LinuxSll2,
            other => Self::Other(other),
        }
    }

    /// The number to write into a file header.
    pub fn number(self) -> u16 {
        match self {
            Self::Null => 0,
            Self::Ethernet => 1,
            Self::Raw => 101,
            Self::Loop => 108,
            Self::LinuxSll => 113,
            Self::Ipv4 => 228,
            Self::Ipv6 => 229,
            Self::LinuxSll2 => 276,
            Self::Other(number) => number,
        }
    }

    /// Whether [`crate::dissect::dissect`] reads packets of this type.
    pub fn is_supported(self) -> bool {
        !matches!(self, Self::Other(_))
    }
}

impl fmt::Display for LinkType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("BSD loopback"),
            Self::Ethernet => f.write_str("Ethernet"),
            Self::Raw => f.write_str("raw IP"),
            Self::Loop => f.write_str("OpenBSD loopback"),
            Self::LinuxSll => f.write_str("Linux cooked"),
            Self::Ipv4 => f.write_str("raw IPv4"),
            Self::Ipv6 => f.write_str("raw IPv6"),
            Self::LinuxSll2 => f.write_str("Linux cooked v2"),
            Self::Other(number) => write!(f, "link type {number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_a_round_trip() {
        for number in [0, 1, 101, 108, 113, 228, 229, 276, 105, 65535] {
            assert_eq!(LinkType::from_number(number).number(), number);
        }
        assert!(!LinkType::from_number(105).is_supported());
        assert_eq!(LinkType::from_number(12), LinkType::Raw);
    }
}
