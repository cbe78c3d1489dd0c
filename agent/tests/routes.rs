//! Routes against the real kernel: kept, brought back, taken away; what others made is never touched.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
mod common;

use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use common::{Namespace, TestNode};
use ipnet::Ipv4Net;
use podwire_agent::controllers::routes::{Controller, Devices};
use podwire_agent::health::Health;
use podwire_agent::netlink::Netlink;
use podwire_agent::routes::plan::{Inputs, Peer, plan};
use podwire_agent::routes::reconcile::{Outcome, Reconciler};
use podwire_api::values::{RoutingMode, Values};

/// A node on an underlay with the routes controller running, as the daemon runs it.
struct Routed {
    node: TestNode,
    /// None: the API server has not told yet.
    peers: Arc<Mutex<Option<Vec<Peer>>>>,
    health: Arc<Health>,
    outcome: Arc<ArcSwap<Outcome>>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
    values: Values,
    /// The table's destinations when podwire_host got its program, or lost it.
    at_set_host: Arc<Mutex<Vec<Ipv4Net>>>,
    /// Every device that was given to the datapath for the tunnel.
    overlays: Arc<Mutex<Vec<u32>>>,
}

fn peer(name: &str, ip: &str, cidr: &str) -> Peer {
    Peer { name: name.into(), internal_ip: Some(ip.parse().unwrap()), pod_cidrs: vec![cidr.parse().unwrap()] }
}

impl Routed {
    fn new(endpoint_routes: bool, skip: bool) -> Self {
        let node = TestNode::with("10.244.0.0/24", endpoint_routes);
        for command in [
            "link add eth1 type veth peer name wire",
            "address add 192.168.10.100/24 dev eth1",
            "link set eth1 up",
            "link set wire up",
        ] {
            node.ns.ip(command);
        }
        let mut values = Values {
            auto_direct_node_routes: true,
            direct_routing_skip_unreachable: skip,
            ..Values::default()
        };
        values.endpoint_routes.enabled = endpoint_routes;
        let mut routed = Self {
            node,
            peers: Arc::new(Mutex::new(Some(Vec::new()))),
            health: Arc::default(),
            outcome: Arc::default(),
            stop: None,
            thread: None,
            values,
            at_set_host: Arc::default(),
            overlays: Arc::default(),
        };
        routed.start();
        routed
    }

    fn start(&mut self) {
        let (peers, seen) = (self.peers.clone(), self.at_set_host.clone());
        let overlays = self.overlays.clone();
        let controller = Controller {
            core: self.node.core().clone(),
            values: self.values.clone(),
            node_ip: "192.168.10.100".parse().unwrap(),
            peers: Box::new(move || peers.lock().unwrap().clone()),
            devices: Devices {
                attach_underlay: Box::new(|_| Ok(())),
                set_host: Box::new(move |_| {
                    *seen.lock().unwrap() = Netlink::open()?.routes()?.iter().map(|r| r.dst).collect();
                    Ok(())
                }),
                set_overlay: Box::new(move |index| {
                    overlays.lock().unwrap().push(index);
                    Ok(())
                }),
            },
            mtu: 1500,
            outcome: self.outcome.clone(),
            health: self.health.clone(),
        };
        let (stop, stopped) = mpsc::channel();
        self.stop = Some(stop);
        // A runtime built inside the node's namespace stays there with all its threads.
        self.thread = Some(self.node.ns.run(move || {
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(1)
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.spawn(controller.run());
                let _ = stopped.recv();
            })
        }));
    }

    fn stop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    fn set_peers(&self, peers: Vec<Peer>) {
        *self.peers.lock().unwrap() = Some(peers);
        self.node.core().signal().notify();
    }

    fn table(&self) -> String {
        self.node.ns.ip("route")
    }

    /// Waits for a condition; the deadline only ends a test that would hang.
    fn until(&self, what: &str, condition: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition(&self.table()) {
            assert!(Instant::now() < deadline, "{what}:\n{}{:?}", self.table(), self.health.parts());
            thread::yield_now();
        }
    }
}

impl Drop for Routed {
    fn drop(&mut self) {
        self.stop();
    }
}

const TO_W1: &str = "10.244.1.0/24 via 192.168.10.101 dev eth1 proto kernel";

#[test]
fn peers_come_move_and_go() {
    let routed = Routed::new(true, false);
    routed.set_peers(vec![peer("k8s-w1", "192.168.10.101", "10.244.1.0/24")]);
    routed.until("installed", |t| t.contains(TO_W1));
    routed.set_peers(vec![peer("k8s-w1", "192.168.10.102", "10.244.1.0/24")]);
    routed.until("replaced", |t| t.contains("10.244.1.0/24 via 192.168.10.102 dev eth1 proto kernel"));
    routed.set_peers(vec![]);
    routed.until("removed", |t| !t.contains("10.244.1.0/24"));
}

