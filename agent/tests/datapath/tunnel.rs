//! Packets between nodes, wrapped in VXLAN.

use std::net::Ipv4Addr;

use podwire_abi::{DropReason, IpcacheEntry, NodeConfig, Point, identity, to_wire};
use podwire_agent::{
    datapath::{AttachMode, Datapath},
    netlink::Netlink,
    overlay,
};

use crate::{
    net::{Cluster, Node, Pod, Setup, TCX, ifindex, inside, isolated, sh},
    outside::{self, COMPANY, ROUTER, Tcp, ask, assert_no_drops, ip, udp},
    takeover::without_loss,
    tap::{Frame, Tap},
};

const PORT: u16 = 8472;
const MTU: u32 = 1450;

fn setups() -> impl Iterator<Item = Setup> {
    [AttachMode::Tcx, AttachMode::Clsact]
        .into_iter()
        .flat_map(|mode| [true, false].map(|endpoint_routes| Setup { mode, endpoint_routes }))
}

/// Two nodes with a tunnel between them, which masquerade whatever leaves it.
pub fn cluster(setup: Setup) -> Cluster {
    let cluster = outside::cluster(setup, &[]);
    let [one, two] = &cluster.nodes;
    for (node, peer) in [(one, two), (two, one)] {
        start_tunnel(node, peer);
    }
    cluster
}

/// What an agent does with `routingMode=tunnel`.
fn start_tunnel(node: &Node, peer: &Node) {
    let (n, p) = (node.number, peer.number);
    let commands = [
        format!("link set podwire_host mtu {MTU}"),
        format!("route replace 10.244.{n}.1 dev podwire_host scope link"),
        format!("route replace 10.244.{p}.0/24 via 10.244.{n}.1 dev podwire_host src 10.244.{n}.1"),
    ];
    for command in commands {
        sh(&format!("ip -n {} {command}", node.name));
    }
    let remote = |identity| IpcacheEntry { identity, node_ip: to_wire(peer.ip()) };
    let known = |net: String, identity| {
        node.datapath.ipcache_upsert(net.parse().unwrap(), remote(identity)).unwrap();
    };
    known(format!("10.244.{p}.0/24"), identity::UNMANAGED);
    known(format!("10.244.{p}.1/32"), identity::REMOTE_NODE);
    known(format!("192.168.10.{p}/32"), identity::REMOTE_NODE);
    inside(&node.name, || {
        let device = overlay::ensure(&mut Netlink::open().unwrap(), PORT, MTU).unwrap();
        let own = Ipv4Addr::new(10, 244, n, 0);
        let config = NodeConfig::new(node.ip(), node.router_ip(), [(own, 24)]).masquerading([]);
        node.datapath.set_config(config.tunnelling(device.index, MTU)).unwrap();
        node.datapath.attach_host_device(nix::net::if_::if_nametoindex("podwire_host").unwrap()).unwrap();
        node.datapath.attach_overlay_device(device.index, MTU).unwrap();
        node.datapath.attach_masquerade(node.eth1).unwrap();
    });
}

/// A pod as it is made in a tunnel.
pub fn pod(node: &Node, host: u8) -> Pod {
    let pod = node.pod(host);
    sh(&format!("ip -n {} link set eth0 mtu {MTU}", pod.netns));
    sh(&format!("ip -n {} link set {} mtu {MTU}", node.name, pod.device));
    pod
}

