//! Defaults and rules of the built-in kinds.

pub mod crd;
pub mod names;
pub mod pod;
pub mod service;
pub mod simple;
pub mod workload;

use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::object::meta_mut;
use super::registry::Resource;
use super::status::{ApiError, Cause};
use crate::store::{Key, Txn};

/// A namespace takes new objects if it exists and stays.
pub fn namespace_accepts(
    txn: &Txn<'_>,
    resource: &Resource,
    namespace: &str,
    name: &str,
) -> Result<(), ApiError> {
    let found = txn.get(&Key::new("core/namespaces", "", namespace));
    let found = found.ok_or_else(|| ApiError::not_found("", "namespaces", namespace))?;
    if found.value["metadata"]["deletionTimestamp"].is_string() {
        let why =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut error = ApiError::forbidden(&resource.group, &resource.plural, name, &why);
        error.causes = vec![Cause {
            reason: "NamespaceTerminating",
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".to_owned(),
        }];
        return Err(error);
    }
    Ok(())
}

/// Kinds by group and plural, for the tables below.
fn kind(resource: &Resource) -> (&str, &str) {
    if resource.custom.is_some() { ("custom", "") } else { (&resource.group, &resource.plural) }
}

/// Fills in a new object and checks it.
pub fn on_create(
    txn: &Txn<'_>,
    services: Ipv4Net,
    resource: &Resource,
    object: &mut Value,
    causes: &mut Vec<Cause>,
) -> Result<(), ApiError> {
    // Nobody starts with a status where the status is a subresource.
    if resource.has_sub("status")
        && let Some(map) = object.as_object_mut()
    {
        map.shift_remove("status");
    }
    let counts = resource.custom.is_some() || resource.group == "apps" || resource.is("", "pods");
    if counts {
        meta_mut(object).insert("generation".to_owned(), json!(1));
    }
    match kind(resource) {
        ("", "pods") => {
            pod::account(txn, object);
            pod::default_pod(object);
            pod::check_pod(object, causes);
            object["status"] = json!({"phase": "Pending", "qosClass": pod::qos_class(&object["spec"])});
        }
        ("", "services") => {
            service::default_service(object);
            service::check_service(object, causes);
            if causes.is_empty() {
                service::allocate(txn, services, object, None, causes)?;
            }
            object["status"] = json!({"loadBalancer": {}});
        }
        ("", "namespaces") => {
            object["spec"]["finalizers"] = json!(["kubernetes"]);
            object["status"] = json!({"phase": "Active"});
            let name = object["metadata"]["name"].clone();
            super::object::child_mut(&mut object["metadata"], "labels")
                .insert("kubernetes.io/metadata.name".to_owned(), name);
        }
        ("apps", "deployments" | "replicasets" | "daemonsets") => {
            workload::default_workload(&resource.plural, object);
            workload::check_workload(&resource.plural, object, causes);
            object["status"] = workload::initial_status(&resource.plural);
        }
        ("apiextensions.k8s.io", _) => {
            crd::default_crd(object);
            crd::check_crd(object, causes);
            object["status"] = crd::established(txn, object);
        }
        _ => simple::admit(resource, object, causes),
    }
    Ok(())
}

/// Fills in a changed object and checks it, also against what it was.
pub fn on_update(
    txn: &Txn<'_>,
    services: Ipv4Net,
    resource: &Resource,
    sub: &str,
    old: &Value,
    object: &mut Value,
    causes: &mut Vec<Cause>,
) -> Result<(), ApiError> {
    if !sub.is_empty() {
        return Ok(());
    }
    match kind(resource) {
        ("", "pods") => {
            pod::default_pod(object);
            pod::check_pod(object, causes);
            pod::check_change(old, object, causes);
        }
        ("", "services") => {
            service::carry_over(old, object);
            service::default_service(object);
            service::check_service(object, causes);
            service::check_change(old, object, causes);
            if causes.is_empty() {
                service::allocate(txn, services, object, Some(old), causes)?;
            }
        }
        ("apps", "deployments" | "replicasets" | "daemonsets") => {
            workload::default_workload(&resource.plural, object);
            workload::check_workload(&resource.plural, object, causes);
            workload::check_change(old, object, causes);
        }
        ("apiextensions.k8s.io", _) => {
            crd::default_crd(object);
            crd::check_crd(object, causes);
            crd::check_change(old, object, causes);
        }
        _ => {
            simple::admit(resource, object, causes);
            simple::check_change(resource, old, object, causes);
        }
    }
    Ok(())
}
