//! Native routing across a router that knows nothing of pods, and the routes that mend it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::process::Command;

use common::{Lab, bin, eventually, ok, run};

/// Which nodes' web servers answer curl-pod, sorted.
fn answering(lab: &Lab) -> Vec<String> {
    let mut nodes: Vec<String> = lab
        .pods("app=webpod")
        .into_iter()
        .filter(|(_, ip, _)| {
            let url = format!("http://{ip}/");
            run(&mut lab.in_curl_pod(&["curl", "-s", "-o", "/dev/null", "--max-time", "2", &url]))
                .status
                .success()
        })
        .map(|(_, _, node)| node)
        .collect();
    nodes.sort();
    nodes
}

fn routes(lab: &Lab, args: &[&str]) -> String {
    ok(Command::new(bin("lab")).args(["routes", &lab.name]).args(args))
}

#[test]
fn the_router_must_know_the_pods() {
    let lab = Lab::up("cross-subnet", &[]);
    assert_eq!(answering(&lab), ["k8s-ctr", "k8s-w1"], "two of three");
    let ctr = ok(&mut lab.on("k8s-ctr", &["ip", "route"]));
    let far = lab.get(&["get", "nn", "k8s-w0", "-o", "jsonpath={.spec.ipam.podCIDRs[0]}"]);
    assert!(!ctr.contains(&format!("{far} via")), "no direct route across the router: {ctr}");

    // The call comes to the router, and leaves it by its default route.
    let pod = lab.pods("app=webpod").into_iter().find(|p| p.2 == "k8s-w0").unwrap().1;
    let way = ok(&mut lab.on("router", &["ip", "route", "get", &pod]));
    assert!(way.contains("dev eth0"), "{way}");

    let lines = routes(&lab, &["--for", "router"]);
    assert_eq!(lines.lines().count(), 3, "{lines}");
    assert!(lines.contains(&format!("ip route replace {far} via 192.168.20.100\n")), "{lines}");
    for line in lines.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        ok(&mut lab.on("router", &words));
    }
    eventually("three of three", || {
        let nodes = answering(&lab);
        if nodes.len() == 3 { Ok(()) } else { Err(format!("{nodes:?}")) }
    });
    let json: serde_json::Value =
        serde_json::from_str(&routes(&lab, &["--for", "router", "-o", "json"])).unwrap();
    assert!(
        json.as_array().unwrap().iter().any(|r| r["to"] == far.as_str() && r["node"] == "k8s-w0"),
        "{json}"
    );
    let wrong = run(Command::new(bin("lab")).args(["routes", &lab.name, "--for", "nobody"]));
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn what_native_routing_costs() {
    let said = ok(Command::new(bin("lab")).args(["routes", "--project", "450"]));
    assert!(said.contains("449") && said.contains("450"), "{said}");
    let line = |name: &str| said.lines().find(|l| l.starts_with(name)).unwrap().to_owned();
    assert!(line("AWS").ends_with("  fits") && line("Azure").ends_with("does not fit"), "{said}");
}
