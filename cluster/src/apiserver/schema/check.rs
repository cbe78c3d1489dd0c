//! Brings an object in line with its schema: drops what the schema does not know (and says what), fills in defaults,
//! and finds what is wrong.

use serde_json::Value;

use super::Schema;
use crate::apiserver::status::Cause;

/// What was found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Paths of fields that the schema does not know; they have been dropped.
    pub unknown: Vec<String>,
    /// What is wrong.
    pub causes: Vec<Cause>,
    /// Values of the wrong type. Built-in kinds refuse such objects as unreadable, before they look at rules.
    pub mistyped: Vec<Cause>,
}

/// Objects nested deeper than this are refused before they get here; the walk stops as well.
const DEPTH: usize = 100;

/// Clients' calendars end within the year after this one.
const LAST_YEAR: i32 = 9998;

/// Below this, a number that is written with a fraction of nothing is that whole number.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Walks an object. `custom` turns on what only custom resources have: rules and defaults in the schema, and nulls
/// that must be allowed.
pub fn normalize(schema: Schema<'_>, object: &mut Value, custom: bool) -> Findings {
    let mut walk = Walk { custom, findings: Findings::default() };
    if custom && let Some(map) = object.as_object_mut() {
        // The type and the metadata are everyone's; only the rest is the definition's.
        let parts = ["apiVersion", "kind", "metadata"].map(|k| (k, map.shift_remove(k)));
        if !schema.node.is_null() {
            walk.visit(schema, object, "", 0);
        }
        let Some(map) = object.as_object_mut() else { return walk.findings };
        let rest = std::mem::take(map);
        map.extend(parts.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?))));
        map.extend(
            rest.into_iter().filter(|(k, _)| !["apiVersion", "kind", "metadata"].contains(&k.as_str())),
        );
        if let Some(meta) = map.get_mut("metadata") {
            let definitions = super::builtin::definitions();
            if let Some(node) = definitions.get(META) {
                walk.custom = false;
                walk.visit(Schema::new(definitions, node), meta, "metadata", 0);
            }
        }
    } else {
        walk.visit(schema, object, "", 0);
    }
    walk.findings
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

struct Walk {
    custom: bool,
    findings: Findings,
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_i64() || n.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn type_fits(wanted: &str, value: &Value) -> bool {
    match type_name(value) {
        "integer" => wanted == "integer" || wanted == "number",
        "number" => {
            wanted == "number" || (wanted == "integer" && value.as_f64().is_some_and(|f| f.fract() == 0.0))
        }
        name => wanted == name,
    }
}

impl Walk {
    fn mistyped(&mut self, path: &str, wanted: &str, value: &Value) {
        let got = type_name(value);
        self.findings.mistyped.push(Cause {
            reason: "FieldValueTypeInvalid",
            message: format!("Invalid value: {got:?}: {path} in body must be of type {wanted}: {got:?}"),
            field: if path.is_empty() { "<nil>".to_owned() } else { path.to_owned() },
        });
    }

    /// Checks a whole number. A client that knows the field's type cannot read one that does not fit, and then reads
    /// no object of the kind at all: that would stop a controller.
    fn integer(&mut self, format: &str, value: &mut Value, path: &str) {
        if self.custom
            && let Some(number) = value.as_f64().filter(|f| value.is_f64() && f.abs() < EXACT)
        {
            *value = Value::from(number as i64);
        }
        match format {
            _ if value.is_string() => {}
            "int32" if value.as_i64().is_none_or(|n| i32::try_from(n).is_err()) => {
                self.mistyped(path, "int32, a whole number below 2147483648", value);
            }
            "int64" if !value.is_i64() => {
                self.mistyped(path, "int64, a whole number below 9223372036854775808", value);
            }
            _ => {}
        }
    }

