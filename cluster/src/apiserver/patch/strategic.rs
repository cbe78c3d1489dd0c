//! Strategic merge patch: a merge patch that merges some lists by a key of their items, or by value, and knows the
//! directives `$patch`, `$retainKeys`, `$deleteFromPrimitiveList/FIELD` and `$setElementOrder/FIELD`.

use serde_json::{Map, Value};

use crate::apiserver::object::as_map;
use crate::apiserver::schema::Schema;
use crate::apiserver::status::ApiError;

const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Merges `patch` into `target`. Without a schema it is an ordinary merge patch.
pub fn merge(target: &mut Value, patch: &Value, schema: Option<Schema<'_>>) -> Result<(), ApiError> {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return Ok(());
    };
    match directive(patch)? {
        Some("replace") => {
            *target = Value::Object(patch.iter().filter(|(k, _)| *k != "$patch").map(clone_pair).collect());
            return Ok(());
        }
        Some("delete") => {
            *target = Value::Object(Map::new());
            return Ok(());
        }
        _ => {}
    }
    let target = as_map(target);
    if let Some(keep) = patch.get("$retainKeys") {
        let keep = keep.as_array().ok_or_else(|| ApiError::bad_request("$retainKeys is not a list"))?;
        target.retain(|field, _| keep.iter().any(|k| k == field.as_str()));
    }
    for (field, value) in patch {
        if let Some(list) = field.strip_prefix(DELETE_FROM) {
            let gone =
                value.as_array().ok_or_else(|| ApiError::bad_request(format!("{field} is not a list")))?;
            if let Some(items) = target.get_mut(list).and_then(Value::as_array_mut) {
                items.retain(|item| !gone.contains(item));
            }
        }
    }
    for (field, value) in patch.iter().filter(|(field, _)| !field.starts_with('$')) {
        let schema = schema.and_then(|s| s.field(field));
        if value.is_null() {
            target.shift_remove(field);
        } else if let (Value::Array(changes), Some(schema)) = (value, schema)
            && schema.patch_merges()
        {
            let items = target.entry(field.as_str()).or_insert_with(|| Value::Array(Vec::new()));
            if !items.is_array() {
                *items = Value::Array(Vec::new());
            }
            if let Value::Array(items) = items {
                merge_list(items, changes, schema, field)?;
            }
        } else {
            merge(target.entry(field.as_str()).or_insert(Value::Null), value, schema)?;
        }
    }
    for (field, value) in patch {
        let Some(list) = field.strip_prefix(ORDER) else { continue };
        let key = schema.and_then(|s| s.field(list)).and_then(Schema::patch_merge_key);
        if let (Some(items), Some(order)) =
            (target.get_mut(list).and_then(Value::as_array_mut), value.as_array())
        {
            reorder(items, order, key);
        }
    }
    Ok(())
}

