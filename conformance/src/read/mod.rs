//! Reading captures: pcap and pcapng, both byte orders, streaming over a memory map.
//!
//! [`Reader`] walks a byte slice and yields [`Packet`]s that borrow from it; nothing is copied and memory does not
//! grow with the file. Record framing is checked here, before anything else looks inside: a length that cannot be
//! true is a [`ReadError::Corrupt`] with its offset, a file that ends in the middle of a record is
//! [`Reader::truncated_at`] and keeps every packet before that.
//!
//! File headers, section headers, interface descriptions and statistics are parsed by `pcap-parser`. Packet blocks,
//! of which there are millions, are read field by field, because their options would otherwise be collected into a
//! vector per packet; a test compares the two.

mod error;
mod pcap;
mod pcapng;
mod time;

use std::fs::File;
use std::path::{Path, PathBuf};

pub use error::ReadError;
use time::Resolution;

use crate::link::LinkType;

/// Interfaces of one file above this are refused: a file of nothing but descriptions would otherwise eat the memory.
const MAX_INTERFACES: usize = 65_536;
/// A record or block longer than this is taken for corrupt. Wireshark's limits are 256 KiB a packet, 16 MiB a block.
const MAX_PACKET: u32 = 16 * 1024 * 1024;

/// A capture file, mapped into memory.
#[derive(Debug)]
pub struct CaptureFile {
    path: PathBuf,
    map: Option<memmap2::Mmap>,
}

impl CaptureFile {
    /// Opens and maps `path`.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(ReadError::NotAFile);
        }
        // An empty file cannot be mapped; the reader says what is wrong with it.
        let map = if metadata.len() == 0 {
            None
        } else {
            // SAFETY: the map is read-only and private to us, and only read as plain bytes, for which every value is
            // valid. If another process shortens the file meanwhile, a read past the new end raises SIGBUS, which ends
            // this process but does not corrupt it; captures only ever grow.
            let map = unsafe { memmap2::Mmap::map(&file) }?;
            // Read-ahead is an optimisation only: a kernel that refuses the advice changes nothing.
            let _ = map.advise(memmap2::Advice::Sequential);
            Some(map)
        };
        Ok(Self { path: path.to_owned(), map })
    }

    /// The file's path, as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    /// A reader from the file's start.
    pub fn reader(&self) -> Result<Reader<'_>, ReadError> {
        Reader::new(self.bytes())
    }
}

/// The file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Classic pcap.
    Pcap,
    /// pcapng.
    Pcapng,
}

/// Which way a packet went through the tapped interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Received by the interface.
    Inbound,
    /// Sent by the interface.
    Outbound,
}

/// An interface that packets of a file were captured on.
#[derive(Debug, Clone)]
pub struct Interface {
    /// `if_name`; podwire's own captures have `<node>:<interface>`. `None` in pcap files.
    pub name: Option<String>,
    /// `if_description`.
    pub description: Option<String>,
    /// Link type.
    pub link: LinkType,
    /// Longest captured length; 0 for unlimited.
    pub snaplen: u32,
    /// Packets read so far.
    pub packets: u64,
    /// Packets the interface saw, from the statistics block.
    pub received: Option<u64>,
    /// Packets that were lost on the way to the file: statistics blocks or drop counts of packets, the larger.
    pub dropped: Option<u64>,
    dropped_by_packets: u64,
    resolution: Resolution,
    offset_seconds: i64,
}

/// One packet of a file.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// Frame number in this file, counted as Wireshark does: from 1, over all interfaces.
    pub number: u64,
    /// Index into [`Reader::interfaces`].
    pub interface: usize,
    /// Nanoseconds since 1970-01-01 UTC; `None` where the format has none (simple packet blocks).
    pub timestamp: Option<i64>,
    /// Length on the wire in bytes.
    pub original_len: u32,
    /// What was captured of it.
    pub data: &'a [u8],
    /// Which link type the data begins with.
    pub link: LinkType,
    options: &'a [u8],
    big_endian: bool,
}

impl Packet<'_> {
    /// Which way the packet went, if the file says so (`epb_flags`).
    pub fn direction(&self) -> Option<Direction> {
        let flags =
            pcapng::options(self.options, self.big_endian).find(|(code, _)| *code == pcapng::EPB_FLAGS)?.1;
        let flags = pcapng::read_u32(flags.get(..4)?, self.big_endian);
        match flags & 3 {
            1 => Some(Direction::Inbound),
            2 => Some(Direction::Outbound),
            _ => None,
        }
    }
}

