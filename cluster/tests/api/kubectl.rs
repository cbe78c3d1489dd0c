//! What users type.

use serde_json::json;

use crate::server::Server;

const DEPLOYMENT: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: webpod, labels: {app: webpod}}
spec:
  replicas: 2
  selector: {matchLabels: {app: webpod}}
  template:
    metadata: {labels: {app: webpod}}
    spec:
      containers:
      - name: webpod
        image: traefik/whoami
        ports: [{containerPort: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: webpod}
spec:
  selector: {app: webpod}
  ports: [{port: 80}]
";

const CRD: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.dev}
spec:
  group: example.dev
  scope: Cluster
  names: {plural: widgets, singular: widget, kind: Widget, shortNames: [wd]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size}
    - {name: Ready, type: string, jsonPath: '.status.conditions[?(@.type=="Ready")].status'}
    - {name: Color, type: string, jsonPath: .spec.color, priority: 1}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [size]
            properties:
              size: {type: integer, minimum: 1}
              color: {type: string, enum: [red, blue], default: red}
          status:
            type: object
            properties:
              conditions:
                type: array
                items:
                  type: object
                  properties: {type: {type: string}, status: {type: string}}
"#;

#[test]
fn apply_get_change_and_delete() {
    let server = Server::start();
    let made = server.apply_like(&["apply", "-f", "-"], DEPLOYMENT);
    assert_eq!(made, "deployment.apps/webpod created\nservice/webpod created\n");
    let again = server.apply_like(&["apply", "-f", "-"], DEPLOYMENT);
    assert_eq!(again, "deployment.apps/webpod unchanged\nservice/webpod unchanged\n");
    let changed = server.apply_like(&["apply", "-f", "-"], &DEPLOYMENT.replace("replicas: 2", "replicas: 3"));
    assert!(changed.starts_with("deployment.apps/webpod configured"), "{changed}");

    let wide = server.kubectl(&["get", "deploy,svc", "-o", "wide"]);
    for wanted in [
        "READY",
        "UP-TO-DATE",
        "SELECTOR",
        "0/3",
        "traefik/whoami",
        "app=webpod",
        "CLUSTER-IP",
        "80/TCP",
        "10.96.",
    ] {
        assert!(wide.contains(wanted), "{wanted} in\n{wide}");
    }
    let path = server.kubectl(&[
        "get",
        "deploy",
        "webpod",
        "-o",
        "jsonpath={.spec.replicas} {.spec.strategy.type} {.metadata.generation}",
    ]);
    assert_eq!(path, "3 RollingUpdate 2");
    let yaml = server.kubectl(&["get", "deploy", "webpod", "-o", "yaml"]);
    assert!(
        yaml.contains("imagePullPolicy: Always") && yaml.contains("terminationGracePeriodSeconds: 30"),
        "{yaml}"
    );

    server.kubectl(&["label", "deploy", "webpod", "tier=front"]);
    server.kubectl(&["annotate", "deploy", "webpod", "note=hello there"]);
    assert!(server.kubectl(&["get", "deploy", "-l", "tier in (front,back),app!=x"]).contains("webpod"));
    assert_eq!(server.kubectl(&["get", "deploy", "-l", "tier notin (front)", "-o", "name"]), "");
    assert_eq!(
        server.kubectl(&["scale", "deploy", "webpod", "--replicas=5"]),
        "deployment.apps/webpod scaled\n"
    );
    server.kubectl(&["set", "image", "deploy/webpod", "webpod=traefik/whoami:v1"]);
    server.kubectl(&["rollout", "restart", "deploy/webpod"]);
    let path = server.kubectl(&[
        "get",
        "deploy",
        "webpod",
        "-o",
        "jsonpath={.spec.replicas} {.spec.template.spec.containers[0].image}",
    ]);
    assert_eq!(path, "5 traefik/whoami:v1");
    assert_eq!(server.kubectl(&["delete", "deploy,svc", "webpod"]).lines().count(), 2);
    assert!(
        server
            .kubectl_fails(&["get", "deploy", "webpod"], "")
            .contains("deployments.apps \"webpod\" not found")
    );
}

