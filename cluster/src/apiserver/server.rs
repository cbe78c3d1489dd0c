//! Listens, shakes hands, and hands requests to the router.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::authn::User;
use super::registry::{CRDS, Registry};
use super::state::{Api, ApiServerConfig};
use super::token::{KeyError, Tokens};
use super::{bootstrap, router, tls};
use crate::pki::Pki;
use crate::store::{Store, StoreError};

/// The API server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The store could not be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A certificate could not be used.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The key of ServiceAccount tokens could not be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The objects that every cluster has could not be made.
    #[error("the first objects could not be made: {0}")]
    Bootstrap(String),
    /// The address could not be listened on.
    #[error("{listen}: {source}; is another API server running?")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
}

/// A handshake that takes longer is given up: it holds resources without anybody being known.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Pause after a connection that could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// Connections that are still open when the server ends get this long to finish.
const DRAIN: Duration = Duration::from_millis(500);

/// Runs the API server until `shutdown` completes. Sends the address it listens on to `ready` once it serves.
pub async fn serve(
    config: ApiServerConfig,
    ready: oneshot::Sender<SocketAddr>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let pki = Pki::open(&config.pki);
    let acceptor = TlsAcceptor::from(tls::server(&pki)?);
    let kubelet_tls = tls::kubelet_client(&pki)?;
    let tokens = Tokens::open(&pki.service_account_key())?;
    let data_dir = config.data_dir.clone();
    // Opening reads the whole database and may repair it: not on a thread that serves.
    let store = match tokio::task::spawn_blocking(move || Store::open(&data_dir)).await {
        Ok(opened) => opened?,
        Err(panic) => return Err(ServeError::Bootstrap(panic.to_string())),
    };
    // The schemas take a moment to generate; the first write needs them.
    tokio::task::spawn_blocking(super::schema::builtin::definitions);
    let listen = config.listen;
    let listener = TcpListener::bind(listen).await.map_err(|source| ServeError::Listen { listen, source })?;
    let address = listener.local_addr().map_err(|source| ServeError::Listen { listen, source })?;

    let registry = Registry::new(&store.list(CRDS, None));
    let (gc, concerns) = mpsc::unbounded_channel();
    let config = ApiServerConfig { listen: address, ..config };
    let api = Arc::new(Api { store, registry, config, tokens, kubelet_tls, gc });
    bootstrap::run(&api).await.map_err(|e| ServeError::Bootstrap(e.to_string()))?;
    let mut chores = JoinSet::new();
    chores.spawn(super::gc::run(Arc::clone(&api), concerns));
    chores.spawn(super::expiry::run(Arc::clone(&api)));

    let (stop, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    // Nobody waiting for the address is fine.
    let _ = ready.send(address);
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(connection(Arc::clone(&api), acceptor.clone(), stream, peer, stopped.clone()));
                }
                // Out of file descriptors, or the client has gone already: others may do better.
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    // Nothing tells when a descriptor is free again, and the listener stays readable: asking at once would spin.
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            },
        }
    }
    drop(listener);
    stop.send_replace(true);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        // Watches do not end by themselves.
        connections.shutdown().await;
    }
    chores.shutdown().await;
    Ok(())
}

async fn connection(
    api: Arc<Api>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    mut stopped: watch::Receiver<bool>,
) {
    // Answers are small; waiting to fill segments would only delay them.
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => return tracing::debug!(%peer, "TLS handshake took too long"),
    };
    let user = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).and_then(User::from_certificate);
    let service = service_fn(move |request| {
        let (api, user) = (Arc::clone(&api), user.clone());
        async move { Ok::<_, std::convert::Infallible>(router::handle(api, user, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(1000);
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let outcome = tokio::select! {
        outcome = &mut serving => outcome,
        () = async { let _ = stopped.wait_for(|&s| s).await; } => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%peer, %error, "connection ended");
    }
}
