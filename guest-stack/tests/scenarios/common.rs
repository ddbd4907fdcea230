//! Two stacks, or one stack and a bare end, on an in-memory link in virtual
//! time. Loss, duplication and reordering come from a seed.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use guest_stack::config::{NetConfig, StackConfig};
use guest_stack::sockets::Sockets;
use guest_stack::stack::{Poll, Stack};
use guest_stack::time::{Duration, Instant};
use shm_link::fault::LinkError;
use shm_link::link::{FrameRx, FrameTx, Link, MAX_FRAME_LEN};
use shm_link::offload::OffloadHeader;

/// What a wire does to frames, in thousandths.
#[derive(Clone, Copy, Default)]
pub(crate) struct Impairment {
    pub(crate) loss: u64,
    pub(crate) duplicate: u64,
    pub(crate) reorder: u64,
    pub(crate) delay: Duration,
    /// What is more than so many bytes per millisecond is lost, but for twenty of those.
    pub(crate) police: Option<u64>,
}

struct Direction {
    frames: VecDeque<(Instant, OffloadHeader, Vec<u8>)>,
    control: VecDeque<Vec<u8>>,
    capacity: usize,
    impairment: Impairment,
    /// Bytes that the policer lets through, as of then.
    tokens: (u64, Instant),
    closed: bool,
    /// Everything that was sent, before any impairment.
    log: Vec<(OffloadHeader, Vec<u8>)>,
    logging: bool,
}

/// Rings one end's doorbell.
pub(crate) type Bell = Arc<dyn Fn() + Send + Sync>;

impl Direction {
    /// Whether the policer takes a frame of so many bytes.
    fn polices(&mut self, now: Instant, len: usize) -> bool {
        let Some(rate) = self.impairment.police else {
            return false;
        };
        let (left, at) = self.tokens;
        let more = (now - at).total_micros() * rate / 1000;
        let tokens = (left + more).min(rate * 20);
        let rest = tokens.checked_sub(len as u64);
        self.tokens = (rest.unwrap_or(tokens), now);
        rest.is_none()
    }
}

struct Shared {
    now: Instant,
    bells: [Option<Bell>; 2],
    random: u64,
    generation: u32,
    loses_control: bool,
    directions: [Direction; 2],
}

impl Shared {
    /// xorshift64*: the same sequence for the same seed, everywhere.
    fn random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }

    fn happens(&mut self, thousandths: u64) -> bool {
        thousandths != 0 && self.random() % 1000 < thousandths
    }

    fn send(&mut self, side: usize, offload: OffloadHeader, frame: Vec<u8>) {
        let now = self.now;
        let impairment = self.directions[side].impairment;
        if self.directions[side].logging {
            self.directions[side].log.push((offload, frame.clone()));
        }
        if self.happens(impairment.loss) || self.directions[side].polices(now, frame.len()) {
            return;
        }
        let copies = 1 + usize::from(self.happens(impairment.duplicate));
        for _ in 0..copies {
            let late = if self.happens(impairment.reorder) {
                Duration::from_millis(3)
            } else {
                Duration::ZERO
            };
            let at = now + impairment.delay + late;
            let frames = &mut self.directions[side].frames;
            let place = frames.iter().rposition(|(other, ..)| *other <= at);
            frames.insert(place.map_or(0, |p| p + 1), (at, offload, frame.clone()));
        }
    }
}

/// A handle to the wire, for the test.
#[derive(Clone)]
pub(crate) struct Cable(Arc<Mutex<Shared>>);

impl Cable {
    pub(crate) fn new(seed: u64) -> Self {
        let direction = || Direction {
            frames: VecDeque::new(),
            control: VecDeque::new(),
            capacity: 4096,
            impairment: Impairment::default(),
            tokens: (0, Instant::ZERO),
            closed: false,
            log: Vec::new(),
            logging: false,
        };
        Self(Arc::new(Mutex::new(Shared {
            now: Instant::ZERO,
            bells: [None, None],
            random: seed | 1,
            generation: 1,
            loses_control: false,
            directions: [direction(), direction()],
        })))
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap()
    }

