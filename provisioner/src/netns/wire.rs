//! Links, addresses and routes, by netlink from inside the namespace that they belong to.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use futures::TryStreamExt;
use netlink_packet_route::link::{InfoBridge, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::{
    Handle, LinkBridge, LinkDummy, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};

use crate::error::{Failure, OrFailure};
use crate::plan::{Machine, Port, Switch, Sysctl};

/// Runs `work` with a netlink connection to the calling thread's namespace.
pub(super) fn with_netlink<T, F>(work: impl FnOnce(Handle) -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .or_failure("netlink", "free memory or file descriptors")?;
    runtime.block_on(async {
        let (connection, handle, _) =
            rtnetlink::new_connection().or_failure("netlink", "use a Linux kernel with rtnetlink")?;
        tokio::spawn(connection);
        work(handle).await
    })
}

/// Writes settings of the calling thread's network namespace.
pub(super) fn write_sysctls(sysctls: &[Sysctl]) -> Result<(), Failure> {
    for sysctl in sysctls {
        let path = Path::new("/proc/sys").join(sysctl.key.replace('.', "/"));
        if sysctl.optional && !path.exists() {
            continue;
        }
        let thing = format!("sysctl {}", sysctl.key);
        fs::write(&path, &sysctl.value).or_failure(thing, "mount /proc writable and run as root")?;
    }
    Ok(())
}

/// Makes a switch's bridge in the calling thread's namespace.
pub(super) async fn make_bridge(handle: &Handle, switch: &Switch) -> Result<(), Failure> {
    let thing = format!("link {} in {}", switch.bridge, switch.namespace);
    // No spanning tree and no snooping: a frame goes through at once, and only lab traffic is on the wire.
    let options = vec![InfoBridge::ForwardDelay(0), InfoBridge::MulticastSnooping(false)];
    let message = LinkBridge::new(&switch.bridge).set_info_data(InfoData::Bridge(options)).build();
    handle
        .link()
        .add(message)
        .execute()
        .await
        .or_failure(thing, "use a kernel with CONFIG_BRIDGE; see `lab doctor`")
}

/// Connects a machine to the switch in the calling thread's namespace: the machine's end is born in its namespace.
pub(super) async fn make_port(
    handle: &Handle,
    bridge: u32,
    port: &Port,
    machine: &OwnedFd,
) -> Result<(), Failure> {
    let thing = format!("link {} to {} of {}", port.name, port.device, port.namespace);
    let mac = parse_mac(&port.mac)
        .ok_or_else(|| Failure::new(&thing, "bad MAC address", "report this as a bug"))?;
    let mut peer: LinkMessage = LinkMessageBuilder::<LinkUnspec>::new().name(port.device.clone()).build();
    peer.attributes.push(LinkAttribute::Address(mac));
    peer.attributes.push(LinkAttribute::NetNsFd(machine.as_raw_fd()));
    let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(port.name.clone())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .controller(bridge)
        .up()
        .build();
    handle
        .link()
        .add(message)
        .execute()
        .await
        .or_failure(thing, "use a kernel with CONFIG_VETH; see `lab doctor`")
}

/// Removes a port, with the machine's end of it. A port that is not there is fine.
pub(super) async fn remove_port(handle: &Handle, port: &Port) -> Result<(), Failure> {
    let Some(index) = index_of(handle, &port.name).await else { return Ok(()) };
    match handle.link().del(index).execute().await {
        Err(e) if index_of(handle, &port.name).await.is_some() => {
            Err(Failure::new(format!("link {}", port.name), e, "take the lab down and up again"))
        }
        _ => Ok(()),
    }
}

/// The index of a link of the calling thread's namespace.
pub(super) async fn index_of(handle: &Handle, name: &str) -> Option<u32> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    links.try_next().await.ok().flatten().map(|l| l.header.index)
}

/// Makes a machine's own networks and gives it its addresses and routes, in the calling thread's namespace.
pub(super) async fn configure(handle: &Handle, machine: &Machine) -> Result<(), Failure> {
    let place = &machine.namespace;
    set_up(handle, "lo", place).await?;
    for device in &machine.own_networks {
        make_own_network(handle, device, place).await?;
    }
    for address in &machine.addresses {
        let thing = format!("address {} of {} in {place}", address.address, address.device);
        let index = set_up(handle, &address.device, place).await?;
        let net = address.address;
        handle
            .address()
            .add(index, net.addr().into(), net.prefix_len())
            .execute()
            .await
            .or_failure(thing, "take the lab down and up again")?;
    }
    for route in &machine.routes {
        let thing = format!("route {} via {} in {place}", route.to, route.via);
        let message = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(route.to.addr(), route.to.prefix_len())
            .gateway(route.via)
            .build();
        handle
            .route()
            .add(message)
            .execute()
            .await
            .or_failure(thing, "make the next hop a neighbour of the node")?;
    }
    Ok(())
}

/// A device with an address and nothing behind it. Not every kernel has dummy devices; a bridge without ports is one.
async fn make_own_network(handle: &Handle, device: &str, place: &str) -> Result<(), Failure> {
    let dummy = handle.link().add(LinkDummy::new(device).build()).execute().await;
    if dummy.is_ok() {
        return Ok(());
    }
    let thing = format!("link {device} in {place}");
    let bridge = LinkBridge::new(device).build();
    handle
        .link()
        .add(bridge)
        .execute()
        .await
        .or_failure(thing, "use a kernel with CONFIG_DUMMY or CONFIG_BRIDGE")
}

async fn set_up(handle: &Handle, device: &str, place: &str) -> Result<u32, Failure> {
    let thing = format!("link {device} in {place}");
    let mend = "take the lab down and up again";
    let index =
        index_of(handle, device).await.ok_or_else(|| Failure::new(&thing, "it is not there", mend))?;
    let message = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(message).execute().await.or_failure(thing, mend)?;
    Ok(index)
}

fn parse_mac(text: &str) -> Option<Vec<u8>> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|b| u8::from_str_radix(b, 16).ok()).collect();
    bytes.filter(|b| b.len() == 6)
}

/// Names of all devices of the calling thread's namespace.
pub fn device_names() -> Result<Vec<String>, Failure> {
    with_netlink(|handle| async move {
        let links: Vec<LinkMessage> =
            handle.link().get().execute().try_collect().await.or_failure("devices", "run as root")?;
        let name = |l: LinkMessage| {
            l.attributes.into_iter().find_map(|a| match a {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })
        };
        Ok(links.into_iter().filter_map(name).collect())
    })
}

/// Makes a bridge and a veth pair in the calling thread's namespace, to see whether this kernel can.
pub fn try_devices() -> Result<String, Failure> {
    with_netlink(|handle| async move {
        let mend = "use a kernel that has it";
        handle
            .link()
            .add(LinkBridge::new(crate::plan::BRIDGE).build())
            .execute()
            .await
            .or_failure("bridge", mend)?;
        handle.link().add(LinkVeth::new("a", "b").build()).execute().await.or_failure("veth", mend)?;
        Ok("can be made".to_owned())
    })
}
