//! Reaching a lab's API server.

use std::time::{Duration, Instant};

use http::HeaderValue;
use http::header::USER_AGENT;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::error::{Failure, OrFailure};

/// Pause between two looks at an API server that starts.
const AGAIN: Duration = Duration::from_millis(5);

/// A client for the kubeconfig, once the API server says that it is ready.
pub async fn connect(kubeconfig: &str, patience: Duration) -> Result<Client, Failure> {
    let thing = "API server";
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).or_failure(thing, "report this as a bug")?;
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .or_failure(thing, "report this as a bug")?;
    let program = concat!("podwire-lab/", env!("CARGO_PKG_VERSION"));
    config.headers.push((USER_AGENT, HeaderValue::from_static(program)));
    let client = Client::try_from(config).or_failure(thing, "report this as a bug")?;
    let deadline = Instant::now() + patience;
    loop {
        let cause = match ready(&client).await {
            Ok(()) => return Ok(client),
            Err(cause) => cause,
        };
        if Instant::now() >= deadline {
            let cause = format!("not ready after {} s: {cause}", patience.as_secs());
            return Err(Failure::new(
                thing,
                cause,
                "see its log: lab exec k8s-ctr -- cat /var/log/podwire/control-plane.log",
            ));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn ready(client: &Client) -> Result<(), String> {
    let request = http::Request::get("/readyz").body(Vec::new()).map_err(|e| e.to_string())?;
    let answer = tokio::time::timeout(Duration::from_secs(5), client.request_text(request)).await;
    answer.map_err(|_| "no answer".to_owned())?.map(|_| ()).map_err(|e| e.to_string())
}
