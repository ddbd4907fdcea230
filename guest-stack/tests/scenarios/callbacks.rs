//! Handlers by protocol: their order, their independence, their removal.

use std::sync::{Arc, Mutex};

use guest_stack::context::Context;
use guest_stack::error::{AlreadyRegistered, StreamError};
use guest_stack::registry::Verdict;
use guest_stack::smoltcp::wire::IpVersion;
use guest_stack::tcp::options::TcpOptions;
use guest_stack::tcp::stream::Shutdown;

use crate::common::{Bench, Pair, host, pattern};
use crate::frames::{RST, SYN, Segment, ethernet_frame, ip, raw_frame, tcps, udp, udp_frame};
use crate::transfer::{read_some, write_some};

/// A list of names that handlers write themselves into.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<&'static str>>>);

impl Calls {
    fn note(&self, name: &'static str) {
        self.0.lock().unwrap().push(name);
    }

    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[test]
fn a_datagram_is_shown_from_the_ethertype_down_to_the_socket_until_one_handles_it() {
    let mut bench = Bench::new();
    let calls = Calls::default();
    let sockets = bench.stack.sockets();
    let socket = sockets.udp_bind(7).unwrap();
    let note = calls.clone();
    let ethertype = move |_: &mut Context<'_>, _: &[u8]| {
        note.note("ethertype");
        Verdict::Pass
    };
    sockets.on_ethertype(0x0800, ethertype).unwrap();
    let note = calls.clone();
    sockets
        .on_protocol(IpVersion::Ipv4, 17, move |_, _, _| {
            note.note("protocol");
            Verdict::Pass
        })
        .unwrap();
    let note = calls.clone();
    sockets
        .on_udp(7, move |_, _, payload| {
            note.note("port");
            if payload == b"mine" {
                Verdict::Handled
            } else {
                Verdict::Pass
            }
        })
        .unwrap();
    bench.exchange(&udp_frame(false, 9, 7, b"mine"));
    assert_eq!(calls.take(), ["ethertype", "protocol", "port"]);
    assert!(
        bench
            .stack
            .sockets()
            .udp_recv_from(socket, &mut [0; 8])
            .is_err()
    );
    bench.exchange(&udp_frame(false, 9, 7, b"yours"));
    assert_eq!(calls.take(), ["ethertype", "protocol", "port"]);
    assert!(
        bench
            .stack
            .sockets()
            .udp_recv_from(socket, &mut [0; 8])
            .is_ok()
    );
    // The versions are separate: only the port's callback sees IPv6.
    bench.exchange(&udp_frame(true, 9, 7, b"mine"));
    assert_eq!(calls.take(), ["port"]);
    // Each can go on its own.
    assert!(bench.stack.sockets().remove_protocol(IpVersion::Ipv4, 17));
    assert!(!bench.stack.sockets().remove_protocol(IpVersion::Ipv4, 17));
    bench.exchange(&udp_frame(false, 9, 7, b"mine"));
    assert_eq!(calls.take(), ["ethertype", "port"]);
    assert!(bench.stack.sockets().remove_udp(7));
    bench.exchange(&udp_frame(false, 9, 7, b"mine"));
    assert_eq!(calls.take(), ["ethertype"]);
    assert!(
        bench
            .stack
            .sockets()
            .udp_recv_from(socket, &mut [0; 8])
            .is_ok()
    );
}

#[test]
fn a_second_registration_of_the_same_key_is_refused() {
    let mut bench = Bench::new();
    let sockets = bench.stack.sockets();
    let frame = |_: &mut Context<'_>, _: &[u8]| Verdict::Pass;
    assert_eq!(sockets.on_ethertype(0x88b5, frame), Ok(()));
    assert_eq!(sockets.on_ethertype(0x88b5, frame), Err(AlreadyRegistered));
    let packet = |version| {
        (version, 99, |_: &mut Context<'_>, _: &_, _: &[u8]| {
            Verdict::Pass
        })
    };
    let (version, number, handler) = packet(IpVersion::Ipv4);
    assert_eq!(sockets.on_protocol(version, number, handler), Ok(()));
    assert_eq!(
        sockets.on_protocol(version, number, handler),
        Err(AlreadyRegistered)
    );
    let (version, number, handler) = packet(IpVersion::Ipv6);
    assert_eq!(sockets.on_protocol(version, number, handler), Ok(()));
    let options = TcpOptions::default();
    assert_eq!(sockets.on_tcp(80, options, |_, _, _| Verdict::Pass), Ok(()));
    let again = sockets.on_tcp(80, options, |_, _, _| Verdict::Pass);
    assert_eq!(again, Err(AlreadyRegistered));
    assert_eq!(sockets.on_udp(80, |_, _, _| Verdict::Pass), Ok(()));
    assert_eq!(
        sockets.on_udp(80, |_, _, _| Verdict::Pass),
        Err(AlreadyRegistered)
    );
    assert!(sockets.remove_udp(80));
    assert_eq!(sockets.on_udp(80, |_, _, _| Verdict::Pass), Ok(()));
}

