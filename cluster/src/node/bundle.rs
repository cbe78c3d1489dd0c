//! From a pod and a container to what the shim is told: namespaces, mounts, identity. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt as _;

use super::container::spec::{ContainerSpec, Identity, Mount, Propagation};
use super::sandbox::Namespaces;

/// Where a pod finds its credentials for the API server.
pub const CREDENTIALS: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Name, among the prepared volumes, of the credentials that a pod has without asking.
pub const CREDENTIALS_VOLUME: &str = "kube-api-access";

/// Capabilities (name, number of linux/capability.h).
const CAPABILITIES: [(&str, u8); 41] = [
    ("CHOWN", 0),
    ("DAC_OVERRIDE", 1),
    ("DAC_READ_SEARCH", 2),
    ("FOWNER", 3),
    ("FSETID", 4),
    ("KILL", 5),
    ("SETGID", 6),
    ("SETUID", 7),
    ("SETPCAP", 8),
    ("LINUX_IMMUTABLE", 9),
    ("NET_BIND_SERVICE", 10),
    ("NET_BROADCAST", 11),
    ("NET_ADMIN", 12),
    ("NET_RAW", 13),
    ("IPC_LOCK", 14),
    ("IPC_OWNER", 15),
    ("SYS_MODULE", 16),
    ("SYS_RAWIO", 17),
    ("SYS_CHROOT", 18),
    ("SYS_PTRACE", 19),
    ("SYS_PACCT", 20),
    ("SYS_ADMIN", 21),
    ("SYS_BOOT", 22),
    ("SYS_NICE", 23),
    ("SYS_RESOURCE", 24),
    ("SYS_TIME", 25),
    ("SYS_TTY_CONFIG", 26),
    ("MKNOD", 27),
    ("LEASE", 28),
    ("AUDIT_WRITE", 29),
    ("AUDIT_CONTROL", 30),
    ("SETFCAP", 31),
    ("MAC_OVERRIDE", 32),
    ("MAC_ADMIN", 33),
    ("SYSLOG", 34),
    ("WAKE_ALARM", 35),
    ("BLOCK_SUSPEND", 36),
    ("AUDIT_READ", 37),
    ("PERFMON", 38),
    ("BPF", 39),
    ("CHECKPOINT_RESTORE", 40),
];

/// What container runtimes leave to containers that ask for nothing.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// What a pod's containers share on the node.
#[derive(Clone, Debug)]
pub struct PodContext<'a> {
    /// The pod's directory on the node.
    pub dir: &'a Path,
    /// Its namespaces; `None` with hostNetwork.
    pub namespaces: Option<&'a Namespaces>,
    /// Prepared volumes: the node's path of each.
    pub volumes: &'a BTreeMap<String, PathBuf>,
    /// Where the built-in images' programs are.
    pub bin_dir: &'a Path,
}

/// The pod's host name.
pub fn hostname(pod: &Pod) -> String {
    let name = pod.spec.as_ref().and_then(|spec| spec.hostname.clone()).unwrap_or_else(|| pod.name_any());
    // The kernel's limit is 64 bytes, a label's is 63.
    name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

/// The pod uses its node's network.
pub fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true)
}

fn identity(pod: &Pod, container: &Container) -> Identity {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let id = |value: Option<i64>| value.and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
    let mut groups: Vec<u32> =
        of_pod.supplemental_groups.iter().flatten().filter_map(|id| u32::try_from(*id).ok()).collect();
    groups.extend(of_pod.fs_group.and_then(|id| u32::try_from(id).ok()));
    let privileged = own.privileged == Some(true);
    Identity {
        uid: id(own.run_as_user.or(of_pod.run_as_user)),
        gid: id(own.run_as_group.or(of_pod.run_as_group)),
        groups,
        capabilities: (!privileged).then(|| capabilities(own.capabilities.as_ref())),
        no_new_privileges: own.allow_privilege_escalation == Some(false) && !privileged,
    }
}

