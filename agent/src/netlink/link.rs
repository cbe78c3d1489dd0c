//! Links: make, find, configure, delete.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{DefaultNla, NLA_F_NESTED, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};

use super::{Netlink, NetlinkError, Op};
use crate::endpoint::Mac;

/// What we read of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// It asks for its neighbours' MACs.
    pub arp: bool,
    /// Its MAC.
    pub mac: Option<Mac>,
}

impl Link {
    fn read(message: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewLink(message) = message else { return None };
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            arp: !message.header.flags.contains(LinkFlags::Noarp),
            mac: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
                _ => {}
            }
        }
        Some(link)
    }
}

/// One end of a veth to be made.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its MAC; the kernel's choice if none.
    pub mac: Option<Mac>,
    /// The network namespace in which it is made; that of the socket if none.
    pub netns: Option<BorrowedFd<'a>>,
}

impl VethEnd<'_> {
    fn attributes(&self, mtu: u32) -> Vec<LinkAttribute> {
        let mut attributes = vec![LinkAttribute::IfName(self.name.to_owned()), LinkAttribute::Mtu(mtu)];
        attributes.extend(self.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        attributes.extend(self.netns.map(|fd| LinkAttribute::NetNsFd(fd.as_raw_fd())));
        attributes
    }
}

/// Makes a veth pair, both ends down. The far end is made in its namespace at once: moving it there later would make the
/// kernel wait for every packet in flight.
pub fn add_veth(near: VethEnd<'_>, far: VethEnd<'_>, mtu: u32) -> Op {
    let mut peer = LinkMessage::default();
    peer.attributes = far.attributes(mtu);
    let mut message = LinkMessage::default();
    message.attributes = near.attributes(mtu);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    Op {
        what: format!("making veth {} with peer {}", near.name, far.name),
        message: RouteNetlinkMessage::NewLink(message),
        flags: NLM_F_CREATE | NLM_F_EXCL,
    }
}

fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

/// Asks for one link by name.
pub fn get(name: &str) -> Op {
    Op { what: format!("finding link {name}"), message: RouteNetlinkMessage::GetLink(named(name)), flags: 0 }
}

/// Sets a link up.
pub fn set_up(name: &str) -> Op {
    set_flags(name, LinkFlags::Up)
}

/// Sets a link up, without ARP: neighbours on it need no MAC.
pub fn set_up_without_arp(name: &str) -> Op {
    set_flags(name, LinkFlags::Up | LinkFlags::Noarp)
}

fn set_flags(name: &str, flags: LinkFlags) -> Op {
    let mut message = named(name);
    message.header.flags = flags;
    message.header.change_mask = flags;
    Op { what: format!("setting {name} up"), message: RouteNetlinkMessage::SetLink(message), flags: 0 }
}

/// Sets a link's MTU.
pub fn set_mtu(name: &str, mtu: u32) -> Op {
    let mut message = named(name);
    message.attributes.push(LinkAttribute::Mtu(mtu));
    Op {
        what: format!("setting the MTU of {name} to {mtu}"),
        message: RouteNetlinkMessage::SetLink(message),
        flags: 0,
    }
}

/// Settings of a link that would otherwise be files under /proc/sys.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Give the link no IPv6 link-local address, so it stays silent (no router solicitations, no MLD reports).
    pub no_ipv6_address: bool,
    /// `rp_filter=0`: no check of sources by the routing table.
    pub no_rp_filter: bool,
}

/// `IFLA_INET_CONF` and `IPV4_DEVCONF_RP_FILTER` of linux/if_link.h and linux/ip.h.
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_RP_FILTER: u16 = 8;

/// Applies settings to a link; nothing if there are none.
pub fn configure(name: &str, settings: Settings) -> Option<Op> {
    let mut families = Vec::new();
    if settings.no_rp_filter {
        // One nested attribute: length 8, type RP_FILTER, value 0. (The typed form of the message leaves zeroes out.)
        let mut value = Vec::with_capacity(8);
        value.extend_from_slice(&8_u16.to_ne_bytes());
        value.extend_from_slice(&IPV4_DEVCONF_RP_FILTER.to_ne_bytes());
        value.extend_from_slice(&0_u32.to_ne_bytes());
        families.push(AfSpecUnspec::Inet(vec![AfSpecInet::Other(DefaultNla::new(
            IFLA_INET_CONF | NLA_F_NESTED,
            value,
        ))]));
    }
    if settings.no_ipv6_address {
        families.push(AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]));
    }
    if families.is_empty() {
        return None;
    }
    let mut message = named(name);
    message.attributes.push(LinkAttribute::AfSpecUnspec(families));
    Some(Op { what: format!("configuring {name}"), message: RouteNetlinkMessage::SetLink(message), flags: 0 })
}

/// Deletes a link (a veth's other end goes with it).
pub fn delete(name: &str) -> Op {
    Op { what: format!("deleting link {name}"), message: RouteNetlinkMessage::DelLink(named(name)), flags: 0 }
}

/// The link in the answers to [`get`].
pub fn found(answers: Vec<RouteNetlinkMessage>) -> Option<Link> {
    answers.into_iter().find_map(Link::read)
}

impl Netlink {
    /// Finds a link by name.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        match self.one(get(name)) {
            Ok(answers) => Ok(found(answers)),
            Err(e) if e.is_absent() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All links.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let all = self.dump("listing links", RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(all.into_iter().filter_map(Link::read).collect())
    }

    /// Deletes a link; it may be gone already.
    pub fn delete_link(&mut self, name: &str) -> Result<(), NetlinkError> {
        match self.one(delete(name)) {
            Err(e) if !e.is_absent() => Err(e),
            _ => Ok(()),
        }
    }
}
