//! How the API server is reached.

use std::path::Path;

use kube::{Client, Config};

/// The API server cannot be reached because nothing says where it is.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A kubeconfig is named but cannot be used.
    #[error("kubeconfig: {0}; correct $KUBECONFIG, or unset it to use the pod's service account")]
    Kubeconfig(#[source] Box<kube::config::KubeconfigError>),
    /// The pod's service account cannot be used.
    #[error("service account: {0}; run in a pod, or set $KUBECONFIG")]
    InCluster(#[source] Box<kube::config::InClusterError>),
    /// The client could not be made.
    #[error("API client: {0}")]
    Client(#[source] Box<kube::Error>),
}

/// Where a pod's service account is mounted.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// A client: by $KUBECONFIG if it is set, else by the pod's service account, else by the user's kubeconfig. Returns the
/// address of the API server too.
pub async fn connect() -> Result<(Client, String), ClientError> {
    let in_pod = std::env::var_os("KUBECONFIG").is_none() && Path::new(SERVICE_ACCOUNT).exists();
    let config = if in_pod {
        Config::incluster_env().map_err(|e| ClientError::InCluster(Box::new(e)))?
    } else {
        Config::from_kubeconfig(&kube::config::KubeConfigOptions::default())
            .await
            .map_err(|e| ClientError::Kubeconfig(Box::new(e)))?
    };
    let server = config.cluster_url.to_string();
    let client = Client::try_from(config).map_err(|e| ClientError::Client(Box::new(e)))?;
    Ok((client, server))
}
