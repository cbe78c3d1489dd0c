//! Causes, in words, and what mends them. Pure.

use std::net::Ipv4Addr;

use serde::Serialize;

use super::route::Route;
use super::world::World;

/// Why a flow ended where it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Cause {
    /// The machine's agent dropped it.
    Dropped {
        /// Why.
        reason: String,
        /// Where in its datapath.
        point: String,
    },
    /// The machine has no route.
    NoRoute {
        /// In the kernel's words.
        says: String,
    },
    /// A route forbids it.
    Forbidden {
        /// The route.
        route: String,
    },
    /// The packet came by another device than its answer would leave by.
    ReversePath,
    /// The machine does not send on what comes in by the device.
    NotForwarding {
        /// The device.
        device: String,
    },
    /// The next hop, or the destination itself, does not answer ARP.
    SilentNextHop {
        /// The route that was taken, if the machine told.
        route: Option<String>,
        /// The route takes what no other takes.
        by_default: bool,
        /// Who is silent.
        next_hop: Ipv4Addr,
        /// Behind which device.
        device: String,
    },
    /// It was sent to a network where nothing is.
    Nowhere {
        /// The route that was taken, if the machine told.
        route: Option<String>,
        /// The route takes what no other takes.
        by_default: bool,
        /// The device.
        device: String,
    },
    /// It left a machine and was seen at no other.
    LostOnTheWire {
        /// The machine and device that it was sent to; none if nothing of the lab has that Ethernet address.
        to: Option<String>,
        /// That device is down.
        down: bool,
    },
    /// It was wrapped for a machine that does not unwrap.
    NoTunnel,
    /// Somebody on the way answered with an ICMP error.
    Error {
        /// The error.
        error: String,
        /// Who sent it.
        from: String,
    },
    /// A packet filter.
    Filtered {
        /// Its rules that drop or reject.
        rules: Vec<String>,
    },
    /// It goes in a circle.
    Circle {
        /// The machines of one round.
        machines: Vec<String>,
        /// How often it came round.
        passes: usize,
        /// Its time to live, at first and at last.
        ttl: (u8, u8),
        /// What each machine's routing table says.
        routes: Vec<(String, String)>,
    },
    /// Nobody is ready to answer for the Service.
    NoBackend {
        /// The Service.
        service: String,
    },
    /// The Service is served to callers from outside by pods of the node that they call only, and that has none.
    NoLocalBackend {
        /// The Service.
        service: String,
    },
    /// The Service does not serve this port, or pings.
    NoServicePort {
        /// The Service.
        service: String,
        /// Ports that it has.
        has: Vec<String>,
    },
    /// The sender's own system refused to send.
    RefusedAtSource {
        /// In the sender's words.
        says: String,
    },
    /// It arrived, and was refused.
    Refused {
        /// With what.
        with: String,
    },
    /// It arrived, and nobody answered.
    NoAnswer,
    /// Nothing explains it.
    Unknown,
}

/// Where a flow ended and what it was about, as far as words need it.
pub(super) struct Scene<'a> {
    /// The lab.
    pub(super) world: &'a World,
    /// ` --lab NAME` where a command needs it.
    pub(super) flag: &'a str,
    /// The machine or pod.
    pub(super) place: &'a str,
    /// The machine, or the one that the pod is on.
    pub(super) machine: &'a str,
    /// Who sent the packet that ended.
    pub(super) source: Ipv4Addr,
    /// Whom it was for; of a wrapped one, the outer addresses.
    pub(super) destination: Ipv4Addr,
    /// What the packet is.
    pub(super) what: String,
}

impl Scene<'_> {
    fn on(&self, machine: &str, command: &str) -> String {
        format!("lab exec{} {machine} -- {command}", self.flag)
    }

    /// `172.20.1.0/24, where the pods of k8s-w0 are`, or the address.
    fn destination(&self) -> String {
        match self.world.pod_cidr(self.destination) {
            Some((node, cidr)) => format!("{cidr}, where the pods of {node} are"),
            None => self.destination.to_string(),
        }
    }

    fn belongs_nowhere(&self) -> Option<String> {
        let world = self.world;
        let unknown = world.owner(self.destination).is_none()
            && world.pod_cidr(self.destination).is_none()
            && world.service(self.destination).is_none();
        unknown.then(|| format!("Nothing of the lab has {}.", self.destination))
    }

    /// The route to the packet's source.
    fn way_back(&self, machine: &str) -> Vec<String> {
        let route = self.world.route_to(machine, self.source);
        route.map(|(to, via)| self.on(machine, &format!("ip route add {to} via {via}"))).into_iter().collect()
    }

    /// The route that the machine lacks.
    fn route(&self, machine: &str, taken: Option<&str>) -> Vec<String> {
        let Some((to, via)) = self.world.route_to(machine, self.destination) else {
            return vec![self.on(machine, "ip route")];
        };
        let right = format!("{to} via {via}");
        if taken.is_some_and(|taken| taken.starts_with(&format!("{right} "))) {
            return vec![self.on(machine, "ip neigh")];
        }
        // A wrong route to the same network stands in the way of another.
        let verb = if taken.is_some_and(|t| t.starts_with(&format!("{to} "))) { "replace" } else { "add" };
        let mut mends = vec![self.on(machine, &format!("ip route {verb} {right}"))];
        if self.world.pod_cidr(self.destination).is_some() {
            let lab = self.flag.trim_start_matches(" --lab");
            mends.push(format!("every route to pods that {machine} needs: lab routes{lab} --for {machine}"));
        }
        mends
    }

    /// "It takes the default route" and the like.
    fn by_route(&self, route: Option<&str>, by_default: bool) -> String {
        let place = self.place;
        match route {
            Some(route) if by_default => format!(
                "{place} has no route to {}: its default route takes the {} ({route})",
                self.destination(),
                self.what
            ),
            Some(route) => format!("{place} sends the {} by its route {route}", self.what),
            None => format!("{place} sends the {} on", self.what),
        }
    }
}

