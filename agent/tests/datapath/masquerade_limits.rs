//! Fragments, ends of what there is, and restarts.

use std::{collections::BTreeSet, net::Ipv4Addr, thread};

use podwire_abi::{
    DropReason, Point,
    connection::{Connection, ConnectionKey, FIRST_PORT},
    to_wire,
};
use podwire_agent::datapath::Direction;

use crate::{
    net::{TCX, isolated, sh},
    outside::{COMPANY, PODS, ROUTER, Tcp, ask, assert_no_drops, cluster, ip, udp},
    tap::{Tap, checksum},
};

/// Large datagrams both ways, by pods of one port: every piece is translated.
#[test]
fn fragments_are_translated_both_ways() {
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let (a, b) = (one.pod(10), one.pod(11));
        let server = udp(ROUTER, COMPANY, 0);
        let mut wire = Tap::open("switch", "p1");
        for pod in [&a, &b] {
            let client = udp(&pod.netns, pod.ip, 48_000);
            for size in [1473, 9000, 60_000] {
                assert_eq!(ip(ask(&client, &server, size)), one.ip());
            }
            let (answered, text) = pod.ping(&format!("-c 1 -W 5 -s 5000 {COMPANY}"));
            assert!(answered, "{text}");
        }
        let frames = wire.drain();
        assert!(frames.iter().filter(|f| f.offset > 0 && f.source == one.ip()).count() > 40);
        assert!(frames.iter().all(|f| f.source != a.ip && f.source != b.ip));
        // The node's own large datagrams are none of our business.
        ask(&udp(&one.name, one.ip(), 48_000), &server, 9000);
        assert_no_drops(one);
    });
}

/// A piece whose first piece never came does not leave with the pod's address.
#[test]
fn a_later_piece_alone_is_dropped() {
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let a = one.pod(10);
        let mut events = one.events();
        let mut frame = crate::tap::udp_frame(a.endpoint.node_mac, a.endpoint.pod_mac, a.ip, COMPANY, 64);
        frame[20..22].copy_from_slice(&[0, 185]);
        frame[24..26].copy_from_slice(&[0, 0]);
        let sum = checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        Tap::open(&a.netns, "eth0").send(&frame);
        let event = events.wait_for_drop(DropReason::FragmentNotFound, a.ip);
        assert_eq!(event.point, Point::ToNetwork);
    });
}

/// IP options make headers longer, and the answer the stack's to deliver.
#[test]
fn packets_with_options_are_translated() {
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let (a, b) = (one.pod(10), one.pod(11));
        for pod in [&a, &b] {
            let (answered, text) = pod.ping(&format!("-c 1 -W 5 -e 66 -R {COMPANY}"));
            assert!(answered && text.contains("RR:"), "{text}");
        }
        assert_no_drops(one);
    });
}

/// A way out with a smaller MTU: the stack makes pieces, and they leave translated.
#[test]
fn what_the_stack_fragments_is_translated() {
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let a = one.pod(10);
        for netns in [&one.name, ROUTER] {
            sh(&format!("ip -n {netns} link set eth1 mtu 1300"));
        }
        let (answered, text) = a.ping(&format!("-c 1 -W 5 -M dont -s 1400 {COMPANY}"));
        assert!(answered, "{text}");
        assert_no_drops(one);
    });
}

/// A UDP checksum of zero says that there is none, and none there stays.
#[test]
fn no_udp_checksum_stays_none() {
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let a = one.pod(10);
        let mut wire = Tap::open("switch", "p1");
        let frame = crate::tap::udp_frame(a.endpoint.node_mac, a.endpoint.pod_mac, a.ip, COMPANY, 64);
        Tap::open(&a.netns, "eth0").send(&frame);
        let out = wire.wait_for("the packet", |f| f.protocol == 17 && f.destination == COMPANY);
        assert_eq!((out.source, out.udp_ports()), (one.ip(), Some((4000, 4001))));
        assert_eq!(out.payload[6..8], [0, 0]);
    });
}

/// Pods open many connections to one server at once, all from the same ports.
#[test]
fn a_crowd_of_connections_gets_a_port_each() {
    const EACH: u16 = 300;
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let pods = [one.pod(10), one.pod(11), one.pod(12)];
        let server = udp(ROUTER, COMPANY, 0);
        let target = server.local_addr().unwrap();
        let mut seen = BTreeSet::new();
        thread::scope(|scope| {
            for pod in &pods {
                scope.spawn(move || {
                    for port in 30_000..30_000 + EACH {
                        let socket = udp(&pod.netns, pod.ip, port);
                        socket.send_to(&pod.ip.octets(), target).unwrap();
                        let mut answer = [0; 10];
                        let length = socket.recv(&mut answer).unwrap();
                        assert_eq!(answer[..length], pod.ip.octets(), "the answer is another pod's");
                    }
                });
            }
            for _ in 0..EACH * 3 {
                let mut question = [0; 10];
                let (length, from) = server.recv_from(&mut question).unwrap();
                server.send_to(&question[..length], from).unwrap();
                assert_eq!(ip(from), one.ip());
                assert!(seen.insert(from.port()), "{from} is two pods at once");
            }
        });
        let kept = seen.iter().filter(|port| **port < FIRST_PORT).count();
        assert_eq!(kept, usize::from(EACH), "each port is kept by the pod that came first");
        for direction in [Direction::Out, Direction::In] {
            assert_eq!(one.datapath.connections(direction).unwrap().len(), usize::from(EACH) * 3);
        }
        assert_no_drops(one);
    });
}

fn incoming(one: Ipv4Addr, remote_port: u16, port: u16) -> ConnectionKey {
    ConnectionKey {
        local: to_wire(one),
        remote: to_wire(COMPANY),
        local_port: port.to_be(),
        remote_port: remote_port.to_be(),
        protocol: 17,
        pad: [0; 3],
    }
}

