//! Objects that every cluster has: the system's namespaces and the Service `kubernetes` with its endpoints.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

use super::registry::Resource;
use super::state::Api;
use super::status::ApiError;
use super::verbs::create::insert;

/// Makes what is missing.
pub async fn run(api: &Api) -> Result<(), ApiError> {
    let served = api.registry.current();
    let find = |group: &str, plural: &str| {
        let found = served.ordered.iter().find(|r| r.is(group, plural)).cloned();
        found.ok_or_else(|| ApiError::internal(format!("{plural} is not served")))
    };
    let (namespaces, services) = (find("", "namespaces")?, find("", "services")?);
    let (endpoints, slices) = (find("", "endpoints")?, find("discovery.k8s.io", "endpointslices")?);
    let cidr = api.config.service_cidr;
    let listen = api.config.listen;
    // The first address of the range is the API server's, as in any cluster.
    let first = Ipv4Addr::from(u32::from(cidr.network()).saturating_add(1));

    api.store
        .transact(move |txn| {
            let mut ensure = |resource: &Resource, object: Value| -> Result<(), ApiError> {
                let meta = &object["metadata"];
                let key = resource
                    .key(meta["namespace"].as_str().unwrap_or_default(), meta["name"].as_str().unwrap_or_default());
                match txn.get(&key) {
                    None => insert(txn, cidr, resource, object).map(|_| ()),
                    Some(current) => {
                        // Endpoints follow the address that the server listens on now.
                        let mut value = current.value.clone();
                        for field in ["subsets", "endpoints", "ports"] {
                            if let Some(wanted) = object.get(field) {
                                value[field] = wanted.clone();
                            }
                        }
                        if value != current.value {
                            txn.put(key, value);
                        }
                        Ok(())
                    }
                }
            };
            for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
                ensure(
                    &namespaces,
                    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}, "spec": {}}),
                )?;
            }
            let meta = json!({"name": "kubernetes", "namespace": "default",
                "labels": {"component": "apiserver", "provider": "kubernetes"}});
            ensure(
                &services,
                json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {
                    "type": "ClusterIP", "clusterIP": first.to_string(),
                    "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": listen.port()}]}}),
            )?;
            let IpAddr::V4(address) = listen.ip() else { return Ok(()) };
            if address.is_unspecified() || address.is_loopback() {
                return Ok(());
            }
            let port = json!({"name": "https", "port": listen.port(), "protocol": "TCP"});
            let plain = json!({"name": "kubernetes", "namespace": "default"});
            ensure(
                &endpoints,
                json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": plain,
                    "subsets": [{"addresses": [{"ip": address.to_string()}], "ports": [port]}]}),
            )?;
            let labelled = json!({"name": "kubernetes", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "kubernetes"}});
            ensure(
                &slices,
                json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": labelled,
                    "addressType": "IPv4",
                    "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true}}],
                    "ports": [port]}),
            )?;
            Ok::<_, ApiError>(())
        })
        .await?
}
