//! Starting, restarting and reaping, without threads: one signalfd and one clock.

use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout};

use crate::error::{Failure, OrFailure};
use crate::netns::process::MARKER;
use crate::plan::Machine;

/// First pause before a service that ended is started again; it doubles up to [`LONGEST_PAUSE`].
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A service that ran so long has earned the shortest pause again.
const STEADY: Duration = Duration::from_secs(10);
/// How long a service may take to stop.
const GRACE: Duration = Duration::from_secs(5);

struct Service {
    name: String,
    argv: Vec<String>,
    pid: Option<Pid>,
    started: Instant,
    pause: Duration,
    start_at: Option<Instant>,
}

/// Runs a machine's services.
pub(super) struct Supervisor {
    services: Vec<Service>,
    env: Vec<(String, String)>,
    signals: SignalFd,
}

impl Supervisor {
    /// Takes over the signals that matter and starts every service.
    pub(super) fn new(machine: &Machine) -> Result<Self, Failure> {
        let thing = format!("node {}", machine.name);
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
            mask.add(signal);
        }
        mask.thread_block().or_failure(&thing, "report this as a bug")?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .or_failure(&thing, "raise the limit of open files")?;
        let mut env = machine.env.clone();
        // Services carry the mark by which `lab down` finds processes.
        env.extend(std::env::var(MARKER).ok().map(|id| (MARKER.to_owned(), id)));
        let now = Instant::now();
        let service = |s: &crate::plan::Service| Service {
            name: s.name.clone(),
            argv: s.argv.clone(),
            pid: None,
            started: now,
            pause: SHORTEST_PAUSE,
            start_at: Some(now),
        };
        let services = machine.services.iter().map(service).collect();
        let mut supervisor = Self { services, env, signals };
        supervisor.start_due();
        Ok(supervisor)
    }

    /// Runs until SIGTERM or SIGINT, then stops the services in the reverse of their order.
    pub(super) fn run(&mut self) {
        loop {
            self.wait(self.services.iter().filter_map(|s| s.start_at).min());
            if self.told_to_stop() {
                return self.stop();
            }
            self.reap();
            self.start_due();
        }
    }

    /// Waits for a signal, at most until `deadline`.
    fn wait(&self, deadline: Option<Instant>) {
        let timeout = deadline.map_or(PollTimeout::NONE, |at| {
            // A millisecond more than what is left, so as not to wake up just before.
            let left = at.saturating_duration_since(Instant::now()).as_millis() + 1;
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        // EINTR and timeouts lead to another look, as a signal does.
        let _ = poll(&mut [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)], timeout);
    }

    fn told_to_stop(&mut self) -> bool {
        let mut stop = false;
        while let Ok(Some(info)) = self.signals.read_signal() {
            stop |= info.ssi_signo != libc::SIGCHLD as u32;
        }
        stop
    }

    /// Collects every ended child: services, and orphans that became PID 1's.
    fn reap(&mut self) {
        loop {
            let (pid, how) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, format!("exit code {code}")),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, signal.to_string()),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            if let Some(service) = self.services.iter_mut().find(|s| s.pid == Some(pid)) {
                service.ended(&how);
            }
        }
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        for service in self.services.iter_mut().filter(|s| s.start_at.is_some_and(|at| at <= now)) {
            service.start(&self.env);
        }
    }

    fn stop(&mut self) {
        for i in (0..self.services.len()).rev() {
            let Some(pid) = self.services[i].pid else { continue };
            // A service that has just ended is what is wanted.
            let _ = kill(pid, Signal::SIGTERM);
            let deadline = Instant::now() + GRACE;
            while self.services[i].pid.is_some() && Instant::now() < deadline {
                self.wait(Some(deadline));
                self.told_to_stop();
                self.reap();
            }
        }
        // Returning ends PID 1, and with it whatever would not stop.
    }
}

impl Service {
    fn start(&mut self, env: &[(String, String)]) {
        self.start_at = None;
        self.started = Instant::now();
        match self.spawn(env) {
            Ok(pid) => {
                eprintln!("service {}: started, pid {pid}", self.name);
                self.pid = Some(pid);
            }
            Err(e) => self.ended(&e.to_string()),
        }
    }

    fn spawn(&self, env: &[(String, String)]) -> std::io::Result<Pid> {
        let log = format!("/var/log/podwire/{}.log", self.name);
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let (program, args) =
            self.argv.split_first().ok_or_else(|| std::io::Error::other("empty command"))?;
        let mut command = Command::new(program);
        command.args(args).env_clear().envs(env.iter().cloned());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        // SAFETY: sigprocmask is async-signal-safe and touches no memory of the parent.
        unsafe {
            command.pre_exec(|| {
                // PID 1 blocks signals for its signalfd; a service must not inherit that.
                sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(Into::into)
            });
        }
        let child = command.spawn()?;
        Ok(Pid::from_raw(i32::try_from(child.id()).unwrap_or_default()))
    }

    fn ended(&mut self, how: &str) {
        let now = Instant::now();
        if now.duration_since(self.started) >= STEADY {
            self.pause = SHORTEST_PAUSE;
        }
        eprintln!("service {}: ended: {how}; again in {} ms", self.name, self.pause.as_millis());
        self.pid = None;
        self.start_at = Some(now + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

/// Lets go of the one who waits for the greeting: output goes to the machine's own log from here on.
pub(super) fn detach_output() {
    let log = OpenOptions::new().create(true).append(true).open("/var/log/podwire/podwire-node.log");
    let null = OpenOptions::new().read(true).open("/dev/null");
    if let (Ok(log), Ok(null)) = (log, null) {
        // Failing leaves the output where it was, which does no harm.
        let _ = dup2_stdin(null);
        let _ = dup2_stdout(&log);
        let _ = dup2_stderr(&log);
    }
}
