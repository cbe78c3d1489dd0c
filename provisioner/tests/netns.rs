//! The netns provider on a real kernel: what it makes, repairs and removes, whoever dies when.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// It bounds a hang; nothing is asserted about time.
const PATIENCE: Duration = Duration::from_mins(1);

/// A lab of a name and a state directory of its own; taken down when the test ends, however it ends.
struct Lab {
    name: String,
    state: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("n{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self { name, state: tempfile::tempdir().unwrap() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
        command.args(args).env("PODWIRE_STATE", self.root()).stdin(Stdio::null());
        command
    }

    fn root(&self) -> PathBuf {
        self.state.path().join("labs")
    }

    fn up_command(&self) -> Command {
        self.command(&["up", "native-routing", "--name", &self.name, "--no-deploy"])
    }

    fn up(&self) -> String {
        ok(&mut self.up_command())
    }

    fn down(&self) {
        ok(&mut self.command(&["down", &self.name]));
    }

    fn on(&self, node: &str, argv: &[&str]) -> Command {
        let mut words = vec!["exec", "--lab", &self.name, node, "--"];
        words.extend(argv);
        self.command(&words)
    }

    fn ping(&self, from: &str, to: &str) {
        ok(&mut self.on(from, &["ping", "-n", "-c", "1", "-W", "10", to]));
    }

    /// The lab's id, from its record; none before the record begins.
    fn id(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.root().join(&self.name).join("record.jsonl")).ok()?;
        let first: serde_json::Value = serde_json::from_str(text.lines().next()?).ok()?;
        Some(first["id"].as_str()?.to_owned())
    }

    fn init_pid(&self, node: &str) -> i32 {
        let path = self.root().join(&self.name).join("nodes").join(node).join("init.json");
        let init: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        i32::try_from(init["pid"].as_i64().unwrap()).unwrap()
    }

    /// Everything on the host that is this lab's.
    fn traces(&self, id: Option<&str>) -> Vec<String> {
        let mut found = Vec::new();
        let entries = |dir: &str| std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
        let prefix = format!("{}-", self.name);
        for entry in entries("/run/netns") {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                found.push(format!("namespace {}", entry.file_name().display()));
            }
        }
        let (name, root) = (self.name.as_str(), self.root());
        for line in std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines() {
            if line.contains(&prefix) || line.contains(root.to_str().unwrap()) {
                found.push(format!("mount {line}"));
            }
        }
        for entry in entries("/proc") {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let marked =
                id.is_some_and(|id| contains(&read("environ"), format!("PODWIRE_LAB={id}").as_bytes()));
            if marked || contains(&read("cmdline"), format!("{name}/").as_bytes()) {
                found.push(format!("process {pid} {}", String::from_utf8_lossy(&read("cmdline"))));
            }
        }
        if root.exists() {
            found.push(format!(
                "state {:?}",
                std::fs::read_dir(&root).unwrap().flatten().map(|e| e.path()).collect::<Vec<_>>()
            ));
        }
        found
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let out = self.command(&["down", &self.name]).output();
        if !std::thread::panicking() {
            assert!(out.is_ok_and(|o| o.status.success()), "lab down {} failed", self.name);
        }
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|w| w == part)
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// All that a command that must succeed says.
fn ok(command: &mut Command) -> String {
    let out = run(command);
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{command:?}: {}\n{said}", out.status);
    said
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}: never");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn kill(pid: i32) {
    ok(Command::new("kill").args(["-9", &pid.to_string()]));
}

/// The host's own network, as its tools and /proc show it.
fn host() -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for tool in [
        "ip -j link",
        "ip -j addr",
        "ip -j route show table all",
        "ip -6 -j route show table all",
        "ip -j rule",
        "nft list ruleset",
        "iptables-save",
        "bridge -j link",
        "find /sys/fs/bpf",
    ] {
        let mut words = tool.split(' ');
        let output = Command::new(words.next().unwrap()).args(words).output();
        let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
        // iptables-save writes the time in comments; lifetimes of addresses count down.
        let steady = |l: &&str| !l.starts_with('#');
        all.insert(tool.to_owned(), text.lines().filter(steady).collect::<Vec<_>>().join("\n"));
    }
    read_tree(Path::new("/proc/sys/net"), &mut all);
    all
}

