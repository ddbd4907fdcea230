//! What is switched on, what changes while traffic runs, and who is asked.

use guest_stack::config::{Protocols, StackConfig};
use guest_stack::control::{self, Control};
use guest_stack::error::{BindError, ConfigError, StreamError, UdpError};
use guest_stack::stack::Stack;
use guest_stack::tcp::TcpStreamId;
use guest_stack::tcp::options::TcpOptions;
use guest_stack::time::{Duration, Instant};
use shm_link::control::config::{NetworkConfig, Prefixed};
use shm_link::control::{HostControl, HostOffer, VersionRange};
use shm_link::fault::LinkError;
use shm_link::link::{Link, MAX_CONTROL_LEN};
use shm_link::offload::{GSO_TCPV4, GSO_TCPV6, OffloadHeader, Offloads};
use std::net::Ipv4Addr;

use crate::common::{
    Bench, Cable, Impairment, MAC, Pair, TestLink, config, host, net, pattern, stack_with,
};
use crate::frames::{RST, Segment, tcps, udp_frame};
use crate::transfer::{read_some, write_some};

#[test]
fn every_subset_of_tcp_and_udp_over_ipv4_and_ipv6_works_alone() {
    for bits in 1..16_u8 {
        // Bit 0: TCP/4, 1: TCP/6, 2: UDP/4, 3: UDP/6. Switches are per protocol
        // and per version, so a subset is what both ends listen to.
        let protocols = Protocols {
            ipv4: bits & 0b0101 != 0,
            ipv6: bits & 0b1010 != 0,
            tcp: bits & 0b0011 != 0,
            udp: bits & 0b1100 != 0,
        };
        let cable = Cable::new(1);
        let stacks = [0, 1].map(|side| {
            let mut net = net(side);
            net.addresses.retain(|(ip, _)| {
                if ip.is_ipv4() {
                    protocols.ipv4
                } else {
                    protocols.ipv6
                }
            });
            let config = StackConfig {
                protocols,
                ..config(side as u64)
            };
            stack_with(&cable, side, config, net)
        });
        let mut pair = Pair::with(cable, stacks);
        let options = TcpOptions::default();
        for (index, ipv6) in [false, true].into_iter().enumerate() {
            let version_on = if ipv6 { protocols.ipv6 } else { protocols.ipv4 };
            let remote = host(1, ipv6, 80);
            if bits & (1 << index) != 0 {
                let (client, server) = pair.connected(ipv6, 80);
                pair.sockets(0).tcp_send(client, b"works").unwrap();
                pair.settle();
                assert_eq!(
                    pair.sockets(1).tcp_recv(server, &mut [0; 8]),
                    Ok(5),
                    "{bits:b}"
                );
            } else if !version_on || !protocols.tcp {
                let now = pair.now();
                let off = pair.sockets(0).tcp_connect(now, remote, options);
                assert_eq!(
                    off,
                    Err(StreamError::Bind(BindError::ProtocolOff)),
                    "{bits:b}"
                );
            }
            if bits & (4 << index) != 0 {
                let server = pair.sockets(1).udp_bind(7 + index as u16).unwrap();
                let client = pair.sockets(0).udp_bind(0).unwrap();
                let to = host(1, ipv6, 7 + index as u16);
                pair.sockets(0).udp_send_to(client, b"works", to).unwrap();
                // smoltcp asks for one neighbour per second.
                pair.run(Duration::from_secs(2));
                let got = pair.sockets(1).udp_recv_from(server, &mut [0; 8]);
                assert_eq!(got.unwrap().0, 5, "{bits:b}");
            } else if protocols.udp && !version_on {
                let client = pair.sockets(0).udp_bind(0).unwrap();
                let sent = pair.sockets(0).udp_send_to(client, b"x", host(1, ipv6, 7));
                assert_eq!(sent, Err(UdpError::AddrNotAvailable), "{bits:b}");
            }
        }
        if !protocols.udp {
            assert_eq!(pair.sockets(0).udp_bind(0), Err(BindError::ProtocolOff));
        }
        if !protocols.tcp {
            let off = pair.sockets(0).tcp_listen(80, 1, options);
            assert_eq!(off, Err(BindError::ProtocolOff));
        }
    }
}

