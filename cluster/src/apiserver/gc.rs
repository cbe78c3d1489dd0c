//! The garbage collector: what has owners goes when they are gone (background), before them (foreground), or is set free
//! (orphan).

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::mpsc;

use super::object::{filled, list, meta};
use super::registry::{Resource, storage_of};
use super::state::{Api, Concern};
use super::status::ApiError;
use super::verbs::create::after_removal;
use super::verbs::delete::{CLEANUP, Deleted, FOREGROUND, ORPHAN, Options, remove};
use super::verbs::update::gone;
use crate::store::{Key, Stored, Txn};

/// Works through the concerns as they come, after a look at everything there is.
pub async fn run(api: Arc<Api>, mut concerns: mpsc::UnboundedReceiver<Concern>) {
    for resource in api.store.resources() {
        for object in api.store.list(&resource, None).objects {
            let meta = &object.value["metadata"];
            if filled(&meta["ownerReferences"]) || meta["deletionTimestamp"].is_string() {
                let _ = api.gc.send(Concern::Check(object.key.clone()));
            }
        }
    }
    while let Some(concern) = concerns.recv().await {
        let outcome = match &concern {
            Concern::Gone(uid) => {
                dependents_of(&api, uid);
                Ok(())
            }
            Concern::Check(key) => check(&api, key).await,
            Concern::Remove(key) => remove_instance(&api, key).await,
        };
        if let Err(error) = outcome {
            tracing::warn!(?concern, %error, "the garbage collector could not act");
        }
    }
}

/// The owner is gone: each of its dependents has to be looked at.
fn dependents_of(api: &Api, uid: &str) {
    for key in api.store.dependents(uid) {
        let _ = api.gc.send(Concern::Check(key));
    }
}

/// What was done about one object.
enum Done {
    Nothing,
    Removed(Arc<Stored>),
    Written(Arc<Stored>),
}

async fn check(api: &Arc<Api>, key: &Key) -> Result<(), ApiError> {
    let served = api.registry.current();
    // Objects of a definition that is gone are served by nobody; they stay until it is back.
    let Some(resource) = served.by_storage(&key.resource).cloned() else { return Ok(()) };
    let (shared, key) = (Arc::clone(api), key.clone());
    let done = api.store.transact(move |txn| settle(txn, &shared, &resource, &key)).await??;
    match done {
        Done::Nothing => {}
        Done::Removed(object) => after_removal(api, &object),
        Done::Written(object) => {
            let _ = api.gc.send(Concern::Check(object.key.clone()));
        }
    }
    Ok(())
}

/// Deletes an object whose definition is being deleted.
async fn remove_instance(api: &Arc<Api>, key: &Key) -> Result<(), ApiError> {
    let resource = api.registry.current().by_storage(&key.resource).cloned();
    let key = key.clone();
    let removed = api
        .store
        .transact(move |txn| {
            if txn.get(&key).is_none() {
                return Ok(None);
            }
            // No version of it may be served; then nobody could take off a finalizer either.
            let Some(resource) = resource else { return Ok(txn.delete(&key)) };
            Ok::<_, ApiError>(match remove(txn, &resource, &key, &Options::default())? {
                Deleted::Gone(object) => Some(object),
                Deleted::Waiting(_) => None,
            })
        })
        .await??;
    if let Some(object) = removed {
        after_removal(api, &object);
    }
    Ok(())
}

fn settle(txn: &mut Txn<'_>, api: &Api, resource: &Resource, key: &Key) -> Result<Done, ApiError> {
    let Some(current) = txn.get(key) else { return Ok(Done::Nothing) };
    let metadata = &current.value["metadata"];
    if metadata["deletionTimestamp"].is_string() {
        return Ok(finalize(txn, api, key, &current, resource));
    }
    let owners = list(metadata, "ownerReferences");
    if owners.is_empty() {
        return Ok(Done::Nothing);
    }
    let mut alive = Vec::new();
    let mut foreground = false;
    for owner in owners {
        let found = txn.by_uid(owner["uid"].as_str().unwrap_or_default()).and_then(|k| txn.get(&k));
        let Some(found) = found.filter(|o| o.value["metadata"]["uid"] == owner["uid"]) else { continue };
        let leaving = has_finalizer(&found.value, FOREGROUND)
            && found.value["metadata"]["deletionTimestamp"].is_string();
        if leaving {
            foreground = true;
        } else {
            alive.push(owner.clone());
        }
    }
    if alive.len() == owners.len() {
        return Ok(Done::Nothing);
    }
    if !alive.is_empty() {
        let mut object = current.value.clone();
        object["metadata"]["ownerReferences"] = Value::Array(alive);
        return Ok(Done::Written(txn.put(key.clone(), object)));
    }
    // A dependent of an owner that waits goes the same way, so that its own dependents go first.
    let waits = foreground && !txn.dependents(meta(&current.value, "uid")).is_empty();
    let options = Options::collect(meta(&current.value, "uid"), waits);
    Ok(match remove(txn, resource, key, &options)? {
        Deleted::Gone(object) => Done::Removed(object),
        // A pod that its node runtime has to stop; nothing more to do until it is gone.
        Deleted::Waiting(object) if object.version == current.version => Done::Nothing,
        Deleted::Waiting(object) => Done::Written(object),
    })
}

fn has_finalizer(object: &Value, name: &str) -> bool {
    list(&object["metadata"], "finalizers").iter().any(|f| f == name)
}

/// Carries out the collector's own finalizers.
fn finalize(txn: &mut Txn<'_>, api: &Api, key: &Key, current: &Arc<Stored>, resource: &Resource) -> Done {
    let uid = meta(&current.value, "uid");
    let mut drop_finalizer = None;
    if has_finalizer(&current.value, ORPHAN) {
        for dependent in txn.dependents(uid) {
            let Some(object) = txn.get(&dependent) else { continue };
            let mut value = object.value.clone();
            if let Some(owners) = value["metadata"]["ownerReferences"].as_array_mut() {
                owners.retain(|o| o["uid"] != uid);
            }
            txn.put(dependent, value);
        }
        drop_finalizer = Some(ORPHAN);
    } else if has_finalizer(&current.value, FOREGROUND) {
        let mut blocking = false;
        for dependent in txn.dependents(uid) {
            let Some(object) = txn.get(&dependent) else { continue };
            let reference =
                list(&object.value["metadata"], "ownerReferences").iter().find(|o| o["uid"] == uid).cloned();
            blocking |= reference.is_some_and(|r| r["blockOwnerDeletion"] == true);
            if !object.value["metadata"]["deletionTimestamp"].is_string() {
                let _ = api.gc.send(Concern::Check(dependent));
            }
        }
        if !blocking {
            drop_finalizer = Some(FOREGROUND);
        }
    }
    if drop_finalizer.is_none() && has_finalizer(&current.value, CLEANUP) {
        let instances = txn.list(&storage_of(&current.value), None);
        for instance in &instances {
            if !instance.value["metadata"]["deletionTimestamp"].is_string() {
                let _ = api.gc.send(Concern::Remove(instance.key.clone()));
            }
        }
        drop_finalizer = instances.is_empty().then_some(CLEANUP);
    }
    let Some(finalizer) = drop_finalizer else { return Done::Nothing };
    let mut object = current.value.clone();
    if let Some(finalizers) = object["metadata"]["finalizers"].as_array_mut() {
        finalizers.retain(|f| f != finalizer);
    }
    if gone(resource, &object) {
        return txn.delete_as(key, object).map_or(Done::Nothing, Done::Removed);
    }
    Done::Written(txn.put(key.clone(), object))
}
