//! Deployments: watches, writes. What is written is decided in [`super::rollout`].

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::events::Severity;
use super::informer::{key, key_of};
use super::meta::{controller_of, is_conflict, or_gone, owner_reference};
use super::queue::Queue;
use super::rollout::{self, Action, REVISION};
use super::{Cluster, pods};

/// Watches and reconciles for ever.
pub async fn run(cluster: Cluster) {
    let queue = Queue::default();
    let on_deployment = queue.clone();
    cluster.deployments.on_change(move |change| on_deployment.add(key_of(change.object().as_ref())));
    let (on_set, deployments) = (queue.clone(), cluster.deployments.clone());
    cluster.replica_sets.on_change(move |change| {
        let set = change.object();
        match controller_of(&set.metadata) {
            Some(owner) if owner.kind == "Deployment" => {
                on_set.add(key(set.metadata.namespace.as_deref(), &owner.name));
            }
            Some(_) => {}
            None => {
                for deployment in deployments.list_if(|d| rollout::adopts(d, set)) {
                    on_set.add(key_of(deployment.as_ref()));
                }
            }
        }
    });
    // Recreate waits until the last old pod is really gone.
    let (on_pod, sets) = (queue.clone(), cluster.replica_sets.clone());
    cluster.pods.on_change(move |change| {
        let pod = change.object();
        let namespace = pod.metadata.namespace.as_deref();
        let set = controller_of(&pod.metadata)
            .filter(|owner| owner.kind == "ReplicaSet")
            .and_then(|owner| sets.get(namespace, &owner.name));
        if let Some(owner) = set.as_ref().and_then(|set| controller_of(&set.metadata)) {
            on_pod.add(key(namespace, &owner.name));
        }
    });
    cluster.synced().await;
    for deployment in cluster.deployments.list() {
        queue.add(key_of(deployment.as_ref()));
    }
    let (cluster, again) = (&cluster, &queue.clone());
    queue.work("deployment", |key| async move { reconcile(cluster, again, &key).await }).await;
}

async fn reconcile(cluster: &Cluster, queue: &Queue, key: &str) -> Result<(), kube::Error> {
    let Some(deployment) = cluster.deployments.get_key(key) else { return Ok(()) };
    if deployment.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let namespace = deployment.namespace().unwrap_or_default();
    adopt(cluster, &deployment, &namespace).await?;

    let uid = deployment.uid().unwrap_or_default();
    let owned = |cluster: &Cluster| -> Vec<Arc<ReplicaSet>> {
        cluster.replica_sets.list_if(|set| super::meta::is_controlled_by(&set.metadata, &uid))
    };
    let sets = owned(cluster);
    let pods = pods::in_namespace(&cluster.pods, &namespace);
    let plan = rollout::plan(&deployment, &sets, &pods);
    for action in &plan.actions {
        act(cluster, &deployment, &namespace, action).await?;
    }

    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), &namespace);
    let name = deployment.name_any();
    let mut deployment = deployment;
    if let Some(revision) = &plan.revision
        && deployment.annotations().get(REVISION) != Some(revision)
    {
        let patch = json!({"metadata": {"annotations": {REVISION: revision}}});
        let written = deployments.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        let Some(written) = or_gone(written)? else { return Ok(()) };
        cluster.deployments.observe(written.clone());
        deployment = Arc::new(written);
    }

    let (status, look_again) = rollout::status(&deployment, &owned(cluster), Timestamp::now());
    if deployment.status.as_ref() != Some(&status) {
        let patch = json!({ "status": status });
        let written = deployments.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        if let Some(written) = or_gone(written)? {
            cluster.deployments.observe(written);
        }
    }
    if let Some(seconds) = look_again {
        queue.add_after(key, Duration::from_secs(seconds));
    }
    Ok(())
}

async fn adopt(cluster: &Cluster, deployment: &Deployment, namespace: &str) -> Result<(), kube::Error> {
    let sets: Api<ReplicaSet> = Api::namespaced(cluster.client.clone(), namespace);
    for orphan in cluster.replica_sets.list_if(|set| rollout::adopts(deployment, set)) {
        let mut owners = orphan.metadata.owner_references.clone().unwrap_or_default();
        owners.push(owner_reference(deployment));
        let patch = json!({"metadata": {"uid": orphan.metadata.uid, "ownerReferences": owners,
                                        "resourceVersion": orphan.metadata.resource_version}});
        let written = sets.patch(&orphan.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await;
        if let Some(written) = or_gone(written)? {
            cluster.replica_sets.observe(written);
        }
    }
    Ok(())
}

async fn act(
    cluster: &Cluster,
    deployment: &Deployment,
    namespace: &str,
    action: &Action,
) -> Result<(), kube::Error> {
    let sets: Api<ReplicaSet> = Api::namespaced(cluster.client.clone(), namespace);
    let params = PatchParams::default();
    match action {
        Action::Create(set) => match sets.create(&PostParams::default(), set).await {
            Ok(set) => {
                let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
                if replicas > 0 {
                    let text = format!("Scaled up replica set {} from 0 to {replicas}", set.name_any());
                    cluster.recorder.about(deployment, Severity::Normal, "ScalingReplicaSet", text);
                }
                cluster.replica_sets.observe(set);
            }
            // Another template has the same hash: count it, so that the next try has another name.
            Err(error) if is_conflict(&error) => {
                let existing = sets.get(&set.name_any()).await?;
                let uid = deployment.uid().unwrap_or_default();
                if super::meta::is_controlled_by(&existing.metadata, &uid)
                    && rollout::is_of_template(deployment, &existing)
                {
                    cluster.replica_sets.observe(existing);
                } else {
                    let count = deployment.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0) + 1;
                    let patch = json!({"status": {"collisionCount": count}});
                    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), namespace);
                    let written =
                        api.patch_status(&deployment.name_any(), &params, &Patch::Merge(&patch)).await?;
                    cluster.deployments.observe(written);
                }
                return Err(error);
            }
            Err(error) => return Err(error),
        },
        Action::Scale { name, from, to } => {
            let patch = json!({"spec": {"replicas": to}});
            if let Some(set) = or_gone(sets.patch(name, &params, &Patch::Merge(&patch)).await)? {
                cluster.replica_sets.observe(set);
            }
            let direction = if to > from { "up" } else { "down" };
            let text = format!("Scaled {direction} replica set {name} from {from} to {to}");
            cluster.recorder.about(deployment, Severity::Normal, "ScalingReplicaSet", text);
        }
        Action::Revise { name, revision } => {
            let patch = json!({"metadata": {"annotations": {REVISION: revision}}});
            if let Some(set) = or_gone(sets.patch(name, &params, &Patch::Merge(&patch)).await)? {
                cluster.replica_sets.observe(set);
            }
        }
        Action::Delete { name } => {
            or_gone(sets.delete(name, &DeleteParams::background()).await)?;
        }
    }
    Ok(())
}
