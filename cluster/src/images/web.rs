//! `podwire-kube web`: one page, the course's web server on the router.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use axum::Router;
use axum::response::Html;
use axum::routing::get;

/// Serves `<h1>Web Server : TITLE</h1>` on every address until `stop` is done.
///
/// # Errors
/// The port cannot be listened on.
pub async fn serve(
    port: u16,
    title: &str,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let page = format!("<h1>Web Server : {title}</h1>\n");
    let app = Router::new()
        .route("/health", get(|| async { "ok\n" }))
        .fallback(get(move || std::future::ready(Html(page.clone()))));
    let listener = tokio::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await?;
    axum_serve(listener, app, stop).await
}

/// Serves HTTP/1.1 on a listener until `stop` is done.
pub(super) async fn axum_serve(
    listener: tokio::net::TcpListener,
    app: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let mut stop = std::pin::pin!(stop);
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => accepted?,
            () = &mut stop => return Ok(()),
        };
        let app = app.clone();
        tokio::spawn(async move {
            let service =
                hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
                    request.extensions_mut().insert(axum::extract::ConnectInfo(peer));
                    let app = app.clone();
                    async move { tower::ServiceExt::oneshot(app, request.map(axum::body::Body::new)).await }
                });
            let io = hyper_util::rt::TokioIo::new(stream);
            let served = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
            if let Err(error) = served {
                tracing::debug!(%peer, %error, "connection ended");
            }
        });
    }
}