/// Walks a capture in memory.
///
/// ```
/// # fn main() -> Result<(), podwire_conformance::read::ReadError> {
/// # let bytes = podwire_conformance::testing::pcap_of(&[&[0u8; 60]]);
/// let mut reader = podwire_conformance::read::Reader::new(&bytes)?;
/// while let Some(packet) = reader.next_packet()? {
///     println!("frame {} has {} bytes", packet.number, packet.original_len);
/// }
/// assert_eq!(reader.truncated_at(), None);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Reader<'a> {
    data: &'a [u8],
    offset: usize,
    number: u64,
    interfaces: Vec<Interface>,
    truncated: Option<u64>,
    /// Bytes before this offset were touched lately; see [`Reader::warm_up`].
    warm: usize,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Pcap { big_endian: bool },
    Pcapng { big_endian: bool, first_interface: usize },
}

impl<'a> Reader<'a> {
    /// A reader over the bytes of a capture file.
    pub fn new(data: &'a [u8]) -> Result<Self, ReadError> {
        let Some(magic) = data.first_chunk::<4>() else {
            return Err(if data.is_empty() {
                ReadError::Empty
            } else {
                ReadError::HeaderCut { len: data.len() }
            });
        };
        match *magic {
            [0x0a, 0x0d, 0x0d, 0x0a] => pcapng::open(data),
            [0xa1, 0xb2, 0xc3, 0xd4]
            | [0xd4, 0xc3, 0xb2, 0xa1]
            | [0xa1, 0xb2, 0x3c, 0x4d]
            | [0x4d, 0x3c, 0xb2, 0xa1] => pcap::open(data),
            [0xa1, 0xb2, 0xcd, 0x34] | [0x34, 0xcd, 0xb2, 0xa1] => {
                Err(ReadError::Variant { name: "modified pcap (Kuznetzov's)" })
            }
            [0x1f, 0x8b, ..] => Err(ReadError::Compressed { name: "gzip", tool: "gunzip" }),
            [0x28, 0xb5, 0x2f, 0xfd] => Err(ReadError::Compressed { name: "zstd", tool: "unzstd" }),
            [0xfd, b'7', b'z', b'X'] => Err(ReadError::Compressed { name: "xz", tool: "unxz" }),
            magic => Err(ReadError::Unrecognised { magic }),
        }
    }

    /// The file's format.
    pub fn format(&self) -> Format {
        match self.kind {
            Kind::Pcap { .. } => Format::Pcap,
            Kind::Pcapng { .. } => Format::Pcapng,
        }
    }

    /// The interfaces described so far; a pcap has exactly one.
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// Where the record begins in whose middle the file ends. Known once the last packet was read.
    pub fn truncated_at(&self) -> Option<u64> {
        self.truncated
    }

    /// The next packet; `None` at the end.
    #[inline]
    pub fn next_packet(&mut self) -> Result<Option<Packet<'a>>, ReadError> {
        if self.truncated.is_some() {
            return Ok(None);
        }
        if self.offset >= self.warm {
            self.warm_up();
        }
        match self.kind {
            Kind::Pcap { big_endian } => pcap::next(self, big_endian),
            Kind::Pcapng { .. } => pcapng::next(self),
        }
    }

    /// Walking from record to record reads one cache line here and there, and each waits for the memory alone. Touching
    /// the next stretch line by line first lets the processor fetch ahead: a third less time for a large file.
    #[cold]
    fn warm_up(&mut self) {
        const STRETCH: usize = 64 * 1024;
        const LINE: usize = 64;
        self.warm = self.offset.saturating_add(STRETCH);
        let stretch = self.data.get(self.offset..).unwrap_or_default();
        let stretch = &stretch[..stretch.len().min(STRETCH + 2 * LINE)];
        let sum = stretch.iter().step_by(LINE).fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        std::hint::black_box(sum);
    }

    /// Remembers that the record at the current offset is cut short by the file's end.
    fn cut(&mut self) {
        self.truncated = Some(self.offset as u64);
    }

    fn corrupt(&self, what: impl Into<String>) -> ReadError {
        ReadError::Corrupt { offset: self.offset as u64, what: what.into() }
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Packet<'a>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_packet().transpose()
    }
}

#[cfg(test)]
mod tests;
