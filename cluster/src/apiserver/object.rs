//! Reaching into objects that are plain JSON.

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A string in the object's metadata; empty if it is not there.
pub fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// The metadata as a map, made at need. Whatever else stood in its place is dropped.
pub fn meta_mut(object: &mut Value) -> &mut Map<String, Value> {
    child_mut(object, "metadata")
}

/// A field as a map, made at need. Whatever else stood in its place is dropped.
pub fn child_mut<'a>(object: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    let map = as_map(object);
    as_map(map.entry(field).or_insert(Value::Null))
}

/// The value as a map. Whatever else it was is dropped.
pub fn as_map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("it has just been made an object"),
    }
}

/// Sets a field unless it is there.
pub fn default(map: &mut Map<String, Value>, field: &str, value: impl Into<Value>) {
    match map.get(field) {
        None | Some(Value::Null) => {
            map.insert(field.to_owned(), value.into());
        }
        Some(_) => {}
    }
}

/// Whether there is something in the field: not absent, null, empty text, empty list or empty map.
pub fn filled(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    }
}

/// Now, to the second, as objects carry it.
pub fn now() -> String {
    format_time(OffsetDateTime::now_utc())
}

/// A time, to the second, as objects carry it.
pub fn format_time(time: OffsetDateTime) -> String {
    let time = time.replace_nanosecond(0).unwrap_or(time);
    // Formatting fails only for years beyond 9999.
    time.format(&Rfc3339).unwrap_or_default()
}

/// A time that an object carries.
pub fn parse_time(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

/// The list in a field; empty if there is none.
pub fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}
