//! pcapng: blocks, sections, interfaces (the IETF draft draft-ietf-opsawg-pcapng).

use pcap_parser::{PcapNGOption, parse_interfacedescriptionblock_be, parse_interfacedescriptionblock_le};
use pcap_parser::{
    parse_interfacestatisticsblock_be, parse_interfacestatisticsblock_le, parse_sectionheaderblock,
};

use super::{Interface, Kind, MAX_INTERFACES, MAX_PACKET, Packet, ReadError, Reader, Resolution};
use crate::link::LinkType;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const OLD_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;
/// Wireshark shows a systemd journal entry as a frame, so it takes a frame number.
const JOURNAL_EXPORT: u32 = 9;

pub(super) const EPB_FLAGS: u16 = 2;
const EPB_DROPCOUNT: u16 = 4;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_TSRESOL: u16 = 9;
const IF_TSOFFSET: u16 = 14;
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;
const ISB_OSDROP: u16 = 7;

pub(super) fn open(data: &[u8]) -> Result<Reader<'_>, ReadError> {
    let kind = Kind::Pcapng { big_endian: false, first_interface: 0 };
    let mut reader =
        Reader { data, offset: 0, number: 0, interfaces: Vec::new(), truncated: None, warm: 0, kind };
    let Some(block) = section_frame(&reader)? else {
        return Err(ReadError::HeaderCut { len: data.len() });
    };
    section(&mut reader, block)?;
    reader.offset = block.len();
    Ok(reader)
}

#[inline]
pub(super) fn read_u32(bytes: &[u8], big_endian: bool) -> u32 {
    // Callers hand four bytes; a shorter slice reads as zero rather than ending the program.
    let bytes: [u8; 4] = bytes.try_into().unwrap_or_default();
    if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
}

fn read_u64(bytes: &[u8], big_endian: bool) -> Option<u64> {
    let bytes: [u8; 8] = bytes.get(..8)?.try_into().ok()?;
    Some(if big_endian { u64::from_be_bytes(bytes) } else { u64::from_le_bytes(bytes) })
}

/// Code and value of each option in an options area; ends at the end mark or where the area is malformed.
pub(super) fn options(mut area: &[u8], big_endian: bool) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = area.first_chunk::<4>()?;
        let (code, len) = ([head[0], head[1]], [head[2], head[3]]);
        let (code, len) = if big_endian {
            (u16::from_be_bytes(code), u16::from_be_bytes(len))
        } else {
            (u16::from_le_bytes(code), u16::from_le_bytes(len))
        };
        if code == 0 {
            return None;
        }
        let value = area.get(4..4 + usize::from(len))?;
        area = area.get(4 + usize::from(len).next_multiple_of(4)..).unwrap_or_default();
        Some((code, value))
    })
}

/// The next block of the current section, whole; `None` at the end or where the file is cut.
#[inline]
fn frame<'a>(reader: &mut Reader<'a>, big_endian: bool) -> Result<Option<(u32, &'a [u8])>, ReadError> {
    let rest = reader.data.get(reader.offset..).unwrap_or_default();
    if rest.is_empty() {
        return Ok(None);
    }
    let Some(head) = rest.first_chunk::<8>() else {
        reader.cut();
        return Ok(None);
    };
    let kind = read_u32(&head[..4], big_endian);
    if kind == SECTION_HEADER {
        // A new section has its own byte order.
        let Some(block) = section_frame(reader)? else {
            reader.cut();
            return Ok(None);
        };
        return Ok(Some((kind, block)));
    }
    let len = read_u32(&head[4..], big_endian);
    whole_block(reader, rest, len, big_endian).map(|block| block.map(|block| (kind, block)))
}

#[inline]
fn whole_block<'a>(
    reader: &mut Reader<'a>,
    rest: &'a [u8],
    len: u32,
    big_endian: bool,
) -> Result<Option<&'a [u8]>, ReadError> {
    check_length(reader, len)?;
    let Some(block) = rest.get(..len as usize) else {
        reader.cut();
        return Ok(None);
    };
    let trailer = read_u32(&block[block.len() - 4..], big_endian);
    if trailer != len {
        return Err(reader.corrupt(format!("a block says {len} bytes at its start and {trailer} at its end")));
    }
    Ok(Some(block))
}

fn check_length(reader: &Reader<'_>, len: u32) -> Result<(), ReadError> {
    if len < 12 || !len.is_multiple_of(4) || len > MAX_PACKET + 4096 {
        return Err(reader.corrupt(format!("a block of {len} bytes cannot be")));
    }
    Ok(())
}

