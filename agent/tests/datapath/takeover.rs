//! An agent that ends, is killed, comes back or is replaced costs no packet; and what is taken away is gone.

use std::{
    fs,
    net::UdpSocket,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
};

use aya::programs::{SchedClassifier, TcAttachType};
use podwire_agent::datapath::{AttachMode, Datapath, Hook};

use crate::net::{Cluster, Node, PATIENCE, Pod, Setup, TCX, eventually, inside, isolated, sh};

/// The directories of programs that are pinned.
fn program_sets(node: &Node) -> Vec<PathBuf> {
    fs::read_dir(node.pin_dir.join(format!("v{}", podwire_abi::ABI_VERSION)))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("programs-"))
        .collect()
}

/// Everything below a directory, by path from there.
pub fn tree(dir: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            all.push(path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned());
            if path.is_dir() {
                todo.push(path);
            }
        }
    }
    all.sort();
    all
}

/// What runs at a device: numbers of the programs of tcx links, and clsact filters as `tc` shows them.
#[derive(Debug, PartialEq)]
struct Running {
    tcx: Vec<u32>,
    clsact: Vec<String>,
}

fn running(node: &str, device: &str) -> Running {
    inside(node, || {
        let mut running = Running { tcx: Vec::new(), clsact: Vec::new() };
        for (point, name) in [(TcAttachType::Ingress, "ingress"), (TcAttachType::Egress, "egress")] {
            let (_, programs) = SchedClassifier::query_tcx(device, point).unwrap();
            running.tcx.extend(programs.iter().map(aya::programs::ProgramInfo::id));
            let filters = sh(&format!("tc filter show dev {device} {name}"));
            running.clsact.extend(filters.lines().filter(|line| line.contains("handle")).map(str::to_owned));
        }
        running
    })
}

/// Sets a flag when it goes away: a failing thread ends the others too.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Sends datagrams from one pod to another, and back, while something happens; none may be lost.
pub fn without_loss(from: &Pod, to: &Pod, happens: impl FnOnce()) -> u32 {
    const WINDOW: u32 = 64;
    let server = inside(&to.netns, || UdpSocket::bind((to.ip, 0)).unwrap());
    let client = inside(&from.netns, || UdpSocket::bind((from.ip, 0)).unwrap());
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    client.connect(server.local_addr().unwrap()).unwrap();
    let (stop, sent, returned) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        let echo = scope.spawn(|| {
            let _stop = Stop(&stop);
            let mut buffer = [0; 64];
            loop {
                let (length, peer) = server.recv_from(&mut buffer).expect("a datagram, or the last one");
                if length == 1 {
                    return;
                }
                server.send_to(&buffer[..length], peer).unwrap();
            }
        });
        let receiver = scope.spawn(|| {
            let _stop = Stop(&stop);
            let mut buffer = [0; 64];
            let mut next = 0_u32;
            while !stop.load(Ordering::Acquire) || next < sent.load(Ordering::Acquire) {
                if next == sent.load(Ordering::Acquire) {
                    thread::yield_now();
                    continue;
                }
                let length =
                    client.recv(&mut buffer).unwrap_or_else(|e| panic!("datagram {next} was lost: {e}"));
                assert_eq!(length, 4);
                let number = u32::from_be_bytes(buffer[..4].try_into().unwrap());
                assert_eq!(number, next, "datagrams before {number} were lost");
                next += 1;
                returned.store(next, Ordering::Release);
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                let number = sent.load(Ordering::Acquire);
                if number - returned.load(Ordering::Acquire) < WINDOW {
                    client.send(&number.to_be_bytes()).unwrap();
                    sent.store(number + 1, Ordering::Release);
                } else {
                    thread::yield_now();
                }
            }
        });
        let guard = Stop(&stop);
        let more = |from: u32| {
            eventually("a thousand datagrams more", || {
                assert!(!receiver.is_finished() && !echo.is_finished(), "the stream broke");
                returned.load(Ordering::Acquire) > from + 1000
            });
        };
        more(0);
        happens();
        more(returned.load(Ordering::Acquire));
        drop(guard);
        receiver.join().unwrap();
        client.send(&[0]).unwrap();
    });
    returned.into_inner()
}

/// Restarts with the same and with other programs, in both modes, in the middle of traffic.
#[test]
fn restarts_cost_no_packet() {
    for mode in [AttachMode::Tcx, AttachMode::Clsact] {
        for endpoint_routes in [true, false] {
            isolated(|| {
                let mut cluster = Cluster::new(Setup { mode, endpoint_routes });
                let (a, b, c) =
                    (cluster.nodes[0].pod(10), cluster.nodes[0].pod(11), cluster.nodes[1].pod(10));
                for to in [&b, &c] {
                    let count = without_loss(&a, to, || {
                        for round in 0..6 {
                            for node in &mut cluster.nodes {
                                if round % 2 == 1 {
                                    // As if another build had pinned them: the next start loads its own.
                                    for set in program_sets(node) {
                                        fs::remove_dir_all(set).unwrap();
                                    }
                                }
                                node.restart();
                            }
                        }
                    });
                    assert!(count > 2000, "{count}");
                }
                for node in &cluster.nodes {
                    assert_eq!(program_sets(node).len(), 1);
                }
                let endpoints = cluster.nodes[0].datapath.endpoints().unwrap();
                assert_eq!(endpoints, [(a.ip, a.endpoint), (b.ip, b.endpoint)], "addresses are kept");
            });
        }
    }
}

