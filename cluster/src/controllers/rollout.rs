//! What a Deployment's controller decides: which ReplicaSets to make, scale, revise and delete. Pure.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentSpec, DeploymentStatus, ReplicaSet, ReplicaSetSpec,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;

use super::meta::{
    controller_of, is_controlled_by, is_finished, owner_reference, same_template, scaled, selects,
    template_hash,
};

/// Annotation that numbers the revisions of a rollout; `kubectl rollout history` and `undo` read it.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Label that keeps the pods of a Deployment's ReplicaSets apart.
pub const TEMPLATE_HASH: &str = "pod-template-hash";
/// Annotation of `kubectl rollout restart` and others that stay the Deployment's own.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// One write.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Make this set.
    Create(Box<ReplicaSet>),
    /// Change a set's size.
    Scale {
        /// The set.
        name: String,
        /// Replicas before.
        from: i32,
        /// Replicas wanted.
        to: i32,
    },
    /// Number a set as the newest revision.
    Revise {
        /// The set.
        name: String,
        /// The revision.
        revision: String,
    },
    /// Forget an old revision.
    Delete {
        /// The set.
        name: String,
    },
}

/// What to do for one Deployment.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Writes, in order.
    pub actions: Vec<Action>,
    /// The revision that the Deployment has now.
    pub revision: Option<String>,
}

/// The set is an orphan that the Deployment takes over.
pub fn adopts(deployment: &Deployment, set: &ReplicaSet) -> bool {
    deployment.metadata.namespace == set.metadata.namespace
        && deployment.metadata.deletion_timestamp.is_none()
        && set.metadata.deletion_timestamp.is_none()
        && controller_of(&set.metadata).is_none()
        && deployment.spec.as_ref().is_some_and(|spec| selects(&spec.selector, set.metadata.labels.as_ref()))
}

/// The set runs the Deployment's present template.
pub fn is_of_template(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let (Some(spec), Some(template)) =
        (&deployment.spec, set.spec.as_ref().and_then(|spec| spec.template.as_ref()))
    else {
        return false;
    };
    same_template(&spec.template, template, TEMPLATE_HASH)
}

fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

fn revision_of(set: &ReplicaSet) -> i64 {
    set.annotations().get(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn limits(spec: &DeploymentSpec) -> (i32, i32) {
    let total = spec.replicas.unwrap_or(1);
    let rolling = spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let surge = scaled(rolling.and_then(|r| r.max_surge.as_ref()), "25%", total, true);
    let unavailable = scaled(rolling.and_then(|r| r.max_unavailable.as_ref()), "25%", total, false);
    // Both zero would never move.
    (surge, if surge == 0 && unavailable == 0 { 1 } else { unavailable })
}

fn newest<'a>(deployment: &Deployment, sets: &'a [Arc<ReplicaSet>]) -> Option<&'a ReplicaSet> {
    sets.iter().map(Arc::as_ref).filter(|set| is_of_template(deployment, set)).min_by(|a, b| {
        let age = |set: &ReplicaSet| (set.metadata.creation_timestamp.clone(), set.name_any());
        age(a).cmp(&age(b))
    })
}

/// Decides the next writes for a Deployment that owns `sets`, in a namespace with `pods`.
pub fn plan(deployment: &Deployment, sets: &[Arc<ReplicaSet>], pods: &[Arc<Pod>]) -> Plan {
    let Some(spec) = &deployment.spec else { return Plan::default() };
    let mut plan = Plan::default();
    let new = newest(deployment, sets);
    let mut old: Vec<&ReplicaSet> = sets
        .iter()
        .map(Arc::as_ref)
        .filter(|set| new.is_none_or(|new| new.name_any() != set.name_any()))
        .collect();
    old.sort_by_key(|set| (revision_of(set), set.metadata.creation_timestamp.clone()));

    let last = old.iter().map(|set| revision_of(set)).max().unwrap_or(0);
    let paused = spec.paused == Some(true);
    if let Some(new) = new {
        let revision = revision_of(new).max(last + 1).to_string();
        if revision_of(new) <= last || !new.annotations().contains_key(REVISION) {
            plan.actions.push(Action::Revise { name: new.name_any(), revision: revision.clone() });
        }
        plan.revision = Some(revision);
    } else if !paused {
        plan.revision = Some((last + 1).to_string());
    }

    let recreate = spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("Recreate");
    if paused {
        // A paused rollout still follows a change of size.
        let all: Vec<_> =
            new.into_iter().chain(old.iter().copied()).filter(|set| replicas(set) > 0).collect();
        if let [only] = all.as_slice() {
            resize(&mut plan, only, spec.replicas.unwrap_or(1));
        }
    } else if recreate {
        recreate_step(&mut plan, deployment, spec, new, &old, pods);
    } else {
        rolling_step(&mut plan, deployment, spec, new, &old);
    }
    clean(&mut plan, spec, &old);
    plan
}