    pub(crate) fn now(&self) -> Instant {
        self.shared().now
    }

    pub(crate) fn advance_to(&self, now: Instant) {
        let mut shared = self.shared();
        assert!(now >= shared.now, "time runs forward");
        shared.now = now;
    }

    pub(crate) fn impair(&self, impairment: Impairment) {
        for direction in &mut self.shared().directions {
            direction.impairment = impairment;
        }
    }

    /// Frames that fit a direction at a time.
    pub(crate) fn set_capacity(&self, side: usize, capacity: usize) {
        self.shared().directions[side].capacity = capacity;
    }

    pub(crate) fn log(&self, side: usize) {
        self.shared().directions[side].logging = true;
    }

    pub(crate) fn take_log(&self, side: usize) -> Vec<(OffloadHeader, Vec<u8>)> {
        std::mem::take(&mut self.shared().directions[side].log)
    }

    pub(crate) fn set_generation(&self, generation: u32) {
        self.shared().generation = generation;
    }

    /// Control messages may be lost from now on; those under way are.
    pub(crate) fn lose_control(&self) {
        let mut shared = self.shared();
        shared.loses_control = true;
        for direction in &mut shared.directions {
            direction.control.clear();
        }
    }

    /// Has `bell` called whenever something arrives at that end.
    pub(crate) fn set_bell(&self, side: usize, bell: Bell) {
        self.shared().bells[side] = Some(bell);
    }

    fn ring(&self, side: usize) {
        let bell = self.shared().bells[side].clone();
        if let Some(bell) = bell {
            bell();
        }
    }

    /// When the next frame of either direction arrives.
    pub(crate) fn next_arrival(&self) -> Option<Instant> {
        let shared = self.shared();
        let heads = shared.directions.iter();
        heads
            .filter_map(|d| d.frames.front().map(|(at, ..)| *at))
            .min()
    }

    pub(crate) fn end(&self, side: usize) -> TestLink {
        TestLink {
            rx: TestRx {
                cable: self.clone(),
                side: 1 - side,
                current: None,
            },
            tx: TestTx {
                cable: self.clone(),
                side,
                room: Vec::new(),
                committed: Vec::new(),
            },
            slept: false,
        }
    }
}

/// One end of the cable. `side` is the direction it sends on.
pub(crate) struct TestLink {
    pub(crate) rx: TestRx,
    pub(crate) tx: TestTx,
    pub(crate) slept: bool,
}

pub(crate) struct TestRx {
    cable: Cable,
    side: usize,
    current: Option<(OffloadHeader, Vec<u8>)>,
}

pub(crate) struct TestTx {
    cable: Cable,
    side: usize,
    room: Vec<u8>,
    committed: Vec<(OffloadHeader, Vec<u8>)>,
}

impl FrameRx for TestRx {
    fn peek(&mut self) -> Result<Option<(OffloadHeader, &[u8])>, LinkError> {
        if self.current.is_none() {
            let mut shared = self.cable.shared();
            let now = shared.now;
            let direction = &mut shared.directions[self.side];
            if direction.frames.front().is_some_and(|(at, ..)| *at <= now) {
                let (_, offload, frame) = direction.frames.pop_front().unwrap();
                self.current = Some((offload, frame));
            } else if direction.closed && direction.frames.is_empty() {
                return Err(LinkError::Closed);
            }
        }
        let current = self.current.as_ref();
        Ok(current.map(|(offload, frame)| (*offload, &frame[..])))
    }

    fn consume(&mut self) {
        self.current = None;
    }

    fn flush(&mut self) {}
}

impl FrameTx for TestTx {
    fn max_frame_len(&self) -> usize {
        MAX_FRAME_LEN
    }