#[test]
fn what_is_switched_off_is_silent() {
    let protocols = Protocols {
        tcp: false,
        ipv6: false,
        ..Protocols::default()
    };
    let config = StackConfig {
        protocols,
        ..config(1)
    };
    let mut net = net(0);
    net.addresses.pop();
    let mut bench = Bench::with(config, net);
    bench.introduce_peer();
    assert!(bench.exchange(&Segment::syn(4000, 1).frame()).is_empty());
    assert!(bench.exchange(&udp_frame(true, 9, 7, b"x")).is_empty());
    assert_eq!(bench.stack.sockets().counters().rx_protocol_off, 2);
}

#[test]
fn a_configuration_that_makes_no_sense_changes_nothing() {
    let mut bench = Bench::new();
    let now = bench.now();
    let good = net(0);
    let mut refused = |change: &dyn Fn(&mut guest_stack::config::NetConfig)| {
        let mut net = good.clone();
        change(&mut net);
        bench.stack.configure(net, now).unwrap_err()
    };
    assert_eq!(refused(&|net| net.mac = [1; 6]), ConfigError::Mac);
    assert_eq!(refused(&|net| net.mac = [0; 6]), ConfigError::Mac);
    assert_eq!(refused(&|net| net.mtu = 1279), ConfigError::Mtu);
    assert_eq!(
        refused(&|net| net.addresses[0].1 = 33),
        ConfigError::Address
    );
    let multicast = Ipv4Addr::new(224, 0, 0, 1);
    assert_eq!(
        refused(&|net| net.addresses[0].0 = multicast.into()),
        ConfigError::Address
    );
    assert_eq!(
        refused(&|net| net.gateway_v4 = Some(multicast)),
        ConfigError::Gateway
    );
    assert_eq!(
        refused(&|net| net.tx_offloads = Offloads::TSO4),
        ConfigError::Offloads
    );
    assert_eq!(bench.stack.sockets().net_config(), &good);
}

#[test]
fn the_mtu_changes_under_a_running_transfer() {
    let mut pair = Pair::new(1);
    pair.cable.log(0);
    let (client, server) = pair.connected(false, 80);
    let words = pattern(600_000, 5);
    let (mut at, mut got) = (0, Vec::new());
    let mut longest = Vec::new();
    for mtu in [1500, 600, 9000, 1280] {
        for side in 0..2 {
            let mut net = net(side);
            net.mtu = mtu;
            net.addresses.pop();
            let now = pair.now();
            pair.stacks[side].configure(net, now).unwrap();
        }
        pair.cable.take_log(0);
        let until = got.len() + 150_000;
        pair.run_until(|pair| {
            write_some(pair.sockets(0), client, &words, &mut at);
            read_some(pair.sockets(1), server, &mut got);
            got.len() >= until.min(words.len())
        });
        let frames = pair.cable.take_log(0);
        longest.push(
            frames
                .iter()
                .map(|(_, frame)| frame.len() - 14)
                .max()
                .unwrap(),
        );
    }
    assert!(got == words);
    assert_eq!(longest[..2], [1500, 600]);
    // The peer's MSS was announced at an MTU of 1500 and still holds.
    assert_eq!(longest[2..], [1500, 1280]);
}

#[test]
fn a_change_of_the_mtu_asks_no_neighbour_anew() {
    for ipv6 in [false, true] {
        let mut pair = Pair::new(1);
        let (client, server) = pair.connected(ipv6, 80);
        pair.settle();
        pair.cable.log(0);
        pair.cable.log(1);
        let mut changed = net(1);
        changed.mtu = 1400;
        let now = pair.now();
        pair.stacks[1].configure(changed, now).unwrap();
        pair.sockets(1).tcp_send(server, b"at once").unwrap();
        pair.settle();
        let mut buffer = [0; 16];
        assert_eq!(pair.sockets(0).tcp_recv(client, &mut buffer), Ok(7));
        for side in [0, 1] {
            for (_, frame) in pair.cable.take_log(side) {
                let arp = frame[12..14] == [0x08, 0x06];
                let solicitation = frame[12..14] == [0x86, 0xdd] && frame[54] == 135;
                assert!(!arp && !solicitation, "side {side}: {frame:02x?}");
            }
        }
    }
}

