//! Events are kept for an hour after they were last seen, as in any cluster: they would fill the store otherwise.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;

use super::object::{filled, parse_time};
use super::state::Api;
use crate::store::{Key, Store, StoreError};

const EVENTS: &str = "core/events";
/// How long an event is kept.
const KEPT: time::Duration = time::Duration::hours(1);
/// How often old ones are looked for.
const EVERY: Duration = Duration::from_mins(1);

/// Removes old events for ever.
pub async fn run(api: Arc<Api>) {
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        ticks.tick().await;
        if let Err(error) = sweep(&api.store, OffsetDateTime::now_utc()).await {
            tracing::warn!(%error, "old events were not removed");
        }
    }
}

/// Removes the events that are old at `now`.
async fn sweep(store: &Store, now: OffsetDateTime) -> Result<(), StoreError> {
    let old: Vec<Key> = store
        .list(EVENTS, None)
        .objects
        .iter()
        .filter(|event| is_old(&event.value, now))
        .map(|event| event.key.clone())
        .collect();
    if old.is_empty() {
        return Ok(());
    }
    let work = move |txn: &mut crate::store::Txn<'_>| {
        for key in &old {
            // It may have been seen again since.
            if txn.get(key).is_some_and(|event| is_old(&event.value, now)) {
                txn.delete(key);
            }
        }
        Ok::<_, std::convert::Infallible>(())
    };
    store.transact(work).await.map(|_| ())
}

fn is_old(event: &Value, now: OffsetDateTime) -> bool {
    let times = [
        &event["lastTimestamp"],
        &event["series"]["lastObservedTime"],
        &event["eventTime"],
        &event["metadata"]["creationTimestamp"],
    ];
    let last = times.into_iter().filter(|t| filled(t)).filter_map(|t| parse_time(t.as_str()?)).max();
    last.is_some_and(|last| now - last > KEPT)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn events_go_an_hour_after_they_were_last_seen() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let events = [
            ("old", json!({"metadata": {"creationTimestamp": "2026-01-01T10:00:00Z"}})),
            ("young", json!({"metadata": {"creationTimestamp": "2026-01-01T11:30:00Z"}})),
            (
                "again",
                json!({"metadata": {"creationTimestamp": "2026-01-01T08:00:00Z"}, "lastTimestamp": "2026-01-01T11:10:00Z"}),
            ),
            (
                "series",
                json!({"metadata": {"creationTimestamp": "2026-01-01T08:00:00Z"}, "eventTime": "2026-01-01T08:00:00.5Z",
                "series": {"lastObservedTime": "2026-01-01T11:59:00.123456Z"}}),
            ),
            (
                "ceased",
                json!({"metadata": {"creationTimestamp": "2026-01-01T08:00:00Z"}, "lastTimestamp": "2026-01-01T10:10:00Z"}),
            ),
        ];
        let put = move |txn: &mut crate::store::Txn<'_>| {
            for (name, event) in events {
                txn.put(Key::new(EVENTS, "default", name), event);
            }
            Ok::<_, ()>(())
        };
        store.transact(put).await.unwrap().unwrap();
        sweep(&store, parse_time("2026-01-01T12:00:00Z").unwrap()).await.unwrap();
        let left: Vec<String> = store.list(EVENTS, None).objects.iter().map(|o| o.key.name.clone()).collect();
        assert_eq!(left, ["again", "series", "young"]);
    }
}
