//! The answering side: the agent.

use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;

use super::masquerade::ConnectionRow;
use super::services;
use super::{EndpointRow, IpcacheRow, MetricRow, Network, Reply, Request, Status};
use crate::cni_server::{ACCEPT_PAUSE, bind};
use crate::daemon::{Agent, Running};
use crate::masquerade::collect;
use crate::services::balanced;

/// Longest request.
const MAX_REQUEST: u64 = 4096;

/// Serves for as long as the runtime lives, which must be there already.
pub fn serve(agent: Arc<Agent>, path: &Path) -> io::Result<()> {
    let listener = bind(path)?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let agent = agent.clone();
                    tokio::spawn(async move {
                        if let Err(cause) = answer(&agent, stream).await {
                            tracing::debug!("local API: {cause}");
                        }
                    });
                }
                Err(cause) => {
                    tracing::error!("local API: accept failed: {cause}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    Ok(())
}

async fn answer(agent: &Agent, stream: UnixStream) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut reader = BufReader::new(read.take(MAX_REQUEST));
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    let reply = match serde_json::from_str::<Request>(&line) {
        Ok(Request::Monitor { trace }) => match agent.running() {
            Some(running) => return monitor(running, trace, reader.into_inner().into_inner(), write).await,
            None => Err(starting(agent)),
        },
        Ok(request) => respond(agent, request),
        Err(cause) => Err(format!(
            "this agent does not know the request ({cause}); are podwire and the agent of one version?"
        )),
    };
    send(&mut write, &reply.map_or_else(Reply::Error, Reply::Ok)).await
}

async fn send(write: &mut OwnedWriteHalf, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    write.write_all(&line).await
}

fn starting(agent: &Agent) -> String {
    let parts = agent.health.parts();
    let waits: Vec<String> = parts
        .iter()
        .filter(|(_, p)| !p.ok)
        .map(|(name, p)| format!("{name}: {}", p.messages.join("; ")))
        .collect();
    if waits.is_empty() {
        "the agent is still starting; try again".into()
    } else {
        format!("the agent is still starting: {}", waits.join("; "))
    }
}

fn respond(agent: &Agent, request: Request) -> Result<Value, String> {
    if request == Request::Status {
        return to_value(&status(agent));
    }
    let running = agent.running().ok_or_else(|| starting(agent))?;
    match request {
        Request::Config => to_value(&running.config),
        Request::Endpoints => to_value(&endpoints(running)),
        Request::Ipcache => to_value(&ipcache(running)?),
        Request::Metrics => to_value(&metrics(running)?),
        Request::Connections => to_value(&connections(running)?),
        Request::Nat => {
            let rows = connections(running)?.into_iter().filter(|row| row.translated);
            to_value(&rows.collect::<Vec<_>>())
        }
        Request::NonMasquerade => to_value(&running.datapath.non_masquerade().map_err(|e| e.to_string())?),
        Request::Services => to_value(&services::of_plan(&running.services.load())),
        Request::LoadBalancing => {
            to_value(&services::of_maps(&running.datapath.services().map_err(|e| e.to_string())?))
        }
        Request::Balanced => {
            let entries = running.datapath.balanced().map_err(|e| e.to_string())?;
            let now = collect::since_boot();
            let all = balanced::connections(entries);
            to_value(&all.iter().map(|c| services::BalancedRow::new(c, now)).collect::<Vec<_>>())
        }
        Request::Status | Request::Monitor { .. } => Err("not a request of this kind".into()),
    }
}

fn to_value(value: &impl Serialize) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|e| e.to_string())
}

fn status(agent: &Agent) -> Status {
    Status {
        node: agent.node_name.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        ready: agent.is_ready(),
        api_server: agent.api_server(),
        network: agent.running().map(network),
        parts: agent.health.parts(),
    }
}