/// Every packet between pods was wrapped, from node to node, with the identity of who sent it.
fn assert_wrapped(frames: &[Frame], a: (&Pod, &Node), c: (&Pod, &Node)) {
    let mut seen = [0, 0];
    for frame in frames {
        let of_pods = |f: &Frame| [a.0.ip, c.0.ip].iter().any(|ip| f.source == *ip || f.destination == *ip);
        assert!(!of_pods(frame), "plain on the wire: {frame:?}");
        let Some((vni, inner)) = frame.in_vxlan() else { continue };
        let forth = inner.source == a.0.ip;
        let (from, to) = if forth { (a, c) } else { (c, a) };
        assert_eq!((inner.source, inner.destination), (from.0.ip, to.0.ip));
        assert_eq!((frame.source, frame.destination), (from.1.ip(), to.1.ip()), "outer: {frame:?}");
        assert_eq!(vni, from.0.endpoint.identity);
        assert!(frame.checksum_holds && inner.checksum_holds, "{frame:?}");
        seen[usize::from(forth)] += 1;
    }
    assert!(seen[0] > 0 && seen[1] > 0, "the positive control: {seen:?}");
}

#[test]
fn pods_of_different_nodes_talk_through_the_tunnel() {
    for setup in setups() {
        isolated(|| {
            let cluster = cluster(setup);
            let [one, two] = &cluster.nodes;
            let (a, b, mut c) = (pod(one, 10), pod(one, 11), pod(two, 10));
            c.endpoint.identity = 4711;
            two.datapath.update_endpoint(c.ip, c.endpoint).unwrap();
            let mut wire = Tap::open("switch", "p2");
            let (answered, text) = a.ping(&format!("-c 1 -W 5 -M do -s 1422 {}", c.ip));
            assert!(answered && text.contains("ttl=63"), "one router on the way: {setup:?} {text}");
            let mut tcp = Tcp::open(&a.netns, (a.ip, 0), &c.netns, c.ip);
            assert_eq!(ip(tcp.seen), a.ip);
            tcp.assert_alive(1 << 20);
            let (client, server) = (udp(&a.netns, a.ip, 0), udp(&c.netns, c.ip, 0));
            for size in [0, 1, 1422, 9000] {
                assert_eq!(ip(ask(&client, &server, size)), a.ip, "{setup:?} {size}");
            }
            assert_wrapped(&wire.drain(), (&a, one), (&c, two));
            // Within the node nothing is wrapped.
            let (_, text) = a.ping(&format!("-c 1 -W 5 {}", b.ip));
            assert!(text.contains("ttl=63"), "{setup:?} {text}");
            assert!(wire.drain().iter().all(|f| f.in_vxlan().is_none()));
            assert_no_drops(one);
            assert_no_drops(two);
            assert!(one.counted(Point::ToOverlay, DropReason::None) > 0);
        });
    }
}

/// The node has no route for pods but the one to podwire_host: it sends from its router address, and is answered there. Another
/// node is reached without the tunnel, in the own node's name.
#[test]
fn nodes_reach_pods_and_pods_reach_nodes() {
    for setup in setups() {
        isolated(|| {
            let cluster = cluster(setup);
            let [one, two] = &cluster.nodes;
            let (a, c) = (pod(one, 10), pod(two, 10));
            let mut wire = Tap::open("switch", "p2");
            let tcp = Tcp::open(&one.name, (Ipv4Addr::UNSPECIFIED, 0), &c.netns, c.ip);
            assert_eq!(ip(tcp.seen), one.router_ip());
            let request = wire.wait_for("the node's", |f| f.source == one.ip() && f.in_vxlan().is_some());
            assert_eq!(request.in_vxlan().unwrap().0, identity::HOST);
            // A node that sends from its own address is answered at that address, by the pod's.
            let mut tcp = Tcp::open(&one.name, (one.ip(), 0), &c.netns, c.ip);
            assert_eq!(ip(tcp.seen), one.ip());
            tcp.assert_alive(100_000);
            let mut tcp = Tcp::open(&a.netns, (a.ip, 0), &two.name, two.ip());
            assert_eq!(ip(tcp.seen), one.ip(), "the network between need not know the way to pods");
            tcp.assert_alive(100_000);
            let mut tcp = Tcp::open(&a.netns, (a.ip, 0), &two.name, two.router_ip());
            assert_eq!(ip(tcp.seen), a.ip, "the other node's address among the pods' is behind the tunnel");
            tcp.assert_alive(100_000);
            let mut tcp = Tcp::open(&a.netns, (a.ip, 0), ROUTER, COMPANY);
            assert_eq!(ip(tcp.seen), one.ip());
            tcp.assert_alive(100_000);
            assert_no_drops(one);
            assert_no_drops(two);
        });
    }
}

