//! Puts the CNI plugin and its configuration where the container runtime looks for them.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use podwire_api::names::{CNI_CONF_FILE, CNI_PLUGIN};
use serde_json::{Value, json};

/// A file could not be put in place.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {what} failed: {source}; {mend}")]
pub struct InstallError {
    path: String,
    what: &'static str,
    source: io::Error,
    mend: &'static str,
}

const MOUNT: &str = "the agent needs /opt/cni/bin and /etc/cni/net.d of the node, writable";

fn fail(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.display().to_string();
    move |source| InstallError { path, what, source, mend: MOUNT }
}

/// The network configuration list.
pub fn conflist() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "podwire",
        "plugins": [{ "type": CNI_PLUGIN }],
    })
}

/// Copies the plugin from beside the agent's own executable into `bin_dir`. It is put in place by rename: a runtime that
/// executes it meanwhile gets the old one or the new one. Nothing is done if it is the same already.
pub fn install_plugin(bin_dir: &Path) -> Result<PathBuf, InstallError> {
    let own = std::env::current_exe()
        .map_err(fail(Path::new("/proc/self/exe"), "finding the agent's own executable"))?;
    let source = own.with_file_name(CNI_PLUGIN);
    let target = bin_dir.join(CNI_PLUGIN);
    let program = fs::read(&source).map_err(|e| InstallError {
        path: source.display().to_string(),
        what: "reading the plugin",
        source: e,
        mend: "podwire-cni must lie beside podwire-agent; build both: make setup",
    })?;
    if fs::read(&target).is_ok_and(|there| there == program) {
        return Ok(target);
    }
    fs::create_dir_all(bin_dir).map_err(fail(bin_dir, "creating the directory"))?;
    let new = bin_dir.join(format!(".{CNI_PLUGIN}.new"));
    fs::write(&new, &program).map_err(fail(&new, "writing"))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))
        .map_err(fail(&new, "making it executable"))?;
    fs::rename(&new, &target).map_err(fail(&target, "renaming into place"))?;
    Ok(target)
}

/// Writes the configuration, in place: some runtimes do not notice a file that appears by rename. It is short enough for
/// one write. Nothing is done if it is the same already.
pub fn write_conflist(conf_dir: &Path) -> Result<PathBuf, InstallError> {
    let target = conf_dir.join(CNI_CONF_FILE);
    let text = format!("{:#}\n", conflist());
    if fs::read_to_string(&target).is_ok_and(|there| there == text) {
        return Ok(target);
    }
    fs::create_dir_all(conf_dir).map_err(fail(conf_dir, "creating the directory"))?;
    let mut file = fs::File::create(&target).map_err(fail(&target, "creating"))?;
    file.write_all(text.as_bytes()).map_err(fail(&target, "writing"))?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_one_that_the_plugin_takes() {
        let dir = tempfile::tempdir().unwrap();
        let path = write_conflist(&dir.path().join("net.d")).unwrap();
        assert_eq!(path.file_name().unwrap(), "05-podwire.conflist");
        let list: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        // What a runtime makes of it for one plugin: the list's name and version laid over the plugin's object.
        let mut conf = list["plugins"][0].as_object().unwrap().clone();
        conf.insert("name".into(), list["name"].clone());
        conf.insert("cniVersion".into(), list["cniVersion"].clone());
        crate::cni::config::NetConf::check(&conf, crate::cni::environment::Verb::Add).unwrap();
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        write_conflist(&dir.path().join("net.d")).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before, "written once");
    }

    #[test]
    fn a_missing_plugin_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = install_plugin(dir.path()).unwrap_err().to_string();
        assert!(error.contains("podwire-cni") && error.contains("make setup"), "{error}");
    }
}
