//! The run: two labs beside each other, a capture that proves the mode of each, rounds in turns.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::load;
use super::overhead::{self, Headers};
use super::stats::Spread;
use super::{Ends, Mode, Quantity};
use crate::error::{Failure, OrFailure};
use crate::netns::{self, pod_namespaces};
use crate::state::{LAB_VARIABLE, LabState, Running, StateRoot};

/// The lab that both are made from.
const LAB: &str = "native-routing";
/// Who asks, and who answers.
const NODES: [&str; 2] = ["k8s-ctr", "k8s-w1"];
/// The device of the network between nodes.
const DEVICE: &str = "eth1";

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The modes.
    pub modes: [Mode; 2],
    /// Labs are named so, with the mode behind.
    pub name: String,
    /// How often all is measured.
    pub rounds: u32,
    /// How long one measurement takes.
    pub time: Duration,
    /// Where captures are kept; none if they are not.
    pub keep: Option<PathBuf>,
}

/// A run's results.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// How often all was measured.
    pub rounds: u32,
    /// How long each measurement took.
    pub seconds: f64,
    /// The modes.
    pub modes: [Measured; 2],
}

impl Results {
    /// Writes them to a file.
    pub fn write(&self, file: &Path) -> Result<(), Failure> {
        let (thing, mend) = (file.display().to_string(), "give a file that can be written");
        let text = serde_json::to_string_pretty(self).or_failure(&thing, "report this as a bug")?;
        std::fs::write(file, text + "\n").or_failure(thing, mend)
    }

    /// Reads what [`Self::write`] has written.
    pub fn read(file: &Path) -> Result<Self, Failure> {
        let (thing, mend) = (file.display().to_string(), "write it anew: lab compare --save FILE");
        let text = std::fs::read_to_string(file).or_failure(&thing, mend)?;
        serde_json::from_str(&text).or_failure(thing, mend)
    }

    /// One mode's.
    pub fn of(&self, mode: Mode) -> Option<&Measured> {
        self.modes.iter().find(|measured| measured.mode == mode)
    }
}

/// One mode's results.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// The mode.
    pub mode: Mode,
    /// Pods' MTU.
    pub mtu: u32,
    /// Headers of each packet, as they were seen on the wire.
    pub headers: Headers,
    /// Bytes on the wire for a byte of a stream.
    pub wire_bytes_per_byte: f64,
    /// By whom and what.
    pub spreads: Vec<Row>,
}

/// One quantity between one kind of ends.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Between whom.
    pub ends: Ends,
    /// What.
    pub quantity: Quantity,
    /// All rounds.
    #[serde(flatten)]
    pub spread: Spread,
}

impl Measured {
    /// The spread of a quantity.
    pub fn spread(&self, ends: Ends, quantity: Quantity) -> Option<Spread> {
        self.spreads.iter().find(|row| row.ends == ends && row.quantity == quantity).map(|row| row.spread)
    }
}

/// What the lab of a mode is called.
pub fn lab_name(name: &str, mode: Mode) -> String {
    format!("{name}-{mode}")
}

/// The labs of a run; they are taken down when this is dropped.
struct Labs(Vec<String>);

impl Drop for Labs {
    fn drop(&mut self) {
        for name in &self.0 {
            if let Err(failure) = lab(&["down", name]) {
                eprintln!("error: {failure}");
            }
        }
    }
}

/// This program.
fn program(words: &[&str]) -> Result<Command, Failure> {
    let exe = std::env::current_exe()
        .or_failure(format!("lab {}", words.join(" ")), "keep the program where it was started")?;
    let mut command = Command::new(exe);
    command.args(words).env_remove(LAB_VARIABLE).stdin(Stdio::null());
    Ok(command)
}

fn lab(words: &[&str]) -> Result<(), Failure> {
    let thing = format!("lab {}", words.join(" "));
    let output =
        program(words)?.output().or_failure(&thing, "free memory or raise the limit of processes")?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let cause = said.lines().rfind(|l| l.starts_with("error:")).unwrap_or("it failed").to_owned();
    Err(Failure::new(thing, cause.trim_start_matches("error: "), "see: lab doctor"))
}

/// Where the ends of one mode are.
struct Stage {
    mode: Mode,
    name: String,
    ends: BTreeMap<Ends, End>,
}

/// Two namespaces, and the address of the second.
struct End {
    client: File,
    server: File,
    address: Ipv4Addr,
}

fn namespace_of(
    state: &LabState,
    running: &Running,
    node: &str,
) -> Result<(netns::process::Process, File), Failure> {
    let mend = "begin anew: lab compare";
    let init = netns::init_of(state, &running.id, node)
        .ok_or_else(|| Failure::new(format!("node {node}"), "it does not run", mend))?;
    let file = File::open(format!("/proc/{}/ns/net", init.pid)).or_failure(format!("node {node}"), mend)?;
    Ok((init, file))
}

