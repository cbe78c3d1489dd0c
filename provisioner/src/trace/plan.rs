//! Who talks to whom, and where packets must be tapped to see it. Pure.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use podwire_api::names;

use super::Protocol;
use super::world::{Owner, Pod, Service, ServicePort, World};
use crate::error::Failure;
use crate::lab::hint;

/// The flow that is to be traced.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Who begins.
    pub source: Source,
    /// Whom it means.
    pub target: Target,
    /// What it speaks.
    pub protocol: Protocol,
    /// The port that it means; none for ICMP.
    pub port: Option<u16>,
}

/// Who begins.
#[derive(Clone, Debug)]
pub struct Source {
    /// What the user called it, with its namespace unless that is `default`.
    pub name: String,
    /// The machine that it is on, or is.
    pub machine: String,
    /// The pod, if it is one with a network of its own.
    pub pod: Option<Pod>,
}

/// Whom it means.
#[derive(Clone, Debug)]
pub struct Target {
    /// The address that the source is told.
    pub address: Ipv4Addr,
    /// The Service that has this address, or this port of a node.
    pub service: Option<Service>,
    /// It is a node's address, and the Service has the port there.
    pub by_node: bool,
}

/// Why there is nothing to trace.
#[derive(Debug)]
pub enum Problem {
    /// Wrong use.
    Wrong(String),
    /// The lab is not as far.
    Failed(Failure),
}

/// An interface to tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// The machine that it is on.
    pub machine: String,
    /// The device.
    pub device: String,
    /// The pod inside of which it is.
    pub pod: Option<(String, Ipv4Addr)>,
}

impl Tap {
    /// Whose it is: the pod's name, or the machine's.
    pub fn place(&self) -> &str {
        self.pod.as_ref().map_or(&self.machine, |(name, _)| name)
    }
}

/// Resolves what a user typed.
pub fn plan(world: &World, from: &str, to: &str, protocol: Option<Protocol>) -> Result<Plan, Problem> {
    let source = source(world, from)?;
    let (name, port) = split(to)?;
    let mut target = target(world, name)?;
    if let Some(number) = port.and_then(|port| port.parse().ok())
        && let Some(service) = world.node_port(target.address, number, protocol)
    {
        (target.service, target.by_node) = (Some(service.clone()), true);
    }
    let (protocol, port) = speech(&target, to, port, protocol)?;
    Ok(Plan { source, target, protocol, port })
}

fn source(world: &World, from: &str) -> Result<Source, Problem> {
    if world.machine(from).is_some() {
        return Ok(Source { name: from.to_owned(), machine: from.to_owned(), pod: None });
    }
    let Some(pod) = find_pod(world, from) else {
        let cause = "it is neither a pod nor a machine";
        return Err(Problem::Wrong(format!("SRC {from:?}: {cause}; {}", known(world, from, false))));
    };
    if pod.ip.is_none() {
        return Err(no_address(pod));
    }
    let own = (!pod.host_network).then(|| pod.clone());
    Ok(Source { name: pod.called(), machine: pod.node.clone(), pod: own })
}

fn target(world: &World, to: &str) -> Result<Target, Problem> {
    let of = |address: Ipv4Addr| Target { address, service: world.service(address).cloned(), by_node: false };
    if let Ok(address) = to.parse::<Ipv4Addr>() {
        return Ok(of(address));
    }
    if world.machine(to).is_some() {
        let address = world.lab.node(to).and_then(crate::lab::Node::internal_ip).ok_or_else(|| {
            Problem::Failed(Failure::new(to, "it has no address", "write the address that you mean"))
        })?;
        return Ok(of(address));
    }
    let (namespace, name) = in_namespace(to);
    let service = world.services.iter().find(|s| s.namespace == namespace && s.name == name);
    match (find_pod(world, to), service) {
        (Some(_), Some(_)) => Err(Problem::Wrong(format!(
            "DST {to:?}: there is a pod and a Service of this name; write the address of the one that you mean"
        ))),
        (Some(pod), None) => pod.ip.map(of).ok_or_else(|| no_address(pod)),
        (None, Some(service)) => service.ip.map(of).ok_or_else(|| {
            Problem::Wrong(format!(
                "DST {to:?}: this Service has no ClusterIP; name one of its pods, or write an address"
            ))
        }),
        (None, None) => {
            let cause = "it is no pod, no Service, no machine and no IPv4 address";
            Err(Problem::Wrong(format!("DST {to:?}: {cause}; {}", known(world, to, true))))
        }
    }
}

