//! What to do so that the kernel has the routes that are wanted, without touching anybody else's. Pure.

use std::collections::{BTreeMap, BTreeSet};

use podwire_api::names::ROUTE_PROTOCOL;

use super::Route;
use crate::netlink::route::KernelRoute;

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    /// To be added.
    pub add: Vec<Route>,
    /// To be put in the place of an own route with the same destination.
    pub replace: Vec<Route>,
    /// Own routes that are wanted no more.
    pub delete: Vec<Route>,
    /// Wanted, but a foreign route has the place; why, in words.
    pub conflicts: Vec<(Route, String)>,
    /// Wanted and there.
    pub present: usize,
}

/// A route in the kernel's form; none if its device does not exist (yet).
pub fn kernel_form(route: &Route, devices: &BTreeMap<String, u32>) -> Option<KernelRoute> {
    let mut form = KernelRoute::new(route.dst, *devices.get(&route.dev)?, ROUTE_PROTOCOL);
    form.via = route.via;
    form.src = route.src;
    form.link_scope = route.via.is_none();
    Some(form)
}

/// Compares. `own` is the agent's record of what it has installed. A route is ours if the record holds it and the kernel
/// has it exactly so; anything else with the same destination is foreign.
pub fn diff(
    desired: &BTreeSet<Route>,
    own: &BTreeSet<Route>,
    kernel: &[KernelRoute],
    devices: &BTreeMap<String, u32>,
) -> Actions {
    let mut actions = Actions::default();
    let is_own =
        |installed: &KernelRoute| own.iter().any(|o| kernel_form(o, devices).as_ref() == Some(installed));
    for route in desired {
        let Some(wanted) = kernel_form(route, devices) else { continue };
        // Only a route with the same destination, metric and TOS is in the way.
        match kernel.iter().find(|k| k.dst == route.dst && k.metric == 0 && k.tos == 0) {
            None => actions.add.push(route.clone()),
            Some(installed) if *installed == wanted => actions.present += 1,
            Some(installed) if is_own(installed) => actions.replace.push(route.clone()),
            Some(installed) => actions.conflicts.push((route.clone(), conflict(route, installed, devices))),
        }
    }
    for route in own.difference(desired) {
        let replaced = desired.iter().any(|d| d.dst == route.dst);
        if let Some(form) = kernel_form(route, devices)
            && !replaced
            && kernel.contains(&form)
        {
            actions.delete.push(route.clone());
        }
    }
    actions
}

fn conflict(route: &Route, installed: &KernelRoute, devices: &BTreeMap<String, u32>) -> String {
    let dev = devices
        .iter()
        .find(|(_, index)| Some(**index) == installed.oif)
        .map_or("-", |(name, _)| name.as_str());
    let via = installed.via.map(|v| format!(" via {v}")).unwrap_or_default();
    format!(
        "route \"{route}\" cannot be installed: the table has {}{via} dev {dev}, which the agent did not make; \
         delete it with: ip route delete {}",
        installed.dst, installed.dst
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(dst: &str, via: Option<&str>, dev: &str) -> Route {
        Route { dst: dst.parse().unwrap(), via: via.map(|v| v.parse().unwrap()), dev: dev.into(), src: None }
    }

    fn devices() -> BTreeMap<String, u32> {
        BTreeMap::from([("eth1".to_owned(), 2), ("lxc1".to_owned(), 3)])
    }

    fn form(route: &Route) -> KernelRoute {
        kernel_form(route, &devices()).unwrap()
    }

    #[test]
    fn adds_keeps_replaces_and_deletes_its_own() {
        let kept = route("10.244.1.0/24", Some("192.168.10.101"), "eth1");
        let (old, new) = (
            route("10.244.2.0/24", Some("192.168.10.102"), "eth1"),
            route("10.244.2.0/24", Some("192.168.10.103"), "eth1"),
        );
        let gone = route("10.244.3.0/24", Some("192.168.10.104"), "eth1");
        let missing = route("10.244.0.7/32", None, "lxc1");
        let desired = BTreeSet::from([kept.clone(), new.clone(), missing.clone()]);
        let own = BTreeSet::from([kept.clone(), old.clone(), gone.clone()]);
        let kernel = [form(&kept), form(&old), form(&gone)];
        let actions = diff(&desired, &own, &kernel, &devices());
        assert_eq!(
            actions,
            Actions {
                add: vec![missing],
                replace: vec![new],
                delete: vec![gone],
                conflicts: vec![],
                present: 1
            }
        );
    }

    #[test]
    fn a_foreign_route_is_never_touched() {
        let ours = route("10.244.1.0/24", Some("192.168.10.101"), "eth1");
        let mut foreign = form(&ours);
        foreign.protocol = 3;
        // In the place of one that is wanted: reported.
        let actions = diff(
            &BTreeSet::from([ours.clone()]),
            &BTreeSet::from([ours.clone()]),
            &[foreign.clone()],
            &devices(),
        );
        assert_eq!(actions.conflicts.len(), 1);
        assert!(actions.conflicts[0].1.contains("10.244.1.0/24 via 192.168.10.101 dev eth1"), "{actions:?}");
        assert!(actions.add.is_empty() && actions.replace.is_empty() && actions.delete.is_empty());
        // In the place of one that was ours once: left alone.
        let actions = diff(&BTreeSet::new(), &BTreeSet::from([ours.clone()]), &[foreign.clone()], &devices());
        assert_eq!(actions, Actions::default());
        // With another metric: not in the way.
        foreign.metric = 100;
        let actions = diff(&BTreeSet::from([ours.clone()]), &BTreeSet::new(), &[foreign], &devices());
        assert_eq!(actions.add, [ours]);
    }

    #[test]
    fn a_route_over_a_device_that_is_gone_waits() {
        let lost = route("10.244.0.9/32", None, "lxc9");
        assert_eq!(diff(&BTreeSet::from([lost]), &BTreeSet::new(), &[], &devices()), Actions::default());
    }
}
