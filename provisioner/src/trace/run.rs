//! Carries a trace out: taps, sends the probe, and asks machines about what became of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use kube::{Api, Client};
use podwire_conformance::capture::{self, CaptureOptions, CaptureStats, PacketTap};

use super::Protocol;
use super::evidence::Evidence;
use super::explain::Case;
use super::follow::{follow, unanswered};
use super::look::look;
use super::monitor::Monitor;
use super::plan::{self, Plan, Problem, Tap};
use super::probe::{self, Outcome, Probe};
use super::route::{Ask, Told};
use super::show::{self, Trace};
use super::sighting;
use super::world::World;
use crate::access;
use crate::capturing::Capturing;
use crate::error::{Failure, OrFailure};
use crate::netns::{namespace, pod_namespaces};
use crate::state::{LabState, Running};

/// What a user may choose.
pub struct Options {
    /// What the probe speaks; by default what fits the destination.
    pub protocol: Option<Protocol>,
    /// How long the probe waits for an answer.
    pub timeout: Duration,
    /// Where to keep the capture.
    pub write: Option<PathBuf>,
    /// ` --lab NAME` where a command that is recommended needs it.
    pub flag: String,
}

/// Bytes of a packet that are looked at: headers, those of an encapsulation, and the probe's token.
const SNAPLEN: u32 = 512;
/// What running the probe may take beyond its own patience.
const MARGIN: Duration = Duration::from_secs(10);

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Traces one flow from `from` to `to`.
pub async fn run(
    state: &LabState,
    running: &Running,
    from: &str,
    to: &str,
    options: &Options,
) -> Result<Trace, Problem> {
    let client = access::client(state, running, access::QUICK).await?;
    let world = look(&client, state, running).await?;
    let plan = plan::plan(&world, from, to, options.protocol)?;
    let seed = RandomState::new().build_hasher().finish();
    let probe = probe::probe(plan.protocol, plan.target.address, plan.port, options.timeout, seed);

    let (taps, open, mut lost) = open(state, running, &plan, &world)?;
    let (monitors, mut notes) = listen(state, running).await?;
    // Without a name: however this ends, nothing is left.
    let directory = state.dir();
    let nameless = tempfile::tempfile_in(&directory)
        .or_failure(directory.display().to_string(), "run as root, and free space there")?;
    let temporary = PathBuf::from(format!("/proc/self/fd/{}", nameless.as_raw_fd()));
    let file = options.write.as_deref().unwrap_or(&temporary);
    let capture = Capturing::begin(open, capture_options(&plan)?, file).await?;
    let outcome = send(&client, state, running, &plan, &probe, options.timeout).await;
    let captured = capture.end().await?;
    let ended = tokio::task::spawn_blocking(|| monitors.into_iter().map(Monitor::end).collect::<Vec<_>>());
    let (mut drops, mut troubles) = (Vec::new(), Vec::new());
    for (dropped, trouble) in ended.await.or_failure("monitors", "report this as a bug")? {
        drops.extend(dropped);
        troubles.extend(trouble);
    }
    notes.extend(troubles);
    lost.extend(lost_by_taps(&captured));
    if options.write.is_some() {
        eprintln!("{} packets in {}", captured.written, file.display());
    }

    let sightings =
        sighting::read(file, probe.mark).or_failure(file.display().to_string(), "report this as a bug")?;
    let journey = follow(&sightings, &taps, &world, &plan.source);
    if let (None, Outcome::Odd(why)) = (&journey, &outcome) {
        let mend = format!("run it yourself: {}", by_hand(&plan, &probe));
        return Err(Failure::new(format!("the probe from {}", plan.source.name), why, mend).into());
    }
    let case =
        Case { world: &world, plan: &plan, taps: &taps, journey: journey.as_ref(), flag: &options.flag };
    let routes = ask(state, running, case.questions(&outcome)).await?;
    let evidence = Evidence { outcome, drops, arp: unanswered(&sightings, &taps), lost, notes, routes };
    let finding = case.explain(&evidence);
    Ok(show::trace(&world, &plan, &taps, journey.as_ref(), &evidence, finding))
}

/// Taps, where they are, and in words those that could not be opened.
type Opened = (Vec<Tap>, Vec<Box<dyn podwire_conformance::Tap>>, Vec<String>);

