//! Network configurations: reading them, and what of them each plugin gets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::CniError;

/// A network configuration list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// `cniVersion` under which the plugins are called.
    pub version: String,
    /// Name of the network.
    pub name: String,
    /// The plugins' own configurations, in order.
    pub plugins: Vec<Value>,
    /// `disableGC`: several runtimes share the network, and none knows all its attachments.
    #[serde(default)]
    pub gc_disabled: bool,
}

impl NetworkConfig {
    /// Reads a `.conflist` or a single plugin's `.conf`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let version = value["cniVersion"].as_str().unwrap_or("0.3.1").to_owned();
        let name =
            value["name"].as_str().filter(|name| !name.is_empty()).ok_or("it has no \"name\"")?.to_owned();
        let plugins = match &value["plugins"] {
            Value::Array(plugins) if plugins.is_empty() => {
                return Err("its list of plugins is empty".to_owned());
            }
            Value::Array(plugins) => plugins.clone(),
            Value::Null => vec![value.clone()],
            _ => return Err("its \"plugins\" is no list".to_owned()),
        };
        if let Some(index) = plugins.iter().position(|plugin| !plugin["type"].is_string()) {
            return Err(format!("plugin {index} has no \"type\""));
        }
        // The specification takes the word as well as the value.
        let gc_disabled = value["disableGC"] == true || value["disableGC"] == "true";
        Ok(Self { version, name, plugins, gc_disabled })
    }

    /// The first configuration of a directory in the order of names.
    pub fn load(dir: &Path) -> Result<Self, CniError> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
            .map_err(|_| CniError::NoConfig(dir.to_owned()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.extension().is_some_and(|ext| ext == "conflist" || ext == "conf" || ext == "json")
            })
            .collect();
        files.sort();
        let Some(path) = files.into_iter().next() else { return Err(CniError::NoConfig(dir.to_owned())) };
        let bad = |cause: String| CniError::BadConfig { path: path.clone(), cause };
        let text = std::fs::read_to_string(&path).map_err(|error| bad(error.to_string()))?;
        Self::parse(&text).map_err(bad)
    }

    /// The specification's version under which the plugins are called, to compare.
    fn version_number(&self) -> Vec<u32> {
        self.version.split('.').map(|part| part.parse().unwrap_or(0)).collect()
    }

    /// The plugins may be told which attachments are still valid: version 1.1.0 has the verb, and nobody has forbidden it.
    pub fn collects_garbage(&self) -> bool {
        self.version_number() >= vec![1, 1, 0] && !self.gc_disabled
    }

    /// What plugin `index` gets on standard input.
    pub(super) fn request(
        &self,
        index: usize,
        previous: Option<&Value>,
        abilities: &BTreeMap<String, Value>,
    ) -> Value {
        let mut request = self.plugins[index].clone();
        request["name"] = json!(self.name);
        request["cniVersion"] = json!(self.version);
        if let Some(previous) = previous {
            request["prevResult"] = previous.clone();
        }
        let wanted: serde_json::Map<String, Value> = self.plugins[index]["capabilities"]
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, on)| on.as_bool() == Some(true))
            .filter_map(|(name, _)| Some((name.clone(), abilities.get(name)?.clone())))
            .collect();
        if let Some(object) = request.as_object_mut() {
            object.remove("capabilities");
            if !wanted.is_empty() {
                object.insert("runtimeConfig".to_owned(), wanted.into());
            }
        }
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_configuration_by_name_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(NetworkConfig::load(dir.path()), Err(CniError::NoConfig(_))));
        std::fs::write(dir.path().join("10-b.conf"), r#"{"name": "b", "type": "ptp"}"#).unwrap();
        std::fs::write(dir.path().join("05-a.conflist"), r#"{"name": "a", "plugins": [{"type": "x"}]}"#)
            .unwrap();
        std::fs::write(dir.path().join("00-no.txt"), "x").unwrap();
        assert_eq!(NetworkConfig::load(dir.path()).unwrap().name, "a");
        for bad in ["{", "{}", r#"{"name": "a", "plugins": []}"#, r#"{"name": "a", "plugins": [{}]}"#] {
            std::fs::write(dir.path().join("01.conflist"), bad).unwrap();
            assert!(matches!(NetworkConfig::load(dir.path()), Err(CniError::BadConfig { .. })), "{bad}");
        }
    }

    #[test]
    fn garbage_is_collected_from_version_1_1_0_unless_forbidden() {
        let of = |text: &str| NetworkConfig::parse(text).unwrap().collects_garbage();
        let with = |more: &str| format!(r#"{{"name": "a", "plugins": [{{"type": "x"}}]{more}}}"#);
        assert!(of(&with(r#", "cniVersion": "1.1.0""#)) && of(&with(r#", "cniVersion": "1.10.0""#)));
        assert!(!of(&with(r#", "cniVersion": "1.0.0""#)) && !of(&with("")));
        assert!(!of(&with(r#", "cniVersion": "1.1.0", "disableGC": true"#)));
    }
}
