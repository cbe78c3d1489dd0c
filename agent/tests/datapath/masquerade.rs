//! Which address is on the wire, beyond the native network and within it.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, TcpListener},
};

use podwire_abi::{DropReason, Point};
use podwire_agent::datapath::AttachMode;

use crate::{
    net::{Setup, TCX, inside, isolated, run_in, sh},
    outside::{COMPANY, PODS, ROUTER, ROUTER_IP, Tcp, ask, assert_no_drops, cluster, ip, udp},
    tap::{Tap, checksum, udp_frame},
};

fn setups() -> impl Iterator<Item = Setup> {
    [AttachMode::Tcx, AttachMode::Clsact]
        .into_iter()
        .flat_map(|mode| [true, false].map(|endpoint_routes| Setup { mode, endpoint_routes }))
}

/// The table of the course, row by row, with every protocol, by whom the server saw and by what was on the wire.
#[test]
fn the_source_on_the_wire_is_that_of_the_table() {
    for setup in setups() {
        isolated(|| {
            let cluster = cluster(setup, &[PODS]);
            let [one, two] = &cluster.nodes;
            let (a, c) = (one.pod(10), two.pod(10));
            for (netns, target, expected) in [
                (&c.netns as &str, c.ip, a.ip),
                (&two.name, two.ip(), a.ip),
                (ROUTER, ROUTER_IP, one.ip()),
                (ROUTER, COMPANY, one.ip()),
            ] {
                let what = format!("to {target} in {setup:?}");
                let mut wire = Tap::open("switch", "p1");
                let mut tcp = Tcp::open(&a.netns, (a.ip, 0), netns, target);
                assert_eq!(ip(tcp.seen), expected, "{what}");
                assert_eq!(
                    tcp.seen.port(),
                    tcp.client.local_addr().unwrap().port(),
                    "the port is free: {what}"
                );
                tcp.assert_alive(1 << 20);
                let (client, server) = (udp(&a.netns, a.ip, 0), udp(netns, target, 0));
                for size in [0, 1, 1472] {
                    assert_eq!(ip(ask(&client, &server, size)), expected, "{what}");
                }
                a.assert_reaches(target);
                let frames = wire.drain();
                let of_target: Vec<_> =
                    frames.iter().filter(|f| f.destination == target || f.source == target).collect();
                assert!(of_target.iter().any(|f| f.source == expected), "seen at all: {what}");
                for frame in of_target {
                    let other = if frame.destination == target { frame.source } else { frame.destination };
                    assert_eq!(other, expected, "{what}: {frame:?}");
                    assert!(frame.checksum_holds, "{what}: {frame:?}");
                }
            }
            assert_no_drops(one);
            assert_no_drops(two);
        });
    }
}

/// The native CIDR is left behind at an old pod CIDR: pods of other nodes see the node's address.
#[test]
fn another_nodes_pod_beyond_the_native_cidr_sees_the_nodes_address() {
    isolated(|| {
        let cluster = cluster(TCX, &[(Ipv4Addr::new(172, 20, 0, 0), 16)]);
        let [one, two] = &cluster.nodes;
        let (a, b, c) = (one.pod(10), one.pod(11), two.pod(10));
        let pod = podwire_abi::IpcacheEntry { identity: 1010, node_ip: podwire_abi::to_wire(two.ip()) };
        one.datapath.ipcache_upsert(c.ip.into(), pod).unwrap();
        let mut far = Tcp::open(&a.netns, (a.ip, 0), &c.netns, c.ip);
        assert_eq!(ip(far.seen), one.ip());
        far.assert_alive(100_000);
        let mut near = Tcp::open(&a.netns, (a.ip, 0), &b.netns, b.ip);
        assert_eq!(ip(near.seen), a.ip, "what does not leave the node is not masqueraded");
        near.assert_alive(10);
        a.assert_reaches(c.ip);
        assert_no_drops(one);
        assert_no_drops(two);
    });
}

/// Who asks a pod by its own address is answered by that address.
#[test]
fn answers_to_questions_from_outside_keep_the_pods_address() {
    for setup in setups() {
        isolated(|| {
            let cluster = cluster(setup, &[PODS]);
            let one = &cluster.nodes[0];
            let a = one.pod(10);
            sh("ip -n router route add 10.244.1.0/24 via 192.168.10.1");
            let mut tcp = Tcp::open(ROUTER, (COMPANY, 0), &a.netns, a.ip);
            assert_eq!(ip(tcp.seen), COMPANY);
            tcp.assert_alive(100_000);
            let (client, server) = (udp(ROUTER, COMPANY, 0), udp(&a.netns, a.ip, 0));
            for size in [100, 9000] {
                ask(&client, &server, size);
                let ping = format!("ping -n -c 2 -i 0.1 -W 5 -s {size} -I {COMPANY} {}", a.ip);
                let output = run_in(ROUTER, &ping);
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            }
            // The pod's own questions to the same server are masqueraded all the same.
            assert_eq!(ip(Tcp::open(&a.netns, (a.ip, 0), ROUTER, COMPANY).seen), one.ip());
            a.assert_reaches(COMPANY);
            assert_no_drops(one);
        });
    }
}

