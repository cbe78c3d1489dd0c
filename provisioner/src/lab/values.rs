//! What is wrong with the agent's values, key by key.

use podwire_api::values::Values;
use serde_json::{Map, Value};

use super::words::nearest;

/// What is wrong with each leaf of the values, taken alone: the key, the cause and the mend.
pub(crate) fn shape_errors(values: &Map<String, Value>) -> Vec<String> {
    let mut paths = Vec::new();
    leaves(values, "", &mut paths);
    paths.iter().filter_map(|path| shape_error(values, path)).collect()
}

fn leaves(table: &Map<String, Value>, above: &str, paths: &mut Vec<String>) {
    for (key, value) in table {
        let path = if above.is_empty() { key.clone() } else { format!("{above}.{key}") };
        match value {
            Value::Object(inner) => leaves(inner, &path, paths),
            _ => paths.push(path),
        }
    }
}

/// What is wrong with one leaf of the values, taken alone.
pub(super) fn shape_error(values: &Map<String, Value>, path: &str) -> Option<String> {
    let mut leaf = path.split('.').try_fold(None, |table: Option<&Value>, key| {
        let next = table.map_or_else(|| values.get(key), |t| t.get(key));
        next.map(Some)
    })??;
    let mut nested = leaf.clone();
    for key in path.rsplit('.') {
        nested = Value::Object(Map::from_iter([(key.to_owned(), nested)]));
    }
    let error = serde_json::from_value::<Values>(nested).err()?.to_string();
    // serde lists the keys of the level on which the unknown one stands: a hint is shorter.
    if let Some(rest) = error.strip_prefix("unknown field `") {
        let mut words = rest.split('`').step_by(2);
        let typed = words.next().unwrap_or_default();
        let known: Vec<&str> = rest.split('`').skip(2).step_by(2).collect();
        let help = match nearest(typed, known.iter().copied()) {
            Some(word) => format!("did you mean {word:?}?"),
            None => format!("the keys here are {}", known.join(", ")),
        };
        let place = if typed == path { String::new() } else { format!(" in {path}") };
        return Some(format!("unknown key {typed:?}{place}; {help}"));
    }
    if leaf.is_array() && leaf.as_array().is_some_and(|a| a.len() == 1) {
        leaf = &leaf[0];
    }
    let mend =
        if error.contains("unknown variant") { "write one of these" } else { "write a value of that type" };
    // serde names the type of this program that it wanted.
    let error = match error.split_once("expected struct ") {
        Some((before, _)) => format!("{before}expected a table of keys"),
        None => error,
    };
    Some(format!("{path} = {leaf}: {error}; {mend}"))
}
