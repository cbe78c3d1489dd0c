//! Rules about objects that several controllers share: ownership, label selectors, hashes, readiness. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use sha2::{Digest as _, Sha256};

/// Letters and digits without vowels or look-alikes, as Kubernetes uses them in generated names.
const SAFE_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// The time now.
pub fn now() -> Time {
    Time(Timestamp::now())
}

/// The API server refused a write because the object has changed, or exists.
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// The API server does not know the object.
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// `Ok(None)` in place of "not found".
pub fn or_gone<T>(result: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The owner that manages the object, if any.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// The object is managed by the owner with this uid.
pub fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|owner| owner.uid == uid)
}

/// The reference that makes `owner` the manager of another object.
pub fn owner_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Whether `labels` satisfy `selector`. An empty selector selects everything.
pub fn selects(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let empty = Labels::new();
    let labels = labels.unwrap_or(&empty);
    let equal = selector.match_labels.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    equal
        && selector.match_expressions.iter().flatten().all(|requirement| {
            let value = labels.get(&requirement.key);
            let listed =
                || value.is_some_and(|value| requirement.values.iter().flatten().any(|one| one == value));
            match requirement.operator.as_str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// Whether `labels` have every pair of a Service's or ReplicationController's `selector`.
pub fn selects_all(selector: &Labels, labels: Option<&Labels>) -> bool {
    selector.iter().all(|(k, v)| labels.and_then(|labels| labels.get(k)) == Some(v))
}

fn spell(bytes: &[u8], length: usize) -> String {
    bytes
        .iter()
        .take(length)
        .map(|byte| char::from(SAFE_ALPHABET[usize::from(*byte) % SAFE_ALPHABET.len()]))
        .collect()
}

/// A name for a pod template: equal templates (and collision counts) have equal hashes.
pub fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    let mut hasher = Sha256::new();
    hasher.update(canonical(template).to_string());
    hasher.update(collisions.to_le_bytes());
    spell(&hasher.finalize(), 10)
}

/// A short hash of any text, usable in names.
pub fn text_hash(text: &str, length: usize) -> String {
    spell(&Sha256::digest(text), length)
}

/// Five random characters, as the API server appends them to `generateName`.
pub fn random_suffix() -> String {
    spell(uuid::Uuid::new_v4().as_bytes(), 5)
}

/// `prefix-xxxxx`, the prefix shortened so that the whole fits a DNS label.
pub fn generated_name(prefix: &str) -> String {
    let room = prefix.len().min(57);
    format!("{}-{}", &prefix[..prefix.floor_char_boundary(room)], random_suffix())
}

/// The template as JSON with object keys in order, without nulls and empty values, so that equal meanings compare equal.
fn canonical(template: &PodTemplateSpec) -> serde_json::Value {
    // A k8s-openapi type always serialises; an impossible failure would only make the hash constant.
    normalise(serde_json::to_value(template).unwrap_or_default())
}

fn normalise(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<_, _> = map
                .into_iter()
                .map(|(k, v)| (k, normalise(v)))
                .filter(|(_, v)| match v {
                    Value::Null => false,
                    Value::Object(map) => !map.is_empty(),
                    Value::Array(list) => !list.is_empty(),
                    _ => true,
                })
                .collect();
            sorted.into_iter().collect::<serde_json::Map<_, _>>().into()
        }
        Value::Array(list) => list.into_iter().map(normalise).collect(),
        other => other,
    }
}

/// Two templates mean the same, whatever label `ignored` says.
pub fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec, ignored: &str) -> bool {
    let strip = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
            labels.remove(ignored);
        }
        canonical(&template)
    };
    strip(a) == strip(b)
}

/// The pod is neither finished nor being deleted.
pub fn is_active(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && !is_finished(pod)
}

/// The pod has run to its end.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// The pod's phase, `Pending` where it has none yet.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Since when the pod is Ready, if it is.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|c| c.type_ == "Ready" && c.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0))
}

