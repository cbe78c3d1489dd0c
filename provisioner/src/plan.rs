//! What a provider makes of a lab: every namespace, link, address, route, sysctl, file and process. Pure: nothing here
//! touches the machine, so that `lab up --dry-run` shows exactly what `lab up` does.

mod text;

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use podwire_api::names;
use podwire_api::values::{IpamMode, Values};
use serde::{Deserialize, Serialize};

use crate::lab::{Lab, Node, Role};

/// The device that joins a switch's ports.
pub const BRIDGE: &str = "br0";
/// Where the nodes find the cluster's certificates.
pub const PKI_DIR: &str = "/etc/kubernetes/pki";
/// The administrator's kubeconfig on the control plane's node, where kubeadm puts it.
pub const ADMIN_KUBECONFIG: &str = "/etc/kubernetes/admin.conf";
/// The node runtime's kubeconfig.
pub const KUBELET_KUBECONFIG: &str = "/etc/kubernetes/kubelet.conf";

/// Where the plan's files are on the host.
#[derive(Clone, Debug)]
pub struct Places {
    /// The lab's state directory.
    pub state: PathBuf,
    /// The directory of the project's programs.
    pub bin_dir: PathBuf,
}

/// All that is made for a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The lab's name.
    pub lab: String,
    /// One switch a subnet.
    pub switches: Vec<Switch>,
    /// The machines.
    pub machines: Vec<Machine>,
}

/// A network namespace with a bridge in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Switch {
    /// The namespace: `<lab>-<subnet>`.
    pub namespace: String,
    /// The bridge.
    pub bridge: String,
    /// Settings written before the bridge is made.
    pub sysctls: Vec<Sysctl>,
    /// One veth pair a connected interface.
    pub ports: Vec<Port>,
}

/// A veth pair between a switch and a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// The switch's end.
    pub name: String,
    /// The machine's namespace.
    pub namespace: String,
    /// The machine's end.
    pub device: String,
    /// The machine's MAC address; it carries the IPv4 address in its last four bytes, for the reader of a capture.
    pub mac: String,
}

/// One machine: a network namespace, and a process tree with its own mount, UTS, IPC and PID namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// Its host name.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// Its network namespace: `<lab>-<node>`.
    pub namespace: String,
    /// Devices that lead nowhere but hold an address.
    pub own_networks: Vec<String>,
    /// Device and address with prefix length.
    pub addresses: Vec<Address>,
    /// Static routes.
    pub routes: Vec<Hop>,
    /// Kernel settings of its network namespace.
    pub sysctls: Vec<Sysctl>,
    /// What its root file system holds beyond the host's.
    pub root: Root,
    /// Variables of every process on it.
    pub env: Vec<(String, String)>,
    /// What its first process runs, in this order.
    pub services: Vec<Service>,
}

/// An address of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The device.
    pub device: String,
    /// Address and prefix length.
    pub address: Ipv4Net,
}

/// A static route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// Destination.
    pub to: Ipv4Net,
    /// Next hop.
    pub via: Ipv4Addr,
}

/// A kernel setting below `/proc/sys`, with dots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// Its name, for example `net.ipv4.ip_forward`.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Kernels without it are fine.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

/// A machine's root file system: the host's, copied on write, and these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Root {
    /// Host directory on which the root is built; nothing is ever written to it from the host's point of view.
    pub mountpoint: PathBuf,
    /// Directories that start empty, whatever the host has there.
    pub empty: Vec<PathBuf>,
    /// Host paths that the machine sees.
    pub binds: Vec<Bind>,
    /// Files with the given text.
    pub files: Vec<File>,
}

/// A host path that a machine sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Path on the host.
    pub from: PathBuf,
    /// Path on the machine.
    pub to: PathBuf,
}

/// A file of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its path on the machine.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

/// A process that is started again when it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name, also that of its log: `/var/log/podwire/<name>.log`.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
}

/// The namespace of a lab's switch or machine.
pub fn namespace(lab: &str, thing: &str) -> String {
    format!("{lab}-{thing}")
}

/// Where a machine's files are in the lab's state directory.
pub fn machine_dir(state: &Path, node: &str) -> PathBuf {
    state.join("nodes").join(node)
}

/// Plans a lab. `values` are those it is brought up with.
pub fn plan(lab: &Lab, values: &Values, places: &Places) -> Plan {
    Plan {
        lab: lab.name.clone(),
        switches: lab.subnets.iter().map(|s| switch(lab, &s.name)).collect(),
        machines: lab.nodes.iter().map(|n| machine(lab, values, n, places)).collect(),
    }
}

fn switch(lab: &Lab, subnet: &str) -> Switch {
    let connected = lab.nodes.iter().flat_map(|n| n.interfaces.iter().map(move |i| (n, i)));
    Switch {
        namespace: namespace(&lab.name, subnet),
        bridge: BRIDGE.into(),
        sysctls: no_ipv6().into(),
        ports: connected
            .filter(|(_, i)| i.subnet == subnet)
            .map(|(node, interface)| Port {
                name: node.name.clone(),
                namespace: namespace(&lab.name, &node.name),
                device: interface.name.clone(),
                mac: mac(interface.address.addr()),
            })
            .collect(),
    }
}

