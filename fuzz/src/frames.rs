//! Frames: the host's filter, and the guest's stack.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::rc::Rc;

use etherparse::{Icmpv4Type, PacketBuilder, icmpv4};
use guest_stack::classify::ETHERNET_LEN;
use guest_stack::config::{NetConfig, StackConfig};
use guest_stack::stack::Stack;
use guest_stack::tcp::options::TcpOptions;
use guest_stack::time::{Duration, Instant};
use host_bridge::filter::{Filter, FilterConfig, HEAD_LEN, Verdict};
use host_bridge::port::stepped::finished;
use shm_link::fault::LinkError;
use shm_link::link::{FrameRx, FrameTx, Link, MAX_FRAME_LEN};
use shm_link::offload::{OffloadHeader, Offloads};

use crate::input::Input;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const V4: [u8; 4] = [10, 0, 0, 1];
const PEER_V4: [u8; 4] = [10, 0, 0, 2];
const V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// The filter: a strict one passes no foreign source.
pub(crate) fn filter(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let switches = input.byte();
    let config = FilterConfig {
        allow_dhcp: switches & 1 != 0,
        allow_slaac: switches & 2 != 0,
        allow_dhcp_server: switches & 4 != 0,
        allow_router: switches & 8 != 0,
        allow_vlan: switches & 16 != 0,
        ..FilterConfig::default()
    };
    let strict = switches & 31 == 0;
    let addresses: [IpAddr; 2] = [V4.into(), V6.into()];
    let filter = Filter::new(config, MAC, &addresses);
    let frame = input.rest();
    let head = &frame[..frame.len().min(HEAD_LEN)];
    let _ = filter.check_to_guest(head);
    if filter.check(head, frame.len()) == Verdict::Pass {
        assert_eq!(frame[6..12], MAC, "another's MAC");
        if strict && frame[12..14] == [8, 0] {
            assert_eq!(frame[26..30], V4, "another's address");
        }
        if strict && frame[12..14] == [8, 6] {
            assert_eq!(frame[22..28], MAC, "ARP in another's name");
        }
    }
}

/// The offload header in front of any frame: what is let through stays inside it.
pub(crate) fn offload(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let allowed = Offloads::from_bits(input.long() as u32);
    let len = usize::from(input.word());
    let header: [u8; 12] = std::array::from_fn(|_| input.byte());
    let header = OffloadHeader::from_bytes(header);
    if header.check(len, allowed).is_ok() && header.flags & 1 != 0 {
        let end = usize::from(header.csum_start) + usize::from(header.csum_offset) + 2;
        assert!(end <= len, "a checksum behind the frame: {header:?}");
    }
}

/// What the bridge cuts and finishes for a guest: any frame, or nearly a super-frame of
/// TCP, with any header. No more frames than it has bytes, and none without any.
pub(crate) fn finish(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let takes = Offloads::from_bits(u32::from(input.byte()) & 15);
    let shape = input.byte();
    let mut header = OffloadHeader::from_bytes(std::array::from_fn(|_| input.byte()));
    let frame = match shape & 3 {
        0 => input.rest().to_vec(),
        kind => {
            let builder = PacketBuilder::ethernet2(PEER_MAC, MAC);
            let ip = match kind {
                1 => builder.ipv6(V6, V6, 64),
                _ => builder.ipv4(PEER_V4, V4, 64),
            };
            header.flags = 1;
            header.gso_type = if kind == 1 { 4 } else { 1 };
            header.csum_start = if kind == 1 { 54 } else { 34 };
            header.csum_offset = 16;
            let len = usize::from(input.word()) % 3000;
            let mut frame = Vec::new();
            let packet = ip.tcp(4000, 80, input.long() as u32, 1000);
            packet
                .write(&mut frame, &vec![shape; len])
                .expect("a vector");
            damage(&mut input, frame)
        }
    };
    let len = frame.len();
    if let Some(frames) = finished(header, frame, takes)
        && len != 0
    {
        assert!((1..=len).contains(&frames.len()), "{} frames", frames.len());
        assert!(frames.iter().all(|(_, frame)| !frame.is_empty()));
    }
}

/// The guest's classifier.
pub(crate) fn classify(bytes: &[u8]) {
    let _ = guest_stack::classify::destination(bytes);
    let _ = guest_stack::classify::source(bytes);
    let _ = guest_stack::classify::classify(bytes);
}

/// Frames on their way to the stack, and those it sent.
#[derive(Default)]
struct Cable {
    to_stack: VecDeque<(OffloadHeader, Vec<u8>)>,
    sent: VecDeque<Vec<u8>>,
}

#[derive(Clone, Default)]
struct End {
    cable: Rc<RefCell<Cable>>,
    current: Option<(OffloadHeader, Vec<u8>)>,
    room: Vec<u8>,
}

