//! Real packets through real interfaces: two namespaces, a veth pair between them, a tap at each end.
//!
//! Needs root. The namespaces carry the test's process id in their names and go away with the guard.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use podwire_conformance::Tap;
use podwire_conformance::capture::{self, CaptureError, CaptureOptions, CaptureStats};
use podwire_conformance::dissect::{Net, Transport, dissect};
use podwire_conformance::read::{CaptureFile, Direction};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Two connected namespaces; 10.244.0.5 in the first, 10.244.1.7 in the second.
struct Pair {
    names: [String; 2],
}

impl Pair {
    fn new() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let names = ["a", "b"].map(|side| format!("pwcf{}-{number}{side}", std::process::id()));
        let pair = Self { names };
        let [a, b] = &pair.names;
        ip(&["netns", "add", a]);
        ip(&["netns", "add", b]);
        ip(&["-n", a, "link", "add", "eth1", "type", "veth", "peer", "name", "eth1", "netns", b]);
        for (name, address) in [(a, "10.244.0.5/16"), (b, "10.244.1.7/16")] {
            ip(&["-n", name, "addr", "add", address, "dev", "eth1"]);
            ip(&["-n", name, "link", "set", "lo", "up"]);
            ip(&["-n", name, "link", "set", "eth1", "up"]);
        }
        pair
    }

    fn tap(&self, side: usize) -> Result<Box<dyn Tap>, CaptureError> {
        let netns = self.open(side);
        let name = ["node-a", "node-b"][side];
        Ok(Box::new(capture::open_packet_tap(Some(netns.as_fd()), name, "eth1")?))
    }

    fn open(&self, side: usize) -> File {
        File::open(Path::new("/run/netns").join(&self.names[side])).unwrap()
    }

    /// Runs `work` on a thread inside one of the namespaces.
    fn inside<T: Send>(&self, side: usize, work: impl FnOnce() -> T + Send) -> T {
        let netns = self.open(side);
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
                    work()
                })
                .join()
                .unwrap()
        })
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

fn ip(args: &[&str]) {
    run("ip", args);
}

fn run(program: &str, args: &[&str]) -> Output {
    let output =
        Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Captures while `traffic` runs; it starts when the taps are listening.
fn capture_while(
    taps: Vec<Box<dyn Tap>>,
    options: &CaptureOptions,
    out: &Path,
    traffic: impl FnOnce(),
) -> Result<CaptureStats, CaptureError> {
    let stop = AtomicBool::new(false);
    let (ready, listening) = mpsc::channel();
    std::thread::scope(|scope| {
        let capture =
            scope.spawn(|| capture::run(taps, options, out, &stop, move || ready.send(()).unwrap()));
        listening.recv().unwrap();
        traffic();
        stop.store(true, Ordering::Release);
        capture.join().unwrap()
    })
}

fn ping(pair: &Pair, count: u32) {
    let (count, name) = (count.to_string(), &pair.names[0]);
    run("ip", &["netns", "exec", name, "ping", "-q", "-c", &count, "-i", "0.05", "-W", "5", "10.244.1.7"]);
}

/// What tshark reads: number, interface, source, destination, ICMP type, capture length, time.
fn tshark(path: &Path, filter: &str) -> Vec<Vec<String>> {
    let fields = [
        "frame.number",
        "frame.interface_name",
        "ip.src",
        "ip.dst",
        "icmp.type",
        "frame.len",
        "frame.time_epoch",
    ];
    let mut args = vec!["-n", "-r", path.to_str().unwrap(), "-Y", filter, "-T", "fields"];
    for field in fields {
        args.extend(["-e", field]);
    }
    let output = run("tshark", &args);
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| line.split('\t').map(str::to_owned).collect())
        .collect()
}

