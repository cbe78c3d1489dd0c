//! Watches a kind of object and keeps what it sees.

use std::fmt::Debug;
use std::hash::Hash;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{Store, store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::health::Health;
use crate::signal::Signal;

/// Watches for as long as the runtime lives. `changed` is told of every change; `part` is how the watch is.
pub fn watch<K>(
    api: Api<K>,
    config: watcher::Config,
    part: &'static str,
    health: Arc<Health>,
    changed: Signal,
) -> Store<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    let (reader, mut writer) = store();
    tokio::spawn(async move {
        // Nobody here reads managed fields, and they are most of an object's size.
        let stream =
            watcher(api, config).default_backoff().modify(|object| object.managed_fields_mut().clear());
        let mut stream = pin!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => {
                    writer.apply_watcher_event(&event);
                    if !matches!(event, Event::Init | Event::InitApply(_)) {
                        health.ok(part, "watching");
                        changed.notify();
                    }
                }
                Err(cause) => health.fail(part, format!("{cause}; is the API server up? (trying again)")),
            }
        }
    });
    reader
}
