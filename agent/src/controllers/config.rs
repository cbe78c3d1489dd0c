//! Tells when ConfigMap `podwire-config` says something else than the agent runs with. The agent acts on it when it restarts, as in
//! the course; until then it is no fault of the agent's, so the part stays healthy.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::reflector::Store;
use podwire_api::names::{AGENT_DAEMON_SET, CONFIG_MAP, SYSTEM_NAMESPACE};
use podwire_api::values::{IpamMode, Values};

use crate::core::Core;
use crate::health::Health;

/// Name of this part in `podwire status`.
const PART: &str = "config";

/// Whether a ConfigMap says another `ipam` mode than the agent runs with.
pub fn changes_ipam_mode(running: &Values, config: &BTreeMap<String, String>) -> bool {
    config.get("ipam").and_then(|m| m.parse::<IpamMode>().ok()).is_some_and(|mode| mode != running.ipam.mode)
}

/// What to say of a ConfigMap.
fn state(running: &Values, config: &BTreeMap<String, String>) -> String {
    let said = match Values::from_config_map(config) {
        Ok(values) => values.to_config_map(),
        Err(cause) => {
            return format!("{cause}; the agent goes on with what it read, but would not start with this");
        }
    };
    let running = running.to_config_map();
    let keys = running.keys().chain(said.keys().filter(|k| !running.contains_key(*k)));
    let value = |map: &BTreeMap<String, String>, key: &String| {
        map.get(key).filter(|v| !v.is_empty()).map_or_else(|| "nothing".to_owned(), Clone::clone)
    };
    let mut differing: Vec<&String> = keys.filter(|k| running.get(*k) != said.get(*k)).collect();
    differing.sort_by_key(|k| *k != "ipam");
    let changes: Vec<String> = differing
        .into_iter()
        .map(|k| format!("{k}: running {}, ConfigMap says {}", value(&running, k), value(&said, k)))
        .collect();
    if changes.is_empty() {
        return format!("as ConfigMap {CONFIG_MAP} says");
    }
    format!(
        "{}; restart the agent to act on it: kubectl -n {SYSTEM_NAMESPACE} rollout restart ds/{AGENT_DAEMON_SET}",
        changes.join("; ")
    )
}

/// Runs for ever.
pub async fn run(core: Arc<Core>, running: Values, store: Store<ConfigMap>, health: Arc<Health>) {
    let mut changes = core.signal().listen();
    loop {
        changes.heard().await;
        // One that was deleted says nothing.
        if let Some(map) = store.state().first() {
            health.ok(PART, state(&running, map.data.as_ref().unwrap_or(&BTreeMap::default())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_agent_does_not_run_with_is_said_with_the_command() {
        let mut values =
            Values { ipv4_native_routing_cidr: vec!["10.244.0.0/16".parse().unwrap()], ..Values::default() };
        let running = values.clone();
        assert_eq!(state(&running, &values.to_config_map()), "as ConfigMap podwire-config says");
        assert!(!changes_ipam_mode(&running, &values.to_config_map()));
        values.ipam.mode = IpamMode::ClusterPool;
        values.ipam.operator.pod_cidr_list = vec!["172.20.0.0/16".parse().unwrap()];
        let map = values.to_config_map();
        let said = state(&running, &map);
        assert!(
            said.starts_with("ipam: running kubernetes, ConfigMap says cluster-pool; ")
                && said.contains(
                    "cluster-pool-ipv4-cidr: running nothing, ConfigMap says 172.20.0.0/16; restart the agent"
                )
                && said.ends_with("kubectl -n kube-system rollout restart ds/podwire"),
            "{said}"
        );
        assert!(changes_ipam_mode(&running, &map));
        let broken = BTreeMap::from([("mtu".to_owned(), "big".to_owned())]);
        assert!(state(&running, &broken).contains("would not start with this"));
        assert!(!changes_ipam_mode(&running, &broken));
    }
}
