//! The node's own part of the pod network: its device `podwire_host`, its underlay device, its sysctls.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use ipnet::Ipv4Net;
use podwire_api::names::{HOST_DEVICE, HOST_DEVICE_PEER};

use crate::netlink::link::{self, Link, Settings, VethEnd};
use crate::netlink::{Netlink, NetlinkError, address};
use crate::wiring::host_net;

/// The node could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A sysctl could not be set.
    #[error("sysctl {name}={value}: {source}; the agent must run as root with a writable /proc/sys")]
    Sysctl {
        /// Its name.
        name: &'static str,
        /// What it should be.
        value: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// No device has the node's address.
    #[error(
        "no device of this node has its InternalIP {0}; correct the node's --node-ip, or name the device in the value `devices`"
    )]
    NoUnderlay(Ipv4Addr),
    /// A device that the values name does not exist.
    #[error("device {0:?} of the value `devices` does not exist on this node; correct the value")]
    NoSuchDevice(String),
}

/// A sysctl, the value that it needs, and why.
const SYSCTLS: [(&str, &str); 2] = [
    // The node forwards for its pods; bpf_fib_lookup refuses devices that do not forward.
    ("net.ipv4.ip_forward", "1"),
    // The stricter of this one and the device's own counts; pods' devices have none (see `wiring`).
    ("net.ipv4.conf.all.rp_filter", "0"),
];

/// Sets the sysctls of the calling thread's network namespace.
pub fn apply_sysctls() -> Result<(), HostError> {
    for (name, value) in SYSCTLS {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        let fail = |source| HostError::Sysctl { name, value, source };
        // Writing only what differs keeps a read-only /proc/sys good where the administrator has set it all.
        if fs::read_to_string(&path).map_err(fail)?.trim() != value {
            fs::write(&path, value).map_err(fail)?;
        }
    }
    Ok(())
}

/// Whether the kernel has IPv6.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// The device on the node's underlay and the subnets that it is directly on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// The device.
    pub link: Link,
    /// Its addresses with their subnets.
    pub subnets: Vec<Ipv4Net>,
}

/// Finds the underlay device: the one that `devices` names first, else the one that has the node's address.
pub fn find_underlay(
    netlink: &mut Netlink,
    node_ip: Ipv4Addr,
    devices: &[String],
) -> Result<Underlay, HostError> {
    let addresses = netlink.addresses()?;
    let links = netlink.links()?;
    let link = if let Some(name) = devices.first() {
        links.into_iter().find(|l| l.name == *name).ok_or_else(|| HostError::NoSuchDevice(name.clone()))?
    } else {
        let index = addresses.iter().find(|(_, a)| a.addr() == node_ip).map(|(i, _)| *i);
        links.into_iter().find(|l| Some(l.index) == index).ok_or(HostError::NoUnderlay(node_ip))?
    };
    let subnets = addresses.into_iter().filter(|(i, _)| *i == link.index).map(|(_, a)| a).collect();
    Ok(Underlay { link, subnets })
}

/// Makes `podwire_host` and its peer as they should be: up, without ARP, with the router addresses and no others, of the right MTU.
/// Returns the device and whether anything had to be changed.
pub fn ensure_host_device(
    netlink: &mut Netlink,
    routers: &[Ipv4Addr],
    mtu: u32,
) -> Result<(Link, bool), HostError> {
    let mut changed = false;
    let settings = Settings { no_ipv6_address: has_ipv6(), no_rp_filter: true };
    if netlink.link(HOST_DEVICE)?.is_none() {
        let end = |name| VethEnd { name, mac: None, netns: None };
        netlink.one(link::add_veth(end(HOST_DEVICE), end(HOST_DEVICE_PEER), mtu))?;
        for name in [HOST_DEVICE, HOST_DEVICE_PEER] {
            netlink.batch(link::configure(name, settings).into_iter().collect())?;
        }
        changed = true;
    }
    for name in [HOST_DEVICE, HOST_DEVICE_PEER] {
        let Some(now) = netlink.link(name)? else { continue };
        let mut ops = Vec::new();
        if now.mtu != mtu {
            ops.push(link::set_mtu(name, mtu));
        }
        // What is routed over the pair is handled by the program on it: nobody is there who could answer ARP.
        if !now.up || now.arp {
            ops.push(link::set_up_without_arp(name));
        }
        changed |= !ops.is_empty();
        netlink.batch(ops)?;
    }
    let link = netlink.link(HOST_DEVICE)?.ok_or_else(|| NetlinkError::Refused {
        what: format!("finding link {HOST_DEVICE}"),
        source: io::Error::from_raw_os_error(libc::ENODEV),
    })?;
    let wanted: Vec<Ipv4Net> = routers.iter().map(|ip| host_net(*ip)).collect();
    let addresses: Vec<Ipv4Net> =
        netlink.addresses()?.into_iter().filter(|(i, _)| *i == link.index).map(|(_, a)| a).collect();
    let mut ops = Vec::new();
    ops.extend(wanted.iter().filter(|a| !addresses.contains(a)).map(|a| address::add(link.index, *a)));
    ops.extend(addresses.into_iter().filter(|a| !wanted.contains(a)).map(|a| address::delete(link.index, a)));
    changed |= !ops.is_empty();
    netlink.batch(ops)?;
    Ok((link, changed))
}
