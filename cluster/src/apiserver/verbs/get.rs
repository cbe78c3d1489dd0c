//! Get and list.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut as _, BytesMut};
use http::StatusCode;
use serde_json::{Value, json};

use super::{metadata_only, object_answer, present, present_json};
use crate::apiserver::http::{self as answers, Answer, Form};
use crate::apiserver::router::Call;
use crate::apiserver::selector::{Fields, Labels, Selector};
use crate::apiserver::status::ApiError;
use crate::apiserver::table;
use crate::store::Stored;

/// One object.
pub fn get(call: &Call) -> Result<Answer, ApiError> {
    let key = call.resource.key(&call.namespace, &call.name);
    let object = call.api.store.get(&key).ok_or_else(|| call.resource.not_found(&call.name))?;
    object_answer(call, StatusCode::OK, &object, &[])
}

/// The selectors of a call; a call for one object selects that.
pub fn selector(call: &Call) -> Result<Selector, ApiError> {
    let mut fields = call.query.get("fieldSelector").to_owned();
    if !call.name.is_empty() {
        fields = format!("metadata.name={},{fields}", call.name);
    }
    Ok(Selector {
        labels: Labels::parse(call.query.get("labelSelector"))?,
        fields: Fields::parse(&fields, &call.resource)?,
    })
}

/// Where a list in pieces goes on: the version it began at, and after which object.
struct Continue {
    version: u64,
    namespace: String,
    name: String,
}

impl Continue {
    fn parse(token: &str) -> Result<Option<Self>, ApiError> {
        if token.is_empty() {
            return Ok(None);
        }
        let refuse = || ApiError::bad_request("continue key is not valid");
        let json = URL_SAFE_NO_PAD.decode(token).map_err(|_| refuse())?;
        let json: Value = serde_json::from_slice(&json).map_err(|_| refuse())?;
        let text = |field: &str| json[field].as_str().map(str::to_owned).ok_or_else(refuse);
        let version = json["rv"].as_u64().ok_or_else(refuse)?;
        Ok(Some(Self { version, namespace: text("ns")?, name: text("name")? }))
    }

    fn token(version: u64, after: &Stored) -> String {
        let json = json!({"rv": version, "ns": after.key.namespace, "name": after.key.name});
        URL_SAFE_NO_PAD.encode(json.to_string())
    }
}

/// A list of objects.
pub fn list(call: &Call) -> Result<Answer, ApiError> {
    let form = answers::form(&call.headers)?;
    let selector = selector(call)?;
    let namespace = Some(call.namespace.as_str()).filter(|n| !n.is_empty());
    let snapshot = call.api.store.list(&call.resource.storage, namespace);
    if call.query.resource_version()?.is_some_and(|wanted| wanted > snapshot.version) {
        return Err(ApiError::new(
            StatusCode::GATEWAY_TIMEOUT,
            "Timeout",
            format!(
                "Too large resource version: {}, current: {}",
                call.query.get("resourceVersion"),
                snapshot.version
            ),
        ));
    }
    let from = Continue::parse(call.query.get("continue"))?;
    if call.query.get("resourceVersionMatch") == "Exact"
        && call.query.resource_version()?.is_some_and(|wanted| wanted != snapshot.version)
    {
        return Err(ApiError::new(
            StatusCode::GONE,
            "Expired",
            "The provided resource version is not the current one; only the current state is kept",
        ));
    }
    let mut version = snapshot.version;
    if let Some(from) = &from {
        // A client that watches from the version of the first piece must see what changed since.
        if from.version < call.api.store.floor(&call.resource.storage) {
            return Err(ApiError::new(
                StatusCode::GONE,
                "Expired",
                "The provided continue parameter is too old to display a consistent list result",
            ));
        }
        version = from.version;
    }
    let mut objects = snapshot.objects.into_iter().filter(|object| {
        let after = from.as_ref().is_none_or(|from| {
            (object.key.namespace.as_str(), object.key.name.as_str())
                > (from.namespace.as_str(), from.name.as_str())
        });
        after && selector.matches(&object.value)
    });
    let limit = call.query.number("limit")?.filter(|&n| n > 0).and_then(|n| usize::try_from(n).ok());
    let page: Vec<Arc<Stored>> = match limit {
        Some(limit) => objects.by_ref().take(limit).collect(),
        None => objects.by_ref().collect(),
    };
    let remaining = objects.count();
    let mut meta = json!({"resourceVersion": version.to_string()});
    if remaining > 0
        && let Some(last) = page.last()
    {
        meta["continue"] = json!(Continue::token(version, last));
        // With selectors the server would not know; here it does, but clients do not expect it.
        if call.query.get("labelSelector").is_empty() && call.query.get("fieldSelector").is_empty() {
            meta["remainingItemCount"] = json!(remaining);
        }
    }
    Ok(match form {
        Form::Whole => whole(call, &page, &meta),
        Form::Metadata => {
            let items: Vec<Value> = page.iter().map(|o| metadata_only(&present(&call.resource, o))).collect();
            answers::json(
                StatusCode::OK,
                &json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": meta, "items": items}),
            )
        }
        Form::Table => {
            let objects: Vec<Value> = page.iter().map(|o| present(&call.resource, o)).collect();
            let include = table::Include::parse(call.query.get("includeObject"))?;
            answers::json(StatusCode::OK, &table::table(&call.resource, &objects, include, true, &meta))
        }
    })
}

/// Joins the objects' JSON as it is stored.
fn whole(call: &Call, page: &[Arc<Stored>], meta: &Value) -> Answer {
    let resource = &call.resource;
    let head = json!({"kind": resource.list_kind, "apiVersion": resource.api_version(), "metadata": meta})
        .to_string();
    let mut body =
        BytesMut::with_capacity(head.len() + page.iter().map(|o| o.json.len() + 1).sum::<usize>() + 16);
    body.put_slice(&head.as_bytes()[..head.len() - 1]);
    body.put_slice(b",\"items\":[");
    for (i, object) in page.iter().enumerate() {
        if i > 0 {
            body.put_u8(b',');
        }
        body.put_slice(&present_json(resource, object));
    }
    body.put_slice(b"]}");
    answers::answer(StatusCode::OK, "application/json", body.freeze())
}
