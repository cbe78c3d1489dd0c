//! Any text as a filter: an error names a column inside the text or just behind it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire_conformance::dissect::dissect;
use podwire_conformance::filter::Filter;
use podwire_conformance::link::LinkType;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<Filter>() {
        Ok(filter) => {
            let _ = filter.matches(&dissect(LinkType::Ethernet, data));
            assert_eq!(filter.source(), text);
        }
        Err(error) => assert!((1..=text.chars().count() + 1).contains(&error.column)),
    }
});
