//! Network namespaces of a machine's pods.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;

use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::fstatfs;

use super::namespace::{DIR, NSFS_MAGIC};
use super::process::Process;

/// The network namespaces that a machine's node runtime has named, by the addresses that are in them.
pub fn pod_namespaces(init: Process) -> io::Result<BTreeMap<Ipv4Addr, File>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{}/root{DIR}", init.pid))? {
        // A pod that ends just now takes its file with it.
        let Ok(file) = File::open(entry?.path()) else { continue };
        if !fstatfs(&file).is_ok_and(|s| s.filesystem_type() == NSFS_MAGIC) {
            continue;
        }
        for address in addresses(&file)? {
            found.insert(address, file.try_clone()?);
        }
    }
    Ok(found)
}

/// IPv4 addresses of a namespace, loopback's apart.
fn addresses(namespace: &File) -> io::Result<Vec<Ipv4Addr>> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| -> io::Result<Vec<Ipv4Addr>> {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            let all = getifaddrs()?.filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()));
            Ok(all.filter(|ip| !ip.is_loopback()).collect())
        });
        inside.join().unwrap_or_else(|_| Err(io::Error::other("a worker panicked")))
    })
}
