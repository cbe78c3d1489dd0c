//! Looks at a lab that runs: what its API server, its machines and its agents tell.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use podwire_api::nodenetwork::NodeNetwork;
use serde::Deserialize;

use super::Protocol;
use super::world::{Device, Machine, Pod, Service, ServicePort, World};
use crate::access;
use crate::error::{Failure, OrFailure};
use crate::state::{LabState, Running};

/// Label of an EndpointSlice: the Service that it is of.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The lab as it is now.
pub(super) async fn look(client: &Client, state: &LabState, running: &Running) -> Result<World, Failure> {
    let every = ListParams::default();
    let pods = Api::<core::Pod>::all(client.clone());
    let services = Api::<core::Service>::all(client.clone());
    let slices = Api::<EndpointSlice>::all(client.clone());
    let networks = Api::<NodeNetwork>::all(client.clone());
    let (pods, services, slices, networks) = futures::try_join!(
        pods.list(&every),
        services.list(&every),
        slices.list(&every),
        networks.list(&every)
    )
    .or_failure("the lab's API server", "see: lab status")?;
    let (of_state, of_running) = (state.clone(), running.clone());
    // Programs on the machines: they block.
    let seen = tokio::task::spawn_blocking(move || machines(&of_state, &of_running));
    let (machines, endpoints) = seen.await.or_failure("machines", "report this as a bug")??;
    Ok(World {
        lab: running.lab.clone(),
        machines,
        pods: pods.items.iter().map(|object| pod(object, &endpoints)).collect(),
        services: services.items.iter().map(|object| service(object, &slices.items)).collect(),
        pod_cidrs: networks.items.iter().map(|n| (n.name_any(), n.spec.ipam.pod_cidrs.clone())).collect(),
    })
}

/// A row of `podwire endpoint list`.
#[derive(Deserialize)]
struct Endpoint {
    pod: String,
    device: String,
    identity: u32,
}

/// A row of `ip -j addr`.
#[derive(Deserialize)]
struct Link {
    ifname: String,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    address: String,
    #[serde(default)]
    addr_info: Vec<Address>,
}

#[derive(Deserialize)]
struct Address {
    // An IPv6 address is read, too, and is none here.
    #[serde(default)]
    local: String,
}

type Endpoints = BTreeMap<String, Endpoint>;

/// Every machine's devices, and what agents know of pods: the latter is left out where none answers.
fn machines(state: &LabState, running: &Running) -> Result<(Vec<Machine>, Endpoints), Failure> {
    let looks: Vec<_> = std::thread::scope(|scope| {
        let all = running.lab.nodes.iter().map(|node| scope.spawn(move || machine(state, running, node)));
        let threads: Vec<_> = all.collect();
        let panicked = || Err(Failure::new("machines", "a worker panicked", "report this as a bug"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panicked())).collect()
    });
    let mut machines = Vec::new();
    let mut endpoints = BTreeMap::new();
    for look in looks {
        let (machine, of_agent) = look?;
        machines.push(machine);
        endpoints.extend(of_agent.into_iter().map(|endpoint| (endpoint.pod.clone(), endpoint)));
    }
    Ok((machines, endpoints))
}

fn machine(
    state: &LabState,
    running: &Running,
    node: &crate::lab::Node,
) -> Result<(Machine, Vec<Endpoint>), Failure> {
    let thing = format!("devices of {}", node.name);
    let mend = format!("see: lab exec {} -- ip -j addr", node.name);
    let said =
        access::output_on(state, running, &node.name, &["ip", "-j", "addr"]).or_failure(&thing, &mend)?;
    let links: Vec<Link> = serde_json::from_slice(&said.stdout).or_failure(&thing, &mend)?;
    let machine = Machine { name: node.name.clone(), devices: links.iter().map(device).collect() };
    if !node.role.is_kubernetes() {
        return Ok((machine, Vec::new()));
    }
    let list = ["podwire", "-o", "json", "endpoint", "list"];
    let told = access::output_on(state, running, &node.name, &list).ok();
    let endpoints = told.and_then(|told| serde_json::from_slice(&told.stdout).ok()).unwrap_or_default();
    Ok((machine, endpoints))
}

fn device(link: &Link) -> Device {
    let bytes: Vec<u8> =
        link.address.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    Device {
        name: link.ifname.clone(),
        up: link.flags.iter().any(|flag| flag == "UP"),
        mac: bytes.try_into().ok(),
        addresses: link.addr_info.iter().filter_map(|info| info.local.parse().ok()).collect(),
    }
}

fn pod(object: &core::Pod, endpoints: &Endpoints) -> Pod {
    let (spec, status) = (object.spec.as_ref(), object.status.as_ref());
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let endpoint = endpoints.get(&format!("{namespace}/{name}"));
    let ended = status.and_then(|s| s.phase.as_deref()).is_some_and(|p| matches!(p, "Succeeded" | "Failed"));
    Pod {
        node: spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        // What has ended has no address any more, whatever its status still says.
        ip: status.filter(|_| !ended).and_then(|s| s.pod_ip.as_ref()?.parse().ok()),
        host_network: spec.is_some_and(|s| s.host_network == Some(true)),
        device: endpoint.map(|endpoint| endpoint.device.clone()),
        identity: endpoint.map(|endpoint| endpoint.identity),
        namespace,
        name,
    }
}

