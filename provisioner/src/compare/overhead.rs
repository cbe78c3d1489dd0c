//! What each packet costs beside its payload, read from packets that were on the wire.

use std::path::Path;

use podwire_conformance::dissect::{Frame, Net, Transport, dissect, tunnel};
use podwire_conformance::read::{CaptureFile, ReadError};
use serde::{Deserialize, Serialize};

use super::load::MESSAGE;

/// Bytes of an IPv4 header without options.
const IPV4: u32 = 20;

/// Headers of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Headers {
    /// All of them, from the frame's first byte to the payload's.
    pub all: u32,
    /// Of those, what TCP in the pod has: its own header.
    pub tcp: u32,
}

impl Headers {
    /// Bytes on the wire for a byte of a stream, in packets as large as pods may send.
    pub fn per_byte(self, mtu: u32) -> f64 {
        let payload = f64::from(mtu.saturating_sub(IPV4 + self.tcp).max(1));
        (payload + f64::from(self.all)) / payload
    }
}

/// Headers of the questions and answers of the load in a capture; none if it has none.
pub fn headers(path: &Path) -> Result<Option<Headers>, ReadError> {
    let file = CaptureFile::open(path)?;
    let mut reader = file.reader()?;
    while let Some(packet) = reader.next_packet()? {
        let frame = dissect(packet.link, packet.data);
        if let Some(headers) = of_message(&frame, packet.original_len) {
            return Ok(Some(headers));
        }
    }
    Ok(None)
}

fn of_message(frame: &Frame<'_>, length: u32) -> Option<Headers> {
    if let Some(inner) = tunnel(&frame.net).and_then(|tunnel| tunnel.inner) {
        return of_message(&inner, length);
    }
    let Net::Ipv4(ip) = frame.net else { return None };
    let Transport::Tcp(tcp) = ip.transport() else { return None };
    let payload = u32::try_from(tcp.payload.len()).ok()?;
    let header = u32::try_from(ip.payload_len()).ok()?.checked_sub(payload)?;
    (tcp.payload.len() == MESSAGE).then(|| Headers { all: length.saturating_sub(payload), tcp: header })
}

#[cfg(test)]
mod tests {
    use podwire_conformance::testing::{Build, pcapng};

    use super::*;

    #[test]
    fn an_overlay_costs_fifty_bytes_a_packet() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.pcapng");
        let pods = ("10.244.0.2".parse().unwrap(), "10.244.1.2".parse().unwrap());
        let nodes = ("192.168.10.100".parse().unwrap(), "192.168.10.101".parse().unwrap());
        let question = |length| Build::tcp(pods, (40_000, 7), (1, 1), 16, &vec![7; length]);
        let read = |frame| {
            std::fs::write(&path, pcapng(&["n:eth1"], &[(0, frame)], 0)).unwrap();
            headers(&path).unwrap()
        };
        let plain = read(question(MESSAGE).frame()).unwrap();
        assert_eq!(plain, Headers { all: 14 + 20 + 20, tcp: 20 });
        let wrapped = read(question(MESSAGE).in_vxlan(nodes.0, nodes.1, 8472).frame()).unwrap();
        assert_eq!(wrapped, Headers { all: plain.all + 50, tcp: 20 });
        assert_eq!(read(question(MESSAGE + 1).frame()), None, "no message of the load");
        assert!((plain.per_byte(1500) - 1514.0 / 1460.0).abs() < 1e-9);
        assert!((wrapped.per_byte(1450) - 1514.0 / 1410.0).abs() < 1e-9);
    }
}
