//! Data over TCP: whole, in order, under loss, to its end in each direction.

use guest_stack::error::StreamError;
use guest_stack::sockets::Sockets;
use guest_stack::tcp::TcpStreamId;
use guest_stack::tcp::stream::Shutdown;
use guest_stack::time::Duration;

use crate::common::{Impairment, Pair, pattern};

/// Writes what fits of `data` behind `*at`.
pub(crate) fn write_some(sockets: &mut Sockets, id: TcpStreamId, data: &[u8], at: &mut usize) {
    while *at < data.len() {
        match sockets.tcp_send(id, &data[*at..]) {
            Ok(taken) => *at += taken,
            Err(StreamError::WouldBlock) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Reads what there is; `true` at the end of the stream.
pub(crate) fn read_some(sockets: &mut Sockets, id: TcpStreamId, into: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match sockets.tcp_recv(id, &mut buffer) {
            Ok(0) => return true,
            Ok(len) => into.extend_from_slice(&buffer[..len]),
            Err(StreamError::WouldBlock) => return false,
            Err(error) => panic!("{error}"),
        }
    }
}

fn both_ways(pair: &mut Pair, ipv6: bool, len: usize) {
    let (client, server) = pair.connected(ipv6, 80);
    let (up, down) = (pattern(len, 1), pattern(len, 2));
    let (mut up_at, mut down_at) = (0, 0);
    let (mut up_got, mut down_got) = (Vec::new(), Vec::new());
    let (mut up_end, mut down_end) = (false, false);
    let (mut up_shut, mut down_shut) = (false, false);
    pair.run_until(|pair| {
        write_some(pair.sockets(0), client, &up, &mut up_at);
        write_some(pair.sockets(1), server, &down, &mut down_at);
        if up_at == up.len() && !up_shut {
            pair.sockets(0)
                .tcp_shutdown(client, Shutdown::Write)
                .unwrap();
            up_shut = true;
        }
        if down_at == down.len() && !down_shut {
            pair.sockets(1)
                .tcp_shutdown(server, Shutdown::Write)
                .unwrap();
            down_shut = true;
        }
        up_end = up_end || read_some(pair.sockets(1), server, &mut up_got);
        down_end = down_end || read_some(pair.sockets(0), client, &mut down_got);
        pair.settle();
        up_end && down_end
    });
    assert!(up_got == up, "{} of {} bytes", up_got.len(), up.len());
    assert!(
        down_got == down,
        "{} of {} bytes",
        down_got.len(),
        down.len()
    );
    pair.sockets(0).tcp_close(client);
    pair.sockets(1).tcp_close(server);
    pair.run(Duration::from_secs(30));
    for side in 0..2 {
        let counters = pair.sockets(side).counters();
        assert_eq!(counters.rx_frames, counters.rx_ledger());
        assert_eq!(counters.rx_malformed, 0);
    }
}

#[test]
fn a_transfer_both_ways_at_once_is_bit_exact_over_ipv4_and_ipv6() {
    for ipv6 in [false, true] {
        both_ways(&mut Pair::new(1), ipv6, 500_000);
    }
}

#[test]
fn a_transfer_over_a_wire_that_loses_doubles_and_reorders_is_bit_exact() {
    for (seed, ipv6) in [(3, false), (4, true), (5, false)] {
        let mut pair = Pair::new(seed);
        pair.cable.impair(Impairment {
            loss: 50,
            duplicate: 20,
            reorder: 50,
            delay: Duration::from_millis(1),
            ..Impairment::default()
        });
        both_ways(&mut pair, ipv6, 300_000);
    }
}

#[test]
fn one_read_takes_what_is_on_both_sides_of_the_buffer_s_end() {
    let mut pair = Pair::new(1);
    let (client, server) = pair.connected(false, 80);
    let mut buffer = vec![0; 100_000];
    for round in 0..3 {
        let words = crate::common::pattern(40_000, round);
        let sent = pair.sockets(0).tcp_send(client, &words);
        assert_eq!(sent, Ok(words.len()));
        pair.settle();
        let got = pair.sockets(1).tcp_recv(server, &mut buffer);
        assert_eq!(got, Ok(words.len()), "round {round}");
        assert!(buffer[..words.len()] == words);
    }
}