fn read_tree(dir: &Path, into: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            read_tree(&path, into);
        } else if !path.ends_with("nf_conntrack_count") {
            into.insert(path.display().to_string(), std::fs::read_to_string(&path).unwrap_or_default());
        }
    }
}

#[test]
fn up_and_down_leave_the_host_as_it_was() {
    let before = host();
    let lab = Lab::new();
    lab.up();
    lab.ping("k8s-ctr", "192.168.10.101");
    lab.ping("k8s-w1", "10.10.2.200");
    let id = lab.id();
    assert!(
        lab.traces(id.as_deref()).len() > 8,
        "traces are found while it runs: {:?}",
        lab.traces(id.as_deref())
    );
    assert_eq!(host(), before, "a running lab changes nothing of the host's network");
    lab.down();
    assert_eq!(lab.traces(id.as_deref()), Vec::<String>::new());
    assert_eq!(host(), before);
    ok(&mut lab.command(&["down", &lab.name]));
}

#[test]
fn a_machine_is_what_its_plan_says() {
    let lab = Lab::new();
    lab.up();
    let said = |node: &str, argv: &[&str]| ok(&mut lab.on(node, argv));
    assert_eq!(said("k8s-w1", &["hostname"]).trim(), "k8s-w1");
    assert_eq!(said("router", &["cat", "/proc/sys/net/ipv4/ip_forward"]).trim(), "1");
    let links = said("k8s-ctr", &["ip", "-br", "link"]);
    assert!(links.contains("eth1@") && links.contains("52:54:c0:a8:0a:64"), "{links}");
    assert!(said("k8s-w1", &["ip", "route"]).contains("10.10.0.0/16 via 192.168.10.200"));
    assert!(said("router", &["ip", "-br", "addr"]).contains("10.10.1.200/24"));
    assert!(said("k8s-ctr", &["getent", "hosts", "k8s-w1"]).contains("192.168.10.101"));
    // Its process 1 is its own, and its files are its own.
    assert!(said("k8s-ctr", &["cat", "/proc/1/comm"]).contains("podwire-node"));
    said(
        "k8s-ctr",
        &["sh", "-c", "echo a > /etc/podwire-test; echo b > /run/podwire-test; mkdir /sys/fs/bpf/podwire"],
    );
    assert!(!Path::new("/etc/podwire-test").exists() && !Path::new("/run/podwire-test").exists());
    assert!(!run(&mut lab.on("k8s-w1", &["cat", "/etc/podwire-test"])).status.success());
    assert_eq!(
        said("k8s-w1", &["find", "/etc/cni", "/opt/cni", "/var/lib/podwire", "-type", "f"]),
        "",
        "another node's or the host's files are here"
    );
    // The node is reached as iproute2's users do, too.
    let namespace = format!("{}-k8s-ctr", lab.name);
    assert!(
        ok(Command::new("ip").args(["netns", "exec", &namespace, "ip", "-br", "addr"]))
            .contains("192.168.10.100")
    );
}

#[test]
fn a_host_whose_files_in_etc_are_mounts_has_labs_too() {
    // As in a container, whose runtime mounts these.
    let lab = Lab::new();
    let theirs = lab.state.path().join("hosts");
    std::fs::write(&theirs, "192.0.2.1 theirs\n").unwrap();
    let script = "mount --bind $HOSTS /etc/hosts && mount --bind $HOSTS /etc/resolv.conf && \
                  $LAB up --name $NAME --no-deploy && $LAB exec k8s-ctr -- cat /etc/hosts; $LAB down $NAME";
    let said = ok(Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .env("PODWIRE_STATE", lab.root())
        .envs([
            ("HOSTS", theirs.to_str().unwrap()),
            ("NAME", &lab.name),
            ("LAB", env!("CARGO_BIN_EXE_lab")),
        ]));
    assert!(said.contains("192.168.10.101 k8s-w1"), "{said}");
    assert_eq!(std::fs::read_to_string(&theirs).unwrap(), "192.0.2.1 theirs\n");
}

