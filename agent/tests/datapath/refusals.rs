//! What is dropped, and what the drop says.

use std::{net::Ipv4Addr, path::Path, thread};

use podwire_abi::{DropReason, Point};
use podwire_agent::datapath::{AttachMode, Datapath, DatapathError, Hook, probe};

use crate::{
    net::{Cluster, Setup, TCX, eventually, inside, isolated, run_in, sh},
    takeover::tree,
    tap::{Tap, udp_frame},
};

/// A pod cannot send with an address that is not its own, be it another pod's or a foreign one.
#[test]
fn a_pod_cannot_borrow_an_address() {
    for mode in [AttachMode::Tcx, AttachMode::Clsact] {
        isolated(|| {
            let cluster = Cluster::new(Setup { mode, endpoint_routes: true });
            let [one, two] = &cluster.nodes;
            let (a, b, c) = (one.pod(10), one.pod(11), two.pod(10));
            let mut events = one.events();
            let mut sender = Tap::open(&a.netns, "eth0");
            let mut ends = [Tap::open(&b.netns, "eth0"), Tap::open(&c.netns, "eth0")];
            let from = |source, to| udp_frame(a.endpoint.node_mac, a.endpoint.pod_mac, source, to, 64);
            let mut sent = 0;
            for forged in [b.ip, c.ip, Ipv4Addr::new(8, 8, 8, 8), one.ip(), Ipv4Addr::UNSPECIFIED] {
                for to in [b.ip, c.ip] {
                    sender.send(&from(forged, to));
                    sent += 1;
                    let event = events.wait_for_drop(DropReason::InvalidSourceIp, forged);
                    assert_eq!((event.point, event.ifindex), (Point::FromEndpoint, a.endpoint.ifindex));
                    assert_eq!(event.flow.unwrap().destination, to);
                }
            }
            assert_eq!(one.counted(Point::FromEndpoint, DropReason::InvalidSourceIp), sent);
            // The control: the same frame with the pod's own address arrives, and is the only one that does.
            for (end, to) in ends.iter_mut().zip([b.ip, c.ip]) {
                sender.send(&from(a.ip, to));
                let frame = end.wait_for("the pod's own packet", |f| f.udp_ports() == Some((4000, 4001)));
                assert_eq!(frame.source, a.ip);
                assert_eq!(frame.payload[8..], [1, 2, 3, 4]);
            }
        });
    }
}

/// An address of the node's own pod CIDR without a pod is dropped where it is asked for, whoever asks, and whatever
/// the default route says.
#[test]
fn an_address_without_a_pod_does_not_circle() {
    for endpoint_routes in [true, false] {
        isolated(|| {
            let cluster = Cluster::new(Setup { endpoint_routes, ..TCX });
            let [one, two] = &cluster.nodes;
            let (a, c) = (one.pod(10), two.pod(10));
            // Each node's default route is the other one: a perfect circle.
            sh("ip -n node1 route add default via 192.168.10.2");
            sh("ip -n node2 route add default via 192.168.10.1");
            let nobody = Ipv4Addr::new(10, 244, 1, 99);
            let mut events = one.events();
            let mut wire = Tap::open("switch", "p1");
            assert!(!a.ping(&format!("-c 1 -W 1 {nobody}")).0);
            let event = events.wait_for_drop(DropReason::StaleOrUnroutable, a.ip);
            assert_eq!(event.point, Point::FromEndpoint);
            assert!(wire.drain().iter().all(|f| f.destination != nobody), "it left the node");
            assert!(!c.ping(&format!("-c 1 -W 1 {nobody}")).0);
            let event = events.wait_for_drop(DropReason::StaleOrUnroutable, c.ip);
            assert_eq!(event.point, Point::FromNetwork);
            assert_eq!(wire.drain().iter().filter(|f| f.destination == nobody).count(), 1, "it came once");
            if !endpoint_routes {
                let output = run_in("node1", &format!("ping -n -c 1 -W 1 {nobody}"));
                assert!(!output.status.success());
                let event = events.wait_for_drop(DropReason::StaleOrUnroutable, one.router_ip());
                assert_eq!(event.point, Point::FromHost);
            }
            // A pod that was there and is gone is the same.
            let b = one.pod(11);
            a.assert_reaches(b.ip);
            inside("node1", || one.datapath.remove_endpoint(b.ip, b.endpoint.ifindex).unwrap());
            assert!(!a.ping(&format!("-c 1 -W 1 {}", b.ip)).0);
            events.wait_for_drop(DropReason::StaleOrUnroutable, a.ip);
        });
    }
}

