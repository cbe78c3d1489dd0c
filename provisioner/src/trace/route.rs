//! What a machine's routing table says about a packet, as `ip` tells it. Pure.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::Deserialize;

/// A question for a machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ask {
    /// The machine.
    pub(super) machine: String,
    /// The packet's source; none if the machine is to choose.
    pub(super) source: Option<Ipv4Addr>,
    /// Its destination.
    pub(super) destination: Ipv4Addr,
    /// The device that it comes in by; none if it is the machine's own.
    pub(super) by: Option<String>,
}

/// The answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// The route that is taken, or why there is none.
    pub(super) route: Option<Result<Route, String>>,
    /// All that match, those included that forbid.
    pub(super) matching: Vec<Route>,
    /// Neighbours that the machine has asked for in vain: device and address.
    pub(super) silent: Vec<(String, Ipv4Addr)>,
    /// Packets that come in by the device are sent on.
    pub(super) forwards: Option<bool>,
    /// Packets are taken only if their answers would leave by the same device.
    pub(super) reverse_path: bool,
    /// Lines of the packet filter that drop or reject.
    pub(super) rules: Vec<String>,
}

/// A route, as `ip -j route` has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Route {
    /// `local`, `blackhole`, ...; empty for the usual ones.
    #[serde(default, rename = "type")]
    kind: String,
    /// `default`, an address, or a CIDR.
    dst: String,
    #[serde(default)]
    gateway: Option<Ipv4Addr>,
    #[serde(default)]
    dev: String,
    /// Of a route with several ways.
    #[serde(default)]
    nexthops: Vec<Way>,
}

/// One way of several.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Way {
    #[serde(default)]
    gateway: Option<Ipv4Addr>,
    #[serde(default)]
    dev: String,
}

/// A neighbour, as `ip -j neigh` has it.
#[derive(Deserialize)]
struct Neighbour {
    dst: String,
    #[serde(default)]
    dev: String,
    #[serde(default)]
    state: Vec<String>,
}

impl Route {
    /// Where it leads.
    pub(super) fn to(&self) -> Option<Ipv4Net> {
        if self.is_default() {
            return Some(Ipv4Net::default());
        }
        self.dst.parse().ok().or_else(|| Ipv4Net::new(self.dst.parse().ok()?, 32).ok())
    }

    /// It takes what no other route takes.
    pub(super) fn is_default(&self) -> bool {
        self.dst == "default" || self.dst == "0.0.0.0/0"
    }

    /// It says that nothing may go there.
    pub(super) fn forbids(&self) -> bool {
        matches!(self.kind.as_str(), "blackhole" | "unreachable" | "prohibit" | "throw")
    }

    /// Next hop and device of each way; without a next hop the destination itself is asked for.
    pub(super) fn ways(&self) -> impl Iterator<Item = (Option<Ipv4Addr>, &str)> {
        let one = (!self.dev.is_empty()).then_some((self.gateway, self.dev.as_str()));
        one.into_iter().chain(self.nexthops.iter().map(|way| (way.gateway, way.dev.as_str())))
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.kind.is_empty() && self.kind != "unicast" {
            write!(f, "{} ", self.kind)?;
        }
        f.write_str(&self.dst)?;
        for (gateway, dev) in self.ways() {
            if !self.nexthops.is_empty() {
                f.write_str(" nexthop")?;
            }
            if let Some(gateway) = gateway {
                write!(f, " via {gateway}")?;
            }
            write!(f, " dev {dev}")?;
        }
        Ok(())
    }
}

impl Ask {
    /// Which route is taken.
    pub(super) fn get(&self) -> Vec<String> {
        let mut words: Vec<String> = ["ip", "-j", "route", "get", "fibmatch"].map(String::from).into();
        words.push(self.destination.to_string());
        if let Some(source) = self.source {
            words.extend(["from".into(), source.to_string()]);
        }
        if let Some(by) = &self.by {
            words.extend(["iif".into(), by.clone()]);
        }
        words
    }

    /// Which routes match.
    pub(super) fn matching(&self) -> Vec<String> {
        let mut words: Vec<String> = ["ip", "-j", "route", "show", "to", "match"].map(String::from).into();
        words.push(self.destination.to_string());
        words
    }

    /// Whether the machine sends on what comes in.
    pub(super) fn forwards(&self) -> Option<Vec<String>> {
        Some(vec!["cat".into(), setting(self.by.as_ref()?, "forwarding")])
    }

    /// Whether it looks at sources: that of the device and that of all count both.
    pub(super) fn reverse_path(&self) -> Option<Vec<String>> {
        let by = self.by.as_ref()?;
        Some(vec!["cat".into(), setting(by, "rp_filter"), setting("all", "rp_filter")])
    }
}

fn setting(device: &str, name: &str) -> String {
    format!("/proc/sys/net/ipv4/conf/{device}/{name}")
}

