//! UDP and ICMP: both versions, queues and their ends, fragments, errors.

use guest_stack::error::{BindError, UdpError};
use guest_stack::time::Duration;

use shm_link::offload::{GSO_UDP_L4, Offloads};

use crate::common::{Bench, Cable, Pair, config, host, net, pattern, stack_with};
use crate::frames::{fragment, ip, ping_frame, raw_frame, reassemble, udp, udp_frame, udp_in};

#[test]
fn a_datagram_goes_there_and_back_over_both_versions() {
    for ipv6 in [false, true] {
        let mut pair = Pair::new(1);
        let server = pair.sockets(1).udp_bind(7).unwrap();
        let client = pair.sockets(0).udp_bind(0).unwrap();
        let port = pair.sockets(0).udp_local_addr(client).unwrap().port();
        assert!(port >= 49_152);
        let to = host(1, ipv6, 7);
        pair.sockets(0).udp_send_to(client, b"ping", to).unwrap();
        pair.settle();
        let mut buffer = [0; 16];
        let (len, from) = pair.sockets(1).udp_recv_from(server, &mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (&b"ping"[..], host(0, ipv6, port)));
        pair.sockets(1).udp_send_to(server, b"", from).unwrap();
        pair.settle();
        assert_eq!(
            pair.sockets(0).udp_recv_from(client, &mut buffer),
            Ok((0, to))
        );
        let empty = pair.sockets(0).udp_recv_from(client, &mut buffer);
        assert_eq!(empty, Err(UdpError::WouldBlock));
    }
}

#[test]
fn datagrams_that_leave_together_cross_as_one_frame_where_it_is_agreed() {
    let all = Offloads::CHECKSUM.union(Offloads::USO);
    for (ipv6, offloads) in [(false, all), (true, all), (true, Offloads::CHECKSUM)] {
        let cable = Cable::new(1);
        let stacks = [0, 1].map(|side| {
            let mut net = net(side);
            (net.tx_offloads, net.rx_offloads) = (offloads, offloads);
            stack_with(&cable, side, config(side as u64), net)
        });
        let mut pair = Pair::with(cable, stacks);
        let server = pair.sockets(1).udp_bind(7).unwrap();
        let client = pair.sockets(0).udp_bind(0).unwrap();
        let to = host(1, ipv6, 7);
        // Finds the neighbour.
        pair.sockets(0).udp_send_to(client, b"ping", to).unwrap();
        pair.settle();
        let mut buffer = [0; 2000];
        pair.sockets(1).udp_recv_from(server, &mut buffer).unwrap();
        pair.cable.log(0);
        let words = pattern(30_500, 3);
        for datagram in words.chunks(1000) {
            pair.sockets(0).udp_send_to(client, datagram, to).unwrap();
        }
        pair.settle();
        let frames = pair.cable.take_log(0);
        if offloads == all {
            let [(offload, frame)] = &frames[..] else {
                panic!("{} frames", frames.len());
            };
            assert_eq!((offload.gso_type, offload.gso_size), (GSO_UDP_L4, 1000));
            assert_eq!(offload.check(frame.len(), all), Ok(()));
        } else {
            assert_eq!(frames.len(), 31);
        }
        for datagram in words.chunks(1000) {
            let got = pair.sockets(1).udp_recv_from(server, &mut buffer);
            assert_eq!(&buffer[..got.unwrap().0], datagram);
        }
        assert_eq!(pair.sockets(1).counters().rx_udp, 32);
    }
}

#[test]
fn a_full_queue_loses_and_counts_datagrams_and_keeps_what_it_has() {
    let mut config = config(7);
    config.udp_buffer_datagrams = 4;
    let mut bench = Bench::with(config, net(0));
    bench.introduce_peer();
    let socket = bench.stack.sockets().udp_bind(7).unwrap();
    for number in 0..6 {
        bench.exchange(&udp_frame(false, 9, 7, &[number]));
    }
    let sockets = bench.stack.sockets();
    assert_eq!(sockets.udp_dropped(socket), Ok(2));
    assert_eq!(sockets.counters().rx_udp_full, 2);
    let mut buffer = [0; 4];
    for number in 0..4 {
        assert_eq!(sockets.udp_recv_from(socket, &mut buffer).unwrap().0, 1);
        assert_eq!(buffer[0], number);
    }
    assert_eq!(
        sockets.udp_recv_from(socket, &mut buffer),
        Err(UdpError::WouldBlock)
    );
}

#[test]
fn a_datagram_that_is_longer_than_the_buffer_is_cut() {
    let mut bench = Bench::new();
    let socket = bench.stack.sockets().udp_bind(7).unwrap();
    bench.exchange(&udp_frame(false, 9, 7, b"long"));
    bench.exchange(&udp_frame(false, 9, 7, b"next"));
    let mut buffer = [0; 2];
    let sockets = bench.stack.sockets();
    assert_eq!(
        sockets.udp_recv_from(socket, &mut buffer),
        Ok((2, host(1, false, 9)))
    );
    assert_eq!(
        sockets.udp_recv_from(socket, &mut buffer),
        Ok((2, host(1, false, 9)))
    );
    assert_eq!(&buffer, b"ne");
}

