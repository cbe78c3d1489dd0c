//! The one writer: runs transactions in order, makes a batch of them durable at once, then visible.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::oneshot;

use super::cache::{Cache, Event, EventKind};
use super::disk::{Disk, Write};
use super::{Key, StoreError, Stored, read};

/// Transactions that share a commit, at most. Bounds how long the first of them waits.
const BATCH: usize = 256;

/// Tells the caller how the commit went.
type Finish = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
type Job = Box<dyn FnOnce(&mut Txn<'_>) -> Finish + Send>;

/// The way to the writer. When the last one goes, the writer finishes and the database is closed.
#[derive(Clone)]
pub(super) struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A transaction may hold the last handle; then the writer is about to end anyway.
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("the store's writer panicked");
            }
        }
    }
}

impl Handle {
    pub(super) async fn run<R, E, F>(&self, work: F) -> Result<Result<R, E>, StoreError>
    where
        F: FnOnce(&mut Txn<'_>) -> Result<R, E> + Send + 'static,
        R: Send + 'static,
        E: Send + 'static,
    {
        let (answer, result) = oneshot::channel();
        let job: Job = Box::new(move |txn| {
            let outcome = catch_unwind(AssertUnwindSafe(|| work(txn))).map_err(|panic| {
                let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
                text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
            });
            if !matches!(outcome, Ok(Ok(_))) {
                txn.changes.clear();
            }
            Box::new(move |committed| {
                let whole = match (outcome, committed) {
                    (Err(panic), _) => Err(StoreError::Panicked(panic)),
                    (Ok(Err(refused)), _) => Ok(Err(refused)),
                    (Ok(Ok(_)), Err(error)) => Err(error),
                    (Ok(Ok(value)), Ok(())) => Ok(Ok(value)),
                };
                // A caller that has gone away does not want the answer.
                let _ = answer.send(whole);
            })
        });
        let jobs = self.shared.jobs.as_ref().ok_or(StoreError::Closed)?;
        jobs.send(job).map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }
}

pub(super) fn start(disk: Disk, cache: Arc<RwLock<Cache>>) -> Result<Handle, StoreError> {
    let (jobs, queue) = mpsc::channel::<Job>();
    let thread = std::thread::Builder::new()
        .name("store".to_owned())
        .spawn(move || {
            while let Ok(first) = queue.recv() {
                let batch = std::iter::once(first).chain(queue.try_iter().take(BATCH - 1)).collect();
                run_batch(&disk, &cache, batch);
            }
        })
        .map_err(|e| StoreError::Database { what: "start the writer", cause: e.to_string() })?;
    Ok(Handle { shared: Arc::new(Shared { jobs: Some(jobs), thread: Some(thread) }) })
}

fn run_batch(disk: &Disk, cache: &RwLock<Cache>, jobs: Vec<Job>) {
    let mut events: Vec<Event> = Vec::new();
    let mut finishes = Vec::with_capacity(jobs.len());
    {
        let cache = read(cache);
        let mut overlay: BTreeMap<Key, Option<Arc<Stored>>> = BTreeMap::new();
        let mut version = cache.version();
        for job in jobs {
            let mut txn = Txn { cache: &cache, overlay: &overlay, version, changes: Vec::new() };
            finishes.push(job(&mut txn));
            let changes = txn.changes;
            for event in changes {
                version = event.object.version;
                let now = (event.kind != EventKind::Deleted).then(|| Arc::clone(&event.object));
                overlay.insert(event.object.key.clone(), now);
                events.push(event);
            }
        }
    }
    let outcome = match events.last() {
        None => Ok(()),
        Some(last) => {
            let writes = events.iter().map(|event| match event.kind {
                EventKind::Deleted => Write::Delete(&event.object.key),
                _ => Write::Put(&event.object.key, &event.object.json),
            });
            disk.commit(last.object.version, writes)
        }
    };
    if let Err(error) = &outcome {
        tracing::error!(%error, "a batch of writes was not made durable; it is refused");
    } else if !events.is_empty() {
        let mut touched = BTreeSet::new();
        let mut cache = cache.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        for event in events {
            touched.insert(Arc::clone(&event.object.key.resource));
            cache.apply(event);
        }
        let version = cache.version();
        for resource in touched {
            cache.resource(&resource).tick.send_replace(version);
        }
    }
    for finish in finishes {
        finish(outcome.clone());
    }
}

/// A transaction: reads see everything before it and its own writes.
pub struct Txn<'a> {
    cache: &'a Cache,
    overlay: &'a BTreeMap<Key, Option<Arc<Stored>>>,
    version: u64,
    changes: Vec<Event>,
}

