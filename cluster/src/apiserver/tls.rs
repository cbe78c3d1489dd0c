//! TLS: the server's side, where a client certificate is welcome but not demanded, and the client's side towards node
//! runtimes.

use std::path::Path;
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::pki::Pki;

/// A certificate or key could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {cause}")]
pub struct TlsError {
    path: String,
    cause: String,
}

fn failed<E: std::fmt::Display>(path: &Path) -> impl Fn(E) -> TlsError + '_ {
    move |cause| TlsError { path: path.display().to_string(), cause: cause.to_string() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(failed(path))
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(failed(path))
}

fn roots(pki: &Pki) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    let path = pki.ca_cert();
    for certificate in certificates(&path)? {
        roots.add(certificate).map_err(failed(&path))?;
    }
    Ok(Arc::new(roots))
}

/// What the API server answers with.
pub fn server(pki: &Pki) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let path = pki.cert("apiserver");
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(pki)?, Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(failed(&path))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed(&path))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&path)?, key(&pki.key("apiserver"))?)
        .map_err(failed(&path))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// How the API server presents itself to node runtimes.
pub fn kubelet_client(pki: &Pki) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let path = pki.cert("apiserver-kubelet-client");
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed(&path))?
        .with_root_certificates(roots(pki)?)
        .with_client_auth_cert(certificates(&path)?, key(&pki.key("apiserver-kubelet-client"))?)
        .map_err(failed(&path))?;
    Ok(Arc::new(config))
}
