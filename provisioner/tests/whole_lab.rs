//! The main job from end to end: a lab is booted, used with a real kubectl, and proved from a capture.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use common::{Lab, bin, eventually, ok, run};

fn in_24(ip: &str, cidr: &str) -> bool {
    let (net, _) = cidr.split_once('/').unwrap();
    let (ip, net): (Ipv4Addr, Ipv4Addr) = (ip.parse().unwrap(), net.parse().unwrap());
    ip.octets()[..3] == net.octets()[..3]
}

/// curl-pod's address, and the name and address of the webpod on the other node.
fn ends(lab: &Lab) -> (String, String, String) {
    let curl = lab.get(&["get", "pod", "curl-pod", "-o", "jsonpath={.status.podIP}"]);
    let (name, ip, _) =
        lab.pods("app=webpod").into_iter().find(|p| p.2 == "k8s-w1").expect("a webpod on k8s-w1");
    (curl, name, ip)
}

#[test]
fn every_pod_has_an_address_of_its_nodes_cidr_and_reaches_the_other_node_with_it() {
    let lab = Lab::up("native-routing", &[]);
    let cidrs = lab.get(&[
        "get",
        "nodes",
        "-o",
        r#"jsonpath={range .items[*]}{.metadata.name}{" "}{.spec.podCIDR}{"\n"}{end}"#,
    ]);
    assert_eq!(cidrs, "k8s-ctr 10.244.0.0/24\nk8s-w1 10.244.1.0/24");
    let pods = lab.pods("app=webpod");
    assert_eq!(pods.len(), 2);
    assert_ne!(pods[0].2, pods[1].2, "the replicas are spread");
    for (name, ip, node) in &pods {
        let cidr = lab.get(&["get", "node", node, "-o", "jsonpath={.spec.podCIDR}"]);
        assert!(in_24(ip, &cidr), "{name} on {node} has {ip}, outside {cidr}");
        let nn = lab.get(&["get", "nn", node, "-o", "jsonpath={.spec.ipam.podCIDRs[0]}"]);
        assert_eq!(nn, cidr, "the NodeNetwork says what the node says");
    }
    let (curl_ip, web_name, web_ip) = ends(&lab);
    let answer = ok(&mut lab.in_curl_pod(&["curl", "-sS", "--max-time", "10", &format!("http://{web_ip}/")]));
    assert!(answer.contains(&format!("Hostname: {web_name}")), "{answer}");
    assert!(
        answer.contains(&format!("RemoteAddr: {curl_ip}:")),
        "the server sees the pod's own address: {answer}"
    );
    // Both pods of this node talk too, and the node reaches its pods and the other node's.
    let (_, local_ip, _) = pods.iter().find(|p| p.2 == "k8s-ctr").unwrap();
    ok(&mut lab.in_curl_pod(&["ping", "-c1", "-W5", local_ip]));
    ok(&mut lab.on("k8s-ctr", &["ping", "-c1", "-W5", local_ip]));
    ok(&mut lab.on("k8s-ctr", &["ping", "-c1", "-W5", &web_ip]));
    let routes = ok(&mut lab.on("k8s-ctr", &["ip", "route"]));
    assert!(routes.contains("10.244.1.0/24 via 192.168.10.101 dev eth1 proto kernel"), "{routes}");
    assert!(routes.lines().any(|l| l.starts_with(local_ip) && l.contains("dev lxc")), "{routes}");
    // The router's company network and web server.
    let page = ok(&mut lab.on("k8s-ctr", &["curl", "-sS", "--max-time", "10", "http://10.10.1.200/"]));
    assert!(page.contains("<h1>Web Server : router</h1>"), "{page}");
}

