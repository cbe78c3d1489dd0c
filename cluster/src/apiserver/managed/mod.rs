//! Who manages which fields: server-side apply, and what other writers own.

pub mod set;

use std::fmt::Write as _;

use http::header::USER_AGENT;
use serde_json::{Value, json};

use self::set::{FieldSet, changes, fields_of, item_key, parts};
use super::object::{list, meta_mut, now};
use super::registry::Resource;
use super::router::Call;
use super::schema::{ListKind, Schema};
use super::status::{ApiError, Cause};

/// A writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager {
    name: String,
    operation: String,
    api_version: String,
    sub: String,
}

impl Manager {
    /// The writer of a call: the `fieldManager` it names, or the program by its user agent.
    pub fn of(call: &Call, operation: &str) -> Self {
        let agent = call.headers.get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("unknown");
        let given = call.query.get("fieldManager");
        let name = if given.is_empty() { agent.split(['/', ' ']).next().unwrap_or("unknown") } else { given };
        Self {
            name: name.chars().take(128).collect(),
            operation: operation.to_owned(),
            api_version: call.resource.api_version(),
            sub: call.sub.clone(),
        }
    }

    /// Whether the writer applies a configuration.
    pub fn applies(&self) -> bool {
        self.operation == "Apply"
    }

    fn entry(&self, set: &FieldSet) -> Value {
        let mut entry = json!({
            "manager": self.name, "operation": self.operation, "apiVersion": self.api_version,
            "time": now(), "fieldsType": "FieldsV1", "fieldsV1": set.to_value(),
        });
        if !self.sub.is_empty() {
            entry["subresource"] = json!(self.sub);
        }
        entry
    }
}

/// One entry of `managedFields`.
struct Entry {
    by: Manager,
    set: FieldSet,
    raw: Value,
    touched: bool,
}

fn entries(object: &Value) -> Vec<Entry> {
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    list(&object["metadata"], "managedFields")
        .iter()
        .map(|raw| Entry {
            by: Manager {
                name: text(raw, "manager"),
                operation: text(raw, "operation"),
                api_version: text(raw, "apiVersion"),
                sub: text(raw, "subresource"),
            },
            set: FieldSet::parse(&raw["fieldsV1"]),
            raw: raw.clone(),
            touched: false,
        })
        .collect()
}

fn write(object: &mut Value, entries: &[Entry]) {
    let entries: Vec<Value> = entries
        .iter()
        .filter(|e| !e.set.is_empty())
        .map(|e| if e.touched { e.by.entry(&e.set) } else { e.raw.clone() })
        .collect();
    let fields = meta_mut(object);
    if entries.is_empty() {
        fields.shift_remove("managedFields");
    } else {
        fields.insert("managedFields".to_owned(), Value::Array(entries));
    }
}

/// Metadata that is the server's, and what says which object it is: nobody owns these.
const UNOWNED: &[&str] = &[
    "name",
    "namespace",
    "generateName",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "selfLink",
];

/// What of an object can be owned.
fn ownable(object: &Value) -> Value {
    let mut map = object.as_object().cloned().unwrap_or_default();
    map.shift_remove("apiVersion");
    map.shift_remove("kind");
    if let Some(Value::Object(meta)) = map.get_mut("metadata") {
        for field in UNOWNED {
            meta.shift_remove(*field);
        }
        if meta.is_empty() {
            map.shift_remove("metadata");
        }
    }
    Value::Object(map)
}

/// Schema of a resource, or nothing for custom resources that have none.
fn schema_of(resource: &Resource) -> Option<Schema<'_>> {
    Some(Schema::of(resource)).filter(|s| !s.node.is_null())
}

/// Changes for an object: metadata of custom resources is merged by the built-in schema.
fn diff(resource: &Resource, old: &Value, new: &Value) -> (FieldSet, FieldSet) {
    let (old, new) = (ownable(old), ownable(new));
    changes(
        with_meta(resource)
            .as_ref()
            .map(|n| Schema::new(super::schema::builtin::definitions(), n))
            .or(schema_of(resource)),
        &old,
        &new,
    )
}

/// The schema of a custom resource with the metadata's built-in schema in its place.
fn with_meta(resource: &Resource) -> Option<Value> {
    let custom = resource.custom.as_ref()?;
    let mut node = if custom.schema.is_object() { custom.schema.clone() } else { json!({"type": "object"}) };
    node["properties"]["metadata"] =
        json!({"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"});
    Some(node)
}

