//! Writes to pods that several controllers do, kept in step with the informer.

use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Resource, ResourceExt as _};
use serde_json::json;

use super::Cluster;
use super::events::Severity;
use super::informer::Informer;
use super::meta::or_gone;

/// The known pods of a namespace.
pub fn in_namespace(pods: &Informer<Pod>, namespace: &str) -> Vec<Arc<Pod>> {
    pods.list_if(|pod| pod.metadata.namespace.as_deref() == Some(namespace))
}

/// Makes pods of `owner`, side by side, with an event for each.
pub async fn create<K: Resource<DynamicType = ()>>(
    cluster: &Cluster,
    owner: &K,
    namespace: &str,
    new: Vec<Pod>,
) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let params = PostParams::default();
    let made = join_all(new.iter().map(|pod| api.create(&params, pod))).await;
    // Every answer counts before an error does: a pod that is not known would be made once more.
    let mut failed = None;
    for result in made {
        match result {
            Ok(pod) => {
                let text = format!("Created pod: {}", pod.name_any());
                cluster.recorder.about(owner, Severity::Normal, "SuccessfulCreate", text);
                cluster.pods.observe(pod);
            }
            Err(error) => {
                let text = format!("Error creating: {error}");
                cluster.recorder.about(owner, Severity::Warning, "FailedCreate", text);
                failed = Some(error);
            }
        }
    }
    failed.map_or(Ok(()), Err)
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