    fn visit(&mut self, schema: Schema<'_>, value: &mut Value, path: &str, depth: usize) {
        if depth > DEPTH || schema.node.is_null() {
            return;
        }
        if schema.node["x-kubernetes-int-or-string"] == true {
            if !value.is_string() && !value.is_number() {
                self.mistyped(path, "integer,string", value);
            } else if schema.node["format"] == "int-or-string" {
                self.integer("int32", value, path);
            } else if !self.custom && value.is_number() {
                // A quantity: it is kept as text, however it was written.
                *value = Value::String(value.to_string());
            }
            return;
        }
        if let Some(wanted) = schema.node["type"].as_str()
            && !type_fits(wanted, value)
        {
            self.mistyped(path, wanted, value);
            return;
        }
        match value {
            Value::Number(_) if schema.node["type"] == "integer" => {
                self.integer(schema.node["format"].as_str().unwrap_or_default(), value, path);
            }
            Value::Object(_) => self.object(schema, value, path, depth),
            Value::Array(items) => {
                let item_schema = schema.items();
                for (i, item) in items.iter_mut().enumerate() {
                    self.visit(item_schema, item, &format!("{path}[{i}]"), depth + 1);
                }
            }
            _ => {}
        }
        if self.custom {
            super::structural::check(schema, value, path, &mut self.findings.causes);
        } else if schema.node["format"] == "date-time"
            && let Some(text) = value.as_str()
            && crate::apiserver::object::parse_time(text).is_none_or(|time| time.year() > LAST_YEAR)
        {
            self.mistyped(path, "date-time", value);
        } else if schema.node["format"] == "byte"
            && let Some(text) = value.as_str()
            && base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).is_err()
        {
            self.mistyped(path, "base64", value);
        }
    }

