//! Every program, packet by packet, on what no sender would send: by the kernel's BPF_PROG_TEST_RUN, so that each packet's
//! fate is known before the next.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    sync::Mutex,
};

use aya::{
    TestRun,
    programs::{SchedClassifier, TestRunOptions},
};
use podwire_abi::{DropReason, service::scope};
use podwire_agent::datapath::{
    Backends, Caller, Datapath, Direction, Frontend, Hook, Protocol, ServiceTable,
};
use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use crate::{
    net::{Node, TCX, ifindex, inside, isolated, mac},
    outside::{self, COMPANY, PODS, ROUTER_IP},
    tap::checksum,
    tunnel,
};

const NEXT: u32 = (-1_i32).cast_unsigned();
const DROP: u32 = 2;
const REDIRECT: u32 = 7;

const ETHERNET: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;

const NODE_PORT: u16 = 30_080;
const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 20);
const LONELY: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 21);
const SERVER_PORT: u16 = 8080;

/// Packets for each program of each scene.
const CASES: u32 = 1500;

/// The pod whose device is looked at.
const HOME: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 10);

/// Addresses that mean something, and some that should never be seen on a wire.
const ADDRESSES: [Ipv4Addr; 18] = [
    HOME,
    Ipv4Addr::new(10, 244, 1, 11),
    Ipv4Addr::new(10, 244, 2, 12),
    Ipv4Addr::new(10, 244, 1, 99),
    Ipv4Addr::new(10, 244, 2, 99),
    Ipv4Addr::new(10, 244, 1, 1),
    Ipv4Addr::new(10, 244, 2, 1),
    Ipv4Addr::new(192, 168, 10, 1),
    Ipv4Addr::new(192, 168, 10, 2),
    ROUTER_IP,
    COMPANY,
    CLUSTER_IP,
    LONELY,
    Ipv4Addr::LOCALHOST,
    Ipv4Addr::UNSPECIFIED,
    Ipv4Addr::BROADCAST,
    Ipv4Addr::new(224, 0, 0, 1),
    Ipv4Addr::new(203, 0, 113, 9),
];

/// Services.
const CALLED: [(Ipv4Addr, u16); 4] = [
    (CLUSTER_IP, 80),
    (LONELY, 80),
    (Ipv4Addr::new(192, 168, 10, 1), NODE_PORT),
    (Ipv4Addr::new(192, 168, 10, 1), NODE_PORT + 1),
];

const PORTS: [u16; 8] = [0, 80, SERVER_PORT, NODE_PORT, NODE_PORT + 1, 40_000, 40_001, 65_535];

/// How a packet is made.
#[derive(Clone, Debug)]
struct Recipe {
    /// The source is whose device it is.
    own: bool,
    /// Which of [`CALLED`] is called, if there is one.
    called: usize,
    source: usize,
    destination: usize,
    ports: (usize, usize),
    content: Content,
    ttl: u8,
    /// Fragment field: flags and offset.
    fragment: u16,
    /// Words of IP options.
    options: u8,
    payload: usize,
    /// Bytes that are overwritten at last, from the Ethernet header on.
    damage: Vec<(usize, u8)>,
    /// So long is the frame at most.
    cut: Option<usize>,
    /// What the header says of the length, more or less than what is there.
    length_off: i16,
    /// Segment size of a GSO packet; 0 of any other.
    segment: u32,
    mark: u32,
    /// 0: IPv4 to this device; others: to another host, to everybody, and other protocols.
    frame: u8,
}

