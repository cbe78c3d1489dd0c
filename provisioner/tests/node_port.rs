//! Ports of nodes in a whole lab, with a real kubectl and a real curl: the router calls, pods answer.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use common::{Lab, eventually, ok, run};
use serde_json::Value;

/// So many times is the service called: that one of two backends then never answers has a chance of 2 in 2^40.
const CALLS: usize = 40;

/// curl's exit codes for a connection that was refused, and for one that was not answered in time.
const REFUSED: i32 = 7;

const ROUTER: &str = "192.168.10.200";
const NODES: [(&str, &str); 2] = [("k8s-ctr", "192.168.10.100"), ("k8s-w1", "192.168.10.101")];

/// What the web server says of one call: who it is, and whom it saw.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Answer {
    pod: String,
    seen: String,
}

fn answer(text: &str) -> Option<Answer> {
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let seen = value("RemoteAddr")?.rsplit_once(':')?.0;
    Some(Answer { pod: value("Hostname")?.to_owned(), seen: seen.to_owned() })
}

/// Calls once from a machine: curl's exit code, and the answer.
fn call(lab: &Lab, from: &str, url: &str) -> (Option<i32>, Option<Answer>) {
    let out = run(&mut lab.on(from, &["curl", "-sS", "--max-time", "10", url]));
    (out.status.code(), answer(&String::from_utf8_lossy(&out.stdout)))
}

fn calls(lab: &Lab, from: &str, url: &str) -> BTreeSet<Answer> {
    (0..CALLS)
        .map(|_| call(lab, from, url).1.unwrap_or_else(|| panic!("{url} does not answer {from}")))
        .collect()
}

fn patch(lab: &Lab, spec: &str) {
    ok(&mut lab.kubectl(&["patch", "service", "webpod", "-p", &format!("{{\"spec\":{spec}}}")]));
}

