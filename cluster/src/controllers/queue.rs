//! A work queue of keys: a key waits in it once however often it was added, and one key is never worked on twice at a
//! time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// First wait before a failed key is tried again.
const RETRY_MIN: Duration = Duration::from_millis(20);
/// Longest wait before a failed key is tried again.
const RETRY_MAX: Duration = Duration::from_secs(5);

#[derive(Default)]
struct State {
    waiting: VecDeque<String>,
    queued: HashSet<String>,
    failures: HashMap<String, u32>,
    /// When keys are added by themselves: the one timer that each has.
    due: HashMap<String, Instant>,
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

    /// Adds a key after `delay`, unless it is to be added before: what is reconciled then says itself when it is due again.
    pub fn add_after(&self, key: impl Into<String>, delay: Duration) {
        let (queue, key, due) = (self.clone(), key.into(), Instant::now() + delay);
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.due.get(&key).is_some_and(|known| *known <= due) {
                return;
            }
            state.due.insert(key.clone(), due);
        }
        tokio::spawn(async move {
            tokio::time::sleep_until(due).await;
            let mine = {
                let mut state = queue.state.lock().unwrap_or_else(PoisonError::into_inner);
                let mine = state.due.get(&key) == Some(&due);
                if mine {
                    state.due.remove(&key);
                }
                mine
            };
            // A timer that an earlier one has replaced has nothing to say.
            if mine {
                queue.add(key);
            }
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

    #[tokio::test]
    async fn a_key_has_one_timer_the_earliest() {
        let queue = Queue::default();
        let due = |queue: &Queue| queue.state.lock().unwrap().due.clone();
        let hour = Duration::from_hours(1);
        queue.add_after("a", hour);
        let first = due(&queue)["a"];
        queue.add_after("a", hour);
        assert_eq!(due(&queue)["a"], first, "no second timer");
        queue.add_after("a", Duration::from_millis(1));
        assert!(due(&queue)["a"] < first);
        assert_eq!(queue.next().await, "a");
        assert!(due(&queue).is_empty());
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
