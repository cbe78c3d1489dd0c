//! A pod's status as its containers make it. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::env::Addresses;
use crate::images::repository;

/// What a container does.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// It has not started (again) yet.
    Waiting {
        /// CamelCase word.
        reason: String,
        /// For people.
        message: Option<String>,
    },
    /// It runs.
    Running {
        /// Since when.
        since: Timestamp,
    },
    /// It has ended.
    Ended(Ended),
}

/// A container's end.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// Exit code.
    pub code: i32,
    /// Why it ended, if it never ran.
    pub error: Option<String>,
    /// When it started.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Timestamp,
    /// Its ID.
    pub id: String,
}

/// One container as the status shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Now.
    pub state: State,
    /// How the run before this one ended.
    pub last: Option<Ended>,
    /// How often it was started again.
    pub restarts: i32,
    /// Its readiness probe (or the lack of one) says so.
    pub ready: bool,
    /// Its startup probe (or the lack of one) says so.
    pub started: bool,
    /// ID of the present or last run.
    pub id: String,
}

impl View {
    /// A container that waits for its first start.
    pub fn waiting(reason: &str) -> Self {
        Self {
            state: State::Waiting { reason: reason.to_owned(), message: None },
            last: None,
            restarts: 0,
            ready: false,
            started: false,
            id: String::new(),
        }
    }

    /// It has ended with success.
    pub fn succeeded(&self) -> bool {
        matches!(&self.state, State::Ended(ended) if ended.code == 0)
    }
}

/// The sidecar form of an init container: it starts in order and goes on running.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

fn terminated(ended: &Ended) -> ContainerStateTerminated {
    let reason = match (&ended.error, ended.code) {
        (Some(_), 128) => "StartError",
        (Some(_), _) => "ContainerStatusUnknown",
        (None, 0) => "Completed",
        (None, _) => "Error",
    };
    ContainerStateTerminated {
        container_id: Some(container_id(&ended.id)),
        exit_code: ended.code,
        reason: Some(reason.to_owned()),
        message: ended.error.clone(),
        started_at: Some(seconds(ended.started.unwrap_or(ended.finished))),
        finished_at: Some(seconds(ended.finished)),
        signal: None,
    }
}

fn container_id(id: &str) -> String {
    format!("podwire://{id}")
}

fn container_status(container: &Container, view: &View) -> ContainerStatus {
    let image = container.image.clone().unwrap_or_default();
    let state = match &view.state {
        State::Waiting { reason, message } => ContainerState {
            waiting: Some(ContainerStateWaiting { reason: Some(reason.clone()), message: message.clone() }),
            ..ContainerState::default()
        },
        State::Running { since } => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(seconds(*since)) }),
            ..ContainerState::default()
        },
        State::Ended(ended) => {
            ContainerState { terminated: Some(terminated(ended)), ..ContainerState::default() }
        }
    };
    ContainerStatus {
        name: container.name.clone(),
        image_id: if view.id.is_empty() { String::new() } else { format!("builtin/{}", repository(&image)) },
        image,
        container_id: (!view.id.is_empty()).then(|| container_id(&view.id)),
        ready: view.ready,
        started: Some(view.started),
        restart_count: view.restarts,
        state: Some(state),
        last_state: Some(view.last.as_ref().map_or_else(ContainerState::default, |ended| ContainerState {
            terminated: Some(terminated(ended)),
            ..ContainerState::default()
        })),
        ..ContainerStatus::default()
    }
}

