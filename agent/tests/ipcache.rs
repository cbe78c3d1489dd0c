//! Owners of addresses in the datapath, against the real kernel: the node's own are known whoever told of them.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::TestNode;
use ipnet::Ipv4Net;
use podwire_abi::IpcacheEntry;
use podwire_abi::identity::{HOST, UNMANAGED};
use podwire_agent::controllers::ipcache::Controller;

/// Runs the controller, as the daemon runs it, while `test` looks at what it does.
fn running(node: &TestNode, complete: Arc<AtomicBool>, test: impl FnOnce()) {
    let controller = Controller {
        core: node.core().clone(),
        complete: Box::new(move || complete.load(Ordering::SeqCst)),
        nodes: Box::new(Vec::new),
        pods: Box::new(Vec::new),
        identities: Box::new(std::collections::BTreeMap::new),
        names: Arc::default(),
        health: Arc::default(),
    };
    let (stop, stopped) = mpsc::channel::<()>();
    // A runtime built inside the node's namespace stays there with all its threads.
    let thread = node.ns.run(move || {
        thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.spawn(controller.run());
            let _ = stopped.recv();
        })
    });
    test();
    drop(stop);
    thread.join().unwrap();
}

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

/// Waits until the datapath says so; the deadline only ends a test that would hang.
fn until(node: &TestNode, what: &str, address: &str, identity: Option<u32>) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let known = || node.datapath.ipcache.lock().unwrap().get(&net(address)).map(|e| e.identity);
    while known() != identity {
        assert!(Instant::now() < deadline, "{what}: {:?}", node.datapath.ipcache.lock().unwrap());
        thread::yield_now();
    }
}

#[test]
fn every_address_of_the_node_is_the_hosts_as_it_comes_and_goes() {
    let node = TestNode::new("10.244.0.0/24");
    node.ns.ip("link set lo up");
    running(&node, Arc::new(AtomicBool::new(true)), || {
        until(&node, "the router's", "10.244.0.1/32", Some(HOST));
        node.ns.ip("address add 10.0.2.15/24 dev podwire_host");
        until(&node, "one that is added", "10.0.2.15/32", Some(HOST));
        node.ns.ip("address delete 10.0.2.15/24 dev podwire_host");
        until(&node, "one that is taken away", "10.0.2.15/32", None);
        until(&node, "the loopback's", "127.0.0.1/32", None);
    });
}

#[test]
fn what_was_known_stays_until_the_api_server_has_told_everything() {
    let node = TestNode::new("10.244.0.0/24");
    let entry = IpcacheEntry { identity: UNMANAGED, node_ip: 7 };
    node.datapath.ipcache.lock().unwrap().insert(net("10.244.1.0/24"), entry);
    let complete = Arc::new(AtomicBool::new(false));
    running(&node, complete.clone(), || {
        until(&node, "a first run", "10.244.0.1/32", Some(HOST));
        // What a run takes away it does last: the second begins when the first has ended.
        node.ns.ip("address add 10.0.2.15/24 dev podwire_host");
        until(&node, "a second run", "10.0.2.15/32", Some(HOST));
        until(&node, "kept", "10.244.1.0/24", Some(UNMANAGED));
        complete.store(true, Ordering::SeqCst);
        node.core().signal().notify();
        until(&node, "forgotten", "10.244.1.0/24", None);
    });
}