fn capabilities(asked: Option<&k8s_openapi::api::core::v1::Capabilities>) -> Vec<u8> {
    let plain = |name: &String| name.to_uppercase().trim_start_matches("CAP_").to_owned();
    let list = |names: Option<&Vec<String>>| names.into_iter().flatten().map(plain).collect::<Vec<_>>();
    let (add, drop) = (list(asked.and_then(|a| a.add.as_ref())), list(asked.and_then(|a| a.drop.as_ref())));
    let named = |list: &[String], name: &str| list.iter().any(|one| one == name || one == "ALL");
    CAPABILITIES
        .iter()
        .filter(|(name, _)| {
            let base = DEFAULT.contains(name) && !named(&drop, name);
            // An explicit wish beats a general refusal, and a general wish an absent default.
            base || add.iter().any(|one| one == name)
                || (named(&add, name) && !drop.iter().any(|one| one == name))
        })
        .map(|(_, number)| *number)
        .collect()
}

/// Mounts of a container.
fn mounts(pod: &Pod, container: &Container, context: &PodContext<'_>) -> Result<Vec<Mount>, String> {
    let spec = pod.spec.clone().unwrap_or_default();
    let host_network = host_network(pod);
    let privileged = container.security_context.as_ref().and_then(|s| s.privileged) == Some(true);
    let mut mounts = Vec::new();
    if spec.host_pid != Some(true) {
        mounts.push(Mount::Proc { guarded: !privileged });
    }
    if !host_network {
        mounts.push(Mount::Sysfs { read_only: !privileged });
        mounts.push(Mount::Tmpfs { target: "/run".into(), options: "mode=0755".into() });
        // The programs of built-in images stay in sight.
        if !context.bin_dir.starts_with("/tmp") {
            mounts.push(Mount::Tmpfs { target: "/tmp".into(), options: "mode=1777".into() });
        }
    }
    if !privileged {
        mounts.push(Mount::Dev);
    }
    let bind = |source: PathBuf, target: &str, read_only: bool| Mount::Bind {
        source,
        target: target.into(),
        read_only,
        propagation: Propagation::None,
    };
    mounts.push(bind(context.dir.join("etc/resolv.conf"), "/etc/resolv.conf", false));
    if !host_network {
        mounts.push(bind(context.dir.join("etc/hosts"), "/etc/hosts", false));
        mounts.push(bind(context.dir.join("etc/hostname"), "/etc/hostname", false));
    }
    let asked = container.volume_mounts.as_deref().unwrap_or_default();
    let mut wanted: Vec<_> = asked.iter().collect();
    // Outer mounts first, or they would cover the inner ones.
    wanted.sort_by_key(|mount| Path::new(&mount.mount_path).components().count());
    for mount in wanted {
        let source = context.volumes.get(&mount.name).ok_or_else(|| {
            format!("volume \"{}\" of mount {} is not defined", mount.name, mount.mount_path)
        })?;
        if mount.sub_path_expr.as_deref().is_some_and(|text| !text.is_empty()) {
            return Err(format!("mount {}: subPathExpr is not supported, use subPath", mount.mount_path));
        }
        let source = match mount.sub_path.as_deref().filter(|sub| !sub.is_empty()) {
            Some(sub) if sub.split('/').any(|part| part == "..") || sub.starts_with('/') => {
                return Err(format!("mount {}: subPath \"{sub}\" leaves its volume", mount.mount_path));
            }
            Some(sub) => source.join(sub),
            None => source.clone(),
        };
        mounts.push(Mount::Bind {
            source,
            target: mount.mount_path.clone().into(),
            read_only: mount.read_only == Some(true),
            propagation: match mount.mount_propagation.as_deref() {
                Some("Bidirectional") if privileged => Propagation::Bidirectional,
                Some("Bidirectional") => {
                    return Err(format!(
                        "mount {}: Bidirectional propagation needs a privileged container",
                        mount.mount_path
                    ));
                }
                Some("HostToContainer") => Propagation::HostToContainer,
                _ => Propagation::None,
            },
        });
    }
    if let Some(source) = context.volumes.get(CREDENTIALS_VOLUME)
        && !asked.iter().any(|mount| mount.mount_path.trim_end_matches('/') == CREDENTIALS)
    {
        mounts.push(bind(source.clone(), CREDENTIALS, true));
    }
    Ok(mounts)
}

