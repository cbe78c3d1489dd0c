//! Services packet by packet: calls of a node's port from outside, and of ClusterIPs that no socket of the node made.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use podwire_abi::{DropReason, Point, service::scope};
use podwire_agent::{
    datapath::{AttachMode, Backends, Caller, Frontend, Protocol, ServiceTable},
    masquerade::collect::since_boot,
    services::balanced::{self, Connection},
};

use crate::{
    net::{Cluster, Node, PATIENCE, Pod, Setup, TCX, eventually, inside, isolated, run_in},
    outside::{self, COMPANY, PODS, ROUTER, ROUTER_IP, Tcp, assert_no_drops, ip},
    tap::{Frame, Tap, checksum},
    tunnel,
};

const NODE_PORT: u16 = 30_080;
const PORT: u16 = 8080;
const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 20);
const SERVICE: SocketAddrV4 = SocketAddrV4::new(CLUSTER_IP, 80);

fn setups() -> impl Iterator<Item = Setup> {
    [AttachMode::Tcx, AttachMode::Clsact]
        .into_iter()
        .flat_map(|mode| [true, false].map(|endpoint_routes| Setup { mode, endpoint_routes }))
}

/// Two nodes and a router outside; a server pod on each node.
struct Scene {
    cluster: Cluster,
    servers: [Pod; 2],
}

fn table(
    frontends: impl IntoIterator<Item = (SocketAddrV4, Protocol, Caller)>,
    at: &[SocketAddrV4],
    affinity_seconds: u32,
) -> ServiceTable {
    let backends = |caller| Backends {
        at: at.iter().copied().collect(),
        affinity_seconds,
        maglev: caller == Caller::Outside && at.len() > 1,
    };
    let frontends = frontends.into_iter();
    let frontends =
        frontends.map(|(at, protocol, caller)| (Frontend { at, protocol, caller }, backends(caller)));
    ServiceTable {
        addresses: BTreeSet::from([CLUSTER_IP]),
        frontends: frontends.collect(),
        every_packet: false,
    }
}

impl Scene {
    fn new(setup: Setup) -> Self {
        Self::of(outside::cluster(setup, &[PODS]))
    }

    fn of(cluster: Cluster) -> Self {
        let [one, two] = &cluster.nodes;
        let servers = [one.pod(11), two.pod(12)];
        Self { cluster, servers }
    }

    fn node(&self) -> &Node {
        &self.cluster.nodes[0]
    }

    /// The port of node 1.
    fn port(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.node().ip(), NODE_PORT)
    }

    fn at(&self) -> [SocketAddrV4; 2] {
        [0, 1].map(|i: usize| SocketAddrV4::new(self.servers[i].ip, PORT))
    }

    /// A port of every node, and a ClusterIP, both with these backends.
    fn serve(&self, protocol: Protocol, at: &[SocketAddrV4], affinity_seconds: u32) {
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, NODE_PORT);
        let frontends = [
            (any, protocol, Caller::Inside),
            (any, protocol, Caller::Outside),
            (SERVICE, protocol, Caller::Inside),
        ];
        let table = table(frontends, at, affinity_seconds);
        for node in &self.cluster.nodes {
            node.datapath.set_services(&table).unwrap();
            assert_eq!(node.datapath.services().unwrap(), table);
        }
    }

    fn connections(&self) -> Vec<Connection> {
        balanced::connections(self.node().datapath.balanced().unwrap())
    }
}

/// A server that says its own address and its caller's, with the question behind, for as long as the test runs.
fn tcp_server(netns: &str, own: Ipv4Addr, port: u16) {
    let listener = inside(netns, || TcpListener::bind((own, port)).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let Ok(peer) = stream.peer_addr() else { return };
                let answer = [own.octets(), ip(peer).octets()].concat();
                let mut question = [0];
                while stream.read_exact(&mut question).is_ok() && stream.write_all(&answer).is_ok() {}
            });
        }
    });
}

