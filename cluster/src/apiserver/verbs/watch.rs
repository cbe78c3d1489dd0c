//! Watch: the changes of a collection as they happen, one JSON object a line.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::{Instant, Interval, interval_at};

use super::get::selector;
use super::{metadata_only, present};
use crate::apiserver::http::{self as answers, Answer, Form};
use crate::apiserver::registry::Resource;
use crate::apiserver::router::Call;
use crate::apiserver::selector::Selector;
use crate::apiserver::status::ApiError;
use crate::apiserver::table;
use crate::store::{Event, EventKind, Stored, Watch};

/// How long a watch lasts unless the client says otherwise.
const TIMEOUT: Duration = Duration::from_mins(30);
/// How often a client that asks for bookmarks gets one.
const BOOKMARK: Duration = Duration::from_secs(30);

/// The end of the initial events, as clients look for it.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

struct Session {
    resource: Arc<Resource>,
    namespace: String,
    selector: Selector,
    form: Form,
    include: table::Include,
    columns_sent: bool,
    initial: VecDeque<Bytes>,
    watch: Watch,
    deadline: Instant,
    bookmarks: Option<Interval>,
    ended: bool,
}

/// Starts a watch.
pub fn watch(call: &Call) -> Result<Answer, ApiError> {
    let form = answers::form(&call.headers)?;
    let selector = selector(call)?;
    let since = call.query.resource_version()?;
    let bookmarks = call.query.flag("allowWatchBookmarks")?;
    let send_initial = call.query.flag("sendInitialEvents")?;
    if send_initial && call.query.get("resourceVersionMatch") != "NotOlderThan" {
        return Err(ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ));
    }
    let store = &call.api.store;
    let session = |watch, initial: Vec<Arc<Stored>>| -> Result<Session, ApiError> {
        let mut session = Session {
            resource: Arc::clone(&call.resource),
            namespace: call.namespace.clone(),
            selector: selector.clone(),
            form,
            include: table::Include::parse(call.query.get("includeObject"))?,
            columns_sent: false,
            initial: VecDeque::new(),
            watch,
            deadline: Instant::now() + call.query.timeout()?.unwrap_or(TIMEOUT),
            bookmarks: bookmarks.then(|| interval_at(Instant::now() + BOOKMARK, BOOKMARK)),
            ended: false,
        };
        for object in initial {
            if session.wants(&object) {
                let line = session.line("ADDED", &object);
                session.initial.push_back(line);
            }
        }
        Ok(session)
    };
    let session = match since {
        // From "now" or "any", or with the initial events asked for: everything there is comes first.
        None | Some(0) => {
            let initial = !call.query.has("sendInitialEvents") || send_initial;
            let (snapshot, watch) = store.list_and_watch(&call.resource.storage, None);
            let version = snapshot.version;
            let mut session = session(watch, if initial { snapshot.objects } else { Vec::new() })?;
            if send_initial && bookmarks {
                let line = session.bookmark(version, true);
                session.initial.push_back(line);
            }
            session
        }
        Some(since) if send_initial => {
            let (snapshot, watch) = store.list_and_watch(&call.resource.storage, None);
            if since > snapshot.version {
                return Err(ApiError::new(
                    StatusCode::GATEWAY_TIMEOUT,
                    "Timeout",
                    "Too large resource version",
                ));
            }
            let version = snapshot.version;
            let mut session = session(watch, snapshot.objects)?;
            if bookmarks {
                let line = session.bookmark(version, true);
                session.initial.push_back(line);
            }
            session
        }
        Some(since) => {
            if since > store.version() {
                return Ok(expired(&ApiError::new(
                    StatusCode::GONE,
                    "Expired",
                    format!("resource version {since} is newer than the store's"),
                )));
            }
            match store.watch(&call.resource.storage, since) {
                Ok(watch) => session(watch, Vec::new())?,
                Err(too_old) => return Ok(expired(&too_old.into())),
            }
        }
    };
    let pieces = futures::stream::unfold(session, |mut session| async move {
        let line = session.next().await?;
        Some((Ok(line), session))
    });
    Ok(answers::stream("application/json", pieces))
}

