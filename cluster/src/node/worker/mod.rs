//! The worker of one pod: brings sandbox and containers to what the pod says, follows what happens to them, reports the
//! status, and takes everything away in the end. One task a pod; it sleeps until something has changed.

mod containers;
mod ending;
mod network;
mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, PodStatus};
use k8s_openapi::jiff::Timestamp;
use kube::Resource as _;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::bundle::host_network;
use super::cni::Attachment;
use super::container::spec::Exited;
use super::env::Addresses;
use super::probes::{News, Purpose};
use super::slot::Slot;
use super::state::PodState;
use super::status::work_is_done;
use super::{Node, volumes};
use crate::controllers::events::Severity;
use ending::end_container;

/// First wait before a sandbox is tried again.
const SANDBOX_RETRY_MIN: Duration = Duration::from_millis(250);
/// Longest wait.
const SANDBOX_RETRY_MAX: Duration = Duration::from_secs(5);
/// First wait before volumes are tried again (a new namespace's account may be a moment away).
const VOLUME_RETRY: Duration = Duration::from_millis(50);
/// Wait before what could not be configured (a missing ConfigMap) is tried again.
const CONFIG_RETRY: Duration = Duration::from_secs(2);
/// Grace that a pod has if it says nothing.
const GRACE: i64 = 30;

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
    /// The hook after a container's start is done.
    Hooked {
        /// The container.
        container: String,
        /// Number of the run.
        run: u32,
        /// How it went.
        outcome: Result<(), String>,
    },
    /// Something that failed is due again.
    Retry,
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
    written_version: u64,
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
            written_version: 0,
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
                if self.end_the_rest() && self.release_sandbox().await.is_err() {
                    wake = Some(Instant::now() + SANDBOX_RETRY_MAX);
                }
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
                self.start_probes(index, &handle);
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
        matches!(stored, Some("Succeeded" | "Failed")) || work_is_done(pod, &self.views())
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
            Message::Hooked { container, run, outcome } => self.take_hook(&container, run, outcome),
            // The next pass does it.
            Message::Retry => {}
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

    fn take_hook(&mut self, container: &str, run: u32, outcome: Result<(), String>) {
        let Some(index) = self.slots.iter().position(|slot| slot.container.name == container) else { return };
        let slot = &mut self.slots[index];
        let Some(handle) = slot.running.clone().filter(|_| slot.next_run == run + 1) else { return };
        match outcome {
            Ok(()) => {
                slot.is_up();
                self.start_probes(index, &handle);
            }
            Err(message) => {
                let text = format!("PostStartHook failed: {message}");
                self.event(Some(container), Severity::Warning, "FailedPostStartHook", text);
                let grace = self.grace();
                tokio::spawn(end_container(handle, grace));
            }
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
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}
