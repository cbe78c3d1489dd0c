//! The durable copy: an embedded database with one table of objects and one of facts about the store.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, Durability, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use super::{Key, StoreError, Stored};

/// `resource \0 namespace \0 name` to JSON. None of the three can hold a NUL.
const OBJECTS: TableDefinition<&str, &[u8]> = TableDefinition::new("objects");
/// Facts about the store: `version`, the newest resource version.
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// Enough for a lab; the objects are in memory anyway.
const CACHE_BYTES: usize = 8 << 20;

pub(super) struct Disk {
    database: Database,
}

/// A change of one object.
pub(super) enum Write<'a> {
    Put(&'a Key, &'a [u8]),
    Delete(&'a Key),
}

fn failed<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> StoreError {
    move |cause| StoreError::Database { what, cause: cause.to_string() }
}

fn encode(key: &Key) -> String {
    format!("{}\0{}\0{}", key.resource, key.namespace, key.name)
}

fn decode(text: &str, resources: &mut Vec<Arc<str>>) -> Option<Key> {
    let mut parts = text.splitn(3, '\0');
    let (resource, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
    let known = resources.iter().find(|r| ***r == *resource).cloned();
    let resource = known.unwrap_or_else(|| {
        let new: Arc<str> = Arc::from(resource);
        resources.push(Arc::clone(&new));
        new
    });
    Some(Key { resource, namespace: namespace.to_owned(), name: name.to_owned() })
}

impl Disk {
    /// Opens the database and reads everything: the newest resource version and the objects.
    pub(super) fn open(dir: &Path) -> Result<(Self, u64, Vec<Stored>), StoreError> {
        let at = dir.display().to_string();
        std::fs::create_dir_all(dir)
            .map_err(|e| StoreError::Database { what: "data directory", cause: format!("{at}: {e}") })?;
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(dir.join("store.redb"))
            .map_err(|e| StoreError::Database { what: "open", cause: format!("{at}/store.redb: {e}") })?;
        let txn = database.begin_write().map_err(failed("begin"))?;
        {
            txn.open_table(OBJECTS).map_err(failed("open table"))?;
            txn.open_table(META).map_err(failed("open table"))?;
        }
        txn.commit().map_err(failed("commit"))?;

        let txn = database.begin_read().map_err(failed("begin"))?;
        let meta = txn.open_table(META).map_err(failed("open table"))?;
        // A new store starts at 1: resource version 0 means "any" in the API.
        let version = meta.get("version").map_err(failed("read"))?.map_or(1, |v| v.value());
        let table = txn.open_table(OBJECTS).map_err(failed("open table"))?;
        let mut objects = Vec::new();
        let mut resources = Vec::new();
        for row in table.iter().map_err(failed("read"))? {
            let (key, json) = row.map_err(failed("read"))?;
            let damaged = |cause: String| StoreError::Damaged { key: key.value().replace('\0', "/"), cause };
            let value: serde_json::Value =
                serde_json::from_slice(json.value()).map_err(|e| damaged(e.to_string()))?;
            let object_version = value["metadata"]["resourceVersion"]
                .as_str()
                .and_then(|v| v.parse().ok())
                .ok_or_else(|| damaged("no resourceVersion".to_owned()))?;
            objects.push(Stored {
                key: decode(key.value(), &mut resources)
                    .ok_or_else(|| damaged("malformed key".to_owned()))?,
                version: object_version,
                value,
                json: Bytes::copy_from_slice(json.value()),
            });
        }
        drop((table, meta, txn));
        Ok((Self { database }, version, objects))
    }

    /// Makes a batch of changes durable, all of it or nothing.
    pub(super) fn commit<'a>(
        &self,
        version: u64,
        writes: impl Iterator<Item = Write<'a>>,
    ) -> Result<(), StoreError> {
        let mut txn = self.database.begin_write().map_err(failed("begin"))?;
        txn.set_durability(Durability::Immediate).map_err(failed("set durability"))?;
        {
            let mut table = txn.open_table(OBJECTS).map_err(failed("open table"))?;
            for write in writes {
                match write {
                    Write::Put(key, json) => {
                        table.insert(encode(key).as_str(), json).map_err(failed("write"))?;
                    }
                    Write::Delete(key) => {
                        table.remove(encode(key).as_str()).map_err(failed("write"))?;
                    }
                }
            }
            let mut meta = txn.open_table(META).map_err(failed("open table"))?;
            meta.insert("version", version).map_err(failed("write"))?;
        }
        txn.commit().map_err(failed("commit"))
    }
}
