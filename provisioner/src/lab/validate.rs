//! What a lab file says, checked together: addresses, names, roles, routes and values.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use podwire_api::names;
use podwire_api::values::{IpamMode, Values, ValuesError};
use serde_json::Value;

use super::decode::{At, RawInterface, RawLab, RawNode};
use super::diagnostic::Report;
use super::values::shape_error;
use super::words::hint;
use super::{App, Interface, Kubernetes, Lab, Node, OwnNetwork, Role, Route, Source, Subnet};

/// IFNAMSIZ of linux/if.h, less its NUL. A node's port on a switch carries the node's name.
const DEVICE_NAME_MAX: usize = 15;
/// Names that a port on a switch cannot have.
const NO_PORTS: [&str; 4] = ["lo", "all", "default", crate::plan::BRIDGE];
/// Leaves room for `-<node>` in a file name and for readable prompts.
pub(super) const LAB_NAME_MAX: usize = 40;

/// Checks everything that can be checked and builds the lab if what it needs is there. Errors go to the report.
pub(super) fn validate(raw: &RawLab, source: &Source, report: &mut Report) -> Option<Lab> {
    if !report.is_empty() && raw.name.is_none() && raw.nodes.is_empty() {
        return None; // A file that is not TOML: its syntax errors are the whole story.
    }
    let mut v = Validator { raw, report };
    v.names();
    v.roles();
    v.networks();
    v.interfaces();
    v.duplicates();
    v.routes();
    v.kubernetes();
    let apps = v.apps(source);
    v.values();
    build(raw, apps)
}

/// A DNS-1123 label: names of hosts, of Kubernetes objects and of namespaces alike. The error is the cause and the mend.
pub(super) fn check_name(text: &str, most: usize) -> Result<(), String> {
    let label = !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if !label {
        return Err(
            "is no DNS label; use lower-case letters, digits and inner hyphens, for example \"k8s-w1\""
                .into(),
        );
    }
    if text.len() > most {
        return Err(format!("has {} characters; use at most {most}", text.len()));
    }
    Ok(())
}

struct Validator<'a> {
    raw: &'a RawLab,
    report: &'a mut Report,
}