/// Says inside the stream that the version is too old (or not ours). Clients list again after an ERROR event; of an HTTP
/// status 410 some, kube-rs among them, think that the same watch may be tried again, for ever.
fn expired(error: &ApiError) -> Answer {
    let line = render("ERROR", &error.to_status());
    answers::stream("application/json", futures::stream::iter([Ok(line)]))
}

impl Session {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(line) = self.initial.pop_front() {
            return Some(line);
        }
        if self.ended {
            return None;
        }
        loop {
            let tick = async {
                match &mut self.bookmarks {
                    Some(interval) => {
                        interval.tick().await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                event = self.watch.next() => match event {
                    Ok(event) => {
                        if let Some(line) = self.translate(&event) {
                            return Some(line);
                        }
                    }
                    Err(expired) => {
                        self.ended = true;
                        let status = ApiError::from(expired).to_status();
                        return Some(render("ERROR", &status));
                    }
                },
                () = tick => return Some(self.bookmark(self.watch.progress(), false)),
                () = tokio::time::sleep_until(self.deadline) => return None,
            }
        }
    }

    fn wants(&self, object: &Stored) -> bool {
        (self.namespace.is_empty() || self.namespace == object.key.namespace)
            && self.selector.matches(&object.value)
    }

    /// An event as this watcher sees it: an object that begins to match is added, one that ceases to is deleted.
    fn translate(&mut self, event: &Event) -> Option<Bytes> {
        let before = event.previous.as_ref().is_some_and(|o| self.wants(o));
        let after = event.kind != EventKind::Deleted && self.wants(&event.object);
        match (before, after) {
            (false, false) => None,
            (false, true) => Some(self.line("ADDED", &event.object)),
            (true, true) => Some(self.line("MODIFIED", &event.object)),
            (true, false) if event.kind == EventKind::Deleted => Some(self.line("DELETED", &event.object)),
            (true, false) => {
                // The last state that matched, at the version at which it ceased to.
                let previous = event.previous.as_ref()?;
                let mut value = previous.value.clone();
                value["metadata"]["resourceVersion"] = json!(event.object.version.to_string());
                let json = Bytes::from(value.to_string());
                let last = Stored { key: previous.key.clone(), version: event.object.version, value, json };
                Some(self.line("DELETED", &last))
            }
        }
    }

    fn line(&mut self, kind: &str, object: &Stored) -> Bytes {
        match self.form {
            Form::Whole => {
                let json = super::present_json(&self.resource, object);
                let mut line = Vec::with_capacity(json.len() + 40);
                line.extend_from_slice(format!("{{\"type\":\"{kind}\",\"object\":").as_bytes());
                line.extend_from_slice(&json);
                line.extend_from_slice(b"}\n");
                Bytes::from(line)
            }
            Form::Metadata => render(kind, &metadata_only(&present(&self.resource, object))),
            Form::Table => {
                let objects = [present(&self.resource, object)];
                let columns = !std::mem::replace(&mut self.columns_sent, true);
                let meta = json!({"resourceVersion": object.version.to_string()});
                render(kind, &table::table(&self.resource, &objects, self.include, columns, &meta))
            }
        }
    }

    fn bookmark(&self, version: u64, initial_end: bool) -> Bytes {
        let mut meta = json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
        if initial_end {
            meta["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        let object = match self.form {
            Form::Whole => {
                json!({"kind": self.resource.kind, "apiVersion": self.resource.api_version(), "metadata": meta})
            }
            Form::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": meta})
            }
            Form::Table => {
                let bare = json!({"kind": self.resource.kind, "apiVersion": self.resource.api_version(), "metadata": meta});
                let objects: &[Value] = if initial_end { &[bare] } else { &[] };
                table::table(&self.resource, objects, table::Include::Metadata, true, &meta)
            }
        };
        render("BOOKMARK", &object)
    }
}

fn render(kind: &str, object: &Value) -> Bytes {
    let mut line = json!({"type": kind, "object": object}).to_string();
    line.push('\n');
    Bytes::from(line)
}
