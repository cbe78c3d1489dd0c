//! Waiting, by watches, until everything that was deployed is ready, and saying why it is not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures::stream::{SelectAll, StreamExt};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Event as KubeEvent, Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use podwire_api::names;

use crate::error::Failure;

/// When the parts were ready.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// Every node and every agent.
    pub agents: Instant,
    /// Everything.
    pub all: Instant,
}

/// Machines that were made again below a cluster that goes on. What it says of their pods is old until they run anew.
#[derive(Clone, Debug)]
pub struct MadeAgain {
    nodes: BTreeSet<String>,
    since: Timestamp,
}

impl MadeAgain {
    /// None so far; those that will be are made from now on.
    pub fn from_now() -> Self {
        // The API's times have whole seconds.
        let now = Timestamp::now();
        Self { nodes: BTreeSet::new(), since: Timestamp::from_second(now.as_second()).unwrap_or(now) }
    }

    /// Adds machines.
    pub fn add(&mut self, nodes: &[String]) {
        self.nodes.extend(nodes.iter().cloned());
    }

    /// True for a pod that ran on such a machine before, and of which nothing was heard since.
    fn is_stale(&self, pod: &Pod) -> bool {
        let node = pod.spec.as_ref().and_then(|s| s.node_name.as_ref());
        let containers = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
        let mut started = containers
            .filter_map(|c| c.state.as_ref()?.running.as_ref()?.started_at.as_ref())
            .map(|time| time.0);
        node.is_some_and(|node| self.nodes.contains(node)) && started.any(|at| at < self.since)
    }
}

/// What the watches have shown so far.
struct View {
    again: MadeAgain,
    nodes: BTreeMap<String, Node>,
    daemon_sets: BTreeMap<String, DaemonSet>,
    deployments: BTreeMap<String, Deployment>,
    pods: BTreeMap<String, Pod>,
    listed: [bool; 4],
}

enum Change {
    Node(Event<Node>),
    DaemonSet(Event<DaemonSet>),
    Deployment(Event<Deployment>),
    Pod(Event<Pod>),
    Broken(String),
}

/// Waits until the nodes are ready, and every DaemonSet, Deployment and pod. `tell` is called with what is still missing.
pub async fn wait_ready(
    client: &Client,
    nodes: &[String],
    again: MadeAgain,
    patience: Duration,
    mut tell: impl FnMut(&str),
) -> Result<Ready, Failure> {
    let mut view = View {
        again,
        nodes: BTreeMap::new(),
        daemon_sets: BTreeMap::new(),
        deployments: BTreeMap::new(),
        pods: BTreeMap::new(),
        listed: [false; 4],
    };
    let mut changes = watch_all(client);
    let mut agents = None;
    let mut broken = String::new();
    let deadline = tokio::time::Instant::now() + patience;
    while let Ok(Some(change)) = tokio::time::timeout_at(deadline, changes.next()).await {
        match change {
            Change::Broken(cause) => broken = cause,
            change => view.apply(change),
        }
        if !view.listed.iter().all(|listed| *listed) {
            continue;
        }
        let base = view.missing_base(nodes);
        if base.is_empty() {
            agents.get_or_insert_with(Instant::now);
        }
        let missing = if base.is_empty() { view.missing_apps() } else { base };
        match (missing.first(), agents) {
            (None, Some(agents)) => return Ok(Ready { agents, all: Instant::now() }),
            (Some(first), _) => tell(first),
            (None, None) => {}
        }
    }
    Err(view.failure(client, nodes, patience, &broken).await)
}

