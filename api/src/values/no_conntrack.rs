//! Value `installNoConntrackIptablesRules`.

use super::{RoutingMode, Values, ValuesError};

impl Values {
    pub(super) fn validate_no_conntrack(&self) -> Result<(), ValuesError> {
        let key = "installNoConntrackIptablesRules";
        if !self.install_no_conntrack_iptables_rules || self.routing_mode == RoutingMode::Native {
            return Ok(());
        }
        Err(ValuesError::Invalid {
            key,
            cause: format!(
                "true takes pods' packets out of the kernel's connection tracking, which routingMode=tunnel hides from it anyway: it \
                 sees those of {} between nodes",
                self.tunnel_protocol
            ),
            mend: format!("write {key}=false, or routingMode=native"),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;

    fn values(sets: &[&str]) -> Result<Values, String> {
        let mut base = Map::new();
        Values::apply_sets(&mut base, sets).unwrap();
        Values::from_value(Value::Object(base)).map_err(|e| e.to_string())
    }

    #[test]
    fn the_rules_are_for_native_routing_only() {
        let native =
            values(&["installNoConntrackIptablesRules=true", "ipv4NativeRoutingCIDR=10.244.0.0/16"]).unwrap();
        let map = native.to_config_map();
        assert_eq!(map["install-no-conntrack-iptables-rules"], "true");
        assert_eq!(Values::from_config_map(&map).unwrap(), native);
        let refused = values(&["installNoConntrackIptablesRules=true", "routingMode=tunnel"]).unwrap_err();
        assert!(
            refused.starts_with("installNoConntrackIptablesRules: ") && refused.contains("vxlan"),
            "{refused}"
        );
        assert!(refused.ends_with("=false, or routingMode=native"), "{refused}");
    }
}
