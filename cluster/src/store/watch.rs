//! Following the changes of one resource.

use std::collections::VecDeque;
use std::sync::{Arc, RwLock};

use tokio::sync::watch;

use super::cache::{Cache, Event};
use super::read;

/// The watch asked for changes that the store no longer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version: {since} ({floor})")]
pub struct Expired {
    /// The version asked for.
    pub since: u64,
    /// The oldest version from which the resource can be watched.
    pub floor: u64,
}

/// A position in the events of a resource.
pub struct Watch {
    cache: Arc<RwLock<Cache>>,
    resource: Arc<str>,
    position: u64,
    pending: VecDeque<Arc<Event>>,
    tick: watch::Receiver<u64>,
}

impl Watch {
    pub(super) fn new(cache: Arc<RwLock<Cache>>, resource: &str, since: u64) -> Result<Self, Expired> {
        let floor = read(&cache).floor(resource);
        if since < floor {
            return Err(Expired { since, floor });
        }
        Ok(Self::at(cache, resource, since))
    }

    pub(super) fn at(cache: Arc<RwLock<Cache>>, resource: &str, since: u64) -> Self {
        let resource: Arc<str> = Arc::from(resource);
        let known = read(&cache).peek(&resource).map(|r| r.tick.subscribe());
        let tick = known.unwrap_or_else(|| {
            let mut cache = cache.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            cache.resource(&resource).tick.subscribe()
        });
        Self { cache, resource, position: since, pending: VecDeque::new(), tick }
    }

    /// The next event. Waits until there is one; cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Result<Arc<Event>, Expired> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                self.position = event.object.version;
                return Ok(event);
            }
            // Marked as seen before reading: an event that comes in between makes `changed` return at once.
            self.tick.borrow_and_update();
            {
                let cache = read(&self.cache);
                let floor = cache.floor(&self.resource);
                let events = match cache.peek(&self.resource) {
                    Some(resource) => resource.events_after(self.position),
                    None => Some(Vec::new()),
                };
                match events {
                    Some(events) => self.pending.extend(events),
                    None => return Err(Expired { since: self.position, floor }),
                }
            }
            if self.pending.is_empty() && self.tick.changed().await.is_err() {
                // The sender lives in the cache, which this watch keeps alive.
                std::future::pending::<()>().await;
            }
        }
    }

    /// A version up to which every event has been handed out.
    pub fn progress(&self) -> u64 {
        if !self.pending.is_empty() {
            return self.position;
        }
        let cache = read(&self.cache);
        let newest = cache.peek(&self.resource).and_then(|r| r.events_after(self.position));
        match newest {
            Some(events) if events.is_empty() => cache.version().max(self.position),
            _ => self.position,
        }
    }
}
