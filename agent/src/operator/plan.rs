//! What the operator has to do, from what it sees. Pure.
//!
//! [`super::write`] carries a plan out in the order of its fields: the record first.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;
use podwire_api::values::{IpamMode, Migration};

use super::faults;
use super::pool::{Claims, in_pool};
use super::record::Record;
use super::view::{Network, View};

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// NodeNetworks whose Node is gone.
    pub orphans: Vec<String>,
    /// The record with what is given below.
    pub record: Record,
    /// Nodes and CIDRs that can go from the record, if a fresh look agrees ([`may_release`]).
    pub releases: Vec<(String, Ipv4Net)>,
    /// NodeNetworks whose CIDRs change, to these.
    pub cidrs: Vec<(String, Vec<Ipv4Net>)>,
    /// NodeNetworks whose error changes, to this.
    pub errors: BTreeMap<String, Option<String>>,
}

/// Plans.
pub fn plan(view: &View) -> Plan {
    let (mut networks, orphans): (Vec<&Network>, Vec<&Network>) =
        view.networks.iter().partition(|n| view.nodes.contains_key(&n.name));
    networks.sort_by_key(|n| (n.arrival, &n.name));
    let mut plan = Plan {
        orphans: orphans.into_iter().map(|n| n.name.clone()).collect(),
        record: view.record.clone(),
        ..Plan::default()
    };
    let mut errors = faults::overlaps(view, &networks);
    if view.values.ipam.mode == IpamMode::ClusterPool {
        note_unrecorded(view, &networks, &mut plan.record);
        let exhausted = give(view, &networks, &mut plan);
        drop_drained(view, &networks, &mut plan);
        for network in &networks {
            if errors.contains_key(&network.name) {
                continue;
            }
            let error = if exhausted.contains(&network.name.as_str()) {
                Some(faults::exhausted(view))
            } else {
                faults::stale(view, network).or_else(|| faults::pool(view, &network.name))
            };
            errors.extend(error.map(|e| (network.name.clone(), e)));
        }
    }
    plan.releases = releases(view);
    let changed = networks.iter().filter(|n| n.error.as_ref() != errors.get(&n.name));
    plan.errors = changed.map(|n| (n.name.clone(), errors.get(&n.name).cloned())).collect();
    plan
}

/// CIDRs of the pool that nodes hold without being on record (the record was lost, or somebody wrote them by hand).
fn note_unrecorded(view: &View, networks: &[&Network], record: &mut Record) {
    for network in networks {
        for cidr in network.cidrs.iter().filter(|c| in_pool(&view.values.ipam.operator, **c)) {
            if !record.of(&network.name).iter().any(|h| h.cidr == *cidr) {
                record.hold(&network.name, *cidr, &network.uid);
            }
        }
    }
}

/// Whether a NodeNetwork needs a CIDR of the pool.
fn waits(view: &View, network: &Network) -> bool {
    let outside = |c: &Ipv4Net| !in_pool(&view.values.ipam.operator, *c);
    let side_by_side = view.values.ipam.migration == Migration::SideBySide;
    view.values.ipam.mode == IpamMode::ClusterPool
        && (network.cidrs.is_empty() || side_by_side && network.cidrs.iter().all(outside))
}

/// Gives every NodeNetwork that waits a CIDR, in order of arrival. Returns those for which there is none.
fn give<'a>(view: &View, networks: &[&'a Network], plan: &mut Plan) -> Vec<&'a str> {
    let mut claims = claims(view);
    let mut exhausted = Vec::new();
    for network in networks.iter().filter(|n| waits(view, n)) {
        let Some(cidr) = claims.first_for(&network.name) else {
            exhausted.push(network.name.as_str());
            continue;
        };
        // In a claim of one's own nobody else's address can be; still each is claimed once.
        claims.nobody(cidr);
        plan.record.hold(&network.name, cidr, &network.uid);
        let cidrs = std::iter::once(cidr).chain(network.cidrs.iter().copied()).collect();
        plan.cidrs.push((network.name.clone(), cidrs));
    }
    exhausted
}

