//! What the agent needs of the datapath, as a trait: the agent's logic is tested without eBPF, and the eBPF side without it.

use std::error::Error;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use podwire_abi::{Endpoint, IpcacheEntry};

use crate::datapath::Datapath;

/// Why the datapath did not do it; its text says cause and mend.
pub type Failure = Box<dyn Error + Send + Sync>;

/// The datapath as the agent uses it while it runs.
pub trait DatapathOps: Send + Sync {
    /// Attaches the program to an endpoint's device and makes its address known. Doing it twice is doing it once.
    fn add_endpoint(&self, ip: Ipv4Addr, endpoint: Endpoint) -> Result<(), Failure>;
    /// As `add_endpoint`, as quickly as can be, for a device that is being wired; `settle_endpoint` follows later.
    fn add_new_endpoint(&self, ip: Ipv4Addr, endpoint: Endpoint) -> Result<(), Failure>;
    /// Brings the attachment of an endpoint's device to what it shall be in the long run.
    fn settle_endpoint(&self, ifindex: u32) -> Result<(), Failure>;
    /// Changes what is known of an endpoint.
    fn update_endpoint(&self, ip: Ipv4Addr, endpoint: Endpoint) -> Result<(), Failure>;
    /// Forgets an endpoint; its device may be gone already.
    fn remove_endpoint(&self, ip: Ipv4Addr, ifindex: u32) -> Result<(), Failure>;
    /// Every endpoint that is known.
    fn endpoints(&self) -> Result<Vec<(Ipv4Addr, Endpoint)>, Failure>;
    /// Says who owns an address or prefix.
    fn ipcache_upsert(&self, net: Ipv4Net, entry: IpcacheEntry) -> Result<(), Failure>;
    /// Forgets who owns an address or prefix.
    fn ipcache_delete(&self, net: Ipv4Net) -> Result<(), Failure>;
    /// Everything that is known of owners.
    fn ipcache(&self) -> Result<Vec<(Ipv4Net, IpcacheEntry)>, Failure>;
}

impl DatapathOps for Datapath {
    fn add_endpoint(&self, ip: Ipv4Addr, endpoint: Endpoint) -> Result<(), Failure> {
        Ok(Self::add_endpoint(self, ip, endpoint)?)
    }
    fn add_new_endpoint(&self, ip: Ipv4Addr, endpoint: Endpoint) -> Result<(), Failure> {
        Ok(Self::add_new_endpoint(self, ip, endpoint)?)
    }
    fn settle_endpoint(&self, ifindex: u32) -> Result<(), Failure> {
        Ok(Self::settle_endpoint(self, ifindex)?)
    }
    fn update_endpoint(&self, ip: Ipv4Addr, endpoint: Endpoint) -> Result<(), Failure> {
        Ok(Self::update_endpoint(self, ip, endpoint)?)
    }
    fn remove_endpoint(&self, ip: Ipv4Addr, ifindex: u32) -> Result<(), Failure> {
        Ok(Self::remove_endpoint(self, ip, ifindex)?)
    }
    fn endpoints(&self) -> Result<Vec<(Ipv4Addr, Endpoint)>, Failure> {
        Ok(Self::endpoints(self)?)
    }
    fn ipcache_upsert(&self, net: Ipv4Net, entry: IpcacheEntry) -> Result<(), Failure> {
        Ok(Self::ipcache_upsert(self, net, entry)?)
    }
    fn ipcache_delete(&self, net: Ipv4Net) -> Result<(), Failure> {
        Ok(Self::ipcache_delete(self, net)?)
    }
    fn ipcache(&self) -> Result<Vec<(Ipv4Net, IpcacheEntry)>, Failure> {
        Ok(Self::ipcache(self)?)
    }
}
