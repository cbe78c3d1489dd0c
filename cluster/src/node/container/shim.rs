//! `podwire-kube shim`: the monitor of one container. Small and single-threaded; it owns the container's output, reaps it
//! and records its end.
//!
//! Its child is the container's init (PID 1 of the PID namespace), which passes signals on to the program and reaps
//! orphans; when init ends the kernel ends everything else in the container. Init dies with the shim.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe2};

use super::inside::{self, InsideError, step};
use super::process;
use super::spec::{ContainerSpec, Exited, RunDir, Started, write_atomically};
use crate::node::logs::LineSplitter;

/// Bytes read from the container at a time.
const CHUNK: usize = 64 * 1024;

fn now() -> String {
    crate::controllers::meta::now().0.to_string()
}

/// Runs the container described in `dir` to its end. Says `ok` or what went wrong on standard output once it runs.
///
/// # Errors
/// The container could not be started (recorded in `dir` also), or its end could not be recorded.
pub fn run(dir: &Path) -> io::Result<()> {
    let dir = RunDir(dir.to_owned());
    let spec: ContainerSpec =
        serde_json::from_slice(&std::fs::read(dir.spec())?).map_err(io::Error::other)?;
    // A session of its own: signals for the runtime's terminal or group are not for us.
    let _ = nix::unistd::setsid();
    if spec.host_pid {
        // No PID namespace ends what the container leaves behind: it is left to us.
        nix::sys::prctl::set_child_subreaper(true)?;
    }
    match start(&spec) {
        Ok(running) => {
            let own = nix::unistd::getpid().as_raw();
            let init = running.init.as_raw();
            let started = Started {
                shim_pid: own,
                shim_start: process::start_time(own).unwrap_or(0),
                init_pid: init,
                // An init that has ended already has no start time; the end follows.
                init_start: process::start_time(init).unwrap_or(0),
                at: now(),
            };
            write_atomically(&dir.started(), &serde_json::to_vec(&started)?)?;
            if dir.exited().exists() {
                // Given up by the runtime that came after the one that started us. Init ends with us.
                return Ok(());
            }
            answer("ok");
            let code = running.attend(&spec)?;
            if spec.host_pid {
                end_orphans();
            }
            record(&dir, code, None)
        }
        Err(error) => {
            let text = error.to_string();
            record(&dir, 128, Some(text.clone()))?;
            answer(&text);
            Ok(())
        }
    }
}

/// Tells the runtime, which may be gone, and lets go of the pipe to it.
fn answer(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
    let _ = io::stdout().flush();
    forget_streams();
}

/// Lets go of the standard streams.
fn forget_streams() {
    if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        for number in 0..3 {
            let _ = inside::redirect(&null, number);
        }
    }
}

