//! The containers: which has to start now, what it starts with, who follows it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret};
use kube::{Api, ResourceExt as _};
use tokio::time::Instant;

use super::network::container_id;
use super::{CONFIG_RETRY, Message, Worker};
use crate::controllers::events::Severity;
use crate::controllers::meta::or_gone;
use crate::images;
use crate::node::bundle::{self, PodContext};
use crate::node::container::handle::{self, Handle, StartError, runs};
use crate::node::env::{self, Sources};
use crate::node::probes::{self, Purpose, Target};
use crate::node::status::State;

/// How long ErrImagePull is shown before ImagePullBackOff.
const IMAGE_BACKOFF_AFTER: Duration = Duration::from_secs(1);
/// How many runs of a container are kept: the present one and the one for `logs --previous`.
const KEPT_RUNS: usize = 2;

impl Worker {
    pub(super) async fn sync_containers(&mut self, pod: &Pod) -> Option<Instant> {
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
                self.post_start(index, &handle);
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

    /// Runs the hook after a start, if there is one: the container is not up before it is done. Then come the probes.
    fn post_start(&mut self, index: usize, handle: &Handle) {
        let slot = &mut self.slots[index];
        let Some(hook) = slot.container.lifecycle.clone().and_then(|lifecycle| lifecycle.post_start) else {
            return self.start_probes(index, handle);
        };
        (slot.view.ready, slot.view.started) = (false, false);
        let (run, container) = (slot.next_run.saturating_sub(1), slot.container.name.clone());
        let (sender, target) = (self.sender.clone(), self.target(index, handle));
        self.slots[index].tasks.push(tokio::spawn(async move {
            let outcome = probes::run_hook(&hook, &target).await;
            let _ = sender.send(Message::Hooked { container, run, outcome });
        }));
    }

    pub(super) fn target(&self, index: usize, handle: &Handle) -> Target {
        Target {
            handle: handle.clone(),
            program: self.node.program.clone(),
            netns: self.state.namespaces.as_ref().map(|names| names.net.clone()),
            address: self.addresses().pod.first().cloned().unwrap_or_default(),
            container: self.slots[index].container.clone(),
        }
    }

    /// Follows a run: waits for its end.
    pub(super) fn attend(&mut self, index: usize, handle: &Handle) {
        let (sender, run) = (self.sender.clone(), self.slots[index].next_run.saturating_sub(1));
        let (container, waiting) = (self.slots[index].container.name.clone(), handle.clone());
        self.slots[index].tasks.push(tokio::spawn(async move {
            let exited = waiting.ended().await;
            // The worker ends only after its containers have.
            let _ = sender.send(Message::Ended { container, run, exited });
        }));
    }

    /// Starts the startup probe; once it has succeeded (or if there is none), the others.
    pub(super) fn start_probes(&mut self, index: usize, handle: &Handle) {
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
}

fn image_backoff(tries: u32) -> Duration {
    Duration::from_secs(10).saturating_mul(1 << tries.saturating_sub(1).min(5)).min(Duration::from_mins(5))
}
