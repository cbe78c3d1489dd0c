//! Values `socketLB` and `loadBalancer`: how Services find their backends.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{RoutingMode, Values, ValuesError};

/// Backends for sockets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SocketLb {
    /// A socket is given a backend when it connects, so that no packet carries a ClusterIP. Else each packet is translated.
    pub enabled: bool,
}

impl Default for SocketLb {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// Callers from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LoadBalancer {
    /// How a backend is chosen for a caller from outside.
    pub algorithm: Algorithm,
    /// By which address a backend on another node sees a caller from outside.
    pub mode: Mode,
}

word_enum! {
    /// How a backend is chosen for a caller from outside.
    Algorithm {
        /// By a hash of the caller, the same on every node: a connection survives the loss of the node that it came through.
        #[default]
        Maglev = "maglev",
        /// At random.
        Random = "random",
    }
}

word_enum! {
    /// By which address a backend on another node sees a caller from outside.
    Mode {
        /// By that of the node that was called, to which it answers.
        #[default]
        Snat = "snat",
        /// By its own; the backend's node answers it directly.
        Dsr = "dsr",
        /// TCP as `dsr`, UDP as `snat`.
        Hybrid = "hybrid",
    }
}

impl Values {
    pub(super) fn validate_load_balancer(&self) -> Result<(), ValuesError> {
        let mode = self.load_balancer.mode;
        if mode == Mode::Snat {
            return Ok(());
        }
        let cause = if self.routing_mode == RoutingMode::Tunnel {
            format!(
                "{mode} has the backend's node answer callers directly, for which it must learn whom they called; over {} it \
                 would not",
                self.tunnel_protocol
            )
        } else {
            format!("{mode} is not implemented")
        };
        Err(ValuesError::Invalid {
            key: "loadBalancer.mode",
            cause,
            mend: "write loadBalancer.mode=snat; with externalTrafficPolicy: Local a Service's backends see callers' own \
                   addresses"
                .into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;

    fn values(sets: &[&str]) -> Result<Values, String> {
        let mut base = Map::new();
        Values::apply_sets(&mut base, &["ipv4NativeRoutingCIDR=10.244.0.0/16"]).unwrap();
        Values::apply_sets(&mut base, sets).unwrap();
        Values::from_value(Value::Object(base)).map_err(|e| e.to_string())
    }

    #[test]
    fn keys_are_as_in_cilium_config() {
        let v = values(&[]).unwrap();
        let map = v.to_config_map();
        assert_eq!(
            (&*map["bpf-lb-sock"], &*map["bpf-lb-algorithm"], &*map["bpf-lb-mode"]),
            ("true", "maglev", "snat")
        );
        let v = values(&["socketLB.enabled=false", "loadBalancer.algorithm=random"]).unwrap();
        assert!(!v.socket_lb.enabled);
        let map = v.to_config_map();
        assert_eq!((&*map["bpf-lb-sock"], &*map["bpf-lb-algorithm"]), ("false", "random"));
        assert_eq!(Values::from_config_map(&map).unwrap(), v);
    }

    #[test]
    fn direct_return_is_refused_with_its_reason() {
        let refusal = |sets: &[&str]| values(sets).unwrap_err();
        let native = refusal(&["loadBalancer.mode=dsr"]);
        assert!(
            native.starts_with("loadBalancer.mode: dsr is not implemented; write loadBalancer.mode=snat"),
            "{native}"
        );
        let wrapped = refusal(&["loadBalancer.mode=hybrid", "routingMode=tunnel"]);
        assert!(wrapped.contains("over vxlan it would not; write loadBalancer.mode=snat"), "{wrapped}");
        assert!(refusal(&["loadBalancer.algorithm=rr"]).contains("unknown variant `rr`"));
    }
}