#[test]
fn an_address_that_is_taken_away_ends_its_streams_and_no_others() {
    let mut pair = Pair::new(1);
    let (client4, server4) = pair.connected(false, 80);
    let (client6, _) = pair.connected(true, 81);
    pair.sockets(0).tcp_send(client4, b"before").unwrap();
    pair.settle();
    let mut changed = net(1);
    changed.addresses.retain(|(ip, _)| ip.is_ipv6());
    let now = pair.now();
    pair.stacks[1].configure(changed, now).unwrap();
    let mut buffer = [0; 16];
    let sockets = pair.sockets(1);
    assert_eq!(
        sockets.tcp_recv(server4, &mut buffer),
        Ok(6),
        "what arrived stays"
    );
    let gone = sockets.tcp_recv(server4, &mut buffer);
    assert_eq!(gone, Err(StreamError::AddrNotAvailable));
    assert_eq!(pair.sockets(0).tcp_send(client6, b"still"), Ok(5));
    pair.settle();
    assert_eq!(pair.sockets(0).tcp_unacknowledged(client6), Ok(0));
}

#[test]
fn a_carrier_that_goes_and_comes_back_costs_time_and_no_byte() {
    let mut pair = Pair::new(1);
    let (client, server) = pair.connected(true, 80);
    let words = pattern(200_000, 6);
    let (mut at, mut got) = (0, Vec::new());
    for carrier in [true, false, true] {
        let mut net = net(1);
        net.carrier = carrier;
        let now = pair.now();
        pair.stacks[1].configure(net, now).unwrap();
        let until = pair.now() + Duration::from_secs(20);
        loop {
            write_some(pair.sockets(0), client, &words, &mut at);
            read_some(pair.sockets(1), server, &mut got);
            if !pair.step(until) {
                break;
            }
        }
        let counters = pair.sockets(1).counters();
        assert_eq!(counters.rx_frames, counters.rx_ledger());
    }
    pair.run_until(|pair| {
        write_some(pair.sockets(0), client, &words, &mut at);
        read_some(pair.sockets(1), server, &mut got);
        got.len() == words.len()
    });
    assert!(got == words);
    assert!(pair.sockets(1).counters().rx_no_carrier > 0);
}

#[test]
fn a_link_that_ends_is_replaced_and_streams_go_on() {
    let mut pair = Pair::new(1);
    let (client, server) = pair.connected(false, 80);
    // The other side's process ends: both directions say so.
    pair.cable.end(0).close();
    pair.cable.end(1).close();
    let now = pair.now();
    for stack in &mut pair.stacks {
        assert_eq!(stack.poll(now).link_error, Some(LinkError::Closed));
    }
    pair.sockets(0).tcp_send(client, b"on its way").unwrap();
    for stack in &mut pair.stacks {
        let _ = stack.poll(now);
        assert!(stack.arm(), "a dead link is nothing to spin on");
    }
    let fresh = Cable::new(2);
    fresh.advance_to(now);
    for side in 0..2 {
        pair.stacks[side].replace_link(fresh.end(side), now);
    }
    pair.cable = fresh;
    let mut got = Vec::new();
    pair.run_until(|pair| {
        read_some(pair.sockets(1), server, &mut got);
        got == b"on its way"
    });
}

/// Whatever the other side waited for until now, `words` arrive without a time-out.
fn arrives_at_once(pair: &mut Pair, server: TcpStreamId, words: &[u8]) {
    let back = pair.now();
    let mut got = Vec::new();
    pair.run_until(|pair| {
        read_some(pair.sockets(1), server, &mut got);
        got.len() == words.len()
    });
    assert!(got == words);
    let took = pair.now() - back;
    assert!(took < Duration::from_millis(100), "{took}");
}

