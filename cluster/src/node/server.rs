//! The node's own API on port 10250: logs and exec, for the API server to pass on. Mutual TLS.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path as UrlPath, Query, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::StatusCode;
use hyper_util::rt::TokioIo;
use k8s_openapi::jiff::Timestamp;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::container::handle::{Handle, runs};
use super::logs::{LogQuery, LogReader};
use super::watch::Watch;
use super::{Node, NodeError, exec};

/// Which container a request is about.
pub(super) type Target = (String, String, String);
/// The query's pairs; names may repeat.
pub(super) type Pairs = Vec<(String, String)>;

/// Starts to serve.
pub async fn start(node: Arc<Node>) -> Result<JoinHandle<()>, NodeError> {
    let name = &node.options.name;
    let acceptor = acceptor(&node.options.pki, name)?;
    // Every address: the API server comes by the underlay, people by the node's loopback.
    let address = SocketAddr::from(([0, 0, 0, 0], node.options.port));
    let listener = TcpListener::bind(address).await.map_err(NodeError::io(format!(
        "listen on {address} for the node's API (does another runtime run here?)"
    )))?;
    let app = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(container_logs))
        .route("/exec/{namespace}/{pod}/{container}", get(exec::upgrade))
        .with_state(node);
    Ok(tokio::spawn(async move {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to the node's API");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            };
            let _ = stream.set_nodelay(true);
            let (acceptor, app) = (acceptor.clone(), app.clone());
            tokio::spawn(async move {
                let stream = match acceptor.accept(stream).await {
                    Ok(stream) => stream,
                    Err(error) => {
                        tracing::debug!(%peer, %error, "refused a connection to the node's API");
                        return;
                    }
                };
                let service =
                    hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                        let app = app.clone();
                        async move {
                            tower::ServiceExt::oneshot(app, request.map(Body::new)).await
                                as Result<_, Infallible>
                        }
                    });
                let served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades()
                    .await;
                if let Err(error) = served {
                    tracing::debug!(%peer, %error, "connection to the node's API ended");
                }
            });
        }
    }))
}

fn acceptor(pki: &Path, name: &str) -> Result<TlsAcceptor, NodeError> {
    let pki = crate::pki::Pki::open(pki);
    let serving = format!("kubelet-{name}-serving");
    let fail = |path: &Path, error: &dyn std::fmt::Display| {
        NodeError::Tls(format!(
            "{}: {error}; make the certificates with the cluster's PKI first",
            path.display()
        ))
    };
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, NodeError> {
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| fail(path, &error))
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(&pki.ca_cert())? {
        roots.add(certificate).map_err(|error| fail(&pki.ca_cert(), &error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| fail(&pki.ca_cert(), &error))?;
    let (cert, key) = (pki.cert(&serving), pki.key(&serving));
    let key = PrivateKeyDer::from_pem_file(&key).map_err(|error| fail(&key, &error))?;
    let chain = certificates(&cert)?;
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_client_cert_verifier(clients).with_single_cert(chain, key))
        .map_err(|error| fail(&cert, &error))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

pub(super) fn refuse(code: StatusCode, message: impl Into<String>) -> Response {
    (code, message.into()).into_response()
}

/// The last of the pairs with this name.
pub(super) fn pair<'a>(pairs: &'a Pairs, name: &str) -> Option<&'a str> {
    pairs.iter().rfind(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// A switch is on.
pub(super) fn flag(pairs: &Pairs, name: &str) -> bool {
    matches!(pair(pairs, name), Some("true" | "1" | "True"))
}

/// The directory of the pod, if it is one of this node's.
pub(super) fn pod_dir(node: &Node, namespace: &str, pod: &str) -> Option<std::path::PathBuf> {
    let uid = node.pods.get(Some(namespace), pod)?.metadata.uid.clone()?;
    Some(node.pods_dir().join(uid))
}

async fn container_logs(
    State(node): State<Arc<Node>>,
    UrlPath((namespace, pod, container)): UrlPath<Target>,
    Query(pairs): Query<Pairs>,
) -> Response {
    let Some(dir) = pod_dir(&node, &namespace, &pod) else {
        return refuse(StatusCode::NOT_FOUND, format!("pod \"{namespace}/{pod}\" is not on this node"));
    };
    let all = runs(&dir.join("containers"), &container);
    let previous = flag(&pairs, "previous");
    let run = if previous { all.len().checked_sub(2).and_then(|index| all.get(index)) } else { all.last() };
    let Some((number, files)) = run else {
        let text = if previous && !all.is_empty() {
            format!("previous terminated container \"{container}\" in pod \"{pod}\" not found")
        } else {
            format!("container \"{container}\" in pod \"{pod}\" is waiting to start")
        };
        return refuse(StatusCode::BAD_REQUEST, text);
    };
    let query = match log_query(&pairs, Timestamp::now()) {
        Ok(query) => query,
        Err(message) => return refuse(StatusCode::BAD_REQUEST, message),
    };
    let path = dir.join("logs").join(&container).join(format!("{number}.log"));
    let reader = match LogReader::open(&path, query) {
        Ok(reader) => reader,
        Err(error) => {
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot read the log: {error}"));
        }
    };
    let running = (flag(&pairs, "follow") && !previous).then(|| Handle::find(files.clone())).flatten();
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        if let Err(error) = send_log(reader, &path, running, &sender).await {
            let _ = sender.send(Err(error)).await;
        }
    });
    let stream = futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|part| (part, receiver))
    });
    ([(http::header::CONTENT_TYPE, "text/plain; charset=utf-8")], Body::from_stream(stream)).into_response()
}

