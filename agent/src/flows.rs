//! Flows: events of the datapath, with names, for everybody who listens.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::broadcast;

use crate::datapath::{Datapath, DatapathError, FlowEvent};
use crate::health::Health;

/// Flows that wait for a slow listener; after that it loses the oldest, and is told.
const QUEUE: usize = 4096;

/// Name of this part in `podwire status`.
const PART: &str = "flows";

/// One flow, as the line for people and the object for programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowMessage {
    /// The line.
    pub line: String,
    /// Dropped.
    pub dropped: bool,
    /// The object.
    pub flow: Value,
}

/// The hub.
pub struct Flows {
    datapath: Datapath,
    names: Arc<ArcSwap<BTreeMap<Ipv4Addr, String>>>,
    node: String,
    sender: broadcast::Sender<Arc<FlowMessage>>,
    tracers: Mutex<usize>,
}

/// A listener to all packets, not only drops. The datapath reports them while at least one lives.
pub struct Tracer(Arc<Flows>);

impl Drop for Tracer {
    fn drop(&mut self) {
        self.0.count(|tracers| tracers.saturating_sub(1));
    }
}

impl Flows {
    /// A hub for the datapath's events; nobody traces yet.
    pub fn new(
        datapath: Datapath,
        names: Arc<ArcSwap<BTreeMap<Ipv4Addr, String>>>,
        node: String,
    ) -> Result<Self, DatapathError> {
        // An agent that was killed while somebody traced left it on.
        datapath.set_trace(false)?;
        Ok(Self { datapath, names, node, sender: broadcast::channel(QUEUE).0, tracers: Mutex::new(0) })
    }

    /// Listens.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<FlowMessage>> {
        self.sender.subscribe()
    }

    /// Has forwarded packets reported too.
    pub fn trace(self: &Arc<Self>) -> Tracer {
        self.count(|tracers| tracers + 1);
        Tracer(self.clone())
    }

    fn count(&self, change: impl FnOnce(usize) -> usize) {
        let mut tracers = self.tracers.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *tracers;
        *tracers = change(before);
        if (before == 0) != (*tracers == 0)
            && let Err(cause) = self.datapath.set_trace(*tracers > 0)
        {
            tracing::error!("{PART}: {cause}");
        }
    }

    /// Reads the datapath's events for ever.
    pub async fn run(self: Arc<Self>, health: Arc<Health>) {
        let mut events = match self.datapath.events() {
            Ok(events) => events,
            Err(cause) => return health.fail(PART, cause.to_string()),
        };
        health.ok(PART, "listening");
        while let Some(event) = events.next().await {
            match event {
                Ok(event) if self.sender.receiver_count() > 0 => {
                    // Fails only if the last listener has just left.
                    let _ = self.sender.send(Arc::new(self.message(&event)));
                }
                Ok(_) => {}
                Err(cause) => return health.fail(PART, cause.to_string()),
            }
        }
    }

    fn message(&self, event: &FlowEvent) -> FlowMessage {
        let names = self.names.load();
        let name = |ip: Ipv4Addr| names.get(&ip).cloned();
        // A flow event is plain data, so it always has a JSON form; should it not, the line still says it all.
        let mut flow = serde_json::to_value(event).unwrap_or_else(|_| json!({}));
        flow["node_name"] = json!(self.node);
        flow["verdict"] = json!(if event.is_drop() { "DROPPED" } else { "FORWARDED" });
        if let Some(packet) = &event.flow {
            flow["source_name"] = json!(name(packet.source));
            flow["destination_name"] = json!(name(packet.destination));
        }
        FlowMessage { line: event.line(&name), dropped: event.is_drop(), flow }
    }
}