impl Validator<'_> {
    fn names(&mut self) {
        match &self.raw.name {
            None => self.report.add(1, "the lab has no name; add name = \"my-lab\""),
            Some(name) => self.name("the lab's name", name, LAB_NAME_MAX),
        }
        for subnet in &self.raw.subnets {
            self.name("the subnet's name", &subnet.name, LAB_NAME_MAX);
            if self.raw.nodes.iter().any(|n| n.name.value == subnet.name.value) {
                let name = &subnet.name.value;
                let message = format!(
                    "subnet {name:?} has the name of a node; both would be one network namespace: rename one"
                );
                self.report.add(subnet.name.line, message);
            }
        }
        for node in &self.raw.nodes {
            self.name("the node's name", &node.name, DEVICE_NAME_MAX);
            if NO_PORTS.contains(&node.name.value.as_str()) {
                let name = &node.name.value;
                let message = format!(
                    "the node's name {name:?} cannot be that of its port on a switch; rename it, for example \"k8s-w1\""
                );
                self.report.add(node.name.line, message);
            }
            let devices = node.interfaces.iter().map(|i| &i.name).chain(node.networks.iter().map(|n| &n.0));
            let mut seen: Vec<&str> = Vec::new();
            for device in devices {
                if seen.contains(&device.value.as_str()) {
                    let message = format!(
                        "node {:?} has two devices {:?}, an interface and a network; rename one",
                        node.name.value, device.value
                    );
                    self.report.add(device.line, message);
                }
                seen.push(&device.value);
                self.device(&node.name.value, device);
            }
        }
    }

    fn name(&mut self, what: &str, name: &At<String>, most: usize) {
        if let Err(cause) = check_name(&name.value, most) {
            self.report.add(name.line, format!("{what} {:?} {cause}", name.value));
        }
    }

    fn device(&mut self, node: &str, device: &At<String>) {
        let text = &device.value;
        let usable = !text.is_empty()
            && text.len() <= DEVICE_NAME_MAX
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            && !matches!(text.as_str(), "." | ".." | "all" | "default");
        let taken = text == "lo"
            || text == names::HOST_DEVICE
            || text == names::HOST_DEVICE_PEER
            || text.starts_with(names::ENDPOINT_DEVICE_PREFIX);
        if !usable {
            let message = format!(
                "node {node:?}: {text:?} is no device name; use 1 to {DEVICE_NAME_MAX} letters, digits, hyphens, dots \
                 or underscores, for example eth1"
            );
            self.report.add(device.line, message);
        } else if taken {
            let message = format!(
                "node {node:?}: the device name {text:?} is used by the node itself; use another, for example eth1"
            );
            self.report.add(device.line, message);
        }
    }

    fn roles(&mut self) {
        let mut control_planes =
            self.raw.nodes.iter().filter(|n| n.role.as_ref().is_some_and(|r| r.value == Role::ControlPlane));
        let first = control_planes.next();
        for other in control_planes {
            let message = format!(
                "node {:?} is a second control plane beside {:?}; make it role = \"worker\"",
                other.name.value,
                first.map_or("", |f| f.name.value.as_str())
            );
            self.report.add(other.role.as_ref().map_or(other.name.line, |r| r.line), message);
        }
        // A role that could not be read may be the control plane: that error is reported already.
        if first.is_none() && self.raw.nodes.iter().all(|n| n.role.is_some()) {
            let line = self.raw.nodes.first().map_or(1, |n| n.name.line);
            self.report.add(line, "no node is the control plane; give one role = \"control-plane\"");
        }
        for node in &self.raw.nodes {
            let name = &node.name.value;
            let Some(role) = &node.role else { continue };
            if !node.has_interfaces || (node.interfaces.is_empty() && self.report.is_empty()) {
                let message = format!(
                    "node {name:?} has no interface; add interfaces.eth1 = {{ subnet = \"...\", address = \"...\" }}"
                );
                self.report.add(node.name.line, message);
            } else if role.value.is_kubernetes()
                && !node.interfaces.is_empty()
                && !node.interfaces.iter().any(|i| i.name.value == names::UNDERLAY_DEVICE)
            {
                let message = format!(
                    "node {name:?} has no interface {:?}, whose address is a Kubernetes node's; rename {:?}",
                    names::UNDERLAY_DEVICE,
                    node.interfaces[0].name.value
                );
                self.report.add(node.interfaces[0].name.line, message);
            }
            if let Some(web) = node.web.as_ref().filter(|_| role.value.is_kubernetes()) {
                let message = format!("node {name:?} runs Kubernetes; give the web server to a router");
                self.report.add(web.line, message);
            }
        }
    }

    /// Every network of the lab, with what it is called in errors.
    fn all_networks(&self) -> Vec<(String, Ipv4Net, usize)> {
        let raw = self.raw;
        let mut all = Vec::new();
        let cluster = [("podCIDR", &raw.pod_cidr), ("serviceCIDR", &raw.service_cidr)];
        for (name, cidr) in cluster {
            all.extend(cidr.as_ref().map(|c| (name.to_owned(), c.value, c.line)));
        }
        for subnet in &raw.subnets {
            let cidr = subnet.cidr.as_ref();
            all.extend(cidr.map(|c| (format!("subnet {:?}", subnet.name.value), c.value, c.line)));
        }
        for node in &raw.nodes {
            for (device, address) in &node.networks {
                let what = format!("network {:?} of node {:?}", device.value, node.name.value);
                all.push((what, address.value.trunc(), address.line));
            }
        }
        all
    }

    fn networks(&mut self) {
        if self.raw.subnets.is_empty() {
            self.report.add(1, "the lab has no subnet; add [subnets.lan-a] with cidr = \"192.168.10.0/24\"");
        }
        let all = self.all_networks();
        for (i, (what, cidr, line)) in all.iter().enumerate() {
            if let Some(cause) = unusable(*cidr) {
                let message =
                    format!("{what} ({cidr}) {cause}; use a private network such as 192.168.10.0/24");
                self.report.add(*line, message);
            }
            for (other, other_cidr, other_line) in &all[..i] {
                if cidr.contains(other_cidr) || other_cidr.contains(cidr) {
                    let message = format!(
                        "{what} ({cidr}) overlaps {other} ({other_cidr}, line {other_line}); choose another network for one"
                    );
                    self.report.add(*line, message);
                }
            }
        }
        for subnet in &self.raw.subnets {
            if let Some(cidr) = subnet.cidr.as_ref().filter(|c| !(8..=29).contains(&c.value.prefix_len())) {
                let message = format!(
                    "subnet {:?} is a /{}; use a prefix length from 8 to 29",
                    subnet.name.value,
                    cidr.value.prefix_len()
                );
                self.report.add(cidr.line, message);
            }
        }
        for node in &self.raw.nodes {
            for (device, address) in &node.networks {
                let what = format!("network {:?} of node {:?}", device.value, node.name.value);
                self.host_address(&what, address.value.addr(), address.value, address.line);
            }
        }
    }

    fn interfaces(&mut self) {
        let raw = self.raw;
        for node in &raw.nodes {
            let mut seen: Vec<(&str, &str)> = Vec::new();
            for interface in &node.interfaces {
                let Some(subnet_name) = &interface.subnet else { continue };
                let thing = format!("node {:?}", node.name.value);
                let Some(subnet) = raw.subnets.iter().find(|s| s.name.value == subnet_name.value) else {
                    let known = raw.subnets.iter().map(|s| s.name.value.as_str());
                    let hint = hint(&subnet_name.value, known, "the subnets are");
                    let message = format!(
                        "{thing}: interface {:?} is in the unknown subnet {:?}; {hint}",
                        interface.name.value, subnet_name.value
                    );
                    self.report.add(subnet_name.line, message);
                    continue;
                };
                if let Some((first, _)) = seen.iter().find(|(_, s)| *s == subnet_name.value) {
                    let message = format!(
                        "{thing} has interfaces {first:?} and {:?} in subnet {:?}; keep one",
                        interface.name.value, subnet_name.value
                    );
                    self.report.add(interface.name.line, message);
                }
                seen.push((&interface.name.value, &subnet_name.value));
                if let (Some(cidr), Some(address)) = (&subnet.cidr, &interface.address) {
                    if cidr.value.contains(&address.value) {
                        self.host_address(&thing, address.value, cidr.value, address.line);
                    } else {
                        let message = format!(
                            "{thing} has {}, outside subnet {:?} ({}); write an address such as {}",
                            address.value,
                            subnet_name.value,
                            cidr.value,
                            example_host(cidr.value)
                        );
                        self.report.add(address.line, message);
                    }
                }
            }
        }
    }

    fn host_address(&mut self, thing: &str, address: Ipv4Addr, network: Ipv4Net, line: usize) {
        if network.prefix_len() > 30 {
            return;
        }
        let kind = match address {
            a if a == network.network() => "network",
            a if a == network.broadcast() => "broadcast",
            _ => return,
        };
        let message = format!(
            "{thing} has {address}, the {kind} address of {}; write an address such as {}",
            network.trunc(),
            example_host(network)
        );
        self.report.add(line, message);
    }

    fn duplicates(&mut self) {
        let mut seen: Vec<(Ipv4Addr, String)> = Vec::new();
        for node in &self.raw.nodes {
            let of_interfaces = node
                .interfaces
                .iter()
                .filter_map(|i| i.address.as_ref().map(|a| (a.value, a.line, &i.name.value)));
            let of_networks = node.networks.iter().map(|(d, a)| (a.value.addr(), a.line, &d.value));
            for (address, line, device) in of_interfaces.chain(of_networks) {
                let owner = format!("{device} of node {:?}", node.name.value);
                match seen.iter().find(|(a, _)| *a == address) {
                    Some((_, first)) => {
                        let message = format!(
                            "{owner} has {address}, which {first} has too; give each its own address"
                        );
                        self.report.add(line, message);
                    }
                    None => seen.push((address, owner)),
                }
            }
        }
    }

    fn routes(&mut self) {
        for node in &self.raw.nodes {
            let thing = format!("node {:?}", node.name.value);
            let mut seen: Vec<Ipv4Net> = Vec::new();
            for (to, via) in &node.routes {
                if seen.contains(&to.value) {
                    self.report.add(to.line, format!("{thing} has two routes to {}; keep one", to.value));
                }
                seen.push(to.value);
                // A subnet that is not known has its own error, and says nothing about next hops.
                let subnets: Option<Vec<Ipv4Net>> =
                    node.interfaces.iter().map(|i| self.subnet_of(i)).collect();
                let Some(own) = subnets.filter(|s| !s.is_empty()) else { continue };
                let addresses = node.interfaces.iter().filter_map(|i| i.address.as_ref());
                let networks = || node.networks.iter().map(|(_, net)| net.value);
                let is_own = addresses
                    .map(|a| a.value)
                    .chain(networks().map(|net| net.addr()))
                    .any(|a| a == via.value);
                // A way into a network that nothing else is connected to: what goes there is gone.
                let leads_nowhere = networks().any(|net| net.contains(&via.value));
                if let Some(cidr) = own.iter().find(|n| **n == to.value) {
                    let message = format!(
                        "{thing}: the route to {} is that of its own subnet {}; remove it",
                        to.value,
                        cidr.trunc()
                    );
                    self.report.add(to.line, message);
                } else if is_own {
                    let message = format!(
                        "{thing}: the next hop {} of the route to {} is the node itself; write the address of a router",
                        via.value, to.value
                    );
                    self.report.add(via.line, message);
                } else if leads_nowhere {
                    // As its author wants it.
                } else if !own.iter().any(|n| n.contains(&via.value)) {
                    let subnets: Vec<String> = own.iter().map(ToString::to_string).collect();
                    let message = format!(
                        "{thing}: the next hop {} of the route to {} is in none of its subnets ({}); write the address of a neighbour there",
                        via.value,
                        to.value,
                        subnets.join(", ")
                    );
                    self.report.add(via.line, message);
                } else if !self.somebody_has(via.value) {
                    let message = format!(
                        "{thing}: no node has {}, the next hop of the route to {}; write the address of a router",
                        via.value, to.value
                    );
                    self.report.add(via.line, message);
                }
            }
        }
    }

    fn somebody_has(&self, address: Ipv4Addr) -> bool {
        let interfaces = self.raw.nodes.iter().flat_map(|n| &n.interfaces);
        interfaces.filter_map(|i| i.address.as_ref()).any(|a| a.value == address)
    }

    fn subnet_of(&self, interface: &RawInterface) -> Option<Ipv4Net> {
        let name = &interface.subnet.as_ref()?.value;
        let subnet = self.raw.subnets.iter().find(|s| s.name.value == *name)?;
        Some(subnet.cidr.as_ref()?.value)
    }

    fn kubernetes(&mut self) {
        let raw = self.raw;
        if raw.pod_cidr.is_none() && self.report.is_empty() {
            self.report.add(1, "the lab has no pod CIDR; add [kubernetes] with podCIDR = \"10.244.0.0/16\"");
        }
        if raw.service_cidr.is_none() && self.report.is_empty() {
            self.report
                .add(1, "the lab has no service CIDR; add serviceCIDR = \"10.96.0.0/16\" to [kubernetes]");
        }
        let Some(pods) = &raw.pod_cidr else { return };
        let (size, line) =
            raw.mask_size.as_ref().map_or((DEFAULT_MASK_SIZE, pods.line), |m| (m.value, m.line));
        for (what, cidr) in [("podCIDR", Some(pods)), ("serviceCIDR", raw.service_cidr.as_ref())] {
            if let Some(cidr) = cidr.filter(|c| c.value.prefix_len() > SMALLEST_CLUSTER_CIDR) {
                let message = format!(
                    "{what} {} has hardly an address; use a prefix length of at most {SMALLEST_CLUSTER_CIDR}",
                    cidr.value
                );
                self.report.add(cidr.line, message);
            }
        }
        if pods.value.prefix_len() > SMALLEST_CLUSTER_CIDR {
            return;
        }
        if size < pods.value.prefix_len() {
            let message = format!(
                "nodeCIDRMaskSize {size} is larger than the pod CIDR {}; write a prefix length from {} to 30",
                pods.value,
                pods.value.prefix_len()
            );
            self.report.add(line, message);
            return;
        }
        let room = 1_u64 << u32::from(size - pods.value.prefix_len()).min(32);
        let nodes =
            raw.nodes.iter().filter(|n| n.role.as_ref().is_some_and(|r| r.value.is_kubernetes())).count();
        if (nodes as u64) > room {
            let message = format!(
                "podCIDR {} holds {room} nodes of /{size}, but {nodes} nodes need one; use a larger podCIDR or nodeCIDRMaskSize",
                pods.value
            );
            self.report.add(pods.line, message);
        }
    }

    fn apps(&mut self, source: &Source) -> Vec<App> {
        let mut apps: Vec<App> = Vec::new();
        for wanted in &self.raw.apps {
            match source.app(&wanted.value) {
                Err(message) => self.report.add(wanted.line, message),
                Ok((name, _)) if apps.iter().any(|a| a.name == name) => {
                    self.report.add(wanted.line, format!("app {name:?} is listed twice; keep one"));
                }
                Ok((name, manifest)) => {
                    if let Err(cause) = crate::deploy::manifest::objects(&manifest) {
                        let message = format!("app {name:?}: {cause}");
                        self.report.add(wanted.line, message);
                    }
                    apps.push(App { name, manifest });
                }
            }
        }
        apps
    }

    /// Each leaf alone first, so that every wrong key has its line; then all together.
    fn values(&mut self) {
        let raw = self.raw;
        let mut wrong = false;
        for leaf in &raw.value_lines {
            if let Some(message) = shape_error(&raw.values, &leaf.value) {
                wrong = true;
                self.report.add(leaf.line, format!("values: {message}"));
            }
        }
        if wrong {
            return;
        }
        let values = match Values::from_value(Value::Object(raw.values.clone())) {
            Ok(values) => values,
            Err(error) => {
                let line = match &error {
                    ValuesError::Invalid { key, .. } => self.line_of_value(key),
                    _ => self.line_of_value(""),
                };
                return self.report.add(line, format!("values: {error}"));
            }
        };
        let native = &values.ipv4_native_routing_cidr;
        if native.is_empty() {
            return;
        }
        let line = self.line_of_value("ipv4NativeRoutingCIDR");
        let pools: Vec<Ipv4Net> = match values.ipam.mode {
            IpamMode::Kubernetes => raw.pod_cidr.iter().map(|c| c.value).collect(),
            IpamMode::ClusterPool => values.ipam.operator.pod_cidr_list.clone(),
        };
        for pool in pools.iter().filter(|p| !native.iter().any(|n| n.contains(*p))) {
            let native: Vec<String> = native.iter().map(ToString::to_string).collect();
            let native = native.join(", ");
            let message = format!(
                "values: ipv4NativeRoutingCIDR {native} misses the pod CIDR {pool}; pods would be masqueraded to each other: write {:?}",
                pool.to_string()
            );
            self.report.add(line, message);
        }
        for subnet in &raw.subnets {
            let Some(cidr) = &subnet.cidr else { continue };
            for pool in values.ipam.operator.pod_cidr_list.iter().filter(|p| overlap(**p, cidr.value)) {
                let message = format!(
                    "values: the pool {pool} overlaps subnet {:?} ({}); choose another pool",
                    subnet.name.value, cidr.value
                );
                self.report.add(self.line_of_value("ipam.operator.clusterPoolIPv4PodCIDRList"), message);
            }
        }
    }

    fn line_of_value(&self, key: &str) -> usize {
        let lines = &self.raw.value_lines;
        lines.iter().find(|l| l.value == key).or(lines.first()).map_or(1, |l| l.line)
    }
}

