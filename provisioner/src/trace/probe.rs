//! The one flow that is sent, and what its sender makes of it. Pure.
//!
//! It is sent by the programs that a user would take, inside the source's own network: curl, ping, and bash's /dev/udp. Its packets
//! are told from others by what no other sender has: a source port below those that the kernel gives, or a token in the payload.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::Protocol;

/// Source ports of TCP probes; Linux gives ports from 32768 on by itself.
const PORTS: std::ops::Range<u16> = 20_000..30_000;
/// curl takes the first free one of so many.
const PORTS_TRIED: u16 = 10;

/// What to run, and how to know its packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The command.
    pub argv: Vec<String>,
    /// What its packets carry.
    pub mark: Mark,
}

/// By what the probe's first packet is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// TCP: the source port is one of these, the last included.
    Ports(u16, u16),
    /// UDP and ICMP: the payload holds this.
    Token([u8; 8]),
}

/// What the sender experienced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer, in words.
    Answered(String),
    /// Nothing within its patience.
    Silent,
    /// An error, at once or later: refused, unreachable.
    Refused(String),
    /// It came about otherwise: the connection stood, but its end was odd; or the program could not run at all.
    Odd(String),
}

/// The probe to an address; `seed` makes it unlike others.
pub fn probe(
    protocol: Protocol,
    address: Ipv4Addr,
    port: Option<u16>,
    timeout: Duration,
    seed: u64,
) -> Probe {
    let seconds = format!("{:.3}", timeout.as_secs_f64());
    let port = port.unwrap_or_default();
    let words = |words: &[&str]| -> Vec<String> {
        // Errors are read: they must be in English.
        ["env", "LC_ALL=C"].iter().chain(words).map(|word| (*word).to_owned()).collect()
    };
    let token = token(seed);
    match protocol {
        Protocol::Tcp => {
            let choices = u64::from((PORTS.end - PORTS.start) / PORTS_TRIED);
            let first = PORTS.start + (seed % choices) as u16 * PORTS_TRIED;
            let last = first + PORTS_TRIED - 1;
            let (range, url) = (format!("{first}-{last}"), format!("http://{address}:{port}/"));
            let argv = words(&[
                "curl",
                "-q",
                "-sS",
                "-o",
                "/dev/null",
                "--noproxy",
                "*",
                "--local-port",
                &range,
                "--connect-timeout",
                &seconds,
                "--max-time",
                &seconds,
                "-w",
                "HTTP %{http_code}",
                &url,
            ]);
            Probe { argv, mark: Mark::Ports(first, last) }
        }
        Protocol::Icmp => {
            let pattern = hex(&token, "");
            let argv =
                words(&["ping", "-n", "-c", "1", "-W", &seconds, "-p", &pattern, &address.to_string()]);
            Probe { argv, mark: Mark::Token(token) }
        }
        Protocol::Udp => {
            let payload = if port == 53 { question(token) } else { [b"podwire trace ", &token[..]].concat() };
            let script = format!(
                "exec 3<>/dev/udp/{address}/{port} && printf '{}' >&3 && timeout {seconds} head -c 1 <&3 >/dev/null",
                hex(&payload, "\\x")
            );
            Probe { argv: words(&["bash", "-c", &script]), mark: Mark::Token(token) }
        }
    }
}

/// Eight letters and digits.
fn token(seed: u64) -> [u8; 8] {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    std::array::from_fn(|at| LETTERS[(seed >> (5 * at)) as usize & 31])
}

fn hex(bytes: &[u8], before: &str) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{before}{byte:02x}"); // a String takes everything
        text
    })
}

