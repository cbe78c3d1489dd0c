//! The answer to a pod that calls a service of which nobody is there: refused at once, not swallowed.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_redirect, bpf_skb_change_tail},
};

use crate::{
    DROP,
    packet::{self, ETHERNET, IPV4},
};

/// Bytes of the offending packet that the answer quotes: its header, and the eight that RFC 792 promises.
const QUOTED: usize = IPV4 + 8;
const ICMP: usize = 8;
const LENGTH: usize = IPV4 + ICMP + QUOTED;

const DONT_FRAGMENT: u8 = 0x40;
const TTL: u8 = 64;
const UNREACHABLE: u8 = 3;
const PORT: u8 = 3;

/// Turns the packet into an ICMP "port unreachable" (RFC 792) to its sender, from the address that was called, and sends it
/// back. What deserves no answer is dropped: pieces of packets, and protocols without ports.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn answer_unreachable(skb: *mut __sk_buff) -> i32 {
    let Some(ip) = packet::ipv4(skb) else { return DROP };
    if ip.has_options() || ip.is_later_fragment() || !matches!(ip.protocol, packet::TCP | packet::UDP) {
        return DROP;
    }
    let Some([to, from]) = packet::load::<[[u8; 6]; 2]>(skb, 0) else { return DROP };
    let Some(quoted) = packet::load::<[u8; QUOTED]>(skb, ETHERNET as u32) else { return DROP };
    let [s0, s1, s2, s3] = ip.dst.to_ne_bytes();
    let [d0, d1, d2, d3] = ip.src.to_ne_bytes();
    let mut header = [
        0x45,
        0,
        0,
        LENGTH as u8,
        0,
        0,
        DONT_FRAGMENT,
        0,
        TTL,
        packet::ICMP,
        0,
        0,
        s0,
        s1,
        s2,
        s3,
        d0,
        d1,
        d2,
        d3,
    ];
    [header[10], header[11]] = checksum(sum(&header));
    let mut icmp = [UNREACHABLE, PORT, 0, 0, 0, 0, 0, 0];
    [icmp[2], icmp[3]] = checksum(sum(&icmp) + sum(&quoted));
    let at = ETHERNET as u32;
    // SAFETY: a valid context.
    if unsafe { bpf_skb_change_tail(skb, (ETHERNET + LENGTH) as u32, 0) } != 0
        || !packet::store(skb, 0, &[from, to])
        || !packet::store(skb, at, &header)
        || !packet::store(skb, at + IPV4 as u32, &icmp)
        || !packet::store(skb, at + (IPV4 + ICMP) as u32, &quoted)
    {
        return DROP;
    }
    // SAFETY: a valid context, and a plain helper call.
    unsafe { bpf_redirect((*skb).ifindex, 0) as i32 }
}

/// Sum of 16-bit words (RFC 1071).
#[inline(always)]
fn sum<const N: usize>(bytes: &[u8; N]) -> u32 {
    let mut sum = 0;
    let mut at = 0;
    while at + 1 < N {
        sum += u32::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        at += 2;
    }
    sum
}

/// The Internet checksum of what has this sum.
#[inline(always)]
fn checksum(sum: u32) -> [u8; 2] {
    let sum = (sum & 0xffff) + (sum >> 16);
    (!(((sum & 0xffff) + (sum >> 16)) as u16)).to_be_bytes()
}
