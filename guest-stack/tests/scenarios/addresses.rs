//! Addresses that are found on the link: DHCP and router advertisements.

use guest_stack::error::StreamError;
use guest_stack::smoltcp::wire::{
    DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, Ipv4Address,
};
use guest_stack::tcp::options::TcpOptions;
use guest_stack::time::Duration;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::common::{Bench, MAC, config, host, net, v4, v6};
use crate::frames::{icmpv6_checksum, ip, ping_frame, raw_frame, udp, udp_frame};

/// A server's answer to a message of the stack's DHCP client.
fn dhcp_answer(request: &[u8], lease_s: u32) -> Vec<u8> {
    let request = DhcpPacket::new_checked(request).unwrap();
    let request = DhcpRepr::parse(&request).unwrap();
    let server = Ipv4Address::new(10, 9, 0, 1);
    let kind = match request.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request => DhcpMessageType::Ack,
        other => panic!("{other:?}"),
    };
    let answer = DhcpRepr {
        message_type: kind,
        transaction_id: request.transaction_id,
        secs: 0,
        client_hardware_address: EthernetAddress(MAC[0]),
        client_ip: Ipv4Address::UNSPECIFIED,
        your_ip: Ipv4Address::new(10, 9, 0, 77),
        server_ip: server,
        router: Some(server),
        subnet_mask: Some(Ipv4Address::new(255, 255, 0, 0)),
        relay_agent_ip: Ipv4Address::UNSPECIFIED,
        broadcast: false,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(server),
        parameter_request_list: None,
        dns_servers: Some([Ipv4Address::new(10, 9, 0, 53)].into_iter().collect()),
        max_size: None,
        lease_duration: Some(lease_s),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    let mut payload = vec![0; answer.buffer_len()];
    answer
        .emit(&mut DhcpPacket::new_unchecked(&mut payload[..]))
        .unwrap();
    // To the address that is being given, which is not ours yet.
    let mut frame = udp_frame(false, 67, 68, &payload);
    frame[26..30].copy_from_slice(&server.octets());
    frame[30..34].copy_from_slice(&[10, 9, 0, 77]);
    frame[24..26].copy_from_slice(&[0, 0]);
    let sum = pnet_packet::util::checksum(&frame[14..34], usize::MAX);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    // No UDP checksum, as IPv4 allows.
    frame[40..42].copy_from_slice(&[0, 0]);
    frame
}

/// The DHCP message among some frames.
fn dhcp_message(frames: &[Vec<u8>]) -> Option<Vec<u8>> {
    let datagrams = frames.iter().filter_map(|frame| udp(frame));
    let mut messages = datagrams.filter(|(from, to, _)| (*from, *to) == (68, 67));
    messages.next().map(|(.., payload)| payload)
}

#[test]
fn a_neighbour_that_never_answers_does_not_keep_others_from_being_asked_for() {
    for ipv6 in [false, true] {
        let mut bench = Bench::new();
        let now = bench.now();
        let options = TcpOptions::default();
        let address = |last: u8| match ipv6 {
            false => SocketAddr::new(v4(last), 80),
            true => SocketAddr::new(v6(last.into()), 80),
        };
        for dead in [77, 78] {
            let sockets = bench.stack.sockets();
            sockets.tcp_connect(now, address(dead), options).unwrap();
            bench.pass(Duration::from_millis(300));
        }
        let now = bench.now();
        bench
            .stack
            .sockets()
            .tcp_connect(now, address(2), options)
            .unwrap();
        let frames = bench.pass(Duration::from_secs(10));
        // The last byte of the address that is asked for.
        let asked = |frame: &[u8]| match ipv6 {
            false => frame[12..14] == [8, 6] && frame[41] == 2,
            true => frame[20] == 58 && frame[54] == 135 && frame[77] == 2,
        };
        assert!(frames.iter().any(|frame| asked(frame)), "IPv6: {ipv6}");
    }
}

