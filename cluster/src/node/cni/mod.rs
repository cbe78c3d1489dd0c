//! CNI: network configurations and plugin execution, as the CNI specification 1.1.0 says (its sections 1 to 5).

mod config;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek as _, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::RwLock;

pub use config::NetworkConfig;

/// Error code of a plugin that wants to be asked again later.
pub const TRY_AGAIN_LATER: u32 = 11;
/// How long a plugin may take before it is killed.
const TIMEOUT: Duration = Duration::from_mins(1);
/// How often to look whether a plugin that an earlier runtime has started has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

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
        /// There is no such program.
        missing: bool,
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

    /// The plugin is not installed (any more).
    pub fn is_missing_plugin(&self) -> bool {
        matches!(self, Self::Exec { missing: true, .. })
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
#[derive(Debug)]
pub struct Cni {
    /// Where configurations are.
    pub conf_dir: PathBuf,
    /// Where plugins are.
    pub bin_dir: PathBuf,
    /// Held for reading by ADD and DEL, for writing by GC: the specification wants GC to be alone.
    alone: RwLock<()>,
}

/// One call of a plugin.
struct Call<'a> {
    verb: &'static str,
    plugin: &'a Value,
    /// Who it is about; `None` for GC, which is about all.
    attachment: Option<&'a Attachment>,
    request: Value,
    /// File that hands the plugin its input.
    file: &'a Path,
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
    /// With configurations in `conf_dir` and plugins in `bin_dir`.
    pub fn new(conf_dir: PathBuf, bin_dir: PathBuf) -> Self {
        Self { conf_dir, bin_dir, alone: RwLock::default() }
    }

    /// Whether pods can be attached: a configuration is there and readable.
    pub fn status(&self) -> Result<(), CniError> {
        NetworkConfig::load(&self.conf_dir).map(drop)
    }

    /// Runs ADD of every plugin in order. After an error DEL must follow. `file` is the container's own: calls that share
    /// it come one after the other, also when the runtime that made the first is gone.
    pub async fn add(&self, attachment: &mut Attachment, file: &Path) -> Result<(), CniError> {
        let _together = self.alone.read().await;
        let mut previous: Option<Value> = None;
        for (index, plugin) in attachment.config.plugins.iter().enumerate() {
            let request = attachment.config.request(index, previous.as_ref(), &attachment.abilities);
            let call = Call { verb: "ADD", plugin, attachment: Some(attachment), request, file };
            let answer = self.execute(call).await?;
            let result: Value = serde_json::from_slice(&answer).map_err(|error| CniError::Answer {
                plugin: type_of(plugin).to_owned(),
                verb: "add".to_owned(),
                cause: error.to_string(),
            })?;
            previous = Some(result);
        }
        attachment.result = previous;
        if attachment.addresses().is_empty() {
            return Err(CniError::Answer {
                plugin: attachment.config.plugins.last().map(type_of).unwrap_or_default().to_owned(),
                verb: "add".to_owned(),
                cause: "it has no address (\"ips\" is empty)".to_owned(),
            });
        }
        Ok(())
    }

    /// Runs DEL of every plugin in reverse order, with the configuration that ADD had. Every plugin is called; the first
    /// error is returned, that a plugin is missing only if there is no other.
    pub async fn del(&self, attachment: &Attachment, file: &Path) -> Result<(), CniError> {
        let _together = self.alone.read().await;
        let mut problem = None;
        for (index, plugin) in attachment.config.plugins.iter().enumerate().rev() {
            let request = attachment.config.request(index, attachment.result.as_ref(), &attachment.abilities);
            let call = Call { verb: "DEL", plugin, attachment: Some(attachment), request, file };
            if let Err(error) = self.execute(call).await
                && problem.as_ref().is_none_or(CniError::is_missing_plugin)
            {
                problem = Some(error);
            }
        }
        problem.map_or(Ok(()), Err)
    }

    /// Runs GC of every plugin of the present configuration, if its version has the verb: what is not among the
    /// attachments that `valid` names goes. Every plugin is called; the first error is returned.
    pub async fn gc(&self, valid: impl FnOnce() -> Vec<Attachment>, file: &Path) -> Result<(), CniError> {
        let config = NetworkConfig::load(&self.conf_dir)?;
        if !config.collects_garbage() {
            return Ok(());
        }
        let _alone = self.alone.write().await;
        // Only now nothing is being added.
        let valid: Vec<Value> = valid()
            .iter()
            .filter(|one| one.config.name == config.name)
            .map(|one| json!({"containerID": one.container_id, "ifname": one.interface}))
            .collect();
        let mut first = Ok(());
        for (index, plugin) in config.plugins.iter().enumerate() {
            let mut request = config.request(index, None, &BTreeMap::new());
            request["cni.dev/valid-attachments"] = json!(valid);
            let done =
                self.execute(Call { verb: "GC", plugin, attachment: None, request, file }).await.map(drop);
            if first.is_ok() {
                first = done;
            }
        }
        first
    }

    async fn execute(&self, call: Call<'_>) -> Result<Vec<u8>, CniError> {
        let plugin = type_of(call.plugin);
        let fail = |cause: String, missing: bool| CniError::Exec {
            plugin: plugin.to_owned(),
            dir: self.bin_dir.clone(),
            missing,
            cause,
        };
        if plugin.is_empty() || plugin.contains('/') {
            return Err(fail("its type is no file name".to_owned(), true));
        }
        let input = input(call.file, &call.request)
            .await
            .map_err(|error| fail(format!("its input {}: {error}", call.file.display()), false))?;
        let mut command = tokio::process::Command::new(self.bin_dir.join(plugin));
        command.env("CNI_COMMAND", call.verb).env("CNI_PATH", &self.bin_dir);
        if let Some(attachment) = call.attachment {
            command
                .env("CNI_CONTAINERID", &attachment.container_id)
                .env("CNI_NETNS", &attachment.netns)
                .env("CNI_IFNAME", &attachment.interface)
                .env("CNI_ARGS", &attachment.args);
        }
        let child = command
            .stdin(Stdio::from(input))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| fail(error.to_string(), error.kind() == io::ErrorKind::NotFound))?;
        // The builder holds the input: let go, or the next call would wait for this one.
        drop(command);
        let output = tokio::time::timeout(TIMEOUT, child.wait_with_output())
            .await
            .map_err(|_| fail(format!("it took more than {} s", TIMEOUT.as_secs()), false))?
            .map_err(|error| fail(error.to_string(), false))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let verb = call.verb.to_lowercase();
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

fn type_of(plugin: &Value) -> &str {
    plugin["type"].as_str().unwrap_or_default()
}

/// A plugin's standard input: a locked file. The lock lasts as long as somebody has the file open, so a plugin that has
/// outlived the runtime that started it is waited for: two for one container at a time are against the specification.
async fn input(path: &Path, request: &Value) -> io::Result<File> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let wait = async {
        loop {
            match file.try_lock() {
                // A lock tells nobody of its end: look now and then.
                Err(TryLockError::WouldBlock) => tokio::time::sleep(LOOK_AGAIN).await,
                Err(TryLockError::Error(error)) => return Err(error),
                Ok(()) => return Ok(()),
            }
        }
    };
    tokio::time::timeout(TIMEOUT, wait).await.map_err(|_| {
        io::Error::new(io::ErrorKind::TimedOut, "a plugin that an earlier runtime has started does not end")
    })??;
    file.set_len(0)?;
    file.write_all(request.to_string().as_bytes())?;
    file.rewind()?;
    Ok(file)
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
            Cni::new(self.dir.path().join("net.d"), self.dir.path().to_owned())
        }

        fn file(&self) -> PathBuf {
            self.dir.path().join("input.json")
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
        plugins.cni().add(&mut pod, &plugins.file()).await.unwrap();
        plugins.cni().del(&pod, &plugins.file()).await.unwrap();
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
        let error =
            plugins.cni().add(&mut attachment(json!([{"type": "full"}])), &plugins.file()).await.unwrap_err();
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
            let error = plugins
                .cni()
                .add(&mut attachment(json!([{"type": name}])), &plugins.file())
                .await
                .unwrap_err()
                .to_string();
            assert!(error.contains(words) && error.contains(name), "{error}");
        }
    }

    #[tokio::test]
    async fn del_calls_every_plugin_also_after_an_error() {
        let plugins = Plugins::new(&[("first", "true"), ("second", "exit 1")]);
        let pod = attachment(json!([{"type": "first"}, {"type": "second"}]));
        assert!(plugins.cni().del(&pod, &plugins.file()).await.is_err());
        assert_eq!(plugins.calls().len(), 2);
    }

    #[tokio::test]
    async fn a_missing_plugin_is_told_last() {
        let plugins = Plugins::new(&[("broken", "exit 1")]);
        let pod = |first: &str, second: &str| attachment(json!([{"type": first}, {"type": second}]));
        let cni = plugins.cni();
        let both = cni.del(&pod("absent", "broken"), &plugins.file()).await.unwrap_err();
        assert!(!both.is_missing_plugin(), "{both}");
        let both = cni.del(&pod("broken", "absent"), &plugins.file()).await.unwrap_err();
        assert!(!both.is_missing_plugin(), "{both}");
        let gone = cni.del(&pod("absent", "absent-too"), &plugins.file()).await.unwrap_err();
        assert!(gone.is_missing_plugin(), "{gone}");
    }

    #[tokio::test]
    async fn a_call_waits_for_the_plugin_that_a_dead_runtime_has_left() {
        let plugins = Plugins::new(&[("first", "true")]);
        let left = input(&plugins.file(), &json!({})).await.unwrap();
        let mut left = std::process::Command::new("cat").stdin(Stdio::piped()).stdout(left).spawn().unwrap();
        let pod = attachment(json!([{"type": "first"}]));
        let (cni, file) = (plugins.cni(), plugins.file());
        let mut del = std::pin::pin!(cni.del(&pod, &file));
        let early = tokio::time::timeout(LOOK_AGAIN * 5, &mut del).await;
        assert!(early.is_err() && plugins.calls().is_empty());
        left.kill().unwrap();
        left.wait().unwrap();
        del.await.unwrap();
        assert_eq!(plugins.calls().len(), 1);
    }

    #[tokio::test]
    async fn garbage_collection_names_what_is_valid_in_the_network() {
        let plugins = Plugins::new(&[("first", "exit 1"), ("second", "true")]);
        let cni = plugins.cni();
        std::fs::create_dir(&cni.conf_dir).unwrap();
        let write = |version: &str| {
            let conf = json!({"cniVersion": version, "name": "net", "plugins": [{"type": "first"}, {"type": "second"}]});
            std::fs::write(cni.conf_dir.join("a.conflist"), conf.to_string()).unwrap();
        };
        let valid = || {
            let mut foreign = attachment(json!([{"type": "x"}]));
            foreign.config.name = "other".into();
            vec![attachment(json!([{"type": "x"}])), foreign]
        };
        write("1.0.0");
        cni.gc(valid, &plugins.file()).await.unwrap();
        assert_eq!(plugins.calls().len(), 0, "1.0.0 has no such verb");
        write("1.1.0");
        assert!(cni.gc(valid, &plugins.file()).await.is_err());
        let calls = plugins.calls();
        assert_eq!(calls.len(), 2, "every plugin is called, also after an error");
        assert!(calls[0].starts_with("GC first"), "{calls:?}");
        let request: Value = serde_json::from_str(&calls[1][calls[1].find('{').unwrap()..]).unwrap();
        assert_eq!(request["cni.dev/valid-attachments"], json!([{"containerID": "c1", "ifname": "eth0"}]));
    }
}
