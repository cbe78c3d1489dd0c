//! Services by sockets: who calls a ClusterIP gets a backend, and no packet ever carries the ClusterIP.

use std::{
    collections::BTreeSet,
    fs,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use podwire_abi::{DropReason, IpcacheEntry, Point, identity, to_wire};
use podwire_agent::datapath::{Backends, Caller, Frontend, Protocol, ServiceTable, cgroup_root};

use crate::{
    net::{Cluster, Node, PATIENCE, Pod, TCX, eventually, inside, isolated, run_in},
    outside::ip,
    tap::Tap,
};

const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 20);
const SERVICE: SocketAddrV4 = SocketAddrV4::new(CLUSTER_IP, 80);
const PORT: u16 = 8080;

/// A cgroup of the test's own, for threads: the rest of the test program stays outside.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let root = cgroup_root().expect("this test needs cgroup v2, mounted at /sys/fs/cgroup or below");
        let name = format!("podwire-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let new = Self(root.join(name));
        fs::create_dir(&new.0).unwrap();
        fs::write(new.0.join("cgroup.type"), "threaded").unwrap();
        new
    }

    /// Runs a closure in a pod, as one of its processes would.
    fn inside<T: Send>(&self, pod: &Pod, work: impl FnOnce() -> T + Send) -> T {
        self.inside_netns(&pod.netns, work)
    }

    /// Runs a closure on a node.
    fn inside_node<T: Send>(&self, node: &Node, work: impl FnOnce() -> T + Send) -> T {
        self.inside_netns(&node.name, work)
    }

    fn inside_netns<T: Send>(&self, netns: &str, work: impl FnOnce() -> T + Send) -> T {
        inside(netns, || {
            fs::write(self.0.join("cgroup.threads"), "0").unwrap();
            work()
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A thread that has just ended may be in it still.
        eventually("the cgroup is empty", || fs::remove_dir(&self.0).is_ok());
    }
}

/// A client on node 1, a server on each node.
struct Scene {
    cluster: Cluster,
    cgroup: Cgroup,
    client: Pod,
    servers: [Pod; 2],
}

impl Scene {
    fn new() -> Self {
        let cluster = Cluster::new(TCX);
        let [one, two] = &cluster.nodes;
        let (client, servers) = (one.pod(10), [one.pod(11), two.pod(12)]);
        let cgroup = Cgroup::new();
        one.datapath.attach_sockets(&cgroup.0).unwrap();
        Self { cluster, cgroup, client, servers }
    }

    fn node(&self) -> &Node {
        &self.cluster.nodes[0]
    }

    fn at(&self) -> BTreeSet<SocketAddrV4> {
        self.servers.iter().map(|server| SocketAddrV4::new(server.ip, PORT)).collect()
    }

    fn serve(&self, protocol: Protocol, at: impl IntoIterator<Item = SocketAddrV4>, affinity_seconds: u32) {
        let backends = Backends { at: at.into_iter().collect(), affinity_seconds, maglev: false };
        let table = ServiceTable {
            addresses: BTreeSet::from([CLUSTER_IP]),
            frontends: [(Frontend { at: SERVICE, protocol, caller: Caller::Inside }, backends)].into(),
            every_packet: false,
        };
        self.node().datapath.set_services(&table).unwrap();
        assert_eq!(self.node().datapath.services().unwrap(), table);
    }

    /// Connects to an address from the client.
    fn connect(&self, to: SocketAddrV4) -> std::io::Result<TcpStream> {
        self.cgroup.inside(&self.client, || TcpStream::connect_timeout(&to.into(), PATIENCE))
    }

    /// Which server answers, by its own address.
    fn ask(&self) -> Ipv4Addr {
        let stream = self.connect(SERVICE).unwrap();
        assert_eq!(
            stream.peer_addr().unwrap(),
            SocketAddr::from(SERVICE),
            "the client speaks to the service"
        );
        let (server, seen) = talk(stream);
        assert_eq!(seen, self.client.ip, "the server sees the pod");
        server
    }
}

/// Reads what a server says: its own address, and whom it sees.
fn talk(mut stream: TcpStream) -> (Ipv4Addr, Ipv4Addr) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"?").unwrap();
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).unwrap();
    let address = |at: usize| Ipv4Addr::from_octets([0, 1, 2, 3].map(|i: usize| answer[at + i]));
    (address(0), address(4))
}

/// Answers each question of a TCP client with its own address and the client's, for as long as the test runs.
fn tcp_server(pod: &Pod) {
    let listener = inside(&pod.netns, || TcpListener::bind((pod.ip, PORT)).unwrap());
    let own = pod.ip.octets();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let Ok(peer) = stream.peer_addr() else { return };
                let answer = [own, ip(peer).octets()].concat();
                let mut question = [0];
                while stream.read_exact(&mut question).is_ok() && stream.write_all(&answer).is_ok() {}
            });
        }
    });
}

