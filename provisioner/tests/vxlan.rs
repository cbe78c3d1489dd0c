//! A whole lab whose nodes have a tunnel between them, as the course's fourth week shows it, and which goes to native routing
//! and back while its pods run.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Lab, bin, eventually, ok, run};

const TUNNEL: [&str; 2] = ["routingMode=tunnel", "autoDirectNodeRoutes=false"];
const NATIVE: [&str; 2] = ["routingMode=native", "autoDirectNodeRoutes=true"];

/// Changes values, and lets the agents act on them.
fn upgrade(lab: &Lab, sets: &[&str]) {
    ok(Command::new(bin("lab"))
        .args(["upgrade", &lab.name])
        .args(sets.iter().flat_map(|set| ["--set", set])));
    // kubectl refuses a second restart within a second.
    eventually("kubectl restarts the agents", || {
        let out = run(&mut lab.kubectl(&["-n", "kube-system", "rollout", "restart", "ds/podwire"]));
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });
    ok(&mut lab.kubectl(&["-n", "kube-system", "rollout", "status", "ds/podwire", "--timeout=60s"]));
    let mode = sets[0].trim_start_matches("routingMode=");
    for node in ["k8s-ctr", "k8s-w1"] {
        eventually("the agent is healthy in its new mode", || {
            let out = run(&mut lab.on(node, &["podwire", "status"]));
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            let healthy = out.status.success() && text.contains(&format!("Routing:          {mode}, "));
            if healthy { Ok(()) } else { Err(text) }
        });
    }
}

/// The address of the webpod that is on the other node than curl-pod.
fn web(lab: &Lab) -> String {
    lab.pods("app=webpod").into_iter().find(|(_, _, node)| node == "k8s-w1").unwrap().1
}

