//! Probes: ask a container, again and again, whether it has started, lives, and is ready.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::container::handle::Handle;
use super::sandbox::in_netns;

/// First wait before a readiness probe that has never succeeded is repeated. Waits double up to the probe's period, so
/// that a pod is Ready soon after it can be.
const EAGER: Duration = Duration::from_millis(20);
/// Most bytes of an answer that are looked at.
const ANSWER: usize = 512;

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Until it succeeds, the others wait.
    Startup,
    /// Its failure ends the container.
    Liveness,
    /// Its result decides whether the pod gets traffic.
    Readiness,
}

/// A probe's news.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// It now succeeds (reported when this changes).
    Well,
    /// It now fails, with the message for the event.
    Ill(String),
}

/// Where a container can be asked.
#[derive(Clone)]
pub struct Target {
    /// The container.
    pub handle: Handle,
    /// This binary, to run commands in the container.
    pub program: PathBuf,
    /// The pod's network namespace; the node's if `None`.
    pub netns: Option<PathBuf>,
    /// The pod's address.
    pub address: String,
    /// To look up ports by name.
    pub container: Container,
}

/// Thresholds turn single answers into news.
#[derive(Debug)]
pub struct Judge {
    successes: i32,
    failures: i32,
    success_threshold: i32,
    failure_threshold: i32,
    last: Option<bool>,
}

impl Judge {
    /// With the probe's thresholds.
    pub fn new(probe: &Probe) -> Self {
        Self {
            successes: 0,
            failures: 0,
            success_threshold: probe.success_threshold.unwrap_or(1).max(1),
            failure_threshold: probe.failure_threshold.unwrap_or(3).max(1),
            last: None,
        }
    }

    /// Takes one answer in; says what is new.
    pub fn take(&mut self, answer: Result<(), String>) -> Option<News> {
        match answer {
            Ok(()) => {
                self.failures = 0;
                self.successes += 1;
                (self.successes >= self.success_threshold && self.last != Some(true)).then(|| {
                    self.last = Some(true);
                    News::Well
                })
            }
            Err(message) => {
                self.successes = 0;
                self.failures += 1;
                (self.failures >= self.failure_threshold && self.last != Some(false)).then(|| {
                    self.last = Some(false);
                    News::Ill(message)
                })
            }
        }
    }
}

/// Probes until the future is dropped, a startup probe until it has succeeded; `report` takes the news.
pub async fn run(purpose: Purpose, probe: Probe, target: Target, mut report: impl FnMut(News)) {
    let seconds = |value: Option<i32>, default: u64| {
        Duration::from_secs(value.and_then(|s| u64::try_from(s).ok()).unwrap_or(default))
    };
    let period = seconds(probe.period_seconds, 10).max(Duration::from_secs(1));
    let limit = seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1));
    tokio::time::sleep(seconds(probe.initial_delay_seconds, 0)).await;
    let mut judge = Judge::new(&probe);
    let mut eager = (purpose != Purpose::Liveness).then_some(EAGER);
    // Early repetitions must not use up the failures that the probe's author allows in whole periods.
    let mut counted = tokio::time::Instant::now();
    loop {
        let answer = match tokio::time::timeout(limit, ask(&probe, &target)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
        };
        let now = tokio::time::Instant::now();
        let due = now >= counted;
        if answer.is_ok() || due {
            if due {
                counted = now + period;
            }
            let well = answer.is_ok();
            if let Some(news) = judge.take(answer) {
                let over = purpose == Purpose::Startup && news == News::Well;
                report(news);
                if over {
                    return;
                }
            }
            if well {
                eager = None;
            }
        }
        let wait = match &mut eager {
            Some(wait) if *wait < period => {
                let now = *wait;
                *wait *= 2;
                now
            }
            _ => period,
        };
        tokio::time::sleep(wait).await;
    }
}

async fn ask(probe: &Probe, target: &Target) -> Result<(), String> {
    if let Some(exec) = &probe.exec {
        let argv = exec.command.clone().unwrap_or_default();
        return run_command(target, &argv).await;
    }
    if let Some(http) = &probe.http_get {
        return get(http, target).await;
    }
    if let Some(tcp) = &probe.tcp_socket {
        let port = port(&tcp.port, target)?;
        let host = tcp.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(&target.address);
        return connect(target, host, port)
            .await
            .map(drop)
            .map_err(|error| format!("dial tcp {host}:{port}: {error}"));
    }
    if probe.grpc.is_some() {
        return Err("grpc probes are not supported here: use exec, httpGet or tcpSocket".to_owned());
    }
    Err("the probe has no action".to_owned())
}

/// Runs a container's hook to its end.
pub async fn run_hook(hook: &LifecycleHandler, target: &Target) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        return run_command(target, exec.command.as_deref().unwrap_or_default()).await;
    }
    if let Some(http) = &hook.http_get {
        return get(http, target).await;
    }
    if let Some(pause) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(pause.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    Err("only exec, httpGet and sleep hooks are supported here".to_owned())
}

