//! A shared informer: the objects of one kind as the API server last told them, kept by a watch.
//!
//! Writers tell the informer what the API server answered ([`Informer::observe`], [`Informer::forget`]), so that a
//! reconciler reads its own writes and never makes the same pod twice while the watch lags behind. An answer can also
//! come after the watch: one about an object that the watch has since told to be gone must not bring it back.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt as _;
use kube::runtime::watcher;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// First wait before a broken watch is opened again.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest wait before a broken watch is opened again.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// What happened to one object.
pub enum Change<K> {
    /// The object is new or has changed.
    Set {
        /// The object as it was known before.
        old: Option<Arc<K>>,
        /// The object now.
        new: Arc<K>,
    },
    /// The object is gone; its last known form.
    Gone(Arc<K>),
}

impl<K> Change<K> {
    /// The newest known form of the object.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Self::Set { new, .. } => new,
            Self::Gone(last) => last,
        }
    }
}

type Listener<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

struct State<K> {
    objects: HashMap<String, Arc<K>>,
    /// Uids whose deletion the API server has acknowledged but the watch has not told yet.
    forgotten: HashSet<String>,
    /// Resource version up to which the watch has told everything.
    told: u64,
}

/// A list that is coming in.
#[derive(Default)]
struct Listing {
    keys: HashSet<String>,
    /// Newest resource version in it.
    newest: u64,
}

/// How long to wait before a broken watch is opened again.
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(BACKOFF_MIN)
    }
}

impl Backoff {
    fn after_failure(&mut self) -> Duration {
        let now = self.0;
        self.0 = (now * 2).min(BACKOFF_MAX);
        now
    }

    /// The watch works again. That a list begins says nothing yet: the one that cannot be read begins too.
    fn heard<K>(&mut self, event: &watcher::Event<K>) {
        if !matches!(event, watcher::Event::Init | watcher::Event::InitApply(_)) {
            *self = Self::default();
        }
    }
}

struct Inner<K> {
    state: RwLock<State<K>>,
    listeners: Mutex<Vec<Listener<K>>>,
    synced: watch::Sender<bool>,
}

/// The known objects of kind `K`. Cheap to clone.
pub struct Informer<K> {
    inner: Arc<Inner<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

/// `namespace/name`, or `name` of an object without a namespace.
pub fn key_of<K: Resource>(object: &K) -> String {
    let meta = object.meta();
    let name = meta.name.as_deref().unwrap_or_default();
    key(meta.namespace.as_deref(), name)
}

/// `namespace/name`, or `name` where there is no namespace.
pub fn key(namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

/// Splits what [`key`] has made.
pub fn split_key(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or(("", key))
}

fn version_of<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

impl<K> Default for Informer<K> {
    fn default() -> Self {
        Self {
            inner: Arc::new(Inner {
                state: RwLock::new(State { objects: HashMap::new(), forgotten: HashSet::new(), told: 0 }),
                listeners: Mutex::new(Vec::new()),
                synced: watch::Sender::new(false),
            }),
        }
    }
}

impl<K> Informer<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    /// Calls `listener` for every change from now on, in the order in which the informer learns them.
    pub fn on_change(&self, listener: impl Fn(&Change<K>) + Send + Sync + 'static) {
        self.inner.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(listener));
    }

    /// Lists and watches what `api` and `config` select until the returned task is aborted.
    pub fn start(&self, api: Api<K>, config: watcher::Config) -> JoinHandle<()> {
        let informer = self.clone();
        tokio::spawn(async move {
            let mut stream = pin!(watcher(api, config));
            let mut listing = Listing::default();
            let mut backoff = Backoff::default();
            while let Some(event) = stream.next().await {
                match event {
                    Ok(event) => {
                        backoff.heard(&event);
                        informer.take(event, &mut listing);
                    }
                    Err(error) => {
                        tracing::debug!(kind = %K::kind(&()), %error, "watch broke");
                        tokio::time::sleep(backoff.after_failure()).await;
                    }
                }
            }
        })
    }

    fn take(&self, event: watcher::Event<K>, listing: &mut Listing) {
        match event {
            watcher::Event::Init => *listing = Listing::default(),
            watcher::Event::InitApply(object) => {
                listing.keys.insert(key_of(&object));
                listing.newest = listing.newest.max(version_of(&object));
                self.set(object);
            }
            watcher::Event::InitDone => {
                let lost: Vec<_> = self.read(|objects| {
                    let lost = objects.iter().filter(|(key, _)| !listing.keys.contains(*key));
                    lost.map(|(_, object)| Arc::clone(object)).collect()
                });
                for object in lost {
                    self.gone(&object);
                }
                // A list is in no order of versions: only when it is complete, nothing older is missing.
                self.told(listing.newest);
                self.inner.synced.send_replace(true);
            }
            watcher::Event::Apply(object) => {
                let version = version_of(&object);
                self.set(object);
                self.told(version);
            }
            watcher::Event::Delete(object) => {
                self.told(version_of(&object));
                self.gone(&object);
            }
        }
    }

