//! Pods whose node is gone: nobody else can end them.

use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt as _};

use super::Cluster;
use super::informer::{Change, key_of, split_key};
use super::meta::{is_not_found, or_gone};
use super::queue::Queue;

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).filter(|name| !name.is_empty())
}

/// Watches and deletes for ever.
pub async fn run(cluster: Cluster) {
    let queue = Queue::default();
    let (on_node, pods) = (queue.clone(), cluster.pods.clone());
    cluster.nodes.on_change(move |change| {
        if let Change::Gone(node) = change {
            let name = node.name_any();
            for pod in pods.list_if(|pod| node_of(pod) == Some(&name)) {
                on_node.add(key_of(pod.as_ref()));
            }
        }
    });
    cluster.synced().await;
    for pod in cluster.pods.list_if(|pod| node_of(pod).is_some()) {
        queue.add(key_of(pod.as_ref()));
    }
    let cluster = &cluster;
    queue.work("pod-gc", |key| async move { reconcile(cluster, &key).await }).await;
}

async fn reconcile(cluster: &Cluster, key: &str) -> Result<(), kube::Error> {
    let Some(pod) = cluster.pods.get_key(key) else { return Ok(()) };
    let Some(node) = node_of(&pod).filter(|node| cluster.nodes.get(None, node).is_none()) else {
        return Ok(());
    };
    // The informer may be behind a node that has just come (back): ask.
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(cluster.client.clone());
    match nodes.get(node).await {
        Ok(_) => return Ok(()),
        Err(error) if is_not_found(&error) => {}
        Err(error) => return Err(error),
    }
    let (namespace, name) = split_key(key);
    tracing::info!(pod = key, node, "the pod's node is gone: deleting the pod");
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    or_gone(
        api.delete(name, &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await,
    )?;
    Ok(())
}
