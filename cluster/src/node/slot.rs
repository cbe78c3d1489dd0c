//! One container of a pod over all its runs: what runs now, how the last run ended, when the next may start. Pure but for
//! reading what runs have left behind.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::Container;
use k8s_openapi::jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::container::handle::{Handle, give_up, runs};
use super::container::spec::Exited;
use super::status::{Ended, State, View, is_sidecar};

/// Wait before the second restart of a container that keeps ending; doubles with each.
const BACKOFF_MIN: Duration = Duration::from_secs(10);
/// Longest wait.
const BACKOFF_MAX: Duration = Duration::from_mins(5);
/// A run of this length is a success as far as waiting is concerned.
const STABLE: Duration = Duration::from_mins(10);

/// A container of a pod.
pub struct Slot {
    /// Its part of the pod.
    pub container: Container,
    /// It is an init container.
    pub init: bool,
    /// As the status shows it.
    pub view: View,
    /// The run that is on.
    pub running: Option<Handle>,
    /// Number of the next run.
    pub next_run: u32,
    /// Not to be started before.
    pub not_before: Option<Instant>,
    /// Tasks of the present run: its probes, and the one that waits for its end.
    pub tasks: Vec<JoinHandle<()>>,
    backoff: Option<Duration>,
    /// The present run has been told to end because the pod's work is done.
    pub ending: bool,
    /// How often its image was looked for in vain.
    pub missing_image: u32,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.stop_tasks();
    }
}

/// The wait after a run: none after the first, then ten seconds and twice as long each time.
pub fn next_backoff(last: Option<Duration>, ran: Duration) -> Duration {
    match last {
        _ if ran >= STABLE => Duration::ZERO,
        None => Duration::ZERO,
        Some(Duration::ZERO) => BACKOFF_MIN,
        Some(last) => (last * 2).min(BACKOFF_MAX),
    }
}

impl Slot {
    /// A container that has not run yet, or did under an earlier runtime (its runs are below `containers`).
    pub fn new(container: Container, init: bool, containers: &Path) -> Self {
        let mut slot = Self {
            view: View::waiting(if init { "PodInitializing" } else { "ContainerCreating" }),
            container,
            init,
            running: None,
            next_run: 0,
            not_before: None,
            tasks: Vec::new(),
            backoff: None,
            ending: false,
            missing_image: 0,
        };
        for (number, dir) in runs(containers, &slot.container.name) {
            slot.next_run = number + 1;
            slot.view.restarts = i32::try_from(number).unwrap_or(i32::MAX);
            if let State::Ended(ended) = &slot.view.state {
                slot.view.last = Some(ended.clone());
            }
            slot.view.id = id_of(&dir.spec());
            match Handle::find(dir.clone()) {
                Some(handle) if handle.is_running() => {
                    slot.view.state = State::Running { since: time(&handle.started.at) };
                    slot.running = Some(handle);
                }
                found => {
                    let started = found.as_ref().map(|handle| time(&handle.started.at));
                    let exited = dir.read_exited().unwrap_or_else(|| give_up(&dir));
                    slot.view.state = State::Ended(ended(&exited, started, &slot.view.id));
                }
            }
        }
        slot
    }

