//! The tunnel's device: a vxlan device of the agent's own, which takes the other node and the network identifier of each
//! packet from the programs.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use podwire_api::names::VXLAN_DEVICE;

use crate::host::has_ipv6;
use crate::netlink::link::{self, Link, Settings};
use crate::netlink::{Netlink, NetlinkError, Op};

/// What pods' MTU has less than the underlay's: outer IPv4 (20), UDP (8), VXLAN (8) and the inner Ethernet header (14).
pub const OVERHEAD: u32 = 50;

/// There is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// The kernel cannot make such a device.
    #[error(
        "making {VXLAN_DEVICE}: {0}; this kernel has no VXLAN: load module vxlan (CONFIG_VXLAN), or write routingMode=native"
    )]
    NoVxlan(NetlinkError),
    /// Somebody else has the port.
    #[error(
        "UDP port {port} for {VXLAN_DEVICE}: {source}; another program or vxlan device of this node has the port (ss -lun, ip \
         -d link show type vxlan): end it, or write another tunnelPort on every node"
    )]
    PortTaken {
        /// The port.
        port: u16,
        /// The kernel's answer.
        source: NetlinkError,
    },
    /// The kernel refused something else.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// Makes the device as it should be: up, on the port, of the MTU, silent. One that is so already is not touched, so packets
/// flow on while an agent starts.
pub fn ensure(netlink: &mut Netlink, port: u16, mtu: u32) -> Result<Link, OverlayError> {
    if let Some(present) = attributes(netlink)?
        && !fits(&present, port)
    {
        netlink.delete_link(VXLAN_DEVICE)?;
    }
    if netlink.link(VXLAN_DEVICE)?.is_none() {
        netlink.one(add(port, mtu)).map_err(|cause| refused(cause, port))?;
        // The programs check sources; replies to the node itself take another device than what they answer.
        let settings = Settings { no_ipv6_address: has_ipv6(), no_rp_filter: true };
        netlink.batch(link::configure(VXLAN_DEVICE, settings).into_iter().collect())?;
    }
    let mut now = found(netlink)?;
    if now.mtu != mtu {
        netlink.one(link::set_mtu(VXLAN_DEVICE, mtu))?;
        now.mtu = mtu;
    }
    if !now.up {
        // The port is opened here, not when the device is made.
        netlink.one(link::set_up(VXLAN_DEVICE)).map_err(|cause| refused(cause, port))?;
        now.up = true;
    }
    Ok(now)
}

/// Takes the device away. It may be gone already.
pub fn remove(netlink: &mut Netlink) -> Result<(), OverlayError> {
    Ok(netlink.delete_link(VXLAN_DEVICE)?)
}

fn found(netlink: &mut Netlink) -> Result<Link, NetlinkError> {
    netlink.link(VXLAN_DEVICE)?.ok_or_else(|| NetlinkError::Refused {
        what: format!("finding link {VXLAN_DEVICE}"),
        source: std::io::Error::from_raw_os_error(libc::ENODEV),
    })
}

fn refused(cause: NetlinkError, port: u16) -> OverlayError {
    match cause.errno() {
        Some(libc::EOPNOTSUPP) => OverlayError::NoVxlan(cause),
        Some(libc::EADDRINUSE | libc::EEXIST) => OverlayError::PortTaken { port, source: cause },
        _ => cause.into(),
    }
}

/// `ip link add podwire_vxlan type vxlan external dstport PORT nolearning`.
fn add(port: u16, mtu: u32) -> Op {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(VXLAN_DEVICE.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(vec![
                InfoVxlan::CollectMetadata(true),
                InfoVxlan::Learning(false),
                InfoVxlan::Port(port),
            ])),
        ]),
    ];
    Op {
        what: format!("making {VXLAN_DEVICE}"),
        message: RouteNetlinkMessage::NewLink(message),
        flags: NLM_F_CREATE | NLM_F_EXCL,
    }
}

/// What the kernel says of the device's kind; none if there is no such device.
fn attributes(netlink: &mut Netlink) -> Result<Option<Vec<LinkInfo>>, NetlinkError> {
    let answers = match netlink.one(link::get(VXLAN_DEVICE)) {
        Err(cause) if cause.is_absent() => return Ok(None),
        other => other?,
    };
    let info = answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(message) => {
            Some(message.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::LinkInfo(info) => Some(info),
                _ => None,
            }))
        }
        _ => None,
    });
    Ok(info.map(Option::unwrap_or_default))
}

/// Whether the device is one of ours on this port. What cannot be changed of a device is looked at only.
fn fits(info: &[LinkInfo], port: u16) -> bool {
    info.iter().any(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => {
            data.contains(&InfoVxlan::CollectMetadata(true)) && data.contains(&InfoVxlan::Port(port))
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_device_of_ours_on_the_port_is_kept() {
        let vxlan = |data| vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))];
        let ours = vxlan(vec![InfoVxlan::Id(0), InfoVxlan::Port(8472), InfoVxlan::CollectMetadata(true)]);
        assert!(fits(&ours, 8472));
        assert!(!fits(&ours, 4789));
        let flannels =
            vxlan(vec![InfoVxlan::Id(1), InfoVxlan::Port(8472), InfoVxlan::CollectMetadata(false)]);
        assert!(!fits(&flannels, 8472));
        assert!(!fits(&[LinkInfo::Kind(InfoKind::Veth)], 8472));
    }
}
