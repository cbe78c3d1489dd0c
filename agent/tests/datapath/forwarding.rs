//! What is forwarded, and how it looks on the wire and at its end.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use podwire_abi::{DropReason, Point};
use podwire_agent::datapath::{AttachMode, L4};

use crate::{
    net::{Cluster, PATIENCE, Pod, Setup, TCX, inside, isolated, run_in, sh},
    tap::Tap,
};

/// Every way in which a node can be set up.
fn setups() -> impl Iterator<Item = Setup> {
    [AttachMode::Tcx, AttachMode::Clsact]
        .into_iter()
        .flat_map(|mode| [true, false].map(|endpoint_routes| Setup { mode, endpoint_routes }))
}

/// Sends a megabyte each way over one TCP connection.
fn tcp(from: &Pod, to: &Pod) {
    let listener = inside(&to.netns, || TcpListener::bind((to.ip, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let sent: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, peer) = listener.accept().unwrap();
            assert_eq!(peer.ip(), from.ip, "the server sees the client's own address");
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut received = vec![0; sent.len()];
            stream.read_exact(&mut received).unwrap();
            stream.write_all(&received).unwrap();
        });
        inside(&from.netns, || {
            let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(&sent).unwrap();
            let mut received = vec![0; sent.len()];
            stream.read_exact(&mut received).unwrap();
            assert!(received == sent, "the bytes came back changed");
        });
    });
}

/// Sends one datagram of a size, which is fragmented if it is large, and takes it back.
fn udp(from: &Pod, to: &Pod, size: usize) {
    let server = inside(&to.netns, || UdpSocket::bind((to.ip, 0)).unwrap());
    let client = inside(&from.netns, || UdpSocket::bind((from.ip, 0)).unwrap());
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let sent: Vec<u8> = (0..size).map(|i| (i % 253) as u8).collect();
    let mut buffer = vec![0; 65_536];
    client.send_to(&sent, server.local_addr().unwrap()).unwrap();
    let (length, peer) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(peer, client.local_addr().unwrap(), "the server sees the client's own address");
    assert!(buffer[..length] == sent, "the datagram came changed");
    server.send_to(&buffer[..length], peer).unwrap();
    let (length, peer) = client.recv_from(&mut buffer).unwrap();
    assert_eq!((length, peer), (size, server.local_addr().unwrap()));
}

fn everything_passes(setup: Setup) {
    isolated(|| {
        let cluster = Cluster::new(setup);
        let [one, two] = &cluster.nodes;
        let (a, b, c) = (one.pod(10), one.pod(11), two.pod(10));
        for (from, to) in [(&a, &b), (&a, &c), (&c, &b)] {
            from.assert_reaches(to.ip);
            tcp(from, to);
            for size in [1, 1472, 1473, 9000, 60_000] {
                udp(from, to, size);
            }
        }
        // A pod and its node, its node's other addresses, and the other node.
        for ip in [one.router_ip(), one.ip(), two.ip(), two.router_ip()] {
            a.assert_reaches(ip);
        }
        for (node, ip) in [(one, a.ip), (one, c.ip), (two, b.ip)] {
            let output = run_in(&node.name, &format!("ping -n -c 1 -W 5 {ip}"));
            assert!(output.status.success(), "{} does not reach {ip}: {setup:?}", node.name);
        }
        assert!(one.counted(Point::ToEndpoint, DropReason::None) > 0);
        assert!(one.counted(Point::ToNetwork, DropReason::None) > 0);
        let drops: Vec<_> =
            one.datapath.metrics().unwrap().into_iter().filter(|(_, r, _)| *r != DropReason::None).collect();
        assert_eq!(drops, [], "{setup:?}");
    });
}

#[test]
fn tcp_udp_fragments_and_icmp_pass_in_every_setup() {
    for setup in setups() {
        everything_passes(setup);
    }
}

/// A pod's packet is routed once by each node on its way, and nothing but TTL and checksum changes.
#[test]
fn each_node_counts_as_one_hop_and_addresses_stay() {
    for setup in setups() {
        isolated(|| {
            let cluster = Cluster::new(setup);
            let [one, two] = &cluster.nodes;
            let (a, b, c) = (one.pod(10), one.pod(11), two.pod(10));
            for (to, hops) in [(&b, 1), (&c, 2)] {
                let mut end = Tap::open(&to.netns, "eth0");
                let mut wire = Tap::open("switch", "p2");
                let client = inside(&a.netns, || UdpSocket::bind((a.ip, 0)).unwrap());
                let port = client.local_addr().unwrap().port();
                for size in [100, 3000] {
                    client.send_to(&vec![7; size], (to.ip, 5001)).unwrap();
                    let what = format!("{size} bytes from {} to {} in {setup:?}", a.ip, to.ip);
                    let ours = |frame: &crate::tap::Frame| frame.protocol == 17 && frame.destination == to.ip;
                    let mut pieces = vec![end.wait_for(&what, |f| ours(f) && f.udp_ports().is_some())];
                    if size > 1472 {
                        pieces.push(end.wait_for(&what, |f| ours(f) && f.offset == 1480));
                        pieces.push(end.wait_for(&what, |f| ours(f) && f.offset == 2960));
                    }
                    for piece in &pieces {
                        assert_eq!(piece.ttl, 64 - hops, "{what}");
                        assert_eq!((piece.source, piece.destination), (a.ip, to.ip), "{what}");
                        assert!(piece.checksum_holds, "{what}");
                    }
                    assert_eq!(pieces[0].udp_ports(), Some((port, 5001)), "{what}");
                    if hops == 2 {
                        let seen = wire.wait_for(&what, |f| ours(f) && f.udp_ports().is_some());
                        assert_eq!((seen.source, seen.ttl), (a.ip, 63), "{what}");
                    } else {
                        assert!(wire.drain().iter().all(|f| !ours(f)), "local traffic is not on the wire");
                    }
                }
            }
        });
    }
}