#[test]
fn a_handler_may_remove_itself_and_others_while_it_runs() {
    let mut bench = Bench::new();
    let calls = Calls::default();
    let note = calls.clone();
    bench
        .stack
        .sockets()
        .on_ethertype(0x88b5, move |context, _| {
            note.note("once");
            assert!(context.sockets().remove_ethertype(0x88b5));
            let note = note.clone();
            let replacement = move |_: &mut Context<'_>, _: &[u8]| {
                note.note("replacement");
                Verdict::Handled
            };
            context.sockets().on_ethertype(0x88b5, replacement).unwrap();
            Verdict::Handled
        })
        .unwrap();
    for _ in 0..3 {
        bench.exchange(&ethernet_frame(0x88b5, b"payload"));
    }
    assert_eq!(calls.take(), ["once", "replacement", "replacement"]);
}

#[test]
fn a_handler_answers_with_frames_packets_and_datagrams_of_its_own() {
    let mut bench = Bench::new();
    let sockets = bench.stack.sockets();
    sockets
        .on_ethertype(0x88b5, |context, frame| {
            let mut answer = frame.to_vec();
            answer[..6].copy_from_slice(&frame[6..12]);
            answer[6..12].copy_from_slice(&context.mac());
            context.send_frame(&answer).unwrap();
            Verdict::Handled
        })
        .unwrap();
    for version in [IpVersion::Ipv4, IpVersion::Ipv6] {
        sockets
            .on_protocol(version, 99, |context, packet, frame| {
                let mut payload = frame[packet.payload.clone()].to_vec();
                payload.reverse();
                context.reply_packet(packet, &payload).unwrap();
                Verdict::Handled
            })
            .unwrap();
    }
    sockets
        .on_udp(7, |context, datagram, payload| {
            context
                .reply_datagram(datagram, &payload.to_ascii_uppercase())
                .unwrap();
            Verdict::Handled
        })
        .unwrap();
    let answers = bench.exchange(&ethernet_frame(0x88b5, b"echo"));
    assert_eq!(&answers[0][14..], b"echo");
    for ipv6 in [false, true] {
        let answers = bench.exchange(&raw_frame(ipv6, 99, b"abc"));
        let seen = ip(&answers[0]).unwrap();
        assert_eq!(
            (seen.src, seen.dst),
            (host(0, ipv6, 0).ip(), host(1, ipv6, 0).ip())
        );
        assert_eq!((seen.protocol.0, &seen.payload[..]), (99, &b"cba"[..]));
        let answers = bench.exchange(&udp_frame(ipv6, 9, 7, b"shout"));
        assert_eq!(udp(&answers[0]), Some((7, 9, b"SHOUT".to_vec())));
    }
}

#[test]
fn a_datagram_with_a_wrong_checksum_reaches_no_callback() {
    let mut bench = Bench::new();
    let calls = Calls::default();
    let note = calls.clone();
    let handler = move |_: &mut Context<'_>, _: &_, _: &[u8]| {
        note.note("called");
        Verdict::Handled
    };
    bench.stack.sockets().on_udp(7, handler).unwrap();
    let mut frame = udp_frame(false, 9, 7, b"data");
    *frame.last_mut().unwrap() ^= 1;
    bench.exchange(&frame);
    assert!(calls.take().is_empty());
}