#[test]
fn the_three_patches() {
    let server = Server::start();
    server.apply_like(&["apply", "-f", "-"], DEPLOYMENT);
    server.kubectl(&[
        "patch",
        "deploy",
        "webpod",
        "-p",
        r#"{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"nicolaka/netshoot"}]}}}}"#,
    ]);
    server.kubectl(&[
        "patch",
        "deploy",
        "webpod",
        "--type=merge",
        "-p",
        r#"{"metadata":{"labels":{"app":null,"x":"y"}}}"#,
    ]);
    server.kubectl(&[
        "patch",
        "deploy",
        "webpod",
        "--type=json",
        "-p",
        r#"[{"op":"replace","path":"/spec/replicas","value":7}]"#,
    ]);
    let out = server.kubectl(&[
        "get",
        "deploy",
        "webpod",
        "-o",
        "jsonpath={.spec.template.spec.containers[*].name} {.metadata.labels} {.spec.replicas}",
    ]);
    let mut names: Vec<&str> = out.split(' ').take(2).collect();
    names.sort_unstable();
    assert_eq!(names, ["side", "webpod"]);
    assert!(out.ends_with(r#"{"x":"y"} 7"#), "{out}");
    let error = server.kubectl_fails(
        &[
            "patch",
            "deploy",
            "webpod",
            "--type=json",
            "-p",
            r#"[{"op":"test","path":"/spec/replicas","value":1}]"#,
        ],
        "",
    );
    assert!(error.contains("does not apply"), "{error}");
}

#[test]
fn mistakes_are_named() {
    let server = Server::start();
    let unknown = DEPLOYMENT.replace("replicas: 2", "replicsa: 2");
    let error = server.kubectl_fails(&["apply", "-f", "-"], &unknown);
    assert!(error.contains("unknown field \"spec.replicsa\""), "{error}");
    let mismatch = DEPLOYMENT.replacen("app: webpod}}\n  template", "app: other}}\n  template", 1);
    let error = server.kubectl_fails(&["create", "-f", "-"], &mismatch);
    assert!(error.contains("does not match template `labels`"), "{error}");
    let error = server.kubectl_fails(
        &["create", "-f", "-"],
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Bad_Name}\n",
    );
    assert!(error.contains("RFC 1123"), "{error}");
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n";
    let error = server.kubectl_fails(&["-n", "nowhere", "create", "-f", "-"], map);
    assert!(error.contains("namespaces \"nowhere\" not found"), "{error}");
    let error = server.kubectl_fails(&["get", "gadgets"], "");
    assert!(error.contains("doesn't have a resource type"), "{error}");
}

#[test]
fn custom_resources_are_served_at_once() {
    let server = Server::start();
    server.apply_like(&["apply", "-f", "-"], CRD);
    server.kubectl(&["wait", "--for=condition=Established", "crd/widgets.example.dev", "--timeout=10s"]);
    let widget = "apiVersion: example.dev/v1\nkind: Widget\nmetadata: {name: a}\nspec: {size: 3}\n";
    server.apply_like(&["apply", "-f", "-"], widget);
    let table = server.kubectl(&["get", "wd", "-o", "wide"]);
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row, ["a", "3", "red"], "{table}");
    server.kubectl(&[
        "patch",
        "wd",
        "a",
        "--subresource=status",
        "--type=merge",
        "-p",
        r#"{"status":{"conditions":[{"type":"Ready","status":"True"}]},"spec":{"size":9}}"#,
    ]);
    let out = server.kubectl(&[
        "get",
        "wd",
        "a",
        "-o",
        "jsonpath={.spec.size} {.status.conditions[0].status} {.metadata.generation}",
    ]);
    assert_eq!(out, "3 True 1");
    server.kubectl(&["wait", "--for=condition=Ready", "wd/a", "--timeout=10s"]);
    let error = server.kubectl_fails(&["apply", "-f", "-"], &widget.replace("size: 3", "size: 0"));
    assert!(error.contains("spec.size") && error.contains("greater than or equal to 1"), "{error}");
    let error =
        server.kubectl_fails(&["apply", "-f", "-"], &widget.replace("size: 3", "size: 3, colour: red"));
    assert!(error.contains("unknown field \"spec.colour\""), "{error}");
    assert!(server.kubectl(&["explain", "widget.spec.size"]).contains("<integer>"));
    let text = server.kubectl(&["explain", "wd"]);
    assert!(
        text.contains("APIVersion defines the versioned schema") && text.contains("<ObjectMeta>"),
        "{text}"
    );
    server.kubectl(&["delete", "crd", "widgets.example.dev"]);
    assert_eq!(server.get("/apis/example.dev/v1/widgets").0, 404);
}

#[test]
fn discovery_and_explanations() {
    let server = Server::start();
    let resources = server.kubectl(&["api-resources"]);
    for wanted in ["deployments", "deploy", "pods", "po", "endpointslices", "crd,crds", "leases"] {
        assert!(resources.contains(wanted), "{wanted} in\n{resources}");
    }
    assert!(server.kubectl(&["api-versions"]).contains("discovery.k8s.io/v1"));
    let text = server.kubectl(&["explain", "deployment.spec.strategy.rollingUpdate"]);
    assert!(text.contains("maxSurge") && text.contains("GROUP:      apps"), "{text}");
    assert!(server.kubectl(&["version"]).contains("Server Version: v1.36"));
    assert!(server.kubectl(&["get", "--raw", "/readyz?verbose"]).contains("readyz check passed"));
    let services = server.kubectl(&["get", "svc", "kubernetes"]);
    assert!(services.contains("10.96.0.1") && services.contains("443/TCP"), "{services}");
}

