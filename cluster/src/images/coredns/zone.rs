//! The names of a cluster, as CoreDNS's kubernetes plugin has them: from Services and EndpointSlices to addresses. Pure.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// The cluster's domain.
pub const DOMAIN: &str = "cluster.local";

const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// Addresses; none of a name that has only other names below it, or a service without endpoints.
    Addresses(Vec<Ipv4Addr>),
    /// Another name (a service of type `ExternalName`).
    Alias(&'a str),
    /// There is no such name.
    Nothing,
}

/// Every name of a cluster, in lower case and without the last dot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    addresses: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    aliases: BTreeMap<String, String>,
}

impl Zone {
    /// The zone of these objects.
    pub fn new<S: Borrow<Service>, E: Borrow<EndpointSlice>>(services: &[S], slices: &[E]) -> Self {
        let mut zone = Self::default();
        zone.exists(&format!("svc.{DOMAIN}"));
        zone.exists(&format!("pod.{DOMAIN}"));
        for service in services.iter().map(Borrow::borrow) {
            let (Some(namespace), Some(name)) = (&service.metadata.namespace, &service.metadata.name) else {
                continue;
            };
            let Some(spec) = &service.spec else { continue };
            let full = format!("{name}.{namespace}.svc.{DOMAIN}");
            zone.exists(&format!("{namespace}.svc.{DOMAIN}"));
            if let Some(other) =
                spec.external_name.as_ref().filter(|_| is(spec.type_.as_ref(), "ExternalName"))
            {
                zone.aliases.insert(full, other.to_lowercase());
            } else if is(spec.cluster_ip.as_ref(), "None") {
                zone.exists(&full);
                let of_service = slices.iter().map(Borrow::borrow).filter(|slice| {
                    let label = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_LABEL));
                    slice.metadata.namespace.as_ref() == Some(namespace) && label == Some(name)
                });
                of_service.for_each(|slice| zone.add_endpoints(&full, slice));
            } else {
                let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
                zone.exists(&full).extend(all.filter_map(|ip| ip.parse::<Ipv4Addr>().ok()));
            }
        }
        zone
    }

    fn exists(&mut self, name: &str) -> &mut BTreeSet<Ipv4Addr> {
        self.addresses.entry(name.to_owned()).or_default()
    }

    /// Each ready endpoint of a headless service, and its own name: its host name, or its address with hyphens.
    fn add_endpoints(&mut self, full: &str, slice: &EndpointSlice) {
        for endpoint in &slice.endpoints {
            if endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(false) {
                continue;
            }
            for ip in endpoint.addresses.iter().filter_map(|ip| ip.parse::<Ipv4Addr>().ok()) {
                self.exists(full).insert(ip);
                let own = endpoint.hostname.clone().unwrap_or_else(|| hyphened(ip));
                self.exists(&format!("{own}.{full}")).insert(ip);
            }
        }
    }

    /// What a name stands for. It may have capitals and a last dot.
    pub fn meaning(&self, name: &str) -> Meaning<'_> {
        let name = name.trim_end_matches('.').to_lowercase();
        if let Some(other) = self.aliases.get(&name) {
            return Meaning::Alias(other);
        }
        if let Some(addresses) = self.addresses.get(&name) {
            return Meaning::Addresses(addresses.iter().copied().collect());
        }
        if name == DOMAIN {
            return Meaning::Addresses(Vec::new());
        }
        self.of_pod(&name).map_or(Meaning::Nothing, |ip| Meaning::Addresses(vec![ip]))
    }

    /// `10-244-0-7.NAMESPACE.pod.cluster.local` says itself what it stands for (CoreDNS: `pods insecure`).
    fn of_pod(&self, name: &str) -> Option<Ipv4Addr> {
        let (ip, namespace) = name.strip_suffix(DOMAIN)?.strip_suffix(".pod.")?.split_once('.')?;
        let known = self.addresses.contains_key(&format!("{namespace}.svc.{DOMAIN}"));
        ip.replace('-', ".").parse().ok().filter(|_| known)
    }
}

fn is(value: Option<&String>, wanted: &str) -> bool {
    value.is_some_and(|value| value == wanted)
}

fn hyphened(ip: Ipv4Addr) -> String {
    ip.to_string().replace('.', "-")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn zone() -> Zone {
        let service = |name: &str, spec: serde_json::Value| -> Service {
            serde_json::from_value(json!({"metadata": {"namespace": "default", "name": name}, "spec": spec}))
                .unwrap()
        };
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": "db-1", "labels": {SERVICE_LABEL: "db"}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["10.244.0.5"], "hostname": "db-0"},
                {"addresses": ["10.244.1.6"]},
                {"addresses": ["10.244.1.7"], "conditions": {"ready": false}},
            ],
        }))
        .unwrap();
        let services = [
            service("webpod", json!({"clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1", "fd00::1"]})),
            service("db", json!({"clusterIP": "None"})),
            service("empty", json!({"clusterIP": "None"})),
            service("out", json!({"type": "ExternalName", "externalName": "Example.org"})),
        ];
        Zone::new(&services, &[slice])
    }

    fn addresses(name: &str) -> Option<Vec<String>> {
        match zone().meaning(name) {
            Meaning::Addresses(all) => Some(all.iter().map(ToString::to_string).collect()),
            _ => None,
        }
    }

    #[test]
    fn services_and_endpoints_have_addresses() {
        let cases: [(&str, Vec<&str>); 9] = [
            ("webpod.default.svc.cluster.local.", vec!["10.96.1.1"]),
            ("WebPod.Default.svc.cluster.local", vec!["10.96.1.1"]),
            ("db.default.svc.cluster.local", vec!["10.244.0.5", "10.244.1.6"]),
            ("db-0.db.default.svc.cluster.local", vec!["10.244.0.5"]),
            ("10-244-1-6.db.default.svc.cluster.local", vec!["10.244.1.6"]),
            ("10-244-0-9.default.pod.cluster.local", vec!["10.244.0.9"]),
            ("empty.default.svc.cluster.local", vec![]),
            ("default.svc.cluster.local", vec![]),
            ("cluster.local", vec![]),
        ];
        for (name, wanted) in cases {
            assert_eq!(addresses(name).unwrap(), wanted, "{name}");
        }
        assert_eq!(zone().meaning("out.default.svc.cluster.local"), Meaning::Alias("example.org"));
    }

    #[test]
    fn other_names_are_nothing() {
        for name in [
            "webpod.default.svc.cluster.local.default.svc.cluster.local",
            "nobody.default.svc.cluster.local",
            "10-244-0-9.nowhere.pod.cluster.local",
            "10-244-0.default.pod.cluster.local",
            "example.org",
            "",
        ] {
            assert_eq!(zone().meaning(name), Meaning::Nothing, "{name}");
        }
    }
}
