//! What the stack costs: instructions and time for a connection that comes and
//! goes, for a segment and for a poll, with few and with many connections around,
//! and the memory of one that is idle. `scripts/bench.sh flat` compares them.
//!
//! ```text
//! cargo run --release -p guest-stack --example cost -- accept 20000
//! valgrind --tool=callgrind target/release/examples/cost accept 2000
//! ```
//! The other end of the wire is a handful of segments written by hand, so that
//! almost all that is counted is the stack's own. Run it with a round number and
//! with twice that: the difference is free of what the start costs.

use std::collections::VecDeque;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant as Clock;

use guest_stack::config::{NetConfig, StackConfig};
use guest_stack::stack::Stack;
use guest_stack::tcp::options::TcpOptions;
use guest_stack::tcp::{TcpListenerId, TcpStreamId};
use guest_stack::time::{Duration, Instant};
use shm_link::fault::LinkError;
use shm_link::link::{FrameRx, FrameTx, Link, MAX_FRAME_LEN};
use shm_link::offload::{FLAG_DATA_VALID, OffloadHeader, Offloads};

const FIN: u8 = 1;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// Frames to the stack wait in `to_stack`; of those from it the last is kept.
struct Wire {
    rx: Incoming,
    tx: Outgoing,
}

struct Incoming {
    frames: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
}

struct Outgoing {
    room: Vec<u8>,
    last: usize,
    frames: u64,
}

impl FrameRx for Incoming {
    fn peek(&mut self) -> Result<Option<(OffloadHeader, &[u8])>, LinkError> {
        let verified = OffloadHeader {
            flags: FLAG_DATA_VALID,
            ..OffloadHeader::NONE
        };
        Ok(self.frames.front().map(|frame| (verified, &frame[..])))
    }

    fn consume(&mut self) {
        self.spare.extend(self.frames.pop_front());
    }

    fn flush(&mut self) {}
}

impl FrameTx for Outgoing {
    fn max_frame_len(&self) -> usize {
        MAX_FRAME_LEN
    }

    fn reserve(&mut self, len: usize) -> Result<Option<&mut [u8]>, LinkError> {
        Ok(self.room.get_mut(..len))
    }

    fn commit(&mut self, len: usize, _: OffloadHeader) {
        self.last = len;
        self.frames += 1;
    }

    fn flush(&mut self) {}
}

impl Link for Wire {
    type Rx = Incoming;
    type Tx = Outgoing;

    fn split(&mut self) -> (&mut Incoming, &mut Outgoing) {
        (&mut self.rx, &mut self.tx)
    }

    fn recv_control(&mut self, _: &mut [u8]) -> Result<Option<usize>, LinkError> {
        Ok(None)
    }

    fn send_control(&mut self, _: &[u8]) -> Result<bool, LinkError> {
        Ok(true)
    }

    fn arm(&mut self, _: Option<usize>) -> Result<bool, LinkError> {
        Ok(self.rx.frames.is_empty())
    }

    fn disarm(&mut self) {}

    fn generation(&self) -> u32 {
        1
    }

    fn close(&mut self) {}
}

/// The far end of one connection.
#[derive(Clone, Copy)]
struct Peer {
    host: u32,
    port: u16,
    seq: u32,
    ack: u32,
}

struct World {
    stack: Stack<Wire>,
    listener: TcpListenerId,
    now: Instant,
    next: u32,
}

impl World {
    fn new(buffer_bytes: usize) -> Self {
        let wire = Wire {
            rx: Incoming {
                frames: VecDeque::new(),
                spare: Vec::new(),
            },
            tx: Outgoing {
                room: vec![0; MAX_FRAME_LEN],
                last: 0,
                frames: 0,
            },
        };
        let mut net = NetConfig::new([2, 0, 0, 0, 0, 1]);
        net.addresses
            .push((IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 8))
            .unwrap();
        net.rx_offloads = Offloads::CHECKSUM;
        net.tx_offloads = Offloads::CHECKSUM;
        let mut stack = Stack::new(wire, StackConfig::new([1, 2]), net, Instant::ZERO).unwrap();
        let options = TcpOptions {
            rx_buffer_bytes: buffer_bytes,
            tx_buffer_bytes: buffer_bytes,
            ..TcpOptions::default()
        };
        let listener = stack.sockets().tcp_listen(80, 128, options).unwrap();
        let mut world = Self {
            stack,
            listener,
            now: Instant::ZERO,
            next: 0,
        };
        world.introduce(0x0a00_0002);
        world
    }

