//! Values as the keys of ConfigMap `podwire-config`.

use std::collections::BTreeMap;
use std::str::FromStr;

use ipnet::Ipv4Net;

use super::{Values, ValuesError};

impl Values {
    /// The keys of ConfigMap `podwire-config`, named as in `cilium-config`.
    pub fn to_config_map(&self) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        let mut put = |k: &str, v: String| {
            map.insert(k.to_owned(), v);
        };
        put("ipam", self.ipam.mode.to_string());
        put("ipam-migration", self.ipam.migration.to_string());
        if let Some(cidr) = self.service_cidr {
            put("service-cidr", cidr.to_string());
        }
        put("routing-mode", self.routing_mode.to_string());
        put("tunnel-protocol", self.tunnel_protocol.to_string());
        put("tunnel-port", self.tunnel_port.to_string());
        put("auto-direct-node-routes", self.auto_direct_node_routes.to_string());
        put("direct-routing-skip-unreachable", self.direct_routing_skip_unreachable.to_string());
        if !self.ipv4_native_routing_cidr.is_empty() {
            put("ipv4-native-routing-cidr", words(&self.ipv4_native_routing_cidr));
        }
        put("enable-endpoint-routes", self.endpoint_routes.enabled.to_string());
        put("enable-bpf-masquerade", self.bpf.masquerade.to_string());
        put("enable-ipv4-masquerade", self.enable_ipv4_masquerade.to_string());
        put("enable-ip-masq-agent", self.ip_masq_agent.enabled.to_string());
        put("bpf-lb-sock", self.socket_lb.enabled.to_string());
        put("bpf-lb-algorithm", self.load_balancer.algorithm.to_string());
        put("bpf-lb-mode", self.load_balancer.mode.to_string());
        put("install-no-conntrack-iptables-rules", self.install_no_conntrack_iptables_rules.to_string());
        put("cluster-pool-ipv4-cidr", words(&self.ipam.operator.pod_cidr_list));
        put("cluster-pool-ipv4-mask-size", self.ipam.operator.mask_size.to_string());
        put("devices", self.devices.join(" "));
        put("mtu", self.mtu.to_string());
        put("debug", self.debug.enabled.to_string());
        map
    }

    /// Reads the keys of ConfigMap `podwire-config`. Absent keys take their defaults; keys of other programs are ignored.
    pub fn from_config_map(map: &BTreeMap<String, String>) -> Result<Self, ValuesError> {
        let mut v = Self::default();
        read(map, "ipam", "kubernetes or cluster-pool", &mut v.ipam.mode)?;
        read(map, "ipam-migration", "replace or side-by-side", &mut v.ipam.migration)?;
        if let Some(cidr) = map.get("service-cidr").filter(|s| !s.is_empty()) {
            v.service_cidr = Some(parse("service-cidr", cidr, "an IPv4 CIDR such as 10.96.0.0/16")?);
        }
        read(map, "routing-mode", "native or tunnel", &mut v.routing_mode)?;
        read(map, "tunnel-protocol", "vxlan", &mut v.tunnel_protocol)?;
        read(map, "tunnel-port", "a UDP port, or 0 for the usual one", &mut v.tunnel_port)?;
        read(map, "auto-direct-node-routes", "true or false", &mut v.auto_direct_node_routes)?;
        read(
            map,
            "direct-routing-skip-unreachable",
            "true or false",
            &mut v.direct_routing_skip_unreachable,
        )?;
        v.ipv4_native_routing_cidr =
            cidrs(map, "ipv4-native-routing-cidr", "a list of IPv4 CIDRs such as 10.244.0.0/16")?;
        read(map, "enable-endpoint-routes", "true or false", &mut v.endpoint_routes.enabled)?;
        read(map, "enable-bpf-masquerade", "true or false", &mut v.bpf.masquerade)?;
        read(map, "enable-ipv4-masquerade", "true or false", &mut v.enable_ipv4_masquerade)?;
        read(map, "enable-ip-masq-agent", "true or false", &mut v.ip_masq_agent.enabled)?;
        read(map, "bpf-lb-sock", "true or false", &mut v.socket_lb.enabled)?;
        let no_conntrack = &mut v.install_no_conntrack_iptables_rules;
        read(map, "install-no-conntrack-iptables-rules", "true or false", no_conntrack)?;
        read(map, "bpf-lb-algorithm", "maglev or random", &mut v.load_balancer.algorithm)?;
        read(map, "bpf-lb-mode", "snat", &mut v.load_balancer.mode)?;
        v.ipam.operator.pod_cidr_list =
            cidrs(map, "cluster-pool-ipv4-cidr", "a list of IPv4 CIDRs such as 172.20.0.0/16")?;
        read(map, "cluster-pool-ipv4-mask-size", "a prefix length", &mut v.ipam.operator.mask_size)?;
        v.devices =
            map.get("devices").map(|s| s.split_whitespace().map(str::to_owned).collect()).unwrap_or_default();
        read(map, "mtu", "a number of bytes", &mut v.mtu)?;
        read(map, "debug", "true or false", &mut v.debug.enabled)?;
        v.validate()?;
        Ok(v)
    }
}

fn parse<T: FromStr>(key: &'static str, value: &str, expected: &str) -> Result<T, ValuesError> {
    value.parse().map_err(|_| ValuesError::ConfigKey { key, value: value.into(), expected: expected.into() })
}

fn read<T: FromStr>(
    map: &BTreeMap<String, String>,
    key: &'static str,
    expected: &str,
    into: &mut T,
) -> Result<(), ValuesError> {
    if let Some(value) = map.get(key) {
        *into = parse(key, value, expected)?;
    }
    Ok(())
}

/// A list as a key holds it: with spaces between.
fn words(cidrs: &[Ipv4Net]) -> String {
    cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn cidrs(
    map: &BTreeMap<String, String>,
    key: &'static str,
    expected: &str,
) -> Result<Vec<Ipv4Net>, ValuesError> {
    let text = map.get(key).map_or("", String::as_str);
    text.split_whitespace().map(|word| parse(key, word, expected)).collect()
}
