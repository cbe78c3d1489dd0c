//! Any bytes as a packet of any link type.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire_conformance::dissect::{Net, dissect, summarise, tunnel};
use podwire_conformance::link::LinkType;

fuzz_target!(|data: &[u8]| {
    let Some((link, packet)) = data.split_first_chunk::<2>() else { return };
    let frame = dissect(LinkType::from_number(u16::from_le_bytes(*link)), packet);
    let _ = summarise(&frame);
    let _ = tunnel(&frame.net);
    if let Net::Ipv4(ip) = &frame.net {
        assert!(ip.payload.len() <= packet.len());
        let _ = ip.transport();
    }
});
