//! A container's environment, command and arguments: variables from everywhere a pod may take them, and `$(NAME)`
//! expansion. Pure; what has to be fetched is in [`Sources`].

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, EnvVarSource, Pod, Secret, Service};
use kube::ResourceExt as _;

use crate::images::Image;

/// ConfigMaps and Secrets of the pod's namespace that it names, and the Services that it sees.
#[derive(Debug, Default)]
pub struct Sources {
    /// By name.
    pub config_maps: BTreeMap<String, ConfigMap>,
    /// By name.
    pub secrets: BTreeMap<String, Secret>,
    /// Variables for services.
    pub services: Vec<(String, String)>,
}

/// The value of a `fieldRef` path, such as `metadata.labels['app']`. `None` if the path is not supported.
pub fn field(pod: &Pod, addresses: &Addresses, path: &str) -> Option<String> {
    let spec = pod.spec.as_ref();
    let subscript = |prefix: &str| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']");
    if let Some(key) = subscript("metadata.labels") {
        return Some(pod.labels().get(key).cloned().unwrap_or_default());
    }
    if let Some(key) = subscript("metadata.annotations") {
        return Some(pod.annotations().get(key).cloned().unwrap_or_default());
    }
    let lines = |map: &BTreeMap<String, String>| {
        map.iter().map(|(k, v)| format!("{k}={v:?}")).collect::<Vec<_>>().join("\n")
    };
    Some(match path {
        "metadata.name" => pod.name_any(),
        "metadata.namespace" => pod.namespace().unwrap_or_default(),
        "metadata.uid" => pod.uid().unwrap_or_default(),
        "metadata.labels" => lines(pod.labels()),
        "metadata.annotations" => lines(pod.annotations()),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => {
            spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_else(|| "default".to_owned())
        }
        "status.podIP" => addresses.pod.first().cloned().unwrap_or_default(),
        "status.podIPs" => addresses.pod.join(","),
        "status.hostIP" | "status.hostIPs" => addresses.host.clone(),
        _ => return None,
    })
}

/// Addresses that a pod may ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The pod's.
    pub pod: Vec<String>,
    /// Its node's.
    pub host: String,
}

/// Replaces `$(NAME)` by the variable's value; unknown names stay, `$$` is a dollar sign.
pub fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(next) = after.strip_prefix('$') {
            out.push('$');
            rest = next;
        } else if let Some((name, next)) = after.strip_prefix('(').and_then(|tail| tail.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&rest[at..at + name.len() + 3]),
            }
            rest = next;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

fn source(
    name: &str,
    from: &EnvVarSource,
    pod: &Pod,
    addresses: &Addresses,
    sources: &Sources,
) -> Result<Option<String>, String> {
    let namespace = pod.namespace().unwrap_or_default();
    if let Some(reference) = &from.field_ref {
        let value = field(pod, addresses, &reference.field_path);
        return value
            .map(Some)
            .ok_or_else(|| format!("variable {name}: field {} is not supported", reference.field_path));
    }
    if let Some(reference) = &from.config_map_key_ref {
        let optional = reference.optional == Some(true);
        let value = sources
            .config_maps
            .get(&reference.name)
            .map(|map| map.data.as_ref().and_then(|data| data.get(&reference.key)).cloned());
        return match value {
            Some(Some(value)) => Ok(Some(value)),
            _ if optional => Ok(None),
            None => Err(format!("configmap \"{}\" not found", reference.name)),
            Some(None) => Err(format!(
                "couldn't find key {} in ConfigMap {namespace}/{}",
                reference.key, reference.name
            )),
        };
    }
    if let Some(reference) = &from.secret_key_ref {
        let optional = reference.optional == Some(true);
        let value = sources.secrets.get(&reference.name).map(|secret| {
            let data = secret.data.as_ref().and_then(|data| data.get(&reference.key));
            data.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned())
        });
        return match value {
            Some(Some(value)) => Ok(Some(value)),
            _ if optional => Ok(None),
            None => Err(format!("secret \"{}\" not found", reference.name)),
            Some(None) => {
                Err(format!("couldn't find key {} in Secret {namespace}/{}", reference.key, reference.name))
            }
        };
    }
    Err(format!(
        "variable {name}: its source is not supported; use a value, a field, a ConfigMap or a Secret"
    ))
}

