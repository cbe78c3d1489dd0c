//! Every verb of CNI by the real plugin, against the agent's core and the real kernel.

mod common;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;
use std::thread;

use common::{Namespace, TestNode, files, plugin};
use serde_json::{Value, json};

#[test]
fn add_makes_what_it_says_and_del_leaves_nothing() {
    let node = TestNode::new("10.244.0.0/24");
    let pod = Namespace::new();
    let before = (node.ns.links(), pod.links(), node.ns.ip("route"));
    let result = node.add("c1", &pod.path()).result();
    assert_eq!(result["cniVersion"], "1.1.0");
    assert_eq!(result["interfaces"][1]["sandbox"], pod.path());
    let device = result["interfaces"][0]["name"].as_str().unwrap();
    assert_eq!(
        result["ips"][0],
        json!({"address": "10.244.0.2/32", "gateway": "10.244.0.1", "interface": 1})
    );

    let address = pod.ip("-o address show dev eth0");
    assert!(address.contains("inet 10.244.0.2/32"), "{address}");
    assert!(!address.contains("inet6"), "{address}");
    let link = pod.ip("link show eth0");
    assert!(link.contains(result["interfaces"][1]["mac"].as_str().unwrap()), "{link}");
    assert!(link.contains("mtu 1500") && link.contains(",UP"), "{link}");
    let routes = pod.ip("route");
    assert!(routes.contains("default via 10.244.0.1 dev eth0"), "{routes}");
    assert!(routes.contains("10.244.0.1 dev eth0 scope link"), "{routes}");
    let routes = node.ns.ip("route");
    assert!(routes.contains(&format!("10.244.0.2 dev {device} proto kernel scope link")), "{routes}");
    assert!(!node.ns.ip(&format!("-6 address show dev {device}")).contains("inet6"));
    let filter = node
        .ns
        .run(|| std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter")).unwrap());
    assert_eq!(filter.trim(), "0");
    let known = node.datapath.endpoints.lock().unwrap()[&Ipv4Addr::new(10, 244, 0, 2)];
    assert_eq!(known.ifindex, node.core().live()[0].ifindex);

    // The gateway really answers: the first packet of a pod goes to it.
    pod.run(|| {
        let ping = std::process::Command::new("ping").args(["-c1", "-W5", "10.244.0.1"]).output().unwrap();
        assert!(ping.status.success(), "{}", String::from_utf8_lossy(&ping.stdout));
    });

    for _ in 0..2 {
        assert!(node.del("c1", &pod.path()).success);
        assert_eq!((node.ns.links(), pod.links(), node.ns.ip("route")), before);
    }
    assert!(node.datapath.endpoints.lock().unwrap().is_empty());
    assert!(node.datapath.ipcache.lock().unwrap().is_empty());
    assert!(files(&node.state().join("endpoints")).is_empty());
}

#[test]
fn each_version_gets_its_result() {
    let node = TestNode::new("10.244.0.0/24");
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Namespace::new();
        let result = node.call("ADD", version, &pod.path(), &node.config(version)).result();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ips"][0]["version"].is_string(), version < "1.0.0", "{version}");
        assert_eq!(result["interfaces"][1]["mtu"].is_number(), version == "1.1.0", "{version}");
        let mut check = node.config(version);
        check["prevResult"] = result;
        let checked = node.call("CHECK", version, &pod.path(), &check);
        assert_eq!(checked.success, version > "0.4", "{checked:?}");
        assert!(node.call("DEL", version, &pod.path(), &check).success);
    }
    let answer = plugin(&[("CNI_COMMAND", "VERSION")], br#"{"cniVersion":"0.4.0"}"#).result();
    assert_eq!(
        answer,
        json!({"cniVersion": "0.4.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]})
    );
}

#[test]
fn check_finds_what_is_broken() {
    let node = TestNode::new("10.244.0.0/24");
    let pod = Namespace::new();
    let mut config = node.config("1.1.0");
    config["prevResult"] = node.add("c1", &pod.path()).result();
    let check = || node.call("CHECK", "c1", &pod.path(), &config);
    assert!(check().success);
    pod.ip("route delete default");
    assert!(check().error(101).contains("no default route via 10.244.0.1"));
    pod.ip("address flush dev eth0");
    assert!(check().error(101).contains("does not have address 10.244.0.2/32"));
    pod.ip("link delete eth0");
    let error = check().error(101);
    assert!(error.contains("no interface eth0") && error.contains("of the node is gone"), "{error}");
    assert!(node.call("CHECK", "c2", &pod.path(), &config).error(3).contains("c2"));
    let mut wrong = config.clone();
    wrong["prevResult"]["ips"] = json!([]);
    assert!(node.call("CHECK", "c1", &pod.path(), &wrong).error(101).contains("prevResult"));
}

#[test]
fn gc_removes_what_is_not_listed_and_only_of_its_network() {
    let node = TestNode::new("10.244.0.0/24");
    let pods: Vec<Namespace> = (0..3).map(|_| Namespace::new()).collect();
    node.add("stays", &pods[0].path()).ip();
    node.add("goes", &pods[1].path()).ip();
    let mut other = node.config("1.1.0");
    other["name"] = json!("other");
    node.call("ADD", "foreign", &pods[2].path(), &other).ip();
    let mut config = node.config("1.1.0");
    config["cni.dev/valid-attachments"] = json!([{"containerID": "stays", "ifname": "eth0"}]);
    assert!(node.call("GC", "", "", &config).success);
    let left: BTreeSet<String> =
        node.core().live().into_iter().map(|l| l.endpoint.container_id.clone()).collect();
    assert_eq!(left, BTreeSet::from(["foreign".to_owned(), "stays".to_owned()]));
    assert_eq!(pods[1].links(), ["lo"]);
    assert!(node.call("GC", "", "", &node.config("1.1.0")).error(7).contains("valid-attachments"));
}

#[test]
fn status_tells_whether_add_can_be_served() {
    let mut node = TestNode::new("10.244.0.0/24");
    let status = |node: &TestNode| node.call("STATUS", "", "", &node.config("1.1.0"));
    assert!(status(&node).success);
    node.ns.ip("link set podwire_host down");
    assert!(status(&node).error(51).contains("podwire_host"));
    node.stop();
    assert!(status(&node).error(50).contains("kubectl"));
}

#[test]
fn without_the_agent_the_runtime_is_told_to_try_again() {
    let mut node = TestNode::new("10.244.0.0/24");
    node.stop();
    let pod = Namespace::new();
    let error = node.add("c1", &pod.path()).error(11);
    assert!(error.contains("cni.sock") && error.contains("logs ds/podwire"), "{error}");
    node.del("c1", &pod.path()).error(11);
    assert_eq!(pod.links(), ["lo"]);
}

#[test]
fn bad_calls_get_the_codes_of_the_specification() {
    let node = TestNode::new("10.244.0.0/24");
    let pod = Namespace::new();
    let links = node.ns.links();
    let config = node.config("1.1.0").to_string();
    let path = pod.path();
    let call = |changes: &[(&'static str, &str)], stdin: &str, code: u32| {
        let mut vars = vec![
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", path.as_str()),
            ("CNI_IFNAME", "eth0"),
        ];
        for (name, value) in changes {
            vars.retain(|(k, _)| k != name);
            vars.push((name, value));
        }
        plugin(&vars, stdin.as_bytes()).error(code)
    };
    assert!(call(&[("CNI_COMMAND", "")], &config, 4).contains("CNI_COMMAND"));
    assert!(call(&[("CNI_IFNAME", ""), ("CNI_NETNS", "")], &config, 4).contains("CNI_NETNS, CNI_IFNAME"));
    assert!(call(&[("CNI_CONTAINERID", "../../etc")], &config, 4).contains("CNI_CONTAINERID"));
    assert!(call(&[], "{\"cniVersion\": ", 6).contains("JSON"));
    assert!(call(&[], r#"{"cniVersion":"1.1.0"}"#, 7).contains("name"));
    assert!(call(&[], r#"{"cniVersion":"9.9.9","name":"n"}"#, 1).contains("0.3.1, 0.4.0, 1.0.0, 1.1.0"));
    assert!(call(&[("CNI_NETNS", "/run/netns/no-such-namespace")], &config, 3).contains("does not exist"));
    assert!(call(&[("CNI_NETNS", "/etc/hostname")], &config, 4).contains("not a network namespace"));
    assert!(call(&[("CNI_NETNS", "/proc/self/ns/net")], &config, 4).contains("own network namespace"));
    assert!(call(&[("CNI_NETNS", "/proc/self/ns/uts")], &config, 4).contains("not a network namespace"));
    assert_eq!((node.ns.links(), pod.links()), (links, vec!["lo".to_owned()]));
    assert_eq!(node.core().live().len(), 0);
}

#[test]
fn a_failed_add_leaves_nothing_behind() {
    let node = TestNode::new("10.244.0.0/24");
    let pod = Namespace::new();
    pod.ip("link add eth0 type veth peer name other");
    let before = (node.ns.links(), pod.links(), node.ns.ip("route"));
    let unchanged = |node: &TestNode| {
        assert_eq!((node.ns.links(), pod.links(), node.ns.ip("route")), before);
        assert!(files(&node.state().join("endpoints")).is_empty());
        assert!(node.datapath.endpoints.lock().unwrap().is_empty());
        assert!(node.datapath.ipcache.lock().unwrap().is_empty());
        assert_eq!(node.core().pool().used_count(), 1, "only the router's address is used");
    };
    assert!(node.add("c1", &pod.path()).error(100).contains("has an interface \"eth0\" already"));
    unchanged(&node);

    let clean = Namespace::new();
    node.datapath.broken.store(true, Ordering::SeqCst);
    assert!(node.add("c1", &clean.path()).error(5).contains("broken on purpose"));
    unchanged(&node);
    assert_eq!(clean.links(), ["lo"]);
    node.datapath.broken.store(false, Ordering::SeqCst);
    node.add("c1", &clean.path()).ip();
    assert!(node.add("c1", &clean.path()).error(100).contains("c1 has interface eth0 already"));
    assert_eq!(node.core().live().len(), 1, "the refused ADD did not harm the first");
}

#[test]
fn an_exhausted_pool_says_so_and_recovers() {
    let node = TestNode::new("10.244.0.0/29");
    let pods: Vec<Namespace> = (0..6).map(|_| Namespace::new()).collect();
    let given: Vec<Ipv4Addr> = (0..5).map(|i| node.add(&format!("c{i}"), &pods[i].path()).ip()).collect();
    assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 5);
    let error = node.add("c5", &pods[5].path()).error(11);
    assert!(error.contains("no free address in 10.244.0.0/29 (6 of 6 used)"), "{error}");
    assert_eq!(pods[5].links(), ["lo"]);
    assert!(node.del("c2", "").success, "DEL does not need the namespace");
    assert_eq!(node.add("c5", &pods[5].path()).ip(), given[2]);
}

#[test]
fn parallel_adds_get_different_addresses() {
    let node = TestNode::new("10.244.0.0/24");
    let pods: Vec<Namespace> = (0..16).map(|_| Namespace::new()).collect();
    let node = &node;
    let results: Vec<Value> = thread::scope(|scope| {
        let calls: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(i, pod)| scope.spawn(move || node.add(&format!("c{i}"), &pod.path()).result()))
            .collect();
        calls.into_iter().map(|c| c.join().unwrap()).collect()
    });
    for key in ["/ips/0/address", "/interfaces/0/name", "/interfaces/1/mac"] {
        let unique: BTreeSet<&str> =
            results.iter().map(|r| r.pointer(key).unwrap().as_str().unwrap()).collect();
        assert_eq!(unique.len(), 16, "{key}");
    }
    let ids: BTreeSet<u16> = node.core().live().iter().map(|l| l.endpoint.id).collect();
    assert_eq!(ids.len(), 16);
    thread::scope(|scope| {
        for i in 0..16 {
            scope.spawn(move || assert!(node.del(&format!("c{i}"), "").success));
        }
    });
    assert_eq!(node.ns.links(), ["lo", "podwire_host", "podwire_net"]);
}

#[test]
fn del_succeeds_when_the_namespace_is_gone() {
    let node = TestNode::new("10.244.0.0/24");
    let pod = Namespace::new();
    let path = pod.path();
    node.add("c1", &path).ip();
    drop(pod);
    assert!(node.del("c1", &path).success);
    assert!(node.del("never-added", "/run/netns/no-such").success);
    assert_eq!(node.core().pool().used_count(), 1);
}
