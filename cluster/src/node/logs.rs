//! Container logs: written by the shim a line an entry (`TIME STREAM F|P text`), read for `kubectl logs`.

use std::collections::VecDeque;
use std::io::{self, BufRead as _};
use std::path::Path;

use k8s_openapi::jiff::Timestamp;

/// Longest entry; a longer line is cut into parts marked `P`, as CRI runtimes do.
const LONGEST: usize = 16 * 1024;

/// Turns a stream of bytes into log entries.
pub struct LineSplitter {
    stream: &'static str,
    rest: Vec<u8>,
}

impl LineSplitter {
    /// For `stdout` or `stderr`.
    pub fn new(stream: &'static str) -> Self {
        Self { stream, rest: Vec::new() }
    }

    fn entry(&self, out: &mut Vec<u8>, time: &str, whole: bool, text: &[u8]) {
        let tag = if whole { "F" } else { "P" };
        out.extend_from_slice(format!("{time} {} {tag} ", self.stream).as_bytes());
        out.extend_from_slice(text);
        out.push(b'\n');
    }

    /// The entries that are complete with `bytes`, which arrived at `time` (RFC 3339).
    pub fn push(&mut self, bytes: &[u8], time: &str) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.rest);
        all.extend_from_slice(bytes);
        let mut out = Vec::with_capacity(all.len() + 64);
        let mut left = all.as_slice();
        loop {
            let end = left.iter().position(|byte| *byte == b'\n');
            match end {
                Some(end) if end <= LONGEST => {
                    self.entry(&mut out, time, true, &left[..end]);
                    left = &left[end + 1..];
                }
                _ if left.len() > LONGEST => {
                    self.entry(&mut out, time, false, &left[..LONGEST]);
                    left = &left[LONGEST..];
                }
                _ => break,
            }
        }
        self.rest = left.to_vec();
        out
    }

    /// The entry of a last line without its end.
    pub fn finish(&mut self, time: &str) -> Vec<u8> {
        let rest = std::mem::take(&mut self.rest);
        let mut out = Vec::new();
        if !rest.is_empty() {
            self.entry(&mut out, time, false, &rest);
        }
        out
    }
}

/// What of a log is wanted (`kubectl logs`' flags).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Only the last lines.
    pub tail: Option<usize>,
    /// Only entries from then on.
    pub since: Option<Timestamp>,
    /// Each line begins with its time.
    pub timestamps: bool,
    /// Stop after so many bytes.
    pub limit: Option<usize>,
}

impl LogQuery {
    /// The entry as it is to be shown; `None` if it is not wanted.
    pub fn show(&self, entry: &[u8]) -> Option<Vec<u8>> {
        let mut parts = entry.splitn(4, |byte| *byte == b' ');
        let (time, _stream, tag, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let text_time = std::str::from_utf8(time).ok()?;
        if let Some(since) = self.since
            && text_time.parse::<Timestamp>().ok()? < since
        {
            return None;
        }
        let mut line = Vec::with_capacity(entry.len());
        if self.timestamps {
            line.extend_from_slice(time);
            line.push(b' ');
        }
        line.extend_from_slice(text.strip_suffix(b"\n").unwrap_or(text));
        if tag == b"F" {
            line.push(b'\n');
        }
        Some(line)
    }
}

/// Reads on from where the last call stopped.
pub struct LogReader {
    file: io::BufReader<std::fs::File>,
    partial: Vec<u8>,
    query: LogQuery,
    sent: usize,
}

impl LogReader {
    /// Opens a log.
    pub fn open(path: &Path, query: LogQuery) -> io::Result<Self> {
        let file = io::BufReader::new(std::fs::File::open(path)?);
        Ok(Self { file, partial: Vec::new(), query, sent: 0 })
    }

    /// True when no more may be sent.
    pub fn is_full(&self) -> bool {
        self.query.limit.is_some_and(|limit| self.sent >= limit)
    }

    fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            self.file.read_until(b'\n', &mut self.partial)?;
            if self.partial.last() != Some(&b'\n') {
                return Ok(None);
            }
            let entry = std::mem::take(&mut self.partial);
            if let Some(line) = self.query.show(&entry) {
                return Ok(Some(line));
            }
        }
    }

    /// The lines there are at the first call, no more than the tail that is wanted.
    pub fn first(&mut self) -> io::Result<Vec<u8>> {
        let Some(tail) = self.query.tail else { return self.more() };
        let mut last = VecDeque::with_capacity(tail.min(4096));
        while let Some(line) = self.next_line()? {
            last.push_back(line);
            if last.len() > tail {
                last.pop_front();
            }
        }
        let lines = last.into_iter().flatten().collect();
        Ok(self.cut(lines))
    }

    /// What has come since.
    pub fn more(&mut self) -> io::Result<Vec<u8>> {
        let mut lines = Vec::new();
        while let Some(line) = self.next_line()? {
            lines.extend(line);
        }
        Ok(self.cut(lines))
    }

    fn cut(&mut self, mut lines: Vec<u8>) -> Vec<u8> {
        if let Some(limit) = self.query.limit {
            lines.truncate(limit.saturating_sub(self.sent));
        }
        self.sent += lines.len();
        lines
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const TIME: &str = "2026-01-02T03:04:05.000000006Z";

    #[test]
    fn lines_become_entries_when_they_are_whole() {
        let mut lines = LineSplitter::new("stdout");
        assert!(lines.push(b"he", TIME).is_empty());
        let entry = String::from_utf8(lines.push(b"llo\nwor", TIME)).unwrap();
        assert_eq!(entry, format!("{TIME} stdout F hello\n"));
        let last = String::from_utf8(lines.finish(TIME)).unwrap();
        assert_eq!(last, format!("{TIME} stdout P wor\n"));
        assert!(lines.finish(TIME).is_empty());
    }

    #[test]
    fn long_lines_come_in_parts_and_read_back_whole() {
        let mut lines = LineSplitter::new("stderr");
        let mut text = vec![b'x'; LONGEST + 10];
        text.push(b'\n');
        let out = lines.push(&text, TIME);
        let query = LogQuery::default();
        let back: Vec<u8> =
            out.split_inclusive(|b| *b == b'\n').flat_map(|e| query.show(e).unwrap()).collect();
        assert_eq!(back, text);
    }

    #[test]
    fn a_reader_tails_filters_and_follows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut file = std::fs::File::create(&path).unwrap();
        let mut put = |second: u32, text: &str| {
            writeln!(file, "2026-01-01T00:00:{second:02}.5Z stdout F {text}").unwrap();
        };
        put(1, "one");
        put(2, "two");
        put(3, "three");
        let read = |query: LogQuery| {
            String::from_utf8(LogReader::open(&path, query).unwrap().first().unwrap()).unwrap()
        };
        assert_eq!(read(LogQuery { tail: Some(2), ..LogQuery::default() }), "two\nthree\n");
        assert_eq!(read(LogQuery { tail: Some(0), ..LogQuery::default() }), "");
        let since = "2026-01-01T00:00:03Z".parse().unwrap();
        assert_eq!(read(LogQuery { since: Some(since), ..LogQuery::default() }), "three\n");
        assert_eq!(read(LogQuery { limit: Some(5), ..LogQuery::default() }), "one\nt");
        let stamped = read(LogQuery { timestamps: true, tail: Some(1), ..LogQuery::default() });
        assert_eq!(stamped, "2026-01-01T00:00:03.5Z three\n");

        let mut reader = LogReader::open(&path, LogQuery::default()).unwrap();
        reader.first().unwrap();
        put(4, "four");
        assert_eq!(reader.more().unwrap(), b"four\n");
        assert_eq!(reader.more().unwrap(), b"");
    }
}
