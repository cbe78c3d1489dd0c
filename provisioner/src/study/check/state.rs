//! Checks that the lab's state answers. No I/O: what is seen is given.

use std::fmt::Display;

use ipnet::Ipv4Net;
use podwire_api::names::UNDERLAY_DEVICE;

use super::{Check, Outcome};
use crate::study::snapshot::{NetworkSeen, PodSeen, Snapshot};

pub(super) fn judge(check: &Check, seen: &Snapshot) -> Option<Outcome> {
    Some(match check {
        Check::Config { key, value } => {
            let is = seen.config.get(key);
            let key_of = if is == Some(value) { "config-held" } else { "config" };
            let args = [arg("key", key), arg("is", shown(is)), arg("wanted", value)];
            Outcome::new(is == Some(value), key_of, args)
        }
        Check::AgentsRun { key, value } => agents_run(seen, key, value),
        Check::NodeNetworks { within, node, single } => {
            node_networks(seen, *within, node.as_deref(), *single)
        }
        Check::NodeNetworksBoth { new, old } => both(seen, *new, *old),
        Check::NodeNetworkGone { node } => {
            let gone = !seen.networks.contains_key(node);
            Outcome::new(gone, if gone { "network-gone" } else { "network-there" }, [arg("node", node)])
        }
        Check::Pods { label, within } => pods(seen, label, *within),
        Check::NoPods { label } => no_pods(seen, label),
        Check::Pod { name, on } => pod(seen, name, on),
        Check::Routes { within } => routes(seen, *within),
        Check::NoRoutes { within } => no_routes(seen, *within),
        Check::Restarted { workload } => restarted(seen, workload),
        Check::Complaint { node, words } => {
            let said = seen.networks.get(node).map_or("", |n| n.complaint.as_str());
            let key = if said.is_empty() { "no-complaint-of" } else { "complaint-of" };
            Outcome::new(said.contains(words), key, [arg("node", node), arg("said", said)])
        }
        Check::NoComplaint {} => no_complaint(seen),
        Check::Answer { .. }
        | Check::Reach {}
        | Check::Capture { .. }
        | Check::Captured { .. }
        | Check::NotCaptured { .. }
        | Check::Asked { .. }
        | Check::Compared { .. }
        | Check::Loop { .. }
        | Check::Fetch { .. }
        | Check::Measuring { .. }
        | Check::Measured { .. }
        | Check::Picture { .. } => return None,
    })
}

fn arg(name: &'static str, value: impl Display) -> (&'static str, String) {
    (name, value.to_string())
}

fn shown(value: Option<&String>) -> &str {
    value.map_or("-", String::as_str)
}

fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|i| i.to_string()).collect();
    if items.is_empty() { "-".into() } else { items.join(", ") }
}

fn agents_run(seen: &Snapshot, key: &str, value: &str) -> Outcome {
    for node in seen.nodes.keys() {
        let is = seen.agents.get(node).and_then(|config| config.get(key));
        if is.map(String::as_str) != Some(value) {
            let args = [arg("node", node), arg("key", key), arg("is", shown(is)), arg("wanted", value)];
            return Outcome::new(false, "agent-runs", args);
        }
    }
    Outcome::new(!seen.nodes.is_empty(), "agents-run", [arg("key", key), arg("wanted", value)])
}

fn inside(network: &NetworkSeen, within: Ipv4Net) -> bool {
    !network.cidrs.is_empty() && network.cidrs.iter().all(|cidr| within.contains(cidr))
}

fn node_networks(seen: &Snapshot, within: Ipv4Net, only: Option<&str>, single: bool) -> Outcome {
    let nodes: Vec<&str> = only.map_or_else(|| seen.nodes.keys().map(String::as_str).collect(), |n| vec![n]);
    for node in &nodes {
        let Some(network) = seen.networks.get(*node) else {
            return Outcome::new(false, "network-missing", [arg("node", node)]);
        };
        if !inside(network, within) || single && network.cidrs.len() != 1 {
            let args = [arg("node", node), arg("is", list(&network.cidrs)), arg("wanted", within)];
            return Outcome::new(false, "network-has", args);
        }
    }
    Outcome::new(!nodes.is_empty(), "networks-in", [arg("nodes", list(&nodes)), arg("wanted", within)])
}

