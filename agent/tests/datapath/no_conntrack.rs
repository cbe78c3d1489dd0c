//! Pods' packets and the kernel's connection tracking.

use podwire_agent::controllers::no_conntrack::{TABLE, apply, ruleset};

use crate::net::{Cluster, TCX, inside, isolated, run_in, sh};

/// How many connections the kernel tracks in a namespace.
fn tracked(netns: &str) -> u32 {
    let file = "/proc/sys/net/netfilter/nf_conntrack_count";
    inside(netns, || std::fs::read_to_string(file))
        .expect("this test needs nf_conntrack")
        .trim()
        .parse()
        .unwrap()
}

fn nft(netns: &str, text: &str) -> Result<(), String> {
    inside(netns, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(apply(text))
    })
}

#[test]
fn pods_packets_are_not_tracked() {
    isolated(|| {
        let cluster = Cluster::new(TCX);
        let node = &cluster.nodes[0];
        let pod = node.pod(10);
        // Somebody's firewall, which makes the kernel track connections.
        let firewall = "table ip firewall {\n chain output { type filter hook output priority 0; ct state new accept\n }\n}\n";
        nft(&node.name, firewall).unwrap();
        let ping = || {
            let output = run_in(&node.name, &format!("ping -n -c 1 -W 5 {}", pod.ip));
            assert!(output.status.success());
        };
        ping();
        assert!(tracked(&node.name) > 0, "the kernel tracks what there is no rule for");
        let rules = ruleset(&["10.244.0.0/16".parse().unwrap()]);
        nft(&node.name, &rules).unwrap();
        // The count of a namespace falls only as its entries end: what is tracked anew is told by the difference.
        let before = tracked(&node.name);
        for _ in 0..5 {
            ping();
        }
        assert!(tracked(&node.name) <= before);
        // Twice is once, and what somebody took away comes back.
        nft(&node.name, &rules).unwrap();
        let listed = || {
            let output = inside(&node.name, || sh(&format!("nft list table ip {TABLE}")));
            output.matches("notrack").count() - 1
        };
        assert_eq!(listed(), 4);
        nft(&node.name, &format!("flush table ip {TABLE}")).unwrap();
        nft(&node.name, &rules).unwrap();
        assert_eq!(listed(), 4);
        let wrong = nft(&node.name, "no such thing").unwrap_err();
        assert!(wrong.starts_with("nft: "), "{wrong}");
    });
}
