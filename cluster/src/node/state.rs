//! What the node runtime must know of a pod after a restart: its sandbox and its attachment to the network. One file a
//! pod; the containers' own files say the rest.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cni::Attachment;
use super::container::spec::write_atomically;
use super::sandbox::Namespaces;

/// A pod's durable state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PodState {
    /// Namespace and name, for messages about pods that the API server no longer knows.
    pub pod: String,
    /// The namespaces, from before they are made until after they are gone. `None` with hostNetwork.
    pub namespaces: Option<Namespaces>,
    /// The network attachment, from before ADD until after DEL.
    pub attachment: Option<Attachment>,
}

fn file(pods: &Path, uid: &str) -> PathBuf {
    pods.join(uid).join("state.json")
}

/// Uids of the pods that have state.
pub fn stored(pods: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(pods) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// The pod has left something on the node.
pub fn exists(pods: &Path, uid: &str) -> bool {
    pods.join(uid).exists()
}

/// The attachments of all pods to their networks.
pub fn attachments(pods: &Path) -> Vec<Attachment> {
    stored(pods).iter().filter_map(|uid| PodState::load(pods, uid).attachment).collect()
}

impl PodState {
    /// Reads a pod's state; empty if there is none that can be read.
    pub fn load(pods: &Path, uid: &str) -> Self {
        std::fs::read(file(pods, uid))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    /// Writes it.
    pub fn store(&self, pods: &Path, uid: &str) -> io::Result<()> {
        let path = file(pods, uid);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        write_atomically(&path, &serde_json::to_vec(self)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_survives() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(PodState::load(dir.path(), "u"), PodState::default());
        let state = PodState {
            pod: "ns/p".into(),
            namespaces: Some(Namespaces::named(dir.path())),
            attachment: None,
        };
        state.store(dir.path(), "u").unwrap();
        assert_eq!(PodState::load(dir.path(), "u"), state);
        assert_eq!(stored(dir.path()), ["u"]);
        assert!(exists(dir.path(), "u") && !exists(dir.path(), "v"));
    }
}