fn both(seen: &Snapshot, new: Ipv4Net, old: Ipv4Net) -> Outcome {
    for node in seen.nodes.keys() {
        let cidrs = seen.networks.get(node).map_or(&[][..], |n| n.cidrs.as_slice());
        let has = |net: Ipv4Net| cidrs.iter().any(|c| net.contains(c));
        if !has(new) || !has(old) {
            let wanted = format!("{new}, {old}");
            let args = [arg("node", node), arg("is", list(cidrs)), arg("wanted", wanted)];
            return Outcome::new(false, "network-has", args);
        }
    }
    Outcome::new(!seen.nodes.is_empty(), "networks-both", [arg("new", new), arg("old", old)])
}

fn pods(seen: &Snapshot, label: &str, within: Ipv4Net) -> Outcome {
    let mut count = 0;
    for pod in seen.labelled(label) {
        count += 1;
        if let Some(trouble) = &pod.trouble {
            return Outcome::new(false, "pod-trouble", [arg("pod", &pod.name), arg("is", trouble)]);
        }
        if !pod.ip.is_some_and(|ip| within.contains(&ip)) {
            let is = pod.ip.map_or_else(|| "-".into(), |ip| ip.to_string());
            return Outcome::new(
                false,
                "pod-address",
                [arg("pod", &pod.name), arg("is", is), arg("wanted", within)],
            );
        }
    }
    // Of a pod that is ending its successor is not known yet.
    let ending =
        seen.pods.iter().find(|p| p.ending && p.labels.iter().any(|(k, v)| format!("{k}={v}") == label));
    if let Some(pod) = ending {
        return Outcome::new(false, "pod-ends", [arg("pod", &pod.name)]);
    }
    Outcome::new(count > 0, "pods-in", [arg("label", label), arg("count", count), arg("wanted", within)])
}

fn no_pods(seen: &Snapshot, label: &str) -> Outcome {
    let has = |pod: &&PodSeen| pod.labels.iter().any(|(k, v)| format!("{k}={v}") == label);
    let count = seen.pods.iter().filter(has).count();
    // Of a lab without nodes nothing is known.
    let gone = count == 0 && !seen.nodes.is_empty();
    Outcome::new(gone, if gone { "no-pods" } else { "pods-left" }, [arg("label", label), arg("count", count)])
}

fn pod(seen: &Snapshot, name: &str, on: &str) -> Outcome {
    let Some(pod) = seen.pod(name) else { return Outcome::new(false, "no-pod", [arg("pod", name)]) };
    if let Some(trouble) = &pod.trouble {
        return Outcome::new(false, "pod-trouble", [arg("pod", name), arg("is", trouble)]);
    }
    if pod.node != on {
        return Outcome::new(
            false,
            "pod-elsewhere",
            [arg("pod", name), arg("is", &pod.node), arg("wanted", on)],
        );
    }
    let cidrs = seen.networks.get(on).map_or(&[][..], |n| n.cidrs.as_slice());
    let is = pod.ip.map_or_else(|| "-".into(), |ip| ip.to_string());
    let held = pod.ip.is_some_and(|ip| cidrs.iter().any(|c| c.contains(&ip)));
    let args = [arg("pod", name), arg("is", is), arg("node", on), arg("wanted", list(cidrs))];
    Outcome::new(held, if held { "pod-in-node" } else { "pod-not-in-node" }, args)
}

