//! The worker of one pod: brings sandbox and containers to what the pod says, follows what happens to them, reports the
//! status, and takes everything away in the end. One task a pod; it sleeps until something has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{ConfigMap, Container, ObjectReference, Pod, PodStatus, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Resource as _, ResourceExt as _};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Node;
use super::bundle::{self, PodContext, host_network};
use super::cni::{Attachment, CniError, NetworkConfig};
use super::container::handle::{self, Handle, StartError, runs};
use super::container::spec::Exited;
use super::env::{self, Addresses, Sources};
use super::probes::{self, News, Purpose, Target};
use super::sandbox::Namespaces;
use super::slot::Slot;
use super::state::PodState;
use super::status::{State, phase, pod_status};
use super::volumes;
use crate::controllers::events::Severity;
use crate::controllers::meta::{is_conflict, is_not_found, or_gone};
use crate::images;

/// First wait before a sandbox is tried again.
const SANDBOX_RETRY_MIN: Duration = Duration::from_millis(250);
/// Longest wait.
const SANDBOX_RETRY_MAX: Duration = Duration::from_secs(5);
/// First wait before volumes are tried again (a new namespace's account may be a moment away).
const VOLUME_RETRY: Duration = Duration::from_millis(50);
/// Wait before what could not be configured (a missing ConfigMap) is tried again.
const CONFIG_RETRY: Duration = Duration::from_secs(2);
/// How long ErrImagePull is shown before ImagePullBackOff.
const IMAGE_BACKOFF_AFTER: Duration = Duration::from_secs(1);
/// Grace that a pod has if it says nothing.
const GRACE: i64 = 30;
/// How many runs of a container are kept: the present one and the one for `logs --previous`.
const KEPT_RUNS: usize = 2;

/// What a worker is told.
pub enum Message {
    /// The pod as it is now.
    Pod(Arc<Pod>),
    /// The API server knows the pod no longer.
    Gone,
    /// A run of a container has ended.
    Ended {
        /// The container.
        container: String,
        /// Number of the run.
        run: u32,
        /// How.
        exited: Exited,
    },
    /// A probe has news.
    Probe {
        /// The container.
        container: String,
        /// Number of the run.
        run: u32,
        /// What the probe is for.
        purpose: Purpose,
        /// What it found.
        news: News,
    },
}

/// See the module.
pub struct Worker {
    node: Arc<Node>,
    uid: String,
    dir: PathBuf,
    pod: Option<Arc<Pod>>,
    state: PodState,
    slots: Vec<Slot>,
    volumes: Option<BTreeMap<String, PathBuf>>,
    refresh: Option<Timestamp>,
    sandbox_ready: bool,
    sandbox_failures: u32,
    volume_failures: u32,
    sandbox_not_before: Option<Instant>,
    published: PodStatus,
    written: Value,
    sender: mpsc::UnboundedSender<Message>,
    receiver: mpsc::UnboundedReceiver<Message>,
}

impl Worker {
    /// A worker for the pod with this uid; without `pod` it only cleans up.
    pub fn new(
        node: Arc<Node>,
        uid: String,
        pod: Option<Arc<Pod>>,
        sender: mpsc::UnboundedSender<Message>,
        receiver: mpsc::UnboundedReceiver<Message>,
    ) -> Self {
        let dir = node.pods_dir().join(&uid);
        let state = PodState::load(&node.pods_dir(), &uid);
        let published = pod.as_ref().and_then(|pod| pod.status.clone()).unwrap_or_default();
        Self {
            node,
            uid,
            dir,
            pod,
            state,
            slots: Vec::new(),
            volumes: None,
            refresh: None,
            sandbox_ready: false,
            sandbox_failures: 0,
            volume_failures: 0,
            sandbox_not_before: None,
            published,
            written: Value::Null,
            sender,
            receiver,
        }
    }

    /// Works until the pod is gone from the node.
    pub async fn run(mut self) {
        self.find_what_runs();
        while let Some(pod) = self.pod.clone() {
            if pod.metadata.deletion_timestamp.is_some() {
                self.terminate(&pod).await;
                break;
            }
            let mut wake = None;
            if !self.is_over(&pod) {
                wake = self.sync(&pod).await;
            }
            self.publish(&pod).await;
            if self.is_over(&pod) {
                self.refresh = None;
                self.release_sandbox().await;
            }
            self.wait(wake).await;
        }
        if self.pod.is_none() {
            self.kill_all().await;
        }
        self.clean().await;
        if let Some(pod) = self.pod.take() {
            self.confirm_deletion(&pod).await;
        }
    }

