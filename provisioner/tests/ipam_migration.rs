//! From the controller manager's pod CIDRs to the operator's, with a real kubectl: as the course does it, with its outage, and
//! side by side, without one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::process::{Command, Stdio};

use common::{Lab, bin, eventually, ok, run};

const NODES: [&str; 2] = ["k8s-ctr", "k8s-w1"];
const POOL: &str = "ipam.operator.clusterPoolIPv4PodCIDRList=172.20.0.0/16";

fn upgrade(lab: &Lab, sets: &[&str]) -> Command {
    let mut command = Command::new(bin("lab"));
    command.args(["upgrade", &lab.name]);
    for set in sets {
        command.args(["--set", set]);
    }
    command
}

fn restart(lab: &Lab, what: &str) {
    ok(&mut lab.kubectl(&["-n", "kube-system", "rollout", "restart", what]));
    ok(&mut lab.kubectl(&["-n", "kube-system", "rollout", "status", what, "--timeout=60s"]));
}

/// A NodeNetwork's pod CIDRs with spaces between; empty if there is none.
fn pod_cidrs(lab: &Lab, node: &str) -> String {
    lab.get(&["get", "nn", node, "--ignore-not-found", "-o", "jsonpath={.spec.ipam.podCIDRs[*]}"])
}

fn routes(lab: &Lab, node: &str) -> String {
    ok(&mut lab.on(node, &["ip", "route"]))
}

/// curl-pod made anew, and webpod's pods too.
fn restart_apps(lab: &Lab) {
    ok(&mut lab.kubectl(&["delete", "pod", "-l", "app=webpod", "--grace-period=1"]));
    ok(&mut lab.kubectl(&["wait", "--for=condition=Ready", "pod", "-l", "app=webpod", "--timeout=60s"]));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), include_str!("../../labs/apps/curl-pod.yaml")).unwrap();
    ok(&mut lab.kubectl(&["replace", "--force", "--grace-period=1", "-f", file.path().to_str().unwrap()]));
    ok(&mut lab.kubectl(&["wait", "--for=condition=Ready", "pod/curl-pod", "--timeout=60s"]));
}

/// The pods of webpod that are not ending.
fn web(lab: &Lab) -> Vec<(String, String, String)> {
    eventually("two webpods are left", || {
        let pods = lab.pods("app=webpod");
        if pods.len() == 2 { Ok(pods) } else { Err(format!("{pods:?}")) }
    })
}

fn curl(lab: &Lab, ip: &str) -> Command {
    lab.in_curl_pod(&["curl", "-sS", "--max-time", "3", "-o", "/dev/null", &format!("http://{ip}/")])
}

