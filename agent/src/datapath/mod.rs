//! The eBPF datapath of one node: programs, maps and attachments, pinned so that they outlive the agent.
//!
//! [`Datapath::open`] loads what is not there yet and takes over what is. Everything then works on pinned objects: when
//! the agent ends, in whatever way, the packets flow on.

use std::{
    net::Ipv4Addr,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use aya::{
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, lpm_trie::Key},
    programs::SchedClassifier,
};
use ipnet::Ipv4Net;
use podwire_abi::{
    Counter, DropReason, Endpoint, EndpointKey, IpcacheEntry, NodeConfig, Point,
    connection::{Connection, ConnectionKey, MasqueradeKey},
    flags, from_wire, maps, metric_index,
    service::{Balanced, Tuple},
    to_wire,
};

mod attach;
mod error;
mod events;
mod flow;
mod masquerade;
mod pins;
mod probe;
mod services;
mod sockets;
mod sys;

pub use self::{
    attach::{AttachMode, Hook},
    error::DatapathError,
    events::EventStream,
    flow::{Flow, FlowEvent, L4, Names},
    masquerade::{Connections, Direction, MasqueradeAddresses},
    probe::{Feature, probe},
    services::{Backends, BalancedConnections, Caller, Frontend, Protocol, ServiceTable},
    sockets::cgroup_root,
};

use self::{attach::Attachments, pins::Pins, services::ServiceMaps};

type Result<T> = std::result::Result<T, DatapathError>;

/// The datapath. Clones share it.
#[derive(Clone)]
pub struct Datapath {
    inner: Arc<Inner>,
}

struct Inner {
    pins: Pins,
    mode: AttachMode,
    attachments: Attachments,
    /// In the order of [`Hook::ALL`].
    programs: Vec<Mutex<SchedClassifier>>,
    endpoints: Mutex<HashMap<MapData, EndpointKey, Endpoint>>,
    ipcache: Mutex<LpmTrie<MapData, u32, IpcacheEntry>>,
    config: Mutex<Array<MapData, NodeConfig>>,
    metrics: PerCpuArray<MapData, Counter>,
    /// In the order of [`Direction`].
    connections: [Mutex<HashMap<MapData, ConnectionKey, Connection>>; 2],
    masquerade: Mutex<LpmTrie<MapData, MasqueradeKey, u32>>,
    non_masquerade: Mutex<LpmTrie<MapData, u32, u32>>,
    services: Mutex<ServiceMaps>,
    balanced: Mutex<HashMap<MapData, Tuple, Balanced>>,
    balanced_callers: Mutex<Array<MapData, u32>>,
    /// What the stack sends to pods is looked at too.
    every_packet: AtomicBool,
    /// The configuration whose pod CIDRs the programs do not know yet, because not all pods are in the new maps.
    withheld: Mutex<Option<NodeConfig>>,
    events_taken: Arc<AtomicBool>,
}

/// A lock whose holder panicked still guards a whole value: every change is one system call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a pinned map as a typed one.
fn typed<T: TryFrom<Map, Error = MapError>>(pins: &Pins, name: &'static str) -> Result<T> {
    T::try_from(pins.map(name)?).map_err(DatapathError::map("use", name))
}

impl Datapath {
    /// Loads the programs, or takes over what an earlier agent has pinned below `pin_dir`: maps with their content are
    /// reused, and programs are replaced at their attachments one by one, each atomically. Where they are the same,
    /// nothing is touched. Where the maps are new (a first start, or another ABI), what is attached goes on with the old
    /// ones, until [`Self::add_endpoint`] and the `attach_` functions come to it: pods first, the underlay's device last.
    pub fn open(pin_dir: &Path) -> Result<Self> {
        let mode = if sys::has_tcx() { AttachMode::Tcx } else { AttachMode::Clsact };
        Self::open_in(pin_dir, mode)
    }

