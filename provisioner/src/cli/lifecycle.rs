//! `lab up`, `lab down`, `lab list`.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use clap::{Args, ValueEnum};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use podwire_api::values::Values;
use serde_json::{Map, Value};

use super::{Ended, Format, Output, Programs, print_json, print_text};
use crate::deploy;
use crate::error::{Failure, OrFailure};
use crate::forward;
use crate::lab::{Lab, Source};
use crate::netns;
use crate::plan::{self, Places};
use crate::progress::Progress;
use crate::record::{Entry, Record};
use crate::state::{LabState, Running, StateRoot};

/// The lab that is meant when none is named.
pub(super) const DEFAULT_LAB: &str = "native-routing";

/// Bring a lab up.
#[derive(Args)]
pub(super) struct Up {
    /// A built-in lab's name, or the path of a lab file or of its directory
    #[arg(default_value = DEFAULT_LAB)]
    lab: String,
    /// Name the lab otherwise, to run the same one twice
    #[arg(long)]
    name: Option<String>,
    /// What makes the machines
    #[arg(long, value_enum, default_value_t = Provider::Netns)]
    provider: Provider,
    #[command(flatten)]
    values: ValueArgs,
    /// An app besides those of the lab, for example coredns
    #[arg(long = "app", value_name = "APP")]
    apps: Vec<String>,
    /// Show what would be made, and make nothing
    #[arg(long)]
    dry_run: bool,
    /// Make the machines and leave the cluster alone
    #[arg(long)]
    no_deploy: bool,
    /// Seconds until everything must be ready
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
    #[command(flatten)]
    programs: Programs,
    #[command(flatten)]
    format: Format,
}

#[derive(ValueEnum, Clone, Copy)]
enum Provider {
    /// Network namespaces of this machine
    Netns,
}

/// The agent's values, over those of the lab.
#[derive(Args, Clone)]
pub(super) struct ValueArgs {
    /// A TOML file of values
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// One value, for example routingMode=native
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

impl ValueArgs {
    /// Lays these values over the lab's and plans it with them.
    fn plan(&self, lab: &mut Lab, state: &LabState, bin_dir: &Path) -> Result<plan::Plan, Ended> {
        lab.values = self.over(std::mem::take(&mut lab.values))?;
        let values = lab.typed_values().map_err(|e| Ended::Wrong(format!("values: {e}")))?;
        Ok(plan::plan(lab, &values, &Places { state: state.dir(), bin_dir: bin_dir.to_owned() }))
    }