impl Cause {
    /// What happened, a sentence each.
    pub(super) fn words(&self, scene: &Scene<'_>) -> Vec<String> {
        let (place, what) = (scene.place, &scene.what);
        let mut told = vec![match self {
            Self::Dropped { reason, point } => {
                format!("The agent of {} dropped the {what} at {point}: {reason}.", scene.machine)
            }
            Self::NoRoute { says } => {
                format!("{place} has no route to {} ({says}).", scene.destination())
            }
            Self::Forbidden { route } => format!("A route of {place} forbids it: {route}."),
            Self::ReversePath => format!(
                "{place} does not take a packet of {} from there: its own way to that address is another (reverse path filter).",
                scene.source
            ),
            Self::NotForwarding { device } => {
                format!("{place} does not forward what comes in by {device}: forwarding is off there.")
            }
            Self::SilentNextHop { route, by_default, next_hop, device } => {
                format!(
                    "{}, and nobody answers for {next_hop} behind {device} (ARP).",
                    scene.by_route(route.as_deref(), *by_default)
                )
            }
            Self::Nowhere { route, by_default, device } => {
                format!("{}, and nothing is behind {device}.", scene.by_route(route.as_deref(), *by_default))
            }
            Self::LostOnTheWire { to: Some(to), down: true } => {
                format!("{place} sent the {what} to {to}, and that is down.")
            }
            Self::LostOnTheWire { to: Some(to), down: false } => {
                format!("{place} sent the {what} to {to}, and that did not receive it.")
            }
            Self::LostOnTheWire { to: None, .. } => {
                format!("{place} sent the {what} to an Ethernet address that nothing of the lab has.")
            }
            Self::NoTunnel => format!("The {what} is wrapped for {place}, and {place} has no tunnel."),
            Self::Error { error, from } => format!("{from} answered with {error}."),
            Self::Filtered { rules } => format!(
                "{place} took the {what} in and let nothing out. It has packet filter rules that stop packets: {}.",
                rules.join(" / ")
            ),
            Self::Circle { machines, passes, ttl, .. } => format!(
                "The {what} goes in a circle: {}. It came to {place} {passes} times, with TTL {} at first and {} at last.",
                circle(machines),
                ttl.0,
                ttl.1
            ),
            Self::NoBackend { service } => {
                format!("Service {service} has no pod that is ready to answer.")
            }
            Self::NoLocalBackend { service } => format!(
                "Callers from outside are served by the pods of Service {service} on {place} only (externalTrafficPolicy: Local), and none of them is ready."
            ),
            Self::NoServicePort { service, has } => {
                let has = if has.is_empty() { "nothing".into() } else { has.join(", ") };
                format!("Service {service} does not serve that: it serves {has}.")
            }
            Self::RefusedAtSource { says } => {
                format!("No packet was seen: {place}'s own system refused to send ({says}).")
            }
            Self::Refused { with } => {
                format!("It arrived and was refused: {place} answered with {with}, for nobody listens there.")
            }
            Self::NoAnswer => format!("The {what} arrived at {place}, and nothing came out in answer."),
            Self::Unknown => format!("{place} had the {what} last, and nothing says why it ended there."),
        }];
        match self {
            Self::Circle { routes, .. } => {
                told.extend(routes.iter().map(|(machine, route)| format!("{machine}: {route}")));
                told.extend(scene.belongs_nowhere());
            }
            Self::SilentNextHop { .. }
            | Self::Nowhere { .. }
            | Self::NoRoute { .. }
            | Self::Dropped { .. }
            | Self::Unknown => {
                told.extend(scene.belongs_nowhere());
            }
            _ => {}
        }
        told
    }