/// What is forwarded is reported while somebody traces, with both identities; else only drops are.
#[test]
fn forwarded_packets_are_reported_on_demand() {
    isolated(|| {
        let cluster = Cluster::new(TCX);
        let [one, two] = &cluster.nodes;
        let (a, b, c) = (one.pod(10), one.pod(11), two.pod(10));
        let mut events = one.events();
        a.assert_reaches(b.ip);
        one.datapath.set_trace(true).unwrap();
        a.assert_reaches(b.ip);
        a.assert_reaches(c.ip);
        a.assert_reaches(one.router_ip());
        // The ring keeps the order: the first event is of the first packet after tracing began.
        let local = events.wait_for("anything", |_| true);
        assert_eq!((local.point, local.reason), (Point::ToEndpoint, DropReason::None));
        assert_eq!((local.src_identity, local.dst_identity), (a.endpoint.identity, b.endpoint.identity));
        assert_eq!((local.ifindex, local.out_ifindex), (a.endpoint.ifindex, b.endpoint.ifindex));
        assert_eq!(local.endpoint_id, b.endpoint.id);
        let flow = local.flow.unwrap();
        assert_eq!((flow.source, flow.destination, flow.ttl), (a.ip, b.ip, 63));
        assert_eq!(flow.l4, L4::Icmp { kind: 8, code: 0 });
        let line = local.line(&|ip| (ip == a.ip).then(|| "default/curl-pod".to_owned()));
        assert!(
            line.ends_with(&format!(
                ": default/curl-pod (ID:1010) -> {} (ID:1011) to-endpoint FORWARDED (ICMPv4 EchoRequest)",
                b.ip
            )),
            "{line}"
        );
        let out = events.wait_for("to the wire", |e| e.point == Point::ToNetwork);
        assert_eq!((out.out_ifindex, out.src_identity, out.dst_identity), (one.eth1, a.endpoint.identity, 0));
        events.wait_for("to the stack", |e| e.point == Point::ToStack);
        one.datapath.set_trace(false).unwrap();
        assert_eq!(one.datapath.config().unwrap().flags, 0);
    });
}

/// There is one reader of events, until it ends.
#[test]
fn events_have_one_reader() {
    isolated(|| {
        let cluster = Cluster::new(TCX);
        let node = &cluster.nodes[0];
        let first = node.events();
        let second = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let error = second.block_on(async { node.datapath.events().err() }).unwrap();
        assert!(error.to_string().contains("end it before"), "{error}");
        drop(first);
        node.events();
    });
}

/// The kernel's table decides: without the route traffic stops, and with it back it goes on.
#[test]
fn deleting_a_route_breaks_traffic_and_restoring_it_heals() {
    for setup in setups() {
        isolated(|| {
            let cluster = Cluster::new(setup);
            let [one, two] = &cluster.nodes;
            let (a, c) = (one.pod(10), two.pod(10));
            let mut events = one.events();
            a.assert_reaches(c.ip);
            sh("ip -n node1 route del 10.244.2.0/24");
            let (answered, text) = a.ping(&format!("-c 1 -W 1 {}", c.ip));
            assert!(!answered, "{text}");
            assert!(text.contains("Destination Net Unreachable"), "the node says so: {text}");
            let event = events.wait_for_drop(DropReason::FibLookupFailed, a.ip);
            assert_eq!(event.flow.unwrap().destination, c.ip);
            assert_eq!((event.point, event.src_identity), (Point::FromEndpoint, a.endpoint.identity));
            sh("ip -n node1 route add 10.244.2.0/24 via 192.168.10.2 dev eth1");
            a.assert_reaches(c.ip);
            // A next hop that was never spoken to: the neighbour is resolved on the way.
            sh("ip -n node1 neigh flush dev eth1");
            a.assert_reaches(c.ip);
        });
    }
}

