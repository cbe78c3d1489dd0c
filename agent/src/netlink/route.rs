//! IPv4 routes of the main table.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Netlink, NetlinkError, Op};

/// A unicast route as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelRoute {
    /// Destination.
    pub dst: Ipv4Net,
    /// Gateway.
    pub via: Option<Ipv4Addr>,
    /// Index of the device; none for multipath and special routes.
    pub oif: Option<u32>,
    /// Preferred source.
    pub src: Option<Ipv4Addr>,
    /// `scope link`.
    pub link_scope: bool,
    /// `rtm_protocol`.
    pub protocol: u8,
    /// Metric.
    pub metric: u32,
    /// Type of service.
    pub tos: u8,
    /// A unicast route (not blackhole, unreachable or the like).
    pub unicast: bool,
}

impl KernelRoute {
    /// A route with metric 0 through one device.
    pub fn new(dst: Ipv4Net, oif: u32, protocol: u8) -> Self {
        Self {
            dst,
            via: None,
            oif: Some(oif),
            src: None,
            link_scope: false,
            protocol,
            metric: 0,
            tos: 0,
            unicast: true,
        }
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = self.dst.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::from(self.protocol);
        message.header.scope = if self.link_scope { RouteScope::Link } else { RouteScope::Universe };
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(self.dst.network()))];
        message.attributes.extend(self.oif.map(RouteAttribute::Oif));
        message.attributes.extend(self.via.map(|ip| RouteAttribute::Gateway(RouteAddress::Inet(ip))));
        message.attributes.extend(self.src.map(|ip| RouteAttribute::PrefSource(RouteAddress::Inet(ip))));
        message
    }

    /// Adds it; refused by the kernel if a route with this destination and metric exists.
    pub fn add(&self) -> Op {
        Op {
            what: format!("adding route {}", self.dst),
            message: RouteNetlinkMessage::NewRoute(self.message()),
            flags: NLM_F_CREATE | NLM_F_EXCL,
        }
    }

    /// Puts it in the place of the route with this destination and metric.
    pub fn replace(&self) -> Op {
        Op {
            what: format!("replacing route {}", self.dst),
            message: RouteNetlinkMessage::NewRoute(self.message()),
            flags: NLM_F_CREATE | NLM_F_REPLACE,
        }
    }

    /// Deletes it; refused by the kernel if there is none just like it.
    pub fn delete(&self) -> Op {
        Op {
            what: format!("deleting route {}", self.dst),
            message: RouteNetlinkMessage::DelRoute(self.message()),
            flags: 0,
        }
    }

    fn read(message: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewRoute(message) = message else { return None };
        let header = &message.header;
        let table = message.attributes.iter().find_map(|a| match a {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        });
        if table.unwrap_or_else(|| header.table.into()) != u32::from(RouteHeader::RT_TABLE_MAIN) {
            return None;
        }
        let mut route = Self {
            dst: Ipv4Net::new(Ipv4Addr::UNSPECIFIED, header.destination_prefix_length).ok()?,
            via: None,
            oif: None,
            src: None,
            link_scope: header.scope == RouteScope::Link,
            protocol: header.protocol.into(),
            metric: 0,
            tos: header.tos,
            unicast: header.kind == RouteType::Unicast,
        };
        for attribute in message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => {
                    route.dst = Ipv4Net::new(ip, route.dst.prefix_len()).ok()?;
                }
                RouteAttribute::Gateway(RouteAddress::Inet(ip)) => route.via = Some(ip),
                RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => route.src = Some(ip),
                RouteAttribute::Oif(index) => route.oif = Some(index),
                RouteAttribute::Priority(metric) => route.metric = metric,
                _ => {}
            }
        }
        Some(route)
    }
}

impl Netlink {
    /// Every IPv4 route of the main table.
    pub fn routes(&mut self) -> Result<Vec<KernelRoute>, NetlinkError> {
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        request.header.table = RouteHeader::RT_TABLE_MAIN;
        let all = self.dump("listing routes", RouteNetlinkMessage::GetRoute(request))?;
        Ok(all.into_iter().filter_map(KernelRoute::read).collect())
    }
}
