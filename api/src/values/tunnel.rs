//! Values `routingMode=tunnel`, `tunnelProtocol` and `tunnelPort`.

use super::{RoutingMode, TunnelProtocol, Values, ValuesError};

/// The usual port of VXLAN on Linux.
const VXLAN_PORT: u16 = 8472;

impl Values {
    /// UDP port of the wrapped packets.
    pub fn tunnel_port(&self) -> u16 {
        if self.tunnel_port == 0 { VXLAN_PORT } else { self.tunnel_port }
    }

    pub(super) fn validate_tunnel(&self) -> Result<(), ValuesError> {
        let invalid = |key, cause: &str, mend: &str| {
            Err(ValuesError::Invalid { key, cause: cause.into(), mend: mend.into() })
        };
        if self.tunnel_protocol == TunnelProtocol::Geneve {
            return invalid("tunnelProtocol", "geneve is not implemented", "write tunnelProtocol=vxlan");
        }
        if self.routing_mode == RoutingMode::Tunnel && self.auto_direct_node_routes {
            return invalid(
                "autoDirectNodeRoutes",
                "true lets packets for other nodes' pods go as they are, routingMode=tunnel wraps them",
                "write autoDirectNodeRoutes=false, or routingMode=native",
            );
        }
        Ok(())
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
    fn a_tunnel_needs_no_native_cidr() {
        let v = values(&["routingMode=tunnel", "tunnelProtocol=vxlan"]).unwrap();
        assert_eq!((v.routing_mode, v.tunnel_port()), (RoutingMode::Tunnel, 8472));
        let map = v.to_config_map();
        assert_eq!((&*map["routing-mode"], &*map["tunnel-protocol"]), ("tunnel", "vxlan"));
        assert_eq!(Values::from_config_map(&map).unwrap(), v);
        let v = values(&["routingMode=tunnel", "tunnelPort=4789"]).unwrap();
        assert_eq!((v.tunnel_port(), &*v.to_config_map()["tunnel-port"]), (4789, "4789"));
        assert_eq!(Values::from_config_map(&v.to_config_map()).unwrap(), v);
    }

    #[test]
    fn what_contradicts_a_tunnel_is_refused_with_a_mend() {
        let refusal = |sets: &[&str]| values(sets).unwrap_err();
        let err = refusal(&["routingMode=tunnel", "autoDirectNodeRoutes=true"]);
        assert!(err.starts_with("autoDirectNodeRoutes: ") && err.contains("or routingMode=native"), "{err}");
        let err = refusal(&["routingMode=tunnel", "tunnelProtocol=geneve"]);
        assert_eq!(err, "tunnelProtocol: geneve is not implemented; write tunnelProtocol=vxlan");
        let err = refusal(&["tunnelProtocol=gre"]);
        assert!(err.contains("unknown variant `gre`") && err.contains("`vxlan`"), "{err}");
        let err = refusal(&["routingMode=tunnel", "tunnelPort=70000"]);
        assert!(err.contains("70000"), "{err}");
    }
}