fn watch_all(client: &Client) -> SelectAll<futures::stream::BoxStream<'static, Change>> {
    fn stream<K>(client: &Client, wrap: fn(Event<K>) -> Change) -> futures::stream::BoxStream<'static, Change>
    where
        K: kube::Resource<DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + Send
            + Sync
            + serde::de::DeserializeOwned
            + 'static,
    {
        let events = watcher(Api::<K>::all(client.clone()), watcher::Config::default());
        events.map(move |e| e.map_or_else(|e| Change::Broken(e.to_string()), wrap)).boxed()
    }
    let mut all = SelectAll::new();
    all.push(stream(client, Change::Node));
    all.push(stream(client, Change::DaemonSet));
    all.push(stream(client, Change::Deployment));
    all.push(stream(client, Change::Pod));
    all
}

fn update<K: ResourceExt>(map: &mut BTreeMap<String, K>, listed: &mut bool, event: Event<K>) {
    let key = |k: &K| format!("{}/{}", k.namespace().unwrap_or_default(), k.name_any());
    match event {
        Event::Init => map.clear(),
        Event::InitDone => *listed = true,
        Event::Apply(object) | Event::InitApply(object) => {
            map.insert(key(&object), object);
        }
        Event::Delete(object) => {
            map.remove(&key(&object));
        }
    }
}

impl View {
    fn apply(&mut self, change: Change) {
        let [nodes, daemon_sets, deployments, pods] = &mut self.listed;
        match change {
            Change::Node(event) => update(&mut self.nodes, nodes, event),
            Change::DaemonSet(event) => update(&mut self.daemon_sets, daemon_sets, event),
            Change::Deployment(event) => update(&mut self.deployments, deployments, event),
            Change::Pod(event) => update(&mut self.pods, pods, event),
            Change::Broken(_) => {}
        }
    }

    /// What the pod network still lacks.
    fn missing_base(&self, wanted: &[String]) -> Vec<String> {
        let mut missing = Vec::new();
        for name in wanted {
            match self.nodes.get(&format!("/{name}")) {
                None => missing.push(format!("node {name}: its node runtime has not registered it")),
                Some(node) => missing.extend(node_trouble(node).map(|why| format!("node {name}: {why}"))),
            }
        }
        let agent = format!("{}/{}", names::SYSTEM_NAMESPACE, names::AGENT_DAEMON_SET);
        match self.daemon_sets.get(&agent) {
            None => missing.push(format!("DaemonSet {agent}: it is not there")),
            Some(set) => missing.extend(daemon_set_trouble(set, wanted.len())),
        }
        missing
    }

    fn trouble(&self, pod: &Pod) -> Option<String> {
        let stale =
            || self.again.is_stale(pod).then(|| "its node was made again; it does not run there yet".into());
        pod_trouble(pod).or_else(stale)
    }

    fn missing_apps(&self) -> Vec<String> {
        let mut missing: Vec<String> = self.deployments.values().filter_map(deployment_trouble).collect();
        for (name, pod) in &self.pods {
            missing.extend(self.trouble(pod).map(|why| format!("pod {name}: {why}")));
        }
        missing
    }

    /// The error of a deployment that did not become ready: each thing that is missing, each pod with its last event.
    async fn failure(&self, client: &Client, nodes: &[String], patience: Duration, broken: &str) -> Failure {
        let mut lines = self.missing_base(nodes);
        lines.extend(self.missing_apps());
        for (name, pod) in self.pods.iter().filter(|(_, p)| self.trouble(p).is_some()) {
            if let Some(event) = last_event(client, pod).await {
                lines.push(format!("pod {name}: event: {event}"));
            }
        }
        if lines.is_empty() {
            lines.push(if broken.is_empty() {
                "the API server sent nothing".into()
            } else {
                broken.to_owned()
            });
        }
        lines.dedup();
        let cause =
            format!("not everything is ready after {} s:\n  {}\n", patience.as_secs(), lines.join("\n  "));
        Failure::new("deployment", cause, "see the logs: lab status; or wait longer: lab up --timeout 120s")
    }
}