/// A pod that was made for 1500 bytes is told that the tunnel takes less.
#[test]
fn what_does_not_fit_is_answered_or_fragmented() {
    for endpoint_routes in [true, false] {
        isolated(|| {
            let cluster = cluster(Setup { endpoint_routes, ..TCX });
            let [one, two] = &cluster.nodes;
            let (old, new, c) = (one.pod(10), pod(one, 11), pod(two, 10));
            let mut events = one.events();
            let (_, text) = new.ping(&format!("-c 1 -W 5 -M do -s 1472 {}", c.ip));
            assert!(
                text.to_lowercase().contains("message too long, mtu=1450"),
                "its own kernel says so: {text}"
            );
            let (_, text) = old.ping(&format!("-c 1 -W 5 -M do -s 1472 {}", c.ip));
            assert!(text.contains("mtu = 1450") || text.contains("mtu=1450"), "{text}");
            let event = events.wait_for_drop(DropReason::FragmentationNeeded, old.ip);
            assert_eq!(event.flow.unwrap().destination, c.ip);
            sh(&format!("ip -n {} route flush cache", old.netns));
            let mut wire = Tap::open("switch", "p2");
            let (answered, text) = old.ping(&format!("-c 1 -W 5 -M dont -s 1472 {}", c.ip));
            assert!(answered, "{text}");
            let piece = |f: &Frame| f.in_vxlan().is_some_and(|(_, i)| i.source == old.ip && i.offset > 0);
            let piece = wire.wait_for("the second piece", piece);
            assert_eq!(
                piece.in_vxlan().unwrap().0,
                old.endpoint.identity,
                "the stack's pieces are the pod's"
            );
            assert!(wire.drain().iter().all(|f| f.offset == 0), "the outer packet is whole");
            sh(&format!("ip -n {} route flush cache", old.netns));
            let mut tcp = Tcp::open(&old.netns, (old.ip, 0), &c.netns, c.ip);
            tcp.assert_alive(1 << 20);
        });
    }
}

#[test]
fn what_no_node_has_and_what_expires_is_told() {
    isolated(|| {
        let cluster = cluster(TCX);
        let [one, two] = &cluster.nodes;
        let (a, c) = (pod(one, 10), pod(two, 10));
        let (mut at_one, mut at_two) = (one.events(), two.events());
        let (_, text) = a.ping(&format!("-c 1 -W 5 -t 1 {}", c.ip));
        assert!(
            text.contains(&format!("From {} icmp_seq=1 Time to live exceeded", two.router_ip())),
            "{text}"
        );
        assert_eq!(at_two.wait_for_drop(DropReason::TtlExceeded, a.ip).point, Point::FromOverlay);
        assert!(!a.ping("-c 1 -W 1 10.244.2.77").0);
        assert_eq!(at_two.wait_for_drop(DropReason::StaleOrUnroutable, a.ip).point, Point::FromOverlay);
        // The other node is forgotten, but the route is there still.
        one.datapath.ipcache_delete("10.244.2.0/24".parse().unwrap()).unwrap();
        assert!(!a.ping(&format!("-c 1 -W 1 {}", c.ip)).0);
        assert_eq!(at_one.wait_for_drop(DropReason::NoTunnelEndpoint, a.ip).point, Point::FromHost);
    });
}