/// What curl-pod's ping, with these words, prints.
fn ping(lab: &Lab, words: &[&str]) -> String {
    let out = run(lab.in_curl_pod(&["ping", "-n", "-c1", "-W5"]).args(words));
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// One request from curl-pod to the other node's webpod: whom that saw.
fn seen(lab: &Lab) -> String {
    let url = format!("http://{}/", web(lab));
    let page = ok(&mut lab.in_curl_pod(&["curl", "-sS", "--max-time", "10", &url]));
    let line = page.lines().find_map(|line| line.strip_prefix("RemoteAddr: ")).unwrap();
    line.rsplit_once(':').unwrap().0.to_owned()
}

/// Traffic between the pods of both nodes, captured between the nodes.
fn capture(lab: &Lab, directory: &Path, name: &str) -> PathBuf {
    let file = directory.join(name);
    let url = format!("http://{}/", web(lab));
    let mut command = lab.command("capture");
    command.args(["--on", "k8s-ctr:eth1", "--on", "k8s-w1:eth1", "-w"]).arg(&file).arg("--");
    let asks = lab.in_curl_pod(&["curl", "-sS", "--max-time", "10", "-o", "/dev/null", &url]);
    for (key, value) in asks.get_envs() {
        command.env(key, value.unwrap());
    }
    ok(command.arg(asks.get_program()).args(asks.get_args()));
    file
}

fn check(lab: &Lab, file: &Path, expectation: &str) -> Output {
    run(lab.command("check").arg(file).args(["--expect", expectation, "-o", "json"]))
}

fn assert_expected(lab: &Lab, file: &Path, holds: &str, fails: &str) {
    let held = check(lab, file, holds);
    assert_eq!(held.status.code(), Some(0), "{}", String::from_utf8_lossy(&held.stdout));
    let failed = check(lab, file, fails);
    assert_eq!(failed.status.code(), Some(1), "{}", String::from_utf8_lossy(&failed.stdout));
    let report: serde_json::Value = serde_json::from_slice(&failed.stdout).unwrap();
    assert_eq!(report["verdict"], "failed");
}

fn has_tunnel(lab: &Lab, node: &str) -> bool {
    ok(&mut lab.on(node, &["ip", "-o", "link"])).contains("podwire_vxlan")
}

#[test]
fn pods_are_wrapped_and_go_to_native_routing_and_back_while_they_run() {
    let lab = Lab::up("native-routing", &["--set", TUNNEL[0], "--set", TUNNEL[1]]);
    let directory = tempfile::tempdir().unwrap();
    let curl = lab.get(&["get", "pod", "curl-pod", "-o", "jsonpath={.status.podIP}"]);
    let pods = || {
        let ids = r#"jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[0].containerID}{"\n"}{end}"#;
        lab.get(&["get", "pods", "-o", ids])
    };
    let before = pods();

    assert_eq!(seen(&lab), curl);
    let link = ok(&mut lab.in_curl_pod(&["ip", "-o", "link", "show", "eth0"]));
    assert!(link.contains("mtu 1450"), "{link}");
    let echoed = ping(&lab, &[&web(&lab)]);
    assert!(echoed.contains("ttl=63"), "one router on the way: {echoed}");
    let refused = ping(&lab, &["-M", "do", "-s", "1472", &web(&lab)]).to_lowercase();
    assert!(refused.contains("message too l"), "{refused}");
    // What leaves the cluster is masqueraded as ever; the nodes reach each other's pods.
    let page = ok(&mut lab.in_curl_pod(&["curl", "-sS", "--max-time", "10", "http://10.10.1.200/"]));
    assert!(page.contains("Web Server : router"), "{page}");
    ok(&mut lab.on("k8s-ctr", &["ping", "-n", "-c1", "-W5", &web(&lab)]));
    assert_expected(&lab, &capture(&lab, directory.path(), "tunnel.pcapng"), "vxlan", "native");
    // The checks know the identities, so the last question was asked.
    let report = check(&lab, &directory.path().join("tunnel.pcapng"), "vxlan");
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
    let asked = report["checks"].as_array().unwrap().iter().find(|c| c["id"] == "vni-is-identity").unwrap();
    assert_eq!(asked["verdict"], "held", "{asked}");

    upgrade(&lab, &NATIVE);
    assert_eq!(seen(&lab), curl);
    assert!(!has_tunnel(&lab, "k8s-ctr") && !has_tunnel(&lab, "k8s-w1"));
    let echoed = ping(&lab, &[&web(&lab)]);
    assert!(echoed.contains("ttl=62"), "a router on each node: {echoed}");
    assert_expected(&lab, &capture(&lab, directory.path(), "native.pcapng"), "native", "vxlan");
    // A pod that is made now is made for the whole MTU of the network.
    lab.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: late}\nspec:\n  nodeName: k8s-ctr\n  containers:\n  - \
         {name: c, image: nicolaka/netshoot, command: [tail], args: [-f, /dev/null]}\n",
    );
    ok(&mut lab.kubectl(&["wait", "--for=condition=Ready", "pod/late", "--timeout=60s"]));
    let mtu = || ok(&mut lab.kubectl(&["exec", "late", "--", "ip", "-o", "link", "show", "eth0"]));
    assert!(mtu().contains("mtu 1500"), "{}", mtu());

    upgrade(&lab, &TUNNEL);
    assert!(has_tunnel(&lab, "k8s-ctr") && has_tunnel(&lab, "k8s-w1"));
    assert_eq!(seen(&lab), curl);
    assert_expected(&lab, &capture(&lab, directory.path(), "again.pcapng"), "vxlan", "native");
    // It keeps that MTU, and is told what fits.
    assert!(mtu().contains("mtu 1500"), "{}", mtu());
    let words = ["exec", "late", "--", "ping", "-n", "-c1", "-W5", "-M", "do", "-s", "1472"];
    let told = run(lab.kubectl(&words).arg(web(&lab)));
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.to_lowercase().contains("frag needed") && told.contains("1450"), "{told}");
    let now = pods();
    assert!(before.lines().all(|pod| now.contains(pod)), "before:\n{before}\nnow:\n{now}");
}

#[test]
fn values_that_contradict_a_tunnel_are_refused() {
    let refused = |sets: &[&str]| {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let out = run(Command::new(bin("lab")).args(["up", "native-routing", "--dry-run"]).args(sets));
        assert_eq!(out.status.code(), Some(2), "{}", String::from_utf8_lossy(&out.stdout));
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    let said = refused(&["routingMode=tunnel"]);
    assert!(
        said.contains("autoDirectNodeRoutes") && said.contains("write autoDirectNodeRoutes=false"),
        "{said}"
    );
    let said = refused(&["routingMode=tunnel", "autoDirectNodeRoutes=false", "tunnelProtocol=geneve"]);
    assert!(said.contains("geneve is not implemented; write tunnelProtocol=vxlan"), "{said}");
    let said = refused(&["tunnelProtocol=gre"]);
    assert!(said.contains("expected `vxlan`"), "{said}");
}