/// Notes who owns what after a write that is no apply: what has changed belongs to the writer alone.
pub fn track(resource: &Resource, old: &Value, object: &mut Value, by: &Manager) {
    if by.operation == "Apply" {
        return;
    }
    let (changed, removed) = diff(resource, old, object);
    if changed.is_empty() && removed.is_empty() {
        return;
    }
    let mut all = entries(object);
    for entry in &mut all {
        let before = entry.set.clone();
        if entry.by != *by {
            entry.set.remove(&changed);
        }
        entry.set.remove(&removed);
        entry.touched |= entry.set != before;
    }
    // Removing a value from others must not renew their time; their set alone changes.
    for entry in &mut all {
        if entry.touched && entry.by != *by {
            entry.raw["fieldsV1"] = entry.set.to_value();
            entry.touched = false;
        }
    }
    if !changed.is_empty() {
        match all.iter_mut().find(|e| e.by == *by) {
            Some(mine) => {
                mine.set.add(&changed);
                mine.touched = true;
            }
            None => all.push(Entry { by: by.clone(), set: changed, raw: Value::Null, touched: true }),
        }
    }
    write(object, &all);
}

/// Notes that all of an applied configuration, which becomes a new object, belongs to its manager.
pub fn apply_new(resource: &Resource, applied: &Value, object: &mut Value, by: &Manager) {
    let node = with_meta(resource);
    let definitions = super::schema::builtin::definitions();
    let schema = node.as_ref().map(|n| Schema::new(definitions, n)).or(schema_of(resource));
    let set = fields_of(schema, &ownable(applied));
    write(object, &[Entry { by: by.clone(), set, raw: Value::Null, touched: true }]);
}

/// Server-side apply of a configuration onto the live object: merges it, removes what the manager no longer wants and
/// nobody else owns, and refuses (unless forced) to change what others own.
pub fn apply(
    resource: &Resource,
    live: &Value,
    applied: &Value,
    by: &Manager,
    force: bool,
) -> Result<Value, ApiError> {
    let node = with_meta(resource);
    let definitions = super::schema::builtin::definitions();
    let schema = node.as_ref().map(|n| Schema::new(definitions, n)).or(schema_of(resource));
    let wanted = ownable(applied);
    let wanted_set = fields_of(schema, &wanted);

    let mut merged = live.clone();
    merge(schema, &mut merged, &wanted);
    let mut all = entries(live);

    let (changed, _) = changes(schema, &ownable(live), &ownable(&merged));
    let contested = wanted_set.intersection(&changed);
    if !contested.is_empty() {
        let mut causes = Vec::new();
        for entry in all
            .iter_mut()
            .filter(|e| !(e.by.name == by.name && e.by.operation == by.operation && e.by.sub == by.sub))
        {
            let both = owned(&entry.set, &contested);
            if both.is_empty() {
                continue;
            }
            if force {
                entry.set.remove(&both);
                entry.raw["fieldsV1"] = entry.set.to_value();
                continue;
            }
            for path in both.paths() {
                causes.push(Cause {
                    reason: "FieldManagerConflict",
                    message: format!("conflict with {}", describe(entry)),
                    field: path,
                });
            }
        }
        if !causes.is_empty() {
            return Err(conflict(&causes));
        }
    }

    let mine =
        all.iter().position(|e| e.by.name == by.name && e.by.operation == by.operation && e.by.sub == by.sub);
    if let Some(at) = mine {
        let mut dropped = all[at].set.clone();
        dropped.remove(&wanted_set);
        for (i, other) in all.iter().enumerate() {
            if i != at {
                dropped.remove(&other.set);
            }
        }
        let others: Vec<&FieldSet> =
            all.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, e)| &e.set).collect();
        prune(schema, &mut merged, &dropped, &wanted_set, &others);
        let same = all[at].set == wanted_set && all[at].by == *by;
        all[at].set = wanted_set;
        all[at].by = by.clone();
        all[at].touched = !same;
    } else {
        all.push(Entry { by: by.clone(), set: wanted_set, raw: Value::Null, touched: true });
    }
    write(&mut merged, &all);
    // The applied configuration's own conditions.
    for field in ["resourceVersion", "uid"] {
        if let Some(value) = applied["metadata"].get(field) {
            merged["metadata"][field] = value.clone();
        }
    }
    Ok(merged)
}