    /// The watch has told everything up to this version.
    fn told(&self, version: u64) {
        let mut state = self.inner.state.write().unwrap_or_else(PoisonError::into_inner);
        state.told = state.told.max(version);
    }

    fn set(&self, object: K) {
        self.set_if(object, |_| true);
    }

    fn set_if(&self, object: K, credible: impl FnOnce(&State<K>) -> bool) {
        let key = key_of(&object);
        let (replaced, change) = {
            let mut state = self.inner.state.write().unwrap_or_else(PoisonError::into_inner);
            if !credible(&state) {
                return;
            }
            if object.meta().uid.as_ref().is_some_and(|uid| state.forgotten.contains(uid)) {
                return;
            }
            let old = state.objects.get(&key).cloned();
            if let Some(old) = &old
                && old.meta().uid == object.meta().uid
                && version_of(old.as_ref()) >= version_of(&object)
            {
                return;
            }
            let new = Arc::new(object);
            state.objects.insert(key, Arc::clone(&new));
            // Another object of that name: the one before has gone while the watch was not looking.
            let (old, replaced) = match old {
                Some(old) if old.meta().uid != new.meta().uid => (None, Some(Change::Gone(old))),
                old => (old, None),
            };
            (replaced, Change::Set { old, new })
        };
        if let Some(gone) = &replaced {
            self.tell(gone);
        }
        self.tell(&change);
    }

    fn gone(&self, object: &K) {
        let last = {
            let mut state = self.inner.state.write().unwrap_or_else(PoisonError::into_inner);
            let key = key_of(object);
            if let Some(uid) = &object.meta().uid {
                state.forgotten.remove(uid);
            }
            match state.objects.get(&key) {
                // A new object of the same name is not what was deleted.
                Some(known) if known.meta().uid == object.meta().uid => state.objects.remove(&key),
                _ => None,
            }
        };
        if let Some(last) = last {
            self.tell(&Change::Gone(last));
        }
    }

