//! Controllers and scheduler against the real API server, without nodes: the tests play them.
#![allow(clippy::unwrap_used, reason = "a test ends where something is missing")]
#![allow(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod, ServiceAccount};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt as _};
use podwire_cluster::apiserver::{self, ApiServerConfig};
use podwire_cluster::controllers::{self, Options};
use podwire_cluster::pki::{self, PkiRequest};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Longest wait for a condition; a test that needs as much has failed.
const PATIENCE: Duration = Duration::from_mins(1);

/// An API server on the loopback device, and controllers that can be stopped and started.
struct Cluster {
    dir: tempfile::TempDir,
    client: Client,
    server: JoinHandle<()>,
    controllers: Option<JoinHandle<()>>,
    _end: oneshot::Sender<()>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.server.abort();
        self.controllers.iter().for_each(JoinHandle::abort);
    }
}

async fn client(dir: &Path, address: SocketAddr, user: &str) -> Client {
    let text = pki::kubeconfig(&pki::Pki::open(dir), &format!("https://{address}"), user).unwrap();
    let kubeconfig = Kubeconfig::from_yaml(&text).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

impl Cluster {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        pki::create(&pki, &PkiRequest::default()).unwrap();
        let (ready, listening) = oneshot::channel();
        let (end, ended) = oneshot::channel::<()>();
        let config = ApiServerConfig {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            pki: pki.clone(),
            data_dir: dir.path().join("data"),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
        };
        let server = tokio::spawn(async move {
            apiserver::serve(config, ready, async {
                let _ = ended.await;
            })
            .await
            .unwrap();
        });
        let address = listening.await.unwrap();
        let client = client(&pki, address, "admin").await;
        let mut cluster = Self { dir, client, server, controllers: None, _end: end };
        cluster.start("10.244.0.0/23");
        cluster
    }

    /// Starts the controllers; nodes get /24 networks of `cidr`.
    fn start(&mut self, cidr: &str) {
        let options = Options {
            cluster_cidr: cidr.parse().unwrap(),
            node_cidr_mask_size: 24,
            allocate_node_cidrs: true,
            root_ca: std::fs::read_to_string(self.dir.path().join("pki/ca.crt")).unwrap(),
        };
        self.controllers = Some(tokio::spawn(controllers::run(self.client.clone(), options)));
    }

    async fn stop(&mut self) {
        if let Some(task) = self.controllers.take() {
            task.abort();
            let _ = task.await;
        }
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn add_node(&self, name: &str) {
        let node = json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
        self.nodes().create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
    }

    async fn cidr(&self, name: &str) -> Option<String> {
        self.nodes().get(name).await.unwrap().spec.and_then(|spec| spec.pod_cidr)
    }

    /// Asks again and again until `probe` answers.
    async fn until<T, F: Future<Output = Option<T>>>(&self, what: &str, probe: impl Fn() -> F) -> T {
        let asking = async {
            loop {
                if let Some(answer) = probe().await {
                    return answer;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("waited in vain until {what}"))
    }

    async fn has_event(&self, reason: &str, words: &str) {
        let api: Api<Event> = Api::all(self.client.clone());
        self.until(&format!("an event {reason} says \"{words}\""), || async {
            let all = api.list(&ListParams::default()).await.unwrap();
            let told = |event: &Event| {
                event.reason.as_deref() == Some(reason)
                    && event.message.as_deref().unwrap_or_default().contains(words)
            };
            all.items.iter().any(told).then_some(())
        })
        .await;
    }
}

fn pod(name: &str, spec: Value) -> Pod {
    let mut spec = spec;
    spec.as_object_mut()
        .unwrap()
        .entry("containers")
        .or_insert(json!([{"name": "c", "image": "traefik/whoami"}]));
    serde_json::from_value(
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}),
    )
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_get_networks_in_order_and_the_pool_survives_restarts() {
    let mut cluster = Cluster::new().await;
    for name in ["c", "a"] {
        cluster.add_node(name).await;
        cluster.until("the node has a network", || cluster.cidr(name)).await;
    }
    assert_eq!(cluster.cidr("c").await.as_deref(), Some("10.244.0.0/24"));
    assert_eq!(cluster.cidr("a").await.as_deref(), Some("10.244.1.0/24"));

    cluster.stop().await;
    cluster.add_node("late").await;
    cluster.start("10.244.0.0/23");
    cluster.has_event("CIDRNotAvailable", "late").await;
    assert_eq!(cluster.cidr("late").await, None);

    cluster.nodes().delete("c", &DeleteParams::default()).await.unwrap();
    let freed = cluster.until("the freed network is given out", || cluster.cidr("late")).await;
    assert_eq!(freed, "10.244.0.0/24");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_placed_or_told_why_not() {
    let cluster = Cluster::new().await;
    cluster
        .pods()
        .create(&PostParams::default(), &pod("p", json!({"nodeSelector": {"disk": "fast"}})))
        .await
        .unwrap();
    cluster.has_event("FailedScheduling", "no nodes available to schedule pods").await;
    cluster.add_node("n1").await;
    cluster
        .has_event(
            "FailedScheduling",
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
        )
        .await;
    let condition = cluster
        .until("the pod says so itself", || async {
            let status = cluster.pods().get("p").await.unwrap().status?;
            status.conditions?.into_iter().find(|c| c.type_ == "PodScheduled" && c.message.is_some())
        })
        .await;
    assert_eq!((condition.status.as_str(), condition.reason.as_deref()), ("False", Some("Unschedulable")));

    let patch = json!({"metadata": {"labels": {"disk": "fast"}}});
    cluster.nodes().patch("n1", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    let node = cluster
        .until("the pod is placed", || async { cluster.pods().get("p").await.unwrap().spec?.node_name })
        .await;
    assert_eq!(node, "n1");
    cluster.has_event("Scheduled", "Successfully assigned default/p to n1").await;

    cluster.nodes().delete("n1", &DeleteParams::default()).await.unwrap();
    cluster
        .until("the pod goes with its node", || async {
            cluster.pods().get_opt("p").await.unwrap().is_none().then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_makes_spreads_and_replaces_pods() {
    let cluster = Cluster::new().await;
    cluster.add_node("n1").await;
    cluster.add_node("n2").await;
    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), "default");
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
        "replicas": 4, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "traefik/whoami"}]}}}});
    api.create(&PostParams::default(), &serde_json::from_value(deployment).unwrap()).await.unwrap();
    let web = ListParams::default().labels("app=web");
    let placed = cluster
        .until("four pods are placed", || async {
            let pods = cluster.pods().list(&web).await.unwrap().items;
            let nodes: Vec<_> = pods.iter().filter_map(|pod| pod.spec.clone()?.node_name).collect();
            (pods.len() == 4 && nodes.len() == 4).then_some(pods)
        })
        .await;
    let on_first =
        placed.iter().filter(|p| p.spec.as_ref().unwrap().node_name.as_deref() == Some("n1")).count();
    assert_eq!(on_first, 2, "two on each node");

    let victim = placed[0].name_any();
    let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    cluster.pods().delete(&victim, &at_once).await.unwrap();
    cluster
        .until("the lost pod is replaced", || async {
            let pods = cluster.pods().list(&web).await.unwrap().items;
            (pods.len() == 4 && pods.iter().all(|pod| pod.name_any() != victim)).then_some(())
        })
        .await;
    let status = cluster
        .until("the status counts them", || async {
            api.get("web").await.unwrap().status.filter(|status| status.replicas == Some(4))
        })
        .await;
    let available = status.conditions.unwrap().into_iter().find(|c| c.type_ == "Available").unwrap();
    assert_eq!(available.status, "False", "no node runs them");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_that_begins_with_no_pods_is_not_called_scaled_up() {
    let cluster = Cluster::new().await;
    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), "default");
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
        "replicas": 0, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "traefik/whoami"}]}}}});
    api.create(&PostParams::default(), &serde_json::from_value(deployment).unwrap()).await.unwrap();
    cluster
        .until("the set is there", || async {
            api.get("web").await.unwrap().status.filter(|status| status.observed_generation == Some(1))
        })
        .await;
    scale(&api, 1).await;
    cluster.has_event("ScalingReplicaSet", "from 0 to 1").await;
    // Events are written in order: an earlier one would be there now.
    let events: Api<Event> = Api::all(cluster.client.clone());
    let events = events.list(&ListParams::default()).await.unwrap().items;
    let said: Vec<_> = events
        .iter()
        .filter(|e| e.reason.as_deref() == Some("ScalingReplicaSet"))
        .map(|e| &e.message)
        .collect();
    assert_eq!(said.len(), 1, "{said:?}");
}