fn no_address(pod: &Pod) -> Problem {
    let mend = format!("see why: kubectl -n {} describe pod {}", pod.namespace, pod.name);
    Problem::Failed(Failure::new(format!("pod {}", pod.called()), "it has no address yet", mend))
}

fn in_namespace(text: &str) -> (&str, &str) {
    text.split_once('/').unwrap_or(("default", text))
}

fn find_pod<'w>(world: &'w World, text: &str) -> Option<&'w Pod> {
    let (namespace, name) = in_namespace(text);
    world.pods.iter().find(|pod| pod.namespace == namespace && pod.name == name)
}

/// What there is, or what was probably meant.
fn known(world: &World, typed: &str, services: bool) -> String {
    let pods = world.pods.iter().map(Pod::called);
    let machines = world.machines.iter().map(|machine| machine.name.clone());
    let services = world.services.iter().filter(|_| services).map(Service::called);
    let all: BTreeSet<String> = pods.chain(machines).chain(services).collect();
    hint(typed, all.iter().map(String::as_str), "there are")
}

/// Name and port, as they were typed.
fn split(to: &str) -> Result<(&str, Option<&str>), Problem> {
    match to.split_once(':') {
        None => Ok((to, None)),
        Some((name, port)) if !name.is_empty() && !port.is_empty() && !port.contains(':') => {
            Ok((name, Some(port)))
        }
        Some(_) => Err(Problem::Wrong(format!(
            "DST {to:?}: it is not DST[:PORT] with a name or an IPv4 address; write for example 10.96.0.10:53"
        ))),
    }
}

/// Protocol and port. A Service without a port means its first one: nobody answers a ping there.
fn speech(
    target: &Target,
    typed: &str,
    port: Option<&str>,
    protocol: Option<Protocol>,
) -> Result<(Protocol, Option<u16>), Problem> {
    let wrong = |cause: String| Problem::Wrong(format!("DST {typed:?}: {cause}"));
    let ports = target.service.iter().flat_map(|service| &service.ports);
    match (port, protocol) {
        (Some(_), Some(Protocol::Icmp)) => {
            Err(wrong("ICMP has no ports; leave out the port, or --protocol icmp".into()))
        }
        (Some(port), protocol) => {
            if let Ok(number) = port.parse::<u16>()
                && number > 0
            {
                // A Service that has the port says which protocol it is of.
                let only = ports.clone().find(|p| target.number(p) == Some(number)).map(|p| p.protocol);
                return Ok((protocol.or(only).unwrap_or(Protocol::Tcp), Some(number)));
            }
            let named = ports
                .clone()
                .find(|p| p.name == port && protocol.is_none_or(|wanted| wanted == p.protocol))
                .ok_or_else(|| {
                    wrong(format!("{port:?} is no port; write a number from 1 to 65535, or the name of a port of the Service"))
                })?;
            Ok((named.protocol, Some(named.port)))
        }
        (None, Some(Protocol::Icmp)) => Ok((Protocol::Icmp, None)),
        (None, wanted) => match ports.clone().find(|p| wanted.is_none_or(|wanted| wanted == p.protocol)) {
            Some(first) => Ok((first.protocol, Some(first.port))),
            None if wanted.is_none() => Ok((Protocol::Icmp, None)),
            None => Err(wrong(format!("it needs a port; write {typed}:PORT"))),
        },
    }
}

impl Target {
    /// The number that a port of the Service has at this address.
    fn number(&self, port: &ServicePort) -> Option<u16> {
        if self.by_node { port.node_port } else { Some(port.port) }
    }
}

impl Plan {
    /// Who may answer: backends of the Service's port, else the target itself.
    pub fn answerers(&self) -> Vec<Ipv4Addr> {
        let port = self.service_port();
        match (&self.target.service, port) {
            (Some(_), port) => {
                port.iter().flat_map(|port| &port.backends).map(|(address, _)| *address).collect()
            }
            (None, _) => vec![self.target.address],
        }
    }

