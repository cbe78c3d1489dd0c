//! Kubernetes manifests as text: several YAML documents, with `${name}` for what only the deployment knows.

use serde_json::Value;

/// The objects of a YAML text, in its order. The error is the cause and the mend.
pub fn objects(text: &str) -> Result<Vec<Value>, String> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)
        .map_err(|e| format!("its manifest is not YAML: {}; mend the syntax", first_line(&e.to_string())))?;
    let mut objects = Vec::new();
    for document in documents {
        if document.is_null() {
            continue;
        }
        for key in ["apiVersion", "kind"] {
            if !document.get(key).is_some_and(Value::is_string) {
                return Err(format!("a document of its manifest has no {key}; add it"));
            }
        }
        if !document.pointer("/metadata/name").is_some_and(Value::is_string) {
            return Err("an object of its manifest has no metadata.name; add it".into());
        }
        objects.push(document);
    }
    if objects.is_empty() {
        return Err("its manifest has no object; write at least one".into());
    }
    Ok(objects)
}

/// Puts `values` in the place of their `${name}`. The error names a placeholder that has no value.
pub fn fill(text: &str, values: &[(&str, &str)]) -> Result<String, String> {
    let mut filled = text.to_owned();
    for (name, value) in values {
        filled = filled.replace(&format!("${{{name}}}"), value);
    }
    match filled.find("${") {
        None => Ok(filled),
        Some(at) => {
            let rest: String = filled[at..].chars().take_while(|c| *c != '}' && *c != '\n').collect();
            Err(format!("the placeholder {rest}}} has no value"))
        }
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_in_order_and_empty_ones_left_out() {
        let text = "---\napiVersion: v1\nkind: A\nmetadata: {name: a}\n---\n---\napiVersion: v1\nkind: B\nmetadata: {name: b}\n";
        let kinds: Vec<Value> = objects(text).unwrap().into_iter().map(|o| o["kind"].clone()).collect();
        assert_eq!(kinds, ["A", "B"]);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(objects("kind: A\nmetadata: {name: a}").unwrap_err().contains("apiVersion"));
        assert!(objects("a: [").unwrap_err().contains("not YAML"));
        assert!(objects("").unwrap_err().contains("no object"));
        assert!(objects("apiVersion: v1\nkind: A").unwrap_err().contains("metadata.name"));
    }

    #[test]
    fn placeholders() {
        assert_eq!(fill("a ${x} b", &[("x", "1")]).unwrap(), "a 1 b");
        assert!(fill("a ${y} b", &[("x", "1")]).unwrap_err().contains("${y}"));
    }
}
