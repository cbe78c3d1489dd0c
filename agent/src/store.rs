//! Endpoints on disk: one JSON file each, named after its device, under the agent's state directory.
//!
//! A file is written before anything of the endpoint is made and removed after everything of it is gone, so no address
//! is ever given twice, whenever the agent is killed. Files are put in place by rename: a reader sees a whole file or none.
//! They are not synced to the disk: a record is worth something only while its device lives, and devices do not outlive
//! the kernel, so what a power cut loses is lost anyway ([`Store::load`] copes with what it leaves behind).

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::endpoint::Endpoint;

/// A file could not be read, written or removed.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {what} failed: {source}; is the disk full or read-only?")]
pub struct StoreError {
    path: String,
    what: &'static str,
    source: io::Error,
}

fn fail(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.display().to_string();
    move |source| StoreError { path, what, source }
}

/// The state directory.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    endpoints: PathBuf,
}

/// What [`Store::load`] found.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Every endpoint on record.
    pub endpoints: Vec<Endpoint>,
    /// Devices whose record cannot be read, and why.
    pub unreadable: Vec<(String, String)>,
}

impl Store {
    /// Opens the state directory, making it if need be.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let endpoints = dir.join("endpoints");
        fs::create_dir_all(&endpoints).map_err(fail(&endpoints, "creating the directory"))?;
        Ok(Self { dir: dir.to_owned(), endpoints })
    }

    fn path(&self, device: &str) -> PathBuf {
        self.endpoints.join(format!("{device}.json"))
    }

    /// Records an endpoint.
    pub fn save(&self, endpoint: &Endpoint) -> Result<(), StoreError> {
        write_json(&self.path(&endpoint.key().device()), endpoint)
    }

    /// Forgets the endpoint of a device; it may be forgotten already.
    pub fn remove(&self, device: &str) -> Result<(), StoreError> {
        let path = self.path(device);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(fail(&path, "removing the record")(e)),
            _ => Ok(()),
        }
    }

    /// Reads every record, in the order of their devices' names. Half-written files are removed.
    pub fn load(&self) -> Result<Loaded, StoreError> {
        let mut loaded = Loaded::default();
        let entries =
            fs::read_dir(&self.endpoints).map_err(fail(&self.endpoints, "listing the directory"))?;
        for entry in entries {
            let path = entry.map_err(fail(&self.endpoints, "listing the directory"))?.path();
            let Some(device) = path.file_stem().and_then(|s| s.to_str()) else { continue };
            if path.extension().is_none_or(|e| e != "json") {
                // What a killed agent had not renamed yet. Somebody else may have removed it.
                let _ = fs::remove_file(&path);
                continue;
            }
            let text = fs::read(&path).map_err(fail(&path, "reading the record"))?;
            match serde_json::from_slice(&text) {
                Ok(endpoint) => loaded.endpoints.push(endpoint),
                Err(cause) => loaded.unreadable.push((device.to_owned(), cause.to_string())),
            }
        }
        loaded.endpoints.sort_by_key(|e| e.key().device());
        loaded.unreadable.sort();
        Ok(loaded)
    }

    /// Writes another of the agent's files in the state directory.
    pub fn save_file(&self, name: &str, value: &impl Serialize) -> Result<(), StoreError> {
        write_json(&self.dir.join(name), value)
    }

    /// Reads another of the agent's files; what is absent or unreadable is the default (with a warning).
    pub fn load_file<T: DeserializeOwned + Default>(&self, name: &str) -> Result<T, StoreError> {
        let path = self.dir.join(name);
        match fs::read(&path) {
            Ok(text) => Ok(serde_json::from_slice(&text).unwrap_or_else(|cause| {
                tracing::warn!("{}: unreadable ({cause}); starting without it", path.display());
                T::default()
            })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(T::default()),
            Err(e) => Err(fail(&path, "reading")(e)),
        }
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
    // The temporary name is unique for each file, and one endpoint has one writer at a time.
    let temporary = path.with_extension("new");
    let text = serde_json::to_vec(value).map_err(|e| fail(path, "encoding")(e.into()))?;
    let mut file = fs::File::create(&temporary).map_err(fail(&temporary, "creating the file"))?;
    file.write_all(&text).map_err(fail(&temporary, "writing"))?;
    drop(file);
    fs::rename(&temporary, path).map_err(fail(path, "renaming into place"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn endpoint(container: &str, last: u8) -> Endpoint {
        Endpoint {
            id: u16::from(last),
            ip: Ipv4Addr::new(10, 244, 0, last),
            gateway: Ipv4Addr::new(10, 244, 0, 1),
            mtu: 1500,
            network: "podwire".into(),
            container_id: container.into(),
            ifname: "eth0".into(),
            netns: "/run/netns/x".into(),
            namespace: "default".into(),
            pod: "a".into(),
        }
    }

    #[test]
    fn records_survive_and_leave() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (a, b) = (endpoint("a", 2), endpoint("b", 3));
        store.save(&a).unwrap();
        store.save(&b).unwrap();
        let loaded = Store::open(dir.path()).unwrap().load().unwrap();
        assert_eq!(loaded.endpoints.len(), 2);
        assert!(loaded.endpoints.contains(&a) && loaded.endpoints.contains(&b));
        store.remove(&a.key().device()).unwrap();
        store.remove(&a.key().device()).unwrap();
        assert_eq!(store.load().unwrap().endpoints, vec![b]);
    }

    #[test]
    fn torn_and_temporary_files_do_not_stop_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.save(&endpoint("a", 2)).unwrap();
        fs::write(dir.path().join("endpoints/lxcdeadbeef0000.json"), b"").unwrap();
        fs::write(dir.path().join("endpoints/lxcdeadbeef0001.new"), b"{").unwrap();
        let loaded = store.load().unwrap();
        assert_eq!(loaded.endpoints.len(), 1);
        assert_eq!(loaded.unreadable[0].0, "lxcdeadbeef0000");
        assert!(!dir.path().join("endpoints/lxcdeadbeef0001.new").exists());
        fs::write(dir.path().join("routes.json"), b"nonsense").unwrap();
        assert_eq!(store.load_file::<Vec<String>>("routes.json").unwrap(), Vec::<String>::new());
    }
}
