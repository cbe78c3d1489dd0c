//! Attaching programs to devices: by pinned tcx links, or by clsact filters where the kernel has no tcx.
//!
//! A tcx link is pinned as `links/<program>-<ifindex>`. A clsact filter persists by itself; a directory
//! `clsact/<program>-<ifindex>` (a BPF file system has no plain files) says that it is ours, so that the next agent finds it.

use std::{
    fmt, fs, io, mem,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Mutex,
};

use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
};

use super::{
    DatapathError, lock,
    sys::{self, TcxPoint},
};

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// By tcx links (Linux 6.6 and newer).
    Tcx,
    /// By filters of the clsact qdisc.
    Clsact,
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// A place where a program of ours runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Ingress of a pod's device.
    FromEndpoint,
    /// Ingress of an underlay device.
    FromNetwork,
    /// Egress of podwire_host.
    FromHost,
    /// Egress of an underlay device.
    ToNetwork,
    /// Ingress of the tunnel's device.
    FromOverlay,
    /// Egress of a pod's device.
    ToEndpoint,
}

impl Hook {
    /// Every hook.
    pub const ALL: [Self; 6] = [
        Self::FromEndpoint,
        Self::FromNetwork,
        Self::FromHost,
        Self::ToNetwork,
        Self::FromOverlay,
        Self::ToEndpoint,
    ];

    /// Name of its program.
    pub const fn program(self) -> &'static str {
        match self {
            Self::FromEndpoint => "from_endpoint",
            Self::FromNetwork => "from_network",
            Self::FromHost => "from_host",
            Self::ToNetwork => "to_network",
            Self::FromOverlay => "from_overlay",
            Self::ToEndpoint => "to_endpoint",
        }
    }

    const fn tcx_point(self) -> TcxPoint {
        match self {
            Self::FromEndpoint | Self::FromNetwork | Self::FromOverlay => TcxPoint::Ingress,
            Self::FromHost | Self::ToNetwork | Self::ToEndpoint => TcxPoint::Egress,
        }
    }

    const fn tc_type(self) -> TcAttachType {
        match self {
            Self::FromEndpoint | Self::FromNetwork | Self::FromOverlay => TcAttachType::Ingress,
            Self::FromHost | Self::ToNetwork | Self::ToEndpoint => TcAttachType::Egress,
        }
    }
}

impl FromStr for Hook {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|hook| hook.program() == name).ok_or(())
    }
}

/// Priority and handle of our filter: fixed, so that the next agent replaces it instead of adding one.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 0x706f);

/// The directories that hold attachments.
#[derive(Debug)]
pub(super) struct Attachments {
    links: PathBuf,
    clsact: PathBuf,
}

fn entry(hook: Hook, ifindex: u32) -> String {
    format!("{}-{ifindex}", hook.program())
}

fn parse_entry(name: &str) -> Option<(Hook, u32)> {
    let (hook, ifindex) = name.rsplit_once('-')?;
    Some((hook.parse().ok()?, ifindex.parse().ok()?))
}

/// Entries of a directory that are attachments; others are of an agent that knows more, and none of our business.
fn entries(dir: &Path) -> Result<Vec<(Hook, u32, PathBuf)>, DatapathError> {
    let mut found = Vec::new();
    for item in fs::read_dir(dir).map_err(DatapathError::pin("list", dir))? {
        let item = item.map_err(DatapathError::pin("list", dir))?;
        match item.file_name().to_str().and_then(parse_entry) {
            Some((hook, ifindex)) => found.push((hook, ifindex, item.path())),
            None => {
                tracing::warn!(pin = %item.path().display(), "left alone: not an attachment that this agent knows");
            }
        }
    }
    Ok(found)
}

