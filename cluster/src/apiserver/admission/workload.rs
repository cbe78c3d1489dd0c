//! Deployments, ReplicaSets and DaemonSets.

use serde_json::{Value, json};

use super::names::{check_labels, is_label_value, is_qualified_name};
use super::pod::{check_spec, default_spec};
use crate::apiserver::object::{child_mut, default, filled, list};
use crate::apiserver::status::Cause;

/// Defaults of a workload.
pub fn default_workload(plural: &str, object: &mut Value) {
    let spec = child_mut(object, "spec");
    match plural {
        "deployments" => {
            default(spec, "replicas", 1);
            default(spec, "revisionHistoryLimit", 10);
            default(spec, "progressDeadlineSeconds", 600);
            default(spec, "strategy", json!({}));
            let strategy = crate::apiserver::object::as_map(&mut spec["strategy"]);
            default(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate" {
                default(strategy, "rollingUpdate", json!({}));
                let rolling = crate::apiserver::object::as_map(&mut strategy["rollingUpdate"]);
                default(rolling, "maxSurge", "25%");
                default(rolling, "maxUnavailable", "25%");
            }
        }
        "daemonsets" => {
            default(spec, "revisionHistoryLimit", 10);
            default(spec, "updateStrategy", json!({}));
            let strategy = crate::apiserver::object::as_map(&mut spec["updateStrategy"]);
            default(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate" {
                default(strategy, "rollingUpdate", json!({}));
                let rolling = crate::apiserver::object::as_map(&mut strategy["rollingUpdate"]);
                default(rolling, "maxSurge", 0);
                default(rolling, "maxUnavailable", 1);
            }
        }
        _ => default(spec, "replicas", 1),
    }
    if spec.get("template").is_some_and(Value::is_object) {
        default_spec(&mut spec["template"], "spec");
    }
}

/// Checks a workload.
pub fn check_workload(plural: &str, object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    if let Some(n) = spec["replicas"].as_i64()
        && n < 0
    {
        causes.push(Cause::invalid("spec.replicas", &spec["replicas"], "must be greater than or equal to 0"));
    }
    let template = &spec["template"];
    let labels = &template["metadata"]["labels"];
    check_labels("spec.template.labels", labels, causes);
    let selector = &spec["selector"];
    check_selector(selector, "spec.selector", causes);
    if selector.is_null() {
        causes.push(Cause::required("spec.selector", ""));
    } else if !filled(selector) {
        causes.push(Cause::invalid(
            "spec.selector",
            &json!({}),
            &format!("empty selector is invalid for {}", plural.trim_end_matches('s')),
        ));
    } else if !selects(selector, labels) {
        causes.push(Cause::invalid(
            "spec.template.metadata.labels",
            labels,
            "`selector` does not match template `labels`",
        ));
    }
    check_spec(&template["spec"], "spec.template.spec", causes);
    let restart = &template["spec"]["restartPolicy"];
    if restart.is_string() && restart != "Always" {
        causes.push(Cause::unsupported("spec.template.spec.restartPolicy", restart, &["Always"]));
    }
    if plural == "deployments" {
        let kind = &spec["strategy"]["type"];
        if kind != "RollingUpdate" && kind != "Recreate" {
            causes.push(Cause::unsupported("spec.strategy.type", kind, &["Recreate", "RollingUpdate"]));
        }
        if kind == "Recreate" && filled(&spec["strategy"]["rollingUpdate"]) {
            causes.push(Cause::forbidden(
                "spec.strategy.rollingUpdate",
                "may not be specified when strategy `type` is 'Recreate'",
            ));
        }
    }
}

fn check_selector(selector: &Value, at: &str, causes: &mut Vec<Cause>) {
    check_labels(&format!("{at}.matchLabels"), &selector["matchLabels"], causes);
    for (i, expression) in list(selector, "matchExpressions").iter().enumerate() {
        let at = format!("{at}.matchExpressions[{i}]");
        if !expression["key"].as_str().is_some_and(is_qualified_name) {
            causes.push(Cause::invalid(&format!("{at}.key"), &expression["key"], "must be a label key"));
        }
        let values = list(expression, "values");
        match expression["operator"].as_str().unwrap_or_default() {
            "In" | "NotIn" => {
                if values.is_empty() {
                    causes.push(Cause::required(
                        &format!("{at}.values"),
                        "must be specified when `operator` is 'In' or 'NotIn'",
                    ));
                }
                if values.iter().any(|v| !v.as_str().is_some_and(is_label_value)) {
                    causes.push(Cause::invalid(
                        &format!("{at}.values"),
                        &expression["values"],
                        "must be label values",
                    ));
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    causes.push(Cause::forbidden(
                        &format!("{at}.values"),
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    ));
                }
            }
            _ => causes.push(Cause::invalid(
                &format!("{at}.operator"),
                &expression["operator"],
                "not a valid selector operator",
            )),
        }
    }
}

/// Whether a LabelSelector selects these labels.
pub fn selects(selector: &Value, labels: &Value) -> bool {
    let all =
        selector["matchLabels"].as_object().into_iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    all && list(selector, "matchExpressions").iter().all(|e| {
        let value = labels.get(e["key"].as_str().unwrap_or_default());
        match e["operator"].as_str().unwrap_or_default() {
            "In" => value.is_some_and(|v| list(e, "values").contains(v)),
            "NotIn" => value.is_none_or(|v| !list(e, "values").contains(v)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    })
}

/// The status before the controller has seen the object.
pub fn initial_status(plural: &str) -> Value {
    match plural {
        "replicasets" => json!({"replicas": 0}),
        "daemonsets" => {
            json!({"currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0})
        }
        _ => json!({}),
    }
}

/// The selector stays.
pub fn check_change(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    if old["spec"]["selector"] != new["spec"]["selector"] {
        causes.push(Cause::invalid("spec.selector", &new["spec"]["selector"], "field is immutable"));
    }
}
