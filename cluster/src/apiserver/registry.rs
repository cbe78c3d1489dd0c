//! Which resources are served: the built-in ones and those of CustomResourceDefinitions.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use serde_json::Value;

use super::resources::{APIEXTENSIONS, BUILTINS, EVENTS};
use super::status::ApiError;
use crate::store::{Key, Snapshot};

/// Storage name of CustomResourceDefinitions.
pub const CRDS: &str = "apiextensions.k8s.io/customresourcedefinitions";

/// Key of the definition whose objects have this storage name, if they are a custom resource's.
pub fn definition_of(storage: &str) -> Key {
    let (group, plural) = storage.split_once('/').unwrap_or_default();
    Key::new(CRDS, "", &format!("{plural}.{group}"))
}

/// Storage name of the objects that a CustomResourceDefinition defines.
pub fn storage_of(crd: &Value) -> String {
    format!("{}/{}", text(&crd["spec"]["group"]), text(&crd["spec"]["names"]["plural"]))
}

/// A column of a custom resource's table.
#[derive(Clone, Debug)]
pub struct PrinterColumn {
    /// Heading.
    pub name: String,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: String,
    /// OpenAPI format, for clients.
    pub format: String,
    /// What it says.
    pub description: String,
    /// 0 is always shown, more only with `-o wide`.
    pub priority: i64,
    /// Where the value is.
    pub json_path: String,
}

/// What a CustomResourceDefinition says of one version.
#[derive(Debug)]
pub struct Custom {
    /// Structural schema, if it has one.
    pub schema: Value,
    /// Columns besides the name.
    pub columns: Vec<PrinterColumn>,
    /// `spec.subresources.scale` of the version, if it has one.
    pub scale: Option<Value>,
}

/// One resource in one version.
#[derive(Debug)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Plural, the name in paths.
    pub plural: String,
    /// Singular.
    pub singular: String,
    /// Kind.
    pub kind: String,
    /// Kind of lists of it.
    pub list_kind: String,
    /// Short names.
    pub short: Vec<String>,
    /// Categories.
    pub categories: Vec<String>,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Subresources.
    pub sub: Vec<String>,
    /// Whether objects of it are stored.
    pub stored: bool,
    /// Where its objects are in the store.
    pub storage: Arc<str>,
    /// Name of the built-in schema; empty for custom resources.
    pub schema: String,
    /// What its CustomResourceDefinition says, if it has one.
    pub custom: Option<Custom>,
}

impl Resource {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Key of an object of this resource.
    pub fn key(&self, namespace: &str, name: &str) -> Key {
        let namespace = if self.namespaced { namespace } else { "" };
        Key { resource: Arc::clone(&self.storage), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// Whether it has a subresource.
    pub fn has_sub(&self, name: &str) -> bool {
        self.sub.iter().any(|s| s == name)
    }

    /// Whether this is a built-in resource of that group and plural.
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.custom.is_none() && self.group == group && self.plural == plural
    }

    /// Whether these are events in the shape of events.k8s.io, stored in the core shape.
    pub fn is_new_event(&self) -> bool {
        self.is(EVENTS.0, "events")
    }

    /// Verbs of the resource, as discovery lists them.
    pub fn verbs(&self) -> &'static [&'static str] {
        if self.stored {
            &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
        } else {
            &["create"]
        }
    }

    /// Not found, about an object of this resource.
    pub fn not_found(&self, name: &str) -> ApiError {
        ApiError::not_found(&self.group, &self.plural, name)
    }

    /// Conflict, about an object of this resource.
    pub fn conflict(&self, name: &str, why: &str) -> ApiError {
        ApiError::conflict(&self.group, &self.plural, name, why)
    }
}

type Table = BTreeMap<(String, String, String), Arc<Resource>>;

/// The resources that are served now.
pub struct Registry {
    builtins: Vec<Arc<Resource>>,
    current: RwLock<Arc<Served>>,
}

/// The resources as of one moment.
pub struct Served {
    by_name: Table,
    /// In the order of discovery.
    pub ordered: Vec<Arc<Resource>>,
    /// Changes whenever the set does.
    pub revision: u64,
}

impl Served {
    /// A resource by group, version and plural.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.by_name.get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    /// A resource by group and kind, in any version.
    pub fn by_kind(&self, group: &str, kind: &str) -> Option<&Arc<Resource>> {
        self.ordered.iter().find(|r| r.group == group && r.kind == kind)
    }

    /// A resource by its place in the store. The first version is as good as any: they share objects.
    pub fn by_storage(&self, storage: &str) -> Option<&Arc<Resource>> {
        self.ordered.iter().find(|r| *r.storage == *storage)
    }
}