/// The pod is Ready.
pub fn is_ready(pod: &Pod) -> bool {
    ready_since(pod).is_some()
}

/// The pod has been Ready for `min_ready` seconds.
pub fn is_available(pod: &Pod, min_ready: i32, now: Timestamp) -> bool {
    ready_since(pod)
        .is_some_and(|since| min_ready <= 0 || now.duration_since(since).as_secs() >= min_ready.into())
}

/// A count that may be a percentage of `total`.
pub fn scaled(value: Option<&IntOrString>, default: &str, total: i32, round_up: bool) -> i32 {
    let text = match value {
        Some(IntOrString::Int(n)) => return (*n).max(0),
        Some(IntOrString::String(text)) => text.as_str(),
        None => default,
    };
    let Some(percent) = text.strip_suffix('%').and_then(|n| n.parse::<i32>().ok()) else {
        return text.parse().unwrap_or(0).max(0);
    };
    let product = percent.max(0).saturating_mul(total);
    if round_up { product.saturating_add(99) / 100 } else { product / 100 }
}

/// A pod from a template, owned by a controller.
pub fn pod_from_template(
    template: &PodTemplateSpec,
    namespace: &str,
    prefix: &str,
    owner: OwnerReference,
    extra_labels: &[(&str, &str)],
) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let mut labels = meta.labels.unwrap_or_default();
    labels.extend(extra_labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    Pod {
        metadata: ObjectMeta {
            name: Some(generated_name(prefix)),
            generate_name: Some(format!("{prefix}-")),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels),
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;
    use serde_json::json;

    use super::*;

    fn template(value: serde_json::Value) -> PodTemplateSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn selectors_follow_the_api_conventions() {
        let labels: Labels = [("app".to_owned(), "web".to_owned())].into();
        let one = |key: &str, operator: &str, values: &[&str]| LabelSelector {
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: key.into(),
                operator: operator.into(),
                values: Some(values.iter().map(|v| (*v).to_owned()).collect()),
            }]),
            ..LabelSelector::default()
        };
        assert!(selects(&LabelSelector::default(), None));
        assert!(selects(&one("app", "In", &["web", "db"]), Some(&labels)));
        assert!(!selects(&one("app", "NotIn", &["web"]), Some(&labels)));
        assert!(selects(&one("tier", "NotIn", &["web"]), Some(&labels)));
        assert!(selects(&one("app", "Exists", &[]), Some(&labels)));
        assert!(selects(&one("tier", "DoesNotExist", &[]), Some(&labels)));
        assert!(!selects(&one("app", "Invented", &[]), Some(&labels)));
    }

    #[test]
    fn the_hash_tells_templates_apart_and_ignores_form() {
        let a = template(json!({"spec": {"containers": [{"name": "a", "image": "x"}]}}));
        let same = template(json!({"spec": {"containers": [{"image": "x", "name": "a", "env": []}]}}));
        let other = template(json!({"spec": {"containers": [{"name": "a", "image": "y"}]}}));
        assert_eq!(template_hash(&a, 0), template_hash(&same, 0));
        assert_ne!(template_hash(&a, 0), template_hash(&other, 0));
        assert_ne!(template_hash(&a, 0), template_hash(&a, 1));
        assert!(same_template(&a, &same, "pod-template-hash"));
    }

    #[test]
    fn percentages_round_as_rolling_updates_need_them() {
        let percent = IntOrString::String("25%".into());
        assert_eq!(scaled(Some(&percent), "0", 3, true), 1);
        assert_eq!(scaled(Some(&percent), "0", 3, false), 0);
        assert_eq!(scaled(None, "25%", 8, false), 2);
        assert_eq!(scaled(Some(&IntOrString::Int(2)), "25%", 8, false), 2);
    }

    #[test]
    fn generated_names_fit_a_label() {
        let name = generated_name(&"x".repeat(80));
        assert_eq!(name.len(), 63);
    }
}
