//! The verbs of CNI, as far as the agent does them. The plugin has checked the call.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use podwire_abi::IpcacheEntry;
use podwire_abi::identity::UNMANAGED;
use podwire_api::names::HOST_DEVICE;
use serde_json::Value;

use super::{Core, Entry, Stage, State};
use crate::cni::config::Attachment;
use crate::cni::error::{CniError, Code};
use crate::cni::result::Wired;
use crate::cni::wire::Request;
use crate::endpoint::{Endpoint, Key, owner};
use crate::netlink::Netlink;
use crate::wiring::{WireError, abi_endpoint, host_net, inspect};

impl Core {
    /// ADD.
    pub fn add(&self, request: &Request, netns: &OwnedFd) -> Result<Value, CniError> {
        self.adds.fetch_add(1, Ordering::Relaxed);
        let endpoint = self.reserve(request)?;
        let key = endpoint.key();
        let outcome = self.make(&endpoint, netns);
        let mut state = self.state();
        match outcome {
            Ok((ifindex, identity)) => {
                state.entries.insert(
                    key,
                    Entry {
                        endpoint: endpoint.clone(),
                        stage: Stage::Ready,
                        ifindex,
                        identity,
                        settled: false,
                    },
                );
                drop(state);
                self.changed.notify();
                Ok(wired(&endpoint).render(request.config.version, request.config.prev_result.as_ref()))
            }
            Err(error) => {
                state.entries.remove(&key);
                state.pool.free(endpoint.ip);
                Err(error)
            }
        }
    }

    /// Takes an address and a number for a new endpoint.
    fn reserve(&self, request: &Request) -> Result<Arc<Endpoint>, CniError> {
        let key = Key::new(&request.container_id, &request.ifname);
        let arg = |name: &str| request.args.get(name).cloned().unwrap_or_default();
        let (namespace, pod) = (arg("K8S_POD_NAMESPACE"), arg("K8S_POD_NAME"));
        let mut guard = self.state();
        let state = &mut *guard;
        if let Some(entry) = state.entries.get(&key) {
            return Err(CniError::new(
                Code::EXISTS,
                format!("container {} has interface {} already", key.container_id, key.ifname),
                format!("it has address {}; DEL it before another ADD", entry.endpoint.ip),
            ));
        }
        let id = state.free_id()?;
        let ip = state
            .pool
            .allocate(&owner(&namespace, &pod, &request.container_id))
            .map_err(|e| CniError::new(Code::TRY_AGAIN, e.to_string(), ""))?;
        state.last_id = id;
        let endpoint = Arc::new(Endpoint {
            id,
            ip,
            gateway: state.pool.router(),
            mtu: self.settings.mtu,
            network: request.config.name.clone(),
            container_id: request.container_id.clone(),
            ifname: request.ifname.clone(),
            netns: request.netns.clone(),
            namespace,
            pod,
        });
        let entry = Entry {
            endpoint: endpoint.clone(),
            stage: Stage::Wiring,
            ifindex: 0,
            identity: UNMANAGED,
            settled: false,
        };
        state.entries.insert(key, entry);
        Ok(endpoint)
    }

    /// Makes everything of an endpoint, or nothing. Returns the index of its device and its identity.
    fn make(&self, endpoint: &Endpoint, netns: &OwnedFd) -> Result<(u32, u32), CniError> {
        let device = endpoint.key().device();
        let identity = self.identities.load().get(&endpoint.owner()).copied().unwrap_or(UNMANAGED);
        self.store.save(endpoint).map_err(|e| io_error(&e))?;
        let forget_record = || {
            if let Err(cause) = self.store.remove(&device) {
                tracing::error!("rolling back {device}: {cause}");
            }
        };
        let mut host = Netlink::open().map_err(|e| {
            forget_record();
            io_error(&e)
        })?;
        let mut attached = 0;
        let outcome = self.settings.wiring.wire(&mut host, endpoint, netns.as_fd(), |ifindex| {
            attached = ifindex;
            self.datapath.add_new_endpoint(endpoint.ip, abi_endpoint(endpoint, ifindex, identity))?;
            self.datapath.ipcache_upsert(host_net(endpoint.ip), IpcacheEntry { identity, node_ip: 0 })
        });
        match outcome {
            Ok(ifindex) => Ok((ifindex, identity)),
            Err(error) => {
                if attached != 0 {
                    self.detach(endpoint.ip, attached);
                }
                forget_record();
                Err(wire_error(&error))
            }
        }
    }

