//! Any bytes as a capture file: no panic, and nothing after an end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire_conformance::read::Reader;

fuzz_target!(|data: &[u8]| {
    let Ok(mut reader) = Reader::new(data) else { return };
    let mut before = 0;
    while let Ok(Some(packet)) = reader.next_packet() {
        assert!(packet.number > before && packet.data.len() <= data.len());
        assert!(packet.interface < reader.interfaces().len());
        before = packet.number;
        let _ = packet.direction();
    }
    if let Some(offset) = reader.truncated_at() {
        assert!(offset < data.len() as u64);
        assert!(matches!(reader.next_packet(), Ok(None)));
    }
});
