use std::net::Ipv4Addr;

use super::{Encapsulation, Frame, Net, Summary, Transport, dissect, summarise, tunnel};
use crate::link::LinkType;
use crate::testing::Build;

const A: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 5);
const B: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 7);
const M: Ipv4Addr = Ipv4Addr::new(192, 168, 10, 100);
const N: Ipv4Addr = Ipv4Addr::new(192, 168, 10, 101);

fn echo() -> Build {
    Build::echo((A, B), true, 7, 3, b"0123456789abcdef")
}

fn summary(link: LinkType, bytes: &[u8]) -> Summary {
    summarise(&dissect(link, bytes))
}

fn info(bytes: &[u8]) -> String {
    summary(LinkType::Ethernet, bytes).info
}

#[test]
fn every_link_type_leads_to_the_same_packet() {
    let packet = echo().packet();
    let with = |head: &[u8]| [head, &packet].concat();
    let mut sll = vec![0u8; 14];
    sll.extend([8, 0]);
    let mut sll2 = vec![8, 0];
    sll2.extend([0; 18]);
    let cases = [
        (LinkType::Ethernet, echo().frame()),
        (LinkType::Raw, packet.clone()),
        (LinkType::Ipv4, packet.clone()),
        (LinkType::LinuxSll, with(&sll)),
        (LinkType::LinuxSll2, with(&sll2)),
        (LinkType::Null, with(&[2, 0, 0, 0])),
        (LinkType::Loop, with(&[0, 0, 0, 2])),
    ];
    for (link, bytes) in cases {
        let found = summary(link, &bytes);
        assert_eq!(
            (found.source.as_str(), found.destination.as_str()),
            ("10.244.0.5", "10.244.1.7"),
            "{link}"
        );
        assert_eq!(found.info, "echo request id 7 seq 3 ttl 63", "{link}");
    }
    assert!(matches!(dissect(LinkType::Other(105), &packet).net, Net::UnsupportedLink));
}

#[test]
fn lines_read_like_a_packet_list() {
    let tcp = Build::tcp((A, B), (40000, 80), (1, 2), 0x12, b"");
    assert_eq!(info(&tcp.frame()), "40000 → 80 [SYN, ACK] seq 1 ack 2 win 64240 len 0 ttl 63");
    assert_eq!(info(&Build::udp((A, B), (5000, 53), 1, b"12345").frame()), "5000 → 53 len 5 ttl 63");
    let vxlan = summary(LinkType::Ethernet, &echo().in_vxlan(M, N, 8472).frame());
    assert_eq!((vxlan.source.as_str(), vxlan.protocol.as_str()), ("192.168.10.100", "ICMP"));
    assert_eq!(
        vxlan.info,
        "VXLAN (VNI 7, port 8472): 10.244.0.5 → 10.244.1.7 echo request id 7 seq 3 ttl 63"
    );
    let mut arp = vec![0xff; 6];
    arp.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1]);
    arp.extend(A.octets());
    arp.extend([0; 6]);
    arp.extend(B.octets());
    assert_eq!(info(&arp), "who has 10.244.1.7? tell 10.244.0.5");
    let mut exceeded = vec![11, 0, 0, 0, 0, 0, 0, 0];
    exceeded.extend(echo().packet());
    let line = info(&Build::ip(M, A, 1, 0, &exceeded).frame());
    assert_eq!(line, "time exceeded about 10.244.0.5 → 10.244.1.7 ttl 63");
}

#[test]
fn vlan_tags_are_seen_through() {
    for tags in [vec![10], vec![10, 20]] {
        let frame = echo().tagged(&tags);
        let found = dissect(LinkType::Ethernet, &frame);
        assert!(matches!(found.net, Net::Ipv4(_)));
        assert_eq!(found.vlans.iter().flatten().copied().collect::<Vec<_>>(), tags);
    }
}

#[test]
fn options_padding_and_lengths_are_obeyed() {
    let mut frame = Build::udp((A, B), (1, 2), 1, b"12345").frame();
    // An Ethernet frame has at least 60 bytes; the padding is not payload.
    frame.resize(60, 0xee);
    let Net::Ipv4(ip) = dissect(LinkType::Ethernet, &frame).net else { panic!("no IPv4") };
    let Transport::Udp(udp) = ip.transport() else { panic!("no UDP") };
    assert_eq!((udp.payload, ip.cut, ip.payload_len()), (&b"12345"[..], false, 13));

    let mut packet = Build::udp((A, B), (1, 2), 1, b"12345").packet();
    packet.splice(20..20, [1, 1, 1, 0]);
    packet[0] = 0x46;
    packet[3] += 4;
    let Net::Ipv4(ip) = dissect(LinkType::Raw, &packet).net else { panic!("no IPv4") };
    assert_eq!((ip.header_len, ip.transport().ports()), (24, Some((1, 2))));

    // A super-packet whose length field is left to the device.
    packet[2..4].copy_from_slice(&[0, 0]);
    let Net::Ipv4(ip) = dissect(LinkType::Raw, &packet).net else { panic!("no IPv4") };
    assert_eq!((ip.payload.len(), ip.payload_len(), ip.cut), (13, 13, false));
}

