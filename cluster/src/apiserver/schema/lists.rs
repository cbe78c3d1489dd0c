//! How lists and maps of built-in kinds are merged. The generated schemas lack it; it is what the comments
//! `+listType`, `+listMapKey`, `+mapType` and `+patchMergeKey` of the Kubernetes API types say.

/// A list that is merged item by item.
pub struct MergeList {
    /// End of the schema's name.
    pub kind: &'static str,
    /// Field that holds the list.
    pub field: &'static str,
    /// Keys for server-side apply; empty for a set of scalars.
    pub keys: &'static [&'static str],
    /// Merge key for strategic merge patches; empty if scalars are merged by value.
    pub patch_key: &'static str,
}

const fn by(
    kind: &'static str,
    field: &'static str,
    keys: &'static [&'static str],
    patch_key: &'static str,
) -> MergeList {
    MergeList { kind, field, keys, patch_key }
}

/// Lists that are merged. Any other list is replaced as a whole.
pub const MERGE_LISTS: &[MergeList] = &[
    by("meta.v1.ObjectMeta", "ownerReferences", &["uid"], "uid"),
    by("meta.v1.ObjectMeta", "finalizers", &[], ""),
    by("core.v1.PodSpec", "containers", &["name"], "name"),
    by("core.v1.PodSpec", "initContainers", &["name"], "name"),
    by("core.v1.PodSpec", "ephemeralContainers", &["name"], "name"),
    by("core.v1.PodSpec", "volumes", &["name"], "name"),
    by("core.v1.PodSpec", "imagePullSecrets", &["name"], "name"),
    by("core.v1.PodSpec", "hostAliases", &["ip"], "ip"),
    by("core.v1.PodSpec", "topologySpreadConstraints", &["topologyKey", "whenUnsatisfiable"], "topologyKey"),
    by("core.v1.PodSpec", "schedulingGates", &["name"], "name"),
    by("core.v1.PodSpec", "resourceClaims", &["name"], "name"),
    by("core.v1.Container", "env", &["name"], "name"),
    by("core.v1.Container", "ports", &["containerPort", "protocol"], "containerPort"),
    by("core.v1.Container", "volumeMounts", &["mountPath"], "mountPath"),
    by("core.v1.Container", "volumeDevices", &["devicePath"], "devicePath"),
    by("core.v1.EphemeralContainer", "env", &["name"], "name"),
    by("core.v1.EphemeralContainer", "ports", &["containerPort", "protocol"], "containerPort"),
    by("core.v1.EphemeralContainer", "volumeMounts", &["mountPath"], "mountPath"),
    by("core.v1.ResourceRequirements", "claims", &["name"], "name"),
    by("core.v1.PodStatus", "conditions", &["type"], "type"),
    by("core.v1.PodStatus", "podIPs", &["ip"], "ip"),
    by("core.v1.ServiceSpec", "ports", &["port", "protocol"], "port"),
    by("core.v1.ServiceStatus", "conditions", &["type"], "type"),
    by("core.v1.ServiceAccount", "secrets", &["name"], "name"),
    by("core.v1.NodeSpec", "podCIDRs", &[], ""),
    by("core.v1.NodeStatus", "conditions", &["type"], "type"),
    by("core.v1.NodeStatus", "addresses", &["type"], "type"),
    by("core.v1.NamespaceStatus", "conditions", &["type"], "type"),
    by("apps.v1.DeploymentStatus", "conditions", &["type"], "type"),
    by("apps.v1.ReplicaSetStatus", "conditions", &["type"], "type"),
    by("apps.v1.DaemonSetStatus", "conditions", &["type"], "type"),
    by("apiextensions.v1.CustomResourceDefinitionStatus", "conditions", &["type"], "type"),
];

/// Kinds that are merged as one value wherever they stand.
pub const ATOMIC_KINDS: &[&str] = &[
    "meta.v1.LabelSelector",
    "meta.v1.OwnerReference",
    "core.v1.ConfigMapKeySelector",
    "core.v1.LocalObjectReference",
    "core.v1.NodeSelector",
    "core.v1.NodeSelectorTerm",
    "core.v1.ObjectFieldSelector",
    "core.v1.ObjectReference",
    "core.v1.ResourceFieldSelector",
    "core.v1.SecretKeySelector",
    "core.v1.SecretReference",
    "core.v1.TypedLocalObjectReference",
    "discovery.v1.EndpointConditions",
    "rbac.v1.RoleRef",
    "rbac.v1.Subject",
];

/// Maps that are merged as one value: schema and field.
pub const ATOMIC_FIELDS: &[(&str, &str)] =
    &[("core.v1.PodSpec", "nodeSelector"), ("core.v1.ServiceSpec", "selector")];

/// Kinds that may hold any JSON.
pub const FREE_KINDS: &[&str] = &[
    "apiextensions.v1.JSON",
    "apiextensions.v1.JSONSchemaProps",
    "apiextensions.v1.JSONSchemaPropsOrArray",
    "apiextensions.v1.JSONSchemaPropsOrBool",
    "apiextensions.v1.JSONSchemaPropsOrStringArray",
    "meta.v1.FieldsV1",
    "pkg.runtime.RawExtension",
];

/// Value of a list's key field where an item leaves it out.
pub fn key_default(key: &str) -> Option<&'static str> {
    (key == "protocol").then_some("TCP")
}
