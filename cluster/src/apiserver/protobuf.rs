//! Protobuf bodies of the few kinds that kubectl sends so: it knows no other way for its own built-in kinds when it makes
//! a namespace, a config map or a token, or asks who it is. Answers are always JSON, which it accepts.
//!
//! The wire format is that of protocol buffers inside Kubernetes' envelope: `k8s\0`, then a message with the kind (1) and
//! the object's bytes (2). Field numbers are those of the `.proto` files of the Kubernetes API.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::status::ApiError;

/// The content type.
pub const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What a field holds.
#[derive(Clone, Copy)]
enum Holds {
    Text,
    Bytes,
    Flag,
    Number,
    /// A number that is unset when it is 0.
    Count,
    Texts,
    /// A map of texts.
    TextMap,
    BytesMap,
    /// A number or a name.
    Either,
    Message(&'static [Field]),
    Messages(&'static [Field]),
    /// A time is a message with seconds and nanoseconds; clients send none that matters.
    Skip,
}

type Field = (u64, &'static str, Holds);

const OWNER: &[Field] = &[
    (1, "kind", Holds::Text),
    (3, "name", Holds::Text),
    (4, "uid", Holds::Text),
    (5, "apiVersion", Holds::Text),
    (6, "controller", Holds::Flag),
    (7, "blockOwnerDeletion", Holds::Flag),
];
const META: &[Field] = &[
    (1, "name", Holds::Text),
    (2, "generateName", Holds::Text),
    (3, "namespace", Holds::Text),
    (4, "selfLink", Holds::Skip),
    (5, "uid", Holds::Text),
    (6, "resourceVersion", Holds::Text),
    (7, "generation", Holds::Skip),
    (8, "creationTimestamp", Holds::Skip),
    (9, "deletionTimestamp", Holds::Skip),
    (10, "deletionGracePeriodSeconds", Holds::Skip),
    (11, "labels", Holds::TextMap),
    (12, "annotations", Holds::TextMap),
    (13, "ownerReferences", Holds::Messages(OWNER)),
    (14, "finalizers", Holds::Texts),
    (17, "managedFields", Holds::Skip),
];
const METADATA: Field = (1, "metadata", Holds::Message(META));
const EMPTY: &[Field] = &[];

const CONFIG_MAP: &[Field] = &[
    METADATA,
    (2, "data", Holds::TextMap),
    (3, "binaryData", Holds::BytesMap),
    (4, "immutable", Holds::Flag),
];
const SECRET: &[Field] = &[
    METADATA,
    (2, "data", Holds::BytesMap),
    (3, "type", Holds::Text),
    (4, "stringData", Holds::TextMap),
    (5, "immutable", Holds::Flag),
];
const NAMESPACE: &[Field] =
    &[METADATA, (2, "spec", Holds::Message(&[(1, "finalizers", Holds::Texts)])), (3, "status", Holds::Skip)];
const LOCAL_REFERENCE: &[Field] = &[(1, "name", Holds::Text)];
const SERVICE_ACCOUNT: &[Field] = &[
    METADATA,
    (2, "secrets", Holds::Messages(&[(3, "name", Holds::Text), (2, "namespace", Holds::Text)])),
    (3, "imagePullSecrets", Holds::Messages(LOCAL_REFERENCE)),
    (4, "automountServiceAccountToken", Holds::Flag),
];
const SELF_SUBJECT_REVIEW: &[Field] = &[METADATA, (2, "status", Holds::Skip)];
const RESOURCE_ATTRIBUTES: &[Field] = &[
    (1, "namespace", Holds::Text),
    (2, "verb", Holds::Text),
    (3, "group", Holds::Text),
    (4, "version", Holds::Text),
    (5, "resource", Holds::Text),
    (6, "subresource", Holds::Text),
    (7, "name", Holds::Text),
];
const SELF_ACCESS_REVIEW: &[Field] = &[
    METADATA,
    (
        2,
        "spec",
        Holds::Message(&[
            (1, "resourceAttributes", Holds::Message(RESOURCE_ATTRIBUTES)),
            (
                2,
                "nonResourceAttributes",
                Holds::Message(&[(1, "path", Holds::Text), (2, "verb", Holds::Text)]),
            ),
        ]),
    ),
    (3, "status", Holds::Skip),
];
const BOUND_OBJECT: &[Field] = &[
    (1, "kind", Holds::Text),
    (2, "apiVersion", Holds::Text),
    (3, "name", Holds::Text),
    (4, "uid", Holds::Text),
];
const TOKEN_REQUEST: &[Field] = &[
    METADATA,
    (
        2,
        "spec",
        Holds::Message(&[
            (1, "audiences", Holds::Texts),
            (3, "boundObjectRef", Holds::Message(BOUND_OBJECT)),
            (4, "expirationSeconds", Holds::Number),
        ]),
    ),
    (3, "status", Holds::Skip),
];
const DELETE_OPTIONS: &[Field] = &[
    (1, "gracePeriodSeconds", Holds::Number),
    (2, "preconditions", Holds::Message(&[(1, "uid", Holds::Text), (2, "resourceVersion", Holds::Text)])),
    (3, "orphanDependents", Holds::Flag),
    (4, "propagationPolicy", Holds::Text),
    (5, "dryRun", Holds::Texts),
];
const EVICTION: &[Field] = &[METADATA, (2, "deleteOptions", Holds::Message(DELETE_OPTIONS))];
const POLICY_RULE: &[Field] = &[
    (1, "verbs", Holds::Texts),
    (2, "apiGroups", Holds::Texts),
    (3, "resources", Holds::Texts),
    (4, "resourceNames", Holds::Texts),
    (5, "nonResourceURLs", Holds::Texts),
];
const ROLE: &[Field] = &[METADATA, (2, "rules", Holds::Messages(POLICY_RULE))];
const SUBJECT: &[Field] = &[
    (1, "kind", Holds::Text),
    (2, "apiGroup", Holds::Text),
    (3, "name", Holds::Text),
    (4, "namespace", Holds::Text),
];
const ROLE_REF: &[Field] =
    &[(1, "apiGroup", Holds::Text), (2, "kind", Holds::Text), (3, "name", Holds::Text)];
const ROLE_BINDING: &[Field] =
    &[METADATA, (2, "subjects", Holds::Messages(SUBJECT)), (3, "roleRef", Holds::Message(ROLE_REF))];

const PORT: &[Field] = &[
    (1, "name", Holds::Text),
    (2, "hostPort", Holds::Count),
    (3, "containerPort", Holds::Number),
    (4, "protocol", Holds::Text),
    (5, "hostIP", Holds::Text),
];
const CONTAINER: &[Field] = &[
    (1, "name", Holds::Text),
    (2, "image", Holds::Text),
    (3, "command", Holds::Texts),
    (4, "args", Holds::Texts),
    (5, "workingDir", Holds::Text),
    (6, "ports", Holds::Messages(PORT)),
    (7, "env", Holds::Messages(&[(1, "name", Holds::Text), (2, "value", Holds::Text)])),
    (8, "resources", Holds::Message(EMPTY)),
    (14, "imagePullPolicy", Holds::Text),
];
const POD_SPEC: &[Field] = &[
    (2, "containers", Holds::Messages(CONTAINER)),
    (3, "restartPolicy", Holds::Text),
    (6, "dnsPolicy", Holds::Text),
    (7, "nodeSelector", Holds::TextMap),
    (8, "serviceAccountName", Holds::Text),
    (10, "nodeName", Holds::Text),
];
const TEMPLATE: &[Field] = &[METADATA, (2, "spec", Holds::Message(POD_SPEC))];
const DEPLOYMENT: &[Field] = &[
    METADATA,
    (
        2,
        "spec",
        Holds::Message(&[
            (1, "replicas", Holds::Number),
            (2, "selector", Holds::Message(&[(1, "matchLabels", Holds::TextMap)])),
            (3, "template", Holds::Message(TEMPLATE)),
            (4, "strategy", Holds::Message(&[(1, "type", Holds::Text)])),
            (5, "minReadySeconds", Holds::Count),
        ]),
    ),
    (3, "status", Holds::Skip),
];

const SERVICE_PORT: &[Field] = &[
    (1, "name", Holds::Text),
    (2, "protocol", Holds::Text),
    (3, "port", Holds::Number),
    (4, "targetPort", Holds::Either),
    (5, "nodePort", Holds::Count),
    (6, "appProtocol", Holds::Text),
];
const SERVICE: &[Field] = &[
    METADATA,
    (
        2,
        "spec",
        Holds::Message(&[
            (1, "ports", Holds::Messages(SERVICE_PORT)),
            (2, "selector", Holds::TextMap),
            (3, "clusterIP", Holds::Text),
            (4, "type", Holds::Text),
            (5, "externalIPs", Holds::Texts),
            (7, "sessionAffinity", Holds::Text),
            (10, "externalName", Holds::Text),
            (18, "clusterIPs", Holds::Texts),
        ]),
    ),
    (3, "status", Holds::Skip),
];

/// The kinds that are understood.
fn fields(kind: &str) -> Option<&'static [Field]> {
    Some(match kind {
        "ConfigMap" => CONFIG_MAP,
        "Secret" => SECRET,
        "Deployment" => DEPLOYMENT,
        "Service" => SERVICE,
        "Namespace" => NAMESPACE,
        "ServiceAccount" => SERVICE_ACCOUNT,
        "SelfSubjectReview" => SELF_SUBJECT_REVIEW,
        "SelfSubjectAccessReview" => SELF_ACCESS_REVIEW,
        "TokenRequest" => TOKEN_REQUEST,
        "DeleteOptions" => DELETE_OPTIONS,
        "Eviction" => EVICTION,
        "Role" | "ClusterRole" => ROLE,
        "RoleBinding" | "ClusterRoleBinding" => ROLE_BINDING,
        _ => return None,
    })
}

const TYPE: &[Field] = &[(1, "apiVersion", Holds::Text), (2, "kind", Holds::Text)];

/// Reads an object. Kinds that are not understood are refused as an unknown type of body.
pub fn parse(body: &[u8]) -> Result<Value, ApiError> {
    let broken = || ApiError::bad_request("the body is not a protobuf object");
    let envelope = body.strip_prefix(b"k8s\0").ok_or_else(broken)?;
    let (mut type_meta, mut raw) = (Value::Null, &[][..]);
    for field in Wire(envelope) {
        match field.ok_or_else(broken)? {
            (1, Data::Bytes(bytes)) => type_meta = message(TYPE, bytes, 0).ok_or_else(broken)?,
            (2, Data::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let kind = type_meta["kind"].as_str().unwrap_or_default();
    let Some(fields) = fields(kind) else {
        let what = format!("{CONTENT_TYPE} ({kind})");
        return Err(ApiError::unsupported_media_type(&what, "application/json, application/yaml"));
    };
    let partly = || {
        ApiError::bad_request(format!(
            "the {kind} uses fields that are not read from protobuf: send JSON or YAML (kubectl create -f)"
        ))
    };
    let mut object = message(fields, raw, 0).ok_or_else(partly)?;
    object["apiVersion"] = type_meta["apiVersion"].clone();
    object["kind"] = json!(kind);
    Ok(object)
}

/// A value on the wire.
enum Data<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message; `None` where it is broken.
struct Wire<'a>(&'a [u8]);

impl<'a> Wire<'a> {
    fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Data<'a>)> {
        let tag = self.number()?;
        let data = match tag & 7 {
            0 => Data::Number(self.number()?),
            1 => Data::Bytes(self.take(8)?),
            2 => {
                let length = usize::try_from(self.number()?).ok()?;
                Data::Bytes(self.take(length)?)
            }
            5 => Data::Bytes(self.take(4)?),
            _ => return None,
        };
        Some((tag >> 3, data))
    }
}

impl<'a> Iterator for Wire<'a> {
    type Item = Option<(u64, Data<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// The fields of a message; nothing if it is broken. No kind here is nested deeper than a few levels.
fn message(fields: &'static [Field], bytes: &[u8], depth: usize) -> Option<Value> {
    if depth > 8 {
        return None;
    }
    let mut object = Map::new();
    for field in Wire(bytes) {
        let (number, data) = field?;
        let Some(&(_, name, holds)) = fields.iter().find(|(n, _, _)| *n == number) else {
            // Unset fields are sent as well. One that is set and not in the table may not just be dropped.
            match data {
                Data::Number(0) | Data::Bytes([]) => continue,
                _ => return None,
            }
        };
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(Value::from);
        match (holds, data) {
            // Nothing to take over.
            (Holds::Skip, _) | (Holds::Count, Data::Number(0)) => {}
            (Holds::Text, Data::Bytes(bytes)) => {
                // Unset texts are sent as empty ones.
                if !bytes.is_empty() {
                    object.insert(name.to_owned(), text(bytes)?);
                }
            }
            (Holds::Bytes, Data::Bytes(bytes)) => {
                object.insert(name.to_owned(), json!(STANDARD.encode(bytes)));
            }
            (Holds::Flag, Data::Number(number)) => {
                object.insert(name.to_owned(), json!(number != 0));
            }
            (Holds::Number | Holds::Count, Data::Number(number)) => {
                // Negative numbers are sent in two's complement.
                object.insert(name.to_owned(), json!(number.cast_signed()));
            }
            (Holds::Either, Data::Bytes(bytes)) => {
                const EITHER: &[Field] =
                    &[(1, "named", Holds::Flag), (2, "number", Holds::Number), (3, "name", Holds::Text)];
                let either = message(EITHER, bytes, depth + 1)?;
                let chosen = if either["named"] == true { &either["name"] } else { &either["number"] };
                // The unset one is sent as number 0, which is no port.
                if !chosen.is_null() && *chosen != 0 {
                    object.insert(name.to_owned(), chosen.clone());
                }
            }
            (Holds::Message(fields), Data::Bytes(bytes)) => {
                object.insert(name.to_owned(), message(fields, bytes, depth + 1)?);
            }
            (Holds::Messages(fields), Data::Bytes(bytes)) => {
                append(&mut object, name, message(fields, bytes, depth + 1)?);
            }
            (Holds::Texts, Data::Bytes(bytes)) => append(&mut object, name, text(bytes)?),
            (Holds::TextMap | Holds::BytesMap, Data::Bytes(bytes)) => {
                const TEXTS: &[Field] = &[(1, "k", Holds::Text), (2, "v", Holds::Text)];
                const BINARY: &[Field] = &[(1, "k", Holds::Text), (2, "v", Holds::Bytes)];
                let binary = matches!(holds, Holds::BytesMap);
                let entry = message(if binary { BINARY } else { TEXTS }, bytes, depth + 1)?;
                let key = entry["k"].as_str().unwrap_or_default().to_owned();
                let value = entry.get("v").cloned().unwrap_or_else(|| json!(""));
                super::object::as_map(object.entry(name).or_insert(Value::Null)).insert(key, value);
            }
            _ => return None,
        }
    }
    Some(Value::Object(object))
}

fn append(object: &mut Map<String, Value>, name: &str, value: Value) {
    if let Value::Array(items) = object.entry(name).or_insert_with(|| json!([])) {
        items.push(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
        out.extend_from_slice(content);
        out
    }

    fn config_map() -> Vec<u8> {
        let meta =
            [bytes(1, b"m"), bytes(3, b""), bytes(11, &[bytes(1, b"a"), bytes(2, b"b")].concat())].concat();
        let data = [bytes(1, b"key"), bytes(2, b"value")].concat();
        let raw = [bytes(1, &meta), bytes(2, &data), vec![4 << 3, 1]].concat();
        let kind = [bytes(1, b"v1"), bytes(2, b"ConfigMap")].concat();
        [b"k8s\0".to_vec(), bytes(1, &kind), bytes(2, &raw), bytes(3, b""), bytes(4, b"")].concat()
    }

    #[test]
    fn objects_are_read() {
        let wanted = json!({"metadata": {"name": "m", "labels": {"a": "b"}}, "data": {"key": "value"},
            "immutable": true, "apiVersion": "v1", "kind": "ConfigMap"});
        assert_eq!(parse(&config_map()).unwrap(), wanted);
    }

    #[test]
    fn broken_ones_are_refused_wherever_they_break() {
        let whole = config_map();
        for end in 0..whole.len() - 1 {
            // A cut may leave a smaller whole object; it must never panic.
            let _ = parse(&whole[..end]);
        }
        assert_eq!(parse(b"k8s\0\xff").unwrap_err().code, 400);
        assert_eq!(parse(b"{}").unwrap_err().code, 400);
        let kind = [bytes(1, b"v1"), bytes(2, b"Pod")].concat();
        let pod = [b"k8s\0".to_vec(), bytes(1, &kind)].concat();
        assert_eq!(parse(&pod).unwrap_err().code, 415);
    }
}