/// IPv6 and VLAN tags do not pass. What a kernel sends to groups by itself is counted without an event.
#[test]
fn only_ipv4_passes() {
    isolated(|| {
        let cluster = Cluster::new(TCX);
        let one = &cluster.nodes[0];
        let (a, b) = (one.pod(10), one.pod(11));
        let mut events = one.events();
        let mut sender = Tap::open(&a.netns, "eth0");
        let mut end = Tap::open(&b.netns, "eth0");
        let good = udp_frame(a.endpoint.node_mac, a.endpoint.pod_mac, a.ip, b.ip, 64);
        let counted = || one.counted(Point::FromEndpoint, DropReason::UnsupportedL3);

        let mut to_group = good.clone();
        to_group[..6].copy_from_slice(&[0x33, 0x33, 0, 0, 0, 2]);
        to_group[12..14].copy_from_slice(&[0x86, 0xdd]);
        sender.send(&to_group);
        eventually("the first frame is counted", || counted() == 1);

        let mut ipv6 = good.clone();
        ipv6[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
        sender.send(&ipv6);
        let event = events.wait_for("anything", |_| true);
        assert_eq!((event.reason, event.flow), (DropReason::UnsupportedL3, None));
        assert_eq!(counted(), 2, "the frame to a group was counted, and this is the first event");

        let mut tagged = good.clone();
        tagged.splice(12..12, [0x81, 0x00, 0, 5]);
        sender.send(&tagged);
        events.wait_for("the tagged frame", |e| e.reason == DropReason::UnsupportedL3);
        sender.send(&good);
        end.wait_for("the untagged frame", |f| f.source == a.ip);
        assert_eq!(counted(), 3);
    });
}

/// A frame that a bridge floods to everybody is not delivered by those whose it is not.
#[test]
fn frames_to_other_hosts_are_left_alone() {
    isolated(|| {
        let cluster = Cluster::new(TCX);
        let [one, two] = &cluster.nodes;
        let (a, c) = (one.pod(10), two.pod(10));
        let mut switch = Tap::open("switch", "p1");
        let mut end = Tap::open(&a.netns, "eth0");
        switch.send(&udp_frame([2, 0, 0, 0, 0, 99], [2, 0, 0, 0, 0, 98], c.ip, a.ip, 64));
        c.assert_reaches(a.ip);
        let seen = end.drain();
        assert!(seen.iter().any(|f| f.source == c.ip), "the control arrives");
        assert!(seen.iter().all(|f| f.protocol != 17), "{seen:?}");
    });
}

/// Has the kernel answer "invalid argument" to one `bpf(2)` command of the calling thread, as one that does not know it.
fn forget_command(command: u32) {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let is = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let answer = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // Offsets in `struct seccomp_data`: the call's number is at 0, its first argument at 16.
    let mut filter = [
        step(load, 0, 0, 0),
        step(is, 0, 3, libc::SYS_bpf as u32),
        step(load, 0, 0, 16),
        step(is, 0, 1, command),
        step(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32),
        step(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter are initialised and outlive the call, which concerns this thread only.
    let set =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    assert_eq!(set, 0, "seccomp: {}", std::io::Error::last_os_error());
}

/// A kernel without a feature that is needed: the message names each and its mend, and nothing stays pinned.
#[test]
fn a_kernel_that_lacks_a_feature_is_told_by_it() {
    const MAP_CREATE: u32 = 0;
    const PROG_LOAD: u32 = 5;
    isolated(|| {
        // The control; and what the loader asks the kernel once for the whole process it has asked then.
        Datapath::open(Path::new("/sys/fs/bpf/whole")).unwrap();
        for (command, lacks, has) in [
            (
                PROG_LOAD,
                "eBPF classifiers (run as root on a kernel with CONFIG_BPF_SYSCALL",
                "ring buffer map",
            ),
            (MAP_CREATE, "ring buffer map (run Linux 5.8 or newer)", "eBPF classifiers ("),
        ] {
            let pins = Path::new("/sys/fs/bpf/lacking");
            let message = thread::scope(|scope| {
                let open = scope.spawn(|| {
                    forget_command(command);
                    Datapath::open(pins).err().unwrap().to_string()
                });
                open.join().unwrap()
            });
            assert!(message.starts_with("this kernel cannot run the datapath, it has no "), "{message}");
            let list = message.lines().next().unwrap();
            assert!(list.contains(lacks) && !list.contains(has), "{message}");
            let version = format!("v{}", podwire_abi::ABI_VERSION);
            assert_eq!(tree(pins), [version.clone(), version + "/maps"], "nothing half made: {message}");
        }
    });
}

/// The messages name the thing, the cause and the mend.
#[test]
fn errors_say_what_to_do() {
    isolated(|| {
        let error = Datapath::open(std::path::Path::new("/run/netns/podwire")).err().unwrap();
        assert!(matches!(error, DatapathError::NotBpffs { .. }), "{error}");
        assert!(error.to_string().contains("mount -t bpf bpf /sys/fs/bpf"), "{error}");
        let cluster = Cluster::new(TCX);
        let node = &cluster.nodes[0];
        for mode in [AttachMode::Tcx, AttachMode::Clsact] {
            let error = inside("node1", || {
                Datapath::open_in(&node.pin_dir, mode).unwrap().attach_network_device(99_999).unwrap_err()
            });
            assert_eq!(
                error.to_string(),
                format!(
                    "cannot attach from_network to device 99999 by {mode}: No such device (os error 19); the device \
                     is gone"
                )
            );
        }
        assert_eq!(
            node.datapath.attachments().unwrap(),
            [(Hook::FromNetwork, node.eth1)],
            "nothing half made"
        );
        let features = probe();
        assert!(features.iter().filter(|f| f.needed).all(|f| f.available), "{features:?}");
        assert!(features.iter().all(|f| f.available == f.mend.is_empty()), "{features:?}");
    });
}