fn resize(plan: &mut Plan, set: &ReplicaSet, to: i32) {
    let from = replicas(set);
    if from != to {
        plan.actions.push(Action::Scale { name: set.name_any(), from, to });
    }
}

fn recreate_step(
    plan: &mut Plan,
    deployment: &Deployment,
    spec: &DeploymentSpec,
    new: Option<&ReplicaSet>,
    old: &[&ReplicaSet],
    pods: &[Arc<Pod>],
) {
    for set in old {
        resize(plan, set, 0);
    }
    let old_pod_left = old.iter().any(|set| {
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        pods.iter().any(|pod| is_controlled_by(&pod.metadata, uid) && !is_finished(pod))
    });
    if old_pod_left || old.iter().any(|set| replicas(set) > 0) {
        return;
    }
    let wanted = spec.replicas.unwrap_or(1);
    match new {
        Some(new) => resize(plan, new, wanted),
        None => create(plan, deployment, spec, wanted),
    }
}

fn rolling_step(
    plan: &mut Plan,
    deployment: &Deployment,
    spec: &DeploymentSpec,
    new: Option<&ReplicaSet>,
    old: &[&ReplicaSet],
) {
    let wanted = spec.replicas.unwrap_or(1);
    let (surge, max_unavailable) = limits(spec);
    let total_old: i32 = old.iter().map(|set| replicas(set)).sum();
    let current = new.map_or(0, replicas);

    let grown = if current >= wanted {
        wanted
    } else {
        let room = (wanted + surge - total_old - current).max(0);
        current + room.min(wanted - current)
    };
    match new {
        Some(new) => resize(plan, new, grown),
        None => create(plan, deployment, spec, grown),
    }
    if total_old == 0 {
        return;
    }

    // How many old pods may go without falling below the wanted availability; what is not available now goes first.
    let least = wanted - max_unavailable;
    let new_missing = grown - new.map_or(0, available);
    let mut may_go = (total_old + grown - least - new_missing.max(0)).max(0);
    let mut left: Vec<i32> = old.iter().map(|set| replicas(set)).collect();
    for (set, left) in old.iter().zip(left.iter_mut()) {
        let sick = (*left - available(set)).max(0).min(may_go);
        *left -= sick;
        may_go -= sick;
    }
    let available_now: i32 = new.map_or(0, available)
        + old.iter().zip(&left).map(|(set, left)| available(set).min(*left)).sum::<i32>();
    let mut may_go = (available_now - least).max(0);
    for left in &mut left {
        let gone = (*left).min(may_go);
        *left -= gone;
        may_go -= gone;
    }
    for (set, left) in old.iter().zip(left) {
        resize(plan, set, left);
    }
}

fn create(plan: &mut Plan, deployment: &Deployment, spec: &DeploymentSpec, replicas: i32) {
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    let hash = template_hash(&spec.template, collisions);
    let mut template = spec.template.clone();
    let mut meta = template.metadata.take().unwrap_or_default();
    meta.labels.get_or_insert_default().insert(TEMPLATE_HASH.to_owned(), hash.clone());
    let labels = meta.labels.clone();
    template.metadata = Some(meta);
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(TEMPLATE_HASH.to_owned(), hash.clone());
    let mut annotations = deployment.metadata.annotations.clone().unwrap_or_default();
    annotations.remove(LAST_APPLIED);
    annotations.insert(REVISION.to_owned(), plan.revision.clone().unwrap_or_else(|| "1".to_owned()));
    plan.actions.push(Action::Create(Box::new(ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name_any())),
            namespace: deployment.metadata.namespace.clone(),
            labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owner_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            selector,
            template: Some(template),
            min_ready_seconds: spec.min_ready_seconds,
        }),
        status: None,
    })));
}

