//! Delete, delete a collection, evict.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use super::create::{after_removal, after_write};
use super::get::selector;
use super::update::gone;
use super::{object_answer, present, success};
use crate::apiserver::http::{self as answers, Answer};
use crate::apiserver::object::{child_mut, filled, format_time, list, meta, meta_mut, parse_time};
use crate::apiserver::registry::Resource;
use crate::apiserver::router::Call;
use crate::apiserver::status::ApiError;
use crate::store::{Key, Stored, Txn};

/// Finalizer of owners that wait for their dependents.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of owners whose dependents are to be set free.
pub const ORPHAN: &str = "orphan";

/// Finalizer of CustomResourceDefinitions whose objects are still there.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Longest grace period, a century: a pod may ask for more than there are years.
const LONGEST: i64 = 100 * 365 * 24 * 60 * 60;

/// What a client says about a deletion.
#[derive(Clone, Debug, Default)]
pub struct Options {
    grace: Option<i64>,
    finalizer: Option<&'static str>,
    uid: String,
    version: String,
    dry_run: bool,
}

impl Options {
    /// From the body, or from the query where there is none.
    pub fn parse(call: &Call, body: &[u8]) -> Result<Self, ApiError> {
        let options = if body.is_empty() { json!({}) } else { super::read(call, body)? };
        if !options.is_object() {
            return Err(ApiError::bad_request("DeleteOptions is not an object"));
        }
        Self::from_value(call, &options)
    }

    /// As the garbage collector deletes: only this very object; with its dependents first if `foreground`.
    pub fn collect(uid: &str, foreground: bool) -> Self {
        Self { uid: uid.to_owned(), finalizer: foreground.then_some(FOREGROUND), ..Self::default() }
    }

    fn from_value(call: &Call, options: &Value) -> Result<Self, ApiError> {
        let grace = match &options["gracePeriodSeconds"] {
            Value::Null => call.query.number("gracePeriodSeconds")?.and_then(|n| i64::try_from(n).ok()),
            given => match given.as_i64() {
                Some(seconds) if seconds >= 0 => Some(seconds),
                _ => {
                    return Err(ApiError::bad_request(format!(
                        "gracePeriodSeconds: {given} is not a time in seconds"
                    )));
                }
            },
        };
        let policy = match options["propagationPolicy"].as_str() {
            Some(policy) => policy,
            None => call.query.get("propagationPolicy"),
        };
        let finalizer = match policy {
            "" if options["orphanDependents"] == true => Some(ORPHAN),
            "" | "Background" => None,
            "Foreground" => Some(FOREGROUND),
            "Orphan" => Some(ORPHAN),
            other => {
                return Err(ApiError::bad_request(format!(
                    "propagationPolicy: {other:?} is not supported: use \"Background\", \"Foreground\" or \"Orphan\""
                )));
            }
        };
        let dry = list(options, "dryRun").iter().any(|v| v == "All");
        let text = |field: &str| options["preconditions"][field].as_str().unwrap_or_default().to_owned();
        Ok(Self {
            grace,
            finalizer,
            uid: text("uid"),
            version: text("resourceVersion"),
            dry_run: dry || call.query.dry_run()?,
        })
    }
}

/// What a deletion did.
pub enum Deleted {
    /// The object is gone.
    Gone(Arc<Stored>),
    /// It waits for a finalizer, a node runtime or a controller.
    Waiting(Arc<Stored>),
}

/// Deletes one object.
pub async fn delete(call: Call, body: &[u8]) -> Result<Answer, ApiError> {
    let options = Options::parse(&call, body)?;
    let (resource, key) = (Arc::clone(&call.resource), call.resource.key(&call.namespace, &call.name));
    let dry_run = options.dry_run;
    let deleted = call
        .api
        .store
        .transact(move |txn| {
            let deleted = remove(txn, &resource, &key, &options)?;
            if options.dry_run {
                txn.rollback();
            }
            Ok::<_, ApiError>(deleted)
        })
        .await??;
    settle(&call, &deleted, dry_run);
    match &deleted {
        // Clients of pods want to see the object as it was.
        Deleted::Gone(stored) if call.resource.is("", "pods") => {
            object_answer(&call, StatusCode::OK, stored, &[])
        }
        Deleted::Gone(stored) => {
            Ok(answers::json(StatusCode::OK, &success(&call, &call.name, meta(&stored.value, "uid"))))
        }
        Deleted::Waiting(stored) => object_answer(&call, StatusCode::OK, stored, &[]),
    }
}

fn settle(call: &Call, deleted: &Deleted, dry_run: bool) {
    match deleted {
        _ if dry_run => {}
        Deleted::Gone(stored) => after_removal(&call.api, stored),
        Deleted::Waiting(stored) => after_write(call, stored),
    }
}

