//! Input that means no good gets a Status.

use serde_json::{Value, json};

use crate::server::Server;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn refused((code, status): (u16, Value), wanted: u16) {
    assert_eq!(code, wanted, "{status}");
    assert_eq!(status["kind"], "Status", "{status}");
    assert_eq!(status["code"], wanted, "{status}");
}

#[test]
fn bodies() {
    let server = Server::start();
    let post = |kind: &str, body: Vec<u8>| server.request("POST", MAPS, kind, body);
    refused(post("application/json", b"{".to_vec()), 400);
    refused(post("application/json", vec![0xff, 0xfe, b'{', b'}']), 400);
    refused(post("application/json", b"[1,2]".to_vec()), 400);
    refused(post("application/json", b"null".to_vec()), 400);
    refused(post("application/json", br#"{"metadata":[]}"#.to_vec()), 400);
    refused(post("application/json", br#"{"metadata":{"name":"x","labels":5}}"#.to_vec()), 400);
    refused(post("application/json", br#"{"metadata":{"name":7}}"#.to_vec()), 400);
    refused(post("application/json", br#"{"kind":"Pod","apiVersion":"v1"}"#.to_vec()), 400);
    refused(post("application/vnd.kubernetes.protobuf", b"k8s\0".to_vec()), 415);
    refused(post("application/vnd.kubernetes.protobuf", b"k8s\0\xff\xff".to_vec()), 400);
    let deep = format!("{}1{}", "{\"a\":".repeat(5000), "}".repeat(5000));
    refused(post("application/json", deep.into_bytes()), 400);
    let less_deep = format!("{}1{}", "{\"a\":".repeat(100), "}".repeat(100));
    refused(post("application/json", less_deep.into_bytes()), 400);
    let large = format!(r#"{{"metadata":{{"name":"x"}},"data":{{"k":"{}"}}}}"#, "a".repeat(4 << 20));
    refused(post("application/json", large.into_bytes()), 413);
    assert_eq!(server.get("/readyz").0, 200);
}

#[test]
fn paths_and_parameters() {
    let server = Server::start();
    for path in [
        "/nothing",
        "/api/v2",
        "/api/v1/gadgets",
        "/apis/none/v1/x",
        "/api/v1/namespaces/default/pods/p/nothing",
        "/api/v1/pods/x",
        "/api/v1/namespaces/default/nodes",
        "/api/v1/namespaces/%00/pods",
        "/openapi/v3/apis/none/v1",
        "/%ff",
    ] {
        refused(server.get(path), 404);
    }
    for query in [
        "watch=maybe",
        "limit=-1",
        "labelSelector=a%20b%20c",
        "fieldSelector=x",
        "resourceVersion=abc",
        "continue=%25",
        "a=%zz",
    ] {
        refused(server.get(&format!("{MAPS}?{query}")), 400);
    }
    refused(server.request("PATCH", &format!("{MAPS}/x"), "text/plain", "x"), 415);
    refused(server.request("PATCH", &format!("{MAPS}/x"), "application/json-patch+json", "{}"), 400);
    refused(server.request("PATCH", &format!("{MAPS}/x"), "application/apply-patch+yaml", "{}"), 400);
    refused(server.request("POST", &format!("{MAPS}/x"), "application/json", "{}"), 405);
    refused(server.request("DELETE", "/api/v1/configmaps", "application/json", ""), 405);
}

#[test]
fn patches_that_break_objects_are_refused() {
    let server = Server::start();
    let object = r#"{"metadata":{"name":"x"},"data":{"a":"b"}}"#;
    assert_eq!(server.request("POST", MAPS, "application/json", object).0, 201);
    let path = format!("{MAPS}/x");
    for (kind, patch) in [
        ("json-patch+json", r#"[{"op":"replace","path":"","value":null}]"#),
        ("json-patch+json", r#"[{"op":"replace","path":"/metadata","value":3}]"#),
        ("json-patch+json", r#"[{"op":"replace","path":"/metadata/name","value":"y"}]"#),
        ("json-patch+json", r#"[{"op":"add","path":"/metadata/labels","value":[1]}]"#),
        ("merge-patch+json", r#"{"metadata":"x"}"#),
        ("merge-patch+json", r#"{"data":{"a":{"b":1}}}"#),
        ("merge-patch+json", r#"{"kind":"Secret"}"#),
        ("strategic-merge-patch+json", r#"{"metadata":{"ownerReferences":[1]}}"#),
        ("strategic-merge-patch+json", r#"{"$patch":5}"#),
    ] {
        let (code, status) = server.request("PATCH", &path, &format!("application/{kind}"), patch);
        assert!(code == 400 || code == 422, "{patch}: {code} {status}");
        assert_eq!(status["kind"], "Status");
    }
    assert_eq!(server.get(&path).1["data"]["a"], "b");
}

#[test]
fn a_patch_that_multiplies_what_is_there_is_refused() {
    let server = Server::start();
    assert_eq!(server.request("POST", MAPS, "application/json", r#"{"metadata":{"name":"x"}}"#).0, 201);
    let mut operations = vec![json!({"op": "add", "path": "/data", "value": {"k": "x".repeat(1000)}})];
    // Carried out, these would hold 2^40 times as much.
    let copies = (0..40).map(|i| json!({"op": "copy", "from": "/data", "path": format!("/data/a{i}")}));
    operations.extend(copies);
    let (code, status) = server.patch(&format!("{MAPS}/x"), "json-patch+json", &json!(operations));
    assert_eq!((code, &status["reason"]), (422, &json!("Invalid")), "{status}");
    assert!(server.get(&format!("{MAPS}/x")).1["data"].is_null());
}

#[test]
fn a_pod_with_an_endless_grace_period_can_be_deleted() {
    let server = Server::start();
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1",
        "terminationGracePeriodSeconds": i64::MAX, "containers": [{"name": "c", "image": "x"}]}});
    assert_eq!(server.post(pods, &pod).0, 201);
    let (code, marked) = server.request("DELETE", &format!("{pods}/p"), "application/json", "");
    assert_eq!(code, 200, "{marked}");
    assert!(marked["metadata"]["deletionTimestamp"].is_string(), "{marked}");
    // Clients that know the types can still read it.
    serde_json::from_value::<k8s_openapi::api::core::v1::Pod>(marked).unwrap();
    let now = r#"{"gracePeriodSeconds":0}"#;
    assert_eq!(server.request("DELETE", &format!("{pods}/p"), "application/json", now).0, 200);
    assert_eq!(server.get(&format!("{pods}/p")).0, 404);
}

#[test]
fn what_controllers_could_not_read_is_refused() {
    let server = Server::start();
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = |replicas: Value| {
        json!({"metadata": {"name": "d"}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}}})
    };
    for replicas in [json!(5_000_000_000_u64), json!(2.0), json!(1.5)] {
        refused(server.post(deployments, &deployment(replicas)), 400);
    }
    assert_eq!(server.post(deployments, &deployment(json!(1))).0, 201);
    let scale = json!({"spec": {"replicas": 5_000_000_000_u64}});
    refused(server.patch(&format!("{deployments}/d/scale"), "merge-patch+json", &scale), 400);
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod"}, "eventTime": "9999-12-31T23:59:59Z"});
    refused(server.post("/api/v1/namespaces/default/events", &event), 400);
}

#[test]
fn what_cannot_be_answered_is_not_done() {
    let server = Server::start();
    let (code, status) =
        server.request_as("POST", MAPS, "text/html", "application/json", r#"{"metadata":{"name":"x"}}"#);
    assert_eq!(code, 406, "{status}");
    assert_eq!(server.get(&format!("{MAPS}/x")).0, 404);
}

#[test]
fn a_scale_that_is_none_changes_nothing() {
    let server = Server::start();
    let sets = "/apis/apps/v1/namespaces/default/replicasets";
    let set = json!({"metadata": {"name": "s"}, "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}}});
    assert_eq!(server.post(sets, &set).0, 201);
    for body in ["[]", "null", "5"] {
        refused(server.request("PUT", &format!("{sets}/s/scale"), "application/json", body), 400);
    }
    assert_eq!(server.get(&format!("{sets}/s")).1["spec"]["replicas"], 3);
}
