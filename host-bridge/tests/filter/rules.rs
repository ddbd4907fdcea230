//! Each rule of the anti-spoofing filter, kept and broken.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::frames::*;
use etherparse::{ArpOperation, PacketBuilder, ip_number};
use host_bridge::counters::DropReason;
use host_bridge::filter::{Filter, FilterConfig, Verdict};

const UNSPECIFIED4: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const UNSPECIFIED6: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

fn strict() -> Filter {
    filter(FilterConfig::default())
}

#[test]
fn only_frames_from_the_guests_own_mac_pass() {
    let mut spoofed = udp4(V4, OTHER_V4, 1000, 2000);
    spoofed[6..12].copy_from_slice(&OTHER_MAC);
    expect(
        &strict(),
        &[
            ("own MAC", udp4(V4, OTHER_V4, 1000, 2000), None),
            ("neighbour's MAC", spoofed, Some(DropReason::SpoofedMac)),
        ],
    );
}

#[test]
fn a_switched_off_filter_passes_everything_that_is_a_frame() {
    let off = filter(FilterConfig {
        enabled: false,
        ..FilterConfig::default()
    });
    let foreign = ethernet(OTHER_MAC, BROADCAST, 0x1234, &[]);
    expect(
        &off,
        &[
            ("neighbour's MAC, unknown EtherType", foreign, None),
            ("13 bytes", vec![0; 13], Some(DropReason::Truncated)),
        ],
    );
    assert_eq!(off.check_to_guest(&OTHER_MAC), Verdict::Pass);
}

#[test]
fn addresses_reserved_for_bridges_are_not_reached() {
    let to = |last| ethernet(MAC, [0x01, 0x80, 0xc2, 0, 0, last], 0x0800, &[0; 46]);
    let reserved = Some(DropReason::ReservedMulticast);
    expect(
        &strict(),
        &[
            ("spanning tree", to(0x00), reserved),
            ("LLDP", to(0x0e), reserved),
            ("last of the block", to(0x0f), reserved),
            // Past that rule; the next one finds that it is no IPv4.
            ("behind the block", to(0x10), Some(DropReason::Malformed)),
        ],
    );
}

#[test]
fn unknown_ethertypes_pass_only_when_listed() {
    let frame = ethernet(MAC, BROADCAST, 0x88cc, &[0; 46]);
    let listed = filter(FilterConfig {
        allow_ethertypes: vec![0x88cc],
        ..FilterConfig::default()
    });
    let llc = ethernet(MAC, BROADCAST, 46, &[0; 46]);
    let dropped = Some(DropReason::EtherType);
    expect(
        &strict(),
        &[("LLDP", frame.clone(), dropped), ("LLC", llc, dropped)],
    );
    expect(&listed, &[("LLDP", frame, None)]);
}

#[test]
fn vlan_tags_are_refused_or_looked_through() {
    let tagged = |source: Ipv4Addr| {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(MAC, OTHER_MAC)
            .double_vlan(7.try_into().unwrap(), 8.try_into().unwrap())
            .ipv4(source.octets(), OTHER_V4.octets(), 64)
            .udp(1, 2)
            .write(&mut frame, &[])
            .unwrap();
        frame
    };
    let mut triple = tagged(V4);
    triple.splice(12..12, [0x91, 0x00, 0x00, 0x01]);
    let cut = tagged(V4)[..16].to_vec();
    let allowing = filter(FilterConfig {
        allow_vlan: true,
        ..FilterConfig::default()
    });
    expect(
        &strict(),
        &[
            ("two tags", tagged(V4), Some(DropReason::Vlan)),
            ("three tags", triple.clone(), Some(DropReason::Vlan)),
        ],
    );
    expect(
        &allowing,
        &[
            ("two tags", tagged(V4), None),
            (
                "spoofed inside",
                tagged(OTHER_V4),
                Some(DropReason::SpoofedIpv4),
            ),
            ("three tags", triple, Some(DropReason::Vlan)),
            ("half a tag", cut, Some(DropReason::Truncated)),
        ],
    );
}

