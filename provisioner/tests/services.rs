//! Services in a whole lab, with a real kubectl: pods call a ClusterIP, and the wire never sees it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use common::{Lab, eventually, ok, run};
use podwire_provisioner::netns::cgroup;
use serde_json::Value;

/// So many times is the service called: that one of two backends then never answers has a chance of 2 in 2^40.
const CALLS: usize = 40;

/// curl's exit code for a connection that was refused.
const REFUSED: i32 = 7;

/// What `lab capture` saw on eth1 of both nodes while curl-pod called.
fn calls_under_capture(lab: &Lab, url: &str, file: &Path) -> String {
    let script = format!("for call in $(seq {CALLS}); do curl -sS --max-time 10 {url} || exit; done");
    let mut capture = lab.command("capture");
    capture.args(["--on", "k8s-ctr:eth1", "--on", "k8s-w1:eth1", "-w"]).arg(file).arg("--");
    let inner = lab.in_curl_pod(&["sh", "-c", &script]);
    capture.arg(inner.get_program()).args(inner.get_args());
    capture.envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
    ok(&mut capture)
}

/// How many packets of a file the filter finds, by an independent reader.
fn packets(file: &Path, filter: &str) -> usize {
    ok(Command::new("tshark").args(["-n", "-r"]).arg(file).args(["-Y", filter])).lines().count()
}

/// The values of `name: value` lines.
fn values<'a>(answers: &'a str, name: &str) -> Vec<&'a str> {
    answers.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).collect()
}

/// Backends of the service, as `podwire` shows them on a node.
fn shown(lab: &Lab, node: &str, words: &[&str], cluster_ip: &str) -> BTreeSet<String> {
    let mut command = vec!["podwire"];
    command.extend(words);
    command.extend(["list", "-o", "json"]);
    let rows: Vec<Value> = serde_json::from_str(&ok(&mut lab.on(node, &command))).unwrap();
    let row = rows.iter().find(|row| row["frontend"] == format!("{cluster_ip}:80").as_str()).unwrap();
    row["backends"].as_array().unwrap().iter().map(|b| b.as_str().unwrap().to_owned()).collect()
}

/// Calls once: curl's exit code and what it printed.
fn call(lab: &Lab, url: &str) -> (Option<i32>, String) {
    let out = run(&mut lab.in_curl_pod(&["curl", "-sS", "--max-time", "10", url]));
    (out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned())
}

#[test]
fn a_service_answers_and_its_address_is_on_no_wire() {
    let lab = Lab::up("native-routing", &[]);
    let cluster_ip = lab.get(&["get", "service", "webpod", "-o", "jsonpath={.spec.clusterIP}"]);
    let url = format!("http://{cluster_ip}/");
    let own = lab.get(&["get", "pod", "curl-pod", "-o", "jsonpath={.status.podIP}"]);
    let webpods = lab.pods("app=webpod");
    let names: BTreeSet<&str> = webpods.iter().map(|(name, ..)| name.as_str()).collect();
    let far = webpods.iter().find(|(_, _, node)| node == "k8s-w1").unwrap().1.clone();

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wire.pcapng");
    let answers = calls_under_capture(&lab, &url, &file);
    let hosts = values(&answers, "Hostname");
    assert_eq!(hosts.len(), CALLS, "{answers}");
    assert_eq!(hosts.into_iter().collect::<BTreeSet<_>>(), names, "both answer");
    for remote in values(&answers, "RemoteAddr") {
        assert_eq!(remote.rsplit_once(':').unwrap().0, own, "the server sees the pod");
    }
    assert!(packets(&file, &format!("ip.src == {own} && ip.dst == {far} && tcp.port == 80")) > 0);
    assert_eq!(packets(&file, &format!("ip.addr == {cluster_ip}")), 0);

    let ends: BTreeSet<String> = webpods.iter().map(|(_, ip, _)| format!("{ip}:80")).collect();
    for node in ["k8s-ctr", "k8s-w1"] {
        assert_eq!(shown(&lab, node, &["service"], &cluster_ip), ends);
        assert_eq!(shown(&lab, node, &["bpf", "lb"], &cluster_ip), ends);
    }

    // A process of the node itself finds the service too.
    let from_node = ok(&mut lab.on("k8s-w1", &["curl", "-sS", "--max-time", "10", &url]));
    assert_eq!(values(&from_node, "Hostname").len(), 1);

    scaled_to_nothing_and_back(&lab, &url);

    let namespaces = ["k8s-ctr", "k8s-w1", "router"].map(|node| format!("{}-{node}", lab.name));
    let cgroups = namespaces.map(|namespace| cgroup::of(&namespace).expect("this test needs cgroup v2"));
    assert!(cgroups.iter().all(|path| path.is_dir()));
    drop(lab);
    assert!(!cgroups.iter().any(|path| path.exists()), "nothing is left behind");
}

