//! ICMP errors about translated packets reach whom they concern, and quote what that one sent.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
};

use crate::{
    net::{Node, TCX, inside, isolated, mac, make_namespace, run_in, sh},
    outside::{COMPANY, PODS, ROUTER, Tcp, assert_no_drops, cluster, ip, udp},
    tap::{Tap, checksum, summed_udp_frame},
};

/// The checksum of an ICMP message, and of the IP header that it quotes.
fn sums_hold(icmp: &[u8]) -> bool {
    let quoted = &icmp[8..];
    checksum(icmp) == 0 && checksum(&quoted[..usize::from(quoted[0] & 15) * 4]) == 0
}

/// The checksum of a quoted UDP packet that is quoted whole.
fn quoted_udp_sum_holds(quoted: &[u8]) -> bool {
    let (header, udp) = quoted.split_at(20);
    let length = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
    let mut pseudo = header[12..20].to_vec();
    pseudo.extend([0, 17, udp[4], udp[5]]);
    pseudo.extend(&udp[..length]);
    udp[6..8] == [0, 0] || checksum(&pseudo) == 0
}

/// What a server answers, as a frame.
fn answer(server: &UdpSocket, to: SocketAddr, node: &Node, ttl: u8) -> Vec<u8> {
    let own = server.local_addr().unwrap();
    let (source, destination) = ((ip(own), own.port()), (ip(to), to.port()));
    let macs = (mac(&node.name, "eth1"), mac(ROUTER, "eth1"));
    summed_udp_frame(macs.0, macs.1, source, destination, ttl, b"late answer")
}

/// A port of a server where nobody listens.
fn closed_port() -> SocketAddr {
    udp(ROUTER, COMPANY, 0).local_addr().unwrap()
}

fn refused(socket: &UdpSocket) -> bool {
    socket.recv(&mut [0; 10]).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn a_closed_port_outside_refuses_the_pod() {
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let (a, b) = (one.pod(10), one.pod(11));
        let target = closed_port();
        let mut end = Tap::open(&b.netns, "eth0");
        // The second pod's port is another on the wire: the quote must name its own again.
        for pod in [&a, &b] {
            let socket = udp(&pod.netns, pod.ip, 45_000);
            socket.connect(target).unwrap();
            socket.send(b"anybody there?").unwrap();
            assert!(refused(&socket), "{} is told", pod.ip);
        }
        let error = end.wait_for("the error", |f| f.protocol == 1);
        assert_eq!((error.source, error.destination), (COMPANY, b.ip));
        assert!(error.checksum_holds && sums_hold(&error.payload), "{error:?}");
        let quoted = &error.payload[8..];
        assert_eq!(quoted[12..16], b.ip.octets());
        assert_eq!(u16::from_be_bytes([quoted[20], quoted[21]]), 45_000);
        assert_no_drops(one);
    });
}

#[test]
fn a_pod_refuses_answers_in_the_nodes_name() {
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let (a, b) = (one.pod(10), one.pod(11));
        let server = udp(ROUTER, COMPANY, 0);
        let mut wire = Tap::open("switch", "p1");
        let mut seen = None;
        // Twice from one port, so that the second is another on the wire.
        for pod in [&a, &b] {
            let client = udp(&pod.netns, pod.ip, 46_000);
            client.send_to(b"question", server.local_addr().unwrap()).unwrap();
            seen = Some(server.recv_from(&mut [0; 100]).unwrap().1);
            // The pod is gone from its port before the answer comes.
        }
        let seen = seen.unwrap();
        assert_eq!(ip(seen), one.ip());
        server.connect(seen).unwrap();
        // By hand, with a whole checksum: the kernel leaves it to the device otherwise.
        Tap::open(ROUTER, "eth1").send(&answer(&server, seen, one, 64));
        assert!(refused(&server), "the server is told");
        let error = wire.wait_for("the error", |f| f.protocol == 1 && f.payload[0] == 3);
        assert_eq!((error.source, error.destination), (one.ip(), COMPANY));
        assert!(error.checksum_holds && sums_hold(&error.payload), "{error:?}");
        let quoted = &error.payload[8..];
        assert_eq!(quoted[16..20], one.ip().octets());
        assert_eq!(u16::from_be_bytes([quoted[22], quoted[23]]), seen.port());
        assert!(quoted_udp_sum_holds(quoted), "{error:?}");
        assert_no_drops(one);
    });
}

