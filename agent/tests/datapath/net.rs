//! Namespaces, nodes and pods to test in.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use futures::StreamExt;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    unistd::geteuid,
};
use podwire_abi::{DropReason, Endpoint, IpcacheEntry, NodeConfig, Point, identity, to_wire};
use podwire_agent::datapath::{AttachMode, Datapath, EventStream, FlowEvent};

/// Longest wait for a condition. Reaching it is a failure, whatever the time taken otherwise.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test where it can do no harm: in a thread with a mount and a network namespace of its own.
pub fn isolated(test: impl FnOnce() + Send) {
    assert!(
        geteuid().is_root(),
        "this test makes network namespaces and loads eBPF programs: run it as root"
    );
    let outcome = thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
                let none: Option<&str> = None;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
                fs::create_dir_all("/run/netns").unwrap();
                mount(Some("none"), "/run/netns", Some("tmpfs"), MsFlags::empty(), none).unwrap();
                mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).unwrap();
                test();
            })
            .join()
    });
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a closure inside a named network namespace.
pub fn inside<T: Send>(netns: &str, work: impl FnOnce() -> T + Send) -> T {
    let outcome = thread::scope(|scope| {
        scope
            .spawn(|| {
                let file = fs::File::open(Path::new("/run/netns").join(netns)).unwrap();
                setns(file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            })
            .join()
    });
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs a command; its words are separated by blanks.
pub fn run(command: &str) -> Output {
    let mut words = command.split_whitespace();
    Command::new(words.next().unwrap()).args(words).output().unwrap_or_else(|e| panic!("{command}: {e}"))
}

/// Runs a command that must succeed.
pub fn sh(command: &str) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command inside a namespace; it may fail.
pub fn run_in(netns: &str, command: &str) -> Output {
    inside(netns, || run(command))
}

/// Waits for a condition.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what} did not come to pass");
        thread::sleep(Duration::from_millis(5));
    }
}

pub fn make_namespace(name: &str) {
    sh(&format!("ip netns add {name}"));
    sh(&format!("ip -n {name} link set lo up"));
}

fn sysctl(netns: &str, name: &str, value: &str) {
    inside(netns, || fs::write(Path::new("/proc/sys").join(name), value).unwrap());
}

pub fn ifindex(netns: &str, device: &str) -> u32 {
    inside(netns, || nix::net::if_::if_nametoindex(device).unwrap())
}

pub fn mac(netns: &str, device: &str) -> [u8; 6] {
    let link = sh(&format!("ip -n {netns} -o link show dev {device}"));
    let text = link.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// How the nodes of a test are set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub mode: AttachMode,
    pub endpoint_routes: bool,
}

pub const TCX: Setup = Setup { mode: AttachMode::Tcx, endpoint_routes: true };

/// Two nodes on one switch: 192.168.10.1 and .2, pod CIDRs 10.244.1.0/24 and 10.244.2.0/24.
pub struct Cluster {
    pub nodes: [Node; 2],
}

pub struct Node {
    pub number: u8,
    pub name: String,
    pub setup: Setup,
    pub datapath: Datapath,
    pub pin_dir: PathBuf,
    pub eth1: u32,
    /// Native CIDRs: the node masquerades if there are any.
    pub native: Vec<(Ipv4Addr, u8)>,
}

pub struct Pod {
    pub netns: String,
    pub ip: Ipv4Addr,
    pub device: String,
    pub endpoint: Endpoint,
}

impl Cluster {
    pub fn new(setup: Setup) -> Self {
        make_namespace("switch");
        sh("ip -n switch link add br0 type bridge forward_delay 0");
        sh("ip -n switch link set br0 up");
        Self { nodes: [Node::new(1, setup), Node::new(2, setup)] }
    }
}

impl Node {
    fn new(number: u8, setup: Setup) -> Self {
        let name = format!("node{number}");
        make_namespace(&name);
        sh(&format!("ip -n switch link add p{number} type veth peer name eth1 netns {name}"));
        sh(&format!("ip -n switch link set p{number} master br0 up"));
        sysctl(&name, "net/ipv4/ip_forward", "1");
        sysctl(&name, "net/ipv4/conf/all/rp_filter", "0");
        sysctl(&name, "net/ipv4/conf/default/rp_filter", "0");
        let peer = 3 - number;
        for command in [
            &format!("addr add 192.168.10.{number}/24 dev eth1") as &str,
            "link set eth1 up",
            "link add podwire_host type veth peer name podwire_net",
            "link set podwire_host arp off up",
            "link set podwire_net arp off up",
            &format!("addr add 10.244.{number}.1/32 dev podwire_host"),
            &format!("route add 10.244.{peer}.0/24 via 192.168.10.{peer} dev eth1 proto kernel"),
        ] {
            sh(&format!("ip -n {name} {command}"));
        }
        if !setup.endpoint_routes {
            sh(&format!("ip -n {name} route add 10.244.{number}.1 dev podwire_host scope link"));
            sh(&format!(
                "ip -n {name} route add 10.244.{number}.0/24 via 10.244.{number}.1 dev podwire_host proto kernel"
            ));
        }
        let pin_dir = Path::new("/sys/fs/bpf").join(&name);
        let datapath = inside(&name, || Datapath::open_in(&pin_dir, setup.mode).unwrap());
        let node =
            Self { number, eth1: ifindex(&name, "eth1"), name, setup, datapath, pin_dir, native: vec![] };
        node.configure();
        node
    }

