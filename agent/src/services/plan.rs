//! Which backends answer for which ClusterIP and which port of nodes, from Services and EndpointSlices.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};

use crate::datapath::{Backends, Caller, Frontend, Protocol, ServiceTable};

/// The label that says whose endpoints a slice holds.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// The API server's default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_SECONDS: u32 = 10_800;

/// One port of a service, at one of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// `namespace/service`, with `:port` if the port has a name.
    pub name: String,
    /// Where it is called.
    pub frontend: Frontend,
    /// Who answers.
    pub backends: Backends,
}

/// What should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Every port, in the order of addresses.
    pub ports: Vec<Planned>,
    /// Addresses of services, those without a port that is served too.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// What cannot be served, and why.
    pub errors: Vec<String>,
}

impl Plan {
    /// As the datapath takes it.
    pub fn table(&self) -> ServiceTable {
        let frontends = self.ports.iter().map(|port| (port.frontend, port.backends.clone())).collect();
        ServiceTable { addresses: self.addresses.clone(), frontends, every_packet: false }
    }
}

/// For whom is planned.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// Name of the own Node.
    pub node: &'a str,
    /// Callers from outside are spread by Maglev hashing, instead of at random.
    pub maglev: bool,
}

/// Plans for a node. The order of the objects does not matter.
pub fn plan<S: Borrow<Service>, E: Borrow<EndpointSlice>>(
    services: &[S],
    slices: &[E],
    site: Site<'_>,
) -> Plan {
    let mut of_service: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices.iter().map(Borrow::borrow) {
        let labels = slice.metadata.labels.as_ref();
        if let Some(service) = labels.and_then(|labels| labels.get(SERVICE_LABEL))
            && slice.address_type == "IPv4"
        {
            let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
            of_service.entry((namespace, service)).or_default().push(slice);
        }
    }
    let mut named: Vec<((&str, &str), &Service)> =
        services.iter().map(Borrow::borrow).map(|service| (name(service), service)).collect();
    named.sort_by_key(|(name, _)| *name);
    let mut plan = Plan::default();
    let mut owners = BTreeMap::new();
    let mut port_owners = BTreeMap::new();
    for (name, service) in named {
        let slices = of_service.get(&name).map(Vec::as_slice).unwrap_or_default();
        let full = format!("{}/{}", name.0, name.1);
        for ip in cluster_ips(service) {
            if let Some(owner) = owners.insert(ip, full.clone()) {
                plan.errors.push(format!(
                    "Service {full}: its address {ip} is that of Service {owner}; delete one and create it anew"
                ));
                owners.insert(ip, owner);
                continue;
            }
            plan.addresses.insert(ip);
            add_cluster_ip(&mut plan, &full, ip, service, slices, site);
        }
        add_node_ports(&mut plan, &full, service, slices, site, &mut port_owners);
    }
    plan.ports.sort_by_key(|port| port.frontend);
    plan
}

/// A port of a service, as all its frontends have it.
struct Port<'a> {
    spec: &'a ServicePort,
    label: String,
    protocol: Protocol,
}

/// The ports that can be served. What cannot is told if `errors` is given.
fn ports<'a>(full: &str, service: &'a Service, mut errors: Option<&mut Vec<String>>) -> Vec<Port<'a>> {
    let mut ports = Vec::new();
    for spec in service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()) {
        let label = match spec.name.as_deref() {
            Some(name) if !name.is_empty() => format!("{full}:{name}"),
            _ => full.to_owned(),
        };
        let protocol = spec.protocol.as_deref().unwrap_or("TCP");
        match Protocol::of_name(protocol) {
            Some(protocol) => ports.push(Port { spec, label, protocol }),
            None => errors.iter_mut().for_each(|errors| {
                errors.push(format!(
                    "Service {label}: protocol {protocol} is not served by this agent; use TCP or UDP"
                ));
            }),
        }
    }
    ports
}

