//! Serves podwire-cni: one thread a call, because a call enters namespaces and waits for the kernel.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};
use serde_json::Value;

use crate::cni::environment::Verb;
use crate::cni::error::{CniError, Code};
use crate::cni::wire::{Request, Response, answer, receive};
use crate::core::Core;

/// A plugin sends its request at once; who is silent for so long is none.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after a connection could not be accepted: what it lacks (descriptors, memory) is not there the next moment either.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The server; it stops when dropped, after the calls that are under way.
#[derive(Debug)]
pub struct CniServer {
    path: PathBuf,
    /// Device and inode of the socket's file, by which it is told from that of an agent that came after.
    file: (u64, u64),
    listener: Arc<UnixListener>,
    stop: Arc<AtomicBool>,
    calls: Arc<Calls>,
    thread: Option<JoinHandle<()>>,
}

/// The calls that are under way.
#[derive(Debug, Default)]
struct Calls {
    state: Mutex<CallsState>,
    done: Condvar,
}

#[derive(Debug, Default)]
struct CallsState {
    count: usize,
    closed: bool,
}

impl Calls {
    /// Begins a call, unless the server is ending.
    fn begin(self: &Arc<Self>) -> Option<Running> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return None;
        }
        state.count += 1;
        Some(Running(self.clone()))
    }

    fn end(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).count -= 1;
        self.done.notify_all();
    }

    /// Lets no call begin any more, and waits for those under way.
    fn close(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.closed = true;
        drop(self.done.wait_while(state, |state| state.count > 0).unwrap_or_else(PoisonError::into_inner));
    }
}

/// Ends a call also when its thread panics.
struct Running(Arc<Calls>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Binds a Unix socket for root only, in the place of what was there: a plugin meets the old socket or the new one.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
    fs::rename(&new, path)?;
    Ok(listener)
}

/// Device and inode of a file.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

impl CniServer {
    /// Serves `core` at `path`, in the calling thread's network namespace.
    pub fn start(core: Arc<Core>, path: &Path) -> io::Result<Self> {
        let listener = Arc::new(bind(path)?);
        let file = identity(path)?;
        let stop = Arc::new(AtomicBool::new(false));
        let calls = Arc::new(Calls::default());
        let (listener_of_thread, stop_seen, calls_of_thread) =
            (listener.clone(), stop.clone(), calls.clone());
        let thread = thread::Builder::new()
            .name("cni-server".into())
            .spawn(move || accept_loop(&listener_of_thread, &core, &stop_seen, &calls_of_thread))?;
        Ok(Self { path: path.to_owned(), file, listener, stop, calls, thread: Some(thread) })
    }
}

impl Drop for CniServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread out of accept, whoever has the path by now.
        if let Err(cause) = shutdown(self.listener.as_raw_fd(), Shutdown::Both) {
            tracing::error!("CNI socket: shutdown failed: {cause}");
        } else if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.calls.close();
        if identity(&self.path).is_ok_and(|file| file == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn accept_loop(listener: &UnixListener, core: &Arc<Core>, stop: &AtomicBool, calls: &Arc<Calls>) {
    loop {
        let accepted = listener.accept();
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let mut stream = match accepted {
            Ok((stream, _)) => stream,
            Err(cause) => {
                tracing::error!("CNI socket: accept failed: {cause}");
                thread::sleep(ACCEPT_PAUSE);
                continue;
            }
        };
        let (core, calls) = (core.clone(), calls.clone());
        let spawned = thread::Builder::new().name("cni-call".into()).spawn(move || {
            if let Err(cause) = serve(&core, &mut stream, &calls) {
                tracing::warn!("CNI call: {cause}");
            }
        });
        if let Err(cause) = spawned {
            // The plugin sees its connection closed and answers "try again later".
            tracing::error!("CNI call: no thread: {cause}");
        }
    }
}

fn serve(core: &Core, stream: &mut UnixStream, calls: &Arc<Calls>) -> io::Result<()> {
    stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    let (request, netns) = receive(stream)?;
    // Not before: who has not asked for anything yet does not keep the agent from ending. Without an answer the plugin says
    // "try again later".
    let Some(_running) = calls.begin() else { return Ok(()) };
    let outcome = dispatch(core, &request, netns.as_ref());
    if let Err(error) = &outcome {
        tracing::warn!(
            "CNI {} of {} {}: {error} (code {})",
            request.verb.as_str(),
            request.container_id,
            request.ifname,
            error.code
        );
    }
    let response = outcome.map_or_else(Response::Error, Response::Result);
    if answer(stream, &response).is_err()
        && request.verb == Verb::Add
        && matches!(response, Response::Result(_))
    {
        // The plugin died while we worked: nobody knows of this interface, so it must not stay.
        tracing::warn!("CNI ADD of {}: the caller is gone; undone", request.container_id);
        if let Err(error) = core.del(&request.container_id, &request.ifname) {
            tracing::error!("undoing ADD of {}: {error}", request.container_id);
        }
    }
    Ok(())
}

fn dispatch(core: &Core, request: &Request, netns: Option<&std::os::fd::OwnedFd>) -> Result<Value, CniError> {
    let netns = || {
        netns.ok_or_else(|| {
            CniError::new(
                Code::INVALID_ENVIRONMENT,
                "the call came without a network namespace",
                "set CNI_NETNS",
            )
        })
    };
    match request.verb {
        Verb::Add => core.add(request, netns()?),
        Verb::Del => core.del(&request.container_id, &request.ifname).map(|()| Value::Null),
        Verb::Check => core.check(request, netns()?).map(|()| Value::Null),
        Verb::Gc => {
            let valid = request.config.valid_attachments.as_deref().unwrap_or_default();
            core.gc(&request.config.name, valid).map(|()| Value::Null)
        }
        Verb::Status => core.status().map(|()| Value::Null),
        // The plugin answers VERSION itself.
        Verb::Version => Ok(Value::Null),
    }
}
