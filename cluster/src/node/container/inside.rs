//! The inside of a container: what a new process does between fork and exec. Runs in single-threaded processes only.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid};

use super::spec::{ContainerSpec, Identity, Mount, Propagation};

/// Why the inside could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InsideError {
    /// A namespace cannot be joined or made.
    #[error("cannot enter the pod's {kind} namespace {path}: {source}")]
    Namespace {
        /// Which kind.
        kind: &'static str,
        /// Its path.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A mount failed.
    #[error("cannot mount {what} on {target}: {source}")]
    Mount {
        /// What was to be mounted.
        what: String,
        /// Where.
        target: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{step}: {source}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// No such program.
    #[error("exec: \"{0}\": executable file not found in $PATH")]
    NotFound(String),
    /// The program cannot be executed.
    #[error("exec: \"{program}\": {source}")]
    Exec {
        /// The program.
        program: String,
        /// Cause.
        source: io::Error,
    },
    /// A string holds a zero byte.
    #[error("an argument or variable of the container holds a zero byte: remove it from the pod")]
    ZeroByte,
}

/// Adds what was being done to an error of the kernel.
pub(super) fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> InsideError {
    move |source| InsideError::Step { step, source: source.into() }
}

/// Joins the namespace at `path`.
pub fn join(path: &Path, kind: &'static str, flag: CloneFlags) -> Result<(), InsideError> {
    let fail = |source| InsideError::Namespace { kind, path: path.to_owned(), source };
    let file = fs::File::open(path).map_err(fail)?;
    setns(file, flag).map_err(|error| InsideError::Namespace {
        kind,
        path: path.to_owned(),
        source: error.into(),
    })
}

/// A detached copy of a mount, opened before the mounts around it change.
fn open_tree(source: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(source.as_os_str().as_bytes())?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as u32;
    // SAFETY: the path is a valid C string that outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = Errno::result(fd).map_err(io::Error::from)?;
    // SAFETY: a fresh descriptor from the kernel, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) })
}

fn move_mount(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    let path = CString::new(target.as_os_str().as_bytes())?;
    // SAFETY: both strings are valid C strings, the descriptor is open.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_SYMLINKS,
        )
    };
    Errno::result(moved).map(drop).map_err(io::Error::from)
}

const NOTHING: Option<&str> = None;

fn set_flags(target: &Path, flags: MsFlags) -> nix::Result<()> {
    mount(NOTHING, target, NOTHING, flags, NOTHING)
}

/// Gives this process a mount namespace of its own, with the container's mounts.
pub fn make_mounts(spec: &ContainerSpec) -> Result<(), InsideError> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).map_err(step("make a mount namespace"))?;
    // Trees first: they keep what the mounts below may cover, and their ties to the node's mounts.
    let mut trees = Vec::new();
    for one in &spec.mounts {
        if let Mount::Bind { source, target, .. } = one {
            let tree = open_tree(source).map_err(|error| InsideError::Mount {
                what: source.display().to_string(),
                target: target.clone(),
                source: error,
            })?;
            trees.push(tree);
        }
    }
    // Nothing that the container mounts is seen by the node.
    set_flags(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_SLAVE)
        .map_err(step("part from the node's mounts"))?;
    let mut trees = trees.into_iter();
    for one in &spec.mounts {
        let (what, target) = describe(one);
        make_mount(one, &mut trees).map_err(|source| InsideError::Mount { what, target, source })?;
    }
    if spec.read_only_root {
        set_flags(Path::new("/"), MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY)
            .map_err(step("make the root file system read-only"))?;
    }
    Ok(())
}

fn describe(one: &Mount) -> (String, PathBuf) {
    match one {
        Mount::Tmpfs { target, .. } => ("tmpfs".to_owned(), target.clone()),
        Mount::Bind { source, target, .. } => (source.display().to_string(), target.clone()),
        Mount::Proc { .. } => ("proc".to_owned(), "/proc".into()),
        Mount::Sysfs { .. } => ("sysfs".to_owned(), "/sys".into()),
        Mount::Dev => ("the container's devices".to_owned(), "/dev".into()),
    }
}

