//! Replace and patch, of objects and of their status.

use std::sync::Arc;

use http::StatusCode;
use ipnet::Ipv4Net;
use serde_json::{Map, Value, json};

use super::create::{after_removal, after_write, insert};
use super::{identify, normalize, object_answer};
use crate::apiserver::admission::{self, names};
use crate::apiserver::http::{self as answers, Answer};
use crate::apiserver::managed::{self, Manager};
use crate::apiserver::object::{filled, list, meta, meta_mut};
use crate::apiserver::patch;
use crate::apiserver::query::FieldValidation;
use crate::apiserver::registry::Resource;
use crate::apiserver::router::Call;
use crate::apiserver::schema::Schema;
use crate::apiserver::status::ApiError;
use crate::store::{Key, Stored, Txn};

/// How an update ended.
pub enum Outcome {
    /// Written, or unchanged.
    Kept(Arc<Stored>),
    /// It was the last finalizer: the object is gone.
    Removed(Arc<Stored>),
    /// Server-side apply made it.
    Created(Arc<Stored>),
}

/// What an update is.
#[derive(Clone)]
pub struct Update {
    /// Resource of the object.
    pub resource: Arc<Resource>,
    /// The object.
    pub key: Key,
    /// Subresource: empty, `status` or `finalize`.
    pub sub: String,
    /// Who does it.
    pub by: Manager,
    /// About unknown fields.
    pub validation: FieldValidation,
    /// Addresses of Services.
    pub services: Ipv4Net,
}

impl Update {
    fn of(call: &Call, operation: &'static str) -> Result<Self, ApiError> {
        Ok(Self {
            resource: Arc::clone(&call.resource),
            key: call.resource.key(&call.namespace, &call.name),
            sub: call.sub.clone(),
            by: Manager::of(call, operation),
            validation: call.query.field_validation()?,
            services: call.api.config.service_cidr,
        })
    }
}

/// Replaces an object by the request's body.
pub async fn replace(call: Call, body: &[u8]) -> Result<Answer, ApiError> {
    let object = super::decode(&call, body)?;
    let update = Update::of(&call, "Update")?;
    let dry_run = call.query.dry_run()?;
    let (outcome, warnings) = call
        .api
        .store
        .transact(move |txn| {
            let current = txn.get(&update.key).ok_or_else(|| update.resource.not_found(&update.key.name))?;
            let result = apply(txn, &update, &current, object)?;
            if dry_run {
                txn.rollback();
            }
            Ok::<_, ApiError>(result)
        })
        .await??;
    finish(&call, &outcome, &warnings, dry_run)
}

fn finish(call: &Call, outcome: &Outcome, warnings: &[String], dry_run: bool) -> Result<Answer, ApiError> {
    let (stored, code) = match outcome {
        Outcome::Kept(stored) | Outcome::Removed(stored) => (stored, StatusCode::OK),
        Outcome::Created(stored) => (stored, StatusCode::CREATED),
    };
    if !dry_run {
        match outcome {
            Outcome::Removed(_) => after_removal(&call.api, stored),
            _ => after_write(call, stored),
        }
    }
    object_answer(call, code, stored, warnings)
}

/// Patches an object in the way the content type says.
pub async fn patch(call: Call, body: &[u8]) -> Result<Answer, ApiError> {
    let kind = answers::content_type(&call.headers);
    let patch = patch::Patch::parse(&kind, body, &call.resource)?;
    let force = call.query.flag("force")?;
    let applies = matches!(patch, patch::Patch::Apply(_));
    if applies && call.query.get("fieldManager").is_empty() {
        return Err(ApiError::bad_request(
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
        ));
    }
    if !applies && call.query.has("force") {
        return Err(ApiError::bad_request(
            "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch",
        ));
    }
    let update = Update::of(&call, if applies { "Apply" } else { "Update" })?;
    let dry_run = call.query.dry_run()?;
    let api = Arc::clone(&call.api);
    let call = Arc::new(call);
    let in_txn = Arc::clone(&call);
    let (outcome, warnings) = api
        .store
        .transact(move |txn| {
            let result = patch_in(txn, &in_txn, &update, patch, force)?;
            if dry_run {
                txn.rollback();
            }
            Ok::<_, ApiError>(result)
        })
        .await??;
    finish(&call, &outcome, &warnings, dry_run)
}

