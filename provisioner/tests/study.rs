//! The course: every exercise played on real labs, malformed ones refused, and a learner who stops, errs and comes back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{Lab, bin, eventually, ok, run};
use serde_json::Value;

fn study(lab: &str, args: &[&str]) -> Command {
    let mut command = Command::new(bin("lab"));
    command.args(["study", "--lab", lab]).args(args).env_remove("LANG").env_remove("LC_ALL");
    command
}

/// Takes a learner's lab down however the test ends.
struct Gone(String);

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = Command::new(bin("lab")).args(["down", &self.0]).output();
    }
}

fn lab() -> Gone {
    Gone(Lab::fresh_name())
}

/// Runs with lines typed on standard input.
fn typing(command: &mut Command, lines: &str) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn exists(lab: &str) -> bool {
    Path::new("/run/podwire-lab").join(lab).exists()
}

/// In English, exercise by exercise.
fn proven(exercise: &str) {
    let lab = lab();
    let output = run(&mut study(&lab.0, &[exercise, "--auto", "-o", "json"]));
    let text = out(&output);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    // The transcript comes first; the data is the last thing that is printed but for the sum.
    let data = &text[text.find("\n[\n").unwrap()..=text.rfind("\n]").unwrap() + 1];
    let proofs: Value = serde_json::from_str(data).unwrap();
    let proofs = proofs.as_array().unwrap();
    assert!(proofs.iter().any(|p| p["exercise"] == exercise), "{data}");
    for proof in proofs {
        assert_eq!(proof["faults"], Value::Array(vec![]), "{proof}");
        let steps = proof["steps"].as_array().unwrap();
        assert!(!steps.is_empty());
        for check in steps.iter().flat_map(|s| s["checks"].as_array().unwrap()) {
            assert!(check["failed_before"] == true && check["held_after"] == true, "{check}");
        }
    }
    assert!(!exists(&lab.0), "the lab is gone");
}

#[test]
fn kubernetes_ipam() {
    proven("3/ipam-kubernetes");
}

#[test]
fn native_routing() {
    proven("3/pod-to-pod-native");
}

/// With the migration that has an outage before it: both are drawn in one picture.
#[test]
fn the_safe_migration() {
    proven("3/migration-safe");
}

#[test]
fn a_forgotten_restart() {
    proven("3/fault-forgotten-restart");
}

#[test]
fn a_stale_node_network() {
    proven("3/fault-stale-nodenetwork");
}

#[test]
fn an_exhausted_pool() {
    proven("3/fault-exhausted-pool");
}

#[test]
fn an_overlapping_cidr() {
    proven("3/fault-overlapping-cidr");
}

#[test]
fn a_native_cidr_left_behind() {
    proven("3/fault-native-cidr");
}

#[test]
fn masquerade() {
    proven("3/masquerade");
}

#[test]
fn exceptions_from_masquerade() {
    proven("3/masquerade-exceptions");
}

#[test]
fn services() {
    proven("3/services");
}

#[test]
fn names_of_services() {
    proven("3/dns");
}

#[test]
fn across_a_router() {
    proven("4/cross-subnet");
}

#[test]
fn the_overlay() {
    proven("4/vxlan");
}

#[test]
fn native_and_overlay_compared() {
    proven("4/compare");
}

#[test]
fn a_loop() {
    proven("4/loop");
}

#[test]
fn no_way_back() {
    proven("4/fault-one-way");
}

#[test]
fn every_exercise_has_its_test_here() {
    let list: Value = serde_json::from_str(&ok(&mut study("none", &["-o", "json"]))).unwrap();
    let this = include_str!("study.rs");
    for row in list.as_array().unwrap() {
        let id = row["exercise"].as_str().unwrap();
        // The migration with its outage is played before the safe one.
        assert!(id == "3/ipam-migration" || this.contains(&format!("proven(\"{id}\")")), "{id}");
    }
}

const SOUND: &str = r#"
minutes = 1
lab = "native-routing"
[title]
en = "Title"
ko = "제목"
[intro]
en = "Intro."
ko = "소개."
[done]
en = "Done."
ko = "끝."
[[step]]
id = "one"
commands = ["kubectl get nodes -o wide"]
[step.title]
en = "One"
ko = "하나"
[step.text]
en = """
Look at {node.k8s-w1.ip}.
Type `kubectl`.
"""
ko = """
{node.k8s-w1.ip}을 보고
`kubectl`을 입력하세요.
"""
[[step.hints]]
en = "Hint."
ko = "힌트."
[[step.check]]
[step.check.answer]
is = "{node.k8s-w1.ip}"
[step.check.answer.question]
en = "Which?"
ko = "무엇?"
"#;

const WEEK: &str = "exercises = [\"a\"]\n[title]\nen = \"Week\"\nko = \"주\"\n";

fn course(exercise: &str, week: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("1")).unwrap();
    std::fs::write(dir.path().join("1/week.toml"), week).unwrap();
    std::fs::write(dir.path().join("1/a.toml"), exercise).unwrap();
    dir
}