impl FrameRx for End {
    fn peek(&mut self) -> Result<Option<(OffloadHeader, &[u8])>, LinkError> {
        if self.current.is_none() {
            self.current = self.cable.borrow_mut().to_stack.pop_front();
        }
        let current = self.current.as_ref();
        Ok(current.map(|(offload, frame)| (*offload, &frame[..])))
    }

    fn consume(&mut self) {
        self.current = None;
    }

    fn flush(&mut self) {}
}

impl FrameTx for End {
    fn max_frame_len(&self) -> usize {
        MAX_FRAME_LEN
    }

    fn reserve(&mut self, len: usize) -> Result<Option<&mut [u8]>, LinkError> {
        self.room.clear();
        self.room.resize(len, 0xa5);
        Ok(Some(&mut self.room))
    }

    fn commit(&mut self, len: usize, _offload: OffloadHeader) {
        let frame = self.room[..len].to_vec();
        self.cable.borrow_mut().sent.push_back(frame);
    }

    fn flush(&mut self) {}
}

struct Pair {
    rx: End,
    tx: End,
}

impl Link for Pair {
    type Rx = End;
    type Tx = End;

    fn split(&mut self) -> (&mut End, &mut End) {
        (&mut self.rx, &mut self.tx)
    }

    fn recv_control(&mut self, _buf: &mut [u8]) -> Result<Option<usize>, LinkError> {
        Ok(None)
    }

    fn send_control(&mut self, _message: &[u8]) -> Result<bool, LinkError> {
        Ok(true)
    }

    fn arm(&mut self, tx_room: Option<usize>) -> Result<bool, LinkError> {
        Ok(tx_room.is_none() && self.rx.peek()?.is_none())
    }

    fn disarm(&mut self) {}

    fn generation(&self) -> u32 {
        1
    }

    fn close(&mut self) {}
}

/// A stack and what any network sends it: raw frames, and segments, datagrams and
/// echoes with good checksums and any numbers.
pub(crate) fn stack(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let cable = Rc::new(RefCell::new(Cable::default()));
    let end = || End {
        cable: cable.clone(),
        ..End::default()
    };
    let link = Pair {
        rx: end(),
        tx: end(),
    };
    let switches = input.byte();
    let mut net = NetConfig::new(MAC)
        .with_address(V4, 24)
        .with_address(V6, 64);
    net.slaac = switches & 1 != 0;
    net.dhcp = switches & 2 != 0;
    let mut now = Instant::ZERO;
    let mut config = StackConfig::new([7, 11]);
    if switches & 4 != 0 {
        // A place for one record: further SYNs are answered with cookies.
        config.limits.half_open = 1;
    }
    let mut stack = Stack::new(link, config, net, now).expect("a good configuration");
    let options = TcpOptions::default();
    let listener = stack
        .sockets()
        .tcp_listen(80, 8, options)
        .expect("a free port");
    stack.sockets().udp_bind(7).expect("a free port");
    // The peer is known, so what the stack has to say reaches it.
    let arp = [
        &MAC[..],
        &PEER_MAC,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &PEER_MAC,
        &PEER_V4,
        &[0; 6],
        &V4,
    ];
    let arp = (OffloadHeader::NONE, arp.concat());
    cable.borrow_mut().to_stack.push_back(arp);
    settle(&mut stack, now);
    // What our side last acknowledged, so that segments can be in order.
    let (mut seq, mut ack) = (1000u32, 0u32);
    let (mut stream, mut last) = (None, Vec::new());
    while !input.is_empty() {
        let frame = match input.byte() % 9 {
            0 | 1 => {
                let len = usize::from(input.word()) % 1600;
                input.bytes(len).to_vec()
            }
            2..=4 => segment(&mut input, &mut seq, ack),
            5 => {
                let len = usize::from(input.byte());
                let body = input.bytes(len);
                let mut frame = Vec::new();
                let port = if input.byte() & 1 == 0 {
                    7
                } else {
                    input.word()
                };
                let builder = PacketBuilder::ethernet2(PEER_MAC, MAC).ipv4(PEER_V4, V4, 64);
                builder
                    .udp(4000, port)
                    .write(&mut frame, body)
                    .expect("a vector");
                damage(&mut input, frame)
            }
            6 => {
                let len = usize::from(input.byte());
                let mut frame = Vec::new();
                let builder = PacketBuilder::ethernet2(PEER_MAC, MAC).ipv4(PEER_V4, V4, 64);
                builder
                    .icmpv4_echo_request(1, 1)
                    .write(&mut frame, input.bytes(len))
                    .expect("a vector");
                damage(&mut input, frame)
            }
            7 => too_big(&mut input, &last),
            _ => {
                now += Duration::from_millis(u64::from(input.word()));
                Vec::new()
            }
        };
        if !frame.is_empty() {
            let offload = OffloadHeader::NONE;
            cable.borrow_mut().to_stack.push_back((offload, frame));
        }
        settle(&mut stack, now);
        for sent in cable.borrow_mut().sent.drain(..) {
            // The stack's own segments say what to acknowledge next.
            if sent.len() >= 54 && sent[12..14] == [8, 0] && sent[23] == 6 {
                let at = u32::from_be_bytes([sent[38], sent[39], sent[40], sent[41]]);
                ack = at.wrapping_add(u32::from(sent[47] & 2 != 0));
                last = sent;
            }
        }
        stream = stream.or(stack.sockets().tcp_accept(listener).ok());
        if let Some((stream, _)) = &stream {
            let mut buf = [0; 64];
            if let Ok(len) = stack.sockets().tcp_recv(*stream, &mut buf) {
                // Much for little, so that segments are long.
                let _ = stack.sockets().tcp_send(*stream, &buf.repeat(len));
            }
        }
    }
    for _ in 0..20 {
        now += Duration::from_secs(3);
        settle(&mut stack, now);
    }
    let counters = stack.sockets().counters();
    assert_eq!(counters.rx_frames, counters.rx_ledger());
}