    /// Takes over what an earlier runtime has left running.
    fn find_what_runs(&mut self) {
        let containers = self.dir.join("containers");
        if let Some(pod) = &self.pod {
            let spec = pod.spec.clone().unwrap_or_default();
            let inits = spec.init_containers.into_iter().flatten().map(|c| (c, true));
            let all = inits.chain(spec.containers.into_iter().map(|c| (c, false)));
            self.slots = all.map(|(c, init)| Slot::new(c, init, &containers)).collect();
        } else if let Ok(names) = std::fs::read_dir(&containers) {
            // The pod is unknown, its containers are not: name them to end them.
            for name in names.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
                self.slots.push(Slot::new(Container { name, ..Container::default() }, false, &containers));
            }
        }
        for index in 0..self.slots.len() {
            if let Some(handle) = self.slots[index].running.clone() {
                tracing::info!(pod = self.state.pod, container = self.slots[index].container.name, "adopted");
                let slot = &mut self.slots[index];
                // What was ready stays so until a probe says otherwise.
                let before =
                    self.published.container_statuses.iter().chain(&self.published.init_container_statuses);
                let before = before.flatten().find(|status| status.name == slot.container.name);
                let probed =
                    slot.container.readiness_probe.is_some() || slot.container.startup_probe.is_some();
                slot.view.ready = !probed || before.is_some_and(|status| status.ready);
                slot.view.started = slot.container.startup_probe.is_none()
                    || before.is_some_and(|status| status.started == Some(true));
                self.attend(index, &handle);
            }
        }
        let attached = self.state.attachment.as_ref().is_some_and(|attachment| attachment.result.is_some());
        self.sandbox_ready = match &self.state.namespaces {
            Some(namespaces) => attached && namespaces.exist(),
            None => false,
        };
    }

    fn is_over(&self, pod: &Pod) -> bool {
        let stored = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(stored, Some("Succeeded" | "Failed"))
            || matches!(phase(pod, &self.views()), "Succeeded" | "Failed")
    }

    fn views(&self) -> BTreeMap<String, super::status::View> {
        self.slots.iter().map(|slot| (slot.container.name.clone(), slot.view.clone())).collect()
    }

    /// Waits for something to act on, and takes it in.
    async fn wait(&mut self, wake: Option<Instant>) {
        let refresh = self.refresh.map(|due| {
            let left = Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or_default();
            Instant::now() + left
        });
        let wake = wake.into_iter().chain(refresh).min();
        let node = Arc::clone(&self.node);
        let network = node.network_changed.notified();
        let starving = self.sandbox_not_before.is_some() && !self.sandbox_ready;
        let message = tokio::select! {
            message = self.receiver.recv() => message,
            () = sleep_until(wake) => None,
            () = network, if starving => {
                self.sandbox_not_before = None;
                None
            }
        };
        if let Some(message) = message {
            self.take(message);
        }
        // Whatever else has arrived belongs to the same pass.
        while let Ok(message) = self.receiver.try_recv() {
            self.take(message);
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Pod(pod) => self.pod = Some(pod),
            Message::Gone => self.pod = None,
            Message::Ended { container, run, exited } => {
                if let Some(slot) = self.slot_of(&container, run) {
                    slot.has_ended(&exited);
                }
            }
            Message::Probe { container, run, purpose, news } => {
                self.take_probe(&container, run, purpose, news);
            }
        }
    }

    fn slot_of(&mut self, container: &str, run: u32) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|slot| slot.container.name == container && slot.next_run == run + 1)
    }

    fn take_probe(&mut self, container: &str, run: u32, purpose: Purpose, news: News) {
        let Some(slot) = self.slot_of(container, run) else { return };
        let Some(handle) = slot.running.clone() else { return };
        match (purpose, &news) {
            (Purpose::Readiness, News::Well) => slot.view.ready = true,
            (Purpose::Readiness, News::Ill(_)) => slot.view.ready = false,
            (Purpose::Startup, News::Well) => {
                slot.view.started = true;
                slot.view.ready = slot.container.readiness_probe.is_none();
                let index = self.slots.iter().position(|slot| slot.container.name == container);
                if let Some(index) = index {
                    self.start_probes(index, &handle);
                }
            }
            (Purpose::Liveness, News::Well) => {}
            (Purpose::Startup | Purpose::Liveness, News::Ill(_)) => {
                let kind = if purpose == Purpose::Startup { "startup" } else { "liveness" };
                let text = format!("Container {container} failed {kind} probe, will be restarted");
                self.event(Some(container), Severity::Normal, "Killing", text);
                let grace = self.grace();
                tokio::spawn(end_container(handle, grace));
            }
        }
        if let News::Ill(message) = news {
            let kind = format!("{purpose:?}");
            self.event(
                Some(container),
                Severity::Warning,
                "Unhealthy",
                format!("{kind} probe failed: {message}"),
            );
        }
    }

    fn event(&self, container: Option<&str>, severity: Severity, reason: &str, message: impl Into<String>) {
        let Some(pod) = &self.pod else { return };
        let field = container.map(|name| {
            let init = self.slots.iter().any(|slot| slot.init && slot.container.name == name);
            format!("spec.{}{{{name}}}", if init { "initContainers" } else { "containers" })
        });
        let about = ObjectReference { field_path: field, ..pod.object_ref(&()) };
        self.node.recorder.record(about, severity, reason, message);
    }

    fn grace(&self) -> Duration {
        let pod = self.pod.as_ref();
        let seconds = pod
            .and_then(|pod| pod.metadata.deletion_grace_period_seconds)
            .or_else(|| pod.and_then(|pod| pod.spec.as_ref()?.termination_grace_period_seconds))
            .unwrap_or(GRACE);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    fn addresses(&self) -> Addresses {
        let host = self.node.options.ip.to_string();
        let of_network =
            || self.state.attachment.iter().flat_map(Attachment::addresses).map(|ip| ip.to_string());
        let uses_host = self.pod.as_ref().is_some_and(|pod| host_network(pod));
        let pod = if uses_host { vec![host.clone()] } else { of_network().collect() };
        Addresses { pod, host }
    }

    /// One pass towards what the pod says. Returns when to look again, if nothing happens before.
    async fn sync(&mut self, pod: &Pod) -> Option<Instant> {
        if let Some(due) = self.sandbox_not_before.filter(|due| *due > Instant::now()) {
            return Some(due);
        }
        if !self.sandbox_ready {
            match self.make_sandbox(pod).await {
                Ok(()) => {
                    self.sandbox_ready = true;
                    self.sandbox_failures = 0;
                    self.sandbox_not_before = None;
                    // The address is known before any container runs.
                    self.volumes = None;
                }
                Err(error) => {
                    let text = format!("Failed to create pod sandbox: {error}");
                    tracing::warn!(pod = self.state.pod, "{text}");
                    self.event(None, Severity::Warning, "FailedCreatePodSandBox", text.clone());
                    for slot in &mut self.slots {
                        if slot.running.is_none() {
                            slot.wait("ContainerCreating", Some(text.clone()));
                        }
                    }
                    let wait = SANDBOX_RETRY_MIN.saturating_mul(1 << self.sandbox_failures.min(8));
                    self.sandbox_failures += 1;
                    let due = Instant::now() + wait.min(SANDBOX_RETRY_MAX);
                    self.sandbox_not_before = Some(due);
                    return Some(due);
                }
            }
        }
        let fresh = self.refresh.is_none_or(|due| due > Timestamp::now());
        if self.volumes.is_none() || !fresh {
            match volumes::prepare(&self.node.client, pod, &self.addresses(), &self.dir).await {
                Ok(prepared) => {
                    self.volumes = Some(prepared.paths);
                    self.volume_failures = 0;
                    self.refresh = prepared.refresh;
                }
                Err(error) => {
                    self.event(None, Severity::Warning, "FailedMount", error.to_string());
                    if self.refresh.is_some() {
                        // What is mounted stays as it is; try again soon.
                        self.refresh = Timestamp::from_second(Timestamp::now().as_second() + 5).ok();
                    }
                    if self.volumes.is_none() {
                        let wait =
                            VOLUME_RETRY.saturating_mul(1 << self.volume_failures.min(8)).min(CONFIG_RETRY);
                        self.volume_failures += 1;
                        return Some(Instant::now() + wait);
                    }
                }
            }
        }
        self.sync_containers(pod).await
    }

    async fn sync_containers(&mut self, pod: &Pod) -> Option<Instant> {
        let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.clone());
        let policy = policy.as_deref().unwrap_or("Always").to_owned();
        let mut wake: Option<Instant> = None;
        let mut later = |due: Instant| wake = Some(wake.map_or(due, |known| known.min(due)));
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            let blocked =
                self.slots[..index].iter().any(|before| before.init && !before.is_done_initializing());
            if blocked {
                if let State::Waiting { reason, .. } = &self.slots[index].view.state
                    && reason == "ContainerCreating"
                {
                    self.slots[index].wait("PodInitializing", None);
                }
                continue;
            }
            if !slot.wants_start(&policy) {
                continue;
            }
            if let Some(due) = slot.not_before.filter(|due| *due > Instant::now()) {
                later(due);
                let (name, wait) = (slot.container.name.clone(), slot.backoff());
                if matches!(slot.view.state, State::Ended(_)) {
                    let text = format!(
                        "back-off {}s restarting failed container={name} pod={}",
                        wait.as_secs(),
                        self.state.pod
                    );
                    self.event(
                        Some(&name),
                        Severity::Warning,
                        "BackOff",
                        format!("Back-off restarting failed container {name} in pod {}", self.state.pod),
                    );
                    self.slots[index].wait("CrashLoopBackOff", Some(text));
                } else if slot.missing_image > 0 {
                    let shown = matches!(&slot.view.state, State::Waiting { reason, .. } if reason == "ImagePullBackOff");
                    if !shown {
                        let image = slot.container.image.clone().unwrap_or_default();
                        let since = due - image_backoff(slot.missing_image) + IMAGE_BACKOFF_AFTER;
                        if Instant::now() >= since {
                            let text = format!("Back-off pulling image \"{image}\"");
                            let message = images::find(&image, &self.node.options.bin_dir)
                                .err()
                                .map_or(text.clone(), |cause| format!("{text}: {cause}"));
                            self.event(Some(&name), Severity::Normal, "BackOff", text);
                            self.slots[index].wait("ImagePullBackOff", Some(message));
                        } else {
                            later(since);
                        }
                    }
                }
                continue;
            }
            if let Some(due) = self.start(pod, index).await {
                later(due);
            }
        }
        wake
    }

    /// Starts a container. Returns when to try again if it did not work.
    async fn start(&mut self, pod: &Pod, index: usize) -> Option<Instant> {
        let container = self.slots[index].container.clone();
        let name = container.name.as_str();
        let reference = container.image.clone().unwrap_or_default();
        let image = match images::find(&reference, &self.node.options.bin_dir) {
            Ok(image) => image,
            Err(message) => {
                let text = format!("Failed to pull image \"{reference}\": {message}");
                self.event(Some(name), Severity::Warning, "Failed", text);
                self.event(Some(name), Severity::Warning, "Failed", "Error: ErrImagePull");
                let slot = &mut self.slots[index];
                slot.missing_image += 1;
                slot.not_before = Some(Instant::now() + image_backoff(slot.missing_image));
                slot.wait("ErrImagePull", Some(message));
                return Some(Instant::now() + IMAGE_BACKOFF_AFTER);
            }
        };
        let id = container_id();
        let run = self.slots[index].next_run;
        let log = self.dir.join("logs").join(name).join(format!("{run}.log"));
        let addresses = self.addresses();
        let prepared = async {
            let sources = self.sources(pod, &container).await?;
            let environment = env::environment(pod, &container, &addresses, &sources)?;
            let argv = env::argv(&container, &image, &environment)?;
            let context = PodContext {
                dir: &self.dir,
                namespaces: self.state.namespaces.as_ref(),
                volumes: self.volumes.as_ref().ok_or("the pod's volumes are not ready")?,
                bin_dir: &self.node.options.bin_dir,
            };
            bundle::container_spec(pod, &container, &context, id.clone(), argv, environment, log)
        };
        let result: Result<_, String> = prepared.await;
        let spec = match result {
            Ok(spec) => spec,
            Err(message) => {
                self.event(Some(name), Severity::Warning, "Failed", format!("Error: {message}"));
                let due = Instant::now() + CONFIG_RETRY;
                let slot = &mut self.slots[index];
                slot.not_before = Some(due);
                slot.wait("CreateContainerConfigError", Some(message));
                return Some(due);
            }
        };
        self.event(
            Some(name),
            Severity::Normal,
            "Pulled",
            format!("Container image \"{reference}\" already present on machine"),
        );
        let containers = self.dir.join("containers");
        let dir = containers.join(name).join(run.to_string());
        let started = handle::start(&self.node.program, dir, &spec).await;
        for (old, files) in runs(&containers, name).iter().rev().skip(KEPT_RUNS) {
            let _ = std::fs::remove_dir_all(&files.0);
            let _ = std::fs::remove_file(self.dir.join("logs").join(name).join(format!("{old}.log")));
        }
        match started {
            Ok(handle) => {
                self.event(Some(name), Severity::Normal, "Created", format!("Container created: {name}"));
                self.event(Some(name), Severity::Normal, "Started", format!("Container started: {name}"));
                self.slots[index].has_started(handle.clone(), id);
                self.attend(index, &handle);
                self.post_start(index, &handle).await;
                None
            }
            Err(error) => {
                let message = match &error {
                    StartError::Container(text) => text.clone(),
                    StartError::Io(_) => error.to_string(),
                };
                self.event(Some(name), Severity::Warning, "Failed", format!("Error: {message}"));
                self.slots[index].has_failed_to_start(message, id);
                self.slots[index].not_before
            }
        }
    }

    /// ConfigMaps and Secrets that the container's environment names, and variables for services.
    async fn sources(&self, pod: &Pod, container: &Container) -> Result<Sources, String> {
        let namespace = pod.namespace().unwrap_or_default();
        let (mut maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
        for from in container.env_from.iter().flatten() {
            maps.extend(from.config_map_ref.iter().map(|one| one.name.clone()));
            secrets.extend(from.secret_ref.iter().map(|one| one.name.clone()));
        }
        for from in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
            maps.extend(from.config_map_key_ref.iter().map(|one| one.name.clone()));
            secrets.extend(from.secret_key_ref.iter().map(|one| one.name.clone()));
        }
        let mut sources = Sources::default();
        let api: Api<ConfigMap> = Api::namespaced(self.node.client.clone(), &namespace);
        for name in maps {
            if let Some(map) = or_gone(api.get(&name).await).map_err(|error| error.to_string())? {
                sources.config_maps.insert(name, map);
            }
        }
        let api: Api<Secret> = Api::namespaced(self.node.client.clone(), &namespace);
        for name in secrets {
            if let Some(secret) = or_gone(api.get(&name).await).map_err(|error| error.to_string())? {
                sources.secrets.insert(name, secret);
            }
        }
        let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links) != Some(false);
        let seen = self.node.services.list_if(|service| {
            let own = service.metadata.namespace.as_deref() == Some(namespace.as_str());
            let api = service.metadata.namespace.as_deref() == Some("default")
                && service.name_any() == "kubernetes";
            api || (links && own)
        });
        sources.services = env::service_variables(seen.iter().map(Arc::as_ref));
        Ok(sources)
    }

    async fn post_start(&mut self, index: usize, handle: &Handle) {
        let container = self.slots[index].container.clone();
        let Some(hook) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref())
        else {
            return;
        };
        let outcome = match (&hook.exec, &hook.sleep) {
            (Some(exec), _) => {
                probes::run_command(&self.target(index, handle), exec.command.as_deref().unwrap_or_default())
                    .await
            }
            (None, Some(_)) => Ok(()),
            (None, None) => Err("only exec hooks are supported here".to_owned()),
        };
        if let Err(message) = outcome {
            let name = container.name.as_str();
            self.event(
                Some(name),
                Severity::Warning,
                "FailedPostStartHook",
                format!("PostStartHook failed: {message}"),
            );
            tokio::spawn(end_container(handle.clone(), self.grace()));
        }
    }

    fn target(&self, index: usize, handle: &Handle) -> Target {
        Target {
            handle: handle.clone(),
            program: self.node.program.clone(),
            netns: self.state.namespaces.as_ref().map(|names| names.net.clone()),
            address: self.addresses().pod.first().cloned().unwrap_or_default(),
            container: self.slots[index].container.clone(),
        }
    }

    /// Follows a run: waits for its end, starts its probes.
    fn attend(&mut self, index: usize, handle: &Handle) {
        let (sender, run) = (self.sender.clone(), self.slots[index].next_run.saturating_sub(1));
        let (container, waiting) = (self.slots[index].container.name.clone(), handle.clone());
        self.slots[index].tasks.push(tokio::spawn(async move {
            let exited = waiting.ended().await;
            // The worker ends only after its containers have.
            let _ = sender.send(Message::Ended { container, run, exited });
        }));
        self.start_probes(index, handle);
    }

    /// Starts the startup probe; once it has succeeded (or if there is none), the others.
    fn start_probes(&mut self, index: usize, handle: &Handle) {
        let slot = &self.slots[index];
        let container = slot.container.clone();
        let wanted = if let (Some(probe), false) = (&container.startup_probe, slot.view.started) {
            vec![(Purpose::Startup, probe.clone())]
        } else {
            let liveness = container.liveness_probe.clone().map(|probe| (Purpose::Liveness, probe));
            let readiness = container.readiness_probe.clone().map(|probe| (Purpose::Readiness, probe));
            liveness.into_iter().chain(readiness).collect()
        };
        let run = slot.next_run.saturating_sub(1);
        for (purpose, probe) in wanted {
            let (sender, target, name) =
                (self.sender.clone(), self.target(index, handle), container.name.clone());
            let report = move |news| {
                let _ = sender.send(Message::Probe { container: name.clone(), run, purpose, news });
            };
            self.slots[index].tasks.push(tokio::spawn(probes::run(purpose, probe, target, report)));
        }
    }

    fn store(&self) -> Result<(), String> {
        self.state
            .store(&self.node.pods_dir(), &self.uid)
            .map_err(|error| format!("cannot write the pod's state below {}: {error}", self.dir.display()))
    }

    /// Makes namespaces and network, afresh if what was there is damaged.
    async fn make_sandbox(&mut self, pod: &Pod) -> Result<(), String> {
        self.state.pod = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
        if host_network(pod) {
            self.store()?;
        } else {
            let config = NetworkConfig::load(&self.node.cni.conf_dir).map_err(|error| error.to_string())?;
            self.release_sandbox().await;
            if self.slots.iter().any(|slot| slot.running.is_some()) {
                // Containers in a broken sandbox cannot be reached.
                self.kill_all().await;
            }
            let namespaces = Namespaces::named(&self.dir);
            self.state.namespaces = Some(namespaces.clone());
            let attachment = Attachment {
                config,
                container_id: container_id(),
                netns: namespaces.net.clone(),
                interface: "eth0".to_owned(),
                args: String::new(),
                abilities: abilities(pod),
                result: None,
            };
            let mut attachment = Attachment { args: cni_args(pod, &attachment.container_id), ..attachment };
            self.state.attachment = Some(attachment.clone());
            self.store()?;
            namespaces.create(&bundle::hostname(pod)).map_err(|error| error.to_string())?;
            let added = self.node.cni.add(&mut attachment).await;
            self.state.attachment = Some(attachment);
            if let Err(error) = added {
                if matches!(&error, CniError::Plugin { .. }) && error.is_try_again_later() {
                    tracing::debug!(pod = self.state.pod, "the network asks to be tried again later");
                }
                self.release_sandbox().await;
                return Err(format!("rpc error: failed to set up the pod's network: {error}"));
            }
            self.store()?;
        }
        self.write_etc(pod).map_err(|error| format!("cannot write the pod's /etc files: {error}"))
    }

    fn write_etc(&self, pod: &Pod) -> std::io::Result<()> {
        let etc = self.dir.join("etc");
        std::fs::create_dir_all(&etc)?;
        let of_node = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let resolv = bundle::resolv_conf(pod, &self.node.options.cluster_dns, &of_node);
        std::fs::write(etc.join("resolv.conf"), resolv)?;
        std::fs::write(etc.join("hosts"), bundle::hosts_file(pod, &self.addresses().pod))?;
        std::fs::write(etc.join("hostname"), bundle::hostname(pod) + "\n")
    }

    /// DEL, then the namespaces. Keeps on record what could not be done.
    async fn release_sandbox(&mut self) {
        if let Some(attachment) = self.state.attachment.take() {
            if let Err(error) = self.node.cni.del(&attachment).await {
                tracing::warn!(pod = self.state.pod, %error, "CNI DEL failed");
                let text = format!("Failed to tear down the pod's network: {error}");
                self.event(None, Severity::Warning, "FailedKillPod", text);
            }
            self.node.network_changed.notify_waiters();
        }
        if let Some(namespaces) = self.state.namespaces.take() {
            namespaces.remove();
            if let Err(error) = self.store() {
                tracing::warn!(pod = self.state.pod, error);
            }
        }
        self.sandbox_ready = false;
    }

    /// Writes the status if it has changed.
    async fn publish(&mut self, pod: &Pod) {
        // What has ended stays as it ended.
        if matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed")) {
            return;
        }
        let mut status = pod_status(
            pod,
            &self.views(),
            self.sandbox_ready,
            &self.addresses(),
            &self.published,
            Timestamp::now(),
        );
        // What the API server has of others (readiness gates) stays.
        let foreign = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let mine = status.conditions.get_or_insert_default();
        for condition in foreign {
            match mine.iter_mut().find(|known| known.type_ == condition.type_) {
                Some(known)
                    if pod.spec.as_ref().is_some_and(|spec| {
                        spec.readiness_gates.iter().flatten().any(|gate| gate.condition_type == known.type_)
                    }) =>
                {
                    *known = condition.clone();
                }
                Some(_) => {}
                None => mine.push(condition.clone()),
            }
        }
        let mut value = json!(status);
        for field in ["reason", "message"] {
            value[field] = Value::Null;
        }
        if value == self.written {
            return;
        }
        let api: Api<Pod> = Api::namespaced(self.node.client.clone(), &pod.namespace().unwrap_or_default());
        let patch = json!({"metadata": {"uid": self.uid}, "status": value});
        match api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => {
                self.published = status;
                self.written = value;
            }
            // Another pod of that name, or none: the watch will say so.
            Err(error) if is_not_found(&error) || is_conflict(&error) => {}
            Err(error) => {
                tracing::warn!(pod = self.state.pod, %error, "cannot write the pod's status");
                let sender = self.sender.clone();
                let again = Arc::new(pod.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(SANDBOX_RETRY_MIN).await;
                    let _ = sender.send(Message::Pod(again));
                });
            }
        }
    }

    /// Ends the pod's containers as it asks: hook, SIGTERM, and SIGKILL when the grace is over or the pod is gone.
    async fn terminate(&mut self, pod: &Pod) {
        let grace = self.grace();
        let deadline = Instant::now() + grace;
        let mut ends = Vec::new();
        for index in 0..self.slots.len() {
            let Some(handle) = self.slots[index].running.clone() else { continue };
            let name = self.slots[index].container.name.clone();
            self.event(Some(&name), Severity::Normal, "Killing", format!("Stopping container {name}"));
            let hook =
                self.slots[index].container.lifecycle.clone().and_then(|l| l.pre_stop).and_then(|h| h.exec);
            let target = self.target(index, &handle);
            let pause =
                self.slots[index].container.lifecycle.clone().and_then(|l| l.pre_stop).and_then(|h| h.sleep);
            ends.push(async move {
                if let Some(exec) = hook {
                    let run = probes::run_command(&target, exec.command.as_deref().unwrap_or_default());
                    if let Ok(Err(message)) = tokio::time::timeout_at(deadline, run).await {
                        tracing::info!(message, "a preStop hook failed");
                    }
                } else if let Some(pause) = pause {
                    let seconds = u64::try_from(pause.seconds).unwrap_or(0);
                    let _ =
                        tokio::time::timeout_at(deadline, tokio::time::sleep(Duration::from_secs(seconds)))
                            .await;
                }
                end_container(handle, deadline.saturating_duration_since(Instant::now())).await;
            });
        }
        let mut all = std::pin::pin!(join_all(ends));
        loop {
            tokio::select! {
                _ = &mut all => break,
                message = self.receiver.recv() => match message {
                    Some(Message::Gone) => {
                        self.pod = None;
                        self.kill_all().await;
                        return;
                    }
                    Some(Message::Ended { container, run, exited }) => {
                        if let Some(slot) = self.slot_of(&container, run) {
                            slot.has_ended(&exited);
                        }
                        self.publish(pod).await;
                    }
                    Some(Message::Pod(newer)) => {
                        let shorter = newer.metadata.deletion_grace_period_seconds.unwrap_or(0);
                        self.pod = Some(newer);
                        if u64::try_from(shorter).unwrap_or(0) < grace.as_secs() {
                            for slot in &self.slots {
                                if let Some(handle) = &slot.running {
                                    handle.signal(Signal::SIGKILL);
                                }
                            }
                        }
                    }
                    _ => {}
                },
            }
        }
        for slot in &mut self.slots {
            if let Some(exited) = slot.running.as_ref().and_then(|handle| handle.dir.read_exited()) {
                slot.has_ended(&exited);
            }
        }
    }

    async fn kill_all(&mut self) {
        let running: Vec<_> = self.slots.iter().filter_map(|slot| slot.running.clone()).collect();
        let ended = join_all(running.into_iter().map(|handle| end_container(handle, Duration::ZERO))).await;
        drop(ended);
        for slot in &mut self.slots {
            if let Some(handle) = &slot.running {
                let exited = handle.ended().await;
                slot.has_ended(&exited);
            }
        }
    }

    /// Takes everything of the pod off the node.
    async fn clean(&mut self) {
        for slot in &mut self.slots {
            slot.stop_tasks();
        }
        if let Some(pod) = self.pod.clone() {
            self.publish(&pod).await;
        }
        self.release_sandbox().await;
        volumes::release(&self.dir);
        if let Err(error) = std::fs::remove_dir_all(&self.dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(pod = self.state.pod, dir = %self.dir.display(), %error, "cannot remove the pod's directory");
        }
    }

    /// Tells the API server that nothing of the pod is left.
    async fn confirm_deletion(&self, pod: &Pod) {
        let api: Api<Pod> = Api::namespaced(self.node.client.clone(), &pod.namespace().unwrap_or_default());
        let how = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(self.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        let mut wait = SANDBOX_RETRY_MIN;
        loop {
            match api.delete(&pod.name_any(), &how).await {
                Ok(_) => return,
                Err(error) if is_not_found(&error) || is_conflict(&error) => return,
                Err(error) => {
                    tracing::warn!(pod = self.state.pod, %error, "cannot confirm the pod's end, trying again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(SANDBOX_RETRY_MAX);
                }
            }
        }
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

/// SIGTERM, and SIGKILL if it has not ended after `grace`.
async fn end_container(handle: Handle, grace: Duration) {
    if !grace.is_zero() {
        handle.signal(Signal::SIGTERM);
        if tokio::time::timeout(grace, handle.ended()).await.is_ok() {
            return;
        }
    }
    handle.signal(Signal::SIGKILL);
    handle.ended().await;
}

fn image_backoff(tries: u32) -> Duration {
    Duration::from_secs(10).saturating_mul(1 << tries.saturating_sub(1).min(5)).min(Duration::from_mins(5))
}

/// 64 random hexadecimal digits.
fn container_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

fn cni_args(pod: &Pod, id: &str) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={}",
        pod.namespace().unwrap_or_default(),
        pod.name_any(),
        pod.uid().unwrap_or_default()
    )
}

/// What plugins with capabilities may want to know.
fn abilities(pod: &Pod) -> BTreeMap<String, Value> {
    let ports = pod.spec.iter().flat_map(|spec| &spec.containers).flat_map(|c| c.ports.iter().flatten());
    let mappings: Vec<Value> = ports
        .filter_map(|port| {
            let host = port.host_port.filter(|number| *number != 0)?;
            let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
            let mut mapping =
                json!({"hostPort": host, "containerPort": port.container_port, "protocol": protocol});
            if let Some(ip) = port.host_ip.as_deref().filter(|ip| !ip.is_empty()) {
                mapping["hostIP"] = json!(ip);
            }
            Some(mapping)
        })
        .collect();
    if mappings.is_empty() {
        BTreeMap::new()
    } else {
        BTreeMap::from([("portMappings".to_owned(), json!(mappings))])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ports_become_port_mappings() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [{"name": "c", "ports": [
            {"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}]}]}}))
            .unwrap();
        let wanted = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
        assert_eq!(abilities(&pod)["portMappings"], wanted);
    }

    #[test]
    fn arguments_for_plugins_name_the_pod() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}})).unwrap();
        assert_eq!(
            cni_args(&pod, "c"),
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=n;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u"
        );
    }

    #[test]
    fn container_ids_are_64_hexadecimal_digits() {
        let id = container_id();
        assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
