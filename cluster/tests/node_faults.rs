//! The node runtime when things go wrong: plugins that fail, runtimes that are killed, containers that do not behave.
//! Needs what tests/node.rs needs.
#![allow(clippy::unwrap_used, reason = "a test ends where something is missing")]
#![allow(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]

mod node_machine;

use std::io::Write as _;
use std::process::Stdio;

use node_machine::Machine;
use serde_json::{Value, json};

fn machine_with(plugin: &str) -> Machine {
    let mut machine = Machine::new();
    machine.start_control_plane();
    machine.start_node();
    machine.write_cni_conf_of(plugin, "10.244.0.0/24");
    machine
}

fn pod(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec.as_object_mut().unwrap().entry("terminationGracePeriodSeconds").or_insert(json!(1));
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "labels": {"app": name}}, "spec": spec})
}

fn shell(script: &str) -> Value {
    json!({"name": "main", "image": "nicolaka/netshoot", "command": ["sh", "-c", script]})
}

fn ready(machine: &Machine, name: &str) {
    machine.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
}

fn nothing_is_left(machine: &Machine) {
    machine.until("no pod's directory is left", || {
        machine.sh(&format!("ls {}", machine.path("kubelet/pods").display())).is_empty().then_some(())
    });
    assert_eq!(machine.sh("ls /run/netns"), "");
    assert_eq!(machine.leases(), [""; 0]);
    let links = machine.sh("ip -br link");
    assert_eq!(links.lines().count(), 3, "lo, eth1 and its peer: {links}");
}

#[test]
fn a_failing_del_is_repeated_until_the_address_is_back() {
    let machine = machine_with("gate");
    machine.apply(&pod("one", json!({"containers": [shell("sleep infinity")]})));
    ready(&machine, "one");
    std::fs::write(machine.path("broken-DEL"), "").unwrap();
    machine.kubectl(&["delete", "pod", "one", "--wait=false"]);
    machine.until("the pod says why it stays", || {
        let events = machine.kubectl(&["get", "events"]);
        (events.contains("FailedKillPod") && events.contains("the gate is broken")).then_some(())
    });
    assert_eq!(machine.leases().len(), 1);
    assert!(
        machine.kubectl_output(&["get", "pod", "one"]).status.success(),
        "an address is in use for it still"
    );
    std::fs::remove_file(machine.path("broken-DEL")).unwrap();
    machine.kubectl(&["wait", "--for=delete", "pod/one", "--timeout=60s"]);
    nothing_is_left(&machine);
}

#[test]
fn a_network_that_is_mended_by_hand_lets_waiting_pods_start_and_end() {
    let machine = machine_with("no-such-plugin");
    machine.apply(&pod("one", json!({"containers": [shell("sleep infinity")]})));
    machine.until("the missing plugin is named", || {
        machine.kubectl(&["get", "events"]).contains("no-such-plugin").then_some(())
    });
    std::fs::write(machine.path("broken-ADD"), "").unwrap();
    std::fs::write(machine.path("broken-DEL"), "").unwrap();
    machine.write_cni_conf_of("gate", "10.244.0.0/24");
    machine.until("the broken plugin is named", || {
        machine.kubectl(&["get", "events"]).contains("the gate is broken").then_some(())
    });
    // The plugin that could not undo its failed ADD is never mended, but replaced.
    machine.write_cni_conf("10.244.0.0/24");
    ready(&machine, "one");
    machine.kubectl(&["delete", "pod", "one", "--timeout=60s"]);
    nothing_is_left(&machine);
}