#[derive(Clone, Debug)]
enum Content {
    Tcp(u8),
    Udp {
        summed: bool,
    },
    Echo {
        reply: bool,
    },
    /// An error about a packet with such a content, the other way round.
    Error {
        kind: u8,
        code: u8,
        about: u8,
        ports: (usize, usize),
        ends: (usize, usize),
    },
    Other(u8),
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let index = 0..ADDRESSES.len();
    let ports = (0..PORTS.len(), 0..PORTS.len());
    let content = prop_oneof![
        4 => prop_oneof![Just(0x02_u8), Just(0x12), Just(0x10), Just(0x11), Just(0x04), any::<u8>()]
            .prop_map(Content::Tcp),
        3 => any::<bool>().prop_map(|summed| Content::Udp { summed }),
        2 => any::<bool>().prop_map(|reply| Content::Echo { reply }),
        3 => (
            prop_oneof![Just(3_u8), Just(11), Just(12), Just(4), Just(5), any::<u8>()],
            0..16_u8,
            prop_oneof![Just(TCP), Just(UDP), Just(ICMP), any::<u8>()],
            ports.clone(),
            (index.clone(), index.clone()),
        )
            .prop_map(|(kind, code, about, ports, ends)| Content::Error { kind, code, about, ports, ends }),
        1 => any::<u8>().prop_map(Content::Other),
    ];
    let odd = (
        prop_oneof![6 => Just(Vec::new()), 2 => prop::collection::vec((0..80_usize, any::<u8>()), 1..4)],
        prop_oneof![5 => Just(None), 2 => (15..120_usize).prop_map(Some)],
        prop_oneof![6 => Just(0_i16), 1 => any::<i16>(), 1 => -40..40_i16],
        prop_oneof![8 => Just(0_u32), 1 => 1..3000_u32],
        prop_oneof![8 => Just(0_u32), 1 => Just(0x300_u32), 1 => any::<u32>()],
        prop_oneof![12 => Just(0_u8), 1 => 1..8_u8],
    );
    let header = (
        prop_oneof![6 => Just(64_u8), 1 => Just(1_u8), 1 => any::<u8>()],
        prop_oneof![5 => Just(0_u16), 2 => Just(0x4000_u16), 1 => Just(0x2000_u16), 1 => any::<u16>()],
        prop_oneof![8 => Just(0_u8), 1 => 1..11_u8],
        prop_oneof![6 => 0..64_usize, 1 => 1300..1700_usize],
    );
    let own = prop_oneof![2 => Just(true), 1 => Just(false)];
    let called = prop_oneof![3 => Just(CALLED.len()), 1 => 0..CALLED.len()];
    ((own, called, index.clone()), index, ports, content, header, odd).prop_map(
        |((own, called, source), destination, ports, content, header, odd)| {
            let (ttl, fragment, options, payload) = header;
            let (damage, cut, length_off, segment, mark, frame) = odd;
            Recipe {
                own,
                called,
                source,
                destination,
                ports,
                content,
                ttl,
                fragment,
                options,
                payload,
                damage,
                cut,
                length_off,
                segment,
                mark,
                frame,
            }
        },
    )
}

fn ipv4(
    (source, destination): (Ipv4Addr, Ipv4Addr),
    protocol: u8,
    (ttl, fragment, options): (u8, u16, u8),
    content: &[u8],
) -> Vec<u8> {
    let header = 20 + usize::from(options) * 4;
    let mut ip = vec![0x40 | (header / 4) as u8, 0];
    ip.extend(((header + content.len()) as u16).to_be_bytes());
    ip.extend([0, 7]);
    ip.extend(fragment.to_be_bytes());
    ip.extend([ttl, protocol, 0, 0]);
    ip.extend(source.octets());
    ip.extend(destination.octets());
    ip.resize(header, 1);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip.extend(content);
    ip
}

/// The pseudo header that TCP and UDP sum too.
fn pseudo(ends: (Ipv4Addr, Ipv4Addr), protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = [ends.0.octets(), ends.1.octets()].concat();
    bytes.extend([0, protocol]);
    bytes.extend((length as u16).to_be_bytes());
    bytes
}

fn tcp(ends: (Ipv4Addr, Ipv4Addr), ports: (u16, u16), flags: u8, payload: usize) -> Vec<u8> {
    let mut tcp = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend((0..payload).map(|i| i as u8));
    let sum = checksum(&[pseudo(ends, TCP, tcp.len()), tcp.clone()].concat());
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    tcp
}