fn settle(stack: &mut Stack<Pair>, now: Instant) {
    for round in 0.. {
        assert!(round < 10_000, "the stack does not come to rest");
        let poll = stack.poll(now);
        if !poll.more_work && stack.arm() {
            return;
        }
    }
}

/// A segment with a good checksum, in order or not.
fn segment(input: &mut Input<'_>, seq: &mut u32, ack: u32) -> Vec<u8> {
    let (flags, shape, port) = (input.byte(), input.byte(), input.byte());
    let len = usize::from(input.byte()) * usize::from(1 + (shape & 7));
    let body = input.bytes(len).to_vec();
    let number = match shape >> 4 & 3 {
        0 | 1 => *seq,
        2 => seq.wrapping_add(u32::from(input.word())),
        _ => input.long() as u32,
    };
    let acked = match shape >> 6 {
        0 | 1 => ack,
        2 => ack.wrapping_sub(u32::from(input.word())),
        _ => input.long() as u32,
    };
    let window = if flags & 64 == 0 {
        65_535
    } else {
        input.word()
    };
    let mut builder = PacketBuilder::ethernet2(PEER_MAC, MAC)
        .ipv4(PEER_V4, V4, 64)
        .tcp(
            4000 + u16::from(port & 1),
            if port & 128 == 0 { 80 } else { 81 },
            number,
            window,
        );
    if flags & 1 != 0 {
        builder = builder.fin();
    }
    if flags & 2 != 0 {
        builder = builder.syn();
    }
    if flags & 4 != 0 {
        builder = builder.rst();
    }
    if flags & 16 != 0 {
        builder = builder.ack(acked);
    }
    if flags & 32 != 0 {
        builder = builder.urg(input.word());
    }
    if shape & 8 != 0 {
        let n = (usize::from(input.byte()) % 40) & !3;
        let options = input.bytes(n).to_vec();
        match builder.options_raw(&options) {
            Ok(with) => builder = with,
            Err(_) => return Vec::new(),
        }
    }
    let mut frame = Vec::new();
    builder.write(&mut frame, &body).expect("a vector");
    advance(seq, number, flags, body.len());
    damage(input, frame)
}

/// A router's word that the segment sent last was too long for it.
fn too_big(input: &mut Input<'_>, last: &[u8]) -> Vec<u8> {
    let mut quoted = last.get(ETHERNET_LEN..).unwrap_or_default().to_vec();
    quoted.truncate(usize::from(input.byte()));
    let needed = icmpv4::DestUnreachableHeader::FragmentationNeeded {
        next_hop_mtu: input.word(),
    };
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(PEER_MAC, MAC)
        .ipv4(PEER_V4, V4, 64)
        .icmpv4(Icmpv4Type::DestinationUnreachable(needed))
        .write(&mut frame, &quoted)
        .expect("a vector");
    damage(input, frame)
}

fn advance(seq: &mut u32, number: u32, flags: u8, len: usize) {
    if number == *seq {
        let marks = u32::from(flags & 1) + u32::from(flags >> 1 & 1);
        *seq = seq.wrapping_add(len as u32).wrapping_add(marks);
    }
}

/// Changes up to three bytes of a good frame.
fn damage(input: &mut Input<'_>, mut frame: Vec<u8>) -> Vec<u8> {
    for _ in 0..input.byte() % 4 {
        let at = usize::from(input.word()) % frame.len();
        frame[at] = input.byte();
    }
    frame
}
