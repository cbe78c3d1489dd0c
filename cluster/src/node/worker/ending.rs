//! The end: containers end as the pod asks, and everything of the pod is taken off the node.

use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use nix::sys::signal::Signal;
use tokio::time::Instant;

use super::{Message, SANDBOX_RETRY_MAX, SANDBOX_RETRY_MIN, Worker};
use crate::controllers::events::Severity;
use crate::node::container::handle::Handle;
use crate::node::{probes, volumes};

impl Worker {
    /// Ends the pod's containers as it asks: hook, SIGTERM, and SIGKILL when the grace is over or the pod is gone.
    pub(super) async fn terminate(&mut self, pod: &Pod) {
        let grace = self.grace();
        let deadline = Instant::now() + grace;
        let mut ends = Vec::new();
        for index in 0..self.slots.len() {
            let Some(handle) = self.slots[index].running.clone() else { continue };
            let name = self.slots[index].container.name.clone();
            self.event(Some(&name), Severity::Normal, "Killing", format!("Stopping container {name}"));
            let hook = self.slots[index].container.lifecycle.clone().and_then(|l| l.pre_stop);
            let target = self.target(index, &handle);
            ends.push(async move {
                if let Some(hook) = hook {
                    let run = probes::run_hook(&hook, &target);
                    if let Ok(Err(message)) = tokio::time::timeout_at(deadline, run).await {
                        tracing::info!(message, "a preStop hook failed");
                    }
                }
                end_container(handle, deadline.saturating_duration_since(Instant::now())).await;
            });
        }
        let mut all = std::pin::pin!(join_all(ends));
        loop {
            tokio::select! {
                _ = &mut all => break,
                message = self.receiver.recv() => match message {
                    Some(Message::Gone) => {
                        self.pod = None;
                        self.kill_all().await;
                        return;
                    }
                    Some(Message::Ended { container, run, exited }) => {
                        if let Some(slot) = self.slot_of(&container, run) {
                            slot.has_ended(&exited);
                        }
                        self.publish(pod).await;
                    }
                    Some(Message::Retry) => self.publish(pod).await,
                    Some(Message::Pod(newer)) => {
                        let shorter = newer.metadata.deletion_grace_period_seconds.unwrap_or(0);
                        self.pod = Some(newer);
                        if u64::try_from(shorter).unwrap_or(0) < grace.as_secs() {
                            for slot in &self.slots {
                                if let Some(handle) = &slot.running {
                                    handle.signal(Signal::SIGKILL);
                                }
                            }
                        }
                    }
                    _ => {}
                },
            }
        }
        for slot in &mut self.slots {
            if let Some(exited) = slot.running.as_ref().and_then(|handle| handle.dir.read_exited()) {
                slot.has_ended(&exited);
            }
        }
    }

    /// Ends what still runs when the pod's work is done (sidecars). True if nothing does.
    pub(super) fn end_the_rest(&mut self) -> bool {
        let grace = self.grace();
        let mut nothing = true;
        for slot in &mut self.slots {
            let Some(handle) = slot.running.clone() else { continue };
            nothing = false;
            if !slot.ending {
                slot.ending = true;
                tokio::spawn(end_container(handle, grace));
            }
        }
        nothing
    }

    pub(super) async fn kill_all(&mut self) {
        let running: Vec<_> = self.slots.iter().filter_map(|slot| slot.running.clone()).collect();
        let ended = join_all(running.into_iter().map(|handle| end_container(handle, Duration::ZERO))).await;
        drop(ended);
        for slot in &mut self.slots {
            if let Some(handle) = &slot.running {
                let exited = handle.ended().await;
                slot.has_ended(&exited);
            }
        }
    }

    /// Takes everything of the pod off the node.
    pub(super) async fn clean(&mut self) {
        for slot in &mut self.slots {
            slot.stop_tasks();
        }
        // A pod that has never run here, or was taken off before, has nothing new to tell.
        let has_run = self.slots.iter().any(|slot| slot.next_run > 0);
        if let Some(pod) = self.pod.clone().filter(|_| has_run) {
            self.publish(&pod).await;
        }
        let mut wait = SANDBOX_RETRY_MIN;
        while self.release_sandbox().await.is_err() {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(SANDBOX_RETRY_MAX);
        }
        volumes::release(&self.dir);
        if let Err(error) = std::fs::remove_dir_all(&self.dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(pod = self.state.pod, dir = %self.dir.display(), %error, "cannot remove the pod's directory");
        }
    }
}

/// SIGTERM, and SIGKILL if it has not ended after `grace`.
pub(super) async fn end_container(handle: Handle, grace: Duration) {
    if !grace.is_zero() {
        handle.signal(Signal::SIGTERM);
        if tokio::time::timeout(grace, handle.ended()).await.is_ok() {
            return;
        }
    }
    handle.signal(Signal::SIGKILL);
    handle.ended().await;
}
