//! Which pod gets which address. Pure: the durable part is [`crate::store`].
//!
//! Of each pod CIDR the network and the broadcast address are never given; the first usable address of the first CIDR
//! is the node's router address. While a node moves to another pool it has CIDRs of before too: out of those nothing is given
//! any more, and their router addresses stay, for the pods that have them as their gateway. Allocation is next-fit: it goes on from the address that was given last, so an address
//! that was freed is not given again at once (peers may still have connections and neighbour entries for it).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Owner of the router address in [`Pool::used`].
pub const ROUTER: &str = "router";

/// Why an address was not given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// Every address is in use.
    #[error(
        "no free address in {cidrs} ({used} of {total} used); delete a pod of this node, or give the node a larger pod CIDR"
    )]
    Exhausted {
        /// The CIDRs.
        cidrs: String,
        /// How many of their addresses are used, the router's included.
        used: usize,
        /// How many can be.
        total: usize,
    },
    /// The node has no pod CIDR at all.
    #[error("the node has no pod CIDR; does the controller manager run with --allocate-node-cidrs=true?")]
    NoCidr,
    /// A CIDR is too small to hold a router and a pod.
    #[error("pod CIDR {0} has no room for a router and a pod; /30 is the smallest")]
    TooSmall(Ipv4Net),
    /// Two CIDRs overlap.
    #[error("pod CIDRs {0} and {1} overlap; a node's pod CIDRs must be apart")]
    Overlap(Ipv4Net, Ipv4Net),
}

/// The addresses of one node.
#[derive(Clone, Debug)]
pub struct Pool {
    cidrs: Vec<Ipv4Net>,
    /// Those out of which addresses are given.
    given: Vec<Ipv4Net>,
    router: Ipv4Addr,
    used: BTreeMap<Ipv4Addr, String>,
    /// The address that was given last.
    cursor: Ipv4Addr,
}

impl Pool {
    /// A pool of `cidrs`, with only the router address in use.
    pub fn new(cidrs: &[Ipv4Net]) -> Result<Self, IpamError> {
        Self::within(cidrs, &[])
    }

    /// A pool of `cidrs` that gives only addresses inside `pools`; if none of the CIDRs is inside, of all.
    pub fn within(cidrs: &[Ipv4Net], pools: &[Ipv4Net]) -> Result<Self, IpamError> {
        let cidrs: Vec<Ipv4Net> = cidrs.iter().map(Ipv4Net::trunc).collect();
        if let Some(small) = cidrs.iter().find(|c| c.prefix_len() > 30) {
            return Err(IpamError::TooSmall(*small));
        }
        for (i, a) in cidrs.iter().enumerate() {
            if let Some(b) = cidrs[i + 1..].iter().find(|b| a.contains(*b) || b.contains(a)) {
                return Err(IpamError::Overlap(*a, *b));
            }
        }
        let inside = |c: &Ipv4Net| pools.iter().any(|p| p.contains(c));
        let mut given: Vec<Ipv4Net> = cidrs.iter().copied().filter(inside).collect();
        if given.is_empty() {
            given.clone_from(&cidrs);
        }
        let router = router_address(*given.first().ok_or(IpamError::NoCidr)?);
        let old = cidrs.iter().filter(|c| !given.contains(c)).map(|c| router_address(*c));
        let used = old.chain([router]).map(|ip| (ip, ROUTER.to_owned())).collect();
        Ok(Self { cidrs, given, router, used, cursor: router })
    }

    /// The node's own address in the pod network: the pods' gateway.
    pub fn router(&self) -> Ipv4Addr {
        self.router
    }

    /// Every router address: the node's own, and those of CIDRs of before.
    pub fn routers(&self) -> Vec<Ipv4Addr> {
        let old = self.cidrs.iter().filter(|c| !self.given.contains(c)).map(|c| router_address(*c));
        std::iter::once(self.router).chain(old).collect()
    }

    /// The CIDRs, those of before too.
    pub fn cidrs(&self) -> &[Ipv4Net] {
        &self.cidrs
    }

    /// The CIDRs out of which addresses are given.
    pub fn given(&self) -> &[Ipv4Net] {
        &self.given
    }

    /// Every address in use and who has it. Addresses outside the CIDRs are those of pods that are older than the CIDRs.
    pub fn used(&self) -> &BTreeMap<Ipv4Addr, String> {
        &self.used
    }