fn udp_server(netns: &str, own: Ipv4Addr, port: u16) {
    let socket = inside(netns, || UdpSocket::bind((own, port)).unwrap());
    thread::spawn(move || {
        let mut question = vec![0; 65_536];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            let mut answer = [own.octets(), ip(from).octets()].concat();
            answer.extend_from_slice(&question[..length]);
            let _ = socket.send_to(&answer, from);
        }
    });
}

/// Whom a server says that it is, and whom it sees.
fn talk(mut stream: &TcpStream) -> std::io::Result<(Ipv4Addr, Ipv4Addr)> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"?")?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    Ok(addresses(&answer))
}

fn addresses(answer: &[u8]) -> (Ipv4Addr, Ipv4Addr) {
    let address = |at: usize| Ipv4Addr::from_octets([0, 1, 2, 3].map(|i: usize| answer[at + i]));
    (address(0), address(4))
}

fn connect(netns: &str, to: SocketAddrV4) -> std::io::Result<TcpStream> {
    inside(netns, || TcpStream::connect_timeout(&to.into(), PATIENCE))
}

/// Who answers a new connection, and whom it sees.
fn ask(netns: &str, to: SocketAddrV4) -> (Ipv4Addr, Ipv4Addr) {
    talk(&connect(netns, to).unwrap()).unwrap()
}

#[test]
fn callers_from_outside_reach_every_backend_by_any_node() {
    for setup in setups() {
        isolated(|| {
            let scene = Scene::new(setup);
            for server in &scene.servers {
                tcp_server(&server.netns, server.ip, PORT);
            }
            scene.serve(Protocol::Tcp, &scene.at(), 0);
            let [here, there] = [0, 1].map(|i: usize| scene.servers[i].ip);
            let mut answered = BTreeMap::new();
            eventually("both backends answer", || {
                let (server, seen) = ask(ROUTER, scene.port());
                answered.insert(server, seen);
                answered.len() == 2
            });
            // Who is on the node that was called sees the caller; who is elsewhere sees that node, and answers it.
            assert_eq!(answered, [(here, ROUTER_IP), (there, scene.node().ip())].into());
            scene.cluster.nodes.iter().for_each(assert_no_drops);
        });
    }
}

#[test]
fn much_passes_both_ways_and_every_checksum_is_right() {
    isolated(|| {
        let scene = Scene::new(TCX);
        for (server, at) in scene.servers.iter().zip(scene.at()) {
            let listener = inside(&server.netns, || TcpListener::bind(at).unwrap());
            scene.serve(Protocol::Tcp, &[at], 0);
            let client = connect(ROUTER, scene.port()).unwrap();
            let (accepted, seen) = listener.accept().unwrap();
            for stream in [&client, &accepted] {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
            }
            let mut connection = Tcp { client, server: accepted, seen };
            connection.assert_alive(3_000_000);
        }
        scene.cluster.nodes.iter().for_each(assert_no_drops);
    });
}

#[test]
fn datagrams_large_and_small_come_back_from_the_port_that_was_called() {
    isolated(|| {
        let scene = Scene::new(TCX);
        for server in &scene.servers {
            udp_server(&server.netns, server.ip, PORT);
        }
        for at in scene.at() {
            scene.serve(Protocol::Udp, &[at], 0);
            let client = outside::udp(ROUTER, ROUTER_IP, 0);
            // The second is cut into pieces on the way.
            for size in [1, 5000] {
                let question: Vec<u8> = (0..size).map(|i: u32| (i % 253) as u8).collect();
                client.send_to(&question, scene.port()).unwrap();
                let mut answer = vec![0; 65_536];
                let (length, from) = client.recv_from(&mut answer).unwrap();
                assert_eq!(from, SocketAddr::from(scene.port()));
                assert_eq!(addresses(&answer).0, *at.ip());
                assert!(answer[8..length] == question, "the question came changed");
            }
        }
        scene.cluster.nodes.iter().for_each(assert_no_drops);
    });
}