    /// Aborts the tasks of the present run.
    pub fn stop_tasks(&mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
        }
    }

    /// The container belongs to those that start in order and go on running.
    pub fn is_sidecar(&self) -> bool {
        self.init && is_sidecar(&self.container)
    }

    /// It need not be waited for before the next in order starts.
    pub fn is_done_initializing(&self) -> bool {
        if self.is_sidecar() { self.view.started } else { self.view.succeeded() }
    }

    /// Whether it has to start now, given the pod's restart policy.
    pub fn wants_start(&self, policy: &str) -> bool {
        if self.running.is_some() {
            return false;
        }
        match &self.view.state {
            State::Running { .. } => false,
            State::Waiting { .. } => {
                self.view.last.as_ref().is_none_or(|last| self.restarts(policy, last.code))
            }
            State::Ended(ended) => self.restarts(policy, ended.code),
        }
    }

    fn restarts(&self, policy: &str, code: i32) -> bool {
        if self.is_sidecar() {
            return true;
        }
        match policy {
            "Never" => false,
            "OnFailure" => code != 0,
            // Init containers run to success once.
            _ => !self.init || code != 0,
        }
    }

    /// Takes in that the run has started.
    pub fn has_started(&mut self, handle: Handle, id: String) {
        if let State::Ended(ended) = &self.view.state {
            self.view.last = Some(ended.clone());
        }
        self.view.restarts = i32::try_from(self.next_run).unwrap_or(i32::MAX);
        self.next_run += 1;
        self.view.state = State::Running { since: time(&handle.started.at) };
        self.view.id = id;
        self.is_up();
        self.running = Some(handle);
        self.not_before = None;
        self.missing_image = 0;
    }

    /// Takes in that the run is up: ready, unless a probe has to say so.
    pub fn is_up(&mut self) {
        self.view.ready = self.container.readiness_probe.is_none() && self.container.startup_probe.is_none();
        self.view.started = self.container.startup_probe.is_none();
    }

    /// Takes in that the run could not start: as a run that ended at once.
    pub fn has_failed_to_start(&mut self, error: String, id: String) {
        if let State::Ended(ended) = &self.view.state {
            self.view.last = Some(ended.clone());
        }
        self.view.restarts = i32::try_from(self.next_run).unwrap_or(i32::MAX);
        self.next_run += 1;
        self.view.id.clone_from(&id);
        let now = Timestamp::now();
        self.end(Ended { code: 128, error: Some(error), started: Some(now), finished: now, id });
    }

    /// Takes in that the run has ended.
    pub fn has_ended(&mut self, exited: &Exited) {
        let started = self.running.take().map(|handle| time(&handle.started.at));
        self.end(ended(exited, started, &self.view.id));
    }

    fn end(&mut self, ended: Ended) {
        self.stop_tasks();
        self.ending = false;
        let ran = ended.started.map_or(Duration::ZERO, |started| {
            Duration::try_from(ended.finished.duration_since(started)).unwrap_or_default()
        });
        let wait = next_backoff(self.backoff, ran);
        self.backoff = Some(wait);
        self.not_before = Some(Instant::now() + wait);
        // An init container is ready when it has done its work.
        self.view.ready = self.init && !self.is_sidecar() && ended.code == 0;
        self.view.started = false;
        self.view.state = State::Ended(ended);
    }

    /// How long the container waits before it is started again.
    pub fn backoff(&self) -> Duration {
        self.backoff.unwrap_or_default()
    }

    /// Shows that the container waits.
    pub fn wait(&mut self, reason: &str, message: Option<String>) {
        if let State::Ended(ended) = &self.view.state {
            self.view.last = Some(ended.clone());
        }
        self.view.state = State::Waiting { reason: reason.to_owned(), message };
    }
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap_or_else(|_| Timestamp::now())
}

fn id_of(spec: &Path) -> String {
    std::fs::read(spec)
        .ok()
        .and_then(|text| serde_json::from_slice::<super::container::spec::ContainerSpec>(&text).ok())
        .map(|spec| spec.id)
        .unwrap_or_default()
}

fn ended(exited: &Exited, started: Option<Timestamp>, id: &str) -> Ended {
    Ended {
        code: exited.code,
        error: exited.error.clone(),
        started,
        finished: time(&exited.at),
        id: id.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(init: bool) -> Slot {
        let container = Container { name: "c".into(), ..Container::default() };
        Slot::new(container, init, Path::new("/nowhere"))
    }

    fn exited(code: i32) -> Exited {
        Exited { code, at: "2026-01-01T00:00:00Z".into(), error: None }
    }

    #[test]
    fn waits_double_and_a_long_run_resets_them() {
        let short = Duration::from_secs(1);
        let first = next_backoff(None, short);
        let second = next_backoff(Some(first), short);
        let third = next_backoff(Some(second), short);
        assert_eq!((first, second, third), (Duration::ZERO, BACKOFF_MIN, BACKOFF_MIN * 2));
        assert_eq!(next_backoff(Some(BACKOFF_MAX), short), BACKOFF_MAX);
        assert_eq!(next_backoff(Some(BACKOFF_MAX), STABLE), Duration::ZERO);
    }

    #[test]
    fn restart_policies() {
        for (policy, init, code, wanted) in [
            ("Always", false, 0, true),
            ("Always", true, 0, false),
            ("Always", true, 1, true),
            ("OnFailure", false, 0, false),
            ("OnFailure", false, 1, true),
            ("Never", false, 1, false),
        ] {
            let mut slot = slot(init);
            assert!(slot.wants_start(policy), "the first start is always due");
            slot.has_ended(&exited(code));
            assert_eq!(slot.wants_start(policy), wanted, "{policy} init={init} code={code}");
        }
    }

    #[test]
    fn what_waits_after_an_end_keeps_the_end_as_the_last_state() {
        let mut slot = slot(false);
        slot.has_ended(&exited(3));
        slot.wait("CrashLoopBackOff", None);
        assert_eq!(slot.view.last.as_ref().map(|last| last.code), Some(3));
        assert!(slot.wants_start("Always") && !slot.wants_start("Never"));
    }
}