#[test]
fn bindings_that_overlap_are_refused_and_the_closest_one_receives() {
    let mut bench = Bench::new();
    let own = host(0, false, 7);
    let exact = bench.stack.sockets().udp_bind(own).unwrap();
    assert_eq!(bench.stack.sockets().udp_bind(7), Err(BindError::AddrInUse));
    let v6 = "[::]:7".parse::<std::net::SocketAddr>().unwrap();
    let v6 = bench.stack.sockets().udp_bind(v6).unwrap();
    let foreign = "10.0.0.99:7".parse::<std::net::SocketAddr>().unwrap();
    let foreign = bench.stack.sockets().udp_bind(foreign);
    assert_eq!(foreign, Err(BindError::AddrNotAvailable));
    bench.exchange(&udp_frame(false, 9, 7, b"4"));
    bench.exchange(&udp_frame(true, 9, 7, b"6"));
    let sockets = bench.stack.sockets();
    assert!(sockets.udp_recv_from(exact, &mut [0; 4]).is_ok());
    assert!(sockets.udp_recv_from(v6, &mut [0; 4]).is_ok());
    sockets.udp_close(exact);
    assert!(sockets.udp_bind(own).is_ok());
    assert_eq!(
        sockets.udp_recv_from(exact, &mut [0; 4]),
        Err(UdpError::UnknownHandle)
    );
}

#[test]
fn an_unbound_port_is_answered_with_port_unreachable_within_the_limit() {
    for ipv6 in [false, true] {
        let mut config = config(7);
        config.limits.replies_per_second = 5;
        let mut bench = Bench::with(config, net(0));
        bench.introduce_peer();
        introduce_v6(&mut bench, ipv6);
        let answers = bench.exchange(&udp_frame(ipv6, 9, 4242, b"?"));
        let seen = ip(&answers[0]).unwrap();
        let expected = if ipv6 { [1, 4] } else { [3, 3] };
        assert_eq!(&seen.payload[..2], &expected);
        let more: usize = (0..50)
            .map(|_| bench.exchange(&udp_frame(ipv6, 9, 4242, b"?")).len())
            .sum();
        assert_eq!(more, 4);
    }
}

/// Lets the stack learn the peer's hardware address over IPv6: a ping is
/// answered with a solicitation first, which the peer answers.
fn introduce_v6(bench: &mut Bench, ipv6: bool) {
    if !ipv6 {
        return;
    }
    let asked = bench.exchange(&ping_frame(true, 0, b""));
    assert_eq!(ip(&asked[0]).unwrap().payload[0], 135, "a solicitation");
    bench.exchange(&crate::frames::neighbour_advertisement());
    bench.pass(Duration::from_secs(1));
}

#[test]
fn a_protocol_that_nobody_knows_is_answered_as_such() {
    let mut bench = Bench::new();
    bench.introduce_peer();
    let answers = bench.exchange(&raw_frame(false, 99, b"abcdefgh"));
    assert_eq!(&ip(&answers[0]).unwrap().payload[..2], &[3, 2]);
}

#[test]
fn pings_of_any_size_are_answered_also_a_small_one_after_a_large_one() {
    let mut bench = Bench::new();
    bench.introduce_peer();
    for (seq, len) in [
        (1, 56),
        (2, 9000),
        (3, 4000),
        (4, 1472),
        (5, 1473),
        (6, 30_000),
    ] {
        // Longer replies than smoltcp can cut are not sent.
        let len = len.min(guest_stack::smoltcp::config::FRAGMENTATION_BUFFER_SIZE - 28);
        let data = pattern(len, seq.into());
        let mut answers = Vec::new();
        let request = ping_frame(false, seq, &data);
        for piece in fragment(&request, 1480, seq) {
            answers.extend(bench.exchange(&piece));
        }
        let reply = reassemble(&answers).unwrap();
        assert_eq!(reply.payload[0], 0, "an echo reply");
        assert_eq!(&reply.payload[4..8], &[0, 77, 0, seq as u8]);
        assert_eq!(&reply.payload[8..], &data);
        assert_eq!(pnet_packet::util::checksum(&reply.payload, usize::MAX), 0);
    }
}

#[test]
fn pings_are_answered_over_ipv6() {
    let mut bench = Bench::new();
    introduce_v6(&mut bench, true);
    let answers = bench.exchange(&ping_frame(true, 3, b"hello"));
    let reply = ip(&answers[0]).unwrap();
    assert_eq!(
        (reply.payload[0], &reply.payload[8..]),
        (129, &b"hello"[..])
    );
}

