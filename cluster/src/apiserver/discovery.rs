//! Discovery: which groups, versions and resources there are, in the older form (a document for each version) and the
//! aggregated one (all in one).

use std::collections::BTreeSet;

use http::header::ACCEPT;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::http::{self as answers, Answer};
use super::path::Target;
use super::registry::{Resource, Served};
use super::state::Api;
use super::status::ApiError;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// What a subresource is about, where that is not the resource's own kind: group, version, kind.
fn sub_kind(resource: &Resource, sub: &str) -> (String, String, String) {
    let (group, version, kind) = match sub {
        "scale" => ("autoscaling", "v1", "Scale"),
        "eviction" => ("policy", "v1", "Eviction"),
        "binding" => ("", "v1", "Binding"),
        "token" => ("authentication.k8s.io", "v1", "TokenRequest"),
        "exec" => ("", "v1", "PodExecOptions"),
        "attach" => ("", "v1", "PodAttachOptions"),
        "portforward" => ("", "v1", "PodPortForwardOptions"),
        _ => (resource.group.as_str(), resource.version.as_str(), resource.kind.as_str()),
    };
    (group.to_owned(), version.to_owned(), kind.to_owned())
}

fn sub_verbs(sub: &str) -> &'static [&'static str] {
    match sub {
        "eviction" | "binding" | "token" => &["create"],
        "finalize" => &["update"],
        "log" => &["get"],
        "exec" | "attach" | "portforward" => &["create", "get"],
        _ => &["get", "patch", "update"],
    }
}

/// Answers a discovery request.
pub fn answer(api: &Api, served: &Served, target: &Target, headers: &HeaderMap) -> Result<Answer, ApiError> {
    let aggregated = wants_aggregated(headers);
    match target {
        Target::CoreVersions if aggregated => Ok(aggregate(served, true)),
        Target::Groups if aggregated => Ok(aggregate(served, false)),
        Target::CoreVersions => Ok(answers::json(
            StatusCode::OK,
            &json!({"kind": "APIVersions", "versions": ["v1"],
                "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": api.config.listen.to_string()}]}),
        )),
        Target::Groups => {
            let groups: Vec<Value> =
                groups(served).iter().filter(|g| !g.is_empty()).map(|g| group(served, g)).collect();
            Ok(answers::json(
                StatusCode::OK,
                &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}),
            ))
        }
        Target::Group(name) if groups(served).contains(name) => {
            let mut group = group(served, name);
            group["kind"] = json!("APIGroup");
            group["apiVersion"] = json!("v1");
            Ok(answers::json(StatusCode::OK, &group))
        }
        Target::Resources(group, version) => {
            let resources: Vec<Value> = served
                .ordered
                .iter()
                .filter(|r| r.group == *group && r.version == *version)
                .flat_map(|r| legacy(r))
                .collect();
            if resources.is_empty() {
                return Err(ApiError::no_such_path());
            }
            let name = if group.is_empty() { version.clone() } else { format!("{group}/{version}") };
            Ok(answers::json(
                StatusCode::OK,
                &json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": resources}),
            ))
        }
        _ => Err(ApiError::no_such_path()),
    }
}

fn wants_aggregated(headers: &HeaderMap) -> bool {
    let ranges = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok());
    ranges.flat_map(|v| v.split(',')).any(|range| {
        let range: String = range.chars().filter(|c| !c.is_whitespace()).collect();
        range.starts_with("application/json")
            && range.contains("g=apidiscovery.k8s.io")
            && range.contains("v=v2;") | range.ends_with("v=v2")
    })
}

fn groups(served: &Served) -> Vec<String> {
    let mut seen = BTreeSet::new();
    served.ordered.iter().map(|r| r.group.clone()).filter(|g| seen.insert(g.clone())).collect()
}

fn versions(served: &Served, group: &str) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let of_group = served.ordered.iter().filter(|r| r.group == group);
    of_group.map(|r| r.version.clone()).filter(|v| seen.insert(v.clone())).collect()
}

fn group(served: &Served, name: &str) -> Value {
    let versions: Vec<Value> = versions(served, name)
        .iter()
        .map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v}))
        .collect();
    json!({"name": name, "versions": versions, "preferredVersion": versions.first()})
}

/// A resource and its subresources as the older form lists them.
fn legacy(resource: &Resource) -> Vec<Value> {
    let mut main = json!({
        "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
        "kind": resource.kind, "verbs": resource.verbs(),
    });
    if !resource.short.is_empty() {
        main["shortNames"] = json!(resource.short);
    }
    if !resource.categories.is_empty() {
        main["categories"] = json!(resource.categories);
    }
    let mut all = vec![main];
    for sub in &resource.sub {
        let (group, version, kind) = sub_kind(resource, sub);
        let mut entry = json!({
            "name": format!("{}/{sub}", resource.plural), "singularName": "", "namespaced": resource.namespaced,
            "kind": kind, "verbs": sub_verbs(sub),
        });
        if group != resource.group {
            entry["group"] = json!(group);
            entry["version"] = json!(version);
        }
        all.push(entry);
    }
    all
}

fn aggregate(served: &Served, core: bool) -> Answer {
    let items: Vec<Value> = groups(served)
        .iter()
        .filter(|g| g.is_empty() == core)
        .map(|group| {
            let versions: Vec<Value> = versions(served, group)
                .iter()
                .map(|version| {
                    let resources: Vec<Value> = served
                        .ordered
                        .iter()
                        .filter(|r| r.group == *group && r.version == *version)
                        .map(|r| aggregated(r))
                        .collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    let list = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items});
    answers::answer(StatusCode::OK, AGGREGATED, list.to_string())
}

fn aggregated(resource: &Resource) -> Value {
    let scope = if resource.namespaced { "Namespaced" } else { "Cluster" };
    let mut entry = json!({
        "resource": resource.plural, "singularResource": resource.singular, "scope": scope,
        "responseKind": {"group": resource.group, "version": resource.version, "kind": resource.kind},
        "verbs": resource.verbs(),
    });
    if !resource.short.is_empty() {
        entry["shortNames"] = json!(resource.short);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    if !resource.sub.is_empty() {
        let subs: Vec<Value> = resource
            .sub
            .iter()
            .map(|sub| {
                let (group, version, kind) = sub_kind(resource, sub);
                json!({"subresource": sub, "verbs": sub_verbs(sub),
                    "responseKind": {"group": group, "version": version, "kind": kind}})
            })
            .collect();
        entry["subresources"] = json!(subs);
    }
    entry
}