#[test]
fn one_caller_finds_the_same_backend_through_any_node() {
    isolated(|| {
        let scene = Scene::new(TCX);
        for server in &scene.servers {
            tcp_server(&server.netns, server.ip, PORT);
        }
        scene.serve(Protocol::Tcp, &scene.at(), 0);
        let mut answered = BTreeSet::new();
        for source in 40_000..40_020 {
            let by = |node: &Node| {
                let to = SocketAddrV4::new(node.ip(), NODE_PORT);
                let stream = inside(ROUTER, || outside::connect_from((ROUTER_IP, source), to.into()));
                talk(&stream).unwrap().0
            };
            let server = by(&scene.cluster.nodes[0]);
            assert_eq!(server, by(&scene.cluster.nodes[1]), "from port {source}");
            answered.insert(server);
        }
        assert_eq!(answered.len(), 2, "callers are spread");
    });
}

#[test]
fn with_affinity_a_caller_stays_with_its_backend() {
    isolated(|| {
        let scene = Scene::new(TCX);
        for server in &scene.servers {
            tcp_server(&server.netns, server.ip, PORT);
        }
        scene.serve(Protocol::Tcp, &scene.at(), 10_800);
        let had = ask(ROUTER, scene.port()).0;
        for _ in 0..20 {
            assert_eq!(ask(ROUTER, scene.port()).0, had);
        }
    });
}

