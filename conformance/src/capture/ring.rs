//! The kernel's packet ring (TPACKET_V3, Documentation/networking/packet_mmap.rst): packets of any length laid one
//! behind the other in blocks that the kernel fills and we give back.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::libc;

use crate::node::TappedPacket;
use crate::read::Direction;

/// Bytes of a block, which holds at least one packet of the greatest captured length.
pub(super) const BLOCK: usize = 1 << 20;
/// Bytes of a block for one who has packets cut short.
pub(super) const SMALL_BLOCK: usize = 1 << 17;
/// 32 MiB: a quarter of a second of 1 Gbit/s, and blocks are emptied every few milliseconds. Their number is what counts where there
/// is little traffic: each is handed over after RETIRE_MS, full or not.
const BLOCKS: usize = 32;
/// Multiple of TPACKET_ALIGNMENT that divides the block; V3 only uses it to check the request.
const FRAME: usize = 1 << 16;
/// Milliseconds after which the kernel hands over a block that is not full.
pub(super) const RETIRE_MS: u32 = 10;

/// The mapped ring of one socket.
#[derive(Debug)]
pub(super) struct Ring {
    start: NonNull<u8>,
    block: usize,
    next: usize,
}

// SAFETY: the mapping belongs to this value alone and is not bound to the thread that made it.
unsafe impl Send for Ring {}

impl Ring {
    /// Gives `socket` a receive ring with blocks of this size and maps it. The socket must have TPACKET_V3 set.
    pub(super) fn new(socket: &impl AsFd, block: usize) -> io::Result<Self> {
        let request = libc::tpacket_req3 {
            tp_block_size: block as u32,
            tp_block_nr: BLOCKS as u32,
            tp_frame_size: FRAME as u32,
            tp_frame_nr: (block / FRAME * BLOCKS) as u32,
            tp_retire_blk_tov: RETIRE_MS,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        let fd = socket.as_fd().as_raw_fd();
        super::packet_tap::set_option(fd, libc::PACKET_RX_RING, &request)?;
        // SAFETY: a fresh shared mapping of the ring that the socket has, at an address of the kernel's choice; the
        // result is checked before use.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                block * BLOCKS,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(address.cast::<u8>())
            .ok_or_else(|| io::Error::other("the ring was mapped at address 0"))?;
        Ok(Self { start, block, next: 0 })
    }

    /// Hands over every packet of the blocks that the kernel has finished, and gives the blocks back.
    pub(super) fn drain(&mut self, keep: Keep, sink: &mut dyn FnMut(TappedPacket<'_>)) {
        // At most once around: a flood must not keep the caller from its other taps.
        for _ in 0..BLOCKS {
            // SAFETY: `next` is below BLOCKS, so the block lies inside the mapping.
            let block = unsafe { self.start.add(self.next * self.block) };
            // block_status lies 8 bytes into struct tpacket_block_desc (version, offset_to_priv, then tpacket_hdr_v1).
            // SAFETY: inside the mapping and 4-aligned, since blocks are page-aligned; the kernel changes it
            // concurrently, hence the atomic.
            let status = unsafe { AtomicU32::from_ptr(block.add(8).cast::<u32>().as_ptr()) };
            if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
                return;
            }
            // SAFETY: the status says that the kernel is done with the block until we give it back below, so for as
            // long as `bytes` lives nothing writes to it but the status word, which is not read through it.
            let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), self.block) };
            walk(bytes, keep, sink);
            status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
            self.next = (self.next + 1) % BLOCKS;
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `new` made; no slice of it outlives `drain`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.block * BLOCKS) };
    }
}

/// What of the packets is wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keep {
    /// Longest captured length.
    pub(super) snaplen: u32,
    /// Sent packets come back on a loopback interface, so only the received ones count.
    pub(super) loopback: bool,
}

/// Reads the packets of a finished block. Offsets are the kernel's; each is checked all the same.
fn walk(block: &[u8], keep: Keep, sink: &mut dyn FnMut(TappedPacket<'_>)) {
    // struct tpacket_hdr_v1 at 8: block_status, num_pkts, offset_to_first_pkt.
    let (Some(count), Some(first)) = (native_u32(block, 12), native_u32(block, 16)) else { return };
    let mut at = first as usize;
    for _ in 0..count {
        let Some(packet) = block.get(at..) else { return };
        let Some((next, tapped)) = read(packet, keep) else { return };
        if let Some(tapped) = tapped {
            sink(tapped);
        }
        if next == 0 {
            return;
        }
        at += next;
    }
}

/// Reads a struct tpacket3_hdr and what follows it: offset of the next packet, and the packet if it is wanted.
fn read(packet: &[u8], keep: Keep) -> Option<(usize, Option<TappedPacket<'_>>)> {
    let field = |at| native_u32(packet, at);
    let (next, seconds, nanoseconds) = (field(0)?, field(4)?, field(8)?);
    let (captured, original_len) = (field(12)?.min(keep.snaplen), field(16)?);
    let mac = usize::from(u16::from_ne_bytes(packet.get(24..26)?.try_into().ok()?));
    // struct sockaddr_ll follows at TPACKET_ALIGN(sizeof(struct tpacket3_hdr)) = 48; sll_pkttype is its byte 10.
    let kind = *packet.get(48 + 10)?;
    let outbound = kind == libc::PACKET_OUTGOING;
    if outbound && keep.loopback {
        return Some((next as usize, None));
    }
    let data = packet.get(mac..mac + captured as usize)?;
    let timestamp = u64::from(seconds) * 1_000_000_000 + u64::from(nanoseconds);
    let direction = Some(if outbound { Direction::Outbound } else { Direction::Inbound });
    Some((next as usize, Some(TappedPacket { timestamp, original_len, data, direction })))
}

fn native_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_the_kernels() {
        assert_eq!(std::mem::offset_of!(libc::tpacket_block_desc, hdr), 8);
        assert_eq!(std::mem::offset_of!(libc::tpacket_hdr_v1, num_pkts), 4);
        assert_eq!(std::mem::offset_of!(libc::tpacket_hdr_v1, offset_to_first_pkt), 8);
        assert_eq!(std::mem::size_of::<libc::tpacket3_hdr>(), 48);
        assert_eq!(std::mem::offset_of!(libc::tpacket3_hdr, tp_snaplen), 12);
        assert_eq!(std::mem::offset_of!(libc::tpacket3_hdr, tp_mac), 24);
        assert_eq!(std::mem::offset_of!(libc::sockaddr_ll, sll_pkttype), 10);
        assert_eq!((BLOCK % FRAME, SMALL_BLOCK % FRAME), (0, 0));
    }

    #[test]
    fn offsets_that_lead_outside_end_the_walk() {
        let mut block = vec![0u8; 256];
        block[12..16].copy_from_slice(&5u32.to_ne_bytes());
        block[16..20].copy_from_slice(&250u32.to_ne_bytes());
        let mut seen = 0;
        walk(&block, Keep { snaplen: 100, loopback: false }, &mut |_| seen += 1);
        assert_eq!(seen, 0);
    }
}