/// As the agent does it, there and back, pods with both MTUs staying; the second start finds the device as it is.
#[test]
fn a_node_goes_to_the_tunnel_and_back() {
    isolated(|| {
        let cluster = outside::cluster(TCX, &[outside::PODS]);
        let [one, two] = &cluster.nodes;
        let (a, c) = (one.pod(10), two.pod(10));
        a.assert_reaches(c.ip);
        start_tunnel(one, two);
        start_tunnel(two, one);
        let young = pod(one, 11);
        let mut wire = Tap::open("switch", "p2");
        for pod in [&a, &young] {
            pod.assert_reaches(c.ip);
        }
        assert_wrapped(
            &wire
                .drain()
                .into_iter()
                .filter(|f| {
                    f.in_vxlan().is_none_or(|(_, i)| i.source != young.ip && i.destination != young.ip)
                })
                .collect::<Vec<_>>(),
            (&a, one),
            (&c, two),
        );
        let before = ifindex("node1", "podwire_vxlan");
        start_tunnel(one, two);
        assert_eq!(ifindex("node1", "podwire_vxlan"), before);
        for (node, peer) in [(one, two), (two, one)] {
            sh(&format!(
                "ip -n {} route replace 10.244.{}.0/24 via {} dev eth1",
                node.name,
                peer.number,
                peer.ip()
            ));
            node.configure();
            node.datapath.detach_overlay_devices().unwrap();
            inside(&node.name, || overlay::remove(&mut Netlink::open().unwrap()).unwrap());
        }
        let mut wire = Tap::open("switch", "p2");
        for pod in [&a, &young] {
            pod.assert_reaches(c.ip);
        }
        assert!(wire.drain().iter().all(|f| f.in_vxlan().is_none()));
        let links = sh("ip -n node1 -o link show");
        assert!(!links.contains("vxlan"), "{links}");
        assert!(
            !one.datapath.attachments().unwrap().iter().any(|(hook, _)| hook.program() == "from_overlay")
        );
    });
}

#[test]
fn restarts_cost_no_packet() {
    for mode in [AttachMode::Tcx, AttachMode::Clsact] {
        isolated(|| {
            let mut cluster = cluster(Setup { mode, ..TCX });
            let (a, c) = (pod(&cluster.nodes[0], 10), pod(&cluster.nodes[1], 10));
            let count = without_loss(&a, &c, || {
                for round in 0..8 {
                    let node = &mut cluster.nodes[round % 2];
                    node.datapath =
                        inside(&node.name, || Datapath::open_in(&node.pin_dir, node.setup.mode).unwrap());
                    let [one, two] = &cluster.nodes;
                    let (node, peer) = if round % 2 == 0 { (one, two) } else { (two, one) };
                    start_tunnel(node, peer);
                }
            });
            assert!(count > 2000, "{count}");
        });
    }
}

#[test]
fn a_port_that_is_taken_is_told_with_its_mend() {
    isolated(|| {
        let cluster = outside::cluster(TCX, &[]);
        let node = &cluster.nodes[0].name;
        sh(&format!(
            "ip -n {node} link add flannel.1 type vxlan id 1 dstport 8472 local 192.168.10.1 nolearning"
        ));
        sh(&format!("ip -n {node} link set flannel.1 up"));
        let ensure = |port| inside(node, || overlay::ensure(&mut Netlink::open().unwrap(), port, MTU));
        let told = ensure(PORT).map_err(|e| e.to_string());
        let told = told.unwrap_err();
        assert!(told.contains("8472") && told.contains("write another tunnelPort"), "{told}");
        let device = ensure(4789).unwrap();
        assert_eq!((device.mtu, device.up), (MTU, true));
        assert_eq!(ensure(4789).unwrap(), device);
        // A device of that name that is none of ours in its settings is replaced.
        sh(&format!("ip -n {node} link delete flannel.1"));
        assert_ne!(ensure(PORT).unwrap().index, device.index);
        let shown = sh(&format!("ip -n {node} -d link show podwire_vxlan"));
        assert!(shown.contains("external") && shown.contains("dstport 8472"), "{shown}");
    });
}
