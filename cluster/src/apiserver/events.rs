//! Events have two shapes, core and events.k8s.io, of the same objects. They are stored in the core shape.

use serde_json::{Map, Value};

/// Fields of events.k8s.io beside those of the core shape that hold the same.
const FIELDS: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename(object: &mut Value, name: impl Fn(&str) -> Option<&'static str>) {
    let Some(map) = object.as_object_mut() else { return };
    let old = std::mem::take(map);
    *map = old
        .into_iter()
        .map(|(field, value)| match name(&field) {
            Some(other) => (other.to_owned(), value),
            None => (field, value),
        })
        .collect::<Map<String, Value>>();
}

/// From the shape of events.k8s.io to the core shape.
pub fn to_core(object: &mut Value) {
    rename(object, |field| FIELDS.iter().find(|(new, _)| *new == field).map(|(_, core)| *core));
    object["apiVersion"] = Value::from("v1");
}

/// From the core shape to that of events.k8s.io.
pub fn to_new(object: &mut Value) {
    rename(object, |field| FIELDS.iter().find(|(_, core)| *core == field).map(|(new, _)| *new));
    object["apiVersion"] = Value::from("events.k8s.io/v1");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_shapes_hold_the_same() {
        let new = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "x"},
            "regarding": {"kind": "Pod"}, "note": "hello", "reportingController": "c", "reason": "R", "deprecatedCount": 2});
        let mut object = new.clone();
        to_core(&mut object);
        assert_eq!(object["involvedObject"]["kind"], "Pod");
        assert_eq!(object["message"], "hello");
        assert_eq!(object["count"], 2);
        to_new(&mut object);
        assert_eq!(object, new);
    }
}
