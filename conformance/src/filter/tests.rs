use std::net::Ipv4Addr;

use super::Filter;
use crate::dissect::dissect;
use crate::link::LinkType;
use crate::testing::Build;

const A: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 5);
const B: Ipv4Addr = Ipv4Addr::new(192, 168, 10, 7);

fn matches(filter: &str, packet: &Build) -> bool {
    let filter: Filter = filter.parse().unwrap_or_else(|error| panic!("{filter}: {error}"));
    filter.matches(&dissect(LinkType::Ethernet, &packet.frame()))
}

fn error(filter: &str) -> String {
    filter.parse::<Filter>().unwrap_err().to_string()
}

#[test]
fn conditions_select_what_they_say() {
    let web = Build::tcp((A, B), (40000, 80), (1, 1), 2, b"");
    for yes in [
        "tcp",
        "ip",
        "host 10.244.0.5",
        "src host 10.244.0.5",
        "dst host 192.168.10.7",
        "net 10.244.0.0/16",
        "dst net 192.168.0.0/16",
        "port 80",
        "dst port 80",
        "src port 40000",
        "tcp port 80",
        "tcp and port 80",
        "not udp",
        "!arp",
        "udp or tcp",
        "udp || tcp && ip",
        "(udp or tcp) and host 10.244.0.5",
        "not (udp or icmp)",
        "not not tcp",
        "tcp dst port 80",
        "src net 10.244.0.5/16",
    ] {
        assert!(matches(yes, &web), "{yes}");
    }
    for no in [
        "udp",
        "icmp",
        "arp",
        "ip6",
        "host 10.0.0.1",
        "dst host 10.244.0.5",
        "src net 192.168.0.0/16",
        "src port 80",
        "not tcp",
        "tcp and udp",
        "udp or tcp and icmp",
        "tcp port 81",
        "host ::1",
    ] {
        assert!(!matches(no, &web), "{no}");
    }
    let ping = Build::echo((A, B), true, 1, 1, b"");
    assert!(matches("icmp", &ping) && !matches("port 80", &ping));
    // An inner packet is not looked at.
    assert!(!matches("icmp", &ping.in_vxlan(B, A, 8472)));
}

#[test]
fn mistakes_are_shown_with_their_place() {
    assert!(error("").starts_with("filter, column 1: the expression ends where"));
    assert!(error("tcp and").starts_with("filter, column 8: the expression ends"));
    assert!(error("tcp foo").starts_with("filter, column 5: \"foo\" is not understood here"));
    assert!(error("foo").contains("\"foo\" is not a condition; there are tcp, udp"));
    assert_eq!(error("(tcp"), "filter, column 5: a \")\" is missing");
    assert_eq!(error("tcp)"), "filter, column 4: this \")\" closes nothing");
    assert!(error("host 10.244.0").starts_with("filter, column 6: an IPv4 or IPv6 address is needed"));
    assert!(error("net 10.244.0.0/33").contains("column 5: a network like 10.244.0.0/16 is needed"));
    assert!(error("port 70000").contains("a port number from 0 to 65535"));
    assert!(error("src tcp").contains("column 5: \"src\" and \"dst\" go before"));
    assert!(error("한국 port").starts_with("filter, column 1: \"한국\" is not a condition"));
    assert!(error("tcp 한 x").contains("column 5"));
}

#[test]
fn hostile_lengths_and_depths_are_refused() {
    assert!(error(&"(".repeat(1000)).contains("nested more than 64 deep"));
    assert!(error(&"not ".repeat(900)).contains("nested more than 64 deep"));
    assert!(error(&"tcp or ".repeat(1000)).contains("is too long (limit 4096)"));
    assert!("tcp or ".repeat(500).trim_end_matches(" or ").parse::<Filter>().is_ok());
}

proptest::proptest! {
    #[test]
    fn any_text_is_a_filter_or_an_error(text: String) {
        let _ = text.parse::<Filter>();
    }

    #[test]
    fn any_words_are_a_filter_or_an_error(words in proptest::collection::vec(0usize..14, 0..20)) {
        let all = ["tcp", "not", "(", ")", "and", "or", "host", "10.0.0.1", "port", "80", "src", "net", "10.0.0.0/8", "&&"];
        let text: Vec<&str> = words.into_iter().map(|word| all[word]).collect();
        let _ = text.join(" ").parse::<Filter>();
    }
}