fn add_cluster_ip(
    plan: &mut Plan,
    full: &str,
    ip: Ipv4Addr,
    service: &Service,
    slices: &[&EndpointSlice],
    site: Site<'_>,
) {
    let affinity_seconds = affinity_seconds(service);
    let only_here = service.spec.as_ref().and_then(|s| s.internal_traffic_policy.as_deref()) == Some("Local");
    for port in ports(full, service, Some(&mut plan.errors)) {
        let Ok(number) = u16::try_from(port.spec.port) else { continue };
        let frontend =
            Frontend { at: SocketAddrV4::new(ip, number), protocol: port.protocol, caller: Caller::Inside };
        let at = backends(slices, port.spec, port.protocol, only_here.then_some(site.node));
        let backends = Backends { at, affinity_seconds, maglev: false };
        plan.ports.push(Planned { name: port.label, frontend, backends });
    }
}

/// A port of every node, for callers inside and outside. `externalTrafficPolicy: Local` is about those outside: it keeps the
/// caller's address, which callers inside keep anyway.
fn add_node_ports(
    plan: &mut Plan,
    full: &str,
    service: &Service,
    slices: &[&EndpointSlice],
    site: Site<'_>,
    owners: &mut BTreeMap<(u16, Protocol), String>,
) {
    let affinity_seconds = affinity_seconds(service);
    let only_here = service.spec.as_ref().and_then(|s| s.external_traffic_policy.as_deref()) == Some("Local");
    for port in ports(full, service, None) {
        let Some(number) = port.spec.node_port.and_then(|port| u16::try_from(port).ok()).filter(|p| *p != 0)
        else {
            continue;
        };
        if let Some(owner) = owners.get(&(number, port.protocol)) {
            plan.errors.push(format!(
                "Service {}: its nodePort {number} is that of Service {owner}; delete one and create it anew",
                port.label
            ));
            continue;
        }
        owners.insert((number, port.protocol), port.label.clone());
        let at = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, number);
        for (caller, only_on) in [(Caller::Inside, None), (Caller::Outside, only_here.then_some(site.node))] {
            let maglev = site.maglev && caller == Caller::Outside;
            let backends = Backends {
                at: backends(slices, port.spec, port.protocol, only_on),
                affinity_seconds,
                maglev,
            };
            let frontend = Frontend { at, protocol: port.protocol, caller };
            plan.ports.push(Planned { name: port.label.clone(), frontend, backends });
        }
    }
}

fn name(service: &Service) -> (&str, &str) {
    (
        service.metadata.namespace.as_deref().unwrap_or_default(),
        service.metadata.name.as_deref().unwrap_or_default(),
    )
}

/// None of a headless service, nor of one that is another's name only.
fn cluster_ips(service: &Service) -> BTreeSet<Ipv4Addr> {
    let Some(spec) = &service.spec else { return BTreeSet::new() };
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    all.filter_map(|ip| ip.parse().ok()).collect()
}

fn affinity_seconds(service: &Service) -> u32 {
    let Some(spec) = &service.spec else { return 0 };
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return 0;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds);
    seconds.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(AFFINITY_SECONDS)
}

/// Those that are ready; if there is none, those that end but still serve, as kube-proxy does (KEP-1669).
fn backends(
    slices: &[&EndpointSlice],
    port: &ServicePort,
    protocol: Protocol,
    only_on: Option<&str>,
) -> BTreeSet<SocketAddrV4> {
    let wanted = port.name.as_deref().unwrap_or_default();
    let (mut ready, mut ending) = (BTreeSet::new(), BTreeSet::new());
    for slice in slices {
        let same = slice.ports.iter().flatten().find(|p| {
            p.name.as_deref().unwrap_or_default() == wanted
                && Protocol::of_name(p.protocol.as_deref().unwrap_or("TCP")) == Some(protocol)
        });
        let Some(number) = same.and_then(|p| p.port).and_then(|n| u16::try_from(n).ok()) else { continue };
        let here = |e: &&Endpoint| only_on.is_none_or(|node| e.node_name.as_deref() == Some(node));
        for endpoint in slice.endpoints.iter().filter(here) {
            let list = match state(endpoint.conditions.as_ref()) {
                State::Ready => &mut ready,
                State::Ending => &mut ending,
                State::Not => continue,
            };
            // All addresses of an endpoint are the same (EndpointSlice v1): the first is taken.
            let ip = endpoint.addresses.first().and_then(|ip| ip.parse().ok());
            list.extend(ip.map(|ip| SocketAddrV4::new(ip, number)));
        }
    }
    if ready.is_empty() { ending } else { ready }
}

