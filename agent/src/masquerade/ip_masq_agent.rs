//! ConfigMap `ip-masq-agent`, in the form that the agent of this name gave it: destinations that see pods' own addresses.

use std::collections::BTreeSet;

use ipnet::Ipv4Net;
use podwire_abi::connection::MAX_NON_MASQUERADE;
use serde::Deserialize;

/// Key of the ConfigMap.
pub const KEY: &str = "config";

/// Left out where nothing is configured: private networks and those that are nobody's on the Internet, as in Cilium.
const DEFAULTS: [&str; 11] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/4",
];

const LINK_LOCAL: &str = "169.254.0.0/16";

/// What the key holds. A CIDR that is not IPv4 concerns us as little as `resyncInterval`: the ConfigMap is watched.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Config {
    #[serde(rename = "nonMasqueradeCIDRs")]
    non_masquerade_cidrs: Option<Vec<String>>,
    masq_link_local: bool,
    #[serde(rename = "masqLinkLocalIPv6")]
    _masq_link_local_ipv6: bool,
    #[serde(rename = "resyncInterval")]
    _resync_interval: Option<String>,
}

/// The destinations that a configuration leaves out; `None` is one that does not exist. An error names the key, the cause and
/// the mend.
pub fn non_masquerade(config: Option<&str>) -> Result<BTreeSet<Ipv4Net>, String> {
    let config = match config {
        None => Config::default(),
        Some(text) if text.trim().is_empty() => Config::default(),
        // JSON is YAML.
        Some(text) => serde_saphyr::from_str(text).map_err(|cause| {
            format!(
                "{cause}; write for example `nonMasqueradeCIDRs: [10.10.0.0/16]` and `masqLinkLocal: false`"
            )
        })?,
    };
    let words = match &config.non_masquerade_cidrs {
        Some(words) => words.iter().map(String::as_str).collect(),
        None => DEFAULTS.to_vec(),
    };
    let link_local = (!config.masq_link_local).then_some(LINK_LOCAL);
    let mut cidrs = BTreeSet::new();
    for word in words.into_iter().chain(link_local) {
        if word.parse::<ipnet::Ipv6Net>().is_ok() {
            continue;
        }
        let cidr: Ipv4Net = word.parse().map_err(|_| {
            format!("nonMasqueradeCIDRs: {word:?} is no CIDR; write for example 10.10.0.0/16")
        })?;
        if cidr != cidr.trunc() {
            return Err(format!(
                "nonMasqueradeCIDRs: {word} has bits beyond its prefix; write {}",
                cidr.trunc()
            ));
        }
        cidrs.insert(cidr);
    }
    if cidrs.len() > MAX_NON_MASQUERADE as usize {
        return Err(format!(
            "nonMasqueradeCIDRs: {} CIDRs are more than the {MAX_NON_MASQUERADE} that there is room for; join neighbours",
            cidrs.len()
        ));
    }
    Ok(cidrs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(config: &str) -> Vec<String> {
        non_masquerade(Some(config)).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn yaml_and_json_say_the_same() {
        let yaml = "nonMasqueradeCIDRs:\n- 10.10.1.0/24\n- 10.10.2.0/24\nmasqLinkLocal: false\nresyncInterval: 60s\n";
        let json = r#"{"nonMasqueradeCIDRs":["10.10.1.0/24","10.10.2.0/24"],"masqLinkLocal":false}"#;
        for config in [yaml, json] {
            assert_eq!(list(config), ["10.10.1.0/24", "10.10.2.0/24", "169.254.0.0/16"]);
        }
    }

    #[test]
    fn nothing_configured_leaves_out_what_is_private() {
        for config in [None, Some(""), Some("{}"), Some("masqLinkLocal: false")] {
            let cidrs = non_masquerade(config).unwrap();
            assert_eq!(cidrs.len(), 12, "{config:?}");
            assert!(cidrs.contains(&LINK_LOCAL.parse().unwrap()));
        }
        assert_eq!(list("masqLinkLocal: true").len(), 11);
        assert_eq!(list("nonMasqueradeCIDRs: []"), ["169.254.0.0/16"], "an empty list is a list");
        assert!(list("{nonMasqueradeCIDRs: [], masqLinkLocal: true}").is_empty());
        assert_eq!(list("nonMasqueradeCIDRs: ['fd00::/8', 10.0.0.0/8]"), ["10.0.0.0/8", "169.254.0.0/16"]);
    }

    #[test]
    fn mistakes_are_told_with_a_mend() {
        let error = |config| non_masquerade(Some(config)).unwrap_err();
        assert!(error("nonMasqueradeCIDRs: [10.10.0.0]").contains("\"10.10.0.0\" is no CIDR"));
        let error_bits = error("nonMasqueradeCIDRs: [10.10.1.1/24]");
        assert!(error_bits.contains("write 10.10.1.0/24"), "{error_bits}");
        let unknown = error("nonMasqueradeCidrs: [10.0.0.0/8]");
        assert!(unknown.contains("nonMasqueradeCIDRs"), "{unknown}");
    }
}