impl Stage {
    fn new(mode: Mode, name: &str) -> Result<Self, Failure> {
        let (state, running) = StateRoot::from_env().pick(Some(name))?;
        let mut nodes = Vec::new();
        let mut pods = Vec::new();
        for node in NODES {
            let (init, namespace) = namespace_of(&state, &running, node)?;
            let found = pod_namespaces(init).or_failure(format!("pods of {node}"), "see: lab doctor")?;
            let pod = found.into_iter().next().ok_or_else(|| {
                Failure::new(format!("pods of {node}"), "there is none", "begin anew: lab compare")
            })?;
            pods.push(pod);
            let address = running.lab.node(node).and_then(crate::lab::Node::internal_ip);
            nodes.push((address.unwrap_or(Ipv4Addr::UNSPECIFIED), namespace));
        }
        let mut ends = BTreeMap::new();
        for (kind, mut both) in [(Ends::Pods, pods), (Ends::Nodes, nodes)] {
            if let (Some((address, server)), Some((_, client))) = (both.pop(), both.pop()) {
                ends.insert(kind, End { client, server, address });
            }
        }
        Ok(Self { mode, name: name.to_owned(), ends })
    }

    fn on<T: Send>(
        &self,
        ends: Ends,
        work: impl FnOnce(SocketAddr) -> std::io::Result<T> + Send,
    ) -> Result<T, Failure> {
        let thing = format!("{}, load between {ends:?}", self.mode).to_lowercase();
        let mend = "see whether they reach each other: lab conformance";
        let end = self.ends.get(&ends).ok_or_else(|| Failure::new(&thing, "there are no such ends", mend))?;
        load::with_server(&end.server, end.address, |at| load::inside(&end.client, || work(at)))
            .or_failure(&thing, mend)
    }

    fn mtu(&self) -> Result<u32, Failure> {
        let (thing, mend) = ("pods' MTU", "report this as a bug");
        let end = self.ends.get(&Ends::Pods).ok_or_else(|| Failure::new(thing, "there are no pods", mend))?;
        let output = load::inside(&end.client, || {
            Command::new("ip").args(["-j", "link", "show", "dev", "eth0"]).output()
        })
        .or_failure(thing, "install iproute2")?;
        let links: serde_json::Value = serde_json::from_slice(&output.stdout).or_failure(thing, mend)?;
        links[0]["mtu"]
            .as_u64()
            .and_then(|mtu| u32::try_from(mtu).ok())
            .ok_or_else(|| Failure::new(thing, "ip did not tell it", mend))
    }

    /// Captures a little of the load on both nodes. The mode is what it is said to be only if the packets say so.
    fn prove(&self, directory: &Path) -> Result<Headers, Failure> {
        let file = directory.join(format!("{}.pcapng", self.mode));
        let path = file.display().to_string();
        let mut words = vec!["capture", "--lab", &self.name, "--for", "1s", "-w", &path];
        let places = NODES.map(|node| format!("{node}:{DEVICE}"));
        for place in &places {
            words.extend(["--on", place]);
        }
        let thing = format!("capture of {}", self.mode);
        let mut capture = Beside::new(program(&words)?, &thing)?;
        capture.wait_for_begin(&thing)?;
        self.on(Ends::Pods, |to| {
            load::questions(to, Duration::from_millis(100))?;
            load::connections(to, Duration::from_millis(100))
        })?;
        capture.end(&thing)?;
        let expect = self.mode.to_string();
        lab(&["check", &path, "--expect", &expect, "--lab", &self.name]).map_err(|_| {
            let mend = format!("see the packets: lab compare --keep DIR, then lab check --expect {expect}");
            Failure::new(format!("lab {}", self.name), "its packets are not those of the mode", mend)
        })?;
        let headers = overhead::headers(&file).or_failure(&thing, "report this as a bug")?;
        headers.ok_or_else(|| Failure::new(thing, "it has no packet of the load", "report this as a bug"))
    }

    fn measure(&self, ends: Ends, time: Duration) -> Result<[f64; 5], Failure> {
        #[expect(clippy::cast_precision_loss, reason = "of as many bytes as are sent in minutes")]
        let (bits, cpu) = self.on(ends, |to| {
            let streamed = load::stream(to, time)?;
            let bits = streamed.bytes as f64 * 8.0 / streamed.time.as_secs_f64() / 1e9;
            Ok((bits, streamed.cpu.as_secs_f64() / (streamed.bytes as f64 / f64::from(1 << 30))))
        })?;
        let (median, tail) = self.on(ends, |to| load::questions(to, time))?;
        let connections = self.on(ends, |to| load::connections(to, time))?;
        Ok([bits, median, tail, connections, cpu])
    }
}

