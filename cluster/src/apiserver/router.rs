//! From a request to its verb.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use hyper::body::Incoming;
use serde_json::json;
use time::OffsetDateTime;

use super::authn::{User, bearer};
use super::http::{self as answers, Answer};
use super::path::{self, ResourcePath, Target};
use super::query::Query;
use super::registry::Resource;
use super::state::Api;
use super::status::ApiError;
use super::token::ISSUER;
use super::{discovery, openapi, proxy, verbs};

/// One request for objects.
pub struct Call {
    /// What all requests share.
    pub api: Arc<Api>,
    /// Who asks.
    pub user: User,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its parameters.
    pub query: Query,
    /// What it is about.
    pub resource: Arc<Resource>,
    /// Namespace; empty if the path has none.
    pub namespace: String,
    /// Object's name; empty for the collection.
    pub name: String,
    /// Subresource; empty if none.
    pub sub: String,
}

/// Answers a request, whatever it is.
pub async fn handle(api: Arc<Api>, certified: Option<User>, request: Request<Incoming>) -> Answer {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let outcome = std::panic::AssertUnwindSafe(route(api, certified, request)).catch_unwind().await;
    match outcome {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            tracing::debug!(%method, path, code = error.code.as_u16(), %error, "refused");
            answers::error(&error)
        }
        Err(_) => {
            tracing::error!(%method, path, "a request panicked");
            answers::error(&ApiError::internal("the request could not be handled"))
        }
    }
}

async fn route(
    api: Arc<Api>,
    certified: Option<User>,
    request: Request<Incoming>,
) -> Result<Answer, ApiError> {
    let path = request.uri().path().to_owned();
    if let Some(answer) = public(&api, &path, request.uri().query().unwrap_or_default()) {
        return Ok(answer);
    }
    let user = match (certified, bearer(request.headers())) {
        (Some(user), _) => user,
        (None, Some(token)) => api
            .tokens
            .check(token, &[ISSUER], &api.store, OffsetDateTime::now_utc())
            .ok_or_else(ApiError::unauthorized)?,
        (None, None) => return Err(ApiError::unauthorized()),
    };
    let query = Query::parse(request.uri().query().unwrap_or_default())?;
    let served = api.registry.current();
    match path::parse(&path) {
        Target::Resource(target) => {
            let resource = served.find(&target.group, &target.version, &target.plural).cloned();
            let resource = resource.ok_or_else(ApiError::no_such_path)?;
            resource_request(api, user, query, resource, target, request).await
        }
        Target::Other if path.starts_with("/openapi/") => {
            only_get(request.method())?;
            openapi::answer(&served, &path, request.headers())
        }
        Target::Other => Err(ApiError::no_such_path()),
        target => {
            only_get(request.method())?;
            discovery::answer(&api, &served, &target, request.headers())
        }
    }
}

fn only_get(method: &Method) -> Result<(), ApiError> {
    if method == Method::GET { Ok(()) } else { Err(ApiError::method_not_allowed()) }
}

/// What anyone may see.
fn public(api: &Api, path: &str, query: &str) -> Option<Answer> {
    match path {
        "/readyz" | "/livez" | "/healthz" => {
            let body = if query.split('&').any(|p| p == "verbose" || p.starts_with("verbose=")) {
                let check = path.trim_start_matches('/').trim_end_matches('z');
                format!(
                    "[+]ping ok\n[+]store ok (resource version {})\n{check}z check passed\n",
                    api.store.version()
                )
            } else {
                "ok".to_owned()
            };
            Some(answers::text(StatusCode::OK, body))
        }
        "/version" => Some(answers::json(
            StatusCode::OK,
            &json!({
                "major": "1", "minor": "36", "gitVersion": concat!("v1.36.0+podwire-", env!("CARGO_PKG_VERSION")),
                "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none",
                "compiler": "rustc", "platform": "linux/amd64",
            }),
        )),
        _ => None,
    }
}

async fn resource_request(
    api: Arc<Api>,
    user: User,
    query: Query,
    resource: Arc<Resource>,
    target: ResourcePath,
    request: Request<Incoming>,
) -> Result<Answer, ApiError> {
    if !target.namespace.is_empty() && !resource.namespaced {
        return Err(ApiError::no_such_path());
    }
    if !target.sub.is_empty() && !resource.has_sub(&target.sub) {
        return Err(ApiError::no_such_path());
    }
    if !target.name.is_empty() && resource.namespaced && target.namespace.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let call = Call {
        api,
        user,
        headers: request.headers().clone(),
        query,
        resource,
        namespace: target.namespace,
        name: target.name,
        sub: target.sub,
    };
    let (method, named) = (request.method().clone(), !call.name.is_empty());
    if ["log", "exec", "attach", "portforward"].contains(&call.sub.as_str()) {
        return proxy::pod(&call, request).await;
    }
    if !call.resource.stored {
        let body = post_only(&method, request).await?;
        return verbs::review::create(&call, &body);
    }
    match call.sub.as_str() {
        "token" | "binding" | "eviction" => {
            let body = post_only(&method, request).await?;
            return match call.sub.as_str() {
                "token" => verbs::review::token(&call, &body),
                "binding" => verbs::binding::bind(&call, &body).await,
                _ => verbs::delete::evict(&call, &body).await,
            };
        }
        "scale" => {
            let (method, headers) = (method.clone(), call.headers.clone());
            let body = answers::read_body(request.into_body()).await?;
            return verbs::scale::answer(&call, &method, &headers, &body).await;
        }
        _ => {}
    }
    // Before anything is written: a client that cannot read the answer would not know of it.
    answers::form(&call.headers)?;
    match (method, named) {
        (Method::GET, _) if call.query.flag("watch")? => verbs::watch::watch(&call),
        (Method::GET, true) => verbs::get::get(&call),
        (Method::GET, false) => verbs::get::list(&call),
        (Method::POST, false) => {
            let body = answers::read_body(request.into_body()).await?;
            verbs::create::create(call, &body).await
        }
        (Method::PUT, true) => {
            let body = answers::read_body(request.into_body()).await?;
            verbs::update::replace(call, &body).await
        }
        (Method::PATCH, true) => {
            let body = answers::read_body(request.into_body()).await?;
            verbs::update::patch(call, &body).await
        }
        (Method::DELETE, true) if call.sub.is_empty() => {
            let body = answers::read_body(request.into_body()).await?;
            verbs::delete::delete(call, &body).await
        }
        (Method::DELETE, false) => {
            let body = answers::read_body(request.into_body()).await?;
            verbs::delete::collection(call, &body).await
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

async fn post_only(method: &Method, request: Request<Incoming>) -> Result<Bytes, ApiError> {
    if method != Method::POST {
        return Err(ApiError::method_not_allowed());
    }
    answers::read_body(request.into_body()).await
}

/// Adds warnings to an answer. What is not allowed in a header is left out.
pub fn warn(mut answer: Answer, warnings: &[String]) -> Answer {
    for warning in warnings {
        let text: String = warning.chars().filter(|c| !c.is_control()).collect();
        let text = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            answer.headers_mut().append("warning", value);
        }
    }
    answer
}
