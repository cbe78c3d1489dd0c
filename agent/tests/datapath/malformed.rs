//! Malformed packets, given to the programs directly: no sender can make the kernel send all of these.

use std::net::Ipv4Addr;

use aya::{
    TestRun,
    programs::{SchedClassifier, TestRunOptions},
};
use podwire_abi::{DropReason, Point};

use crate::{
    net::{Cluster, Node, TCX, inside, isolated},
    tap::{Tap, udp_frame},
};

const NEXT: u32 = (-1_i32).cast_unsigned();
const DROP: u32 = 2;

type Damage = fn(&mut Vec<u8>);

/// Runs a pinned program on a frame; what it answers.
fn answer(node: &Node, program: &str, frame: &[u8]) -> u32 {
    let version = node.pin_dir.join(format!("v{}", podwire_abi::ABI_VERSION));
    let set = std::fs::read_dir(version)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.join(program).exists())
        .unwrap();
    let program = SchedClassifier::from_pin(set.join(program)).unwrap();
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    inside(&node.name, || program.test_run(options).unwrap().return_value)
}

#[test]
fn malformed_packets_are_dropped_and_counted() {
    isolated(|| {
        let cluster = Cluster::new(TCX);
        let node = &cluster.nodes[0];
        let good = udp_frame(
            // The kernel runs the program as if the frame came in by the loopback device, whose address this is.
            [0; 6],
            [2, 0, 0, 0, 0, 2],
            Ipv4Addr::new(10, 244, 2, 9),
            Ipv4Addr::new(10, 244, 2, 10),
            64,
        );
        let damages: [(&str, Damage); 6] = [
            ("version 6", |f| f[14] = 0x65),
            ("version 0", |f| f[14] = 0x05),
            ("header of 16 bytes", |f| f[14] = 0x44),
            ("total length below the header's", |f| f[16..18].copy_from_slice(&[0, 19])),
            ("total length zero", |f| f[16..18].copy_from_slice(&[0, 0])),
            ("total length beyond the frame", |f| f[16..18].copy_from_slice(&[0, 33])),
        ];
        for (program, point) in [
            ("from_endpoint", Point::FromEndpoint),
            ("from_network", Point::FromNetwork),
            ("from_host", Point::FromHost),
        ] {
            let mut dropped = 0;
            for (what, damage) in damages {
                let mut frame = good.clone();
                damage(&mut frame);
                dropped += 1;
                assert_eq!(answer(node, program, &frame), DROP, "{program}: {what}");
                assert_eq!(node.counted(point, DropReason::Malformed), dropped, "{program}: {what}");
            }
            // The control: what is whole is not malformed, padding at the end included.
            let mut padded = good.clone();
            padded.extend([0; 14]);
            for frame in [&good, &padded] {
                answer(node, program, frame);
                assert_eq!(node.counted(point, DropReason::Malformed), dropped, "{program}");
            }
        }
        // Not for a pod of this node, and not for its pod CIDR: the stack's.
        assert_eq!(answer(node, "from_network", &good), NEXT);
        // No pod has this device, nor this address.
        assert_eq!(answer(node, "from_endpoint", &good), DROP);
        assert!(node.counted(Point::FromEndpoint, DropReason::InvalidSourceIp) > 0);
    });
}

/// A frame that ends within the IP header. The kernel does not run a program on one by hand, so a pod sends it.
#[test]
fn a_frame_cut_short_is_dropped() {
    isolated(|| {
        let cluster = Cluster::new(TCX);
        let node = &cluster.nodes[0];
        let (a, b) = (node.pod(10), node.pod(11));
        let mut events = node.events();
        let whole = udp_frame(a.endpoint.node_mac, a.endpoint.pod_mac, a.ip, b.ip, 64);
        for length in [14, 15, 33] {
            Tap::open(&a.netns, "eth0").send(&whole[..length]);
            let event = events.wait_for("the cut frame", |e| e.reason == DropReason::Malformed);
            assert_eq!((event.flow, event.length), (None, length as u32 - 14));
        }
        assert_eq!(node.counted(Point::FromEndpoint, DropReason::Malformed), 3);
    });
}

/// Frames of every length and of random content are answered, and nothing else happens.
#[test]
fn any_frame_gets_an_answer() {
    use proptest::test_runner::{Config, TestRunner};
    isolated(|| {
        let cluster = Cluster::new(TCX);
        let node = &cluster.nodes[0];
        let mut runner =
            TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
        let frame = proptest::collection::vec(proptest::num::u8::ANY, 54..200);
        runner
            .run(&frame, |mut frame| {
                for kind in [[8, 0], [8, 6], [0x86, 0xdd]] {
                    frame[12..14].copy_from_slice(&kind);
                    for program in ["from_endpoint", "from_network", "from_host", "to_network"] {
                        assert!([NEXT, DROP].contains(&answer(node, program, &frame)));
                    }
                }
                Ok(())
            })
            .unwrap();
    });
}

/// What comes by the wire from where no host can be is dropped, and told by its reason.
#[test]
fn martians_are_dropped_and_counted() {
    isolated(|| {
        let cluster = Cluster::new(TCX);
        let node = &cluster.nodes[0];
        let pod = node.pod(10);
        let martians = [[127, 0, 0, 1], [0, 0, 0, 0], [224, 0, 0, 5], [255, 255, 255, 255]];
        for (count, source) in (1..).zip(martians) {
            let frame = udp_frame([0; 6], [2, 0, 0, 0, 0, 2], source.into(), pod.ip, 64);
            assert_eq!(answer(node, "from_network", &frame), DROP, "{source:?}");
            assert_eq!(node.counted(Point::FromNetwork, DropReason::InvalidSourceIp), count);
        }
        // Others may be strange, but somebody can have them.
        let frame = udp_frame([0; 6], [2, 0, 0, 0, 0, 2], [240, 0, 0, 1].into(), pod.ip, 64);
        assert_ne!(answer(node, "from_network", &frame), DROP);
    });
}
