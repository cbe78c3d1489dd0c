//! Logs of containers and commands in them: the node runtime has both, the API server passes them on.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::http::{self as answers, Answer, BoxError};
use super::object::{filled, list};
use super::router::Call;
use super::status::ApiError;
use crate::store::Key;

/// A node that takes longer to answer is down.
const CONNECT: Duration = Duration::from_secs(5);

/// Port of the node runtime where the node does not say.
const KUBELET_PORT: u16 = 10250;

type Sender = SendRequest<Empty<Bytes>>;

/// Answers `pods/NAME/{log,exec,attach,portforward}`.
pub async fn pod(call: &Call, request: Request<Incoming>) -> Result<Answer, ApiError> {
    let key = call.resource.key(&call.namespace, &call.name);
    let pod = call.api.store.get(&key).ok_or_else(|| call.resource.not_found(&call.name))?;
    match call.sub.as_str() {
        "log" if request.method() == Method::GET => log(call, &pod.value).await,
        "exec" if request.method() == Method::GET || request.method() == Method::POST => {
            exec(call, &pod.value, request).await
        }
        "log" | "exec" => Err(ApiError::method_not_allowed()),
        other => Err(ApiError::new(
            StatusCode::NOT_IMPLEMENTED,
            "NotImplemented",
            format!(
                "{other} is not supported by the embedded cluster; use exec, or reach the pod by its address"
            ),
        )),
    }
}

/// The container that a request means: the one it names, or the only one, or the first by annotation.
fn container(call: &Call, pod: &Value) -> Result<String, ApiError> {
    let names: Vec<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|field| list(&pod["spec"], field))
        .filter_map(|c| c["name"].as_str())
        .collect();
    let wanted = call.query.get("container");
    if !wanted.is_empty() {
        if names.contains(&wanted) {
            return Ok(wanted.to_owned());
        }
        return Err(ApiError::bad_request(format!("container {wanted} is not valid for pod {}", call.name)));
    }
    let default = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    if let Some(default) = default.filter(|d| names.contains(d)) {
        return Ok(default.to_owned());
    }
    match list(&pod["spec"], "containers") {
        [only] => Ok(only["name"].as_str().unwrap_or_default().to_owned()),
        _ => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            call.name,
            names.join(" ")
        ))),
    }
}

/// Connects to the runtime of the pod's node.
async fn connect(call: &Call, pod: &Value) -> Result<(Sender, String), ApiError> {
    let node_name = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node_name.is_empty() {
        return Err(ApiError::bad_request(format!("pod {} does not have a host assigned", call.name)));
    }
    let node = call.api.store.get(&Key::new("core/nodes", "", node_name));
    let node = node.ok_or_else(|| ApiError::not_found("", "nodes", node_name))?;
    let status = &node.value["status"];
    let address = list(status, "addresses").iter().find(|a| a["type"] == "InternalIP");
    let address: IpAddr = address
        .and_then(|a| a["address"].as_str()?.parse().ok())
        .ok_or_else(|| ApiError::internal(format!("node {node_name} has no InternalIP")))?;
    let port = status["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
    let port = port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0).unwrap_or(KUBELET_PORT);

    let unreachable = |cause: String| {
        ApiError::internal(format!(
            "node runtime of {node_name} at {address}:{port} does not answer: {cause}; is the node up?"
        ))
    };
    let tls = TlsConnector::from(Arc::clone(&call.api.kubelet_tls));
    let connecting = async {
        let stream = TcpStream::connect((address, port)).await?;
        stream.set_nodelay(true)?;
        tls.connect(ServerName::IpAddress(address.into()), stream).await
    };
    let stream = match tokio::time::timeout(CONNECT, connecting).await {
        Ok(stream) => stream.map_err(|e| unreachable(e.to_string()))?,
        Err(_) => return Err(unreachable("timed out".to_owned())),
    };
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|e| unreachable(e.to_string()))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a node runtime ended");
        }
    });
    Ok((sender, format!("{address}:{port}")))
}

fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// The request's parameters that the node runtime understands.
fn parameters(call: &Call, names: &[&str]) -> String {
    let pairs = call.query.pairs().iter().filter(|(k, _)| names.contains(&k.as_str()));
    let pairs: Vec<String> = pairs.map(|(k, v)| format!("{}={}", encode(k), encode(v))).collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

fn request(method: Method, uri: String, host: &str) -> Result<Request<Empty<Bytes>>, ApiError> {
    Request::builder()
        .method(method)
        .uri(uri)
        .header(HOST, host)
        .body(Empty::new())
        .map_err(|e| ApiError::bad_request(format!("the request cannot be passed on: {e}")))
}

async fn log(call: &Call, pod: &Value) -> Result<Answer, ApiError> {
    for name in ["tailLines", "limitBytes", "sinceSeconds"] {
        call.query.number(name)?;
    }
    for name in ["follow", "timestamps", "previous"] {
        call.query.flag(name)?;
    }
    let container = container(call, pod)?;
    if !filled(&pod["spec"]["nodeName"]) {
        return Ok(answers::text(StatusCode::OK, ""));
    }
    let (mut sender, host) = connect(call, pod).await?;
    let names = ["follow", "tailLines", "sinceSeconds", "sinceTime", "timestamps", "limitBytes", "previous"];
    let uri =
        format!("/containerLogs/{}/{}/{container}{}", call.namespace, call.name, parameters(call, &names));
    let response = sender
        .send_request(request(Method::GET, uri, &host)?)
        .await
        .map_err(|e| ApiError::internal(format!("the node runtime broke off: {e}")))?;
    if response.status() != StatusCode::OK {
        return Err(refused(response).await);
    }
    let pieces = response.into_body().into_data_stream().map(|piece| piece.map_err(BoxError::from));
    Ok(answers::stream("text/plain", pieces))
}

/// A node runtime's refusal in its own words.
async fn refused(response: Response<Incoming>) -> ApiError {
    let code = response.status();
    let body = match answers::read_body(response.into_body()).await {
        Ok(body) => String::from_utf8_lossy(&body).trim().to_owned(),
        Err(error) => error.message,
    };
    match code {
        StatusCode::BAD_REQUEST => ApiError::bad_request(body),
        StatusCode::NOT_FOUND => ApiError::new(StatusCode::NOT_FOUND, "NotFound", body),
        _ => ApiError::internal(body),
    }
}

/// What can be said without asking the node: clients that fall back to SPDY see it as well.
fn ready_for_exec(call: &Call, pod: &Value, container: &str) -> Result<(), ApiError> {
    if !filled(&pod["spec"]["nodeName"]) {
        return Err(ApiError::bad_request(format!("pod {} does not have a host assigned", call.name)));
    }
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    if phase == "Succeeded" || phase == "Failed" {
        let why = format!("cannot exec into a container in a completed pod; current phase is {phase}");
        return Err(ApiError::bad_request(why));
    }
    let statuses =
        ["containerStatuses", "initContainerStatuses"].iter().flat_map(|f| list(&pod["status"], f));
    let mut running = statuses.filter(|s| s["state"]["running"].is_object());
    if running.any(|s| s["name"] == container) {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::NOT_FOUND,
        "NotFound",
        format!("container not found (\"{container}\"): it is not running"),
    ))
}

/// Hands the client's WebSocket to the node runtime: bytes are copied both ways, nothing is looked into.
async fn exec(call: &Call, pod: &Value, mut client: Request<Incoming>) -> Result<Answer, ApiError> {
    let websocket = client
        .headers()
        .get(UPGRADE)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.eq_ignore_ascii_case("websocket"));
    if call.query.get("command").is_empty() {
        return Err(ApiError::bad_request("you must specify at least 1 command for the container"));
    }
    let container = container(call, pod)?;
    ready_for_exec(call, pod, &container)?;
    if !websocket {
        return Err(ApiError::bad_request(
            "exec needs a WebSocket; SPDY is not supported: use kubectl 1.31 or newer",
        ));
    }
    let (mut sender, host) = connect(call, pod).await?;
    let names = ["command", "stdin", "stdout", "stderr", "tty"];
    let uri = format!("/exec/{}/{}/{container}{}", call.namespace, call.name, parameters(call, &names));
    let mut onward = request(Method::GET, uri, &host)?;
    let headers = onward.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    for (name, value) in client.headers() {
        if name.as_str().starts_with("sec-websocket-") {
            headers.append(name, value.clone());
        }
    }
    let mut response = sender
        .send_request(onward)
        .await
        .map_err(|e| ApiError::internal(format!("the node runtime broke off: {e}")))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refused(response).await);
    }
    let node_side = hyper::upgrade::on(&mut response);
    let client_side = hyper::upgrade::on(&mut client);
    tokio::spawn(async move {
        // The client's side is upgraded once our answer is sent.
        let (Ok(client), Ok(node)) = (client_side.await, node_side.await) else { return };
        let (mut client, mut node) = (TokioIo::new(client), TokioIo::new(node));
        if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut node).await {
            tracing::debug!(%error, "exec ended");
        }
        drop(sender);
    });
    let mut answer = answers::answer(StatusCode::SWITCHING_PROTOCOLS, "", Bytes::new());
    let headers = answer.headers_mut();
    headers.clear();
    for (name, value) in response.headers() {
        headers.append(name, value.clone());
    }
    headers.remove(CONTENT_TYPE);
    Ok(answer)
}