#[test]
fn a_route_that_is_deleted_by_hand_comes_back() {
    let routed = Routed::new(true, false);
    let pod = Namespace::new();
    let ip = routed.node.add("c1", &pod.path()).ip();
    routed.set_peers(vec![peer("k8s-w1", "192.168.10.101", "10.244.1.0/24")]);
    routed.until("installed", |t| t.contains(TO_W1));
    routed.node.ns.ip("route delete 10.244.1.0/24");
    routed.until("back", |t| t.contains(TO_W1));
    routed.node.ns.ip(&format!("route delete {ip}/32"));
    routed.until("the pod's is back", |t| t.contains(&format!("{ip} dev lxc")));
    // Taking the device down takes its routes too; they come back with it.
    routed.node.ns.ip("link set eth1 down");
    routed.until("gone", |t| !t.contains("10.244.1.0/24"));
    routed.node.ns.ip("link set eth1 up");
    routed.until("back again", |t| t.contains(TO_W1));
}

#[test]
fn foreign_routes_are_never_touched() {
    let routed = Routed::new(true, false);
    let foreign = "10.244.1.0/24 via 192.168.10.200 dev eth1";
    routed.node.ns.ip(&format!("route add {foreign} proto static"));
    routed.node.ns.ip("route add 172.20.0.0/16 via 192.168.10.200 proto kernel");
    routed.set_peers(vec![
        peer("k8s-w1", "192.168.10.101", "10.244.1.0/24"),
        peer("k8s-w2", "192.168.10.102", "10.244.2.0/24"),
    ]);
    routed.until("the other peer's route", |t| t.contains("10.244.2.0/24 via 192.168.10.102"));
    let table = routed.table();
    assert!(table.contains(&format!("{foreign} proto static")) && !table.contains(TO_W1), "{table}");
    assert!(table.contains("172.20.0.0/16 via 192.168.10.200"), "{table}");
    let errors = routed.outcome.load().errors.clone();
    assert!(
        errors
            .iter()
            .any(|e| e.contains("10.244.1.0/24 via 192.168.10.200 dev eth1, which the agent did not make")),
        "{errors:?}"
    );
    routed.node.ns.ip("route delete 10.244.1.0/24");
    routed.until("free place taken", |t| t.contains(TO_W1));
    routed.set_peers(vec![]);
    routed.until("own ones gone", |t| !t.contains("10.244."));
    assert!(routed.table().contains("172.20.0.0/16 via 192.168.10.200"));
}

#[test]
fn a_peer_on_another_network_is_an_error_or_skipped() {
    for skip in [false, true] {
        let routed = Routed::new(true, skip);
        routed.set_peers(vec![
            peer("k8s-w0", "192.168.20.100", "10.244.2.0/24"),
            peer("k8s-w1", "192.168.10.101", "10.244.1.0/24"),
        ]);
        routed.until("the reachable peer", |t| t.contains(TO_W1));
        assert!(!routed.table().contains("10.244.2.0/24"));
        let errors = routed.outcome.load().errors.join("\n");
        assert_eq!(
            errors.contains("route to node k8s-w0 is not reachable. Add \"direct-routing-skip-unreachable\""),
            !skip,
            "{errors}"
        );
    }
}

#[test]
fn a_restart_keeps_own_routes_and_removes_stale_ones() {
    let mut routed = Routed::new(true, false);
    routed.set_peers(vec![
        peer("k8s-w1", "192.168.10.101", "10.244.1.0/24"),
        peer("k8s-w2", "192.168.10.102", "10.244.2.0/24"),
    ]);
    routed.until("both", |t| t.contains(TO_W1) && t.contains("10.244.2.0/24"));
    routed.stop();
    // The API server answers late: the agent that starts does not know of any peer.
    *routed.peers.lock().unwrap() = None;
    assert!(routed.table().contains("10.244.2.0/24"), "a stopped agent takes nothing away");
    let pod = Namespace::new();
    let ip = routed.node.add("c1", &pod.path()).ip();
    routed.node.ns.ip(&format!("route delete {ip}/32"));
    routed.outcome.store(Arc::default());
    routed.start();
    // Its runs bring the pod's route back, and touch no peer's.
    routed.until("a whole run", |t| t.contains(&ip.to_string()) && routed.outcome.load().installed == 1);
    let table = routed.table();
    assert!(table.contains(TO_W1) && table.contains("10.244.2.0/24"), "{table}");
    routed.set_peers(vec![peer("k8s-w1", "192.168.10.101", "10.244.1.0/24")]);
    routed.until("the stale one is known as own and removed", |t| {
        t.contains(TO_W1) && !t.contains("10.244.2.0/24")
    });
}