    fn tell(&self, change: &Change<K>) {
        for listener in self.inner.listeners.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            listener(change);
        }
    }

    fn read<T>(&self, f: impl FnOnce(&HashMap<String, Arc<K>>) -> T) -> T {
        f(&self.inner.state.read().unwrap_or_else(PoisonError::into_inner).objects)
    }

    /// Takes in what a write to the API server has answered, unless something newer is known: a newer version, or
    /// that the object is gone.
    pub fn observe(&self, object: K) {
        let (key, uid, version) = (key_of(&object), object.meta().uid.clone(), version_of(&object));
        self.set_if(object, |state| {
            let known = state.objects.get(&key).is_some_and(|known| known.meta().uid == uid);
            // An object that the watch must have told of already, and that is not known, has gone since.
            known || version > state.told
        });
    }

    /// Takes in that the API server has acknowledged the object's deletion.
    pub fn forget(&self, object: &K) {
        let known =
            self.get(object.meta().namespace.as_deref(), object.meta().name.as_deref().unwrap_or_default());
        if known.is_none_or(|known| known.meta().uid != object.meta().uid) {
            return;
        }
        self.gone(object);
        if let Some(uid) = object.meta().uid.clone() {
            self.inner.state.write().unwrap_or_else(PoisonError::into_inner).forgotten.insert(uid);
        }
    }

    /// Changes what is known of `object` (if it still is what is known), until the watch tells more.
    pub fn assume(&self, object: &K, change: impl FnOnce(&mut K)) {
        let mut state = self.inner.state.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = state.objects.get_mut(&key_of(object))
            && version_of(known.as_ref()) == version_of(object)
        {
            change(Arc::make_mut(known));
        }
    }

    /// The object of this name.
    pub fn get(&self, namespace: Option<&str>, name: &str) -> Option<Arc<K>> {
        self.read(|objects| objects.get(&key(namespace, name)).cloned())
    }

    /// The object of this [`key`].
    pub fn get_key(&self, key: &str) -> Option<Arc<K>> {
        self.read(|objects| objects.get(key).cloned())
    }

    /// Every known object, ordered by key.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.list_if(|_| true)
    }

    /// Every known object that `wanted` accepts, ordered by key.
    pub fn list_if(&self, wanted: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        let mut found: Vec<_> = self.read(|objects| {
            objects.iter().filter(|(_, o)| wanted(o)).map(|(k, o)| (k.clone(), Arc::clone(o))).collect()
        });
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found.into_iter().map(|(_, o)| o).collect()
    }

    /// Waits until the first list is complete.
    pub async fn synced(&self) {
        let mut synced = self.inner.synced.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = synced.wait_for(|done| *done).await;
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn object(name: &str, uid: &str, version: u64) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some("ns".into()),
                uid: Some(uid.into()),
                resource_version: Some(version.to_string()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }

    #[test]
    fn a_list_that_can_never_be_read_is_asked_for_more_and_more_rarely() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..7)
            .map(|_| {
                backoff.heard(&watcher::Event::<ConfigMap>::Init);
                backoff.heard(&watcher::Event::InitApply(object("a", "1", 7)));
                u64::try_from(backoff.after_failure().as_millis()).unwrap()
            })
            .collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 2000]);
        backoff.heard(&watcher::Event::<ConfigMap>::InitDone);
        assert_eq!(backoff.after_failure(), BACKOFF_MIN);
    }

    #[test]
    fn older_versions_do_not_win() {
        let informer = Informer::default();
        informer.observe(object("a", "1", 7));
        informer.set(object("a", "1", 5));
        let known = informer.get(Some("ns"), "a").unwrap();
        assert_eq!(known.metadata.resource_version.as_deref(), Some("7"));
    }

    #[test]
    fn late_events_do_not_bring_back_what_was_deleted() {
        let informer = Informer::default();
        informer.observe(object("a", "1", 7));
        informer.forget(&object("a", "1", 7));
        informer.set(object("a", "1", 8));
        assert!(informer.get(Some("ns"), "a").is_none());
        informer.take(watcher::Event::Delete(object("a", "1", 9)), &mut Listing::default());
        informer.set(object("a", "2", 10));
        assert!(informer.get(Some("ns"), "a").is_some());
    }

    #[test]
    fn late_answers_do_not_bring_back_what_was_deleted() {
        let informer = Informer::default();
        let mut listing = Listing::default();
        informer.take(watcher::Event::Apply(object("a", "1", 7)), &mut listing);
        informer.take(watcher::Event::Delete(object("a", "1", 8)), &mut listing);
        informer.observe(object("a", "1", 8));
        assert!(informer.get(Some("ns"), "a").is_none(), "the answer to the deletion");
        informer.observe(object("a", "1", 7));
        assert!(informer.get(Some("ns"), "a").is_none(), "the answer to a write before it");

        informer.observe(object("a", "2", 9));
        assert!(
            informer.get(Some("ns"), "a").is_some(),
            "a new object of the name, before the watch tells of it"
        );
        informer.observe(object("a", "1", 8));
        let known = informer.get(Some("ns"), "a").unwrap();
        assert_eq!(known.metadata.uid.as_deref(), Some("2"));
    }

    #[test]
    fn answers_count_while_a_list_comes_in() {
        let informer = Informer::default();
        let mut listing = Listing::default();
        informer.take(watcher::Event::Init, &mut listing);
        informer.take(watcher::Event::InitApply(object("b", "2", 9)), &mut listing);
        informer.observe(object("a", "1", 7));
        assert!(informer.get(Some("ns"), "a").is_some(), "the list may still come to it");
        informer.take(watcher::Event::InitDone, &mut listing);
        informer.observe(object("a", "1", 7));
        assert!(informer.get(Some("ns"), "a").is_none(), "the complete list does not name it");
    }

    #[test]
    fn an_object_that_another_of_its_name_has_replaced_is_gone() {
        let informer: Informer<ConfigMap> = Informer::default();
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&told);
        informer.on_change(move |change| {
            let uid = change.object().metadata.uid.clone().unwrap();
            let word = match change {
                Change::Gone(_) => "gone",
                Change::Set { old: None, .. } => "new",
                Change::Set { .. } => "changed",
            };
            sink.lock().unwrap().push(format!("{uid} {word}"));
        });
        let mut listing = Listing::default();
        informer.set(object("a", "1", 1));
        informer.take(watcher::Event::Init, &mut listing);
        informer.take(watcher::Event::InitApply(object("a", "2", 3)), &mut listing);
        informer.take(watcher::Event::InitDone, &mut listing);
        assert_eq!(*told.lock().unwrap(), ["1 new", "1 gone", "2 new"]);
    }

    #[test]
    fn a_new_list_drops_what_it_does_not_name() {
        let informer: Informer<ConfigMap> = Informer::default();
        let gone = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&gone);
        informer.on_change(move |change| {
            if let Change::Gone(object) = change {
                sink.lock().unwrap().push(key_of(object.as_ref()));
            }
        });
        let mut listing = Listing::default();
        informer.set(object("a", "1", 1));
        informer.set(object("b", "2", 2));
        informer.take(watcher::Event::Init, &mut listing);
        informer.take(watcher::Event::InitApply(object("b", "2", 2)), &mut listing);
        informer.take(watcher::Event::InitDone, &mut listing);
        assert_eq!(informer.list().len(), 1);
        assert_eq!(*gone.lock().unwrap(), ["ns/a"]);
    }
}
