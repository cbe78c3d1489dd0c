//! Bodies and answers.

use bytes::Bytes;
use futures::Stream;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Body, Frame};
use serde_json::Value;

use super::status::ApiError;

/// Any error of a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Body of an answer.
pub type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// Largest body of a request. etcd would refuse objects of half that size.
pub const MAX_BODY: usize = 3 << 20;
/// How much more of a body that is too large is read and thrown away, in bytes.
const MAX_DRAINED: usize = 64 << 20;

/// Deepest nesting in a body. It also bounds every walk over objects.
pub const MAX_DEPTH: usize = 64;

/// An answer with a body of known length.
pub fn answer(code: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert("cache-control", HeaderValue::from_static("no-cache, private"));
    response
}

/// JSON.
pub fn json(code: StatusCode, value: &Value) -> Answer {
    answer(code, "application/json", value.to_string())
}

/// Plain text.
pub fn text(code: StatusCode, body: impl Into<String>) -> Answer {
    answer(code, "text/plain; charset=utf-8", body.into())
}

/// An error.
pub fn error(error: &ApiError) -> Answer {
    let mut response = json(error.code, &error.to_status());
    if error.code == StatusCode::UNAUTHORIZED {
        response
            .headers_mut()
            .insert("www-authenticate", HeaderValue::from_static("Bearer realm=\"podwire\""));
    }
    response
}

/// A body that comes in pieces.
pub fn stream(
    content_type: &'static str,
    pieces: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
) -> Answer {
    let frames = futures::StreamExt::map(pieces, |piece| piece.map(Frame::data));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert("cache-control", HeaderValue::from_static("no-cache, private"));
    response
}

/// Reads a whole body of bounded size.
pub async fn read_body<B>(body: B) -> Result<Bytes, ApiError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let mut body = std::pin::pin!(body);
    match Limited::new(body.as_mut(), MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            // A client that is still writing when the connection closes sees a broken pipe, not the answer: read on, within reason.
            let _ = Limited::new(body, MAX_DRAINED).map_frame(|_| Frame::data(Bytes::new())).collect().await;
            Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "RequestEntityTooLarge",
                format!("Request entity too large: limit is {MAX_BODY}"),
            ))
        }
        Err(error) => Err(ApiError::bad_request(format!("the body could not be read: {error}"))),
    }
}

/// The media type of a request's body, without parameters, in lower case.
pub fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Reads JSON or, where `yaml` says so, YAML.
pub fn parse(body: &[u8], yaml: bool) -> Result<Value, ApiError> {
    let text = std::str::from_utf8(body)
        .map_err(|e| ApiError::bad_request(format!("the body is not UTF-8: {e}")))?;
    // serde_json refuses nesting beyond 128 by itself, so what it returns can be walked.
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(_) if yaml => serde_saphyr::from_str(text)
            .map_err(|e| ApiError::bad_request(format!("the body is not YAML: {e}")))?,
        Err(error) => return Err(ApiError::bad_request(format!("the body is not JSON: {error}"))),
    };
    if depth_exceeds(&value, MAX_DEPTH) {
        return Err(ApiError::bad_request(format!("the body is nested deeper than {MAX_DEPTH}")));
    }
    Ok(value)
}

/// Whether a value is nested deeper than `left`.
pub fn depth_exceeds(value: &Value, left: usize) -> bool {
    match value {
        Value::Array(items) => left == 0 || items.iter().any(|v| depth_exceeds(v, left - 1)),
        Value::Object(map) => left == 0 || map.values().any(|v| depth_exceeds(v, left - 1)),
        _ => false,
    }
}

/// How the client wants objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As they are.
    Whole,
    /// As rows of a table.
    Table,
    /// Only their metadata.
    Metadata,
}

/// The first form that the client accepts and the server has.
pub fn form(headers: &HeaderMap) -> Result<Form, ApiError> {
    let accept: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    let accept = accept.join(",");
    if accept.trim().is_empty() {
        return Ok(Form::Whole);
    }
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        if !["application/json", "application/*", "*/*"].contains(&media.as_str()) {
            continue;
        }
        let parameters: Vec<(&str, &str)> = parts.filter_map(|p| p.split_once('=')).collect();
        let get = |name: &str| parameters.iter().find(|(k, _)| *k == name).map_or("", |(_, v)| v.trim());
        match (get("as"), get("g"), get("v")) {
            ("", _, _) => return Ok(Form::Whole),
            ("Table", "meta.k8s.io", "v1") => return Ok(Form::Table),
            ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => {
                return Ok(Form::Metadata);
            }
            // Discovery in its own forms, older tables: the next range may fit.
            _ => {}
        }
    }
    Err(ApiError::not_acceptable())
}
