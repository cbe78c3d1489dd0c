//! Volumes: directories on the node that a pod's containers mount.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, HostPathVolumeSource, KeyToPath, Pod, Secret, ServiceAccount, Volume,
    VolumeProjection,
};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt as _};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::bundle::{CREDENTIALS, CREDENTIALS_VOLUME};
use super::container::spec::write_atomically;
use super::env::{Addresses, field};
use crate::controllers::meta::or_gone;
use crate::controllers::namespaces::ROOT_CA;

/// Life of a service account token unless the pod asks otherwise, seconds.
const TOKEN_LIFE: i64 = 3607;

/// Why a volume cannot be prepared: the message for the pod.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Something the volume names is not there, or is not supported.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {cause}")]
    Volume {
        /// Its name.
        volume: String,
        /// Why.
        cause: String,
    },
}

/// Volumes that are ready.
#[derive(Debug, Default)]
pub struct Prepared {
    /// The node's path of each volume.
    pub paths: BTreeMap<String, PathBuf>,
    /// When to prepare again, because a token in one of them ends.
    pub refresh: Option<Timestamp>,
}

/// A file of a volume: path within, content, mode.
type File = (String, Vec<u8>, Option<i32>);

struct Maker<'a> {
    client: &'a Client,
    pod: &'a Pod,
    addresses: &'a Addresses,
    namespace: String,
    refresh: Option<Timestamp>,
}

/// Prepares every volume of the pod below `dir`. May be called again, to refresh what is in them.
pub async fn prepare(
    client: &Client,
    pod: &Pod,
    addresses: &Addresses,
    dir: &Path,
) -> Result<Prepared, VolumeError> {
    let spec = pod.spec.clone().unwrap_or_default();
    let namespace = pod.namespace().unwrap_or_default();
    let mut maker = Maker { client, pod, addresses, namespace, refresh: None };
    let mut paths = BTreeMap::new();
    for volume in spec.volumes.iter().flatten() {
        let path = maker
            .volume(volume, dir)
            .await
            .map_err(|cause| VolumeError::Volume { volume: volume.name.clone(), cause })?;
        paths.insert(volume.name.clone(), path);
    }
    let own = spec.containers.iter().chain(spec.init_containers.iter().flatten()).all(|container| {
        let mounts = container.volume_mounts.as_deref().unwrap_or_default();
        mounts.iter().any(|mount| mount.mount_path.trim_end_matches('/') == CREDENTIALS)
    });
    if !own && spec.automount_service_account_token != Some(false) {
        let path = dir.join("volumes").join(CREDENTIALS_VOLUME);
        let result = async {
            let files = maker.credentials().await?;
            fill(&path, &files, None).map_err(|error| error.to_string())
        };
        let made: Result<(), String> = result.await;
        made.map_err(|cause| VolumeError::Volume { volume: CREDENTIALS_VOLUME.to_owned(), cause })?;
        paths.insert(CREDENTIALS_VOLUME.to_owned(), path);
    }
    Ok(Prepared { paths, refresh: maker.refresh })
}

/// Lets go of what volumes hold besides files.
pub fn release(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir.join("volumes")) else { return };
    for entry in entries.flatten() {
        // Only a memory-backed emptyDir is a mount; others answer EINVAL.
        let _ = umount2(&entry.path(), MntFlags::MNT_DETACH);
    }
}