fn routes(seen: &Snapshot, within: Ipv4Net) -> Outcome {
    let mut count = 0;
    for node in seen.nodes.keys() {
        let routes = seen.routes.get(node).map_or(&[][..], Vec::as_slice);
        for (other, other_seen) in seen.nodes.iter().filter(|(other, _)| *other != node) {
            let cidrs = seen.networks.get(other).map_or(&[][..], |n| n.cidrs.as_slice());
            if cidrs.is_empty() || !cidrs.iter().all(|c| within.contains(c)) {
                let args = [arg("node", other), arg("is", list(cidrs)), arg("wanted", within)];
                return Outcome::new(false, "network-has", args);
            }
            for cidr in cidrs {
                let there = routes.iter().any(|r| {
                    r.to() == Some(*cidr)
                        && r.gateway.is_some()
                        && r.gateway == other_seen.ip
                        && r.dev == UNDERLAY_DEVICE
                });
                if !there {
                    return Outcome::new(
                        false,
                        "route-missing",
                        [arg("node", node), arg("to", cidr), arg("other", other)],
                    );
                }
                count += 1;
            }
        }
    }
    Outcome::new(count > 0, "routes-there", [arg("count", count), arg("wanted", within)])
}

fn no_routes(seen: &Snapshot, within: Ipv4Net) -> Outcome {
    for node in seen.nodes.keys() {
        // A node whose routes are not known proves nothing.
        let Some(routes) = seen.routes.get(node) else {
            return Outcome::new(false, "routes-unknown", [arg("node", node)]);
        };
        if let Some(route) = routes.iter().find(|r| r.to().is_some_and(|to| within.contains(&to))) {
            return Outcome::new(
                false,
                "route-left",
                [arg("node", node), arg("to", &route.dst), arg("within", within)],
            );
        }
    }
    Outcome::new(!seen.nodes.is_empty(), "no-routes", [arg("within", within)])
}

fn restarted(seen: &Snapshot, workload: &str) -> Outcome {
    let is = seen.workloads.get(workload).copied().unwrap_or_default();
    let key = match (is.restarted, is.rolled_out) {
        (true, true) => "restarted",
        (true, false) => "restarting",
        (false, _) => "not-restarted",
    };
    Outcome::new(is.restarted && is.rolled_out, key, [arg("workload", workload)])
}

