//! CustomResourceDefinitions.

use serde_json::{Value, json};

use super::names::{is_dns_label, is_dns_subdomain};
use crate::apiserver::object::{as_map, child_mut, default, filled, list, meta, now};
use crate::apiserver::registry::{CRDS, Resource, definition_of};
use crate::apiserver::resources::BUILTINS;
use crate::apiserver::status::{ApiError, Cause};
use crate::store::Txn;

/// A definition takes new objects if it exists and stays.
pub fn accepts(txn: &Txn<'_>, resource: &Resource) -> Result<(), ApiError> {
    let definition = txn.get(&definition_of(&resource.storage)).ok_or_else(ApiError::no_such_path)?;
    if definition.value["metadata"]["deletionTimestamp"].is_string() {
        let mut error = ApiError::method_not_allowed();
        error.message = format!("create not allowed while {} is being deleted", definition.key.name);
        return Err(error);
    }
    Ok(())
}

/// Defaults of a definition.
pub fn default_crd(object: &mut Value) {
    let spec = child_mut(object, "spec");
    default(spec, "conversion", json!({"strategy": "None"}));
    let names = as_map(spec.entry("names").or_insert(Value::Null));
    if let Some(kind) = names.get("kind").and_then(Value::as_str).map(str::to_owned) {
        default(names, "singular", kind.to_lowercase());
        default(names, "listKind", format!("{kind}List"));
    }
}

/// Checks a definition.
pub fn check_crd(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    let names = &spec["names"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, plural) = (text(&spec["group"]), text(&names["plural"]));
    let wanted = format!("{plural}.{group}");
    if meta(object, "name") != wanted {
        let why = format!("must be spec.names.plural+\".\"+spec.group ({wanted})");
        causes.push(Cause::invalid("metadata.name", &object["metadata"]["name"], &why));
    }
    if !is_dns_subdomain(&group) || !group.contains('.') {
        causes.push(Cause::invalid("spec.group", &spec["group"], "should be a domain with at least one dot"));
    }
    if BUILTINS.iter().any(|b| b.group == group) {
        causes.push(Cause::forbidden("spec.group", "the group is built in"));
    }
    for field in ["plural", "singular"] {
        if !is_dns_label(&text(&names[field])) {
            causes.push(Cause::invalid(&format!("spec.names.{field}"), &names[field], "must be a DNS label"));
        }
    }
    if !filled(&names["kind"]) {
        causes.push(Cause::required("spec.names.kind", ""));
    }
    if spec["scope"] != "Namespaced" && spec["scope"] != "Cluster" {
        causes.push(Cause::unsupported("spec.scope", &spec["scope"], &["Cluster", "Namespaced"]));
    }
    if spec["conversion"]["strategy"] != "None" {
        causes.push(Cause::unsupported(
            "spec.conversion.strategy",
            &spec["conversion"]["strategy"],
            &["None"],
        ));
    }
    let versions = list(spec, "versions");
    let stored = versions.iter().filter(|v| v["storage"] == true).count();
    if stored != 1 {
        causes.push(Cause::invalid(
            "spec.versions",
            &json!(stored),
            "must have exactly one version marked as storage version",
        ));
    }
    for (i, version) in versions.iter().enumerate() {
        let at = format!("spec.versions[{i}]");
        if !is_dns_label(&text(&version["name"])) {
            causes.push(Cause::invalid(&format!("{at}.name"), &version["name"], "must be a DNS label"));
        }
        let schema = &version["schema"]["openAPIV3Schema"];
        if schema.is_object() {
            check_schema(schema, &format!("{at}.schema.openAPIV3Schema"), true, causes);
        } else {
            causes.push(Cause::required(&format!("{at}.schema.openAPIV3Schema"), "schemas are required"));
        }
        for (j, column) in list(version, "additionalPrinterColumns").iter().enumerate() {
            let at = format!("{at}.additionalPrinterColumns[{j}]");
            let kinds = ["boolean", "date", "integer", "number", "string"];
            if !kinds.iter().any(|k| column["type"] == *k) {
                causes.push(Cause::unsupported(&format!("{at}.type"), &column["type"], &kinds));
            }
            let path = text(&column["jsonPath"]);
            if !path.starts_with('.') || crate::apiserver::table::jsonpath::Path::parse(&path).is_none() {
                causes.push(Cause::invalid(
                    &format!("{at}.jsonPath"),
                    &column["jsonPath"],
                    "is not a valid JSON path",
                ));
            }
        }
    }
}

