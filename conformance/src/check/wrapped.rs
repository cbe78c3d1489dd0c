//! Packets of pods inside others, counted by what is around them and what is inside.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use super::scan::PacketRef;
use crate::dissect::Encapsulation;

/// Rows that are kept; packets of further ones count in the totals only.
const MAX_ROWS: usize = 8192;

/// What packets of one row have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Wrapping {
    /// Source and destination of the outer packet, if that is IPv4.
    pub(super) outer: Option<(Ipv4Addr, Ipv4Addr)>,
    pub(super) encapsulation: Encapsulation,
    /// Source and destination of the inner packet.
    pub(super) inner: (Ipv4Addr, Ipv4Addr),
}

/// How many there are, and the first of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) packets: u64,
    pub(super) first: PacketRef,
    /// Least and greatest TTL of the inner packets.
    pub(super) ttl: (u8, u8),
}

/// Every way in which pods' packets crossed a wire inside others.
#[derive(Debug, Default)]
pub(super) struct Wrapped {
    rows: HashMap<Wrapping, Row>,
    /// There are more than are kept.
    pub(super) overflow: bool,
}

impl Wrapped {
    pub(super) fn add(&mut self, wrapping: Wrapping, ttl: u8, place: PacketRef) {
        if let Some(row) = self.rows.get_mut(&wrapping) {
            row.packets += 1;
            row.ttl = (row.ttl.0.min(ttl), row.ttl.1.max(ttl));
        } else if self.rows.len() < MAX_ROWS {
            self.rows.insert(wrapping, Row { packets: 1, first: place, ttl: (ttl, ttl) });
        } else {
            self.overflow = true;
        }
    }

    /// All, the first seen first.
    pub(super) fn rows(&self) -> Vec<(Wrapping, Row)> {
        let mut rows: Vec<_> = self.rows.iter().map(|(wrapping, row)| (*wrapping, *row)).collect();
        rows.sort_by_key(|(wrapping, row)| (row.first, wrapping.inner));
        rows
    }
}