#[test]
fn exec_passes_input_output_and_exit_code() {
    let lab = Lab::new();
    lab.up();
    assert_eq!(run(&mut lab.on("router", &["sh", "-c", "exit 7"])).status.code(), Some(7));
    assert_eq!(run(&mut lab.on("router", &["sh", "-c", "kill -TERM $$"])).status.code(), Some(128 + 15));
    let out = run(&mut lab.on("router", &["no-such-command"]));
    assert_eq!(out.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&out.stderr).contains("no such command on router"));
    let out = run(&mut lab.on("k8s-w7", &["true"]));
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("k8s-ctr, k8s-w1, router"));
    let mut cat = lab.on("router", &["cat"]);
    let mut child = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"through").unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"through");
    // A signal to `lab exec` ends the command on the node.
    let child = lab.on("router", &["sleep", "1000"]).spawn().unwrap();
    eventually("sleep runs on the node", || {
        run(&mut lab.on("router", &["pgrep", "-x", "sleep"])).status.success()
    });
    ok(Command::new("kill").arg(child.id().to_string()));
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(128 + 15));
}

#[test]
fn up_twice_is_one_lab() {
    let lab = Lab::new();
    lab.up();
    let pids = ["k8s-ctr", "k8s-w1", "router"].map(|n| lab.init_pid(n));
    assert!(lab.up().contains("every machine was there"));
    assert_eq!(["k8s-ctr", "k8s-w1", "router"].map(|n| lab.init_pid(n)), pids);
    // Two at once: one waits for the other.
    let both = [lab.up_command().spawn().unwrap(), lab.up_command().spawn().unwrap()];
    for child in both {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    assert_eq!(["k8s-ctr", "k8s-w1", "router"].map(|n| lab.init_pid(n)), pids);
    let others = tempfile::tempdir().unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_podwire-node"), others.path().join("podwire-node")).unwrap();
    let out = run(&mut lab.command(&[
        "up",
        "native-routing",
        "--name",
        &lab.name,
        "--no-deploy",
        "--bin-dir",
        others.path().to_str().unwrap(),
    ]));
    assert_eq!(out.status.code(), Some(1), "other programs are another lab");
    assert!(String::from_utf8_lossy(&out.stderr).contains("lab down"));
}

#[test]
fn what_is_missing_is_made_again() {
    let lab = Lab::new();
    lab.up();
    let (ctr, w1) = (lab.init_pid("k8s-ctr"), lab.init_pid("k8s-w1"));
    kill(w1);
    eventually("the node is seen to be gone", || !run(&mut lab.on("k8s-w1", &["true"])).status.success());
    assert!(lab.up().contains("made again: k8s-w1"));
    assert_eq!(lab.init_pid("k8s-ctr"), ctr, "what was whole is left alone");
    lab.ping("k8s-w1", "192.168.10.100");
    // A switch that is gone takes its machines' links along.
    ok(Command::new("ip").args(["netns", "del", &format!("{}-lan-a", lab.name)]));
    lab.up();
    lab.ping("k8s-ctr", "192.168.10.101");
    // So does a machine's namespace.
    ok(Command::new("ip").args(["netns", "del", &format!("{}-router", lab.name)]));
    assert!(lab.up().contains("made again: router"));
    lab.ping("k8s-ctr", "10.10.1.200");
}

#[test]
fn whoever_talks_to_a_machine_learns_that_it_is_gone() {
    let lab = Lab::new();
    lab.up();
    for _ in 0..3 {
        let mut server = lab.on("router", &["nc", "-l", "7777"]).stdout(Stdio::null()).spawn().unwrap();
        let connect = ["nc", "-d", "192.168.10.200", "7777"];
        let listens = ["sh", "-c", "ss -Hltn sport = :7777 | grep -q ."];
        eventually("the server listens", || run(&mut lab.on("router", &listens)).status.success());
        let mut client = lab.on("k8s-w1", &connect).spawn().unwrap();
        let connected = ["sh", "-c", "ss -Htn state established dport = :7777 | grep -q ."];
        eventually("they talk", || run(&mut lab.on("k8s-w1", &connected)).status.success());
        kill(lab.init_pid("router"));
        lab.up();
        // It would wait for ever: a new machine of the old address never speaks first.
        eventually("the client ends", || client.try_wait().unwrap().is_some());
        server.wait().unwrap();
    }
}

#[test]
fn up_that_is_killed_at_any_entry_of_its_record_can_be_undone_and_gone_on_with() {
    let mut entry = 1;
    loop {
        for go_on in [false, true] {
            let lab = Lab::new();
            let out = run(lab.up_command().env("PODWIRE_FAULT", format!("after:{entry}")));
            let id = lab.id();
            if out.status.success() {
                assert!(entry > 8, "the record has an entry for each namespace and process, not {entry}");
                return;
            }
            assert_eq!(out.status.signal(), Some(9), "{}", String::from_utf8_lossy(&out.stderr));
            assert!(id.is_some(), "what was made is recorded");
            if go_on {
                lab.up();
                lab.ping("k8s-ctr", "10.10.2.200");
                assert_eq!(lab.id(), id, "it is the same lab");
            }
            lab.down();
            assert_eq!(lab.traces(id.as_deref()), Vec::<String>::new(), "killed after entry {entry}");
        }
        entry += 1;
    }
}

#[test]
fn up_and_down_that_are_killed_at_any_moment_can_be_undone() {
    for round in 0..12_u64 {
        let lab = Lab::new();
        let mut up = lab.up_command().stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        // Where in its work it is hit differs from round to round and from run to run.
        std::thread::sleep(Duration::from_millis(round * 9));
        up.kill().unwrap();
        up.wait().unwrap();
        let id = lab.id();
        let mut down = lab.command(&["down", &lab.name]).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(round));
        down.kill().unwrap();
        down.wait().unwrap();
        lab.down();
        assert_eq!(lab.traces(id.as_deref()), Vec::<String>::new(), "round {round}");
    }
}

