//! Scale: the number of replicas of a workload, in a form that is the same for all kinds.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};

use super::create::after_write;
use super::update::{Outcome, Update, apply};
use crate::apiserver::http::{self as answers, Answer};
use crate::apiserver::managed::Manager;
use crate::apiserver::object::meta;
use crate::apiserver::patch::Patch;
use crate::apiserver::query::FieldValidation;
use crate::apiserver::registry::Resource;
use crate::apiserver::router::Call;
use crate::apiserver::schema::{Schema, builtin};
use crate::apiserver::status::{ApiError, Cause};

fn pointer(path: &str) -> String {
    path.replace('.', "/")
}

/// Where a kind keeps the wanted number, the actual number and the selector.
fn paths(resource: &Resource) -> (String, String, Option<String>) {
    match resource.custom.as_ref().and_then(|c| c.scale.as_ref()) {
        Some(scale) => {
            let path = |field: &str| scale[field].as_str().map(pointer);
            (
                path("specReplicasPath").unwrap_or_default(),
                path("statusReplicasPath").unwrap_or_default(),
                path("labelSelectorPath"),
            )
        }
        None => ("/spec/replicas".to_owned(), "/status/replicas".to_owned(), None),
    }
}

/// The Scale of an object.
fn scale_of(resource: &Resource, object: &Value) -> Value {
    let (spec, status, selector) = paths(resource);
    let number = |path: &str| object.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": meta(object, "name"), "namespace": meta(object, "namespace"), "uid": meta(object, "uid"),
            "resourceVersion": meta(object, "resourceVersion"),
            "creationTimestamp": object["metadata"]["creationTimestamp"],
        },
        "spec": {"replicas": number(&spec)},
        "status": {"replicas": number(&status)},
    });
    let text = match selector {
        Some(path) => object.pointer(&path).and_then(Value::as_str).unwrap_or_default().to_owned(),
        None => selector_text(&object["spec"]["selector"]),
    };
    if !text.is_empty() {
        scale["status"]["selector"] = json!(text);
    }
    scale
}

/// A LabelSelector in the form of a query.
pub fn selector_text(selector: &Value) -> String {
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let mut parts: Vec<String> =
        labels.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    for expression in crate::apiserver::object::list(selector, "matchExpressions") {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> =
            crate::apiserver::object::list(expression, "values").iter().filter_map(Value::as_str).collect();
        let values = values.join(",");
        match expression["operator"].as_str().unwrap_or_default() {
            "In" => parts.push(format!("{key} in ({values})")),
            "NotIn" => parts.push(format!("{key} notin ({values})")),
            "Exists" => parts.push(key.to_owned()),
            "DoesNotExist" => parts.push(format!("!{key}")),
            _ => {}
        }
    }
    parts.join(",")
}

/// Answers a request for the Scale of an object.
pub async fn answer(
    call: &Call,
    method: &Method,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Answer, ApiError> {
    let key = call.resource.key(&call.namespace, &call.name);
    if method == Method::GET {
        let object = call.api.store.get(&key).ok_or_else(|| call.resource.not_found(&call.name))?;
        return Ok(answers::json(StatusCode::OK, &scale_of(&call.resource, &object.value)));
    }
    let content = answers::content_type(headers);
    let change = if method == Method::PUT {
        let scale = answers::parse(body, content == "application/yaml")?;
        if !scale.is_object() {
            return Err(ApiError::bad_request("the body is not a Scale"));
        }
        Change::Replace(scale)
    } else if method == Method::PATCH {
        match Patch::parse(&content, body, &call.resource)? {
            Patch::Apply(applied) => Change::Replace(applied),
            patch => Change::Patch(patch),
        }
    } else {
        return Err(ApiError::method_not_allowed());
    };
    let dry_run = call.query.dry_run()?;
    let update = Update {
        resource: Arc::clone(&call.resource),
        key,
        sub: String::new(),
        by: Manager::of(call, "Update"),
        validation: FieldValidation::Ignore,
        services: call.api.config.service_cidr,
    };
    let resource = Arc::clone(&call.resource);
    let stored = call
        .api
        .store
        .transact(move |txn| {
            let current = txn.get(&update.key).ok_or_else(|| update.resource.not_found(&update.key.name))?;
            let mut scale = scale_of(&update.resource, &current.value);
            match change {
                Change::Replace(new) => scale = new,
                Change::Patch(patch) => {
                    let definitions = builtin::definitions();
                    let node = &definitions["io.k8s.api.autoscaling.v1.Scale"];
                    patch.onto(&mut scale, Schema::new(definitions, node))?;
                }
            }
            let wanted = match &scale["spec"]["replicas"] {
                Value::Null => 0,
                number => number.as_i64().filter(|n| *n >= 0).ok_or_else(|| {
                    let cause = Cause::invalid("spec.replicas", number, "must be greater than or equal to 0");
                    ApiError::invalid("autoscaling", "Scale", &update.key.name, vec![cause])
                })?,
            };
            let mut object = current.value.clone();
            set(&mut object, &paths(&update.resource).0, json!(wanted));
            let sent = meta(&scale, "resourceVersion");
            if !sent.is_empty() {
                object["metadata"]["resourceVersion"] = json!(sent);
            }
            let (outcome, _) = apply(txn, &update, &current, object)?;
            if dry_run {
                txn.rollback();
            }
            match outcome {
                Outcome::Kept(stored) | Outcome::Removed(stored) | Outcome::Created(stored) => {
                    Ok::<_, ApiError>(stored)
                }
            }
        })
        .await??;
    if !dry_run {
        after_write(call, &stored);
    }
    Ok(answers::json(StatusCode::OK, &scale_of(&resource, &stored.value)))
}

enum Change {
    Replace(Value),
    Patch(Patch),
}

/// Sets the value at a pointer; maps on the way are made at need.
fn set(object: &mut Value, pointer: &str, value: Value) {
    let mut at = object;
    for part in pointer.split('/').skip(1) {
        at = crate::apiserver::object::as_map(at).entry(part).or_insert(Value::Null);
    }
    *at = value;
}
