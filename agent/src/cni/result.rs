//! Results as each version of the specification wants them.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::version::Version;

/// What ADD made, without regard to a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wired {
    /// The node's end of the veth.
    pub node_device: String,
    /// Its MAC.
    pub node_mac: String,
    /// The container's interface.
    pub ifname: String,
    /// Its MAC.
    pub pod_mac: String,
    /// The container's network namespace.
    pub sandbox: String,
    /// MTU of both ends.
    pub mtu: u32,
    /// The container's address.
    pub ip: Ipv4Addr,
    /// The container's gateway: the node's router address.
    pub gateway: Ipv4Addr,
}

/// `RT_SCOPE_LINK`, as a route's scope stands in results since 1.1.0.
const SCOPE_LINK: u32 = 253;

impl Wired {
    /// The result of ADD in `version`. What plugins before us made (`prev_result`) is kept in front of ours.
    pub fn render(&self, version: Version, prev_result: Option<&Value>) -> Value {
        let list = |key: &str| prev_result.and_then(|p| p[key].as_array()).cloned().unwrap_or_default();
        let (mut interfaces, mut ips, mut routes) = (list("interfaces"), list("ips"), list("routes"));
        let index = interfaces.len() + 1;
        interfaces.push(json!({ "name": self.node_device, "mac": self.node_mac }));
        interfaces.push(json!({ "name": self.ifname, "mac": self.pod_mac, "sandbox": self.sandbox }));
        let mut ip =
            json!({ "address": format!("{}/32", self.ip), "gateway": self.gateway, "interface": index });
        if version < Version::V1_0_0 {
            ip["version"] = json!("4");
        }
        ips.push(ip);
        let mut to_gateway = json!({ "dst": format!("{}/32", self.gateway) });
        if version >= Version::V1_1_0 {
            to_gateway["scope"] = json!(SCOPE_LINK);
            for interface in &mut interfaces[index - 1..] {
                interface["mtu"] = json!(self.mtu);
            }
        }
        routes.push(to_gateway);
        routes.push(json!({ "dst": "0.0.0.0/0", "gw": self.gateway }));
        let dns =
            prev_result.map(|p| &p["dns"]).filter(|d| d.is_object()).cloned().unwrap_or_else(|| json!({}));
        json!({
            "cniVersion": version.as_str(),
            "interfaces": interfaces,
            "ips": ips,
            "routes": routes,
            "dns": dns,
        })
    }

    /// Why `prev_result` (of CHECK) is not the result that our ADD gave for this container.
    pub fn differs_from(&self, prev_result: &Value) -> Option<String> {
        let mut interfaces = prev_result["interfaces"].as_array().into_iter().flatten();
        let Some(ours) = interfaces
            .find(|i| i["name"] == self.ifname && i["sandbox"].as_str().is_some_and(|s| !s.is_empty()))
        else {
            return Some(format!("prevResult has no interface {:?} in a sandbox", self.ifname));
        };
        if ours["mac"].as_str().is_some_and(|mac| !mac.eq_ignore_ascii_case(&self.pod_mac)) {
            return Some(format!(
                "prevResult gives {} the MAC {}, it has {}",
                self.ifname, ours["mac"], self.pod_mac
            ));
        }
        let address = format!("{}/32", self.ip);
        let mut ips = prev_result["ips"].as_array().into_iter().flatten();
        if !ips.any(|ip| ip["address"] == address) {
            return Some(format!("prevResult does not hold address {address}"));
        }
        None
    }
}

/// The answer to VERSION; `asked` is the caller's `cniVersion`.
pub fn versions(asked: Option<&str>) -> Value {
    json!({
        "cniVersion": asked.unwrap_or(Version::NEWEST.as_str()),
        "supportedVersions": Version::ALL.map(Version::as_str),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wired() -> Wired {
        Wired {
            node_device: "lxc0123456789ab".into(),
            node_mac: "02:00:00:00:00:01".into(),
            ifname: "eth0".into(),
            pod_mac: "02:00:00:00:00:02".into(),
            sandbox: "/run/netns/cni-1".into(),
            mtu: 1500,
            ip: Ipv4Addr::new(10, 244, 0, 7),
            gateway: Ipv4Addr::new(10, 244, 0, 1),
        }
    }

    #[test]
    fn each_version_has_its_shape() {
        for version in Version::ALL {
            insta::assert_json_snapshot!(format!("add-{version}"), wired().render(version, None));
        }
        insta::assert_json_snapshot!("versions", versions(Some("1.0.0")));
    }

    #[test]
    fn earlier_plugins_results_stay_in_front() {
        let prev = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "first"}],
            "ips": [{"address": "192.0.2.1/24", "interface": 0}],
            "dns": {"nameservers": ["10.96.0.10"]},
        });
        let result = wired().render(Version::V1_0_0, Some(&prev));
        assert_eq!(result["interfaces"][0]["name"], "first");
        assert_eq!(result["ips"][0]["interface"], 0);
        assert_eq!(
            result["interfaces"][result["ips"][1]["interface"].as_u64().unwrap() as usize]["name"],
            "eth0"
        );
        assert_eq!(result["dns"]["nameservers"][0], "10.96.0.10");
    }

    #[test]
    fn check_compares_with_the_result_of_add() {
        let mut result = wired().render(Version::V1_1_0, None);
        assert_eq!(wired().differs_from(&result), None);
        result["ips"][0]["address"] = json!("10.244.0.8/32");
        assert!(wired().differs_from(&result).unwrap().contains("10.244.0.7/32"));
        result["interfaces"][1]["mac"] = json!("02:00:00:00:00:09");
        assert!(wired().differs_from(&result).unwrap().contains("MAC"));
        result["interfaces"] = json!([]);
        assert!(wired().differs_from(&result).unwrap().contains("no interface"));
    }
}