enum State {
    Ready,
    Ending,
    Not,
}

/// What is not said is meant well.
fn state(conditions: Option<&EndpointConditions>) -> State {
    let Some(EndpointConditions { ready, serving, terminating }) = conditions else { return State::Ready };
    if ready.unwrap_or(true) {
        State::Ready
    } else if serving.unwrap_or(false) && terminating.unwrap_or(false) {
        State::Ending
    } else {
        State::Not
    }
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "the tests read better so")]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(name: &str, spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": "default", "name": name}, "spec": spec}))
            .unwrap()
    }

    fn slice(of: &str, ports: Value, endpoints: Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": of, "labels": {SERVICE_LABEL: of}},
            "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
        }))
        .unwrap()
    }

    fn web(more: Value) -> Service {
        let mut spec = json!({"clusterIP": "10.96.0.20", "ports": [{"name": "http", "port": 80}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        service("web", spec)
    }

    fn endpoint(ip: &str, node: &str, [ready, serving, terminating]: [bool; 3]) -> Value {
        let conditions = json!({"ready": ready, "serving": serving, "terminating": terminating});
        json!({"addresses": [ip], "nodeName": node, "conditions": conditions})
    }

    fn http(endpoints: Value) -> EndpointSlice {
        slice("web", json!([{"name": "http", "port": 8080, "protocol": "TCP"}]), endpoints)
    }

    const READY: [bool; 3] = [true, true, false];
    const ENDING: [bool; 3] = [false, true, true];
    const NOT_READY: [bool; 3] = [false, false, false];

    const HERE: Site<'_> = Site { node: "here", maglev: true };

    fn answering(services: &[Service], slices: &[EndpointSlice]) -> Vec<String> {
        plan(services, slices, HERE).ports[0].backends.at.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_ready_answer_and_those_that_end_only_if_there_is_no_other() {
        let all = json!([
            endpoint("10.244.0.2", "here", READY),
            endpoint("10.244.0.3", "here", ENDING),
            endpoint("10.244.1.4", "there", NOT_READY),
            {"addresses": ["10.244.1.5"]},
        ]);
        let services = [web(json!({}))];
        assert_eq!(answering(&services, &[http(all)]), ["10.244.0.2:8080", "10.244.1.5:8080"]);
        let ending =
            json!([endpoint("10.244.0.3", "here", ENDING), endpoint("10.244.1.4", "there", NOT_READY)]);
        assert_eq!(answering(&services, &[http(ending)]), ["10.244.0.3:8080"]);
        assert_eq!(answering(&services, &[]), Vec::<String>::new(), "nobody: refused, not forgotten");
    }

    #[test]
    fn local_traffic_stays_on_the_node() {
        let all = json!([endpoint("10.244.0.2", "here", READY), endpoint("10.244.1.2", "there", READY)]);
        let services = [web(json!({"internalTrafficPolicy": "Local"}))];
        assert_eq!(answering(&services, &[http(all)]), ["10.244.0.2:8080"]);
    }

    #[test]
    fn a_node_port_is_for_callers_inside_and_outside() {
        let all = json!([endpoint("10.244.0.2", "here", READY), endpoint("10.244.1.2", "there", READY)]);
        let of = |more: Value| {
            let mut service = web(more);
            service.spec.as_mut().unwrap().ports.as_mut().unwrap()[0].node_port = Some(30_080);
            let made = plan(&[service], &[http(all.clone())], HERE);
            assert_eq!(made.ports.len(), 3, "ClusterIP, and the port twice");
            let ports = made.ports.into_iter().filter(|port| port.frontend.is_node_port());
            ports
                .map(|p| {
                    assert_eq!(p.frontend.at.to_string(), "0.0.0.0:30080");
                    (p.frontend.caller, p.backends.at.len(), p.backends.maglev)
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(of(json!({})), [(Caller::Inside, 2, false), (Caller::Outside, 2, true)]);
        let local = json!({"externalTrafficPolicy": "Local"});
        assert_eq!(of(local), [(Caller::Inside, 2, false), (Caller::Outside, 1, true)]);
        // It does not concern the ClusterIP, nor the other way round.
        let local = json!({"internalTrafficPolicy": "Local"});
        assert_eq!(of(local), [(Caller::Inside, 2, false), (Caller::Outside, 2, true)]);
    }

    #[test]
    fn a_port_of_nodes_has_one_owner() {
        let mut first = web(json!({}));
        first.spec.as_mut().unwrap().ports.as_mut().unwrap()[0].node_port = Some(30_080);
        let mut second = first.clone();
        second.metadata.name = Some("x".into());
        second.spec.as_mut().unwrap().cluster_ip = Some("10.96.0.21".into());
        let made = plan::<_, EndpointSlice>(&[second, first], &[], HERE);
        assert_eq!(made.errors.len(), 1);
        assert!(made.errors[0].contains("nodePort 30080") && made.errors[0].contains("default/web"));
        assert_eq!(made.ports.iter().filter(|port| port.frontend.is_node_port()).count(), 2);
    }

    #[test]
    fn each_port_has_its_own_backends() {
        let dns = service(
            "dns",
            json!({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00::a"], "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
                {"name": "sctp", "port": 99, "protocol": "SCTP"},
            ]}),
        );
        let ports = json!([
            {"name": "dns", "port": 5353, "protocol": "UDP"},
            {"name": "dns-tcp", "port": 5354, "protocol": "TCP"},
        ]);
        let made = plan(&[dns], &[slice("dns", ports, json!([endpoint("10.244.0.9", "here", READY)]))], HERE);
        let shown: Vec<String> = made
            .ports
            .iter()
            .map(|p| {
                let at: Vec<String> = p.backends.at.iter().map(ToString::to_string).collect();
                format!("{} {}/{} {}", p.name, p.frontend.at, p.frontend.protocol, at.join(","))
            })
            .collect();
        assert_eq!(
            shown,
            [
                "default/dns:dns-tcp 10.96.0.10:53/TCP 10.244.0.9:5354",
                "default/dns:dns 10.96.0.10:53/UDP 10.244.0.9:5353"
            ]
        );
        assert_eq!(made.table().frontends.len(), 2);
        assert!(made.errors[0].contains("SCTP") && made.errors[0].contains("use TCP or UDP"));
    }

    #[test]
    fn what_has_no_address_is_left_out_and_one_address_has_one_owner() {
        let headless = service("a", json!({"clusterIP": "None", "ports": [{"port": 80}]}));
        let external = service("b", json!({"type": "ExternalName", "externalName": "example.org"}));
        let (first, second) = (web(json!({})), web(json!({})));
        let second = Service {
            metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                name: Some("x".into()),
                ..second.metadata.clone()
            },
            ..second
        };
        let made = plan::<_, EndpointSlice>(&[second, headless, external, first], &[], HERE);
        assert_eq!(made.ports.len(), 1);
        assert_eq!(made.ports[0].name, "default/web:http");
        assert_eq!(made.errors.len(), 1, "{:?}", made.errors);
    }

    #[test]
    fn affinity_has_its_time() {
        let seconds =
            |more| plan::<_, EndpointSlice>(&[web(more)], &[], HERE).ports[0].backends.affinity_seconds;
        assert_eq!(seconds(json!({})), 0);
        assert_eq!(seconds(json!({"sessionAffinity": "ClientIP"})), AFFINITY_SECONDS);
        let config = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 30}}});
        assert_eq!(seconds(config), 30);
    }
}