/// The three kinds of "no": a blackhole is silent, the others are answered as a router answers.
#[test]
fn the_stack_answers_for_routes_that_refuse() {
    isolated(|| {
        let cluster = Cluster::new(TCX);
        let one = &cluster.nodes[0];
        let a = one.pod(10);
        let mut events = one.events();
        let target = Ipv4Addr::new(10, 99, 0, 1);
        for (kind, answer) in [
            ("unreachable", Some("Destination Host Unreachable")),
            ("prohibit", Some("Packet filtered")),
            ("blackhole", None),
        ] {
            sh(&format!("ip -n node1 route replace {kind} 10.99.0.0/16"));
            let (answered, text) = a.ping(&format!("-c 1 -W 1 {target}"));
            assert!(!answered, "{kind}: {text}");
            match answer {
                Some(answer) => assert!(text.contains(answer), "{kind}: {text}"),
                None => assert!(!text.contains("From "), "{kind}: {text}"),
            }
            let event = events.wait_for_drop(DropReason::FibLookupFailed, a.ip);
            assert_eq!(event.flow.unwrap().destination, target);
            sh(&format!("ip -n node1 route del {kind} 10.99.0.0/16"));
        }
    });
}

/// Policy rules count too: a pod's source address can have its own table.
#[test]
fn policy_rules_are_obeyed() {
    isolated(|| {
        let cluster = Cluster::new(TCX);
        let [one, two] = &cluster.nodes;
        let (a, b, c) = (one.pod(10), one.pod(11), two.pod(10));
        sh(&format!("ip -n node1 rule add from {} lookup 100", a.ip));
        sh("ip -n node1 route add unreachable default table 100");
        assert!(!a.ping(&format!("-c 1 -W 1 {}", c.ip)).0);
        b.assert_reaches(c.ip);
    });
}

/// Traceroute from a pod shows both nodes.
#[test]
fn an_expiring_packet_is_answered_by_the_node_where_it_expires() {
    for setup in setups() {
        isolated(|| {
            let cluster = Cluster::new(setup);
            let [one, two] = &cluster.nodes;
            let (a, b, c) = (one.pod(10), one.pod(11), two.pod(10));
            let mut at_one = one.events();
            let mut at_two = two.events();
            let (_, text) = a.ping(&format!("-c 1 -W 5 -t 1 {}", c.ip));
            assert!(text.contains("Time to live exceeded"), "{setup:?}: {text}");
            let event = at_one.wait_for_drop(DropReason::TtlExceeded, a.ip);
            assert_eq!(event.point, Point::FromEndpoint);
            let (_, text) = a.ping(&format!("-c 1 -W 5 -t 2 {}", c.ip));
            assert!(text.contains("Time to live exceeded"), "{setup:?}: {text}");
            let event = at_two.wait_for_drop(DropReason::TtlExceeded, a.ip);
            assert_eq!(event.point, Point::FromNetwork);
            assert!(a.ping(&format!("-c 1 -W 5 -t 3 {}", c.ip)).0);
            let (_, text) = a.ping(&format!("-c 1 -W 5 -t 1 {}", b.ip));
            assert!(text.contains("Time to live exceeded"), "{setup:?}: {text}");
            assert!(a.ping(&format!("-c 1 -W 5 -t 2 {}", b.ip)).0);
            // The node itself is reached with any TTL.
            assert!(a.ping(&format!("-c 1 -W 5 -t 1 {}", one.router_ip())).0);
        });
    }
}

/// A way out with a smaller MTU: DF packets are refused with the MTU, others are fragmented, TCP adapts.
#[test]
fn packets_larger_than_the_way_out_are_answered_or_fragmented() {
    for narrow in [
        // A router heeds a route's MTU only if it is locked; that of the device always.
        "route replace 10.244.2.0/24 via 192.168.10.2 dev eth1 mtu lock 1400",
        "link set eth1 mtu 1400",
    ] {
        isolated(|| {
            let cluster = Cluster::new(TCX);
            let [one, two] = &cluster.nodes;
            let (a, c) = (one.pod(10), two.pod(10));
            let mut events = one.events();
            sh(&format!("ip -n node1 {narrow}"));
            if narrow.starts_with("link") {
                sh(&format!("ip -n node2 {narrow}"));
            }
            let (_, text) = a.ping(&format!("-c 1 -W 5 -M do -s 1400 {}", c.ip));
            assert!(text.contains("mtu = 1400") || text.contains("mtu=1400"), "{narrow}: {text}");
            let event = events.wait_for_drop(DropReason::FragmentationNeeded, a.ip);
            assert_eq!(event.flow.unwrap().destination, c.ip);
            // The pod has learnt the MTU; forgetting it makes the next large packet meet the node again.
            sh(&format!("ip -n {} route flush cache", a.netns));
            let mut wire = Tap::open("switch", "p2");
            let (answered, text) = a.ping(&format!("-c 1 -W 5 -M dont -s 1400 {}", c.ip));
            assert!(answered, "{narrow}: {text}");
            wire.wait_for("the second piece", |f| f.source == a.ip && f.offset > 0);
            sh(&format!("ip -n {} route flush cache", a.netns));
            tcp(&a, &c);
        });
    }
}