/// What of `contested` a manager owns: the same fields, or whole values that contain them.
fn owned(set: &FieldSet, contested: &FieldSet) -> FieldSet {
    let mut both = FieldSet {
        member: set.member && contested.member && contested.children.is_empty(),
        ..FieldSet::default()
    };
    for (key, child) in &contested.children {
        if let Some(mine) = set.children.get(key) {
            let child = owned(mine, child);
            if !child.is_empty() {
                both.children.insert(key.clone(), child);
            }
        }
    }
    both
}

fn describe(entry: &Entry) -> String {
    // Writing to a String cannot fail.
    let mut text = format!("{:?}", entry.by.name);
    if !entry.by.sub.is_empty() {
        let _ = write!(text, " with subresource {:?}", entry.by.sub);
    }
    if entry.by.operation == "Update" {
        let _ = write!(text, " using {}", entry.by.api_version);
    }
    text
}

fn conflict(causes: &[Cause]) -> ApiError {
    let listed: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.message, c.field)).collect();
    let message = format!(
        "Apply failed with {} conflict{}: {}",
        causes.len(),
        if causes.len() == 1 { "" } else { "s" },
        listed.join("; ")
    );
    let mut error = ApiError::new(::http::StatusCode::CONFLICT, "Conflict", message);
    error.causes = causes.to_vec();
    error
}

/// Merges an applied value into a live one.
fn merge(schema: Option<Schema<'_>>, live: &mut Value, wanted: &Value) {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) if !schema.is_some_and(Schema::atomic) => {
            for (field, value) in wanted {
                let schema = schema.and_then(|s| s.field(field));
                match live.get_mut(field) {
                    Some(mine) if !mine.is_null() => merge(schema, mine, value),
                    _ => {
                        live.insert(field.clone(), value.clone());
                    }
                }
            }
        }
        (Value::Array(live), Value::Array(wanted)) => {
            match schema.map_or(ListKind::Atomic, Schema::list_kind) {
                ListKind::Atomic => live.clone_from(wanted),
                ListKind::Set => {
                    for item in wanted {
                        if !live.contains(item) {
                            live.push(item.clone());
                        }
                    }
                }
                ListKind::Map(keys) => {
                    for item in wanted {
                        let key = item_key(item, &keys);
                        match live.iter_mut().find(|i| item_key(i, &keys) == key) {
                            Some(mine) => merge(schema.map(Schema::items), mine, item),
                            None => live.push(item.clone()),
                        }
                    }
                }
            }
        }
        (live, wanted) => *live = wanted.clone(),
    }
}

