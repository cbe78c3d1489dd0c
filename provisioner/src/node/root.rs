//! A machine's root file system: the host's, copied on write into memory, with its own /run, /proc, /sys and /etc files.
//!
//! Nothing written here reaches the host: overlays have their upper layers on a tmpfs of this mount namespace, which
//! goes with the machine's last process.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

use crate::error::{Failure, OrFailure};
use crate::netns::cgroup::MOUNT_POINT;
use crate::plan::{Bind, Machine, Root};

const MEND: &str = "see `lab doctor` for what this kernel lacks";
/// Host directories that the machine has of its own.
const OWN: [&str; 5] = ["/proc", "/sys", "/dev", "/run", "/tmp"];
/// File systems that an overlay can have as its lower layer and that hold ordinary files.
const OVERLAID: [&str; 7] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs"];
/// File systems that are the business of the host alone.
const LEFT_OUT: [&str; 8] =
    ["autofs", "binfmt_misc", "devtmpfs", "fusectl", "nsfs", "overlay", "rpc_pipefs", "securityfs"];

/// Builds the root and makes it this process's. `has_cgroup` says whether this process is in a cgroup namespace of the machine's.
pub(super) fn build(machine: &Machine, has_cgroup: bool) -> Result<(), Failure> {
    let spec = &machine.root;
    // First of all: no mount made here may travel back to the host.
    attach(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)?;
    let host_mounts = host_mounts();
    let base = &spec.mountpoint;
    attach(Some("podwire"), base, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))?;
    let root = base.join("root");
    overlay(Path::new("/"), &root, base, 0)?;
    // A container's /etc/hosts and its like are mounts of their own; the machine has its own files there.
    let own_file = |path: &Path| spec.files.iter().any(|file| file.path == path);
    let taken = host_mounts.iter().filter(|(p, _)| !base.starts_with(p) && !own_file(p));
    for (i, (path, kind)) in taken.enumerate() {
        take_over(path, kind, &root, base, i + 1);
    }
    own_directories(&root, has_cgroup)?;
    for path in &spec.empty {
        let place = make_dir(&root, path)?;
        attach(Some("podwire"), &place, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))?;
    }
    for bind in &spec.binds {
        bind_into(&root, bind)?;
    }
    write_files(&root, spec)?;
    switch_to(&root)
}

/// Mounts of real file systems beside the root, parents before children: path and kind.
fn host_mounts() -> Vec<(PathBuf, String)> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found = Vec::new();
    for line in text.lines() {
        // Fields of proc(5): the mount point is the fifth, the kind follows the lone hyphen.
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(point), Some(kind)) = (left.split(' ').nth(4), right.split(' ').next()) else { continue };
        let path = PathBuf::from(unescape(point));
        let own = OWN.iter().any(|dir| path.starts_with(dir));
        if path != Path::new("/") && !own && !LEFT_OUT.contains(&kind) {
            found.push((path, kind.to_owned()));
        }
    }
    found
}

/// Mount points in /proc have blanks and backslashes as octal numbers.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |t, (from, to)| t.replace(from, to))
}

/// Shows another file system of the host on the machine: copied on write where possible. One that resists is left out;
/// the machine needs none of them.
fn take_over(path: &Path, kind: &str, root: &Path, base: &Path, number: usize) {
    let place = within(root, path);
    let copied = OVERLAID.contains(&kind) && path.is_dir() && overlay(path, &place, base, number).is_ok();
    if !copied && let Err(e) = attach(path.to_str(), &place, None, MsFlags::MS_BIND, None) {
        eprintln!("left out: {e}");
    }
}

fn overlay(lower: &Path, place: &Path, base: &Path, number: usize) -> Result<(), Failure> {
    let (upper, work) = (base.join(format!("upper-{number}")), base.join(format!("work-{number}")));
    for dir in [&upper, &work] {
        fs::create_dir_all(dir).or_failure(dir.display().to_string(), MEND)?;
    }
    if !place.exists() {
        fs::create_dir_all(place).or_failure(place.display().to_string(), MEND)?;
    }
    // The root directory of an overlay takes its mode from the upper layer's.
    if let Ok(meta) = fs::metadata(lower) {
        let _ = fs::set_permissions(&upper, fs::Permissions::from_mode(meta.permissions().mode()));
    }
    let options = format!("lowerdir={},upperdir={},workdir={}", escape(lower), escape(&upper), escape(&work));
    attach(Some("podwire"), place, Some("overlay"), MsFlags::empty(), Some(&options))
}