#[test]
fn arp_speaks_for_the_guest_only() {
    let (request, reply) = (ArpOperation::REQUEST, ArpOperation::REPLY);
    let spoofed = Some(DropReason::SpoofedArp);
    expect(
        &strict(),
        &[
            ("request", arp(request, MAC, V4, OTHER_V4), None),
            ("reply", arp(reply, MAC, V4, OTHER_V4), None),
            ("announcement", arp(request, MAC, V4, V4), None),
            ("sender MAC", arp(reply, OTHER_MAC, V4, OTHER_V4), spoofed),
            ("sender IP", arp(reply, MAC, OTHER_V4, OTHER_V4), spoofed),
            (
                "probe for itself",
                arp(request, MAC, UNSPECIFIED4, V4),
                None,
            ),
            (
                "probe for a neighbour",
                arp(request, MAC, UNSPECIFIED4, OTHER_V4),
                spoofed,
            ),
            (
                "reply from nobody",
                arp(reply, MAC, UNSPECIFIED4, V4),
                spoofed,
            ),
        ],
    );
    let dhcp = filter(FilterConfig {
        allow_dhcp: true,
        ..FilterConfig::default()
    });
    expect(
        &dhcp,
        &[(
            "probe for a lease",
            arp(request, MAC, UNSPECIFIED4, OTHER_V4),
            None,
        )],
    );
}

#[test]
fn arp_of_another_shape_is_malformed() {
    let good = arp(ArpOperation::REQUEST, MAC, V4, OTHER_V4);
    let changed = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[14 + at] = value;
        // Longer address fields are there, whatever they hold.
        frame.resize(128, 0);
        frame
    };
    let malformed = Some(DropReason::Malformed);
    expect(
        &strict(),
        &[
            ("padded", changed(1, 1), None),
            ("token ring", changed(1, 6), malformed),
            ("not IPv4", changed(3, 1), malformed),
            ("long hardware address", changed(4, 8), malformed),
            ("long protocol address", changed(5, 16), malformed),
            ("inverse ARP", changed(7, 8), malformed),
            ("cut", good[..40].to_vec(), Some(DropReason::Truncated)),
        ],
    );
}

#[test]
fn ipv4_sources_must_be_the_guests() {
    let spoofed = Some(DropReason::SpoofedIpv4);
    let from = |source| udp4(source, OTHER_V4, 1000, 2000);
    expect(
        &strict(),
        &[
            ("UDP", from(V4), None),
            ("TCP", tcp4(V4), None),
            ("neighbour's address", from(OTHER_V4), spoofed),
            ("neighbour's address, TCP", tcp4(OTHER_V4), spoofed),
            ("no address", from(UNSPECIFIED4), spoofed),
            ("broadcast", from(Ipv4Addr::BROADCAST), spoofed),
        ],
    );
    let anything = filter(FilterConfig {
        allow_sources: vec!["0.0.0.0/0".parse().unwrap()],
        ..FilterConfig::default()
    });
    expect(
        &anything,
        &[
            ("listed subnet", from(OTHER_V4), None),
            ("no address", from(UNSPECIFIED4), spoofed),
            ("multicast", from(Ipv4Addr::new(224, 0, 0, 1)), spoofed),
            ("broadcast", from(Ipv4Addr::BROADCAST), spoofed),
        ],
    );
}

#[test]
fn ipv4_lengths_must_agree_with_the_frame() {
    let good = udp4(V4, OTHER_V4, 1000, 2000);
    let with = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[14 + at] = value;
        frame
    };
    let padded = [&good[..], &[0; 10]].concat();
    expect(
        &strict(),
        &[
            ("padded", padded, None),
            (
                "total length too long",
                with(3, 200),
                Some(DropReason::Truncated),
            ),
            (
                "total length too short",
                with(3, 19),
                Some(DropReason::Malformed),
            ),
            (
                "total length hides UDP",
                with(3, 27),
                Some(DropReason::Truncated),
            ),
            (
                "header length too short",
                with(0, 0x44),
                Some(DropReason::Malformed),
            ),
            (
                "header length too long",
                with(0, 0x4f),
                Some(DropReason::Truncated),
            ),
            ("version 6", with(0, 0x65), Some(DropReason::Malformed)),
            ("cut", good[..30].to_vec(), Some(DropReason::Truncated)),
            (
                "nothing behind Ethernet",
                good[..14].to_vec(),
                Some(DropReason::Truncated),
            ),
        ],
    );
}

