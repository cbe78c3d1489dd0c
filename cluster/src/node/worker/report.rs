//! What the API server is told: the pod's status, and that nothing of it is left.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::{Message, SANDBOX_RETRY_MAX, SANDBOX_RETRY_MIN, Worker};
use crate::controllers::meta::{is_conflict, is_not_found};
use crate::node::status::pod_status;

impl Worker {
    /// Writes the status if it has changed.
    pub(super) async fn publish(&mut self, pod: &Pod) {
        // What has ended stays as it ended.
        if matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed")) {
            return;
        }
        let mut status = pod_status(
            pod,
            &self.views(),
            self.sandbox_ready,
            &self.addresses(),
            &self.published,
            Timestamp::now(),
        );
        // What the API server has of others (readiness gates) stays.
        let foreign = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let mine = status.conditions.get_or_insert_default();
        for condition in foreign {
            match mine.iter_mut().find(|known| known.type_ == condition.type_) {
                Some(known)
                    if pod.spec.as_ref().is_some_and(|spec| {
                        spec.readiness_gates.iter().flatten().any(|gate| gate.condition_type == known.type_)
                    }) =>
                {
                    *known = condition.clone();
                }
                Some(_) => {}
                None => mine.push(condition.clone()),
            }
        }
        let mut value = json!(status);
        for field in ["reason", "message"] {
            value[field] = Value::Null;
        }
        let known = pod.metadata.resource_version.as_deref().and_then(|version| version.parse().ok());
        let known: u64 = known.unwrap_or(0);
        // What others write in place of the node's word (on a node that was silent for a while) is set right.
        if value == self.written && (known <= self.written_version || says(pod, &value)) {
            return;
        }
        let api: Api<Pod> = Api::namespaced(self.node.client.clone(), &pod.namespace().unwrap_or_default());
        let patch = json!({"metadata": {"uid": self.uid}, "status": value});
        match api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(pod) => {
                self.published = status;
                self.written = value;
                let version = pod.metadata.resource_version.and_then(|version| version.parse().ok());
                self.written_version = version.unwrap_or(0);
            }
            // Another pod of that name, or none: the watch will say so.
            Err(error) if is_not_found(&error) || is_conflict(&error) => {}
            Err(error) => {
                tracing::warn!(pod = self.state.pod, %error, "cannot write the pod's status");
                let sender = self.sender.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(SANDBOX_RETRY_MIN).await;
                    let _ = sender.send(Message::Retry);
                });
            }
        }
    }

    /// Tells the API server that nothing of the pod is left.
    pub(super) async fn confirm_deletion(&self, pod: &Pod) {
        let api: Api<Pod> = Api::namespaced(self.node.client.clone(), &pod.namespace().unwrap_or_default());
        let how = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(self.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        let mut wait = SANDBOX_RETRY_MIN;
        loop {
            match api.delete(&pod.name_any(), &how).await {
                Ok(_) => return,
                Err(error) if is_not_found(&error) || is_conflict(&error) => return,
                Err(error) => {
                    tracing::warn!(pod = self.state.pod, %error, "cannot confirm the pod's end, trying again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(SANDBOX_RETRY_MAX);
                }
            }
        }
    }
}

/// The pod, as the API server knows it, says of itself all that is in `status`.
fn says(pod: &Pod, status: &Value) -> bool {
    let told = json!(pod.status);
    status.as_object().into_iter().flatten().all(|(field, value)| told[field.as_str()] == *value)
}
