//! `lab compare`, really: two labs, captures, load, and nothing left.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Lab, bin, ok};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn compare(name: &str) -> Command {
    let mut command = Command::new(bin("lab"));
    command.args(["compare", "native", "vxlan", "--name", name]).env_remove("PODWIRE_LAB_NAME");
    command
}

/// No namespace of a lab whose name begins so.
fn assert_gone(name: &str) {
    let namespaces = std::fs::read_dir("/run/netns").map(|dir| {
        dir.filter_map(Result::ok).map(|e| e.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    });
    let left: Vec<_> = namespaces.unwrap_or_default().into_iter().filter(|n| n.starts_with(name)).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

/// How many packets of a file the filter finds, by an independent reader.
fn packets(file: &Path, filter: &str) -> usize {
    let read = ["-n", "-d", "udp.port==8472,vxlan", "-Y", filter, "-r"];
    ok(Command::new("tshark").args(read).arg(file)).lines().count()
}

#[test]
fn both_modes_are_proven_and_measured() {
    let name = Lab::fresh_name();
    let dir = tempfile::tempdir().unwrap();
    let saved = dir.path().join("result.json");
    let mut command = compare(&name);
    command.args(["--rounds", "2", "--for", "50ms", "-o", "json", "--keep"]).arg(dir.path());
    command.arg("--save").arg(&saved);
    let text = ok(&mut command);
    assert_gone(&name);
    // Nobody's lab is taken away for it.
    let other = format!("{name}-native");
    let lab = |verb: &str, words: &[&str]| ok(Command::new(bin("lab")).arg(verb).args(words));
    lab("up", &["native-routing", "--name", &other]);
    let refused = common::run(&mut compare(&name));
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("there already") && said.contains(&format!("lab down {other}")), "{said}");
    lab("down", &[&other]);
    assert_gone(&name);
    let result: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(result, serde_json::from_str::<Value>(&std::fs::read_to_string(&saved).unwrap()).unwrap());
    let modes = result["modes"].as_array().unwrap();
    assert_eq!(modes.iter().map(|m| m["mode"].as_str().unwrap()).collect::<Vec<_>>(), ["native", "vxlan"]);
    for mode in modes {
        let rows = mode["spreads"].as_array().unwrap();
        assert_eq!(rows.len(), 2 * 5, "pods and nodes, five quantities: {rows:?}");
        for row in rows {
            let [least, median, most] = ["least", "median", "most"].map(|key| row[key].as_f64().unwrap());
            // A tick of CPU time is long beside a short stream.
            assert!(median > 0.0 || row["quantity"] == "cpu-per-gib", "{row}");
            assert!(least <= median && median <= most, "{row}");
        }
    }
    let number = |mode: usize, key: &str| modes[mode][key].as_u64().unwrap();
    assert_eq!([number(0, "mtu"), number(1, "mtu")], [1500, 1450]);
    let headers = |mode: usize| modes[mode]["headers"]["all"].as_u64().unwrap();
    assert_eq!(headers(1) - headers(0), 50, "an Ethernet, an IP, a UDP and a VXLAN header");
    // The captures are what they prove.
    let (native, vxlan) = (dir.path().join("native.pcapng"), dir.path().join("vxlan.pcapng"));
    assert!(packets(&native, "tcp && ip.addr == 10.244.0.0/16") > 0);
    assert_eq!(packets(&native, "vxlan"), 0);
    assert!(packets(&vxlan, "vxlan && tcp && ip.addr == 10.244.0.0/16") > 0);
    assert_eq!(packets(&vxlan, "ip.addr == 10.244.0.0/16 && !vxlan"), 0);
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    let name = Lab::fresh_name();
    let mut command = compare(&name);
    let mut child = command.args(["--rounds", "1000"]).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = Vec::new();
    for line in lines.map_while(Result::ok) {
        if line.starts_with("round 1 ") && said.iter().all(|l: &String| !l.starts_with("round")) {
            kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
        }
        said.push(line);
    }
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said:?}");
    assert!(said.iter().any(|line| line.starts_with("round 1 ")), "{said:?}");
    assert_gone(&name);
}
