//! `lab trace` on whole labs: where packets die and why, and what is changed of those that arrive.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::process::Command;

use common::{Lab, bin, eventually, ok, run};
use serde_json::Value;

/// A trace as programs read it, with its exit code.
fn trace(lab: &Lab, args: &[&str]) -> (Value, Option<i32>) {
    let out = run(lab.command("trace").args(args).args(["-o", "json"]));
    let json = serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|e| panic!("{args:?}: {e}: {}", String::from_utf8_lossy(&out.stderr)));
    (json, out.status.code())
}

/// A trace that must be answered.
fn answered(lab: &Lab, args: &[&str]) -> Value {
    let (json, code) = trace(lab, args);
    assert_eq!((json["verdict"].as_str(), code), (Some("answered"), Some(0)), "{args:?}: {json:#}");
    json
}

/// `place:device` of each hop of a leg, numbered from 0.
fn way(json: &Value, leg: usize) -> Vec<String> {
    let hops = json["legs"][leg]["hops"].as_array().unwrap();
    let text = |hop: &Value, key: &str| hop[key].as_str().unwrap().to_owned();
    hops.iter().map(|hop| format!("{}:{}", text(hop, "place"), text(hop, "device"))).collect()
}

fn ttls(json: &Value, leg: usize) -> Vec<u64> {
    json["legs"][leg]["hops"].as_array().unwrap().iter().map(|hop| hop["ttl"].as_u64().unwrap()).collect()
}

/// Name and address of the web server on a node.
fn web(lab: &Lab, node: &str) -> (String, String) {
    let (name, ip, _) = lab.pods("app=webpod").into_iter().find(|(_, _, on)| on == node).unwrap();
    (name, ip)
}

fn mends(json: &Value) -> Vec<String> {
    json["mend"].as_array().unwrap().iter().map(|mend| mend.as_str().unwrap().to_owned()).collect()
}

/// Types a command that a trace recommends.
fn type_in(command: &str) {
    let mut words = command.split(' ');
    assert_eq!(words.next(), Some("lab"), "{command}");
    ok(Command::new(bin("lab")).args(words));
}

#[test]
fn a_router_without_routes_to_pods_is_found_and_mended_as_the_trace_says() {
    let lab = Lab::up("cross-subnet", &[]);
    let (name, ip) = web(&lab, "k8s-w0");
    let to = format!("{name}:80");

    // There.
    let (json, code) = trace(&lab, &["curl-pod", &to]);
    assert_eq!((json["verdict"].as_str(), code), (Some("died"), Some(1)), "{json:#}");
    assert_eq!((json["way"].as_str(), json["at"]["place"].as_str()), (Some("there"), Some("router")));
    let route = json["cause"]["route"].as_str().unwrap_or_default();
    assert_eq!((route, json["cause"]["byDefault"].as_bool()), ("default via 10.0.2.2 dev eth0", Some(true)));
    assert_eq!(way(&json, 0)[3], "router:eth1");
    let far = lab.get(&["get", "nn", "k8s-w0", "-o", "jsonpath={.spec.ipam.podCIDRs[0]}"]);
    assert!(json["why"][0].as_str().unwrap().contains(&format!("no route to {far}")), "{json:#}");
    let mend = mends(&json).swap_remove(0);
    assert!(mend.ends_with(&format!("ip route add {far} via 192.168.20.100")), "{mend}");
    type_in(&mend);

    // Back: the router knows the way to one side now.
    let (json, code) = trace(&lab, &["curl-pod", &to]);
    assert_eq!((json["verdict"].as_str(), json["way"].as_str(), code), (Some("died"), Some("back"), Some(1)));
    assert_eq!(json["at"]["place"].as_str(), Some("router"), "{json:#}");
    type_in(&mends(&json)[0]);

    // And it arrives.
    let json = answered(&lab, &["curl-pod", &to]);
    let there = way(&json, 0);
    let places: Vec<&str> = there.iter().map(|place| place.split(':').next().unwrap()).collect();
    assert_eq!(places, ["curl-pod", "k8s-ctr", "k8s-ctr", "router", "router", "k8s-w0", &name], "{json:#}");
    assert_eq!(ttls(&json, 0), [64, 64, 63, 63, 62, 62, 61]);
    assert_eq!(way(&json, 1).last().map(String::as_str), Some("curl-pod:eth0"));
    let ping = answered(&lab, &["curl-pod", &ip]);
    assert_eq!((ping["protocol"].as_str(), ttls(&ping, 1).len()), (Some("icmp"), 7));

    // Text says the same, and the capture is kept.
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = ok(lab.command("trace").args(["curl-pod", &to, "-w"]).arg(file.path()));
    assert!(text.contains("there: TCP SYN") && text.contains("\nanswered after "), "{text}");
    let captured = run(lab.command("check").arg(file.path()).args(["--expect", "no-loop"]));
    assert_eq!(captured.status.code(), Some(0));

    circle(&lab);
    wrong_use(&lab);
}