fn no_complaint(seen: &Snapshot) -> Outcome {
    for node in seen.nodes.keys() {
        let Some(network) = seen.networks.get(node) else {
            return Outcome::new(false, "network-missing", [arg("node", node)]);
        };
        if !network.complaint.is_empty() {
            return Outcome::new(false, "complaint-of", [arg("node", node), arg("said", &network.complaint)]);
        }
    }
    Outcome::new(!seen.nodes.is_empty(), "no-complaint", [])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::snapshot::{NodeSeen, RouteSeen, WorkloadSeen};

    fn cidr(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    /// Two nodes, each with a pod, as the lab is when it comes up.
    fn seen() -> Snapshot {
        let mut seen = Snapshot::default();
        seen.config.insert("ipam".into(), "kubernetes".into());
        for (node, other, n, m) in [("a", "b", 0, 1), ("b", "a", 1, 0)] {
            let ip = format!("192.168.10.{n}").parse().ok();
            seen.nodes.insert(node.into(), NodeSeen { ip, pod_cidr: None });
            let cidrs = vec![cidr(&format!("10.244.{n}.0/24"))];
            seen.networks.insert(node.into(), NetworkSeen { cidrs, ..NetworkSeen::default() });
            seen.agents.insert(node.into(), seen.config.clone());
            seen.pods.push(PodSeen {
                namespace: "default".into(),
                name: format!("web-{node}"),
                labels: [("app".to_owned(), "web".to_owned())].into(),
                node: node.into(),
                ip: format!("10.244.{n}.2").parse().ok(),
                ..PodSeen::default()
            });
            let route = RouteSeen {
                dst: format!("10.244.{m}.0/24"),
                gateway: format!("192.168.10.{m}").parse().ok(),
                dev: "eth1".into(),
            };
            let own = RouteSeen { dst: format!("10.244.{n}.2"), gateway: None, dev: "lxc1".into() };
            seen.routes.insert(node.into(), vec![route, own]);
            let _ = other;
        }
        seen.workloads.insert("ds/podwire".into(), WorkloadSeen { restarted: true, rolled_out: true });
        seen
    }

    fn held(check: &str, seen: &Snapshot) -> bool {
        #[derive(serde::Deserialize)]
        struct One {
            check: Check,
        }
        let one: One = toml::from_str(&format!("check = {check}")).unwrap();
        judge(&one.check, seen).unwrap().held
    }

    /// The check holds, does not hold of an empty lab, and does not hold after `spoil`.
    fn proves(check: &str, spoil: impl Fn(&mut Snapshot)) {
        assert!(held(check, &seen()), "{check}");
        assert!(!held(check, &Snapshot::default()), "{check} of nothing");
        let mut spoilt = seen();
        spoil(&mut spoilt);
        assert!(!held(check, &spoilt), "{check} of what is spoilt");
    }

    #[test]
    fn every_check_of_state_can_hold_and_fail() {
        proves(r#"{ config = { key = "ipam", value = "kubernetes" } }"#, |s| {
            s.config.insert("ipam".into(), "cluster-pool".into());
        });
        proves(r#"{ agents-run = { key = "ipam", value = "kubernetes" } }"#, |s| {
            s.agents.remove("b");
        });
        let all = r#"{ node-networks = { within = "10.244.0.0/16" } }"#;
        proves(all, |s| s.networks.get_mut("b").unwrap().cidrs = vec![cidr("172.20.0.0/24")]);
        proves(all, |s| s.networks.get_mut("b").unwrap().cidrs.clear());
        proves(all, |s| drop(s.networks.remove("a")));
        proves(r#"{ node-networks = { within = "10.244.0.0/16", node = "b", single = true } }"#, |s| {
            s.networks.get_mut("b").unwrap().cidrs.push(cidr("10.244.9.0/24"));
        });
        proves(r#"{ node-networks-both = { new = "10.244.0.0/23", old = "10.244.0.0/16" } }"#, |s| {
            s.networks.get_mut("a").unwrap().cidrs = vec![cidr("10.244.7.0/24")];
        });
        let pods = r#"{ pods = { label = "app=web", within = "10.244.0.0/16" } }"#;
        proves(pods, |s| s.pods[1].ip = "172.20.0.2".parse().ok());
        proves(pods, |s| s.pods[1].trouble = Some("ContainerCreating".into()));
        proves(pods, |s| s.pods[1].ending = true);
        proves(r#"{ no-pods = { label = "app=none" } }"#, |s| {
            s.pods[0].labels.insert("app".into(), "none".into());
        });
        let one = r#"{ pod = { name = "web-b", on = "b" } }"#;
        proves(one, |s| s.pods[1].node = "a".into());
        proves(one, |s| s.pods[1].ip = "10.244.0.9".parse().ok());
        proves(one, |s| s.pods[1].trouble = Some("x".into()));
        let routes = r#"{ routes = { within = "10.244.0.0/16" } }"#;
        proves(routes, |s| drop(s.routes.get_mut("a").unwrap().remove(0)));
        proves(routes, |s| s.routes.get_mut("a").unwrap()[0].gateway = "192.168.10.9".parse().ok());
        proves(routes, |s| s.routes.get_mut("b").unwrap()[0].dev = "eth0".into());
        let none = r#"{ no-routes = { within = "172.20.0.0/16" } }"#;
        proves(none, |s| s.routes.get_mut("a").unwrap()[0].dst = "172.20.0.0/24".into());
        proves(none, |s| drop(s.routes.remove("b")));
        let restarted = r#"{ restarted = { workload = "ds/podwire" } }"#;
        proves(restarted, |s| s.workloads.get_mut("ds/podwire").unwrap().restarted = false);
        proves(restarted, |s| s.workloads.get_mut("ds/podwire").unwrap().rolled_out = false);
        proves("{ no-complaint = {} }", |s| {
            s.networks.get_mut("a").unwrap().complaint = "no CIDR is left".into();
        });
    }

    #[test]
    fn absence_is_a_finding_too() {
        let mut seen = seen();
        let gone = r#"{ node-network-gone = { node = "a" } }"#;
        let complaint = r#"{ complaint = { node = "b", words = "not in the pool" } }"#;
        assert!(!held(gone, &seen) && !held(complaint, &seen));
        seen.networks.remove("a");
        seen.networks.get_mut("b").unwrap().complaint = "10.244.1.0/24 is not in the pool".into();
        assert!(held(gone, &seen) && held(complaint, &seen));
    }
}