#[test]
fn the_migration_as_the_course_does_it() {
    let lab = Lab::up("native-routing", &[]);
    let before = web(&lab);
    let mode = ["ipam.mode=cluster-pool", POOL, "ipv4NativeRoutingCIDR=172.20.0.0/16"];
    ok(&mut upgrade(&lab, &mode));
    eventually("the agent says that it runs with something else", || {
        let status = ok(&mut lab.on("k8s-ctr", &["podwire", "status"]));
        let said = status.contains("ipam: running kubernetes, ConfigMap says cluster-pool");
        if said && status.contains("rollout restart ds/podwire") { Ok(()) } else { Err(status) }
    });
    restart(&lab, "deploy/podwire-operator");
    for node in NODES {
        eventually("the operator says that the NodeNetwork is stale", || {
            let error = lab.get(&["get", "nn", node, "-o", "jsonpath={.status.ipam.operator-status.error}"]);
            if error.contains("is not in the pool (172.20.0.0/16)") { Ok(()) } else { Err(error) }
        });
        assert!(pod_cidrs(&lab, node).starts_with("10.244."), "nothing has changed yet");
        ok(&mut lab.kubectl(&["delete", "nn", node]));
    }
    // The outage begins: nobody makes them again, and routes to their pods go.
    eventually("the route to the other node goes", || {
        let routes = routes(&lab, "k8s-w1");
        if routes.contains("10.244.0.0/24") { Err(routes) } else { Ok(()) }
    });
    for node in NODES {
        assert_eq!(pod_cidrs(&lab, node), "", "{node} waits for its agent's restart");
    }
    let remote = before.iter().find(|p| p.2 == "k8s-w1").unwrap();
    assert!(!run(&mut curl(&lab, &remote.1)).status.success(), "old pods lost each other");
    restart(&lab, "ds/podwire");
    let mut given: Vec<String> = NODES
        .iter()
        .map(|node| {
            eventually("a CIDR of the pool", || {
                let cidrs = pod_cidrs(&lab, node);
                if cidrs.starts_with("172.20.") { Ok(cidrs) } else { Err(cidrs) }
            })
        })
        .collect();
    for node in NODES {
        let old = lab.get(&["get", "node", node, "-o", "jsonpath={.spec.podCIDR}"]);
        assert!(old.starts_with("10.244."), "the Node's own never changes");
    }
    assert_eq!(web(&lab), before, "old pods keep their addresses");
    let w1 = given[1].clone();
    eventually("the new route", || {
        let routes = routes(&lab, "k8s-ctr");
        let wanted = format!("{w1} via 192.168.10.101 dev eth1 proto kernel");
        if routes.contains(&wanted) { Ok(()) } else { Err(routes) }
    });
    assert!(!run(&mut curl(&lab, &remote.1)).status.success(), "and stay broken");
    restart_apps(&lab);
    for (name, ip, _) in web(&lab) {
        assert!(ip.starts_with("172.20."), "{name} has {ip}");
        ok(&mut curl(&lab, &ip));
    }
    given.sort();
    assert_eq!(given, ["172.20.0.0/24", "172.20.1.0/24"], "in order of arrival");

    // What nodes hold cannot be taken away.
    for (set, cause) in [
        ("ipam.operator.clusterPoolIPv4MaskSize=25", "nodes hold CIDRs of /24"),
        ("ipam.operator.clusterPoolIPv4PodCIDRList=172.30.0.0/16", "172.20.0.0/16 is in use"),
        (
            "ipam.operator.clusterPoolIPv4PodCIDRList={172.20.0.0/16,10.244.8.0/21}",
            "10.244.8.0/21 overlaps 10.244.0.0/16",
        ),
    ] {
        let native = "ipv4NativeRoutingCIDR={172.20.0.0/16,172.30.0.0/16,10.244.0.0/16}";
        let refused = run(&mut upgrade(&lab, &[set, native]));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains(cause), "{said}");
    }
    let list = lab.get(&[
        "-n",
        "kube-system",
        "get",
        "cm",
        "podwire-config",
        "-o",
        r"jsonpath={.data.cluster-pool-ipv4-cidr}",
    ]);
    assert_eq!(list, "172.20.0.0/16", "nothing was written");

    // Without a change of mode a deleted NodeNetwork is made again at once.
    ok(&mut lab.kubectl(&["delete", "nn", "k8s-w1"]));
    eventually("it is back, with the CIDR that its pods have", || {
        let cidrs = pod_cidrs(&lab, "k8s-w1");
        if cidrs == w1 { Ok(()) } else { Err(cidrs) }
    });
}

/// Asks both webpods from curl-pod for as long as the file `stop` is not there, then tells how often it went well and failed.
const CLIENT: &str = r#"
good=0; bad=0
while [ ! -e /tmp/stop ]; do
    for ip in "$@"; do
        if curl -s -o /dev/null --max-time 2 "http://$ip/"; then good=$((good+1)); else bad=$((bad+1)); fi
    done
    sleep 0.05
done
echo "$good $bad"
"#;