    /// Takes from the datapath what came too late or in vain.
    pub(super) fn detach(&self, ip: Ipv4Addr, ifindex: u32) {
        let undone =
            self.datapath.remove_endpoint(ip, ifindex).and(self.datapath.ipcache_delete(host_net(ip)));
        if let Err(cause) = undone {
            tracing::error!("rolling back {ip}: datapath: {cause}");
        }
    }

    /// DEL: succeeds when there is nothing (any more).
    pub fn del(&self, container_id: &str, ifname: &str) -> Result<(), CniError> {
        let key = Key::new(container_id, ifname);
        let entry = {
            let mut state = self.state();
            match state.entries.get_mut(&key) {
                None => None,
                Some(entry) if entry.stage != Stage::Ready => {
                    return Err(CniError::new(
                        Code::TRY_AGAIN,
                        format!(
                            "another call for interface {ifname} of container {container_id} is under way"
                        ),
                        "try again when it has ended",
                    ));
                }
                Some(entry) => {
                    entry.stage = Stage::Unwiring;
                    Some(entry.clone())
                }
            }
        };
        let outcome = self.unmake(&key, entry.as_ref());
        let mut state = self.state();
        if outcome.is_ok() {
            state.entries.remove(&key);
            let lost = state.lost.remove(&key.device()).flatten();
            for ip in entry.iter().map(|e| e.endpoint.ip).chain(lost) {
                state.pool.free(ip);
            }
            drop(state);
            self.changed.notify();
        } else if let Some(entry) = state.entries.get_mut(&key) {
            entry.stage = Stage::Ready;
        }
        outcome
    }

    fn unmake(&self, key: &Key, entry: Option<&Entry>) -> Result<(), CniError> {
        let device = key.device();
        // The device first: taking the program from a device that lives would make the kernel wait for packets in flight.
        let mut host = Netlink::open().map_err(|e| io_error(&e))?;
        host.delete_link(&device).map_err(|e| io_error(&e))?;
        if let Some(entry) = entry {
            let ip = entry.endpoint.ip;
            let datapath = |e: crate::datapath_ops::Failure| {
                CniError::new(Code::IO, format!("the datapath does not let {ip} go"), e.to_string())
            };
            self.datapath.remove_endpoint(ip, entry.ifindex).map_err(datapath)?;
            self.datapath.ipcache_delete(host_net(ip)).map_err(datapath)?;
        }
        self.store.remove(&device).map_err(|e| io_error(&e))
    }

    /// CHECK: is everything as ADD left it?
    pub fn check(&self, request: &Request, netns: &OwnedFd) -> Result<(), CniError> {
        let key = Key::new(&request.container_id, &request.ifname);
        let entry = self.state().entries.get(&key).filter(|e| e.stage == Stage::Ready).cloned();
        let Some(entry) = entry else {
            return Err(CniError::new(
                Code::UNKNOWN_CONTAINER,
                format!("container {} has no interface {} of this network", key.container_id, key.ifname),
                "it was never added or is deleted already",
            ));
        };
        let wired = wired(&entry.endpoint);
        let mut faults: Vec<String> =
            request.config.prev_result.iter().filter_map(|prev| wired.differs_from(prev)).collect();
        let pod = inspect(netns.as_fd(), &key.ifname).map_err(|e| wire_error(&e))?;
        match pod.link {
            None => faults.push(format!("the container has no interface {}", key.ifname)),
            Some(link) => {
                if !link.up {
                    faults.push(format!("interface {} of the container is down", key.ifname));
                }
                if link.mac != Some(key.pod_mac()) {
                    faults.push(format!("interface {} does not have the MAC {}", key.ifname, key.pod_mac()));
                }
                if !pod.addresses.contains(&host_net(wired.ip)) {
                    faults.push(format!("interface {} does not have address {}/32", key.ifname, wired.ip));
                }
                if pod.default_via != Some(wired.gateway) {
                    faults.push(format!("the container has no default route via {}", wired.gateway));
                }
            }
        }
        let node_end =
            Netlink::open().and_then(|mut n| n.link(&wired.node_device)).map_err(|e| io_error(&e))?;
        if !node_end.is_some_and(|l| l.up && l.index == entry.ifindex) {
            faults.push(format!("device {} of the node is gone or down", wired.node_device));
        }
        let known = self.datapath.endpoints().map_err(|e| io_error(&e))?;
        if !known.iter().any(|(ip, e)| *ip == wired.ip && e.ifindex == entry.ifindex) {
            faults.push(format!("the datapath does not know {} on {}", wired.ip, wired.node_device));
        }
        if faults.is_empty() {
            return Ok(());
        }
        Err(CniError::new(Code::CHECK_FAILED, faults.join("; "), "delete the pod, so that it is made anew"))
    }

