//! Label and field selectors.

use serde_json::Value;

use super::registry::Resource;
use super::status::ApiError;

/// One condition on a label.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
    Greater(String, i64),
    Less(String, i64),
}

/// A label selector: every condition must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    requirements: Vec<Requirement>,
}

impl Labels {
    /// Parses `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        let refuse =
            |why: &str| ApiError::bad_request(format!("unable to parse requirement: {why} in {text:?}"));
        let mut requirements = Vec::new();
        for part in split_outside_parentheses(text) {
            let part = part.trim();
            if part.is_empty() {
                if text.trim().is_empty() {
                    continue;
                }
                return Err(refuse("empty requirement"));
            }
            requirements.push(requirement(part).map_err(|why| refuse(&why))?);
        }
        Ok(Self { requirements })
    }

    /// Whether an object's labels satisfy the selector.
    pub fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        let get = |key: &String| labels.get(key.as_str()).and_then(Value::as_str);
        self.requirements.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => get(key).is_some_and(|v| values.iter().any(|x| x == v)),
            Requirement::NotIn(key, values) => get(key).is_none_or(|v| values.iter().all(|x| x != v)),
            Requirement::Exists(key) => get(key).is_some(),
            Requirement::Absent(key) => get(key).is_none(),
            Requirement::Greater(key, n) => {
                get(key).and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v > *n)
            }
            Requirement::Less(key, n) => get(key).and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v < *n),
        })
    }

    /// Whether everything matches.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0u32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn requirement(part: &str) -> Result<Requirement, String> {
    let key = |text: &str| {
        let text = text.trim();
        if super::admission::names::is_qualified_name(text) {
            Ok(text.to_owned())
        } else {
            Err(format!("key {text:?} is not a label key"))
        }
    };
    let value = |text: &str| {
        let text = text.trim();
        if super::admission::names::is_label_value(text) {
            Ok(text.to_owned())
        } else {
            Err(format!("value {text:?} is not a label value"))
        }
    };
    if let Some(rest) = part.strip_prefix('!') {
        return Ok(Requirement::Absent(key(rest)?));
    }
    if let Some((k, rest)) = part.split_once(char::is_whitespace) {
        let rest = rest.trim();
        for (operator, negative) in [("notin", true), ("in", false)] {
            let Some(list) = rest.strip_prefix(operator) else { continue };
            let list = list.trim().strip_prefix('(').and_then(|l| l.strip_suffix(')'));
            let list = list.ok_or_else(|| format!("{part:?} has no list in parentheses"))?;
            let values = list.split(',').map(value).collect::<Result<Vec<_>, _>>()?;
            let key = key(k)?;
            return Ok(if negative { Requirement::NotIn(key, values) } else { Requirement::In(key, values) });
        }
    }
    if let Some((k, v)) = part.split_once("!=") {
        return Ok(Requirement::NotIn(key(k)?, vec![value(v)?]));
    }
    if let Some((k, v)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(Requirement::In(key(k)?, vec![value(v)?]));
    }
    for (sign, greater) in [('>', true), ('<', false)] {
        if let Some((k, v)) = part.split_once(sign) {
            let n = v.trim().parse().map_err(|_| format!("{v:?} is not a whole number"))?;
            return Ok(if greater {
                Requirement::Greater(key(k)?, n)
            } else {
                Requirement::Less(key(k)?, n)
            });
        }
    }
    Ok(Requirement::Exists(key(part)?))
}

/// A field selector: every condition must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// Pointer into the object, the value, and whether it must (or must not) be that.
    terms: Vec<(String, String, bool)>,
}

/// Fields that objects of a built-in resource can be selected by, besides `metadata.name` and `metadata.namespace`.
fn selectable(resource: &Resource) -> &'static [&'static str] {
    if resource.custom.is_some() {
        return &[];
    }
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        (_, "events") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "reason",
            "reportingComponent",
            "reportingController",
            "source",
            "type",
        ],
        ("", "secrets") => &["type"],
        ("", "nodes") => &["spec.unschedulable"],
        ("", "namespaces") => &["status.phase"],
        ("", "services") => &["spec.clusterIP", "spec.type"],
        ("apps", "replicasets") => &["status.replicas"],
        _ => &[],
    }
}

impl Fields {
    /// Parses `metadata.name=x,spec.nodeName!=y` for a resource.
    pub fn parse(text: &str, resource: &Resource) -> Result<Self, ApiError> {
        let mut terms = Vec::new();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (field, value, equal) = if let Some((f, v)) = part.split_once("!=") {
                (f, v, false)
            } else if let Some((f, v)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (f, v, true)
            } else {
                return Err(ApiError::bad_request(format!("invalid field selector {part:?}: no operator")));
            };
            let known = ["metadata.name", "metadata.namespace"];
            if !known.contains(&field) && !selectable(resource).contains(&field) {
                return Err(ApiError::bad_request(format!("field label not supported: {field}")));
            }
            // Events are stored in the core shape.
            let field = match field.strip_prefix("regarding.") {
                Some(rest) => format!("involvedObject.{rest}"),
                None if field == "reportingController" => "reportingComponent".to_owned(),
                None if field == "source" => "source.component".to_owned(),
                None => field.to_owned(),
            };
            terms.push((format!("/{}", field.replace('.', "/")), value.to_owned(), equal));
        }
        Ok(Self { terms })
    }

    /// Whether an object satisfies the selector.
    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|(pointer, wanted, equal)| {
            let found = match object.pointer(pointer) {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Null) | None
                    if pointer == "/spec/unschedulable" || pointer == "/spec/hostNetwork" =>
                {
                    "false".to_owned()
                }
                Some(Value::Null) | None => String::new(),
                Some(other) => other.to_string(),
            };
            (found == *wanted) == *equal
        })
    }

    /// The name, if the selector asks for exactly one.
    pub fn name(&self) -> Option<&str> {
        self.terms.iter().find(|(p, _, equal)| *equal && p == "/metadata/name").map(|(_, v, _)| v.as_str())
    }
}

/// Labels and fields together.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    /// Condition on labels.
    pub labels: Labels,
    /// Condition on fields.
    pub fields: Fields,
}

impl Selector {
    /// Whether an object satisfies both.
    pub fn matches(&self, object: &Value) -> bool {
        self.labels.matches(object) && self.fields.matches(object)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn holds(selector: &str, labels: &Value) -> bool {
        Labels::parse(selector).unwrap().matches(&json!({"metadata": {"labels": labels}}))
    }

    #[test]
    fn label_selectors() {
        let labels = json!({"app": "web", "tier": "front", "n": "5", "example.com/x": ""});
        for yes in [
            "",
            "app=web",
            "app==web",
            "app in (web, db)",
            "app,tier",
            "!nope",
            "nope!=x",
            "nope notin (a,b)",
            "n>4",
            "n<6",
            "example.com/x",
            "example.com/x=",
            "app=web,tier in (front),!z",
        ] {
            assert!(holds(yes, &labels), "{yes}");
        }
        for no in [
            "app=db",
            "app!=web",
            "app notin (web)",
            "!app",
            "nope",
            "n>5",
            "app=web,tier=back",
            "nope in (a)",
        ] {
            assert!(!holds(no, &labels), "{no}");
        }
        assert!(!holds("app=web", &Value::Null));
    }

    #[test]
    fn broken_label_selectors_are_refused() {
        for bad in ["a=b,,c", "=x", "a in b", "a in (b", "a>x", "a b c", "a=b c", ",", "é=1", "a=(b)"] {
            assert!(Labels::parse(bad).is_err(), "{bad}");
        }
    }
}
