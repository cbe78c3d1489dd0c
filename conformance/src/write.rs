//! Writing pcapng (draft-ietf-opsawg-pcapng): little-endian, one section, nanosecond timestamps.

use std::io::{self, Write};

use crate::link::LinkType;
use crate::read::Direction;

/// Writes one section. Every call writes whole blocks, so a file that was left behind by a killed writer is readable.
#[derive(Debug)]
pub struct PcapngWriter<W: Write> {
    out: W,
    interfaces: u32,
    block: Vec<u8>,
}

/// What an interface description block says.
#[derive(Debug, Clone, Copy)]
pub struct InterfaceHeader<'a> {
    /// `if_name`.
    pub name: &'a str,
    /// `if_description`.
    pub description: Option<&'a str>,
    /// Link type.
    pub link: LinkType,
    /// Longest captured length.
    pub snaplen: u32,
    /// `if_filter`: the expression that packets had to match.
    pub filter: Option<&'a str>,
}

impl<W: Write> PcapngWriter<W> {
    /// Begins a section; `application` says who writes it, `comment` what was asked for.
    pub fn new(out: W, application: &str, comment: Option<&str>) -> io::Result<Self> {
        let mut writer = Self { out, interfaces: 0, block: Vec::new() };
        let system = nix::sys::utsname::uname().map(|name| {
            let text = |value: &std::ffi::OsStr| value.to_string_lossy().into_owned();
            (text(name.machine()), format!("{} {}", text(name.sysname()), text(name.release())))
        });
        let (machine, system) = system.unwrap_or_default();
        writer.begin(0x0a0d_0d0a);
        writer.put(&0x1a2b_3c4du32.to_le_bytes());
        writer.put(&1u16.to_le_bytes());
        writer.put(&0u16.to_le_bytes());
        writer.put(&(-1i64).to_le_bytes());
        if let Some(comment) = comment {
            writer.option(1, comment.as_bytes());
        }
        writer.option(2, machine.as_bytes());
        writer.option(3, system.as_bytes());
        writer.option(4, application.as_bytes());
        writer.end_options();
        writer.finish()?;
        Ok(writer)
    }

    /// Describes an interface; the result is its number for [`Self::packet`].
    pub fn interface(&mut self, interface: &InterfaceHeader<'_>) -> io::Result<u32> {
        self.begin(1);
        self.put(&interface.link.number().to_le_bytes());
        self.put(&[0, 0]);
        self.put(&interface.snaplen.to_le_bytes());
        self.option(2, interface.name.as_bytes());
        if let Some(description) = interface.description {
            self.option(3, description.as_bytes());
        }
        self.option(9, &[9]);
        if let Some(filter) = interface.filter {
            // Kind 0 of if_filter: a text expression.
            self.option(11, &[&[0], filter.as_bytes()].concat());
        }
        self.end_options();
        self.finish()?;
        self.interfaces += 1;
        Ok(self.interfaces - 1)
    }

    /// Writes a packet. `timestamp` is in nanoseconds since 1970.
    pub fn packet(
        &mut self,
        interface: u32,
        timestamp: u64,
        original_len: u32,
        data: &[u8],
        direction: Option<Direction>,
    ) -> io::Result<()> {
        self.begin(6);
        self.put(&interface.to_le_bytes());
        self.put(&((timestamp >> 32) as u32).to_le_bytes());
        self.put(&(timestamp as u32).to_le_bytes());
        self.put(&(data.len() as u32).to_le_bytes());
        self.put(&original_len.to_le_bytes());
        self.put(data);
        self.pad();
        if let Some(direction) = direction {
            let flags: u32 = if direction == Direction::Inbound { 1 } else { 2 };
            self.option(2, &flags.to_le_bytes());
            self.end_options();
        }
        self.finish()
    }

    /// Writes an interface's totals. `start` and `end` are in nanoseconds since 1970.
    pub fn statistics(
        &mut self,
        interface: u32,
        (start, end): (u64, u64),
        received: u64,
        dropped: u64,
    ) -> io::Result<()> {
        self.begin(5);
        self.put(&interface.to_le_bytes());
        let halves = |time: u64| [((time >> 32) as u32).to_le_bytes(), (time as u32).to_le_bytes()].concat();
        self.put(&halves(end));
        self.option(2, &halves(start));
        self.option(3, &halves(end));
        self.option(4, &received.to_le_bytes());
        self.option(5, &dropped.to_le_bytes());
        self.end_options();
        self.finish()
    }

    /// Hands buffered bytes to the system.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// The underlying output.
    pub fn into_inner(self) -> W {
        self.out
    }

    fn begin(&mut self, kind: u32) {
        self.block.clear();
        self.block.extend_from_slice(&kind.to_le_bytes());
        self.block.extend_from_slice(&[0; 4]);
    }

    fn put(&mut self, bytes: &[u8]) {
        self.block.extend_from_slice(bytes);
    }

    fn pad(&mut self) {
        self.block.resize(self.block.len().next_multiple_of(4), 0);
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        // An option's length has 16 bits; a longer text is cut, which no reader minds.
        let value = &value[..value.len().min(usize::from(u16::MAX))];
        self.put(&code.to_le_bytes());
        self.put(&(value.len() as u16).to_le_bytes());
        self.put(value);
        self.pad();
    }

    fn end_options(&mut self) {
        self.put(&[0; 4]);
    }

    fn finish(&mut self) -> io::Result<()> {
        let len = (self.block.len() as u32 + 4).to_le_bytes();
        self.block[4..8].copy_from_slice(&len);
        self.block.extend_from_slice(&len);
        self.out.write_all(&self.block)
    }
}
