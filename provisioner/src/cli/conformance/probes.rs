//! The pods that a case sends from: one on every Kubernetes node, there for the case only.

use std::net::Ipv4Addr;
use std::time::Duration;

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::runtime::wait::{Condition, await_condition};
use kube::{Client, ResourceExt};
use serde_json::json;

use crate::access::exec_in_pod;
use crate::error::{Failure, OrFailure};

const NAMESPACE: &str = "default";
const LABEL: &str = "app=podwire-conformance";
/// How long a pod may take to start, or a command in it to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A pod to send from; it serves iperf3 too.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    pub(super) name: String,
    pub(super) node: String,
    pub(super) ip: Ipv4Addr,
}

/// The probes of one case.
pub(super) struct Probes {
    pods: Api<Pod>,
    pub(super) all: Vec<Probe>,
}

impl Probes {
    /// Makes a probe on each node and waits until all are ready. Those that an interrupted run left go first.
    pub(super) async fn make(client: &Client, nodes: &[String]) -> Result<Self, Failure> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
        let mut probes = Self { pods, all: Vec::new() };
        probes.remove().await?;
        let made = try_join_all(nodes.iter().map(|node| make(&probes.pods, node))).await;
        match made {
            Ok(all) => {
                probes.all = all;
                Ok(probes)
            }
            Err(failure) => {
                probes.remove().await?;
                Err(failure)
            }
        }
    }

    /// Removes every probe and waits until they are gone.
    pub(super) async fn remove(&self) -> Result<(), Failure> {
        let thing = "pods of the conformance case";
        let mend = format!("remove them: kubectl delete pods -l {LABEL}");
        let left = self.pods.list(&ListParams::default().labels(LABEL)).await.or_failure(thing, &mend)?;
        try_join_all(left.items.iter().map(|pod| async {
            let name = pod.name_any();
            let uid = pod.uid().unwrap_or_default();
            let now = DeleteParams::default().grace_period(0);
            match self.pods.delete(&name, &now).await {
                Err(kube::Error::Api(e)) if e.code == 404 => return Ok(()),
                other => drop(other.or_failure(thing, &mend)?),
            }
            let gone = kube::runtime::conditions::is_deleted(&uid);
            let waited =
                tokio::time::timeout(PATIENCE, await_condition(self.pods.clone(), &name, gone)).await;
            waited.or_failure(thing, &mend)?.or_failure(thing, &mend)?;
            Ok(())
        }))
        .await?;
        Ok(())
    }

    /// Runs a command in a probe; its standard output. The error is what it said, or why it could not run.
    pub(super) async fn run(&self, probe: &Probe, argv: &[&str]) -> Result<String, String> {
        exec_in_pod(&self.pods, &probe.name, argv, PATIENCE).await
    }
}

async fn make(pods: &Api<Pod>, node: &str) -> Result<Probe, Failure> {
    let name = format!("podwire-conformance-{node}");
    let thing = format!("pod {name}");
    let pod: Pod = serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "podwire-conformance"}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "probe", "image": "nicolaka/netshoot", "command": ["iperf3", "--server"]}],
        },
    }))
    .or_failure(&thing, "report this as a bug")?;
    let mend = format!("see why: kubectl describe pod {name}");
    pods.create(&PostParams::default(), &pod).await.or_failure(&thing, &mend)?;
    let waited = tokio::time::timeout(PATIENCE, await_condition(pods.clone(), &name, ready())).await;
    let Ok(pod) = waited else {
        let pod = pods.get(&name).await.or_failure(&thing, &mend)?;
        let why = crate::deploy::pod_trouble(&pod).unwrap_or_default();
        return Err(Failure::new(thing, format!("not ready after {} s: {why}", PATIENCE.as_secs()), mend));
    };
    let pod = pod.or_failure(&thing, &mend)?;
    let ip = pod.and_then(|p| p.status?.pod_ip?.parse().ok());
    let ip = ip.ok_or_else(|| Failure::new(&thing, "it is ready but has no IPv4 address", &mend))?;
    Ok(Probe { name, node: node.to_owned(), ip })
}

fn ready() -> impl Condition<Pod> {
    |pod: Option<&Pod>| {
        pod.is_some_and(|p| {
            crate::deploy::pod_trouble(p).is_none() && p.status.as_ref().is_some_and(|s| s.pod_ip.is_some())
        })
    }
}