/// Two routing tables that point at each other.
fn circle(lab: &Lab) {
    ok(&mut lab.on("router", &["ip", "route", "add", "172.20.200.0/24", "via", "192.168.10.100"]));
    let (json, code) = trace(lab, &["curl-pod", "172.20.200.9"]);
    assert_eq!((json["verdict"].as_str(), code), (Some("loop"), Some(1)), "{json:#}");
    let machines = json["cause"]["machines"].as_array().unwrap();
    assert_eq!(machines, &["k8s-ctr", "router"]);
    let ttls = ttls(&json, 0);
    assert!(ttls.windows(2).all(|pair| pair[0] >= pair[1]) && ttls.last() == Some(&1), "{ttls:?}");
    assert!(json["legs"][0]["passes"].as_u64() > Some(30), "{json:#}");
    type_in(&mends(&json)[0]);
    let (json, _) = trace(lab, &["curl-pod", "172.20.200.9"]);
    assert_eq!(json["verdict"].as_str(), Some("died"), "{json:#}");
}

fn wrong_use(lab: &Lab) {
    let said = |args: &[&str]| {
        let out = run(lab.command("trace").args(args));
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        String::from_utf8(out.stderr).unwrap()
    };
    assert!(said(&["curl-podd", "router"]).contains("did you mean \"curl-pod\"?"));
    assert!(said(&["nobody-at-all", "router"]).contains("k8s-w0"), "it names what there is");
    assert!(said(&["curl-pod", "nothing-like-it"]).contains("webpod"));
    assert!(said(&["curl-pod", "router:http"]).contains("1 to 65535"));
}

#[test]
fn what_is_rewritten_and_replaced_is_shown() {
    let lab = Lab::up("native-routing", &[]);
    let curl = lab.get(&["get", "pod", "curl-pod", "-o", "jsonpath={.status.podIP}"]);

    // Masquerade.
    let json = answered(&lab, &["curl-pod", "10.10.1.200:80"]);
    let hops = json["legs"][0]["hops"].as_array().unwrap();
    assert_eq!(json["said"], "HTTP 200");
    let sources: Vec<&str> =
        hops.iter().map(|hop| hop["source"].as_str().unwrap().split(':').next().unwrap()).collect();
    assert_eq!(sources, [&curl, &curl, "192.168.10.100", "192.168.10.100"], "{json:#}");
    assert!(hops[2]["changes"][0].as_str().unwrap().starts_with("source rewritten: "), "{json:#}");

    // A Service: its address is on no hop.
    let json = answered(&lab, &["curl-pod", "webpod"]);
    let service = lab.get(&["get", "service", "webpod", "-o", "jsonpath={.spec.clusterIP}"]);
    assert_eq!(json["destination"]["address"].as_str(), Some(service.as_str()));
    let (webs, backend) = (lab.pods("app=webpod"), &json["backend"]);
    assert!(
        webs.iter().any(|(name, ip, _)| backend["name"] == *name && backend["address"] == *ip),
        "{json:#}"
    );
    assert!(!json["legs"].to_string().contains(&service), "{json:#}");
    assert_eq!(answered(&lab, &["curl-pod", &format!("{service}:80")])["backend"]["port"], 80);

    // Two pods of one node: the wire is not touched.
    let (near, _) = web(&lab, "k8s-ctr");
    let json = answered(&lab, &["curl-pod", &format!("{near}:80")]);
    assert!(!way(&json, 0).iter().any(|hop| hop.ends_with(":eth1")), "{json:#}");
    // From a machine, to one.
    let json = answered(&lab, &["router", "k8s-w1"]);
    assert_eq!(way(&json, 0), ["router:eth1", "k8s-w1:eth1"]);
    assert_eq!(way(&answered(&lab, &["k8s-w1", "k8s-w1"]), 0), ["k8s-w1:lo"]);

    node_port(&lab);
    refused(&lab, &near);
    dropped(&lab);
}

