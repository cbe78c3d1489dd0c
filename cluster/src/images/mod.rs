//! Built-in images. There is no registry: an image is a name for programs that are on the node already.

pub mod coredns;
pub mod pause;
pub mod web;
pub mod whoami;

use std::path::Path;

/// What a container of an image runs unless the pod says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The name without registry, tag and digest.
    pub name: &'static str,
    /// Program and arguments that stay when the pod gives `args`.
    pub entrypoint: Vec<String>,
    /// Arguments that the pod's `args` replace.
    pub command: Vec<String>,
    /// Path of the program inside the image that the entrypoint stands for, where the original has a well-known one.
    pub path: Option<&'static str>,
}

/// Name and tag-free form of an image reference: `docker.io/traefik/whoami:v1@sha256:..` is `traefik/whoami`.
pub fn repository(reference: &str) -> &str {
    let name = reference.split('@').next().unwrap_or(reference);
    // A colon after the last slash starts the tag; one before it belongs to a registry's port.
    let start = name.rfind('/').map_or(0, |slash| slash + 1);
    let name = name[start..].find(':').map_or(name, |colon| &name[..start + colon]);
    ["docker.io/library/", "docker.io/", "index.docker.io/", "registry.k8s.io/", "ghcr.io/"]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))
        .unwrap_or(name)
}

/// The built-in image of this reference, its programs in `bin_dir`.
///
/// # Errors
/// The message for the pod: which image, why there is none, what to do.
pub fn find(reference: &str, bin_dir: &Path) -> Result<Image, String> {
    let own = |name: &str, args: &[&str]| -> Vec<String> {
        let program = bin_dir.join(name).display().to_string();
        std::iter::once(program).chain(args.iter().map(|arg| (*arg).to_owned())).collect()
    };
    let image = |name, entrypoint, command: &[&str], path| Image {
        name,
        entrypoint,
        command: command.iter().map(|arg| (*arg).to_owned()).collect(),
        path,
    };
    match repository(reference) {
        "traefik/whoami" | "containous/whoami" => {
            Ok(image("traefik/whoami", own("podwire-kube", &["whoami"]), &[], Some("/whoami")))
        }
        "nicolaka/netshoot" => Ok(image("nicolaka/netshoot", Vec::new(), &["sleep", "infinity"], None)),
        "podwire/agent" => Ok(image("podwire/agent", own("podwire-agent", &[]), &[], Some("podwire-agent"))),
        "podwire/operator" => {
            Ok(image("podwire/operator", own("podwire-operator", &[]), &[], Some("podwire-operator")))
        }
        "coredns/coredns" => {
            Ok(image("coredns/coredns", own("podwire-kube", &["coredns"]), &[], Some("/coredns")))
        }
        "podwire/web" => Ok(image("podwire/web", own("podwire-kube", &["web"]), &[], None)),
        "pause" => Ok(image("pause", own("podwire-kube", &["pause"]), &[], Some("/pause"))),
        _ => Err(format!(
            "image \"{reference}\" is not built in, and this cluster pulls from no registry: use {}, or run the \
             workload on a real cluster",
            BUILT_IN.join(", ")
        )),
    }
}

/// The images that exist.
pub const BUILT_IN: [&str; 7] = [
    "traefik/whoami",
    "nicolaka/netshoot",
    "coredns/coredns",
    "podwire/agent",
    "podwire/operator",
    "podwire/web",
    "pause",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_lose_registry_tag_and_digest() {
        for (reference, name) in [
            ("traefik/whoami", "traefik/whoami"),
            ("docker.io/traefik/whoami:v1.11", "traefik/whoami"),
            ("nicolaka/netshoot:latest@sha256:00", "nicolaka/netshoot"),
            ("registry.k8s.io/pause:3.10", "pause"),
            ("localhost:5000/app", "localhost:5000/app"),
            ("localhost:5000/app:v1", "localhost:5000/app"),
        ] {
            assert_eq!(repository(reference), name, "{reference}");
        }
    }

    #[test]
    fn every_built_in_is_found_and_others_are_explained() {
        for name in BUILT_IN {
            assert_eq!(find(name, Path::new("/bin")).unwrap().name, name);
        }
        let message = find("nginx:1.29", Path::new("/bin")).unwrap_err();
        assert!(message.contains("nginx:1.29") && message.contains("traefik/whoami"), "{message}");
    }
}