#[test]
fn the_capture_proves_the_pods_own_addresses() {
    let lab = Lab::up("native-routing", &[]);
    let (curl_ip, _, web_ip) = ends(&lab);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wire.pcapng");
    let mut capture = lab
        .command("capture")
        .args(["--on", "k8s-ctr:eth1", "--on", "k8s-w1:eth1", "--filter", "icmp or tcp port 80", "-w"])
        .arg(&file)
        .args(["--count", "8"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    // Traffic until the capture has what it wants.
    eventually("the capture ends by its count", || {
        ok(&mut lab.in_curl_pod(&["ping", "-c1", "-W5", &web_ip]));
        ok(&mut lab.in_curl_pod(&[
            "curl",
            "-sS",
            "--max-time",
            "10",
            "-o",
            "/dev/null",
            &format!("http://{web_ip}/"),
        ]));
        capture.try_wait().unwrap().ok_or_else(|| "still running".to_owned())
    });
    // An independent reader agrees on what is in the file.
    let sources = ok(Command::new("tshark").args(["-n", "-r"]).arg(&file).args([
        "-T",
        "fields",
        "-e",
        "ip.src",
        "-e",
        "frame.interface_name",
    ]));
    assert!(sources.contains(&format!("{curl_ip}\tk8s-ctr:eth1")), "{sources}");
    assert!(sources.contains("k8s-w1:eth1"), "{sources}");
    assert!(!sources.contains("192.168.10.100\t"), "no node address in a pod's place: {sources}");
    let verdict = ok(lab.command("check").arg(&file).args(["--expect", "native", "-o", "json"]));
    let verdict: serde_json::Value = serde_json::from_str(&verdict).unwrap();
    assert_eq!(verdict["verdict"], "held", "{verdict:#}");
    // The same file fails when the pods are said to live elsewhere: the positive control.
    let out = run(Command::new(bin("lab")).arg("check").arg(&file).args([
        "--expect",
        "native",
        "--pod-cidr",
        "10.99.0.0/16",
    ]));
    assert_eq!(out.status.code(), Some(1), "{}", String::from_utf8_lossy(&out.stdout));
}

#[test]
fn conformance_writes_every_form_of_the_report() {
    let lab = Lab::up("native-routing", &[]);
    let dir = tempfile::tempdir().unwrap();
    ok(Command::new(bin("lab"))
        .args(["conformance", &lab.name, "--suite", "quick", "--report"])
        .arg(dir.path()));
    let mut names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    for form in ["index.html", "report.json", "junit.xml", "report.md"] {
        assert!(names.iter().any(|n| n == form), "{form} is missing: {names:?}");
    }
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("report.json")).unwrap()).unwrap();
    assert_eq!(json["verdict"], "held", "{json:#}");
}

#[test]
fn an_agent_that_is_killed_costs_no_packet_and_no_address() {
    let lab = Lab::up("native-routing", &[]);
    let (_, _, web_ip) = ends(&lab);
    let before = lab.pods("app=webpod");
    // A ping that goes on through everything that follows; it ends when told and then counts.
    let ping = lab
        .in_curl_pod(&["timeout", "-s", "INT", "8", "ping", "-i", "0.01", "-q", &web_ip])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    for node in ["k8s-ctr", "k8s-w1"] {
        let old = ok(&mut lab.on(node, &["pgrep", "-x", "podwire-agent"]));
        ok(&mut lab.on(node, &["pkill", "-9", "-x", "podwire-agent"]));
        eventually("the agent comes back", || {
            let now = run(&mut lab.on(node, &["pgrep", "-x", "podwire-agent"]));
            let now = String::from_utf8_lossy(&now.stdout).into_owned();
            if now.trim().is_empty() || now == old { Err(format!("was {old}, is {now}")) } else { Ok(()) }
        });
        eventually("the agent answers", || {
            let out = run(&mut lab.on(node, &["podwire", "status"]));
            if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
        });
    }
    let out = ping.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.contains(" 0% packet loss"), "{text}");
    assert_eq!(lab.pods("app=webpod"), before, "addresses are kept");
}

#[test]
fn a_route_deleted_by_hand_comes_back_and_a_foreign_one_stays() {
    let lab = Lab::up("native-routing", &[]);
    ok(&mut lab.on("k8s-ctr", &["ip", "route", "add", "10.99.0.0/24", "via", "192.168.10.200"]));
    ok(&mut lab.on("k8s-ctr", &["ip", "route", "del", "10.244.1.0/24"]));
    eventually("the route comes back", || {
        let routes = ok(&mut lab.on("k8s-ctr", &["ip", "route"]));
        if routes.contains("10.244.1.0/24 via 192.168.10.101") { Ok(()) } else { Err(routes) }
    });
    ok(&mut lab.kubectl(&["-n", "kube-system", "rollout", "restart", "ds/podwire"]));
    ok(&mut lab.kubectl(&["-n", "kube-system", "rollout", "status", "ds/podwire", "--timeout=60s"]));
    let routes = ok(&mut lab.on("k8s-ctr", &["ip", "route"]));
    assert!(routes.contains("10.99.0.0/24 via 192.168.10.200"), "{routes}");
    assert!(routes.contains("10.244.1.0/24 via 192.168.10.101"), "{routes}");
}

