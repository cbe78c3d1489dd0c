//! Which CIDRs of the pool are free. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use podwire_api::values::ClusterPool;

/// Who may still be given a claimed CIDR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim<'a> {
    /// The node that holds it.
    Node(&'a str),
    /// Nobody: several claim it, or what claims it is no node.
    Nobody,
}

/// The pool with what is claimed of it.
#[derive(Debug)]
pub struct Claims<'a> {
    pool: &'a ClusterPool,
    /// By network address of a node-sized CIDR: what claims it or a part of it.
    small: BTreeMap<Ipv4Addr, Claim<'a>>,
    /// What is larger than a node's CIDR: few.
    large: Vec<(Ipv4Net, Claim<'a>)>,
}

impl<'a> Claims<'a> {
    /// A pool of which nothing is claimed.
    pub fn new(pool: &'a ClusterPool) -> Self {
        Self { pool, small: BTreeMap::new(), large: Vec::new() }
    }

    /// Claims a CIDR or a single address for a node.
    pub fn node(&mut self, cidr: Ipv4Net, node: &'a str) {
        self.claim(cidr, Claim::Node(node));
    }

    /// Claims a CIDR or a single address for what is no node.
    pub fn nobody(&mut self, cidr: Ipv4Net) {
        self.claim(cidr, Claim::Nobody);
    }

    fn claim(&mut self, cidr: Ipv4Net, claim: Claim<'a>) {
        if cidr.prefix_len() < self.pool.mask_size {
            self.large.push((cidr, claim));
            return;
        }
        let Ok(whole) = Ipv4Net::new(cidr.addr(), self.pool.mask_size) else { return };
        let entry = self.small.entry(whole.network()).or_insert(claim);
        if *entry != claim {
            *entry = Claim::Nobody;
        }
    }

    /// The first CIDR that `node` may be given: free, or its own.
    pub fn first_for(&self, node: &str) -> Option<Ipv4Net> {
        let mine = |claim: &Claim<'_>| *claim == Claim::Node(node);
        // `validate` of the values refuses pools that are smaller than one node's CIDR.
        let all = self.pool.pod_cidr_list.iter();
        let mut all = all.flat_map(|p| p.trunc().subnets(self.pool.mask_size).into_iter().flatten());
        all.find(|cidr| {
            self.small.get(&cidr.network()).is_none_or(mine)
                && self.large.iter().all(|(claimed, claim)| !overlap(*claimed, *cidr) || mine(claim))
        })
    }
}

/// Whether two networks share an address.
pub fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// Whether a CIDR lies in the pool.
pub fn in_pool(pool: &ClusterPool, cidr: Ipv4Net) -> bool {
    pool.pod_cidr_list.iter().any(|p| p.contains(&cidr))
}

/// CIDRs with commas between.
pub fn list(cidrs: &[Ipv4Net]) -> String {
    cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn cidrs_are_given_in_order_and_never_twice() {
        let pool =
            ClusterPool { pod_cidr_list: vec![net("172.20.0.0/23"), net("172.30.0.0/24")], mask_size: 24 };
        let mut claims = Claims::new(&pool);
        claims.node(net("10.244.0.0/24"), "x");
        let mut given = Vec::new();
        while let Some(cidr) = claims.first_for("new") {
            claims.node(cidr, "x");
            given.push(cidr.to_string());
        }
        assert_eq!(given, ["172.20.0.0/24", "172.20.1.0/24", "172.30.0.0/24"]);
        assert_eq!(claims.first_for("x"), Some(net("172.20.0.0/24")), "one's own is in nobody's way");
    }

    #[test]
    fn what_overlaps_is_in_the_way_whatever_its_size() {
        let pool = ClusterPool { pod_cidr_list: vec![net("172.20.0.0/22")], mask_size: 24 };
        let mut claims = Claims::new(&pool);
        claims.nobody(net("172.20.0.77/32"));
        assert_eq!(claims.first_for("a"), Some(net("172.20.1.0/24")));
        claims.node(net("172.20.1.128/25"), "b");
        assert_eq!(claims.first_for("a"), Some(net("172.20.2.0/24")));
        assert_eq!(claims.first_for("b"), Some(net("172.20.1.0/24")));
        claims.node(net("172.20.1.5/32"), "c");
        assert_eq!(claims.first_for("b"), Some(net("172.20.2.0/24")), "two claim it");
        claims.nobody(net("172.20.0.0/16"));
        assert_eq!(claims.first_for("a"), None);
    }
}