fn clean(plan: &mut Plan, spec: &DeploymentSpec, old: &[&ReplicaSet]) {
    let keep = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or(usize::MAX);
    let idle: Vec<_> = old
        .iter()
        .filter(|set| replicas(set) == 0 && set.status.as_ref().is_none_or(|status| status.replicas == 0))
        .filter(|set| set.metadata.deletion_timestamp.is_none())
        .collect();
    for set in idle.iter().take(idle.len().saturating_sub(keep)) {
        plan.actions.push(Action::Delete { name: set.name_any() });
    }
}

/// The Deployment's status as its sets make it, and after how many seconds to look again because a deadline nears.
pub fn status(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    now: Timestamp,
) -> (DeploymentStatus, Option<u64>) {
    let spec = deployment.spec.clone().unwrap_or_default();
    let before = deployment.status.clone().unwrap_or_default();
    let wanted = spec.replicas.unwrap_or(1);
    let sum = |count: &dyn Fn(&ReplicaSet) -> i32| sets.iter().map(|set| count(set)).sum::<i32>();
    let new = newest(deployment, sets);
    let replicas_now = sum(&|set| set.status.as_ref().map_or(0, |status| status.replicas));
    let available_now = sum(&|set| available(set));
    let updated = new.and_then(|set| set.status.as_ref()).map_or(0, |status| status.replicas);
    let mut status = DeploymentStatus {
        replicas: Some(replicas_now),
        updated_replicas: Some(updated),
        ready_replicas: Some(sum(&|set| set.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0))),
        available_replicas: Some(available_now),
        unavailable_replicas: Some((sum(&|set| replicas(set)) - available_now).max(0)),
        observed_generation: deployment.metadata.generation,
        collision_count: before.collision_count,
        ..DeploymentStatus::default()
    };

    let (_, max_unavailable) = limits(&spec);
    let enough = available_now >= wanted - max_unavailable;
    let mut conditions = before.conditions.clone().unwrap_or_default();
    set_condition(
        &mut conditions,
        now,
        "Available",
        enough,
        if enough { "MinimumReplicasAvailable" } else { "MinimumReplicasUnavailable" },
        if enough {
            "Deployment has minimum availability."
        } else {
            "Deployment does not have minimum availability."
        },
        false,
    );

    let complete = updated == wanted && replicas_now == wanted && available_now == wanted;
    let moved = before.updated_replicas.unwrap_or(0) != updated
        || before.ready_replicas != status.ready_replicas
        || before.available_replicas.unwrap_or(0) < available_now
        || before.replicas.unwrap_or(0) != replicas_now
        || before.observed_generation != deployment.metadata.generation;
    let known = conditions.iter().find(|c| c.type_ == "Progressing");
    let set_name = new.map(kube::ResourceExt::name_any).unwrap_or_default();
    let mut look_again = None;
    if complete {
        let text = format!("ReplicaSet \"{set_name}\" has successfully progressed.");
        set_condition(&mut conditions, now, "Progressing", true, "NewReplicaSetAvailable", &text, false);
    } else if spec.paused == Some(true) {
        set_condition(
            &mut conditions,
            now,
            "Progressing",
            false,
            "DeploymentPaused",
            "Deployment is paused",
            false,
        );
    } else {
        let deadline = u64::try_from(spec.progress_deadline_seconds.unwrap_or(600)).unwrap_or(600);
        let since = known
            .filter(|c| c.reason.as_deref() != Some("NewReplicaSetAvailable"))
            .and_then(|c| c.last_update_time.as_ref())
            .map_or(now, |time| time.0);
        let elapsed = u64::try_from(now.duration_since(since).as_secs()).unwrap_or(0);
        if !moved && elapsed >= deadline {
            let text = format!("ReplicaSet \"{set_name}\" has timed out progressing.");
            set_condition(
                &mut conditions,
                now,
                "Progressing",
                false,
                "ProgressDeadlineExceeded",
                &text,
                false,
            );
        } else {
            let text = format!("ReplicaSet \"{set_name}\" is progressing.");
            set_condition(&mut conditions, now, "Progressing", true, "ReplicaSetUpdated", &text, moved);
            look_again = Some((deadline - elapsed.min(deadline)).max(1));
        }
    }
    status.conditions = Some(conditions);
    (status, look_again)
}

