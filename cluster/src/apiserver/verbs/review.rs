//! Questions that are answered and not stored: who a token is, who the client is, what it may do; and tokens.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use super::decode;
use crate::apiserver::http::{self as answers, Answer};
use crate::apiserver::object::{format_time, list, meta, now};
use crate::apiserver::router::Call;
use crate::apiserver::status::ApiError;
use crate::apiserver::token::{Claims, ISSUER};
use crate::store::Key;

/// Answers a review.
pub fn create(call: &Call, body: &[u8]) -> Result<Answer, ApiError> {
    let mut review = decode(call, body)?;
    super::normalize(&call.resource, &mut review, call.query.field_validation()?)?;
    review["metadata"]["creationTimestamp"] = json!(now());
    review["status"] = match call.resource.kind.as_str() {
        "TokenReview" => {
            let token = review["spec"]["token"].as_str().unwrap_or_default();
            let audiences: Vec<&str> =
                list(&review["spec"], "audiences").iter().filter_map(Value::as_str).collect();
            let audiences = if audiences.is_empty() { vec![ISSUER] } else { audiences };
            match call.api.tokens.check(token, &audiences, &call.api.store, OffsetDateTime::now_utc()) {
                Some(user) => json!({"authenticated": true, "user": user.to_value(), "audiences": audiences}),
                None => json!({"authenticated": false, "error": "invalid bearer token"}),
            }
        }
        "SelfSubjectReview" => json!({"userInfo": call.user.to_value()}),
        _ => json!({"allowed": true, "reason": "every authenticated user may do everything"}),
    };
    Ok(answers::json(StatusCode::CREATED, &review))
}

/// A TokenRequest may ask for this long at least and at most; without asking it gets an hour.
const SECONDS: std::ops::RangeInclusive<i64> = 600..=(1 << 32);

/// Makes a token for a ServiceAccount.
pub fn token(call: &Call, body: &[u8]) -> Result<Answer, ApiError> {
    let mut request = super::read(call, body)?;
    if !request.is_object() {
        return Err(ApiError::bad_request("the body is not a TokenRequest"));
    }
    let account = call.api.store.get(&call.resource.key(&call.namespace, &call.name));
    let account = account.ok_or_else(|| call.resource.not_found(&call.name))?;
    let spec = request["spec"].clone();
    let seconds = match &spec["expirationSeconds"] {
        Value::Null => 3600,
        given => given.as_i64().filter(|s| SECONDS.contains(s)).ok_or_else(|| {
            let why = "may not specify a duration less than 10 minutes or more than 2^32 seconds";
            let cause = crate::apiserver::status::Cause::invalid("spec.expirationSeconds", given, why);
            ApiError::invalid("authentication.k8s.io", "TokenRequest", &call.name, vec![cause])
        })?,
    };
    let audiences: Vec<String> =
        list(&spec, "audiences").iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let audiences = if audiences.is_empty() { vec![ISSUER.to_owned()] } else { audiences };
    let bound = bound_object(call, &spec["boundObjectRef"])?;
    let at = OffsetDateTime::now_utc();
    let claims = Claims {
        namespace: &call.namespace,
        name: &call.name,
        uid: meta(&account.value, "uid"),
        audiences: audiences.clone(),
        bound,
        seconds,
    };
    let api = Arc::clone(&call.api);
    let token =
        api.tokens.sign(&claims, at).ok_or_else(|| ApiError::internal("the token could not be signed"))?;
    request["kind"] = json!("TokenRequest");
    request["apiVersion"] = json!("authentication.k8s.io/v1");
    request["metadata"] = json!({"name": call.name, "namespace": call.namespace, "creationTimestamp": now()});
    request["spec"]["audiences"] = json!(audiences);
    request["spec"]["expirationSeconds"] = json!(seconds);
    request["status"] =
        json!({"token": token, "expirationTimestamp": format_time(at + Duration::seconds(seconds))});
    Ok(answers::json(StatusCode::CREATED, &request))
}

fn bound_object(call: &Call, reference: &Value) -> Result<Option<(String, String, String)>, ApiError> {
    if reference.is_null() {
        return Ok(None);
    }
    let text = |field: &str| reference[field].as_str().unwrap_or_default().to_owned();
    let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
    let storage = match kind.as_str() {
        "Pod" => "core/pods",
        "Secret" => "core/secrets",
        other => {
            return Err(ApiError::bad_request(format!(
                "a token cannot be bound to a {other:?}: use a Pod or a Secret"
            )));
        }
    };
    let object = call.api.store.get(&Key::new(storage, &call.namespace, &name));
    let object = object.ok_or_else(|| ApiError::not_found("", &storage[5..], &name))?;
    let found = meta(&object.value, "uid");
    if !uid.is_empty() && uid != found {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record ({found})"
        );
        return Err(ApiError::conflict("", &storage[5..], &name, &why));
    }
    Ok(Some((kind, name, found.to_owned())))
}