#[test]
fn both_ends_of_a_ping_are_captured_as_tshark_reads_them() {
    let pair = Pair::new();
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("ping.pcapng");
    let taps = vec![pair.tap(0).unwrap(), pair.tap(1).unwrap()];
    let stats = capture_while(taps, &CaptureOptions::default(), &out, || ping(&pair, 3)).unwrap();
    assert_eq!(stats.dropped, 0);
    assert_eq!(
        stats.interfaces.iter().map(|share| share.name.as_str()).collect::<Vec<_>>(),
        ["node-a:eth1", "node-b:eth1"]
    );

    let file = CaptureFile::open(&out).unwrap();
    let mut reader = file.reader().unwrap();
    let (mut ours, mut directions, mut times) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(packet) = reader.next_packet().unwrap() {
        times.push(packet.timestamp.unwrap());
        let Net::Ipv4(ip) = dissect(packet.link, packet.data).net else { continue };
        let Transport::Icmp(icmp) = ip.transport() else { continue };
        let name = reader.interfaces()[packet.interface].name.clone().unwrap();
        directions.push((name.clone(), icmp.kind, packet.direction().unwrap()));
        let time = packet.timestamp.unwrap();
        ours.push(vec![
            packet.number.to_string(),
            name,
            ip.source.to_string(),
            ip.destination.to_string(),
            icmp.kind.to_string(),
            packet.original_len.to_string(),
            format!("{}.{:09}", time / 1_000_000_000, time % 1_000_000_000),
        ]);
    }
    assert_eq!(ours.len(), 12, "three requests and three replies at two taps");
    assert_eq!(ours, tshark(&out, "icmp"));
    assert!(times.is_sorted(), "packets of both taps are merged by time");
    for (name, kind, direction) in directions {
        let leaves = (name == "node-a:eth1") == (kind == 8);
        assert_eq!(
            direction,
            if leaves { Direction::Outbound } else { Direction::Inbound },
            "{name} type {kind}"
        );
    }
    for interface in reader.interfaces() {
        assert_eq!(interface.dropped, Some(0));
        // The kernel may see a packet of its own (neighbour discovery) between the last look and the count.
        assert!(interface.received >= Some(interface.packets), "{:?}", interface.name);
    }
    assert_eq!(stats.written, reader.interfaces().iter().map(|interface| interface.packets).sum::<u64>());
    let info = run("capinfos", &["-M", out.to_str().unwrap()]);
    let info = String::from_utf8_lossy(&info.stdout).into_owned();
    assert!(info.contains("podwire") && info.contains("node-b:eth1"), "{info}");
}

#[test]
fn every_byte_of_a_bulk_transfer_is_captured_in_super_packets() {
    const BYTES: usize = 8 << 20;
    let pair = Pair::new();
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("bulk.pcapng");
    let listener = pair.inside(1, || TcpListener::bind("10.244.1.7:5001").unwrap());
    let taps = vec![pair.tap(0).unwrap(), pair.tap(1).unwrap()];
    let stats = capture_while(taps, &CaptureOptions::default(), &out, || {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut received = Vec::new();
                listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
                assert_eq!(received.len(), BYTES);
            });
            pair.inside(0, || {
                TcpStream::connect("10.244.1.7:5001").unwrap().write_all(&vec![7; BYTES]).unwrap();
            });
        });
    })
    .unwrap();
    assert_eq!(stats.dropped, 0);

    let file = CaptureFile::open(&out).unwrap();
    let mut reader = file.reader().unwrap();
    let (mut longest, mut highest) = (0, [0u32; 2]);
    let mut first = [None; 2];
    while let Some(packet) = reader.next_packet().unwrap() {
        assert_eq!(packet.data.len() as u32, packet.original_len, "nothing is cut");
        let Net::Ipv4(ip) = dissect(packet.link, packet.data).net else { continue };
        let Transport::Tcp(tcp) = ip.transport() else { continue };
        if tcp.destination != 5001 {
            continue;
        }
        longest = longest.max(packet.original_len);
        let start = *first[packet.interface].get_or_insert(tcp.sequence);
        let end = tcp.sequence.wrapping_sub(start).wrapping_add(tcp.payload.len() as u32);
        highest[packet.interface] = highest[packet.interface].max(end);
    }
    assert!(longest > 1514, "offload makes packets longer than the MTU; the longest was {longest}");
    for end in highest {
        assert!(end as usize >= BYTES, "{end} of {BYTES} bytes were seen");
    }
}

#[test]
fn filter_snap_length_and_count_are_kept() {
    let pair = Pair::new();
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("few.pcapng");
    let options = CaptureOptions {
        filter: Some("icmp and src host 10.244.1.7".parse().unwrap()),
        packets: Some(2),
        snaplen: 60,
        ..CaptureOptions::default()
    };
    let stats = capture_while(vec![pair.tap(0).unwrap()], &options, &out, || ping(&pair, 4)).unwrap();
    assert_eq!(stats.written, 2);
    assert!(stats.interfaces[0].filtered >= 2, "the requests were left out: {stats:?}");
    let read = tshark(&out, "frame");
    assert_eq!(read.len(), 2);
    for packet in &read {
        assert_eq!((packet[2].as_str(), packet[4].as_str()), ("10.244.1.7", "0"));
    }
    let file = CaptureFile::open(&out).unwrap();
    for packet in file.reader().unwrap() {
        let packet = packet.unwrap();
        assert_eq!((packet.data.len(), packet.original_len), (60, 98));
    }
}