fn scaled_to_nothing_and_back(lab: &Lab, url: &str) {
    ok(&mut lab.kubectl(&["scale", "deployment", "webpod", "--replicas=0"]));
    eventually("callers are refused", || match call(lab, url) {
        (Some(REFUSED), _) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    ok(&mut lab.kubectl(&["scale", "deployment", "webpod", "--replicas=2"]));
    ok(&mut lab.kubectl(&["rollout", "status", "deployment/webpod", "--timeout=60s"]));
    eventually("the service answers again", || match call(lab, url) {
        (Some(0), answer) if answer.contains("Hostname: ") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn a_restarted_agent_costs_no_call() {
    let lab = Lab::up("native-routing", &[]);
    let cluster_ip = lab.get(&["get", "service", "webpod", "-o", "jsonpath={.spec.clusterIP}"]);
    let url = format!("http://{cluster_ip}/");
    ok(&mut lab.kubectl(&["-n", "kube-system", "rollout", "restart", "daemonset/podwire"]));
    let mut calls = 0;
    eventually("the agents are restarted", || {
        let (code, answer) = call(&lab, &url);
        assert_eq!(code, Some(0), "call {calls}: {answer}");
        calls += 1;
        let done = "jsonpath={.status.updatedNumberScheduled} {.status.numberAvailable} {.metadata.generation} \
                    {.status.observedGeneration}";
        let state = lab.get(&["-n", "kube-system", "get", "daemonset", "podwire", "-o", done]);
        if state == "2 2 2 2" { Ok(()) } else { Err(state) }
    });
    for node in ["k8s-ctr", "k8s-w1"] {
        eventually("the new agent keeps the services", || {
            let out = run(&mut lab.on(node, &["podwire", "status"]));
            let status = String::from_utf8_lossy(&out.stdout).into_owned();
            if out.status.success() && status.contains("ok    services") { Ok(()) } else { Err(status) }
        });
        assert_eq!(shown(&lab, node, &["bpf", "lb"], &cluster_ip).len(), 2);
    }
    assert_eq!(call(&lab, &url).0, Some(0));
}

/// A service without an address of its own: its name is its pods' addresses.
const HEADLESS: &str = "
apiVersion: v1
kind: Service
metadata: {name: pods, namespace: default}
spec:
  clusterIP: None
  selector: {app: webpod}
  ports: [{name: http, port: 80}]
";

/// What `dig` in curl-pod finds for a name, as it stands or by the search list.
fn addresses(lab: &Lab, name: &str) -> BTreeSet<String> {
    let out = ok(&mut lab.in_curl_pod(&["dig", "+short", "+search", name, "A"]));
    out.lines().map(str::to_owned).collect()
}

#[test]
fn names_of_services_are_found_and_no_others() {
    /// curl's exit code for a name that is not found.
    const NO_NAME: i32 = 6;
    let lab = Lab::up("native-routing", &[]);
    lab.apply(include_str!("../../labs/apps/coredns.yaml"));
    ok(&mut lab.kubectl(&["-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=60s"]));
    let cluster_ip = lab.get(&["get", "service", "webpod", "-o", "jsonpath={.spec.clusterIP}"]);
    let (code, answer) = call(&lab, "http://webpod/");
    assert_eq!(code, Some(0));
    assert_eq!(values(&answer, "Hostname").len(), 1, "{answer}");
    for name in ["webpod", "webpod.default", "webpod.default.svc.cluster.local."] {
        assert_eq!(addresses(&lab, name), BTreeSet::from([cluster_ip.clone()]), "{name}");
    }
    assert_eq!(addresses(&lab, "kube-dns.kube-system"), BTreeSet::from(["10.96.0.10".to_owned()]));
    lab.apply(HEADLESS);
    let pods: BTreeSet<String> = lab.pods("app=webpod").into_iter().map(|(_, ip, _)| ip).collect();
    eventually("the name of a headless service is its pods'", || {
        let found = addresses(&lab, "pods");
        if found == pods { Ok(()) } else { Err(format!("{found:?}")) }
    });
    assert_eq!(call(&lab, "http://nobody.example/").0, Some(NO_NAME));
    let told = ok(&mut lab.in_curl_pod(&["dig", "+tcp", "nobody.example", "A"]));
    assert!(told.contains("status: NXDOMAIN") && told.contains("10.96.0.10#53"), "{told}");
}
