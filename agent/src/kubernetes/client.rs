//! How the API server is reached.

use std::path::Path;
use std::time::Duration;

use http::HeaderValue;
use http::header::USER_AGENT;
use kube::client::ClientBuilder;
use kube::{Client, Config};
use tower::BoxError;
use tower::util::MapFutureLayer;

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

/// So long may the API server take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// So long may it take to begin an answer. A watch's answer begins at once, and may then go on for as long as it likes.
const ANSWER: Duration = Duration::from_secs(30);

/// A client: by $KUBECONFIG if it is set, else by the pod's service account, else by the user's kubeconfig. Returns the
/// address of the API server too. Each call names `program`: audit logs and managed fields show who it was.
pub async fn connect(program: &'static str) -> Result<(Client, String), ClientError> {
    let in_pod = std::env::var_os("KUBECONFIG").is_none() && Path::new(SERVICE_ACCOUNT).exists();
    let config = if in_pod {
        Config::incluster_env().map_err(|e| ClientError::InCluster(Box::new(e)))?
    } else {
        Config::from_kubeconfig(&kube::config::KubeConfigOptions::default())
            .await
            .map_err(|e| ClientError::Kubeconfig(Box::new(e)))?
    };
    let server = config.cluster_url.to_string();
    Ok((client(config, program)?, server))
}

fn client(mut config: Config, program: &'static str) -> Result<Client, ClientError> {
    config.headers.push((USER_AGENT, HeaderValue::from_static(program)));
    config.connect_timeout = Some(CONNECT);
    let builder = ClientBuilder::try_from(config).map_err(|e| ClientError::Client(Box::new(e)))?;
    Ok(builder.with_layer(&MapFutureLayer::new(|answer| within(ANSWER, answer))).build())
}

/// The answer, if it begins in time: an API server that accepts calls and says nothing would otherwise be waited for, for ever.
async fn within<T>(
    patience: Duration,
    answer: impl Future<Output = Result<T, BoxError>>,
) -> Result<T, BoxError> {
    tokio::time::timeout(patience, answer).await.unwrap_or_else(|_| {
        let seconds = patience.as_secs();
        Err(format!("no answer within {seconds} s; does the API server hang, or is the network cut?").into())
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn each_call_says_which_program_makes_it() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let client = client(Config::new(url.parse().unwrap()), "podwire-agent/1.2.3").unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            String::from_utf8(head).unwrap()
        };
        let request = http::Request::get("/readyz").body(Vec::new()).unwrap();
        let (answer, head) = tokio::join!(client.request_text(request), server);
        assert_eq!(answer.unwrap(), "ok");
        assert!(head.to_lowercase().contains("\r\nuser-agent: podwire-agent/1.2.3\r\n"), "{head}");
    }

    #[tokio::test]
    async fn silence_is_an_error_in_the_end() {
        let silence = within(Duration::ZERO, std::future::pending::<Result<(), BoxError>>()).await;
        let cause = silence.unwrap_err().to_string();
        assert!(cause.starts_with("no answer within 0 s; "), "{cause}");
        let answered = within(ANSWER, std::future::ready(Ok(7))).await;
        assert_eq!(answered.unwrap(), 7);
    }
}
