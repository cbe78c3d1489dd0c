//! Keeps the destinations that see pods' own addresses as ConfigMap `ip-masq-agent` lists them.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::reflector::Store;
use podwire_api::names::{IP_MASQ_AGENT_CONFIG_MAP, SYSTEM_NAMESPACE};

use crate::core::Core;
use crate::datapath::Datapath;
use crate::health::Health;
use crate::masquerade::ip_masq_agent::{KEY, non_masquerade};

/// Name of this part in `podwire status`.
const PART: &str = "ip-masq-agent";

/// Runs for ever. `store` holds the ConfigMap, if there is one.
pub async fn run(core: Arc<Core>, datapath: Datapath, store: Store<ConfigMap>, health: Arc<Health>) {
    // Until the API server has told, what the agent before was told holds. A writer that is gone tells nothing any more.
    if store.wait_until_ready().await.is_err() {
        return;
    }
    let mut changes = core.signal().listen();
    let mut applied: Option<BTreeSet<Ipv4Net>> = None;
    loop {
        changes.heard().await;
        let map = store.state().into_iter().next();
        let config = map.as_ref().and_then(|m| m.data.as_ref()).and_then(|data| data.get(KEY));
        let name = format!("ConfigMap {SYSTEM_NAMESPACE}/{IP_MASQ_AGENT_CONFIG_MAP}");
        let cidrs = match non_masquerade(config.map(String::as_str)) {
            Ok(cidrs) => cidrs,
            Err(cause) => {
                health.fail(PART, format!("{name}, key {KEY:?}: {cause} (the list of before stays)"));
                continue;
            }
        };
        if applied.as_ref() != Some(&cidrs) {
            if let Err(cause) = datapath.set_non_masquerade(&cidrs) {
                health.fail(PART, cause.to_string());
                continue;
            }
            applied = Some(cidrs.clone());
        }
        let whence = if map.is_some() { name } else { format!("the defaults: there is no {name}") };
        health.ok(PART, format!("{} destinations keep pods' addresses, by {whence}", cidrs.len()));
    }
}
