//! Every built-in resource, in one table.

/// What is known of a built-in resource.
pub struct Builtin {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Plural, the name in paths.
    pub plural: &'static str,
    /// Singular.
    pub singular: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Short names.
    pub short: &'static [&'static str],
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// In the category `all` (`kubectl get all`).
    pub all: bool,
    /// Subresources.
    pub sub: &'static [&'static str],
    /// Whether objects of it are stored; reviews are only answered.
    pub stored: bool,
    /// Name of its schema, without the common prefix.
    pub schema: &'static str,
}

const fn stored(
    (group, version): (&'static str, &'static str),
    (plural, singular, kind): (&'static str, &'static str, &'static str),
    short: &'static [&'static str],
    namespaced: bool,
    sub: &'static [&'static str],
    schema: &'static str,
) -> Builtin {
    Builtin {
        group,
        version,
        plural,
        singular,
        kind,
        short,
        namespaced,
        all: false,
        sub,
        stored: true,
        schema,
    }
}

const fn review(
    (group, version): (&'static str, &'static str),
    (plural, singular, kind): (&'static str, &'static str, &'static str),
    schema: &'static str,
) -> Builtin {
    Builtin {
        group,
        version,
        plural,
        singular,
        kind,
        short: &[],
        namespaced: false,
        all: false,
        sub: &[],
        stored: false,
        schema,
    }
}

const fn in_all(mut builtin: Builtin) -> Builtin {
    builtin.all = true;
    builtin
}

const CORE: (&str, &str) = ("", "v1");
const APPS: (&str, &str) = ("apps", "v1");
const RBAC: (&str, &str) = ("rbac.authorization.k8s.io", "v1");
const AUTHN: (&str, &str) = ("authentication.k8s.io", "v1");
const AUTHZ: (&str, &str) = ("authorization.k8s.io", "v1");
/// Group and version of events of the newer shape.
pub const EVENTS: (&str, &str) = ("events.k8s.io", "v1");
/// Group and version of CustomResourceDefinitions.
pub const APIEXTENSIONS: (&str, &str) = ("apiextensions.k8s.io", "v1");

/// The built-in resources in the order of discovery.
pub const BUILTINS: &[Builtin] = &[
    stored(CORE, ("configmaps", "configmap", "ConfigMap"), &["cm"], true, &[], "api.core.v1.ConfigMap"),
    stored(CORE, ("endpoints", "endpoints", "Endpoints"), &["ep"], true, &[], "api.core.v1.Endpoints"),
    stored(CORE, ("events", "event", "Event"), &["ev"], true, &[], "api.core.v1.Event"),
    stored(
        CORE,
        ("namespaces", "namespace", "Namespace"),
        &["ns"],
        false,
        &["status", "finalize"],
        "api.core.v1.Namespace",
    ),
    stored(CORE, ("nodes", "node", "Node"), &["no"], false, &["status"], "api.core.v1.Node"),
    in_all(stored(
        CORE,
        ("pods", "pod", "Pod"),
        &["po"],
        true,
        &["status", "log", "exec", "attach", "portforward", "binding", "eviction"],
        "api.core.v1.Pod",
    )),
    stored(CORE, ("secrets", "secret", "Secret"), &[], true, &[], "api.core.v1.Secret"),
    stored(
        CORE,
        ("serviceaccounts", "serviceaccount", "ServiceAccount"),
        &["sa"],
        true,
        &["token"],
        "api.core.v1.ServiceAccount",
    ),
    in_all(stored(
        CORE,
        ("services", "service", "Service"),
        &["svc"],
        true,
        &["status"],
        "api.core.v1.Service",
    )),
    stored(
        APPS,
        ("controllerrevisions", "controllerrevision", "ControllerRevision"),
        &[],
        true,
        &[],
        "api.apps.v1.ControllerRevision",
    ),
    in_all(stored(
        APPS,
        ("daemonsets", "daemonset", "DaemonSet"),
        &["ds"],
        true,
        &["status"],
        "api.apps.v1.DaemonSet",
    )),
    in_all(stored(
        APPS,
        ("deployments", "deployment", "Deployment"),
        &["deploy"],
        true,
        &["status", "scale"],
        "api.apps.v1.Deployment",
    )),
    in_all(stored(
        APPS,
        ("replicasets", "replicaset", "ReplicaSet"),
        &["rs"],
        true,
        &["status", "scale"],
        "api.apps.v1.ReplicaSet",
    )),
    stored(EVENTS, ("events", "event", "Event"), &["ev"], true, &[], "api.events.v1.Event"),
    review(AUTHN, ("tokenreviews", "tokenreview", "TokenReview"), "api.authentication.v1.TokenReview"),
    review(
        AUTHN,
        ("selfsubjectreviews", "selfsubjectreview", "SelfSubjectReview"),
        "api.authentication.v1.SelfSubjectReview",
    ),
    review(
        AUTHZ,
        ("selfsubjectaccessreviews", "selfsubjectaccessreview", "SelfSubjectAccessReview"),
        "api.authorization.v1.SelfSubjectAccessReview",
    ),
    review(
        AUTHZ,
        ("subjectaccessreviews", "subjectaccessreview", "SubjectAccessReview"),
        "api.authorization.v1.SubjectAccessReview",
    ),
    stored(
        ("coordination.k8s.io", "v1"),
        ("leases", "lease", "Lease"),
        &[],
        true,
        &[],
        "api.coordination.v1.Lease",
    ),
    stored(
        ("discovery.k8s.io", "v1"),
        ("endpointslices", "endpointslice", "EndpointSlice"),
        &[],
        true,
        &[],
        "api.discovery.v1.EndpointSlice",
    ),
    stored(RBAC, ("clusterroles", "clusterrole", "ClusterRole"), &[], false, &[], "api.rbac.v1.ClusterRole"),
    stored(
        RBAC,
        ("clusterrolebindings", "clusterrolebinding", "ClusterRoleBinding"),
        &[],
        false,
        &[],
        "api.rbac.v1.ClusterRoleBinding",
    ),
    stored(RBAC, ("roles", "role", "Role"), &[], true, &[], "api.rbac.v1.Role"),
    stored(RBAC, ("rolebindings", "rolebinding", "RoleBinding"), &[], true, &[], "api.rbac.v1.RoleBinding"),
    stored(
        APIEXTENSIONS,
        ("customresourcedefinitions", "customresourcedefinition", "CustomResourceDefinition"),
        &["crd", "crds"],
        false,
        &["status"],
        "apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
    ),
];