/// A child that is not left behind.
struct Beside(Child);

impl Beside {
    fn new(mut command: Command, thing: &str) -> Result<Self, Failure> {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        Ok(Self(command.spawn().or_failure(thing, "free memory or raise the limit of processes")?))
    }

    fn wait_for_begin(&mut self, thing: &str) -> Result<(), Failure> {
        let bug = "report this as a bug";
        let stderr = self.0.stderr.as_mut().ok_or_else(|| Failure::new(thing, "it is mute", bug))?;
        let mut line = String::new();
        BufReader::new(stderr).read_line(&mut line).or_failure(thing, bug)?;
        if line.starts_with("capturing on") { Ok(()) } else { Err(Failure::new(thing, line.trim(), bug)) }
    }

    fn end(mut self, thing: &str) -> Result<(), Failure> {
        let status = self.0.wait().or_failure(thing, "report this as a bug")?;
        if status.success() { Ok(()) } else { Err(Failure::new(thing, "it failed", "see: lab doctor")) }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Ended already, mostly.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures. `say` is told what is done just now; `stop` ends the run early.
pub fn run(options: &Options, stop: &AtomicBool, say: impl Fn(&str)) -> Result<[Measured; 2], Failure> {
    let temporary = tempfile::tempdir().or_failure("lab compare", "free space in the temporary directory")?;
    let directory = options.keep.as_deref().unwrap_or(temporary.path());
    std::fs::create_dir_all(directory)
        .or_failure(directory.display().to_string(), "give a directory that can be written")?;
    let goes_on = || {
        if stop.load(Ordering::Acquire) {
            return Err(Failure::new("lab compare", "interrupted", "begin anew: lab compare"));
        }
        Ok(())
    };
    let names = options.modes.map(|mode| lab_name(&options.name, mode));
    let root = StateRoot::from_env();
    if let Some(name) = names.iter().find(|name| root.names().contains(name)) {
        return Err(Failure::new(
            format!("lab {name}"),
            "it is there already: another comparison's, or left by one that was killed",
            format!("take it down: lab down {name}; or compare under another name: --name"),
        ));
    }
    let labs = Labs(names.to_vec());
    let mut stages = Vec::new();
    for (mode, name) in options.modes.into_iter().zip(&names) {
        goes_on()?;
        say(&format!("{mode}: lab {name}"));
        let mut words = vec!["up", LAB, "--name", name];
        for value in mode.values() {
            words.extend(["--set", value]);
        }
        lab(&words)?;
        stages.push(Stage::new(mode, name)?);
    }
    let mut proven = Vec::new();
    for stage in &stages {
        goes_on()?;
        say(&format!("{}: what its packets say", stage.mode));
        proven.push((stage.prove(directory)?, stage.mtu()?));
    }
    let mut values: BTreeMap<(Mode, Ends, Quantity), Vec<f64>> = BTreeMap::new();
    for round in 0..options.rounds {
        // In turns, and each first in every other round: what else the machine does meets both alike.
        let order: Vec<&Stage> =
            if round % 2 == 0 { stages.iter().collect() } else { stages.iter().rev().collect() };
        for stage in order {
            for ends in [Ends::Nodes, Ends::Pods] {
                goes_on()?;
                say(&format!("round {} of {}: {}, {ends:?}", round + 1, options.rounds, stage.mode));
                let results = stage.measure(ends, options.time)?;
                for (quantity, value) in Quantity::ALL.into_iter().zip(results) {
                    values.entry((stage.mode, ends, quantity)).or_default().push(value);
                }
            }
        }
    }
    // Their namespaces are held by files: they go before the labs.
    let modes: Vec<Mode> = stages.iter().map(|stage| stage.mode).collect();
    drop(stages);
    drop(labs);
    let measured = modes.into_iter().zip(proven).map(|(mode, (headers, mtu))| Measured {
        mode,
        mtu,
        headers,
        wire_bytes_per_byte: headers.per_byte(mtu),
        spreads: values
            .iter()
            .filter(|((of, ..), _)| *of == mode)
            .filter_map(|((_, ends, quantity), values)| {
                Some(Row { ends: *ends, quantity: *quantity, spread: Spread::of(values)? })
            })
            .collect(),
    });
    measured
        .collect::<Vec<_>>()
        .try_into()
        .map_err(|_| Failure::new("lab compare", "a mode is missing", "report this as a bug"))
}