#[test]
fn fragments_have_a_header_only_in_front() {
    let mut first = Build::udp((A, B), (1, 2), 9, &[0; 64]).packet();
    first[6..8].copy_from_slice(&0x2000u16.to_be_bytes());
    let Net::Ipv4(ip) = dissect(LinkType::Raw, &first).net else { panic!("no IPv4") };
    assert!(ip.more_fragments && matches!(ip.transport(), Transport::Udp(_)));
    first[6..8].copy_from_slice(&0x0008u16.to_be_bytes());
    let Net::Ipv4(ip) = dissect(LinkType::Raw, &first).net else { panic!("no IPv4") };
    assert_eq!(ip.fragment_offset, 64);
    assert!(matches!(ip.transport(), Transport::Fragment { protocol: 17 }));
}

fn inside(bytes: &[u8]) -> Option<(Encapsulation, Option<(Ipv4Addr, Ipv4Addr)>)> {
    let frame: Frame<'_> = dissect(LinkType::Ethernet, bytes);
    let found = tunnel(&frame.net)?;
    let inner = found.inner.and_then(|inner| match inner.net {
        Net::Ipv4(ip) => Some((ip.source, ip.destination)),
        _ => None,
    });
    Some((found.encapsulation, inner))
}

#[test]
fn what_is_carried_is_found() {
    let inner = Some((A, B));
    assert_eq!(
        inside(&echo().in_vxlan(M, N, 8472).frame()),
        Some((Encapsulation::Vxlan { vni: 7, port: 8472 }, inner))
    );
    assert_eq!(
        inside(&echo().in_vxlan(M, N, 4789).frame()),
        Some((Encapsulation::Vxlan { vni: 7, port: 4789 }, inner))
    );
    assert_eq!(
        inside(&echo().in_vxlan(M, N, 999).frame()),
        Some((Encapsulation::Vxlan { vni: 7, port: 999 }, inner))
    );
    assert_eq!(inside(&echo().in_geneve(M, N).frame()), Some((Encapsulation::Geneve { vni: 7 }, inner)));
    assert_eq!(inside(&echo().in_ipip(M, N).frame()), Some((Encapsulation::Ipip, inner)));
    assert_eq!(inside(&echo().in_gre(M, N).frame()), Some((Encapsulation::Gre, inner)));
    assert_eq!(inside(&Build::ip(M, N, 50, 0, &[0; 40]).frame()), Some((Encapsulation::Esp, None)));
    let mut handshake = vec![1, 0, 0, 0];
    handshake.resize(148, 7);
    assert_eq!(
        inside(&Build::udp((M, N), (51871, 51871), 0, &handshake).frame()),
        Some((Encapsulation::WireGuard, None))
    );
}

#[test]
fn what_is_no_tunnel_is_left_alone() {
    assert_eq!(inside(&echo().frame()), None);
    assert_eq!(inside(&Build::udp((M, N), (8472, 53), 0, b"a name, please, of some length").frame()), None);
    assert_eq!(
        inside(&Build::udp((M, N), (1, 8472), 0, &[0; 60]).frame()),
        None,
        "the identifier's flag is not set"
    );
    assert_eq!(inside(&Build::udp((M, N), (1, 999), 0, &[8, 0, 0, 0, 0, 0, 7, 0]).frame()), None);
}

#[test]
fn ipv6_tells_what_it_carries() {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, 44, 64];
    packet.extend([0xfe; 32]);
    // A fragment header of the first fragment, then IPv4 inside.
    packet.extend([4, 0, 0, 1, 0, 0, 0, 9]);
    packet.extend(echo().packet());
    packet[4..6].copy_from_slice(&(52u16).to_be_bytes());
    let frame = dissect(LinkType::Raw, &packet);
    let found = tunnel(&frame.net).expect("a tunnel");
    assert_eq!(found.encapsulation, Encapsulation::Ipip);
    assert!(matches!(found.inner.map(|inner| inner.net), Some(Net::Ipv4(_))));
}

#[test]
fn contradictions_are_malformed_not_misread() {
    let mut packet = echo().packet();
    for (at, value) in [(0, 0x55), (0, 0x44), (3, 10)] {
        let kept = packet[at];
        packet[at] = value;
        let frame = [vec![0; 12], vec![8, 0], packet.clone()].concat();
        assert!(matches!(dissect(LinkType::Ethernet, &frame).net, Net::Malformed(_)), "byte {at}");
        packet[at] = kept;
    }
}

#[test]
fn cut_anywhere_a_packet_is_partly_read() {
    let frames = [
        Build::tcp((A, B), (40000, 80), (1, 2), 0x12, b"data").frame(),
        echo().in_vxlan(M, N, 8472).frame(),
        echo().in_geneve(M, N).frame(),
        echo().in_gre(M, N).frame(),
        echo().tagged(&[1, 2]),
    ];
    for frame in frames {
        let whole = summary(LinkType::Ethernet, &frame);
        for end in 0..frame.len() {
            let cut = summary(LinkType::Ethernet, &frame[..end]);
            if end >= 14 + 8 + 20 {
                assert_eq!((&cut.source, &cut.destination), (&whole.source, &whole.destination));
            }
        }
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_dissected_without_panic(bytes: Vec<u8>, link in 0u16..300) {
        let link = LinkType::from_number(link);
        let _ = summary(link, &bytes);
        let mut packet = echo().in_vxlan(M, N, 8472).frame();
        for (at, byte) in bytes.iter().take(packet.len()).enumerate().filter(|(_, byte)| *byte & 1 == 1) {
            packet[at] = *byte;
        }
        let _ = summary(LinkType::Ethernet, &packet);
        let _ = tunnel(&dissect(link, &bytes).net);
    }
}