/// Guaranteed, Burstable or BestEffort.
fn qos(pod: &Pod) -> &'static str {
    let Some(spec) = &pod.spec else { return "BestEffort" };
    let all: Vec<_> = spec.containers.iter().chain(spec.init_containers.iter().flatten()).collect();
    let map = |c: &Container, limits: bool| {
        let resources = c.resources.clone().unwrap_or_default();
        (if limits { resources.limits } else { resources.requests }).unwrap_or_default()
    };
    if all.iter().all(|c| map(c, true).is_empty() && map(c, false).is_empty()) {
        return "BestEffort";
    }
    let guaranteed = all.iter().all(|c| {
        let (limits, requests) = (map(c, true), map(c, false));
        ["cpu", "memory"].iter().all(|name| {
            limits.get(*name).is_some_and(|limit| requests.get(*name).is_none_or(|request| request == limit))
        })
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

/// The pod's containers have done their work, with success or not; sidecars may still run.
pub fn work_is_done(pod: &Pod, views: &BTreeMap<String, View>) -> bool {
    matches!(outcome(pod, views), "Succeeded" | "Failed")
}

/// The pod's phase: it is over only when the last container, a sidecar perhaps, has ended.
pub fn phase(pod: &Pod, views: &BTreeMap<String, View>) -> &'static str {
    let something_runs = views.values().any(|view| matches!(view.state, State::Running { .. }));
    if something_runs && work_is_done(pod, views) { "Running" } else { outcome(pod, views) }
}

/// The phase as init containers and main containers make it.
fn outcome(pod: &Pod, views: &BTreeMap<String, View>) -> &'static str {
    let Some(spec) = &pod.spec else { return "Pending" };
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let view = |c: &Container| views.get(&c.name);
    let inits: Vec<_> = spec.init_containers.iter().flatten().collect();
    let failed_for_good = |c: &&Container| {
        policy == "Never" && view(c).is_some_and(|v| matches!(&v.state, State::Ended(e) if e.code != 0))
    };
    if inits.iter().any(|c| !is_sidecar(c) && failed_for_good(c)) {
        return "Failed";
    }
    let mains: Vec<_> = spec.containers.iter().filter_map(view).collect();
    let ever_started = |v: &View| !matches!(v.state, State::Waiting { .. }) || v.last.is_some();
    if !mains.iter().all(|v| ever_started(v)) || mains.is_empty() {
        return "Pending";
    }
    let all_ended = mains.iter().all(|v| matches!(v.state, State::Ended(_)));
    let all_well = mains.iter().all(|v| v.succeeded());
    match policy {
        "Never" | "OnFailure" if all_ended && all_well => "Succeeded",
        "Never" if all_ended => "Failed",
        _ => "Running",
    }
}

/// The whole status. `sandbox` says whether the pod's network is made; conditions keep the times of their last change
/// in `before`.
pub fn pod_status(
    pod: &Pod,
    views: &BTreeMap<String, View>,
    sandbox: bool,
    addresses: &Addresses,
    before: &PodStatus,
    now: Timestamp,
) -> PodStatus {
    let spec = pod.spec.clone().unwrap_or_default();
    let phase = phase(pod, views);
    let finished = matches!(phase, "Succeeded" | "Failed");
    let view =
        |c: &Container| views.get(&c.name).cloned().unwrap_or_else(|| View::waiting("ContainerCreating"));
    let statuses = |list: &[Container]| -> Vec<ContainerStatus> {
        list.iter().map(|c| container_status(c, &view(c))).collect()
    };
    let initialized = spec.init_containers.iter().flatten().all(|c| {
        let view = view(c);
        if is_sidecar(c) { view.started } else { view.succeeded() }
    });
    let not_ready: Vec<_> =
        spec.containers.iter().filter(|c| !view(c).ready).map(|c| c.name.clone()).collect();
    let containers_ready = !finished && sandbox && not_ready.is_empty();
    let gates = spec.readiness_gates.iter().flatten().all(|gate| {
        let conditions =
            pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        conditions.iter().any(|c| c.type_ == gate.condition_type && c.status == "True")
    });
    let unready = format!("containers with unready status: [{}]", not_ready.join(" "));
    let why = |held: bool| -> (Option<&str>, Option<&str>) {
        if held {
            (None, None)
        } else if phase == "Succeeded" {
            (Some("PodCompleted"), None)
        } else {
            (Some("ContainersNotReady"), Some(unready.as_str()))
        }
    };
    let (reason, message) = why(containers_ready);
    let ready = containers_ready && gates;
    let (ready_reason, ready_message) =
        if containers_ready && !gates { (Some("ReadinessGatesNotReady"), None) } else { (reason, message) };
    let mut conditions = before.conditions.clone().unwrap_or_default();
    let own: [(&str, bool, Option<&str>, Option<&str>); 5] = [
        ("PodReadyToStartContainers", sandbox, None, None),
        ("Initialized", initialized, (!initialized).then_some("ContainersNotInitialized"), None),
        ("Ready", ready, ready_reason, ready_message),
        ("ContainersReady", containers_ready, reason, message),
        ("PodScheduled", true, None, None),
    ];
    for (kind, held, reason, message) in own {
        set(&mut conditions, kind, held, reason, message, now);
    }
    let init = spec.init_containers.as_deref().unwrap_or_default();
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions),
        host_ip: Some(addresses.host.clone()),
        host_ips: Some(vec![HostIP { ip: addresses.host.clone() }]),
        pod_ip: addresses.pod.first().cloned(),
        pod_ips: (!addresses.pod.is_empty())
            .then(|| addresses.pod.iter().map(|ip| PodIP { ip: ip.clone() }).collect()),
        start_time: before.start_time.clone().or_else(|| Some(seconds(now))),
        container_statuses: Some(statuses(&spec.containers)),
        init_container_statuses: (!init.is_empty()).then(|| statuses(init)),
        qos_class: Some(qos(pod).to_owned()),
        observed_generation: pod.metadata.generation,
        ..PodStatus::default()
    }
}

