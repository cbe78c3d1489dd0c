//! The client. It stands in a pod, to which every call is typed through the API server's exec; the answers come back
//! the same way. When the pod is made anew, the client goes on in the new one.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, AttachParams, AttachedProcess};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::sync::watch;

use super::journal::{Call, Header, Outcome, write_line};
use crate::error::{Failure, OrFailure};

const NAMESPACE: &str = "default";
/// How long an answer may take. A longer one is as bad as none.
const PATIENCE_SECONDS: u32 = 2;
/// When a call whose answer never came back, because its pod has ended, is given up.
const GIVEN_UP: Duration = Duration::from_secs(5);

/// Reads `NUMBER ADDRESS` lines, calls each address in the background and says `NUMBER CURL_EXIT HTTP_CODE`.
const SCRIPT: &str = r#"
echo ready
while read -r n ip; do
  { code=$(curl -s -o /dev/null --max-time "$1" -w '%{http_code}' "http://$ip/"); echo "$n $? $code"; } </dev/null &
done
wait
"#;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The lab's name, for the header.
    pub lab: String,
    /// The pod that calls.
    pub from: String,
    /// The Service whose pods are called.
    pub to: String,
    /// Calls a second.
    pub rate: u32,
}

/// Calls until `stop` says true, and writes the journal to `path`. `begun` is called after the first answer, or once that has
/// been waited for in vain: what cannot be reached can be measured too.
pub async fn run(
    client: Client,
    options: &Options,
    path: &Path,
    mut stop: watch::Receiver<bool>,
    begun: impl FnOnce(),
) -> Result<(), Failure> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    pods.get(&options.from)
        .await
        .or_failure(format!("pod {}", options.from), "name another with --from; see: kubectl get pods")?;
    services
        .get(&options.to)
        .await
        .or_failure(format!("Service {}", options.to), "name another with --to; see: kubectl get services")?;
    let thing = path.display().to_string();
    let mend = "give a writable file with -w";
    let mut file = File::create(path).or_failure(&thing, mend)?;
    write_line(&mut file, &Header::now(&options.lab, &options.from, &options.to, options.rate))
        .or_failure(&thing, mend)?;
    let journal = Writer { file: Arc::new(Mutex::new(file)) };
    let slices = endpoints(&client, &options.to);

    let start = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / options.rate.max(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut connecting = std::pin::pin!(connect(&pods, &options.from));
    let mut hand: Option<Hand> = None;
    let mut begun = Some(begun);
    let mut turn = 0_usize;
    loop {
        tokio::select! {
            _ = stop.changed() => break,
            joined = &mut connecting, if hand.is_none() => {
                hand = Some(Hand::over(joined, journal.clone()));
                connecting.set(connect(&pods, &options.from));
            }
            _ = ticks.tick() => {
                let at = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
                if hand.as_ref().is_some_and(Hand::is_gone) {
                    hand = None;
                }
                let idle = |result, why: &str| Call { at, pod: String::new(), ip: String::new(), result, why: why.into() };
                match (&mut hand, next(&slices, &mut turn)) {
                    (None, _) => journal.write(&idle(Outcome::NotSent, "the client's pod does not run")),
                    (Some(_), None) => journal.write(&idle(Outcome::Lost, "no pod of the Service is Ready")),
                    (Some(hand), Some((pod, ip))) => hand.call(at, pod, ip).await,
                }
                let waited = start.elapsed() > GIVEN_UP;
                if (waited || hand.as_ref().is_some_and(Hand::has_answered)) && let Some(begun) = begun.take() {
                    begun();
                }
            }
        }
    }
    if let Some(hand) = hand {
        hand.finish().await;
    }
    journal.sync().or_failure(thing, mend)
}

/// The Ready pods of the Service, kept up to date in the background.
fn endpoints(client: &Client, service: &str) -> Store<EndpointSlice> {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let (reader, writer) = reflector::store();
    let config = watcher::Config::default().labels(&format!("kubernetes.io/service-name={service}"));
    let stream = watcher(slices, config).default_backoff().reflect(writer).touched_objects();
    tokio::spawn(stream.for_each(|_| futures::future::ready(())));
    reader
}

/// The pod whose turn it is.
fn next(slices: &Store<EndpointSlice>, turn: &mut usize) -> Option<(String, String)> {
    let mut ready: Vec<(String, String)> = slices
        .state()
        .iter()
        .flat_map(|slice| &slice.endpoints)
        .filter(|e| e.conditions.as_ref().is_some_and(|c| c.ready == Some(true)))
        .filter_map(|e| Some((e.target_ref.as_ref()?.name.clone()?, e.addresses.first()?.clone())))
        .collect();
    ready.sort();
    *turn = turn.wrapping_add(1);
    let index = turn.checked_rem(ready.len())?;
    Some(ready.swap_remove(index))
}