fn make_mount(one: &Mount, trees: &mut impl Iterator<Item = OwnedFd>) -> io::Result<()> {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    match one {
        Mount::Tmpfs { target, options } => {
            fs::create_dir_all(target)?;
            mount(Some("tmpfs"), target, Some("tmpfs"), safe, Some(options.as_str()))?;
        }
        Mount::Bind { target, read_only, propagation, .. } => {
            let tree = trees.next().ok_or_else(|| io::Error::other("a bind mount was not opened"))?;
            // The source's path may be covered by now; the open tree is not.
            let mode = nix::sys::stat::fstat(&tree)?.st_mode;
            make_target(mode & libc::S_IFMT == libc::S_IFDIR, target)?;
            move_mount(&tree, target)?;
            match propagation {
                Propagation::None => set_flags(target, MsFlags::MS_REC | MsFlags::MS_PRIVATE)?,
                Propagation::HostToContainer => set_flags(target, MsFlags::MS_REC | MsFlags::MS_SLAVE)?,
                Propagation::Bidirectional => {}
            }
            if *read_only {
                set_flags(target, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY)?;
            }
        }
        Mount::Proc { guarded } => {
            mount(Some("proc"), "/proc", Some("proc"), safe | MsFlags::MS_NOEXEC, NOTHING)?;
            for path in ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"].map(Path::new) {
                // Not every kernel has all of them.
                if *guarded && path.exists() {
                    mount(Some(path), path, NOTHING, MsFlags::MS_BIND | MsFlags::MS_REC, NOTHING)?;
                    set_flags(path, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY)?;
                }
            }
        }
        Mount::Sysfs { read_only } => {
            let mut flags = safe | MsFlags::MS_NOEXEC;
            flags.set(MsFlags::MS_RDONLY, *read_only);
            mount(Some("sysfs"), "/sys", Some("sysfs"), flags, NOTHING)?;
        }
        Mount::Dev => make_devices()?,
    }
    Ok(())
}