    /// As [`Self::open`], attaching in the given mode.
    pub fn open_in(pin_dir: &Path, mode: AttachMode) -> Result<Self> {
        if mode == AttachMode::Tcx && !sys::has_tcx() {
            return Err(DatapathError::NoTcx);
        }
        let (pins, _lock) = Pins::prepare(pin_dir)?;
        let programs = pins.programs_of_this_agent().map_err(|error| error.explained(probe))?;
        let programs: Vec<_> = programs.into_iter().map(Mutex::new).collect();
        let attachments = Attachments::new(pins.root())?;
        attachments.take_over(&programs, pins.are_settled())?;
        pins.drop_leftovers()?;
        Ok(Self {
            inner: Arc::new(Inner {
                endpoints: Mutex::new(typed(&pins, maps::ENDPOINTS)?),
                ipcache: Mutex::new(typed(&pins, maps::IPCACHE)?),
                config: Mutex::new(typed(&pins, maps::CONFIG)?),
                metrics: typed(&pins, maps::METRICS)?,
                connections: [
                    Mutex::new(typed(&pins, Direction::Out.map())?),
                    Mutex::new(typed(&pins, Direction::In.map())?),
                ],
                masquerade: Mutex::new(typed(&pins, maps::MASQUERADE)?),
                non_masquerade: Mutex::new(typed(&pins, maps::NON_MASQUERADE)?),
                services: Mutex::new(ServiceMaps::open(&pins)?),
                balanced: Mutex::new(typed(&pins, maps::BALANCED)?),
                balanced_callers: Mutex::new(typed(&pins, maps::BALANCED_CALLERS)?),
                every_packet: AtomicBool::new(false),
                withheld: Mutex::new((!pins.are_settled()).then(NodeConfig::default)),
                pins,
                mode,
                attachments,
                programs,
                events_taken: Arc::new(AtomicBool::new(false)),
            }),
        })
    }

    /// How programs are attached.
    pub fn attach_mode(&self) -> AttachMode {
        self.inner.mode
    }

    /// Sets the node's addresses and pod CIDRs. The bit of [`Self::set_trace`] stays as it is.
    pub fn set_config(&self, mut config: NodeConfig) -> Result<()> {
        if let Some(withheld) = &mut *lock(&self.inner.withheld) {
            *withheld = config;
            // A pod that is not in the maps yet is reached by the stack meanwhile, not dropped as unroutable.
            config.pod_cidrs = Default::default();
        }
        self.write_config(config)
    }

    fn write_config(&self, config: NodeConfig) -> Result<()> {
        self.change_config(|present| NodeConfig {
            flags: (config.flags & !flags::TRACE) | (present.flags & flags::TRACE),
            ..config
        })
    }

    /// All pods are in the maps: from now on the next agent may take over whatever it finds.
    fn settle(&self) -> Result<()> {
        let mut withheld = lock(&self.inner.withheld);
        if let Some(config) = *withheld {
            self.write_config(config)?;
            self.inner.pins.settle()?;
            *withheld = None;
        }
        Ok(())
    }

    /// Whether forwarded packets are reported too, not only drops.
    pub fn set_trace(&self, on: bool) -> Result<()> {
        self.change_config(|mut config| {
            config.flags = if on { config.flags | flags::TRACE } else { config.flags & !flags::TRACE };
            config
        })
    }

    /// What the programs know of the node.
    pub fn config(&self) -> Result<NodeConfig> {
        lock(&self.inner.config).get(&0, 0).map_err(DatapathError::map("read", maps::CONFIG))
    }

    fn change_config(&self, change: impl FnOnce(NodeConfig) -> NodeConfig) -> Result<()> {
        let mut map = lock(&self.inner.config);
        let present = map.get(&0, 0).map_err(DatapathError::map("read", maps::CONFIG))?;
        map.set(0, change(present), 0).map_err(DatapathError::map("write", maps::CONFIG))
    }

    fn attach(&self, hook: Hook, ifindex: u32) -> Result<()> {
        let mut program = lock(&self.inner.programs[hook as usize]);
        self.inner.attachments.attach(self.inner.mode, hook, ifindex, &mut program)
    }

    /// Handles what arrives at an underlay device. Idempotent. An agent that starts calls it after it has added the
    /// pods that it restores.
    pub fn attach_network_device(&self, ifindex: u32) -> Result<()> {
        self.attach(Hook::FromNetwork, ifindex)?;
        self.settle()
    }

