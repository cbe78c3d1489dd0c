//! Takes away connections that are over.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::connections::{Tracked, tracked};
use crate::datapath::{Datapath, DatapathError, Direction};

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Connections that are left.
    pub kept: usize,
    /// Connections that were taken away.
    pub removed: usize,
}

/// The time since boot, as the programs read it.
pub fn since_boot() -> Duration {
    // CLOCK_BOOTTIME is as old as Linux 2.6.39.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// All connections as they are.
pub fn all(datapath: &Datapath) -> Result<Vec<Tracked>, DatapathError> {
    Ok(tracked(datapath.connections(Direction::Out)?, datapath.connections(Direction::In)?))
}

/// One run. `own` are the node's addresses.
pub fn collect(
    datapath: &Datapath,
    now: Duration,
    own: &BTreeSet<Ipv4Addr>,
) -> Result<Collected, DatapathError> {
    let mut collected = Collected::default();
    for connection in all(datapath)? {
        // Looked at twice: meanwhile it may have spoken, or its other half may have come.
        if connection.is_over(now, own) && again(datapath, &connection)?.is_over(now, own) {
            // A packet that comes in between finds no way out, and opens the connection anew, by the port that it had.
            if let Some((key, _)) = connection.out {
                datapath.forget_connection(Direction::Out, &key)?;
            }
            if let Some((key, _)) = connection.back {
                datapath.forget_connection(Direction::In, &key)?;
            }
            collected.removed += 1;
        } else {
            collected.kept += 1;
        }
    }
    Ok(collected)
}

/// The connection as it is now.
fn again(datapath: &Datapath, connection: &Tracked) -> Result<Tracked, DatapathError> {
    let (out, back) = (connection.pod_key(), connection.wire_key());
    let read = |direction, key| Ok(datapath.connection(direction, &key)?.map(|entry| (key, entry)));
    Ok(Tracked {
        out: if connection.out.is_some() { read(Direction::Out, out)? } else { None },
        back: if connection.back.is_some() { read(Direction::In, back)? } else { None },
    })
}