/// The parts of a structural schema that would make trouble later.
fn check_schema(schema: &Value, at: &str, root: bool, causes: &mut Vec<Cause>) {
    let free = schema["x-kubernetes-int-or-string"] == true
        || schema["x-kubernetes-preserve-unknown-fields"] == true;
    if !schema["type"].is_string() && (root || !free) {
        causes.push(Cause::required(&format!("{at}.type"), "must not be empty for specified object fields"));
    }
    if root && schema["type"] != "object" {
        causes.push(Cause::invalid(&format!("{at}.type"), &schema["type"], "must be object at the root"));
    }
    if schema.get("$ref").is_some() {
        causes.push(Cause::forbidden(&format!("{at}.$ref"), "$ref is not supported"));
    }
    if filled(&schema["properties"]) && !schema["additionalProperties"].is_null() {
        causes.push(Cause::forbidden(
            &format!("{at}.additionalProperties"),
            "additionalProperties and properties are mutual exclusive",
        ));
    }
    if let Some(pattern) = schema["pattern"].as_str()
        && regex::Regex::new(pattern).is_err()
    {
        causes.push(Cause::invalid(
            &format!("{at}.pattern"),
            &schema["pattern"],
            "must be a valid regular expression",
        ));
    }
    if schema["type"] == "array" && !schema["items"].is_object() {
        causes.push(Cause::required(&format!("{at}.items"), "must be specified"));
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        // The metadata's schema is the server's.
        if !(root && name == "metadata") {
            check_schema(property, &format!("{at}.properties[{name}]"), false, causes);
        }
    }
    for field in ["items", "additionalProperties"] {
        if schema[field].is_object() {
            check_schema(&schema[field], &format!("{at}.{field}"), false, causes);
        }
    }
}

/// What does not change.
pub fn check_change(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    for (pointer, field) in [
        ("/spec/group", "spec.group"),
        ("/spec/scope", "spec.scope"),
        ("/spec/names/plural", "spec.names.plural"),
        ("/spec/names/kind", "spec.names.kind"),
    ] {
        if old.pointer(pointer) != new.pointer(pointer) {
            causes.push(Cause::invalid(
                field,
                new.pointer(pointer).unwrap_or(&Value::Null),
                "field is immutable",
            ));
        }
    }
    let stored = list(&old["status"], "storedVersions");
    for version in stored {
        if !list(&new["spec"], "versions").iter().any(|v| v["name"] == *version) {
            causes.push(Cause::invalid("status.storedVersions", version, "must appear in spec.versions"));
        }
    }
}

/// The status of a new definition: it is served at once, unless its names are taken.
pub fn established(txn: &Txn<'_>, object: &Value) -> Value {
    let spec = &object["spec"];
    let names = &spec["names"];
    let clash = txn.list(CRDS, None).into_iter().find(|other| {
        let theirs = &other.value["spec"];
        theirs["group"] == spec["group"]
            && other.key.name != meta(object, "name")
            && (theirs["names"]["kind"] == names["kind"] || theirs["names"]["singular"] == names["singular"])
    });
    let condition = |kind: &str, status: bool, reason: &str, message: &str| {
        json!({"type": kind, "status": if status { "True" } else { "False" }, "lastTransitionTime": now(),
            "reason": reason, "message": message})
    };
    let conditions = match &clash {
        None => json!([
            condition("NamesAccepted", true, "NoConflicts", "no conflicts found"),
            condition("Established", true, "InitialNamesAccepted", "the initial names have been accepted"),
        ]),
        Some(other) => {
            let message = format!("names are already in use by {}", other.key.name);
            json!([
                condition("NamesAccepted", false, "NameConflict", &message),
                condition("Established", false, "NotAccepted", "not all names are accepted"),
            ])
        }
    };
    let stored: Vec<&Value> =
        list(spec, "versions").iter().filter(|v| v["storage"] == true).map(|v| &v["name"]).collect();
    json!({"conditions": conditions, "acceptedNames": names, "storedVersions": stored})
}