fn patch_in(
    txn: &mut Txn<'_>,
    call: &Call,
    update: &Update,
    patch: patch::Patch,
    force: bool,
) -> Result<(Outcome, Vec<String>), ApiError> {
    let current = txn.get(&update.key);
    let resource = &update.resource;
    if let patch::Patch::Apply(mut applied) = patch {
        identify(call, &mut applied)?;
        keep_own_part(resource, &update.sub, &mut applied);
        let warnings = normalize_applied(resource, &mut applied, update.validation)?;
        let Some(current) = current else {
            if !update.sub.is_empty() {
                return Err(resource.not_found(&update.key.name));
            }
            if filled(&applied["metadata"]["uid"]) {
                let why = "the UID in the patch is of an object that does not exist";
                return Err(resource.conflict(&update.key.name, why));
            }
            let mut object = applied.clone();
            managed::apply_new(resource, &applied, &mut object, &update.by);
            let defaults = normalize(resource, &mut object, FieldValidation::Ignore)?;
            drop(defaults);
            let stored = insert(txn, update.services, resource, object)?;
            return Ok((Outcome::Created(stored), warnings));
        };
        let live = super::present(resource, &current);
        let object = managed::apply(resource, &live, &applied, &update.by, force)?;
        let (outcome, _) = apply(txn, update, &current, object)?;
        return Ok((outcome, warnings));
    }
    let current = current.ok_or_else(|| resource.not_found(&update.key.name))?;
    let mut object = super::present(resource, &current);
    patch.onto(&mut object, Schema::of(resource))?;
    if answers::depth_exceeds(&object, answers::MAX_DEPTH) {
        return Err(ApiError::bad_request("the patched object is nested too deep"));
    }
    if object["metadata"]["name"] != current.value["metadata"]["name"] {
        return Err(ApiError::bad_request("the name of the object may not be changed by a patch"));
    }
    identify(call, &mut object)?;
    apply(txn, update, &current, object)
}

/// Takes out of an applied configuration what its request does not write: nobody owns what he cannot set.
fn keep_own_part(resource: &Resource, sub: &str, applied: &mut Value) {
    let Some(map) = applied.as_object_mut() else { return };
    if sub != "status" {
        if resource.has_sub("status") {
            map.shift_remove("status");
        }
        return;
    }
    map.retain(|field, _| ["apiVersion", "kind", "metadata", "status"].contains(&field.as_str()));
    let labelled = resource.is("", "nodes") || resource.is("", "pods");
    meta_mut(applied).retain(|field, _| match field.as_str() {
        "labels" | "annotations" => labelled,
        "finalizers" | "ownerReferences" => false,
        _ => true,
    });
}

/// An applied configuration is partial: what it lacks is not an error, and it gets no defaults.
fn normalize_applied(
    resource: &Resource,
    applied: &mut Value,
    validation: FieldValidation,
) -> Result<Vec<String>, ApiError> {
    if list(&applied["metadata"], "managedFields").iter().any(|_| true) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    if resource.custom.is_some() {
        // Checked as a whole after merging; here only for what the definition does not know.
        let mut copy = applied.clone();
        let findings = crate::apiserver::schema::check::normalize(Schema::of(resource), &mut copy, true);
        let unknown: Vec<String> = findings.unknown.iter().map(|p| format!("unknown field {p:?}")).collect();
        if validation == FieldValidation::Strict && !unknown.is_empty() {
            return Err(ApiError::bad_request(format!("strict decoding error: {}", unknown.join(", "))));
        }
        return Ok(if validation == FieldValidation::Warn { unknown } else { Vec::new() });
    }
    normalize(resource, applied, validation)
}

/// Metadata that clients cannot change.
const FIXED: &[&str] = &[
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "generateName",
    "selfLink",
];

/// Brings `object`, which a client wants in the place of `current`, in line with the rules, and writes it.
pub fn apply(
    txn: &mut Txn<'_>,
    update: &Update,
    current: &Arc<Stored>,
    mut object: Value,
) -> Result<(Outcome, Vec<String>), ApiError> {
    let resource = &update.resource;
    let old = &current.value;
    let name = &update.key.name;
    let sent = meta(&object, "resourceVersion");
    if !sent.is_empty() && sent != "0" && sent != current.version.to_string() {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        return Err(resource.conflict(name, why));
    }
    let uid = meta(&object, "uid");
    if !uid.is_empty() && uid != meta(old, "uid") {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            meta(old, "uid")
        );
        return Err(resource.conflict(name, &why));
    }
    let warnings = normalize(resource, &mut object, update.validation)?;
    object["apiVersion"] = old["apiVersion"].clone();
    keep_fixed(old, &mut object, update.by.applies());
    select_part(resource, &update.sub, old, &mut object);

    let mut causes = Vec::new();
    names::check_meta(&object, &mut causes);
    if old["metadata"]["deletionTimestamp"].is_string() {
        let had = list(&old["metadata"], "finalizers");
        if list(&object["metadata"], "finalizers").iter().any(|f| !had.contains(f)) {
            causes.push(crate::apiserver::status::Cause::forbidden(
                "metadata.finalizers",
                "no new finalizers can be added if the object is being deleted",
            ));
        }
    }
    admission::on_update(txn, update.services, resource, &update.sub, old, &mut object, &mut causes)?;
    if !causes.is_empty() {
        return Err(ApiError::invalid(&resource.group, &resource.kind, name, causes));
    }
    bump_generation(resource, &update.sub, old, &mut object);
    managed::track(resource, old, &mut object, &update.by);

    if gone(resource, &object) {
        let removed = txn.delete_as(&update.key, object).ok_or_else(|| resource.not_found(name))?;
        return Ok((Outcome::Removed(removed), warnings));
    }
    if same(old, &object) {
        return Ok((Outcome::Kept(Arc::clone(current)), warnings));
    }
    Ok((Outcome::Kept(txn.put(update.key.clone(), object)), warnings))
}

