//! Sets of fields, as `metadata.managedFields[].fieldsV1` holds them: a tree whose keys are `f:FIELD`, `k:{KEYS}` for an
//! item of a list that is a map, `v:VALUE` for one of a set, and `.` for the node itself.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::apiserver::schema::lists::key_default;
use crate::apiserver::schema::{ListKind, Schema};

/// A set of fields below one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// Whether the node itself is in the set.
    pub member: bool,
    /// What of its parts is.
    pub children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    /// A node without parts.
    pub fn leaf() -> Self {
        Self { member: true, children: BTreeMap::new() }
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// Reads `fieldsV1`.
    pub fn parse(value: &Value) -> Self {
        let mut set = Self::default();
        for (key, child) in value.as_object().into_iter().flatten() {
            if key == "." {
                set.member = true;
            } else {
                let mut child = Self::parse(child);
                if child.children.is_empty() {
                    child.member = true;
                }
                set.children.insert(key.clone(), child);
            }
        }
        set
    }

    /// As `fieldsV1`.
    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".to_owned(), json!({}));
        }
        for (key, child) in &self.children {
            map.insert(key.clone(), child.to_value());
        }
        Value::Object(map)
    }

    /// Adds what is in `other`.
    pub fn add(&mut self, other: &Self) {
        self.member |= other.member;
        for (key, child) in &other.children {
            self.children.entry(key.clone()).or_default().add(child);
        }
    }

    /// Removes what is in `other`.
    pub fn remove(&mut self, other: &Self) {
        if other.member {
            self.member = false;
        }
        for (key, child) in &other.children {
            if let Some(mine) = self.children.get_mut(key) {
                mine.remove(child);
                if mine.is_empty() {
                    self.children.remove(key);
                }
            }
        }
    }

    /// What is in both.
    pub fn intersection(&self, other: &Self) -> Self {
        let mut both = Self { member: self.member && other.member, children: BTreeMap::new() };
        for (key, child) in &self.children {
            if let Some(theirs) = other.children.get(key) {
                let child = child.intersection(theirs);
                if !child.is_empty() {
                    both.children.insert(key.clone(), child);
                }
            }
        }
        both
    }

    /// Paths of the leaves, for messages: `.spec.containers[name="a"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect("", &mut paths);
        paths
    }

    fn collect(&self, at: &str, paths: &mut Vec<String>) {
        if self.children.is_empty() && self.member {
            paths.push(at.to_owned());
        }
        for (key, child) in &self.children {
            let next = match key.split_at_checked(2) {
                Some(("f:", name)) => format!("{at}.{name}"),
                Some(("k:", keys)) => {
                    let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                    let keys: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    format!("{at}[{}]", keys.join(","))
                }
                Some(("v:", value)) => format!("{at}[={value}]"),
                _ => format!("{at}[{key}]"),
            };
            child.collect(&next, paths);
        }
    }
}

/// Key of an item of a list that is a map.
pub fn item_key(item: &Value, keys: &[String]) -> String {
    let mut map: Vec<(&String, Value)> = keys
        .iter()
        .map(|key| {
            let value = item.get(key).filter(|v| !v.is_null()).cloned();
            (key, value.or_else(|| key_default(key).map(Value::from)).unwrap_or(Value::Null))
        })
        .filter(|(_, value)| !value.is_null())
        .collect();
    map.sort_by(|a, b| a.0.cmp(b.0));
    let map: Map<String, Value> = map.into_iter().map(|(k, v)| (k.clone(), v)).collect();
    format!("k:{}", Value::Object(map))
}

/// A part of a value: its key in the set, its schema, itself.
pub type Part<'v, 's> = (String, Option<Schema<'s>>, &'v Value);

/// The parts of a value that are merged on their own: key in the set, schema, value. Nothing for a value that is one.
pub fn parts<'v, 's>(schema: Option<Schema<'s>>, value: &'v Value) -> Option<Vec<Part<'v, 's>>> {
    match value {
        Value::Object(map) => {
            if schema.is_some_and(Schema::atomic) {
                return None;
            }
            Some(
                map.iter()
                    .map(|(field, value)| (format!("f:{field}"), schema.and_then(|s| s.field(field)), value))
                    .collect(),
            )
        }
        Value::Array(items) => {
            let schema = schema?;
            match schema.list_kind() {
                ListKind::Atomic => None,
                ListKind::Set => Some(items.iter().map(|item| (format!("v:{item}"), None, item)).collect()),
                ListKind::Map(keys) => Some(
                    items.iter().map(|item| (item_key(item, &keys), Some(schema.items()), item)).collect(),
                ),
            }
        }
        _ => None,
    }
}

/// Every field of a value.
pub fn fields_of(schema: Option<Schema<'_>>, value: &Value) -> FieldSet {
    match parts(schema, value) {
        None => FieldSet::leaf(),
        Some(parts) if parts.is_empty() => FieldSet::leaf(),
        Some(parts) => {
            let mut set = FieldSet::default();
            for (key, schema, child) in parts {
                let mut child_set =
                    if key.starts_with("v:") { FieldSet::leaf() } else { fields_of(schema, child) };
                // Items of lists exist because someone wants them to.
                if key.starts_with("k:") {
                    child_set.member = true;
                }
                set.children.entry(key).or_default().add(&child_set);
            }
            set
        }
    }
}

/// Fields that are in `new` and were not, or were different, in `old`; and those of `old` that are no longer.
pub fn changes(schema: Option<Schema<'_>>, old: &Value, new: &Value) -> (FieldSet, FieldSet) {
    if old == new {
        return (FieldSet::default(), FieldSet::default());
    }
    let (Some(before), Some(after)) = (parts(schema, old), parts(schema, new)) else {
        let gone = if parts(schema, old).is_some() { fields_of(schema, old) } else { FieldSet::default() };
        return (fields_of(schema, new), gone);
    };
    let (mut changed, mut removed) = (FieldSet::default(), FieldSet::default());
    for (key, schema, value) in &after {
        if let Some((_, _, previous)) = before.iter().find(|(k, _, _)| k == key) {
            let (c, r) = changes(*schema, previous, value);
            for (set, part) in [(&mut changed, c), (&mut removed, r)] {
                if !part.is_empty() {
                    set.children.entry(key.clone()).or_default().add(&part);
                }
            }
        } else {
            let mut part = fields_of(*schema, value);
            part.member |= key.starts_with("k:") || key.starts_with("v:");
            changed.children.entry(key.clone()).or_default().add(&part);
        }
    }
    for (key, schema, value) in &before {
        if !after.iter().any(|(k, _, _)| k == key) {
            let mut part = fields_of(*schema, value);
            part.member = true;
            removed.children.insert(key.clone(), part);
        }
    }
    (changed, removed)
}