fn udp(ends: (Ipv4Addr, Ipv4Addr), ports: (u16, u16), summed: bool, payload: usize) -> Vec<u8> {
    let mut udp = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    udp.extend(((8 + payload) as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend((0..payload).map(|i| i as u8));
    if summed {
        let sum = checksum(&[pseudo(ends, UDP, udp.len()), udp.clone()].concat());
        udp[6..8].copy_from_slice(&(if sum == 0 { 0xffff } else { sum }).to_be_bytes());
    }
    udp
}

fn icmp(kind: u8, code: u8, rest: [u8; 4], content: &[u8]) -> Vec<u8> {
    let mut icmp = vec![kind, code, 0, 0];
    icmp.extend(rest);
    icmp.extend(content);
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    icmp
}

impl Recipe {
    /// The frame, as it comes to a device with this address. `home` is whose it is.
    fn frame(&self, device: [u8; 6], home: Ipv4Addr) -> Vec<u8> {
        let source = if self.own { home } else { ADDRESSES[self.source] };
        let listed = (ADDRESSES[self.destination], PORTS[self.ports.1]);
        let (destination, port) = CALLED.get(self.called).copied().unwrap_or(listed);
        let (ends, ports) = ((source, destination), (PORTS[self.ports.0], port));
        let (protocol, content) = match &self.content {
            Content::Tcp(flags) => (TCP, tcp(ends, ports, *flags, self.payload)),
            Content::Udp { summed } => (UDP, udp(ends, ports, *summed, self.payload)),
            Content::Echo { reply } => {
                let [high, low] = ports.0.to_be_bytes();
                (ICMP, icmp(if *reply { 0 } else { 8 }, 0, [high, low, 0, 1], &vec![7; self.payload]))
            }
            Content::Error { kind, code, about, ports, ends } => {
                let ends = (ADDRESSES[ends.0], ADDRESSES[ends.1]);
                let ports = (PORTS[ports.0], PORTS[ports.1]);
                let quoted = match *about {
                    TCP => tcp(ends, ports, 0x10, 0),
                    UDP => udp(ends, ports, true, 4),
                    _ => icmp(8, 0, [0, 1, 0, 1], &[7; 8]),
                };
                let quoted = ipv4(ends, *about, (63, 0, 0), &quoted);
                (ICMP, icmp(*kind, *code, [0; 4], &quoted))
            }
            Content::Other(protocol) => (*protocol, vec![9; self.payload]),
        };
        let mut packet = ipv4(ends, protocol, (self.ttl, self.fragment, self.options), &content);
        if self.length_off != 0 {
            let length = (packet.len() as u16).wrapping_add_signed(self.length_off);
            packet[2..4].copy_from_slice(&length.to_be_bytes());
            packet[10..12].copy_from_slice(&[0, 0]);
            let header = 20 + usize::from(self.options) * 4;
            let sum = checksum(&packet[..header]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let to = match self.frame {
            1 => [2, 9, 9, 9, 9, 9],
            2 => [0xff; 6],
            3 => [1, 0, 0x5e, 0, 0, 1],
            _ => device,
        };
        let kind = match self.frame {
            4 => 0x86dd_u16,
            5 => 0x0806,
            6 => 0x8100,
            7 => 0x88cc,
            _ => 0x0800,
        };
        let mut frame = to.to_vec();
        frame.extend([2, 0, 0, 0, 0, 2]);
        frame.extend(kind.to_be_bytes());
        frame.extend(packet);
        for (at, value) in &self.damage {
            if let Some(byte) = frame.get_mut(*at) {
                *byte = *value;
            }
        }
        frame.truncate(self.cut.unwrap_or(usize::MAX));
        frame
    }
}

/// The IPv4 packet of a frame, if header and length make sense.
fn packet(frame: &[u8]) -> Option<&[u8]> {
    let ip = frame.get(ETHERNET..)?;
    if frame[12..14] != [8, 0] || *ip.first()? >> 4 != 4 {
        return None;
    }
    let header = usize::from(ip[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]));
    (header >= 20 && total >= header).then(|| ip.get(..total)).flatten()
}

/// Which checksums of a frame are right: of the IP header, and of what is in it.
fn sums(frame: &[u8]) -> Option<(bool, bool)> {
    let ip = packet(frame)?;
    let header = usize::from(ip[0] & 15) * 4;
    let content = &ip[header..];
    let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
    let ends = (address(12), address(16));
    let fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0;
    let inner = !fragment
        && match ip[9] {
            TCP => {
                content.len() >= 20
                    && checksum(&[pseudo(ends, TCP, content.len()), content.to_vec()].concat()) == 0
            }
            UDP => {
                content.len() >= 8
                    && usize::from(u16::from_be_bytes([content[4], content[5]])) == content.len()
                    && (content[6..8] == [0, 0]
                        || checksum(&[pseudo(ends, UDP, content.len()), content.to_vec()].concat()) == 0)
            }
            ICMP => content.len() >= 8 && checksum(content) == 0,
            _ => false,
        };
    Some((checksum(&ip[..header]) == 0, inner))
}

/// One program at its device.
struct Subject {
    hook: Hook,
    program: SchedClassifier,
    ifindex: u32,
    mac: [u8; 6],
}

impl Subject {
    fn new(node: &Node, hook: Hook, device: &str) -> Self {
        let version = node.pin_dir.join(format!("v{}", podwire_abi::ABI_VERSION));
        let mut sets = std::fs::read_dir(version).unwrap().map(|entry| entry.unwrap().path());
        let set = sets.find(|path| path.join(hook.program()).exists()).unwrap();
        let program = SchedClassifier::from_pin(set.join(hook.program())).unwrap();
        Self { hook, program, ifindex: ifindex(&node.name, device), mac: mac(&node.name, device) }
    }

    /// What the program answers, and what it has made of the frame. None if the kernel does not run it on such a frame.
    fn run(&self, recipe: &Recipe, frame: &[u8]) -> Option<(u32, Vec<u8>)> {
        // `struct __sk_buff` of linux/bpf.h, as far as it may be given: the mark, the device, segments.
        let mut context = [0; 192];
        context[8..12].copy_from_slice(&recipe.mark.to_ne_bytes());
        context[40..44].copy_from_slice(&self.ifindex.to_ne_bytes());
        if recipe.segment > 0 {
            context[164..168].copy_from_slice(&2_u32.to_ne_bytes());
            context[176..180].copy_from_slice(&recipe.segment.to_ne_bytes());
        }
        let mut out = vec![0; frame.len() + 256];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(out.as_mut_slice());
        options.ctx_in = Some(context.as_slice());
        let result = self.program.test_run(options).ok()?;
        let length = result.data_size_out as usize;
        out.truncate(length);
        Some((result.return_value, out))
    }
}

/// Counters and tables of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    drops: u64,
    entries: usize,
}

fn state(datapath: &Datapath) -> State {
    let metrics = datapath.metrics().unwrap();
    let drops = metrics.iter().filter(|(_, reason, _)| *reason != DropReason::None);
    let connections =
        [Direction::Out, Direction::In].map(|direction| datapath.connections(direction).unwrap().len());
    State {
        drops: drops.map(|(.., counter)| counter.packets).sum(),
        entries: connections.iter().sum::<usize>() + datapath.balanced().unwrap().len(),
    }
}

/// Takes away whatever packets have opened.
fn clear(datapath: &Datapath) {
    for direction in [Direction::Out, Direction::In] {
        for key in datapath.connections(direction).unwrap().keys() {
            datapath.forget_connection(direction, key).unwrap();
        }
    }
    for key in datapath.balanced().unwrap().keys() {
        datapath.forget_balanced(key).unwrap();
    }
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// The stack has it.
    Next,
    Dropped,
    Redirected,
    /// It went on with other bytes in it.
    Rewritten,
    /// It left an entry in a table of connections.
    Opened,
}

/// How many packets had which fate, so that a run that tests nothing is seen.
#[derive(Debug, Default)]
struct Fates(BTreeMap<Fate, u32>);

impl Fates {
    fn count(&mut self, fate: Fate) {
        *self.0.entry(fate).or_default() += 1;
    }

    /// Whether each of these came to pass.
    fn were(&self, fates: &[Fate]) -> bool {
        fates.iter().all(|fate| self.0.get(fate).is_some_and(|count| *count > 0))
    }
}

/// Runs one program on many packets. Deterministic: the same packets each time.
fn fuzz(node: &Node, hook: Hook, device: &str) -> Fates {
    let home = match hook {
        Hook::FromEndpoint => HOME,
        Hook::FromNetwork => ROUTER_IP,
        Hook::ToNetwork | Hook::FromHost | Hook::ToEndpoint => node.ip(),
        Hook::FromOverlay => Ipv4Addr::new(10, 244, 2, 12),
    };
    let subject = Subject::new(node, hook, device);
    let datapath = &node.datapath;
    let fates = Mutex::new(Fates::default());
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let last = Mutex::new(state(datapath));
    let outcome = inside(&node.name, || {
        let outcome = runner.run(&recipe(), |recipe| {
            let frame = recipe.frame(subject.mac, home);
            let mut last = last.lock().unwrap();
            let before = *last;
            let Some((answer, out)) = subject.run(&recipe, &frame) else { return Ok(()) };
            let after = state(datapath);
            *last = after;
            let mut fates = fates.lock().unwrap();
            match answer {
                NEXT => fates.count(Fate::Next),
                DROP => fates.count(Fate::Dropped),
                REDIRECT => fates.count(Fate::Redirected),
                other => return Err(TestCaseError::fail(format!("answers {other}"))),
            }
            if after.entries > before.entries {
                fates.count(Fate::Opened);
            }
            if answer != DROP && out[ETHERNET..] != frame[ETHERNET..] {
                fates.count(Fate::Rewritten);
            }
            if answer == DROP {
                prop_assert!(after.drops > before.drops, "dropped without a reason");
                prop_assert!(
                    after.entries <= before.entries,
                    "a packet that is dropped left an entry behind"
                );
            }
            if answer == NEXT && after.drops == before.drops {
                prop_assert_eq!(out.len(), frame.len(), "another length");
            }
            if answer != DROP
                && let (Some(old), Some(new)) = (sums(&frame), sums(&out))
            {
                prop_assert!(!old.0 || new.0, "the header's checksum was right: {:?}", out);
                prop_assert!(!old.1 || new.1, "the content's checksum was right: {:?}", out);
            }
            if after.entries > 24 {
                clear(datapath);
                *last = state(datapath);
                prop_assert_eq!(last.entries, 0);
            }
            Ok(())
        });
        outcome.map_err(|failure| failure.to_string())
    });
    clear(datapath);
    assert_eq!(state(datapath).entries, 0);
    if let Err(failure) = outcome {
        panic!("{}: {failure}", subject.hook.program());
    }
    fates.into_inner().unwrap()
}

/// Services of every kind: with backends of each kind, without, for callers inside and outside.
fn serve(node: &Node, every_packet: bool) {
    let at = [Ipv4Addr::new(10, 244, 1, 11), Ipv4Addr::new(10, 244, 2, 12), COMPANY, node.ip()]
        .map(|ip| SocketAddrV4::new(ip, SERVER_PORT));
    let mut table = ServiceTable { every_packet, ..ServiceTable::default() };
    table.addresses.extend([CLUSTER_IP, LONELY]);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let mut add = |at_: SocketAddrV4, caller, backends: &[SocketAddrV4]| {
            let maglev = caller == Caller::Outside && backends.len() > 1;
            let backends = Backends { at: backends.iter().copied().collect(), affinity_seconds: 0, maglev };
            table.frontends.insert(Frontend { at: at_, protocol, caller }, backends);
        };
        let any = |port| SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        for caller in [Caller::Inside, Caller::Outside] {
            add(any(NODE_PORT), caller, &at);
            add(any(NODE_PORT + 1), caller, &[]);
        }
        add(SocketAddrV4::new(CLUSTER_IP, 80), Caller::Inside, &at);
        add(SocketAddrV4::new(LONELY, 80), Caller::Inside, &[]);
    }
    node.datapath.set_services(&table).unwrap();
    // As if there were such connections: every way through the programs is open.
    for callers in [scope::INSIDE, scope::OUTSIDE] {
        node.datapath.set_balanced_callers(callers, true).unwrap();
    }
}

#[test]
fn no_packet_breaks_a_program_or_leaves_something_behind() {
    isolated(|| {
        let cluster = outside::cluster(TCX, &[PODS]);
        let [one, two] = &cluster.nodes;
        let pods = [one.pod(10), one.pod(11), two.pod(12)];
        let device = &pods[0].device;
        for every_packet in [false, true] {
            serve(one, every_packet);
            let fates = fuzz(one, Hook::FromEndpoint, device);
            assert!(
                fates.were(&[Fate::Dropped, Fate::Redirected, Fate::Opened, Fate::Rewritten]),
                "{fates:?}"
            );
            let fates = fuzz(one, Hook::FromNetwork, "eth1");
            assert!(fates.were(&[Fate::Dropped, Fate::Redirected, Fate::Opened, Fate::Next]), "{fates:?}");
            let fates = fuzz(one, Hook::ToNetwork, "eth1");
            assert!(fates.were(&[Fate::Dropped, Fate::Opened, Fate::Rewritten, Fate::Next]), "{fates:?}");
            let fates = fuzz(one, Hook::FromHost, "podwire_host");
            assert!(fates.were(&[Fate::Dropped, Fate::Redirected]), "{fates:?}");
            let fates = fuzz(one, Hook::ToEndpoint, device);
            assert!(fates.were(&[Fate::Next]), "{fates:?}");
        }
    });
}

#[test]
fn no_packet_breaks_a_program_of_the_tunnel() {
    isolated(|| {
        let cluster = tunnel::cluster(TCX);
        let [one, two] = &cluster.nodes;
        let pods = [tunnel::pod(one, 10), tunnel::pod(one, 11), tunnel::pod(two, 12)];
        serve(one, true);
        let fates = fuzz(one, Hook::FromOverlay, "podwire_vxlan");
        assert!(fates.were(&[Fate::Dropped, Fate::Redirected]), "{fates:?}");
        for (hook, device) in [
            (Hook::FromEndpoint, pods[0].device.as_str()),
            (Hook::FromNetwork, "eth1"),
            (Hook::ToNetwork, "eth1"),
        ] {
            let fates = fuzz(one, hook, device);
            assert!(fates.were(&[Fate::Dropped, Fate::Opened, Fate::Rewritten]), "{hook:?}: {fates:?}");
        }
    });
}