    fn object(&mut self, schema: Schema<'_>, value: &mut Value, path: &str, depth: usize) {
        let Value::Object(map) = value else { return };
        if self.custom {
            for (name, property) in schema.node["properties"].as_object().into_iter().flatten() {
                if let Some(default) = property.get("default")
                    && map.get(name).is_none_or(|v| v.is_null() && property["nullable"] != true)
                {
                    map.insert(name.clone(), default.clone());
                }
            }
        }
        let open = schema.open();
        let embedded = schema.node["x-kubernetes-embedded-resource"] == true;
        let mut dropped = Vec::new();
        for (name, child) in map.iter_mut() {
            let at = if schema.is_map() && schema.node["properties"].get(name).is_none() && name.contains('.')
            {
                format!("{path}[{name}]")
            } else {
                join(path, name)
            };
            match schema.field(name) {
                Some(field) => {
                    if child.is_null() {
                        if !self.custom || field.node["nullable"] != true {
                            if self.custom && !field.open() {
                                let wanted = field.node["type"].as_str().unwrap_or("object").to_owned();
                                self.mistyped(&at, &wanted, child);
                            } else if !self.custom {
                                dropped.push(name.clone());
                            }
                        }
                        continue;
                    }
                    self.visit(field, child, &at, depth + 1);
                }
                None if open => {}
                None if embedded && ["apiVersion", "kind", "metadata"].contains(&name.as_str()) => {}
                // The schema says no fields at all beyond `properties`.
                None => {
                    self.findings.unknown.push(at);
                    dropped.push(name.clone());
                }
            }
        }
        for name in dropped {
            map.shift_remove(&name);
        }
        if self.custom {
            super::structural::required(schema, map, path, &mut self.findings.causes);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::builtin::definitions;
    use super::*;

    fn pod(mut object: Value) -> (Value, Findings) {
        let findings = normalize(
            Schema::new(definitions(), &definitions()["io.k8s.api.core.v1.Pod"]),
            &mut object,
            false,
        );
        (object, findings)
    }

    #[test]
    fn unknown_fields_of_built_in_kinds_are_dropped_and_named() {
        let (object, findings) = pod(json!({"metadata": {"name": "x", "creationTimestamp": null}, "spec":
            {"containers": [{"name": "a", "imag": "b", "resources": {"limits": {"cpu": 1}}}], "nodeSelector": {"a.b/c": "d"}}}));
        assert_eq!(findings.unknown, ["spec.containers[0].imag"]);
        assert!(findings.mistyped.is_empty(), "{findings:?}");
        assert!(object["spec"]["containers"][0].get("imag").is_none());
        assert!(object["metadata"].get("creationTimestamp").is_none());
        assert_eq!(object["spec"]["nodeSelector"]["a.b/c"], "d");
    }

    #[test]
    fn wrong_types_are_found() {
        let (_, findings) =
            pod(json!({"spec": {"containers": {}, "hostNetwork": "yes"}, "metadata": {"labels": {"a": 1}}}));
        let fields: Vec<&str> = findings.mistyped.iter().map(|c| c.field.as_str()).collect();
        assert_eq!(fields, ["spec.containers", "spec.hostNetwork", "metadata.labels.a"]);
    }

    #[test]
    fn what_a_typed_client_cannot_read_is_mistyped() {
        let pod_with = |field: &str, value: &Value| {
            let mut container = json!({"name": "c", "image": "x", "resources": {"limits": {}},
                "livenessProbe": {"tcpSocket": {}}});
            let mut object = json!({"metadata": {}, "spec": {}});
            match field {
                "port" => container["livenessProbe"]["tcpSocket"]["port"] = value.clone(),
                "periodSeconds" => container["livenessProbe"]["periodSeconds"] = value.clone(),
                "cpu" => container["resources"]["limits"]["cpu"] = value.clone(),
                "creationTimestamp" => object["metadata"]["creationTimestamp"] = value.clone(),
                _ => object["spec"][field] = value.clone(),
            }
            object["spec"]["containers"] = json!([container]);
            pod(object)
        };
        for (field, value) in [
            ("port", json!(80.5)),
            ("port", json!(80.0)),
            ("port", json!(1_u64 << 31)),
            ("periodSeconds", json!(1_u64 << 31)),
            ("periodSeconds", json!(-(1_i64 << 32))),
            ("periodSeconds", json!(2.0)),
            ("terminationGracePeriodSeconds", json!(u64::MAX)),
            ("terminationGracePeriodSeconds", json!(1e30)),
            ("creationTimestamp", json!("9999-12-31T23:59:59Z")),
        ] {
            let (_, findings) = pod_with(field, &value);
            assert_eq!(findings.mistyped.len(), 1, "{field}: {value}: {findings:?}");
        }
        for (field, value) in [
            ("port", json!(80)),
            ("port", json!("http")),
            ("periodSeconds", json!(i32::MAX)),
            ("terminationGracePeriodSeconds", json!(i64::MAX)),
            ("cpu", json!(1)),
            ("cpu", json!(0.5)),
            ("creationTimestamp", json!("9998-12-31T23:59:59.123456Z")),
        ] {
            let (object, findings) = pod_with(field, &value);
            assert!(findings.mistyped.is_empty(), "{field}: {value}: {findings:?}");
            let read = serde_json::from_value::<k8s_openapi::api::core::v1::Pod>(object);
            assert!(read.is_ok(), "{field}: {value}: {read:?}");
        }
        let (object, _) = pod_with("cpu", &json!(0.5));
        assert_eq!(object["spec"]["containers"][0]["resources"]["limits"]["cpu"], "0.5");
    }

    #[test]
    fn whole_numbers_of_custom_objects_are_whole() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "n": {"type": "integer"}, "small": {"type": "integer", "format": "int32"}}}}});
        let (object, findings) = custom(&schema, json!({"spec": {"n": 3.0, "small": 4.0}}));
        assert_eq!(object["spec"].to_string(), r#"{"n":3,"small":4}"#);
        assert!(findings.mistyped.is_empty());
        let (_, findings) = custom(&schema, json!({"spec": {"small": 1_u64 << 40}}));
        assert_eq!(findings.mistyped[0].field, "spec.small");
    }

    fn custom(schema: &Value, mut object: Value) -> (Value, Findings) {
        let empty = super::super::Definitions::new();
        let findings = normalize(Schema::new(&empty, schema), &mut object, true);
        (object, findings)
    }

    #[test]
    fn custom_objects_are_pruned_defaulted_and_checked() {
        let schema = json!({"type": "object", "required": ["spec"], "properties": {"spec": {"type": "object",
            "required": ["size"],
            "properties": {
                "size": {"type": "integer", "minimum": 1, "maximum": 9},
                "mode": {"type": "string", "enum": ["a", "b"], "default": "a"},
                "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 3},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "maybe": {"type": "string", "nullable": true}}}}});
        let (object, findings) = custom(
            &schema,
            json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "n", "bad": 1},
            "spec": {"size": 3, "extra": true, "free": {"q": [1]}, "maybe": null}}),
        );
        assert_eq!(object["spec"], json!({"size": 3, "free": {"q": [1]}, "maybe": null, "mode": "a"}));
        assert_eq!(findings.unknown, ["spec.extra", "metadata.bad"]);
        assert!(findings.causes.is_empty() && findings.mistyped.is_empty(), "{findings:?}");

        let (_, findings) =
            custom(&schema, json!({"metadata": {}, "spec": {"size": 10, "mode": "c", "name": "ABCD"}}));
        assert_eq!(findings.causes.len(), 4, "{findings:?}");
        let (_, findings) = custom(&schema, json!({"metadata": {}, "spec": {"size": "x"}}));
        assert_eq!(findings.mistyped[0].field, "spec.size");
        let (_, findings) = custom(&schema, json!({"metadata": {}}));
        assert_eq!(findings.causes[0].field, "spec");
    }
}