#[test]
fn down_removes_a_lab_whose_processes_were_killed() {
    let lab = Lab::new();
    lab.up();
    let id = lab.id().unwrap();
    kill(lab.init_pid("k8s-ctr"));
    for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let ours = contains(&read("environ"), format!("PODWIRE_LAB={id}").as_bytes());
        if ours && contains(&read("cmdline"), b"forward") {
            kill(entry.file_name().to_string_lossy().parse().unwrap());
        }
    }
    // A stranger in one of its namespaces would keep it alive.
    let mut stranger = Command::new("ip")
        .args(["netns", "exec", &format!("{}-lan-a", lab.name), "sleep", "1000"])
        .spawn()
        .unwrap();
    let inside = |pid: u32| {
        let of = |path: String| std::fs::metadata(path).map(|m| std::os::unix::fs::MetadataExt::ino(&m)).ok();
        of(format!("/proc/{pid}/ns/net")) == of(format!("/run/netns/{}-lan-a", lab.name))
    };
    eventually("the stranger is inside", || inside(stranger.id()));
    lab.down();
    assert!(!stranger.wait().unwrap().success());
    assert_eq!(lab.traces(Some(&id)), Vec::<String>::new());
}

#[test]
fn two_labs_live_side_by_side() {
    let (one, two) = (Lab::new(), Lab::new());
    one.up();
    two.up();
    for lab in [&one, &two] {
        lab.ping("k8s-ctr", "192.168.10.101");
    }
    let id = one.id();
    one.down();
    assert_eq!(one.traces(id.as_deref()), Vec::<String>::new());
    two.ping("k8s-w1", "10.10.1.200");
}

#[test]
fn a_namespace_of_the_same_name_is_not_taken_over() {
    let lab = Lab::new();
    let name = format!("{}-router", lab.name);
    ok(Command::new("ip").args(["netns", "add", &name]));
    let mut theirs = Command::new("ip").args(["netns", "exec", &name, "sleep", "1000"]).spawn().unwrap();
    // The second time as the first: a name that was refused is not ours from then on.
    for _ in 0..2 {
        let out = run(&mut lab.up_command());
        assert_eq!(out.status.code(), Some(1));
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(said.contains(&name) && said.contains("exists already") && said.contains("--name"), "{said}");
        lab.down();
        assert!(theirs.try_wait().unwrap().is_none(), "somebody else's process was killed");
    }
    // Nothing else is there: not the namespaces whose names were free either.
    let left = lab.traces(None);
    assert!(left.len() == 2 && left.iter().all(|t| t.contains(&name)), "{left:?}");
    theirs.kill().unwrap();
    theirs.wait().unwrap();
    ok(Command::new("ip").args(["netns", "del", &name]));
    lab.up();
}