fn set_condition(
    conditions: &mut Vec<DeploymentCondition>,
    now: Timestamp,
    kind: &str,
    held: bool,
    reason: &str,
    message: &str,
    touch: bool,
) {
    let value = if held { "True" } else { "False" };
    // Times have whole seconds on the wire; comparing must not see a difference that is not there.
    let time = Some(Time(Timestamp::from_second(now.as_second()).unwrap_or(now)));
    if let Some(known) = conditions.iter_mut().find(|c| c.type_ == kind) {
        if known.status != value {
            known.last_transition_time.clone_from(&time);
        } else if !touch
            && known.reason.as_deref() == Some(reason)
            && known.message.as_deref() == Some(message)
        {
            return;
        }
        value.clone_into(&mut known.status);
        known.reason = Some(reason.to_owned());
        known.message = Some(message.to_owned());
        known.last_update_time = time;
        return;
    }
    conditions.push(DeploymentCondition {
        type_: kind.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: time.clone(),
        last_update_time: time,
    });
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(replicas: i32, image: &str, strategy: serde_json::Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 1},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "strategy": strategy,
                     "template": {"metadata": {"labels": {"app": "web"}},
                                  "spec": {"containers": [{"name": "web", "image": image}]}}},
        }))
        .unwrap()
    }

    /// A set of the deployment's template with that image, as the controller would have made it.
    fn set(image: &str, replicas: i32, available: i32, revision: i64) -> Arc<ReplicaSet> {
        let source = deployment(replicas, image, json!(null));
        let mut plan = Plan { revision: Some(revision.to_string()), ..Plan::default() };
        create(&mut plan, &source, source.spec.as_ref().unwrap(), replicas);
        let Some(Action::Create(mut set)) = plan.actions.pop() else { panic!("no set") };
        set.status = serde_json::from_value(json!({
            "replicas": replicas, "readyReplicas": available, "availableReplicas": available,
        }))
        .unwrap();
        set.metadata.uid = Some(image.into());
        Arc::new(*set)
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_000_000).unwrap()
    }

    fn scales(plan: &Plan) -> Vec<(String, i32)> {
        plan.actions
            .iter()
            .filter_map(|action| match action {
                Action::Scale { name, to, .. } => Some((name.clone(), *to)),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn the_first_rollout_makes_one_set_of_full_size() {
        let plan = plan(&deployment(2, "a", json!(null)), &[], &[]);
        let [Action::Create(set)] = plan.actions.as_slice() else { panic!("{plan:?}") };
        assert_eq!(replicas(set), 2);
        assert_eq!(set.annotations()[REVISION], "1");
        let hash = &set.labels()[TEMPLATE_HASH];
        assert_eq!(set.name_any(), format!("web-{hash}"));
        assert_eq!(plan.revision.as_deref(), Some("1"));
    }

    #[test]
    fn a_rolling_update_keeps_its_limits() {
        let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
        let wanted = deployment(2, "b", rolling);
        let old = set("a", 2, 2, 1);
        let first = plan(&wanted, std::slice::from_ref(&old), &[]);
        let Some(Action::Create(new)) = first.actions.first() else { panic!("{first:?}") };
        assert_eq!((replicas(new), first.revision.as_deref()), (1, Some("2")));
        assert!(scales(&first).is_empty(), "no old pod may go before a new one is available");

        let unready = set("b", 1, 0, 2);
        assert!(scales(&plan(&wanted, &[old.clone(), unready], &[])).is_empty());
        let ready = set("b", 1, 1, 2);
        assert_eq!(scales(&plan(&wanted, &[old.clone(), ready], &[])), [(old.name_any(), 1)]);
        let last = plan(&wanted, &[set("a", 1, 1, 1), set("b", 1, 1, 2)], &[]);
        assert_eq!(scales(&last).first().map(|s| s.1), Some(2));
    }

    #[test]
    fn old_pods_that_are_not_available_go_first() {
        let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
        let old = set("a", 2, 0, 1);
        let plan = plan(&deployment(2, "b", rolling), &[old.clone(), set("b", 1, 0, 2)], &[]);
        // 3 pods, 2 must not be removed for the one new pod that may come up: both sick ones cannot help availability,
        // yet only what exceeds the minimum leaves in one step.
        assert_eq!(scales(&plan), []);
        let surplus = super::plan(
            &deployment(2, "b", json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}})),
            &[old.clone(), set("b", 1, 0, 2)],
            &[],
        );
        assert_eq!(scales(&surplus), [(old.name_any(), 1)]);
    }

    #[test]
    fn recreate_waits_for_the_last_old_pod() {
        let wanted = deployment(1, "b", json!({"type": "Recreate"}));
        let old = set("a", 1, 1, 1);
        assert_eq!(scales(&plan(&wanted, std::slice::from_ref(&old), &[])), [(old.name_any(), 0)]);
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z", "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": old.name_any(), "uid": "a", "controller": true}]},
        }))
        .unwrap();
        let empty = set("a", 0, 0, 1);
        assert_eq!(plan(&wanted, std::slice::from_ref(&empty), &[Arc::new(pod)]).actions, []);
        assert!(matches!(plan(&wanted, &[empty], &[]).actions.as_slice(), [Action::Create(_)]));
    }

    #[test]
    fn undo_gives_the_old_set_a_new_revision() {
        let plan = plan(&deployment(1, "a", json!(null)), &[set("a", 0, 0, 1), set("b", 1, 1, 2)], &[]);
        assert!(matches!(&plan.actions[0], Action::Revise { revision, .. } if revision == "3"), "{plan:?}");
        assert_eq!(plan.revision.as_deref(), Some("3"));
    }

    #[test]
    fn old_revisions_beyond_the_limit_are_forgotten() {
        let mut wanted = deployment(1, "c", json!(null));
        wanted.spec.as_mut().unwrap().revision_history_limit = Some(1);
        let sets = [set("a", 0, 0, 1), set("b", 0, 0, 2), set("c", 1, 1, 3)];
        assert_eq!(plan(&wanted, &sets, &[]).actions, [Action::Delete { name: sets[0].name_any() }]);
    }

    #[test]
    fn status_tells_availability_progress_and_the_missed_deadline() {
        let mut wanted = deployment(2, "a", json!(null));
        let (status, again) = status(&wanted, &[set("a", 2, 1, 1)], now());
        let value = |status: &DeploymentStatus, kind: &str| {
            let conditions = status.conditions.clone().unwrap();
            let found = conditions.iter().find(|c| c.type_ == kind).unwrap();
            (found.status.clone(), found.reason.clone().unwrap())
        };
        assert_eq!(value(&status, "Available").0, "False");
        assert_eq!(value(&status, "Progressing"), ("True".into(), "ReplicaSetUpdated".into()));
        assert_eq!(again, Some(600));
        assert_eq!(status.unavailable_replicas, Some(1));

        wanted.status = Some(status);
        let late = Timestamp::from_second(1_000_700).unwrap();
        let (missed, _) = super::status(&wanted, &[set("a", 2, 1, 1)], late);
        assert_eq!(value(&missed, "Progressing"), ("False".into(), "ProgressDeadlineExceeded".into()));
        let (done, again) = super::status(&wanted, &[set("a", 2, 2, 1)], late);
        assert_eq!(value(&done, "Available").0, "True");
        assert_eq!(value(&done, "Progressing").1, "NewReplicaSetAvailable");
        assert_eq!(again, None);
    }
}