fn log_query(pairs: &Pairs, now: Timestamp) -> Result<LogQuery, String> {
    let number = |name: &str| -> Result<Option<i64>, String> {
        match pair(pairs, name) {
            None | Some("") => Ok(None),
            Some(text) => text
                .parse()
                .ok()
                .filter(|n| *n >= 0)
                .map(Some)
                .ok_or_else(|| format!("{name}=\"{text}\" is no number")),
        }
    };
    let count = |name: &str| Ok::<_, String>(number(name)?.and_then(|n| usize::try_from(n).ok()));
    let since = match (pair(pairs, "sinceTime"), number("sinceSeconds")?) {
        (Some(text), _) => Some(text.parse().map_err(|error| format!("sinceTime=\"{text}\": {error}"))?),
        (None, Some(seconds)) => Timestamp::from_second(now.as_second() - seconds).ok(),
        (None, None) => None,
    };
    Ok(LogQuery {
        tail: count("tailLines")?,
        since,
        timestamps: flag(pairs, "timestamps"),
        limit: count("limitBytes")?,
    })
}

type Sender = mpsc::Sender<std::io::Result<Bytes>>;

/// Sends what there is, and with a running container also what comes until it ends or nobody listens.
async fn send_log(
    mut reader: LogReader,
    path: &Path,
    running: Option<Handle>,
    sender: &Sender,
) -> std::io::Result<()> {
    let Some(handle) = running else {
        let lines = reader.first()?;
        let _ = sender.send(Ok(lines.into())).await;
        return Ok(());
    };
    // Before the first read, or what comes in between would be missed.
    let watch = Watch::file(path)?;
    let mut lines = reader.first()?;
    let mut ended = std::pin::pin!(handle.ended());
    let mut over = false;
    loop {
        if (!lines.is_empty() && sender.send(Ok(std::mem::take(&mut lines).into())).await.is_err())
            || over
            || reader.is_full()
        {
            return Ok(());
        }
        tokio::select! {
            changed = watch.changed() => changed?,
            _ = &mut ended => over = true,
            () = sender.closed() => return Ok(()),
        }
        lines = reader.more()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_flags() {
        let pairs = |text: &[(&str, &str)]| -> Pairs {
            text.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let now = Timestamp::from_second(100).unwrap();
        let all =
            pairs(&[("tailLines", "3"), ("sinceSeconds", "10"), ("timestamps", "true"), ("limitBytes", "9")]);
        let wanted = LogQuery {
            tail: Some(3),
            since: Timestamp::from_second(90).ok(),
            timestamps: true,
            limit: Some(9),
        };
        assert_eq!(log_query(&all, now), Ok(wanted));
        assert!(log_query(&pairs(&[("tailLines", "-1")]), now).unwrap_err().contains("tailLines"));
        assert!(log_query(&pairs(&[("sinceTime", "x")]), now).is_err());
    }
}