    /// Asks for the stack's hardware address from `host`, which makes it known.
    fn introduce(&mut self, host: u32) {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2]);
        frame.extend(host.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
        self.feed(frame);
    }

    fn feed(&mut self, frame: Vec<u8>) {
        self.stack.link().rx.frames.push_back(frame);
        self.poll();
    }

    fn poll(&mut self) {
        while self.stack.poll(self.now).more_work {}
    }

    /// A segment of `len` bytes from a peer, whose numbers it moves on.
    fn say(&mut self, peer: &mut Peer, flags: u8, len: usize) {
        let mut frame = self.stack.link().rx.spare.pop().unwrap_or_default();
        frame.clear();
        frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
        frame.extend([0x45, 0]);
        frame.extend((40 + len as u16).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 6, 0, 0]);
        frame.extend(peer.host.to_be_bytes());
        frame.extend([10, 0, 0, 1]);
        let mut sum: u32 = frame[14..34]
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
            .sum();
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        frame.extend(peer.port.to_be_bytes());
        frame.extend(80_u16.to_be_bytes());
        frame.extend(peer.seq.to_be_bytes());
        frame.extend(peer.ack.to_be_bytes());
        frame.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        frame.resize(54 + len, 0x55);
        let control = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        peer.seq = peer.seq.wrapping_add(len as u32 + control);
        self.feed(frame);
    }

    /// The sequence number of the segment that the stack sent last.
    fn last_seq(&mut self) -> u32 {
        let tx = &self.stack.link().tx;
        u32::from_be_bytes(tx.room[38..42].try_into().unwrap())
    }

    fn connect(&mut self) -> (Peer, TcpStreamId) {
        self.next += 1;
        let mut peer = Peer {
            host: 0x0a00_0002,
            port: 1024 + (self.next % 60_000) as u16,
            seq: self.next,
            ack: 0,
        };
        self.say(&mut peer, SYN, 0);
        peer.ack = self.last_seq().wrapping_add(1);
        self.say(&mut peer, ACK, 0);
        let (stream, _) = self.stack.sockets().tcp_accept(self.listener).unwrap();
        (peer, stream)
    }

    fn read(&mut self, stream: TcpStreamId, buffer: &mut [u8]) -> usize {
        let mut len = 0;
        while let Ok(got) = self.stack.sockets().tcp_recv(stream, buffer) {
            len += got;
        }
        len
    }

    /// One request and one answer, and an end in order from either side.
    fn serve_one(&mut self, server_closes: bool) {
        let (mut peer, stream) = self.connect();
        self.say(&mut peer, ACK, 100);
        let mut request = [0; 200];
        assert_eq!(self.stack.sockets().tcp_recv(stream, &mut request), Ok(100));
        self.stack.sockets().tcp_send(stream, &[b'x'; 200]).unwrap();
        if server_closes {
            self.stack.sockets().tcp_close(stream);
            self.poll();
            // 200 bytes and the FIN.
            peer.ack = peer.ack.wrapping_add(201);
            self.say(&mut peer, ACK | FIN, 0);
        } else {
            self.poll();
            peer.ack = peer.ack.wrapping_add(200);
            self.say(&mut peer, ACK | FIN, 0);
            self.stack.sockets().tcp_close(stream);
            self.poll();
            peer.ack = peer.ack.wrapping_add(1);
            self.say(&mut peer, ACK, 0);
        }
        // TIME-WAIT entries go by themselves.
        self.now += Duration::from_millis(1);
    }
}