    /// How many addresses of the CIDRs out of which addresses are given are in use, the router's included.
    pub fn used_count(&self) -> usize {
        self.used.keys().filter(|ip| self.given.iter().any(|c| c.contains(*ip))).count()
    }

    /// How many addresses those CIDRs hold, network and broadcast addresses not counted.
    pub fn total(&self) -> usize {
        self.given.iter().map(|c| usable(*c) as usize).sum()
    }

    /// Gives the next free address to `owner`.
    pub fn allocate(&mut self, owner: &str) -> Result<Ipv4Addr, IpamError> {
        let mut candidate = self.cursor;
        // Between two visits of the cursor every address is seen once, so this ends.
        loop {
            candidate = self.after(candidate);
            if let Entry::Vacant(free) = self.used.entry(candidate) {
                free.insert(owner.to_owned());
                self.cursor = candidate;
                return Ok(candidate);
            }
            if candidate == self.cursor {
                return Err(self.exhausted());
            }
        }
    }

    /// Keeps an address that a pod already has (after a restart). Returns false if somebody else has it.
    pub fn keep(&mut self, ip: Ipv4Addr, owner: &str) -> bool {
        if self.used.contains_key(&ip) {
            return false;
        }
        self.used.insert(ip, owner.to_owned());
        true
    }

    /// Continues after `ip`, if it is one of ours (after a restart: the address that was given last).
    pub fn continue_after(&mut self, ip: Ipv4Addr) {
        if self.given.iter().any(|c| c.contains(&ip)) {
            self.cursor = ip;
        }
    }

    /// Takes an address back. A router's stays.
    pub fn free(&mut self, ip: Ipv4Addr) {
        if self.used.get(&ip).is_some_and(|owner| owner != ROUTER) {
            self.used.remove(&ip);
        }
    }

    /// The usable address that follows `ip`, through all CIDRs and around.
    fn after(&self, ip: Ipv4Addr) -> Ipv4Addr {
        let at = self.given.iter().position(|c| c.contains(&ip)).unwrap_or(0);
        let cidr = self.given[at];
        let next = u32::from(ip).saturating_add(1);
        if cidr.contains(&ip) && next < u32::from(cidr.broadcast()) {
            return Ipv4Addr::from(next);
        }
        router_address(self.given[(at + 1) % self.given.len()])
    }

    fn exhausted(&self) -> IpamError {
        let cidrs: Vec<String> = self.given.iter().map(ToString::to_string).collect();
        IpamError::Exhausted { cidrs: cidrs.join(", "), used: self.used_count(), total: self.total() }
    }
}

/// The first usable address of a CIDR.
pub fn router_address(cidr: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(cidr.network()) + 1)
}