#[test]
fn side_by_side_costs_no_old_pod_a_packet() {
    let lab = Lab::up("native-routing", &[]);
    let before = web(&lab);
    let ips: Vec<&str> = before.iter().map(|p| p.1.as_str()).collect();
    let client = lab
        .in_curl_pod(&[&["sh", "-c", CLIENT, "client"], ips.as_slice()].concat())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let ping = lab
        .in_curl_pod(&["sh", "-c", &format!("exec ping -i 0.02 -q {} & p=$!; while [ ! -e /tmp/stop ]; do sleep 0.1; done; kill -INT $p; wait $p", before.iter().find(|p| p.2 == "k8s-w1").unwrap().1)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let both = "ipv4NativeRoutingCIDR={10.244.0.0/16,172.20.0.0/16}";
    ok(&mut upgrade(&lab, &["ipam.mode=cluster-pool", "ipam.migration=side-by-side", POOL, both]));
    restart(&lab, "deploy/podwire-operator");
    let held = |node: &str| {
        eventually("the new CIDR stands before the old one", || {
            let cidrs = pod_cidrs(&lab, node);
            if cidrs.starts_with("172.20.") && cidrs.contains(" 10.244.") { Ok(cidrs) } else { Err(cidrs) }
        })
    };
    for node in NODES {
        drop(held(node));
    }
    restart(&lab, "ds/podwire");
    for node in NODES {
        eventually("the agent gives addresses of the new CIDR", || {
            let status = run(&mut lab.on(node, &["podwire", "status"]));
            let status = String::from_utf8_lossy(&status.stdout).into_owned();
            if status.contains("allocated from 172.20.") && status.contains("pods of 10.244.") {
                Ok(())
            } else {
                Err(status)
            }
        });
        held(node);
        let addresses = ok(&mut lab.on(node, &["ip", "-br", "address", "show", "podwire_host"]));
        assert!(addresses.contains("172.20.") && addresses.contains("10.244."), "{addresses}");
    }
    // Once more, and both at once.
    for what in ["deploy/podwire-operator", "ds/podwire"] {
        ok(&mut lab.kubectl(&["-n", "kube-system", "rollout", "restart", what]));
    }
    for what in ["deploy/podwire-operator", "ds/podwire"] {
        ok(&mut lab.kubectl(&["-n", "kube-system", "rollout", "status", what, "--timeout=60s"]));
    }
    // A new pod has a new address, and talks with the old ones.
    for node in NODES {
        lab.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: new-{node}, labels: {{app: new}}}}\nspec:\n  nodeName: {node}\n  \
             containers: [{{name: c, image: traefik/whoami}}]\n"
        ));
    }
    ok(&mut lab.kubectl(&["wait", "--for=condition=Ready", "pod", "-l", "app=new", "--timeout=60s"]));
    for (name, ip, _) in lab.pods("app=new") {
        assert!(ip.starts_with("172.20."), "{name} has {ip}");
        ok(&mut curl(&lab, &ip));
    }
    let gateway = ok(&mut lab.in_curl_pod(&["sh", "-c", "ip route show default | cut -d' ' -f3"]));
    assert_eq!(gateway.trim(), "10.244.0.1", "the old pod has its old gateway");
    ok(&mut lab.in_curl_pod(&["ping", "-c1", "-W5", gateway.trim()]));
    ok(&mut lab.in_curl_pod(&["touch", "/tmp/stop"]));
    let told = client.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let (good, bad) = told.trim().split_once(' ').unwrap_or_else(|| panic!("the client said {told:?}"));
    assert!(good.parse::<u32>().unwrap() > 0 && bad == "0", "{good} answers, {bad} failures");
    let told = ping.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains(" 0% packet loss"), "{told}");

    // The old pods go, one after the other; then the old CIDR goes.
    restart_apps(&lab);
    for node in NODES {
        eventually("the drained CIDR goes", || {
            let cidrs = pod_cidrs(&lab, node);
            if cidrs.contains("10.244.") { Err(cidrs) } else { Ok(()) }
        });
        eventually("its routes and its router address go", || {
            let routes = routes(&lab, node);
            let addresses = ok(&mut lab.on(node, &["ip", "-br", "address", "show", "podwire_host"]));
            if routes.contains("10.244.") || addresses.contains("10.244.") {
                Err(format!("{routes}\n{addresses}"))
            } else {
                Ok(())
            }
        });
        let old = lab.get(&["get", "node", node, "-o", "jsonpath={.spec.podCIDR}"]);
        assert!(old.starts_with("10.244."), "the Node's own never changes");
    }
    for (name, ip, _) in web(&lab) {
        assert!(ip.starts_with("172.20."), "{name} has {ip}");
    }
}