/// Traceroute beyond the native network shows the way, for every kind of probe.
#[test]
fn a_traceroute_sees_routers_outside() {
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let (a, b) = (one.pod(10), one.pod(11));
        // One more hop behind the router.
        make_namespace("far");
        sh("ip -n router link add far type veth peer name eth0 netns far");
        for command in [
            "-n router addr add 10.10.9.1/24 dev far",
            "-n router link set far up",
            "-n far addr add 10.10.9.2/24 dev eth0",
            "-n far link set eth0 up",
            "-n far route add default via 10.10.9.1",
        ] {
            sh(&format!("ip {command}"));
        }
        inside(ROUTER, || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
        // A host is sent only so many errors a second.
        for netns in [ROUTER, &one.name] {
            inside(netns, || std::fs::write("/proc/sys/net/ipv4/icmp_ratelimit", "0").unwrap());
        }
        for pod in [&a, &b] {
            // The first hop is the node, the second the router, which answers; the third is the end.
            let (_, text) = pod.ping("-c 1 -W 5 -e 99 -t 2 10.10.9.2");
            assert!(text.contains("From 192.168.10.200") && text.contains("Time to live exceeded"), "{text}");
            for probe in ["--icmp", "--tcp --port=80", "--udp --port=5000 --sport=4000"] {
                let command = format!("traceroute -n -q 1 -w 5 -m 3 {probe} 10.10.9.2");
                let output = run_in(&pod.netns, &command);
                let text = String::from_utf8_lossy(&output.stdout);
                let hops: Vec<_> = text.lines().skip(1).filter_map(|l| l.split_whitespace().nth(1)).collect();
                assert_eq!(hops, ["192.168.10.1", "192.168.10.200", "10.10.9.2"], "{command}: {text}");
            }
        }
    });
}

/// A narrow link outside: the pod learns its MTU and TCP goes on.
#[test]
fn path_mtu_discovery_works_through_masquerade() {
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let a = one.pod(10);
        make_namespace("far");
        sh("ip -n router link add far type veth peer name eth0 netns far");
        for command in [
            "-n router addr add 10.10.9.1/24 dev far",
            "-n router link set far mtu 1300 up",
            "-n far addr add 10.10.9.2/24 dev eth0",
            // The server itself sends small segments, but says that it takes large ones: the pod has to find out.
            "-n far link set eth0 up",
            "-n far route add default via 10.10.9.1 mtu 1300 advmss 1460",
        ] {
            sh(&format!("ip {command}"));
        }
        inside(ROUTER, || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
        let (_, text) = a.ping("-c 1 -W 5 -M do -s 1400 10.10.9.2");
        assert!(text.contains("mtu = 1300") || text.contains("mtu=1300"), "{text}");
        sh(&format!("ip -n {} route flush cache", a.netns));
        let far = "10.10.9.2".parse().unwrap();
        let mut tcp = Tcp::open(&a.netns, (a.ip, 0), "far", far);
        tcp.assert_alive(200_000);
        assert_no_drops(one);
    });
}

/// The node itself gives up on an answer: the one who sent it knows only the node's address.
#[test]
fn errors_of_the_node_about_answers_name_the_node() {
    isolated(|| {
        let cluster = cluster(TCX, &[PODS]);
        let one = &cluster.nodes[0];
        let a = one.pod(10);
        let client = udp(&a.netns, a.ip, 47_000);
        let server = udp(ROUTER, COMPANY, 0);
        client.send_to(b"question", server.local_addr().unwrap()).unwrap();
        let (_, seen) = server.recv_from(&mut [0; 100]).unwrap();
        let mut wire = Tap::open("switch", "p1");
        // The answer reaches the node and no further.
        Tap::open(ROUTER, "eth1").send(&answer(&server, seen, one, 1));
        let error = wire.wait_for("the error", |f| f.protocol == 1 && f.payload[0] == 11);
        assert!(error.checksum_holds && sums_hold(&error.payload), "{error:?}");
        assert_eq!((error.source, error.destination), (one.ip(), COMPANY));
        assert_eq!(error.payload[8 + 16..8 + 20], one.ip().octets());
        assert!(quoted_udp_sum_holds(&error.payload[8..]), "{error:?}");
    });
}
