//! The kernel's side of one pod: a veth pair, the pod's address and routes, the node's route.
//!
//! The pod's end is made in the pod's namespace and configured by a thread that enters it; meanwhile the node's end gets
//! its program and its route. Whatever fails, the pair is deleted, and with it everything that hangs on it.

use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::thread;

use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, setns};
use podwire_api::names::ROUTE_PROTOCOL;

use crate::datapath_ops::Failure;
use crate::endpoint::{Endpoint, Mac};
use crate::netlink::link::{self, Link, Settings, VethEnd};
use crate::netlink::route::KernelRoute;
use crate::netlink::{Netlink, NetlinkError, Op, address};

/// IPv6 needs links of at least this MTU; the kernel has no IPv6 state for smaller ones.
const IPV6_MIN_MTU: u32 = 1280;

/// Why a pod could not be wired. Nothing is left of the attempt.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The container has an interface of this name already.
    #[error("the container has an interface {0:?} already")]
    InterfaceExists(String),
    /// The node has a device of this name already.
    #[error("the node has a device {0:?} already; delete it with: ip link delete {0}")]
    DeviceExists(String),
    /// A netlink request failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The namespace could not be entered.
    #[error("entering the container's network namespace failed: {0}")]
    Enter(nix::Error),
    /// A link that was just made is gone again.
    #[error("link {0} vanished while it was being configured; was the container deleted?")]
    Vanished(String),
    /// The thread that configures the container's end could not be started or died.
    #[error("the thread that configures the container's end {0}")]
    Thread(String),
    /// The datapath refused.
    #[error("datapath: {0}")]
    Datapath(Failure),
}

/// How the node wires its pods.
#[derive(Clone, Copy, Debug)]
pub struct Wiring {
    /// A /32 route to each pod on its device.
    pub endpoint_routes: bool,
    /// The kernel has IPv6.
    pub ipv6: bool,
}

impl Wiring {
    fn settings(self, mtu: u32, node_side: bool) -> Settings {
        Settings {
            no_ipv6_address: self.ipv6 && mtu >= IPV6_MIN_MTU,
            // The program on the device checks the source; the routing table points elsewhere without endpoint routes.
            no_rp_filter: node_side,
        }
    }

    /// Wires an endpoint; `host` is a socket in the node's namespace, `attach` gives the node's end (by index) to the
    /// datapath. Returns the index of the node's end.
    pub fn wire(
        self,
        host: &mut Netlink,
        endpoint: &Endpoint,
        netns: BorrowedFd<'_>,
        attach: impl FnOnce(u32) -> Result<(), Failure>,
    ) -> Result<u32, WireError> {
        let device = endpoint.key().device();
        let node_end = self.make_pair(host, endpoint, &device, netns)?;
        let outcome = thread::scope(|scope| {
            let pod_side = thread::Builder::new()
                .name("pod-side".into())
                .spawn_scoped(scope, || self.configure_pod(endpoint, netns))
                .map_err(|e| WireError::Thread(format!("could not be started: {e}")))?;
            let node_side = self.configure_node(host, endpoint, &node_end, attach);
            pod_side.join().map_err(|_| WireError::Thread("panicked".into()))??;
            node_side
        });
        if let Err(error) = outcome {
            if let Err(cause) = host.delete_link(&device) {
                tracing::error!("rolling back {device}: {cause}");
            }
            return Err(error);
        }
        Ok(node_end.index)
    }

    fn make_pair(
        self,
        host: &mut Netlink,
        endpoint: &Endpoint,
        device: &str,
        netns: BorrowedFd<'_>,
    ) -> Result<Link, WireError> {
        let key = endpoint.key();
        let near = VethEnd { name: device, mac: Some(key.node_mac()), netns: None };
        let far = VethEnd { name: &endpoint.ifname, mac: Some(key.pod_mac()), netns: Some(netns) };
        if let Err(error) = host.one(link::add_veth(near, far, endpoint.mtu)) {
            if !error.is_exists() {
                return Err(error.into());
            }
            return Err(match host.link(device)? {
                Some(_) => WireError::DeviceExists(device.into()),
                None => WireError::InterfaceExists(endpoint.ifname.clone()),
            });
        }
        let mut ops: Vec<Op> =
            link::configure(device, self.settings(endpoint.mtu, true)).into_iter().collect();
        ops.push(link::get(device));
        let configured = host.batch(ops);
        match configured.map(link::found) {
            Ok(Some(link)) => Ok(link),
            other => {
                if let Err(cause) = host.delete_link(device) {
                    tracing::error!("rolling back {device}: {cause}");
                }
                Err(other.err().map_or_else(|| WireError::Vanished(device.into()), WireError::from))
            }
        }
    }

