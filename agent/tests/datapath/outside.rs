//! The world beyond the native network, as the course has it: a router with a company network behind it.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use podwire_abi::{IpcacheEntry, identity, to_wire};

use crate::net::{Cluster, Node, PATIENCE, Setup, inside, make_namespace, sh};

/// Namespace of the router.
pub const ROUTER: &str = "router";
/// The router on the nodes' network.
pub const ROUTER_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 10, 200);
/// A server of the company network, on the router.
pub const COMPANY: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 200);
/// What all pods' addresses lie in.
pub const PODS: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 244, 0, 0), 16);

/// Two nodes that masquerade, and the router. The router has no route to pods.
pub fn cluster(setup: Setup, native: &[(Ipv4Addr, u8)]) -> Cluster {
    let mut cluster = Cluster::new(setup);
    make_namespace(ROUTER);
    sh("ip -n switch link add p200 type veth peer name eth1 netns router");
    sh("ip -n switch link set p200 master br0 up");
    sh("ip -n router addr add 192.168.10.200/24 dev eth1");
    sh("ip -n router addr add 10.10.1.200/32 dev lo");
    sh("ip -n router addr add 10.10.2.200/32 dev lo");
    sh("ip -n router link set eth1 up");
    for node in &mut cluster.nodes {
        sh(&format!("ip -n {} route add 10.10.0.0/16 via {ROUTER_IP}", node.name));
        native.clone_into(&mut node.native);
        let addresses = BTreeMap::from([((node.eth1, "0.0.0.0/0".parse().unwrap()), node.ip())]);
        node.datapath.set_masquerade_addresses(&addresses).unwrap();
        node.configure();
    }
    let [one, two] = &cluster.nodes;
    for (node, peer) in [(one, two), (two, one)] {
        let remote = IpcacheEntry { identity: identity::REMOTE_NODE, node_ip: to_wire(peer.ip()) };
        node.datapath.ipcache_upsert(peer.ip().into(), remote).unwrap();
    }
    cluster
}

/// Which IPv4 address a socket address has.
pub fn ip(address: SocketAddr) -> Ipv4Addr {
    match address.ip() {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(ip) => panic!("{ip} is no IPv4 address"),
    }
}

/// A TCP connection from one namespace to a server in another: both ends, and the address that the server saw.
pub struct Tcp {
    pub client: TcpStream,
    pub server: TcpStream,
    pub seen: SocketAddr,
}

impl Tcp {
    pub fn open(from: &str, source: (Ipv4Addr, u16), to: &str, address: Ipv4Addr) -> Self {
        let listener = inside(to, || TcpListener::bind((address, 0)).unwrap());
        Self::open_to(from, source, &listener)
    }

    /// As `open`, to a server that listens already; with a source port, if it is not 0.
    pub fn open_to(from: &str, source: (Ipv4Addr, u16), listener: &TcpListener) -> Self {
        let target = listener.local_addr().unwrap();
        let client = inside(from, || connect_from(source, target));
        let (server, seen) = listener.accept().unwrap();
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        Self { client, server, seen }
    }

    /// Bytes go both ways, unchanged.
    pub fn assert_alive(&mut self, size: usize) {
        let sent: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        for (from, to) in [(&self.client, &self.server), (&self.server, &self.client)] {
            thread::scope(|scope| {
                scope.spawn(|| {
                    let mut from = from;
                    from.write_all(&sent).unwrap();
                });
                let mut received = vec![0; size];
                let mut to = to;
                to.read_exact(&mut received).unwrap();
                assert!(received == sent, "the bytes came changed");
            });
        }
    }
}

/// The standard library connects from any port only.
pub fn connect_from(source: (Ipv4Addr, u16), target: SocketAddr) -> TcpStream {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
    };
    use std::os::fd::AsRawFd;
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&fd, sockopt::ReuseAddr, &true).unwrap();
    let address = |ip: Ipv4Addr, port| {
        let [a, b, c, d] = ip.octets();
        SockaddrIn::new(a, b, c, d, port)
    };
    bind(fd.as_raw_fd(), &address(source.0, source.1)).unwrap();
    connect(fd.as_raw_fd(), &address(ip(target), target.port())).unwrap();
    fd.into()
}

/// A UDP socket in a namespace.
pub fn udp(netns: &str, ip: Ipv4Addr, port: u16) -> UdpSocket {
    let socket = inside(netns, || UdpSocket::bind((ip, port)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends a datagram and its answer; the address that the server saw.
pub fn ask(client: &UdpSocket, server: &UdpSocket, size: usize) -> SocketAddr {
    let sent: Vec<u8> = (0..size).map(|i| (i % 253) as u8).collect();
    let mut buffer = vec![0; 65_536];
    client.send_to(&sent, server.local_addr().unwrap()).unwrap();
    let (length, seen) = server.recv_from(&mut buffer).unwrap();
    assert!(buffer[..length] == sent, "the question came changed");
    server.send_to(&buffer[..length], seen).unwrap();
    let (length, from) = client.recv_from(&mut buffer).unwrap();
    assert_eq!(from, server.local_addr().unwrap(), "the answer comes from whom was asked");
    assert!(buffer[..length] == sent, "the answer came changed");
    seen
}

/// Fails if the node dropped anything.
pub fn assert_no_drops(node: &Node) {
    let drops: Vec<_> = node
        .datapath
        .metrics()
        .unwrap()
        .into_iter()
        .filter(|(_, reason, _)| *reason != podwire_abi::DropReason::None)
        .collect();
    assert_eq!(drops, [], "{}", node.name);
}