impl Txn<'_> {
    /// The object, if it exists.
    pub fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        if let Some(event) = self.changes.iter().rev().find(|e| e.object.key == *key) {
            return (event.kind != EventKind::Deleted).then(|| Arc::clone(&event.object));
        }
        match self.overlay.get(key) {
            Some(object) => object.clone(),
            None => self.cache.get(key),
        }
    }

    /// Every object of a resource, in one namespace or in all, in no particular order.
    pub fn list(&self, resource: &str, namespace: Option<&str>) -> Vec<Arc<Stored>> {
        let mut objects: BTreeMap<Key, Arc<Stored>> =
            self.cache.list(resource, namespace).into_iter().map(|o| (o.key.clone(), o)).collect();
        let in_range = |key: &Key| &*key.resource == resource && namespace.is_none_or(|n| n == key.namespace);
        for (key, object) in self.overlay.iter().filter(|(key, _)| in_range(key)) {
            match object {
                Some(object) => objects.insert(key.clone(), Arc::clone(object)),
                None => objects.remove(key),
            };
        }
        for event in self.changes.iter().filter(|e| in_range(&e.object.key)) {
            match event.kind {
                EventKind::Deleted => objects.remove(&event.object.key),
                _ => objects.insert(event.object.key.clone(), Arc::clone(&event.object)),
            };
        }
        objects.into_values().collect()
    }

    /// Objects that name `uid` as an owner, as of the last commit. A transaction asks here and not the [`super::Store`],
    /// whose lock it already holds.
    pub fn dependents(&self, uid: &str) -> Vec<Key> {
        self.cache.dependents(uid)
    }

    /// The object with this uid, as of the last commit.
    pub fn by_uid(&self, uid: &str) -> Option<Key> {
        self.cache.by_uid(uid)
    }

    /// Writes an object, new or not, under the next resource version.
    pub fn put(&mut self, key: Key, mut value: Value) -> Arc<Stored> {
        let previous = self.get(&key);
        let version = self.next_version();
        value["metadata"]["resourceVersion"] = Value::String(version.to_string());
        let object = stored(key, version, value);
        let kind = if previous.is_some() { EventKind::Modified } else { EventKind::Added };
        self.changes.push(Event { kind, object: Arc::clone(&object), previous });
        object
    }

    /// Removes an object. Returns its last state, under the resource version of the removal.
    pub fn delete(&mut self, key: &Key) -> Option<Arc<Stored>> {
        let last = self.get(key)?.value.clone();
        self.delete_as(key, last)
    }

    /// Removes an object whose last state is `value`: one event for the change and the removal.
    pub fn delete_as(&mut self, key: &Key, mut value: Value) -> Option<Arc<Stored>> {
        let previous = self.get(key)?;
        let version = self.next_version();
        value["metadata"]["resourceVersion"] = Value::String(version.to_string());
        let object = stored(key.clone(), version, value);
        let event = Event { kind: EventKind::Deleted, object: Arc::clone(&object), previous: Some(previous) };
        self.changes.push(event);
        Some(object)
    }

    /// Forgets what this transaction has written so far.
    pub fn rollback(&mut self) {
        self.changes.clear();
    }

    fn next_version(&self) -> u64 {
        self.changes.last().map_or(self.version, |e| e.object.version) + 1
    }
}

fn stored(key: Key, version: u64, value: Value) -> Arc<Stored> {
    let json = Bytes::from(value.to_string());
    Arc::new(Stored { key, version, value, json })
}