    /// Takes the program from an underlay device. Idempotent.
    pub fn detach_network_device(&self, ifindex: u32) -> Result<()> {
        self.inner.attachments.detach(Hook::FromNetwork, ifindex)
    }

    /// Delivers to the pods of this node what the stack routes to podwire_host, the device by which the pod CIDR is
    /// reached while endpointRoutes is off. Idempotent.
    pub fn attach_host_device(&self, ifindex: u32) -> Result<()> {
        self.attach(Hook::FromHost, ifindex)
    }

    /// Takes the program from podwire_host. Idempotent.
    pub fn detach_host_device(&self, ifindex: u32) -> Result<()> {
        self.inner.attachments.detach(Hook::FromHost, ifindex)
    }

    /// From now on packets for other nodes' pods go by this device, and what comes by it is delivered. Idempotent. An agent
    /// that starts calls it after it has added the pods that it restores.
    pub fn attach_overlay_device(&self, ifindex: u32, mtu: u32) -> Result<()> {
        self.attach(Hook::FromOverlay, ifindex)?;
        self.set_tunnel(ifindex, mtu)
    }

    /// From now on packets for other nodes' pods go as they are, and no device is the tunnel's. Idempotent.
    pub fn detach_overlay_devices(&self) -> Result<()> {
        self.set_tunnel(0, 0)?;
        for (hook, ifindex) in self.attachments()? {
            if hook == Hook::FromOverlay {
                self.inner.attachments.detach(hook, ifindex)?;
            }
        }
        Ok(())
    }

    fn set_tunnel(&self, ifindex: u32, mtu: u32) -> Result<()> {
        if let Some(withheld) = &mut *lock(&self.inner.withheld) {
            *withheld = withheld.tunnelling(ifindex, mtu);
        }
        self.change_config(|config| config.tunnelling(ifindex, mtu))
    }

    /// What programs of ours are attached: hook and index of the device.
    pub fn attachments(&self) -> Result<Vec<(Hook, u32)>> {
        self.inner.attachments.list()
    }

    /// Makes the pod reachable, and lets it send. Idempotent.
    pub fn add_endpoint(&self, ip: Ipv4Addr, endpoint: Endpoint) -> Result<()> {
        self.update_endpoint(ip, endpoint)?;
        // Only then: from its first packet on the program finds the pod it belongs to.
        self.settle_endpoint(endpoint.ifindex)
    }

    /// As [`Self::add_endpoint`], at once, for a pod that is being wired: by a filter in every mode. A new tcx link makes
    /// the kernel wait for an RCU grace period (8 ms and more at HZ=250) under the lock of all network configuration,
    /// which would be most of the time that a pod takes to be wired. [`Self::settle_endpoint`] makes up for it.
    pub fn add_new_endpoint(&self, ip: Ipv4Addr, endpoint: Endpoint) -> Result<()> {
        self.update_endpoint(ip, endpoint)?;
        let mut program = lock(&self.inner.programs[Hook::FromEndpoint as usize]);
        self.inner.attachments.attach(AttachMode::Clsact, Hook::FromEndpoint, endpoint.ifindex, &mut program)
    }

    /// Attaches an endpoint's program in the datapath's own mode, without a moment in which there is none. Idempotent.
    pub fn settle_endpoint(&self, ifindex: u32) -> Result<()> {
        self.attach(Hook::FromEndpoint, ifindex)?;
        if self.inner.every_packet.load(Ordering::Relaxed) {
            self.attach(Hook::ToEndpoint, ifindex)?;
        }
        Ok(())
    }

    /// From now on the programs also see what the node's stack sends to pods: where sockets are not given backends, the answers
    /// of the node's own servers are among it. Idempotent.
    pub fn see_every_packet(&self) -> Result<()> {
        self.inner.every_packet.store(true, Ordering::Relaxed);
        for (_, endpoint) in self.endpoints()? {
            self.attach(Hook::ToEndpoint, endpoint.ifindex)?;
        }
        Ok(())
    }