#[test]
fn a_runtime_that_is_killed_in_an_add_leaves_nothing_and_never_overtakes_it() {
    let mut machine = machine_with("gate");
    std::fs::write(machine.path("hold-ADD"), "").unwrap();
    machine.apply(&pod("one", json!({"containers": [shell("sleep infinity")]})));
    let calls = |machine: &Machine| std::fs::read_to_string(machine.path("cni-calls")).unwrap_or_default();
    machine.until("ADD has begun", || calls(&machine).contains("begin ADD").then_some(()));
    machine.kill_node();
    machine.start_node();
    machine.until("the new runtime knows the pod", || {
        machine.logs().matches("the node is ready").nth(1).map(drop)
    });
    std::fs::remove_file(machine.path("hold-ADD")).unwrap();
    ready(&machine, "one");
    let all = calls(&machine);
    let ids: Vec<_> = all.lines().filter_map(|line| line.strip_prefix("begin ADD ")).collect();
    let of_first: Vec<_> = all.lines().filter_map(|line| line.strip_suffix(ids[0])).map(str::trim).collect();
    assert_eq!(of_first, ["begin ADD", "end ADD", "begin DEL", "end DEL"], "one after the other: {all}");
    assert_eq!(machine.leases().len(), 1, "{all}");
    assert_eq!(machine.sh("ls /run/netns | wc -l").trim(), "1");

    // And in a DEL.
    std::fs::write(machine.path("hold-DEL"), "").unwrap();
    machine.kubectl(&["delete", "pod", "one", "--wait=false"]);
    machine.until("DEL has begun", || {
        (calls(&machine).matches("begin DEL").count() > calls(&machine).matches("end DEL").count())
            .then_some(())
    });
    machine.kill_node();
    machine.start_node();
    std::fs::remove_file(machine.path("hold-DEL")).unwrap();
    machine.kubectl(&["wait", "--for=delete", "pod/one", "--timeout=60s"]);
    nothing_is_left(&machine);
}

#[test]
fn a_runtime_that_is_killed_again_and_again_runs_every_pod_once() {
    let mut machine = machine_with("ptp");
    for round in 0..12_u64 {
        machine.apply(&pod(
            &format!("p{round}"),
            json!({"containers": [shell(&format!("exec sleep 8{round:03}"))]}),
        ));
        // Each round ends the runtime at another moment of the pod's start.
        std::thread::sleep(std::time::Duration::from_millis(round * 7));
        machine.kill_node();
        machine.start_node();
    }
    for round in 0..12 {
        ready(&machine, &format!("p{round}"));
    }
    for round in 0..12 {
        // The shell runs the command in its own place.
        assert_eq!(machine.processes(&format!("sleep 8{round:03}")), 1, "{}", machine.sh("ps ax"));
    }
    assert_eq!(machine.leases().len(), 12);
    machine.kubectl(&["delete", "pods", "--all", "--wait=false"]);
    machine.kill_node();
    machine.start_node();
    machine.kubectl(&["wait", "--for=delete", "pods", "--all", "--timeout=60s"]);
    nothing_is_left(&machine);
    assert_eq!(machine.processes("sleep 80"), 0);
    assert_eq!(machine.processes("podwire-kube shim"), 0);
}

#[test]
fn a_runtime_that_is_killed_between_unmounting_and_removing_a_namespace_ends_the_pod() {
    let mut machine = machine_with("ptp");
    machine.apply(&pod("one", json!({"containers": [shell("exec sleep 7003")]})));
    ready(&machine, "one");
    machine.kill_node();
    // DEL, umount, and no more: the mount point is left, an empty file.
    machine.sh("for ns in /run/netns/cni-*; do umount -l $ns; test -f $ns; done");
    machine.kubectl(&["delete", "pod", "one", "--wait=false"]);
    machine.start_node();
    machine.kubectl(&["wait", "--for=delete", "pod/one", "--timeout=60s"]);
    nothing_is_left(&machine);
}

#[test]
fn a_run_that_was_given_up_before_it_began_does_not_begin() {
    let machine = Machine::new();
    let dir = machine.path("run");
    std::fs::create_dir(&dir).unwrap();
    let spec = json!({"id": "x", "netns": null, "uts": null, "ipc": null, "host_pid": false, "argv": ["sleep", "7001"],
        "env": [["PATH", "/usr/bin:/bin"]], "cwd": "/", "mounts": [], "read_only_root": false, "log": machine.path("log"),
        "identity": {"uid": 0, "gid": 0, "groups": [], "capabilities": null, "no_new_privileges": false}});
    std::fs::write(dir.join("spec.json"), spec.to_string()).unwrap();
    // What the next runtime leaves where it finds a run that has neither begun nor ended.
    std::fs::write(
        dir.join("exit.json"),
        r#"{"code": 137, "at": "2026-01-01T00:00:00Z", "error": "given up"}"#,
    )
    .unwrap();
    machine.sh(&format!("timeout 30 {} shim {}", node_machine::PROGRAM, dir.display()));
    machine.until("nothing runs", || (machine.processes("sleep 7001") == 0).then_some(()));
    assert!(std::fs::read_to_string(dir.join("exit.json")).unwrap().contains("given up"));
}