#[test]
fn a_lab_that_cannot_be_made_leaves_nothing() {
    let lab = Lab::new();
    // Programs that are not there.
    let bins = tempfile::tempdir().unwrap();
    let mut without_programs = lab.up_command();
    without_programs.arg("--bin-dir").arg(bins.path());
    // One that does not start.
    let broken = tempfile::tempdir().unwrap();
    std::fs::write(broken.path().join("podwire-node"), "no program").unwrap();
    let mut with_broken_program = lab.up_command();
    with_broken_program.arg("--bin-dir").arg(broken.path());
    // As on a machine whose kernel or container forbids it.
    let mut without_capability = Command::new("setpriv");
    without_capability.args(["--bounding-set=-sys_admin", env!("CARGO_BIN_EXE_lab")]);
    without_capability.args(["up", "native-routing", "--name", &lab.name]).env("PODWIRE_STATE", lab.root());
    for (mut command, why) in [
        (without_programs, "program podwire-node: it is not in"),
        (with_broken_program, "podwire-node does not start"),
        (without_capability, "CAP_SYS_ADMIN"),
    ] {
        let out = run(&mut command);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{said}");
        assert!(said.contains(why), "{said}");
        assert_eq!(lab.traces(None), Vec::<String>::new());
    }
    // A lab that stands is not taken down because what it lacks cannot be made.
    lab.up();
    kill(lab.init_pid("k8s-w1"));
    let out = run(Command::new("setpriv")
        .args(["--bounding-set=-sys_admin", env!("CARGO_BIN_EXE_lab")])
        .args(["up", "native-routing", "--name", &lab.name, "--no-deploy"])
        .env("PODWIRE_STATE", lab.root()));
    assert_eq!(out.status.code(), Some(1));
    lab.ping("k8s-ctr", "192.168.10.200");
}

