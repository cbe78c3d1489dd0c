//! Writes to pods that several controllers do, kept in step with the informer.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::Cluster;
use super::informer::Informer;
use super::meta::or_gone;

/// The known pods of a namespace.
pub fn in_namespace(pods: &Informer<Pod>, namespace: &str) -> Vec<Arc<Pod>> {
    pods.list_if(|pod| pod.metadata.namespace.as_deref() == Some(namespace))
}

/// Deletes a pod, exactly the known one; a pod that is gone is fine.
pub async fn delete(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    how: &DeleteParams,
) -> Result<(), kube::Error> {
    let Some(known) = cluster.pods.get(Some(namespace), name) else { return Ok(()) };
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let how = DeleteParams {
        preconditions: Some(Preconditions { uid: known.uid(), resource_version: None }),
        ..how.clone()
    };
    let answer = or_gone(api.delete(name, &how).await)?;
    // The API server answers with the pod, marked for deletion: its node still has to end it, or the watch tells that it
    // is gone.
    match answer
        .and_then(|answer| answer.map_right(drop).left())
        .filter(|pod| pod.metadata.deletion_timestamp.is_some())
    {
        Some(pod) => cluster.pods.observe(pod),
        None => cluster.pods.forget(&known),
    }
    Ok(())
}

/// Makes `owner` the manager of an orphan.
pub async fn adopt(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    owner: OwnerReference,
) -> Result<(), kube::Error> {
    let Some(known) = cluster.pods.get(Some(namespace), name) else { return Ok(()) };
    let mut owners = known.metadata.owner_references.clone().unwrap_or_default();
    owners.push(owner);
    set_owners(cluster, namespace, &known, owners).await
}

/// Takes the manager with this uid off a pod.
pub async fn release(cluster: &Cluster, namespace: &str, name: &str, uid: &str) -> Result<(), kube::Error> {
    let Some(known) = cluster.pods.get(Some(namespace), name) else { return Ok(()) };
    let owners = known.metadata.owner_references.iter().flatten().filter(|owner| owner.uid != uid).cloned();
    set_owners(cluster, namespace, &known, owners.collect()).await
}

async fn set_owners(
    cluster: &Cluster,
    namespace: &str,
    known: &Pod,
    owners: Vec<OwnerReference>,
) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let patch = json!({"metadata": {
        "uid": known.metadata.uid, "resourceVersion": known.metadata.resource_version, "ownerReferences": owners,
    }});
    let written = api.patch(&known.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await;
    if let Some(pod) = or_gone(written)? {
        cluster.pods.observe(pod);
    }
    Ok(())
}
