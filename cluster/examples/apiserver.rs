//! Runs the API server alone: `apiserver DIR [LISTEN]` makes certificates, store and `DIR/kubeconfig` below DIR.

use std::path::PathBuf;

use podwire_cluster::apiserver::{ApiServerConfig, serve};
use podwire_cluster::pki::{self, PkiRequest};
use tokio::sync::oneshot;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or("usage: apiserver DIR [LISTEN]")?);
    let listen = args.next().unwrap_or_else(|| "127.0.0.1:0".to_owned()).parse()?;
    let pki = pki::create(&dir.join("pki"), &PkiRequest::default())?;
    let config = ApiServerConfig {
        listen,
        pki: pki.dir().to_owned(),
        data_dir: dir.join("data"),
        service_cidr: "10.96.0.0/16".parse()?,
    };
    let (ready, address) = oneshot::channel();
    let server = tokio::spawn(serve(config, ready, async {
        // Without a signal handler the server runs until it is killed.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }));
    if let Ok(address) = address.await {
        let kubeconfig = dir.join("kubeconfig");
        std::fs::write(&kubeconfig, pki::kubeconfig(&pki, &format!("https://{address}"), "admin")?)?;
        println!("{}", kubeconfig.display());
    }
    server.await??;
    Ok(())
}