fn report(what: &str, count: usize, start: Clock) {
    let ns = start.elapsed().as_nanos() / count.max(1) as u128;
    println!("{what}: {ns} ns each, {count} times");
}

/// Memory of this process in KiB, as Linux counts it.
fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.unwrap().split_whitespace().next().unwrap();
    number.parse().unwrap()
}

/// As `demo-guest` does: the C library is to map large buffers, and touch none of them.
fn keep_idle_memory_untouched() {
    #[cfg(target_env = "gnu")]
    for (parameter, bytes) in [(libc::M_MMAP_THRESHOLD, 128 << 10), (libc::M_TOP_PAD, 0)] {
        // SAFETY: it sets a number, before there are other threads.
        unsafe { libc::mallopt(parameter, bytes) };
    }
}

fn main() {
    keep_idle_memory_untouched();
    let mut args = std::env::args().skip(1);
    let what = args.next().unwrap_or_else(|| "all".into());
    let number = |arg: Option<String>, default| arg.map_or(default, |text| text.parse().unwrap());
    let count: usize = number(args.next(), 20_000);
    let bytes: usize = number(args.next(), 65_535);
    let all = what == "all";

    for (name, server_closes) in [("accept", false), ("accept-time-wait", true)] {
        if all || what == name {
            let mut world = World::new(bytes);
            let start = Clock::now();
            for _ in 0..count {
                world.serve_one(server_closes);
            }
            report(name, count, start);
            let counters = world.stack.sockets().counters();
            assert_eq!(counters.tcp_established, count as u64);
        }
    }
    for others in [1, 100, 1000, 10_000] {
        // One of them speaks, or each in turn, far apart in memory.
        for (kind, stride) in [("one-of", 0), ("each-of", 7919)] {
            let name = format!("{kind}-{others}");
            if !all && what != name {
                continue;
            }
            let mut world = World::new(2048);
            let mut open: Vec<_> = (0..others).map(|_| world.connect()).collect();
            let mut buffer = [0; 2048];
            let start = Clock::now();
            for round in 0..count {
                let (peer, stream) = &mut open[round * stride % others];
                world.say(peer, ACK, 100);
                assert_eq!(world.read(*stream, &mut buffer), 100);
            }
            report(&name, count, start);
        }
    }
    for others in [1, 100, 1000, 10_000] {
        let name = format!("poll-of-{others}");
        if all || what == name {
            let mut world = World::new(2048);
            let open: Vec<_> = (0..others).map(|_| world.connect()).collect();
            let start = Clock::now();
            for _ in 0..count {
                // So late that the stack has to look, and too early for a timer.
                world.now += Duration::from_micros(1);
                world.poll();
            }
            report(&name, count, start);
            black_box(open);
        }
    }
    if all || what == "memory" {
        const IDLE: usize = 10_000;
        let mut world = World::new(bytes);
        let before = resident_kib();
        let open: Vec<_> = (0..IDLE).map(|_| world.connect()).collect();
        let grown = (resident_kib() - before) * 1024 / IDLE;
        println!("memory: {grown} bytes each, {IDLE} idle connections");
        black_box(open);
    }
    if all || what == "bulk-in" {
        let mut world = World::new(262_143);
        let (mut peer, stream) = world.connect();
        let mut buffer = [0; 2048];
        let start = Clock::now();
        for _ in 0..count {
            world.say(&mut peer, ACK, 1460);
            assert_eq!(world.read(stream, &mut buffer), 1460);
        }
        report("bulk-in", count, start);
    }
    if all || what == "bulk-out" {
        let mut world = World::new(262_143);
        let (mut peer, stream) = world.connect();
        let words = [b'x'; 1460 * 16];
        let start = Clock::now();
        for _ in 0..count / 16 {
            let sent = world.stack.sockets().tcp_send(stream, &words).unwrap();
            assert_eq!(sent, words.len());
            world.poll();
            peer.ack = peer.ack.wrapping_add(sent as u32);
            world.say(&mut peer, ACK, 0);
        }
        report("bulk-out", count, start);
        black_box(world.stack.link().tx.frames);
    }
}