#[test]
fn down_takes_a_lab_down_and_nothing_else() {
    let lab = Lab::new();
    lab.up();
    let precious = lab.state.path().join("precious");
    std::fs::write(&precious, "text").unwrap();
    std::fs::create_dir(lab.root().join("letters")).unwrap();
    std::fs::write(lab.root().join("letters/one"), "text").unwrap();
    for name in ["..", ".", "", "no name", "../precious", "nowhere.toml"] {
        let out = run(&mut lab.command(&["down", name]));
        assert_eq!(out.status.code(), Some(2), "lab down {name:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
    ok(&mut lab.command(&["down", "letters"]));
    assert!(precious.exists() && lab.root().join("letters/one").exists());
    lab.ping("k8s-ctr", "192.168.10.200");
    // The path of its file is as good as its name.
    let file = lab.state.path().join("mine.toml");
    let text = include_str!("../../labs/native-routing/lab.toml");
    std::fs::write(&file, text.replace("name = \"native-routing\"", &format!("name = \"{}\"", lab.name)))
        .unwrap();
    ok(lab.command(&["down", "mine.toml"]).current_dir(lab.state.path()));
    ok(&mut lab.command(&["down", "--all"]));
    std::fs::remove_dir_all(lab.root().join("letters")).unwrap();
    std::fs::remove_dir(lab.root()).unwrap();
    assert_eq!(lab.traces(None), Vec::<String>::new());
}

#[test]
fn a_deployed_lab_leaves_the_host_as_it_was() {
    let before = host();
    let lab = Lab::new();
    ok(&mut lab.command(&["up", "native-routing", "--name", &lab.name]));
    let id = lab.id().unwrap();
    assert_eq!(host(), before, "agents and pods change nothing of the host's network");
    // Whatever dies, the lab is found.
    let mut killed = 0;
    for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if contains(&environ, format!("PODWIRE_LAB={id}").as_bytes()) {
            // Those of a machine go with its first process.
            run(Command::new("kill").args(["-9", &entry.file_name().to_string_lossy()]));
            killed += 1;
        }
    }
    assert!(killed >= 4, "three machines and a forwarder, not {killed}");
    lab.down();
    assert_eq!(lab.traces(Some(&id)), Vec::<String>::new());
    assert_eq!(host(), before);
}

#[test]
fn up_that_made_a_machine_again_returns_when_all_runs_there() {
    let lab = Lab::new();
    let up = || ok(&mut lab.command(&["up", "native-routing", "--name", &lab.name]));
    up();
    for node in ["k8s-w1", "k8s-ctr"] {
        kill(lab.init_pid(node));
        assert!(up().contains(&format!("made again: {node}")));
        ok(&mut lab.command(&["status", &lab.name]));
        let pods = ok(&mut lab.command(&["status", &lab.name, "-o", "json"]));
        let pods: serde_json::Value = serde_json::from_str(&pods).unwrap();
        let there =
            |p: &&serde_json::Value| p["node"] == node && p["name"].as_str().unwrap().starts_with("webpod");
        let pod =
            pods["pods"].as_array().unwrap().iter().find(there).unwrap()["ip"].as_str().unwrap().to_owned();
        lab.ping(node, &pod);
    }
}

#[test]
fn up_that_is_killed_at_any_stage_of_its_deployment_can_be_undone_and_gone_on_with() {
    use std::io::{BufRead, BufReader};
    for stage in ["machines", "control plane", "agents", "agents: waiting", "apps: waiting"] {
        let lab = Lab::new();
        let mut up = lab
            .command(&["up", "native-routing", "--name", &lab.name])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(up.stderr.take().unwrap()).lines().map_while(Result::ok);
        // A stage may pass without a word: then the lab is up, which is a moment as good as any.
        let _ = said.find(|line| line.starts_with(stage));
        up.kill().unwrap();
        up.wait().unwrap();
        let id = lab.id();
        if stage == "agents" {
            ok(&mut lab.command(&["up", "native-routing", "--name", &lab.name]));
            ok(&mut lab.command(&["status", &lab.name]));
        }
        lab.down();
        assert_eq!(lab.traces(id.as_deref()), Vec::<String>::new(), "killed at {stage:?}");
    }
}

#[test]
fn a_wrong_file_makes_nothing() {
    let lab = Lab::new();
    let file = lab.state.path().join("lab.toml");
    let text = include_str!("../../labs/native-routing/lab.toml");
    std::fs::write(&file, text.replace("\"192.168.10.101\"", "\"192.168.11.101\"")).unwrap();
    let out = run(&mut lab.command(&["up", file.to_str().unwrap(), "--name", &lab.name]));
    assert_eq!(out.status.code(), Some(2));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        said.starts_with("error: ") && said.contains("lab.toml:22: node \"k8s-w1\" has 192.168.11.101"),
        "{said}"
    );
    let out = run(&mut lab.command(&["up", "--name", &lab.name, "--set", "routingMode=fast"]));
    assert_eq!(out.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&out.stderr).starts_with("error: --set: routingMode = \"fast\": unknown")
    );
    let values = lab.state.path().join("values.toml");
    std::fs::write(&values, "routingmode = 5\nMTU = \"large\"\n").unwrap();
    let out = run(&mut lab.command(&["up", "--name", &lab.name, "-f", values.to_str().unwrap()]));
    assert_eq!(out.status.code(), Some(2));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        said.contains("values.toml: unknown key \"routingmode\"; did you mean \"routingMode\"?"),
        "{said}"
    );
    assert!(said.contains("values.toml: MTU = \"large\": invalid type"), "{said}");
    assert_eq!(lab.traces(None), Vec::<String>::new());
}

#[test]
fn a_dry_run_prints_the_plan_and_makes_nothing() {
    let lab = Lab::new();
    let plan = ok(&mut lab.command(&["up", "--name", &lab.name, "--dry-run"]));
    assert!(
        plan.contains("192.168.10.100/24 dev eth1") && plan.contains("process  control-plane:"),
        "{plan}"
    );
    let out = run(&mut lab.command(&["up", "--name", &lab.name, "--dry-run", "-o", "json"]));
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json["machines"].as_array().map(Vec::len), Some(3));
    assert_eq!(lab.traces(None), Vec::<String>::new());
}