/// The container's variables in order; later ones replace earlier ones of the same name.
pub fn environment(
    pod: &Pod,
    container: &Container,
    addresses: &Addresses,
    sources: &Sources,
) -> Result<Vec<(String, String)>, String> {
    let mut env: Vec<(String, String)> = vec![
        ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ("HOSTNAME".to_owned(), super::bundle::hostname(pod)),
    ];
    let mut set = |name: String, value: String| match env.iter_mut().find(|(known, _)| *known == name) {
        Some(entry) => entry.1 = value,
        None => env.push((name, value)),
    };
    for (name, value) in &sources.services {
        set(name.clone(), value.clone());
    }
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.clone().unwrap_or_default();
        if let Some(reference) = &from.config_map_ref {
            match sources.config_maps.get(&reference.name) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        set(format!("{prefix}{key}"), value.clone());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("configmap \"{}\" not found", reference.name)),
            }
        }
        if let Some(reference) = &from.secret_ref {
            match sources.secrets.get(&reference.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        set(format!("{prefix}{key}"), String::from_utf8_lossy(&value.0).into_owned());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("secret \"{}\" not found", reference.name)),
            }
        }
    }
    for EnvVar { name, value, value_from } in container.env.iter().flatten() {
        let value = if let Some(from) = value_from {
            source(name, from, pod, addresses, sources)?
        } else {
            let text = value.as_deref().unwrap_or_default();
            Some(expand(text, &|wanted| env.iter().find(|(n, _)| n == wanted).map(|(_, v)| v.clone())))
        };
        if let Some(value) = value {
            match env.iter_mut().find(|(known, _)| known == name) {
                Some(entry) => entry.1 = value,
                None => env.push((name.clone(), value)),
            }
        }
    }
    if !env.iter().any(|(name, _)| name == "HOME") {
        env.push(("HOME".to_owned(), "/root".to_owned()));
    }
    Ok(env)
}

/// Program and arguments: the image's, unless the pod says otherwise.
pub fn argv(container: &Container, image: &Image, env: &[(String, String)]) -> Result<Vec<String>, String> {
    let lookup = |wanted: &str| env.iter().rfind(|(name, _)| name == wanted).map(|(_, value)| value.clone());
    let expanded = |list: &[String]| list.iter().map(|text| expand(text, &lookup)).collect::<Vec<_>>();
    let command = container.command.as_deref().unwrap_or_default();
    let args = container.args.as_deref().unwrap_or_default();
    let mut line = if command.is_empty() { image.entrypoint.clone() } else { expanded(command) };
    if command.first().map(String::as_str).is_some_and(|program| image.path == Some(program)) {
        // The program by its well-known path in the original image.
        line.splice(..1, image.entrypoint.iter().cloned());
    }
    if !args.is_empty() {
        line.extend(expanded(args));
    } else if command.is_empty() {
        line.extend(image.command.iter().cloned());
    }
    if line.is_empty() {
        return Err(format!(
            "image \"{}\" has no program of its own: give the container a command",
            image.name
        ));
    }
    Ok(line)
}