/// The same for datagrams.
fn udp_server(pod: &Pod) {
    let socket = inside(&pod.netns, || UdpSocket::bind((pod.ip, PORT)).unwrap());
    let own = pod.ip.octets();
    thread::spawn(move || {
        let mut question = [0; 16];
        while let Ok((_, from)) = socket.recv_from(&mut question) {
            let _ = socket.send_to(&[own, ip(from).octets()].concat(), from);
        }
    });
}

#[test]
fn both_backends_answer_and_the_cluster_ip_is_on_no_wire() {
    isolated(|| {
        let scene = Scene::new();
        scene.servers.iter().for_each(tcp_server);
        scene.serve(Protocol::Tcp, scene.at(), 0);
        let mut wire = Tap::open("node1", "eth1");
        let mut answered = BTreeSet::new();
        eventually("both backends answer", || {
            answered.insert(scene.ask());
            answered.len() == 2
        });
        let frames = wire.drain();
        let to = |ip| frames.iter().filter(|frame| frame.destination == ip).count();
        assert!(to(scene.servers[1].ip) > 0, "the wire was watched");
        assert_eq!(to(CLUSTER_IP), 0);
        assert_eq!(scene.node().counted(Point::FromEndpoint, DropReason::ServiceBackendNotFound), 0);
    });
}

#[test]
fn who_calls_where_nobody_answers_is_refused() {
    isolated(|| {
        let scene = Scene::new();
        scene.servers.iter().for_each(tcp_server);
        scene.serve(Protocol::Tcp, [], 0);
        let kind = |to| scene.connect(to).unwrap_err().kind();
        assert_eq!(kind(SERVICE), ErrorKind::ConnectionRefused, "no backend");
        assert_eq!(kind(SocketAddrV4::new(CLUSTER_IP, 81)), ErrorKind::ConnectionRefused, "no such port");
        let udp = scene.cgroup.inside(&scene.client, || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.send_to(b"?", SERVICE).unwrap_err().kind()
        });
        assert_eq!(udp, ErrorKind::ConnectionRefused, "no such protocol");
        scene.serve(Protocol::Tcp, scene.at(), 0);
        scene.ask();
        // What is no service's is left alone.
        let direct = SocketAddrV4::new(scene.servers[1].ip, PORT);
        let stream = scene.connect(direct).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), SocketAddr::from(direct));
    });
}

#[test]
fn datagrams_come_back_from_the_service() {
    isolated(|| {
        let scene = Scene::new();
        scene.servers.iter().for_each(udp_server);
        scene.serve(Protocol::Udp, scene.at(), 0);
        scene.cgroup.inside(&scene.client, || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut answered = BTreeSet::new();
            let mut answer = [0; 8];
            eventually("both backends answer", || {
                socket.send_to(b"?", SERVICE).unwrap();
                let (length, from) = socket.recv_from(&mut answer).unwrap();
                assert_eq!((length, from), (8, SocketAddr::from(SERVICE)));
                answered.insert([answer[0], answer[1], answer[2], answer[3]]);
                answered.len() == 2
            });
            // A connected socket takes nothing from anybody else: it has the backend's address, and is told the service's.
            socket.connect(SERVICE).unwrap();
            assert_eq!(socket.peer_addr().unwrap(), SocketAddr::from(SERVICE));
            socket.send(b"?").unwrap();
            assert_eq!(socket.recv_from(&mut answer).unwrap(), (8, SocketAddr::from(SERVICE)));
        });
    });
}

#[test]
fn a_connection_outlives_its_backends_place_in_the_list() {
    isolated(|| {
        let scene = Scene::new();
        scene.servers.iter().for_each(tcp_server);
        let [first, second] = [0, 1].map(|i: usize| SocketAddrV4::new(scene.servers[i].ip, PORT));
        scene.serve(Protocol::Tcp, [first], 0);
        let established = scene.connect(SERVICE).unwrap();
        scene.serve(Protocol::Tcp, [second], 0);
        assert_eq!(scene.ask(), *second.ip(), "new connections go to who is left");
        assert_eq!(talk(established.try_clone().unwrap()).0, *first.ip(), "the old one goes on");
        scene.serve(Protocol::Tcp, [], 0);
        assert_eq!(talk(established).0, *first.ip());
    });
}

#[test]
fn a_client_comes_back_to_its_backend_while_that_answers() {
    isolated(|| {
        let scene = Scene::new();
        scene.servers.iter().for_each(tcp_server);
        scene.serve(Protocol::Tcp, scene.at(), 10_800);
        let had = scene.ask();
        for _ in 0..20 {
            assert_eq!(scene.ask(), had);
        }
        let (mine, others): (Vec<_>, Vec<_>) = scene.at().into_iter().partition(|at| *at.ip() == had);
        scene.serve(Protocol::Tcp, others.clone(), 10_800);
        assert_eq!(scene.ask(), *others[0].ip(), "its backend is gone");
        scene.serve(Protocol::Tcp, [mine, others.clone()].concat(), 10_800);
        assert_eq!(scene.ask(), *others[0].ip(), "and it stays with the other");
    });
}