/// An agent of another ABI has its own, empty maps. What is attached works with the old ones until its pods are added.
#[test]
fn another_abi_takes_over_pod_by_pod() {
    for mode in [AttachMode::Tcx, AttachMode::Clsact] {
        for endpoint_routes in [true, false] {
            isolated(|| {
                let mut cluster = Cluster::new(Setup { mode, endpoint_routes });
                let (a, b, c) =
                    (cluster.nodes[0].pod(10), cluster.nodes[0].pod(11), cluster.nodes[1].pod(10));
                let node = &mut cluster.nodes[0];
                let before = running("node1", &a.device);
                for to in [&b, &c] {
                    without_loss(&a, to, || {
                        let version = node.pin_dir.join(format!("v{}", podwire_abi::ABI_VERSION));
                        fs::rename(version, node.pin_dir.join("v0")).unwrap();
                        // Killed once on its way, then started again.
                        for _ in 0..2 {
                            let datapath =
                                inside("node1", || Datapath::open_in(&node.pin_dir, mode).unwrap());
                            assert_eq!(datapath.endpoints().unwrap(), []);
                            node.datapath = datapath;
                        }
                        node.configure_and_restore(&[&a, &b]);
                    });
                }
                assert_ne!(before, running("node1", &a.device), "the new programs run");
                assert_eq!(node.datapath.endpoints().unwrap().len(), 2);
                let config = node.datapath.config().unwrap();
                assert_ne!(config.pod_cidrs[0].mask, 0, "the pod CIDRs are known in the end");
                assert!(!node.pin_dir.join("v0").exists());
            });
        }
    }
}

/// An agent that finds its own programs disturbs nothing: the same program numbers run, the same pins are there.
#[test]
fn the_same_programs_are_left_in_place() {
    for mode in [AttachMode::Tcx, AttachMode::Clsact] {
        isolated(|| {
            let mut cluster = Cluster::new(Setup { mode, endpoint_routes: false });
            let pod = cluster.nodes[0].pod(10);
            let node = &mut cluster.nodes[0];
            let before =
                [running("node1", &pod.device), running("node1", "eth1"), running("node1", "podwire_host")];
            for device in &before {
                let one = (device.tcx.len(), device.clsact.len());
                assert_eq!(one, if mode == AttachMode::Tcx { (1, 0) } else { (0, 1) }, "{device:?}");
            }
            let pins = tree(&node.pin_dir);
            node.restart();
            let after =
                [running("node1", &pod.device), running("node1", "eth1"), running("node1", "podwire_host")];
            assert_eq!(before, after);
            assert_eq!(pins, tree(&node.pin_dir));
        });
    }
}

/// Whatever a crash leaves of the pins, the next start mends it, and traffic flows on meanwhile.
#[test]
fn half_made_pins_are_mended() {
    isolated(|| {
        let mut cluster = Cluster::new(TCX);
        let (a, c) = (cluster.nodes[0].pod(10), cluster.nodes[1].pod(10));
        let whole = tree(&cluster.nodes[0].pin_dir);
        let version = cluster.nodes[0].pin_dir.join(format!("v{}", podwire_abi::ABI_VERSION));
        let set = program_sets(&cluster.nodes[0]).remove(0);
        let damages: [&dyn Fn(); 6] = [
            // Killed while loading: some programs in the staging directory.
            &|| {
                fs::create_dir(version.join("staging")).unwrap();
                fs::rename(set.join("from_host"), version.join("staging/from_host")).unwrap();
            },
            &|| fs::remove_file(set.join("from_endpoint")).unwrap(),
            &|| fs::remove_dir_all(&set).unwrap(),
            // Another version's leftovers.
            &|| {
                fs::create_dir_all(cluster.nodes[0].pin_dir.join("v0/maps")).unwrap();
                fs::create_dir_all(version.join("programs-0000000000000000")).unwrap();
            },
            // An attachment to a device that never was, and a mark of one.
            &|| fs::create_dir(cluster.nodes[0].pin_dir.join("clsact/from_endpoint-4711")).unwrap(),
            &|| {},
        ];
        for (number, damage) in damages.iter().enumerate() {
            damage();
            let mut datapath = None;
            without_loss(&a, &c, || {
                datapath =
                    Some(inside("node1", || Datapath::open_in(&cluster.nodes[0].pin_dir, TCX.mode).unwrap()));
            });
            assert_eq!(tree(&cluster.nodes[0].pin_dir), whole, "after damage {number}");
            assert_eq!(datapath.unwrap().endpoints().unwrap(), [(a.ip, a.endpoint)]);
        }
        // A lost map cannot be mended in place: programs and a new map take over, and the agent fills it again.
        fs::remove_file(version.join("maps/podwire_ep")).unwrap();
        cluster.nodes[0].restart();
        assert_eq!(cluster.nodes[0].datapath.endpoints().unwrap(), []);
        inside("node1", || cluster.nodes[0].datapath.add_endpoint(a.ip, a.endpoint).unwrap());
        a.assert_reaches(c.ip);
        assert_eq!(tree(&cluster.nodes[0].pin_dir), whole);
        // A map of another shape under our name.
        sh(&format!("rm {}", version.join("maps/podwire_config").display()));
        sh(&format!(
            "bpftool map create {} type array key 4 value 4 entries 1 name podwire_config",
            version.join("maps/podwire_config").display()
        ));
        cluster.nodes[0].restart();
        a.assert_reaches(c.ip);
        assert_eq!(tree(&cluster.nodes[0].pin_dir), whole);
    });
}