/// A port of a node is the Service's: translated on the way for callers from outside.
fn node_port(lab: &Lab) {
    lab.get(&["patch", "service", "webpod", "-p", r#"{"spec":{"type":"NodePort"}}"#]);
    let port = lab.get(&["get", "service", "webpod", "-o", "jsonpath={.spec.ports[0].nodePort}"]);
    eventually("the agent knows the port", || {
        let text = ok(&mut lab.on("k8s-w1", &["podwire", "bpf", "lb", "list"]));
        if text.contains(&format!(":{port}")) { Ok(()) } else { Err(text) }
    });
    let json = answered(lab, &["router", &format!("k8s-w1:{port}")]);
    assert_eq!(json["nodePortOf"], "webpod", "{json:#}");
    let hops = json["legs"][0]["hops"].as_array().unwrap();
    let (first, last) = (&hops[0], hops.last().unwrap());
    assert_eq!(first["destination"].as_str(), Some(format!("192.168.10.101:{port}").as_str()));
    assert!(lab.pods("app=webpod").iter().any(|(name, ..)| last["place"] == *name), "{json:#}");
    assert!(last["destination"].as_str().unwrap().ends_with(":80"), "{json:#}");
}

/// Nobody listens; no pod is ready; the Service has no such port.
fn refused(lab: &Lab, near: &str) {
    let cause = |args: &[&str]| {
        let (json, code) = trace(lab, args);
        assert_eq!((json["verdict"].as_str(), code), (Some("refused"), Some(1)), "{args:?}: {json:#}");
        json["cause"]["kind"].as_str().unwrap().to_owned()
    };
    assert_eq!(cause(&["curl-pod", &format!("{near}:81")]), "refused");
    assert_eq!(cause(&["curl-pod", "router:81", "--protocol", "udp"]), "refused");
    assert_eq!(cause(&["curl-pod", "webpod:81"]), "no-service-port");
    lab.get(&["create", "service", "clusterip", "empty", "--tcp=80:80"]);
    eventually("the agent knows the new Service", || {
        let out = run(&mut lab.on("k8s-ctr", &["podwire", "bpf", "lb", "list"]));
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let ip = lab.get(&["get", "service", "empty", "-o", "jsonpath={.spec.clusterIP}"]);
        if text.contains(&ip) { Ok(()) } else { Err(text) }
    });
    assert_eq!(cause(&["curl-pod", "empty"]), "no-backend");
}

/// What an agent drops it says; a packet filter and a machine that does not forward are found at the machine.
fn dropped(lab: &Lab) {
    let cidr = lab.get(&["get", "node", "k8s-ctr", "-o", "jsonpath={.spec.podCIDR}"]);
    let nobody = cidr.replace(".0/24", ".250");
    let (json, _) = trace(lab, &["curl-pod", &nobody]);
    let cause = &json["cause"];
    assert_eq!(
        (cause["kind"].as_str(), cause["reason"].as_str(), cause["point"].as_str()),
        (Some("dropped"), Some("Stale or unroutable IP"), Some("from-endpoint")),
        "{json:#}"
    );
    // Out of the node's own reach: nobody answers ARP.
    let (json, _) = trace(lab, &["k8s-ctr", "192.168.10.77"]);
    assert_eq!(json["cause"]["kind"].as_str(), Some("silent-next-hop"), "{json:#}");
    assert!(json["why"].to_string().contains("Nothing of the lab has 192.168.10.77"), "{json:#}");
    // The router cannot answer a pod that it has no route to.
    ok(Command::new(bin("lab")).args([
        "upgrade",
        &lab.name,
        "--set",
        "ipMasqAgent.enabled=true",
        "--set",
        "ipMasqAgent.config.nonMasqueradeCIDRs={10.10.1.0/24}",
    ]));
    ok(&mut lab.kubectl(&["-n", "kube-system", "rollout", "restart", "ds/podwire"]));
    ok(&mut lab.kubectl(&["-n", "kube-system", "rollout", "status", "ds/podwire", "--timeout=60s"]));
    eventually("the agent obeys the list", || {
        let out = run(&mut lab.on("k8s-ctr", &["podwire", "bpf", "ipmasq", "list"]));
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        if text.contains("10.10.1.0/24") { Ok(()) } else { Err(text) }
    });
    let (json, _) = trace(lab, &["curl-pod", "10.10.1.200:80"]);
    assert_eq!((json["verdict"].as_str(), json["way"].as_str()), (Some("died"), Some("back")), "{json:#}");
    assert_eq!(json["cause"]["kind"].as_str(), Some("no-route"));
    type_in(&mends(&json)[0]);
    answered(lab, &["curl-pod", "10.10.1.200:80"]);
}

#[test]
fn the_tunnel_is_shown_with_both_its_layers() {
    let lab =
        Lab::up("cross-subnet", &["--set", "routingMode=tunnel", "--set", "autoDirectNodeRoutes=false"]);
    let (name, _) = web(&lab, "k8s-w0");
    let json = answered(&lab, &["curl-pod", &format!("{name}:80")]);
    let hops = json["legs"][0]["hops"].as_array().unwrap();
    let wrapped: Vec<&Value> = hops.iter().filter(|hop| !hop["encapsulation"].is_null()).collect();
    let places: Vec<&str> = wrapped.iter().map(|hop| hop["place"].as_str().unwrap()).collect();
    assert_eq!(places, ["k8s-ctr", "router", "router", "k8s-w0"], "{json:#}");
    for hop in &wrapped {
        let around = &hop["encapsulation"];
        assert_eq!(
            (around["source"].as_str(), around["destination"].as_str()),
            (Some("192.168.10.100"), Some("192.168.20.100"))
        );
    }
    let outer: Vec<u64> = wrapped.iter().map(|hop| hop["encapsulation"]["ttl"].as_u64().unwrap()).collect();
    assert_eq!(outer, [64, 64, 63, 63]);
    let list = ok(&mut lab.on("k8s-ctr", &["podwire", "-o", "json", "endpoint", "list"]));
    let rows: Vec<Value> = serde_json::from_str(&list).unwrap();
    let curl = rows.iter().find(|row| row["pod"] == "default/curl-pod").unwrap();
    assert_eq!(wrapped[0]["encapsulation"]["vni"], curl["identity"], "the VNI is the sender's identity");
    assert_eq!(ttls(&json, 0).last(), Some(&63), "one router");

    // The outer packet is routed: a router that has no way to the node is named.
    ok(&mut lab.on("router", &["ip", "route", "add", "unreachable", "192.168.20.100/32"]));
    let (json, _) = trace(&lab, &["curl-pod", &format!("{name}:80")]);
    assert_eq!(json["cause"]["route"].as_str(), Some("unreachable 192.168.20.100"), "{json:#}");
    assert_eq!(json["at"]["place"].as_str(), Some("router"));
}