fn node_trouble(node: &Node) -> Option<String> {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|c| c.type_ == "Ready");
    match ready {
        Some(condition) if condition.status == "True" => None,
        Some(condition) => Some(condition.message.clone().unwrap_or_else(|| "not ready".into())),
        None => Some("its node runtime has not reported yet".into()),
    }
}

fn daemon_set_trouble(set: &DaemonSet, nodes: usize) -> Option<String> {
    let ready = set.status.as_ref().map_or(0, |s| s.number_ready);
    let current = set.status.as_ref().and_then(|s| s.observed_generation) == set.metadata.generation;
    let wanted = i32::try_from(nodes).unwrap_or(i32::MAX);
    (ready < wanted || !current).then(|| format!("DaemonSet {}: {ready} of {wanted} ready", set.name_any()))
}

fn deployment_trouble(deployment: &Deployment) -> Option<String> {
    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let status = deployment.status.as_ref();
    let ready = status.and_then(|s| s.ready_replicas).unwrap_or(0);
    let current = status.and_then(|s| s.observed_generation) == deployment.metadata.generation;
    (ready < wanted || !current)
        .then(|| format!("Deployment {}: {ready} of {wanted} ready", deployment.name_any()))
}

/// Why a pod is not ready; none if it is, if it has done its work, or if it is on its way out.
pub(crate) fn pod_trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref();
    let phase = status.and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
    if phase == "Succeeded" || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let conditions = status.and_then(|s| s.conditions.as_ref());
    let condition = |kind: &str| conditions.into_iter().flatten().find(|c| c.type_ == kind);
    if condition("Ready").is_some_and(|c| c.status == "True") {
        return None;
    }
    let containers = status.and_then(|s| s.container_statuses.as_ref()).into_iter().flatten();
    for container in containers {
        let state = container.state.as_ref();
        if let Some(waiting) = state.and_then(|s| s.waiting.as_ref()) {
            let reason = waiting.reason.as_deref().unwrap_or("Waiting");
            let message = waiting.message.as_deref().map(|m| format!(": {m}")).unwrap_or_default();
            return Some(format!("{}: {reason}{message}", container.name));
        }
        if let Some(ended) = state.and_then(|s| s.terminated.as_ref()) {
            return Some(format!("{}: ended with exit code {}", container.name, ended.exit_code));
        }
    }
    if let Some(message) =
        condition("PodScheduled").filter(|c| c.status != "True").and_then(|c| c.message.clone())
    {
        return Some(message);
    }
    Some(format!("{phase}, not ready"))
}

async fn last_event(client: &Client, pod: &Pod) -> Option<String> {
    let events: Api<KubeEvent> = Api::namespaced(client.clone(), &pod.namespace()?);
    let mut found = events.list(&ListParams::default()).await.ok()?.items;
    found.retain(|e| e.involved_object.name.as_deref() == pod.metadata.name.as_deref());
    found.sort_by_key(|e| e.last_timestamp.as_ref().map(|t| t.0).or(e.event_time.as_ref().map(|t| t.0)));
    let last = found.pop()?;
    Some(format!("{}: {}", last.reason.unwrap_or_default(), last.message.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(node: &str, started: &str) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "a"},
            "spec": {"nodeName": node, "containers": []},
            "status": {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{
                    "name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                    "state": {"running": {"startedAt": started}},
                }],
            },
        }))
        .unwrap()
    }

    #[test]
    fn what_ran_on_a_machine_before_it_was_made_again_is_old() {
        let mut again = MadeAgain::from_now();
        let (before, now) = ("2020-01-01T00:00:00Z".to_owned(), again.since.to_string());
        assert!(!again.is_stale(&pod("k8s-w1", &before)), "its machine was not made again");
        again.add(&["k8s-w1".to_owned()]);
        assert!(again.is_stale(&pod("k8s-w1", &before)));
        assert!(!again.is_stale(&pod("k8s-w1", &now)), "it was started anew");
        assert!(!again.is_stale(&pod("k8s-ctr", &before)));
    }
}