impl Told {
    /// Reads what `ip route get` said: standard output, or its complaint.
    pub(super) fn read_route(said: Result<&str, &str>) -> Option<Result<Route, String>> {
        match said {
            Ok(text) => serde_json::from_str::<Vec<Route>>(text).ok()?.into_iter().next().map(Ok),
            Err(complaint) => {
                let why = complaint.lines().find_map(|line| line.split_once("answers: "))?.1;
                Some(Err(why.trim().to_owned()))
            }
        }
    }

    /// Reads what `ip -j neigh` said: who does not answer ARP.
    pub(super) fn read_silent(said: &str) -> Vec<(String, Ipv4Addr)> {
        let all: Vec<Neighbour> = serde_json::from_str(said).unwrap_or_default();
        let is_silent =
            |n: &Neighbour| n.state.iter().any(|state| state == "FAILED" || state == "INCOMPLETE");
        all.into_iter().filter(is_silent).filter_map(|n| Some((n.dev, n.dst.parse().ok()?))).collect()
    }

    /// Reads what `nft list ruleset` said.
    pub(super) fn read_rules(said: &str) -> Vec<String> {
        let stops = |line: &&str| {
            line.split([' ', ';']).any(|word| word == "drop" || word == "reject") && !line.starts_with('#')
        };
        said.lines().map(str::trim).filter(stops).map(str::to_owned).collect()
    }

    /// The route of the longest prefix that matches, if it forbids.
    pub(super) fn forbidding(&self) -> Option<&Route> {
        let length = |route: &&Route| route.to().map_or(0, |net| net.prefix_len());
        self.matching.iter().max_by_key(length).filter(|route| route.forbids())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_ip_prints_them() {
        let text = r#"[{"dst":"default","gateway":"10.0.2.2","dev":"eth0","protocol":"static","flags":[]}]"#;
        let route = Told::read_route(Ok(text)).unwrap().unwrap();
        assert!(route.is_default() && !route.forbids());
        assert_eq!(route.to_string(), "default via 10.0.2.2 dev eth0");
        let complaint = "RTNETLINK answers: Network is unreachable\n";
        assert_eq!(Told::read_route(Err(complaint)), Some(Err("Network is unreachable".into())));
        assert_eq!(Told::read_route(Err("ip: not found")), None, "no answer of the kernel");
        assert_eq!(Told::read_route(Ok("[{}]")), None);
        let several = r#"[{"dst":"10.0.0.0/8","flags":[],"nexthops":[{"gateway":"10.1.1.1","dev":"a","weight":1,"flags":[]},{"gateway":"10.1.1.2","dev":"b","weight":1,"flags":[]}]}]"#;
        let route = Told::read_route(Ok(several)).unwrap().unwrap();
        assert_eq!(route.ways().count(), 2);
        assert_eq!(route.to_string(), "10.0.0.0/8 nexthop via 10.1.1.1 dev a nexthop via 10.1.1.2 dev b");
    }

    #[test]
    fn the_longest_prefix_decides_whether_it_is_forbidden() {
        let text = r#"[{"dst":"default","gateway":"10.0.2.2","dev":"eth0","flags":[]},{"type":"blackhole","dst":"172.20.77.0/24","flags":[]}]"#;
        let mut told = Told { matching: serde_json::from_str(text).unwrap(), ..Told::default() };
        assert_eq!(told.forbidding().unwrap().to_string(), "blackhole 172.20.77.0/24");
        told.matching.push(serde_json::from_str(r#"{"dst":"172.20.77.9","dev":"eth1"}"#).unwrap());
        assert_eq!(told.forbidding(), None);
    }

    #[test]
    fn silent_neighbours_are_found() {
        let text = r#"[{"dst":"192.168.10.200","dev":"eth1","lladdr":"52:54:c0:a8:0a:c8","state":["REACHABLE"]},{"dst":"10.0.2.2","dev":"eth0","state":["INCOMPLETE"]},{"dst":"fe80::1","dev":"eth0","state":["FAILED"]}]"#;
        assert_eq!(Told::read_silent(text), [("eth0".to_owned(), Ipv4Addr::new(10, 0, 2, 2))]);
    }

    #[test]
    fn rules_that_stop_packets_are_found() {
        let text = "table ip f {\n chain forward {\n  type filter hook forward priority filter; policy drop;\n  tcp dport 80 counter packets 1 bytes 60 drop\n  ip saddr 10.0.0.1 accept\n  ip daddr 10.0.0.9 reject with icmp port-unreachable\n }\n}\n";
        assert_eq!(Told::read_rules(text).len(), 3);
        assert!(Told::read_rules("table ip dropped { }").is_empty());
    }

    #[test]
    fn questions_are_those_that_the_packet_asks() {
        let ask = Ask {
            machine: "router".into(),
            source: "172.20.0.3".parse().ok(),
            destination: "172.20.1.2".parse().unwrap(),
            by: Some("eth1".into()),
        };
        assert_eq!(ask.get().join(" "), "ip -j route get fibmatch 172.20.1.2 from 172.20.0.3 iif eth1");
        assert_eq!(ask.matching().join(" "), "ip -j route show to match 172.20.1.2");
        assert_eq!(ask.forwards().unwrap()[1], "/proc/sys/net/ipv4/conf/eth1/forwarding");
    }
}