#[test]
fn without_endpoint_routes_podwire_host_carries_the_cidr() {
    let routed = Routed::new(false, false);
    let wanted = "10.244.0.0/24 via 10.244.0.1 dev podwire_host proto kernel src 10.244.0.1";
    routed.until("installed", |t| t.contains(wanted));
    let pod = Namespace::new();
    let ip = routed.node.add("c1", &pod.path()).ip();
    assert!(!routed.table().contains(&ip.to_string()));
    // The whole device deleted by hand: made again, with its address and routes.
    routed.node.ns.ip("link delete podwire_host");
    routed.until("made again", |t| t.contains(wanted));
    assert!(routed.node.ns.ip("-4 address show dev podwire_host").contains("10.244.0.1/32"));
}

/// An agent restarts with the routing mode switched, and switched back.
#[test]
fn a_tunnel_has_a_device_and_routes_to_every_peer() {
    let mut routed = Routed::new(true, false);
    let peers = || {
        vec![
            peer("k8s-w1", "192.168.10.101", "10.244.1.0/24"),
            peer("k8s-w0", "192.168.20.100", "10.244.2.0/24"),
        ]
    };
    routed.set_peers(peers());
    routed.until("direct", |t| t.contains(TO_W1));
    routed.stop();
    let native = routed.values.clone();
    routed.values.routing_mode = RoutingMode::Tunnel;
    routed.values.auto_direct_node_routes = false;
    routed.outcome.store(Arc::default());
    routed.start();
    routed.until("both by the tunnel", |_| routed.outcome.load().installed == 3);
    let table = routed.table();
    for net in ["10.244.1.0/24", "10.244.2.0/24"] {
        let line = format!("{net} via 10.244.0.1 dev podwire_host proto kernel src 10.244.0.1");
        assert!(table.contains(&line), "{table}");
    }
    assert_eq!(routed.outcome.load().errors, [""; 0]);
    let index =
        || routed.node.ns.run(|| Netlink::open().unwrap().link("podwire_vxlan").unwrap().map(|l| l.index));
    assert_eq!(*routed.overlays.lock().unwrap(), [index().unwrap()]);
    // Deleted by hand: made again, and the datapath is told.
    routed.node.ns.ip("link delete podwire_vxlan");
    routed.until("made again", |_| {
        routed.overlays.lock().unwrap().last().copied() == index()
            && routed.overlays.lock().unwrap().len() == 2
    });
    routed.stop();
    routed.values = native;
    routed.start();
    routed.until("direct again", |t| t.contains(TO_W1) && !t.contains("podwire_host proto"));
}

/// An agent restarts with endpointRoutes switched: there is a way to each pod at every moment.
#[test]
fn the_new_way_to_pods_is_there_before_the_old_one_goes() {
    let mut routed = Routed::new(false, false);
    let by_host = "10.244.0.0/24 via 10.244.0.1 dev podwire_host";
    routed.until("installed", |t| t.contains(by_host));
    let pod = Namespace::new();
    let ip = routed.node.add("c1", &pod.path()).ip();
    for endpoint_routes in [true, false] {
        routed.stop();
        routed.values.endpoint_routes.enabled = endpoint_routes;
        routed.at_set_host.lock().unwrap().clear();
        routed.start();
        routed.until("switched", |t| t.contains(by_host) != endpoint_routes);
        // The program leaves podwire_host last, and comes to it first.
        routed.until("the device is seen to", |_| !routed.at_set_host.lock().unwrap().is_empty());
        let seen = routed.at_set_host.lock().unwrap().clone();
        let to_pod: Ipv4Net = ip.into();
        assert!(seen.contains(&to_pod), "{endpoint_routes}: {seen:?}");
        assert!(!seen.contains(&"10.244.0.0/24".parse().unwrap()), "{endpoint_routes}: {seen:?}");
    }
    routed.stop();
    // The same of the routes alone, in the order in which they were changed.
    let device = routed.node.core().live()[0].endpoint.key().device();
    let inputs = |endpoint_routes| Inputs {
        router: Some("10.244.0.1".parse().unwrap()),
        pod_cidrs: vec!["10.244.0.0/24".parse().unwrap()],
        peers: Some(Vec::new()),
        endpoints: vec![(ip, device.clone())],
        endpoint_routes,
        ..Inputs::default()
    };
    routed.node.ns.run(|| {
        let mut reconciler = Reconciler::open(routed.node.core().store().clone()).unwrap();
        for endpoint_routes in [true, false] {
            let planned = plan(&inputs(endpoint_routes));
            let changes = reconciler.run(&mut Netlink::open().unwrap(), &planned).unwrap().changes;
            let verbs: Vec<&str> = changes.iter().map(|c| c.split(' ').next().unwrap()).collect();
            assert!(
                verbs.is_sorted() && verbs.contains(&"added") && verbs.contains(&"deleted"),
                "{changes:?}"
            );
        }
    });
}
