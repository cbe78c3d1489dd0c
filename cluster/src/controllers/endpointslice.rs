//! EndpointSlices: which pods stand behind a Service.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt as _};

use super::informer::{Change, key, key_of};
use super::meta::{is_conflict, is_finished, is_ready, or_gone, owner_reference, selects_all, text_hash};
use super::queue::Queue;
use super::{Cluster, pods};

/// Label that names the Service of a slice.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Most endpoints in one slice.
const SLICE_SIZE: usize = 100;

/// The number that a service port has on this pod; `None` if the pod has no port of that name.
fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(number)) => Some(if *number == 0 { port.port } else { *number }),
        Some(IntOrString::String(name)) => {
            let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            containers
                .iter()
                .flat_map(|container| container.ports.iter().flatten())
                .find(|one| {
                    one.name.as_deref() == Some(name) && one.protocol.as_deref().unwrap_or("TCP") == protocol
                })
                .map(|one| one.container_port)
        }
    }
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    ports
        .iter()
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(target_port(port, pod)?),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn endpoint(service: &Service, pod: &Pod, address: &str) -> Endpoint {
    let publish = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses) == Some(true);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let serving = publish || is_ready(pod);
    let spec = pod.spec.as_ref();
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(publish || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: spec
            .filter(|spec| spec.subdomain.as_deref() == Some(service.name_any().as_str()))
            .and_then(|spec| spec.hostname.clone()),
        node_name: spec.and_then(|spec| spec.node_name.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

/// The slices that a Service with a selector should have. `None` if the Service has no selector: others make its slices.
pub fn slices(service: &Service, pods: &[Arc<Pod>]) -> Option<Vec<EndpointSlice>> {
    let spec = service.spec.as_ref()?;
    let selector = spec.selector.as_ref().filter(|selector| !selector.is_empty())?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    // Pods that map the service's ports to other numbers need slices of their own.
    let mut groups: BTreeMap<String, (Vec<EndpointPort>, Vec<Endpoint>)> = BTreeMap::new();
    for pod in
        pods.iter().filter(|pod| selects_all(selector, pod.metadata.labels.as_ref()) && !is_finished(pod))
    {
        let Some(address) = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()) else { continue };
        if address.is_empty() {
            continue;
        }
        let ports = ports(service, pod);
        let identity = format!("{ports:?}");
        groups.entry(identity).or_insert((ports, Vec::new())).1.push(endpoint(service, pod, address));
    }
    if groups.is_empty() {
        groups.insert(String::new(), (Vec::new(), Vec::new()));
    }
    let uid = service.uid().unwrap_or_default();
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), service.name_any());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if spec.cluster_ip.as_deref() == Some("None") {
        labels.insert("service.kubernetes.io/headless".to_owned(), String::new());
    }
    let mut slices = Vec::new();
    // Names count, so that the usual single slice keeps its name whatever its ports are.
    for (ports, endpoints) in groups.into_values() {
        let parts: Vec<&[Endpoint]> =
            if endpoints.is_empty() { vec![&[]] } else { endpoints.chunks(SLICE_SIZE).collect() };
        for part in parts {
            let number = slices.len();
            let name = format!("{}-{}", service.name_any(), text_hash(&format!("{uid}/{number}"), 5));
            slices.push(EndpointSlice {
                metadata: ObjectMeta {
                    name: Some(name),
                    generate_name: Some(format!("{}-", service.name_any())),
                    namespace: service.metadata.namespace.clone(),
                    labels: Some(labels.clone()),
                    owner_references: Some(vec![owner_reference(service)]),
                    ..ObjectMeta::default()
                },
                address_type: "IPv4".to_owned(),
                endpoints: part.to_vec(),
                ports: Some(ports.clone()),
            });
        }
    }
    Some(slices)
}

/// The pod says the same about its services as before.
fn same_for_services(old: &Pod, new: &Pod) -> bool {
    let address = |pod: &Pod| pod.status.as_ref().and_then(|status| status.pod_ip.clone());
    let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    address(old) == address(new)
        && node(old) == node(new)
        && is_ready(old) == is_ready(new)
        && is_finished(old) == is_finished(new)
        && old.metadata.deletion_timestamp.is_some() == new.metadata.deletion_timestamp.is_some()
        && old.metadata.labels == new.metadata.labels
}

/// Watches and reconciles for ever.
pub async fn run(cluster: Cluster) {
    let queue = Queue::default();
    let on_service = queue.clone();
    cluster.services.on_change(move |change| on_service.add(key_of(change.object().as_ref())));
    let (on_pod, services) = (queue.clone(), cluster.services.clone());
    cluster.pods.on_change(move |change| {
        let old = match change {
            Change::Set { old: Some(old), new } if same_for_services(old, new) => return,
            Change::Set { old, .. } => old.as_ref(),
            Change::Gone(_) => None,
        };
        let pod = change.object();
        for service in services.list_if(|service| {
            let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            service.metadata.namespace == pod.metadata.namespace
                && selector.is_some_and(|selector| {
                    selects_all(selector, pod.metadata.labels.as_ref())
                        || old.is_some_and(|old| selects_all(selector, old.metadata.labels.as_ref()))
                })
        }) {
            on_pod.add(key_of(service.as_ref()));
        }
    });
    let on_slice = queue.clone();
    cluster.endpoint_slices.on_change(move |change| {
        let slice = change.object();
        if slice.labels().get(MANAGED_BY).map(String::as_str) == Some(MANAGER)
            && let Some(service) = slice.labels().get(SERVICE_NAME)
        {
            on_slice.add(key(slice.metadata.namespace.as_deref(), service));
        }
    });
    cluster.synced().await;
    for service in cluster.services.list() {
        queue.add(key_of(service.as_ref()));
    }
    for slice in cluster.endpoint_slices.list() {
        if let Some(service) = slice.labels().get(SERVICE_NAME) {
            queue.add(key(slice.metadata.namespace.as_deref(), service));
        }
    }
    let cluster = &cluster;
    queue.work("endpointslice", |key| async move { reconcile(cluster, &key).await }).await;
}