#[test]
fn dhcp_requests_pass_only_where_dhcp_is_allowed() {
    let request = udp4(UNSPECIFIED4, Ipv4Addr::BROADCAST, 68, 67);
    let spoofed = Some(DropReason::SpoofedIpv4);
    let dhcp = filter(FilterConfig {
        allow_dhcp: true,
        ..FilterConfig::default()
    });
    expect(&strict(), &[("request", request.clone(), spoofed)]);
    expect(
        &dhcp,
        &[
            ("request", request, None),
            (
                "not broadcast",
                udp4(UNSPECIFIED4, OTHER_V4, 68, 67),
                spoofed,
            ),
            (
                "other ports",
                udp4(UNSPECIFIED4, Ipv4Addr::BROADCAST, 68, 68),
                spoofed,
            ),
            ("TCP", tcp4(UNSPECIFIED4), spoofed),
        ],
    );
}

#[test]
fn dhcp_servers_are_refused_unless_allowed() {
    let offer4 = udp4(V4, Ipv4Addr::BROADCAST, 67, 68);
    let offer6 = ipv6(V6, ip_number::UDP, 64, &udp_header(547, 546));
    let rogue = Some(DropReason::RogueDhcp);
    expect(
        &strict(),
        &[
            ("DHCPv4", offer4.clone(), rogue),
            ("DHCPv6", offer6.clone(), rogue),
            (
                "DHCPv6 client",
                ipv6(LINK_LOCAL, ip_number::UDP, 64, &udp_header(546, 547)),
                None,
            ),
        ],
    );
    let server = filter(FilterConfig {
        allow_dhcp_server: true,
        ..FilterConfig::default()
    });
    expect(
        &server,
        &[("DHCPv4", offer4, None), ("DHCPv6", offer6, None)],
    );
}

#[test]
fn ipv4_fragments_cannot_hide_their_ports() {
    let udp = udp_header(1000, 2000);
    let rogue = udp_header(67, 68);
    expect(
        &strict(),
        &[
            ("first", fragment4(0, true, ip_number::UDP, &udp), None),
            ("later", fragment4(1, false, ip_number::UDP, &rogue), None),
            (
                "first without a whole UDP header",
                fragment4(0, true, ip_number::UDP, &udp[..4]),
                Some(DropReason::Fragment),
            ),
            (
                "first without a whole TCP header",
                fragment4(0, true, ip_number::TCP, &[0; 16]),
                Some(DropReason::Fragment),
            ),
            (
                "first of a DHCP answer",
                fragment4(0, true, ip_number::UDP, &rogue),
                Some(DropReason::RogueDhcp),
            ),
        ],
    );
    let mut later = fragment4(1, false, ip_number::UDP, &udp);
    later[26..30].copy_from_slice(&OTHER_V4.octets());
    expect(
        &strict(),
        &[(
            "later, spoofed",
            later.clone(),
            Some(DropReason::SpoofedIpv4),
        )],
    );
    later[26..30].copy_from_slice(&[0; 4]);
    let dhcp = filter(FilterConfig {
        allow_dhcp: true,
        ..FilterConfig::default()
    });
    expect(
        &dhcp,
        &[("later, from nobody", later, Some(DropReason::SpoofedIpv4))],
    );
}

#[test]
fn ipv6_sources_must_be_the_guests() {
    let from = |source| ipv6(source, ip_number::UDP, 64, &udp_header(1000, 2000));
    let spoofed = Some(DropReason::SpoofedIpv6);
    let made_from_mac: Ipv6Addr = "2001:db8::ff:fe12:3456".parse().unwrap();
    let other_link_local: Ipv6Addr = "fe80::1".parse().unwrap();
    expect(
        &strict(),
        &[
            ("own", from(V6), None),
            ("own link-local", from(LINK_LOCAL), None),
            ("neighbour's", from(OTHER_V6), spoofed),
            ("another link-local", from(other_link_local), spoofed),
            ("made from the MAC", from(made_from_mac), spoofed),
            ("no address", from(UNSPECIFIED6), spoofed),
            ("multicast", from("ff02::1".parse().unwrap()), spoofed),
        ],
    );
    let slaac = filter(FilterConfig {
        allow_slaac: true,
        allow_sources: vec!["fe80::/64".parse().unwrap()],
        ..FilterConfig::default()
    });
    expect(
        &slaac,
        &[
            ("made from the MAC", from(made_from_mac), None),
            (
                "another interface id",
                from("2001:db8::1".parse().unwrap()),
                spoofed,
            ),
            ("listed link-local", from(other_link_local), None),
            (
                "multicast",
                from("ff02::ff:fe12:3456".parse().unwrap()),
                spoofed,
            ),
        ],
    );
}