    pub fn configure(&self) {
        self.configure_and_restore(&[]);
    }

    /// What an agent does with the datapath when it starts.
    pub fn configure_and_restore(&self, pods: &[&Pod]) {
        inside(&self.name, || {
            let own = |last| Ipv4Addr::new(10, 244, self.number, last);
            let mut config = NodeConfig::new(self.ip(), own(1), [(own(0), 24)]);
            if !self.native.is_empty() {
                config = config.masquerading(self.native.iter().copied());
            }
            self.datapath.set_config(config).unwrap();
            for pod in pods {
                self.datapath.add_endpoint(pod.ip, pod.endpoint).unwrap();
            }
            if !self.setup.endpoint_routes {
                let host = nix::net::if_::if_nametoindex("podwire_host").unwrap();
                self.datapath.attach_host_device(host).unwrap();
            }
            self.datapath.attach_network_device(self.eth1).unwrap();
            if !self.native.is_empty() {
                self.datapath.attach_masquerade(self.eth1).unwrap();
            }
            for ip in [self.ip(), own(1)] {
                let host = IpcacheEntry { identity: identity::HOST, node_ip: 0 };
                self.datapath.ipcache_upsert(ip.into(), host).unwrap();
            }
        });
    }

    /// A new agent takes the place of the one before, which is gone.
    pub fn restart(&mut self) {
        self.datapath = inside(&self.name, || Datapath::open_in(&self.pin_dir, self.setup.mode).unwrap());
        self.configure();
        for (ip, endpoint) in self.datapath.endpoints().unwrap() {
            inside(&self.name, || self.datapath.add_endpoint(ip, endpoint).unwrap());
        }
    }

    pub fn ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 10, self.number)
    }

    pub fn router_ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.number, 1)
    }

    /// Makes a pod as the CNI plugin would.
    pub fn pod(&self, host: u8) -> Pod {
        let node = &self.name;
        let netns = format!("{node}-pod{host}");
        let device = format!("lxc{host}");
        let ip = Ipv4Addr::new(10, 244, self.number, host);
        let router = self.router_ip();
        make_namespace(&netns);
        // Silence the pod's kernel, so that what is counted is what the test sent.
        sysctl(&netns, "net/ipv6/conf/default/disable_ipv6", "1");
        sysctl(&netns, "net/ipv6/conf/all/disable_ipv6", "1");
        sh(&format!("ip -n {node} link add {device} type veth peer name eth0 netns {netns}"));
        sh(&format!("ip -n {node} link set {device} up"));
        for command in [
            format!("addr add {ip}/32 dev eth0"),
            "link set eth0 up".to_owned(),
            format!("route add {router} dev eth0 scope link"),
            format!("route add default via {router} dev eth0"),
        ] {
            sh(&format!("ip -n {netns} {command}"));
        }
        if self.setup.endpoint_routes {
            sh(&format!("ip -n {node} route add {ip} dev {device} proto kernel scope link"));
        }
        let endpoint = Endpoint {
            ifindex: ifindex(node, &device),
            id: u16::from(host),
            pod_mac: mac(&netns, "eth0"),
            node_mac: mac(node, &device),
            pad: [0; 2],
            identity: 1000 + u32::from(host),
        };
        inside(node, || self.datapath.add_endpoint(ip, endpoint).unwrap());
        let owner = IpcacheEntry { identity: endpoint.identity, node_ip: to_wire(self.ip()) };
        self.datapath.ipcache_upsert(ip.into(), owner).unwrap();
        Pod { netns, ip, device, endpoint }
    }

    /// How many packets were counted for a point and a reason.
    pub fn counted(&self, point: Point, reason: DropReason) -> u64 {
        let metrics = self.datapath.metrics().unwrap();
        metrics.iter().filter(|(p, r, _)| (*p, *r) == (point, reason)).map(|(_, _, c)| c.packets).sum()
    }

    pub fn events(&self) -> Events {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let stream = runtime.block_on(async { self.datapath.events().unwrap() });
        Events { runtime, stream }
    }
}

/// Events of one node.
pub struct Events {
    runtime: tokio::runtime::Runtime,
    stream: EventStream,
}

impl Events {
    /// The next event that holds; those before it are dropped.
    pub fn wait_for(&mut self, what: &str, holds: impl Fn(&FlowEvent) -> bool) -> FlowEvent {
        self.runtime.block_on(async {
            let search = async {
                loop {
                    let event = self.stream.next().await.unwrap().unwrap();
                    if holds(&event) {
                        return event;
                    }
                }
            };
            tokio::time::timeout(PATIENCE, search).await.unwrap_or_else(|_| panic!("no event: {what}"))
        })
    }

    /// The next drop from an address.
    pub fn wait_for_drop(&mut self, reason: DropReason, source: Ipv4Addr) -> FlowEvent {
        let what = format!("{reason} from {source}");
        self.wait_for(&what, |e| e.reason == reason && e.flow.is_some_and(|flow| flow.source == source))
    }
}

impl Pod {
    /// Runs `ping` in the pod: whether an answer came, and what it printed.
    pub fn ping(&self, arguments: &str) -> (bool, String) {
        let output = run_in(&self.netns, &format!("ping -n {arguments}"));
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    }

    /// One echo request must be answered.
    pub fn assert_reaches(&self, ip: Ipv4Addr) {
        let (answered, text) = self.ping(&format!("-c 1 -W 5 {ip}"));
        assert!(answered, "{} does not reach {ip}: {text}", self.ip);
    }
}
