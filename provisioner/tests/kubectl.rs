//! The verbs of kubectl that the course and its readers type, as typed, against a whole lab.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use common::{Lab, eventually, ok};

#[test]
fn describe_edit_and_watch() {
    let lab = Lab::up("native-routing", &[]);
    let pods = lab.pods("app=webpod");
    let service_ip = lab.get(&["get", "svc", "webpod", "-o", "jsonpath={.spec.clusterIP}"]);

    // describe: what a reader looks for in each.
    let curl_ip = lab.get(&["get", "pod", "curl-pod", "-o", "jsonpath={.status.podIP}"]);
    for (what, words) in [
        (
            &["pod", "curl-pod"][..],
            vec!["Node:", "k8s-ctr/192.168.10.100", &curl_ip, "Ready", "Scheduled", "Started"],
        ),
        (
            &["node", "k8s-w1"],
            vec![
                "PodCIDR:",
                "10.244.1.0/24",
                "InternalIP:",
                "192.168.10.101",
                "Non-terminated Pods",
                "podwire-",
            ],
        ),
        (
            &["deploy", "webpod"],
            vec!["2 desired | 2 updated | 2 total | 2 available", "traefik/whoami", "RollingUpdate"],
        ),
        (
            &["-n", "kube-system", "ds", "podwire"],
            vec!["Desired Number of Nodes Scheduled: 2", "Pods Status:", "2 Running"],
        ),
        (&["svc", "webpod"], vec![&service_ip, "Endpoints:", &pods[0].1, &pods[1].1]),
        (&["nn", "k8s-w1"], vec!["Kind:", "NodeNetwork", "10.244.1.0/24", "PodwireInternalIP"]),
        (&["-n", "kube-system", "cm", "podwire-config"], vec!["routing-mode", "native"]),
    ] {
        let said = ok(&mut lab.kubectl(&[&["describe"], what].concat()));
        for word in words {
            assert!(said.contains(word), "describe {what:?} lacks {word:?}:\n{said}");
        }
    }

    // get -w: what is there, then what changes.
    let mut watch = lab
        .kubectl(&["get", "pods", "-l", "app=new", "-w", "-o", "name"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    ok(&mut lab.kubectl(&["run", "new", "--image=traefik/whoami", "--labels=app=new"]));
    let first = lines.map_while(Result::ok).next();
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert_eq!(first.as_deref(), Some("pod/new"));

    // edit: kubectl hands the object to the editor and sends what has changed.
    let edit = |what: &[&str], from: &str, to: &str| {
        let mut command = lab.kubectl(&[&["edit"], what].concat());
        ok(command.env("KUBE_EDITOR", format!("sed -i 's|{from}|{to}|'")))
    };
    let said = edit(&["deploy", "webpod"], "replicas: 2", "replicas: 1");
    assert!(said.contains("deployment.apps/webpod edited"), "{said}");
    eventually("one webpod is left", || {
        let pods = lab.pods("app=webpod");
        if pods.len() == 1 { Ok(()) } else { Err(format!("{pods:?}")) }
    });
    edit(&["-n", "kube-system", "cm", "podwire-config"], "debug: \"false\"", "debug: \"true\"");
    let debug =
        lab.get(&["-n", "kube-system", "get", "cm", "podwire-config", "-o", "jsonpath={.data.debug}"]);
    assert_eq!(debug, "true");
    let unchanged = edit(&["nn", "k8s-w1"], "nothing of it", "x");
    assert!(unchanged.is_empty(), "{unchanged}");
}
