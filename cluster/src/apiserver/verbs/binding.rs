//! Binding: the scheduler says where a pod goes.

use std::sync::Arc;

use http::StatusCode;
use serde_json::json;

use super::create::after_write;
use super::success;
use crate::apiserver::http::{self as answers, Answer};
use crate::apiserver::object::{as_map, child_mut, filled, now};
use crate::apiserver::router::Call;
use crate::apiserver::status::{ApiError, Cause};

/// Binds a pod to the node that the Binding in the body names.
pub async fn bind(call: &Call, body: &[u8]) -> Result<Answer, ApiError> {
    let binding = super::read(call, body)?;
    let target = &binding["target"];
    let node = target["name"].as_str().unwrap_or_default().to_owned();
    if node.is_empty() || !["", "Node"].contains(&target["kind"].as_str().unwrap_or_default()) {
        let cause = Cause::required("target.name", "the node");
        return Err(ApiError::invalid("", "Binding", &call.name, vec![cause]));
    }
    let uid = binding["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let (resource, key) = (Arc::clone(&call.resource), call.resource.key(&call.namespace, &call.name));
    let dry_run = call.query.dry_run()?;
    let stored = call
        .api
        .store
        .transact(move |txn| {
            let pod = txn.get(&key).ok_or_else(|| resource.not_found(&key.name))?;
            let mut object = pod.value.clone();
            if !uid.is_empty() && object["metadata"]["uid"] != uid {
                return Err(resource.conflict(&key.name, "the pod with this UID is gone"));
            }
            if object["metadata"]["deletionTimestamp"].is_string() {
                return Err(resource.conflict(&key.name, "pod is being deleted, cannot be assigned to a host"));
            }
            if filled(&object["spec"]["nodeName"]) {
                let why = format!("pod {} is already assigned to node {}", key.name, object["spec"]["nodeName"]);
                return Err(resource.conflict(&key.name, &why));
            }
            object["spec"]["nodeName"] = json!(node);
            let conditions = child_mut(&mut object, "status").entry("conditions").or_insert_with(|| json!([]));
            if let Some(conditions) = conditions.as_array_mut() {
                conditions.retain(|c| c["type"] != "PodScheduled");
                conditions.push(json!({
                    "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now(),
                }));
            }
            as_map(&mut object["metadata"]);
            let stored = txn.put(key, object);
            if dry_run {
                txn.rollback();
            }
            Ok(stored)
        })
        .await??;
    if !dry_run {
        after_write(call, &stored);
    }
    Ok(answers::json(StatusCode::CREATED, &success(call, "", "")))
}
