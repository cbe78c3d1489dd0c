//! Any bytes as a capture file, through every check and every report.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire_conformance::check::{self, Context, Expectation};
use podwire_conformance::report::{self, Lang};

fuzz_target!(|data: &[u8]| {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), data).expect("the file is written");
    let context = Context {
        pod_cidrs: vec!["10.244.0.0/16".parse().expect("a network")],
        service_cidrs: vec!["10.96.0.0/16".parse().expect("a network")],
        nodes: [("n".to_owned(), vec!["192.168.10.100".parse().expect("an address")])].into(),
        ..Context::default()
    };
    for expectation in Expectation::ALL {
        let Ok(found) = check::run(&[file.path().to_owned()], expectation, &context) else { return };
        report::html(&found, Lang::Ko).expect("a page");
        report::json(&found).expect("JSON");
        report::junit(&found).expect("JUnit");
        let _ = (report::markdown(&found, Lang::En), report::text(&found, Lang::En));
    }
});
