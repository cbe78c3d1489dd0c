//! The durable store below the API server: objects by resource, namespace and name, one resource version that only
//! rises, and a window of recent events for every resource.
//!
//! All objects live in memory; the database is their durable copy. One writer thread applies transactions in order.
//! What has queued up meanwhile goes to disk in one commit, so writers share its sync, and nothing is visible or
//! acknowledged before it is durable.

mod cache;
mod disk;
mod watch;
mod writer;

use std::path::Path;
use std::sync::{Arc, RwLock, RwLockReadGuard};

use bytes::Bytes;
use serde_json::Value;

use self::cache::Cache;
pub use self::cache::{Event, EventKind};
pub use self::watch::{Expired, Watch};
pub use self::writer::Txn;

/// What went wrong in the store itself.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The database could not be opened, read or written.
    #[error("store: {what}: {cause}")]
    Database {
        /// What was being done.
        what: &'static str,
        /// The cause.
        cause: String,
    },
    /// A stored object is not what was written.
    #[error("store: object {key} is damaged: {cause}; restore the data directory or remove it")]
    Damaged {
        /// Key of the object.
        key: String,
        /// The cause.
        cause: String,
    },
    /// The writer has stopped: the store is being closed.
    #[error("store: closed")]
    Closed,
    /// A transaction panicked; it left nothing behind.
    #[error("store: a transaction failed unexpectedly: {0}")]
    Panicked(String),
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Storage name of the resource, such as `apps/deployments`; the core group is `core`.
    pub resource: Arc<str>,
    /// Namespace; empty for cluster-scoped objects.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// The key of an object.
    pub fn new(resource: &str, namespace: &str, name: &str) -> Self {
        Self { resource: Arc::from(resource), namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{}/{}", self.resource, self.name),
            namespace => write!(f, "{}/{namespace}/{}", self.resource, self.name),
        }
    }
}

/// An object as of one resource version.
#[derive(Debug)]
pub struct Stored {
    /// Where it is.
    pub key: Key,
    /// Its resource version.
    pub version: u64,
    /// The object; `metadata.resourceVersion` is `version`.
    pub value: Value,
    /// The object as JSON text.
    pub json: Bytes,
}

/// A list as of one resource version.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The store's resource version when the list was made.
    pub version: u64,
    /// The objects in order of namespace and name.
    pub objects: Vec<Arc<Stored>>,
}

/// The store. Clones share it.
#[derive(Clone)]
pub struct Store {
    cache: Arc<RwLock<Cache>>,
    writer: writer::Handle,
}

/// Reads the cache, also after a panic elsewhere: the writer replaces whole objects, so what is there is consistent.
fn read(cache: &RwLock<Cache>) -> RwLockReadGuard<'_, Cache> {
    cache.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Store {
    /// Opens the store in directory `dir`, which is made if it does not exist.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let (disk, version, objects) = disk::Disk::open(dir)?;
        let cache = Arc::new(RwLock::new(Cache::new(version, objects)));
        let writer = writer::start(disk, Arc::clone(&cache))?;
        Ok(Self { cache, writer })
    }

    /// The store's resource version: that of the newest acknowledged write.
    pub fn version(&self) -> u64 {
        read(&self.cache).version()
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        read(&self.cache).get(key)
    }

    /// Every object of a resource, in one namespace or in all.
    pub fn list(&self, resource: &str, namespace: Option<&str>) -> Snapshot {
        let cache = read(&self.cache);
        Snapshot { version: cache.version(), objects: cache.list(resource, namespace) }
    }

    /// Changes of a resource after resource version `since`.
    pub fn watch(&self, resource: &str, since: u64) -> Result<Watch, Expired> {
        Watch::new(Arc::clone(&self.cache), resource, since)
    }

    /// A list and the watch that goes on where it ends, without anything between them lost.
    pub fn list_and_watch(&self, resource: &str, namespace: Option<&str>) -> (Snapshot, Watch) {
        let snapshot = self.list(resource, namespace);
        let watch = Watch::at(Arc::clone(&self.cache), resource, snapshot.version);
        (snapshot, watch)
    }

    /// The oldest resource version from which a resource can be watched.
    pub fn floor(&self, resource: &str) -> u64 {
        read(&self.cache).floor(resource)
    }

    /// Objects that name `uid` as an owner.
    pub fn dependents(&self, uid: &str) -> Vec<Key> {
        read(&self.cache).dependents(uid)
    }

    /// The object with this uid.
    pub fn by_uid(&self, uid: &str) -> Option<Key> {
        read(&self.cache).by_uid(uid)
    }

    /// Storage names of all resources that have, or had, objects.
    pub fn resources(&self) -> Vec<Arc<str>> {
        read(&self.cache).resources()
    }

    /// Runs `work` as a transaction: it sees every earlier one, no other runs meanwhile, and if it fails nothing of it
    /// stays. Returns when its changes are durable and visible.
    pub async fn transact<R, E, F>(&self, work: F) -> Result<Result<R, E>, StoreError>
    where
        F: FnOnce(&mut Txn<'_>) -> Result<R, E> + Send + 'static,
        R: Send + 'static,
        E: Send + 'static,
    {
        self.writer.run(work).await
    }
}
