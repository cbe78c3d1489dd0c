//! OpenAPI: the schemas of everything served, for clients that validate, explain and merge.

use std::collections::{BTreeMap, BTreeSet};

use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};

use super::http::{self as answers, Answer};
use super::path::percent_decode;
use super::registry::{Resource, Served};
use super::schema::{Definitions, builtin};
use super::status::ApiError;

const PREFIX: &str = "#/components/schemas/";

/// Answers a request below `/openapi/`.
pub fn answer(served: &Served, path: &str, headers: &HeaderMap) -> Result<Answer, ApiError> {
    match path {
        "/openapi/v3" => Ok(answers::json(StatusCode::OK, &index(served))),
        "/openapi/v2" => {
            answers::form(headers)?;
            Ok(answers::json(StatusCode::OK, &v2(served)))
        }
        _ => {
            let name = path.strip_prefix("/openapi/v3/").and_then(percent_decode).unwrap_or_default();
            let document = versions(served).into_iter().find(|(n, _)| *n == name);
            let (_, resources) = document.ok_or_else(ApiError::no_such_path)?;
            Ok(answers::json(StatusCode::OK, &v3(&resources)))
        }
    }
}

/// Documents: `api/v1`, `apis/apps/v1` and so on, and their resources.
fn versions(served: &Served) -> BTreeMap<String, Vec<&Resource>> {
    let mut documents: BTreeMap<String, Vec<&Resource>> = BTreeMap::new();
    for resource in &served.ordered {
        documents.entry(root(resource)).or_default().push(resource);
    }
    documents
}

fn root(resource: &Resource) -> String {
    match resource.group.as_str() {
        "" => format!("api/{}", resource.version),
        group => format!("apis/{group}/{}", resource.version),
    }
}

fn index(served: &Served) -> Value {
    let paths: Map<String, Value> = versions(served)
        .into_keys()
        .map(|name| {
            // Clients keep a document as long as its hash stays. Built-in ones change with the program only.
            let custom = name
                .split('/')
                .nth(1)
                .is_some_and(|g| served.ordered.iter().any(|r| r.group == g && r.custom.is_some()));
            let hash =
                if custom { served.revision.to_string() } else { env!("CARGO_PKG_VERSION").to_owned() };
            let url = json!({"serverRelativeURL": format!("/openapi/v3/{name}?hash={hash}")});
            (name, url)
        })
        .collect();
    json!({"paths": paths})
}

fn schema_name(resource: &Resource) -> String {
    if resource.custom.is_none() {
        return resource.schema.clone();
    }
    let reversed: Vec<&str> = resource.group.split('.').rev().collect();
    format!("{}.{}.{}", reversed.join("."), resource.version, resource.kind)
}

fn gvk(resource: &Resource) -> Value {
    json!({"group": resource.group, "version": resource.version, "kind": resource.kind})
}

/// The schema of a custom resource as clients see it.
fn custom_schema(resource: &Resource) -> Value {
    let custom = resource.custom.as_ref();
    let mut schema = custom
        .map(|c| c.schema.clone())
        .filter(Value::is_object)
        .unwrap_or_else(|| json!({"type": "object"}));
    // What every object has reads the same everywhere.
    let common = &builtin::definitions()["io.k8s.api.core.v1.Namespace"]["properties"];
    for field in ["apiVersion", "kind", "metadata"] {
        schema["properties"][field] = common[field].clone();
    }
    schema
}

/// Schemas that `node` refers to, and what these refer to.
fn collect(node: &Value, definitions: &Definitions, found: &mut BTreeSet<String>) {
    match node {
        Value::Object(map) => {
            if let Some(name) = map.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(PREFIX))
                && let Some(definition) = definitions.get(name)
                && found.insert(name.to_owned())
            {
                collect(definition, definitions, found);
            }
            map.values().for_each(|v| collect(v, definitions, found));
        }
        Value::Array(items) => items.iter().for_each(|v| collect(v, definitions, found)),
        _ => {}
    }
}

/// OpenAPI 3.0 ignores what stands beside a `$ref`: it goes into an `allOf`.
fn published(node: &Value) -> Value {
    match node {
        Value::Object(map) => {
            let mut out: Map<String, Value> = map.iter().map(|(k, v)| (k.clone(), published(v))).collect();
            if out.len() > 1
                && let Some(reference) = out.get("$ref").cloned()
                && reference.is_string()
            {
                out.shift_remove("$ref");
                out.insert("allOf".to_owned(), json!([{"$ref": reference}]));
            }
            Value::Object(out)
        }
        Value::Array(items) => Value::Array(items.iter().map(published).collect()),
        other => other.clone(),
    }
}

