//! Schemas of the built-in kinds, generated from their Rust types when first needed.

use std::sync::LazyLock;

use k8s_openapi::api::{
    apps, authentication, authorization, autoscaling, coordination, core, discovery, events, policy, rbac,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::Definitions;
use super::lists::{ATOMIC_FIELDS, ATOMIC_KINDS, FREE_KINDS, MERGE_LISTS};

/// All schemas of the built-in kinds.
pub fn definitions() -> &'static Definitions {
    static DEFINITIONS: LazyLock<Definitions> = LazyLock::new(generate);
    &DEFINITIONS
}

fn generate() -> Definitions {
    let mut generator = SchemaSettings::openapi3().into_generator();
    macro_rules! kinds {
        ($($kind:ty),* $(,)?) => { $( generator.subschema_for::<$kind>(); )* };
    }
    kinds!(
        core::v1::ConfigMap,
        core::v1::Endpoints,
        core::v1::Event,
        core::v1::Namespace,
        core::v1::Node,
        core::v1::Pod,
        core::v1::Secret,
        core::v1::ServiceAccount,
        core::v1::Service,
        core::v1::Binding,
        policy::v1::Eviction,
        apps::v1::ControllerRevision,
        apps::v1::DaemonSet,
        apps::v1::Deployment,
        apps::v1::ReplicaSet,
        autoscaling::v1::Scale,
        events::v1::Event,
        authentication::v1::TokenReview,
        authentication::v1::TokenRequest,
        authentication::v1::SelfSubjectReview,
        authorization::v1::SelfSubjectAccessReview,
        authorization::v1::SubjectAccessReview,
        coordination::v1::Lease,
        discovery::v1::EndpointSlice,
        rbac::v1::ClusterRole,
        rbac::v1::ClusterRoleBinding,
        rbac::v1::Role,
        rbac::v1::RoleBinding,
        apiextensions::CustomResourceDefinition,
        meta::DeleteOptions,
        meta::Status,
        meta::ListMeta,
    );
    let mut definitions: Definitions = generator.take_definitions(false).into_iter().collect();
    for (name, schema) in &mut definitions {
        annotate(name, schema);
    }
    definitions
}

fn annotate(name: &str, schema: &mut Value) {
    let is = |kind: &str| name.strip_suffix(kind).is_some_and(|rest| rest.ends_with('.'));
    if FREE_KINDS.iter().any(|kind| is(kind)) {
        let description = schema["description"].take();
        *schema = json!({"description": description, "x-kubernetes-preserve-unknown-fields": true});
        return;
    }
    // Quantities may be numbers or texts as well: this tells them apart.
    if is("intstr.IntOrString") {
        schema["format"] = json!("int-or-string");
    }
    if ATOMIC_KINDS.iter().any(|kind| is(kind)) {
        schema["x-kubernetes-map-type"] = json!("atomic");
    }
    for (_, field) in ATOMIC_FIELDS.iter().filter(|(kind, _)| is(kind)) {
        schema["properties"][field]["x-kubernetes-map-type"] = json!("atomic");
    }
    for list in MERGE_LISTS.iter().filter(|list| is(list.kind)) {
        let node = &mut schema["properties"][list.field];
        if !node.is_object() {
            continue;
        }
        node["x-kubernetes-patch-strategy"] = json!("merge");
        if list.keys.is_empty() {
            node["x-kubernetes-list-type"] = json!("set");
        } else {
            node["x-kubernetes-list-type"] = json!("map");
            node["x-kubernetes-list-map-keys"] = json!(list.keys);
            node["x-kubernetes-patch-merge-key"] = json!(list.patch_key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::resources::BUILTINS;

    #[test]
    fn every_resource_has_a_schema() {
        for builtin in BUILTINS {
            let name = format!("io.k8s.{}", builtin.schema);
            assert!(definitions()[&name]["properties"]["metadata"].is_object(), "{name}");
        }
    }

    #[test]
    fn every_merge_list_is_a_list_of_a_known_kind() {
        for list in MERGE_LISTS {
            let schema = definitions().iter().find(|(name, _)| name.ends_with(&format!(".{}", list.kind)));
            let (_, schema) = schema.unwrap_or_else(|| panic!("no schema {}", list.kind));
            let node = &schema["properties"][list.field];
            assert_eq!(node["type"], "array", "{}.{}", list.kind, list.field);
            assert_eq!(node["x-kubernetes-patch-strategy"], "merge", "{}.{}", list.kind, list.field);
        }
        for (kind, field) in ATOMIC_FIELDS {
            let schema = definitions().iter().find(|(name, _)| name.ends_with(&format!(".{kind}")));
            assert_eq!(schema.unwrap().1["properties"][field]["type"], "object", "{kind}.{field}");
        }
        for kind in ATOMIC_KINDS.iter().chain(FREE_KINDS).filter(|k| !k.ends_with("RawExtension")) {
            let suffix = format!(".{kind}");
            assert!(
                definitions().keys().any(|name| name.ends_with(&suffix)) || kind.contains("Secret"),
                "{kind}"
            );
        }
    }
}