#[test]
fn the_unspecified_ipv6_source_is_for_address_detection_and_listener_reports() {
    let dad = nd(UNSPECIFIED6, &neighbor(135, V6, &[]));
    let dad_link_local = nd(UNSPECIFIED6, &neighbor(135, LINK_LOCAL, &[]));
    let dad_other = nd(UNSPECIFIED6, &neighbor(135, OTHER_V6, &[]));
    let router_solicitation = nd(UNSPECIFIED6, &icmp6(133, &[]));
    let report = [
        options_header(ip_number::IPV6_ICMP, 1),
        icmp6(143, &[0; 20]),
    ]
    .concat();
    let spoofed = Some(DropReason::SpoofedIpv6);
    let later = [fragment_header(ip_number::UDP, 3, false), vec![0; 8]].concat();
    expect(
        &strict(),
        &[
            ("DAD", dad, None),
            ("DAD for the link-local", dad_link_local, None),
            (
                "DAD for a neighbour",
                dad_other,
                Some(DropReason::SpoofedNd),
            ),
            ("router solicitation", router_solicitation, None),
            (
                "MLDv2 report",
                ipv6(UNSPECIFIED6, ip_number::IPV6_HOP_BY_HOP, 1, &report),
                None,
            ),
            ("echo", nd(UNSPECIFIED6, &icmp6(128, &[])), spoofed),
            (
                "advertisement",
                nd(UNSPECIFIED6, &neighbor(136, V6, &[])),
                spoofed,
            ),
            (
                "TCP",
                ipv6(UNSPECIFIED6, ip_number::TCP, 64, &[0; 20]),
                spoofed,
            ),
            (
                "fragment",
                ipv6(UNSPECIFIED6, ip_number::IPV6_FRAG, 64, &later),
                spoofed,
            ),
        ],
    );
}

#[test]
fn neighbour_discovery_speaks_for_the_guest_only() {
    let solicit = |options: &[u8]| nd(V6, &neighbor(135, OTHER_V6, options));
    let advertise = |target, options: &[u8]| nd(V6, &neighbor(136, target, options));
    let spoofed = Some(DropReason::SpoofedNd);
    let mut old_code = neighbor(135, OTHER_V6, &[]);
    old_code[1] = 1;
    let own = link_layer(1, MAC);
    let own_target = link_layer(2, MAC);
    let other = link_layer(1, OTHER_MAC);
    let other_target = link_layer(2, OTHER_MAC);
    let nonce = [vec![14, 1, 1, 2, 3, 4, 5, 6], own.clone()].concat();
    let hidden = [vec![14, 1, 1, 2, 3, 4, 5, 6], other.clone()].concat();
    let far = ipv6(V6, ip_number::IPV6_ICMP, 64, &neighbor(135, OTHER_V6, &own));
    expect(
        &strict(),
        &[
            ("solicitation", solicit(&own), None),
            ("solicitation without option", solicit(&[]), None),
            ("with a nonce", solicit(&nonce), None),
            ("neighbour's link layer", solicit(&other), spoofed),
            ("behind a nonce", solicit(&hidden), spoofed),
            ("advertisement", advertise(V6, &own_target), None),
            (
                "of the link-local",
                advertise(LINK_LOCAL, &own_target),
                None,
            ),
            ("of a neighbour", advertise(OTHER_V6, &own_target), spoofed),
            ("wrong link layer", advertise(V6, &other_target), spoofed),
            ("router solicitation", nd(V6, &icmp6(133, &own)), None),
            (
                "router solicitation, wrong",
                nd(V6, &icmp6(133, &other)),
                spoofed,
            ),
            ("hop limit 64", far, spoofed),
            ("code 1", nd(V6, &old_code), spoofed),
        ],
    );
}