    /// Changes what is known of a pod.
    pub fn update_endpoint(&self, ip: Ipv4Addr, endpoint: Endpoint) -> Result<()> {
        lock(&self.inner.endpoints)
            .insert(EndpointKey { ip: to_wire(ip) }, endpoint, 0)
            .map_err(DatapathError::map("write", maps::ENDPOINTS))
    }

    /// Forgets the pod. Idempotent; the device may be gone already, and the address may be another pod's by now.
    pub fn remove_endpoint(&self, ip: Ipv4Addr, ifindex: u32) -> Result<()> {
        let key = EndpointKey { ip: to_wire(ip) };
        let mut endpoints = lock(&self.inner.endpoints);
        match endpoints.get(&key, 0) {
            Ok(present) if present.ifindex == ifindex => match endpoints.remove(&key) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(DatapathError::map("write", maps::ENDPOINTS)(error)),
            },
            Ok(_) | Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(DatapathError::map("read", maps::ENDPOINTS)(error)),
        }
        drop(endpoints);
        self.inner.attachments.detach(Hook::ToEndpoint, ifindex)?;
        self.inner.attachments.detach(Hook::FromEndpoint, ifindex)
    }

    /// The pods of this node, in the order of their addresses.
    pub fn endpoints(&self) -> Result<Vec<(Ipv4Addr, Endpoint)>> {
        let mut all = lock(&self.inner.endpoints)
            .iter()
            .map(|entry| entry.map(|(key, endpoint)| (from_wire(key.ip), endpoint)))
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(DatapathError::map("read", maps::ENDPOINTS))?;
        all.sort_by_key(|(ip, _)| *ip);
        Ok(all)
    }

    /// Says who owns the addresses of a prefix.
    pub fn ipcache_upsert(&self, net: Ipv4Net, entry: IpcacheEntry) -> Result<()> {
        lock(&self.inner.ipcache)
            .insert(&ipcache_key(net), entry, 0)
            .map_err(DatapathError::map("write", maps::IPCACHE))
    }

    /// Forgets who owns the addresses of a prefix. Idempotent.
    pub fn ipcache_delete(&self, net: Ipv4Net) -> Result<()> {
        match lock(&self.inner.ipcache).remove(&ipcache_key(net)) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => {
                Ok(())
            }
            Err(error) => Err(DatapathError::map("write", maps::IPCACHE)(error)),
        }
    }

    /// Who owns which addresses, in the order of the prefixes.
    pub fn ipcache(&self) -> Result<Vec<(Ipv4Net, IpcacheEntry)>> {
        let mut all = Vec::new();
        for entry in lock(&self.inner.ipcache).iter() {
            let (key, entry) = entry.map_err(DatapathError::map("read", maps::IPCACHE))?;
            let prefix = u8::try_from(key.prefix_len()).unwrap_or(32).min(32);
            all.push((Ipv4Net::new_assert(from_wire(key.data()), prefix), entry));
        }
        all.sort_by_key(|(net, _)| *net);
        Ok(all)
    }

    /// What was counted, summed over the CPUs; slots that never counted are left out.
    pub fn metrics(&self) -> Result<Vec<(Point, DropReason, Counter)>> {
        let mut all = Vec::new();
        for point in Point::ALL {
            for reason in DropReason::ALL {
                let values = self
                    .inner
                    .metrics
                    .get(&metric_index(point, reason), 0)
                    .map_err(DatapathError::map("read", maps::METRICS))?;
                let sum = values.iter().fold(Counter::default(), |sum, cpu| Counter {
                    packets: sum.packets.wrapping_add(cpu.packets),
                    bytes: sum.bytes.wrapping_add(cpu.bytes),
                });
                if sum.packets > 0 {
                    all.push((point, reason, sum));
                }
            }
        }
        Ok(all)
    }

    /// Drops, and while [`Self::set_trace`] is on also forwarded packets, as they happen. One reader at a time: what
    /// one has read no other gets. Needs a Tokio runtime.
    pub fn events(&self) -> Result<EventStream> {
        EventStream::open(self.inner.pins.map(maps::EVENTS)?, self.inner.events_taken.clone())
    }
}

fn ipcache_key(net: Ipv4Net) -> Key<u32> {
    Key::new(u32::from(net.prefix_len()), to_wire(net.network()))
}
