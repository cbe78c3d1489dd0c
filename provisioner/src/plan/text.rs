//! A plan for reading.

use std::fmt;

use super::{Machine, Plan, Switch};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "lab {}", self.lab)?;
        for switch in &self.switches {
            write_switch(f, switch)?;
        }
        for machine in &self.machines {
            write_machine(f, machine)?;
        }
        Ok(())
    }
}

fn write_switch(f: &mut fmt::Formatter<'_>, switch: &Switch) -> fmt::Result {
    writeln!(f, "\nnamespace {} (switch)", switch.namespace)?;
    for sysctl in &switch.sysctls {
        writeln!(f, "  sysctl   {}={}", sysctl.key, sysctl.value)?;
    }
    writeln!(f, "  link     {} type bridge", switch.bridge)?;
    for port in &switch.ports {
        writeln!(
            f,
            "  link     {} type veth master {} peer {} in {} address {}",
            port.name, switch.bridge, port.device, port.namespace, port.mac
        )?;
    }
    Ok(())
}

fn write_machine(f: &mut fmt::Formatter<'_>, machine: &Machine) -> fmt::Result {
    writeln!(f, "\nnamespace {} ({} {})", machine.namespace, machine.role, machine.name)?;
    for sysctl in &machine.sysctls {
        writeln!(f, "  sysctl   {}={}", sysctl.key, sysctl.value)?;
    }
    for device in &machine.own_networks {
        writeln!(f, "  link     {device} type dummy (a bridge where the kernel has no dummy)")?;
    }
    for address in &machine.addresses {
        writeln!(f, "  address  {} dev {}", address.address, address.device)?;
    }
    for route in &machine.routes {
        writeln!(f, "  route    {} via {}", route.to, route.via)?;
    }
    writeln!(f, "  root     overlay of / on {}", machine.root.mountpoint.display())?;
    for path in &machine.root.empty {
        writeln!(f, "  empty    {}", path.display())?;
    }
    for bind in &machine.root.binds {
        writeln!(f, "  bind     {} from {}", bind.to.display(), bind.from.display())?;
    }
    for file in &machine.root.files {
        writeln!(f, "  file     {}", file.path.display())?;
    }
    for (key, value) in &machine.env {
        writeln!(f, "  env      {key}={value}")?;
    }
    writeln!(f, "  process  podwire-node (pid 1 of new mount, UTS, IPC, cgroup and PID namespaces)")?;
    for service in &machine.services {
        writeln!(f, "  process  {}: {}", service.name, service.argv.join(" "))?;
    }
    Ok(())
}