#[test]
fn an_accept_callback_takes_streams_and_passes_others_to_the_listener() {
    let mut pair = Pair::new(1);
    let options = TcpOptions::default();
    let taken = Arc::new(Mutex::new(Vec::new()));
    let list = taken.clone();
    pair.sockets(1)
        .on_tcp(80, options, move |_, stream, peer| {
            if peer.port() % 2 == 0 {
                list.lock().unwrap().push(stream);
                return Verdict::Handled;
            }
            Verdict::Pass
        })
        .unwrap();
    let connect = |pair: &mut Pair, port: u16| {
        let now = pair.now();
        let remote = host(1, false, 80);
        let stream = pair
            .sockets(0)
            .tcp_connect_from(now, port.into(), remote, options)
            .unwrap();
        pair.settle();
        stream
    };
    let even = connect(&mut pair, 5000);
    assert_eq!(pair.sockets(0).tcp_connected(even), Ok(()));
    assert_eq!(taken.lock().unwrap().len(), 1);
    // Without a listener what is passed on is reset.
    let odd = connect(&mut pair, 5001);
    assert_eq!(
        pair.sockets(0).tcp_connected(odd),
        Err(StreamError::ConnectionReset)
    );
    let listener = pair.sockets(1).tcp_listen(80, 4, options).unwrap();
    let odd = connect(&mut pair, 5003);
    assert_eq!(pair.sockets(0).tcp_connected(odd), Ok(()));
    assert!(pair.sockets(1).tcp_accept(listener).is_ok());
    // Removed, the listener gets all, and streams that were taken live on.
    assert!(pair.sockets(1).remove_tcp(80));
    connect(&mut pair, 5004);
    assert!(pair.sockets(1).tcp_accept(listener).is_ok());
    let stream = taken.lock().unwrap()[0];
    assert_eq!(pair.sockets(1).tcp_send(stream, b"still here"), Ok(10));
    pair.settle();
    assert_eq!(pair.sockets(0).tcp_recv(even, &mut [0; 16]), Ok(10));
}

#[test]
fn a_whole_echo_service_runs_in_callbacks() {
    let mut pair = Pair::new(1);
    let options = TcpOptions::default();
    pair.sockets(1)
        .on_tcp(7, options, |context, stream, _| {
            let echo = |context: &mut Context<'_>, stream, _| {
                let sockets = context.sockets();
                let mut buffer = [0; 1024];
                while let Ok(ready) = sockets.tcp_readiness(stream)
                    && ready.readable
                    && ready.writable
                {
                    // Never take more than can be given back.
                    let room = 65_535 - sockets.tcp_unacknowledged(stream).unwrap();
                    let len = room.min(buffer.len());
                    match sockets.tcp_recv(stream, &mut buffer[..len]) {
                        Ok(0) => return sockets.tcp_close(stream),
                        Ok(len) => assert_eq!(sockets.tcp_send(stream, &buffer[..len]), Ok(len)),
                        Err(_) => return,
                    }
                }
            };
            context.sockets().on_stream(stream, echo).unwrap();
            Verdict::Handled
        })
        .unwrap();
    let now = pair.now();
    let client = pair
        .sockets(0)
        .tcp_connect(now, host(1, true, 7), options)
        .unwrap();
    pair.run_until(|pair| pair.sockets(0).tcp_connected(client).is_ok());
    let words = pattern(300_000, 4);
    let (mut at, mut got, mut shut) = (0, Vec::new(), false);
    pair.run_until(|pair| {
        write_some(pair.sockets(0), client, &words, &mut at);
        if at == words.len() && !shut {
            pair.sockets(0)
                .tcp_shutdown(client, Shutdown::Write)
                .unwrap();
            shut = true;
        }
        read_some(pair.sockets(0), client, &mut got)
    });
    assert!(got == words);
}

#[test]
fn a_handler_of_the_whole_protocol_keeps_sockets_from_seeing_it() {
    let mut bench = Bench::new();
    bench.introduce_peer();
    let options = TcpOptions::default();
    bench.stack.sockets().tcp_listen(80, 4, options).unwrap();
    let handler = |_: &mut Context<'_>, _: &_, _: &[u8]| Verdict::Handled;
    bench
        .stack
        .sockets()
        .on_protocol(IpVersion::Ipv4, 6, handler)
        .unwrap();
    assert!(bench.exchange(&Segment::syn(4000, 1).frame()).is_empty());
    assert_eq!(bench.stack.sockets().counters().rx_handled, 1);
    bench.stack.sockets().remove_protocol(IpVersion::Ipv4, 6);
    let answers = tcps(&bench.exchange(&Segment::syn(4000, 1).frame()));
    assert_eq!(answers[0].flags & (SYN | RST), SYN);
}
