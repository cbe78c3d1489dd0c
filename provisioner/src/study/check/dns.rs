//! The check on what a capture's DNS questions ask for.

use std::path::Path;

use hickory_proto::op::{Message, MessageType, Query};
use podwire_conformance::dissect::{Frame, Net, Transport, dissect};
use podwire_conformance::read::{CaptureFile, ReadError};

use super::Outcome;

/// Port of DNS (RFC 1035, 4.2.1).
const PORT: u16 = 53;

/// Judges whether a capture has a question for a name, and for no other if `only`.
pub fn asked(directory: &Path, file: &str, name: &str, only: bool) -> Outcome {
    let path = directory.join(file);
    let file_arg = ("file", file.to_owned());
    if !path.is_file() {
        return Outcome::new(false, "no-file", [file_arg]);
    }
    match names(&path) {
        Err(error) => Outcome::new(false, "bad-capture", [file_arg, ("why", error.to_string())]),
        Ok(names) => {
            let key = match (names.iter().any(|n| n == name), names.iter().all(|n| n == name)) {
                (false, _) => "not-asked",
                (true, false) if only => "asked-more",
                _ => "asked",
            };
            let all = if names.is_empty() { "-".into() } else { names.join(", ") };
            Outcome::new(key == "asked", key, [file_arg, ("name", name.to_owned()), ("names", all)])
        }
    }
}

/// The names that questions of a file ask for, each once, in the order in which they came, without the dot at the end.
fn names(path: &Path) -> Result<Vec<String>, ReadError> {
    let file = CaptureFile::open(path)?;
    let mut reader = file.reader()?;
    let mut names: Vec<String> = Vec::new();
    while let Some(packet) = reader.next_packet()? {
        for name in questions(&dissect(packet.link, packet.data)) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    Ok(names)
}

/// The names that a packet asks for; none if it is no question.
fn questions(packet: &Frame<'_>) -> Vec<String> {
    let Net::Ipv4(ip) = packet.net else { return Vec::new() };
    let Transport::Udp(udp) = ip.transport() else { return Vec::new() };
    if udp.destination != PORT {
        return Vec::new();
    }
    match Message::from_vec(udp.payload) {
        Ok(message) if message.metadata.message_type == MessageType::Query => {
            let name = |query: &Query| query.name().to_ascii().trim_end_matches('.').to_lowercase();
            message.queries.iter().map(name).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::OpCode;
    use hickory_proto::rr::{Name, RecordType};
    use podwire_conformance::testing::{Build, pcapng};

    use super::*;

    /// Writes a file with questions, the first of them twice, and an answer to a name that nobody asked for.
    fn write(path: &Path, names: &[&str]) {
        let ends = ("10.244.0.2".parse().unwrap(), "10.244.1.3".parse().unwrap());
        let message = |kind, name: &str| {
            let mut message = Message::new(7, kind, OpCode::Query);
            message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
            message.to_vec().unwrap()
        };
        let question =
            |name: &str| Build::udp(ends, (40_000, PORT), 1, &message(MessageType::Query, name)).frame();
        let mut frames: Vec<_> = names.iter().take(1).chain(names).map(|name| (0, question(name))).collect();
        let answer = message(MessageType::Response, "nobody.asked.");
        frames.push((0, Build::udp((ends.1, ends.0), (PORT, PORT), 1, &answer).frame()));
        frames.push((0, Build::udp(ends, (40_000, PORT), 1, b"no DNS").frame()));
        std::fs::write(path, pcapng(&["n:eth1"], &frames, 0)).unwrap();
    }

    #[test]
    fn questions_are_found_by_the_names_that_they_ask_for() {
        let dir = tempfile::tempdir().unwrap();
        let judge = |name, only| asked(dir.path(), "dns.pcapng", name, only);
        assert!(!judge("a.example", false).held, "there is no file");
        write(&dir.path().join("dns.pcapng"), &["A.example.svc.cluster.local.", "a.example."]);
        assert!(judge("a.example", false).held && judge("a.example.svc.cluster.local", false).held);
        let more = judge("a.example", true);
        assert!(!more.held && more.said.key == "asked-more", "{more:?}");
        for never in ["nobody.asked", "example", "b.example"] {
            assert!(!judge(never, false).held, "{never}");
        }
        write(&dir.path().join("dns.pcapng"), &["a.example."]);
        assert!(judge("a.example", true).held);
        write(&dir.path().join("dns.pcapng"), &[]);
        assert!(!judge("a.example", true).held, "no question is no proof");
    }
}
