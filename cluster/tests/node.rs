//! The whole embedded Kubernetes on one machine: control plane, node runtime, the reference CNI plugins, and a real
//! kubectl. Needs root, /usr/lib/cni (package containernetworking-plugins) and kubectl.
#![allow(clippy::unwrap_used, reason = "a test ends where something is missing")]
#![allow(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]

mod node_machine;

use std::io::{BufRead as _, Read as _};

use node_machine::{Machine, NODE_IP};
use serde_json::{Value, json};

fn machine() -> Machine {
    let mut machine = Machine::new();
    machine.start_control_plane();
    machine.start_node();
    machine
}

fn deployment(name: &str, replicas: u32, container: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "default"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}},
                         "spec": {"terminationGracePeriodSeconds": 5, "containers": [container]}}}})
}

fn pod(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec.as_object_mut().unwrap().entry("terminationGracePeriodSeconds").or_insert(json!(5));
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "labels": {"app": name}}, "spec": spec})
}

fn shell(script: &str) -> Value {
    json!({"name": "main", "image": "nicolaka/netshoot", "command": ["sh", "-c", script]})
}

#[test]
fn a_deployment_runs_answers_and_leaves_nothing_behind() {
    let machine = machine();
    let not_ready = machine.until("the node registers", || {
        let nodes = machine.get(&["nodes"]);
        let node = nodes["items"].as_array()?.first()?;
        // Its status follows in a request of its own.
        node["status"]["conditions"].is_array().then(|| node.clone())
    });
    let ready =
        not_ready["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap();
    assert_eq!(ready["status"], "False");
    assert!(ready["message"].as_str().unwrap().contains("cni plugin not initialized"), "{ready}");
    assert_eq!(not_ready["spec"]["taints"][0]["key"], "node.kubernetes.io/not-ready");

    let whoami = json!({"name": "web", "image": "traefik/whoami:v1.11", "ports": [{"containerPort": 80, "name": "http"}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}}});
    machine.apply(&deployment("webpod", 2, whoami));
    machine.apply(
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "webpod", "namespace": "default"},
        "spec": {"selector": {"app": "webpod"}, "ports": [{"port": 80, "targetPort": "http"}]}}),
    );
    machine.until("the pods cannot be scheduled", || {
        let events = machine.kubectl(&["get", "events"]);
        events.contains("0/1 nodes are available: 1 node(s) had untolerated taint").then_some(())
    });

    machine.write_cni_conf("10.244.0.0/24");
    machine.kubectl(&["wait", "--for=condition=Ready", "node/test-node", "--timeout=60s"]);
    machine.kubectl(&["wait", "--for=condition=Available", "deployment/webpod", "--timeout=60s"]);
    machine.kubectl(&["rollout", "status", "deployment/webpod", "--timeout=60s"]);
    assert_eq!(machine.get(&["node", "test-node"])["spec"]["podCIDR"], "10.244.0.0/24");

    let pods = machine.get(&["pods", "-l", "app=webpod"]);
    for one in pods["items"].as_array().unwrap() {
        let (name, ip) =
            (one["metadata"]["name"].as_str().unwrap(), one["status"]["podIP"].as_str().unwrap());
        let answer = machine.sh(&format!("curl -sS --max-time 5 http://{ip}/"));
        assert!(answer.contains(&format!("Hostname: {name}\n")), "{answer}");
        assert!(answer.contains(&format!("IP: {ip}\n")), "{answer}");
        assert!(answer.contains("RemoteAddr: 10.244.0.1:"), "{answer}");
        assert_eq!(one["status"]["hostIP"], NODE_IP);
    }
    let slice = machine.until("both pods are endpoints", || {
        let slices = machine.get(&["endpointslices", "-l", "kubernetes.io/service-name=webpod"]);
        let slice = slices["items"].as_array()?.first()?.clone();
        let endpoints = slice["endpoints"].as_array()?;
        (endpoints.len() == 2 && endpoints.iter().all(|e| e["conditions"]["ready"] == true)).then_some(slice)
    });
    assert_eq!(slice["ports"][0]["port"], 80);

    machine.kubectl(&["scale", "deployment/webpod", "--replicas=1"]);
    machine.until("one pod is left", || {
        let pods = machine.get(&["pods", "-l", "app=webpod"]);
        (pods["items"].as_array()?.len() == 1).then_some(())
    });
    machine.kubectl(&["rollout", "restart", "deployment/webpod"]);
    machine.kubectl(&["rollout", "status", "deployment/webpod", "--timeout=60s"]);
    let history = machine.kubectl(&["rollout", "history", "deployment/webpod"]);
    assert!(history.contains("\n2 "), "{history}");
    machine.kubectl(&["rollout", "undo", "deployment/webpod"]);
    machine.kubectl(&["rollout", "status", "deployment/webpod", "--timeout=60s"]);

    machine.kubectl(&["delete", "deployment/webpod", "service/webpod", "--wait=true"]);
    machine.until("every pod is gone", || {
        machine.get(&["pods"])["items"].as_array().is_some_and(Vec::is_empty).then_some(())
    });
    assert_eq!(machine.sh("ls /run/netns"), "");
    assert_eq!(machine.sh(&format!("ls {}", machine.path("kubelet/pods").display())), "");
    let links = machine.sh("ip -br link");
    assert!(!links.contains("veth") || links.lines().count() == 3, "{links}");
    let leases = machine.sh(&format!("ls {}", machine.path("ipam/test").display()));
    assert!(!leases.contains("10.244.0."), "{leases}");
    assert_eq!(machine.sh("grep -c kubelet/pods /proc/self/mountinfo || true").trim(), "0");
}