fn lint(dir: &Path) -> Output {
    run(&mut study("none", &["--lint", "--course", dir.to_str().unwrap()]))
}

/// What is said of a course that must be refused.
fn refused(dir: &Path) -> String {
    let output = lint(dir);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    said
}

#[test]
fn malformed_exercises_are_refused_with_file_and_line() {
    let sound = course(SOUND, WEEK);
    assert!(lint(sound.path()).status.success());
    let line_of = |text: &str, what: &str| text[..text.find(what).unwrap()].matches('\n').count() + 1;
    // What is replaced by what, the text on whose line the error is, and words of the error.
    for (from, to, at, words) in [
        ("[step.check.answer", "[step.check.anwser", "[step.check.anwser]", "unknown variant"),
        ("ko = \"힌트.\"\n", "", "[[step.hints]]", "missing field `ko`"),
        ("ko = \"힌트.\"", "ko = \"Hint.\"", "ko = \"Hint.\"", "no Korean in it"),
        (
            "is = \"{node.k8s-w1.ip}\"",
            "is = \"{node.k8s-w1.iq}\"",
            "is = \"{node.k8s-w1.iq}\"",
            "no fact that can be measured",
        ),
        ("is = \"{node.k8s-w1.ip}\"", "is = \"yes\"", "is = \"yes\"", "an answer is measured"),
        (
            "Type `kubectl`.",
            "Type `kubectl` at 10.9.8.7.",
            "Type `kubectl` at",
            "10.9.8.7 is stated but not measured",
        ),
        ("{node.k8s-w1.ip}을 보고", "주소를 보고", "ko = \"\"\"\n주소를", "states other facts"),
        ("`kubectl`을 입력", "`lab`을 입력", "ko = \"\"\"\n{node", "other words in backquotes"),
        ("`kubectl`을 입력하세요.", "`kubectl`을\n\n입력하세요.", "ko = \"\"\"\n{node", "other paragraphs"),
        (
            "lab = \"native-routing\"",
            "lab = \"native-rooting\"",
            "lab = \"native-rooting\"",
            "native-routing",
        ),
        ("minutes = 1", "minutes = 1\nafter = [\"a\"]", "after = ", "circle: 1/a after 1/a"),
        ("minutes = 1", "minutes = 1\nafter = [\"b\"]", "after = ", "there is no such exercise"),
        ("minutes = 1", "minutes = \"soon\"", "minutes = \"soon\"", "invalid type"),
        ("minutes = 1", "minutes = 1\nhours = 2", "hours = 2", "unknown field"),
        ("commands = [\"kubectl get nodes -o wide\"]", "commands = []", "id = \"one\"", "has no command"),
        ("id = \"one\"", "id = \"one", "id = \"one", "see docs/course.md"),
        ("en = \"One\"", &format!("en = \"{}\"", "One ".repeat(30)), "en = \"One One", "shorten the title"),
        ("Look at", &format!("    {}\nLook at", "x".repeat(90)), "    xxx", "takes 94 columns of 80"),
    ] {
        assert!(SOUND.contains(from), "{from}");
        let text = SOUND.replace(from, to);
        let dir = course(&text, WEEK);
        let said = refused(dir.path());
        let place = format!("{}/1/a.toml:{}: ", dir.path().display(), line_of(&text, at));
        assert!(said.lines().any(|l| l.contains(&place) && l.contains(words)), "{place}{words}\n{said}");
    }
    // Two checks in one.
    let text = SOUND.replace("[[step.check]]\n", "[[step.check]]\nreach = {}\n");
    let said = refused(course(&text, WEEK).path());
    assert!(said.contains("write a [[step.check]] for each"), "{said}");
    // The week's own file.
    for (week, line, words) in [
        (WEEK.replace("[\"a\"]", "[\"a\", \"b\"]"), 1, "there is no file"),
        (WEEK.replace("[\"a\"]", "[]"), 1, "does not list exercise \"a\""),
        (WEEK.replace("ko = ", "kr = "), 4, "unknown field `kr`"),
    ] {
        let said = refused(course(SOUND, &week).path());
        assert!(said.contains(&format!(".toml:{line}: ")) && said.contains(words), "{words}: {said}");
    }
    let empty = tempfile::tempdir().unwrap();
    refused(empty.path());
}

/// The prover is not to be pleased by a check that proves nothing, or by an answer that nobody could have found.
#[test]
fn an_exercise_that_proves_nothing_is_told() {
    let first = SOUND.replace("[[step.check]]\n[step.check.answer]", "[[step.check]]\nconfig = { key = \"ipam\", value = \"kubernetes\" }\n[[step.check]]\n[step.check.answer]");
    let hidden = SOUND.replace("kubectl get nodes -o wide", "kubectl get nodes");
    let fails = SOUND.replace("kubectl get nodes -o wide", "kubectl get nodes -o wide; exit 7");
    for (text, words) in [
        (first, "check config holds before its step is done"),
        (hidden, "nowhere in what the commands print"),
        (fails, "ended with exit code 7"),
    ] {
        let lab = lab();
        let dir = course(&text, WEEK);
        let output = run(&mut study(&lab.0, &["--auto", "--course", dir.path().to_str().unwrap()]));
        assert_eq!(output.status.code(), Some(1), "{}", out(&output));
        // Lines are broken at 80 columns.
        let said = out(&output).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(words), "{words}: {said}");
        assert!(!exists(&lab.0), "the lab is gone after a failure too");
    }
}

