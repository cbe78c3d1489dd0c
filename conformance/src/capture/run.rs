//! Several taps into one file, packets in the order of their timestamps.

use std::fs::File;
use std::io::{self, BufWriter};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::ring::RETIRE_MS;
use super::{CaptureError, DEFAULT_SNAPLEN};
use crate::dissect::dissect;
use crate::filter::Filter;
use crate::link::LinkType;
use crate::node::{Tap, TapStatistics};
use crate::read::Direction;
use crate::write::{InterfaceHeader, PcapngWriter};

/// How long a packet is held back to let older ones of other taps pass it: a block that the kernel is filling is handed
/// over after RETIRE_MS, give or take a timer tick on a busy machine.
const HOLD_BACK: Duration = Duration::from_millis(4 * RETIRE_MS as u64);
/// Bytes held back at most; past this order is given up for memory.
const HELD_MAX: usize = 64 << 20;

/// What to capture.
#[derive(Debug, Clone)]
pub struct CaptureOptions {
    /// Only packets that match are written.
    pub filter: Option<Filter>,
    /// End after so long.
    pub duration: Option<Duration>,
    /// End after so many written packets.
    pub packets: Option<u64>,
    /// Longest captured length in bytes.
    pub snaplen: u32,
    /// Comment for the file's header, for example the command line.
    pub comment: Option<String>,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        Self { filter: None, duration: None, packets: None, snaplen: DEFAULT_SNAPLEN, comment: None }
    }
}

/// What was captured.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CaptureStats {
    /// Packets in the file.
    pub written: u64,
    /// Packets lost by the kernel, all taps.
    pub dropped: u64,
    /// Each tap's share.
    pub interfaces: Vec<InterfaceStats>,
}

/// What was captured by one tap.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct InterfaceStats {
    /// `<node>:<interface>`.
    pub name: String,
    /// Packets in the file.
    pub written: u64,
    /// Packets that the filter left out.
    pub filtered: u64,
    /// The kernel's counters.
    pub kernel: TapStatistics,
    /// Why the tap ended before the capture did.
    pub lost: Option<String>,
}

/// Captures from `taps` into `out` until the duration or the packet count is reached, `stop` is set or every tap is gone.
///
/// `ready` is called once the file is begun; everything from the opening of the taps on is captured, so traffic may
/// start then. What was sent before `stop` was set is in the file when this returns.
pub fn run(
    taps: Vec<Box<dyn Tap>>,
    options: &CaptureOptions,
    out: &Path,
    stop: &AtomicBool,
    ready: impl FnOnce(),
) -> Result<CaptureStats, CaptureError> {
    if taps.is_empty() {
        return Err(CaptureError::NoTaps);
    }
    let output = |source| CaptureError::Output { path: out.to_owned(), source };
    let file = File::create(out).map_err(output)?;
    let mut session = Session::begin(taps, options, file).map_err(output)?;
    ready();
    let started = Instant::now();
    let mut ending: Option<Instant> = None;
    loop {
        session.wait();
        // Read before draining: whatever was sent before this moment is handed over within HOLD_BACK of it.
        let now = Instant::now();
        let over = stop.load(Ordering::Acquire)
            || options.duration.is_some_and(|limit| now - started >= limit)
            || session.all_lost();
        if over && ending.is_none() {
            ending = Some(now + HOLD_BACK);
        }
        session.drain()?;
        let last = ending.is_some_and(|ending| now >= ending);
        session.emit(last).map_err(output)?;
        if last || options.packets.is_some_and(|limit| session.stats.written >= limit) {
            return session.finish(output);
        }
    }
}

struct Session<'o> {
    taps: Vec<Box<dyn Tap>>,
    options: &'o CaptureOptions,
    writer: PcapngWriter<BufWriter<File>>,
    begun: u64,
    held: Vec<Held>,
    held_bytes: usize,
    stats: CaptureStats,
}