/// Two pods and the node itself talk to one server from one port.
#[test]
fn one_port_for_everybody() {
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let (a, b) = (one.pod(10), one.pod(11));
        let listener = inside(ROUTER, || TcpListener::bind((COMPANY, 0)).unwrap());
        let server = udp(ROUTER, COMPANY, 0);
        // The node comes last on one port, first on the other.
        for (port, order) in
            [(40_000, [&a.netns, &b.netns, &one.name]), (50_000, [&one.name, &a.netns, &b.netns])]
        {
            let own = |netns: &str| {
                [(&a.netns, a.ip), (&b.netns, b.ip), (&one.name, one.ip())]
                    .into_iter()
                    .find(|(name, _)| *name == netns)
                    .unwrap()
                    .1
            };
            let mut connections: Vec<Tcp> =
                order.iter().map(|netns| Tcp::open_to(netns, (own(netns), port), &listener)).collect();
            let sockets = order.map(|netns| udp(netns, own(netns), port));
            for _ in 0..2 {
                for tcp in &mut connections {
                    tcp.assert_alive(1000);
                }
                let seen: BTreeSet<_> = sockets.iter().map(|socket| ask(socket, &server, 10)).collect();
                assert_eq!(seen.len(), 3, "{seen:?}");
                assert!(seen.iter().all(|address| ip(*address) == one.ip()), "{seen:?}");
            }
            let seen: BTreeSet<_> = connections.iter().map(|tcp| tcp.seen).collect();
            assert_eq!(seen.len(), 3, "{seen:?}");
            assert_eq!(connections[0].seen.port(), port, "who comes first keeps the port");
            assert!(seen.iter().all(|s| s.port() == port || s.port() >= 32_768), "{seen:?}");
        }
        // So do echoes of one identifier.
        let pings: Vec<_> = [&a.netns, &b.netns, &one.name]
            .map(|netns| run_in(netns, &format!("ping -n -c 1 -W 5 -e 77 {COMPANY}")))
            .into();
        for output in &pings {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
        assert_no_drops(one);
    });
}

/// A server of the node keeps its port, although it has no connection yet.
#[test]
fn the_nodes_servers_keep_their_ports() {
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let a = one.pod(10);
        let _tcp = inside(&one.name, || TcpListener::bind("0.0.0.0:6443").unwrap());
        let _udp = udp(&one.name, Ipv4Addr::UNSPECIFIED, 6443);
        let mut connection = Tcp::open(&a.netns, (a.ip, 6443), ROUTER, COMPANY);
        assert!(connection.seen.port() >= 32_768, "{}", connection.seen);
        connection.assert_alive(100);
        let (client, server) = (udp(&a.netns, a.ip, 6443), udp(ROUTER, COMPANY, 0));
        assert!(ask(&client, &server, 100).port() >= 32_768);
        assert_no_drops(one);
    });
}

/// An answer to nothing does not leave with the pod's address.
#[test]
fn what_answers_nothing_is_dropped() {
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let a = one.pod(10);
        let mut events = one.events();
        let mut frame = udp_frame(a.endpoint.node_mac, a.endpoint.pod_mac, a.ip, COMPANY, 64);
        // An echo reply: protocol, checksum, then type 0 with its own checksum.
        frame[23] = 1;
        frame[24..26].copy_from_slice(&[0, 0]);
        let sum = checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame[34..46].copy_from_slice(&[0, 0, 0xff, 0xfd, 0, 1, 0, 1, 0, 0, 0, 0]);
        Tap::open(&a.netns, "eth0").send(&frame);
        let event = events.wait_for_drop(DropReason::UnknownConnection, a.ip);
        assert_eq!(event.point, Point::ToNetwork);
    });
}

/// What cannot be masqueraded does not leave.
#[test]
fn protocols_without_ports_are_dropped() {
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let a = one.pod(10);
        let mut events = one.events();
        let mut wire = Tap::open("switch", "p1");
        inside(&a.netns, || {
            use nix::sys::socket::{
                AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
            };
            use std::os::fd::AsRawFd;
            let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
                .unwrap();
            // A whole packet of protocol 253, which is for experiments (RFC 3692); the kernel fills in lengths and sums.
            let mut packet = vec![0x45, 0, 0, 24, 0, 0, 0, 0, 64, 253, 0, 0];
            packet.extend(a.ip.octets());
            packet.extend(COMPANY.octets());
            packet.extend([1, 2, 3, 4]);
            sendto(raw.as_raw_fd(), &packet, &SockaddrIn::new(10, 10, 1, 200, 0), MsgFlags::empty()).unwrap();
        });
        let event = events.wait_for_drop(DropReason::NatUnsupportedProtocol, a.ip);
        assert_eq!((event.point, event.endpoint_id), (Point::ToNetwork, 10));
        assert!(wire.drain().iter().all(|frame| frame.protocol != 253));
    });
}