/// Opens every tap that is needed. Without the one inside the pod that sends nothing can be followed.
fn open(state: &LabState, running: &Running, plan: &Plan, world: &World) -> Result<Opened, Failure> {
    let planned = plan.taps(world);
    let mut inside: BTreeMap<String, BTreeMap<Ipv4Addr, File>> = BTreeMap::new();
    for tap in planned.iter().filter(|tap| tap.pod.is_some()) {
        if !inside.contains_key(&tap.machine) {
            let init = access::node_init(state, running, &tap.machine)?;
            let thing = format!("pods of {}", tap.machine);
            let found = pod_namespaces(init).or_failure(thing, "repair the lab: lab up")?;
            inside.insert(tap.machine.clone(), found);
        }
    }
    // The kernel takes tens of milliseconds for each, so all are opened at once.
    let opened: Vec<_> = std::thread::scope(|scope| {
        let inside = &inside;
        let threads: Vec<_> =
            planned.iter().map(|tap| scope.spawn(move || open_one(running, tap, inside))).collect();
        let panicked = || Err(Failure::new("taps", "a worker panicked", "report this as a bug"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panicked())).collect()
    });
    let (mut taps, mut open, mut lost) =
        (Vec::new(), Vec::<Box<dyn podwire_conformance::Tap>>::new(), Vec::new());
    for (tap, opened) in planned.into_iter().zip(opened) {
        match opened {
            Ok(one) => {
                open.push(Box::new(one));
                taps.push(tap);
            }
            Err(why) if is_source(plan, &tap) => return Err(why),
            Err(why) => {
                lost.push(format!("{}:{} could not be tapped: {}", tap.place(), tap.device, why.cause));
            }
        }
    }
    Ok((taps, open, lost))
}

/// Inside the pod that sends.
fn is_source(plan: &Plan, tap: &Tap) -> bool {
    let ip = plan.source.pod.as_ref().and_then(|pod| pod.ip);
    tap.device == plan::POD_DEVICE && tap.pod.as_ref().is_some_and(|(_, own)| Some(*own) == ip)
}

fn open_one(
    running: &Running,
    tap: &Tap,
    inside: &BTreeMap<String, BTreeMap<Ipv4Addr, File>>,
) -> Result<PacketTap, Failure> {
    let thing = format!("tap {}:{}", tap.place(), tap.device);
    let mend = "see: lab status";
    let of_machine;
    let file = if let Some((_, ip)) = &tap.pod {
        let known = inside.get(&tap.machine).and_then(|pods| pods.get(ip));
        let cause = format!("no network namespace of {} has {ip}", tap.machine);
        known.ok_or_else(|| Failure::new(&thing, cause, mend))?
    } else {
        let name = crate::plan::namespace(&running.lab.name, &tap.machine);
        of_machine = namespace::open(&name).or_failure(&thing, "repair the lab: lab up")?;
        &of_machine
    };
    capture::open_short_packet_tap(Some(file.as_fd()), tap.place(), &tap.device, SNAPLEN)
        .or_failure(thing, mend)
}

/// Only what can be of the flow: others may send much more than a probe.
fn capture_options(plan: &Plan) -> Result<CaptureOptions, Failure> {
    // Datagrams may hold the flow, wrapped.
    let mut filter = "arp or icmp or udp".to_owned();
    if plan.protocol == Protocol::Tcp {
        filter.extend(plan.ports().iter().map(|port| format!(" or tcp port {port}")));
    }
    Ok(CaptureOptions {
        filter: Some(filter.parse().or_failure("capture", "report this as a bug")?),
        snaplen: SNAPLEN,
        comment: Some(format!("lab trace {} {}", plan.source.name, plan.target.address)),
        ..CaptureOptions::default()
    })
}

/// Listens to every agent; in words, those that cannot be listened to.
async fn listen(state: &LabState, running: &Running) -> Result<(Vec<Monitor>, Vec<String>), Failure> {
    let names = running.lab.kubernetes_nodes().map(|node| node.name.clone());
    let begun = names.map(|node| {
        let (state, running) = (state.clone(), running.clone());
        tokio::task::spawn_blocking(move || {
            Monitor::begin(&state, &running, &node)
                .map_err(|why| format!("what the agent of {node} drops is not known: {why}"))
        })
    });
    let (mut monitors, mut notes) = (Vec::new(), Vec::new());
    for begun in futures::future::join_all(begun).await {
        match begun.or_failure("monitors", "report this as a bug")? {
            Ok(monitor) => monitors.push(monitor),
            Err(why) => notes.push(why),
        }
    }
    Ok((monitors, notes))
}

