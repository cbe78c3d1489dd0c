//! Classic pcap.

use super::{Interface, Kind, MAX_PACKET, Packet, ReadError, Reader, Resolution};
use crate::link::LinkType;

const HEADER: usize = 24;
const RECORD: usize = 16;

pub(super) fn open(data: &[u8]) -> Result<Reader<'_>, ReadError> {
    let (_, header) =
        pcap_parser::parse_pcap_header(data).map_err(|_| ReadError::HeaderCut { len: data.len() })?;
    let big_endian = header.is_bigendian();
    let resolution = if header.is_nanosecond_precision() { Resolution::NANO } else { Resolution::MICRO };
    // The upper half of the field holds the length of a frame check sequence, not the link type.
    let link = LinkType::from_number(header.network.0.cast_unsigned() as u16);
    let interface = Interface {
        name: None,
        description: None,
        link,
        snaplen: header.snaplen,
        packets: 0,
        received: None,
        dropped: None,
        dropped_by_packets: 0,
        resolution,
        offset_seconds: 0,
    };
    let kind = Kind::Pcap { big_endian };
    Ok(Reader {
        data,
        offset: HEADER,
        number: 0,
        interfaces: vec![interface],
        truncated: None,
        warm: 0,
        kind,
    })
}

#[inline]
pub(super) fn next<'a>(reader: &mut Reader<'a>, big_endian: bool) -> Result<Option<Packet<'a>>, ReadError> {
    let rest = reader.data.get(reader.offset..).unwrap_or_default();
    if rest.is_empty() {
        return Ok(None);
    }
    let Some(header) = rest.first_chunk::<RECORD>() else {
        reader.cut();
        return Ok(None);
    };
    let field = |at: usize| {
        let bytes = [header[at], header[at + 1], header[at + 2], header[at + 3]];
        if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    };
    let captured = field(8);
    if captured > MAX_PACKET {
        return Err(
            reader.corrupt(format!("a packet of {captured} captured bytes cannot be (limit {MAX_PACKET})"))
        );
    }
    let end = RECORD + captured as usize;
    let Some(data) = rest.get(RECORD..end) else {
        reader.cut();
        return Ok(None);
    };
    let interface = &mut reader.interfaces[0];
    interface.packets += 1;
    let fraction = match interface.resolution {
        Resolution::Multiply(by) => i64::from(field(4)) * by.cast_signed(),
        _ => i64::from(field(4)),
    };
    reader.number += 1;
    let packet = Packet {
        number: reader.number,
        interface: 0,
        timestamp: Some(i64::from(field(0)) * 1_000_000_000 + fraction),
        original_len: field(12),
        data,
        link: interface.link,
        options: &[],
        big_endian,
    };
    reader.offset += end;
    Ok(Some(packet))
}
