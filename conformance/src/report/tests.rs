use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::messages::{all, phrase};
use super::{Lang, grouped, html, json, junit, markdown, render, text, write_all};
use crate::check::{self, Context, Expectation, Message, Report, Verdict};
use crate::testing::{Build, pcapng};

const POD_A: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 5);
const POD_B: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 7);
const NODE_A: Ipv4Addr = Ipv4Addr::new(192, 168, 10, 100);
const NODE_B: Ipv4Addr = Ipv4Addr::new(192, 168, 10, 101);
/// A name that every format would trip over if it were not escaped.
const HOSTILE: &str = "<script>alert(1)</script>|`x`\"'&\u{1b}[31m]]>";

fn report(tunnel: bool) -> Report {
    let ping = Build::echo((POD_A, POD_B), true, 7, 1, b"0123456789abcdef");
    let mut frames = vec![(0, ping.frame())];
    if tunnel {
        frames.push((0, ping.in_vxlan(NODE_A, NODE_B, 8472).frame()));
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wire.pcapng");
    std::fs::write(&path, pcapng(&[HOSTILE], &frames, 0)).unwrap();
    let context = Context {
        title: Some(HOSTILE.to_owned()),
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        nodes: [(HOSTILE.to_owned(), vec![NODE_A, NODE_B])].into(),
        pod_names: [(POD_A, HOSTILE.to_owned())].into(),
        command: Some(format!("lab check '{HOSTILE}'")),
        ..Context::default()
    };
    check::run(&[path], Expectation::Native, &context).unwrap()
}

#[test]
fn every_phrase_exists_once_in_every_language_with_the_same_gaps() {
    let gaps = |text: &str| {
        let names: BTreeSet<String> =
            text.split('{').skip(1).map(|rest| rest.split('}').next().unwrap().to_owned()).collect();
        names
    };
    let (english, korean): (Vec<_>, Vec<_>) = (all(Lang::En).collect(), all(Lang::Ko).collect());
    let keys: BTreeSet<&str> = english.iter().map(|(key, _)| *key).collect();
    assert_eq!(keys.len(), english.len(), "a key stands twice");
    for ((key, en), (same, ko)) in english.iter().zip(&korean) {
        assert_eq!(key, same);
        assert!(!en.is_empty() && !ko.is_empty(), "{key}");
        assert_eq!(gaps(en), gaps(ko), "{key}");
    }
}

#[test]
fn every_key_that_the_code_says_has_a_phrase() {
    let sources = [
        include_str!("../check/native.rs"),
        include_str!("../check/no_loop.rs"),
        include_str!("../check/soundness.rs"),
        include_str!("../check/vxlan.rs"),
        include_str!("../check/scan.rs"),
        include_str!("html.rs"),
        include_str!("markdown.rs"),
        include_str!("text.rs"),
    ];
    let known: BTreeSet<&str> = all(Lang::En).map(|(key, _)| key).collect();
    let prefixes =
        ["why-", "note-", "loss-", "fact-", "q-", "n-", "h-", "t-", "role-", "verdict-", "summary-"];
    let mut used = 0;
    for quoted in sources.iter().flat_map(|source| source.split('"').skip(1).step_by(2)) {
        if prefixes.iter().any(|prefix| quoted.starts_with(prefix)) && !quoted.contains(' ') {
            assert!(known.contains(quoted), "{quoted} has no phrase");
            used += 1;
        }
    }
    assert!(used > 60, "the keys were not found in the sources: {used}");
    for key in include_str!("template.html").split("say.").skip(1) {
        let key: String = key.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        assert!(known.contains(key.replace('_', "-").as_str()), "say.{key} has no phrase");
    }
}

#[test]
fn what_is_filled_in_is_not_read_for_gaps() {
    let message = Message::new("why-flow-unseen").with("flow", "{flow}{count}");
    assert_eq!(
        render(Lang::En, &message),
        "The flow {flow}{count} was named, but no packet with these addresses is on the wire."
    );
    assert_eq!(render(Lang::En, &Message::new("why-flow-unseen")).matches('?').count(), 1);
    assert_eq!(phrase(Lang::Ko, "verdict-held"), "충족");
}

#[test]
fn json_says_its_version_and_every_answer() {
    let value: serde_json::Value = serde_json::from_str(&json(&report(true)).unwrap()).unwrap();
    assert_eq!(value["schema_version"], 1);
    assert_eq!(value["verdict"], "failed");
    assert_eq!(value["expectation"], "native");
    assert_eq!(value["context"]["pod_cidrs"][0], "10.244.0.0/16");
    let tunnel = &value["checks"][3];
    assert_eq!((&tunnel["id"], &tunnel["verdict"]), (&"no-encapsulation".into(), &"failed".into()));
    assert_eq!(tunnel["question"]["text"], "Do pods' packets cross the wire without encapsulation?");
    assert_eq!(tunnel["evidence"][0]["frame"], 2);
    assert_eq!(tunnel["evidence"][0]["note"]["args"]["how"], "VXLAN (VNI 7, port 8472)");
    assert_eq!(value["files"][0]["interfaces"][0]["packets"], 2);
}

#[test]
fn junit_counts_failures_and_is_xml() {
    let xml = junit(&report(true)).unwrap();
    assert!(xml.contains(r#"tests="5" skipped="0" failures="1""#), "{xml}");
    let read = quick_junit::Report::deserialize_from_str(&xml).unwrap();
    let cases: Vec<_> =
        read.test_suites[0].test_cases.iter().map(|case| case.name.as_str().to_owned()).collect();
    assert_eq!(
        cases,
        ["saw-pod-traffic", "capture-complete", "real-source-ip", "no-encapsulation", "no-node-address"]
    );
    assert!(junit(&report(false)).unwrap().contains(r#"failures="0""#));
}

#[test]
fn hostile_names_are_text_in_every_format() {
    for lang in [Lang::En, Lang::Ko] {
        let page = html(&report(true), lang).unwrap();
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;"));
        assert!(
            !page.contains("http://") && !page.contains("https://") && !page.contains("url("),
            "the page needs no network"
        );
        assert!(page.contains(&format!("<html lang=\"{lang}\">")));
        let md = markdown(&report(true), lang);
        let outside_code = md.split("``````").next().unwrap();
        assert!(
            !outside_code.contains("<script")
                && !outside_code.contains('\u{1b}')
                && outside_code.contains("\\|\\`x\\`")
        );
        assert!(!text(&report(true), lang).contains('\u{1b}'));
    }
}

#[test]
fn each_language_says_the_verdict_and_the_packets() {
    let failed = report(true);
    assert_eq!(failed.verdict, Verdict::Failed);
    let page = html(&failed, Lang::En).unwrap();
    for part in [
        "Failed",
        "VXLAN (VNI 7, port 8472)",
        "10.244.0.5",
        "192.168.10.100",
        "02 00 00 00",
        "How to reproduce",
    ] {
        assert!(page.contains(part), "{part}");
    }
    let page = html(&failed, Lang::Ko).unwrap();
    for part in ["위반", "파드 패킷이 캡슐화 없이 와이어를 지납니까?", "재현 방법"] {
        assert!(page.contains(part), "{part}");
    }
    let held = html(&report(false), Lang::En).unwrap();
    assert!(held.contains("class=\"banner held\"") && !held.contains("class=\"banner failed\""));
}

#[test]
fn terminal_text_puts_verdicts_first_and_the_sum_last() {
    let lines = text(&report(true), Lang::En);
    assert!(lines.starts_with("held          saw-pod-traffic    Did the capture"), "{lines}");
    assert!(lines.contains("\nfailed        no-encapsulation"), "{lines}");
    assert_eq!(lines.lines().last(), Some("failed (native; 2 packets in the captures)"));
}

#[test]
fn all_formats_are_written_side_by_side() {
    let directory = tempfile::tempdir().unwrap();
    let page = write_all(&report(false), &directory.path().join("a/b"), Lang::En).unwrap();
    for name in ["report.json", "junit.xml", "report.md", "index.html"] {
        assert!(page.with_file_name(name).metadata().unwrap().len() > 500, "{name}");
    }
    let blocked = directory.path().join("file");
    std::fs::write(&blocked, "").unwrap();
    let error = write_all(&report(false), &blocked.join("x"), Lang::En).unwrap_err().to_string();
    assert!(error.starts_with("cannot write "), "{error}");
}

#[test]
fn numbers_are_grouped() {
    assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    assert!("fr".parse::<Lang>().unwrap_err().to_string().contains("en, ko"));
}