    /// What to do, a command or a hint each; most likely first.
    pub(super) fn mends(&self, scene: &Scene<'_>, taken: &[(String, Route)]) -> Vec<String> {
        let machine = scene.machine;
        let route_of = |machine: &str| taken.iter().find(|(m, _)| m == machine).map(|(_, r)| r.to_string());
        match self {
            Self::Dropped { reason, .. } => vec![dropped(scene, reason)],
            Self::NoRoute { .. } => scene.route(machine, None),
            Self::SilentNextHop { .. } | Self::Nowhere { .. } if scene.belongs_nowhere().is_some() => {
                vec![scene.on(machine, "ip route")]
            }
            Self::SilentNextHop { .. } | Self::Nowhere { .. } => {
                scene.route(machine, route_of(machine).as_deref())
            }
            Self::Forbidden { route } => vec![scene.on(machine, &format!("ip route del {route}"))],
            Self::ReversePath => {
                let mut mends = scene.way_back(machine);
                mends.push(scene.on(machine, "sysctl -a -r rp_filter"));
                mends
            }
            Self::NotForwarding { .. } => vec![scene.on(machine, "sysctl -w net.ipv4.ip_forward=1")],
            Self::LostOnTheWire { to, down } => match to.as_deref().and_then(|to| to.split_once(':')) {
                None => vec![scene.on(machine, "ip neigh")],
                Some((peer, device)) if *down => vec![scene.on(peer, &format!("ip link set {device} up"))],
                Some((peer, _)) => vec![scene.on(peer, "ip -s link")],
            },
            Self::NoTunnel => {
                vec![
                    scene.on(machine, "podwire status"),
                    "kubectl -n kube-system rollout restart ds/podwire".into(),
                ]
            }
            Self::Error { .. } | Self::Unknown => vec![scene.on(machine, "ip route")],
            Self::Filtered { .. } => vec![scene.on(machine, "nft list ruleset")],
            Self::Circle { machines, .. } => circle_mends(scene, machines, taken),
            Self::NoBackend { service } | Self::NoLocalBackend { service } => {
                let (namespace, name) = service.split_once('/').unwrap_or(("default", service));
                vec![format!("kubectl -n {namespace} describe service {name}")]
            }
            Self::NoServicePort { .. } => vec!["take one of its ports".into()],
            Self::RefusedAtSource { .. } | Self::Refused { .. } | Self::NoAnswer => Vec::new(),
        }
    }
}

/// `k8s-ctr -> router -> k8s-ctr`.
fn circle(machines: &[String]) -> String {
    let again = machines.first().cloned();
    machines.iter().cloned().chain(again).collect::<Vec<_>>().join(" -> ")
}

/// Of a circle one route is wrong: that of a machine which should send elsewhere, else the narrowest, which somebody added to the
/// others.
fn circle_mends(scene: &Scene<'_>, machines: &[String], taken: &[(String, Route)]) -> Vec<String> {
    let of_circle = || taken.iter().filter(|(machine, _)| machines.contains(machine));
    let astray = of_circle().find_map(|(machine, route)| {
        let (_, right) = scene.world.route_to(machine, scene.destination)?;
        let goes_right = route.ways().any(|(via, _)| via == Some(right));
        (!goes_right).then_some((machine, route))
    });
    if let Some((machine, route)) = astray {
        return scene.route(machine, Some(&route.to_string()));
    }
    let length = |route: &Route| route.to().map_or(0, |net| net.prefix_len());
    let narrowest = of_circle().max_by_key(|(_, route)| length(route));
    narrowest
        .filter(|(_, route)| !route.is_default())
        .and_then(|(machine, route)| Some(vec![scene.on(machine, &format!("ip route del {}", route.to()?))]))
        .unwrap_or_else(|| machines.iter().map(|machine| scene.on(machine, "ip route")).collect())
}

/// What to do about an agent's drop.
fn dropped(scene: &Scene<'_>, reason: &str) -> String {
    let machine = scene.machine;
    match reason {
        "Service backend not found" => {
            "a ClusterIP is nobody's address; only a connection to one of the Service's ports is answered: lab trace SRC SERVICE:PORT".into()
        }
        "Stale or unroutable IP" => {
            format!("no pod of {machine} has {}; see who there is: kubectl get pods -A -o wide", scene.destination)
        }
        "FIB lookup failed" => scene.route(machine, None).swap_remove(0),
        "No tunnel/encapsulation endpoint" => scene.on(machine, "podwire bpf ipcache list"),
        "Unknown connection tracking state" | "CT: Map insertion failed" => {
            scene.on(machine, "podwire bpf ct list")
        }
        "No mapping for NAT masquerade" => scene.on(machine, "podwire bpf nat list"),
        _ => scene.on(machine, "podwire status"),
    }
}