/// What the shim is told.
pub fn container_spec(
    pod: &Pod,
    container: &Container,
    context: &PodContext<'_>,
    id: String,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    log: PathBuf,
) -> Result<ContainerSpec, String> {
    let spec = pod.spec.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    Ok(ContainerSpec {
        id,
        netns: context.namespaces.map(|names| names.net.clone()),
        uts: context.namespaces.map(|names| names.uts.clone()),
        ipc: context.namespaces.map(|names| names.ipc.clone()).filter(|_| spec.host_ipc != Some(true)),
        host_pid: spec.host_pid == Some(true),
        argv,
        env,
        cwd: container
            .working_dir
            .clone()
            .filter(|dir| !dir.is_empty())
            .unwrap_or_else(|| "/".to_owned())
            .into(),
        mounts: mounts(pod, container, context)?,
        identity: identity(pod, container),
        read_only_root: own.read_only_root_filesystem == Some(true),
        log,
    })
}

/// The pod's /etc/hosts.
pub fn hosts_file(pod: &Pod, addresses: &[String]) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    );
    let spec = pod.spec.clone().unwrap_or_default();
    let name = hostname(pod);
    for address in addresses {
        match spec.subdomain.as_deref().filter(|sub| !sub.is_empty()) {
            Some(sub) => {
                let namespace = pod.namespace().unwrap_or_default();
                let _ = writeln!(text, "{address}\t{name}.{sub}.{namespace}.svc.cluster.local\t{name}");
            }
            None => {
                let _ = writeln!(text, "{address}\t{name}");
            }
        }
    }
    for alias in spec.host_aliases.iter().flatten() {
        let _ = writeln!(text, "{}\t{}", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t"));
    }
    text
}

