//! Certificates and keys of the embedded cluster: one CA, the API server's certificate, a client certificate for
//! everyone who speaks to it, a serving certificate for each node runtime, and the key that signs ServiceAccount tokens.
//!
//! All keys are ECDSA P-256. Files that exist are kept, so [`create`] may be called any number of times.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use time::{Duration, OffsetDateTime};

/// What went wrong while certificates were made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A certificate or a key could not be made or understood.
    #[error("{what}: {source}; remove the PKI directory to have it made anew")]
    Crypto {
        /// The certificate or key.
        what: String,
        /// The cause.
        source: rcgen::Error,
    },
}

/// A node that needs certificates.
#[derive(Clone, Debug)]
pub struct PkiNode {
    /// The node's name.
    pub name: String,
    /// Addresses at which its node runtime answers.
    pub ips: Vec<IpAddr>,
}

/// Whom to make certificates for.
#[derive(Clone, Debug, Default)]
pub struct PkiRequest {
    /// DNS names of the API server besides `kubernetes`, `kubernetes.default`, `kubernetes.default.svc`,
    /// `kubernetes.default.svc.cluster.local` and `localhost`.
    pub server_names: Vec<String>,
    /// Addresses of the API server besides 127.0.0.1: its node's, and the first of the service CIDR.
    pub server_ips: Vec<IpAddr>,
    /// The nodes.
    pub nodes: Vec<PkiNode>,
}

/// A directory of certificates.
#[derive(Clone, Debug)]
pub struct Pki {
    dir: PathBuf,
}

impl Pki {
    /// The certificates in `dir`, which [`create`] has made.
    pub fn open(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The CA's certificate.
    pub fn ca_cert(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// Private key that signs ServiceAccount tokens (PKCS#8 PEM).
    pub fn service_account_key(&self) -> PathBuf {
        self.dir.join("sa.key")
    }

    /// Certificate (PEM) of `name`: `apiserver`, `admin`, `controller-manager`, `scheduler`,
    /// `apiserver-kubelet-client`, `kubelet-<node>` or `kubelet-<node>-serving`.
    pub fn cert(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.crt"))
    }

    /// Private key (PKCS#8 PEM) of `name`, as for [`Pki::cert`].
    pub fn key(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.key"))
    }

    /// The text of one of the files.
    pub fn read(path: &Path) -> Result<String, PkiError> {
        fs::read_to_string(path).map_err(|source| PkiError::Io { path: path.to_owned(), source })
    }
}

/// A kubeconfig with everything embedded, for `user` (`admin`, `controller-manager`, `scheduler`, `kubelet-<node>`).
pub fn kubeconfig(pki: &Pki, server_url: &str, user: &str) -> Result<String, PkiError> {
    let data = |path: PathBuf| Pki::read(&path).map(|text| STANDARD.encode(text));
    let (ca, cert, key) = (data(pki.ca_cert())?, data(pki.cert(user))?, data(pki.key(user))?);
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "apiVersion: v1\nkind: Config\ncurrent-context: podwire\n\
         clusters:\n- name: podwire\n  cluster:\n    server: {server_url}\n    certificate-authority-data: {ca}\n\
         contexts:\n- name: podwire\n  context:\n    cluster: podwire\n    user: {user}\n\
         users:\n- name: {user}\n  user:\n    client-certificate-data: {cert}\n    client-key-data: {key}\n"
    );
    Ok(out)
}

/// Makes whatever `request` needs and `dir` lacks. Keys are readable by their owner only.
pub fn create(dir: &Path, request: &PkiRequest) -> Result<Pki, PkiError> {
    fs::create_dir_all(dir).map_err(|source| PkiError::Io { path: dir.to_owned(), source })?;
    let pki = Pki::open(dir);
    let issuer = certificate_authority(&pki)?;

    let mut names: Vec<SanType> = Vec::new();
    let fixed = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ];
    for name in fixed.iter().copied().chain(request.server_names.iter().map(String::as_str)) {
        names.push(dns_name(name)?);
    }
    names.push(SanType::IpAddress(IpAddr::from([127, 0, 0, 1])));
    names.extend(request.server_ips.iter().copied().map(SanType::IpAddress));
    leaf(&pki, &issuer, "apiserver", &Subject::server("kube-apiserver", names))?;

