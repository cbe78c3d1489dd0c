//! What agents drop while a probe is under way: `podwire monitor` on every Kubernetes node.

use std::io::{BufRead, BufReader, Read};
use std::net::Ipv4Addr;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

use super::evidence::Drop;
use super::sighting::Ends;
use crate::access::{environment, node_init};
use crate::netns::enter;
use crate::state::{LabState, Running};

/// How long an agent may take to say that it listens.
const PATIENCE: Duration = Duration::from_secs(5);
/// The monitor ends when nobody holds the other end of its input any more, however that came about.
const SCRIPT: &str = "podwire -o json monitor & read -r _; kill $!";

/// One node's monitor.
pub(super) struct Monitor {
    node: String,
    child: Child,
    input: Option<ChildStdin>,
    output: ChildStdout,
    errors: mpsc::Receiver<String>,
}

impl Monitor {
    /// Returns once the agent listens; the error says why it does not.
    pub(super) fn begin(state: &LabState, running: &Running, node: &str) -> Result<Self, String> {
        let init = node_init(state, running, node).map_err(|e| e.to_string())?;
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            enter::spawn(init, &environment(running, node), command).map_err(|e| e.to_string())?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(input), Some(output), Some(errors)) = pipes else {
            return Err("it has no pipes".into());
        };
        let errors = lines(errors);
        let monitor = Self { node: node.to_owned(), child, input: Some(input), output, errors };
        match monitor.errors.recv_timeout(PATIENCE) {
            Ok(line) if line.contains("listening") => Ok(monitor),
            Ok(line) => Err(line),
            Err(_) => Err("its agent does not say that it listens".into()),
        }
    }

    /// Ends it; what was dropped since it began, and what the agent could not tell.
    pub(super) fn end(mut self) -> (Vec<Drop>, Vec<String>) {
        std::mem::drop(self.input.take());
        let mut text = String::new();
        // What is no text is no event.
        let _ = self.output.read_to_string(&mut text);
        let drops = text.lines().filter_map(|line| parse(&self.node, line)).collect();
        let trouble = self.errors.try_iter().map(|line| format!("{}: {line}", self.node)).collect();
        (drops, trouble)
    }
}

impl std::ops::Drop for Monitor {
    fn drop(&mut self) {
        std::mem::drop(self.input.take());
        // It ends by itself; waiting only takes it off the list of processes.
        let _ = self.child.wait();
    }
}

/// Lines as they come, read by a thread that ends with them.
fn lines(errors: ChildStderr) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(errors).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Reads one flow of the agent.
fn parse(node: &str, line: &str) -> Option<Drop> {
    let event: Value = serde_json::from_str(line).ok()?;
    let text = |key: &str| event[key].as_str().map(str::to_owned);
    let flow = &event["flow"];
    let address = |key: &str| flow[key].as_str()?.parse::<Ipv4Addr>().ok();
    let l4 = flow["l4"].as_object()?;
    let (name, fields) = l4.iter().next()?;
    let port = |key: &str| fields[key].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or_default();
    let protocol = match name.as_str() {
        "tcp" => 6,
        "udp" => 17,
        "icmp" => 1,
        _ => u8::try_from(fields["protocol"].as_u64()?).ok()?,
    };
    Some(Drop {
        node: node.to_owned(),
        reason: text("reason")?,
        point: text("point")?,
        ends: Ends {
            protocol,
            source: (address("source")?, port("source")),
            destination: (address("destination")?, port("destination")),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_read_as_agents_tell_them() {
        let line = r#"{"time":"2026-01-01T00:00:00Z","point":"from-endpoint","reason":"FIB lookup failed","ifindex":6,"flow":{"source":"172.20.0.3","destination":"172.20.9.9","ttl":64,"l4":{"tcp":{"source":20001,"destination":80,"flags":2}}},"verdict":"DROPPED"}"#;
        let drop = parse("k8s-ctr", line).unwrap();
        assert_eq!((drop.reason.as_str(), drop.point.as_str()), ("FIB lookup failed", "from-endpoint"));
        assert_eq!(drop.ends.to_string(), "172.20.0.3:20001 -> 172.20.9.9:80");
        let ping = line.replace(
            r#"{"tcp":{"source":20001,"destination":80,"flags":2}}"#,
            r#"{"icmp":{"kind":8,"code":0}}"#,
        );
        assert_eq!(parse("k8s-ctr", &ping).unwrap().ends.to_string(), "172.20.0.3 -> 172.20.9.9");
        assert_eq!(parse("k8s-ctr", r#"{"reason":"Unsupported L3 protocol","flow":null}"#), None);
        assert_eq!(parse("k8s-ctr", "no JSON"), None);
    }
}