/// A locally administered address that reads as the IPv4 address.
fn mac(ip: Ipv4Addr) -> String {
    let [a, b, c, d] = ip.octets();
    format!("52:54:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

fn sysctl(key: &str, value: &str) -> Sysctl {
    Sysctl { key: key.into(), value: value.into(), optional: false }
}

/// Labs speak IPv4; neighbour discovery would only blur their captures.
fn no_ipv6() -> [Sysctl; 2] {
    let off = |key: &str| Sysctl { optional: true, ..sysctl(key, "1") };
    [off("net.ipv6.conf.all.disable_ipv6"), off("net.ipv6.conf.default.disable_ipv6")]
}

fn machine(lab: &Lab, values: &Values, node: &Node, places: &Places) -> Machine {
    let addresses = node
        .interfaces
        .iter()
        .map(|i| Address { device: i.name.clone(), address: i.address })
        .chain(node.networks.iter().map(|n| Address { device: n.device.clone(), address: n.address }));
    let mut sysctls = vec![
        sysctl("net.ipv4.ip_forward", "1"),
        // New namespaces may inherit the host's filter; a lab behaves the same on every host.
        sysctl("net.ipv4.conf.all.rp_filter", "0"),
        sysctl("net.ipv4.conf.default.rp_filter", "0"),
    ];
    sysctls.extend(no_ipv6());
    Machine {
        name: node.name.clone(),
        role: node.role,
        namespace: namespace(&lab.name, &node.name),
        own_networks: node.networks.iter().map(|n| n.device.clone()).collect(),
        addresses: addresses.collect(),
        routes: node.routes.iter().map(|r| Hop { to: r.to, via: r.via }).collect(),
        sysctls,
        root: root(lab, node, places),
        env: env(node, places),
        services: services(lab, values, node, places),
    }
}

fn env(node: &Node, places: &Places) -> Vec<(String, String)> {
    let path =
        format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", places.bin_dir.display());
    let mut env = vec![("PATH".to_owned(), path), ("HOME".to_owned(), "/root".to_owned())];
    if node.role == Role::ControlPlane {
        env.push(("KUBECONFIG".to_owned(), ADMIN_KUBECONFIG.to_owned()));
    }
    env
}

fn root(lab: &Lab, node: &Node, places: &Places) -> Root {
    let dir = machine_dir(&places.state, &node.name);
    let bind = |from: PathBuf, to: &str| Bind { from, to: to.into() };
    // Programs that are rebuilt while the lab runs are seen through a bind mount, not through an overlay's cache.
    let mut binds = vec![
        Bind { from: places.bin_dir.clone(), to: places.bin_dir.clone() },
        bind(dir.join("log"), "/var/log/podwire"),
    ];
    let mut empty: Vec<PathBuf> = vec!["/etc/kubernetes".into()];
    if node.role.is_kubernetes() {
        empty.extend(
            ["/etc/cni", "/opt/cni", "/var/lib/cni", "/var/lib/kubelet", names::STATE_DIR].map(PathBuf::from),
        );
        binds.push(bind(places.state.join("pki"), PKI_DIR));
        binds.push(bind(dir.join("kubelet.conf"), KUBELET_KUBECONFIG));
    }
    if node.role == Role::ControlPlane {
        binds.push(bind(places.state.join("admin.conf"), ADMIN_KUBECONFIG));
        // The cluster's objects outlive the machine's first process, as a disk does.
        binds.push(bind(dir.join("data"), DATA_DIR));
    }
    Root { mountpoint: dir.join("root"), empty, binds, files: files(lab, node) }
}

const DATA_DIR: &str = "/var/lib/podwire-kube";

fn files(lab: &Lab, node: &Node) -> Vec<File> {
    let mut hosts = String::from("127.0.0.1 localhost\n");
    for other in &lab.nodes {
        if let Some(ip) = other.internal_ip() {
            // Writing to a String cannot fail.
            let _ = writeln!(hosts, "{ip} {}", other.name);
        }
    }
    let file = |path: &str, text: String| File { path: path.into(), text };
    vec![
        file("/etc/hostname", format!("{}\n", node.name)),
        file("/etc/hosts", hosts),
        file("/etc/resolv.conf", "# This lab has no name server; names of nodes are in /etc/hosts.\n".into()),
    ]
}

fn services(lab: &Lab, values: &Values, node: &Node, places: &Places) -> Vec<Service> {
    let kube = places.bin_dir.join("podwire-kube").display().to_string();
    let service = |name: &str, args: &[&str]| Service {
        name: name.into(),
        argv: std::iter::once(kube.clone()).chain(args.iter().map(|a| (*a).to_owned())).collect(),
    };
    let mut services = Vec::new();
    let ip = node.internal_ip().map(|ip| ip.to_string()).unwrap_or_default();
    if node.role == Role::ControlPlane {
        let mut control_plane = service(
            "control-plane",
            &[
                "control-plane",
                "--listen",
                &format!("{ip}:{}", names::API_SERVER_PORT),
                "--pki",
                PKI_DIR,
                "--data-dir",
                DATA_DIR,
                "--cluster-cidr",
                &lab.kubernetes.pod_cidr.to_string(),
                "--node-cidr-mask-size",
                &lab.kubernetes.node_cidr_mask_size.to_string(),
                "--service-cidr",
                &lab.kubernetes.service_cidr.to_string(),
            ],
        );
        if values.ipam.mode == IpamMode::Kubernetes {
            control_plane.argv.push("--allocate-node-cidrs".into());
        }
        services.push(control_plane);
    }
    if node.role.is_kubernetes() {
        let bin_dir = places.bin_dir.display().to_string();
        let mut runtime = service(
            "node",
            &[
                "node",
                "--node-name",
                &node.name,
                "--node-ip",
                &ip,
                "--kubeconfig",
                KUBELET_KUBECONFIG,
                "--pki",
                PKI_DIR,
                "--root-dir",
                "/var/lib/kubelet",
                "--bin-dir",
                &bin_dir,
            ],
        );
        if node.role == Role::ControlPlane {
            runtime.argv.push("--control-plane-node".into());
        }
        services.push(runtime);
    }
    if let Some(web) = &node.web {
        services.push(service("web", &["web", "--port", &web.port.to_string(), "--title", &web.title]));
    }
    services
}