    leaf(&pki, &issuer, "admin", &Subject::client("kubernetes-admin", &["system:masters"]))?;
    leaf(&pki, &issuer, "controller-manager", &Subject::client("system:kube-controller-manager", &[]))?;
    leaf(&pki, &issuer, "scheduler", &Subject::client("system:kube-scheduler", &[]))?;
    let kubelet_client = Subject::client("kube-apiserver-kubelet-client", &["system:masters"]);
    leaf(&pki, &issuer, "apiserver-kubelet-client", &kubelet_client)?;

    for node in &request.nodes {
        let user = format!("system:node:{}", node.name);
        leaf(&pki, &issuer, &format!("kubelet-{}", node.name), &Subject::client(&user, &["system:nodes"]))?;
        let mut names = vec![dns_name(&node.name)?];
        names.extend(node.ips.iter().copied().map(SanType::IpAddress));
        leaf(&pki, &issuer, &format!("kubelet-{}-serving", node.name), &Subject::server(&user, names))?;
    }
    service_account_key(&pki)?;
    Ok(pki)
}

/// Whom a certificate is for.
struct Subject {
    common_name: String,
    organizations: Vec<String>,
    names: Vec<SanType>,
    usage: ExtendedKeyUsagePurpose,
}

impl Subject {
    fn client(common_name: &str, organizations: &[&str]) -> Self {
        Self {
            common_name: common_name.to_owned(),
            organizations: organizations.iter().map(|&o| o.to_owned()).collect(),
            names: Vec::new(),
            usage: ExtendedKeyUsagePurpose::ClientAuth,
        }
    }

    fn server(common_name: &str, names: Vec<SanType>) -> Self {
        Self {
            common_name: common_name.to_owned(),
            organizations: Vec::new(),
            names,
            usage: ExtendedKeyUsagePurpose::ServerAuth,
        }
    }
}

fn dns_name(name: &str) -> Result<SanType, PkiError> {
    let text =
        name.try_into().map_err(|source| PkiError::Crypto { what: format!("name {name:?}"), source })?;
    Ok(SanType::DnsName(text))
}

fn crypto(what: &str) -> impl FnOnce(rcgen::Error) -> PkiError + '_ {
    move |source| PkiError::Crypto { what: what.to_owned(), source }
}

fn parameters(common_name: &str, organizations: &[String]) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    // Each push of the same type would replace the one before: the names here have one organization at most.
    for organization in organizations {
        name.push(DnType::OrganizationName, organization.as_str());
    }
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    // A day of slack, for machines whose clocks disagree.
    params.not_before = OffsetDateTime::now_utc() - Duration::days(1);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(3650);
    params
}

fn certificate_authority(pki: &Pki) -> Result<Issuer<'static, KeyPair>, PkiError> {
    let (cert_path, key_path) = (pki.ca_cert(), pki.key("ca"));
    if cert_path.exists() && key_path.exists() {
        let key = KeyPair::from_pem(&Pki::read(&key_path)?).map_err(crypto("ca.key"))?;
        return Issuer::from_ca_cert_pem(&Pki::read(&cert_path)?, key).map_err(crypto("ca.crt"));
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto("ca.key"))?;
    let mut params = parameters("podwire-ca", &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let cert = params.self_signed(&key).map_err(crypto("ca.crt"))?;
    write(&key_path, &key.serialize_pem(), 0o600)?;
    write(&cert_path, &cert.pem(), 0o644)?;
    Ok(Issuer::new(params, key))
}