fn service(object: &core::Service, slices: &[EndpointSlice]) -> Service {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let own: Vec<&EndpointSlice> = slices
        .iter()
        .filter(|slice| slice.namespace().unwrap_or_default() == namespace)
        .filter(|slice| slice.labels().get(SERVICE_NAME) == Some(&name))
        .collect();
    let spec = object.spec.as_ref();
    let ports = spec.and_then(|s| s.ports.as_ref()).into_iter().flatten().filter_map(|port| {
        let protocol = protocol(port.protocol.as_deref())?;
        let port_name = port.name.clone().unwrap_or_default();
        let backends = own.iter().flat_map(|slice| backends(slice, &port_name, protocol)).collect();
        let node_port = port.node_port.and_then(|number| u16::try_from(number).ok());
        Some(ServicePort {
            name: port_name,
            port: u16::try_from(port.port).ok()?,
            node_port,
            protocol,
            backends,
        })
    });
    Service {
        ip: spec.and_then(|s| s.cluster_ip.as_ref()?.parse().ok()),
        local_only: spec.is_some_and(|s| s.external_traffic_policy.as_deref() == Some("Local")),
        ports: ports.collect(),
        namespace,
        name,
    }
}

fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        _ => None,
    }
}

/// Who answers at a port: those that are ready, and those that end but still serve.
fn backends(slice: &EndpointSlice, port: &str, wanted: Protocol) -> Vec<(Ipv4Addr, u16)> {
    let number = slice.ports.iter().flatten().find_map(|p| {
        let is_it =
            p.name.as_deref().unwrap_or_default() == port && protocol(p.protocol.as_deref()) == Some(wanted);
        is_it.then(|| u16::try_from(p.port?).ok()).flatten()
    });
    let Some(number) = number else { return Vec::new() };
    let answers = slice.endpoints.iter().filter(|endpoint| {
        endpoint.conditions.as_ref().is_none_or(|c| c.ready.unwrap_or(true) || c.serving.unwrap_or_default())
    });
    answers
        .flat_map(|endpoint| &endpoint.addresses)
        .filter_map(|ip| Some((ip.parse().ok()?, number)))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn devices_are_read_as_ip_prints_them() {
        let text = r#"[{"ifname":"eth1","flags":["BROADCAST","UP"],"address":"52:54:c0:a8:0a:64","addr_info":[{"family":"inet","local":"192.168.10.100","prefixlen":24},{"family":"inet6","local":"fe80::1"}]},{"ifname":"tunl0","flags":["NOARP"],"address":"0.0.0.0","addr_info":[]}]"#;
        let links: Vec<Link> = serde_json::from_str(text).unwrap();
        let devices: Vec<Device> = links.iter().map(device).collect();
        assert_eq!(devices[0].mac, Some([0x52, 0x54, 0xc0, 0xa8, 0x0a, 0x64]));
        assert_eq!(devices[0].addresses, ["192.168.10.100".parse::<Ipv4Addr>().unwrap()]);
        assert!(devices[0].up && !devices[1].up && devices[1].mac.is_none());
    }

    #[test]
    fn a_service_knows_who_answers() {
        let object = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"clusterIP": "10.96.1.1", "externalTrafficPolicy": "Local", "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080}, {"name": "x", "port": 9, "protocol": "SCTP"}]},
        }))
        .unwrap();
        let slice = |namespace: &str| -> EndpointSlice {
            serde_json::from_value(json!({
                "metadata": {"name": "web-1", "namespace": namespace, "labels": {SERVICE_NAME: "web"}},
                "addressType": "IPv4",
                "endpoints": [
                    {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
                    {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true}},
                    {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": false}},
                ],
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            }))
            .unwrap()
        };
        let service = service(&object, &[slice("default"), slice("other")]);
        assert_eq!(service.ports.len(), 1, "SCTP is not traced");
        let port = &service.ports[0];
        assert_eq!((port.port, port.node_port, service.local_only), (80, Some(30080), true));
        assert_eq!(port.backends, [([10, 0, 0, 1].into(), 8080), ([10, 0, 0, 2].into(), 8080)]);
    }

    #[test]
    fn a_pod_that_has_ended_has_no_address() {
        let of = |phase: &str| {
            let object = serde_json::from_value(json!({
                "metadata": {"name": "p", "namespace": "default"},
                "spec": {"containers": [], "nodeName": "n"},
                "status": {"phase": phase, "podIP": "10.0.0.1"},
            }))
            .unwrap();
            pod(&object, &BTreeMap::new()).ip.is_some()
        };
        assert!(of("Running") && !of("Succeeded") && !of("Failed"));
    }
}
