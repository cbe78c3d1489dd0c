//! Which address of a pod is seen where, in a whole lab and with a real kubectl, as the course's third week shows it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use common::{Lab, bin, eventually, ok, run};

const ROUTER: &str = "10.10.1.200";
const PORT: &str = "9000";

/// Greets each client with the address that it sees, then says again what the client says.
const ECHO: &str = r"
import socketserver
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write((self.client_address[0] + '\n').encode())
        for line in self.rfile:
            self.wfile.write(line)
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(('', 9000), Echo).serve_forever()
";

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // What has ended needs no ending.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The echo server on the router.
fn echo_server(lab: &Lab) -> Running {
    let child = lab.on("router", &["python3", "-c", ECHO]).stdin(Stdio::null()).spawn().unwrap();
    let server = Running(child);
    eventually("the echo server listens", || {
        let out = run(&mut lab.on("router", &["nc", "-z", "127.0.0.1", PORT]));
        if out.status.success() { Ok(()) } else { Err("nobody listens".to_owned()) }
    });
    server
}

/// One connection of curl-pod to the echo server, held open.
struct Talk {
    _process: Running,
    input: ChildStdin,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    /// Whom the server sees.
    seen: String,
}

impl Talk {
    fn open(lab: &Lab) -> Self {
        let mut child = lab
            .kubectl(&["exec", "-i", "curl-pod", "--", "nc", ROUTER, PORT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let process = Running(child);
        let seen = lines.next().expect("the server greets").unwrap();
        Self { _process: process, input, lines, seen }
    }

    fn say(&mut self, word: &str) {
        writeln!(self.input, "{word}").unwrap();
        assert_eq!(self.lines.next().expect("the server answers").unwrap(), word);
    }
}

/// Whom the router sees when curl-pod connects.
fn seen(lab: &Lab) -> String {
    Talk::open(lab).seen.clone()
}

fn address(lab: &Lab) -> String {
    lab.get(&["get", "pod", "curl-pod", "-o", "jsonpath={.status.podIP}"])
}

fn restart_agents(lab: &Lab) {
    // kubectl refuses a second restart within a second.
    eventually("kubectl restarts the agents", || {
        let out = run(&mut lab.kubectl(&["-n", "kube-system", "rollout", "restart", "ds/podwire"]));
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });
    ok(&mut lab.kubectl(&["-n", "kube-system", "rollout", "status", "ds/podwire", "--timeout=60s"]));
    for node in ["k8s-ctr", "k8s-w1"] {
        status(lab, node);
    }
}

/// `podwire status` of an agent that is ready.
fn status(lab: &Lab, node: &str) -> String {
    eventually("the agent is ready", || {
        let out = run(&mut lab.on(node, &["podwire", "status"]));
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        if out.status.success() { Ok(text) } else { Err(text) }
    })
}

fn upgrade(lab: &Lab, sets: &[&str]) {
    let mut command = Command::new(bin("lab"));
    command.args(["upgrade", &lab.name]);
    for set in sets {
        command.args(["--set", set]);
    }
    ok(&mut command);
    restart_agents(lab);
}

/// Whom a webpod on the other node sees.
fn remote_addr(lab: &Lab) -> String {
    let (_, ip, _) = lab.pods("app=webpod").into_iter().find(|p| p.2 == "k8s-w1").unwrap();
    let page = ok(&mut lab.in_curl_pod(&["curl", "-sS", "--max-time", "10", &format!("http://{ip}/")]));
    let line = page.lines().find_map(|l| l.strip_prefix("RemoteAddr: ")).unwrap();
    line.rsplit_once(':').unwrap().0.to_owned()
}

#[test]
fn the_router_sees_the_node_and_pods_see_the_pod_and_connections_survive_a_restart() {
    let lab = Lab::up("native-routing", &[]);
    let _server = echo_server(&lab);
    let pod = address(&lab);
    let page = ok(&mut lab.in_curl_pod(&["curl", "-sS", "--max-time", "10", &format!("http://{ROUTER}/")]));
    assert!(page.contains("<h1>Web Server : router</h1>"), "{page}");
    ok(&mut lab.in_curl_pod(&["ping", "-c1", "-W5", ROUTER]));
    assert_eq!(remote_addr(&lab), pod);
    let mut talk = Talk::open(&lab);
    assert_eq!(talk.seen, "192.168.10.100");
    talk.say("before");
    let listed = |what: &str| ok(&mut lab.on("k8s-ctr", &["podwire", "bpf", what, "list"]));
    let line = |text: &str| {
        let end = format!("{ROUTER}:{PORT}");
        text.lines().find(|line| line.contains(&pod) && line.contains(&end)).map(str::to_owned)
    };
    let nat = line(&listed("nat")).expect("the connection is translated");
    let tracked = line(&listed("ct")).expect("the connection is tracked");
    assert!(nat.contains("192.168.10.100:") && tracked.contains("established"), "{nat}\n{tracked}");
    restart_agents(&lab);
    talk.say("after");
    assert_eq!(line(&listed("nat")).unwrap(), nat, "the same port of the node stands in for the pod");
    let json = ok(&mut lab.on("k8s-ctr", &["podwire", "-o", "json", "bpf", "nat", "list"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json.as_array().unwrap().iter().any(|row| row["translated"] == true), "{json}");
    let status = status(&lab, "k8s-ctr");
    assert!(status.contains("eth1 192.168.10.100"), "{status}");
    assert_eq!(listed("ipmasq").lines().count(), 1, "no exceptions unless they are asked for");
}

#[test]
fn listed_networks_see_the_pod_once_the_router_knows_the_way_back() {
    let lab = Lab::up("native-routing", &[]);
    let _server = echo_server(&lab);
    let pod = address(&lab);
    let config = |text: &str| {
        let text = text.replace('\n', "\n    ");
        lab.apply(&format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name}\ndata:\n  config: |\n    {text}\n",
            name = "{name: ip-masq-agent, namespace: kube-system}",
        ));
    };
    let list = || ok(&mut lab.on("k8s-ctr", &["podwire", "bpf", "ipmasq", "list"]));
    let wait_for = |what: &str, holds: &dyn Fn(&str) -> bool| {
        eventually(what, || {
            let list = list();
            if holds(&list) { Ok(()) } else { Err(list) }
        });
    };
    upgrade(
        &lab,
        &["ipMasqAgent.enabled=true", "ipMasqAgent.config.nonMasqueradeCIDRs={10.10.1.0/24,10.10.2.0/24}"],
    );
    assert_eq!(
        lab.get(&["-n", "kube-system", "get", "cm", "ip-masq-agent", "-o", "jsonpath={.data.config}"]),
        r#"{"nonMasqueradeCIDRs":["10.10.1.0/24","10.10.2.0/24"]}"#
    );
    wait_for("the list is that of the ConfigMap", &|list| {
        list.lines().skip(1).eq(["10.10.1.0/24", "10.10.2.0/24", "169.254.0.0/16"])
    });
    // The router sends its answer out by its default route, if it has one: it does not come back.
    let hangs = run(&mut lab.in_curl_pod(&["curl", "-sS", "--max-time", "2", &format!("http://{ROUTER}/")]));
    assert!(!hangs.status.success(), "there is no way back: {}", String::from_utf8_lossy(&hangs.stdout));
    for (cidr, node) in [("10.244.0.0/24", "192.168.10.100"), ("10.244.1.0/24", "192.168.10.101")] {
        ok(&mut lab.on("router", &["ip", "route", "add", cidr, "via", node]));
    }
    assert_eq!(seen(&lab), pod);
    // A change of the list is acted on at once; a mistake leaves the list as it was, and is told.
    config("nonMasqueradeCIDRs:\n- 10.10.2.0/24\nmasqLinkLocal: true");
    wait_for("the list changes", &|list| list.lines().skip(1).eq(["10.10.2.0/24"]));
    assert_eq!(seen(&lab), "192.168.10.100");
    config("nonMasqueradeCIDRs: [10.10.2.0]");
    eventually("the mistake is told", || {
        let out = run(&mut lab.on("k8s-ctr", &["podwire", "status"]));
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        if text.contains("\"10.10.2.0\" is no CIDR") { Ok(()) } else { Err(text) }
    });
    assert_eq!(list().lines().skip(1).collect::<Vec<_>>(), ["10.10.2.0/24"]);
    // Without the ConfigMap the defaults hold, and they have all private networks.
    ok(&mut lab.kubectl(&["-n", "kube-system", "delete", "cm", "ip-masq-agent"]));
    wait_for("the defaults hold", &|list| list.contains("10.0.0.0/8") && list.lines().count() == 13);
    assert_eq!(seen(&lab), pod);
}

#[test]
fn a_native_cidr_that_was_left_behind_masquerades_pods_to_each_other() {
    let lab = Lab::up("native-routing", &[]);
    assert_eq!(remote_addr(&lab), address(&lab));
    // `lab upgrade` refuses it. Who writes the ConfigMap by hand is not refused.
    let mut command = Command::new(bin("lab"));
    let refused = run(command.args(["upgrade", &lab.name, "--set", "ipv4NativeRoutingCIDR=172.20.0.0/16"]));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("it misses 10.244.0.0/16"), "{said}");
    let native = |cidr: &str| {
        let patch = format!(r#"{{"data":{{"ipv4-native-routing-cidr":"{cidr}"}}}}"#);
        ok(&mut lab.kubectl(&[
            "-n",
            "kube-system",
            "patch",
            "cm",
            "podwire-config",
            "--type=merge",
            "-p",
            &patch,
        ]));
        restart_agents(&lab);
    };
    native("172.20.0.0/16");
    assert_eq!(remote_addr(&lab), "192.168.10.100");
    native("10.244.0.0/16");
    assert_eq!(remote_addr(&lab), address(&lab));
    upgrade(&lab, &["enableIPv4Masquerade=false"]);
    let status = status(&lab, "k8s-ctr");
    assert!(status.lines().any(|l| l.contains("masquerade") && l.ends_with("off")), "{status}");
    // The pod's own address leaves now, and the router has no way back.
    let hangs = run(&mut lab.in_curl_pod(&["curl", "-sS", "--max-time", "2", &format!("http://{ROUTER}/")]));
    assert!(!hangs.status.success());
}