#[test]
fn a_learner_stops_and_goes_on() {
    let lab = lab();
    let dir = tempfile::tempdir().unwrap();
    let desk = dir.path().to_str().unwrap();
    let exercise = ["3/ipam-kubernetes", "--dir", desk];
    let walk = |lines: &str| {
        let output = typing(&mut study(&lab.0, &exercise), lines);
        assert!(output.status.success(), "{}\n{}", out(&output), String::from_utf8_lossy(&output.stderr));
        out(&output)
    };
    let check = || run(&mut study(&lab.0, &[&exercise[..], &["--check"]].concat()));
    assert_eq!(check().status.code(), Some(3), "nothing was begun");

    // A wrong answer, a hint, a command, the right answer; then the learner leaves in the second step.
    let said = walk("10.9.9.9/16\nhint\necho it is $((40 + 2))\n\n10.244.0.0/16\nquit\n");
    for words in [
        "not 10.9.9.9/16",
        "--cluster-cidr",
        "it is 42",
        "the question is open",
        "right: 10.244.0.0/16",
        "(step 2 of 6)",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(exists(&lab.0), "the lab stays for the learner");
    assert_eq!(check().status.code(), Some(1), "the second step is open");

    // Back again, on the same lab, in the same step.
    let id = || {
        std::fs::read_to_string(format!("/run/podwire-lab/{}/record.jsonl", lab.0))
            .unwrap()
            .lines()
            .next()
            .unwrap()
            .to_owned()
    };
    let before = id();
    let said = walk("solve\nquit\n");
    assert!(!said.contains("(step 1 of 6)") && said.contains("(step 3 of 6)"), "{said}");
    assert_eq!(id(), before);

    // The lab is lost. Nothing of the progress is: its steps are done again on a new one.
    ok(Command::new(bin("lab")).args(["down", &lab.0]));
    let said = walk("quit\n");
    assert!(said.contains("doing your 2 finished step(s) again") && said.contains("(step 3 of 6)"), "{said}");
    assert_ne!(id(), before);

    // A pod that another terminal makes counts as well.
    let said = walk("solve\nsolve\nquit\n");
    assert!(said.contains("(step 5 of 6)"), "{said}");
    let overrides = r#"{"spec":{"nodeName":"k8s-w1"}}"#;
    let kubeconfig = dir.path().join("kubeconfig");
    ok(Command::new("kubectl").env("KUBECONFIG", &kubeconfig).args([
        "run",
        "probe",
        "--image=traefik/whoami",
        "--overrides",
        overrides,
    ]));
    eventually("the step is done", || if check().status.success() { Ok(()) } else { Err("not yet".into()) });
    let said = walk("\nsolve\n");
    assert!(said.contains("Exercise 3/ipam-kubernetes is done."), "{said}");
    assert!(check().status.success());

    // From the beginning, and to the end in one go.
    ok(&mut study(&lab.0, &[&exercise[..], &["--reset"]].concat()));
    assert_eq!(check().status.code(), Some(1));
    let solved = ok(&mut study(&lab.0, &[&exercise[..], &["--solve", "--lang", "ko"]].concat()));
    assert!(solved.contains("대신 풀었습니다"), "{solved}");
    let list: Value = serde_json::from_str(&ok(&mut study(&lab.0, &["--dir", desk, "-o", "json"]))).unwrap();
    assert_eq!(list[0]["done"], true, "{list}");
}

#[test]
fn what_is_said_in_korean_fits_the_terminal() {
    let lab = lab();
    let dir = tempfile::tempdir().unwrap();
    let mut command = study(&lab.0, &["3/pod-to-pod-native", "--dir", dir.path().to_str().unwrap()]);
    let output = typing(command.env("LANG", "ko_KR.UTF-8"), "help\nhint\nhint\nquit\n");
    let said = out(&output);
    assert!(said.contains("진행 상황이 저장되었습니다"), "{said}");
    for line in said.lines().filter(|l| !l.starts_with("  $ ") && !l.starts_with("    export ")) {
        let columns: usize =
            line.chars().map(|c| if ('\u{1100}'..'\u{ffe0}').contains(&c) { 2 } else { 1 }).sum();
        assert!(columns <= 80, "{columns}: {line}");
    }
}

#[test]
fn an_interrupted_proof_leaves_nothing() {
    let lab = lab();
    let mut child = study(&lab.0, &["3/ipam-kubernetes", "--auto"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the lab comes up", || if exists(&lab.0) { Ok(()) } else { Err("not yet".into()) });
    ok(Command::new("kill").args(["-INT", &child.id().to_string()]));
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert!(!exists(&lab.0));
}
