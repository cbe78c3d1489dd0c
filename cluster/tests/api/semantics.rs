//! Rules of the API that controllers rely on.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::json;

use crate::server::{Server, until};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

#[test]
fn updates_need_the_version_they_are_based_on() {
    let server = Server::start();
    let (code, made) = server.post(MAPS, &map("a"));
    assert_eq!(code, 201);
    assert_eq!(server.post(MAPS, &map("a")).0, 409);
    let mut newer = made.clone();
    newer["data"]["k"] = json!("w");
    let (code, second) = server.put(&format!("{MAPS}/a"), &newer);
    assert_eq!(code, 200);
    assert_ne!(second["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    assert_eq!(second["metadata"]["uid"], made["metadata"]["uid"]);
    newer["data"]["k"] = json!("x");
    let (code, status) = server.put(&format!("{MAPS}/a"), &newer);
    assert_eq!((code, status["reason"].as_str()), (409, Some("Conflict")));
    // Nothing changed: the version stays.
    let (_, third) = server.put(&format!("{MAPS}/a"), &second);
    assert_eq!(third["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
    let (code, _) =
        server.request("PUT", &format!("{MAPS}/a?dryRun=All"), "application/json", map("a").to_string());
    assert_eq!(code, 200);
    assert_eq!(server.get(&format!("{MAPS}/a")).1, second);
}

#[test]
fn watches_see_every_change_and_what_selectors_make_of_it() {
    let server = Server::start();
    let client = server.client();
    server.runtime.block_on(async {
        let maps: Api<ConfigMap> = Api::namespaced(client, "default");
        let version = maps.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
        let params = WatchParams::default().labels("on=yes").timeout(60);
        let mut watch = maps.watch(&params, &version).await.unwrap().boxed();
        let label = |on: &str| json!({"metadata": {"labels": {"on": on}}});
        maps.create(&PostParams::default(), &serde_json::from_value(map("a")).unwrap()).await.unwrap();
        for on in ["yes", "yes2", "yes"] {
            maps.patch("a", &PatchParams::default(), &Patch::Merge(label(on))).await.unwrap();
        }
        maps.patch("a", &PatchParams::default(), &Patch::Merge(json!({"data": {"k": "w"}}))).await.unwrap();
        maps.delete("a", &DeleteParams::default()).await.unwrap();
        let mut seen = Vec::new();
        let mut last = 0;
        while seen.len() < 5 {
            let event = watch.try_next().await.unwrap().unwrap();
            let (kind, object) = match event {
                WatchEvent::Added(o) => ("ADDED", o),
                WatchEvent::Modified(o) => ("MODIFIED", o),
                WatchEvent::Deleted(o) => ("DELETED", o),
                other => panic!("{other:?}"),
            };
            let version: u64 = object.metadata.resource_version.unwrap().parse().unwrap();
            assert!(version > last, "{version} after {last}");
            last = version;
            seen.push(kind);
        }
        assert_eq!(seen, ["ADDED", "DELETED", "ADDED", "MODIFIED", "DELETED"]);
    });
}

#[test]
fn a_version_that_is_too_old_is_gone() {
    let server = Server::start();
    let (_, first) = server.get(MAPS);
    let version = first["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let client = server.client();
    server.runtime.block_on(async {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
        maps.create(&PostParams::default(), &serde_json::from_value(map("a")).unwrap()).await.unwrap();
        let patch = |i: usize| {
            let maps = maps.clone();
            async move {
                let change = Patch::Merge(json!({"data": {"k": i.to_string()}}));
                maps.patch("a", &PatchParams::default(), &change).await.unwrap();
            }
        };
        // More changes than are kept.
        futures::stream::iter(0..4200).for_each_concurrent(64, patch).await;
    });
    // Said inside the stream: a client that hears HTTP status 410 instead may try the same version for ever.
    let (code, event) = server.get(&format!("{MAPS}?watch=1&resourceVersion={version}&timeoutSeconds=1"));
    assert_eq!((code, event["type"].as_str()), (200, Some("ERROR")), "{event}");
    assert_eq!(
        (&event["object"]["code"], &event["object"]["reason"]),
        (&json!(410), &json!("Expired")),
        "{event}"
    );
}

#[test]
fn streaming_lists_end_with_their_bookmark() {
    let server = Server::start();
    server.post(MAPS, &map("a"));
    let client = server.client();
    server.runtime.block_on(async {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let count = namespaces.list(&ListParams::default()).await.unwrap().items.len();
        let stream = watcher(namespaces, watcher::Config::default().streaming_lists());
        let first: Vec<Namespace> = stream.applied_objects().take(count).try_collect().await.unwrap();
        assert_eq!(first.len(), count);
        let maps: Api<ConfigMap> = Api::namespaced(client, "default");
        let (reader, writer) = kube::runtime::reflector::store();
        let stream = watcher(maps, watcher::Config::default().streaming_lists());
        let task = tokio::spawn(kube::runtime::reflector(writer, stream).for_each(|_| async {}));
        // Ready only after the bookmark that ends the initial events.
        tokio::time::timeout(Duration::from_mins(1), reader.wait_until_ready()).await.unwrap().unwrap();
        assert_eq!(reader.state().len(), 1);
        task.abort();
    });
}

#[test]
fn lists_come_in_pieces() {
    let server = Server::start();
    for i in 0..7 {
        assert_eq!(server.post(MAPS, &map(&format!("m{i}"))).0, 201);
    }
    let mut names = Vec::new();
    let mut token = String::new();
    loop {
        let (_, page) = server.get(&format!("{MAPS}?limit=3&continue={token}"));
        names.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|o| o["metadata"]["name"].as_str().unwrap().to_owned()),
        );
        match page["metadata"]["continue"].as_str() {
            Some(next) => token = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(names, (0..7).map(|i| format!("m{i}")).collect::<Vec<_>>());
    assert_eq!(server.get(&format!("{MAPS}?continue=nonsense")).0, 400);
    assert_eq!(
        server.get(&format!("{MAPS}?fieldSelector=metadata.name%3Dm3")).1["items"].as_array().unwrap().len(),
        1
    );
    assert_eq!(server.get(&format!("{MAPS}?fieldSelector=data.k%3Dv")).0, 400);
}

#[test]
fn pods_go_when_their_node_says_so_and_finalizers_hold() {
    let server = Server::start();
    let pods = "/api/v1/namespaces/default/pods";
    let pod = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "x"}]}})
    };
    assert_eq!(server.post(pods, &pod("free")).0, 201);
    server.request("DELETE", &format!("{pods}/free"), "application/json", "");
    assert_eq!(server.get(&format!("{pods}/free")).0, 404);

    server.post(pods, &pod("bound"));
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "bound"}, "target": {"kind": "Node", "name": "n1"}});
    assert_eq!(server.post(&format!("{pods}/bound/binding"), &binding).0, 201);
    assert_eq!(server.post(&format!("{pods}/bound/binding"), &binding).0, 409);
    let (_, marked) = server.request("DELETE", &format!("{pods}/bound"), "application/json", "");
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(server.get(&format!("{pods}/bound")).0, 200);
    server.request("DELETE", &format!("{pods}/bound"), "application/json", r#"{"gracePeriodSeconds":0}"#);
    assert_eq!(server.get(&format!("{pods}/bound")).0, 404);

    let mut held = map("held");
    held["metadata"]["finalizers"] = json!(["example.dev/hold"]);
    server.post(MAPS, &held);
    server.request("DELETE", &format!("{MAPS}/held"), "application/json", "");
    assert!(server.get(&format!("{MAPS}/held")).1["metadata"]["deletionTimestamp"].is_string());
    server.patch(&format!("{MAPS}/held"), "merge-patch+json", &json!({"metadata": {"finalizers": null}}));
    assert_eq!(server.get(&format!("{MAPS}/held")).0, 404);
}