#[test]
fn a_running_capture_leaves_a_readable_file() {
    let pair = Pair::new();
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("live.pcapng");
    capture_while(vec![pair.tap(0).unwrap()], &CaptureOptions::default(), &out, || {
        // What a kill at this moment would leave: whole blocks only.
        let copy = std::fs::read(&out).unwrap();
        let mut reader = podwire_conformance::read::Reader::new(&copy).unwrap();
        assert!(reader.next_packet().unwrap().is_none());
        assert_eq!(reader.truncated_at(), None);
        ping(&pair, 1);
        loop {
            let copy = std::fs::read(&out).unwrap();
            let mut reader = podwire_conformance::read::Reader::new(&copy).unwrap();
            if reader.by_ref().flatten().count() >= 2 {
                break;
            }
            assert_eq!(reader.truncated_at(), None);
            std::thread::yield_now();
        }
    })
    .unwrap();
}

#[test]
fn a_capture_ends_when_its_interface_goes_away_and_keeps_what_it_saw() {
    let pair = Pair::new();
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("gone.pcapng");
    let stop = AtomicBool::new(false);
    let stats = capture::run(vec![pair.tap(0).unwrap()], &CaptureOptions::default(), &out, &stop, || {
        ping(&pair, 1);
        ip(&["-n", &pair.names[0], "link", "del", "eth1"]);
    })
    .unwrap();
    assert!(stats.interfaces[0].lost.is_some(), "{stats:?}");
    assert_eq!(tshark(&out, "icmp").len(), 2);
}

#[test]
fn an_interface_that_is_down_may_come_back() {
    let pair = Pair::new();
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("back.pcapng");
    let stats = capture_while(vec![pair.tap(0).unwrap()], &CaptureOptions::default(), &out, || {
        ip(&["-n", &pair.names[0], "link", "set", "eth1", "down"]);
        ip(&["-n", &pair.names[0], "link", "set", "eth1", "up"]);
        ping(&pair, 1);
    })
    .unwrap();
    assert_eq!(stats.interfaces[0].lost, None);
    assert_eq!(tshark(&out, "icmp").len(), 2);
}

#[test]
fn what_cannot_be_tapped_is_named() {
    let pair = Pair::new();
    let netns = pair.open(0);
    let missing = capture::open_packet_tap(Some(netns.as_fd()), "k8s-ctr", "eth7").unwrap_err();
    assert!(matches!(missing, CaptureError::NoInterface { .. }));
    assert_eq!(
        missing.to_string(),
        "k8s-ctr has no interface \"eth7\": `lab exec k8s-ctr -- ip -br link` lists what it has"
    );
    let stop = AtomicBool::new(false);
    let nowhere = capture::run(
        vec![pair.tap(0).unwrap()],
        &CaptureOptions::default(),
        Path::new("/nonexistent/x.pcapng"),
        &stop,
        || {},
    );
    assert!(nowhere.unwrap_err().to_string().starts_with("cannot write the capture /nonexistent/x.pcapng"));
    let nothing = capture::run(Vec::new(), &CaptureOptions::default(), Path::new("x.pcapng"), &stop, || {});
    assert!(matches!(nothing, Err(CaptureError::NoTaps)));
}

#[test]
fn loopback_shows_each_packet_once() {
    let pair = Pair::new();
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("lo.pcapng");
    let netns = pair.open(0);
    let tap: Box<dyn Tap> = Box::new(capture::open_packet_tap(Some(netns.as_fd()), "node-a", "lo").unwrap());
    let options = CaptureOptions { duration: Some(Duration::from_mins(1)), ..CaptureOptions::default() };
    capture_while(vec![tap], &options, &out, || {
        run("ip", &["netns", "exec", &pair.names[0], "ping", "-q", "-c", "1", "-W", "5", "127.0.0.1"]);
    })
    .unwrap();
    assert_eq!(tshark(&out, "icmp").len(), 2);
}

#[test]
fn a_short_tap_keeps_the_beginning_of_each_packet() {
    let pair = Pair::new();
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("short.pcapng");
    let netns = pair.open(0);
    let tap: Box<dyn Tap> =
        Box::new(capture::open_short_packet_tap(Some(netns.as_fd()), "node-a", "lo", 100).unwrap());
    let options = CaptureOptions { duration: Some(Duration::from_mins(1)), ..CaptureOptions::default() };
    capture_while(vec![tap], &options, &out, || {
        let ping = ["ping", "-q", "-c", "1", "-W", "5", "-s", "1000", "127.0.0.1"];
        run("ip", &[&["netns", "exec", &pair.names[0]], &ping[..]].concat());
    })
    .unwrap();
    let file = CaptureFile::open(&out).unwrap();
    let mut reader = file.reader().unwrap();
    let mut lengths = Vec::new();
    while let Some(packet) = reader.next_packet().unwrap() {
        lengths.push((packet.data.len(), packet.original_len));
    }
    assert_eq!(lengths, [(100, 1042), (100, 1042)]);
    assert_eq!(reader.interfaces()[0].snaplen, 100);
}