/// Colons and commas separate the options of an overlay.
fn escape(path: &Path) -> String {
    path.display().to_string().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}

fn own_directories(root: &Path, has_cgroup: bool) -> Result<(), Failure> {
    let at = |path: &str| within(root, Path::new(path));
    let none = MsFlags::empty();
    for path in OWN {
        make_dir(root, Path::new(path))?;
    }
    attach(Some("proc"), &at("/proc"), Some("proc"), none, None)?;
    // A sysfs mounted now is that of the machine's network namespace.
    attach(Some("sysfs"), &at("/sys"), Some("sysfs"), none, None)?;
    // Never the host's: an agent attaches programs to the root that it finds here.
    if has_cgroup {
        attach(Some("cgroup2"), &at(MOUNT_POINT), Some("cgroup2"), none, None)?;
    }
    attach(Some("bpf"), &at("/sys/fs/bpf"), Some("bpf"), none, Some("mode=0700"))?;
    attach(Some("/dev"), &at("/dev"), None, MsFlags::MS_BIND | MsFlags::MS_REC, None)?;
    attach(Some("podwire"), &at("/run"), Some("tmpfs"), none, Some("mode=0755"))?;
    for dir in ["/run/netns", "/run/lock"] {
        make_dir(root, Path::new(dir))?;
    }
    Ok(())
}

fn bind_into(root: &Path, bind: &Bind) -> Result<(), Failure> {
    let thing = format!("bind {} from {}", bind.to.display(), bind.from.display());
    let place = if bind.from.is_dir() {
        make_dir(root, &bind.to)?
    } else {
        let place = within(root, &bind.to);
        make_dir(root, bind.to.parent().unwrap_or(Path::new("/")))?;
        fs::File::create(&place).or_failure(&thing, MEND)?;
        place
    };
    attach(bind.from.to_str(), &place, None, MsFlags::MS_BIND | MsFlags::MS_REC, None)
}

fn write_files(root: &Path, spec: &Root) -> Result<(), Failure> {
    for file in &spec.files {
        let place = within(root, &file.path);
        let thing = file.path.display().to_string();
        // The host's may be a link to somewhere in its /run.
        match fs::remove_file(&place) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Failure::new(thing, e, MEND)),
            _ => {}
        }
        fs::write(&place, &file.text).or_failure(thing, MEND)?;
    }
    Ok(())
}

fn switch_to(root: &Path) -> Result<(), Failure> {
    let thing = "the machine's root file system";
    // pivot_root(2): with both arguments the same, the old root ends up on top of the new one.
    chdir(root).or_failure(thing, MEND)?;
    pivot_root(".", ".").or_failure(thing, MEND)?;
    umount2(".", MntFlags::MNT_DETACH).or_failure(thing, MEND)?;
    chdir("/").or_failure(thing, MEND)?;
    // Mounts made later, such as pods' namespaces, are seen by containers that were there before.
    attach(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_SHARED, None)
}

fn within(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn make_dir(root: &Path, path: &Path) -> Result<PathBuf, Failure> {
    let place = within(root, path);
    fs::create_dir_all(&place).or_failure(path.display().to_string(), MEND)?;
    Ok(place)
}

fn attach(
    source: Option<&str>,
    place: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> Result<(), Failure> {
    let thing = format!("mount of {} on {}", kind.or(source).unwrap_or("/"), place.display());
    mount(source, place, kind, flags, options).or_failure(thing, MEND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        assert_eq!(unescape("/a\\040b"), "/a b");
        assert_eq!(escape(Path::new("/a:b,c")), "/a\\:b\\,c");
        assert_eq!(within(Path::new("/r"), Path::new("/etc/x")), Path::new("/r/etc/x"));
    }
}
