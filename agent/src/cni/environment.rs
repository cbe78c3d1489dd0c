//! The `CNI_*` variables of a call.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{CniError, Code};
use super::is_identifier;
use super::version::Version;

/// What the runtime wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verb {
    /// Wire a container.
    Add,
    /// Take a container's wiring down.
    Del,
    /// Is the wiring as ADD left it?
    Check,
    /// Take down the wiring of every container that is not listed.
    Gc,
    /// Can ADD be served?
    Status,
    /// Which versions are spoken?
    Version,
}

impl Verb {
    /// As it stands in `CNI_COMMAND`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// The version of the specification that introduced the verb.
    pub fn since(self) -> Version {
        match self {
            Self::Add | Self::Del | Self::Version => Version::V0_3_1,
            Self::Check => Version::V0_4_0,
            Self::Gc | Self::Status => Version::V1_1_0,
        }
    }

    /// Whether the call is about one container.
    fn has_container(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }

    /// Whether the container's network namespace must be given. DEL must succeed when it is gone.
    pub fn needs_netns(self) -> bool {
        matches!(self, Self::Add | Self::Check)
    }
}

impl FromStr for Verb {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version]
            .into_iter()
            .find(|v| v.as_str() == s)
            .ok_or(())
    }
}

/// The variables, checked. What a verb does not use is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub verb: Verb,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`; empty if the namespace is gone (DEL).
    pub netns: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: BTreeMap<String, String>,
}

impl Environment {
    /// Reads and checks the variables through `get`; each missing or wrong one is named.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let get = |name: &str| get(name).filter(|v| !v.is_empty());
        let Some(command) = get("CNI_COMMAND") else {
            return Err(missing(&["CNI_COMMAND"], "a CNI plugin is run by a container runtime"));
        };
        let verb = command.parse::<Verb>().map_err(|()| {
            CniError::new(
                Code::INVALID_ENVIRONMENT,
                format!("CNI_COMMAND {command:?} is no verb"),
                "it must be ADD, DEL, CHECK, GC, STATUS or VERSION",
            )
        })?;
        let mut env = Self {
            verb,
            container_id: String::new(),
            netns: String::new(),
            ifname: String::new(),
            args: BTreeMap::new(),
        };
        if !verb.has_container() {
            return Ok(env);
        }
        let container_id = get("CNI_CONTAINERID");
        let ifname = get("CNI_IFNAME");
        let netns = get("CNI_NETNS");
        let mut absent = Vec::new();
        if container_id.is_none() {
            absent.push("CNI_CONTAINERID");
        }
        if netns.is_none() && verb.needs_netns() {
            absent.push("CNI_NETNS");
        }
        if ifname.is_none() {
            absent.push("CNI_IFNAME");
        }
        if !absent.is_empty() {
            return Err(missing(&absent, &format!("{} needs it", verb.as_str())));
        }
        env.container_id = container_id.unwrap_or_default();
        env.ifname = ifname.unwrap_or_default();
        env.netns = netns.unwrap_or_default();
        if !is_identifier(&env.container_id) {
            return Err(CniError::new(
                Code::INVALID_ENVIRONMENT,
                format!("CNI_CONTAINERID {:?} is no container ID", env.container_id),
                "it must start with a letter or digit and hold only letters, digits, '_', '.' and '-'",
            ));
        }
        if let Some(cause) = ifname_fault(&env.ifname) {
            return Err(CniError::new(
                Code::INVALID_ENVIRONMENT,
                format!("CNI_IFNAME {:?} is no interface name", env.ifname),
                cause,
            ));
        }
        env.args = parse_args(&get("CNI_ARGS").unwrap_or_default())?;
        Ok(env)
    }
}

fn missing(names: &[&str], why: &str) -> CniError {
    let (noun, verb) = if names.len() == 1 { ("variable", "is") } else { ("variables", "are") };
    CniError::new(
        Code::INVALID_ENVIRONMENT,
        format!("environment {noun} {} {verb} not set", names.join(", ")),
        why,
    )
}

/// Why the kernel would refuse `name` as the name of an interface.
fn ifname_fault(name: &str) -> Option<&'static str> {
    if name.len() > 15 {
        return Some("it must have at most 15 bytes");
    }
    if name == "." || name == ".." {
        return Some("'.' and '..' are not allowed");
    }
    name.bytes()
        .any(|b| b == b'/' || b == b':' || b.is_ascii_whitespace())
        .then_some("'/', ':' and white space are not allowed")
}

fn parse_args(text: &str) -> Result<BTreeMap<String, String>, CniError> {
    text.split(';')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            pair.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).ok_or_else(|| {
                CniError::new(
                    Code::INVALID_ENVIRONMENT,
                    format!("CNI_ARGS holds {pair:?}"),
                    "it must be a list of KEY=VALUE separated by semicolons",
                )
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Environment, CniError> {
        Environment::read(|name| vars.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned()))
    }

    const ADD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "abc-1"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
    ];

    #[test]
    fn a_complete_add_is_read() {
        let mut vars = ADD.to_vec();
        vars.push(("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web=1;"));
        let env = read(&vars).unwrap();
        assert_eq!(env.verb, Verb::Add);
        assert_eq!((env.container_id.as_str(), env.ifname.as_str()), ("abc-1", "eth0"));
        assert_eq!(env.args["K8S_POD_NAME"], "web=1");
    }

    #[test]
    fn every_missing_variable_is_named() {
        let err = read(&[("CNI_COMMAND", "ADD")]).unwrap_err();
        assert_eq!(err.code, Code::INVALID_ENVIRONMENT.0);
        assert!(err.msg.contains("CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME are not set"), "{err}");
        assert!(read(&[]).unwrap_err().msg.contains("CNI_COMMAND"));
        let err =
            read(&[("CNI_COMMAND", "CHECK"), ("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0")]).unwrap_err();
        assert!(err.msg.contains("CNI_NETNS is not set"), "{err}");
    }

    #[test]
    fn del_does_not_need_the_namespace_and_gc_needs_nothing() {
        assert!(read(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0")]).is_ok());
        for verb in ["GC", "STATUS", "VERSION"] {
            assert!(read(&[("CNI_COMMAND", verb)]).is_ok());
        }
    }

    #[test]
    fn bad_values_are_refused() {
        for (name, value) in [
            ("CNI_COMMAND", "add"),
            ("CNI_CONTAINERID", "../x"),
            ("CNI_CONTAINERID", "-x"),
            ("CNI_IFNAME", "sixteen-bytes-xx"),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", "a b"),
            ("CNI_ARGS", "novalue"),
        ] {
            let mut vars: Vec<_> = ADD.iter().copied().filter(|(k, _)| *k != name).collect();
            vars.push((name, value));
            let err = read(&vars).unwrap_err();
            assert_eq!(err.code, Code::INVALID_ENVIRONMENT.0, "{name}={value}");
            assert!(err.msg.contains(name), "{err}");
        }
    }
}
