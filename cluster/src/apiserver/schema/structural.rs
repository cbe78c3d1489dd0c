//! Rules that a custom resource's schema sets for values. CEL rules (`x-kubernetes-validations`) are not evaluated.

use std::net::{Ipv4Addr, Ipv6Addr};

use regex::Regex;
use serde_json::{Map, Value};

use super::Schema;
use crate::apiserver::status::Cause;

/// Fields that must be there.
pub fn required(schema: Schema<'_>, map: &Map<String, Value>, path: &str, causes: &mut Vec<Cause>) {
    for name in schema.node["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !map.contains_key(name) {
            let field = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            causes.push(Cause::required(&field, ""));
        }
    }
}

/// Rules for one value, not for what is in it.
pub fn check(schema: Schema<'_>, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    let node = schema.node;
    let mut refuse = |why: String| causes.push(Cause::invalid(path, &brief(value), &why));
    if let Some(allowed) = node["enum"].as_array()
        && !allowed.contains(value)
    {
        let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
        causes.push(Cause {
            reason: "FieldValueNotSupported",
            message: format!("Unsupported value: {value}: supported values: {}", allowed.join(", ")),
            field: path.to_owned(),
        });
        return;
    }
    let size = |name: &str| node[name].as_u64().and_then(|n| usize::try_from(n).ok());
    match value {
        Value::String(text) => {
            let length = text.chars().count();
            if size("maxLength").is_some_and(|max| length > max) {
                refuse(format!("may not be more than {} characters", node["maxLength"]));
            }
            if size("minLength").is_some_and(|min| length < min) {
                refuse(format!("should be at least {} chars long", node["minLength"]));
            }
            if let Some(pattern) = node["pattern"].as_str()
                // Patterns are checked when the definition is made.
                && Regex::new(pattern).is_ok_and(|regex| !regex.is_match(text))
            {
                refuse(format!("should match '{pattern}'"));
            }
            if let Some(format) = node["format"].as_str()
                && !format_holds(format, text)
            {
                refuse(format!("must be of type {format}"));
            }
        }
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            if let Some(max) = node["maximum"].as_f64() {
                let exclusive = node["exclusiveMaximum"] == true;
                if number > max || (exclusive && number >= max) {
                    refuse(format!(
                        "should be less than {}{max}",
                        if exclusive { "" } else { "or equal to " }
                    ));
                }
            }
            if let Some(min) = node["minimum"].as_f64() {
                let exclusive = node["exclusiveMinimum"] == true;
                if number < min || (exclusive && number <= min) {
                    refuse(format!(
                        "should be greater than {}{min}",
                        if exclusive { "" } else { "or equal to " }
                    ));
                }
            }
            if let Some(of) = node["multipleOf"].as_f64()
                && of != 0.0
                && (number / of).fract() != 0.0
            {
                refuse(format!("should be a multiple of {of}"));
            }
        }
        Value::Array(items) => {
            if size("maxItems").is_some_and(|max| items.len() > max) {
                refuse(format!("must have at most {} items", node["maxItems"]));
            }
            if size("minItems").is_some_and(|min| items.len() < min) {
                refuse(format!("should have at least {} items", node["minItems"]));
            }
            unique(schema, items, path, causes);
        }
        Value::Object(map) => {
            if size("maxProperties").is_some_and(|max| map.len() > max) {
                refuse(format!("must have at most {} properties", node["maxProperties"]));
            }
            if size("minProperties").is_some_and(|min| map.len() < min) {
                refuse(format!("should have at least {} properties", node["minProperties"]));
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
    alternatives(schema, value, path, causes);
}

/// Items of sets and of lists that are maps are each there once.
fn unique(schema: Schema<'_>, items: &[Value], path: &str, causes: &mut Vec<Cause>) {
    let keys: Vec<Value> = match schema.list_kind() {
        super::ListKind::Atomic => return,
        super::ListKind::Set => items.to_vec(),
        super::ListKind::Map(keys) => {
            items.iter().map(|item| keys.iter().map(|key| item[key].clone()).collect()).collect()
        }
    };
    for (i, key) in keys.iter().enumerate() {
        if keys[..i].contains(key) {
            causes.push(Cause::duplicate(&format!("{path}[{i}]"), key));
        }
    }
}

/// `allOf`, `anyOf`, `oneOf` and `not`.
fn alternatives(schema: Schema<'_>, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    let node = schema.node;
    let holds = |alternative: &Value| {
        let mut found = Vec::new();
        deep(schema.at(alternative), value, path, &mut found, 0);
        found.is_empty()
    };
    let count = |name: &str| node[name].as_array().map(|list| list.iter().filter(|a| holds(a)).count());
    let mut refuse = |why: &str| causes.push(Cause::invalid(path, &brief(value), why));
    if count("anyOf") == Some(0) {
        refuse("must validate at least one schema (anyOf)");
    }
    if count("oneOf").is_some_and(|n| n != 1) {
        refuse("must validate one and only one schema (oneOf)");
    }
    if node["allOf"].as_array().is_some_and(|list| !list.iter().all(holds)) {
        refuse("must validate all the schemas (allOf)");
    }
    if node["not"].is_object() && holds(&node["not"]) {
        refuse("must not validate the schema (not)");
    }
}

/// Checks a value and all that is in it, without changing anything.
fn deep(schema: Schema<'_>, value: &Value, path: &str, causes: &mut Vec<Cause>, depth: usize) {
    if depth > 50 {
        return;
    }
    if let Some(wanted) = schema.node["type"].as_str() {
        let fits = match wanted {
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            _ => true,
        };
        if !fits {
            causes.push(Cause::invalid(path, &brief(value), &format!("must be of type {wanted}")));
            return;
        }
    }
    match value {
        Value::Object(map) => {
            required(schema, map, path, causes);
            for (name, child) in map {
                if let Some(field) = schema.field(name) {
                    deep(field, child, &format!("{path}.{name}"), causes, depth + 1);
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                deep(schema.items(), item, path, causes, depth + 1);
            }
        }
        _ => {}
    }
    check(schema, value, path, causes);
}

/// The value as an error shows it.
fn brief(value: &Value) -> Value {
    match value {
        Value::Array(_) => Value::from("array"),
        Value::Object(_) => Value::from("object"),
        scalar => scalar.clone(),
    }
}

fn format_holds(format: &str, text: &str) -> bool {
    match format {
        "date-time" => crate::apiserver::object::parse_time(text).is_some(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.parse::<ipnet::IpNet>().is_ok(),
        "uuid" => uuid::Uuid::parse_str(text).is_ok(),
        "byte" => base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).is_ok(),
        // As everywhere: formats that are not known say nothing.
        _ => true,
    }
}