fn clone_pair((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}

fn directive(patch: &Map<String, Value>) -> Result<Option<&str>, ApiError> {
    match patch.get("$patch") {
        None => Ok(None),
        Some(Value::String(text)) if ["replace", "delete", "merge"].contains(&text.as_str()) => {
            Ok(Some(text))
        }
        Some(other) => Err(ApiError::bad_request(format!("$patch: {other} is not replace, delete or merge"))),
    }
}

fn merge_list(
    items: &mut Vec<Value>,
    changes: &[Value],
    schema: Schema<'_>,
    field: &str,
) -> Result<(), ApiError> {
    let Some(key) = schema.patch_merge_key() else {
        for change in changes {
            if !items.contains(change) {
                items.push(change.clone());
            }
        }
        return Ok(());
    };
    if changes.iter().any(|change| change["$patch"] == "replace") {
        *items = changes.iter().filter(|change| change.get("$patch").is_none()).cloned().collect();
        return Ok(());
    }
    for change in changes {
        let Value::Object(map) = change else {
            return Err(ApiError::bad_request(format!("{field}: {change} is not an object")));
        };
        let Some(id) = map.get(key) else {
            return Err(ApiError::bad_request(format!(
                "map: {change} does not contain declared merge key: {key}"
            )));
        };
        let at = items.iter().position(|item| item.get(key) == Some(id));
        if directive(map)? == Some("delete") {
            items.retain(|item| item.get(key) != Some(id));
            continue;
        }
        if let Some(at) = at {
            merge(&mut items[at], change, Some(schema.items()))?;
        } else {
            let mut item = Value::Object(Map::new());
            merge(&mut item, change, Some(schema.items()))?;
            items.push(item);
        }
    }
    Ok(())
}

/// Puts the items that `order` names into its order; others stay behind the one they stood behind.
fn reorder(items: &mut Vec<Value>, order: &[Value], key: Option<&str>) {
    let id = |value: &Value| key.map_or_else(|| value.clone(), |key| value[key].clone());
    let order: Vec<Value> = order.iter().map(id).collect();
    // Rank: place in the order, and for others that of the item before them.
    let mut last = 0;
    let mut ranked: Vec<(usize, Value)> = items
        .drain(..)
        .map(|item| {
            if let Some(at) = order.iter().position(|o| *o == id(&item)) {
                last = at + 1;
            }
            (last, item)
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    items.extend(ranked.into_iter().map(|(_, item)| item));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::apiserver::schema::builtin::definitions;

    fn pod(mut target: Value, patch: &Value) -> Value {
        let schema = Schema::new(definitions(), &definitions()["io.k8s.api.core.v1.Pod"]);
        merge(&mut target, patch, Some(schema)).unwrap();
        target
    }

    #[test]
    fn containers_are_merged_by_name() {
        let target = json!({"spec": {"containers": [{"name": "a", "image": "1", "args": ["x", "y"]}, {"name": "b", "image": "2"}]}});
        let merged = pod(
            target,
            &json!({"spec": {"containers": [{"name": "b", "image": "3"}, {"name": "c", "image": "4"}, {"name": "a", "args": ["z"]}]}}),
        );
        assert_eq!(
            merged["spec"]["containers"],
            json!([{"name": "a", "image": "1", "args": ["z"]}, {"name": "b", "image": "3"}, {"name": "c", "image": "4"}])
        );
    }

    #[test]
    fn items_are_deleted_and_lists_replaced() {
        let target =
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "tolerations": [{"key": "x"}]}});
        let merged = pod(
            target.clone(),
            &json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}], "tolerations": [{"key": "y"}]}}),
        );
        assert_eq!(merged, json!({"spec": {"containers": [{"name": "b"}], "tolerations": [{"key": "y"}]}}));
        let merged = pod(
            target,
            &json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}], "tolerations": null}}),
        );
        assert_eq!(merged, json!({"spec": {"containers": [{"name": "z"}]}}));
    }

    #[test]
    fn scalars_are_merged_by_value() {
        let target = json!({"metadata": {"finalizers": ["a/b", "c/d"], "labels": {"x": "1", "y": "2"}}});
        let merged = pod(
            target,
            &json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/b"],
            "finalizers": ["c/d", "e/f"], "labels": {"x": null, "z": "3"}}}),
        );
        assert_eq!(
            merged,
            json!({"metadata": {"finalizers": ["c/d", "e/f"], "labels": {"y": "2", "z": "3"}}})
        );
    }

    #[test]
    fn the_order_is_set_and_keys_retained() {
        let target =
            json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "emptyDir": {}}]}});
        let merged = pod(
            target,
            &json!({"spec": {"$setElementOrder/volumes": [{"name": "w"}, {"name": "v"}],
            "volumes": [{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}}]}}),
        );
        assert_eq!(
            merged,
            json!({"spec": {"volumes": [{"name": "w", "emptyDir": {}}, {"name": "v", "configMap": {"name": "c"}}]}})
        );
    }

    #[test]
    fn malformed_patches_are_refused() {
        let schema = Schema::new(definitions(), &definitions()["io.k8s.api.core.v1.Pod"]);
        for patch in [
            json!({"$patch": "explode"}),
            json!({"$retainKeys": 1}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": "x"}}),
            json!({"spec": {"containers": [{"image": "x"}]}}),
            json!({"spec": {"containers": ["x"]}}),
        ] {
            assert!(merge(&mut json!({}), &patch, Some(schema)).is_err(), "{patch}");
        }
    }
}