/// Removes the fields in `dropped`. An item or a map that others own something in, stays.
fn prune(
    schema: Option<Schema<'_>>,
    value: &mut Value,
    dropped: &FieldSet,
    wanted: &FieldSet,
    others: &[&FieldSet],
) {
    let Some(parts) = parts(schema, value) else { return };
    let mut gone = Vec::new();
    let mut deeper = Vec::new();
    for (i, (key, child_schema, child)) in parts.iter().enumerate() {
        let Some(part) = dropped.children.get(key) else { continue };
        let someone_else =
            wanted.children.contains_key(key) || others.iter().any(|o| o.children.contains_key(key));
        let leaf = part.children.is_empty() || super::managed::parts(*child_schema, child).is_none();
        if !someone_else && (part.member || leaf) {
            gone.push(i);
        } else if !part.children.is_empty() {
            deeper.push((i, key.clone()));
        }
    }
    let schemas: Vec<Option<Schema<'_>>> = parts.iter().map(|(_, s, _)| *s).collect();
    let empty = FieldSet::default();
    for (i, key) in deeper {
        let child = match value {
            Value::Object(map) => map.values_mut().nth(i),
            Value::Array(items) => items.get_mut(i),
            _ => None,
        };
        let Some(child) = child else { continue };
        let others: Vec<&FieldSet> = others.iter().filter_map(|o| o.children.get(&key)).collect();
        prune(
            schemas[i],
            child,
            &dropped.children[&key],
            wanted.children.get(&key).unwrap_or(&empty),
            &others,
        );
        // A map or list that the manager had made and that is now empty goes as well.
        let hollow = matches!(child, Value::Object(m) if m.is_empty())
            || matches!(child, Value::Array(a) if a.is_empty());
        if hollow && !wanted.children.contains_key(&key) && others.is_empty() {
            gone.push(i);
        }
    }
    gone.sort_unstable();
    for i in gone.into_iter().rev() {
        match value {
            Value::Object(map) => {
                let field: Option<String> = map.keys().nth(i).cloned();
                if let Some(field) = field {
                    map.shift_remove(&field);
                }
            }
            Value::Array(items) => {
                items.remove(i);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::registry::Registry;
    use crate::store::Snapshot;

    fn by(name: &str, operation: &str) -> Manager {
        Manager {
            name: name.to_owned(),
            operation: operation.to_owned(),
            api_version: "v1".to_owned(),
            sub: String::new(),
        }
    }

    fn on_pods<T>(work: impl FnOnce(&Resource) -> T) -> T {
        let registry = Registry::new(&Snapshot { version: 1, objects: Vec::new() });
        let served = registry.current();
        work(served.find("", "v1", "pods").unwrap())
    }

    fn pod(containers: &Value) -> Value {
        json!({"metadata": {"name": "p", "labels": {"app": "x"}}, "spec": {"containers": containers}})
    }

    #[test]
    fn items_are_owned_and_removed_one_by_one() {
        on_pods(|pods| {
            let first = pod(&json!([{"name": "a", "image": "1", "ports": [{"containerPort": 80}]}]));
            let mut live = first.clone();
            apply_new(pods, &first, &mut live, &by("one", "Apply"));
            let second = json!({"spec": {"containers": [{"name": "b", "image": "2"}]}});
            live = apply(pods, &live, &second, &by("two", "Apply"), false).unwrap();
            assert_eq!(live["spec"]["containers"].as_array().unwrap().len(), 2);
            // The protocol of a port is part of its key, also where it is left out.
            live["spec"]["containers"][0]["ports"][0]["protocol"] = json!("TCP");
            let again = pod(&json!([{"name": "a", "image": "3", "ports": [{"containerPort": 80}]}]));
            live = apply(pods, &live, &again, &by("one", "Apply"), false).unwrap();
            assert_eq!(live["spec"]["containers"][0]["image"], "3");
            assert_eq!(live["spec"]["containers"][0]["ports"].as_array().unwrap().len(), 1);
            let nothing = json!({"spec": {}});
            live = apply(pods, &live, &nothing, &by("two", "Apply"), false).unwrap();
            assert_eq!(live["spec"]["containers"].as_array().unwrap().len(), 1);
            assert_eq!(live["spec"]["containers"][0]["name"], "a");
        });
    }

    #[test]
    fn what_an_update_changes_is_its_writers() {
        on_pods(|pods| {
            let first = pod(&json!([{"name": "a", "image": "1"}]));
            let mut live = first.clone();
            apply_new(pods, &first, &mut live, &by("one", "Apply"));
            let mut edited = live.clone();
            edited["metadata"]["labels"]["app"] = json!("y");
            track(pods, &live, &mut edited, &by("editor", "Update"));
            let error = apply(pods, &edited, &first, &by("one", "Apply"), false).unwrap_err();
            assert_eq!(error.code, 409);
            assert_eq!(error.causes[0].field, ".metadata.labels.app");
            assert!(error.message.contains("conflict with \"editor\" using v1"), "{}", error.message);
            let forced = apply(pods, &edited, &first, &by("one", "Apply"), true).unwrap();
            assert_eq!(forced["metadata"]["labels"]["app"], "x");
            assert_eq!(list(&forced["metadata"], "managedFields").len(), 1);
            // The same value is no conflict: it is owned together, and stays until both let go.
            let shared = apply(
                pods,
                &forced,
                &json!({"metadata": {"labels": {"app": "x"}}}),
                &by("two", "Apply"),
                false,
            );
            let left = pod(&json!([{"name": "a", "image": "1"}]));
            let mut left = left;
            left["metadata"] = json!({"name": "p"});
            let kept = apply(pods, &shared.unwrap(), &left, &by("one", "Apply"), false).unwrap();
            assert_eq!(kept["metadata"]["labels"]["app"], "x");
            let gone = apply(pods, &kept, &json!({"metadata": {}}), &by("two", "Apply"), false).unwrap();
            assert!(gone["metadata"].get("labels").is_none_or(|l| l.get("app").is_none()), "{gone}");
        });
    }

    #[test]
    fn sets_are_written_as_they_are_read() {
        let value = json!({"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:image": {}}}}, "f:metadata": {"f:finalizers": {"v:\"x/y\"": {}}}});
        let set = FieldSet::parse(&value);
        assert_eq!(FieldSet::parse(&set.to_value()), set);
        assert_eq!(set.paths(), [".metadata.finalizers[=\"x/y\"]", ".spec.containers[name=\"a\"].image"]);
    }
}