/// The section header block at the reader's offset, whole; `None` where the file ends inside it.
fn section_frame<'a>(reader: &Reader<'a>) -> Result<Option<&'a [u8]>, ReadError> {
    let rest = reader.data.get(reader.offset..).unwrap_or_default();
    let Some(head) = rest.first_chunk::<12>() else { return Ok(None) };
    let big_endian = match head[8..12] {
        [0x1a, 0x2b, 0x3c, 0x4d] => true,
        [0x4d, 0x3c, 0x2b, 0x1a] => false,
        _ => return Err(reader.corrupt("a section without a byte-order mark")),
    };
    let len = read_u32(&head[4..8], big_endian);
    if len < 28 {
        return Err(reader.corrupt(format!("a section header of {len} bytes cannot be")));
    }
    check_length(reader, len)?;
    let Some(block) = rest.get(..len as usize) else { return Ok(None) };
    let trailer = read_u32(&block[block.len() - 4..], big_endian);
    if trailer != len {
        return Err(reader
            .corrupt(format!("a section header says {len} bytes at its start and {trailer} at its end")));
    }
    Ok(Some(block))
}

fn section(reader: &mut Reader<'_>, block: &[u8]) -> Result<(), ReadError> {
    let (_, header) = parse_sectionheaderblock(block)
        .map_err(|_| reader.corrupt("a section header that cannot be parsed"))?;
    if header.major_version != 1 {
        let (major, minor) = (header.major_version, header.minor_version);
        return Err(ReadError::Version { offset: reader.offset as u64, major, minor });
    }
    reader.kind = Kind::Pcapng { big_endian: block[8] == 0x1a, first_interface: reader.interfaces.len() };
    Ok(())
}

#[inline]
pub(super) fn next<'a>(reader: &mut Reader<'a>) -> Result<Option<Packet<'a>>, ReadError> {
    loop {
        let Kind::Pcapng { big_endian, first_interface } = reader.kind else { return Ok(None) };
        let Some((kind, block)) = frame(reader, big_endian)? else { return Ok(None) };
        let packet = match kind {
            ENHANCED_PACKET => Some(enhanced(reader, block, big_endian, first_interface)?),
            SIMPLE_PACKET => Some(simple(reader, block, big_endian, first_interface)?),
            OLD_PACKET => Some(old(reader, block, big_endian, first_interface)?),
            SECTION_HEADER => {
                section(reader, block)?;
                None
            }
            INTERFACE_DESCRIPTION => {
                describe(reader, block, big_endian)?;
                None
            }
            INTERFACE_STATISTICS => {
                statistics(reader, block, big_endian, first_interface)?;
                None
            }
            JOURNAL_EXPORT => {
                reader.number += 1;
                None
            }
            _ => None,
        };
        reader.offset += block.len();
        if packet.is_some() {
            return Ok(packet);
        }
    }
}

fn describe(reader: &mut Reader<'_>, block: &[u8], big_endian: bool) -> Result<(), ReadError> {
    if reader.interfaces.len() >= MAX_INTERFACES {
        return Err(ReadError::TooManyInterfaces { limit: MAX_INTERFACES });
    }
    let parsed = if big_endian {
        parse_interfacedescriptionblock_be(block)
    } else {
        parse_interfacedescriptionblock_le(block)
    };
    let (_, described) =
        parsed.map_err(|_| reader.corrupt("an interface description that cannot be parsed"))?;
    let value = |code| option_value(&described.options, code);
    let text = |code| value(code).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let resolution = value(IF_TSRESOL)
        .and_then(<[u8]>::first)
        .map_or(Resolution::MICRO, |value| Resolution::from_option(*value));
    let offset_seconds =
        value(IF_TSOFFSET).and_then(|bytes| read_u64(bytes, big_endian)).unwrap_or(0).cast_signed();
    let interface = Interface {
        name: text(IF_NAME),
        description: text(IF_DESCRIPTION),
        link: LinkType::from_number(described.linktype.0.cast_unsigned() as u16),
        snaplen: described.snaplen,
        packets: 0,
        received: None,
        dropped: None,
        dropped_by_packets: 0,
        resolution,
        offset_seconds,
    };
    reader.interfaces.push(interface);
    Ok(())
}

