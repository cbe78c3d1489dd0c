//! `podwire-kube coredns`: the cluster's DNS, where CoreDNS would be. It answers for `cluster.local` and asks nobody: every
//! other name does not exist.

mod answer;
mod zone;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use futures::StreamExt as _;
use http::StatusCode;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::reflector::{Store, store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use self::answer::{Transport, answer};
use self::zone::Zone;

/// The ports of CoreDNS's plugins `health` and `ready`.
const HEALTH_PORT: u16 = 8080;
const READY_PORT: u16 = 8181;

/// How long a TCP client may say nothing.
const IDLE: Duration = Duration::from_secs(30);

/// How long is waited after something went wrong that may do so again at once.
const PAUSE: Duration = Duration::from_millis(100);

/// The zone that is served; none until the API server has told everything.
type Served = Arc<RwLock<Option<Arc<Zone>>>>;

fn current(served: &Served) -> Option<Arc<Zone>> {
    served.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Serves DNS on every address until `stop` is done.
///
/// # Errors
/// A port cannot be listened on.
pub async fn serve(
    client: Client,
    port: u16,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let served = Served::default();
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    let (health, ready) = (listen(HEALTH_PORT).await?, listen(READY_PORT).await?);
    tokio::spawn(keep(client, Arc::clone(&served)));
    tokio::spawn(serve_udp(udp, Arc::clone(&served)));
    tokio::spawn(serve_tcp(tcp, Arc::clone(&served)));
    let health_app = Router::new().route("/health", get(|| async { "OK" }));
    tokio::spawn(super::web::axum_serve(health, health_app, std::future::pending()));
    let is_ready = move || {
        let ready = current(&served).is_some();
        async move { if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE } }
    };
    super::web::axum_serve(ready, Router::new().route("/ready", get(is_ready)), stop).await
}

async fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await
}

/// Keeps the zone as the API server tells. Runs for ever.
async fn keep(client: Client, served: Served) {
    let (services, mut services_writer) = store();
    let (slices, mut slices_writer) = store();
    let all = watcher::Config::default;
    let mut service_events = watcher(Api::<Service>::all(client.clone()), all()).default_backoff().boxed();
    let mut slice_events = watcher(Api::<EndpointSlice>::all(client), all()).default_backoff().boxed();
    let (mut known_services, mut known_slices) = (false, false);
    loop {
        tokio::select! {
            Some(event) = service_events.next() => match event {
                Ok(event) => {
                    services_writer.apply_watcher_event(&event);
                    known_services |= is_whole(&event);
                }
                Err(error) => tracing::warn!(%error, "services; is the API server up? (trying again)"),
            },
            Some(event) = slice_events.next() => match event {
                Ok(event) => {
                    slices_writer.apply_watcher_event(&event);
                    known_slices |= is_whole(&event);
                }
                Err(error) => tracing::warn!(%error, "endpoints; is the API server up? (trying again)"),
            },
            else => return,
        }
        if known_services && known_slices {
            publish(&services, &slices, &served);
        }
    }
}

/// Whether a list is complete with this event.
fn is_whole<K>(event: &watcher::Event<K>) -> bool {
    !matches!(event, watcher::Event::Init | watcher::Event::InitApply(_))
}

fn publish(services: &Store<Service>, slices: &Store<EndpointSlice>, served: &Served) {
    let zone = Arc::new(Zone::new(&services.state(), &slices.state()));
    *served.write().unwrap_or_else(PoisonError::into_inner) = Some(zone);
}

/// Until the zone is known nobody is answered: who asks asks again, and a wrong "no" would be kept.
fn respond(served: &Served, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
    answer(&*current(served)?, question, transport)
}

async fn serve_udp(socket: UdpSocket, served: Served) {
    let mut question = vec![0; usize::from(u16::MAX)];
    loop {
        match socket.recv_from(&mut question).await {
            Ok((length, from)) => {
                if let Some(bytes) = respond(&served, &question[..length], Transport::Udp) {
                    // Who is gone needs no answer.
                    let _ = socket.send_to(&bytes, from).await;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "datagram");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn serve_tcp(listener: TcpListener, served: Served) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let served = Arc::clone(&served);
                // What fails is the client's connection only.
                tokio::spawn(async move { tokio::time::timeout(IDLE, converse(stream, &served)).await });
            }
            Err(error) => {
                tracing::debug!(%error, "connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Questions and answers, each after its length (RFC 1035, 4.2.2).
async fn converse(mut stream: TcpStream, served: &Served) -> io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut question = vec![0; usize::from(length)];
        stream.read_exact(&mut question).await?;
        let Some(bytes) = respond(served, &question, Transport::Tcp) else { return Ok(()) };
        let Ok(length) = u16::try_from(bytes.len()) else { return Ok(()) };
        stream.write_u16(length).await?;
        stream.write_all(&bytes).await?;
    }
}