/// Ends every process that the container has left to this one.
fn end_orphans() {
    let own = nix::unistd::getpid();
    loop {
        let children =
            std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        // The children of each that ends are the next.
        match waitpid(None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

fn record(dir: &RunDir, code: i32, error: Option<String>) -> io::Result<()> {
    write_atomically(&dir.exited(), &serde_json::to_vec(&Exited { code, at: now(), error })?)
}

struct Running {
    init: Pid,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

fn start(spec: &ContainerSpec) -> Result<Running, InsideError> {
    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(step("make a pipe"));
    let (stdout, stdout_inside) = pipe()?;
    let (stderr, stderr_inside) = pipe()?;
    let (problem, problem_inside) = pipe()?;
    if let Some(path) = &spec.netns {
        inside::join(path, "network", CloneFlags::CLONE_NEWNET)?;
    }
    if let Some(path) = &spec.uts {
        inside::join(path, "UTS", CloneFlags::CLONE_NEWUTS)?;
    }
    if let Some(path) = &spec.ipc {
        inside::join(path, "IPC", CloneFlags::CLONE_NEWIPC)?;
    }
    if !spec.host_pid {
        nix::sched::unshare(CloneFlags::CLONE_NEWPID).map_err(step("make a PID namespace"))?;
    }
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { fork() }.map_err(step("fork the container's init"))? {
        ForkResult::Child => {
            drop((stdout, stderr, problem));
            // The pipe to the runtime is the shim's alone: it waits for the end of it.
            forget_streams();
            let code = match init(spec, &stdout_inside, &stderr_inside, &problem_inside) {
                Ok(program) => {
                    drop((stdout_inside, stderr_inside, problem_inside));
                    mind(program)
                }
                Err(error) => {
                    let _ = File::from(problem_inside).write_all(error.to_string().as_bytes());
                    128
                }
            };
            std::process::exit(code);
        }
        ForkResult::Parent { child } => {
            drop((stdout_inside, stderr_inside, problem_inside));
            // Closed by exec: nothing to read means that the program runs.
            let text = io::read_to_string(File::from(problem)).unwrap_or_default();
            if text.is_empty() {
                return Ok(Running { init: child, stdout, stderr });
            }
            let _ = waitpid(child, None);
            Err(InsideError::Step { step: "start the container", source: io::Error::other(text) })
        }
    }
}

/// The container's init until the program runs.
fn init(
    spec: &ContainerSpec,
    stdout: &OwnedFd,
    stderr: &OwnedFd,
    problem: &OwnedFd,
) -> Result<Pid, InsideError> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(step("tie the container to its monitor"))?;
    if spec.host_pid {
        nix::sys::prctl::set_child_subreaper(true).map_err(step("adopt the container's processes"))?;
    }
    inside::make_mounts(spec)?;
    SigSet::all().thread_block().map_err(step("block signals"))?;
    // SAFETY: still one thread.
    match unsafe { fork() }.map_err(step("fork the program"))? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let error = match become_program(spec, stdout, stderr) {
                Ok(never) => match never {},
                Err(error) => error,
            };
            let _ = nix::unistd::write(problem, error.to_string().as_bytes());
            std::process::exit(127);
        }
    }
}

fn become_program(
    spec: &ContainerSpec,
    stdout: &OwnedFd,
    stderr: &OwnedFd,
) -> Result<std::convert::Infallible, InsideError> {
    nix::unistd::setsid().map_err(step("start a session"))?;
    let null = File::open("/dev/null").map_err(step("open /dev/null"))?;
    inside::redirect(&null, 0)?;
    inside::redirect(stdout, 1)?;
    inside::redirect(stderr, 2)?;
    inside::reset_signals()?;
    inside::assume(&spec.identity)?;
    if spec.host_pid {
        // After the change of user, which would undo it.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(step("tie the program to its init"))?;
    }
    Err(inside::exec(&spec.argv, &spec.env, &spec.cwd))
}

/// Init's life: pass signals on to the program, reap, end with the program's exit code.
fn mind(program: Pid) -> i32 {
    let all = SigSet::all();
    loop {
        match all.wait() {
            Ok(Signal::SIGCHLD) => loop {
                match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::Exited(pid, code)) if pid == program => return code,
                    Ok(WaitStatus::Signaled(pid, signal, _)) if pid == program => return 128 + signal as i32,
                    Ok(WaitStatus::StillAlive) | Err(_) => break,
                    Ok(_) => {}
                }
            },
            Ok(signal) => {
                let _ = nix::sys::signal::kill(program, signal);
            }
            // Only a wrong argument could fail, and there is none.
            Err(_) => {}
        }
    }
}

impl Running {
    /// Takes the container's output to the log until it has ended, and says how it ended.
    fn attend(self, spec: &ContainerSpec) -> io::Result<i32> {
        let mut log = OpenOptions::new().create(true).append(true).open(&spec.log)?;
        let mut streams = [
            (Some(self.stdout), LineSplitter::new("stdout")),
            (Some(self.stderr), LineSplitter::new("stderr")),
        ];
        for (stream, _) in &streams {
            if let Some(fd) = stream {
                fcntl(fd.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            }
        }
        let start = process::start_time(self.init.as_raw()).unwrap_or(0);
        let ended = process::pidfd(self.init.as_raw(), start)?;
        let mut buffer = vec![0; CHUNK];
        let mut over = ended.is_none();
        while !over {
            let mut waits: Vec<PollFd<'_>> =
                ended.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
            for (stream, _) in &streams {
                if let Some(fd) = stream {
                    waits.push(PollFd::new(fd.as_fd(), PollFlags::POLLIN));
                }
            }
            match poll(&mut waits, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            over = waits.first().and_then(PollFd::any).unwrap_or(true);
            drop(waits);
            for (stream, lines) in &mut streams {
                drain(stream, lines, &mut log, &mut buffer);
            }
        }
        // What was written before the end is in the pipes now.
        for (stream, lines) in &mut streams {
            drain(stream, lines, &mut log, &mut buffer);
            let _ = log.write_all(&lines.finish(&now()));
        }
        loop {
            match waitpid(self.init, None) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Reads all there is; closes a stream that has ended. A log that cannot be written loses lines, never the container.
fn drain(stream: &mut Option<OwnedFd>, lines: &mut LineSplitter, log: &mut File, buffer: &mut [u8]) {
    while let Some(fd) = stream {
        match nix::unistd::read(fd.as_fd(), buffer) {
            Ok(0) => *stream = None,
            Ok(count) => {
                let _ = log.write_all(&lines.push(&buffer[..count], &now()));
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return,
            Err(_) => *stream = None,
        }
    }
}