fn set(
    conditions: &mut Vec<PodCondition>,
    kind: &str,
    held: bool,
    reason: Option<&str>,
    message: Option<&str>,
    now: Timestamp,
) {
    let status = if held { "True" } else { "False" };
    let known = conditions.iter().position(|c| c.type_ == kind);
    let since = known
        .filter(|index| conditions[*index].status == status)
        .and_then(|index| conditions[index].last_transition_time.clone());
    let condition = PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.map(str::to_owned),
        message: message.map(str::to_owned),
        last_transition_time: Some(since.unwrap_or_else(|| seconds(now))),
        ..PodCondition::default()
    };
    match known {
        Some(index) => conditions[index] = condition,
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(policy: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"restartPolicy": policy,
            "initContainers": [{"name": "i"}], "containers": [{"name": "a", "image": "traefik/whoami"}, {"name": "b"}]}}))
        .unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn ended(code: i32) -> View {
        let end = Ended { code, error: None, started: Some(at(1)), finished: at(2), id: "x".into() };
        View { state: State::Ended(end), ..View::waiting("") }
    }

    fn running(ready: bool) -> View {
        View {
            state: State::Running { since: at(1) },
            ready,
            started: true,
            id: "x".into(),
            ..View::waiting("")
        }
    }

    fn views(init: View, a: View, b: View) -> BTreeMap<String, View> {
        BTreeMap::from([("i".to_owned(), init), ("a".to_owned(), a), ("b".to_owned(), b)])
    }

    #[test]
    fn phases() {
        let waiting = || View::waiting("PodInitializing");
        for (policy, init, a, b, wanted) in [
            ("Always", waiting(), waiting(), waiting(), "Pending"),
            ("Never", ended(1), waiting(), waiting(), "Failed"),
            ("Always", ended(1), waiting(), waiting(), "Pending"),
            ("Always", ended(0), running(true), waiting(), "Pending"),
            ("Always", ended(0), running(true), ended(1), "Running"),
            ("OnFailure", ended(0), ended(0), ended(0), "Succeeded"),
            ("OnFailure", ended(0), ended(0), ended(1), "Running"),
            ("Never", ended(0), ended(0), ended(1), "Failed"),
        ] {
            assert_eq!(phase(&pod(policy), &views(init, a, b)), wanted);
        }
    }

    #[test]
    fn conditions_follow_readiness_and_keep_their_times() {
        let addresses = Addresses { pod: vec!["10.0.0.1".into()], host: "192.168.0.1".into() };
        let make = |b: View, before: &PodStatus, now: i64| {
            pod_status(&pod("Always"), &views(ended(0), running(true), b), true, &addresses, before, at(now))
        };
        let condition = |status: &PodStatus, kind: &str| {
            let all = status.conditions.clone().unwrap();
            let one = all.iter().find(|c| c.type_ == kind).unwrap().clone();
            (one.status, one.last_transition_time.unwrap().0.as_second(), one.message)
        };
        let first = make(running(false), &PodStatus::default(), 10);
        assert_eq!(
            condition(&first, "Ready"),
            ("False".into(), 10, Some("containers with unready status: [b]".into()))
        );
        assert_eq!(condition(&first, "Initialized").0, "True");
        let second = make(running(true), &first, 20);
        assert_eq!(condition(&second, "Ready"), ("True".into(), 20, None));
        assert_eq!(condition(&second, "Initialized").1, 10, "unchanged conditions keep their time");
        assert_eq!(second.start_time, first.start_time);
        assert_eq!(second.pod_ip.as_deref(), Some("10.0.0.1"));
        assert_eq!(second.container_statuses.unwrap()[0].image_id, "builtin/traefik/whoami");
    }

    #[test]
    fn quality_of_service() {
        let of = |resources: serde_json::Value| {
            let pod =
                json!({"metadata": {}, "spec": {"containers": [{"name": "a", "resources": resources}]}});
            qos(&serde_json::from_value(pod).unwrap())
        };
        assert_eq!(of(json!({})), "BestEffort");
        assert_eq!(of(json!({"requests": {"cpu": "1"}})), "Burstable");
        assert_eq!(of(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
    }
}