#[test]
fn fragments_in_any_order_become_one_datagram_for_its_socket() {
    let mut bench = Bench::new();
    let socket = bench.stack.sockets().udp_bind(7).unwrap();
    let data = pattern(5000, 1);
    let pieces = fragment(&udp_frame(false, 9, 7, &data), 1480, 1);
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]] {
        for piece in order {
            assert!(bench.exchange(&pieces[piece]).is_empty());
        }
        let mut buffer = vec![0; 6000];
        let got = bench.stack.sockets().udp_recv_from(socket, &mut buffer);
        assert_eq!(got, Ok((5000, host(1, false, 9))));
        assert!(buffer[..5000] == data);
    }
    let counters = bench.stack.sockets().counters();
    assert_eq!((counters.rx_fragment, counters.rx_udp), (9, 3));
    assert_eq!(counters.rx_frames, counters.rx_ledger());
}

#[test]
fn datagrams_come_through_though_fragments_of_many_others_were_lost() {
    let mut bench = Bench::new();
    let socket = bench.stack.sockets().udp_bind(7).unwrap();
    let data = pattern(5000, 1);
    let mut buffer = vec![0; 6000];
    for ident in 0..100 {
        let pieces = fragment(&udp_frame(false, 9, 7, &data), 1480, ident);
        // Of nine of ten one is lost.
        let lost = (ident % 10 != 0).then_some(usize::from(ident) % 4);
        for (_, piece) in pieces
            .iter()
            .enumerate()
            .filter(|(at, _)| Some(*at) != lost)
        {
            assert!(bench.exchange(piece).is_empty());
        }
        let got = bench.stack.sockets().udp_recv_from(socket, &mut buffer);
        match lost {
            None => assert_eq!(got, Ok((5000, host(1, false, 9)))),
            Some(_) => assert_eq!(got, Err(UdpError::WouldBlock)),
        }
    }
}

#[test]
fn two_large_datagrams_in_a_row_leave_as_whole_sets_of_fragments() {
    let mut bench = Bench::new();
    bench.introduce_peer();
    let socket = bench.stack.sockets().udp_bind(7).unwrap();
    let data = [pattern(5000, 1), pattern(3000, 2)];
    for data in &data {
        let to = host(1, false, 9);
        bench.stack.sockets().udp_send_to(socket, data, to).unwrap();
    }
    bench.settle();
    let sent = bench.peer.drain();
    let (first, second) = sent.split_at(4);
    for (frames, data) in [(first, &data[0]), (second, &data[1])] {
        let whole = reassemble(frames).unwrap();
        assert_eq!(udp_in(&whole).unwrap(), (7, 9, data.clone()));
    }
}

#[test]
fn a_datagram_that_cannot_be_sent_is_refused_at_once() {
    let mut bench = Bench::new();
    let socket = bench.stack.sockets().udp_bind(7).unwrap();
    let sockets = bench.stack.sockets();
    let mut send =
        |len: usize, to: &str| sockets.udp_send_to(socket, &vec![0; len], to.parse().unwrap());
    assert_eq!(send(1453, "[fd00::2]:9"), Err(UdpError::MessageTooLong));
    assert_eq!(send(1452, "[fd00::2]:9"), Ok(()));
    assert_eq!(send(65_508, "10.0.0.2:9"), Err(UdpError::MessageTooLong));
    assert_eq!(send(1, "192.0.2.1:9"), Err(UdpError::AddrNotAvailable));
    assert_eq!(send(1, "10.0.0.2:0"), Err(UdpError::AddrNotAvailable));
    // Not to oneself: it would hold up the queue while oneself is asked for.
    assert_eq!(send(1, "10.0.0.1:9"), Err(UdpError::AddrNotAvailable));
    assert_eq!(send(1, "[fd00::1]:9"), Err(UdpError::AddrNotAvailable));
    assert_eq!(send(1, "127.0.0.1:9"), Err(UdpError::AddrNotAvailable));
}

#[test]
fn a_neighbour_that_does_not_answer_does_not_hold_up_the_queue_for_ever() {
    let mut bench = Bench::new();
    bench.introduce_peer();
    let socket = bench.stack.sockets().udp_bind(7).unwrap();
    let nobody = "10.0.0.77:9".parse().unwrap();
    bench
        .stack
        .sockets()
        .udp_send_to(socket, b"lost", nobody)
        .unwrap();
    let asked = bench.pass(Duration::from_millis(3500));
    assert!(
        (2..=4).contains(&asked.len()),
        "{} ARP requests",
        asked.len()
    );
    assert_eq!(bench.stack.sockets().counters().tx_no_neighbour, 1);
    let to = host(1, false, 9);
    bench
        .stack
        .sockets()
        .udp_send_to(socket, b"found", to)
        .unwrap();
    let sent = bench.pass(Duration::from_secs(2));
    assert_eq!(udp(sent.last().unwrap()).unwrap().2, b"found");
    assert!(
        bench.pass(Duration::from_secs(3600)).is_empty(),
        "then it is silent"
    );
}
