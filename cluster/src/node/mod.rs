//! The node runtime: plays kubelet and container runtime of one node.
//!
//! The API server tells which pods belong here; each pod has a [`worker`] that makes its sandbox and containers and
//! reports its status. Containers are processes of their own (see [`container`]): they outlive the runtime, and the next
//! runtime finds them by the files below `--root-dir`.

pub mod bundle;
pub mod cni;
pub mod container;
pub mod env;
pub mod exec;
pub mod logs;
pub mod probes;
pub mod register;
pub mod sandbox;
pub mod server;
pub mod slot;
pub mod state;
pub mod status;
pub mod volumes;
pub mod watch;
pub mod worker;

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Service};
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::sync::{Notify, mpsc};

use crate::controllers::events::Recorder;
use crate::controllers::informer::{Change, Informer};
use cni::Cni;
use worker::{Message, Worker};

/// How to run a node.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name in the cluster.
    pub name: String,
    /// Its address on the underlay.
    pub ip: Ipv4Addr,
    /// Directory of everything durable about pods.
    pub root: PathBuf,
    /// Where the built-in images' programs are.
    pub bin_dir: PathBuf,
    /// Directory of certificates.
    pub pki: PathBuf,
    /// The node carries the control plane's role.
    pub control_plane: bool,
    /// The DNS service's address.
    pub cluster_dns: String,
    /// Where CNI configurations are.
    pub cni_conf_dir: PathBuf,
    /// Where CNI plugins are.
    pub cni_bin_dir: PathBuf,
    /// Port of the node's API (logs, exec).
    pub port: u16,
}

/// Why a node cannot run.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A file or directory.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// Cause.
        source: std::io::Error,
    },
    /// The API server.
    #[error("cannot {what}: {source}")]
    Api {
        /// What was being done.
        what: &'static str,
        /// Cause.
        source: kube::Error,
    },
    /// Certificates.
    #[error("node API: {0}")]
    Tls(String),
}

impl NodeError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// What the parts of a node runtime share.
pub struct Node {
    /// How it runs.
    pub options: Options,
    /// The API server.
    pub client: Client,
    /// Events in the node's name.
    pub recorder: Recorder,
    /// Plugins.
    pub cni: Cni,
    /// This binary, which also is the containers' shim.
    pub program: PathBuf,
    /// Every Service: pods get variables for those they see.
    pub services: Informer<Service>,
    /// Pods of this node.
    pub pods: Informer<Pod>,
    /// Told when attaching a pod may work again: an address was freed, or a CNI configuration has come.
    pub network_changed: Notify,
}

impl Node {
    /// Directory of all pods.
    pub fn pods_dir(&self) -> PathBuf {
        self.options.root.join("pods")
    }
}

/// The pods' workers by uid.
struct Workers {
    node: Arc<Node>,
    senders: Mutex<HashMap<String, mpsc::UnboundedSender<Message>>>,
}

impl Workers {
    fn take(self: &Arc<Self>, change: &Change<Pod>) {
        let pod = change.object();
        let Some(uid) = pod.metadata.uid.clone() else { return };
        match change {
            Change::Set { .. } => self.tell(&uid, Some(Arc::clone(pod))),
            Change::Gone(_) => self.tell(&uid, None),
        }
    }

    /// Tells the pod's worker what the pod is now (`None`: gone), and starts the worker if there is none.
    fn tell(self: &Arc<Self>, uid: &str, pod: Option<Arc<Pod>>) {
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        let message = pod.clone().map_or(Message::Gone, Message::Pod);
        if let Some(sender) = senders.get(uid)
            && sender.send(message).is_ok()
        {
            return;
        }
        if pod.is_none() && !state::exists(&self.node.pods_dir(), uid) {
            return;
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        senders.insert(uid.to_owned(), sender.clone());
        let worker = Worker::new(Arc::clone(&self.node), uid.to_owned(), pod, sender, receiver);
        let (workers, uid) = (Arc::clone(self), uid.to_owned());
        tokio::spawn(async move {
            worker.run().await;
            workers.senders.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid);
        });
    }
}

/// First wait before the plugins are asked again to collect garbage.
const COLLECT_MIN: Duration = Duration::from_secs(1);
/// Longest wait.
const COLLECT_MAX: Duration = Duration::from_mins(1);

/// Has the plugins collect, once, what is attached for nobody any more: for instance because the files of the runtime
/// before this one are lost.
async fn collect_garbage(node: Arc<Node>) {
    let (pods, file) = (node.pods_dir(), node.options.root.join("cni-gc.json"));
    let mut wait = COLLECT_MIN;
    while let Err(error) = node.cni.gc(|| state::attachments(&pods), &file).await {
        // No configuration yet, or the network's agent does not answer yet.
        tracing::debug!(%error, "no garbage collection yet");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(COLLECT_MAX);
    }
}

/// Runs the node until `stop` is done. Pods stay as they are.
///
/// # Errors
/// The node cannot start: its directories, its certificates, its port, or the API server refuse.
pub async fn run(client: Client, options: Options, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
    let pods_dir = options.root.join("pods");
    std::fs::create_dir_all(&pods_dir)
        .map_err(NodeError::io(format!("make directory {}", pods_dir.display())))?;
    let node = Arc::new(Node {
        recorder: Recorder::start(client.clone(), "kubelet", Some(&options.name)),
        cni: Cni::new(options.cni_conf_dir.clone(), options.cni_bin_dir.clone()),
        program: std::env::current_exe().map_err(NodeError::io("find this program's file"))?,
        services: Informer::default(),
        pods: Informer::default(),
        network_changed: Notify::new(),
        client,
        options,
    });
    let serving = server::start(Arc::clone(&node)).await?;
    let mut registered = tokio::spawn(register::run(Arc::clone(&node)));

    let workers = Arc::new(Workers { node: Arc::clone(&node), senders: Mutex::default() });
    let on_pod = Arc::clone(&workers);
    node.pods.on_change(move |change| on_pod.take(change));
    let of_this_node = watcher::Config::default().fields(&format!("spec.nodeName={}", node.options.name));
    let services = node.services.start(Api::all(node.client.clone()), watcher::Config::default());
    node.services.synced().await;
    let pods = node.pods.start(Api::all(node.client.clone()), of_this_node);
    node.pods.synced().await;
    let known: HashSet<_> = node.pods.list().iter().filter_map(|pod| pod.metadata.uid.clone()).collect();
    for uid in state::stored(&node.pods_dir()).into_iter().filter(|uid| !known.contains(uid)) {
        // Pods that went from the API server while nobody watched.
        workers.tell(&uid, None);
    }
    let collecting = tokio::spawn(collect_garbage(Arc::clone(&node)));
    tokio::pin!(stop);
    let result = tokio::select! {
        () = &mut stop => Ok(()),
        ended = &mut registered => match ended {
            Ok(result) => result,
            Err(error) => Err(NodeError::io("keep the node registered")(std::io::Error::other(error))),
        },
    };
    for task in [serving, services, pods, collecting] {
        task.abort();
    }
    registered.abort();
    result
}
