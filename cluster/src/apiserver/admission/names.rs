//! Which names, labels and keys are allowed.

use serde_json::Value;

use crate::apiserver::object::list;
use crate::apiserver::status::Cause;

fn alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// RFC 1123 label: lower-case letters, digits and '-', at most 63, starting and ending with a letter or digit.
pub fn is_dns_label(name: &str) -> bool {
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|&b| alphanumeric(b) || b == b'-')
        && alphanumeric(bytes[0])
        && alphanumeric(bytes[bytes.len() - 1])
}

/// RFC 1123 subdomain: labels joined by '.', at most 253 in all.
pub fn is_dns_subdomain(name: &str) -> bool {
    let part = |part: &str| {
        let bytes = part.as_bytes();
        !bytes.is_empty()
            && bytes.iter().all(|&b| alphanumeric(b) || b == b'-')
            && alphanumeric(bytes[0])
            && alphanumeric(bytes[bytes.len() - 1])
    };
    name.len() <= 253 && name.split('.').all(part)
}

fn is_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|&b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && bytes[0].is_ascii_alphanumeric()
        && bytes[bytes.len() - 1].is_ascii_alphanumeric()
}

/// Key of a label or an annotation: an optional subdomain and '/', then up to 63 characters.
pub fn is_qualified_name(key: &str) -> bool {
    match key.split_once('/') {
        None => is_name_part(key),
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_name_part(name),
    }
}

/// Value of a label: empty, or up to 63 characters.
pub fn is_label_value(value: &str) -> bool {
    value.is_empty() || is_name_part(value)
}

/// Name that may stand in a path: for RBAC objects, which have colons.
pub fn is_path_segment(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '%', '\0'])
}

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
and must start and end with an alphanumeric character";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
and must start and end with an alphanumeric character, at most 63 characters";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', \
and must start and end with an alphanumeric character, at most 63 characters, with an optional DNS subdomain prefix and '/'";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
and must start and end with an alphanumeric character, at most 63 characters";

/// Checks an object's name for its resource.
pub fn check_name(group: &str, plural: &str, name: &str, causes: &mut Vec<Cause>) {
    let (fine, why) = match (group, plural) {
        ("", "namespaces" | "services") => (is_dns_label(name), LABEL),
        ("rbac.authorization.k8s.io", _) => (is_path_segment(name), "must be usable as a path segment"),
        _ => (is_dns_subdomain(name), SUBDOMAIN),
    };
    if !fine {
        causes.push(Cause::invalid("metadata.name", &Value::from(name), why));
    }
}

/// Checks a map of labels at `field`.
pub fn check_labels(field: &str, labels: &Value, causes: &mut Vec<Cause>) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        if !is_qualified_name(key) {
            causes.push(Cause::invalid(field, &Value::from(key.as_str()), QUALIFIED));
        }
        if !value.as_str().is_some_and(is_label_value) {
            causes.push(Cause::invalid(field, value, LABEL_VALUE));
        }
    }
}

/// Annotations of one object may hold this much in all.
const ANNOTATION_BYTES: usize = 256 << 10;

/// Checks what all objects have in common.
pub fn check_meta(object: &Value, causes: &mut Vec<Cause>) {
    let meta = &object["metadata"];
    check_labels("metadata.labels", &meta["labels"], causes);
    let mut bytes = 0;
    for (key, value) in meta["annotations"].as_object().into_iter().flatten() {
        if !is_qualified_name(&key.to_lowercase()) {
            causes.push(Cause::invalid("metadata.annotations", &Value::from(key.as_str()), QUALIFIED));
        }
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > ANNOTATION_BYTES {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            message: format!("Too long: may not be more than {ANNOTATION_BYTES} bytes"),
            field: "metadata.annotations".to_owned(),
        });
    }
    for finalizer in list(meta, "finalizers") {
        if !finalizer.as_str().is_some_and(is_qualified_name) {
            causes.push(Cause::invalid("metadata.finalizers", finalizer, QUALIFIED));
        }
    }
    let mut controllers = 0;
    for (i, owner) in list(meta, "ownerReferences").iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().is_none_or(str::is_empty) {
                causes.push(Cause::required(
                    &format!("metadata.ownerReferences[{i}].{field}"),
                    "must not be empty",
                ));
            }
        }
        controllers += usize::from(owner["controller"] == true);
    }
    if controllers > 1 {
        causes.push(Cause::invalid(
            "metadata.ownerReferences",
            &meta["ownerReferences"],
            "only one reference can have controller set to true",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(
            is_dns_label("web-1")
                && !is_dns_label("Web")
                && !is_dns_label("-a")
                && !is_dns_label("")
                && !is_dns_label("a.b")
        );
        assert!(is_dns_subdomain("a.b-c.d") && !is_dns_subdomain("a..b") && !is_dns_subdomain("a_b"));
        assert!(
            is_qualified_name("app.kubernetes.io/name")
                && is_qualified_name("A_b.c")
                && !is_qualified_name("a/b/c")
        );
        assert!(!is_qualified_name("/x") && !is_qualified_name("x/"));
        assert!(is_label_value("") && !is_label_value("-") && !is_label_value(&"a".repeat(64)));
    }
}