fn usable(cidr: Ipv4Net) -> u64 {
    (1_u64 << (32 - cidr.prefix_len())) - 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool(cidrs: &[&str]) -> Pool {
        Pool::new(&cidrs.iter().map(|c| c.parse().unwrap()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn addresses_come_in_order_and_a_freed_one_comes_last() {
        let mut p = pool(&["10.244.0.0/29"]);
        assert_eq!(p.router(), Ipv4Addr::new(10, 244, 0, 1));
        let given: Vec<u8> = (0..3).map(|_| p.allocate("x").unwrap().octets()[3]).collect();
        assert_eq!(given, [2, 3, 4]);
        p.free(Ipv4Addr::new(10, 244, 0, 3));
        let given: Vec<u8> = (0..3).map(|_| p.allocate("x").unwrap().octets()[3]).collect();
        assert_eq!(given, [5, 6, 3]);
    }

    #[test]
    fn exhaustion_names_the_pool_and_freeing_mends_it() {
        let mut p = pool(&["10.244.0.0/30"]);
        let ip = p.allocate("default/a").unwrap();
        let err = p.allocate("default/b").unwrap_err();
        assert!(
            err.to_string().starts_with("no free address in 10.244.0.0/30 (2 of 2 used); delete a pod"),
            "{err}"
        );
        p.free(ip);
        assert_eq!(p.allocate("default/b").unwrap(), ip);
        p.free(p.router());
        assert!(p.allocate("default/c").is_err(), "the router's address is never given");
    }

    #[test]
    fn bad_cidrs_are_refused() {
        assert_eq!(Pool::new(&[]).unwrap_err(), IpamError::NoCidr);
        let small: Ipv4Net = "10.0.0.0/31".parse().unwrap();
        assert_eq!(Pool::new(&[small]).unwrap_err(), IpamError::TooSmall(small));
        let (a, b) = ("10.0.0.0/16".parse().unwrap(), "10.0.1.0/24".parse().unwrap());
        assert_eq!(Pool::new(&[a, b]).unwrap_err(), IpamError::Overlap(a, b));
        assert!(Pool::new(&["255.255.255.0/24".parse().unwrap()]).is_ok());
    }

    #[test]
    fn old_addresses_outside_the_cidrs_are_kept_but_not_counted() {
        let mut p = pool(&["172.20.0.0/30"]);
        assert!(p.keep(Ipv4Addr::new(10, 244, 0, 9), "default/old"));
        assert!(!p.keep(Ipv4Addr::new(10, 244, 0, 9), "default/other"));
        assert_eq!((p.used_count(), p.total(), p.used().len()), (1, 2, 2));
    }

    #[test]
    fn cidrs_of_before_are_served_but_nothing_is_given_of_them() {
        let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
        let cidrs = [net("172.20.0.0/30"), net("10.244.0.0/24")];
        let mut p = Pool::within(&cidrs, &[net("172.20.0.0/16")]).unwrap();
        assert_eq!(p.routers(), [Ipv4Addr::new(172, 20, 0, 1), Ipv4Addr::new(10, 244, 0, 1)]);
        assert!(p.keep(Ipv4Addr::new(10, 244, 0, 9), "default/old"));
        p.continue_after(Ipv4Addr::new(10, 244, 0, 9));
        assert_eq!(p.allocate("default/new").unwrap(), Ipv4Addr::new(172, 20, 0, 2));
        let full = p.allocate("default/more").unwrap_err().to_string();
        assert!(full.starts_with("no free address in 172.20.0.0/30 (2 of 2 used)"), "{full}");
        p.free(Ipv4Addr::new(10, 244, 0, 1));
        assert_eq!((p.used().len(), p.cidrs().len(), p.given().len()), (4, 2, 1));
        // What is left from mode kubernetes alone goes on as it was.
        let stale = Pool::within(&cidrs[1..], &[net("172.20.0.0/16")]).unwrap();
        assert_eq!((stale.given(), stale.routers().len()), (&cidrs[1..], 1));
    }

    proptest! {
        /// Whatever is done in whatever order: no address is given twice, none outside the CIDRs, none reserved, and
        /// allocation fails only when everything is used.
        #[test]
        fn never_twice_never_outside(ops in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..200)) {
            let mut p = pool(&["10.1.0.0/29", "10.2.0.0/28"]);
            let mut live: Vec<Ipv4Addr> = Vec::new();
            for (give, pick) in ops {
                if give {
                    if let Ok(ip) = p.allocate("x") {
                        prop_assert!(!live.contains(&ip));
                        prop_assert!(ip != p.router());
                        let cidr = p.cidrs().iter().find(|c| c.contains(&ip)).copied();
                        let cidr = cidr.expect("outside");
                        prop_assert!(ip != cidr.network() && ip != cidr.broadcast());
                        live.push(ip);
                    } else {
                        prop_assert_eq!(live.len() + 1, p.total());
                    }
                } else if !live.is_empty() {
                    let ip = live.swap_remove(pick.index(live.len()));
                    p.free(ip);
                }
                prop_assert_eq!(p.used().len(), live.len() + 1);
            }
        }

        /// Next-fit: after a free, every other free address is given before the freed one.
        #[test]
        fn a_freed_address_rests(warm in 1_usize..12) {
            let mut p = pool(&["10.2.0.0/28"]);
            let given: Vec<_> = (0..warm).map(|_| p.allocate("x").unwrap()).collect();
            let last = *given.last().unwrap();
            p.free(last);
            let free_others = p.total() - p.used_count() - 1;
            for _ in 0..free_others {
                prop_assert_ne!(p.allocate("x").unwrap(), last);
            }
            prop_assert_eq!(p.allocate("x").unwrap(), last);
        }
    }
}