    /// Every port at which the flow may arrive: the one that is meant, and those of backends.
    pub fn ports(&self) -> BTreeSet<u16> {
        let backends = self.service_port().map(|port| port.backends.iter().map(|(_, port)| *port));
        self.port.into_iter().chain(backends.into_iter().flatten()).collect()
    }

    /// The port of the Service that is meant.
    pub fn service_port(&self) -> Option<&ServicePort> {
        let is_it = |p: &&ServicePort| {
            p.protocol == self.protocol && self.port.is_some() && self.target.number(p) == self.port
        };
        self.target.service.as_ref()?.ports.iter().find(is_it)
    }

    /// Where to tap: the devices of every machine, and both ends of the veth pairs of the pods that take part.
    pub fn taps(&self, world: &World) -> Vec<Tap> {
        let answerers = self.answerers();
        let takes_part = |pod: &Pod| {
            let is_source = self.source.pod.as_ref().is_some_and(|source| source.ip == pod.ip);
            !pod.host_network && (is_source || pod.ip.is_some_and(|ip| answerers.contains(&ip)))
        };
        let pods: Vec<&Pod> = world.pods.iter().filter(|pod| takes_part(pod)).collect();
        let mut taps = Vec::new();
        for machine in &world.machines {
            let by_loopback = self.may_talk_to_itself(world, &machine.name);
            let wanted = machine.devices.iter().filter(|device| {
                let is_pods = device.name.starts_with(names::ENDPOINT_DEVICE_PREFIX);
                // Whose device it is the agent tells; where it does not, each may be the one.
                let takes_part = pods.iter().any(|pod| {
                    pod.node == machine.name && pod.device.as_ref().is_none_or(|own| *own == device.name)
                });
                device.up
                    && device.name != names::HOST_DEVICE_PEER
                    && (device.name != "lo" || by_loopback)
                    && (!is_pods || takes_part)
            });
            taps.extend(wanted.map(|device| Tap {
                machine: machine.name.clone(),
                device: device.name.clone(),
                pod: None,
            }));
        }
        for pod in pods {
            let Some(ip) = pod.ip else { continue };
            let tap = |device: &str| Tap {
                machine: pod.node.clone(),
                device: device.into(),
                pod: Some((pod.called(), ip)),
            };
            // A Service may give a pod to itself.
            if self.source.pod.as_ref().is_some_and(|source| source.ip == pod.ip) {
                taps.push(tap("lo"));
            }
            taps.push(tap(POD_DEVICE));
        }
        taps
    }

    /// The machine is the source, and may be the target too.
    fn may_talk_to_itself(&self, world: &World, machine: &str) -> bool {
        let is_own = |ip: &Ipv4Addr| matches!(world.owner(*ip), Some(Owner::Machine(m)) if m.name == machine);
        self.source.pod.is_none()
            && self.source.machine == machine
            && (self.target.address.is_loopback() || self.answerers().iter().any(is_own))
    }
}

/// The pod's end of its veth pair, as Kubernetes has it.
pub const POD_DEVICE: &str = "eth0";

#[cfg(test)]
mod tests {
    use super::super::testing::{CURL, WEB_FAR, world};
    use super::*;