/// A DNS server answers questions only: the address of `TOKEN.podwire.` (RFC 1035, 4.1).
fn question(token: [u8; 8]) -> Vec<u8> {
    let mut message = vec![token[0], token[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 8];
    message.extend(token);
    message.extend(b"\x07podwire\0\0\x01\0\x01");
    message
}

/// Reads what the program said: its standard output, or its exit code with its complaint.
pub fn outcome(protocol: Protocol, said: Result<String, String>) -> Outcome {
    let complaint = match said {
        Ok(said) if protocol == Protocol::Tcp => return Outcome::Answered(said.trim().to_owned()),
        Ok(_) => return Outcome::Answered(String::new()),
        Err(complaint) => complaint,
    };
    let last = complaint.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    // The program's own words, without those of what ran it.
    let own = ["curl: (", "ping: ", "bash: ", "head: "].iter().find_map(|name| last.find(name));
    let last = last[own.unwrap_or_default()..].to_owned();
    let unreachable =
        ["refused", "nreachable", "No route", "not permitted"].iter().any(|words| complaint.contains(words));
    match (protocol, exit_code(&complaint)) {
        (Protocol::Tcp, Some(28)) | (Protocol::Icmp, Some(1)) | (Protocol::Udp, Some(124 | 143)) => {
            Outcome::Silent
        }
        (Protocol::Tcp, Some(7)) => Outcome::Refused(last),
        (Protocol::Udp | Protocol::Icmp, Some(1 | 2)) if unreachable => Outcome::Refused(last),
        _ => Outcome::Odd(last),
    }
}

/// The first number behind `exit code` or `exit status`.
fn exit_code(complaint: &str) -> Option<u8> {
    ["exit status ", "exit code "]
        .iter()
        .flat_map(|words| complaint.split(words).skip(1))
        .find_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

    #[test]
    fn each_probe_is_unlike_others() {
        let of = |protocol, seed| probe(protocol, TO, Some(53), Duration::from_millis(1500), seed);
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
            assert_ne!(of(protocol, 1).mark, of(protocol, 2).mark);
        }
        for seed in [0, 999, 1000, u64::MAX] {
            let Mark::Ports(first, last) = of(Protocol::Tcp, seed).mark else { panic!("no ports") };
            assert!(PORTS.contains(&first) && PORTS.contains(&last) && last - first == 9);
        }
        let tcp = of(Protocol::Tcp, 3).argv.join(" ");
        assert!(tcp.contains("--local-port 20030-20039") && tcp.ends_with("http://10.96.0.10:53/"), "{tcp}");
        assert!(tcp.contains("--max-time 1.500"), "{tcp}");
    }

    #[test]
    fn the_token_is_in_what_is_sent() {
        let Probe { argv, mark: Mark::Token(token) } =
            probe(Protocol::Icmp, TO, None, Duration::from_secs(2), 7)
        else {
            panic!("no token")
        };
        assert!(argv.contains(&hex(&token, "")), "{argv:?}");
        // What bash's printf makes of the script's bytes.
        let script =
            probe(Protocol::Udp, TO, Some(53), Duration::from_secs(2), 7).argv.pop().unwrap_or_default();
        let quoted = script.split('\'').nth(1).unwrap();
        let bytes: Vec<u8> =
            quoted.split("\\x").skip(1).map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        assert_eq!(&bytes[12..21], [&[8][..], &token[..]].concat(), "the question's first label");
        assert_eq!(&bytes[2..6], [1, 0, 0, 1], "one question");
    }

    #[test]
    fn what_programs_say_is_understood() {
        let err = |protocol, text: &str| outcome(protocol, Err(text.to_owned()));
        assert_eq!(outcome(Protocol::Tcp, Ok("HTTP 200".into())), Outcome::Answered("HTTP 200".into()));
        let refused = "command terminated with non-zero exit code: exit status 7: curl: (7) Failed to connect to 10.96.1.1 port 81 after 0 ms: Couldn't connect to server";
        assert!(matches!(err(Protocol::Tcp, refused), Outcome::Refused(_)));
        assert_eq!(err(Protocol::Tcp, "exit code 28: curl: (28) Connection timed out"), Outcome::Silent);
        let odd = err(Protocol::Tcp, "exit code 52: curl: (52) Empty reply");
        assert_eq!(odd, Outcome::Odd("curl: (52) Empty reply".into()));
        let to_service = "exit status 2: ping: connect: Connection refused";
        assert_eq!(
            err(Protocol::Icmp, to_service),
            Outcome::Refused("ping: connect: Connection refused".into())
        );
        assert_eq!(err(Protocol::Icmp, "exit code 1: 1 packets transmitted, 0 received"), Outcome::Silent);
        assert!(matches!(
            err(Protocol::Icmp, "exit code 2: ping: connect: Network is unreachable"),
            Outcome::Refused(_)
        ));
        assert_eq!(err(Protocol::Udp, "exit code 124: "), Outcome::Silent);
        assert!(matches!(
            err(Protocol::Udp, "exit code 1: head: error reading 'standard input': Connection refused"),
            Outcome::Refused(_)
        ));
        assert!(matches!(err(Protocol::Icmp, "exit code 127: env: 'ping': No such file"), Outcome::Odd(_)));
    }
}
