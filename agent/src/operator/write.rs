//! Carries out what is planned. Every write is built on a version of its object, and the API server refuses it when there is a
//! newer one: the watch then brings that, and it is planned anew.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use kube::{Api, Client};
use podwire_api::names::{POD_CIDRS_CONFIG_MAP, SYSTEM_NAMESPACE};
use podwire_api::nodenetwork::{NodeNetwork, OperatorStatus};

use super::plan::{Plan, may_release};
use super::record::Record;
use super::view::{Network, View};

/// How many NodeNetworks are written at once.
const AT_ONCE: usize = 8;

/// Work on the cluster failed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The API server.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// The record is unreadable.
    #[error("ConfigMap {SYSTEM_NAMESPACE}/{POD_CIDRS_CONFIG_MAP}: {0}")]
    Record(String),
}

impl WriteError {
    /// What was written upon is gone or newer: planning anew with what the watch brings is the mend.
    pub fn is_outdated(&self) -> bool {
        matches!(self, Self::Api(kube::Error::Api(status)) if matches!(status.code, 404 | 409))
    }
}

/// The writing side.
pub struct Writer {
    networks: Api<NodeNetwork>,
    nodes: Api<Node>,
    maps: Api<ConfigMap>,
    /// The record's object as it was last read or written.
    record: Option<ConfigMap>,
}

impl Writer {
    /// A writer.
    pub fn new(client: Client) -> Self {
        Self {
            networks: Api::all(client.clone()),
            nodes: Api::all(client.clone()),
            maps: Api::namespaced(client, SYSTEM_NAMESPACE),
            record: None,
        }
    }

    /// The record.
    pub async fn record(&mut self) -> Result<Record, WriteError> {
        if self.record.is_none() {
            self.record = self.maps.get_opt(POD_CIDRS_CONFIG_MAP).await?;
        }
        let data = self.record.as_ref().and_then(|map| map.data.as_ref());
        data.map_or_else(|| Ok(Record::default()), Record::parse).map_err(|cause| {
            self.record = None;
            WriteError::Record(cause)
        })
    }

    /// Carries a plan out. `objects` are those by which it was made.
    pub async fn carry_out(
        &mut self,
        view: &View,
        plan: Plan,
        objects: &BTreeMap<String, Arc<NodeNetwork>>,
    ) -> Result<(), WriteError> {
        for gone in &plan.orphans {
            tracing::info!("Node {gone} is gone; deleting its NodeNetwork");
            present(self.networks.delete(gone, &DeleteParams::default()).await)?;
        }
        let mut record = plan.record;
        for (node, cidr) in &plan.releases {
            if self.confirm(view, node, *cidr).await? {
                tracing::info!("{node} no longer uses {cidr}: it is free");
                record.release(node, *cidr);
            }
        }
        if record != view.record {
            self.write_record(&record).await?;
        }
        let gifts = plan.cidrs.iter().filter_map(|(name, cidrs)| Some((objects.get(name)?, cidrs)));
        let writes = gifts.map(|(object, cidrs)| self.write_cidrs(object.as_ref().clone(), cidrs.clone()));
        let given: Vec<_> = futures::stream::iter(writes).buffer_unordered(AT_ONCE).collect().await;
        for done in given {
            done?;
        }
        let changed = |name: &String| plan.cidrs.iter().any(|(n, _)| n == name);
        // Whose CIDRs were written just now has a newer object: the watch brings it, and its error is then seen to.
        for (name, error) in plan.errors.iter().filter(|(name, _)| !changed(name)) {
            if let Some(object) = objects.get(name) {
                self.write_error(object.as_ref().clone(), error.clone()).await?;
            }
        }
        Ok(())
    }

    /// Looks anew, after the record was read, whether a CIDR can go from it.
    async fn confirm(&self, view: &View, node: &str, cidr: Ipv4Net) -> Result<bool, WriteError> {
        let network = self.networks.get_opt(node).await?.map(|n| Network::of(&n));
        let exists = self.nodes.get_metadata_opt(node).await?.is_some();
        Ok(may_release(view, cidr, network.as_ref(), exists))
    }

    async fn write_record(&mut self, record: &Record) -> Result<(), WriteError> {
        let post = PostParams::default();
        // Forgotten until the API server has agreed: after an error it is read anew.
        let written = if let Some(mut map) = self.record.take() {
            map.data = Some(record.data());
            self.maps.replace(POD_CIDRS_CONFIG_MAP, &post, &map).await
        } else {
            let metadata = ObjectMeta { name: Some(POD_CIDRS_CONFIG_MAP.into()), ..ObjectMeta::default() };
            let map = ConfigMap { metadata, data: Some(record.data()), ..ConfigMap::default() };
            self.maps.create(&post, &map).await
        };
        self.record = Some(written?);
        Ok(())
    }

    async fn write_cidrs(&self, mut object: NodeNetwork, cidrs: Vec<Ipv4Net>) -> Result<(), WriteError> {
        let name = object.metadata.name.clone().unwrap_or_default();
        tracing::info!("{name}: pod CIDRs {:?} become {cidrs:?}", object.spec.ipam.pod_cidrs);
        object.spec.ipam.pod_cidrs = cidrs;
        self.networks.replace(&name, &PostParams::default(), &object).await?;
        Ok(())
    }

    async fn write_error(&self, mut object: NodeNetwork, error: Option<String>) -> Result<(), WriteError> {
        let name = object.metadata.name.clone().unwrap_or_default();
        if let Some(error) = &error {
            tracing::warn!("{name}: {error}");
        }
        let mut status = object.status.take().unwrap_or_default();
        status.ipam.operator_status = error.map(|error| OperatorStatus { error });
        object.status = Some(status);
        self.networks.replace_status(&name, &PostParams::default(), &object).await?;
        Ok(())
    }
}

/// What is gone already need not be deleted.
fn present<T>(outcome: kube::Result<T>) -> kube::Result<()> {
    match outcome {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop),
    }
}
