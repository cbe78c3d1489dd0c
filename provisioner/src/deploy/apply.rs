//! Server-side apply of objects of any kind.

use futures::future::try_join_all;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, TypeMeta};
use kube::discovery::{self, Scope};
use serde_json::Value;

use crate::error::{Failure, OrFailure};

/// Whoever reads managedFields sees this name.
const MANAGER: &str = "lab";

/// Kinds that have no namespace, of those that labs bring; others are asked of the API server.
const CLUSTER_KINDS: [&str; 4] =
    ["Namespace", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"];
/// Kinds that live in a namespace, likewise.
const NAMESPACED_KINDS: [&str; 7] =
    ["ConfigMap", "DaemonSet", "Deployment", "Pod", "Secret", "Service", "ServiceAccount"];

/// Applies the objects: namespaces and definitions first and in order, then the others side by side.
pub(super) async fn apply_all(client: &kube::Client, objects: &[Value]) -> Result<(), Failure> {
    let first = |o: &&Value| matches!(o["kind"].as_str(), Some("Namespace" | "CustomResourceDefinition"));
    for object in objects.iter().filter(first) {
        apply(client, object).await?;
    }
    try_join_all(objects.iter().filter(|o| !first(o)).map(|object| apply(client, object))).await?;
    Ok(())
}

async fn apply(client: &kube::Client, object: &Value) -> Result<(), Failure> {
    let word = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (kind, name) = (word("/kind"), word("/metadata/name"));
    let thing = format!("{kind} {name:?}");
    let types = TypeMeta { api_version: word("/apiVersion").into(), kind: kind.into() };
    let gvk =
        GroupVersionKind::try_from(&types).or_failure(&thing, "write apiVersion as GROUP/VERSION or v1")?;
    let (resource, namespaced) = if CLUSTER_KINDS.contains(&kind) {
        (ApiResource::from_gvk(&gvk), false)
    } else if NAMESPACED_KINDS.contains(&kind) {
        (ApiResource::from_gvk(&gvk), true)
    } else {
        let mend = "write a kind that the API server has: kubectl api-resources";
        let (resource, capabilities) = discovery::pinned_kind(client, &gvk).await.or_failure(&thing, mend)?;
        (resource, capabilities.scope == Scope::Namespaced)
    };
    let api: Api<DynamicObject> = if namespaced {
        let namespace = word("/metadata/namespace");
        Api::namespaced_with(
            client.clone(),
            if namespace.is_empty() { "default" } else { namespace },
            &resource,
        )
    } else {
        Api::all_with(client.clone(), &resource)
    };
    // A pod can hardly be changed once it is there: the one that exists is left alone.
    if kind == "Pod"
        && api.get_opt(name).await.or_failure(&thing, "see the API server's log: lab status")?.is_some()
    {
        return Ok(());
    }
    let params = PatchParams::apply(MANAGER).force();
    api.patch(name, &params, &Patch::Apply(object))
        .await
        .or_failure(thing, "see the API server's log: lab status")?;
    Ok(())
}