#[test]
fn neighbour_discovery_options_must_be_whole() {
    let solicit = |options: &[u8]| nd(V6, &neighbor(135, OTHER_V6, options));
    let malformed = Some(DropReason::Malformed);
    let long = [&[1, 2][..], &MAC, &[0; 8]].concat();
    expect(
        &strict(),
        &[
            (
                "length zero",
                solicit(&[14, 0, 0, 0, 0, 0, 0, 0]),
                malformed,
            ),
            (
                "longer than the message",
                solicit(&[14, 2, 0, 0, 0, 0, 0, 0]),
                malformed,
            ),
            ("a single byte", solicit(&[14]), malformed),
            (
                "MAC of 14 bytes",
                solicit(&long),
                Some(DropReason::SpoofedNd),
            ),
            (
                "no room for a target",
                nd(V6, &icmp6(136, &[0; 8])),
                Some(DropReason::Truncated),
            ),
            // Nobody could say what stands behind the filter's copy.
            (
                "too long to see",
                solicit(&[14, 32].repeat(4 * 32)),
                Some(DropReason::HeaderChain),
            ),
        ],
    );
}

#[test]
fn routers_are_refused_unless_allowed() {
    let advertisement = nd(LINK_LOCAL, &icmp6(134, &[0; 8]));
    let redirect = nd(LINK_LOCAL, &icmp6(137, &[0; 32]));
    expect(
        &strict(),
        &[
            (
                "advertisement",
                advertisement.clone(),
                Some(DropReason::RogueRouter),
            ),
            (
                "redirect",
                redirect.clone(),
                Some(DropReason::RogueRedirect),
            ),
        ],
    );
    let router = filter(FilterConfig {
        allow_router: true,
        ..FilterConfig::default()
    });
    let far = ipv6(LINK_LOCAL, ip_number::IPV6_ICMP, 64, &icmp6(134, &[0; 8]));
    expect(
        &router,
        &[
            ("advertisement", advertisement, None),
            ("redirect", redirect, None),
            ("from afar", far, Some(DropReason::SpoofedNd)),
        ],
    );
}

#[test]
fn ipv6_extension_headers_hide_nothing() {
    let rogue = icmp6(134, &[0; 8]);
    let options = ip_number::IPV6_DEST_OPTIONS;
    let behind = |count: usize| {
        let mut payload = Vec::new();
        for left in (0..count).rev() {
            let next = if left == 0 {
                ip_number::IPV6_ICMP
            } else {
                options
            };
            payload.extend(options_header(next, 1));
        }
        payload.extend(&rogue);
        ipv6(V6, options, 255, &payload)
    };
    let long = [options_header(ip_number::UDP, 30), udp_header(1, 2)].concat();
    let auth = [&[ip_number::UDP.0, 1][..], &[0; 10], &udp_header(547, 546)].concat();
    let bad_auth = [&[ip_number::UDP.0, 0][..], &[0; 10], &udp_header(1, 2)].concat();
    expect(
        &strict(),
        &[
            ("behind one", behind(1), Some(DropReason::RogueRouter)),
            ("behind eight", behind(8), Some(DropReason::RogueRouter)),
            ("behind nine", behind(9), Some(DropReason::HeaderChain)),
            (
                "beyond the copy",
                ipv6(V6, options, 64, &long),
                Some(DropReason::HeaderChain),
            ),
            (
                "behind AH",
                ipv6(V6, ip_number::AUTH, 64, &auth),
                Some(DropReason::RogueDhcp),
            ),
            (
                "bad AH",
                ipv6(V6, ip_number::AUTH, 64, &bad_auth),
                Some(DropReason::Malformed),
            ),
            (
                "longer than the packet",
                ipv6(V6, options, 64, &[17, 3, 0, 0, 0, 0, 0, 0]),
                Some(DropReason::Truncated),
            ),
            ("unknown protocol", ipv6(V6, 253.into(), 64, &[1]), None),
            (
                "nothing behind",
                ipv6(V6, ip_number::IPV6_NO_NEXT_HEADER, 64, &[]),
                None,
            ),
        ],
    );
}

