//! JSON patch (RFC 6902), bounded: every copy can double what is there, and every move can nest it deeper.

use json_patch::PatchOperation;
use serde_json::Value;

use crate::apiserver::http::{MAX_BODY, MAX_DEPTH, depth_exceeds};
use crate::apiserver::status::ApiError;

/// What the copies and moves of one patch may hold in all, as JSON text.
const MAX_COPIED: usize = MAX_BODY;

/// Changes an object by the operations, in order. If one fails, those before it have been carried out.
pub fn apply(object: &mut Value, operations: &[PatchOperation]) -> Result<(), ApiError> {
    let mut copied = 0;
    for (at, operation) in operations.iter().enumerate() {
        check(object, operation, at, &mut copied)?;
        json_patch::patch(object, std::slice::from_ref(operation)).map_err(|mut error| {
            error.operation = at;
            fails(&error.to_string())
        })?;
    }
    Ok(())
}

fn fails(why: &str) -> ApiError {
    let mut error = ApiError::bad_request(format!("the patch does not apply: {why}"));
    error.code = http::StatusCode::UNPROCESSABLE_ENTITY;
    error.reason = "Invalid";
    error
}

/// Refuses an operation after which the object would be nested too deep, or much larger than the patch that makes it so.
fn check(object: &Value, operation: &PatchOperation, at: usize, copied: &mut usize) -> Result<(), ApiError> {
    let (path, from, value) = match operation {
        PatchOperation::Add(add) => (add.path.as_str(), None, Some(&add.value)),
        PatchOperation::Replace(replace) => (replace.path.as_str(), None, Some(&replace.value)),
        PatchOperation::Copy(copy) => (copy.path.as_str(), Some(copy.from.as_str()), None),
        PatchOperation::Move(moved) => (moved.path.as_str(), Some(moved.from.as_str()), None),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => return Ok(()),
    };
    // What is not there is the patch's own error.
    let Some(value) = value.or_else(|| object.pointer(from?)) else { return Ok(()) };
    let above = path.matches('/').count();
    if above > MAX_DEPTH || depth_exceeds(value, MAX_DEPTH - above) {
        return Err(fails(&format!("operation {at} would nest the object deeper than {MAX_DEPTH}")));
    }
    if from.is_some() {
        *copied += value.to_string().len();
        if *copied > MAX_COPIED {
            return Err(fails(&format!(
                "up to operation {at} it copies more than {MAX_COPIED} bytes; send the whole object instead"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(mut object: Value, operations: &Value) -> Result<Value, ApiError> {
        let operations: Vec<PatchOperation> = serde_json::from_value(operations.clone()).unwrap();
        apply(&mut object, &operations)?;
        Ok(object)
    }

    #[test]
    fn operations_are_carried_out_in_order_and_the_one_that_fails_is_named() {
        let object = json!({"a": {"b": [1, 2]}});
        let operations = json!([
            {"op": "test", "path": "/a/b/0", "value": 1}, {"op": "copy", "from": "/a/b", "path": "/c"},
            {"op": "add", "path": "/c/-", "value": 3}, {"op": "move", "from": "/a", "path": "/d"},
            {"op": "remove", "path": "/d/b/1"}, {"op": "replace", "path": "/d/b/0", "value": 9},
        ]);
        assert_eq!(patched(object.clone(), &operations).unwrap(), json!({"c": [1, 2, 3], "d": {"b": [9]}}));
        let missing = json!([{"op": "remove", "path": "/a"}, {"op": "copy", "from": "/nope", "path": "/c"}]);
        let error = patched(object, &missing).unwrap_err();
        assert!(error.code == 422 && error.message.contains("/1"), "{error}");
    }

    #[test]
    fn copies_that_double_each_other_are_refused() {
        let mut operations = vec![json!({"op": "add", "path": "/data", "value": {"k": "x".repeat(1000)}})];
        operations
            .extend((0..40).map(|i| json!({"op": "copy", "from": "/data", "path": format!("/data/a{i}")})));
        let error = patched(json!({}), &json!(operations)).unwrap_err();
        assert!(error.code == 422 && error.message.contains("copies more than"), "{error}");
    }

    #[test]
    fn no_operation_nests_deeper_than_a_body_may_be() {
        let chain = |length: usize| (0..length).fold(json!(1), |inner, _| json!({"a": inner}));
        let path = "/a".repeat(40);
        for operations in [
            json!([{"op": "add", "path": path, "value": chain(40)}]),
            json!([{"op": "replace", "path": path, "value": chain(40)}]),
            json!([{"op": "add", "path": "/b", "value": chain(40)}, {"op": "move", "from": "/b", "path": path}]),
            json!([{"op": "copy", "from": "/a", "path": path}]),
            json!([{"op": "add", "path": "/a".repeat(100), "value": 1}]),
        ] {
            let error = patched(chain(50), &operations).unwrap_err();
            assert!(error.code == 422 && error.message.contains("deeper than 64"), "{error}");
        }
        assert!(patched(chain(50), &json!([{"op": "add", "path": path, "value": chain(24)}])).is_ok());
    }
}