/// An operation whose object may be gone already.
fn unless_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl Attachments {
    pub(super) fn new(root: &Path) -> Result<Self, DatapathError> {
        let new = Self { links: root.join("links"), clsact: root.join("clsact") };
        for dir in [&new.links, &new.clsact] {
            fs::create_dir_all(dir).map_err(DatapathError::pin("make", dir))?;
        }
        Ok(new)
    }

    /// Forgets attachments whose device is gone, and gives the others the program of this agent, if `replace`.
    pub(super) fn take_over(
        &self,
        programs: &[Mutex<SchedClassifier>],
        replace: bool,
    ) -> Result<(), DatapathError> {
        for (hook, ifindex, pin) in entries(&self.links)? {
            let alive = if replace {
                replace_link(&pin, hook, ifindex, &lock(&programs[hook as usize]))?
            } else {
                living_link(&pin, hook, ifindex)?.is_some()
            };
            if !alive {
                tracing::info!(
                    program = hook.program(),
                    ifindex,
                    "forgot an attachment whose device is gone"
                );
                unless_gone(fs::remove_file(&pin)).map_err(DatapathError::pin("remove", &pin))?;
            }
        }
        for (hook, ifindex, marker) in entries(&self.clsact)? {
            let outcome = if device_name(ifindex).is_ok() && replace {
                replace_filter(hook, ifindex, &mut lock(&programs[hook as usize]))
            } else {
                Ok(())
            };
            // It may vanish at any moment: look again.
            if device_name(ifindex).is_err() {
                unless_gone(fs::remove_dir(&marker)).map_err(DatapathError::pin("remove", &marker))?;
            } else {
                outcome?;
            }
        }
        Ok(())
    }

    /// Attaches a program, or replaces what this or an earlier agent attached there. What was attached in the other
    /// mode is taken away afterwards, so that there is no moment without a program.
    pub(super) fn attach(
        &self,
        mode: AttachMode,
        hook: Hook,
        ifindex: u32,
        program: &mut SchedClassifier,
    ) -> Result<(), DatapathError> {
        let name = entry(hook, ifindex);
        match mode {
            AttachMode::Tcx => {
                let pin = self.links.join(&name);
                if !replace_link(&pin, hook, ifindex, program)? {
                    unless_gone(fs::remove_file(&pin)).map_err(DatapathError::pin("remove", &pin))?;
                    new_link(&pin, hook, ifindex, program)?;
                }
                self.remove_filter(hook, ifindex)
            }
            AttachMode::Clsact => {
                let marker = self.clsact.join(&name);
                // First the mark: a kill in between leaves a mark without a filter, which the next start mends.
                let new = match fs::create_dir(&marker) {
                    Ok(()) => true,
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
                    Err(error) => return Err(DatapathError::pin("make", &marker)(error)),
                };
                if let Err(error) = replace_filter(hook, ifindex, program) {
                    if new {
                        unless_gone(fs::remove_dir(&marker))
                            .map_err(DatapathError::pin("remove", &marker))?;
                    }
                    return Err(error);
                }
                self.remove_link(hook, ifindex)
            }
        }
    }

    /// Takes a program away from a device; also if the device, or the attachment, is gone.
    pub(super) fn detach(&self, hook: Hook, ifindex: u32) -> Result<(), DatapathError> {
        self.remove_link(hook, ifindex)?;
        self.remove_filter(hook, ifindex)
    }

    fn remove_link(&self, hook: Hook, ifindex: u32) -> Result<(), DatapathError> {
        let pin = self.links.join(entry(hook, ifindex));
        if let Ok(link) = sys::open_pin(&pin)
            && let Err(error) = sys::link_detach(link.as_fd())
        {
            // The device is gone; or the kernel detaches later, when the pin was the last reference.
            tracing::debug!(pin = %pin.display(), %error, "the link was not detached at once");
        }
        unless_gone(fs::remove_file(&pin)).map_err(DatapathError::pin("remove", &pin))
    }

    fn remove_filter(&self, hook: Hook, ifindex: u32) -> Result<(), DatapathError> {
        let marker = self.clsact.join(entry(hook, ifindex));
        if !marker.exists() {
            return Ok(());
        }
        if let Ok(device) = device_name(ifindex)
            && let Ok(link) = SchedClassifierLink::attached(&device, hook.tc_type(), PRIORITY, HANDLE, None)
        {
            // Detaches; what is not there any more needs no detaching.
            drop(link);
        }
        unless_gone(fs::remove_dir(&marker)).map_err(DatapathError::pin("remove", &marker))
    }

    /// What is attached: hook and device.
    pub(super) fn list(&self) -> Result<Vec<(Hook, u32)>, DatapathError> {
        let mut found = entries(&self.links)?;
        found.extend(entries(&self.clsact)?);
        Ok(found.into_iter().map(|(hook, ifindex, _)| (hook, ifindex)).collect())
    }
}

fn program_fd(program: &SchedClassifier) -> io::Result<std::os::fd::BorrowedFd<'_>> {
    program.fd().map(AsFd::as_fd).map_err(|error| io::Error::other(error.to_string()))
}