impl Maker<'_> {
    async fn volume(&mut self, volume: &Volume, dir: &Path) -> Result<PathBuf, String> {
        let path = dir.join("volumes").join(&volume.name);
        let text = |error: io::Error| error.to_string();
        if let Some(host) = &volume.host_path {
            return host_path(host);
        }
        if let Some(empty) = &volume.empty_dir {
            empty_dir(&path, empty.medium.as_deref() == Some("Memory")).map_err(text)?;
            return Ok(path);
        }
        let (files, mode) = if let Some(source) = &volume.config_map {
            let optional = source.optional == Some(true);
            (self.config_map(&source.name, source.items.as_deref(), optional).await?, source.default_mode)
        } else if let Some(source) = &volume.secret {
            let name = source.secret_name.clone().unwrap_or_default();
            let optional = source.optional == Some(true);
            (self.secret(&name, source.items.as_deref(), optional).await?, source.default_mode)
        } else if let Some(source) = &volume.downward_api {
            (self.downward(source.items.as_deref().unwrap_or_default())?, source.default_mode)
        } else if let Some(source) = &volume.projected {
            let mut files = Vec::new();
            for one in source.sources.iter().flatten() {
                files.extend(self.projection(one).await?);
            }
            (files, source.default_mode)
        } else {
            return Err(
                "its type is not supported here: use hostPath, emptyDir, configMap, secret, projected or \
                        downwardAPI"
                    .to_owned(),
            );
        };
        fill(&path, &files, mode).map_err(text)?;
        Ok(path)
    }

    async fn config_map(
        &self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: bool,
    ) -> Result<Vec<File>, String> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let Some(map) = or_gone(api.get(name).await).map_err(|error| error.to_string())? else {
            return if optional { Ok(Vec::new()) } else { Err(format!("configmap \"{name}\" not found")) };
        };
        let mut data: BTreeMap<String, Vec<u8>> =
            map.data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes())).collect();
        data.extend(map.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0)));
        pick(data, items, optional)
    }

    async fn secret(
        &self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: bool,
    ) -> Result<Vec<File>, String> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let Some(secret) = or_gone(api.get(name).await).map_err(|error| error.to_string())? else {
            return if optional { Ok(Vec::new()) } else { Err(format!("secret \"{name}\" not found")) };
        };
        pick(secret.data.into_iter().flatten().map(|(k, v)| (k, v.0)).collect(), items, optional)
    }

    fn downward(&self, items: &[DownwardAPIVolumeFile]) -> Result<Vec<File>, String> {
        items
            .iter()
            .map(|item| {
                let path = item
                    .field_ref
                    .as_ref()
                    .map(|reference| reference.field_path.as_str())
                    .unwrap_or_default();
                let value = field(self.pod, self.addresses, path)
                    .ok_or_else(|| format!("field \"{path}\" is not supported"))?;
                Ok((item.path.clone(), value.into_bytes(), item.mode))
            })
            .collect()
    }

    async fn projection(&mut self, source: &VolumeProjection) -> Result<Vec<File>, String> {
        let mut files = Vec::new();
        if let Some(one) = &source.config_map {
            files.extend(self.config_map(&one.name, one.items.as_deref(), one.optional == Some(true)).await?);
        }
        if let Some(one) = &source.secret {
            files.extend(self.secret(&one.name, one.items.as_deref(), one.optional == Some(true)).await?);
        }
        if let Some(one) = &source.downward_api {
            files.extend(self.downward(one.items.as_deref().unwrap_or_default())?);
        }
        if let Some(one) = &source.service_account_token {
            let token = self.token(one.audience.clone(), one.expiration_seconds).await?;
            files.push((one.path.clone(), token.into_bytes(), None));
        }
        Ok(files)
    }

    async fn credentials(&mut self) -> Result<Vec<File>, String> {
        let mut files = self.config_map(ROOT_CA, None, false).await?;
        let token = self.token(None, None).await?;
        files.push(("token".to_owned(), token.into_bytes(), None));
        files.push(("namespace".to_owned(), self.namespace.clone().into_bytes(), None));
        Ok(files)
    }

    async fn token(&mut self, audience: Option<String>, life: Option<i64>) -> Result<String, String> {
        let spec = self.pod.spec.as_ref();
        let account = spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default();
        let account = if account.is_empty() { "default".to_owned() } else { account };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: audience.into_iter().collect(),
                expiration_seconds: Some(life.unwrap_or(TOKEN_LIFE)),
                bound_object_ref: Some(k8s_openapi::api::authentication::v1::BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: self.pod.metadata.name.clone(),
                    uid: self.pod.metadata.uid.clone(),
                }),
            },
            ..TokenRequest::default()
        };
        let answer = api
            .create_token_request(&account, &PostParams::default(), &request)
            .await
            .map_err(|error| format!("no token for service account {}/{account}: {error}", self.namespace))?;
        let status = answer.status.ok_or("the API server's token request has no answer")?;
        // Fresh before the old one ends: after four fifths of its life.
        let now = Timestamp::now().as_second();
        let left = status.expiration_timestamp.0.as_second() - now;
        let due = Timestamp::from_second(now + (left * 4 / 5).max(1)).map_err(|error| error.to_string())?;
        self.refresh = Some(self.refresh.map_or(due, |known| known.min(due)));
        Ok(status.token)
    }
}

fn pick(
    mut data: BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    optional: bool,
) -> Result<Vec<File>, String> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return Ok(data.into_iter().map(|(name, content)| (name, content, None)).collect());
    };
    let mut files = Vec::new();
    for item in items {
        match data.remove(&item.key) {
            Some(content) => files.push((item.path.clone(), content, item.mode)),
            None if optional => {}
            None => return Err(format!("it references a non-existent key \"{}\"", item.key)),
        }
    }
    Ok(files)
}