#[test]
fn a_lease_gives_address_gateway_and_name_server_and_takes_them_back() {
    let mut net = net(0);
    net.dhcp = true;
    net.addresses.retain(|(ip, _)| ip.is_ipv6());
    let cable_net = net.clone();
    let mut bench = Bench::with(config(1), cable_net);
    let leased: IpAddr = Ipv4Addr::new(10, 9, 0, 77).into();
    let has = |bench: &mut Bench| {
        let mut addresses = bench.stack.sockets().addresses();
        addresses.any(|address| address == (leased, 16))
    };
    assert!(!has(&mut bench));
    let discover = loop {
        let frames = bench.pass(Duration::from_secs(10));
        if let Some(message) = dhcp_message(&frames) {
            break message;
        }
    };
    let request = dhcp_message(&bench.exchange(&dhcp_answer(&discover, 100))).unwrap();
    bench.exchange(&dhcp_answer(&request, 100));
    assert!(has(&mut bench));
    let servers: Vec<_> = bench.stack.sockets().dns_servers().collect();
    assert_eq!(servers, [IpAddr::from(Ipv4Addr::new(10, 9, 0, 53))]);
    // Nobody renews it.
    bench.pass(Duration::from_secs(200));
    assert!(!has(&mut bench));
}

/// Lets the stack's DHCP client get a lease of a day.
fn lease(bench: &mut Bench) {
    let discover = loop {
        let frames = bench.pass(Duration::from_secs(5));
        if let Some(message) = dhcp_message(&frames) {
            break message;
        }
    };
    let answers = bench.exchange(&dhcp_answer(&discover, 86_400));
    let request = dhcp_message(&answers).unwrap();
    bench.exchange(&dhcp_answer(&request, 86_400));
}

#[test]
fn a_carrier_that_comes_back_leaves_the_lease_a_minute_to_be_confirmed() {
    for confirmed in [true, false] {
        let mut net = net(0);
        net.dhcp = true;
        net.addresses.retain(|(ip, _)| ip.is_ipv6());
        let mut bench = Bench::with(config(1), net.clone());
        lease(&mut bench);
        let options = TcpOptions {
            connect_timeout: Duration::from_secs(3600),
            ..TcpOptions::default()
        };
        let now = bench.now();
        let remote = "10.9.0.1:80".parse().unwrap();
        let stream = bench.stack.sockets().tcp_connect(now, remote, options);
        let stream = stream.unwrap();
        for carrier in [false, true] {
            net.carrier = carrier;
            let now = bench.now();
            bench.stack.configure(net.clone(), now).unwrap();
            bench.settle();
        }
        let state = |bench: &mut Bench| bench.stack.sockets().tcp_connected(stream);
        assert_eq!(state(&mut bench), Err(StreamError::WouldBlock));
        if confirmed {
            lease(&mut bench);
        }
        bench.pass(Duration::from_secs(61));
        let lost = Err(StreamError::AddrNotAvailable);
        let kept = Err(StreamError::WouldBlock);
        assert_eq!(state(&mut bench), if confirmed { kept } else { lost });
    }
}

#[test]
fn a_carrier_that_comes_back_has_routers_asked_again_and_keeps_prefixes() {
    let mut net = net(0);
    net.slaac = true;
    let mut bench = Bench::with(config(1), net.clone());
    bench.exchange(&advertisement(64, 600));
    let formed = (IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0xff, 0xfe00, 1]), 64);
    for carrier in [false, true] {
        net.carrier = carrier;
        let now = bench.now();
        bench.stack.configure(net.clone(), now).unwrap();
        let solicited = bench.pass(Duration::from_secs(20));
        let solicited = solicited.iter().filter_map(|frame| ip(frame));
        let count = solicited.filter(|ip| ip.payload[0] == 133).count();
        assert_eq!(count, if carrier { 3 } else { 0 });
        let mut addresses = bench.stack.sockets().addresses();
        assert!(addresses.any(|address| address == formed));
    }
}