fn leaf(pki: &Pki, issuer: &Issuer<'_, KeyPair>, name: &str, subject: &Subject) -> Result<(), PkiError> {
    let (cert_path, key_path) = (pki.cert(name), pki.key(name));
    if cert_path.exists() && key_path.exists() {
        return Ok(());
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto(name))?;
    let mut params = parameters(&subject.common_name, &subject.organizations);
    params.subject_alt_names.clone_from(&subject.names);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![subject.usage.clone()];
    params.use_authority_key_identifier_extension = true;
    let cert = params.signed_by(&key, issuer).map_err(crypto(name))?;
    write(&key_path, &key.serialize_pem(), 0o600)?;
    write(&cert_path, &cert.pem(), 0o644)
}

fn service_account_key(pki: &Pki) -> Result<(), PkiError> {
    let public = pki.dir.join("sa.pub");
    if pki.service_account_key().exists() && public.exists() {
        return Ok(());
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto("sa.key"))?;
    write(&pki.service_account_key(), &key.serialize_pem(), 0o600)?;
    write(&public, &key.public_key_pem(), 0o644)
}

/// Writes a file so that it is whole or absent whenever the process dies.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let io = |source| PkiError::Io { path: path.to_owned(), source };
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    match fs::remove_file(&part) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(e)),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&part).map_err(io)?;
    file.write_all(text.as_bytes()).map_err(io)?;
    file.sync_all().map_err(io)?;
    fs::rename(&part, path).map_err(io)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn request() -> PkiRequest {
        PkiRequest {
            server_names: vec!["k8s-ctr".into()],
            server_ips: vec!["192.168.10.100".parse().unwrap(), "10.96.0.1".parse().unwrap()],
            nodes: vec![PkiNode { name: "w1".into(), ips: vec!["192.168.10.101".parse().unwrap()] }],
        }
    }

    #[test]
    fn makes_what_is_missing_and_keeps_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let pki = create(dir.path(), &request()).unwrap();
        let ca = Pki::read(&pki.ca_cert()).unwrap();
        let admin = Pki::read(&pki.cert("admin")).unwrap();
        fs::remove_file(pki.cert("scheduler")).unwrap();
        create(dir.path(), &request()).unwrap();
        assert_eq!(Pki::read(&pki.ca_cert()).unwrap(), ca);
        assert_eq!(Pki::read(&pki.cert("admin")).unwrap(), admin);
        assert!(pki.cert("scheduler").exists());
    }

    #[test]
    fn keys_are_private_and_names_are_in_the_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let pki = create(dir.path(), &request()).unwrap();
        for name in ["ca", "apiserver", "admin", "kubelet-w1", "kubelet-w1-serving", "sa"] {
            let mode = fs::metadata(pki.key(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let pem = Pki::read(&pki.cert("kubelet-w1")).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let cert = pem.parse_x509().unwrap();
        let subject = cert.subject();
        assert_eq!(subject.iter_common_name().next().unwrap().as_str().unwrap(), "system:node:w1");
        assert_eq!(subject.iter_organization().next().unwrap().as_str().unwrap(), "system:nodes");
        let pem = Pki::read(&pki.cert("apiserver")).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let cert = pem.parse_x509().unwrap();
        let names = format!("{:?}", cert.subject_alternative_name().unwrap().unwrap().value.general_names);
        assert!(names.contains("k8s-ctr") && names.contains("[192, 168, 10, 100]"), "{names}");
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = create(&file.path().join("pki"), &request()).unwrap_err().to_string();
        assert!(error.contains("pki"), "{error}");
    }

    #[test]
    fn kubeconfig_embeds_the_user() {
        let dir = tempfile::tempdir().unwrap();
        let pki = create(dir.path(), &request()).unwrap();
        let text = kubeconfig(&pki, "https://127.0.0.1:6443", "admin").unwrap();
        let config = kube::config::Kubeconfig::from_yaml(&text).unwrap();
        assert_eq!(
            config.clusters[0].cluster.as_ref().unwrap().server.as_deref(),
            Some("https://127.0.0.1:6443")
        );
        assert!(kubeconfig(&pki, "https://x", "nobody").is_err());
    }
}