#[test]
fn an_agent_that_restarts_loses_no_service() {
    isolated(|| {
        let mut scene = Scene::new();
        scene.servers.iter().for_each(tcp_server);
        scene.serve(Protocol::Tcp, scene.at(), 0);
        let before = scene.node().datapath.services().unwrap();
        scene.cluster.nodes[0].restart();
        scene.ask();
        assert_eq!(scene.node().datapath.services().unwrap(), before);
        assert_eq!(scene.node().datapath.set_services(&before).unwrap(), 0, "nothing is written anew");
        // The programs are exchanged, not added; then those of another cgroup take their place.
        scene.node().datapath.attach_sockets(&scene.cgroup.0).unwrap();
        scene.ask();
        let other = Cgroup::new();
        scene.node().datapath.attach_sockets(&other.0).unwrap();
        let to_service = || TcpStream::connect_timeout(&SERVICE.into(), PATIENCE);
        other.inside(&scene.client, to_service).unwrap();
    });
}

/// A port of every node: whichever node is called, the socket is given a backend at once.
#[test]
fn ports_of_nodes_are_found_by_sockets() {
    isolated(|| {
        const NODE_PORT: u16 = 30_080;
        let scene = Scene::new();
        scene.servers.iter().for_each(tcp_server);
        let [one, two] = &scene.cluster.nodes;
        let remote = IpcacheEntry { identity: identity::REMOTE_NODE, node_ip: to_wire(two.ip()) };
        one.datapath.ipcache_upsert(two.ip().into(), remote).unwrap();
        let at = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, NODE_PORT);
        let frontend = Frontend { at, protocol: Protocol::Tcp, caller: Caller::Inside };
        let backends = |at| Backends { at, ..Backends::default() };
        let serve = |at| {
            let frontends = [(frontend, backends(at))].into();
            one.datapath.set_services(&ServiceTable { frontends, ..ServiceTable::default() }).unwrap();
        };
        serve(scene.at());
        let mut wire = Tap::open("node1", "eth1");
        for to in [one.ip(), two.ip()] {
            let to = SocketAddrV4::new(to, NODE_PORT);
            let mut answered = BTreeSet::new();
            eventually("both backends answer", || {
                let stream = scene.connect(to).unwrap();
                assert_eq!(stream.peer_addr().unwrap(), SocketAddr::from(to));
                let (server, seen) = talk(stream);
                assert_eq!(seen, scene.client.ip);
                answered.insert(server);
                answered.len() == 2
            });
        }
        let frames = wire.drain();
        assert!(frames.iter().any(|frame| frame.destination == scene.servers[1].ip), "the wire was watched");
        assert!(frames.iter().all(|frame| frame.destination != two.ip()), "no packet goes by the other node");
        // To the node itself 127.0.0.1 is the node; to a pod it is the pod.
        let loopback = SocketAddrV4::new(Ipv4Addr::LOCALHOST, NODE_PORT);
        let here = scene.servers[0].ip;
        serve([SocketAddrV4::new(here, PORT)].into());
        let of_node =
            scene.cgroup.inside_node(one, || TcpStream::connect_timeout(&loopback.into(), PATIENCE));
        assert_eq!(talk(of_node.unwrap()).0, here);
        assert_eq!(scene.connect(loopback).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let own = inside(&scene.client.netns, || TcpListener::bind(loopback).unwrap());
        scene.connect(loopback).unwrap();
        own.accept().unwrap();
        // Nobody answers: who calls is told at once, on whichever node.
        serve(BTreeSet::new());
        for to in [one.ip(), two.ip()] {
            let error = scene.connect(SocketAddrV4::new(to, NODE_PORT)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
    });
}

#[test]
fn sockets_are_left_alone_once_the_programs_are_taken_away() {
    isolated(|| {
        let scene = Scene::new();
        scene.servers.iter().for_each(tcp_server);
        scene.serve(Protocol::Tcp, scene.at(), 0);
        scene.ask();
        scene.node().datapath.detach_sockets().unwrap();
        scene.node().datapath.detach_sockets().unwrap();
        let mut pod = Tap::open(&scene.client.netns, "eth0");
        // Packet by packet now: the pod's own packets carry the ClusterIP.
        scene.ask();
        assert!(pod.drain().iter().any(|frame| frame.destination == CLUSTER_IP));
        scene.node().datapath.attach_sockets(&scene.cgroup.0).unwrap();
        let mut pod = Tap::open(&scene.client.netns, "eth0");
        let server = scene.ask();
        let frames = pod.drain();
        assert!(frames.iter().any(|frame| frame.destination == server), "the pod was watched");
        assert!(frames.iter().all(|frame| frame.destination != CLUSTER_IP));
    });
}

#[test]
fn what_no_socket_of_the_node_sends_does_not_reach_the_wire() {
    isolated(|| {
        let scene = Scene::new();
        scene.serve(Protocol::Tcp, scene.at(), 0);
        let mut events = scene.node().events();
        // From outside the cgroup: not a process of the node.
        let output = run_in(&scene.client.netns, &format!("ping -n -c 1 -W 1 {CLUSTER_IP}"));
        assert!(!output.status.success());
        events.wait_for_drop(DropReason::ServiceBackendNotFound, scene.client.ip);
        scene.client.assert_reaches(scene.servers[1].ip);
    });
}
