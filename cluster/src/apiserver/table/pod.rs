//! What the row of a pod says.

use serde_json::Value;

use crate::apiserver::object::{filled, list};

/// What a pod's row says beside its name.
pub struct PodState {
    /// `1/2`
    pub ready: String,
    /// Phase, or what keeps it from running.
    pub status: String,
    /// Restarts of all containers.
    pub restarts: i64,
}

/// Reads the state from a pod's status.
pub fn state(pod: &Value) -> PodState {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let total = list(spec, "containers").len();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut reason = if filled(&status["reason"]) { text(&status["reason"]) } else { text(&status["phase"]) };
    let (mut ready, mut restarts) = (0, 0);
    let mut initializing = false;
    let init_total = list(spec, "initContainers").len();
    for (i, container) in list(status, "initContainerStatuses").iter().enumerate() {
        restarts += container["restartCount"].as_i64().unwrap_or(0);
        let state = &container["state"];
        if state["terminated"]["exitCode"] == 0 {
            continue;
        }
        reason = match (&state["terminated"], &state["waiting"]["reason"]) {
            (Value::Object(_), _) => match text(&state["terminated"]["reason"]).as_str() {
                "" => format!("Init:ExitCode:{}", state["terminated"]["exitCode"]),
                reason => format!("Init:{reason}"),
            },
            (_, waiting) if filled(waiting) && *waiting != "PodInitializing" => {
                format!("Init:{}", text(waiting))
            }
            _ => format!("Init:{i}/{init_total}"),
        };
        initializing = true;
        break;
    }
    if !initializing {
        restarts = 0;
        let mut running = false;
        for container in list(status, "containerStatuses").iter().rev() {
            restarts += container["restartCount"].as_i64().unwrap_or(0);
            let state = &container["state"];
            if filled(&state["waiting"]["reason"]) {
                reason = text(&state["waiting"]["reason"]);
            } else if state["terminated"].is_object() {
                reason = match text(&state["terminated"]["reason"]).as_str() {
                    "" => format!("ExitCode:{}", state["terminated"]["exitCode"]),
                    reason => reason.to_owned(),
                };
            } else if container["ready"] == true && state["running"].is_object() {
                running = true;
                ready += 1;
            }
        }
        // Some containers are done, others run.
        if reason == "Completed" && running {
            "Running".clone_into(&mut reason);
        }
    }
    if pod["metadata"]["deletionTimestamp"].is_string() && reason != "NodeLost" {
        "Terminating".clone_into(&mut reason);
    }
    PodState { ready: format!("{ready}/{total}"), status: reason, restarts }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn states() {
        let pod = |status: Value| state(&json!({"spec": {"containers": [{}, {}]}, "status": status}));
        assert_eq!(pod(json!({"phase": "Pending"})).status, "Pending");
        let mixed = pod(json!({"phase": "Running", "containerStatuses": [
            {"ready": true, "restartCount": 2, "state": {"running": {}}},
            {"restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}));
        assert_eq!(
            (mixed.ready.as_str(), mixed.status.as_str(), mixed.restarts),
            ("1/2", "CrashLoopBackOff", 3)
        );
        let init = pod(
            json!({"phase": "Pending", "initContainerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}]}),
        );
        assert_eq!(init.status, "Init:0/0");
        let going = state(
            &json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}}),
        );
        assert_eq!(going.status, "Terminating");
    }
}