async fn reconcile(cluster: &Cluster, key: &str) -> Result<(), kube::Error> {
    let (namespace, name) = super::informer::split_key(key);
    let wanted = cluster
        .services
        .get_key(key)
        .filter(|service| service.metadata.deletion_timestamp.is_none())
        .and_then(|service| slices(&service, &pods::in_namespace(&cluster.pods, namespace)))
        .unwrap_or_default();
    let api: Api<EndpointSlice> = Api::namespaced(cluster.client.clone(), namespace);
    let known = cluster.endpoint_slices.list_if(|slice| {
        slice.metadata.namespace.as_deref() == Some(namespace)
            && slice.labels().get(SERVICE_NAME).map(String::as_str) == Some(name)
            && slice.labels().get(MANAGED_BY).map(String::as_str) == Some(MANAGER)
    });
    for mut slice in wanted.iter().cloned() {
        let existing = known.iter().find(|one| one.metadata.name == slice.metadata.name);
        let written = match existing {
            Some(existing)
                if existing.endpoints == slice.endpoints
                    && existing.ports.clone().unwrap_or_default()
                        == slice.ports.clone().unwrap_or_default()
                    && existing.metadata.labels == slice.metadata.labels =>
            {
                continue;
            }
            Some(existing) => {
                slice.metadata.resource_version.clone_from(&existing.metadata.resource_version);
                or_gone(api.replace(&slice.name_any(), &PostParams::default(), &slice).await)?
            }
            None => match api.create(&PostParams::default(), &slice).await {
                Ok(written) => Some(written),
                Err(error) if is_conflict(&error) => Some(api.get(&slice.name_any()).await?),
                Err(error) => return Err(error),
            },
        };
        if let Some(written) = written {
            cluster.endpoint_slices.observe(written);
        }
    }
    for surplus in known.iter().filter(|one| wanted.iter().all(|w| w.metadata.name != one.metadata.name)) {
        or_gone(api.delete(&surplus.name_any(), &DeleteParams::default()).await)?;
        cluster.endpoint_slices.forget(surplus);
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(target: Value) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "s"},
            "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": target}]},
        }))
        .unwrap()
    }

    fn pod(name: &str, ip: &str, ready: bool, port: i32) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}},
                "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
                "status": {"phase": "Running", "podIP": ip,
                           "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]},
            }))
            .unwrap(),
        )
    }

    #[test]
    fn pods_with_addresses_are_endpoints_with_their_conditions() {
        let mut ending = Pod::clone(&pod("c", "10.0.0.3", true, 8080));
        ending.metadata.deletion_timestamp = Some(super::super::meta::now());
        let pods = [
            pod("a", "10.0.0.1", true, 8080),
            pod("b", "10.0.0.2", false, 8080),
            Arc::new(ending),
            pod("d", "", true, 8080),
        ];
        let slices = slices(&service(json!("http")), &pods).unwrap();
        let [slice] = slices.as_slice() else { panic!("{slices:?}") };
        let seen: Vec<_> = slice
            .endpoints
            .iter()
            .map(|e| {
                let c = e.conditions.clone().unwrap();
                (e.addresses[0].as_str(), c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap())
            })
            .collect();
        assert_eq!(
            seen,
            [
                ("10.0.0.1", true, true, false),
                ("10.0.0.2", false, false, false),
                ("10.0.0.3", false, true, true)
            ]
        );
        let port = &slice.ports.as_ref().unwrap()[0];
        assert_eq!((port.name.as_deref(), port.port), (Some("http"), Some(8080)));
        assert_eq!(slice.labels()[SERVICE_NAME], "web");
        assert_eq!(slice.endpoints[0].node_name.as_deref(), Some("n1"));
    }

    #[test]
    fn pods_that_number_a_port_differently_get_their_own_slice() {
        let pods = [pod("a", "10.0.0.1", true, 8080), pod("b", "10.0.0.2", true, 9090)];
        let all = slices(&service(json!("http")), &pods).unwrap();
        assert_eq!(all.len(), 2);
        assert_ne!(all[0].metadata.name, all[1].metadata.name);
        assert_eq!(slices(&service(json!(80)), &pods).unwrap().len(), 1);
    }

    #[test]
    fn a_service_without_selector_is_not_ours_and_one_without_pods_has_an_empty_slice() {
        let mut bare = service(json!(80));
        bare.spec.as_mut().unwrap().selector = None;
        assert!(slices(&bare, &[]).is_none());
        let empty = slices(&service(json!(80)), &[]).unwrap();
        assert_eq!((empty.len(), empty[0].endpoints.len()), (1, 0));
    }

    #[test]
    fn many_pods_are_cut_into_slices() {
        let pods: Vec<_> =
            (0..150).map(|n| pod(&format!("p{n}"), &format!("10.0.0.{n}"), true, 80)).collect();
        let all = slices(&service(json!(80)), &pods).unwrap();
        assert_eq!(all.iter().map(|s| s.endpoints.len()).collect::<Vec<_>>(), [100, 50]);
    }
}