fn option_value<'b>(options: &'b [PcapNGOption<'_>], code: u16) -> Option<&'b [u8]> {
    options.iter().find(|option| option.code.0 == code)?.as_bytes().ok()
}

fn statistics(
    reader: &mut Reader<'_>,
    block: &[u8],
    big_endian: bool,
    first: usize,
) -> Result<(), ReadError> {
    let parsed = if big_endian {
        parse_interfacestatisticsblock_be(block)
    } else {
        parse_interfacestatisticsblock_le(block)
    };
    let (_, found) = parsed.map_err(|_| reader.corrupt("interface statistics that cannot be parsed"))?;
    let index = interface_index(reader, found.if_id, first)?;
    let number = |code| option_value(&found.options, code).and_then(|bytes| read_u64(bytes, big_endian));
    let interface = &mut reader.interfaces[index];
    interface.received = number(ISB_IFRECV).or(interface.received);
    let dropped = match (number(ISB_IFDROP), number(ISB_OSDROP)) {
        (None, None) => None,
        (a, b) => Some(a.unwrap_or(0).saturating_add(b.unwrap_or(0))),
    };
    // Statistics are running totals, so of several blocks the largest holds.
    interface.dropped = interface.dropped.max(dropped);
    Ok(())
}

fn interface_index(reader: &Reader<'_>, id: u32, first: usize) -> Result<usize, ReadError> {
    let index = first.saturating_add(id as usize);
    if index < reader.interfaces.len() {
        return Ok(index);
    }
    let known = reader.interfaces.len() - first;
    Err(reader.corrupt(format!("interface {id} is used, but the section describes {known}")))
}

#[inline]
fn enhanced<'a>(
    reader: &mut Reader<'a>,
    block: &'a [u8],
    big_endian: bool,
    first: usize,
) -> Result<Packet<'a>, ReadError> {
    let Some(head) = block.first_chunk::<28>().filter(|_| block.len() >= 32) else {
        return Err(reader.corrupt(format!("an enhanced packet block of {} bytes cannot be", block.len())));
    };
    let field = |at: usize| read_u32(&head[at..at + 4], big_endian);
    let index = interface_index(reader, field(8), first)?;
    let ticks = u64::from(field(12)) << 32 | u64::from(field(16));
    let body = &block[28..block.len() - 4];
    finish(reader, index, Some(ticks), (field(20), field(24)), body, big_endian)
}

fn old<'a>(
    reader: &mut Reader<'a>,
    block: &'a [u8],
    big_endian: bool,
    first: usize,
) -> Result<Packet<'a>, ReadError> {
    let Some(head) = block.first_chunk::<28>().filter(|_| block.len() >= 32) else {
        return Err(reader.corrupt(format!("a packet block of {} bytes cannot be", block.len())));
    };
    let half = |at: usize| {
        let bytes = [head[at], head[at + 1]];
        if big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
    };
    let field = |at: usize| read_u32(&head[at..at + 4], big_endian);
    let index = interface_index(reader, u32::from(half(8)), first)?;
    // 0xffff: the writer does not know how many were dropped since the packet before.
    if !matches!(half(10), 0 | 0xffff) {
        add_drops(&mut reader.interfaces[index], u64::from(half(10)));
    }
    let ticks = u64::from(field(12)) << 32 | u64::from(field(16));
    let body = &block[28..block.len() - 4];
    finish(reader, index, Some(ticks), (field(20), field(24)), body, big_endian)
}

fn simple<'a>(
    reader: &mut Reader<'a>,
    block: &'a [u8],
    big_endian: bool,
    first: usize,
) -> Result<Packet<'a>, ReadError> {
    if block.len() < 16 {
        return Err(reader.corrupt(format!("a simple packet block of {} bytes cannot be", block.len())));
    }
    let index = interface_index(reader, 0, first)?;
    let original = read_u32(&block[8..12], big_endian);
    let body = &block[12..block.len() - 4];
    // The block has no captured length: it is the least of the packet, the snap length and the room.
    let mut captured = original.min(body.len() as u32);
    let snaplen = reader.interfaces[index].snaplen;
    if snaplen != 0 {
        captured = captured.min(snaplen);
    }
    finish(reader, index, None, (captured, original), body, big_endian)
}

fn add_drops(interface: &mut Interface, drops: u64) {
    interface.dropped_by_packets = interface.dropped_by_packets.saturating_add(drops);
    interface.dropped = interface.dropped.max(Some(interface.dropped_by_packets));
}

#[inline]
fn finish<'a>(
    reader: &mut Reader<'a>,
    index: usize,
    ticks: Option<u64>,
    (captured, original): (u32, u32),
    body: &'a [u8],
    big_endian: bool,
) -> Result<Packet<'a>, ReadError> {
    let Some(data) = body.get(..captured as usize) else {
        return Err(reader.corrupt(format!(
            "a packet of {captured} captured bytes in a block with room for {}",
            body.len()
        )));
    };
    let after = body.get(data.len().next_multiple_of(4)..).unwrap_or_default();
    // A simple packet block has no options; what follows its data is padding.
    let area = if ticks.is_some() { after } else { &[] };
    let interface = &mut reader.interfaces[index];
    if !area.is_empty() {
        for (code, value) in options(area, big_endian) {
            if let (EPB_DROPCOUNT, Some(drops)) = (code, read_u64(value, big_endian)) {
                add_drops(interface, drops);
            }
        }
    }
    interface.packets += 1;
    reader.number += 1;
    Ok(Packet {
        number: reader.number,
        interface: index,
        timestamp: ticks.map(|ticks| interface.resolution.nanoseconds(ticks, interface.offset_seconds)),
        original_len: original,
        data,
        link: interface.link,
        options: area,
        big_endian,
    })
}
