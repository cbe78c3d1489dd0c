//! The fuzz targets' seeds are good input: each is read as what it is.
#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use std::path::{Path, PathBuf};

use podwire_conformance::check::{self, Context, Expectation, Verdict};
use podwire_conformance::dissect::{Net, dissect};
use podwire_conformance::filter::Filter;
use podwire_conformance::link::LinkType;
use podwire_conformance::read::CaptureFile;

fn seeds(target: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let found: Vec<PathBuf> = directory.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!found.is_empty(), "{} has no seeds", directory.display());
    found
}

#[test]
fn captures_are_read_to_their_end() {
    for path in seeds("reader") {
        let file = CaptureFile::open(&path).unwrap();
        let mut reader = file.reader().unwrap();
        let count = reader.by_ref().map(Result::unwrap).count();
        assert!(count > 0 && reader.truncated_at().is_none(), "{}", path.display());
    }
}

#[test]
fn packets_are_dissected() {
    for path in seeds("dissect") {
        let bytes = std::fs::read(&path).unwrap();
        let link = LinkType::from_number(u16::from_le_bytes([bytes[0], bytes[1]]));
        assert!(matches!(dissect(link, &bytes[2..]).net, Net::Ipv4(_)), "{}", path.display());
    }
}

#[test]
fn expressions_are_filters() {
    for path in seeds("filter") {
        let text = std::fs::read_to_string(&path).unwrap();
        text.parse::<Filter>().unwrap_or_else(|error| panic!("{text}: {error}"));
    }
}

#[test]
fn captures_are_judged() {
    let context = Context {
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        nodes: [("k8s-ctr".to_owned(), vec!["192.168.10.100".parse().unwrap()])].into(),
        ..Context::default()
    };
    for path in seeds("check") {
        let report = check::run(std::slice::from_ref(&path), Expectation::Native, &context).unwrap();
        let bad = path.file_name().unwrap().to_str().unwrap().contains("bad");
        assert_eq!(report.verdict, if bad { Verdict::Failed } else { Verdict::Held }, "{}", path.display());
    }
}
