//! Schemas: what the fields of objects are. Built-in and custom resources are walked by the same code, over JSON
//! schemas as plain JSON.

pub mod builtin;
pub mod check;
pub mod lists;
pub mod structural;

use std::collections::BTreeMap;

use serde_json::Value;

use super::registry::Resource;

/// Schemas by name, for `$ref`.
pub type Definitions = BTreeMap<String, Value>;

/// A schema together with what its references refer to.
#[derive(Clone, Copy)]
pub struct Schema<'a> {
    definitions: &'a Definitions,
    /// The node, with references followed.
    pub node: &'a Value,
}

/// How a list is merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// As one value.
    Atomic,
    /// By value: it has each value once.
    Set,
    /// By these fields of its items.
    Map(Vec<String>),
}

impl<'a> Schema<'a> {
    /// The schema `node`, whose references refer to `definitions`.
    pub fn new(definitions: &'a Definitions, node: &'a Value) -> Self {
        Self { definitions, node: resolve(definitions, node) }
    }

    /// The schema of a resource's objects.
    pub fn of(resource: &'a Resource) -> Self {
        let definitions = builtin::definitions();
        match &resource.custom {
            Some(custom) => Self::new(definitions, &custom.schema),
            None => Self::new(definitions, definitions.get(&resource.schema).unwrap_or(&Value::Null)),
        }
    }

    fn at(self, node: &'a Value) -> Self {
        Self::new(self.definitions, node)
    }

    /// The schema of a field, if the schema knows it.
    pub fn field(self, name: &str) -> Option<Self> {
        if let Some(property) = self.node["properties"].get(name) {
            return Some(self.at(property));
        }
        match &self.node["additionalProperties"] {
            Value::Object(_) => Some(self.at(&self.node["additionalProperties"])),
            _ => None,
        }
    }

    /// The schema of a list's items; knows nothing if the list's schema does not say.
    #[must_use]
    pub fn items(self) -> Self {
        self.at(&self.node["items"])
    }

    /// Whether fields that the schema does not name are kept.
    pub fn open(self) -> bool {
        self.node["x-kubernetes-preserve-unknown-fields"] == true
            || self.node["additionalProperties"] == true
            || (self.node["properties"].is_null() && self.node["additionalProperties"].is_null())
    }

    /// Whether the schema is a map with free keys.
    pub fn is_map(self) -> bool {
        self.node["additionalProperties"].is_object()
    }

    /// Whether an object is merged as one value.
    pub fn atomic(self) -> bool {
        self.node["x-kubernetes-map-type"] == "atomic"
    }

    /// How the list is merged.
    pub fn list_kind(self) -> ListKind {
        match self.node["x-kubernetes-list-type"].as_str() {
            Some("set") => ListKind::Set,
            Some("map") => {
                let keys = self.node["x-kubernetes-list-map-keys"].as_array();
                ListKind::Map(
                    keys.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
                )
            }
            _ => ListKind::Atomic,
        }
    }

    /// The field by which a strategic merge patch merges the list, if it does.
    pub fn patch_merge_key(self) -> Option<&'a str> {
        self.node["x-kubernetes-patch-merge-key"].as_str()
    }

    /// Whether a strategic merge patch merges the list (of scalars or by key) instead of replacing it.
    pub fn patch_merges(self) -> bool {
        self.node["x-kubernetes-patch-strategy"].as_str().is_some_and(|s| s.split(',').any(|s| s == "merge"))
    }
}

fn resolve<'a>(definitions: &'a Definitions, mut node: &'a Value) -> &'a Value {
    // Definitions do not refer to themselves directly; the bound only guards against a malformed one.
    for _ in 0..16 {
        let Some(reference) = node["$ref"].as_str() else { break };
        let name = reference.rsplit('/').next().unwrap_or_default();
        match definitions.get(name) {
            Some(found) => node = found,
            None => break,
        }
    }
    node
}
