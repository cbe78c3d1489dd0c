//! CNI: network configurations and plugin execution, as the CNI specification 1.1.0 says (its sections 1 to 5).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

/// Error code of a plugin that wants to be asked again later.
pub const TRY_AGAIN_LATER: u32 = 11;
/// How long a plugin may take before it is killed.
const TIMEOUT: Duration = Duration::from_mins(1);

/// What went wrong with the pod network.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// No configuration yet.
    #[error(
        "no CNI network configuration in {0}: wait for the network agent to write one, or put a *.conflist there"
    )]
    NoConfig(PathBuf),
    /// A configuration that cannot be used.
    #[error("CNI configuration {path} is not usable: {cause}")]
    BadConfig {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// A plugin that is not installed or cannot be executed.
    #[error("cannot execute CNI plugin \"{plugin}\" (looked in {dir}): {cause}")]
    Exec {
        /// Type of the plugin.
        plugin: String,
        /// Where it should be.
        dir: PathBuf,
        /// Why.
        cause: String,
    },
    /// A plugin that answered with an error.
    #[error("plugin type=\"{plugin}\" failed ({verb}): {msg}{}", details.as_ref().map(|d| format!("; {d}")).unwrap_or_default())]
    Plugin {
        /// Type of the plugin.
        plugin: String,
        /// The operation, lower case.
        verb: String,
        /// The specification's error code.
        code: u32,
        /// Its message.
        msg: String,
        /// Its details.
        details: Option<String>,
    },
    /// A plugin whose answer is no CNI result.
    #[error("plugin type=\"{plugin}\" failed ({verb}): its answer is no CNI result: {cause}")]
    Answer {
        /// Type of the plugin.
        plugin: String,
        /// The operation, lower case.
        verb: String,
        /// Why.
        cause: String,
    },
}

impl CniError {
    /// The plugin asks to be tried again later (for instance because every address is in use).
    pub fn is_try_again_later(&self) -> bool {
        matches!(self, Self::Plugin { code: TRY_AGAIN_LATER, .. })
    }
}

/// A network configuration list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// `cniVersion` under which the plugins are called.
    pub version: String,
    /// Name of the network.
    pub name: String,
    /// The plugins' own configurations, in order.
    pub plugins: Vec<Value>,
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
        Ok(Self { version, name, plugins })
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

    /// What plugin `index` gets on standard input.
    fn request(&self, index: usize, previous: Option<&Value>, abilities: &BTreeMap<String, Value>) -> Value {
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

/// A pod's attachment to the network: kept until DEL, which must see what ADD saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// The configuration that ADD was given.
    pub config: NetworkConfig,
    /// The pod sandbox.
    pub container_id: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Name of the interface in it.
    pub interface: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// Values for `runtimeConfig`, by capability.
    pub abilities: BTreeMap<String, Value>,
    /// The last plugin's result, once ADD has succeeded.
    pub result: Option<Value>,
}

/// Executes plugins.
#[derive(Clone, Debug)]
pub struct Cni {
    /// Where configurations are.
    pub conf_dir: PathBuf,
    /// Where plugins are.
    pub bin_dir: PathBuf,
}

impl Attachment {
    /// The pod's addresses in the result's order.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let ips = self.result.as_ref().and_then(|result| result["ips"].as_array());
        ips.into_iter()
            .flatten()
            .filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok())
            .collect()
    }
}

impl Cni {
    /// Whether pods can be attached: a configuration is there and readable.
    pub fn status(&self) -> Result<(), CniError> {
        NetworkConfig::load(&self.conf_dir).map(drop)
    }