fn network(running: &Running) -> Network {
    let pool = running.core.pool();
    Network {
        node_ip: running.node_ip,
        router_ip: pool.router(),
        device: running.device.clone(),
        ipam: running.values.ipam.mode.to_string(),
        pod_cidrs: pool.given().to_vec(),
        old_pod_cidrs: pool.cidrs().iter().filter(|c| !pool.given().contains(c)).copied().collect(),
        used: pool.used_count(),
        total: pool.total(),
        routing_mode: running.values.routing_mode.to_string(),
        endpoint_routes: running.values.endpoint_routes.enabled,
        mtu: running.mtu,
        attach_mode: running.datapath.attach_mode().to_string(),
        endpoints: running.core.live().len(),
        routes: running.routes.load().as_ref().clone(),
    }
}

fn endpoints(running: &Running) -> Vec<EndpointRow> {
    let mut rows: Vec<EndpointRow> = running
        .core
        .live()
        .into_iter()
        .map(|live| {
            let key = live.endpoint.key();
            EndpointRow {
                id: live.endpoint.id,
                identity: live.identity,
                pod: live.endpoint.owner(),
                ipv4: live.endpoint.ip,
                device: key.device(),
                ifindex: live.ifindex,
                mac: key.pod_mac().to_string(),
                container_id: live.endpoint.container_id.clone(),
            }
        })
        .collect();
    rows.sort_by_key(|row| row.ipv4);
    rows
}

fn ipcache(running: &Running) -> Result<Vec<IpcacheRow>, String> {
    let names = running.names.load();
    let entries = running.datapath.ipcache().map_err(|e| e.to_string())?;
    let row = |(prefix, entry): (ipnet::Ipv4Net, podwire_abi::IpcacheEntry)| IpcacheRow {
        prefix,
        identity: entry.identity,
        node: podwire_abi::from_wire(entry.node_ip),
        name: names.get(&prefix.addr()).filter(|_| prefix.prefix_len() == 32).cloned().unwrap_or_default(),
    };
    Ok(entries.into_iter().map(row).collect())
}

fn metrics(running: &Running) -> Result<Vec<MetricRow>, String> {
    let counters = running.datapath.metrics().map_err(|e| e.to_string())?;
    let row =
        |(point, reason, counter): (podwire_abi::Point, podwire_abi::DropReason, podwire_abi::Counter)| {
            MetricRow {
                point: point.to_string(),
                reason: if reason == podwire_abi::DropReason::None {
                    "FORWARDED".into()
                } else {
                    reason.to_string()
                },
                packets: counter.packets,
                bytes: counter.bytes,
            }
        };
    Ok(counters.into_iter().map(row).collect())
}

fn connections(running: &Running) -> Result<Vec<ConnectionRow>, String> {
    let all = collect::all(&running.datapath).map_err(|e| e.to_string())?;
    let now = collect::since_boot();
    Ok(all.iter().map(|tracked| ConnectionRow::new(tracked, now)).collect())
}

/// Says that it listens, then sends flows until the other side leaves.
async fn monitor(
    running: &Running,
    trace: bool,
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
) -> io::Result<()> {
    let mut flows = running.flows.subscribe();
    let _tracer = trace.then(|| running.flows.trace());
    send(&mut write, &Reply::Ok(json!({ "listening": true }))).await?;
    let mut byte = [0_u8; 1];
    loop {
        tokio::select! {
            flow = flows.recv() => match flow {
                Ok(flow) if trace || flow.dropped => {
                    send(&mut write, &Reply::Ok(serde_json::to_value(flow.as_ref())?)).await?;
                }
                Ok(_) => {}
                Err(RecvError::Lagged(lost)) => send(&mut write, &Reply::Ok(json!({ "lost": lost }))).await?,
                Err(RecvError::Closed) => return Ok(()),
            },
            // The other side sends nothing more: whatever comes is its end.
            _ = read.read(&mut byte) => return Ok(()),
        }
    }
}
