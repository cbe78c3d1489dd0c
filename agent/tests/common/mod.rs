//! A node and its pods as network namespaces without names: they vanish with the test, whatever happens to it.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, setns, unshare};
use podwire_abi::{Endpoint, IpcacheEntry};
use podwire_agent::cni_server::CniServer;
use podwire_agent::core::{Core, NodeSettings, Restored};
use podwire_agent::datapath_ops::{DatapathOps, Failure};
use podwire_agent::host;
use podwire_agent::ipam::Pool;
use podwire_agent::netlink::Netlink;
use podwire_agent::store::Store;
use podwire_agent::wiring::Wiring;
use serde_json::{Value, json};

/// A network namespace that lives as long as this.
pub struct Namespace(File);

impl Namespace {
    pub fn new() -> Self {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(made.join().unwrap())
    }

    /// A path that names the namespace, for CNI_NETNS.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs `work` inside; threads that it starts are inside too.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                    work()
                })
                .join()
                .unwrap()
        })
    }

    /// Runs a command inside and returns its stdout; panics if it fails.
    pub fn ip(&self, args: &str) -> String {
        let out = self.run(|| Command::new("ip").args(args.split_whitespace()).output().unwrap());
        assert!(out.status.success(), "ip {args}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Names of all links.
    pub fn links(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.run(|| Netlink::open().unwrap().links().unwrap()).into_iter().map(|l| l.name).collect();
        names.sort();
        names
    }
}

/// Stands in for the eBPF datapath, which has tests of its own.
#[derive(Default)]
pub struct FakeDatapath {
    pub endpoints: Mutex<BTreeMap<Ipv4Addr, Endpoint>>,
    pub ipcache: Mutex<BTreeMap<Ipv4Net, IpcacheEntry>>,
    pub settled: Mutex<Vec<u32>>,
    pub broken: AtomicBool,
}

impl DatapathOps for FakeDatapath {
    fn add_endpoint(&self, ip: Ipv4Addr, endpoint: Endpoint) -> Result<(), Failure> {
        if self.broken.load(Ordering::SeqCst) {
            return Err("broken on purpose".into());
        }
        self.endpoints.lock().unwrap().insert(ip, endpoint);
        Ok(())
    }
    fn add_new_endpoint(&self, ip: Ipv4Addr, endpoint: Endpoint) -> Result<(), Failure> {
        self.add_endpoint(ip, endpoint)
    }
    fn settle_endpoint(&self, ifindex: u32) -> Result<(), Failure> {
        self.settled.lock().unwrap().push(ifindex);
        Ok(())
    }
    fn update_endpoint(&self, ip: Ipv4Addr, endpoint: Endpoint) -> Result<(), Failure> {
        self.add_endpoint(ip, endpoint)
    }
    fn remove_endpoint(&self, ip: Ipv4Addr, _ifindex: u32) -> Result<(), Failure> {
        self.endpoints.lock().unwrap().remove(&ip);
        Ok(())
    }
    fn endpoints(&self) -> Result<Vec<(Ipv4Addr, Endpoint)>, Failure> {
        Ok(self.endpoints.lock().unwrap().iter().map(|(a, b)| (*a, *b)).collect())
    }
    fn ipcache_upsert(&self, net: Ipv4Net, entry: IpcacheEntry) -> Result<(), Failure> {
        self.ipcache.lock().unwrap().insert(net, entry);
        Ok(())
    }
    fn ipcache_delete(&self, net: Ipv4Net) -> Result<(), Failure> {
        self.ipcache.lock().unwrap().remove(&net);
        Ok(())
    }
    fn ipcache(&self) -> Result<Vec<(Ipv4Net, IpcacheEntry)>, Failure> {
        Ok(self.ipcache.lock().unwrap().iter().map(|(a, b)| (*a, *b)).collect())
    }
}

/// A node with a running CNI server.
pub struct TestNode {
    pub ns: Namespace,
    pub datapath: Arc<FakeDatapath>,
    /// The eBPF datapath, where the test is about packets.
    pub real: Option<Arc<dyn DatapathOps>>,
    pub dir: tempfile::TempDir,
    pub cidr: Ipv4Net,
    pub endpoint_routes: bool,
    pub core: Option<Arc<Core>>,
    pub server: Option<CniServer>,
}

impl TestNode {
    pub fn new(cidr: &str) -> Self {
        Self::with(cidr, true)
    }

    pub fn with(cidr: &str, endpoint_routes: bool) -> Self {
        let mut node = Self::not_started(cidr, endpoint_routes);
        node.start();
        node
    }

    pub fn not_started(cidr: &str, endpoint_routes: bool) -> Self {
        Self {
            ns: Namespace::new(),
            datapath: Arc::default(),
            real: None,
            dir: tempfile::tempdir().unwrap(),
            cidr: cidr.parse().unwrap(),
            endpoint_routes,
            core: None,
            server: None,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("cni.sock")
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Starts the agent's core and CNI server, as the daemon does.
    pub fn start(&mut self) -> Restored {
        let (core, restored, server) = self.ns.run(|| {
            host::apply_sysctls().unwrap();
            let pool = Pool::new(&[self.cidr]).unwrap();
            host::ensure_host_device(&mut Netlink::open().unwrap(), &pool.routers(), 1500).unwrap();
            let wiring = Wiring { endpoint_routes: self.endpoint_routes, ipv6: host::has_ipv6() };
            let store = Store::open(&self.state()).unwrap();
            let settings = NodeSettings { wiring, mtu: 1500 };
            let datapath = self.real.clone().unwrap_or_else(|| self.datapath.clone());
            let (core, restored) = Core::restore(settings, pool, store, datapath).unwrap();
            let core = Arc::new(core);
            let server = CniServer::start(core.clone(), &self.socket()).unwrap();
            (core, restored, server)
        });
        self.core = Some(core);
        self.server = Some(server);
        restored
    }

    pub fn core(&self) -> &Arc<Core> {
        self.core.as_ref().unwrap()
    }

    /// Forgets everything that is in memory, as a kill does.
    pub fn stop(&mut self) {
        self.server = None;
        self.core = None;
    }

    pub fn config(&self, version: &str) -> Value {
        json!({"cniVersion": version, "name": "podwire", "type": "podwire-cni", "socket": self.socket()})
    }

    pub fn add(&self, container: &str, netns: &str) -> Outcome {
        self.call("ADD", container, netns, &self.config("1.1.0"))
    }

    pub fn del(&self, container: &str, netns: &str) -> Outcome {
        self.call("DEL", container, netns, &self.config("1.1.0"))
    }

    #[allow(clippy::unused_self, reason = "a call to this node: its socket stands in the configuration")]
    pub fn call(&self, verb: &str, container: &str, netns: &str, config: &Value) -> Outcome {
        let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{container}");
        let vars = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", container),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", &args),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        plugin(&vars, config.to_string().as_bytes())
    }
}

/// What the plugin answered.
#[derive(Debug)]
pub struct Outcome {
    pub success: bool,
    pub json: Value,
    pub stderr: String,
}

impl Outcome {
    pub fn result(self) -> Value {
        assert!(self.success, "{self:?}");
        self.json
    }

    pub fn ip(self) -> Ipv4Addr {
        let address: Ipv4Net = self.result()["ips"][0]["address"].as_str().unwrap().parse().unwrap();
        assert_eq!(address.prefix_len(), 32);
        address.addr()
    }

    /// The error's code; its shape is checked on the way.
    pub fn error(self, code: u32) -> String {
        assert!(!self.success, "{self:?}");
        assert_eq!(self.json["code"], code, "{self:?}");
        assert!(self.json["cniVersion"].is_string(), "{self:?}");
        assert!(self.stderr.is_empty(), "{self:?}");
        format!("{}: {}", self.json["msg"].as_str().unwrap(), self.json["details"].as_str().unwrap_or(""))
    }
}

/// Executes the real podwire-cni.
pub fn plugin(vars: &[(&str, &str)], stdin: &[u8]) -> Outcome {
    let mut child = Command::new(env!("CARGO_BIN_EXE_podwire-cni"))
        .env_clear()
        .envs(vars.iter().copied().filter(|(_, v)| !v.is_empty()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A call with a bad environment ends before it reads its stdin.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let out = child.wait_with_output().unwrap();
    let json = if out.stdout.is_empty() { Value::Null } else { serde_json::from_slice(&out.stdout).unwrap() };
    Outcome { success: out.status.success(), json, stderr: String::from_utf8_lossy(&out.stderr).into_owned() }
}

/// Names of the files in a directory.
pub fn files(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}