    fn wrong(from: &str, to: &str, protocol: Option<Protocol>) -> String {
        match plan(&world(), from, to, protocol) {
            Err(Problem::Wrong(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    fn good(from: &str, to: &str, protocol: Option<Protocol>) -> Plan {
        plan(&world(), from, to, protocol).unwrap_or_else(|e| panic!("{e:?}"))
    }

    #[test]
    fn names_addresses_and_ports_are_resolved() {
        let by_name = good("curl-pod", "web-far:80", None);
        assert_eq!((by_name.target.address, by_name.port), (WEB_FAR, Some(80)));
        assert_eq!(by_name.source.pod.as_ref().and_then(|p| p.ip), Some(CURL));
        assert_eq!((by_name.protocol, by_name.answerers()), (Protocol::Tcp, vec![WEB_FAR]));
        let ping = good("default/curl-pod", "router", None);
        assert_eq!((ping.protocol, ping.port), (Protocol::Icmp, None));
        assert_eq!(ping.target.address.to_string(), "192.168.10.200");
        let node = good("k8s-ctr", "10.10.1.200:80", Some(Protocol::Udp));
        assert_eq!((node.protocol, node.port), (Protocol::Udp, Some(80)));
        assert!(node.source.pod.is_none());
        assert!(good("curl-pod", "198.51.100.1", None).target.service.is_none(), "nothing of the lab");
    }

    #[test]
    fn a_service_is_meant_at_its_port() {
        for to in ["webpod", "10.96.1.1", "webpod:80", "webpod:http", "default/webpod"] {
            let plan = good("curl-pod", to, None);
            assert_eq!((plan.protocol, plan.port), (Protocol::Tcp, Some(80)), "{to}");
            assert_eq!(plan.answerers().len(), 3, "{to}");
        }
        assert_eq!(good("curl-pod", "kube-system/kube-dns:53", None).protocol, Protocol::Udp);
        assert_eq!(good("curl-pod", "webpod", Some(Protocol::Icmp)).port, None);
        let other = good("curl-pod", "webpod:81", None);
        assert!(other.service_port().is_none() && other.answerers().is_empty());
    }

    #[test]
    fn a_port_of_a_node_is_a_service_s() {
        let plan = good("router", "k8s-w1:30080", None);
        assert_eq!(plan.target.service.as_ref().map(|s| s.name.as_str()), Some("webpod"));
        assert!(plan.target.by_node && plan.answerers().len() == 3);
        assert_eq!(plan.ports(), BTreeSet::from([80, 30080]));
        for other in ["k8s-w1:80", "router:30080", "10.96.1.1:30080"] {
            assert!(!good("curl-pod", other, None).target.by_node, "{other}");
        }
        let udp = good("router", "k8s-w1:30080", Some(Protocol::Udp));
        assert!(udp.target.service.is_none());
    }

    #[test]
    fn wrong_use_says_what_there_is() {
        assert!(wrong("curl-podd", "router", None).contains("did you mean \"curl-pod\"?"));
        let unknown = wrong("nobody-at-all", "router", None);
        assert!(unknown.contains("k8s-ctr") && unknown.contains("web-far"), "{unknown}");
        assert!(!unknown.contains("kube-dns"), "a Service does not send: {unknown}");
        assert!(wrong("curl-pod", "webpodx", None).contains("did you mean \"webpod\"?"));
        assert!(wrong("curl-pod", "fd00::1", None).contains("IPv4"));
        assert!(wrong("curl-pod", "router:0", None).contains("1 to 65535"));
        assert!(wrong("curl-pod", "webpod:https", None).contains("no port"));
        assert!(wrong("curl-pod", "router:80", Some(Protocol::Icmp)).contains("no ports"));
        assert!(wrong("curl-pod", "router", Some(Protocol::Tcp)).contains("router:PORT"));
        assert!(wrong("curl-pod", "headless:80", None).contains("no ClusterIP"));
        assert!(matches!(
            plan(&world(), "pending", "router", None),
            Err(Problem::Failed(failure)) if failure.cause.contains("no address")
        ));
    }

    #[test]
    fn taps_are_those_of_the_way() {
        let world = world();
        let names = |from, to| -> Vec<String> {
            let taps = good(from, to, None).taps(&world);
            taps.iter().map(|tap| format!("{}:{}", tap.place(), tap.device)).collect()
        };
        let taps = names("curl-pod", "web-far:80");
        for wanted in
            ["curl-pod:eth0", "k8s-ctr:lxc1", "k8s-ctr:eth1", "router:eth0", "k8s-w0:lxc3", "web-far:eth0"]
        {
            assert!(taps.iter().any(|tap| tap == wanted), "{wanted}: {taps:?}");
        }
        for other in ["k8s-w1:lxc2", "k8s-ctr:podwire_net", "k8s-ctr:lo", "web-near:eth0"] {
            assert!(!taps.iter().any(|tap| tap == other), "{other}: {taps:?}");
        }
        let mut silent = world.clone();
        silent.pods.iter_mut().for_each(|pod| pod.device = None);
        let taps = good("curl-pod", "web-far:80", None).taps(&silent);
        assert!(taps.iter().any(|tap| tap.device == "lxc1"), "{taps:?}");
        assert!(names("curl-pod", "webpod").iter().any(|tap| tap == "web-near:eth0"), "it may answer");
        assert!(names("k8s-ctr", "k8s-ctr").iter().any(|tap| tap == "k8s-ctr:lo"));
    }
}