#[test]
fn a_hook_that_never_ends_does_not_keep_the_pod() {
    let machine = machine_with("ptp");
    let mut main = shell("sleep infinity");
    main["lifecycle"] = json!({"postStart": {"exec": {"command": ["sleep", "7002"]}}});
    machine.apply(&pod("hooked", json!({"containers": [main]})));
    machine.until("the hook runs", || (machine.processes("sleep 7002") > 0).then_some(()));
    machine.kubectl(&["delete", "pod", "hooked", "--timeout=30s"]);
    assert_eq!(machine.processes("sleep 7002"), 0);

    let mut main = shell("sleep infinity");
    main["lifecycle"] = json!({"postStart": {"exec": {"command": ["sh", "-c", "echo no luck; exit 1"]}}});
    machine.apply(&pod("refused", json!({"containers": [main]})));
    machine.until("the failed hook ends the container", || {
        let status = machine.get(&["pod", "refused"])["status"]["containerStatuses"][0].clone();
        let told = machine.kubectl(&["get", "events"]).contains("PostStartHook failed");
        (told && status["restartCount"].as_u64()? > 0).then_some(())
    });
}

#[test]
fn a_status_that_others_have_changed_is_set_right() {
    let machine = machine_with("ptp");
    machine.apply(&pod("steady", json!({"containers": [shell("sleep infinity")]})));
    ready(&machine, "steady");
    // As the control plane does with the pods of a node that it has not heard of.
    let patch = r#"{"status":{"conditions":[{"type":"Ready","status":"False","reason":"NodeNotReady"}]}}"#;
    machine.kubectl(&["patch", "pod", "steady", "--subresource=status", "--patch", patch]);
    machine.until("the pod is Ready again", || {
        let conditions = machine.get(&["pod", "steady"])["status"]["conditions"].clone();
        let ready = conditions.as_array()?.iter().find(|c| c["type"] == "Ready")?.clone();
        (ready["status"] == "True" && ready["reason"].is_null()).then_some(())
    });
}

#[test]
fn processes_of_a_pod_with_the_nodes_pids_end_with_it() {
    let machine = machine_with("ptp");
    let script = "trap '' TERM; (trap '' TERM; setsid sleep 7003) & sleep 7004";
    machine.apply(&pod("shared", json!({"hostPID": true, "containers": [shell(script)]})));
    machine.until("both run", || {
        (machine.processes("sleep 7003") > 0 && machine.processes("sleep 7004") > 0).then_some(())
    });
    machine.kubectl(&["delete", "pod", "shared", "--timeout=60s"]);
    machine.until("both have ended", || {
        (machine.processes("sleep 7003") == 0 && machine.processes("sleep 7004") == 0).then_some(())
    });
    nothing_is_left(&machine);
}

#[test]
fn a_sidecar_ends_when_the_work_is_done() {
    let machine = machine_with("ptp");
    let side = json!({"name": "side", "image": "nicolaka/netshoot", "command": ["sleep", "7005"], "restartPolicy": "Always"});
    let spec = json!({"restartPolicy": "Never", "initContainers": [side], "containers": [shell("exit 0")]});
    machine.apply(&pod("job", spec));
    machine.until("the pod succeeds", || {
        (machine.get(&["pod", "job"])["status"]["phase"] == "Succeeded").then_some(())
    });
    machine.until("the sidecar has ended", || (machine.processes("sleep 7005") == 0).then_some(()));
    machine.until("the status says so", || {
        machine.get(&["pod", "job"])["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"]
            .is_number()
            .then_some(())
    });
    assert_eq!(machine.get(&["pod", "job"])["status"]["phase"], "Succeeded");
}