/// An exec session in the client's pod, as soon as there is one that runs.
async fn connect(pods: &Api<Pod>, name: &str) -> AttachedProcess {
    loop {
        let running =
            pods.get_opt(name).await.ok().flatten().filter(|p| {
                p.metadata.deletion_timestamp.is_none() && crate::deploy::pod_trouble(p).is_none()
            });
        if let Some(pod) = running {
            let patience = PATIENCE_SECONDS.to_string();
            let words = ["sh", "-c", SCRIPT, "client", patience.as_str()];
            let params = AttachParams::default().stdin(true).stdout(true).stderr(false);
            if let Ok(process) = pods.exec(&pod.name_any(), words, &params).await {
                return process;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The journal, written to by whoever has a result.
#[derive(Clone)]
struct Writer {
    file: Arc<Mutex<File>>,
}

impl Writer {
    fn write(&self, call: &Call) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = write_line(&mut file, call) {
            eprintln!("the journal: {error}");
        }
    }

    fn sync(&self) -> std::io::Result<()> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).sync_all()
    }
}

/// Calls whose answer has not come yet.
#[derive(Default)]
struct Waiting {
    calls: HashMap<u64, (Call, Instant)>,
    answered: bool,
    /// The session is over.
    closed: bool,
}

/// The client's hand in its pod.
struct Hand {
    input: Option<Box<dyn tokio::io::AsyncWrite + Unpin + Send>>,
    waiting: Arc<Mutex<Waiting>>,
    reading: tokio::task::JoinHandle<()>,
    journal: Writer,
    number: u64,
}

fn lock(waiting: &Mutex<Waiting>) -> std::sync::MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hand {
    fn over(mut process: AttachedProcess, journal: Writer) -> Self {
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let input = process.stdin().map(|i| Box::new(i) as Box<dyn tokio::io::AsyncWrite + Unpin + Send>);
        let output = process.stdout();
        let (shared, own) = (Arc::clone(&waiting), journal.clone());
        let reading = tokio::spawn(async move {
            if let Some(output) = output {
                let mut lines = BufReader::new(output).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    answer(&shared, &own, &line);
                }
            }
            lock(&shared).closed = true;
            drop(process);
        });
        Self { input, waiting, reading, journal, number: 0 }
    }

    fn is_gone(&self) -> bool {
        let mut waiting = lock(&self.waiting);
        let now = Instant::now();
        let old: Vec<u64> = waiting
            .calls
            .iter()
            .filter(|(_, (_, sent))| waiting.closed || now.duration_since(*sent) > GIVEN_UP)
            .map(|(number, _)| *number)
            .collect();
        for number in old {
            if let Some((call, _)) = waiting.calls.remove(&number) {
                // The client itself has ended with the call under way: nobody was left who could miss the answer.
                let (result, why) = (Outcome::NotSent, "the client's pod ended during the call");
                self.journal.write(&Call { result, why: why.into(), ..call });
            }
        }
        waiting.closed
    }

    fn has_answered(&self) -> bool {
        lock(&self.waiting).answered
    }

    async fn call(&mut self, at: u64, pod: String, ip: String) {
        self.number += 1;
        let line = format!("{} {ip}\n", self.number);
        let call = Call { at, pod, ip, result: Outcome::Lost, why: String::new() };
        lock(&self.waiting).calls.insert(self.number, (call, Instant::now()));
        let sent = match &mut self.input {
            Some(input) => match input.write_all(line.as_bytes()).await {
                Ok(()) => input.flush().await.is_ok(),
                Err(_) => false,
            },
            None => false,
        };
        if !sent {
            lock(&self.waiting).closed = true;
        }
    }

    /// Waits for the calls that are under way.
    async fn finish(mut self) {
        self.input = None;
        let end = Instant::now() + GIVEN_UP;
        while !self.is_gone() && !lock(&self.waiting).calls.is_empty() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.reading.abort();
    }
}

/// Takes a line of the script.
fn answer(waiting: &Mutex<Waiting>, journal: &Writer, line: &str) {
    let mut words = line.split(' ');
    let (Some(number), Some(exit), Some(code)) = (words.next(), words.next(), words.next()) else { return };
    let mut waiting = lock(waiting);
    let Some((call, _)) = number.parse().ok().and_then(|n: u64| waiting.calls.remove(&n)) else { return };
    let (result, why) = match (exit, code) {
        ("0", "200") => (Outcome::Answered, String::new()),
        ("0", code) => (Outcome::Lost, format!("HTTP {code}")),
        ("7", _) => (Outcome::Lost, "connection refused or no route".into()),
        ("28", _) => (Outcome::Lost, format!("no answer within {PATIENCE_SECONDS} s")),
        ("52" | "56", _) => (Outcome::Lost, "connection broken".into()),
        (exit, _) => (Outcome::Lost, format!("curl: exit code {exit}")),
    };
    waiting.answered |= result == Outcome::Answered;
    journal.write(&Call { result, why, ..call });
}
