//! What the operator cannot do or finds wrong, in words for `status.ipam.operator-status.error`: the thing, the cause, the
//! mend. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use podwire_api::values::Migration;

use super::pool::{in_pool, list, overlap};
use super::view::{Network, View};

/// NodeNetworks that hold what another holds already (the younger is told), or that hold a node's or a Service's address.
/// `networks` in order of arrival.
pub fn overlaps(view: &View, networks: &[&Network]) -> BTreeMap<String, String> {
    let mut errors = BTreeMap::new();
    let ranges =
        networks.iter().enumerate().flat_map(|(age, n)| n.cidrs.iter().map(move |c| (c.trunc(), age)));
    let mut ranges: Vec<(Ipv4Net, usize)> = ranges.collect();
    ranges.sort();
    let mut reach: Option<(Ipv4Net, usize)> = None;
    for (cidr, age) in &ranges {
        if let Some((other, other_age)) = reach
            && other.broadcast() >= cidr.network()
        {
            let (young, its, old, olds) = if other_age > *age {
                (other_age, other, *age, *cidr)
            } else {
                (*age, *cidr, other_age, other)
            };
            let name = &networks[young].name;
            errors.entry(name.clone()).or_insert_with(|| overlap_error(name, its, &networks[old].name, olds));
        }
        if reach.is_none_or(|(other, _)| other.broadcast() < cidr.broadcast()) {
            reach = Some((*cidr, *age));
        }
    }
    let addresses = view.nodes.iter().filter_map(|(name, m)| Some((name, m.internal_ip?)));
    for (node, ip) in addresses {
        for (cidr, age) in holders(&ranges, ip) {
            let name = &networks[age].name;
            errors.entry(name.clone()).or_insert_with(|| {
                format!(
                    "pod CIDR {cidr} holds the address {ip} of node {node}, which pods could then not reach; {}",
                    anew(name)
                )
            });
        }
    }
    errors
}

/// The ranges that hold an address, of sorted ones.
fn holders(ranges: &[(Ipv4Net, usize)], ip: Ipv4Addr) -> impl Iterator<Item = (Ipv4Net, usize)> {
    let end = ranges.partition_point(|(cidr, _)| cidr.network() <= ip);
    // Ranges are apart unless that is told as a fault, so the last ones that begin before the address are enough.
    ranges[end.saturating_sub(2)..end].iter().filter(move |(cidr, _)| cidr.contains(&ip)).copied()
}

fn overlap_error(name: &str, cidr: Ipv4Net, other: &str, others: Ipv4Net) -> String {
    format!(
        "overlapping CIDR: {cidr} of {name} overlaps with {others} of {other}, which was there first; nodes route to one of \
         the two only. {}",
        anew(name)
    )
}

/// How a node comes to other CIDRs.
fn anew(name: &str) -> String {
    format!(
        "Give the node another CIDR: kubectl delete nn {name}, then restart its agent: kubectl -n kube-system delete pod \
         -l k8s-app=podwire --field-selector spec.nodeName={name}"
    )
}

/// What a NodeNetwork holds is from before the pool.
pub fn stale(view: &View, network: &Network) -> Option<String> {
    let pool = &view.values.ipam.operator;
    let outside = !network.cidrs.is_empty() && network.cidrs.iter().all(|c| !in_pool(pool, *c));
    if !outside || view.values.ipam.migration == Migration::SideBySide {
        return None;
    }
    Some(format!(
        "pod CIDR {} is not in the pool ({}): it is left from before ipam.mode=cluster-pool, and the node keeps it. {}",
        list(&network.cidrs),
        list(&pool.pod_cidr_list),
        anew(&network.name)
    ))
}

/// The pool holds addresses that can be nobody's.
pub fn pool(view: &View, name: &str) -> Option<String> {
    let pools = &view.values.ipam.operator.pod_cidr_list;
    if let Some((pool, services)) =
        view.services.and_then(|s| pools.iter().find(|p| overlap(**p, s)).map(|p| (p, s)))
    {
        return Some(format!(
            "pool {pool} overlaps with the service CIDR {services}; no node gets those addresses. Choose a pool apart from it in \
             ipam.operator.clusterPoolIPv4PodCIDRList"
        ));
    }
    let machine = view.nodes.get(name)?;
    let taken = machine.cidrs.iter().find_map(|c| pools.iter().find(|p| overlap(**p, *c)).map(|p| (p, c)));
    if let Some((pool, cidr)) = taken {
        return Some(format!(
            "pool {pool} overlaps with {cidr}, which the controller manager gave to this node; both give without knowing of each \
             other, so a change of ipam.mode could give an address twice. Choose a pool apart from the controller manager's \
             --cluster-cidr in ipam.operator.clusterPoolIPv4PodCIDRList"
        ));
    }
    let ip = machine.internal_ip?;
    let pool = pools.iter().find(|p| p.contains(&ip))?;
    Some(format!(
        "pool {pool} holds this node's address {ip}; the CIDR around it is given to no node. Choose a pool apart from the nodes' \
         addresses in ipam.operator.clusterPoolIPv4PodCIDRList"
    ))
}

/// There is no CIDR left.
pub fn exhausted(view: &View) -> String {
    let pool = &view.values.ipam.operator;
    let inside = |ip: &Ipv4Addr| pool.pod_cidr_list.iter().any(|p| p.contains(ip));
    let nodes = view.nodes.values().filter_map(|m| m.internal_ip).filter(inside).count();
    let mut left_out = Vec::new();
    if nodes > 0 {
        left_out.push(format!("CIDRs with addresses of {nodes} nodes are left out"));
    }
    if let Some(services) = view.services.filter(|s| pool.pod_cidr_list.iter().any(|p| overlap(*p, *s))) {
        left_out.push(format!("the service CIDR {services} is left out"));
    }
    let left_out = if left_out.is_empty() { String::new() } else { format!(" ({})", left_out.join("; ")) };
    format!(
        "no free /{} in {}{left_out}; add a CIDR to ipam.operator.clusterPoolIPv4PodCIDRList and restart the operator, or delete a \
         node that is gone",
        pool.mask_size,
        list(&pool.pod_cidr_list),
    )
}
