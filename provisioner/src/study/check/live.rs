//! Checks that send packets, run programs or read files.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use podwire_conformance::check as capture;
use podwire_conformance::check::{Context, Expectation, Verdict};
use podwire_conformance::dissect::{Ipv4, Net, dissect};
use podwire_conformance::read::{CaptureFile, ReadError};

use super::{Lost, Outcome};
use crate::access;
use crate::compare::run::Results;
use crate::measure::journal::Journal;
use crate::measure::summary::Summary;
use crate::study::snapshot::Snapshot;

/// The pod from which calls are made.
pub const CALLER: &str = "curl-pod";
/// How long the program in the pod may take: its own patience, and the way there and back.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The pod that was called.
    pub pod: String,
    /// Its node.
    pub node: String,
    /// It is on another node than the caller.
    pub elsewhere: bool,
    /// The TTL of its answer to a ping.
    pub ttl: Option<u8>,
    /// The answer, or why there is none.
    pub answer: Result<String, String>,
    /// The caller's own address.
    pub caller: Option<std::net::Ipv4Addr>,
}

impl Reached {
    /// There was an answer, and it is that pod's.
    pub fn answered(&self) -> bool {
        self.line("Hostname:").is_some_and(|name| name == self.pod)
    }

    /// The source address that the pod saw.
    pub fn source(&self) -> Option<String> {
        let (ip, _) = self.line("RemoteAddr:")?.rsplit_once(':')?;
        Some(ip.to_owned())
    }

    fn line(&self, key: &str) -> Option<&str> {
        self.answer.as_ref().ok()?.lines().find_map(|l| l.strip_prefix(key)).map(str::trim)
    }
}

/// Calls every web server from curl-pod.
pub async fn call_all(client: &Client, seen: &Snapshot) -> Vec<Reached> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let caller = seen.pod(CALLER);
    let calls = seen.labelled("app=webpod").map(|web| {
        let pods = &pods;
        async move {
            let (answer, ttl) = match web.ip {
                Some(ip) => {
                    let (ip, url) = (ip.to_string(), format!("http://{ip}/"));
                    let curl = ["curl", "-sS", "--max-time", "2", &url];
                    let ping = ["ping", "-n", "-c", "1", "-W", "2", &ip];
                    let (answer, echo) = futures::join!(
                        access::exec_in_pod(pods, CALLER, &curl, PATIENCE),
                        access::exec_in_pod(pods, CALLER, &ping, PATIENCE)
                    );
                    (answer, echo.ok().and_then(|said| ttl(&said)))
                }
                None => (Err("it has no address".into()), None),
            };
            Reached {
                pod: web.name.clone(),
                node: web.node.clone(),
                ttl,
                elsewhere: caller.is_some_and(|c| c.node != web.node),
                answer,
                caller: caller.and_then(|c| c.ip),
            }
        }
    });
    futures::future::join_all(calls).await
}

/// Of ping's output.
fn ttl(said: &str) -> Option<u8> {
    said.split_once("ttl=")?.1.split_whitespace().next()?.parse().ok()
}

/// Judges the calls.
pub fn reach(reached: &[Reached]) -> Outcome {
    for call in reached {
        if !call.answered() {
            let why = call.answer.as_ref().err().cloned().unwrap_or_else(|| "another pod answered".into());
            let why = why.lines().last().unwrap_or_default().to_owned();
            return Outcome::new(false, "no-answer", [("pod", call.pod.clone()), ("why", why)]);
        }
        let source = call.source().unwrap_or_default();
        if call.caller.is_none_or(|own| own.to_string() != source) {
            let own = call.caller.map_or_else(|| "-".into(), |ip| ip.to_string());
            let args = [("pod", call.pod.clone()), ("is", source), ("wanted", own)];
            return Outcome::new(false, "other-source", args);
        }
    }
    Outcome::new(!reached.is_empty(), "all-answer", [("count", reached.len().to_string())])
}

