//! IPv4 addresses of links.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Netlink, NetlinkError, Op};

fn message(index: u32, address: Ipv4Net) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    let ip = IpAddr::V4(address.addr());
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    message
}

/// Gives a link an address.
pub fn add(index: u32, address: Ipv4Net) -> Op {
    Op {
        what: format!("adding address {address}"),
        message: RouteNetlinkMessage::NewAddress(message(index, address)),
        flags: NLM_F_CREATE | NLM_F_EXCL,
    }
}

/// Takes an address from a link.
pub fn delete(index: u32, address: Ipv4Net) -> Op {
    Op {
        what: format!("deleting address {address}"),
        message: RouteNetlinkMessage::DelAddress(message(index, address)),
        flags: 0,
    }
}

impl Netlink {
    /// Every IPv4 address with the index of its link.
    pub fn addresses(&mut self) -> Result<Vec<(u32, Ipv4Net)>, NetlinkError> {
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet;
        let all = self.dump("listing addresses", RouteNetlinkMessage::GetAddress(request))?;
        Ok(all.into_iter().filter_map(read).collect())
    }
}

fn read(message: RouteNetlinkMessage) -> Option<(u32, Ipv4Net)> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let (mut local, mut address): (Option<Ipv4Addr>, Option<Ipv4Addr>) = (None, None);
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(ip)) => local = Some(ip),
            AddressAttribute::Address(IpAddr::V4(ip)) => address = Some(ip),
            _ => {}
        }
    }
    // A point-to-point link has its own address in Local and the peer's in Address.
    let ip = local.or(address)?;
    Some((message.header.index, Ipv4Net::new(ip, message.header.prefix_len).ok()?))
}