/// Everything that is in the way.
fn claims(view: &View) -> Claims<'_> {
    let mut claims = Claims::new(&view.values.ipam.operator);
    for (node, held) in view.record.iter() {
        claims.node(held.cidr, node);
    }
    for network in &view.networks {
        network.cidrs.iter().for_each(|cidr| claims.node(*cidr, &network.name));
        network.used.keys().for_each(|ip| claims.node(Ipv4Net::from(*ip), &network.name));
    }
    for (name, machine) in &view.nodes {
        machine.cidrs.iter().for_each(|cidr| claims.node(*cidr, name));
        machine.internal_ip.into_iter().for_each(|ip| claims.nobody(Ipv4Net::from(ip)));
    }
    for pod in &view.pods {
        claims.node(Ipv4Net::from(pod.ip), &pod.node);
    }
    view.services.into_iter().for_each(|cidr| claims.nobody(cidr));
    claims
}

/// Takes away the CIDRs from before the pool when their last pod is gone.
fn drop_drained(view: &View, networks: &[&Network], plan: &mut Plan) {
    let inside = |c: &Ipv4Net| in_pool(&view.values.ipam.operator, *c);
    for network in networks {
        if !network.cidrs.iter().any(inside) || !view.is_acknowledged(network) {
            continue;
        }
        let kept: Vec<Ipv4Net> =
            network.cidrs.iter().filter(|c| inside(c) || view.is_used(network, **c)).copied().collect();
        if kept != network.cidrs {
            plan.cidrs.push((network.name.clone(), kept));
        }
    }
}

fn releases(view: &View) -> Vec<(String, Ipv4Net)> {
    let by_name: BTreeMap<&str, &Network> = view.networks.iter().map(|n| (n.name.as_str(), n)).collect();
    let may = |node: &str, cidr: Ipv4Net| {
        may_release(view, cidr, by_name.get(node).copied(), view.nodes.contains_key(node))
    };
    let held = view.record.iter().filter(|(node, held)| may(node, held.cidr));
    held.map(|(node, held)| (node.to_owned(), held.cidr)).collect()
}