#[test]
fn kubectl_does_the_daily_work() {
    let lab = Lab::up("native-routing", &[]);
    let wide = lab.get(&["get", "pods", "-o", "wide"]);
    assert!(
        wide.contains("NOMINATED NODE") && wide.contains("curl-pod") && wide.contains("Running"),
        "{wide}"
    );
    let nodes = lab.get(&["get", "nodes", "-o", "wide"]);
    assert!(
        nodes.contains("192.168.10.100") && nodes.contains("Ready") && nodes.contains("control-plane"),
        "{nodes}"
    );
    let yaml = lab.get(&["get", "deploy", "webpod", "-o", "yaml"]);
    assert!(yaml.contains("replicas: 2") && yaml.contains("image: traefik/whoami"), "{yaml}");
    lab.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: note}\ndata: {a: one}\n");
    lab.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: note}\ndata: {b: two}\n");
    assert_eq!(
        lab.get(&["get", "cm", "note", "-o", "jsonpath={.data}"]),
        r#"{"b":"two"}"#,
        "apply removes what is gone"
    );
    ok(&mut lab.kubectl(&["delete", "cm", "note"]));
    assert!(!run(&mut lab.kubectl(&["get", "cm", "note"])).status.success());
    ok(&mut lab.kubectl(&["scale", "deploy/webpod", "--replicas=1"]));
    ok(&mut lab.kubectl(&["wait", "--for=jsonpath={.status.replicas}=1", "deploy/webpod", "--timeout=60s"]));
    ok(&mut lab.kubectl(&["scale", "deploy/webpod", "--replicas=2"]));
    ok(&mut lab.kubectl(&["wait", "--for=condition=Available", "deploy/webpod", "--timeout=60s"]));
    eventually("two are ready", || {
        let ready = lab.get(&["get", "deploy", "webpod", "-o", "jsonpath={.status.readyReplicas}"]);
        if ready == "2" { Ok(()) } else { Err(ready) }
    });
    let (_, web_name, web_ip) = ends(&lab);
    ok(&mut lab.in_curl_pod(&["curl", "-sS", "--max-time", "10", &format!("http://{web_ip}/")]));
    ok(&mut lab.kubectl(&["logs", &web_name]));
    let out =
        run(&mut lab.kubectl(&["exec", "curl-pod", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]));
    assert_eq!(out.status.code(), Some(7), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(String::from_utf8_lossy(&out.stdout), "out\n");
    lab.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: talker}\nspec:\n  restartPolicy: Never\n  containers:\n  - name: c\n    image: nicolaka/netshoot\n    command: [sh, -c, 'echo hello; echo again']\n",
    );
    ok(&mut lab.kubectl(&[
        "wait",
        "--for=jsonpath={.status.phase}=Succeeded",
        "pod/talker",
        "--timeout=60s",
    ]));
    assert_eq!(lab.get(&["logs", "talker"]), "hello\nagain");
    ok(&mut lab.kubectl(&["delete", "pod", "talker"]));
    lab.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: stranger}\nspec:\n  containers: [{name: c, image: nginx}]\n");
    eventually("the pod says why", || {
        let why = lab.get(&[
            "get",
            "pod",
            "stranger",
            "-o",
            "jsonpath={.status.containerStatuses[0].state.waiting}",
        ]);
        if why.contains("ErrImagePull") || why.contains("ImagePullBackOff") {
            if why.contains("traefik/whoami") { Ok(()) } else { panic!("names no built-in image: {why}") }
        } else {
            Err(why)
        }
    });
}

#[test]
fn webpod_rolls_out_anew_although_its_pods_keep_apart_on_as_many_nodes() {
    let lab = Lab::up("native-routing", &[]);
    let before = lab.pods("app=webpod");
    ok(&mut lab.kubectl(&["rollout", "restart", "deploy/webpod"]));
    ok(&mut lab.kubectl(&["rollout", "status", "deploy/webpod", "--timeout=60s"]));
    eventually("two new pods are left", || {
        let now = lab.pods("app=webpod");
        let new = now.iter().all(|pod| before.iter().all(|old| old.0 != pod.0));
        if now.len() == 2 && new { Ok(()) } else { Err(format!("{now:?}")) }
    });
}

#[test]
fn of_two_upgrades_at_once_the_second_lies_over_the_first() {
    let lab = Lab::up("native-routing", &[]);
    let state = podwire_provisioner::state::StateRoot::from_env().lab(&lab.name);
    let lock = state.lock(|| panic!("nobody else works on {}", lab.name)).unwrap();
    let upgrades = ["debug.enabled=true", "MTU=1400"].map(|set| {
        let mut upgrade = Command::new(bin("lab"))
            .args(["upgrade", &lab.name, "--set", set])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It has seen the lab, and waits for this test.
        let mut said = BufReader::new(upgrade.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert!(line.contains("waiting for it"), "{line}");
        (upgrade, said)
    });
    drop(lock);
    for (mut upgrade, mut said) in upgrades {
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        assert!(upgrade.wait().unwrap().success(), "{rest}");
    }
    let map = lab.get(&["-n", "kube-system", "get", "cm", "podwire-config", "-o", "jsonpath={.data}"]);
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    assert_eq!((&map["debug"], &map["mtu"]), (&"true".into(), &"1400".into()), "{map}");
    let kept = state.running().unwrap().lab.typed_values().unwrap();
    assert_eq!((kept.debug.enabled, kept.mtu), (true, 1400));
}

#[test]
fn a_shell_without_a_terminal_reads_its_commands_in_silence() {
    let lab = Lab::up("native-routing", &[]);
    let mut shell = lab
        .command("shell")
        .arg("router")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    shell.stdin.take().unwrap().write_all(b"hostname\nexit 3\n").unwrap();
    let out = shell.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "router\n");
    assert_eq!(String::from_utf8_lossy(&out.stderr), "");
    assert_eq!(out.status.code(), Some(3));
}

