//! A lab as tests of this module know it: `cross-subnet`, with a pod on each node.

use std::net::Ipv4Addr;

use super::Protocol;
use super::plan::Tap;
use super::sighting::{Ends, Kind, Outer, Packet, Sighting, What};
use super::world::{Device, Machine, Pod, Service, ServicePort, World};
use crate::lab::Lab;

pub(super) const CURL: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 3);
pub(super) const WEB_NEAR: Ipv4Addr = Ipv4Addr::new(172, 20, 1, 2);
pub(super) const WEB_FAR: Ipv4Addr = Ipv4Addr::new(172, 20, 2, 2);
pub(super) const CTR: Ipv4Addr = Ipv4Addr::new(192, 168, 10, 100);
pub(super) const W1: Ipv4Addr = Ipv4Addr::new(192, 168, 10, 101);
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub(super) const MAC_ROUTER: [u8; 6] = [2, 0, 0, 0, 9, 1];

const NODES: [(&str, u8, &str); 3] = [("k8s-ctr", 0, "lxc1"), ("k8s-w1", 1, "lxc2"), ("k8s-w0", 2, "lxc3")];

pub(super) fn world() -> World {
    let lab = Lab::load("cross-subnet").unwrap();
    let machines = lab.nodes.iter().map(machine).collect();
    let pods = vec![
        pod("curl-pod", CURL, 0),
        pod("web-same", Ipv4Addr::new(172, 20, 0, 2), 0),
        pod("web-near", WEB_NEAR, 1),
        pod("web-far", WEB_FAR, 2),
        Pod { name: "pending".into(), namespace: "default".into(), ..Pod::default() },
    ];
    let backends = vec![(Ipv4Addr::new(172, 20, 0, 2), 80), (WEB_NEAR, 80), (WEB_FAR, 80)];
    let port = |name: &str, port, protocol, backends| ServicePort {
        name: name.into(),
        port,
        node_port: (name == "http").then_some(30_000 + port),
        protocol,
        backends,
    };
    let service = |namespace: &str, name: &str, ip: &str, ports| Service {
        namespace: namespace.into(),
        name: name.into(),
        ip: ip.parse().ok(),
        local_only: false,
        ports,
    };
    let services = vec![
        service("default", "webpod", "10.96.1.1", vec![port("http", 80, Protocol::Tcp, backends)]),
        service(
            "kube-system",
            "kube-dns",
            "10.96.0.10",
            vec![port("dns", 53, Protocol::Udp, vec![]), port("dns-tcp", 53, Protocol::Tcp, vec![])],
        ),
        service("default", "headless", "None", vec![port("http", 80, Protocol::Tcp, vec![])]),
        service("default", "empty", "10.96.1.9", vec![port("http", 80, Protocol::Tcp, vec![])]),
    ];
    let pod_cidrs = NODES
        .map(|(node, number, _)| (node.to_owned(), vec![format!("172.20.{number}.0/24").parse().unwrap()]));
    World { lab, machines, pods, services, pod_cidrs: pod_cidrs.into() }
}

fn machine(node: &crate::lab::Node) -> Machine {
    let device = |name: &str, mac, addresses: Vec<Ipv4Addr>| Device {
        name: name.into(),
        up: true,
        mac: Some(mac),
        addresses,
    };
    let mut devices = vec![device("lo", [0; 6], vec![Ipv4Addr::LOCALHOST])];
    let router = node.name == "router";
    for (at, interface) in node.interfaces.iter().enumerate() {
        let mac = if router && at == 0 { MAC_ROUTER } else { [2, 0, 0, 0, at as u8, node.name.len() as u8] };
        devices.push(device(&interface.name, mac, vec![interface.address.addr()]));
    }
    for (at, network) in node.networks.iter().enumerate() {
        devices.push(device(&network.device, [2, 0, 0, 1, at as u8, 0], vec![network.address.addr()]));
    }
    if let Some((_, number, lxc)) = NODES.iter().find(|(name, ..)| *name == node.name) {
        devices.push(device("podwire_net", [2, 0, 0, 2, 0, *number], vec![]));
        devices.push(device(
            "podwire_host",
            [2, 0, 0, 3, 0, *number],
            vec![Ipv4Addr::new(172, 20, *number, 1)],
        ));
        devices.push(device(lxc, [2, 0, 0, 4, 0, *number], vec![]));
    }
    Machine { name: node.name.clone(), devices }
}

fn pod(name: &str, ip: Ipv4Addr, node: usize) -> Pod {
    Pod {
        namespace: "default".into(),
        name: name.into(),
        node: NODES[node].0.into(),
        ip: Some(ip),
        host_network: false,
        device: Some(NODES[node].2.into()),
        identity: Some(300 + node as u32),
    }
}

/// Every tap that the tests' packets are seen at.
pub(super) fn taps() -> Vec<Tap> {
    let inside =
        [("curl-pod", "k8s-ctr", CURL), ("web-near", "k8s-w1", WEB_NEAR), ("web-far", "k8s-w0", WEB_FAR)];
    let machines = world().machines;
    let devices = machines.iter().flat_map(|machine| {
        machine.devices.iter().map(|device| Tap {
            machine: machine.name.clone(),
            device: device.name.clone(),
            pod: None,
        })
    });
    let pods = inside.map(|(name, node, ip)| Tap {
        machine: node.into(),
        device: "eth0".into(),
        pod: Some((name.into(), ip)),
    });
    devices.chain(pods).collect()
}

/// Source and destination of a TCP packet, or of any other: only TCP's are shown with ports.
pub(super) fn ends(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Ends {
    Ends { protocol: 6, source, destination }
}

/// Sightings under construction, a microsecond apart.
#[derive(Default)]
pub(super) struct Seen(Vec<Sighting>);

impl Seen {
    pub(super) fn packet(&mut self, tap: &str, out: bool, ends: Ends, ttl: u8, kind: Kind, print: u64) {
        self.push(tap, out, Packet { ends, ttl, kind, outer: None, print, marked: false });
    }

    /// One that carries the probe's mark.
    pub(super) fn marked(&mut self, tap: &str, out: bool, ends: Ends, ttl: u8, kind: Kind, print: u64) {
        self.push(tap, out, Packet { ends, ttl, kind, outer: None, print, marked: true });
    }

    #[allow(clippy::too_many_arguments, reason = "a packet has that many fields")]
    pub(super) fn wrapped(
        &mut self,
        tap: &str,
        out: bool,
        ends: Ends,
        ttl: u8,
        kind: Kind,
        print: u64,
        outer: Outer,
    ) {
        self.push(tap, out, Packet { ends, ttl, kind, outer: Some(outer), print, marked: false });
    }

    pub(super) fn arp(&mut self, tap: &str, asks: bool, about: Ipv4Addr) {
        let what = What::Arp { asks, about };
        self.add(tap, asks, what);
    }

    fn push(&mut self, tap: &str, out: bool, packet: Packet) {
        self.add(tap, out, What::Packet(packet));
    }

    fn add(&mut self, tap: &str, out: bool, what: What) {
        let at = taps()
            .iter()
            .position(|t| format!("{}:{}", t.place(), t.device) == tap)
            .unwrap_or_else(|| panic!("{tap}"));
        let number = self.0.len() as u64 + 1;
        self.0.push(Sighting {
            frame: number,
            time: number.cast_signed() * 1000,
            tap: at,
            out,
            to: Some(MAC_ROUTER),
            what,
        });
    }

    pub(super) fn list(&self) -> Vec<Sighting> {
        self.0.clone()
    }
}