    /// GC: takes down every endpoint of `network` that is not in `valid`.
    pub fn gc(&self, network: &str, valid: &[Attachment]) -> Result<(), CniError> {
        let stale: Vec<Key> = {
            let state = self.state();
            let of_network = state
                .entries
                .iter()
                .filter(|(_, e)| e.stage == Stage::Ready && e.endpoint.network == network);
            of_network
                .map(|(key, _)| key.clone())
                .filter(|k| !valid.iter().any(|v| v.container_id == k.container_id && v.ifname == k.ifname))
                .collect()
        };
        let mut failed = Vec::new();
        for key in &stale {
            match self.del(&key.container_id, &key.ifname) {
                Ok(()) => tracing::info!(
                    "GC: container {} is gone; its {} is removed",
                    key.container_id,
                    key.ifname
                ),
                Err(error) => failed.push(format!("container {}: {error}", key.container_id)),
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        Err(CniError::new(
            Code::IO,
            format!("{} of {} stale containers could not be removed", failed.len(), stale.len()),
            failed.join("; "),
        ))
    }

    /// STATUS: can ADD be served? A pool without free addresses is no reason to say no: the node would become NotReady
    /// and lose its pods, while ADD already tells the one pod that waits.
    pub fn status(&self) -> Result<(), CniError> {
        let host = Netlink::open()
            .and_then(|mut n| n.link(HOST_DEVICE))
            .map_err(|e| CniError::new(Code::NOT_AVAILABLE, "the kernel does not answer", e.to_string()))?;
        if !host.is_some_and(|l| l.up) {
            return Err(CniError::new(
                Code::LIMITED_CONNECTIVITY,
                format!("the node's device {HOST_DEVICE} is missing or down"),
                "the agent makes it again within moments; look with: podwire status",
            ));
        }
        self.datapath.endpoints().map(drop).map_err(|e| {
            CniError::new(Code::LIMITED_CONNECTIVITY, "the datapath's maps cannot be read", e.to_string())
        })
    }
}

impl State {
    /// The next number that no endpoint has; the search begins after the one that was given last.
    fn free_id(&self) -> Result<u16, CniError> {
        let in_use = |id: u16| self.entries.values().any(|e| e.endpoint.id == id);
        let mut id = self.last_id;
        for _ in 0..u16::MAX {
            id = id.checked_add(1).unwrap_or(1);
            if !in_use(id) {
                return Ok(id);
            }
        }
        Err(CniError::new(Code::TRY_AGAIN, "the node has 65535 endpoints, which is the most", "delete a pod"))
    }
}

fn wired(endpoint: &Endpoint) -> Wired {
    let key = endpoint.key();
    Wired {
        node_device: key.device(),
        node_mac: key.node_mac().to_string(),
        ifname: endpoint.ifname.clone(),
        pod_mac: key.pod_mac().to_string(),
        sandbox: endpoint.netns.clone(),
        mtu: endpoint.mtu,
        ip: endpoint.ip,
        gateway: endpoint.gateway,
    }
}

fn io_error(cause: &impl ToString) -> CniError {
    CniError::new(Code::IO, cause.to_string(), "")
}

fn wire_error(error: &WireError) -> CniError {
    let code = match error {
        WireError::InterfaceExists(_) | WireError::DeviceExists(_) => Code::EXISTS,
        WireError::Enter(_) => Code::UNKNOWN_CONTAINER,
        _ => Code::IO,
    };
    CniError::new(code, error.to_string(), "nothing was left behind")
}
