//! What a request's path asks for.

/// A path below `/api` or `/apis`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourcePath {
    /// API group; empty for the core group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Namespace; empty if the path has none.
    pub namespace: String,
    /// Plural.
    pub plural: String,
    /// Object's name; empty for the collection.
    pub name: String,
    /// Subresource; empty if none.
    pub sub: String,
}

/// What a path asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `/api`
    CoreVersions,
    /// `/apis`
    Groups,
    /// `/apis/GROUP`
    Group(String),
    /// `/api/v1`, `/apis/GROUP/VERSION`
    Resources(String, String),
    /// Objects.
    Resource(ResourcePath),
    /// Anything else.
    Other,
}

/// Takes a path apart. `path` is still percent-encoded.
pub fn parse(path: &str) -> Target {
    let Some(parts) = path
        .trim_matches('/')
        .split('/')
        .map(|part| percent_decode(part).filter(|p| !p.is_empty() && !p.contains(['/', '\0'])))
        .collect::<Option<Vec<String>>>()
    else {
        return Target::Other;
    };
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["api"] => Target::CoreVersions,
        ["apis"] => Target::Groups,
        ["apis", group] => Target::Group((*group).to_owned()),
        ["api", version] => Target::Resources(String::new(), (*version).to_owned()),
        ["apis", group, version] => Target::Resources((*group).to_owned(), (*version).to_owned()),
        ["api", version, rest @ ..] => resource("", version, rest),
        ["apis", group, version, rest @ ..] => resource(group, version, rest),
        _ => Target::Other,
    }
}

fn resource(group: &str, version: &str, rest: &[&str]) -> Target {
    let (namespace, plural, name, sub) = match *rest {
        [plural] => ("", plural, "", ""),
        // Subresources of a namespace itself.
        ["namespaces", name] => ("", "namespaces", name, ""),
        ["namespaces", name, sub @ ("status" | "finalize")] => ("", "namespaces", name, sub),
        ["namespaces", namespace, plural] => (namespace, plural, "", ""),
        ["namespaces", namespace, plural, name] => (namespace, plural, name, ""),
        ["namespaces", namespace, plural, name, sub] => (namespace, plural, name, sub),
        [plural, name] => ("", plural, name, ""),
        [plural, name, sub] => ("", plural, name, sub),
        _ => return Target::Other,
    };
    Target::Resource(ResourcePath {
        group: group.to_owned(),
        version: version.to_owned(),
        namespace: namespace.to_owned(),
        plural: plural.to_owned(),
        name: name.to_owned(),
        sub: sub.to_owned(),
    })
}

/// Undoes percent-encoding; `None` if what results is not UTF-8 or the encoding is broken.
pub fn percent_decode(text: &str) -> Option<String> {
    decode(text, false)
}

/// Undoes the encoding of query strings, where `+` is a space.
pub fn query_decode(text: &str) -> Option<String> {
    decode(text, true)
}

fn decode(text: &str, plus: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let (high, low) = (bytes.next()?, bytes.next()?);
                let digit = |b: u8| (b as char).to_digit(16);
                out.push((digit(high)? * 16 + digit(low)?) as u8);
            }
            b'+' if plus => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(path: &str) -> (String, String, String, String, String) {
        match parse(path) {
            Target::Resource(p) => (p.group, p.namespace, p.plural, p.name, p.sub),
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn paths_are_taken_apart() {
        let s = |a: &str, b: &str, c: &str, d: &str, e: &str| {
            (a.to_owned(), b.to_owned(), c.to_owned(), d.to_owned(), e.to_owned())
        };
        assert_eq!(parts("/api/v1/pods"), s("", "", "pods", "", ""));
        assert_eq!(parts("/api/v1/namespaces/x"), s("", "", "namespaces", "x", ""));
        assert_eq!(parts("/api/v1/namespaces/x/finalize"), s("", "", "namespaces", "x", "finalize"));
        assert_eq!(parts("/api/v1/namespaces/x/pods/p/log"), s("", "x", "pods", "p", "log"));
        assert_eq!(parts("/apis/apps/v1/namespaces/x/deployments"), s("apps", "x", "deployments", "", ""));
        assert_eq!(
            parts("/apis/podwire.dev/v1/nodenetworks/w1/status"),
            s("podwire.dev", "", "nodenetworks", "w1", "status")
        );
        assert_eq!(parse("/apis/apps/"), Target::Group("apps".into()));
        assert_eq!(parse("/"), Target::Other);
    }

    #[test]
    fn hostile_paths_are_other() {
        for path in [
            "/api/v1/pods/%",
            "/api/v1/pods/%ff%fe",
            "/api//v1",
            "/api/v1/a%2Fb",
            "/api/v1/x%00y",
            "/api/v1/a/b/c/d/e/f/g",
        ] {
            assert_eq!(parse(path), Target::Other, "{path}");
        }
    }
}