#[test]
fn what_may_not_change_does_not() {
    let server = Server::start();
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
    server.post(pods, &pod);
    let (code, _) =
        server.patch(&format!("{pods}/p"), "merge-patch+json", &json!({"spec": {"hostNetwork": true}}));
    assert_eq!(code, 422);
    let strategic = json!({"spec": {"containers": [{"name": "c", "image": "y"}]}});
    assert_eq!(server.patch(&format!("{pods}/p"), "strategic-merge-patch+json", &strategic).0, 200);
    // Status and the rest are written apart.
    let (_, object) =
        server.patch(&format!("{pods}/p"), "merge-patch+json", &json!({"status": {"phase": "Running"}}));
    assert_eq!(object["status"]["phase"], "Pending");
    let (_, object) = server.patch(
        &format!("{pods}/p/status"),
        "merge-patch+json",
        &json!({"status": {"phase": "Running"}, "spec": {"nodeName": "x"}}),
    );
    assert_eq!(object["status"]["phase"], "Running");
    assert!(object["spec"].get("nodeName").is_none());

    let services = "/api/v1/namespaces/default/services";
    let service = |name: &str, ip: &str| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"clusterIP": ip, "ports": [{"port": 80}]}})
    };
    assert_eq!(server.post(services, &service("a", "10.96.0.77")).0, 201);
    assert_eq!(server.post(services, &service("b", "10.96.0.77")).0, 422);
    assert_eq!(server.post(services, &service("b", "10.97.0.1")).0, 422);
    assert_eq!(server.post(services, &service("b", "None")).1["spec"]["clusterIP"], "None");
    let (code, _) = server.patch(
        &format!("{services}/a"),
        "merge-patch+json",
        &json!({"spec": {"clusterIP": "10.96.0.78"}}),
    );
    assert_eq!(code, 422);
}