    /// Lays the files, then the `--set` arguments over `base`.
    pub(super) fn over(&self, mut base: Map<String, Value>) -> Result<Map<String, Value>, Ended> {
        for file in &self.files {
            let wrong = |cause: String| Ended::Wrong(format!("{}: {cause}", file.display()));
            let text = std::fs::read_to_string(file)
                .map_err(|e| wrong(format!("{e}; give a readable TOML file")))?;
            let table: Map<String, Value> = toml::from_str(&text).map_err(|e| {
                wrong(format!("{}; mend the syntax", e.to_string().trim().replace('\n', " ")))
            })?;
            refuse(&table, &file.display().to_string())?;
            merge(&mut base, table);
        }
        let mut sets = Map::new();
        Values::apply_sets(&mut sets, &self.sets).map_err(|e| Ended::Wrong(e.to_string()))?;
        refuse(&sets, "--set")?;
        Values::apply_sets(&mut base, &self.sets).map_err(|e| Ended::Wrong(e.to_string()))?;
        Values::from_value(Value::Object(base.clone())).map_err(|e| Ended::Wrong(format!("values: {e}")))?;
        Ok(base)
    }
}

/// Wrong keys and types are said of the place that they come from.
fn refuse(values: &Map<String, Value>, place: &str) -> Result<(), Ended> {
    let errors = crate::lab::shape_errors(values);
    if errors.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = errors.iter().map(|error| format!("{place}: {error}")).collect();
    Err(Ended::Wrong(lines.join("\n")))
}

/// Later tables win, key by key.
fn merge(base: &mut Map<String, Value>, over: Map<String, Value>) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Object(below)), Value::Object(above)) => merge(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

impl Up {
    pub(super) fn run(self) -> Result<(), Ended> {
        let Provider::Netns = self.provider;
        let source = Source::find(&self.lab)?;
        let mut lab = Lab::parse(&source)?;
        for app in &self.apps {
            lab.add_app(&source, app).map_err(|cause| Ended::Wrong(format!("--app: {cause}")))?;
        }
        if let Some(name) = &self.name {
            lab.rename(name).map_err(|cause| Ended::Wrong(format!("--name {name:?} {cause}")))?;
        }
        let needed = match (self.dry_run, self.no_deploy) {
            (true, _) => &[][..],
            (false, true) => &super::PROGRAMS[..1],
            (false, false) => &super::PROGRAMS,
        };
        let bin_dir = self.programs.with(needed)?;
        let state = StateRoot::from_env().lab(&lab.name);
        // Wrong values are refused before anything is made.
        let plan = self.values.plan(&mut lab.clone(), &state, &bin_dir)?;
        if self.dry_run {
            return match self.format.output {
                Output::Json => print_json(&plan),
                Output::Text => {
                    print_text(&plan.to_string());
                    Ok(())
                }
            };
        }
        let mut progress = Progress::new();
        progress.begin("machines");
        let name = lab.name.clone();
        let lock = state.lock(|| eprintln!("another command works on lab {name:?}; waiting for it"))?;
        on_interrupt(&name);
        let is_new = !state.dir().exists();
        let mut again = deploy::MadeAgain::from_now();
        let made = match self.machines(&state, lab, bin_dir, &mut progress) {
            Ok(made) => made,
            // What failed in a cluster is there to be looked at. Of a lab that has no machines nothing is worth keeping.
            Err((ended, false)) if is_new => {
                match netns::down(&state) {
                    Ok(()) => {
                        lock.remove();
                        eprintln!("what was made of lab {name} is removed again");
                    }
                    Err(failure) => eprintln!("error: {failure}"),
                }
                return Err(ended);
            }
            Err((ended, _)) => return Err(ended),
        };
        if !self.no_deploy {
            if !is_new {
                again.add(&made.names);
            }
            self.deploy(&made.running, &made.kubeconfig, again, &mut progress)?;
        }
        let (whole, parts) = progress.finish();
        self.summary(&made.running, &made.names, whole, &parts)
    }

    /// Makes the machines. The error says whether it is the cluster that failed, on machines that stand.
    fn machines(
        &self,
        state: &LabState,
        lab: Lab,
        bin_dir: PathBuf,
        progress: &mut Progress,
    ) -> Result<Made, (Ended, bool)> {
        let failed = |failure: Failure| (Ended::from(failure), false);
        let running = self.begin(state, lab, bin_dir).map_err(|ended| (ended, false))?;
        deploy::make_credentials(state, &running.lab).map_err(failed)?;
        let mut record = Record::open(&state.dir()).map_err(failed)?;
        let note = || record.note(Entry::Process { what: "forwarder to the API server".into() });
        let forwarder = forward::ensure(state, &running, note).map_err(failed)?;
        let kubeconfig = deploy::host_kubeconfig(state, forwarder.port).map_err(failed)?;
        let mut cluster_failed = false;
        let names = netns::up(state, &running, record, || {
            if self.no_deploy {
                return Ok(());
            }
            // As with kubeadm the control plane's node is the first one, so it has the first pod CIDR.
            progress.begin("control plane");
            let first = deploy::wait_first_node(&kubeconfig, &running.lab, self.patience());
            let registered = super::runtime().and_then(|runtime| runtime.block_on(first));
            cluster_failed = registered.is_err();
            registered
        });
        match names {
            Ok(names) => Ok(Made { running, kubeconfig, names }),
            Err(failure) => Err((failure.into(), cluster_failed)),
        }
    }

    /// Begins a lab's state, or takes up the one that is there: then its values stay unless new ones are given.
    fn begin(&self, state: &LabState, mut lab: Lab, bin_dir: PathBuf) -> Result<Running, Ended> {
        if let Some(before) = state.running() {
            let without_values = |lab: &Lab| Lab { values: Map::new(), ..lab.clone() };
            if without_values(&before.lab) != without_values(&lab) || before.bin_dir != bin_dir {
                let name = state.name();
                let cause = "it runs already, made of another lab file or by other programs";
                let mend = format!(
                    "take it down first: lab down {name}; or name this one otherwise: lab up --name other"
                );
                return Err(Failure::new(format!("lab {name:?}"), cause, mend).into());
            }
            lab.values = before.lab.values;
            // Machines stay as they are; new values reach the agents through their ConfigMap.
            self.values.plan(&mut lab, state, &bin_dir)?;
            let running = Running { lab, ..before };
            state.set_running(&running)?;
            return Ok(running);
        }
        let plan = self.values.plan(&mut lab, state, &bin_dir)?;
        state.create()?;
        let mut record = Record::open(&state.dir())?;
        let recorded = record.entries().iter().find_map(|e| match e {
            Entry::Lab { id } => Some(id.clone()),
            _ => None,
        });
        let id = if let Some(id) = recorded {
            id
        } else {
            let id =
                std::fs::read_to_string("/proc/sys/kernel/random/uuid").or_failure("lab", "mount /proc")?;
            let id = id.trim().to_owned();
            record.note(Entry::Lab { id: id.clone() })?;
            id
        };
        let running = Running { id, lab, plan, bin_dir };
        state.set_running(&running)?;
        Ok(running)
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    fn deploy(
        &self,
        running: &Running,
        kubeconfig: &str,
        again: deploy::MadeAgain,
        progress: &mut Progress,
    ) -> Result<(), Ended> {
        let values = running.lab.typed_values().map_err(|e| Ended::Wrong(format!("values: {e}")))?;
        let nodes: Vec<String> = running.lab.kubernetes_nodes().map(|n| n.name.clone()).collect();
        progress.begin("agents");
        let ready = super::runtime()?.block_on(async {
            let client = deploy::connect(kubeconfig, self.patience().min(deploy::API_PATIENCE)).await?;
            deploy::install(&client, &running.lab, &values).await?;
            deploy::wait_ready(&client, &nodes, again, self.patience(), |what| progress.tell(what)).await
        })?;
        progress.turn(ready.agents, "apps");
        Ok(())
    }

    /// What was made, how long each part took, and what to type next.
    fn summary(
        &self,
        running: &Running,
        made: &[String],
        whole: Duration,
        parts: &[(String, Duration)],
    ) -> Result<(), Ended> {
        let name = &running.lab.name;
        if self.format.output == Output::Json {
            let parts: Map<String, Value> =
                parts.iter().map(|(part, took)| (part.clone(), took.as_secs_f64().into())).collect();
            return print_json(&serde_json::json!({
                "lab": name, "made": made, "seconds": whole.as_secs_f64(), "parts": parts,
            }));
        }
        if made.is_empty() {
            eprintln!("every machine was there");
        } else if made.len() < running.plan.machines.len() {
            eprintln!("made again: {}", made.join(", "));
        }
        let parts: Vec<String> =
            parts.iter().map(|(part, took)| format!("{part} {:.2}", took.as_secs_f64())).collect();
        eprintln!("lab {name} up in {:.2} s: {}", whole.as_secs_f64(), parts.join(", "));
        if !self.no_deploy {
            let node = running.lab.control_plane().map_or("NODE", |n| n.name.as_str());
            eprintln!(
                "next: lab status; lab exec {node} -- kubectl get pods -o wide; lab conformance {name}; lab down {name}"
            );
        }
        Ok(())
    }
}

/// A lab whose machines stand.
struct Made {
    running: Running,
    kubeconfig: String,
    /// The machines that were made now.
    names: Vec<String>,
}

/// Ctrl-C: nothing is half recorded, so stopping is safe; the user learns how to remove what was made.
fn on_interrupt(lab: &str) {
    static MESSAGE: OnceLock<String> = OnceLock::new();
    extern "C" fn stop(_: i32) {
        let text = MESSAGE.get().map_or("", String::as_str);
        // SAFETY: write and _exit are async-signal-safe; the text lives as long as the program.
        unsafe {
            libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
            libc::_exit(130);
        }
    }
    MESSAGE.get_or_init(|| format!("\ninterrupted; lab down {lab} removes what was made, lab up goes on\n"));
    let action = SigAction::new(SigHandler::Handler(stop), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler only makes async-signal-safe calls.
    let _ = unsafe { sigaction(Signal::SIGINT, &action) };
}

/// Take a lab down.
#[derive(Args)]
pub(super) struct Down {
    /// The lab's name, or the path of its file; default: the one that runs
    lab: Option<String>,
    /// Every lab
    #[arg(long, conflicts_with = "lab")]
    all: bool,
}

impl Down {
    pub(super) fn run(self) -> Result<(), Ended> {
        let root = StateRoot::from_env();
        let names = match self.lab {
            _ if self.all => root.names_with_traces(),
            Some(lab) => vec![Lab::name_of(&lab)?],
            None => match root.names() {
                names if names.len() < 2 => names,
                names => {
                    return Err(Ended::Wrong(format!(
                        "lab down: several labs run; say which, or --all: {}",
                        names.join(", ")
                    )));
                }
            },
        };
        if names.is_empty() {
            eprintln!("no lab is up");
        }
        for name in names {
            let state = root.lab(&name);
            if !state.exists() {
                eprintln!("lab {name} is not up");
                continue;
            }
            let lock = state.lock(|| eprintln!("another command works on lab {name:?}; waiting for it"))?;
            netns::down(&state)?;
            lock.remove();
            eprintln!("lab {name} is down");
        }
        root.remove_if_empty();
        Ok(())
    }
}

/// Labs that exist and labs that run.
pub(super) fn list(output: Output) -> Result<(), Ended> {
    let root = StateRoot::from_env();
    let running: Vec<(String, Option<Running>)> =
        root.names().into_iter().map(|n| (n.clone(), root.lab(&n).running())).collect();
    let mut rows = Vec::new();
    for name in crate::lab::embedded_names() {
        let lab = Lab::load(&name)?;
        let up = running.iter().any(|(n, _)| *n == lab.name);
        rows.push((lab.name, lab.week, lab.title, lab.nodes.len(), up));
    }
    for (name, lab) in &running {
        if rows.iter().any(|r| r.0 == *name) {
            continue;
        }
        let lab = lab.as_ref().map(|r| &r.lab);
        let title = lab.map_or_else(|| "half made; lab down removes it".into(), |l| l.title.clone());
        rows.push((name.clone(), lab.and_then(|l| l.week), title, lab.map_or(0, |l| l.nodes.len()), true));
    }
    if output == Output::Json {
        let json: Vec<Value> = rows
            .iter()
            .map(|(name, week, title, nodes, up)| {
                serde_json::json!({"name": name, "week": week, "title": title, "nodes": nodes, "running": up})
            })
            .collect();
        return print_json(&json);
    }
    print_text(&format!("{:<20} {:<5} {:<6} {:<8} {}\n", "NAME", "WEEK", "NODES", "STATE", "TITLE"));
    for (name, week, title, nodes, up) in rows {
        let week = week.map_or_else(|| "-".to_owned(), |w| w.to_string());
        let state = if up { "running" } else { "-" };
        print_text(&format!("{name:<20} {week:<5} {nodes:<6} {state:<8} {title}\n"));
    }
    Ok(())
}