/// A Deployment whose two pods keep apart, placed on two nodes; pods are given `grace` seconds to end.
async fn placed_apart(cluster: &Cluster, grace: i64) -> Api<Deployment> {
    cluster.add_node("n1").await;
    cluster.add_node("n2").await;
    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), "default");
    let apart = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
        "replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"terminationGracePeriodSeconds": grace, "affinity": apart,
                     "containers": [{"name": "c", "image": "traefik/whoami"}]}}}});
    api.create(&PostParams::default(), &serde_json::from_value(deployment).unwrap()).await.unwrap();
    both_nodes_taken(cluster).await;
    api
}

/// Waits until there are two pods, one on each of the nodes `n1` and `n2`.
async fn both_nodes_taken(cluster: &Cluster) {
    cluster
        .until("a pod is on each node, and no pod waits", || async {
            let pods = cluster.pods().list(&ListParams::default()).await.unwrap().items;
            let mut nodes: Vec<_> = pods.iter().filter_map(|pod| pod.spec.clone()?.node_name).collect();
            nodes.sort();
            (pods.len() == 2 && nodes == ["n1", "n2"]).then_some(())
        })
        .await;
}

async fn scale(api: &Api<Deployment>, replicas: i32) {
    let patch = json!({"spec": {"replicas": replicas}});
    api.patch("web", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_for_the_place_of_one_that_leaves_and_gets_it() {
    let cluster = Cluster::new().await;
    let api = placed_apart(&cluster, 30).await;
    scale(&api, 1).await;
    let leaving = cluster
        .until("one pod leaves", || async {
            let pods = cluster.pods().list(&ListParams::default()).await.unwrap().items;
            pods.into_iter().find(|pod| pod.metadata.deletion_timestamp.is_some())
        })
        .await;
    scale(&api, 2).await;
    cluster.has_event("FailedScheduling", "2 node(s) didn't match pod anti-affinity rules").await;
    let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    cluster.pods().delete(&leaving.name_any(), &at_once).await.unwrap();
    both_nodes_taken(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_are_deleted_at_once_hold_no_place() {
    let cluster = Cluster::new().await;
    let api = placed_apart(&cluster, 0).await;
    // The answer to a deletion and the watch's word of it come in either order: many rounds see both.
    for _ in 0..30 {
        scale(&api, 1).await;
        cluster
            .until("one pod is left", || async {
                (cluster.pods().list(&ListParams::default()).await.unwrap().items.len() == 1).then_some(())
            })
            .await;
        scale(&api, 2).await;
        both_nodes_taken(&cluster).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_follows_the_one_that_it_wants_near() {
    let cluster = Cluster::new().await;
    cluster.add_node("n1").await;
    let near = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "db"}}}]}}});
    cluster.pods().create(&PostParams::default(), &pod("web", near)).await.unwrap();
    cluster.has_event("FailedScheduling", "1 node(s) didn't match pod affinity rules").await;
    let mut database = pod("db", json!({}));
    database.metadata.labels = Some([("app".to_owned(), "db".to_owned())].into());
    cluster.pods().create(&PostParams::default(), &database).await.unwrap();
    let node = cluster
        .until("the pod is placed", || async { cluster.pods().get("web").await.unwrap().spec?.node_name })
        .await;
    assert_eq!(node, "n1");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_namespace_has_an_account_and_the_ca() {
    let cluster = Cluster::new().await;
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), "kube-system");
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "kube-system");
    cluster.until("the account is there", || async { accounts.get_opt("default").await.unwrap() }).await;
    let map =
        cluster.until("the CA is there", || async { maps.get_opt("kube-root-ca.crt").await.unwrap() }).await;
    assert!(map.data.unwrap()["ca.crt"].contains("BEGIN CERTIFICATE"));
}