/// Judges a capture file.
pub fn capture_file(directory: &Path, file: &str, expect: Expectation, context: &Context) -> Outcome {
    let path = directory.join(file);
    let name = ("file", file.to_owned());
    if !path.is_file() {
        return Outcome::new(false, "no-file", [name]);
    }
    match capture::run(&[path], expect, context) {
        Err(error) => Outcome::new(false, "bad-capture", [name, ("why", error.to_string())]),
        Ok(report) if report.verdict == Verdict::Held => {
            Outcome::new(true, if expect == Expectation::Vxlan { "vxlan" } else { "native" }, [name])
        }
        Ok(report) => {
            let failed = report.checks.iter().find(|c| c.verdict != Verdict::Held);
            let why = failed.map_or_else(String::new, |c| c.id.to_owned());
            Outcome::new(false, "not-proven-by", [name, ("why", why), ("expect", expect.to_string())])
        }
    }
}

/// Judges whether a capture file has a packet from one address to another.
pub fn captured(directory: &Path, file: &str, from: &str, to: &str) -> Outcome {
    let path = directory.join(file);
    let name = ("file", file.to_owned());
    if !path.is_file() {
        return Outcome::new(false, "no-file", [name]);
    }
    match packets(&path, from, to) {
        Err(error) => Outcome::new(false, "bad-capture", [name, ("why", error.to_string())]),
        Ok(count) => {
            let key = if count > 0 { "captured" } else { "not-captured" };
            let args = [name, ("count", count.to_string()), ("from", from.to_owned()), ("to", to.to_owned())];
            Outcome::new(count > 0, key, args)
        }
    }
}

/// Judges whether a capture file has packets, and none with an address.
pub fn not_captured(directory: &Path, file: &str, address: &str) -> Outcome {
    let path = directory.join(file);
    let name = ("file", file.to_owned());
    if !path.is_file() {
        return Outcome::new(false, "no-file", [name]);
    }
    let of = |ip: &Ipv4<'_>| ip.source.to_string() == address || ip.destination.to_string() == address;
    let counted = count(&path, |_| true).and_then(|all| Ok((all, count(&path, of)?)));
    let address = ("address", address.to_owned());
    match counted {
        Err(error) => Outcome::new(false, "bad-capture", [name, ("why", error.to_string())]),
        // That nothing is in an empty file proves nothing.
        Ok((0, _)) => Outcome::new(false, "empty-capture", [name]),
        Ok((all, 0)) => Outcome::new(true, "address-absent", [name, address, ("count", all.to_string())]),
        Ok((_, found)) => {
            Outcome::new(false, "address-present", [name, address, ("count", found.to_string())])
        }
    }
}

/// How many IPv4 packets of a file go from one address to another.
fn packets(path: &Path, from: &str, to: &str) -> Result<u64, ReadError> {
    count(path, |ip| ip.source.to_string() == from && ip.destination.to_string() == to)
}

