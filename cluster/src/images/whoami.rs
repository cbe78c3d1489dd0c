//! `podwire-kube whoami`: tells who answers, who asked and what was asked. Its lines are the course's oracle: they show
//! which pod a request has reached and which source address it had.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::routing::get;
use http::{HeaderMap, HeaderName};

/// Serves on every address, IPv4 and IPv6 where there is IPv6, until `stop` is done.
///
/// # Errors
/// The port cannot be listened on.
pub async fn serve(
    port: u16,
    name: Option<String>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let listener = match tokio::net::TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await
    {
        Ok(listener) => listener,
        // A kernel without IPv6.
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            tokio::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await?
        }
        Err(error) => return Err(error),
    };
    let app = Router::new()
        .route("/health", get(|| async { "" }))
        .route("/bench", get(|| async { "1" }))
        .fallback(move |ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request| {
            let name = name.clone();
            async move {
                let hostname = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
                answer(name.as_deref(), &hostname.unwrap_or_default(), &addresses(), peer, &request)
            }
        });
    super::web::axum_serve(listener, app, stop).await
}

/// Every address of the pod.
fn addresses() -> Vec<IpAddr> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let mut found: Vec<IpAddr> = Vec::new();
    for address in all.filter_map(|one| one.address) {
        if let Some(v4) = address.as_sockaddr_in() {
            found.push(v4.ip().into());
        } else if let Some(v6) = address.as_sockaddr_in6() {
            found.push(v6.ip().into());
        }
    }
    found
}

fn answer<B>(
    name: Option<&str>,
    hostname: &str,
    addresses: &[IpAddr],
    peer: SocketAddr,
    request: &http::Request<B>,
) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    if let Some(name) = name {
        let _ = writeln!(text, "Name: {name}");
    }
    let _ = writeln!(text, "Hostname: {hostname}");
    for address in addresses {
        let _ = writeln!(text, "IP: {address}");
    }
    // A listener on both families sees IPv4 clients as mapped addresses.
    let _ = writeln!(text, "RemoteAddr: {}", SocketAddr::new(peer.ip().to_canonical(), peer.port()));
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let _ = writeln!(text, "{} {target} {:?}", request.method(), request.version());
    let headers = request.headers();
    for (wanted, label) in [(http::header::HOST, "Host"), (http::header::USER_AGENT, "User-Agent")] {
        if let Some(value) = headers.get(&wanted) {
            let _ = writeln!(text, "{label}: {}", String::from_utf8_lossy(value.as_bytes()));
        }
    }
    for (name, value) in others(headers) {
        let _ =
            writeln!(text, "{}: {}", title_case(name.as_str()), String::from_utf8_lossy(value.as_bytes()));
    }
    text.push('\n');
    text
}

fn others(headers: &HeaderMap) -> Vec<(&HeaderName, &http::HeaderValue)> {
    let mut rest: Vec<_> = headers
        .iter()
        .filter(|(name, _)| **name != http::header::HOST && **name != http::header::USER_AGENT)
        .collect();
    rest.sort_by_key(|(name, _)| name.as_str());
    rest
}

fn title_case(name: &str) -> String {
    let words = name.split('-').map(|word| {
        let mut letters = word.chars();
        letters
            .next()
            .map(|first| first.to_ascii_uppercase().to_string() + letters.as_str())
            .unwrap_or_default()
    });
    words.collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_has_the_lines_that_students_read() {
        let request = http::Request::get("/a?b=c")
            .header("x-forwarded-for", "1.2.3.4")
            .header("accept", "*/*")
            .header("user-agent", "curl/8")
            .header("host", "webpod")
            .body(())
            .unwrap();
        let addresses = ["127.0.0.1".parse().unwrap(), "10.244.1.7".parse().unwrap()];
        let peer = "[::ffff:10.244.0.9]:40000".parse().unwrap();
        assert_eq!(
            answer(None, "webpod-1", &addresses, peer, &request),
            "Hostname: webpod-1\nIP: 127.0.0.1\nIP: 10.244.1.7\nRemoteAddr: 10.244.0.9:40000\n\
             GET /a?b=c HTTP/1.1\nHost: webpod\nUser-Agent: curl/8\nAccept: */*\nX-Forwarded-For: 1.2.3.4\n\n"
        );
    }
}