/// Attachments of devices that vanished while no agent ran are forgotten; those of living ones are not.
#[test]
fn attachments_of_vanished_devices_are_forgotten() {
    for mode in [AttachMode::Tcx, AttachMode::Clsact] {
        isolated(|| {
            let mut cluster = Cluster::new(Setup { mode, endpoint_routes: true });
            let (a, b) = (cluster.nodes[0].pod(10), cluster.nodes[0].pod(11));
            sh(&format!("ip -n node1 link del {}", b.device));
            let node = &mut cluster.nodes[0];
            let datapath = inside("node1", || Datapath::open_in(&node.pin_dir, mode).unwrap());
            let mut attached = datapath.attachments().unwrap();
            attached.sort_by_key(|(_, ifindex)| *ifindex);
            assert_eq!(attached, [(Hook::FromNetwork, node.eth1), (Hook::FromEndpoint, a.endpoint.ifindex)]);
            // Idempotent: device, link and entry in any state.
            for _ in 0..2 {
                inside("node1", || datapath.remove_endpoint(b.ip, b.endpoint.ifindex).unwrap());
            }
            assert_eq!(datapath.endpoints().unwrap(), [(a.ip, a.endpoint)]);
        });
    }
}

/// Removing a pod whose address is another's by now leaves the other alone.
#[test]
fn an_address_given_again_is_not_taken_away() {
    isolated(|| {
        let cluster = Cluster::new(TCX);
        let [one, two] = &cluster.nodes;
        let (a, c) = (one.pod(10), two.pod(10));
        inside("node1", || one.datapath.remove_endpoint(a.ip, 4711).unwrap());
        assert_eq!(one.datapath.endpoints().unwrap(), [(a.ip, a.endpoint)]);
        c.assert_reaches(a.ip);
    });
}

/// Changing the mode replaces the attachment of the other mode; a second start does not add a second program.
#[test]
fn there_is_one_program_a_hook_whatever_happens() {
    isolated(|| {
        let mut cluster = Cluster::new(TCX);
        let (a, c) = (cluster.nodes[0].pod(10), cluster.nodes[1].pod(10));
        let count = || {
            let running = running("node1", &a.device);
            (running.tcx.len(), running.clsact.len())
        };
        assert_eq!(count(), (1, 0));
        // The kernel stops a device's queue for the moment in which it gets its first clsact qdisc; that is not ours.
        for device in ["eth1", &a.device] {
            inside("node1", || sh(&format!("tc qdisc add dev {device} clsact")));
        }
        without_loss(&a, &c, || {
            for mode in [AttachMode::Clsact, AttachMode::Clsact, AttachMode::Tcx, AttachMode::Tcx] {
                cluster.nodes[0].setup.mode = mode;
                cluster.nodes[0].restart();
                assert_eq!(cluster.nodes[0].datapath.attach_mode(), mode);
                assert_eq!(count(), if mode == AttachMode::Tcx { (1, 0) } else { (0, 1) });
            }
        });
    });
}

/// When everything is removed, nothing is left at the devices, and removing the pins removes the rest.
#[test]
fn removal_leaves_nothing() {
    for mode in [AttachMode::Tcx, AttachMode::Clsact] {
        isolated(|| {
            let cluster = Cluster::new(Setup { mode, endpoint_routes: false });
            let node = &cluster.nodes[0];
            let pod = node.pod(10);
            inside("node1", || {
                let host = nix::net::if_::if_nametoindex("podwire_host").unwrap();
                for _ in 0..2 {
                    node.datapath.remove_endpoint(pod.ip, pod.endpoint.ifindex).unwrap();
                    node.datapath.detach_network_device(node.eth1).unwrap();
                    node.datapath.detach_host_device(host).unwrap();
                }
            });
            assert_eq!(node.datapath.attachments().unwrap(), []);
            for device in [&pod.device as &str, "eth1", "podwire_host"] {
                assert_eq!(running("node1", device), Running { tcx: vec![], clsact: vec![] }, "{device}");
            }
            let pins = node.pin_dir.clone();
            drop(cluster);
            fs::remove_dir_all(&pins).unwrap();
            assert!(!pins.exists());
        });
    }
}