fn keep_fixed(old: &Value, object: &mut Value, applies: bool) {
    let fields = meta_mut(object);
    for field in FIXED {
        match old["metadata"].get(*field) {
            Some(value) => fields.insert((*field).to_owned(), value.clone()),
            None => fields.shift_remove(*field),
        };
    }
    fields.insert("resourceVersion".to_owned(), old["metadata"]["resourceVersion"].clone());
    // Server-side apply brings its own; other clients may clear them but not write them.
    let cleared = fields.get("managedFields").and_then(Value::as_array).is_some_and(Vec::is_empty);
    if !applies {
        fields.shift_remove("managedFields");
        if !cleared && let Some(managed) = old["metadata"].get("managedFields") {
            fields.insert("managedFields".to_owned(), managed.clone());
        }
    }
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        if fields.get(field).is_some_and(|v| !filled(v)) {
            fields.shift_remove(field);
        }
    }
}

/// Takes from `object` only what the subresource is about, and the rest from `old`.
fn select_part(resource: &Resource, sub: &str, old: &Value, object: &mut Value) {
    let take = |object: &mut Value, field: &str, from: &Value| match from.get(field) {
        Some(value) => object[field] = value.clone(),
        None => {
            object.as_object_mut().map(|map| map.shift_remove(field));
        }
    };
    match sub {
        "status" => {
            let mut whole = old.clone();
            take(&mut whole, "status", object);
            let metadata = &object["metadata"];
            whole["metadata"]["managedFields"] = metadata["managedFields"].clone();
            if whole["metadata"]["managedFields"].is_null() {
                meta_mut(&mut whole).shift_remove("managedFields");
            }
            // Node runtimes label and annotate their nodes and pods along with the status.
            if resource.is("", "nodes") || resource.is("", "pods") {
                for field in ["labels", "annotations"] {
                    match metadata.get(field) {
                        Some(value) => whole["metadata"][field] = value.clone(),
                        None => {
                            meta_mut(&mut whole).shift_remove(field);
                        }
                    }
                }
            }
            *object = whole;
        }
        "finalize" => {
            let finalizers = object["spec"]["finalizers"].clone();
            *object = old.clone();
            if finalizers.is_null() {
                if let Some(spec) = object["spec"].as_object_mut() {
                    spec.shift_remove("finalizers");
                }
            } else {
                object["spec"]["finalizers"] = finalizers;
            }
        }
        _ => {
            if resource.has_sub("status") {
                take(object, "status", old);
            }
            if resource.is("", "namespaces") {
                object["spec"]["finalizers"] = old["spec"]["finalizers"].clone();
            }
        }
    }
}

/// The generation counts changes of what is wanted.
fn bump_generation(resource: &Resource, sub: &str, old: &Value, object: &mut Value) {
    let counts = resource.custom.is_some() || resource.group == "apps" || resource.is("", "pods");
    if !counts || sub == "status" {
        return;
    }
    let wanted = |object: &Value| -> Map<String, Value> {
        let mut map = object.as_object().cloned().unwrap_or_default();
        for field in ["metadata", "status", "apiVersion", "kind"] {
            map.shift_remove(field);
        }
        map
    };
    if wanted(old) != wanted(object) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        object["metadata"]["generation"] = json!(generation);
    }
}

/// Whether nothing keeps an object that is being deleted.
pub fn gone(resource: &Resource, object: &Value) -> bool {
    let meta = &object["metadata"];
    let pod_waits =
        resource.is("", "pods") && meta["deletionGracePeriodSeconds"].as_i64().is_some_and(|s| s > 0);
    let namespace_waits = resource.is("", "namespaces") && filled(&object["spec"]["finalizers"]);
    meta["deletionTimestamp"].is_string() && !filled(&meta["finalizers"]) && !pod_waits && !namespace_waits
}

/// Whether two objects are the same but for when fields were last managed.
fn same(old: &Value, new: &Value) -> bool {
    let strip = |object: &Value| {
        let mut object = object.clone();
        for entry in object["metadata"]["managedFields"].as_array_mut().into_iter().flatten() {
            if let Some(entry) = entry.as_object_mut() {
                entry.shift_remove("time");
            }
        }
        object
    };
    old == new || strip(old) == strip(new)
}