/// The pinned link, if it is alive at that device.
fn living_link(
    pin: &Path,
    hook: Hook,
    ifindex: u32,
) -> Result<Option<(OwnedFd, sys::TcxInfo)>, DatapathError> {
    let link = match sys::open_pin(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(DatapathError::pin("open", pin)(source)),
    };
    let info = sys::link_info(link.as_fd()).map_err(DatapathError::pin("examine", pin))?;
    Ok(info
        .filter(|info| info.ifindex == ifindex && info.attach_type == hook.tcx_point() as u32)
        .map(|info| (link, info)))
}

/// Whether the pinned link is alive at that device; it then runs our program. Untouched if it did already.
fn replace_link(
    pin: &Path,
    hook: Hook,
    ifindex: u32,
    program: &SchedClassifier,
) -> Result<bool, DatapathError> {
    let failed = |source| DatapathError::Attach { hook, ifindex, mode: AttachMode::Tcx, source };
    let Some((link, info)) = living_link(pin, hook, ifindex)? else { return Ok(false) };
    let ours = program.info().map_err(|error| failed(io::Error::other(error.to_string())))?.id();
    if info.program == ours {
        return Ok(true);
    }
    match sys::link_update(link.as_fd(), program_fd(program).map_err(failed)?) {
        Ok(()) => Ok(true),
        // The device went away meanwhile.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
        Err(source) => Err(failed(source)),
    }
}

fn new_link(pin: &Path, hook: Hook, ifindex: u32, program: &SchedClassifier) -> Result<(), DatapathError> {
    let failed = |source| DatapathError::Attach { hook, ifindex, mode: AttachMode::Tcx, source };
    let link =
        sys::link_create(program_fd(program).map_err(failed)?, ifindex, hook.tcx_point()).map_err(failed)?;
    sys::pin(&link, pin).map_err(DatapathError::pin("pin", pin))
}

fn device_name(ifindex: u32) -> io::Result<String> {
    match nix::net::if_::if_indextoname(ifindex) {
        // An index without a device comes back as an empty name.
        Ok(name) if !name.is_empty() => Ok(name.to_string_lossy().into_owned()),
        _ => Err(io::Error::from_raw_os_error(libc::ENODEV)),
    }
}

/// The kernel's answer in an error of aya's tc functions.
fn tc_cause(error: &TcError) -> io::Error {
    let number = match error {
        TcError::NetlinkError(error) => error.raw_os_error(),
        TcError::IoError(error) => error.raw_os_error(),
        TcError::AlreadyAttached => Some(libc::EEXIST),
        _ => None,
    };
    number.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}

/// The kernel's answer in an error of attaching a filter.
fn filter_cause(error: &ProgramError) -> io::Error {
    let number = match error {
        ProgramError::TcError(error) => return tc_cause(error),
        ProgramError::NetlinkError(error) => error.raw_os_error(),
        _ => None,
    };
    number.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}

/// Puts our program in the place of our filter, atomically, or adds the filter if there is none.
fn replace_filter(hook: Hook, ifindex: u32, program: &mut SchedClassifier) -> Result<(), DatapathError> {
    let failed = |source| DatapathError::Attach { hook, ifindex, mode: AttachMode::Clsact, source };
    let device = device_name(ifindex).map_err(failed)?;
    match qdisc_add_clsact(&device).map_err(|error| tc_cause(&error)) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(failed(error)),
        _ => {}
    }
    let present =
        SchedClassifierLink::attached(&device, hook.tc_type(), PRIORITY, HANDLE, None).map_err(failed)?;
    let id = match program.attach_to_link(present) {
        Ok(id) => id,
        Err(_absent) => {
            let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
            program
                .attach_with_options(&device, hook.tc_type(), TcAttachOptions::Netlink(options))
                .map_err(|error| failed(filter_cause(&error)))?
        }
    };
    let link = program.take_link(id).map_err(|error| failed(filter_cause(&error)))?;
    // The filter outlives this process: dropping the link would take it away.
    mem::forget(link);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_name_hook_and_device() {
        for hook in Hook::ALL {
            assert_eq!(parse_entry(&entry(hook, 17)), Some((hook, 17)));
        }
        assert_eq!(parse_entry("from_endpoint"), None);
        assert_eq!(parse_entry("to_overlay-3"), None);
        assert_eq!(parse_entry("from_host-x"), None);
    }
}