#[test]
fn server_side_apply() {
    let server = Server::start();
    let map = |data: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\ndata: {data}\n");
    let apply = |manager: &str, data: &str| {
        server.kubectl_with(&["apply", "--server-side", "--field-manager", manager, "-f", "-"], &map(data))
    };
    assert!(apply("one", "{a: '1', b: '2'}").status.success());
    assert!(apply("two", "{c: '3'}").status.success());
    let conflict = apply("two", "{a: '9', c: '3'}");
    let text = String::from_utf8(conflict.stderr).unwrap();
    assert!(!conflict.status.success() && text.contains("conflict with \"one\": .data.a"), "{text}");
    // What its manager no longer wants goes; what others have stays.
    assert!(apply("one", "{a: '1'}").status.success());
    let data = || server.get("/api/v1/namespaces/default/configmaps/c").1["data"].clone();
    assert_eq!(data(), json!({"a": "1", "c": "3"}));
    server.apply_like(
        &["apply", "--server-side", "--force-conflicts", "--field-manager", "two", "-f", "-"],
        &map("{a: '9'}"),
    );
    assert_eq!(data(), json!({"a": "9"}));
    assert!(server.kubectl(&["get", "cm", "c", "-o", "yaml", "--show-managed-fields"]).contains("f:data"));
}

#[test]
fn deletion_takes_dependents_along() {
    let server = Server::start();
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: owner}\n";
    let owner = server.apply_like(&["create", "-f", "-", "-o", "jsonpath={.metadata.uid}"], map);
    for name in ["d1", "d2"] {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "ownerReferences":
            [{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner, "blockOwnerDeletion": true}]}});
        assert_eq!(server.post("/api/v1/namespaces/default/configmaps", &object).0, 201);
    }
    server.kubectl(&["delete", "configmap", "owner", "--cascade=foreground"]);
    // With foreground deletion kubectl returns when the owner is gone, and that is after its dependents.
    assert_eq!(server.kubectl(&["get", "configmaps", "-o", "name"]), "");
}

#[test]
fn what_kubectl_sends_as_protobuf() {
    let server = Server::start();
    assert!(server.kubectl(&["auth", "whoami"]).contains("kubernetes-admin"));
    assert_eq!(server.kubectl(&["auth", "can-i", "create", "pods"]), "yes\n");
    server.kubectl(&["create", "namespace", "team"]);
    server.kubectl(&["-n", "team", "create", "configmap", "c", "--from-literal=a=b"]);
    server.kubectl(&["-n", "team", "create", "secret", "generic", "s", "--from-literal=p=q"]);
    server.kubectl(&[
        "-n",
        "team",
        "create",
        "deployment",
        "web",
        "--image=traefik/whoami",
        "--replicas=2",
        "--port=80",
    ]);
    server.kubectl(&["-n", "team", "create", "serviceaccount", "robot"]);
    server.kubectl(&["create", "clusterrole", "reader", "--verb=get,list", "--resource=pods"]);
    server.kubectl(&[
        "create",
        "clusterrolebinding",
        "readers",
        "--clusterrole=reader",
        "--serviceaccount=team:robot",
    ]);
    let get = |kind: &str, path: &str| {
        server.kubectl(&["-n", "team", "get", kind, "-o", &format!("jsonpath={path}")])
    };
    assert_eq!(get("configmap/c", "{.data.a}"), "b");
    assert_eq!(get("secret/s", "{.data.p} {.type}"), "cQ== Opaque");
    assert_eq!(get("clusterrole/reader", "{.rules[0].verbs}"), r#"["get","list"]"#);
    assert_eq!(get("clusterrolebinding/readers", "{.subjects[0].name} {.roleRef.name}"), "robot reader");
    let container = "{.spec.replicas} {.spec.template.spec.containers[0].image} {.spec.template.spec.containers[0].ports[0].containerPort}";
    assert_eq!(get("deployment/web", container), "2 traefik/whoami 80");
    server.kubectl(&["-n", "team", "create", "service", "clusterip", "plain", "--tcp=80:8080"]);
    server.kubectl(&["-n", "team", "create", "service", "nodeport", "named", "--tcp=80:http"]);
    server.kubectl(&["-n", "team", "create", "service", "externalname", "away", "--external-name=a.example"]);
    let port = "{.spec.type} {.spec.ports[0].port} {.spec.ports[0].targetPort} {.spec.selector.app}";
    assert_eq!(get("service/plain", port), "ClusterIP 80 8080 plain");
    assert_eq!(get("service/named", port), "NodePort 80 http named");
    assert_eq!(get("service/away", "{.spec.type} {.spec.externalName}"), "ExternalName a.example");
    let token = server.kubectl(&["-n", "team", "create", "token", "robot"]);
    assert_eq!(token.trim().split('.').count(), 3);
}
