//! What the store holds in memory: the objects, who owns whom, and the recent events of every resource.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch;

use super::{Key, Stored};

/// Events kept for a resource. A watcher that falls further behind has to list again.
pub(super) const WINDOW: usize = 4096;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was made.
    Added,
    /// It was changed.
    Modified,
    /// It was removed.
    Deleted,
}

/// A change of one object.
#[derive(Clone, Debug)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The object after the change; the last state, with the resource version of the deletion, if it was removed.
    pub object: Arc<Stored>,
    /// The object before the change, if it existed.
    pub previous: Option<Arc<Stored>>,
}

pub(super) struct ResourceCache {
    objects: BTreeMap<(String, String), Arc<Stored>>,
    window: VecDeque<Arc<Event>>,
    /// Every event after this version is in the window.
    floor: u64,
    /// Tells watchers that there is something new; carries the version.
    pub(super) tick: watch::Sender<u64>,
}

impl ResourceCache {
    fn new(floor: u64) -> Self {
        Self { objects: BTreeMap::new(), window: VecDeque::new(), floor, tick: watch::Sender::new(floor) }
    }

    /// Events after version `since`, or nothing if some of them are gone.
    pub(super) fn events_after(&self, since: u64) -> Option<Vec<Arc<Event>>> {
        if since < self.floor {
            return None;
        }
        let start = self.window.partition_point(|event| event.object.version <= since);
        Some(self.window.range(start..).cloned().collect())
    }
}

pub(super) struct Cache {
    resources: HashMap<Arc<str>, ResourceCache>,
    version: u64,
    /// Version at which the store was opened: nothing older can be watched.
    opened: u64,
    uids: HashMap<String, Key>,
    dependents: HashMap<String, BTreeSet<Key>>,
}

fn uid(object: &Value) -> Option<&str> {
    object["metadata"]["uid"].as_str()
}

fn owners(object: &Value) -> impl Iterator<Item = &str> {
    object["metadata"]["ownerReferences"].as_array().into_iter().flatten().filter_map(|o| o["uid"].as_str())
}

impl Cache {
    pub(super) fn new(version: u64, objects: Vec<Stored>) -> Self {
        let mut cache = Self {
            resources: HashMap::new(),
            version,
            opened: version,
            uids: HashMap::new(),
            dependents: HashMap::new(),
        };
        for object in objects {
            let object = Arc::new(object);
            cache.index(&object);
            let place = (object.key.namespace.clone(), object.key.name.clone());
            cache.resource(&object.key.resource).objects.insert(place, object);
        }
        cache
    }

    /// The cache of a resource, made at need.
    pub(super) fn resource(&mut self, name: &Arc<str>) -> &mut ResourceCache {
        let opened = self.opened;
        self.resources.entry(Arc::clone(name)).or_insert_with(|| ResourceCache::new(opened))
    }

    pub(super) fn peek(&self, name: &str) -> Option<&ResourceCache> {
        self.resources.get(name)
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn floor(&self, resource: &str) -> u64 {
        self.resources.get(resource).map_or(self.opened, |r| r.floor)
    }

    pub(super) fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        // A tuple of Strings has no borrowed form; the copies are short.
        let place = (key.namespace.clone(), key.name.clone());
        self.resources.get(&key.resource)?.objects.get(&place).cloned()
    }

    pub(super) fn list(&self, resource: &str, namespace: Option<&str>) -> Vec<Arc<Stored>> {
        let Some(resource) = self.resources.get(resource) else { return Vec::new() };
        match namespace {
            None => resource.objects.values().cloned().collect(),
            Some(namespace) => resource
                .objects
                .range((namespace.to_owned(), String::new())..)
                .take_while(|((ns, _), _)| ns == namespace)
                .map(|(_, object)| Arc::clone(object))
                .collect(),
        }
    }

    pub(super) fn dependents(&self, uid: &str) -> Vec<Key> {
        self.dependents.get(uid).into_iter().flatten().cloned().collect()
    }

    pub(super) fn by_uid(&self, uid: &str) -> Option<Key> {
        self.uids.get(uid).cloned()
    }

    pub(super) fn resources(&self) -> Vec<Arc<str>> {
        self.resources.keys().cloned().collect()
    }

    fn index(&mut self, object: &Stored) {
        if let Some(uid) = uid(&object.value) {
            self.uids.insert(uid.to_owned(), object.key.clone());
        }
        for owner in owners(&object.value) {
            self.dependents.entry(owner.to_owned()).or_default().insert(object.key.clone());
        }
    }

    fn unindex(&mut self, object: &Stored) {
        for owner in owners(&object.value) {
            if let Some(set) = self.dependents.get_mut(owner) {
                set.remove(&object.key);
                if set.is_empty() {
                    self.dependents.remove(owner);
                }
            }
        }
        if let Some(uid) = uid(&object.value)
            && self.uids.get(uid) == Some(&object.key)
        {
            self.uids.remove(uid);
        }
    }

    /// Makes an event visible. The caller ticks the resource afterwards.
    pub(super) fn apply(&mut self, event: Event) {
        if let Some(previous) = &event.previous {
            self.unindex(previous);
        }
        let object = Arc::clone(&event.object);
        self.version = object.version;
        let resource = self.resource(&object.key.resource);
        let place = (object.key.namespace.clone(), object.key.name.clone());
        if event.kind == EventKind::Deleted {
            resource.objects.remove(&place);
        } else {
            resource.objects.insert(place, Arc::clone(&object));
        }
        resource.window.push_back(Arc::new(event));
        if resource.window.len() > WINDOW
            && let Some(oldest) = resource.window.pop_front()
        {
            resource.floor = oldest.object.version;
        }
        if resource.objects.contains_key(&(object.key.namespace.clone(), object.key.name.clone())) {
            self.index(&object);
        }
    }
}