#[test]
fn what_was_sent_in_vain_is_sent_again_when_the_link_is_back() {
    for ipv6 in [false, true] {
        let mut pair = Pair::new(1);
        let (client, server) = pair.connected(ipv6, 80);
        let words = pattern(20_000, 3);
        // Long enough for every probe and for some time-outs.
        let gone = Cable::new(2);
        gone.advance_to(pair.now());
        let cable = core::mem::replace(&mut pair.cable, gone);
        let now = pair.now();
        for side in 0..2 {
            pair.stacks[side].replace_link(pair.cable.end(side), now);
        }
        pair.cable.impair(Impairment {
            loss: 1000,
            ..Impairment::default()
        });
        let sent = pair.sockets(0).tcp_send(client, &words);
        assert_eq!(sent, Ok(words.len()));
        pair.run(Duration::from_secs(20));
        // A moment in which nobody would send by itself: their waits are long by now.
        let back = pair.now();
        cable.advance_to(back);
        pair.cable = cable;
        for side in 0..2 {
            pair.stacks[side].replace_link(pair.cable.end(side), back);
        }
        arrives_at_once(&mut pair, server, &words);
    }
}

#[test]
fn what_was_first_sent_without_a_carrier_is_sent_again_when_there_is_one() {
    for ipv6 in [false, true] {
        let mut pair = Pair::new(1);
        let (client, server) = pair.connected(ipv6, 80);
        let words = pattern(20_000, 3);
        for carrier in [false, true] {
            let mut net = net(0);
            net.carrier = carrier;
            let now = pair.now();
            pair.stacks[0].configure(net, now).unwrap();
            if !carrier {
                let sent = pair.sockets(0).tcp_send(client, &words);
                assert_eq!(sent, Ok(words.len()));
                pair.run(Duration::from_secs(20));
            }
        }
        arrives_at_once(&mut pair, server, &words);
    }
}

/// A host that answers on the other end of the cable.
struct Host {
    link: TestLink,
    machine: HostControl,
    events: Vec<String>,
}

impl Host {
    fn new(cable: &Cable, config: NetworkConfig) -> Self {
        let offer = HostOffer {
            versions: VersionRange::SUPPORTED,
            features: 0,
            config,
        };
        Self {
            link: cable.end(1),
            machine: HostControl::new(offer).unwrap(),
            events: Vec::new(),
        }
    }

    fn poll(&mut self) {
        let mut buffer = [0; MAX_CONTROL_LEN];
        loop {
            while let Some(message) = self.machine.poll_transmit() {
                assert!(self.link.send_control(message).unwrap());
                self.machine.transmitted();
            }
            let Some(len) = self.link.recv_control(&mut buffer).unwrap() else {
                return;
            };
            if let Some(event) = self.machine.handle_message(&buffer[..len]).unwrap() {
                self.events.push(format!("{event:?}"));
            }
        }
    }
}

fn negotiate(host: &mut Host, stack: &mut Stack<TestLink>, now: Instant) {
    for _ in 0..10 {
        let _ = stack.poll(now);
        host.poll();
    }
}

#[test]
fn a_stack_with_control_asks_applies_changes_and_begins_anew_with_a_restarted_host() {
    let cable = Cable::new(1);
    let mut network = NetworkConfig::new(MAC[0], 1500);
    network.serial = 1;
    network
        .v4
        .push(Prefixed::new(Ipv4Addr::new(10, 0, 0, 1), 24))
        .unwrap();
    let mut host_side = Host::new(&cable, network.clone());
    let control = Control::new(control::offer(1, "guest"));
    let now = cable.now();
    let mut stack = Stack::with_control(cable.end(0), config(1), control, now);
    assert!(
        !stack.sockets().net_config().carrier,
        "nothing before it is told"
    );
    negotiate(&mut host_side, &mut stack, now);
    let own = stack.sockets().addresses().next();
    assert_eq!(own, Some((host(0, false, 0).ip(), 24)));
    assert!(stack.sockets().net_config().carrier);

    let socket = stack.sockets().udp_bind(7).unwrap();
    network.serial = 2;
    network.mtu = 1400;
    host_side.machine.update(network.clone()).unwrap();
    negotiate(&mut host_side, &mut stack, now);
    assert_eq!(stack.sockets().net_config().mtu, 1400);
    assert!(
        host_side
            .events
            .iter()
            .any(|event| event.contains("Acknowledged")),
        "{:?}",
        host_side.events
    );

    // The host comes back with no memory of the session, and rings or greets only.
    let _ = stack.poll(now);
    assert!(stack.arm());
    host_side = Host::new(&cable, network);
    cable.set_generation(2);
    assert!(!stack.arm(), "there is somebody to say hello to");
    negotiate(&mut host_side, &mut stack, now);
    let control = stack.control().unwrap();
    assert_eq!(control.changes(), 3);
    assert_eq!(control.network_config().unwrap().mtu, 1400);
    assert!(
        stack.sockets().udp_readiness(socket).is_ok(),
        "the socket is still there"
    );
}

