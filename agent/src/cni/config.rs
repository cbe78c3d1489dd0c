//! The network configuration on stdin.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::environment::Verb;
use super::error::{CniError, Code};
use super::is_identifier;
use super::version::Version;

/// What we read of the configuration. Keys that we do not know are other programs' and left alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetConf {
    /// `cniVersion`.
    pub version: Version,
    /// `name` of the network.
    pub name: String,
    /// `socket`: where the agent listens, if not at the usual place.
    pub socket: Option<String>,
    /// `prevResult`: what the plugins before us, or our own ADD, answered.
    pub prev_result: Option<Value>,
    /// `cni.dev/valid-attachments` of GC.
    pub valid_attachments: Option<Vec<Attachment>>,
}

/// One interface of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The container.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface.
    pub ifname: String,
}

/// Decodes stdin into an object. Also says which `cniVersion` an answer must repeat.
pub fn decode(stdin: &[u8]) -> Result<Map<String, Value>, CniError> {
    let decode_error = |cause: String| {
        CniError::new(Code::DECODE, "the network configuration on stdin is not a JSON object", cause)
    };
    match serde_json::from_slice(stdin) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(decode_error("it must start with '{'".into())),
        Err(cause) => Err(decode_error(cause.to_string())),
    }
}

impl NetConf {
    /// Checks a decoded configuration for `verb`.
    pub fn check(object: &Map<String, Value>, verb: Verb) -> Result<Self, CniError> {
        let text = |key: &str| match object.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(s)) if !s.is_empty() => Ok(Some(s.clone())),
            Some(other) => {
                Err(invalid(&format!("key {key:?} is {other}"), "it must be a text that is not empty"))
            }
        };
        let name =
            text("name")?.ok_or_else(|| invalid("key \"name\" is missing", "give the network a name"))?;
        if !is_identifier(&name) {
            return Err(invalid(
                &format!("key \"name\" is {name:?}"),
                "it must start with a letter or digit and hold only letters, digits, '_', '.' and '-'",
            ));
        }
        let version = text("cniVersion")?;
        let version = version.as_deref().unwrap_or("0.1.0").parse::<Version>().map_err(|()| {
            CniError::new(
                Code::INCOMPATIBLE_VERSION,
                "incompatible CNI versions",
                format!(
                    "the configuration has cniVersion {}; podwire-cni speaks {}",
                    version.as_deref().map_or("missing, which means \"0.1.0\"".into(), |v| format!("{v:?}")),
                    Version::list()
                ),
            )
        })?;
        if version < verb.since() {
            return Err(CniError::new(
                Code::INCOMPATIBLE_VERSION,
                format!("{} does not exist in CNI {version}", verb.as_str()),
                format!("it came with {}; raise cniVersion of network {name:?}", verb.since()),
            ));
        }
        let prev_result = object.get("prevResult").filter(|v| !v.is_null()).cloned();
        if prev_result.as_ref().is_some_and(|v| !v.is_object()) {
            return Err(invalid("key \"prevResult\" is not an object", "pass the result of ADD as it was"));
        }
        if verb == Verb::Check && prev_result.is_none() {
            return Err(invalid("key \"prevResult\" is missing", "CHECK needs the result of ADD"));
        }
        let valid_attachments = match object.get("cni.dev/valid-attachments") {
            Some(list) => Some(Vec::<Attachment>::deserialize(list).map_err(|cause| {
                invalid(
                    "key \"cni.dev/valid-attachments\" is wrong",
                    &format!("it must be a list of {{containerID, ifname}}: {cause}"),
                )
            })?),
            None if verb == Verb::Gc => {
                return Err(invalid(
                    "key \"cni.dev/valid-attachments\" is missing",
                    "GC needs the list of what must stay; an empty list removes everything of this network",
                ));
            }
            None => None,
        };
        Ok(Self { version, name, socket: text("socket")?, prev_result, valid_attachments })
    }
}

fn invalid(msg: &str, mend: &str) -> CniError {
    CniError::new(Code::INVALID_CONFIG, format!("network configuration: {msg}"), mend)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(verb: Verb, value: &Value) -> Result<NetConf, CniError> {
        NetConf::check(&decode(value.to_string().as_bytes()).unwrap(), verb)
    }

    #[test]
    fn versions_and_verbs() {
        for (version, verb, good) in [
            ("0.3.1", Verb::Add, true),
            ("0.3.1", Verb::Check, false),
            ("0.4.0", Verb::Check, true),
            ("1.0.0", Verb::Status, false),
            ("1.1.0", Verb::Status, true),
            ("0.2.0", Verb::Add, false),
            ("1.2.0", Verb::Add, false),
        ] {
            let conf = json!({"cniVersion": version, "name": "n", "type": "podwire-cni", "prevResult": {}});
            let answer = check(verb, &conf);
            assert_eq!(answer.is_ok(), good, "{version} {verb:?}");
            if let Err(err) = answer {
                assert_eq!(err.code, Code::INCOMPATIBLE_VERSION.0);
                assert!(!err.details.is_empty());
            }
        }
        let err = check(Verb::Add, &json!({"name": "n"})).unwrap_err();
        assert_eq!(err.code, Code::INCOMPATIBLE_VERSION.0);
        assert!(err.details.contains("missing, which means \"0.1.0\""), "{err}");
    }

    #[test]
    fn wrong_keys_are_code_7() {
        for (verb, conf) in [
            (Verb::Add, json!({"cniVersion": "1.1.0"})),
            (Verb::Add, json!({"cniVersion": "1.1.0", "name": "a/b"})),
            (Verb::Add, json!({"cniVersion": "1.1.0", "name": 3})),
            (Verb::Add, json!({"cniVersion": 1, "name": "n"})),
            (Verb::Add, json!({"cniVersion": "1.1.0", "name": "n", "socket": []})),
            (Verb::Add, json!({"cniVersion": "1.1.0", "name": "n", "prevResult": 1})),
            (Verb::Check, json!({"cniVersion": "1.1.0", "name": "n"})),
            (Verb::Gc, json!({"cniVersion": "1.1.0", "name": "n"})),
            (
                Verb::Gc,
                json!({"cniVersion": "1.1.0", "name": "n", "cni.dev/valid-attachments": [{"ifname": "x"}]}),
            ),
        ] {
            let err = check(verb, &conf).unwrap_err();
            assert_eq!(err.code, Code::INVALID_CONFIG.0, "{conf} {err}");
        }
    }

    #[test]
    fn what_is_not_json_is_code_6() {
        for text in ["", "{", "[]", "nonsense"] {
            assert_eq!(decode(text.as_bytes()).unwrap_err().code, Code::DECODE.0, "{text:?}");
        }
    }
}
