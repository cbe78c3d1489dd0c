//! Events: what a component has done to an object and why, as `kubectl describe` shows it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;

use super::meta::{generated_name, is_not_found, now};

/// How many different events are remembered for counting repetitions.
const REMEMBERED: usize = 1024;

/// `Normal` or `Warning`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    /// The expected happened.
    Normal,
    /// Something needs attention.
    Warning,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

struct Record {
    about: ObjectReference,
    severity: Severity,
    reason: String,
    message: String,
}

/// Sends events to the API server in the background, in order; repetitions count up on the first one. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    sender: Arc<Mutex<mpsc::UnboundedSender<Record>>>,
}

impl Recorder {
    /// Starts a recorder for `component` (on node `host`, if it runs on one).
    pub fn start(client: Client, component: &str, host: Option<&str>) -> Self {
        let (sender, mut records) = mpsc::unbounded_channel::<Record>();
        let source = EventSource { component: Some(component.to_owned()), host: host.map(str::to_owned) };
        tokio::spawn(async move {
            let mut known: HashMap<String, (String, i32)> = HashMap::new();
            while let Some(record) = records.recv().await {
                let identity = format!(
                    "{}/{}/{}/{}",
                    record.about.uid.as_deref().unwrap_or_default(),
                    record.about.field_path.as_deref().unwrap_or_default(),
                    record.reason,
                    record.message
                );
                if known.len() > REMEMBERED {
                    known.clear();
                }
                let repeated = known.get(&identity).cloned();
                match write(&client, &source, record, repeated).await {
                    Ok(entry) => {
                        known.insert(identity, entry);
                    }
                    Err(error) => tracing::debug!(%error, "event lost"),
                }
            }
        });
        Self { sender: Arc::new(Mutex::new(sender)) }
    }

    /// Records an event about `object`.
    pub fn about<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        severity: Severity,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.record(object.object_ref(&()), severity, reason, message);
    }

    /// Records an event about the object (or the part of it, by field path) that `about` names.
    pub fn record(
        &self,
        about: ObjectReference,
        severity: Severity,
        reason: &str,
        message: impl Into<String>,
    ) {
        let record = Record { about, severity, reason: reason.to_owned(), message: message.into() };
        // The receiver ends only with the runtime.
        let _ = self.sender.lock().unwrap_or_else(PoisonError::into_inner).send(record);
    }
}

async fn write(
    client: &Client,
    source: &EventSource,
    record: Record,
    repeated: Option<(String, i32)>,
) -> Result<(String, i32), kube::Error> {
    let namespace = record.about.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    if let Some((name, count)) = repeated {
        let patch = json!({"count": count + 1, "lastTimestamp": now()});
        match api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => return Ok((name, count + 1)),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let name = generated_name(record.about.name.as_deref().unwrap_or("event"));
    let event = Event {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        type_: Some(record.severity.as_str().to_owned()),
        reason: Some(record.reason),
        message: Some(record.message),
        count: Some(1),
        first_timestamp: Some(now()),
        last_timestamp: Some(now()),
        reporting_component: source.component.clone(),
        reporting_instance: source.host.clone(),
        source: Some(source.clone()),
        involved_object: record.about,
        ..Event::default()
    };
    api.create(&PostParams::default(), &event).await?;
    Ok((name, 1))
}