#[test]
fn who_gets_no_answer_on_a_link_that_loses_messages_asks_again() {
    let cable = Cable::new(1);
    let mut host_side = Host::new(&cable, NetworkConfig::new(MAC[0], 1500));
    let control = Control::new(control::offer(1, "guest"));
    let mut now = cable.now();
    let mut stack = Stack::with_control(cable.end(0), config(1), control, now);
    cable.lose_control();
    for lost in ["hello", "accept", "configuration"] {
        let begun = stack.poll(now).deadline.expect("a time to ask again");
        assert!(
            begun > now && begun <= now + Duration::from_secs(1),
            "{lost}"
        );
        if lost != "hello" {
            host_side.poll();
        }
        if lost == "configuration" {
            let _ = stack.poll(now);
            host_side.poll();
        }
        cable.lose_control();
        now = begun;
        assert!(!stack.sockets().net_config().carrier, "{lost}");
    }
    negotiate(&mut host_side, &mut stack, now);
    assert!(stack.sockets().net_config().carrier);
    let later = stack.poll(now + Duration::from_secs(60));
    assert_eq!(stack.control().unwrap().changes(), 1);
    assert_eq!(later.deadline, None, "nothing more to ask");
}

#[test]
fn who_would_ask_again_on_a_link_that_has_ended_does_not_stay_awake() {
    let cable = Cable::new(1);
    let control = Control::new(control::offer(1, "guest"));
    let now = cable.now();
    let mut stack = Stack::with_control(cable.end(0), config(1), control, now);
    cable.lose_control();
    assert!(stack.poll(now).deadline.is_some());
    cable.end(1).close();
    let _ = stack.poll(now);
    let later = stack.poll(now + Duration::from_secs(5));
    assert!(later.link_error.is_some());
    assert_eq!((later.more_work, later.deadline), (false, None));
}

#[test]
fn frames_are_complete_until_a_restarted_host_has_said_what_it_takes() {
    let cable = Cable::new(1);
    let mut network = NetworkConfig::new(MAC[0], 1500);
    network.offloads_to_host = Offloads::CHECKSUM;
    let own = Ipv4Addr::new(10, 0, 0, 1);
    network.v4.push(Prefixed::new(own, 24)).unwrap();
    let mut host_side = Host::new(&cable, network.clone());
    let control = Control::new(control::offer(1, "guest"));
    let now = cable.now();
    let mut stack = Stack::with_control(cable.end(0), config(1), control, now);
    negotiate(&mut host_side, &mut stack, now);
    assert_eq!(stack.sockets().net_config().tx_offloads, Offloads::CHECKSUM);
    cable.set_generation(2);
    let _ = stack.poll(now);
    assert_eq!(stack.sockets().net_config().tx_offloads, Offloads::NONE);
    host_side = Host::new(&cable, network.clone());
    negotiate(&mut host_side, &mut stack, now);
    assert_eq!(stack.sockets().net_config().tx_offloads, Offloads::CHECKSUM);
    stack.replace_link(cable.end(0), now);
    assert_eq!(stack.sockets().net_config().tx_offloads, Offloads::NONE);
    negotiate(&mut host_side, &mut stack, now);
    assert_eq!(stack.sockets().net_config().tx_offloads, Offloads::CHECKSUM);
}