/// Whether a CIDR can go from the record, by objects that were read after the record.
pub fn may_release(view: &View, cidr: Ipv4Net, network: Option<&Network>, exists: bool) -> bool {
    // Who waits may be about to get what is on record for it.
    !network.is_some_and(|n| waits(view, n)) && view.may_release(cidr, network, exists)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::ipam::{ROUTER, router_address};
    use crate::operator::view::{Machine, PodIp};

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    fn view(pools: &[&str], nodes: &[&str]) -> View {
        let mut view = View::default();
        view.values.ipam.mode = IpamMode::ClusterPool;
        view.values.ipam.operator.pod_cidr_list = pools.iter().map(|p| net(p)).collect();
        for (i, name) in nodes.iter().enumerate() {
            let internal_ip = Some(Ipv4Addr::new(192, 168, 10, 100 + i as u8));
            view.nodes.insert((*name).into(), Machine { internal_ip, cidrs: Vec::new() });
        }
        view
    }

    /// A NodeNetwork that arrived at `second`, whose agent works with its CIDRs.
    fn network(name: &str, second: i64, cidrs: &[&str]) -> Network {
        let cidrs: Vec<Ipv4Net> = cidrs.iter().map(|c| net(c)).collect();
        Network {
            name: name.into(),
            uid: format!("{name}-{second}"),
            arrival: Timestamp::from_second(second).ok(),
            used: cidrs.iter().map(|c| (router_address(*c), ROUTER.to_owned())).collect(),
            cidrs,
            error: None,
        }
    }

    /// The view as it is when the plan was carried out.
    fn carry_out(view: &mut View, plan: &Plan) {
        view.record = plan.record.clone();
        for (node, cidr) in &plan.releases {
            view.record.release(node, *cidr);
        }
        for (name, cidrs) in &plan.cidrs {
            let network = view.networks.iter_mut().find(|n| n.name == *name).unwrap();
            network.cidrs.clone_from(cidrs);
        }
        for (name, error) in &plan.errors {
            view.networks.iter_mut().find(|n| n.name == *name).unwrap().error.clone_from(error);
        }
    }

    fn cidrs_of(view: &View, name: &str) -> Vec<String> {
        let network = view.networks.iter().find(|n| n.name == name).unwrap();
        network.cidrs.iter().map(ToString::to_string).collect()
    }

    fn error_of<'a>(plan: &'a Plan, name: &str) -> &'a str {
        plan.errors[name].as_deref().unwrap()
    }

    #[test]
    fn cidrs_are_given_in_order_of_arrival_and_on_record_first() {
        let mut v = view(&["172.20.0.0/16"], &["k8s-ctr", "k8s-w1"]);
        v.networks = vec![network("k8s-ctr", 2, &[]), network("k8s-w1", 1, &[])];
        let done = plan(&v);
        assert_eq!(done.cidrs[0], ("k8s-w1".into(), vec![net("172.20.0.0/24")]));
        assert_eq!(done.cidrs[1], ("k8s-ctr".into(), vec![net("172.20.1.0/24")]));
        assert_eq!(done.record.data()["k8s-w1"], "172.20.0.0/24@k8s-w1-1");
        carry_out(&mut v, &done);
        let again = plan(&v);
        assert_eq!(again, Plan { record: v.record.clone(), ..Plan::default() }, "nothing is left to do");
    }

    #[test]
    fn a_deleted_node_network_frees_nothing_until_its_agent_works_with_another() {
        let mut v = view(&["172.20.0.0/16"], &["a", "b"]);
        v.networks = vec![network("a", 1, &[])];
        let first = plan(&v);
        carry_out(&mut v, &first);
        // Deleted, while b arrives: a's agent may not know yet.
        v.networks = vec![network("b", 3, &[])];
        let second = plan(&v);
        assert_eq!(second.cidrs, [("b".into(), vec![net("172.20.1.0/24")])]);
        carry_out(&mut v, &second);
        // Made again: it is the first one that is free or its own.
        v.networks.push(network("a", 4, &[]));
        let third = plan(&v);
        assert_eq!(third.cidrs, [("a".into(), vec![net("172.20.0.0/24")])]);
        // It got another by hand and has told so: then the first is free, unless a pod still has an address of it.
        let mut moved = network("a", 4, &["172.20.7.0/24"]);
        moved.used.insert(ip("172.20.0.9"), "default/old".into());
        *v.networks.iter_mut().find(|n| n.name == "a").unwrap() = moved;
        assert_eq!(plan(&v).releases, []);
        let a = v.networks.iter_mut().find(|n| n.name == "a").unwrap();
        a.used.remove(&ip("172.20.0.9"));
        assert_eq!(plan(&v).releases, [("a".into(), net("172.20.0.0/24"))]);
        v.pods.push(PodIp { node: "a".into(), ip: ip("172.20.0.9") });
        assert_eq!(plan(&v).releases, [], "a pod that only the API server knows counts too");
    }

    #[test]
    fn a_node_that_is_gone_frees_its_cidr_and_one_that_comes_back_before_keeps_it() {
        let mut v = view(&["172.20.0.0/16"], &["a"]);
        v.networks = vec![network("a", 1, &["172.20.0.0/24"])];
        let noted = plan(&v);
        carry_out(&mut v, &noted);
        let node = v.nodes.remove("a").unwrap();
        let gone = plan(&v);
        assert_eq!((gone.orphans.as_slice(), gone.releases.len()), (["a".to_owned()].as_slice(), 0));
        v.nodes.insert("a".into(), node);
        assert_eq!(plan(&v).orphans, Vec::<String>::new());
        v.nodes.clear();
        v.networks.clear();
        assert_eq!(plan(&v).releases, [("a".into(), net("172.20.0.0/24"))]);
    }

    #[test]
    fn addresses_of_nodes_and_services_and_other_nodes_kubernetes_cidrs_are_never_given() {
        let mut v = view(&["192.168.10.0/23", "10.96.0.0/23", "10.244.0.0/23"], &["a", "b"]);
        v.services = Some(net("10.96.0.0/24"));
        v.nodes.get_mut("b").unwrap().cidrs = vec![net("10.244.0.0/24")];
        v.networks = (0..3).map(|i| network("a", i, &[])).take(1).collect();
        let mut given = Vec::new();
        loop {
            let done = plan(&v);
            let Some((_, cidrs)) = done.cidrs.first() else {
                let error = error_of(&done, "a");
                assert!(error.starts_with("no free /24 in 192.168.10.0/23, 10.96.0.0/23"), "{error}");
                assert!(error.contains("addresses of 2 nodes are left out"), "{error}");
                assert!(error.contains("the service CIDR 10.96.0.0/24 is left out"), "{error}");
                assert!(error.contains("add a CIDR to ipam.operator.clusterPoolIPv4PodCIDRList"), "{error}");
                break;
            };
            assert!(error_of(&done, "a").contains("overlaps with the service CIDR 10.96.0.0/24"));
            given.push(cidrs[0].to_string());
            // Somebody else has it now.
            v.pods.push(PodIp { node: "x".into(), ip: cidrs[0].addr() });
        }
        assert_eq!(given, ["192.168.11.0/24", "10.96.1.0/24", "10.244.1.0/24"]);
    }

    #[test]
    fn a_pool_out_of_which_the_controller_manager_gives_too_is_told() {
        let mut v = view(&["10.244.0.0/16"], &["a"]);
        v.nodes.get_mut("a").unwrap().cidrs = vec![net("10.244.3.0/24")];
        v.networks = vec![network("a", 1, &["10.244.3.0/24"])];
        let done = plan(&v);
        let error = error_of(&done, "a");
        assert!(
            error.starts_with("pool 10.244.0.0/16 overlaps with 10.244.3.0/24, which the controller"),
            "{error}"
        );
        assert!(error.contains("Choose a pool apart from"), "{error}");
    }

    #[test]
    fn the_younger_of_two_that_overlap_is_told() {
        let mut v = view(&["172.20.0.0/16"], &["a", "b", "c"]);
        v.values.ipam.mode = IpamMode::Kubernetes;
        v.networks = vec![
            network("a", 5, &["10.244.0.0/16"]),
            network("b", 1, &["10.244.3.0/24"]),
            network("c", 2, &["10.245.0.0/24"]),
        ];
        let done = plan(&v);
        assert_eq!(done.errors.len(), 1);
        let error = error_of(&done, "a");
        assert!(
            error.starts_with("overlapping CIDR: 10.244.0.0/16 of a overlaps with 10.244.3.0/24 of b"),
            "{error}"
        );
        assert!(error.contains("kubectl delete nn a"), "{error}");
        carry_out(&mut v, &done);
        v.networks[0].cidrs = vec![net("10.244.4.0/24")];
        assert_eq!(plan(&v).errors["a"], None, "mended");
        v.networks[2].cidrs = vec![net("192.168.10.0/24")];
        assert!(error_of(&plan(&v), "c").contains("holds the address 192.168.10.100 of node a"));
    }

    #[test]
    fn replace_keeps_what_is_stale_and_says_the_mend() {
        let mut v = view(&["172.20.0.0/16"], &["a"]);
        v.networks = vec![network("a", 1, &["10.244.0.0/24"])];
        let done = plan(&v);
        assert_eq!(done.cidrs, []);
        let error = error_of(&done, "a");
        assert!(error.starts_with("pod CIDR 10.244.0.0/24 is not in the pool (172.20.0.0/16)"), "{error}");
        assert!(error.contains("kubectl delete nn a, then restart its agent"), "{error}");
    }

    #[test]
    fn side_by_side_puts_the_new_one_in_front_and_takes_the_old_one_when_it_is_drained() {
        let mut v = view(&["172.20.0.0/16"], &["a"]);
        v.values.ipam.migration = Migration::SideBySide;
        let mut old = network("a", 1, &["10.244.0.0/24"]);
        old.used.insert(ip("10.244.0.9"), "default/old".into());
        v.networks = vec![old];
        let done = plan(&v);
        carry_out(&mut v, &done);
        assert_eq!(cidrs_of(&v, "a"), ["172.20.0.0/24", "10.244.0.0/24"]);
        assert_eq!(done.errors.len(), 0);
        // The old agent says that nothing is used; it may still give addresses of the old CIDR.
        v.networks[0].used.remove(&ip("10.244.0.9"));
        assert_eq!(plan(&v).cidrs, []);
        v.networks[0].used.insert(ip("172.20.0.1"), ROUTER.into());
        v.networks[0].used.insert(ip("10.244.0.9"), "default/old".into());
        assert_eq!(plan(&v).cidrs, []);
        v.networks[0].used.remove(&ip("10.244.0.9"));
        let done = plan(&v);
        assert_eq!(done.cidrs, [("a".into(), vec![net("172.20.0.0/24")])], "the router's own does not count");
        carry_out(&mut v, &done);
        assert_eq!(plan(&v).releases, []);
    }
}
