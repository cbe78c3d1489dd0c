//! Namespaces: the standing ones, what every one of them has, and the end of one with all its contents.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIResource, ObjectMeta};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::Cluster;
use super::meta::{is_conflict, is_not_found, or_gone};
use super::queue::Queue;

/// Namespaces that always exist.
pub const STANDING: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// ConfigMap in every namespace with the cluster's CA.
pub const ROOT_CA: &str = "kube-root-ca.crt";
/// How soon to look again at a namespace whose contents are still ending.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Watches and reconciles for ever.
pub async fn run(cluster: Cluster, root_ca: String) {
    let queue = Queue::default();
    let on_namespace = queue.clone();
    cluster.namespaces.on_change(move |change| on_namespace.add(change.object().name_any()));
    for name in STANDING {
        // Before the informers' first list: everything else needs them.
        queue.add(name);
    }
    let (cluster, again, root_ca) = (&cluster, &queue.clone(), root_ca.as_str());
    queue.work("namespaces", |name| async move { reconcile(cluster, again, root_ca, &name).await }).await;
}

fn ignore_conflict<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(error) if !is_conflict(&error) => Err(error),
        _ => Ok(()),
    }
}

async fn reconcile(cluster: &Cluster, queue: &Queue, root_ca: &str, name: &str) -> Result<(), kube::Error> {
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let namespace = match cluster.namespaces.get(None, name) {
        Some(namespace) => Namespace::clone(&namespace),
        None if STANDING.contains(&name) => {
            let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            let wanted = Namespace { metadata, ..Namespace::default() };
            match api.create(&PostParams::default(), &wanted).await {
                Ok(namespace) => namespace,
                // The API server makes them, too.
                Err(error) if is_conflict(&error) => api.get(name).await?,
                Err(error) => return Err(error),
            }
        }
        None => return Ok(()),
    };
    if namespace.metadata.deletion_timestamp.is_some() {
        if empty(cluster, name).await? {
            return finalize(cluster, &namespace).await;
        }
        queue.add_after(name, LOOK_AGAIN);
        return Ok(());
    }
    furnish(cluster, root_ca, name).await
}

/// Gives a namespace what every one has.
async fn furnish(cluster: &Cluster, root_ca: &str, name: &str) -> Result<(), kube::Error> {
    let metadata = |object: &str| ObjectMeta {
        name: Some(object.to_owned()),
        namespace: Some(name.to_owned()),
        ..ObjectMeta::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), name);
    if accounts.get_opt("default").await?.is_none() {
        let account = ServiceAccount { metadata: metadata("default"), ..ServiceAccount::default() };
        ignore_conflict(accounts.create(&PostParams::default(), &account).await)?;
    }
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), name);
    let data = BTreeMap::from([("ca.crt".to_owned(), root_ca.to_owned())]);
    match maps.get_opt(ROOT_CA).await? {
        Some(known) if known.data.as_ref() == Some(&data) => {}
        Some(_) => {
            let patch = json!({ "data": data });
            maps.patch(ROOT_CA, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        }
        None => {
            let map = ConfigMap { metadata: metadata(ROOT_CA), data: Some(data), ..ConfigMap::default() };
            ignore_conflict(maps.create(&PostParams::default(), &map).await)?;
        }
    }
    Ok(())
}

/// Every kind of object that lives in namespaces and can be listed and deleted.
async fn kinds(cluster: &Cluster) -> Result<Vec<ApiResource>, kube::Error> {
    let deletable = |resource: &APIResource| {
        resource.namespaced
            && !resource.name.contains('/')
            && ["list", "delete"].iter().all(|verb| resource.verbs.iter().any(|one| one == verb))
    };
    let mut found = Vec::new();
    let mut versions = vec!["v1".to_owned()];
    for group in cluster.client.list_api_groups().await?.groups {
        if let Some(version) = group.preferred_version.or_else(|| group.versions.first().cloned()) {
            versions.push(version.group_version);
        }
    }
    for version in versions {
        let list = if version == "v1" {
            cluster.client.list_core_api_resources("v1").await?
        } else {
            cluster.client.list_api_group_resources(&version).await?
        };
        let (group, name) = version.rsplit_once('/').unwrap_or(("", &version));
        for resource in list.resources.iter().filter(|resource| deletable(resource)) {
            found.push(ApiResource {
                group: group.to_owned(),
                version: name.to_owned(),
                api_version: version.clone(),
                kind: resource.kind.clone(),
                plural: resource.name.clone(),
            });
        }
    }
    Ok(found)
}

/// Deletes what the namespace holds; true when nothing is left.
async fn empty(cluster: &Cluster, namespace: &str) -> Result<bool, kube::Error> {
    let mut empty = true;
    for kind in kinds(cluster).await? {
        let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), namespace, &kind);
        let left = match api.list(&ListParams::default()).await {
            Ok(list) => list.items,
            Err(error) if is_not_found(&error) => continue,
            Err(error) => return Err(error),
        };
        // Events say what happened to the rest: they go last, and new ones do not hold up the end.
        empty &= left.is_empty() || kind.kind == "Event";
        for object in left.iter().filter(|object| object.metadata.deletion_timestamp.is_none()) {
            or_gone(api.delete(&object.name_any(), &DeleteParams::background()).await)?;
        }
    }
    Ok(empty)
}

/// Takes the `kubernetes` finalizer off, which lets the API server remove the namespace.
async fn finalize(cluster: &Cluster, namespace: &Namespace) -> Result<(), kube::Error> {
    let name = namespace.name_any();
    let mut done = namespace.clone();
    if let Some(spec) = &mut done.spec {
        spec.finalizers = Some(
            spec.finalizers
                .take()
                .into_iter()
                .flatten()
                .filter(|finalizer| finalizer != "kubernetes")
                .collect(),
        );
    }
    let body = serde_json::to_vec(&done).map_err(kube::Error::SerdeError)?;
    let request = http::Request::put(format!("/api/v1/namespaces/{name}/finalize"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(kube::Error::HttpError)?;
    or_gone(cluster.client.request::<serde_json::Value>(request).await)?;
    Ok(())
}