#[test]
fn a_frame_with_an_offload_that_was_not_negotiated_is_dropped() {
    let mut bench = Bench::new();
    bench.introduce_peer();
    let socket = bench.stack.sockets().udp_bind(7).unwrap();
    let mut offload = shm_link::offload::OffloadHeader::NONE;
    offload.flags = shm_link::offload::FLAG_NEEDS_CSUM;
    offload.csum_start = 34;
    offload.csum_offset = 6;
    let mut frame = udp_frame(false, 9, 7, b"data");
    frame[40..42].copy_from_slice(&[1, 2]);
    bench.peer.inject_with(offload, &frame);
    bench.settle();
    assert_eq!(bench.stack.sockets().counters().rx_bad_offload, 1);

    // Negotiated, the checksum is not looked at if the link vouches for it.
    let mut net = net(0);
    net.rx_offloads = Offloads::CHECKSUM;
    let now = bench.now();
    bench.stack.configure(net, now).unwrap();
    bench.peer.inject_with(offload, &frame);
    bench.settle();
    assert!(
        bench
            .stack
            .sockets()
            .udp_recv_from(socket, &mut [0; 8])
            .is_ok()
    );
    bench.exchange(&frame);
    assert!(
        bench
            .stack
            .sockets()
            .udp_recv_from(socket, &mut [0; 8])
            .is_err()
    );
    bench.introduce_peer();
    let syn = Segment::syn(4000, 1).frame();
    let reset = tcps(&bench.exchange(&syn));
    assert_eq!(reset[0].flags & RST, RST, "a good one passes either way");
}

#[test]
fn super_frames_cross_with_their_checksum_unfinished() {
    super_frames_cross(false, Offloads::TSO4, (1460, GSO_TCPV4));
}

#[test]
fn segments_over_ipv6_grow_into_super_frames() {
    super_frames_cross(true, Offloads::TSO6, (1440, GSO_TCPV6));
}

fn super_frames_cross(ipv6: bool, segmentation: Offloads, size_and_type: (u16, u8)) {
    let cable = Cable::new(1);
    let offloads = Offloads::CHECKSUM.union(segmentation);
    let stacks = [0, 1].map(|side| {
        let mut net = net(side);
        net.tx_offloads = offloads;
        net.rx_offloads = offloads;
        stack_with(&cable, side, config(side as u64), net)
    });
    let mut pair = Pair::with(cable, stacks);
    let options = TcpOptions {
        rx_buffer_bytes: 262_143,
        tx_buffer_bytes: 262_144,
        ..TcpOptions::default()
    };
    let listener = pair.sockets(1).tcp_listen(80, 4, options).unwrap();
    let now = pair.now();
    let client = pair
        .sockets(0)
        .tcp_connect(now, host(1, ipv6, 80), options)
        .unwrap();
    pair.settle();
    let (server, _) = pair.sockets(1).tcp_accept(listener).unwrap();
    pair.cable.log(0);
    let words = pattern(2_000_000, 8);
    let (mut at, mut got) = (0, Vec::new());
    pair.run_until(|pair| {
        write_some(pair.sockets(0), client, &words, &mut at);
        read_some(pair.sockets(1), server, &mut got);
        got.len() == words.len()
    });
    assert!(got == words);
    let frames = pair.cable.take_log(0);
    for (offload, frame) in &frames {
        assert_eq!(offload.check(frame.len(), offloads), Ok(()));
    }
    let supers = frames
        .iter()
        .filter(|(offload, _)| (offload.gso_size, offload.gso_type) == size_and_type);
    assert!(supers.count() >= 20, "most of it travels in large frames");
    assert!(frames.len() < 100, "{} frames", frames.len());
    for (offload, frame) in &frames {
        assert_eq!(whole_checksum(frame, *offload), 0xffff);
    }
    let longest = frames.iter().map(|(_, frame)| frame.len()).max().unwrap();
    assert!(longest > 60_000, "longest: {longest}");
    assert!(longest < 65_536, "Linux would cut it on its way");
}

/// The sum over a TCP segment and its pseudo-header, which the unfinished
/// checksum stands for; 0xffff if it is right.
fn whole_checksum(frame: &[u8], offload: OffloadHeader) -> u16 {
    let start = usize::from(offload.csum_start);
    let (addresses, len) = match frame[12..14] {
        [8, 0] => (&frame[26..34], frame.len() - 34),
        _ => (&frame[22..54], frame.len() - 54),
    };
    let mut sum = len as u32 + 6;
    for pair in addresses.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // What was written is that sum; so its difference is all ones.
    let field = u16::from_be_bytes([frame[start + 16], frame[start + 17]]);
    let difference = u32::from(!field) + sum;
    (difference & 0xffff) as u16 + (difference >> 16) as u16
}
