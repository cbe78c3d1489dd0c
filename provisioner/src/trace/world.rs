//! What a trace knows of a lab: its machines, pods and Services as they are just now. Pure data.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::Protocol;
use crate::lab::Lab;
use crate::routes;

/// The lab at one moment.
#[derive(Clone, Debug)]
pub struct World {
    /// The lab as it was brought up.
    pub lab: Lab,
    /// Its machines, in the lab's order.
    pub machines: Vec<Machine>,
    /// Pods that have an address.
    pub pods: Vec<Pod>,
    /// Services.
    pub services: Vec<Service>,
    /// Each Kubernetes node's pod CIDRs.
    pub pod_cidrs: Vec<(String, Vec<Ipv4Net>)>,
}

/// A machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its devices.
    pub devices: Vec<Device>,
}

/// A device of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// It is up.
    pub up: bool,
    /// Its Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// Its IPv4 addresses.
    pub addresses: Vec<Ipv4Addr>,
}

/// A pod.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Its address; none before it has one.
    pub ip: Option<Ipv4Addr>,
    /// It lives in its node's network.
    pub host_network: bool,
    /// The node's end of its veth pair, if the agent told.
    pub device: Option<String>,
    /// Its identity, if the agent told.
    pub identity: Option<u32>,
}

/// A Service.
#[derive(Clone, Debug, Default)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its ClusterIP; none if it is headless or an alias.
    pub ip: Option<Ipv4Addr>,
    /// Callers from outside are served by pods of the node that they call only (`externalTrafficPolicy: Local`).
    pub local_only: bool,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

/// A port of a Service.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// Its name, if it has one.
    pub name: String,
    /// The number.
    pub port: u16,
    /// The same port at every node's addresses, if it has one (NodePort).
    pub node_port: Option<u16>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Who answers: address and port of those that are ready.
    pub backends: Vec<(Ipv4Addr, u16)>,
}

/// Who has an address.
#[derive(Clone, Copy, Debug)]
pub enum Owner<'a> {
    /// A pod with a network of its own.
    Pod(&'a Pod),
    /// A machine, or a pod in its network.
    Machine(&'a Machine),
}

impl Pod {
    /// Its name, with its namespace unless that is `default`.
    pub fn called(&self) -> String {
        called(&self.namespace, &self.name)
    }
}

impl Service {
    /// Its name, with its namespace unless that is `default`.
    pub fn called(&self) -> String {
        called(&self.namespace, &self.name)
    }

    /// What it serves, in words: `80/TCP`.
    pub fn serves(&self) -> Vec<String> {
        self.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol)).collect()
    }
}

fn called(namespace: &str, name: &str) -> String {
    if namespace == "default" { name.to_owned() } else { format!("{namespace}/{name}") }
}

impl Machine {
    /// The device that has an address.
    pub fn device_of(&self, ip: Ipv4Addr) -> Option<&Device> {
        self.devices.iter().find(|device| device.addresses.contains(&ip))
    }
}

impl World {
    /// A machine by its name.
    pub fn machine(&self, name: &str) -> Option<&Machine> {
        self.machines.iter().find(|machine| machine.name == name)
    }

    /// Who has an address.
    pub fn owner(&self, ip: Ipv4Addr) -> Option<Owner<'_>> {
        let pod = self.pods.iter().find(|pod| !pod.host_network && pod.ip == Some(ip));
        let machine = || self.machines.iter().find(|m| !ip.is_loopback() && m.device_of(ip).is_some());
        pod.map(Owner::Pod).or_else(|| machine().map(Owner::Machine))
    }

    /// What an address is called; none if nobody has it.
    pub fn called(&self, ip: Ipv4Addr) -> Option<String> {
        let owner = self.owner(ip).map(|owner| match owner {
            Owner::Pod(pod) => pod.called(),
            Owner::Machine(machine) => machine.name.clone(),
        });
        owner.or_else(|| self.service(ip).map(|service| format!("Service {}", service.called())))
    }

    /// An address with what it is called.
    pub fn with_name(&self, ip: Ipv4Addr) -> String {
        self.called(ip).map_or_else(|| ip.to_string(), |name| format!("{name} ({ip})"))
    }

    /// The Service that has a ClusterIP.
    pub fn service(&self, ip: Ipv4Addr) -> Option<&Service> {
        self.services.iter().find(|service| service.ip == Some(ip))
    }

    /// The Service that has a port of a node, if the address is one.
    pub fn node_port(&self, ip: Ipv4Addr, port: u16, protocol: Option<Protocol>) -> Option<&Service> {
        let Some(Owner::Machine(machine)) = self.owner(ip) else { return None };
        self.lab.node(&machine.name).filter(|node| node.role.is_kubernetes())?;
        let has_it =
            |p: &ServicePort| p.node_port == Some(port) && protocol.is_none_or(|wanted| wanted == p.protocol);
        self.services.iter().find(|service| service.ports.iter().any(has_it))
    }

    /// The machine and the device that have an Ethernet address.
    pub fn mac_owner(&self, mac: [u8; 6]) -> Option<(&Machine, &Device)> {
        self.machines.iter().find_map(|machine| {
            machine.devices.iter().find(|device| device.mac == Some(mac)).map(|device| (machine, device))
        })
    }

    /// The pod CIDR that an address is of, and its node.
    pub fn pod_cidr(&self, ip: Ipv4Addr) -> Option<(&str, Ipv4Net)> {
        self.pod_cidrs.iter().find_map(|(node, cidrs)| {
            cidrs.iter().find(|cidr| cidr.contains(&ip)).map(|cidr| (node.as_str(), *cidr))
        })
    }

    /// The route that a machine needs to reach an address, network and next hop: to a pod as the cluster has it, else as the lab file
    /// has it. None if neither says.
    pub fn route_to(&self, machine: &str, ip: Ipv4Addr) -> Option<(Ipv4Net, Ipv4Addr)> {
        let node = self.lab.node(machine)?;
        if let Some((_, cidr)) = self.pod_cidr(ip) {
            let (routes, _) = routes::pod_routes(&self.lab, node, &self.pod_cidrs);
            return routes.into_iter().find(|route| route.to == cidr).map(|route| (route.to, route.via));
        }
        let written = node.routes.iter().filter(|route| route.to.prefix_len() > 0 && route.to.contains(&ip));
        written.max_by_key(|route| route.to.prefix_len()).map(|route| (route.to, route.via))
    }

    /// Nothing is connected to this device of a machine: what leaves by it is gone.
    pub fn leads_nowhere(&self, machine: &str, device: &str) -> bool {
        self.lab.node(machine).is_some_and(|node| node.networks.iter().any(|net| net.device == device))
    }
}
