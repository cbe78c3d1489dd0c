//! A machine for tests: namespaces of its own (mount, PID, network, UTS), in which a control plane and a node runtime
//! run. Nothing outside is touched, and everything ends with the machine.
#![allow(dead_code, reason = "each file of tests uses a part")]

use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use podwire_cluster::pki::{self, PkiNode, PkiRequest};
use serde_json::Value;

/// Longest wait for a condition; a test that needs as much has failed.
const PATIENCE: Duration = Duration::from_mins(1);
/// The node's address.
pub const NODE_IP: &str = "192.168.10.100";
/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_podwire-kube");

/// See the module.
pub struct Machine {
    root: Child,
    pid: String,
    /// Files of the test.
    pub dir: tempfile::TempDir,
    control_plane: Option<Child>,
    node: Option<Child>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The kernel ends everything in the PID namespace with its first process, mounts and links with the namespaces.
        let _ = self.root.kill();
        let _ = self.root.wait();
        for child in [&mut self.control_plane, &mut self.node].into_iter().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn lines(mut child_output: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(&mut child_output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

impl Machine {
    /// A machine with a device eth1, the reference CNI plugins and a control plane. The node runtime is started apart.
    pub fn new() -> Self {
        let mut root = Command::new("unshare")
            .args([
                "--mount",
                "--net",
                "--uts",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--propagation",
                "private",
            ])
            .args(["sh", "-c", "echo $PPID; exec sleep infinity"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare (package util-linux) runs");
        let first = lines(root.stdout.take().unwrap()).recv().expect("the machine starts");
        assert_eq!(first, "0", "the shell is the first process of its namespace");
        // unshare's child: its only one.
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", root.id())).unwrap();
        let pid = children.trim().to_owned();
        let machine = Self { root, pid, dir: tempfile::tempdir().unwrap(), control_plane: None, node: None };
        machine.sh("mount -t tmpfs tmpfs /run && mount --make-rshared / && mount -t sysfs sysfs /sys && mkdir -p /run/netns");
        machine.sh(&format!(
            "hostname test-node && ip link set lo up && ip link add eth1 type veth peer name sw0 && ip link set sw0 up && \
             ip link set eth1 up && ip addr add {NODE_IP}/24 dev eth1"
        ));
        let request = PkiRequest {
            server_ips: vec![NODE_IP.parse::<IpAddr>().unwrap()],
            nodes: vec![PkiNode { name: "test-node".into(), ips: vec![NODE_IP.parse().unwrap()] }],
            ..PkiRequest::default()
        };
        machine.install_plugins();
        let pki = pki::create(&machine.path("pki"), &request).unwrap();
        for user in ["admin", "kubelet-test-node"] {
            let text = pki::kubeconfig(&pki, &format!("https://{NODE_IP}:6443"), user).unwrap();
            std::fs::write(machine.path(user), text).unwrap();
        }
        machine
    }

    /// A path below the test's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command that runs in the machine.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid, "--mount", "--net", "--uts", "--pid", "--"]).arg(program);
        command
    }

    /// Runs a shell command in the machine; it must succeed.
    pub fn sh(&self, script: &str) -> String {
        let output = self.command("sh").args(["-c", script]).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts the control plane and waits until it is ready.
    pub fn start_control_plane(&mut self) {
        let mut child = self
            .command(PROGRAM)
            .args(["control-plane", "--listen", &format!("{NODE_IP}:6443"), "--allocate-node-cidrs"])
            .args([
                "--pki",
                self.path("pki").to_str().unwrap(),
                "--data-dir",
                self.path("data").to_str().unwrap(),
            ])
            .stdout(Stdio::piped())
            .stderr(
                std::fs::File::options()
                    .create(true)
                    .append(true)
                    .open(self.path("control-plane.log"))
                    .unwrap(),
            )
            .spawn()
            .unwrap();
        let ready = lines(child.stdout.take().unwrap()).recv_timeout(PATIENCE);
        self.control_plane = Some(child);
        assert_eq!(ready.as_deref(), Ok("ready"), "{}", self.logs());
    }

    /// Starts the node runtime.
    pub fn start_node(&mut self) {
        let conf = self.path("net.d");
        std::fs::create_dir_all(&conf).unwrap();
        let child = self
            .command(PROGRAM)
            .args(["node", "--node-name", "test-node", "--node-ip", NODE_IP])
            .args(["--kubeconfig", self.path("kubelet-test-node").to_str().unwrap()])
            .args([
                "--pki",
                self.path("pki").to_str().unwrap(),
                "--root-dir",
                self.path("kubelet").to_str().unwrap(),
            ])
            .args(["--cni-conf-dir", conf.to_str().unwrap()])
            .args(["--cni-bin-dir", self.path("cni").to_str().unwrap()])
            .args(["--bin-dir", Path::new(PROGRAM).parent().unwrap().to_str().unwrap()])
            .stderr(std::fs::File::options().create(true).append(true).open(self.path("node.log")).unwrap())
            .spawn()
            .unwrap();
        self.node = Some(child);
    }

    /// Kills the node runtime (not its pods), as `kill -9` does.
    pub fn kill_node(&mut self) {
        // The child is nsenter, which becomes the runtime's parent: end the runtime itself.
        let children =
            self.node.as_ref().map(|child| format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
        let runtime = self.until("the runtime is there", || {
            std::fs::read_to_string(&children).ok().filter(|pids| !pids.trim().is_empty())
        });
        let killed = Command::new("kill").args(["-9", runtime.trim()]).status().unwrap();
        assert!(killed.success());
        let _ = self.node.take().unwrap().wait();
    }

    /// The reference plugins, and `gate`: ptp that notes its calls in `cni-calls` and `cni-times`, waits while there is a file
    /// `hold-VERB`, and fails while there is a file `broken-VERB`.
    fn install_plugins(&self) {
        let bin = self.path("cni");
        std::fs::create_dir(&bin).unwrap();
        for plugin in std::fs::read_dir("/usr/lib/cni").expect("package containernetworking-plugins") {
            let plugin = plugin.unwrap();
            std::os::unix::fs::symlink(plugin.path(), bin.join(plugin.file_name())).unwrap();
        }
        let dir = self.dir.path().display();
        let script = format!(
            "#!/bin/sh\necho begin $CNI_COMMAND $CNI_CONTAINERID >> {dir}/cni-calls\n\
             echo $CNI_COMMAND $CNI_ARGS $(date +%s%3N) >> {dir}/cni-times\n\
             while [ -e {dir}/hold-$CNI_COMMAND ]; do sleep 0.02; done\n\
             if [ -e {dir}/broken-$CNI_COMMAND ]; then\n\
             echo '{{\"cniVersion\":\"1.0.0\",\"code\":999,\"msg\":\"the gate is broken\"}}'; code=1\n\
             else\n/usr/lib/cni/ptp; code=$?\nfi\n\
             echo end $CNI_COMMAND $CNI_CONTAINERID >> {dir}/cni-calls\nexit $code\n"
        );
        let gate = bin.join("gate");
        std::fs::write(&gate, script).unwrap();
        std::fs::set_permissions(&gate, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// Writes the configuration of the reference plugins, with addresses of `subnet`.
    pub fn write_cni_conf(&self, subnet: &str) {
        self.write_cni_conf_of("ptp", subnet);
    }

    /// Writes the configuration of `plugin`, which is ptp or like it.
    pub fn write_cni_conf_of(&self, plugin: &str, subnet: &str) {
        let conf = serde_json::json!({"cniVersion": "1.0.0", "name": "test", "plugins": [{
            "type": plugin, "ipMasq": false, "mtu": 1500,
            "ipam": {"type": "host-local", "dataDir": self.path("ipam"), "routes": [{"dst": "0.0.0.0/0"}],
                     "ranges": [[{"subnet": subnet}]]}}]});
        std::fs::write(self.path("net.d/10-test.conflist"), conf.to_string()).unwrap();
    }

    /// Addresses that the network has given out.
    pub fn leases(&self) -> Vec<String> {
        let Ok(files) = std::fs::read_dir(self.path("ipam/test")) else { return Vec::new() };
        let names = files.filter_map(|file| file.ok()?.file_name().into_string().ok());
        names.filter(|name| name.starts_with("10.")).collect()
    }

    /// How many processes of the machine have `text` in their command line.
    pub fn processes(&self, text: &str) -> usize {
        // The brackets keep pgrep's own shell out of what it counts.
        let pattern = format!("[{}]{}", &text[..1], &text[1..]);
        self.sh(&format!("pgrep -c -f '{pattern}' || true")).trim().parse().unwrap()
    }

    /// Runs kubectl in the machine.
    pub fn kubectl_output(&self, args: &[&str]) -> Output {
        self.command("kubectl")
            .arg(format!("--kubeconfig={}", self.path("admin").display()))
            .args(args)
            .env("HOME", self.dir.path())
            .output()
            .unwrap()
    }

    /// Runs kubectl, which must succeed, and returns what it prints.
    pub fn kubectl(&self, args: &[&str]) -> String {
        let output = self.kubectl_output(args);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "kubectl {args:?}: {out}{err}\n{}", self.logs());
        out.into_owned()
    }

    /// Applies an object.
    pub fn apply(&self, object: &Value) {
        let path = self.path("apply.json");
        std::fs::write(&path, object.to_string()).unwrap();
        self.kubectl(&["apply", "-f", path.to_str().unwrap()]);
    }

    /// Gets an object or list.
    pub fn get(&self, args: &[&str]) -> Value {
        let args: Vec<_> = ["get"].iter().chain(args).copied().chain(["-o", "json"]).collect();
        serde_json::from_str(&self.kubectl(&args)).unwrap()
    }

    /// Asks again and again until `probe` answers.
    pub fn until<T>(&self, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = probe() {
                return answer;
            }
            assert!(Instant::now() < deadline, "waited in vain until {what}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the machine's programs have logged.
    pub fn logs(&self) -> String {
        let read = |name: &str| {
            let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
            let last: Vec<_> = text.lines().rev().take(40).collect();
            format!("--- {name}\n{}\n", last.into_iter().rev().collect::<Vec<_>>().join("\n"))
        };
        read("control-plane.log") + &read("node.log")
    }
}