#[test]
fn an_exhausted_pool_is_said_on_the_pod_and_one_freed_address_lets_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let text = include_str!("../../labs/native-routing/lab.toml");
    // A /29 a node: network, broadcast and router address leave five for pods.
    let small = text.replace("nodeCIDRMaskSize = 24", "nodeCIDRMaskSize = 29");
    assert_ne!(small, text, "the lab file names its nodeCIDRMaskSize");
    let file = dir.path().join("lab.toml");
    std::fs::write(&file, small).unwrap();
    let lab = Lab::up(file.to_str().unwrap(), &[]);
    lab.apply(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: many}\nspec:\n  replicas: 6\n  selector: {matchLabels: {app: many}}\n  template:\n    metadata: {labels: {app: many}}\n    spec:\n      terminationGracePeriodSeconds: 0\n      nodeName: k8s-w1\n      containers: [{name: c, image: nicolaka/netshoot, command: [sleep, infinity]}]\n",
    );
    let running = |n: usize| {
        eventually(&format!("{n} run"), || {
            let out = lab.get(&["get", "pods", "-l", "app=many", "-o", "jsonpath={.items[*].status.phase}"]);
            if out.matches("Running").count() == n { Ok(()) } else { Err(out) }
        });
    };
    running(4); // one webpod has the fifth
    eventually("an event says why", || {
        let events = lab.get(&["get", "events", "-o", "jsonpath={.items[*].message}"]);
        if events.contains("no free address") { Ok(()) } else { Err(events) }
    });
    // One address is freed elsewhere: a waiting pod takes it.
    ok(&mut lab.kubectl(&["scale", "deploy/webpod", "--replicas=0"]));
    running(5);
    let mut ips: Vec<_> = lab.pods("app=many").into_iter().map(|p| p.1).filter(|ip| !ip.is_empty()).collect();
    ips.sort();
    let all = ips.len();
    ips.dedup();
    assert_eq!(ips.len(), all, "no address twice");
}

#[test]
fn an_acknowledged_write_survives_kill_9_of_the_api_server() {
    let lab = Lab::up("native-routing", &[]);
    for round in 0..3 {
        let name = format!("kept-{round}");
        ok(&mut lab.kubectl(&["create", "cm", &name, "--from-literal=a=b"]));
        ok(&mut lab.on("k8s-ctr", &["pkill", "-9", "-f", "podwire-kube control-plane"]));
        eventually("the API server is back with it", || {
            let out = run(&mut lab.kubectl(&["get", "cm", &name, "-o", "name"]));
            if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
        });
    }
    // The cluster still works: a new pod gets an address.
    lab.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: after}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers: [{name: c, image: nicolaka/netshoot, command: [sleep, infinity]}]\n");
    ok(&mut lab.kubectl(&["wait", "--for=condition=Ready", "pod/after", "--timeout=60s"]));
}

#[test]
fn the_nodes_own_commands_say_what_is() {
    let lab = Lab::up("native-routing", &[]);
    let config = ok(&mut lab.on("k8s-ctr", &["podwire", "config", "view"]));
    let has = |key: &str, value: &str| {
        config.lines().any(|l| l.split_whitespace().collect::<Vec<_>>() == [key, value])
    };
    assert!(has("ipam", "kubernetes") && has("routing-mode", "native"), "{config}");
    assert!(has("ipv4-native-routing-cidr", "10.244.0.0/16"), "{config}");
    let curl_ip = lab.get(&["get", "pod", "curl-pod", "-o", "jsonpath={.status.podIP}"]);
    let endpoints = ok(&mut lab.on("k8s-ctr", &["podwire", "endpoint", "list"]));
    assert!(endpoints.contains(&curl_ip) && endpoints.contains("curl-pod"), "{endpoints}");
    let (_, _, web_ip) = ends(&lab);
    eventually("the ipcache knows the other node's pod", || {
        let ipcache = ok(&mut lab.on("k8s-ctr", &["podwire", "bpf", "ipcache", "list"]));
        if ipcache.lines().any(|l| l.contains(&web_ip) && l.contains("192.168.10.101")) {
            Ok(())
        } else {
            Err(ipcache)
        }
    });
    let status = ok(&mut lab.on("k8s-ctr", &["podwire", "status", "-o", "json"]));
    serde_json::from_str::<serde_json::Value>(&status).unwrap();
}