    /// Runs ADD of every plugin in order. After an error DEL must follow.
    pub async fn add(&self, attachment: &mut Attachment) -> Result<(), CniError> {
        let mut previous: Option<Value> = None;
        for index in 0..attachment.config.plugins.len() {
            let request = attachment.config.request(index, previous.as_ref(), &attachment.abilities);
            let answer = self.execute("ADD", attachment, index, &request).await?;
            let plugin = attachment.config.plugins[index]["type"].as_str().unwrap_or_default();
            let result: Value = serde_json::from_slice(&answer).map_err(|error| CniError::Answer {
                plugin: plugin.to_owned(),
                verb: "add".to_owned(),
                cause: error.to_string(),
            })?;
            previous = Some(result);
        }
        attachment.result = previous;
        if attachment.addresses().is_empty() {
            let last = attachment.config.plugins.last().map(|plugin| plugin["type"].clone());
            return Err(CniError::Answer {
                plugin: last.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned(),
                verb: "add".to_owned(),
                cause: "it has no address (\"ips\" is empty)".to_owned(),
            });
        }
        Ok(())
    }

    /// Runs DEL of every plugin in reverse order. Every plugin is called; the first error is returned.
    pub async fn del(&self, attachment: &Attachment) -> Result<(), CniError> {
        let mut first = Ok(());
        for index in (0..attachment.config.plugins.len()).rev() {
            let request = attachment.config.request(index, attachment.result.as_ref(), &attachment.abilities);
            let done = self.execute("DEL", attachment, index, &request).await.map(drop);
            if first.is_ok() {
                first = done;
            }
        }
        first
    }

