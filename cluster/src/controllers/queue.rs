//! A work queue of keys: a key waits in it once however often it was added, and one key is never worked on twice at a
//! time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// First wait before a failed key is tried again.
const RETRY_MIN: Duration = Duration::from_millis(20);
/// Longest wait before a failed key is tried again.
const RETRY_MAX: Duration = Duration::from_secs(5);

#[derive(Default)]
struct State {
    waiting: VecDeque<String>,
    queued: HashSet<String>,
    failures: HashMap<String, u32>,
}

/// Keys to reconcile. Cheap to clone.
#[derive(Clone, Default)]
pub struct Queue {
    state: Arc<Mutex<State>>,
    added: Arc<Notify>,
}

impl Queue {
    /// Adds a key, unless it waits already.
    pub fn add(&self, key: impl Into<String>) {
        let key = key.into();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.queued.insert(key.clone()) {
            state.waiting.push_back(key);
            self.added.notify_one();
        }
    }

    /// Adds a key after `delay`.
    pub fn add_after(&self, key: impl Into<String>, delay: Duration) {
        let (queue, key) = (self.clone(), key.into());
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            queue.add(key);
        });
    }

    /// The next key, as soon as there is one.
    pub async fn next(&self) -> String {
        loop {
            let added = self.added.notified();
            {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(key) = state.waiting.pop_front() {
                    state.queued.remove(&key);
                    return key;
                }
            }
            added.await;
        }
    }

    fn succeeded(&self, key: &str) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).failures.remove(key);
    }

    fn failed(&self, key: &str) -> Duration {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = state.failures.entry(key.to_owned()).or_default();
        let delay = RETRY_MIN.saturating_mul(1 << (*failures).min(10)).min(RETRY_MAX);
        *failures += 1;
        delay
    }

    /// Reconciles keys one after the other, for ever. A key that fails comes back after a wait that grows.
    pub async fn work<F, Fut>(self, controller: &'static str, reconcile: F)
    where
        F: Fn(String) -> Fut,
        Fut: Future<Output = Result<(), kube::Error>>,
    {
        loop {
            let key = self.next().await;
            match reconcile(key.clone()).await {
                Ok(()) => self.succeeded(&key),
                Err(error) => {
                    let delay = self.failed(&key);
                    if super::meta::is_conflict(&error) || super::meta::is_not_found(&error) {
                        tracing::debug!(controller, key, %error, "retrying");
                    } else {
                        tracing::warn!(controller, key, %error, "reconcile failed, retrying");
                    }
                    self.add_after(key, delay);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_waits_once() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("b");
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        assert_eq!(queue.next().await, "b");
        assert_eq!(queue.next().await, "a");
    }

    #[test]
    fn waits_grow_and_are_forgotten_after_success() {
        let queue = Queue::default();
        assert_eq!(queue.failed("a"), RETRY_MIN);
        assert_eq!(queue.failed("a"), RETRY_MIN * 2);
        for _ in 0..20 {
            queue.failed("a");
        }
        assert_eq!(queue.failed("a"), RETRY_MAX);
        queue.succeeded("a");
        assert_eq!(queue.failed("a"), RETRY_MIN);
    }
}