/// The pod's /etc/resolv.conf; `node` is its node's.
pub fn resolv_conf(pod: &Pod, cluster_dns: &str, node: &str) -> String {
    let spec = pod.spec.clone().unwrap_or_default();
    let namespace = pod.namespace().unwrap_or_default();
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let policy = if policy == "ClusterFirst" && host_network(pod) { "Default" } else { policy };
    let own = spec.dns_config.clone().unwrap_or_default();
    let lines = |key: &str| -> Vec<String> {
        node.lines()
            .filter_map(|line| line.strip_prefix(key))
            .flat_map(|rest| rest.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    };
    let (mut servers, mut search, mut options): (Vec<String>, Vec<String>, Vec<String>) = match policy {
        "None" => Default::default(),
        "Default" => (lines("nameserver"), lines("search"), lines("options")),
        _ => {
            let mut search = vec![
                format!("{namespace}.svc.cluster.local"),
                "svc.cluster.local".to_owned(),
                "cluster.local".to_owned(),
            ];
            search.extend(lines("search"));
            (vec![cluster_dns.to_owned()], search, vec!["ndots:5".to_owned()])
        }
    };
    servers.extend(own.nameservers.into_iter().flatten());
    search.extend(own.searches.into_iter().flatten());
    for option in own.options.into_iter().flatten() {
        let name = option.name.unwrap_or_default();
        options.retain(|known| known.split(':').next() != Some(name.as_str()));
        options.push(option.value.map_or(name.clone(), |value| format!("{name}:{value}")));
    }
    let mut text = String::new();
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        let mut spec = spec;
        spec.as_object_mut().unwrap().entry("containers").or_insert(json!([{"name": "c"}]));
        serde_json::from_value(json!({"metadata": {"name": "web-1", "namespace": "shop"}, "spec": spec}))
            .unwrap()
    }

    fn number(name: &str) -> u8 {
        CAPABILITIES.iter().find(|(known, _)| *known == name).unwrap().1
    }

    fn built(pod: &Pod, volumes: &[&str]) -> Result<ContainerSpec, String> {
        let volumes =
            volumes.iter().map(|name| ((*name).to_owned(), PathBuf::from(format!("/vol/{name}")))).collect();
        let names = Namespaces { net: "/n".into(), uts: "/u".into(), ipc: "/i".into() };
        let context = PodContext {
            dir: Path::new("/pod"),
            namespaces: (!host_network(pod)).then_some(&names),
            volumes: &volumes,
            bin_dir: Path::new("/opt/bin"),
        };
        let container = &pod.spec.as_ref().unwrap().containers[0];
        container_spec(pod, container, &context, "id".into(), vec!["x".into()], vec![], "/log".into())
    }

    #[test]
    fn capabilities_default_add_and_drop() {
        let of = |context: Value| {
            identity(
                &pod(json!({"containers": [{"name": "c", "securityContext": context}]})),
                &serde_json::from_value(json!({"name": "c", "securityContext": context})).unwrap(),
            )
            .capabilities
        };
        let default = of(json!({})).unwrap();
        assert!(default.contains(&number("NET_RAW")) && !default.contains(&number("SYS_ADMIN")));
        assert_eq!(of(json!({"privileged": true})), None);
        let few = of(json!({"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}})).unwrap();
        assert_eq!(few, [number("NET_ADMIN")]);
        let most = of(json!({"capabilities": {"add": ["ALL"], "drop": ["CAP_SYS_ADMIN"]}})).unwrap();
        assert!(most.contains(&number("BPF")) && !most.contains(&number("SYS_ADMIN")));
    }

    #[test]
    fn host_network_pods_keep_the_nodes_view() {
        let host = built(&pod(json!({"hostNetwork": true})), &[]).unwrap();
        assert_eq!((host.netns, host.uts), (None, None));
        assert!(!host.mounts.iter().any(|m| matches!(m, Mount::Sysfs { .. } | Mount::Tmpfs { .. })));
        let own = built(&pod(json!({})), &[]).unwrap();
        assert_eq!(own.netns.as_deref(), Some(Path::new("/n")));
        assert!(own.mounts.contains(&Mount::Sysfs { read_only: true }));
    }

    #[test]
    fn volumes_are_mounted_outer_first_and_must_exist() {
        let mounts =
            json!([{"name": "a", "mountPath": "/x/y"}, {"name": "a", "mountPath": "/x", "readOnly": true}]);
        let pod = pod(json!({"containers": [{"name": "c", "volumeMounts": mounts}]}));
        let spec = built(&pod, &["a", CREDENTIALS_VOLUME]).unwrap();
        let targets: Vec<_> = spec
            .mounts
            .iter()
            .filter_map(|m| match m {
                Mount::Bind { source, target, .. } if source.starts_with("/vol") => {
                    Some(target.display().to_string())
                }
                _ => None,
            })
            .collect();
        assert_eq!(targets, ["/x", "/x/y", CREDENTIALS]);
        assert!(built(&pod, &[]).unwrap_err().contains("\"a\""));
    }

    #[test]
    fn sub_paths_stay_in_their_volume_and_sharing_needs_privilege() {
        let with = |mount: Value| {
            built(&pod(json!({"containers": [{"name": "c", "volumeMounts": [mount]}]})), &["a"])
        };
        assert!(with(json!({"name": "a", "mountPath": "/x", "subPath": "../y"})).is_err());
        assert!(with(json!({"name": "a", "mountPath": "/x", "mountPropagation": "Bidirectional"})).is_err());
        assert!(with(json!({"name": "a", "mountPath": "/x", "subPath": "y"})).is_ok());
    }

    #[test]
    fn resolv_conf_follows_the_policy() {
        let node = "nameserver 9.9.9.9\nsearch lan\noptions rotate\n";
        assert_eq!(
            resolv_conf(&pod(json!({})), "10.96.0.10", ""),
            "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
        let default = "search lan\nnameserver 9.9.9.9\noptions rotate\n";
        assert_eq!(resolv_conf(&pod(json!({"hostNetwork": true})), "10.96.0.10", node), default);
        assert_eq!(resolv_conf(&pod(json!({"dnsPolicy": "Default"})), "10.96.0.10", node), default);
        let own = json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "options": [{"name": "ndots", "value": "2"}]}});
        assert_eq!(resolv_conf(&pod(own), "10.96.0.10", node), "nameserver 1.1.1.1\noptions ndots:2\n");
        let host_first = json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"});
        assert!(resolv_conf(&pod(host_first), "10.96.0.10", node).contains("nameserver 10.96.0.10"));
    }

    #[test]
    fn hosts_names_the_pod() {
        let text = hosts_file(&pod(json!({"subdomain": "db"})), &["10.0.0.4".into()]);
        assert!(text.contains("10.0.0.4\tweb-1.db.shop.svc.cluster.local\tweb-1\n"), "{text}");
        assert!(text.contains("127.0.0.1\tlocalhost"));
    }
}