/// All ports towards one server are taken: that is counted and reported, and other servers are still reached.
#[test]
fn exhaustion_is_counted_and_reported() {
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let a = one.pod(10);
        let mut events = one.events();
        let (server, other) = (udp(ROUTER, COMPANY, 0), udp(ROUTER, COMPANY, 0));
        let remote_port = server.local_addr().unwrap().port();
        let others =
            Connection { addr: to_wire(Ipv4Addr::new(10, 244, 1, 99)), port: 1, ..Connection::default() };
        for port in FIRST_PORT..=u16::MAX {
            one.datapath
                .put_connection(Direction::In, &incoming(one.ip(), remote_port, port), others)
                .unwrap();
        }
        let client = udp(&a.netns, a.ip, 50_000);
        client.send_to(b"x", server.local_addr().unwrap()).unwrap();
        let event = events.wait_for_drop(DropReason::NatNoMapping, a.ip);
        assert_eq!(event.point, Point::ToNetwork);
        assert_eq!(one.counted(Point::ToNetwork, DropReason::NatNoMapping), 1);
        ask(&client, &other, 10);
        // One port that is free below the range is kept, as the pod has it.
        let low = udp(&a.netns, a.ip, 20_000);
        assert_eq!(ask(&low, &server, 10).port(), 20_000);
        // And when a port becomes free, it is found in the end.
        for port in FIRST_PORT..=u16::MAX {
            if port % 2 == 0 {
                one.datapath
                    .forget_connection(Direction::In, &incoming(one.ip(), remote_port, port))
                    .unwrap();
            }
        }
        let seen = ask(&udp(&a.netns, a.ip, 50_001), &server, 10);
        assert!(seen.port() >= FIRST_PORT && seen.port().is_multiple_of(2), "{seen}");
    });
}

/// Neither a new agent nor none at all costs a connection its mapping.
#[test]
fn established_connections_survive_a_restart() {
    isolated(|| {
        let mut cluster = cluster(TCX, &[PODS]);
        let (a, b) = (cluster.nodes[0].pod(10), cluster.nodes[0].pod(11));
        let server = udp(ROUTER, COMPANY, 0);
        let mut tcp: Vec<_> = [&a, &b].map(|pod| Tcp::open(&pod.netns, (pod.ip, 0), ROUTER, COMPANY)).into();
        let clients = [&a, &b].map(|pod| udp(&pod.netns, pod.ip, 49_000));
        let seen: Vec<_> = clients.iter().map(|client| ask(client, &server, 10)).collect();
        for _ in 0..3 {
            cluster.nodes[0].restart();
            for tcp in &mut tcp {
                tcp.assert_alive(10_000);
            }
            let again: Vec<_> = clients.iter().map(|client| ask(client, &server, 10)).collect();
            assert_eq!(again, seen, "the ports on the wire are the same");
        }
        assert_no_drops(&cluster.nodes[0]);
    });
}

/// The list of ip-masq-agent, changed while connections go on.
#[test]
fn listed_destinations_see_the_pods_address() {
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let a = one.pod(10);
        let mut before = Tcp::open(&a.netns, (a.ip, 0), ROUTER, COMPANY);
        let list: BTreeSet<_> = ["10.10.1.0/24", "172.16.0.0/12"].map(|c| c.parse().unwrap()).into();
        one.datapath.set_non_masquerade(&list).unwrap();
        assert_eq!(one.datapath.non_masquerade().unwrap(), list);
        before.assert_alive(1000);
        // The router has no way back to the pod: the question arrives, the answer does not.
        let (client, server) = (udp(&a.netns, a.ip, 0), udp(ROUTER, COMPANY, 0));
        client.send_to(b"question", server.local_addr().unwrap()).unwrap();
        assert_eq!(ip(server.recv_from(&mut [0; 100]).unwrap().1), a.ip);
        sh("ip -n router route add 10.244.1.0/24 via 192.168.10.1");
        assert_eq!(ip(ask(&client, &server, 10)), a.ip);
        // The neighbouring network is not on the list.
        let neighbour = Ipv4Addr::new(10, 10, 2, 200);
        assert_eq!(ip(Tcp::open(&a.netns, (a.ip, 0), ROUTER, neighbour).seen), one.ip());
        one.datapath.set_non_masquerade(&BTreeSet::new()).unwrap();
        assert_eq!(ip(Tcp::open(&a.netns, (a.ip, 0), ROUTER, COMPANY).seen), one.ip());
        before.assert_alive(1000);
        assert_no_drops(one);
    });
}

/// Both directions of a connection are told, with what was seen.
#[test]
fn the_table_says_what_there_is() {
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let a = one.pod(10);
        let tcp = Tcp::open(&a.netns, (a.ip, 0), ROUTER, COMPANY);
        let port = tcp.client.local_addr().unwrap().port();
        let [out, back] = [Direction::Out, Direction::In].map(|d| one.datapath.connections(d).unwrap());
        let (key, entry) = out.iter().find(|(key, _)| key.protocol == 6).unwrap();
        assert_eq!((key.local, key.local_port), (to_wire(a.ip), port.to_be()));
        assert_eq!((entry.addr, entry.port, entry.ifindex), (to_wire(one.ip()), port.to_be(), one.eth1));
        assert_eq!(entry.packets, 2, "SYN and ACK");
        let (key, entry) = back.iter().find(|(key, _)| key.protocol == 6).unwrap();
        assert_eq!((key.local, key.remote), (to_wire(one.ip()), to_wire(COMPANY)));
        assert_eq!((entry.addr, entry.port, entry.packets), (to_wire(a.ip), port.to_be(), 1));
    });
}
