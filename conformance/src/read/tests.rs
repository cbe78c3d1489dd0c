use super::{CaptureFile, Direction, Format, ReadError, Reader};
use crate::link::LinkType;
use crate::testing::{EPOCH, pcap, pcap_of, pcapng};

/// A pcapng block of a byte order.
fn block(big: bool, kind: u32, body: &[u8]) -> Vec<u8> {
    let word = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let len = word(12 + body.len().next_multiple_of(4) as u32);
    let mut out = [word(kind), len].concat();
    out.extend(body);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(len);
    out
}

fn words(big: bool, values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| if big { value.to_be_bytes() } else { value.to_le_bytes() }).collect()
}

fn halves(big: bool, values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|value| if big { value.to_be_bytes() } else { value.to_le_bytes() }).collect()
}

fn section(big: bool) -> Vec<u8> {
    let body = [words(big, &[0x1a2b_3c4d]), halves(big, &[1, 0]), vec![0xff; 8]].concat();
    block(big, 0x0a0d_0d0a, &body)
}

/// An interface description: link type, snap length, options of (code, value).
fn interface(big: bool, link: u16, snaplen: u32, options: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = [halves(big, &[link, 0]), words(big, &[snaplen])].concat();
    for (code, value) in options {
        body.extend(halves(big, &[*code, value.len() as u16]));
        body.extend(*value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    if !options.is_empty() {
        body.extend([0; 4]);
    }
    block(big, 1, &body)
}

fn enhanced(big: bool, interface: u32, ticks: u64, data: &[u8]) -> Vec<u8> {
    let head =
        words(big, &[interface, (ticks >> 32) as u32, ticks as u32, data.len() as u32, data.len() as u32]);
    block(big, 6, &[&head, data].concat())
}

/// Number, interface, time and data of a packet.
type Seen = (u64, usize, Option<i64>, Vec<u8>);

/// Every packet, and the reader after the last.
fn read(bytes: &[u8]) -> (Vec<Seen>, Reader<'_>) {
    let mut reader = Reader::new(bytes).unwrap();
    let mut packets = Vec::new();
    while let Some(packet) = reader.next_packet().unwrap() {
        packets.push((packet.number, packet.interface, packet.timestamp, packet.data.to_vec()));
    }
    (packets, reader)
}

fn error(bytes: &[u8]) -> String {
    match Reader::new(bytes) {
        Err(error) => error.to_string(),
        Ok(reader) => reader.into_iter().find_map(Result::err).expect("an error").to_string(),
    }
}

#[test]
fn pcap_in_both_orders_and_resolutions_reads_the_same() {
    let frames: [&[u8]; 3] = [&[1; 60], &[], &[3; 1500]];
    for big in [false, true] {
        for nano in [false, true] {
            let file = pcap(&frames, big, nano, LinkType::Ethernet);
            let (packets, reader) = read(&file);
            assert_eq!(reader.format(), Format::Pcap);
            assert_eq!((reader.truncated_at(), reader.interfaces()[0].packets), (None, 3));
            for (index, packet) in packets.iter().enumerate() {
                let time = (EPOCH + index as u64 * 1_000_000).cast_signed();
                assert_eq!(*packet, (index as u64 + 1, 0, Some(time), frames[index].to_vec()));
            }
        }
    }
}

#[test]
fn pcapng_in_both_orders_with_resolution_and_offset() {
    for big in [false, true] {
        let offset = if big { 5i64.to_be_bytes() } else { 5i64.to_le_bytes() };
        let file = [
            section(big),
            interface(big, 1, 0, &[(2, b"a:eth1"), (3, b"first")]),
            interface(big, 101, 0, &[(2, b"b:eth1"), (9, &[9]), (14, &offset)]),
            interface(big, 1, 0, &[(9, &[0x80 | 1])]),
            enhanced(big, 0, 1_500_000, b"micro"),
            enhanced(big, 1, 1_000_000_007, b"nano!"),
            block(big, 0x0bad_0bad, b"unknown"),
            enhanced(big, 2, 3, b"half"),
        ]
        .concat();
        let (packets, reader) = read(&file);
        let times: Vec<_> = packets.iter().map(|packet| (packet.1, packet.2.unwrap())).collect();
        assert_eq!(times, [(0, 1_500_000_000), (1, 6_000_000_007), (2, 1_500_000_000)]);
        assert_eq!(packets[0].3, b"micro");
        let names: Vec<_> = reader.interfaces().iter().map(|interface| interface.name.as_deref()).collect();
        assert_eq!(names, [Some("a:eth1"), Some("b:eth1"), None]);
        assert_eq!(reader.interfaces()[0].description.as_deref(), Some("first"));
        assert_eq!(reader.interfaces()[1].link, LinkType::Raw);
    }
}

#[test]
fn sections_have_their_own_byte_order_and_interfaces() {
    let file = [
        section(false),
        interface(false, 1, 0, &[]),
        enhanced(false, 0, 1, b"one"),
        section(true),
        interface(true, 1, 0, &[(2, b"second")]),
        enhanced(true, 0, 2, b"two"),
    ]
    .concat();
    let (packets, reader) = read(&file);
    assert_eq!(packets.iter().map(|packet| (packet.0, packet.1)).collect::<Vec<_>>(), [(1, 0), (2, 1)]);
    assert_eq!(reader.interfaces().len(), 2);
    // An interface of the section before does not count.
    let file =
        [section(false), interface(false, 1, 0, &[]), section(true), enhanced(true, 0, 2, b"two")].concat();
    assert!(error(&file).contains("interface 0 is used, but the section describes 0"), "{}", error(&file));
}

#[test]
fn simple_and_old_packet_blocks() {
    for big in [false, true] {
        let old_head = [halves(big, &[0, 4]), words(big, &[0, 7, 3, 60])].concat();
        let file = [
            section(big),
            interface(big, 1, 4, &[]),
            block(big, 3, &[words(big, &[6]), b"simple".to_vec()].concat()),
            block(big, 2, &[old_head, b"old".to_vec()].concat()),
        ]
        .concat();
        let (packets, reader) = read(&file);
        assert_eq!(packets[0], (1, 0, None, b"simp".to_vec()), "cut by the snap length");
        assert_eq!(packets[1], (2, 0, Some(7000), b"old".to_vec()));
        assert_eq!(reader.interfaces()[0].dropped, Some(4));
    }
}

#[test]
fn flags_and_losses_are_read_in_both_orders() {
    for big in [false, true] {
        let number = |value: u64| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let options = |list: &[(u16, Vec<u8>)]| {
            let mut out = Vec::new();
            for (code, value) in list {
                out.extend(halves(big, &[*code, value.len() as u16]));
                out.extend(value);
            }
            out.extend([0; 4]);
            out
        };
        let head = words(big, &[0, 0, 1, 4, 4]);
        let flags = options(&[(2, words(big, &[2])), (4, number(3).to_vec())]);
        let statistics = options(&[(4, number(10).to_vec()), (5, number(5).to_vec())]);
        let file = [
            section(big),
            interface(big, 1, 0, &[]),
            block(big, 6, &[head, b"data".to_vec(), flags].concat()),
            block(big, 5, &[words(big, &[0, 0, 9]), statistics].concat()),
        ]
        .concat();
        let mut reader = Reader::new(&file).unwrap();
        assert_eq!(reader.next_packet().unwrap().unwrap().direction(), Some(Direction::Outbound));
        assert_eq!(reader.interfaces()[0].dropped, Some(3));
        assert!(reader.next_packet().unwrap().is_none());
        assert_eq!((reader.interfaces()[0].dropped, reader.interfaces()[0].received), (Some(5), Some(10)));
    }
}

#[test]
fn a_journal_entry_takes_a_frame_number_as_in_wireshark() {
    let file = [
        section(false),
        interface(false, 1, 0, &[]),
        block(false, 9, b"MESSAGE=x"),
        enhanced(false, 0, 1, b"x"),
    ]
    .concat();
    assert_eq!(read(&file).0[0].0, 2);
}

#[test]
fn packet_blocks_agree_with_pcap_parser() {
    use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
    use pcap_parser::{Block, PcapBlockOwned, PcapNGReader};
    let frames: Vec<(usize, Vec<u8>)> =
        (0..50).map(|index| (index % 2, vec![index as u8; index * 7])).collect();
    let file = pcapng(&["a:eth1", "b:eth1"], &frames, 0);
    let mut theirs = Vec::new();
    let mut parser = PcapNGReader::new(1 << 16, file.as_slice()).unwrap();
    while let Ok((consumed, found)) = parser.next() {
        if let PcapBlockOwned::NG(Block::EnhancedPacket(packet)) = found {
            let ticks = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
            theirs.push((packet.if_id as usize, ticks.cast_signed(), packet.packet_data().to_vec()));
        }
        parser.consume(consumed);
    }
    let ours: Vec<_> = read(&file)
        .0
        .into_iter()
        .map(|(_, interface, time, data)| (interface, time.unwrap(), data))
        .collect();
    assert_eq!(ours.len(), 50);
    assert_eq!(ours, theirs);
}

#[test]
fn cut_anywhere_a_file_keeps_the_packets_before_and_names_the_place() {
    let frames: [&[u8]; 4] = [&[1; 61], &[2; 20], &[3; 33], &[4; 1]];
    let owned: Vec<(usize, Vec<u8>)> = frames.iter().map(|frame| (0, frame.to_vec())).collect();
    let head = |bytes: &[u8]| bytes.len();
    for (file, header) in [
        (pcap_of(&frames), 24),
        (pcap(&frames, true, true, LinkType::Ethernet), 24),
        (pcapng(&["a:eth1"], &owned, 0), head(&pcapng(&[], &[], 0))),
    ] {
        let whole = read(&file).0;
        for end in 0..file.len() {
            let Ok(mut reader) = Reader::new(&file[..end]) else {
                assert!(end < header, "a cut at {end} is after the header");
                continue;
            };
            let mut count = 0;
            while let Some(packet) = reader.next_packet().unwrap() {
                assert_eq!(packet.data, whole[count].3);
                count += 1;
            }
            match reader.truncated_at() {
                // Cut between two records.
                None => assert_eq!(read(&file[..end]).0.len(), count),
                Some(offset) => {
                    assert!((offset as usize) < end);
                    let upto = read(&file[..offset as usize]);
                    assert_eq!((upto.0.len(), upto.1.truncated_at()), (count, None), "cut at {end}");
                }
            }
            assert!(reader.next_packet().unwrap().is_none(), "the end stays the end");
        }
    }
}

#[test]
fn lengths_that_cannot_be_are_named_with_their_place() {
    let mut file = pcap_of(&[&[1; 60], &[2; 60]]);
    file[24 + 76 + 8..][..4].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    assert_eq!(
        error(&file),
        "the file is corrupt at byte 100: a packet of 2147483647 captured bytes cannot be (limit 16777216)"
    );
    let start = [section(false), interface(false, 1, 0, &[])].concat();
    let with = |block: &[u8]| error(&[start.clone(), block.to_vec()].concat());
    let at = start.len();
    for len in [0u32, 4, 11, 13, 0xffff_fff0] {
        let bad = [words(false, &[6, len]), vec![0; 40]].concat();
        assert_eq!(with(&bad), format!("the file is corrupt at byte {at}: a block of {len} bytes cannot be"));
    }
    let mut bad = enhanced(false, 0, 1, b"data");
    let len = bad.len();
    bad[len - 4] ^= 4;
    assert!(with(&bad).contains("at its start and"));
    let short = words(false, &[0, 0, 0, 100, 100]);
    assert!(
        with(&block(false, 6, &short)).contains("a packet of 100 captured bytes in a block with room for 0")
    );
    assert!(with(&block(false, 6, &[0; 8])).contains("an enhanced packet block of 20 bytes cannot be"));
    assert!(with(&block(false, 3, &[])).contains("a simple packet block of 12 bytes cannot be"));
    assert!(with(&enhanced(false, 1, 1, b"x")).contains("interface 1 is used, but the section describes 1"));
    assert!(with(&block(false, 1, &[0; 4])).contains("an interface description that cannot be parsed"));
    let mut version = section(false);
    version[12] = 2;
    assert_eq!(error(&version), "the section at byte 0 is pcapng version 2.0; version 1 is read");
    let mut order = section(false);
    order[8] = 0;
    assert!(error(&order).contains("a section without a byte-order mark"));
}

#[test]
fn what_is_no_capture_is_refused_with_a_way_out() {
    assert_eq!(error(b""), "the file is empty: no capture was written to it");
    assert!(error(b"\x0a\x0d").contains("ends after 2 bytes"));
    assert!(error(b"hello").contains("begins with 68 65 6c 6c"));
    assert!(error(b"\x1f\x8b\x08\x00").contains("decompress it with gunzip first"));
    assert!(error(b"\x28\xb5\x2f\xfd").contains("unzstd"));
    for magic in [*b"\xa1\xb2\xcd\x34", *b"\x34\xcd\xb2\xa1"] {
        assert!(error(&magic).contains("editcap -F pcapng"));
    }
}

#[test]
fn a_file_of_descriptions_only_does_not_eat_the_memory() {
    let description = interface(false, 1, 0, &[]);
    let mut file = section(false);
    for _ in 0..=super::MAX_INTERFACES {
        file.extend(&description);
    }
    assert!(matches!(Reader::new(&file).unwrap().next_packet(), Err(ReadError::TooManyInterfaces { .. })));
}

#[test]
fn files_are_mapped_and_directories_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.pcap");
    std::fs::write(&path, pcap_of(&[&[1; 60]])).unwrap();
    let file = CaptureFile::open(&path).unwrap();
    assert_eq!(file.reader().unwrap().count(), 1);
    assert!(matches!(CaptureFile::open(directory.path()), Err(ReadError::NotAFile)));
    std::fs::write(&path, b"").unwrap();
    assert!(matches!(CaptureFile::open(&path).unwrap().reader(), Err(ReadError::Empty)));
}

proptest::proptest! {
    #[test]
    fn any_bytes_end_without_panic(bytes: Vec<u8>, magic in 0usize..6) {
        let starts: [&[u8]; 6] = [&[], &[0xd4, 0xc3, 0xb2, 0xa1], &[0xa1, 0xb2, 0x3c, 0x4d], &section(false), &section(true),
            &[section(false), interface(false, 1, 0, &[])].concat()];
        drain(&[starts[magic], &bytes].concat());
    }

    #[test]
    fn any_flipped_byte_ends_without_panic(at: usize, value: u8) {
        let frames = [(0, vec![1; 60]), (0, vec![2; 61])];
        for mut file in [pcap_of(&[&[1; 60], &[2; 61]]), pcapng(&["a:eth1"], &frames, 1)] {
            let at = at % file.len();
            file[at] = value;
            drain(&file);
        }
    }
}

fn drain(bytes: &[u8]) {
    if let Ok(mut reader) = Reader::new(bytes) {
        while let Ok(Some(packet)) = reader.next_packet() {
            let _ = (
                packet.direction(),
                crate::dissect::summarise(&crate::dissect::dissect(packet.link, packet.data)),
            );
        }
    }
}