#[test]
fn a_service_that_was_a_name_gets_an_address_of_the_range() {
    let server = Server::start();
    let services = "/api/v1/namespaces/default/services";
    let named =
        json!({"metadata": {"name": "s"}, "spec": {"type": "ExternalName", "externalName": "a.example"}});
    assert_eq!(server.post(services, &named).0, 201);
    let change = |spec: serde_json::Value| {
        server.patch(&format!("{services}/s"), "merge-patch+json", &json!({"spec": spec}))
    };
    let outside =
        json!({"type": "ClusterIP", "clusterIP": "10.97.0.1", "externalName": null, "ports": [{"port": 80}]});
    assert_eq!(change(outside).0, 422);
    let (code, object) = change(json!({"type": "ClusterIP", "externalName": null, "ports": [{"port": 80}]}));
    assert_eq!(code, 200, "{object}");
    assert!(object["spec"]["clusterIP"].as_str().unwrap().starts_with("10.96."), "{object}");
}

#[test]
fn objects_go_with_their_definition() {
    let server = Server::start();
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let definition = json!({"metadata": {"name": "widgets.example.dev"}, "spec": {"group": "example.dev", "scope": "Cluster",
        "names": {"plural": "widgets", "kind": "Widget"}, "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    let widgets = "/apis/example.dev/v1/widgets";
    assert_eq!(server.post(definitions, &definition).0, 201);
    assert_eq!(server.post(widgets, &json!({"metadata": {"name": "free"}})).0, 201);
    let held = json!({"metadata": {"name": "held", "finalizers": ["example.dev/hold"]}});
    assert_eq!(server.post(widgets, &held).0, 201);
    let path = format!("{definitions}/widgets.example.dev");
    let (code, marked) = server.request("DELETE", &path, "application/json", "");
    assert_eq!(code, 200);
    assert!(marked["metadata"]["deletionTimestamp"].is_string(), "{marked}");
    until("the free object is gone", || server.get(&format!("{widgets}/free")).0 == 404);
    // One is still wanted: the definition waits for it, and takes no new ones.
    until("the held object is to go", || {
        server.get(&format!("{widgets}/held")).1["metadata"]["deletionTimestamp"].is_string()
    });
    assert_eq!(server.get(&path).0, 200);
    let (code, status) = server.post(widgets, &json!({"metadata": {"name": "late"}}));
    assert_eq!((code, &status["reason"]), (405, &json!("MethodNotAllowed")), "{status}");
    // Also over a restart.
    let server = Server::start_in(server.stop());
    let none = json!({"metadata": {"finalizers": null}});
    assert_eq!(server.patch(&format!("{widgets}/held"), "merge-patch+json", &none).0, 200);
    until("the definition is gone", || server.get(&path).0 == 404);
    assert_eq!(server.get(widgets).0, 404);
    assert_eq!(server.post(definitions, &definition).0, 201);
    assert_eq!(server.get(widgets).1["items"], json!([]));
}

#[test]
fn an_applied_status_is_not_owned_where_it_is_not_written() {
    let server = Server::start();
    let nodes = "/api/v1/nodes";
    let apply = |sub: &str, object: &serde_json::Value| {
        server.patch(&format!("{nodes}/n1{sub}?fieldManager=one"), "apply-patch+yaml", object)
    };
    // As `kubectl get -o yaml` has saved it.
    let saved = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {"unschedulable": true},
        "status": {"phase": "Pending"}});
    assert_eq!(apply("", &saved).0, 201);
    let running = json!({"status": {"phase": "Running"}});
    assert_eq!(server.patch(&format!("{nodes}/n1/status"), "merge-patch+json", &running).0, 200);
    let (code, object) = apply("", &saved);
    assert_eq!((code, &object["status"]["phase"]), (200, &json!("Running")), "{object}");
    // Nor the rest where only the status is written.
    let whole = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {"unschedulable": false},
        "status": {"volumesInUse": ["v"]}});
    let (code, object) = apply("/status", &whole);
    assert_eq!((code, &object["spec"]["unschedulable"]), (200, &json!(true)), "{object}");
    let mine = object["metadata"]["managedFields"].as_array().unwrap().iter();
    let mine: Vec<_> = mine.filter(|e| e["subresource"] == "status" && e["operation"] == "Apply").collect();
    assert_eq!(mine.len(), 1);
    assert!(mine[0]["fieldsV1"].get("f:spec").is_none(), "{}", mine[0]);
}

