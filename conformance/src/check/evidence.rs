use std::fmt::Write as _;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::result::Message;
use crate::dissect::{dissect, summarise};
use crate::read::{Direction, Packet};

/// Bytes of a packet shown in a report.
const HEX_BYTES: usize = 64;

/// A packet that proves something, found again by file and frame number.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Evidence {
    /// The file.
    pub file: String,
    /// The interface's name in the file, else its number.
    pub interface: String,
    /// Frame number as Wireshark counts.
    pub frame: u64,
    /// RFC 3339 with nanoseconds, UTC.
    pub timestamp: Option<String>,
    /// Which way it went.
    pub direction: Option<Direction>,
    /// Outermost source address.
    pub source: String,
    /// Outermost destination address.
    pub destination: String,
    /// Innermost protocol.
    pub protocol: String,
    /// The rest in words.
    pub info: String,
    /// Length on the wire in bytes.
    pub length: u32,
    /// The first bytes.
    pub hex: String,
    /// What this packet shows.
    pub note: Option<Message>,
}

impl Evidence {
    pub(super) fn of(file: &str, interface: &str, packet: &Packet<'_>, note: Option<Message>) -> Self {
        let summary = summarise(&dissect(packet.link, packet.data));
        Self {
            file: file.to_owned(),
            interface: interface.to_owned(),
            frame: packet.number,
            timestamp: packet.timestamp.and_then(rfc3339),
            direction: packet.direction(),
            source: summary.source,
            destination: summary.destination,
            protocol: summary.protocol,
            info: summary.info,
            length: packet.original_len,
            hex: hex(&packet.data[..packet.data.len().min(HEX_BYTES)]),
            note,
        }
    }
}

pub(super) fn rfc3339(nanoseconds: i64) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanoseconds)).ok()?;
    time.format(&Rfc3339).ok()
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 3);
    for (index, byte) in bytes.iter().enumerate() {
        let gap = if index == 0 {
            ""
        } else if index % 16 == 0 {
            "\n"
        } else {
            " "
        };
        let _ = write!(text, "{gap}{byte:02x}");
    }
    text
}