    fn configure_node(
        self,
        host: &mut Netlink,
        endpoint: &Endpoint,
        node_end: &Link,
        attach: impl FnOnce(u32) -> Result<(), Failure>,
    ) -> Result<(), WireError> {
        // While the device is down: the kernel need not wait for packets in flight, and none passes without the program.
        attach(node_end.index).map_err(WireError::Datapath)?;
        host.one(link::set_up(&node_end.name))?;
        if self.endpoint_routes {
            match host.one(endpoint_route(endpoint.ip, node_end.index).add()) {
                // Somebody's own route to the address: it is not ours to touch, and the reconciler reports it.
                Err(e) if e.is_exists() => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    fn configure_pod(self, endpoint: &Endpoint, netns: BorrowedFd<'_>) -> Result<(), WireError> {
        let mut pod = enter(netns)?;
        let name = endpoint.ifname.as_str();
        let mut ops: Vec<Op> =
            link::configure(name, self.settings(endpoint.mtu, false)).into_iter().collect();
        ops.extend([link::set_up(name), link::set_up("lo"), link::get(name)]);
        let index = link::found(pod.batch(ops)?).ok_or_else(|| WireError::Vanished(name.into()))?.index;
        let mut to_gateway = KernelRoute::new(host_net(endpoint.gateway), index, libc::RTPROT_BOOT);
        to_gateway.link_scope = true;
        let mut default = KernelRoute::new(Ipv4Net::default(), index, libc::RTPROT_BOOT);
        default.via = Some(endpoint.gateway);
        pod.batch(vec![address::add(index, host_net(endpoint.ip)), to_gateway.add(), default.add()])?;
        Ok(())
    }
}

/// What a pod's namespace holds, for CHECK.
#[derive(Debug)]
pub struct PodSide {
    /// The interface.
    pub link: Option<Link>,
    /// Its addresses.
    pub addresses: Vec<Ipv4Net>,
    /// Where its default route goes.
    pub default_via: Option<Ipv4Addr>,
}

/// Looks into a pod's namespace.
pub fn inspect(netns: BorrowedFd<'_>, ifname: &str) -> Result<PodSide, WireError> {
    thread::scope(|scope| {
        let look = thread::Builder::new().name("pod-side".into()).spawn_scoped(scope, || {
            let mut pod = enter(netns)?;
            let Some(link) = pod.link(ifname)? else {
                return Ok(PodSide { link: None, addresses: Vec::new(), default_via: None });
            };
            let addresses =
                pod.addresses()?.into_iter().filter(|(i, _)| *i == link.index).map(|(_, a)| a).collect();
            let mut routes = pod.routes()?.into_iter();
            let default = routes.find(|r| r.dst.prefix_len() == 0 && r.oif == Some(link.index));
            Ok(PodSide { link: Some(link), addresses, default_via: default.and_then(|r| r.via) })
        });
        look.map_err(|e| WireError::Thread(format!("could not be started: {e}")))?
            .join()
            .map_err(|_| WireError::Thread("panicked".into()))?
    })
}

/// Moves the calling thread, which must end soon, into the namespace and opens a socket there.
fn enter(netns: BorrowedFd<'_>) -> Result<Netlink, WireError> {
    setns(netns, CloneFlags::CLONE_NEWNET).map_err(WireError::Enter)?;
    Ok(Netlink::open()?)
}

/// `IP/32 dev DEVICE proto kernel scope link`.
pub fn endpoint_route(ip: Ipv4Addr, ifindex: u32) -> KernelRoute {
    let mut route = KernelRoute::new(host_net(ip), ifindex, ROUTE_PROTOCOL);
    route.link_scope = true;
    route
}

/// The /32 of an address.
pub fn host_net(ip: Ipv4Addr) -> Ipv4Net {
    Ipv4Net::from(ip)
}

/// An address in the kernel's form for maps: network byte order as it stands in memory.
pub fn abi_ip(ip: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(ip.octets())
}

/// An endpoint as the datapath keeps it.
pub fn abi_endpoint(endpoint: &Endpoint, ifindex: u32, identity: u32) -> podwire_abi::Endpoint {
    let key = endpoint.key();
    let (Mac(pod_mac), Mac(node_mac)) = (key.pod_mac(), key.node_mac());
    podwire_abi::Endpoint { ifindex, id: endpoint.id, pod_mac, node_mac, pad: [0; 2], identity }
}