/// Runs a command in the container; its output is the message if it fails.
pub async fn run_command(target: &Target, argv: &[String]) -> Result<(), String> {
    let output = target
        .handle
        .command(&target.program, false, argv)
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text[..text.len().min(ANSWER)]).trim().to_owned();
    Err(format!("command {argv:?} ended with {}: {text}", output.status))
}

fn port(port: &IntOrString, target: &Target) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let ports = target.container.ports.as_deref().unwrap_or_default();
            let named = ports.iter().find(|p| p.name.as_deref() == Some(name)).map(|p| p.container_port);
            named.or_else(|| name.parse().ok())
        }
    };
    number
        .and_then(|number| u16::try_from(number).ok())
        .ok_or_else(|| format!("the container has no port {port:?}: name one of its ports or give a number"))
}

async fn connect(target: &Target, host: &str, port: u16) -> io::Result<TcpStream> {
    let address: SocketAddr = match host.parse() {
        Ok(ip) => SocketAddr::new(ip, port),
        Err(_) => tokio::net::lookup_host((host, port))
            .await?
            .next()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the host has no address"))?,
    };
    // A socket belongs to the namespace in which it is made, wherever it is used.
    let socket = in_netns(target.netns.as_deref(), || {
        if address.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }
    });
    socket?.connect(address).await
}

async fn get(http: &HTTPGetAction, target: &Target) -> Result<(), String> {
    if http.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")) {
        return Err(
            "httpGet probes over HTTPS are not supported here: use HTTP, exec or tcpSocket".to_owned()
        );
    }
    let port = port(&http.port, target)?;
    let host = http.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(&target.address);
    let path = http.path.as_deref().unwrap_or("/");
    let url = format!("http://{host}:{port}/{}", path.trim_start_matches('/'));
    let fail = |error: io::Error| format!("Get \"{url}\": {error}");
    let mut stream = connect(target, host, port).await.map_err(fail)?;
    let headers = http.http_headers.as_deref().unwrap_or_default();
    let own_host = headers.iter().find(|h| h.name.eq_ignore_ascii_case("host")).map(|h| h.value.clone());
    let mut request = format!(
        "GET /{} HTTP/1.1\r\nHost: {}\r\nUser-Agent: kube-probe/podwire\r\nAccept: */*\r\nConnection: close\r\n",
        path.trim_start_matches('/'),
        own_host.unwrap_or_else(|| format!("{host}:{port}"))
    );
    for header in headers.iter().filter(|h| !h.name.eq_ignore_ascii_case("host")) {
        request.extend([header.name.as_str(), ": ", header.value.as_str(), "\r\n"]);
    }
    request += "\r\n";
    stream.write_all(request.as_bytes()).await.map_err(fail)?;
    let mut answer = Vec::new();
    while answer.len() < ANSWER && !answer.contains(&b'\n') {
        if stream.read_buf(&mut answer).await.map_err(fail)? == 0 {
            break;
        }
    }
    match status_code(&answer) {
        Some(200..=399) => Ok(()),
        Some(code) => Err(format!("HTTP probe failed with statuscode: {code}")),
        None => Err(format!("Get \"{url}\": the answer is not HTTP")),
    }
}

fn status_code(answer: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(answer.split(|byte| *byte == b'\r' || *byte == b'\n').next()?).ok()?;
    line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::container::spec::{RunDir, Started};

    #[test]
    fn thresholds_turn_answers_into_news() {
        let probe = Probe { failure_threshold: Some(2), success_threshold: Some(2), ..Probe::default() };
        let mut judge = Judge::new(&probe);
        assert_eq!(judge.take(Ok(())), None);
        assert_eq!(judge.take(Ok(())), Some(News::Well));
        assert_eq!(judge.take(Ok(())), None);
        assert_eq!(judge.take(Err("a".into())), None);
        assert_eq!(judge.take(Ok(())), None, "one success in between starts the count again");
        assert_eq!(judge.take(Err("a".into())), None);
        assert_eq!(judge.take(Err("b".into())), Some(News::Ill("b".into())));
        assert_eq!(judge.take(Err("c".into())), None);
    }

    #[tokio::test]
    async fn a_startup_probe_ends_with_its_success() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let probe: Probe = serde_json::from_value(serde_json::json!({"tcpSocket": {"port": port}})).unwrap();
        let started = Started { shim_pid: 0, shim_start: 0, init_pid: 0, init_start: 0, at: String::new() };
        let target = Target {
            handle: Handle { dir: RunDir(PathBuf::new()), started },
            program: PathBuf::new(),
            netns: None,
            address: "127.0.0.1".to_owned(),
            container: Container::default(),
        };
        let mut news = Vec::new();
        let run = run(Purpose::Startup, probe, target, |one| news.push(one));
        tokio::time::timeout(Duration::from_mins(1), run)
            .await
            .expect("it ends: later failures are not its business");
        assert_eq!(news, [News::Well]);
    }

    #[test]
    fn status_lines() {
        assert_eq!(status_code(b"HTTP/1.1 204 No Content\r\n"), Some(204));
        assert_eq!(status_code(b"SSH-2.0-x\r\n"), None);
        assert_eq!(status_code(b""), None);
    }
}
