//! The JSON paths of printer columns: fields, indices, `[*]` and filters with `==`.

use serde_json::Value;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    /// Items whose value at a path is this, or that have one at all.
    Filter(Vec<Step>, Option<Value>),
}

/// A parsed path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    steps: Vec<Step>,
}

impl Path {
    /// Parses a path such as `.status.conditions[?(@.type=="Ready")].status`.
    pub fn parse(text: &str) -> Option<Self> {
        Some(Self { steps: steps(text)? })
    }

    /// What the path finds.
    pub fn find<'a>(&self, object: &'a Value) -> Vec<&'a Value> {
        find(&self.steps, object)
    }
}

fn find<'a>(path: &[Step], object: &'a Value) -> Vec<&'a Value> {
    let mut found = vec![object];
    for step in path {
        found = found.into_iter().flat_map(|value| apply(step, value)).collect();
    }
    found
}

fn apply<'a>(step: &Step, value: &'a Value) -> Vec<&'a Value> {
    match (step, value) {
        (Step::Field(name), Value::Object(map)) => map.get(name).into_iter().collect(),
        (Step::Index(index), Value::Array(items)) => {
            let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
            let at = if *index < 0 { index + length } else { *index };
            usize::try_from(at).ok().and_then(|i| items.get(i)).into_iter().collect()
        }
        (Step::All, Value::Array(items)) => items.iter().collect(),
        (Step::All, Value::Object(map)) => map.values().collect(),
        (Step::Filter(path, wanted), Value::Array(items)) => items
            .iter()
            .filter(|item| {
                let found = find(path, item);
                match wanted {
                    Some(wanted) => found.contains(&wanted),
                    None => !found.is_empty(),
                }
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn steps(text: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    let mut rest = text.trim();
    rest = rest.strip_prefix('{').and_then(|r| r.strip_suffix('}')).unwrap_or(rest);
    rest = rest.strip_prefix('$').unwrap_or(rest);
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            // A dot or bracket behind a backslash belongs to the name.
            let mut name = String::new();
            let mut chars = after.char_indices();
            let mut end = after.len();
            while let Some((at, c)) = chars.next() {
                match c {
                    '\\' => name.push(chars.next()?.1),
                    '.' | '[' => {
                        end = at;
                        break;
                    }
                    other => name.push(other),
                }
            }
            rest = &after[end..];
            match name.as_str() {
                "" if rest.is_empty() => {}
                "" => return None,
                "*" => steps.push(Step::All),
                _ => steps.push(Step::Field(name)),
            }
        } else if let Some(after) = rest.strip_prefix('[') {
            let end = closing(after)?;
            let inside = after[..end].trim();
            rest = &after[end + 1..];
            steps.push(bracket(inside)?);
        } else {
            return None;
        }
    }
    Some(steps)
}

/// Where the bracket that has just been opened is closed, outside of quotes.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    for (at, c) in text.char_indices() {
        if let Some(q) = quote {
            quote = Some(q).filter(|q| c != *q);
            continue;
        }
        match c {
            '\'' | '"' => quote = Some(c),
            '[' => depth += 1,
            ']' if depth == 0 => return Some(at),
            ']' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn bracket(inside: &str) -> Option<Step> {
    if inside == "*" {
        return Some(Step::All);
    }
    if let Some(quoted) = unquote(inside) {
        return Some(Step::Field(quoted));
    }
    if let Some(filter) = inside.strip_prefix("?(").and_then(|f| f.strip_suffix(')')) {
        let (path, wanted) = match filter.split_once("==") {
            Some((path, value)) => (path, Some(literal(value.trim())?)),
            None => (filter, None),
        };
        return Some(Step::Filter(steps(path.trim().strip_prefix('@')?)?, wanted));
    }
    inside.parse().ok().map(Step::Index)
}

fn unquote(text: &str) -> Option<String> {
    ['\'', '"'].iter().find_map(|&q| text.strip_prefix(q)?.strip_suffix(q)).map(str::to_owned)
}

fn literal(text: &str) -> Option<Value> {
    unquote(text).map(Value::from).or_else(|| serde_json::from_str(text).ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_find_values() {
        let object =
            json!({"spec": {"addresses": [{"type": "A", "ip": "1"}, {"type": "B", "ip": "2"}], "a.b": 5}});
        let find = |path: &str| -> Vec<Value> {
            Path::parse(path).unwrap().find(&object).into_iter().cloned().collect()
        };
        assert_eq!(find(".spec.addresses[?(@.type==\"B\")].ip"), [json!("2")]);
        assert_eq!(find(".spec.addresses[*].ip"), [json!("1"), json!("2")]);
        assert_eq!(find(".spec.addresses[-1].ip"), [json!("2")]);
        assert_eq!(find(".spec['a.b']"), [json!(5)]);
        assert_eq!(find(".spec.a\\.b"), [json!(5)]);
        assert!(find(".spec.nothing[3].x").is_empty());
        for bad in ["spec", ".a[", ".a[x]", ".a..b", ".a[?(b)]"] {
            assert!(Path::parse(bad).is_none(), "{bad}");
        }
    }
}