#[test]
fn exec_carries_much_in_both_directions() {
    let machine = machine_with("ptp");
    machine.apply(&pod("pipe", json!({"containers": [shell("sleep infinity")]})));
    ready(&machine, "pipe");
    // More than every buffer on the way holds, written before any input is read.
    for script in
        ["head -c 8000000 /dev/zero; wc -c", "cat | wc -c; head -c 8000000 /dev/zero", "tee /dev/stderr"]
    {
        let mut command = machine.command("timeout");
        command.args(["60", "kubectl", &format!("--kubeconfig={}", machine.path("admin").display())]);
        command.args(["exec", "-i", "pipe", "--", "sh", "-c", script]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let feeder = std::thread::spawn(move || stdin.write_all(&vec![b'x'; 8_000_000]));
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{script}: {} after {} bytes", output.status, output.stdout.len());
        feeder.join().unwrap().unwrap();
        assert!(output.stdout.len() >= 8_000_000, "{script}: {}", output.stdout.len());
    }
}

#[test]
fn pods_that_wait_for_an_address_do_not_wake_each_other() {
    let machine = machine_with("ptp");
    // Room for the gateway and one pod.
    machine.write_cni_conf_of("gate", "10.9.0.0/30");
    machine.apply(&pod("holder", json!({"containers": [shell("sleep infinity")]})));
    ready(&machine, "holder");
    for name in ["first", "second"] {
        machine.apply(&pod(name, json!({"containers": [shell("sleep infinity")]})));
    }
    for name in ["first", "second"] {
        let tries = machine.until("it has tried four times", || {
            let times = std::fs::read_to_string(machine.path("cni-times")).ok()?;
            let mine = times
                .lines()
                .filter(|line| line.starts_with("ADD") && line.contains(&format!("K8S_POD_NAME={name};")));
            let mine: Vec<u64> = mine.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
            (mine.len() >= 4).then_some(mine)
        });
        // The waits double from a quarter of a second on.
        assert!(tries[3] - tries[0] >= 1700, "{name} does not wait: {tries:?}");
    }
    machine.kubectl(&["delete", "pod", "holder", "--wait=false"]);
    machine.until("one of them starts", || {
        let pods = machine.get(&["pods"]);
        pods["items"]
            .as_array()?
            .iter()
            .any(|pod| pod["metadata"]["name"] != "holder" && pod["status"]["phase"] == "Running")
            .then_some(())
    });
}

#[test]
fn a_pod_that_a_finalizer_keeps_stays_as_it_ended() {
    let machine = machine_with("ptp");
    let mut kept = pod("kept", json!({"containers": [shell("sleep infinity")]}));
    kept["metadata"]["finalizers"] = json!(["example.com/keep"]);
    machine.apply(&kept);
    ready(&machine, "kept");
    machine.kubectl(&["delete", "pod", "kept", "--wait=false"]);
    nothing_is_left(&machine);
    let before = machine.get(&["pod", "kept"])["status"].clone();
    assert!(before["containerStatuses"][0]["state"]["terminated"].is_object(), "{before}");
    for round in 0..3 {
        machine.kubectl(&["annotate", "pod", "kept", "--overwrite", &format!("round={round}")]);
    }
    // Whatever the runtime does about it, it does before it starts another pod.
    machine.apply(&pod("other", json!({"containers": [shell("sleep infinity")]})));
    ready(&machine, "other");
    let after = machine.get(&["pod", "kept"])["status"].clone();
    assert_eq!(after["containerStatuses"], before["containerStatuses"]);
    assert_eq!(after["phase"], before["phase"]);
    machine.kubectl(&[
        "patch",
        "pod",
        "kept",
        "--type=merge",
        "--patch",
        r#"{"metadata":{"finalizers":null}}"#,
    ]);
    machine.kubectl(&["wait", "--for=delete", "pod/kept", "--timeout=60s"]);
}