/// Deletes every object of a collection that the selectors match.
pub async fn collection(call: Call, body: &[u8]) -> Result<Answer, ApiError> {
    let options = Options::parse(&call, body)?;
    let selector = selector(&call)?;
    let (resource, namespace) = (Arc::clone(&call.resource), call.namespace.clone());
    if resource.namespaced && namespace.is_empty() {
        return Err(ApiError::method_not_allowed());
    }
    let dry_run = options.dry_run;
    let deleted = call
        .api
        .store
        .transact(move |txn| {
            let namespace = resource.namespaced.then_some(namespace.as_str());
            let mut deleted = Vec::new();
            for object in txn.list(&resource.storage, namespace) {
                if selector.matches(&object.value) {
                    deleted.push(remove(txn, &resource, &object.key, &options)?);
                }
            }
            if options.dry_run {
                txn.rollback();
            }
            Ok::<_, ApiError>(deleted)
        })
        .await??;
    let mut items = Vec::new();
    for one in &deleted {
        settle(&call, one, dry_run);
        let (Deleted::Gone(stored) | Deleted::Waiting(stored)) = one;
        items.push(present(&call.resource, stored));
    }
    let version = call.api.store.version().to_string();
    Ok(answers::json(
        StatusCode::OK,
        &json!({"kind": call.resource.list_kind, "apiVersion": call.resource.api_version(),
            "metadata": {"resourceVersion": version}, "items": items}),
    ))
}

/// Deletes an object as far as that goes now: at once, or by marking it for those it waits for.
pub fn remove(
    txn: &mut Txn<'_>,
    resource: &Resource,
    key: &Key,
    options: &Options,
) -> Result<Deleted, ApiError> {
    let current = txn.get(key).ok_or_else(|| resource.not_found(&key.name))?;
    let old = &current.value;
    if !options.uid.is_empty() && options.uid != meta(old, "uid") {
        let why = format!(
            "Precondition failed: UID in precondition: {}, UID in object meta: {}",
            options.uid,
            meta(old, "uid")
        );
        return Err(resource.conflict(&key.name, &why));
    }
    if !options.version.is_empty() && options.version != current.version.to_string() {
        let why = format!(
            "Precondition failed: ResourceVersion in precondition: {}, ResourceVersion in object meta: {}",
            options.version, current.version
        );
        return Err(resource.conflict(&key.name, &why));
    }
    if resource.is("", "namespaces") && ["default", "kube-system", "kube-public"].contains(&key.name.as_str())
    {
        let why = "this namespace may not be deleted";
        return Err(ApiError::forbidden(&resource.group, &resource.plural, &key.name, why));
    }
    let mut object = old.clone();
    mark(resource, &mut object, options);
    if gone(resource, &object) {
        let removed = txn.delete_as(key, object).ok_or_else(|| resource.not_found(&key.name))?;
        return Ok(Deleted::Gone(removed));
    }
    if object == *old {
        return Ok(Deleted::Waiting(current));
    }
    Ok(Deleted::Waiting(txn.put(key.clone(), object)))
}

/// Writes into an object that, and when, it is to go.
fn mark(resource: &Resource, object: &mut Value, options: &Options) {
    let pod = resource.is("", "pods");
    let grace = if pod {
        let nobody_waits = !filled(&object["spec"]["nodeName"])
            || object["status"]["phase"] == "Succeeded"
            || object["status"]["phase"] == "Failed";
        let wanted = object["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
        if nobody_waits { 0 } else { options.grace.unwrap_or(wanted).clamp(0, LONGEST) }
    } else {
        0
    };
    let first = !object["metadata"]["deletionTimestamp"].is_string();
    // Objects that nobody serves would come back with the next definition of their name.
    let cleanup =
        (first && resource.is("apiextensions.k8s.io", "customresourcedefinitions")).then_some(CLEANUP);
    for finalizer in options.finalizer.into_iter().chain(cleanup) {
        let fields = meta_mut(object);
        let finalizers = fields.entry("finalizers").or_insert_with(|| json!([]));
        if let Some(finalizers) = finalizers.as_array_mut()
            && !finalizers.iter().any(|f| f == finalizer)
        {
            finalizers.push(json!(finalizer));
        }
    }
    let fields = &object["metadata"];
    let now = OffsetDateTime::now_utc();
    let at = now + Duration::seconds(grace);
    match fields["deletionTimestamp"].as_str().and_then(parse_time) {
        None => {
            if resource.group == "apps" || resource.custom.is_some() || pod {
                let generation = fields["generation"].as_i64().unwrap_or(0) + 1;
                object["metadata"]["generation"] = json!(generation);
            }
            object["metadata"]["deletionTimestamp"] = json!(format_time(at));
            object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        }
        // Later deletions can only shorten the time, and only if they say so.
        Some(before) => {
            let set = fields["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
            let shorter = pod
                && (options.grace.is_some_and(|g| g < set)
                    || (grace == 0 && set > 0 && at < before && options.grace.is_some()));
            if shorter {
                object["metadata"]["deletionTimestamp"] = json!(format_time(at.min(before)));
                object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
            }
        }
    }
    if resource.is("", "namespaces") {
        child_mut(object, "status").insert("phase".to_owned(), json!("Terminating"));
    }
}

/// Evicts a pod: deletes it with the options of the Eviction. Nothing limits disruptions here.
pub async fn evict(call: &Call, body: &[u8]) -> Result<Answer, ApiError> {
    let eviction = super::read(call, body)?;
    let options = Options::from_value(call, &eviction["deleteOptions"])?;
    let (resource, key) = (Arc::clone(&call.resource), call.resource.key(&call.namespace, &call.name));
    let dry_run = options.dry_run;
    let deleted = call
        .api
        .store
        .transact(move |txn| {
            let deleted = remove(txn, &resource, &key, &options)?;
            if options.dry_run {
                txn.rollback();
            }
            Ok::<_, ApiError>(deleted)
        })
        .await??;
    settle(call, &deleted, dry_run);
    Ok(answers::json(StatusCode::CREATED, &success(call, &call.name, "")))
}