#[test]
fn service_account_tokens_work_until_the_account_is_gone() {
    let server = Server::start();
    let client = server.client();
    let ca = std::fs::read(server.pki().ca_cert()).unwrap();
    server.runtime.block_on(async {
        let accounts: Api<ServiceAccount> = Api::namespaced(client, "default");
        let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": "robot"}})).unwrap();
        accounts.create(&PostParams::default(), &account).await.unwrap();
        let request =
            serde_json::from_value(json!({"spec": {"audiences": [], "expirationSeconds": 3600}})).unwrap();
        let token = accounts.create_token_request("robot", &PostParams::default(), &request).await.unwrap();
        let token = token.status.unwrap().token;
        let mut config = kube::Config::new(server.url.parse().unwrap());
        let der = x509_parser::pem::parse_x509_pem(&ca).unwrap().1.contents;
        config.root_cert = Some(vec![der]);
        config.auth_info.token = Some(token.clone().into());
        let robot = kube::Client::try_from(config.clone()).unwrap();
        let pods: Api<Pod> = Api::namespaced(robot.clone(), "default");
        assert!(pods.list(&ListParams::default()).await.unwrap().items.is_empty());
        config.auth_info.token = Some(format!("{}x", &token[..token.len() - 1]).into());
        let forged: Api<Pod> = Api::namespaced(kube::Client::try_from(config.clone()).unwrap(), "default");
        let error = forged.list(&ListParams::default()).await.unwrap_err();
        assert!(matches!(&error, kube::Error::Api(s) if s.code == 401), "{error:?}");
        config.auth_info.token = None;
        let nobody: Api<Pod> = Api::namespaced(kube::Client::try_from(config).unwrap(), "default");
        let error = nobody.list(&ListParams::default()).await.unwrap_err();
        assert!(matches!(&error, kube::Error::Api(s) if s.code == 401), "{error:?}");
        accounts.delete("robot", &DeleteParams::default()).await.unwrap();
        let error = pods.list(&ListParams::default()).await.unwrap_err();
        assert!(matches!(&error, kube::Error::Api(s) if s.code == 401), "{error:?}");
    });
}

#[test]
fn everything_is_there_after_a_restart() {
    let server = Server::start();
    let (_, made) = server.post(MAPS, &map("kept"));
    let (_, before) = server.get("/api/v1/namespaces");
    let server = Server::start_in(server.stop());
    assert_eq!(server.get(&format!("{MAPS}/kept")).1, made);
    let (_, after) = server.get("/api/v1/namespaces");
    assert_eq!(after["items"], before["items"]);
    let number = |list: &serde_json::Value| -> u64 {
        list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
    };
    assert!(number(&after) >= number(&before));
    let (_, next) = server.post(MAPS, &map("next"));
    assert!(number(&next) > number(&after));
}