/// Sends the probe from inside the pod, or on the machine.
async fn send(
    client: &Client,
    state: &LabState,
    running: &Running,
    plan: &Plan,
    probe: &Probe,
    timeout: Duration,
) -> Outcome {
    let said = if let Some(pod) = &plan.source.pod {
        let pods: Api<core::Pod> = Api::namespaced(client.clone(), &pod.namespace);
        let argv: Vec<&str> = probe.argv.iter().map(String::as_str).collect();
        access::exec_in_pod(&pods, &pod.name, &argv, timeout + MARGIN).await
    } else {
        let (state, running, machine) = (state.clone(), running.clone(), plan.source.machine.clone());
        let argv = probe.argv.clone();
        let work = tokio::task::spawn_blocking(move || said_on(&state, &running, &machine, &argv));
        match tokio::time::timeout(timeout + MARGIN, work).await {
            Ok(Ok(said)) => said,
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => Err("it did not end".into()),
        }
    };
    probe::outcome(plan.protocol, said)
}

/// What a command says on a machine: standard output, or its exit code and complaint.
fn said_on(state: &LabState, running: &Running, machine: &str, argv: &[String]) -> Result<String, String> {
    let words: Vec<&str> = argv.iter().map(String::as_str).collect();
    let output = access::output_on(state, running, machine, &words).map_err(|e| e.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let code = output.status.code().unwrap_or(255);
    let said = [text(&output.stderr), text(&output.stdout)].into_iter().find(|said| !said.is_empty());
    Err(format!("exit code {code}: {}", said.unwrap_or_default()))
}

/// The probe as a user types it.
fn by_hand(plan: &Plan, probe: &Probe) -> String {
    let command = probe.argv.join(" ");
    match &plan.source.pod {
        Some(pod) => format!("kubectl -n {} exec {} -- {command}", pod.namespace, pod.name),
        None => format!("lab exec {} -- {command}", plan.source.machine),
    }
}

/// Why the capture is not whole.
fn lost_by_taps(stats: &CaptureStats) -> Vec<String> {
    let of = |interface: &capture::InterfaceStats| {
        let dropped = interface.kernel.dropped;
        match &interface.lost {
            Some(why) => Some(format!("{} went away while it was tapped: {why}", interface.name)),
            None if dropped > 0 => Some(format!("the tap at {} lost {dropped} packets", interface.name)),
            None => None,
        }
    };
    stats.interfaces.iter().filter_map(of).collect()
}

/// Asks routing tables.
async fn ask(state: &LabState, running: &Running, asks: Vec<Ask>) -> Result<BTreeMap<Ask, Told>, Failure> {
    let (state, running) = (state.clone(), running.clone());
    let work = tokio::task::spawn_blocking(move || {
        asks.into_iter()
            .map(|ask| {
                let said = |argv: &[String]| said_on(&state, &running, &ask.machine, argv);
                let route = said(&ask.get());
                let rules = said(&["nft".into(), "list".into(), "ruleset".into()]);
                let told = Told {
                    route: Told::read_route(route.as_deref().map_err(String::as_str)),
                    matching: said(&ask.matching())
                        .ok()
                        .and_then(|text| serde_json::from_str(&text).ok())
                        .unwrap_or_default(),
                    silent: said(&["ip".into(), "-j".into(), "neigh".into()])
                        .map(|text| Told::read_silent(&text))
                        .unwrap_or_default(),
                    forwards: ask.forwards().and_then(|argv| said(&argv).ok()).map(|text| text.trim() == "1"),
                    reverse_path: ask
                        .reverse_path()
                        .and_then(|argv| said(&argv).ok())
                        .is_some_and(|text| text.split_whitespace().any(|mode| mode != "0")),
                    // A machine without nft has no rules of it.
                    rules: rules.map(|text| Told::read_rules(&text)).unwrap_or_default(),
                };
                (ask, told)
            })
            .collect()
    });
    work.await.or_failure("routing tables", "report this as a bug")
}
