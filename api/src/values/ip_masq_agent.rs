//! Value `ipMasqAgent`: exceptions from masquerade, and what ConfigMap `ip-masq-agent` says of them.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::ValuesError;

/// Exceptions from masquerade.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct IpMasqAgent {
    /// Agents obey ConfigMap `ip-masq-agent`.
    pub enabled: bool,
    /// What is written into it; absent: whoever likes to writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<IpMasqConfig>,
}

/// The ConfigMap's content. The agent reads it in more forms than this one: see its `ip_masq_agent`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct IpMasqConfig {
    /// Destinations that see pods' own addresses; absent: all that is private.
    #[serde(rename = "nonMasqueradeCIDRs", skip_serializing_if = "Option::is_none")]
    pub non_masquerade_cidrs: Option<Vec<Ipv4Net>>,
    /// Link-local destinations are not among them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub masq_link_local: bool,
}

impl IpMasqAgent {
    /// What key `config` of the ConfigMap holds, if the values have a say in it.
    pub fn config_map_text(&self) -> Option<String> {
        let config = self.config.as_ref().filter(|_| self.enabled)?;
        // Names, CIDRs and a bool have a JSON form always.
        serde_json::to_string(config).ok()
    }

    pub(super) fn validate(&self) -> Result<(), ValuesError> {
        let listed = self.config.iter().filter_map(|config| config.non_masquerade_cidrs.as_ref()).flatten();
        match listed.into_iter().find(|cidr| **cidr != cidr.trunc()) {
            None => Ok(()),
            Some(cidr) => Err(ValuesError::Invalid {
                key: "ipMasqAgent.config.nonMasqueradeCIDRs",
                cause: format!("{cidr} has bits beyond its prefix"),
                mend: format!("write {}", cidr.trunc()),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::super::Values;

    fn values(sets: &[&str]) -> Result<Values, String> {
        let mut base = Map::new();
        Values::apply_sets(&mut base, &["ipv4NativeRoutingCIDR=10.244.0.0/16"]).unwrap();
        Values::apply_sets(&mut base, sets).unwrap();
        Values::from_value(Value::Object(base)).map_err(|e| e.to_string())
    }

    #[test]
    fn the_config_map_says_what_the_values_say() {
        let text = |sets: &[&str]| values(sets).unwrap().ip_masq_agent.config_map_text();
        let on = "ipMasqAgent.enabled=true";
        let list = "ipMasqAgent.config.nonMasqueradeCIDRs={10.10.1.0/24,10.10.2.0/24}";
        assert_eq!(text(&[on]), None, "whoever likes to writes it");
        assert_eq!(text(&[list]), None, "nobody would read it");
        assert_eq!(text(&[on, list]).unwrap(), r#"{"nonMasqueradeCIDRs":["10.10.1.0/24","10.10.2.0/24"]}"#);
        let one = "ipMasqAgent.config.nonMasqueradeCIDRs=10.10.1.0/24";
        let link_local = "ipMasqAgent.config.masqLinkLocal=true";
        assert_eq!(
            text(&[on, one, link_local]).unwrap(),
            r#"{"nonMasqueradeCIDRs":["10.10.1.0/24"],"masqLinkLocal":true}"#
        );
        let wrong = values(&[on, "ipMasqAgent.config.nonMasqueradeCIDRs={10.10.1.1/24}"]).unwrap_err();
        assert!(wrong.ends_with("has bits beyond its prefix; write 10.10.1.0/24"), "{wrong}");
    }
}
