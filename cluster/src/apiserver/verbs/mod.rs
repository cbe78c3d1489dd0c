//! What can be done with objects.

pub mod binding;
pub mod create;
pub mod delete;
pub mod get;
pub mod review;
pub mod scale;
pub mod update;
pub mod watch;

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::http::{self as answers, Answer, Form};
use super::object::as_map;
use super::query::FieldValidation;
use super::registry::Resource;
use super::router::{Call, warn};
use super::schema::{Schema, check};
use super::status::ApiError;
use super::{events, protobuf, table};
use crate::store::Stored;

/// The object in the version of `resource`.
pub fn present(resource: &Resource, stored: &Stored) -> Value {
    let mut value = stored.value.clone();
    if resource.is_new_event() {
        events::to_new(&mut value);
    }
    if value["apiVersion"] != resource.api_version() {
        value["apiVersion"] = json!(resource.api_version());
    }
    value
}

/// The object as JSON text, without a copy where what is stored is what is served.
pub fn present_json(resource: &Resource, stored: &Stored) -> Bytes {
    if !resource.is_new_event() && stored.value["apiVersion"] == resource.api_version() {
        return stored.json.clone();
    }
    Bytes::from(present(resource, stored).to_string())
}

/// Only the metadata of an object.
pub fn metadata_only(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

/// An object as the answer to `call`.
pub fn object_answer(
    call: &Call,
    code: StatusCode,
    object: &Stored,
    warnings: &[String],
) -> Result<Answer, ApiError> {
    let answer = match answers::form(&call.headers)? {
        Form::Whole => answers::answer(code, "application/json", present_json(&call.resource, object)),
        Form::Metadata => answers::json(code, &metadata_only(&present(&call.resource, object))),
        Form::Table => {
            let objects = [present(&call.resource, object)];
            let include = table::Include::parse(call.query.get("includeObject"))?;
            answers::json(
                code,
                &table::table(&call.resource, &objects, include, true, &object.value["metadata"]),
            )
        }
    };
    Ok(warn(answer, warnings))
}

/// Reads the body of a request as an object of the call's resource.
pub fn decode(call: &Call, body: &[u8]) -> Result<Value, ApiError> {
    let mut object = read(call, body)?;
    identify(call, &mut object)?;
    Ok(object)
}

/// Reads the body of a request as JSON, YAML or, where kubectl knows no other way, protobuf.
pub fn read(call: &Call, body: &[u8]) -> Result<Value, ApiError> {
    match answers::content_type(&call.headers).as_str() {
        "application/json" | "" => answers::parse(body, false),
        "application/yaml" => answers::parse(body, true),
        protobuf::CONTENT_TYPE => protobuf::parse(body),
        other => Err(ApiError::unsupported_media_type(other, "application/json, application/yaml")),
    }
}

/// Checks that an object is what the path says.
pub fn identify(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    let resource = &call.resource;
    if !object.is_object() {
        return Err(ApiError::bad_request("the body is not an object"));
    }
    for (field, wanted) in [("apiVersion", resource.api_version()), ("kind", resource.kind.clone())] {
        match object[field].as_str().unwrap_or_default() {
            "" => object[field] = json!(wanted),
            got if got == wanted => {}
            got => {
                return Err(ApiError::bad_request(format!(
                    "the {field} in the data ({got}) does not match the expected {field} ({wanted})"
                )));
            }
        }
    }
    if !object["metadata"].is_object() && !object["metadata"].is_null() {
        return Err(ApiError::bad_request("metadata is not an object"));
    }
    let meta = as_map(&mut object["metadata"]);
    if resource.namespaced {
        match meta.get("namespace").and_then(Value::as_str).unwrap_or_default() {
            "" => {
                meta.insert("namespace".to_owned(), json!(call.namespace));
            }
            got if got == call.namespace => {}
            _ => {
                return Err(ApiError::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
        }
    } else {
        meta.shift_remove("namespace");
    }
    if !call.name.is_empty() {
        match meta.get("name").and_then(Value::as_str).unwrap_or_default() {
            "" => {
                meta.insert("name".to_owned(), json!(call.name));
            }
            got if got == call.name => {}
            got => {
                return Err(ApiError::bad_request(format!(
                    "the name of the object ({got}) does not match the name on the URL ({})",
                    call.name
                )));
            }
        }
    }
    if resource.is_new_event() {
        events::to_core(object);
    }
    Ok(())
}

/// Brings an object in line with its schema. Returns warnings.
pub fn normalize(
    resource: &Resource,
    object: &mut Value,
    validation: FieldValidation,
) -> Result<Vec<String>, ApiError> {
    // Events are stored in the core shape whichever way they came.
    let core_event;
    let schema = if resource.is_new_event() {
        core_event = &super::schema::builtin::definitions()["io.k8s.api.core.v1.Event"];
        Schema::new(super::schema::builtin::definitions(), core_event)
    } else {
        Schema::of(resource)
    };
    let findings = check::normalize(schema, object, resource.custom.is_some());
    let name = super::object::meta(object, "name").to_owned();
    if let Some(first) = findings.mistyped.first() {
        if resource.custom.is_some() {
            return Err(ApiError::invalid(&resource.group, &resource.kind, &name, findings.mistyped));
        }
        return Err(ApiError::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {}",
            resource.kind, resource.version, resource.kind, first.message
        )));
    }
    let unknown: Vec<String> =
        findings.unknown.iter().map(|path| format!("unknown field {path:?}")).collect();
    if validation == FieldValidation::Strict && !unknown.is_empty() {
        return Err(ApiError::bad_request(format!("strict decoding error: {}", unknown.join(", "))));
    }
    if !findings.causes.is_empty() {
        return Err(ApiError::invalid(&resource.group, &resource.kind, &name, findings.causes));
    }
    Ok(if validation == FieldValidation::Warn { unknown } else { Vec::new() })
}

/// A `Status` that says that something has been done.
pub fn success(call: &Call, name: &str, uid: &str) -> Value {
    let mut details = Map::new();
    for (key, value) in
        [("name", name), ("group", &call.resource.group), ("kind", &call.resource.plural), ("uid", uid)]
    {
        if !value.is_empty() {
            details.insert(key.to_owned(), json!(value));
        }
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}