fn v3(resources: &[&Resource]) -> Value {
    let definitions = builtin::definitions();
    let mut schemas: Map<String, Value> = Map::new();
    let mut wanted = BTreeSet::new();
    for resource in resources {
        let (name, schema) = match &resource.custom {
            Some(_) => (schema_name(resource), custom_schema(resource)),
            None => (resource.schema.clone(), definitions.get(&resource.schema).cloned().unwrap_or_default()),
        };
        collect(&schema, definitions, &mut wanted);
        let mut schema = published(&schema);
        schema["x-kubernetes-group-version-kind"] = json!([gvk(resource)]);
        schemas.insert(name.clone(), schema);
        let list = json!({
            "type": "object", "required": ["items"],
            "description": format!("{} is a list of {}.", resource.list_kind, resource.kind),
            "properties": {
                "apiVersion": {"type": "string"}, "kind": {"type": "string"},
                "items": {"type": "array", "items": {"$ref": format!("{PREFIX}{name}")}},
                "metadata": {"$ref": format!("{PREFIX}{LIST_META}")},
            },
            "x-kubernetes-group-version-kind": [{"group": resource.group, "version": resource.version, "kind": resource.list_kind}],
        });
        schemas.insert(format!("{name}List"), list);
    }
    for name in [
        LIST_META,
        "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
        "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
    ] {
        if let Some(definition) = definitions.get(name) {
            wanted.insert(name.to_owned());
            collect(definition, definitions, &mut wanted);
        }
    }
    for name in wanted {
        if !schemas.contains_key(&name)
            && let Some(definition) = definitions.get(&name)
        {
            schemas.insert(name, published(definition));
        }
    }
    let mut paths = Map::new();
    for resource in resources {
        add_paths(resource, &mut paths);
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.35.0"},
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

fn parameter(place: &str, name: &str, kind: &str) -> Value {
    json!({"name": name, "in": place, "required": place == "path", "schema": {"type": kind, "uniqueItems": true}})
}

fn operation(resource: &Resource, action: &str, parameters: &[&str], body: Option<&[&str]>) -> Value {
    let reference = json!({"$ref": format!("{PREFIX}{}", schema_name(resource))});
    let parameters: Vec<Value> = parameters
        .iter()
        .map(|name| match *name {
            "force" | "watch" | "allowWatchBookmarks" | "sendInitialEvents" => {
                parameter("query", name, "boolean")
            }
            "limit" | "timeoutSeconds" | "gracePeriodSeconds" => parameter("query", name, "integer"),
            name => parameter("query", name, "string"),
        })
        .collect();
    let mut operation = json!({
        "parameters": parameters,
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": reference}}}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk(resource),
    });
    if let Some(types) = body {
        let content: Map<String, Value> = types
            .iter()
            .map(|t| {
                let schema = if t.contains("patch") { json!({"type": "object"}) } else { reference.clone() };
                ((*t).to_owned(), json!({"schema": schema}))
            })
            .collect();
        operation["requestBody"] = json!({"content": content, "required": true});
    }
    operation
}

fn add_paths(resource: &Resource, paths: &mut Map<String, Value>) {
    let space = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("/{}{space}/{}", root(resource), resource.plural);
    let mut shared = Vec::new();
    if resource.namespaced {
        shared.push(parameter("path", "namespace", "string"));
    }
    let json_only: &[&str] = &["application/json"];
    let write = ["dryRun", "fieldManager", "fieldValidation"];
    let create = operation(resource, "post", &write, Some(json_only));
    if !resource.stored {
        paths.insert(collection, json!({"post": create, "parameters": shared}));
        return;
    }
    let select = [
        "fieldSelector",
        "labelSelector",
        "limit",
        "continue",
        "resourceVersion",
        "timeoutSeconds",
        "watch",
        "allowWatchBookmarks",
    ];
    paths.insert(
        collection.clone(),
        json!({
            "get": operation(resource, "list", &select, None),
            "post": create,
            "delete": operation(resource, "deletecollection", &["dryRun", "fieldSelector", "labelSelector"], None),
            "parameters": shared,
        }),
    );
    shared.push(parameter("path", "name", "string"));
    let mut patches =
        vec!["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];
    if resource.custom.is_none() {
        patches.push("application/strategic-merge-patch+json");
    }
    let object = |path: String, whole: bool, paths: &mut Map<String, Value>| {
        let mut item = json!({
            "get": operation(resource, "get", &[], None),
            "put": operation(resource, "put", &write, Some(json_only)),
            "patch": operation(resource, "patch", &["dryRun", "fieldManager", "fieldValidation", "force"], Some(&patches)),
            "parameters": shared,
        });
        if whole {
            item["delete"] =
                operation(resource, "delete", &["dryRun", "gracePeriodSeconds", "propagationPolicy"], None);
        }
        paths.insert(path, item);
    };
    object(format!("{collection}/{{name}}"), true, paths);
    if resource.has_sub("status") {
        object(format!("{collection}/{{name}}/status"), false, paths);
    }
}

/// The older form: the schemas, without paths.
fn v2(served: &Served) -> Value {
    let mut definitions: Map<String, Value> =
        builtin::definitions().iter().map(|(name, schema)| (name.clone(), schema.clone())).collect();
    for resource in &served.ordered {
        let name = schema_name(resource);
        if resource.custom.is_some() {
            definitions.insert(name.clone(), custom_schema(resource));
        }
        if let Some(schema) = definitions.get_mut(&name) {
            schema["x-kubernetes-group-version-kind"] = json!([gvk(resource)]);
        }
    }
    let text = json!({
        "swagger": "2.0", "info": {"title": "Kubernetes", "version": "v1.35.0"}, "paths": {}, "definitions": definitions,
    });
    relocate(text)
}

/// References of the newer form become those of the older.
fn relocate(node: Value) -> Value {
    match node {
        Value::Object(map) => map
            .into_iter()
            .map(|(key, value)| match value {
                Value::String(text) if key == "$ref" => (key, json!(text.replace(PREFIX, "#/definitions/"))),
                other => (key, relocate(other)),
            })
            .collect(),
        Value::Array(items) => Value::Array(items.into_iter().map(relocate).collect()),
        other => other,
    }
}
