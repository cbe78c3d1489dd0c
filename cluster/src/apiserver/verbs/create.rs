//! Create.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};

use super::{decode, normalize, object_answer};
use crate::apiserver::admission::{self, names};
use crate::apiserver::http::Answer;
use crate::apiserver::managed;
use crate::apiserver::object::{filled, meta, meta_mut, now};
use crate::apiserver::registry::{CRDS, Resource, definition_of};
use crate::apiserver::router::Call;
use crate::apiserver::state::{Api, Concern};
use crate::apiserver::status::ApiError;
use crate::store::{Stored, Txn};

/// Makes an object from the request's body.
pub async fn create(call: Call, body: &[u8]) -> Result<Answer, ApiError> {
    if call.resource.namespaced && call.namespace.is_empty() {
        return Err(ApiError::method_not_allowed());
    }
    let mut object = decode(&call, body)?;
    let warnings = normalize(&call.resource, &mut object, call.query.field_validation()?)?;
    let dry_run = call.query.dry_run()?;
    let by = managed::Manager::of(&call, "Update");
    managed::track(&call.resource, &Value::Null, &mut object, &by);
    let api = Arc::clone(&call.api);
    let resource = Arc::clone(&call.resource);
    let services = api.config.service_cidr;
    let stored = api
        .store
        .transact(move |txn| {
            let stored = insert(txn, services, &resource, object)?;
            if dry_run {
                txn.rollback();
            }
            Ok::<_, ApiError>(stored)
        })
        .await??;
    if !dry_run {
        after_write(&call, &stored);
    }
    object_answer(&call, StatusCode::CREATED, &stored, &warnings)
}

/// Writes a new object: names it, fills in what every object has, applies the rules of its kind.
pub fn insert(
    txn: &mut Txn<'_>,
    services: ipnet::Ipv4Net,
    resource: &Resource,
    mut object: Value,
) -> Result<Arc<Stored>, ApiError> {
    if filled(&object["metadata"]["resourceVersion"]) {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let namespace = meta(&object, "namespace").to_owned();
    let fields = meta_mut(&mut object);
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
    ] {
        fields.shift_remove(field);
    }
    let given = fields.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let prefix = fields.get("generateName").and_then(Value::as_str).unwrap_or_default().to_owned();
    let name = match (given.is_empty(), prefix.is_empty()) {
        (false, _) => given,
        (true, false) => generate_name(txn, resource, &namespace, &prefix),
        (true, true) => {
            let cause = crate::apiserver::status::Cause::required(
                "metadata.name",
                "name or generateName is required",
            );
            return Err(ApiError::invalid(&resource.group, &resource.kind, "", vec![cause]));
        }
    };
    fields.insert("name".to_owned(), json!(name));
    fields.insert("uid".to_owned(), json!(uuid::Uuid::new_v4().to_string()));
    fields.insert("creationTimestamp".to_owned(), json!(now()));

    let key = resource.key(&namespace, &name);
    if let Some(existing) = txn.get(&key) {
        let mut error = ApiError::already_exists(&resource.group, &resource.plural, &name);
        if existing.value["metadata"]["deletionTimestamp"].is_string() {
            error.message = format!("object is being deleted: {}", error.message);
        }
        return Err(error);
    }
    if resource.custom.is_some() {
        admission::crd::accepts(txn, resource)?;
    }
    if resource.namespaced {
        admission::namespace_accepts(txn, resource, &namespace, &name)?;
    }
    let mut causes = Vec::new();
    names::check_name(&resource.group, &resource.plural, &name, &mut causes);
    names::check_meta(&object, &mut causes);
    admission::on_create(txn, services, resource, &mut object, &mut causes)?;
    if !causes.is_empty() {
        return Err(ApiError::invalid(&resource.group, &resource.kind, &name, causes));
    }
    Ok(txn.put(key, object))
}

/// `prefix` and five characters that are not taken.
fn generate_name(txn: &Txn<'_>, resource: &Resource, namespace: &str, prefix: &str) -> String {
    /// No vowels and nothing that looks alike, so that no words come out.
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    const ROOM: usize = 58;
    let prefix: String = prefix.chars().take(ROOM).collect();
    loop {
        let random = uuid::Uuid::new_v4();
        let suffix: String = random.as_bytes()[..5]
            .iter()
            .map(|&b| ALPHABET[usize::from(b) % ALPHABET.len()] as char)
            .collect();
        let name = format!("{prefix}{suffix}");
        if txn.get(&resource.key(namespace, &name)).is_none() {
            return name;
        }
    }
}

/// What has to happen once a write is durable.
pub fn after_write(call: &Call, stored: &Stored) {
    let object = &stored.value;
    if &*stored.key.resource == CRDS {
        call.api.registry.refresh(&call.api.store.list(CRDS, None));
    }
    // The collector lives as long as the server.
    if filled(&object["metadata"]["ownerReferences"]) || object["metadata"]["deletionTimestamp"].is_string() {
        let _ = call.api.gc.send(Concern::Check(stored.key.clone()));
    }
}

/// What has to happen once a removal is durable.
pub fn after_removal(api: &Api, stored: &Stored) {
    if &*stored.key.resource == CRDS {
        api.registry.refresh(&api.store.list(CRDS, None));
    }
    let _ = api.gc.send(Concern::Gone(meta(&stored.value, "uid").to_owned()));
    // Owners that wait for their dependents can go on.
    for owner in crate::apiserver::object::list(&stored.value["metadata"], "ownerReferences") {
        if let Some(owner) = api.store.by_uid(owner["uid"].as_str().unwrap_or_default()) {
            let _ = api.gc.send(Concern::Check(owner));
        }
    }
    // So can a definition that waits for its objects.
    let definition = definition_of(&stored.key.resource);
    let waits =
        api.store.get(&definition).is_some_and(|d| d.value["metadata"]["deletionTimestamp"].is_string());
    if waits && api.store.list(&stored.key.resource, None).objects.is_empty() {
        let _ = api.gc.send(Concern::Check(definition));
    }
}