#[test]
fn where_nobody_answers_the_caller_is_refused() {
    isolated(|| {
        let scene = Scene::new(TCX);
        let client = scene.node().pod(20);
        scene.serve(Protocol::Tcp, &[], 0);
        assert_eq!(connect(ROUTER, scene.port()).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        // A pod's call of the ClusterIP that no socket of the node made: answered by ICMP, at once.
        let mut pod = Tap::open(&client.netns, "eth0");
        let refused = connect(&client.netns, SERVICE).unwrap_err().kind();
        assert_eq!(refused, ErrorKind::ConnectionRefused);
        let udp = outside::udp(&client.netns, client.ip, 0);
        udp.connect(SERVICE).unwrap();
        udp.send(b"?").unwrap();
        assert_eq!(udp.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert!(scene.node().counted(Point::FromEndpoint, DropReason::ServiceBackendNotFound) >= 2);
        // The kernel does not look at checksums that it takes for a device's work; others do.
        let frames = pod.drain();
        let refusals: Vec<_> = frames.iter().filter(|frame| frame.protocol == 1).collect();
        assert!(refusals.len() >= 2);
        for refusal in refusals {
            assert!(refusal.checksum_holds && checksum(&refusal.payload) == 0, "{refusal:?}");
            assert_eq!((refusal.source, refusal.payload[..2].to_vec()), (CLUSTER_IP, vec![3, 3]));
        }
        assert_eq!(scene.connections(), []);
    });
}

#[test]
fn a_connection_outlives_its_backends_place_and_the_agent() {
    isolated(|| {
        let mut scene = Scene::new(TCX);
        for server in &scene.servers {
            tcp_server(&server.netns, server.ip, PORT);
        }
        let [here, there] = scene.at();
        scene.serve(Protocol::Tcp, &[there], 0);
        let established = connect(ROUTER, scene.port()).unwrap();
        talk(&established).unwrap();
        scene.serve(Protocol::Tcp, &[here], 0);
        assert_eq!(ask(ROUTER, scene.port()).0, *here.ip(), "new connections go to who is left");
        assert_eq!(talk(&established).unwrap().0, *there.ip(), "the old one goes on");
        scene.cluster.nodes[0].restart();
        assert_eq!(talk(&established).unwrap().0, *there.ip());
        assert_eq!(ask(ROUTER, scene.port()).0, *here.ip());
        // What is gone from the list is kept by those only who speak with it.
        let alive = BTreeSet::from([(here, Protocol::Tcp.number())]);
        balanced::collect(&scene.node().datapath, since_boot(), &alive).unwrap();
        assert_eq!(talk(&established).unwrap().0, *there.ip());
    });
}

#[test]
fn connections_that_are_over_leave_nothing() {
    isolated(|| {
        let scene = Scene::new(TCX);
        for server in &scene.servers {
            udp_server(&server.netns, server.ip, PORT);
        }
        scene.serve(Protocol::Udp, &scene.at(), 0);
        let client = outside::udp(ROUTER, ROUTER_IP, 0);
        client.send_to(b"?", scene.port()).unwrap();
        client.recv_from(&mut [0; 64]).unwrap();
        let shown = scene.connections();
        assert_eq!(shown.len(), 1);
        assert_eq!(shown[0].traffic().map(|(packets, _)| packets), [1, 1]);
        let datapath = &scene.node().datapath;
        let alive = scene.at().map(|at| (at, Protocol::Udp.number())).into();
        assert_eq!(balanced::collect(datapath, since_boot(), &alive).unwrap(), 1);
        let later = since_boot() + Duration::from_secs(61);
        assert_eq!(balanced::collect(datapath, later, &alive).unwrap(), 0);
        assert_eq!(scene.connections(), []);
        // And the next one finds everything as before.
        client.send_to(b"?", scene.port()).unwrap();
        client.recv_from(&mut [0; 64]).unwrap();
        // A backend that is gone is let go at once by those who speak UDP.
        assert_eq!(balanced::collect(datapath, since_boot(), &BTreeSet::new()).unwrap(), 0);
    });
}

#[test]
fn a_port_that_is_used_again_finds_a_backend_that_is_there() {
    isolated(|| {
        let scene = Scene::new(TCX);
        for server in &scene.servers {
            tcp_server(&server.netns, server.ip, PORT);
        }
        let [here, there] = scene.at();
        let call = || {
            let stream = inside(ROUTER, || outside::connect_from((ROUTER_IP, 40_000), scene.port().into()));
            let answered = talk(&stream).unwrap().0;
            // Ended by a RST, so that the same port may be used at once.
            let linger = libc::linger { l_onoff: 1, l_linger: 0 };
            nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger).unwrap();
            answered
        };
        scene.serve(Protocol::Tcp, &[there], 0);
        assert_eq!(call(), *there.ip());
        scene.serve(Protocol::Tcp, &[here], 0);
        assert_eq!(call(), *here.ip());
    });
}

#[test]
fn a_server_of_the_node_itself_answers_too() {
    isolated(|| {
        let scene = Scene::new(TCX);
        let node = scene.node();
        tcp_server(&node.name, node.ip(), PORT);
        scene.serve(Protocol::Tcp, &[SocketAddrV4::new(node.ip(), PORT)], 0);
        assert_eq!(ask(ROUTER, scene.port()), (node.ip(), ROUTER_IP));
        // And, where sockets are given no backends, a pod by the ClusterIP.
        let client = node.pod(20);
        let table = ServiceTable { every_packet: true, ..node.datapath.services().unwrap() };
        inside(&node.name, || node.datapath.see_every_packet().unwrap());
        node.datapath.set_services(&table).unwrap();
        assert_eq!(ask(&client.netns, SERVICE), (node.ip(), client.ip));
    });
}

#[test]
fn what_no_socket_was_given_is_balanced_packet_by_packet() {
    for setup in setups() {
        isolated(|| {
            let scene = Scene::new(setup);
            for server in &scene.servers {
                tcp_server(&server.netns, server.ip, PORT);
            }
            tcp_server(ROUTER, COMPANY, PORT);
            let client = scene.node().pod(20);
            let mut at = scene.at().to_vec();
            at.push(SocketAddrV4::new(COMPANY, PORT));
            scene.serve(Protocol::Tcp, &at, 0);
            let mut wire = Tap::open("node1", "eth1");
            let mut answered = BTreeMap::new();
            eventually("three backends answer", || {
                let (server, seen) = ask(&client.netns, SERVICE);
                answered.insert(server, seen);
                answered.len() == 3
            });
            let [here, there] = [0, 1].map(|i: usize| scene.servers[i].ip);
            // Beyond the native network the node stands in for the pod, as it does for all that pods send there.
            assert_eq!(
                answered,
                [(here, client.ip), (there, client.ip), (COMPANY, scene.node().ip())].into()
            );
            let frames = wire.drain();
            assert!(frames.iter().any(|frame| frame.destination == there), "the wire was watched");
            assert!(frames.iter().all(|frame| frame.destination != CLUSTER_IP && frame.source != CLUSTER_IP));
        });
    }
}

#[test]
fn a_pod_that_calls_its_own_service_is_answered_by_itself() {
    isolated(|| {
        let scene = Scene::new(TCX);
        let [server, _] = &scene.servers;
        tcp_server(&server.netns, server.ip, PORT);
        scene.serve(Protocol::Tcp, &[scene.at()[0]], 0);
        // It sees its gateway: its own address would not come from outside.
        assert_eq!(ask(&server.netns, SERVICE), (server.ip, scene.node().router_ip()));
    });
}

#[test]
fn pods_find_ports_of_nodes_packet_by_packet() {
    isolated(|| {
        let scene = Scene::new(TCX);
        for server in &scene.servers {
            tcp_server(&server.netns, server.ip, PORT);
        }
        let client = scene.node().pod(20);
        scene.serve(Protocol::Tcp, &scene.at(), 0);
        let node = scene.node();
        let table = ServiceTable { every_packet: true, ..node.datapath.services().unwrap() };
        node.datapath.set_services(&table).unwrap();
        for to in &scene.cluster.nodes {
            let mut answered = BTreeSet::new();
            eventually("both backends answer", || {
                let (server, seen) = ask(&client.netns, SocketAddrV4::new(to.ip(), NODE_PORT));
                assert_eq!(seen, client.ip);
                answered.insert(server);
                answered.len() == 2
            });
        }
    });
}

/// An ICMP error about a packet that was translated comes to who sent it, and speaks of that packet as it was sent.
#[test]
fn errors_find_back_to_the_caller() {
    isolated(|| {
        let scene = Scene::new(TCX);
        // Nobody listens: the backend's kernel says so.
        for at in scene.at() {
            scene.serve(Protocol::Udp, &[at], 0);
            let client = outside::udp(ROUTER, ROUTER_IP, 0);
            client.connect(scene.port()).unwrap();
            client.send(b"?").unwrap();
            // The kernel tells the socket only if the quoted packet is one of its own.
            assert_eq!(client.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{at}");
        }
    });
}

/// In a tunnel the backend sees the address by which its answers come back through the tunnel.
#[test]
fn backends_behind_the_tunnel_answer_callers_from_outside() {
    for setup in setups() {
        isolated(|| {
            let cluster = tunnel::cluster(setup);
            let [one, two] = &cluster.nodes;
            let servers = [tunnel::pod(one, 11), tunnel::pod(two, 12)];
            let scene = Scene { cluster, servers };
            for server in &scene.servers {
                tcp_server(&server.netns, server.ip, PORT);
            }
            scene.serve(Protocol::Tcp, &scene.at(), 0);
            let mut wire = Tap::open("node1", "eth1");
            let mut answered = BTreeMap::new();
            eventually("both backends answer", || {
                let (server, seen) = ask(ROUTER, scene.port());
                answered.insert(server, seen);
                answered.len() == 2
            });
            let [here, there] = [0, 1].map(|i: usize| scene.servers[i].ip);
            assert_eq!(answered, [(here, ROUTER_IP), (there, scene.node().router_ip())].into());
            let frames = wire.drain();
            let wrapped = frames
                .iter()
                .filter_map(Frame::in_vxlan)
                .filter(|(_, inner)| inner.source == scene.node().router_ip() && inner.destination == there);
            assert!(wrapped.count() > 0, "the call went through the tunnel");
            assert!(frames.iter().all(|frame| frame.source != there && frame.destination != there));
            scene.cluster.nodes.iter().for_each(assert_no_drops);
        });
    }
}

/// The same two ends may speak to each other by another name at the same time: then the backend sees the node.
#[test]
fn two_names_of_one_backend_are_kept_apart() {
    isolated(|| {
        let scene = Scene::new(TCX);
        let [here, _] = scene.at();
        let server = &scene.servers[0];
        tcp_server(&server.netns, server.ip, PORT);
        let other = NODE_PORT + 1;
        let frontends = [NODE_PORT, other]
            .map(|port| (SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port), Protocol::Tcp, Caller::Outside));
        scene.node().datapath.set_services(&table(frontends, &[here], 0)).unwrap();
        let from = |port| {
            let to = SocketAddr::from((scene.node().ip(), port));
            inside(ROUTER, || outside::connect_from((ROUTER_IP, 40_000), to))
        };
        let (first, second) = (from(NODE_PORT), from(other));
        assert_eq!(talk(&first).unwrap(), (server.ip, ROUTER_IP));
        assert_eq!(talk(&second).unwrap(), (server.ip, scene.node().ip()));
        assert_eq!(talk(&first).unwrap(), (server.ip, ROUTER_IP));
    });
}

/// A node's own connection to a backend must not be taken for a caller's that came through it.
#[test]
fn the_nodes_own_connections_are_kept_apart_from_callers() {
    isolated(|| {
        let scene = Scene::new(TCX);
        let [_, there] = scene.at();
        let server = &scene.servers[1];
        tcp_server(&server.netns, server.ip, PORT);
        scene.serve(Protocol::Tcp, &[there], 0);
        // The caller's port is kept where it is free: the backend sees node 1, port 40000.
        let caller = inside(ROUTER, || outside::connect_from((ROUTER_IP, 40_000), scene.port().into()));
        assert_eq!(talk(&caller).unwrap(), (server.ip, scene.node().ip()));
        let own = inside("node1", || outside::connect_from((scene.node().ip(), 40_000), there.into()));
        for _ in 0..3 {
            assert_eq!(talk(&own).unwrap(), (server.ip, scene.node().ip()));
            assert_eq!(talk(&caller).unwrap(), (server.ip, scene.node().ip()));
        }
        // The other way round: a socket of the node has the port already.
        let own = inside("node1", || outside::connect_from((scene.node().ip(), 40_001), there.into()));
        let caller = inside(ROUTER, || outside::connect_from((ROUTER_IP, 40_001), scene.port().into()));
        for _ in 0..3 {
            assert_eq!(talk(&caller).unwrap(), (server.ip, scene.node().ip()));
            assert_eq!(talk(&own).unwrap(), (server.ip, scene.node().ip()));
        }
    });
}

/// What is sent to a node's port that is no service's is the node's own.
#[test]
fn other_ports_are_the_nodes_own() {
    isolated(|| {
        let scene = Scene::new(TCX);
        scene.serve(Protocol::Tcp, &scene.at(), 0);
        let node = scene.node();
        for port in [NODE_PORT + 1, 9000] {
            tcp_server(&node.name, node.ip(), port);
            assert_eq!(ask(ROUTER, SocketAddrV4::new(node.ip(), port)), (node.ip(), ROUTER_IP));
        }
        let output = run_in(ROUTER, &format!("ping -n -c 1 -W 5 {}", node.ip()));
        assert!(output.status.success());
        assert_eq!(scene.connections(), []);
        // With no such connection the programs do not look for any.
        node.datapath.set_balanced_callers(scope::OUTSIDE, false).unwrap();
        assert_no_drops(node);
    });
}