/// Writes the files of a volume, each whole or not at all.
fn fill(path: &Path, files: &[File], default_mode: Option<i32>) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    for (name, content, mode) in files {
        if Path::new(name).components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("path \"{name}\" leaves its volume"),
            ));
        }
        let file = path.join(name);
        if let Some(parent) = file.parent() {
            std::fs::create_dir_all(parent)?;
        }
        if std::fs::read(&file).is_ok_and(|known| known == *content) {
            continue;
        }
        write_atomically(&file, content)?;
        let mode = mode.or(default_mode).and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0o644);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// An empty directory for everybody; one that is there already is left as it is. Whenever this is cut short, the next call
/// goes on where it stopped.
fn empty_dir(path: &Path, in_memory: bool) -> io::Result<()> {
    if !path.exists() {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        // No volume has a dot in its name.
        name.push(".new");
        let beside = path.with_file_name(name);
        std::fs::create_dir_all(&beside)?;
        std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o1777))?;
        std::fs::rename(&beside, path)?;
    }
    if in_memory && nix::sys::statfs::statfs(path)?.filesystem_type() != nix::sys::statfs::TMPFS_MAGIC {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some("mode=1777"))?;
    }
    Ok(())
}

fn host_path(source: &HostPathVolumeSource) -> Result<PathBuf, String> {
    use std::os::unix::fs::FileTypeExt as _;
    let path = PathBuf::from(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    let fail = |error: io::Error| format!("{}: {error}", path.display());
    match kind {
        "DirectoryOrCreate" => std::fs::create_dir_all(&path).map_err(fail)?,
        "FileOrCreate" if !path.exists() => drop(std::fs::File::create(&path).map_err(fail)?),
        // Container runtimes make a missing directory of a hostPath without type, too.
        "" if !path.exists() => std::fs::create_dir_all(&path).map_err(fail)?,
        _ => {}
    }
    let found = std::fs::metadata(&path)
        .map_err(|error| format!("hostPath {}: {error}", path.display()))?
        .file_type();
    let right = match kind {
        "Directory" | "DirectoryOrCreate" => found.is_dir(),
        "File" | "FileOrCreate" => found.is_file(),
        "Socket" => found.is_socket(),
        "CharDevice" => found.is_char_device(),
        "BlockDevice" => found.is_block_device(),
        "" => true,
        other => return Err(format!("hostPath type \"{other}\" does not exist")),
    };
    if right {
        Ok(path)
    } else {
        Err(format!("hostPath type check failed: {} is not a {kind}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_paths_are_checked_and_made() {
        let dir = tempfile::tempdir().unwrap();
        let of = |name: &str, kind: &str| {
            host_path(&HostPathVolumeSource {
                path: dir.path().join(name).display().to_string(),
                type_: Some(kind.to_owned()),
            })
        };
        assert!(of("a", "Directory").is_err());
        assert!(of("a/b", "DirectoryOrCreate").unwrap().is_dir());
        assert!(of("f", "FileOrCreate").unwrap().is_file());
        assert!(of("f", "Directory").unwrap_err().contains("type check failed"));
        assert!(of("f", "Socket").is_err());
        assert!(of("f", "Invented").is_err());
    }

    #[test]
    fn an_empty_directory_that_was_left_half_made_is_completed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scratch");
        // As a runtime leaves it that is killed before it has set the mode.
        std::fs::create_dir(dir.path().join("scratch.new")).unwrap();
        empty_dir(&path, false).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o1777);
        std::fs::write(path.join("kept"), "x").unwrap();
        empty_dir(&path, false).unwrap();
        assert!(path.join("kept").exists());
    }

    #[test]
    fn files_stay_in_their_volume_and_have_their_mode() {
        let dir = tempfile::tempdir().unwrap();
        let files = [("sub/a".to_owned(), b"x".to_vec(), Some(0o400))];
        fill(dir.path(), &files, None).unwrap();
        let mode = std::fs::metadata(dir.path().join("sub/a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o400);
        assert!(fill(dir.path(), &[("../a".to_owned(), Vec::new(), None)], None).is_err());
    }

    #[test]
    fn items_choose_and_rename() {
        let data = BTreeMap::from([("k".to_owned(), b"v".to_vec()), ("other".to_owned(), Vec::new())]);
        let item = |key: &str| KeyToPath { key: key.into(), path: "p".into(), mode: None };
        assert_eq!(
            pick(data.clone(), Some(&[item("k")]), false).unwrap(),
            [("p".to_owned(), b"v".to_vec(), None)]
        );
        assert!(pick(data.clone(), Some(&[item("absent")]), false).unwrap_err().contains("absent"));
        assert_eq!(pick(data, None, false).unwrap().len(), 2);
    }
}
