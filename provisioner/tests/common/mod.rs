//! A whole lab for a test: booted under a name of its own, taken down when the test ends, however it ends.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a condition may take before a test gives up. It bounds a hang; nothing is asserted about time.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Where the built programs are: tests run from `target/PROFILE/deps`.
pub fn bin(name: &str) -> PathBuf {
    let lab = PathBuf::from(env!("CARGO_BIN_EXE_lab"));
    let path = lab.with_file_name(name);
    assert!(path.exists(), "{} is not built; run `cargo build` in the same profile first", path.display());
    path
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// Standard output of a command that must succeed.
pub fn ok(command: &mut Command) -> String {
    let out = run(command);
    assert!(
        out.status.success(),
        "{command:?}: {}\nstdout: {}\nstderr: {}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

/// Waits until `probe` gives something; panics with `what` and the last complaint if it never does.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(value) => return value,
            Err(complaint) if start.elapsed() > PATIENCE => panic!("{what}: {complaint}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// One running lab.
pub struct Lab {
    pub name: String,
    kubeconfig: tempfile::NamedTempFile,
}

impl Lab {
    /// A name that no other test uses.
    pub fn fresh_name() -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Boots `source` (a lab's name or a lab file) with further arguments.
    pub fn up(source: &str, extra: &[&str]) -> Self {
        let name = Self::fresh_name();
        let kubeconfig = tempfile::NamedTempFile::new().unwrap();
        let lab = Self { name, kubeconfig };
        ok(Command::new(bin("lab")).args(["up", source, "--name", &lab.name]).args(extra));
        let text = ok(Command::new(bin("lab")).args(["kubeconfig", &lab.name]));
        std::fs::write(lab.kubeconfig.path(), text).unwrap();
        lab
    }

    /// `lab VERB ... --lab NAME`.
    pub fn command(&self, verb: &str) -> Command {
        let mut c = Command::new(bin("lab"));
        c.args([verb, "--lab", &self.name]);
        c
    }

    /// A command on a node.
    pub fn on(&self, node: &str, argv: &[&str]) -> Command {
        let mut c = self.command("exec");
        c.args([node, "--"]).args(argv);
        c
    }

    /// kubectl against this lab.
    pub fn kubectl(&self, args: &[&str]) -> Command {
        let mut c = Command::new("kubectl");
        c.env("KUBECONFIG", self.kubeconfig.path()).args(args);
        c
    }

    /// kubectl's output, trimmed.
    pub fn get(&self, args: &[&str]) -> String {
        ok(&mut self.kubectl(args)).trim().to_owned()
    }

    /// Applies a manifest.
    pub fn apply(&self, yaml: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), yaml).unwrap();
        ok(&mut self.kubectl(&["apply", "-f", file.path().to_str().unwrap()]));
    }

    /// (name, address, node) of each pod with a label.
    pub fn pods(&self, label: &str) -> Vec<(String, String, String)> {
        let out = self.get(&[
            "get",
            "pods",
            "-l",
            label,
            "-o",
            r#"jsonpath={range .items[*]}{.metadata.name}{" "}{.status.podIP}{" "}{.spec.nodeName}{"\n"}{end}"#,
        ]);
        out.lines()
            .map(|line| {
                let mut words = line.split(' ').map(str::to_owned);
                (
                    words.next().unwrap_or_default(),
                    words.next().unwrap_or_default(),
                    words.next().unwrap_or_default(),
                )
            })
            .collect()
    }

    /// A command in curl-pod.
    pub fn in_curl_pod(&self, argv: &[&str]) -> Command {
        let mut c = self.kubectl(&["exec", "curl-pod", "--"]);
        c.args(argv);
        c
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut c = self.command("status");
            if let Ok(out) = c.output() {
                eprintln!("lab status:\n{}", String::from_utf8_lossy(&out.stdout));
            }
            if let Ok(out) = self.kubectl(&["get", "pods,events", "-A", "-o", "wide"]).output() {
                eprintln!("{}", String::from_utf8_lossy(&out.stdout));
            }
        }
        let out = Command::new(bin("lab")).args(["down", &self.name]).output();
        if !std::thread::panicking() {
            assert!(out.is_ok_and(|o| o.status.success()), "lab down {} failed", self.name);
        }
    }
}
