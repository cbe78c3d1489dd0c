//! One pod's wiring: what is known of it, and the names and numbers that follow from its container ID.

use std::fmt;
use std::net::Ipv4Addr;

use podwire_api::names::ENDPOINT_DEVICE_PREFIX;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.map(|b| format!("{b:02x}"));
        f.write_str(&bytes.join(":"))
    }
}

/// One interface of one container: what an endpoint is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The container.
    pub container_id: String,
    /// The interface in it.
    pub ifname: String,
}

impl Key {
    /// The key of an interface of a container.
    pub fn new(container_id: &str, ifname: &str) -> Self {
        Self { container_id: container_id.into(), ifname: ifname.into() }
    }

    fn digest(&self, salt: &str) -> [u8; 32] {
        // '/' is in neither part, so no two keys meet.
        Sha256::digest(format!("{salt}/{}/{}", self.container_id, self.ifname)).into()
    }

    /// Name of the node's end of the veth: the same for the same key on every run, 15 bytes as the kernel allows.
    pub fn device(&self) -> String {
        let d = self.digest("device");
        format!(
            "{ENDPOINT_DEVICE_PREFIX}{:02x}{:02x}{:02x}{:02x}{:02x}{:02x}",
            d[0], d[1], d[2], d[3], d[4], d[5]
        )
    }

    /// MAC of the pod's end: locally administered, unicast.
    pub fn pod_mac(&self) -> Mac {
        self.mac("pod")
    }

    /// MAC of the node's end.
    pub fn node_mac(&self) -> Mac {
        self.mac("node")
    }

    fn mac(&self, side: &str) -> Mac {
        let d = self.digest(side);
        Mac([(d[0] & 0xfc) | 0x02, d[1], d[2], d[3], d[4], d[5]])
    }
}

/// What is kept of an endpoint, on disk and in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The agent's number of it; not 0, unique on the node.
    pub id: u16,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its gateway: the node's router address when it was made.
    pub gateway: Ipv4Addr,
    /// MTU of both ends.
    pub mtu: u32,
    /// The CNI network by which it was made.
    pub network: String,
    /// The container.
    pub container_id: String,
    /// The interface in the container.
    pub ifname: String,
    /// Path of the container's network namespace.
    pub netns: String,
    /// The pod's namespace; empty if the runtime is not Kubernetes'.
    #[serde(default)]
    pub namespace: String,
    /// The pod's name; empty if the runtime is not Kubernetes'.
    #[serde(default)]
    pub pod: String,
}

impl Endpoint {
    /// What it is known by.
    pub fn key(&self) -> Key {
        Key::new(&self.container_id, &self.ifname)
    }

    /// `namespace/pod`, or the container where there is no pod.
    pub fn owner(&self) -> String {
        owner(&self.namespace, &self.pod, &self.container_id)
    }
}

/// `namespace/pod`, or the container where there is no pod.
pub fn owner(namespace: &str, pod: &str, container_id: &str) -> String {
    if pod.is_empty() { format!("container {container_id}") } else { format!("{namespace}/{pod}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_macs_follow_from_the_key() {
        let (a, b) = (Key::new("c1", "eth0"), Key::new("c1", "eth1"));
        assert_eq!(a.device().len(), 15);
        assert!(a.device().starts_with("lxc"));
        assert_eq!(a.device(), Key::new("c1", "eth0").device());
        assert_ne!(a.device(), b.device());
        for mac in [a.pod_mac(), a.node_mac(), b.pod_mac()] {
            assert_eq!(mac.0[0] & 0b11, 0b10, "{mac} is locally administered and unicast");
        }
        assert_ne!(a.pod_mac(), a.node_mac());
    }
}