/// A mount point, if there is none: a directory, or a file for anything else.
fn make_target(directory: bool, target: &Path) -> io::Result<()> {
    if target.exists() {
        return Ok(());
    }
    // A link whose end is out of sight (/etc/resolv.conf into /run): make the end.
    if let Ok(link) = fs::read_link(target) {
        let end = target.parent().unwrap_or(Path::new("/")).join(link);
        return if end == target { Ok(()) } else { make_target(directory, &end) };
    }
    if directory {
        return fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::File::create(target).map(drop)
}

fn make_devices() -> io::Result<()> {
    let names = ["null", "zero", "full", "random", "urandom", "tty"];
    let nodes = names.map(|name| (name, open_tree(&Path::new("/dev").join(name))));
    mount(
        Some("tmpfs"),
        "/dev",
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        Some("mode=0755,size=64k"),
    )?;
    for (name, tree) in nodes {
        // A node without one of them has a container without it.
        let Ok(tree) = tree else { continue };
        let target = Path::new("/dev").join(name);
        fs::File::create(&target)?;
        move_mount(&tree, &target)?;
    }
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    fs::create_dir("/dev/pts")?;
    mount(Some("devpts"), "/dev/pts", Some("devpts"), safe, Some("newinstance,ptmxmode=0666,mode=0620"))?;
    fs::create_dir("/dev/shm")?;
    mount(Some("shm"), "/dev/shm", Some("tmpfs"), safe | MsFlags::MS_NODEV, Some("mode=1777,size=64m"))?;
    for (link, to) in [
        ("/dev/ptmx", "pts/ptmx"),
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        std::os::unix::fs::symlink(to, link)?;
    }
    Ok(())
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
const CAP_VERSION_3: u32 = 0x2008_0522;
/// One past the highest capability number that a kernel may know.
const CAP_LIMIT: u8 = 64;

/// Becomes the container's user with no more than its capabilities.
pub fn assume(identity: &Identity) -> Result<(), InsideError> {
    if let Some(keep) = &identity.capabilities {
        for capability in (0..CAP_LIMIT).filter(|capability| !keep.contains(capability)) {
            // SAFETY: plain numbers; numbers that the kernel does not know are refused with EINVAL.
            let dropped =
                unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
            match Errno::result(dropped) {
                Ok(_) | Err(Errno::EINVAL) => {}
                Err(error) => return Err(step("drop capabilities")(error)),
            }
        }
    }
    let groups: Vec<_> = identity.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    nix::unistd::setgroups(&groups).map_err(step("set the supplementary groups"))?;
    let gid = Gid::from_raw(identity.gid);
    nix::unistd::setresgid(gid, gid, gid).map_err(step("set the group"))?;
    let uid = Uid::from_raw(identity.uid);
    nix::unistd::setresuid(uid, uid, uid).map_err(step("set the user"))?;
    if let Some(keep) = &identity.capabilities
        && identity.uid == 0
    {
        set_capabilities(keep).map_err(step("set capabilities"))?;
    }
    if identity.no_new_privileges {
        // SAFETY: plain numbers.
        let set = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        Errno::result(set).map_err(step("forbid new privileges"))?;
    }
    Ok(())
}

fn set_capabilities(keep: &[u8]) -> nix::Result<()> {
    let header = CapHeader { version: CAP_VERSION_3, pid: 0 };
    let empty = CapData { effective: 0, permitted: 0, inheritable: 0 };
    let mut have = [empty; 2];
    // SAFETY: version 3 reads and writes two data blocks; both pointers are to live values of the kernel's layout.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &raw const header, have.as_mut_ptr()) })?;
    let mut wanted = [empty; 2];
    for capability in keep.iter().filter(|capability| **capability < CAP_LIMIT) {
        let word = usize::from(capability / 32);
        // The runtime itself may lack some.
        let bit = (1 << (capability % 32)) & have[word].permitted;
        wanted[word].effective |= bit;
        wanted[word].permitted |= bit;
    }
    // SAFETY: as above, read only.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, wanted.as_ptr()) }).map(drop)
}

/// Replaces this process by the program. Returns only an error.
pub fn exec(argv: &[String], env: &[(String, String)], cwd: &Path) -> InsideError {
    if let Err(error) = std::env::set_current_dir(cwd) {
        return InsideError::Step { step: "enter the working directory", source: error };
    }
    let Some(program) = argv.first() else { return InsideError::NotFound(String::new()) };
    let Some(path) = find_program(program, env) else { return InsideError::NotFound(program.clone()) };
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| InsideError::ZeroByte);
    let prepared = (|| {
        let path = text(path.as_os_str().as_bytes())?;
        let argv = argv.iter().map(|arg| text(arg.as_bytes())).collect::<Result<Vec<_>, _>>()?;
        let env =
            env.iter().map(|(k, v)| text(format!("{k}={v}").as_bytes())).collect::<Result<Vec<_>, _>>()?;
        Ok((path, argv, env))
    })();
    let (path, argv, env) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return error,
    };
    match nix::unistd::execve(&path, &argv, &env) {
        Ok(never) => match never {},
        Err(error) => InsideError::Exec { program: program.clone(), source: error.into() },
    }
}

/// The program as a shell would find it with the container's own PATH.
fn find_program(program: &str, env: &[(String, String)]) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(program.into());
    }
    let path = env.iter().rfind(|(name, _)| name == "PATH").map_or("", |(_, value)| value.as_str());
    path.split(':')
        .filter(|dir| !dir.is_empty())
        .map(|dir| Path::new(dir).join(program))
        .find(|file| file.is_file() && nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok())
}

/// Undoes what the monitor has set for itself and what a program should not inherit.
pub fn reset_signals() -> Result<(), InsideError> {
    use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
    SigSet::all().thread_unblock().map_err(step("unblock signals"))?;
    // SAFETY: the default disposition runs no code of ours.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.map_err(step("reset SIGPIPE"))?;
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    Ok(())
}

/// Makes `fd` standard input, output or error.
pub fn redirect(fd: &impl AsFd, number: i32) -> Result<(), InsideError> {
    let raw = fd.as_fd().as_raw_fd();
    if raw == number {
        return Ok(());
    }
    // SAFETY: both numbers are descriptors of this process; the target is one of the three standard ones.
    Errno::result(unsafe { libc::dup2(raw, number) }).map(drop).map_err(step("redirect standard streams"))
}