/// Variables for the services that a pod sees (`NAME_SERVICE_HOST` and friends).
pub fn service_variables<'a>(services: impl Iterator<Item = &'a Service>) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else {
            continue;
        };
        let name = service.name_any().to_uppercase().replace('-', "_");
        let ports = spec.ports.as_deref().unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        all.push((format!("{name}_SERVICE_HOST"), ip.to_owned()));
        all.push((format!("{name}_SERVICE_PORT"), first.port.to_string()));
        for port in ports {
            if let Some(port_name) = &port.name {
                let port_name = port_name.to_uppercase().replace('-', "_");
                all.push((format!("{name}_SERVICE_PORT_{port_name}"), port.port.to_string()));
            }
        }
        for (index, port) in ports.iter().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{ip}:{}", protocol.to_lowercase(), port.port);
            if index == 0 {
                all.push((format!("{name}_PORT"), url.clone()));
            }
            let prefix = format!("{name}_PORT_{}_{protocol}", port.port);
            all.push((prefix.clone(), url));
            all.push((format!("{prefix}_PROTO"), protocol.to_lowercase()));
            all.push((format!("{prefix}_PORT"), port.port.to_string()));
            all.push((format!("{prefix}_ADDR"), ip.to_owned()));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": []},
        }))
        .unwrap()
    }

    fn container(value: serde_json::Value) -> Container {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn dollar_parentheses_expand_known_names_only() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, wanted) in
            [("$(A)b", "1b"), ("$(B)", "$(B)"), ("$$(A)", "$(A)"), ("$A $", "$A $"), ("$(A", "$(A")]
        {
            assert_eq!(expand(text, &lookup), wanted, "{text}");
        }
    }

    #[test]
    fn variables_come_from_fields_maps_and_values_in_order() {
        let mut sources = Sources::default();
        let map: ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": "cm"}, "data": {"k": "v"}})).unwrap();
        sources.config_maps.insert("cm".into(), map);
        sources.services.push(("KUBERNETES_SERVICE_HOST".into(), "10.96.0.1".into()));
        let container = container(
            json!({"name": "c", "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}], "env": [
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
            {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}},
            {"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "absent", "key": "k", "optional": true}}},
            {"name": "KUBERNETES_SERVICE_HOST", "value": "192.168.10.100"},
            {"name": "BOTH", "value": "$(NODE)-$(K)"}]}),
        );
        let addresses = Addresses { pod: vec!["10.0.0.1".into()], host: "192.168.10.100".into() };
        let env: BTreeMap<_, _> =
            environment(&pod(), &container, &addresses, &sources).unwrap().into_iter().collect();
        assert_eq!(env["NODE"], "n1");
        assert_eq!(env["IP"], "10.0.0.1");
        assert_eq!(env["APP"], "web");
        assert_eq!(env["P_k"], "v");
        assert_eq!(env["BOTH"], "n1-v");
        assert_eq!(env["KUBERNETES_SERVICE_HOST"], "192.168.10.100");
        assert_eq!(env["HOSTNAME"], "p");
        assert!(!env.contains_key("NONE"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let missing = |value: serde_json::Value| {
            let container = container(json!({"name": "c", "env": [{"name": "X", "valueFrom": value}]}));
            environment(&pod(), &container, &Addresses::default(), &Sources::default()).unwrap_err()
        };
        assert_eq!(
            missing(json!({"configMapKeyRef": {"name": "cm", "key": "k"}})),
            "configmap \"cm\" not found"
        );
        assert_eq!(missing(json!({"secretKeyRef": {"name": "s", "key": "k"}})), "secret \"s\" not found");
        assert!(missing(json!({"fieldRef": {"fieldPath": "spec.invented"}})).contains("spec.invented"));
    }

    #[test]
    fn commands_and_arguments_replace_the_images() {
        let image = Image {
            name: "i",
            entrypoint: vec!["/bin/kube".into(), "whoami".into()],
            command: vec!["--x".into()],
            path: Some("/whoami"),
        };
        let argv = |value: serde_json::Value| {
            argv(&container(value), &image, &[("P".into(), "8080".into())]).unwrap()
        };
        assert_eq!(argv(json!({"name": "c"})), ["/bin/kube", "whoami", "--x"]);
        assert_eq!(
            argv(json!({"name": "c", "args": ["--port", "$(P)"]})),
            ["/bin/kube", "whoami", "--port", "8080"]
        );
        assert_eq!(argv(json!({"name": "c", "command": ["tail", "-f"]})), ["tail", "-f"]);
        assert_eq!(
            argv(json!({"name": "c", "command": ["/whoami"], "args": ["-v"]})),
            ["/bin/kube", "whoami", "-v"]
        );
    }

    #[test]
    fn services_become_variables() {
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "my-web"},
            "spec": {"clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80}]}}))
        .unwrap();
        let env: BTreeMap<_, _> = service_variables(std::iter::once(&service)).into_iter().collect();
        assert_eq!(env["MY_WEB_SERVICE_HOST"], "10.96.0.9");
        assert_eq!(env["MY_WEB_SERVICE_PORT_HTTP"], "80");
        assert_eq!(env["MY_WEB_PORT_80_TCP"], "tcp://10.96.0.9:80");
    }
}