impl Registry {
    /// The built-in resources and those of the CustomResourceDefinitions in `crds`.
    pub fn new(crds: &Snapshot) -> Self {
        let builtins: Vec<Arc<Resource>> = BUILTINS.iter().map(|b| Arc::new(builtin(b))).collect();
        let served = Arc::new(serve(&builtins, crds));
        Self { builtins, current: RwLock::new(served) }
    }

    /// The resources served now.
    pub fn current(&self) -> Arc<Served> {
        Arc::clone(&self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Takes over a change of the CustomResourceDefinitions.
    pub fn refresh(&self, crds: &Snapshot) {
        let served = Arc::new(serve(&self.builtins, crds));
        let mut current = self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if served.revision >= current.revision {
            *current = served;
        }
    }
}

fn builtin(b: &super::resources::Builtin) -> Resource {
    let storage = match (b.group, b.plural) {
        // One set of events in two shapes.
        (group, "events") if group == EVENTS.0 => "core/events".to_owned(),
        ("", plural) => format!("core/{plural}"),
        (group, plural) => format!("{group}/{plural}"),
    };
    Resource {
        group: b.group.to_owned(),
        version: b.version.to_owned(),
        plural: b.plural.to_owned(),
        singular: b.singular.to_owned(),
        kind: b.kind.to_owned(),
        list_kind: format!("{}List", b.kind),
        short: b.short.iter().map(|&s| s.to_owned()).collect(),
        categories: if b.all {
            vec!["all".to_owned()]
        } else if b.group == APIEXTENSIONS.0 {
            vec!["api-extensions".to_owned()]
        } else {
            Vec::new()
        },
        namespaced: b.namespaced,
        sub: b.sub.iter().map(|&s| s.to_owned()).collect(),
        stored: b.stored,
        storage: Arc::from(storage),
        schema: format!("io.k8s.{}", b.schema),
        custom: None,
    }
}

fn serve(builtins: &[Arc<Resource>], crds: &Snapshot) -> Served {
    let mut ordered: Vec<Arc<Resource>> = builtins.to_vec();
    for crd in &crds.objects {
        // A definition whose names clash with served ones is stored but not established.
        for resource in custom_resources(&crd.value) {
            let taken = ordered.iter().any(|r| {
                r.group == resource.group && r.version == resource.version && r.plural == resource.plural
            });
            if !taken {
                ordered.push(Arc::new(resource));
            }
        }
    }
    let by_name = ordered
        .iter()
        .map(|r| ((r.group.clone(), r.version.clone(), r.plural.clone()), Arc::clone(r)))
        .collect();
    Served { by_name, ordered, revision: crds.version }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn custom_resources(crd: &Value) -> Vec<Resource> {
    let spec = &crd["spec"];
    let names = &spec["names"];
    let (group, plural) = (text(&spec["group"]), text(&names["plural"]));
    let mut versions: Vec<&Value> =
        spec["versions"].as_array().into_iter().flatten().filter(|v| v["served"] == true).collect();
    // The storage version is the preferred one: it comes first.
    versions.sort_by_key(|v| v["storage"] != true);
    versions
        .into_iter()
        .map(|version| {
            let subresources = &version["subresources"];
            let mut sub = Vec::new();
            if subresources["status"].is_object() {
                sub.push("status".to_owned());
            }
            let scale = subresources["scale"].is_object().then(|| subresources["scale"].clone());
            if scale.is_some() {
                sub.push("scale".to_owned());
            }
            Resource {
                group: group.clone(),
                version: text(&version["name"]),
                plural: plural.clone(),
                singular: text(&names["singular"]),
                kind: text(&names["kind"]),
                list_kind: text(&names["listKind"]),
                short: texts(&names["shortNames"]),
                categories: texts(&names["categories"]),
                namespaced: spec["scope"] == "Namespaced",
                sub,
                stored: true,
                storage: Arc::from(storage_of(crd)),
                schema: String::new(),
                custom: Some(Custom {
                    schema: version["schema"]["openAPIV3Schema"].clone(),
                    columns: columns(version),
                    scale,
                }),
            }
        })
        .collect()
}

fn columns(version: &Value) -> Vec<PrinterColumn> {
    version["additionalPrinterColumns"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|c| PrinterColumn {
            name: text(&c["name"]),
            kind: text(&c["type"]),
            format: text(&c["format"]),
            description: text(&c["description"]),
            priority: c["priority"].as_i64().unwrap_or(0),
            json_path: text(&c["jsonPath"]),
        })
        .collect()
}