#[test]
fn logs_and_exec() {
    let machine = machine();
    machine.write_cni_conf("10.244.0.0/24");
    let script =
        "echo first; echo second >&2; trap 'echo bye; exit 0' TERM; while :; do sleep 1 & wait $!; done";
    machine.apply(&pod("talker", json!({"containers": [shell(script)]})));
    machine.kubectl(&["wait", "--for=condition=Ready", "pod/talker", "--timeout=60s"]);
    machine.until("both lines are logged", || {
        let log = machine.kubectl(&["logs", "talker"]);
        (log.contains("first\n") && log.contains("second\n")).then_some(())
    });
    let stamped = machine.kubectl(&["logs", "talker", "--timestamps", "--tail=1"]);
    assert_eq!(stamped.lines().count(), 1);
    assert!(stamped.starts_with("20"), "{stamped}");

    let exec = |args: &[&str]| {
        let args: Vec<_> = ["exec", "talker"].iter().chain(args).copied().collect();
        machine.kubectl_output(&args)
    };
    assert_eq!(String::from_utf8_lossy(&exec(&["--", "hostname"]).stdout), "talker\n");
    let failed = exec(&["--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(failed.status.code(), Some(7));
    assert_eq!(String::from_utf8_lossy(&failed.stdout), "out\n");
    assert!(String::from_utf8_lossy(&failed.stderr).starts_with("err\n"));
    let absent = exec(&["--", "no-such-program"]);
    assert_eq!(absent.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&absent.stderr).contains("executable file not found in $PATH"));

    let fed = machine.sh(&format!(
        "printf 'a\\nb\\n' | kubectl --kubeconfig={} exec -i talker -- wc -l",
        machine.path("admin").display()
    ));
    assert_eq!(fed.trim(), "2");
    let tty = machine.sh(&format!(
        "script -qec 'stty rows 33 cols 77; kubectl --kubeconfig={} exec -it talker -- sh -c \"tty; until stty size | grep -qv ^0; do :; done; stty size\"' /dev/null",
        machine.path("admin").display()
    ));
    assert!(tty.contains("/dev/pts/0") && tty.contains("33 77"), "{tty}");

    // The pod sees its own world.
    let inside = |script: &str| {
        let output = exec(&["--", "sh", "-c", script]);
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(inside("cat /etc/resolv.conf").contains("search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5"));
    assert!(inside("cat /etc/hosts").contains("talker"));
    assert_eq!(inside("ls /sys/class/net").trim(), "eth0\nlo");
    assert_eq!(inside("ls /var/run/secrets/kubernetes.io/serviceaccount").trim(), "ca.crt\nnamespace\ntoken");
    assert_eq!(inside("cat /proc/1/comm").trim(), "podwire-kube");
    assert!(inside("grep CapBnd /proc/self/status").contains("00000000a80425fb"));
    assert!(inside("env").contains("KUBERNETES_SERVICE_HOST=10.96.0.1\n"));

    let mut follow = machine.command("kubectl");
    follow.arg(format!("--kubeconfig={}", machine.path("admin").display())).args(["logs", "-f", "talker"]);
    let mut follow = follow.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut output = std::io::BufReader::new(follow.stdout.take().unwrap());
    let mut followed = String::new();
    // It follows from here on.
    output.read_line(&mut followed).unwrap();
    machine.kubectl(&["delete", "pod", "talker"]);
    output.read_to_string(&mut followed).unwrap();
    assert!(follow.wait().unwrap().success());
    assert!(followed.contains("first\n") && followed.contains("bye\n"), "{followed}");
}

#[test]
fn containers_survive_the_runtime_and_are_adopted() {
    let mut machine = machine();
    machine.write_cni_conf("10.244.0.0/24");
    machine.apply(&pod(
        "steady",
        json!({"containers": [
        {"name": "main", "image": "traefik/whoami", "readinessProbe": {"tcpSocket": {"port": 80}}}]}),
    ));
    machine.kubectl(&["wait", "--for=condition=Ready", "pod/steady", "--timeout=60s"]);
    let ip = machine.get(&["pod", "steady"])["status"]["podIP"].as_str().unwrap().to_owned();
    let before = machine.get(&["pod", "steady"])["status"]["containerStatuses"][0].clone();
    machine.kill_node();
    assert!(machine.sh(&format!("curl -sS --max-time 5 http://{ip}/")).contains("Hostname: steady"));
    machine.start_node();
    // What proves that the new runtime knows the container: it can be entered.
    machine.until("the new runtime serves exec", || {
        let output = machine.kubectl_output(&["exec", "steady", "--", "true"]);
        output.status.success().then_some(())
    });
    let after = machine.get(&["pod", "steady"])["status"]["containerStatuses"][0].clone();
    assert_eq!(after["containerID"], before["containerID"]);
    assert_eq!(after["state"], before["state"]);
    assert_eq!(after["restartCount"], 0);

    // A pod that is deleted while no runtime is there is cleaned up by the next.
    machine.kill_node();
    machine.kubectl(&["delete", "pod", "steady", "--force", "--grace-period=0"]);
    machine.start_node();
    machine.until("the orphan is gone", || machine.sh("ls /run/netns").is_empty().then_some(()));
    machine.until("its directory is gone", || {
        machine.sh(&format!("ls {}", machine.path("kubelet/pods").display())).is_empty().then_some(())
    });
}

#[test]
fn crashes_are_counted_and_explained() {
    let machine = machine();
    machine.write_cni_conf("10.244.0.0/24");
    machine.apply(&pod("crash", json!({"containers": [shell("echo going down; exit 3")]})));
    let status = machine.until("the container backs off", || {
        let status = machine.get(&["pod", "crash"])["status"]["containerStatuses"][0].clone();
        (status["state"]["waiting"]["reason"] == "CrashLoopBackOff").then_some(status)
    });
    assert!(status["restartCount"].as_u64().unwrap() >= 1, "{status}");
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(status["lastState"]["terminated"]["reason"], "Error");
    assert_eq!(machine.kubectl(&["logs", "crash", "--previous"]), "going down\n");

    machine.apply(&pod("once", json!({"restartPolicy": "Never", "containers": [shell("exit 0")]})));
    machine.until("the pod succeeds", || {
        (machine.get(&["pod", "once"])["status"]["phase"] == "Succeeded").then_some(())
    });
    machine.apply(&pod("pull", json!({"containers": [{"name": "main", "image": "nginx:1.29"}]})));
    let waiting = machine.until("the image is refused", || {
        let state =
            machine.get(&["pod", "pull"])["status"]["containerStatuses"][0]["state"]["waiting"].clone();
        (state["reason"] == "ErrImagePull" || state["reason"] == "ImagePullBackOff").then_some(state)
    });
    let message = waiting["message"].as_str().unwrap();
    assert!(message.contains("nginx:1.29") && message.contains("traefik/whoami"), "{message}");
    machine.until("the pull backs off", || {
        let state =
            machine.get(&["pod", "pull"])["status"]["containerStatuses"][0]["state"]["waiting"].clone();
        (state["reason"] == "ImagePullBackOff").then_some(())
    });
    machine.apply(&pod(
        "typo",
        json!({"containers": [
        {"name": "main", "image": "nicolaka/netshoot", "command": ["no-such-program"]}]}),
    ));
    machine.until("the missing program is named", || {
        let text = machine.get(&["pod", "typo"])["status"].to_string();
        text.contains("executable file not found in $PATH").then_some(())
    });
}

#[test]
fn init_containers_volumes_and_variables() {
    let machine = machine();
    machine.write_cni_conf("10.244.0.0/24");
    machine.apply(
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "conf", "namespace": "default"},
        "data": {"greeting": "hello"}}),
    );
    let mut first =
        shell("cp /tmp/conf/greeting /tmp/shared/text; echo -n \" $NODE $ADDRESS\" >> /tmp/shared/text");
    first["name"] = json!("first");
    first["env"] = json!([{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                          {"name": "ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]);
    first["volumeMounts"] = json!([{"name": "conf", "mountPath": "/tmp/conf", "readOnly": true}, {"name": "shared", "mountPath": "/tmp/shared"}]);
    let mut main =
        shell("cat /tmp/shared/text; touch /tmp/conf/x 2>/dev/null && echo writable; id -u; sleep infinity");
    main["volumeMounts"] = json!([{"name": "conf", "mountPath": "/tmp/conf", "readOnly": true}, {"name": "shared", "mountPath": "/tmp/shared"}]);
    main["securityContext"] = json!({"runAsUser": 1000});
    let volumes =
        json!([{"name": "conf", "configMap": {"name": "conf"}}, {"name": "shared", "emptyDir": {}}]);
    machine
        .apply(&pod("parts", json!({"initContainers": [first], "containers": [main], "volumes": volumes})));
    machine.kubectl(&["wait", "--for=condition=Ready", "pod/parts", "--timeout=60s"]);
    let ip = machine.get(&["pod", "parts"])["status"]["podIP"].as_str().unwrap().to_owned();
    let log = machine.until("the container has spoken", || {
        let log = machine.kubectl(&["logs", "parts", "-c", "main"]);
        log.contains("1000").then_some(log)
    });
    assert_eq!(log, format!("hello test-node {ip}1000\n"));

    machine.apply(&pod(
        "missing",
        json!({"containers": [{"name": "main", "image": "traefik/whoami",
        "envFrom": [{"configMapRef": {"name": "absent"}}]}]}),
    ));
    machine.until("the missing ConfigMap is named", || {
        let state =
            machine.get(&["pod", "missing"])["status"]["containerStatuses"][0]["state"]["waiting"].clone();
        (state["reason"] == "CreateContainerConfigError"
            && state["message"] == "configmap \"absent\" not found")
            .then_some(())
    });
    machine.apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "absent", "namespace": "default"}}));
    machine.kubectl(&["wait", "--for=condition=Ready", "pod/missing", "--timeout=60s"]);
}

