//! Keeps what the datapath knows of addresses: their owners and identities.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ipnet::Ipv4Net;
use podwire_abi::IpcacheEntry;

use crate::core::Core;
use crate::health::Health;
use crate::ipcache::{LocalPod, NodeAddresses, PodAddress, diff, plan};
use crate::netlink::monitor::Monitor;
use crate::netlink::{Netlink, NetlinkError};

/// Name of this part in `podwire status`.
const PART: &str = "ipcache";

/// Address to name (`namespace/pod` or a node's), for flows.
pub type Names = BTreeMap<Ipv4Addr, String>;

/// What the controller works with.
pub struct Controller {
    /// The agent's core.
    pub core: Arc<Core>,
    /// Whether the API server has told all nodes and pods; what was known before stays until it has.
    pub complete: Box<dyn Fn() -> bool + Send>,
    /// The nodes, as the API server tells.
    pub nodes: Box<dyn Fn() -> Vec<NodeAddresses> + Send>,
    /// The pods that have addresses, as the API server tells.
    pub pods: Box<dyn Fn() -> Vec<PodAddress> + Send>,
    /// The identities of pods of this node, whether they have addresses or not.
    pub identities: Box<dyn Fn() -> BTreeMap<String, u32> + Send>,
    /// Where names are shown.
    pub names: Arc<ArcSwap<Names>>,
    /// Where this part says how it is.
    pub health: Arc<Health>,
}

impl Controller {
    /// Runs for ever, in the network namespace in which the runtime was built.
    pub async fn run(self) {
        let mut changes = self.core.signal().listen();
        let mut addresses = match Monitor::of_addresses() {
            Ok(monitor) => monitor,
            Err(cause) => return self.health.fail(PART, cause.to_string()),
        };
        loop {
            tokio::select! {
                () = changes.heard() => {}
                event = addresses.changed() => if let Err(cause) = event {
                    return self.health.fail(PART, format!("netlink monitor: {cause}; restart the agent"));
                },
            }
            self.once();
        }
    }

    /// One run.
    pub fn once(&self) {
        // Asked first: what is told meanwhile is not taken for everything.
        let mut complete = (self.complete)();
        let mut errors = self.core.set_identities((self.identities)());
        let own = own_addresses().unwrap_or_else(|cause| {
            complete = false;
            errors.push(cause.to_string());
            Vec::new()
        });
        let (nodes, pods, live) = ((self.nodes)(), (self.pods)(), self.core.live());
        let local: Vec<LocalPod> =
            live.iter().map(|l| LocalPod { ip: l.endpoint.ip, identity: l.identity }).collect();
        let desired = plan(&nodes, &own, &pods, &local);
        let datapath = self.core.datapath();
        // The datapath is asked each time: it is small, and so what somebody else wrote into it is mended too.
        match datapath.ipcache() {
            Ok(present) => {
                let present: BTreeMap<Ipv4Net, IpcacheEntry> = present.into_iter().collect();
                let mut changes = diff(&desired, &present);
                if !complete {
                    changes.delete.clear();
                }
                let upserts = changes.upsert.iter().map(|(net, entry)| datapath.ipcache_upsert(*net, *entry));
                let deletes = changes.delete.iter().map(|net| datapath.ipcache_delete(*net));
                errors.extend(upserts.chain(deletes).filter_map(|r| r.err().map(|e| e.to_string())));
            }
            Err(cause) => errors.push(cause.to_string()),
        }
        let mut names: Names = live.iter().map(|l| (l.endpoint.ip, l.endpoint.owner())).collect();
        names.extend(pods.into_iter().map(|p| (p.ip, p.owner)));
        for node in nodes {
            names.extend(node.internal_ip.into_iter().chain(node.router).map(|ip| (ip, node.name.clone())));
        }
        self.names.store(Arc::new(names));
        self.health.report(PART, errors, format!("{} entries", desired.len()));
    }
}

/// Every address of this node by which others may call it; the API server knows the InternalIP only.
fn own_addresses() -> Result<Vec<Ipv4Addr>, NetlinkError> {
    let all = Netlink::open()?.addresses()?.into_iter().map(|(_, net)| net.addr());
    Ok(all.filter(|ip| !ip.is_loopback()).collect())
}