/// Longest prefix of podCIDR and serviceCIDR that leaves addresses to hand out.
const SMALLEST_CLUSTER_CIDR: u8 = 29;
/// Prefix length of a node's pod CIDR where the file names none, as in kubeadm.
const DEFAULT_MASK_SIZE: u8 = 24;

fn network_of(raw: &RawLab, interface: &RawInterface) -> Option<Ipv4Net> {
    let subnet =
        raw.subnets.iter().find(|s| Some(&s.name.value) == interface.subnet.as_ref().map(|s| &s.value))?;
    Ipv4Net::new(interface.address.as_ref()?.value, subnet.cidr.as_ref()?.value.prefix_len()).ok()
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

fn example_host(network: Ipv4Net) -> Ipv4Addr {
    network.hosts().nth(99).or_else(|| network.hosts().next()).unwrap_or_else(|| network.addr())
}

fn unusable(cidr: Ipv4Net) -> Option<&'static str> {
    let parts: [(&str, &str); 4] = [
        ("127.0.0.0/8", "is part of the loopback network"),
        ("169.254.0.0/16", "is part of the link-local network"),
        ("224.0.0.0/3", "is part of the multicast and reserved networks"),
        ("0.0.0.0/8", "is part of \"this network\" (0.0.0.0/8)"),
    ];
    let hit = parts.iter().find(|(net, _)| net.parse::<Ipv4Net>().is_ok_and(|net| overlap(net, cidr)));
    hit.map(|(_, cause)| *cause)
}