#[test]
fn an_exhausted_pool_is_explained_and_a_freed_address_helps() {
    let machine = machine();
    // Room for the gateway and one pod.
    machine.write_cni_conf("10.9.0.0/30");
    machine.apply(&pod("one", json!({"containers": [{"name": "main", "image": "traefik/whoami"}]})));
    machine.kubectl(&["wait", "--for=condition=Ready", "pod/one", "--timeout=60s"]);
    machine.apply(&pod("two", json!({"containers": [{"name": "main", "image": "traefik/whoami"}]})));
    machine.until("the pod says why it waits", || {
        let state =
            machine.get(&["pod", "two"])["status"]["containerStatuses"][0]["state"]["waiting"].clone();
        (state["reason"] == "ContainerCreating"
            && state["message"].as_str()?.contains("no IP addresses available"))
        .then_some(())
    });
    assert!(machine.kubectl(&["get", "events"]).contains("FailedCreatePodSandBox"));
    machine.kubectl(&["delete", "pod", "one"]);
    machine.kubectl(&["wait", "--for=condition=Ready", "pod/two", "--timeout=60s"]);
    assert_eq!(machine.sh("ls /run/netns | wc -l").trim(), "1", "failed tries leave no namespace");
}

#[test]
fn a_daemon_set_runs_before_the_network_and_rolls() {
    let machine = machine();
    machine.apply(&json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent", "namespace": "kube-system"},
        "spec": {"selector": {"matchLabels": {"app": "agent"}}, "template": {"metadata": {"labels": {"app": "agent"}},
            "spec": {"hostNetwork": true, "terminationGracePeriodSeconds": 2, "tolerations": [{"operator": "Exists"}],
                     "containers": [{"name": "agent", "image": "podwire/web", "args": ["--port", "8099"],
                        "securityContext": {"privileged": true},
                        "livenessProbe": {"httpGet": {"port": 8099, "path": "/health"}}}]}}}}));
    machine.kubectl(&["-n", "kube-system", "rollout", "status", "daemonset/agent", "--timeout=60s"]);
    assert!(
        machine.sh(&format!("curl -sS --max-time 5 http://{NODE_IP}:8099/")).contains("Web Server : podwire")
    );
    machine.kubectl(&["-n", "kube-system", "rollout", "restart", "daemonset/agent"]);
    machine.kubectl(&["-n", "kube-system", "rollout", "status", "daemonset/agent", "--timeout=60s"]);
    let pods = machine.get(&["-n", "kube-system", "pods", "-l", "app=agent"]);
    assert_eq!(pods["items"].as_array().unwrap().len(), 1);
    assert_eq!(pods["items"][0]["status"]["podIP"], NODE_IP);
    let number =
        machine.get(&["-n", "kube-system", "controllerrevisions"])["items"].as_array().unwrap().len();
    assert_eq!(number, 2);
}

#[test]
fn a_namespace_ends_with_its_contents() {
    let machine = machine();
    machine.write_cni_conf("10.244.0.0/24");
    machine.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}));
    machine.until("the namespace has an account", || {
        machine
            .kubectl_output(&["-n", "shop", "get", "serviceaccount", "default"])
            .status
            .success()
            .then_some(())
    });
    let mut stall = pod("stall", json!({"containers": [{"name": "main", "image": "traefik/whoami"}]}));
    stall["metadata"]["namespace"] = json!("shop");
    machine.apply(&stall);
    machine.kubectl(&["-n", "shop", "wait", "--for=condition=Ready", "pod/stall", "--timeout=60s"]);
    machine.kubectl(&["delete", "namespace", "shop", "--timeout=60s"]);
    assert!(!machine.kubectl_output(&["get", "namespace", "shop"]).status.success());
    assert_eq!(machine.sh("ls /run/netns"), "");
}