    fn reserve(&mut self, len: usize) -> Result<Option<&mut [u8]>, LinkError> {
        let shared = self.cable.shared();
        let direction = &shared.directions[self.side];
        if shared.directions[1 - self.side].closed {
            return Err(LinkError::Closed);
        }
        if direction.frames.len() + self.committed.len() >= direction.capacity {
            return Ok(None);
        }
        drop(shared);
        // Old bytes, as a ring has them.
        self.room.clear();
        self.room.resize(len, 0xa5);
        Ok(Some(&mut self.room))
    }

    fn commit(&mut self, len: usize, offload: OffloadHeader) {
        let frame = self.room[..len.min(self.room.len())].to_vec();
        self.committed.push((offload, frame));
    }

    fn join(&mut self, from: usize, len: usize, offload: OffloadHeader) -> Option<&mut [u8]> {
        let (header, last) = self.committed.last_mut()?;
        if last.len() + len - from > MAX_FRAME_LEN {
            return None;
        }
        last.extend_from_slice(&self.room[from..len]);
        *header = offload;
        Some(last)
    }

    fn flush(&mut self) {
        if self.committed.is_empty() {
            return;
        }
        let mut shared = self.cable.shared();
        for (offload, frame) in self.committed.drain(..) {
            shared.send(self.side, offload, frame);
        }
        drop(shared);
        self.cable.ring(1 - self.side);
    }
}

impl Link for TestLink {
    type Rx = TestRx;
    type Tx = TestTx;

    fn split(&mut self) -> (&mut TestRx, &mut TestTx) {
        (&mut self.rx, &mut self.tx)
    }

    fn recv_control(&mut self, buf: &mut [u8]) -> Result<Option<usize>, LinkError> {
        let mut shared = self.rx.cable.shared();
        let message = shared.directions[self.rx.side].control.pop_front();
        Ok(message.map(|message| {
            buf[..message.len()].copy_from_slice(&message);
            message.len()
        }))
    }

    fn send_control(&mut self, message: &[u8]) -> Result<bool, LinkError> {
        let mut shared = self.tx.cable.shared();
        shared.directions[self.tx.side]
            .control
            .push_back(message.to_vec());
        Ok(true)
    }

    fn arm(&mut self, tx_room: Option<usize>) -> Result<bool, LinkError> {
        let has_room = match tx_room {
            Some(len) => self.tx.reserve(len)?.is_some(),
            None => false,
        };
        let has_frame = self.rx.peek()?.is_some();
        self.slept = !(has_room || has_frame || self.has_control());
        Ok(self.slept)
    }

    fn arm_for_room(&mut self, tx_room: usize) -> Result<bool, LinkError> {
        let has_room = self.tx.reserve(tx_room)?.is_some();
        self.slept = !(has_room || self.has_control());
        Ok(self.slept)
    }

    fn disarm(&mut self) {}

    fn generation(&self) -> u32 {
        self.rx.cable.shared().generation
    }

    fn may_lose(&self) -> bool {
        self.rx.cable.shared().loses_control
    }

    fn close(&mut self) {
        self.tx.cable.shared().directions[self.tx.side].closed = true;
    }
}

impl TestLink {
    fn has_control(&self) -> bool {
        let shared = self.rx.cable.shared();
        !shared.directions[self.rx.side].control.is_empty()
    }

    /// Sends a frame as a bare end.
    pub(crate) fn inject(&mut self, frame: &[u8]) {
        self.inject_with(OffloadHeader::NONE, frame);
    }

    pub(crate) fn inject_with(&mut self, offload: OffloadHeader, frame: &[u8]) {
        let mut shared = self.tx.cable.shared();
        shared.send(self.tx.side, offload, frame.to_vec());
    }

    /// Takes everything that arrived at a bare end.
    pub(crate) fn drain(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Ok(Some((_, frame))) = self.rx.peek() {
            frames.push(frame.to_vec());
            self.rx.consume();
        }
        frames
    }
}