fn build(raw: &RawLab, apps: Vec<App>) -> Option<Lab> {
    let node = |n: &RawNode| -> Option<Node> {
        let interface = |i: &RawInterface| -> Option<Interface> {
            Some(Interface {
                name: i.name.value.clone(),
                subnet: i.subnet.as_ref()?.value.clone(),
                address: network_of(raw, i)?,
            })
        };
        Some(Node {
            name: n.name.value.clone(),
            role: n.role.as_ref()?.value,
            interfaces: n.interfaces.iter().map(interface).collect::<Option<_>>()?,
            networks: n
                .networks
                .iter()
                .map(|(device, address)| OwnNetwork { device: device.value.clone(), address: address.value })
                .collect(),
            routes: n.routes.iter().map(|(to, via)| Route { to: to.value, via: via.value }).collect(),
            web: n.web.as_ref().map(|w| w.value.clone()),
        })
    };
    let name = raw.name.as_ref()?.value.clone();
    Some(Lab {
        title: raw.title.as_ref().map_or_else(|| name.clone(), |t| t.value.clone()),
        name,
        week: raw.week.as_ref().map(|w| w.value),
        kubernetes: Kubernetes {
            pod_cidr: raw.pod_cidr.as_ref()?.value,
            service_cidr: raw.service_cidr.as_ref()?.value,
            node_cidr_mask_size: raw.mask_size.as_ref().map_or(DEFAULT_MASK_SIZE, |m| m.value),
        },
        subnets: raw
            .subnets
            .iter()
            .map(|s| Some(Subnet { name: s.name.value.clone(), cidr: s.cidr.as_ref()?.value }))
            .collect::<Option<_>>()?,
        nodes: raw.nodes.iter().map(node).collect::<Option<_>>()?,
        values: raw.values.clone(),
        apps,
    })
}