/// How many IPv4 packets of a file are wanted.
fn count(path: &Path, wanted: impl Fn(&Ipv4<'_>) -> bool) -> Result<u64, ReadError> {
    let file = CaptureFile::open(path)?;
    let mut reader = file.reader()?;
    let mut count = 0;
    while let Some(packet) = reader.next_packet()? {
        if let Net::Ipv4(ip) = dissect(packet.link, packet.data).net
            && wanted(&ip)
        {
            count += 1;
        }
    }
    Ok(count)
}

/// Judges whether a capture shows a loop, or proves that there is none.
pub fn loops(directory: &Path, file: &str, found: bool) -> Outcome {
    let path = directory.join(file);
    let name = ("file", file.to_owned());
    if !path.is_file() {
        return Outcome::new(false, "no-file", [name]);
    }
    match capture::run(&[path], Expectation::NoLoop, &Context::default()) {
        Err(error) => Outcome::new(false, "bad-capture", [name, ("why", error.to_string())]),
        Ok(report) => {
            let key = match report.verdict {
                Verdict::Held => "no-loop",
                Verdict::Failed => "loop",
                _ => "loop-unknown",
            };
            Outcome::new(key == if found { "loop" } else { "no-loop" }, key, [name])
        }
    }
}

/// Fetches a page from curl-pod.
pub async fn fetch(client: &Client, url: &str) -> Outcome {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let curl = ["curl", "-sS", "--fail", "--max-time", "2", "-o", "/dev/null", url];
    let url = ("url", url.to_owned());
    match access::exec_in_pod(&pods, CALLER, &curl, PATIENCE).await {
        Ok(_) => Outcome::new(true, "fetched", [url]),
        Err(why) => {
            let why = why.lines().last().unwrap_or_default().to_owned();
            Outcome::new(false, "not-fetched", [url, ("why", why)])
        }
    }
}

/// Judges a measurement; `under_way` is the journal that is being written now.
pub fn measured(directory: &Path, file: &str, lost: Lost, under_way: Option<&Path>) -> Outcome {
    let path = directory.join(format!("{file}.jsonl"));
    let name = ("file", format!("{file}.jsonl"));
    if under_way == Some(path.as_path()) {
        return Outcome::new(false, "still-measuring", [name]);
    }
    if !path.is_file() {
        return Outcome::new(false, "no-file", [name]);
    }
    match Journal::read(&path) {
        Err(error) => Outcome::new(false, "bad-journal", [name, ("why", error.to_string())]),
        Ok(journal) => {
            let count = Summary::of(file, &journal).count;
            let held = count.answered > 0 && (count.lost > 0) == (lost == Lost::Some);
            let args = [name, ("answered", count.answered.to_string()), ("lost", count.lost.to_string())];
            Outcome::new(held, "measured", args)
        }
    }
}

/// Judges whether a measurement is under way.
pub fn measuring(directory: &Path, file: &str, under_way: Option<&Path>) -> Outcome {
    let wanted = directory.join(format!("{file}.jsonl"));
    let held = under_way == Some(wanted.as_path());
    Outcome::new(held, if held { "measuring" } else { "not-measuring" }, [("file", format!("{file}.jsonl"))])
}

/// Judges results of `lab compare`.
pub fn compared(directory: &Path, file: &str) -> Outcome {
    let path = directory.join(format!("{file}.json"));
    let name = ("file", format!("{file}.json"));
    if !path.is_file() {
        return Outcome::new(false, "no-file", [name]);
    }
    match Results::read(&path) {
        Err(failure) => Outcome::new(false, "bad-results", [name, ("why", failure.cause)]),
        Ok(results) => {
            let modes = results.modes.iter().map(|measured| measured.mode.to_string()).collect::<Vec<_>>();
            let args = [name, ("modes", modes.join(", ")), ("rounds", results.rounds.to_string())];
            Outcome::new(results.rounds > 0, "compared", args)
        }
    }
}

/// Judges a picture.
pub fn picture(directory: &Path, file: &str) -> Outcome {
    let text = std::fs::read_to_string(directory.join(file)).unwrap_or_default();
    let held = text.starts_with("<svg ") && text.trim_end().ends_with("</svg>");
    Outcome::new(held, if held { "picture" } else { "no-file" }, [("file", file.to_owned())])
}

/// What answers a question: nothing was said, the right thing, or something else.
pub fn answer(given: Option<&str>, right: Option<&str>) -> Outcome {
    match (given, right) {
        (_, None) => Outcome::new(false, "not-measurable", []),
        (None, _) => Outcome::new(false, "not-answered", []),
        (Some(given), Some(right)) => {
            let held = same_answer(given, right);
            Outcome::new(held, if held { "right" } else { "wrong" }, [("is", given.to_owned())])
        }
    }
}

/// Spaces, commas and brackets around it do not make an answer wrong.
fn same_answer(given: &str, right: &str) -> bool {
    let words = |text: &str| -> Vec<String> {
        text.split(|c: char| c.is_whitespace() || ",[]\"'".contains(c))
            .filter(|w| !w.is_empty())
            .map(str::to_lowercase)
            .collect()
    };
    let (given, right) = (words(given), words(right));
    !given.is_empty() && given == right
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reached(answer: Result<&str, &str>) -> Reached {
        Reached {
            pod: "web".into(),
            node: "b".into(),
            elsewhere: true,
            ttl: ttl("64 bytes from 10.0.0.1: icmp_seq=1 ttl=62 time=0.1 ms"),
            answer: answer.map(str::to_owned).map_err(str::to_owned),
            caller: "10.244.0.2".parse().ok(),
        }
    }

    #[test]
    fn an_answer_from_another_pod_or_of_another_source_is_told() {
        let good = reached(Ok("Hostname: web\nRemoteAddr: 10.244.0.2:4711\n"));
        assert!(reach(std::slice::from_ref(&good)).held);
        assert!(!reach(&[]).held, "nobody was called");
        let others = [
            (reached(Ok("Hostname: other\nRemoteAddr: 10.244.0.2:1\n")), "no-answer"),
            (reached(Err("exit 28: timed out")), "no-answer"),
            (reached(Ok("Hostname: web\nRemoteAddr: 192.168.10.100:1\n")), "other-source"),
        ];
        for (bad, key) in others {
            let outcome = reach(&[good.clone(), bad]);
            assert!(!outcome.held && outcome.said.key == key, "{outcome:?}");
        }
    }

    #[test]
    fn packets_of_a_capture_are_counted_by_their_addresses() {
        use podwire_conformance::testing::{Build, pcapng};
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = ("10.0.0.1", "10.0.0.2");
        let ends = (a.parse().unwrap(), b.parse().unwrap());
        let frame = Build::echo(ends, true, 1, 1, b"x").frame();
        std::fs::write(dir.path().join("c.pcapng"), pcapng(&["n:eth1"], &[(0, frame)], 0)).unwrap();
        std::fs::write(dir.path().join("e.pcapng"), pcapng(&["n:eth1"], &[], 0)).unwrap();
        let there = |from, to| captured(dir.path(), "c.pcapng", from, to).held;
        assert!(there(a, b) && !there(b, a) && !there(a, "10.0.0.3"));
        let absent = |file, address| not_captured(dir.path(), file, address).held;
        assert!(absent("c.pcapng", "10.0.0.3") && !absent("c.pcapng", a) && !absent("c.pcapng", b));
        assert!(!absent("e.pcapng", a), "nothing was seen");
    }

    #[test]
    fn the_ttl_is_read_from_ping() {
        assert_eq!(reached(Ok("")).ttl, Some(62));
        assert_eq!(ttl("1 packets transmitted, 0 received"), None);
    }

    #[test]
    fn answers_are_compared_as_a_reader_means_them() {
        assert!(answer(Some(" [\"10.0.0.0/24\"] "), Some("10.0.0.0/24")).held);
        assert!(answer(Some("10.0.0.0/24 10.1.0.0/24"), Some("10.0.0.0/24, 10.1.0.0/24")).held);
        for given in [None, Some(""), Some("10.0.0.0/25")] {
            assert!(!answer(given, Some("10.0.0.0/24")).held, "{given:?}");
        }
        assert!(!answer(Some("x"), None).held);
    }

    #[test]
    fn files_that_are_not_there_or_are_nothing_hold_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        assert!(!picture(path, "p.svg").held && !measured(path, "m", Lost::None, None).held);
        std::fs::write(path.join("p.svg"), "no picture").unwrap();
        std::fs::write(path.join("m.jsonl"), "no journal").unwrap();
        std::fs::write(path.join("c.pcapng"), "no capture").unwrap();
        assert!(!picture(path, "p.svg").held && !measured(path, "m", Lost::None, None).held);
        assert!(!capture_file(path, "c.pcapng", Expectation::Native, &Context::default()).held);
        assert!(!captured(path, "c.pcapng", "10.0.0.1", "10.0.0.2").held);
        std::fs::write(path.join("r.json"), "{}").unwrap();
        assert!(!compared(path, "r").held && !compared(path, "none").held);
        assert!(!captured(path, "none.pcapng", "10.0.0.1", "10.0.0.2").held);
        assert!(!loops(path, "c.pcapng", true).held && !loops(path, "none.pcapng", false).held);
    }

    #[test]
    fn a_measurement_is_judged_when_it_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.jsonl");
        let header = r#"{"podwireMeasure":1,"lab":"l","from":"c","to":"w","rate":10,"began":""}"#;
        let good = r#"{"at":1,"pod":"a","ip":"10.0.0.1","result":"answered"}"#;
        let bad = r#"{"at":2,"pod":"a","ip":"10.0.0.1","result":"lost","why":"x"}"#;
        let judge = |lines: &[&str], lost, under_way| {
            std::fs::write(&path, [&[header], lines].concat().join("\n") + "\n").unwrap();
            measured(dir.path(), "m", lost, under_way).held
        };
        assert!(judge(&[good], Lost::None, None) && !judge(&[good], Lost::Some, None));
        assert!(judge(&[good, bad], Lost::Some, None) && !judge(&[good, bad], Lost::None, None));
        assert!(!judge(&[], Lost::None, None) && !judge(&[bad], Lost::Some, None), "nobody was ever reached");
        assert!(!judge(&[good], Lost::None, Some(&path)));
        assert!(measuring(dir.path(), "m", Some(&path)).held && !measuring(dir.path(), "m", None).held);
    }
}