pub(crate) const MAC: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

pub(crate) fn v4(host: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, host).into()
}

pub(crate) fn v6(host: u16) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host).into()
}

/// The address of stack 0 or 1.
pub(crate) fn host(side: usize, ipv6: bool, port: u16) -> SocketAddr {
    let number = side as u8 + 1;
    let ip = if ipv6 { v6(number.into()) } else { v4(number) };
    SocketAddr::new(ip, port)
}

pub(crate) fn net(side: usize) -> NetConfig {
    NetConfig::new(MAC[side])
        .with_address(host(side, false, 0).ip(), 24)
        .with_address(host(side, true, 0).ip(), 64)
}

pub(crate) fn config(seed: u64) -> StackConfig {
    StackConfig::new([seed, 0x5eed])
}

pub(crate) fn stack(cable: &Cable, side: usize) -> Stack<TestLink> {
    stack_with(cable, side, config(side as u64 + 10), net(side))
}

pub(crate) fn stack_with(
    cable: &Cable,
    side: usize,
    config: StackConfig,
    net: NetConfig,
) -> Stack<TestLink> {
    let now = cable.now();
    Stack::new(cable.end(side), config, net, now).unwrap()
}

/// Two stacks on one cable.
pub(crate) struct Pair {
    pub(crate) cable: Cable,
    pub(crate) stacks: [Stack<TestLink>; 2],
    deadlines: [Option<Instant>; 2],
}

impl Pair {
    pub(crate) fn new(seed: u64) -> Self {
        let cable = Cable::new(seed);
        let stacks = [stack(&cable, 0), stack(&cable, 1)];
        Self::with(cable, stacks)
    }

    pub(crate) fn with(cable: Cable, stacks: [Stack<TestLink>; 2]) -> Self {
        let mut pair = Self {
            cable,
            stacks,
            deadlines: [None; 2],
        };
        pair.settle();
        pair
    }

    pub(crate) fn now(&self) -> Instant {
        self.cable.now()
    }

    pub(crate) fn sockets(&mut self, side: usize) -> &mut Sockets {
        self.stacks[side].sockets()
    }

    /// Runs both until neither has anything to do at this moment.
    pub(crate) fn settle(&mut self) {
        let now = self.now();
        for round in 0.. {
            assert!(round < 1_000_000, "the stacks do not come to rest");
            let mut busy = false;
            for side in 0..2 {
                let poll = self.stacks[side].poll(now);
                self.deadlines[side] = poll.deadline;
                busy |= poll.more_work;
            }
            if !busy && self.stacks.iter_mut().all(Stack::arm) {
                break;
            }
        }
    }

    /// Goes on to the next thing that happens, not beyond `until`. `false`:
    /// nothing happens until then, and it is that late now.
    pub(crate) fn step(&mut self, until: Instant) -> bool {
        let events = self.deadlines.into_iter().flatten();
        let next = events.chain(self.cable.next_arrival()).min();
        let next = next.filter(|at| *at <= until);
        let target = next.unwrap_or(until).max(self.now());
        self.cable.advance_to(target);
        self.settle();
        next.is_some()
    }

    /// Runs for that long.
    pub(crate) fn run(&mut self, duration: Duration) {
        let until = self.now() + duration;
        self.settle();
        while self.step(until) {}
    }