/// A packet on its way to the file.
struct Held {
    timestamp: u64,
    tap: usize,
    original_len: u32,
    data: Vec<u8>,
    direction: Option<Direction>,
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl<'o> Session<'o> {
    fn begin(taps: Vec<Box<dyn Tap>>, options: &'o CaptureOptions, file: File) -> io::Result<Self> {
        let application = concat!("podwire ", env!("CARGO_PKG_VERSION"));
        let mut writer = PcapngWriter::new(
            BufWriter::with_capacity(1 << 20, file),
            application,
            options.comment.as_deref(),
        )?;
        let mut stats = CaptureStats::default();
        for tap in &taps {
            writer.interface(&InterfaceHeader {
                name: tap.name(),
                description: tap.description().as_deref(),
                link: tap.link(),
                snaplen: tap.snaplen().min(options.snaplen),
                filter: options.filter.as_ref().map(Filter::source),
            })?;
            stats
                .interfaces
                .push(InterfaceStats { name: tap.name().to_owned(), ..InterfaceStats::default() });
        }
        writer.flush()?;
        Ok(Self { taps, options, writer, begun: now_ns(), held: Vec::new(), held_bytes: 0, stats })
    }

    /// Until a tap has packets, at most RETIRE_MS.
    fn wait(&self) {
        let lost = |index: usize| self.stats.interfaces[index].lost.is_some();
        let alive = self.taps.iter().enumerate().filter(|(index, _)| !lost(*index));
        let fds: Vec<BorrowedFd<'_>> = alive.filter_map(|(_, tap)| tap.readiness()).collect();
        let mut fds: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        // An interrupted poll is as good as one that timed out: the loop looks at everything anyway.
        let _ = poll(&mut fds, PollTimeout::from(RETIRE_MS as u16));
    }

    fn all_lost(&self) -> bool {
        self.stats.interfaces.iter().all(|interface| interface.lost.is_some())
    }

    fn drain(&mut self) -> Result<(), CaptureError> {
        let Self { taps, options, held, held_bytes, stats, .. } = self;
        for (index, tap) in taps.iter_mut().enumerate() {
            let share = &mut stats.interfaces[index];
            let link: LinkType = tap.link();
            let result = tap.drain(&mut |packet| {
                if options.filter.as_ref().is_some_and(|filter| !filter.matches(&dissect(link, packet.data)))
                {
                    share.filtered += 1;
                    return;
                }
                let data = packet.data[..packet.data.len().min(options.snaplen as usize)].to_vec();
                *held_bytes += data.len();
                let (timestamp, original_len, direction) =
                    (packet.timestamp, packet.original_len, packet.direction);
                held.push(Held { timestamp, tap: index, original_len, data, direction });
            });
            match result {
                Ok(()) => {}
                // One interface that goes away (a pod that ends) does not end the capture of the others; what is left in
                // its ring is still read.
                Err(CaptureError::InterfaceLost { source, .. }) => share.lost = Some(source.to_string()),
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    /// Writes what is old enough, or everything.
    fn emit(&mut self, all: bool) -> io::Result<()> {
        self.held.sort_by_key(|packet| packet.timestamp);
        let horizon = now_ns().saturating_sub(HOLD_BACK.as_nanos() as u64);
        let ripe = if all || self.held_bytes > HELD_MAX {
            self.held.len()
        } else {
            self.held.partition_point(|packet| packet.timestamp < horizon)
        };
        for packet in self.held.drain(..ripe) {
            self.held_bytes -= packet.data.len();
            if self.options.packets.is_some_and(|limit| self.stats.written >= limit) {
                continue;
            }
            self.writer.packet(
                packet.tap as u32,
                packet.timestamp,
                packet.original_len,
                &packet.data,
                packet.direction,
            )?;
            self.stats.written += 1;
            self.stats.interfaces[packet.tap].written += 1;
        }
        self.writer.flush()
    }

    fn finish(mut self, output: impl Fn(io::Error) -> CaptureError) -> Result<CaptureStats, CaptureError> {
        let end = now_ns();
        for index in 0..self.taps.len() {
            let kernel = self.taps[index].statistics()?;
            self.stats.interfaces[index].kernel = kernel;
            self.stats.dropped += kernel.dropped;
            self.writer
                .statistics(index as u32, (self.begun, end), kernel.received, kernel.dropped)
                .map_err(&output)?;
        }
        self.writer.flush().map_err(&output)?;
        // The kernel takes tens of milliseconds to close a packet socket, so all are closed at once.
        std::thread::scope(|scope| {
            for tap in self.taps.drain(..) {
                scope.spawn(move || drop(tap));
            }
        });
        Ok(self.stats)
    }
}
