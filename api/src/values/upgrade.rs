//! Which values may follow which: addresses that nodes hold already bind the pool.

use ipnet::Ipv4Net;

use super::{Values, ValuesError};

impl Values {
    /// Refuses values that would take from a node what it holds. `used` are the pod CIDRs of all NodeNetworks; those inside
    /// the pool before were given out of it. The pool may grow while they are held, and nothing else.
    pub fn check_upgrade(before: &Self, after: &Self, used: &[Ipv4Net]) -> Result<(), ValuesError> {
        let (old, new) = (&before.ipam.operator, &after.ipam.operator);
        let given = |pool: &Ipv4Net| used.iter().find(|cidr| pool.contains(*cidr));
        if let Some(cidr) = old.pod_cidr_list.iter().find_map(given)
            && new.mask_size != old.mask_size
        {
            return Err(ValuesError::Invalid {
                key: "ipam.operator.clusterPoolIPv4MaskSize",
                cause: format!(
                    "nodes hold CIDRs of /{} ({cidr} is one), so it cannot become {}",
                    old.mask_size, new.mask_size
                ),
                mend: format!(
                    "keep {}; for another size take another pool when no NodeNetwork holds a CIDR of this one",
                    old.mask_size
                ),
            });
        }
        for pool in old.pod_cidr_list.iter().filter(|pool| !new.pod_cidr_list.contains(pool)) {
            let Some(cidr) = given(pool) else { continue };
            return Err(ValuesError::Invalid {
                key: "ipam.operator.clusterPoolIPv4PodCIDRList",
                cause: format!("{pool} is in use (a node holds {cidr}) and would be gone"),
                mend: format!(
                    "keep {pool} and add others after it, for example {{{pool},172.30.0.0/16}}; the list may grow but not change"
                ),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn values(pools: &[&str], mask_size: u8) -> Values {
        let mut values = Values::default();
        values.ipam.operator.pod_cidr_list = pools.iter().map(|p| net(p)).collect();
        values.ipam.operator.mask_size = mask_size;
        values
    }

    #[test]
    fn the_pool_grows_but_does_not_change() {
        let before = values(&["172.20.0.0/16"], 24);
        let used = [net("172.20.3.0/24")];
        let check = |after: &Values, used: &[Ipv4Net]| Values::check_upgrade(&before, after, used);
        check(&values(&["172.20.0.0/16", "172.21.0.0/16"], 24), &used).unwrap();
        check(&values(&["172.21.0.0/16", "172.20.0.0/16"], 24), &used).unwrap();
        let gone = check(&values(&["172.21.0.0/16"], 24), &used).unwrap_err().to_string();
        assert!(gone.contains("172.20.0.0/16 is in use (a node holds 172.20.3.0/24)"), "{gone}");
        assert!(gone.contains("keep 172.20.0.0/16 and add others after it"), "{gone}");
        let edited = check(&values(&["172.20.0.0/17"], 24), &used).unwrap_err();
        assert!(matches!(
            edited,
            ValuesError::Invalid { key: "ipam.operator.clusterPoolIPv4PodCIDRList", .. }
        ));
        let mask = check(&values(&["172.20.0.0/16"], 25), &used).unwrap_err().to_string();
        assert!(mask.contains("nodes hold CIDRs of /24") && mask.contains("keep 24"), "{mask}");
    }

    #[test]
    fn what_no_node_holds_binds_nobody() {
        let before = values(&["172.20.0.0/16"], 24);
        let after = values(&["172.21.0.0/16"], 26);
        // The nodes have theirs from the controller manager.
        Values::check_upgrade(&before, &after, &[net("10.244.0.0/24")]).unwrap();
        Values::check_upgrade(&before, &after, &[]).unwrap();
        Values::check_upgrade(&values(&[], 24), &after, &[net("172.21.0.0/24")]).unwrap();
    }
}
