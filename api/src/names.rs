//! Names, labels, paths and ports that anyone may rely on (docs/architecture.md lists them for users).

/// Namespace of everything Podwire installs in a cluster.
pub const SYSTEM_NAMESPACE: &str = "kube-system";
/// ConfigMap that carries the agent's configuration, with the keys of [`crate::values`].
pub const CONFIG_MAP: &str = "podwire-config";
/// ConfigMap in which the operator keeps the record of the pod CIDRs that it gave.
pub const POD_CIDRS_CONFIG_MAP: &str = "podwire-pod-cidrs";
/// ConfigMap that lists destinations which see pods' own addresses, by the name that its readers know.
pub const IP_MASQ_AGENT_CONFIG_MAP: &str = "ip-masq-agent";
/// DaemonSet of the agent.
pub const AGENT_DAEMON_SET: &str = "podwire";
/// Deployment of the operator.
pub const OPERATOR_DEPLOYMENT: &str = "podwire-operator";
/// Image of the agent; the node runtime of the embedded Kubernetes has it built in.
pub const AGENT_IMAGE: &str = "podwire/agent";
/// Image of the operator; the node runtime of the embedded Kubernetes has it built in.
pub const OPERATOR_IMAGE: &str = "podwire/operator";

/// Directory of the agent's sockets on a node.
pub const RUN_DIR: &str = "/run/podwire";
/// Socket on which podwire-cni asks the agent to wire a pod.
pub const CNI_SOCKET: &str = "/run/podwire/cni.sock";
/// Socket on which `podwire` asks the agent for its state.
pub const API_SOCKET: &str = "/run/podwire/api.sock";
/// Directory under which programs, maps and links are pinned.
pub const BPF_DIR: &str = "/sys/fs/bpf/podwire";
/// Directory of the agent's durable state (endpoints and their addresses).
pub const STATE_DIR: &str = "/var/lib/podwire";
/// Directory in which the container runtime looks for CNI network configurations.
pub const CNI_CONF_DIR: &str = "/etc/cni/net.d";
/// File name of the CNI network configuration that the agent writes when it can serve ADD.
pub const CNI_CONF_FILE: &str = "05-podwire.conflist";
/// Directory in which the container runtime looks for CNI plugins.
pub const CNI_BIN_DIR: &str = "/opt/cni/bin";
/// File name of the CNI plugin.
pub const CNI_PLUGIN: &str = "podwire-cni";

/// The node's own device in the pod network: it holds the node's router address, the pods' gateway.
pub const HOST_DEVICE: &str = "podwire_host";
/// The peer of [`HOST_DEVICE`].
pub const HOST_DEVICE_PEER: &str = "podwire_net";
/// The node's device that wraps packets for other nodes' pods in VXLAN (`routingMode=tunnel`).
pub const VXLAN_DEVICE: &str = "podwire_vxlan";
/// Prefix of the node's end of each pod's veth, followed by a hash of the container ID.
pub const ENDPOINT_DEVICE_PREFIX: &str = "lxc";
/// The node's device on its underlay subnet.
pub const UNDERLAY_DEVICE: &str = "eth1";

/// Port on which the API server listens.
pub const API_SERVER_PORT: u16 = 6443;
/// Port on which a node's kubelet API (logs, exec) listens.
pub const KUBELET_PORT: u16 = 10250;
/// `rtm_protocol` of the routes that the agent installs: `proto kernel`, as students of the course expect to read it.
/// The agent recognises its own routes by its record of them, never by this number alone.
pub const ROUTE_PROTOCOL: u8 = 2;

/// Label of the control plane's node.
pub const CONTROL_PLANE_LABEL: &str = "node-role.kubernetes.io/control-plane";
/// Taint of a node whose pod network is not ready.
pub const NOT_READY_TAINT: &str = "node.kubernetes.io/not-ready";