#[test]
fn ipv6_fragments_cannot_hide_their_ports() {
    let fragment = |next, offset, more, payload: &[u8]| {
        let payload = [&fragment_header(next, offset, more)[..], payload].concat();
        ipv6(V6, ip_number::IPV6_FRAG, 255, &payload)
    };
    let udp = udp_header(1000, 2000);
    let hidden = Some(DropReason::Fragment);
    let options = ip_number::IPV6_DEST_OPTIONS;
    let behind = [options_header(ip_number::UDP, 1), udp.clone()].concat();
    let twice = [fragment_header(ip_number::UDP, 0, true), udp.clone()].concat();
    let solicitation = neighbor(135, OTHER_V6, &[]);
    expect(
        &strict(),
        &[
            ("first", fragment(ip_number::UDP, 0, true, &udp), None),
            (
                "later",
                fragment(ip_number::UDP, 9, false, &udp_header(547, 546)),
                None,
            ),
            (
                "first too short",
                fragment(ip_number::UDP, 0, true, &udp[..7]),
                hidden,
            ),
            (
                "options behind it",
                fragment(options, 0, true, &behind),
                hidden,
            ),
            (
                "fragmented twice",
                fragment(ip_number::IPV6_FRAG, 0, true, &twice),
                hidden,
            ),
            (
                "neighbour discovery",
                fragment(ip_number::IPV6_ICMP, 0, false, &solicitation),
                hidden,
            ),
            (
                "echo",
                fragment(ip_number::IPV6_ICMP, 0, true, &icmp6(128, &[0; 8])),
                None,
            ),
            (
                "first of a DHCP answer",
                fragment(ip_number::UDP, 0, true, &udp_header(547, 546)),
                Some(DropReason::RogueDhcp),
            ),
        ],
    );
}

#[test]
fn ipv6_lengths_must_agree_with_the_frame() {
    let good = ipv6(V6, ip_number::UDP, 64, &udp_header(1000, 2000));
    let with = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[14 + at] = value;
        frame
    };
    let padded = [&good[..], &[0; 10]].concat();
    expect(
        &strict(),
        &[
            ("padded", padded, None),
            ("payload too long", with(5, 9), Some(DropReason::Truncated)),
            ("payload hides UDP", with(5, 7), Some(DropReason::Truncated)),
            ("version 4", with(0, 0x40), Some(DropReason::Malformed)),
            ("cut", good[..50].to_vec(), Some(DropReason::Truncated)),
        ],
    );
}

#[test]
fn large_frames_are_judged_by_their_head() {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(MAC, OTHER_MAC)
        .ipv4(V4.octets(), OTHER_V4.octets(), 64)
        .tcp(1, 2, 3, 4)
        .write(&mut frame, &vec![0x5a; 60_000])
        .unwrap();
    expect(&strict(), &[("60 KB segment", frame, None)]);
}

#[test]
fn frames_from_the_host_must_be_addressed_to_the_guest_or_a_group() {
    let filter = strict();
    assert_eq!(filter.check_to_guest(&MAC), Verdict::Pass);
    assert_eq!(filter.check_to_guest(&BROADCAST), Verdict::Pass);
    assert_eq!(
        filter.check_to_guest(&[0x33, 0x33, 0, 0, 0, 1]),
        Verdict::Pass
    );
    assert_eq!(
        filter.check_to_guest(&OTHER_MAC),
        Verdict::Drop(DropReason::NotForGuest)
    );
    assert_eq!(
        filter.check_to_guest(&MAC[..5]),
        Verdict::Drop(DropReason::Truncated)
    );
}

#[test]
fn the_configuration_reads_from_toml_and_refuses_unknown_keys() {
    let config: FilterConfig =
        toml::from_str("allow_dhcp = true\nallow_sources = [\"10.9.0.0/16\"]").unwrap();
    assert!(config.enabled && config.allow_dhcp && !config.allow_slaac);
    assert_eq!(config.allow_sources, ["10.9.0.0/16".parse().unwrap()]);
    let error = toml::from_str::<FilterConfig>("allow_dchp = true").unwrap_err();
    assert!(error.to_string().contains("allow_dchp"), "{error}");
}
