//! Writes a small made capture with native traffic, a tunnelled packet and a masqueraded connection:
//! `cargo run -p podwire-conformance --example demo_capture -- FILE [bad]`

use std::net::Ipv4Addr;

use podwire_conformance::testing::{Build, pcapng};

fn main() -> std::io::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "demo.pcapng".to_owned());
    let bad = std::env::args().nth(2).is_some();
    let (a, b) = (Ipv4Addr::new(10, 244, 0, 5), Ipv4Addr::new(10, 244, 1, 7));
    let (node_a, node_b) = (Ipv4Addr::new(192, 168, 10, 100), Ipv4Addr::new(192, 168, 10, 101));
    let connection = |client: Ipv4Addr, port: u16, number: u32| {
        vec![
            Build::tcp((client, b), (port, 80), (number, 0), 2, b""),
            Build::tcp((b, client), (80, port), (number * 7, number + 1), 18, b""),
            Build::tcp(
                (client, b),
                (port, 80),
                (number + 1, number * 7 + 1),
                24,
                b"GET / HTTP/1.1\r\nHost: webpod\r\n\r\n",
            ),
        ]
    };
    let mut frames = Vec::new();
    for tap in 0..3 {
        frames.extend(connection(a, 40_000, 1000).iter().map(|packet| (tap, packet.frame())));
        frames.push((tap, Build::echo((a, b), true, 7, 1, b"0123456789abcdef").frame()));
        frames.push((tap, Build::echo((b, a), false, 7, 1, b"0123456789abcdef").frame()));
    }
    if bad {
        frames.extend(connection(a, 41_000, 5000).iter().map(|packet| (0, packet.frame())));
        frames.extend(connection(node_a, 62_000, 5000).iter().map(|packet| (1, packet.frame())));
        frames.push((
            1,
            Build::echo((a, b), true, 8, 2, b"0123456789abcdef").in_vxlan(node_a, node_b, 8472).frame(),
        ));
    }
    std::fs::write(path, pcapng(&["k8s-ctr:lxc1a2b3c", "k8s-ctr:eth1", "k8s-w1:eth1"], &frames, 0))
}