/// Makes the service's port a port of every node, and waits until the agents have it. Returns the port.
fn expose(lab: &Lab) -> String {
    patch(lab, r#"{"type":"NodePort"}"#);
    let port = lab.get(&["get", "service", "webpod", "-o", "jsonpath={.spec.ports[0].nodePort}"]);
    for (node, _) in NODES {
        eventually("the agent knows the port", || {
            let rows = shown(lab, node, &port);
            if rows.len() == 2 { Ok(()) } else { Err(format!("{rows:?}")) }
        });
    }
    port
}

/// Who answers for a port, for callers inside and outside.
fn shown(lab: &Lab, node: &str, port: &str) -> Vec<(String, usize)> {
    let text = ok(&mut lab.on(node, &["podwire", "bpf", "lb", "list", "-o", "json"]));
    let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
    let of_port = rows.iter().filter(|row| row["frontend"] == format!("0.0.0.0:{port}").as_str());
    of_port
        .map(|row| (row["callers"].as_str().unwrap().to_owned(), row["backends"].as_array().unwrap().len()))
        .collect()
}

#[test]
fn the_router_reaches_every_pod_by_any_node() {
    let lab = Lab::up("native-routing", &[]);
    let port = expose(&lab);
    let webpods = lab.pods("app=webpod");
    let name_on =
        |node: &str| webpods.iter().find(|(_, _, on)| on == node).map(|(name, ..)| name.clone()).unwrap();
    for (node, address) in NODES {
        let url = format!("http://{address}:{port}/");
        let expected: BTreeSet<Answer> = NODES
            .iter()
            .map(|(other, _)| {
                // On the node that was called the pod sees who called; elsewhere it sees that node.
                let seen = if *other == node { ROUTER } else { address };
                Answer { pod: name_on(other), seen: seen.to_owned() }
            })
            .collect();
        assert_eq!(calls(&lab, "router", &url), expected, "{url}");
    }
    let connections = ok(&mut lab.on("k8s-ctr", &["podwire", "bpf", "lb", "connections", "-o", "json"]));
    let connections: Vec<Value> = serde_json::from_str(&connections).unwrap();
    let service = format!("192.168.10.100:{port}");
    assert!(connections.iter().any(|row| row["service"] == service.as_str()), "{connections:?}");

    local_policy_keeps_to_the_node(&lab, &port, &name_on("k8s-w1"));
    patch(&lab, r#"{"externalTrafficPolicy":"Cluster"}"#);
    pods_and_nodes_call_by_any_node(&lab, &port);

    ok(&mut lab.kubectl(&["scale", "deployment", "webpod", "--replicas=0"]));
    for (_, address) in NODES {
        eventually("callers are refused", || {
            match call(&lab, "router", &format!("http://{address}:{port}/")) {
                (Some(REFUSED), None) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
    patch(&lab, r#"{"type":"ClusterIP"}"#);
    eventually("the port is the node's own again", || {
        let rows = shown(&lab, "k8s-ctr", &port);
        if rows.is_empty() { Ok(()) } else { Err(format!("{rows:?}")) }
    });
}

/// `externalTrafficPolicy: Local`: callers see the node's own pods, which see the callers; without one they are refused.
fn local_policy_keeps_to_the_node(lab: &Lab, port: &str, on_w1: &str) {
    patch(lab, r#"{"externalTrafficPolicy":"Local"}"#);
    for (node, address) in NODES {
        eventually("the agent knows the policy", || {
            let rows = shown(lab, node, port);
            if rows.contains(&("outside".into(), 1)) { Ok(()) } else { Err(format!("{rows:?}")) }
        });
        let answers = calls(lab, "router", &format!("http://{address}:{port}/"));
        assert_eq!(answers.len(), 1, "{node}: {answers:?}");
        assert_eq!(answers.first().unwrap().seen, ROUTER);
    }
    // A pod that is left out of the service: its node has none then.
    ok(&mut lab.kubectl(&["label", "pod", on_w1, "app=left-out", "--overwrite"]));
    ok(&mut lab.kubectl(&["scale", "deployment", "webpod", "--replicas=1"]));
    let url = format!("http://192.168.10.101:{port}/");
    eventually("w1 has no pod of the service", || {
        let rows = shown(lab, "k8s-w1", port);
        let none = ("outside".to_owned(), 0);
        if rows.contains(&none) { Ok(()) } else { Err(format!("{rows:?}")) }
    });
    assert_eq!(call(lab, "router", &url).0, Some(REFUSED));
    // Callers inside are not concerned.
    ok(&mut lab.in_curl_pod(&["curl", "-sS", "--max-time", "10", &url]));
    ok(&mut lab.kubectl(&["delete", "pod", on_w1, "--wait=true"]));
    ok(&mut lab.kubectl(&["scale", "deployment", "webpod", "--replicas=2"]));
    ok(&mut lab.kubectl(&["rollout", "status", "deployment/webpod", "--timeout=60s"]));
}

fn pods_and_nodes_call_by_any_node(lab: &Lab, port: &str) {
    let own = lab.get(&["get", "pod", "curl-pod", "-o", "jsonpath={.status.podIP}"]);
    for (_, address) in NODES {
        let url = format!("http://{address}:{port}/");
        let text = ok(&mut lab.in_curl_pod(&["curl", "-sS", "--max-time", "10", &url]));
        assert_eq!(answer(&text).unwrap().seen, own, "the pod is seen as itself: {url}");
        assert!(call(lab, "k8s-ctr", &url).1.is_some(), "a process of a node: {url}");
    }
    assert!(call(lab, "k8s-ctr", &format!("http://127.0.0.1:{port}/")).1.is_some());
}

/// Raises a flag when it is dropped.
struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn backends_come_and_go_without_a_lost_call() {
    let lab = Lab::up("native-routing", &[]);
    ok(&mut lab.kubectl(&["label", "pods", "-l", "app=webpod", "in=yes"]));
    patch(&lab, r#"{"selector":{"app":"webpod","in":"yes"}}"#);
    let port = expose(&lab);
    let url = format!("http://192.168.10.100:{port}/");
    let (stop, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    let lost = thread::scope(|scope| {
        // Also when an assertion fails: the scope would wait for ever.
        let _end = Raise(&stop);
        let caller = scope.spawn(|| {
            let mut lost = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let (code, answer) = call(&lab, "router", &url);
                if answer.is_none() {
                    lost.push(code);
                }
                made.fetch_add(1, Ordering::Relaxed);
            }
            lost
        });
        let some_calls = || {
            let before = made.load(Ordering::Relaxed);
            eventually("calls are made", || {
                if made.load(Ordering::Relaxed) >= before + 10 { Ok(()) } else { Err(String::new()) }
            });
        };
        some_calls();
        // Each pod in turn leaves the service, and comes back; it goes on answering who speaks with it.
        for (name, ..) in lab.pods("app=webpod") {
            for (label, left) in [("in-", 1), ("in=yes", 2)] {
                ok(&mut lab.kubectl(&["label", "pod", &name, label]));
                eventually("the agent knows it", || {
                    let rows = shown(&lab, "k8s-ctr", &port);
                    if rows.contains(&("outside".into(), left)) { Ok(()) } else { Err(format!("{rows:?}")) }
                });
                some_calls();
            }
        }
        ok(&mut lab.kubectl(&["-n", "kube-system", "rollout", "restart", "daemonset/podwire"]));
        ok(&mut lab.kubectl(&[
            "-n",
            "kube-system",
            "rollout",
            "status",
            "daemonset/podwire",
            "--timeout=60s",
        ]));
        some_calls();
        stop.store(true, Ordering::Relaxed);
        caller.join().unwrap()
    });
    assert_eq!(lost, [], "of {}", made.load(Ordering::Relaxed));
    assert!(made.load(Ordering::Relaxed) >= 40);
}

/// Without programs at sockets each packet is balanced; pods notice nothing, but their own packets carry the ClusterIP.
#[test]
fn without_sockets_every_packet_is_balanced() {
    let lab = Lab::up("native-routing", &["--set", "socketLB.enabled=false"]);
    for (node, _) in NODES {
        let status = ok(&mut lab.on(node, &["podwire", "status"]));
        assert!(status.contains("packet by packet"), "{status}");
    }
    let port = expose(&lab);
    let own = lab.get(&["get", "pod", "curl-pod", "-o", "jsonpath={.status.podIP}"]);
    let cluster_ip = lab.get(&["get", "service", "webpod", "-o", "jsonpath={.spec.clusterIP}"]);
    let urls = [
        format!("http://{cluster_ip}/"),
        format!("http://192.168.10.100:{port}/"),
        format!("http://192.168.10.101:{port}/"),
    ];
    for url in urls {
        let mut answered = BTreeSet::new();
        for _ in 0..CALLS {
            let text = ok(&mut lab.in_curl_pod(&["curl", "-sS", "--max-time", "10", &url]));
            answered.insert(answer(&text).unwrap());
        }
        assert_eq!(answered.len(), 2, "{url}");
        assert!(answered.iter().all(|answer| answer.seen == own), "{url}: {answered:?}");
    }
    // The API server is a server of the node itself: its answers come from the node's stack.
    let out = ok(&mut lab.in_curl_pod(&["curl", "-sSk", "--max-time", "10", "https://10.96.0.1/version"]));
    assert!(out.contains("gitVersion"), "{out}");
}
