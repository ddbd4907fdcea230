//! The filter against arbitrary and half-right bytes, with pnet_packet as an
//! independent reader of what it let through.

use std::net::Ipv6Addr;

use crate::frames::*;
use etherparse::{ArpOperation, ip_number};
use host_bridge::filter::{FilterConfig, Verdict};
use pnet_packet::Packet as _;
use pnet_packet::arp::ArpPacket;
use pnet_packet::ethernet::{EtherTypes, EthernetPacket};
use pnet_packet::ipv4::Ipv4Packet;
use pnet_packet::ipv6::Ipv6Packet;
use proptest::prelude::*;

fn configs() -> Vec<FilterConfig> {
    let all = FilterConfig {
        enabled: true,
        allow_sources: vec!["10.0.0.0/24".parse().unwrap()],
        allow_dhcp: true,
        allow_slaac: true,
        allow_dhcp_server: true,
        allow_router: true,
        allow_vlan: true,
        allow_ethertypes: vec![0x88cc],
        groups_per_second: 0,
    };
    vec![FilterConfig::default(), all]
}

/// Frames that pass, one of each kind.
fn good_frames() -> Vec<Vec<u8>> {
    let udp = udp_header(1000, 2000);
    let own = link_layer(1, MAC);
    let hop_by_hop = [
        options_header(ip_number::IPV6_ICMP, 1),
        icmp6(143, &[0; 20]),
    ]
    .concat();
    let fragment = [fragment_header(ip_number::UDP, 0, true), udp.clone()].concat();
    vec![
        udp4(V4, OTHER_V4, 1000, 2000),
        tcp4(V4),
        fragment4(0, true, ip_number::UDP, &udp),
        arp(ArpOperation::REQUEST, MAC, V4, OTHER_V4),
        ipv6(V6, ip_number::UDP, 64, &udp),
        ipv6(V6, ip_number::IPV6_HOP_BY_HOP, 1, &hop_by_hop),
        ipv6(V6, ip_number::IPV6_FRAG, 64, &fragment),
        nd(V6, &neighbor(135, OTHER_V6, &own)),
        nd(LINK_LOCAL, &neighbor(136, LINK_LOCAL, &link_layer(2, MAC))),
    ]
}

/// What a strict filter promises about each frame it lets through.
fn assert_is_the_guests(frame: &[u8]) -> Result<(), TestCaseError> {
    let ethernet = EthernetPacket::new(frame).expect("a passed frame has a header");
    prop_assert_eq!(ethernet.get_source().octets(), MAC);
    match ethernet.get_ethertype() {
        EtherTypes::Ipv4 => {
            let ip = Ipv4Packet::new(ethernet.payload()).expect("a passed packet has a header");
            prop_assert_eq!(ip.get_source(), V4);
        }
        EtherTypes::Ipv6 => {
            let ip = Ipv6Packet::new(ethernet.payload()).expect("a passed packet has a header");
            let source = ip.get_source();
            prop_assert!([V6, LINK_LOCAL, Ipv6Addr::UNSPECIFIED].contains(&source));
        }
        EtherTypes::Arp => {
            let arp = ArpPacket::new(ethernet.payload()).expect("a passed packet is whole");
            prop_assert_eq!(arp.get_sender_hw_addr().octets(), MAC);
            let sender = arp.get_sender_proto_addr();
            prop_assert!(sender == V4 || sender.is_unspecified());
        }
        other => prop_assert!(false, "EtherType {other} passed"),
    }
    Ok(())
}

#[test]
fn the_good_frames_of_this_file_pass() {
    let strict = filter(FilterConfig::default());
    for frame in good_frames() {
        assert_eq!(verdict(&strict, &frame), Verdict::Pass, "{frame:02x?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn no_bytes_and_no_length_make_the_filter_panic(
        head in proptest::collection::vec(any::<u8>(), 0..300),
        frame_len in 0usize..70_000,
    ) {
        for config in configs() {
            let filter = filter(config);
            let _ = filter.check(&head, frame_len);
            let _ = filter.check(&head, head.len());
            let _ = filter.check_to_guest(&head);
        }
    }

    #[test]
    fn what_passes_carries_the_guests_addresses(
        which in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        len in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let frames = good_frames();
        let mut frame = which.get(&frames).clone();
        for (at, value) in changes {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        if cut {
            frame.truncate(len.index(frame.len() + 1));
        }
        let strict = filter(FilterConfig::default());
        if verdict(&strict, &frame) == Verdict::Pass {
            assert_is_the_guests(&frame)?;
        }
        for config in configs() {
            let _ = verdict(&filter(config), &frame);
        }
    }
}