    /// Runs until `done`, for an hour at most.
    pub(crate) fn run_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let until = self.now() + Duration::from_secs(3600);
        self.settle();
        loop {
            let before = self.frames();
            if done(self) {
                return;
            }
            self.settle();
            // What `done` did may have set things off at this very moment.
            if self.frames() == before {
                assert!(self.step(until), "it did not happen within an hour");
            }
        }
    }

    fn frames(&mut self) -> u64 {
        let counters = self
            .stacks
            .iter_mut()
            .map(|stack| stack.sockets().counters());
        counters
            .map(|counters| counters.tx_frames + counters.rx_frames)
            .sum()
    }

    /// A connection from stack 0 to a fresh listener on stack 1.
    pub(crate) fn connected(
        &mut self,
        ipv6: bool,
        port: u16,
    ) -> (guest_stack::tcp::TcpStreamId, guest_stack::tcp::TcpStreamId) {
        self.connected_with(ipv6, port, guest_stack::tcp::options::TcpOptions::default())
    }

    /// The same, both ends with these options.
    pub(crate) fn connected_with(
        &mut self,
        ipv6: bool,
        port: u16,
        options: guest_stack::tcp::options::TcpOptions,
    ) -> (guest_stack::tcp::TcpStreamId, guest_stack::tcp::TcpStreamId) {
        let listener = self.sockets(1).tcp_listen(port, 16, options).unwrap();
        let now = self.now();
        let remote = host(1, ipv6, port);
        let client = self.sockets(0).tcp_connect(now, remote, options).unwrap();
        let mut server = None;
        self.run_until(|pair| {
            server = server.or(pair.sockets(1).tcp_accept(listener).ok());
            server.is_some() && pair.sockets(0).tcp_connected(client).is_ok()
        });
        self.sockets(1).tcp_close_listener(listener);
        (client, server.unwrap().0)
    }
}

/// One stack and a bare end that the test plays.
pub(crate) struct Bench {
    pub(crate) cable: Cable,
    pub(crate) stack: Stack<TestLink>,
    pub(crate) peer: TestLink,
    pub(crate) last: Option<Poll>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(config(7), net(0))
    }

    pub(crate) fn with(config: StackConfig, net: NetConfig) -> Self {
        let cable = Cable::new(1);
        let stack = stack_with(&cable, 0, config, net);
        let peer = cable.end(1);
        let mut bench = Self {
            cable,
            stack,
            peer,
            last: None,
        };
        bench.settle();
        bench.peer.drain();
        bench
    }

    pub(crate) fn now(&self) -> Instant {
        self.cable.now()
    }

    pub(crate) fn settle(&mut self) {
        let now = self.now();
        for round in 0.. {
            assert!(round < 100_000, "the stack does not come to rest");
            let poll = self.stack.poll(now);
            self.last = Some(poll);
            if !poll.more_work && self.stack.arm() {
                break;
            }
        }
    }

    /// Gives the stack a frame and takes what it answers.
    pub(crate) fn exchange(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        self.peer.inject(frame);
        self.settle();
        self.peer.drain()
    }

    /// Lets time pass, polling at every deadline, and takes what is sent.
    pub(crate) fn pass(&mut self, duration: Duration) -> Vec<Vec<u8>> {
        let until = self.now() + duration;
        self.settle();
        let mut frames = self.peer.drain();
        loop {
            let deadline = self.last.and_then(|poll| poll.deadline);
            let next = deadline.filter(|at| *at <= until);
            let target = next.unwrap_or(until).max(self.now());
            self.cable.advance_to(target);
            self.settle();
            frames.extend(self.peer.drain());
            if next.is_none() {
                return frames;
            }
        }
    }

    /// Tells the stack the bare end's hardware address.
    pub(crate) fn introduce_peer(&mut self) {
        let answers = self.exchange(&arp_request());
        assert_eq!(answers.len(), 1, "an ARP reply");
    }
}

/// The bare end asks for the stack's hardware address, which tells its own.
pub(crate) fn arp_request() -> Vec<u8> {
    let mut arp = Vec::new();
    arp.extend_from_slice(&MAC[0]);
    arp.extend_from_slice(&MAC[1]);
    arp.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend_from_slice(&MAC[1]);
    arp.extend_from_slice(&[10, 0, 0, 2]);
    arp.extend_from_slice(&[0; 6]);
    arp.extend_from_slice(&[10, 0, 0, 1]);
    arp
}

/// Bytes that do not repeat soon.
pub(crate) fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}