fn advertisement(prefix_len: u8, lifetime_s: u32) -> Vec<u8> {
    let mut message = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&[3, 4, prefix_len, 0xc0]);
    message.extend_from_slice(&lifetime_s.to_be_bytes());
    message.extend_from_slice(&lifetime_s.to_be_bytes());
    message.extend_from_slice(&[0, 0, 0, 0]);
    message.extend_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut frame = raw_frame(true, 58, &message);
    frame[21] = 255;
    frame[22..38].copy_from_slice(&[0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    let mut all_nodes = [0; 16];
    all_nodes[..2].copy_from_slice(&[0xff, 2]);
    all_nodes[15] = 1;
    frame[38..54].copy_from_slice(&all_nodes);
    frame[..6].copy_from_slice(&[0x33, 0x33, 0, 0, 0, 1]);
    let sum = icmpv6_checksum(&frame);
    frame[56..58].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[test]
fn an_advertised_prefix_becomes_an_address_that_answers_and_expires() {
    let mut net = net(0);
    net.slaac = true;
    let mut bench = Bench::with(config(1), net);
    let formed: IpAddr = "2001:db8::ff:fe00:1".parse().unwrap();
    let has = |bench: &mut Bench| {
        let mut addresses = bench.stack.sockets().addresses();
        addresses.any(|address| address == (formed, 64))
    };
    bench.exchange(&advertisement(64, 600));
    assert!(has(&mut bench));
    // It answers, by way of the router that was advertised.
    let IpAddr::V6(octets) = formed else {
        unreachable!()
    };
    let mut ping = ping_frame(true, 1, b"hello");
    ping[22..38].copy_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
    ping[38..54].copy_from_slice(&octets.octets());
    let sum = icmpv6_checksum(&ping);
    ping[56..58].copy_from_slice(&sum.to_be_bytes());
    let asked = bench.exchange(&ping);
    let asked = ip(&asked[0]).unwrap();
    assert_eq!(
        (asked.payload[0], asked.payload[23]),
        (135, 9),
        "it asks for the router"
    );
    bench.pass(Duration::from_secs(601));
    assert!(!has(&mut bench));
    // A prefix of another length, or a message from elsewhere, is nothing.
    bench.exchange(&advertisement(48, 600));
    bench.exchange(&advertisement(200, 600));
    let mut forwarded = advertisement(64, 600);
    forwarded[21] = 254;
    bench.exchange(&forwarded);
    assert!(!has(&mut bench));
}

#[test]
fn without_a_router_three_solicitations_are_sent_and_timers_of_streams_go_on() {
    let mut net = net(0);
    net.slaac = true;
    let cable = crate::common::Cable::new(1);
    let stack = crate::common::stack_with(&cable, 0, config(1), net);
    let mut bench = Bench {
        peer: cable.end(1),
        cable,
        stack,
        last: None,
    };
    let solicitations = |frames: &[Vec<u8>]| {
        let seen = frames.iter().filter_map(|frame| ip(frame));
        seen.filter(|seen| seen.protocol.0 == 58 && seen.payload[0] == 133)
            .count()
    };
    let first = bench.pass(Duration::from_secs(20));
    assert_eq!(solicitations(&first), 3);
    let options = guest_stack::tcp::options::TcpOptions {
        connect_timeout: Duration::from_secs(3),
        ..Default::default()
    };
    let now = bench.now();
    let remote = host(1, false, 80);
    let stream = bench
        .stack
        .sockets()
        .tcp_connect(now, remote, options)
        .unwrap();
    let frames = bench.pass(Duration::from_secs(60));
    assert_eq!(solicitations(&frames), 0);
    let outcome = bench.stack.sockets().tcp_connected(stream);
    assert_eq!(outcome, Err(guest_stack::error::StreamError::TimedOut));
    assert_eq!(bench.last.unwrap().deadline, None, "then it is silent");
}