    async fn execute(
        &self,
        verb: &str,
        attachment: &Attachment,
        index: usize,
        request: &Value,
    ) -> Result<Vec<u8>, CniError> {
        let plugin = attachment.config.plugins[index]["type"].as_str().unwrap_or_default();
        let fail =
            |cause: String| CniError::Exec { plugin: plugin.to_owned(), dir: self.bin_dir.clone(), cause };
        if plugin.is_empty() || plugin.contains('/') {
            return Err(fail("its type is no file name".to_owned()));
        }
        let mut child = tokio::process::Command::new(self.bin_dir.join(plugin))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &attachment.container_id)
            .env("CNI_NETNS", &attachment.netns)
            .env("CNI_IFNAME", &attachment.interface)
            .env("CNI_ARGS", &attachment.args)
            .env("CNI_PATH", &self.bin_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| fail(error.to_string()))?;
        let input = request.to_string();
        let stdin = child.stdin.take();
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A plugin that does not read its input answers anyway.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let ((), output) =
            tokio::time::timeout(TIMEOUT, async { tokio::join!(feed, child.wait_with_output()) })
                .await
                .map_err(|_| fail(format!("it took more than {} s", TIMEOUT.as_secs())))?;
        let output = output.map_err(|error| fail(error.to_string()))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let verb = verb.to_lowercase();
        Err(match serde_json::from_slice::<Value>(&output.stdout) {
            Ok(error) if error["code"].is_u64() => CniError::Plugin {
                plugin: plugin.to_owned(),
                verb,
                code: error["code"].as_u64().and_then(|code| code.try_into().ok()).unwrap_or(u32::MAX),
                msg: error["msg"].as_str().unwrap_or_default().to_owned(),
                details: error["details"].as_str().filter(|text| !text.is_empty()).map(str::to_owned),
            },
            _ => CniError::Plugin {
                plugin: plugin.to_owned(),
                verb,
                code: 100,
                msg: format!(
                    "{} without a CNI error: {}",
                    output.status,
                    String::from_utf8_lossy(&output.stderr).trim()
                ),
                details: None,
            },
        })
    }
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A directory of plugins that note what they are called with, and answer as told.
    struct Plugins {
        dir: tempfile::TempDir,
    }

    impl Plugins {
        fn new(plugins: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for (name, answer) in plugins {
                let path = dir.path().join(name);
                let notes = dir.path().join("calls").display().to_string();
                let script = format!(
                    "#!/bin/sh\nprintf '%s %s %s %s ' \"$CNI_COMMAND\" {name} \"$CNI_IFNAME\" \"$CNI_ARGS\" >> {notes}\n\
                     cat >> {notes}\necho >> {notes}\n{answer}\n"
                );
                std::fs::write(&path, script).unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            }
            Self { dir }
        }

        fn cni(&self) -> Cni {
            Cni { conf_dir: self.dir.path().join("net.d"), bin_dir: self.dir.path().to_owned() }
        }

        fn calls(&self) -> Vec<String> {
            let text = std::fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default();
            text.lines().map(str::to_owned).collect()
        }
    }

    fn attachment(plugins: Value) -> Attachment {
        let text = json!({"cniVersion": "1.0.0", "name": "net", "plugins": plugins}).to_string();
        Attachment {
            config: NetworkConfig::parse(&text).unwrap(),
            container_id: "c1".into(),
            netns: "/run/netns/x".into(),
            interface: "eth0".into(),
            args: "K8S_POD_NAME=p".into(),
            abilities: BTreeMap::from([("portMappings".to_owned(), json!([{"hostPort": 80}]))]),
            result: None,
        }
    }

    const RESULT: &str = r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.5/24"}]}'"#;

    #[tokio::test]
    async fn add_chains_results_and_del_goes_backwards() {
        let plugins = Plugins::new(&[("first", RESULT), ("second", RESULT)]);
        let mut pod = attachment(json!([
            {"type": "first", "capabilities": {"portMappings": true, "bandwidth": true}}, {"type": "second"}]));
        plugins.cni().add(&mut pod).await.unwrap();
        plugins.cni().del(&pod).await.unwrap();
        assert_eq!(pod.addresses(), ["10.1.0.5".parse::<IpAddr>().unwrap()]);
        let calls = plugins.calls();
        let heads: Vec<_> = calls.iter().map(|call| call.split('{').next().unwrap().trim()).collect();
        assert_eq!(
            heads,
            [
                "ADD first eth0 K8S_POD_NAME=p",
                "ADD second eth0 K8S_POD_NAME=p",
                "DEL second eth0 K8S_POD_NAME=p",
                "DEL first eth0 K8S_POD_NAME=p"
            ]
        );
        let input =
            |n: usize| -> Value { serde_json::from_str(&calls[n][calls[n].find('{').unwrap()..]).unwrap() };
        assert_eq!(input(0)["name"], "net");
        assert_eq!(input(0)["cniVersion"], "1.0.0");
        assert_eq!(input(0)["runtimeConfig"], json!({"portMappings": [{"hostPort": 80}]}));
        assert!(input(0).get("prevResult").is_none() && input(0).get("capabilities").is_none());
        assert_eq!(input(1)["prevResult"]["ips"][0]["address"], "10.1.0.5/24");
        assert!(input(1).get("runtimeConfig").is_none());
        assert_eq!(input(2)["prevResult"], input(1)["prevResult"]);
    }

    #[tokio::test]
    async fn a_plugins_error_is_told_with_its_code() {
        let plugins = Plugins::new(&[(
            "full",
            r#"echo '{"cniVersion":"1.0.0","code":11,"msg":"no address is free","details":"pool 10.1.0.0/30"}'; exit 1"#,
        )]);
        let error = plugins.cni().add(&mut attachment(json!([{"type": "full"}]))).await.unwrap_err();
        assert!(error.is_try_again_later());
        assert_eq!(
            error.to_string(),
            "plugin type=\"full\" failed (add): no address is free; pool 10.1.0.0/30"
        );
    }

    #[tokio::test]
    async fn bad_plugins_are_named() {
        let plugins =
            Plugins::new(&[("silent", "true"), ("crash", "echo boom >&2; exit 3"), ("poor", "echo '{}'")]);
        for (name, words) in [
            ("silent", "no CNI result"),
            ("crash", "boom"),
            ("poor", "no address"),
            ("absent", "cannot execute"),
            ("../x", "file name"),
        ] {
            let error =
                plugins.cni().add(&mut attachment(json!([{"type": name}]))).await.unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(name), "{error}");
        }
    }

    #[tokio::test]
    async fn del_calls_every_plugin_also_after_an_error() {
        let plugins = Plugins::new(&[("first", "true"), ("second", "exit 1")]);
        let pod = attachment(json!([{"type": "first"}, {"type": "second"}]));
        assert!(plugins.cni().del(&pod).await.is_err());
        assert_eq!(plugins.calls().len(), 2);
    }

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
}
