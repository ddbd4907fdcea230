//! The link over byte streams: chunks of any size, damage, back pressure, ends.
//! No real stream here; `stream_fd.rs` has those.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use embedded_io::{ErrorKind, ErrorType, Read, ReadReady, Write, WriteReady};
use proptest::prelude::*;
use shm_link::fault::{LinkError, PeerFault};
use shm_link::link::{FrameRx, FrameTx, Link, MAX_CONTROL_LEN, MAX_FRAME_LEN};
use shm_link::offload::OffloadHeader;
use shm_link::stream::{BufferTooSmall, Framing, MAX_NOISE_LEN, StreamLink};

const FRAMINGS: [Framing; 2] = [Framing::Prefixed, Framing::Serial];

/// One direction of a byte stream, and how it misbehaves.
#[derive(Debug, Default)]
struct Wire {
    bytes: VecDeque<u8>,
    capacity: usize,
    ended: bool,
    broken: Option<ErrorKind>,
    /// Most bytes that the next reads or writes move; 0 is "not ready". When it
    /// runs out, everything goes through.
    chunks: VecDeque<usize>,
    /// Whether a chunk of 0 shows as an interrupted call after "ready".
    surprising: bool,
}

impl Wire {
    fn is_ready(&mut self, possible: bool) -> bool {
        if !possible {
            return false;
        }
        match self.chunks.front() {
            Some(0) if !self.surprising => {
                self.chunks.pop_front();
                false
            }
            _ => true,
        }
    }

    fn chunk(&mut self, most: usize) -> Result<usize, ErrorKind> {
        match self.chunks.pop_front() {
            Some(0) => Err(ErrorKind::Interrupted),
            Some(chunk) => Ok(chunk.min(most)),
            None => Ok(most),
        }
    }
}

#[derive(Debug, Clone)]
struct End(Rc<RefCell<Wire>>);

impl End {
    fn new(capacity: usize) -> Self {
        Self(Rc::new(RefCell::new(Wire {
            capacity,
            ..Wire::default()
        })))
    }

    fn feed(&self, bytes: &[u8]) {
        self.0.borrow_mut().bytes.extend(bytes);
    }

    fn take(&self) -> Vec<u8> {
        self.0.borrow_mut().bytes.drain(..).collect()
    }

    fn len(&self) -> usize {
        self.0.borrow().bytes.len()
    }

    fn end(&self) {
        self.0.borrow_mut().ended = true;
    }
}

impl ErrorType for End {
    type Error = ErrorKind;
}

impl ReadReady for End {
    fn read_ready(&mut self) -> Result<bool, ErrorKind> {
        let mut wire = self.0.borrow_mut();
        let possible = !wire.bytes.is_empty() || wire.ended || wire.broken.is_some();
        Ok(wire.is_ready(possible))
    }
}

impl Read for End {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, ErrorKind> {
        assert!(!buf.is_empty(), "a read into nothing looks like the end");
        let mut wire = self.0.borrow_mut();
        if let Some(kind) = wire.broken {
            return Err(kind);
        }
        if wire.bytes.is_empty() {
            assert!(wire.ended, "this read would have waited");
            return Ok(0);
        }
        let most = buf.len().min(wire.bytes.len());
        let len = wire.chunk(most)?;
        for (to, byte) in buf.iter_mut().zip(wire.bytes.drain(..len)) {
            *to = byte;
        }
        Ok(len)
    }
}

impl WriteReady for End {
    fn write_ready(&mut self) -> Result<bool, ErrorKind> {
        let mut wire = self.0.borrow_mut();
        let possible = wire.bytes.len() < wire.capacity || wire.broken.is_some();
        Ok(wire.is_ready(possible))
    }
}

impl Write for End {
    fn write(&mut self, buf: &[u8]) -> Result<usize, ErrorKind> {
        assert!(!buf.is_empty());
        let mut wire = self.0.borrow_mut();
        if let Some(kind) = wire.broken {
            return Err(kind);
        }
        let room = wire.capacity - wire.bytes.len();
        assert!(room > 0, "this write would have waited");
        let len = wire.chunk(buf.len().min(room))?;
        wire.bytes.extend(&buf[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> Result<(), ErrorKind> {
        Ok(())
    }
}

type TestLink = StreamLink<End, End, Vec<u8>>;

fn link_of(framing: Framing, max_frame_len: usize, reader: &End, writer: &End) -> TestLink {
    let buf = || vec![0xee; framing.buffer_len(max_frame_len)];
    let (rx, tx) = ((reader.clone(), buf()), (writer.clone(), buf()));
    StreamLink::new(framing, max_frame_len, rx, tx).unwrap()
}

/// A link that sends into a wire, and one that receives out of it.
struct Pair {
    sender: TestLink,
    receiver: TestLink,
    wire: End,
}

impl Pair {
    fn new(framing: Framing) -> Self {
        Self::with(framing, MAX_FRAME_LEN, usize::MAX)
    }

    fn with(framing: Framing, max_frame_len: usize, capacity: usize) -> Self {
        let (wire, back) = (End::new(capacity), End::new(usize::MAX));
        Self {
            sender: link_of(framing, max_frame_len, &back, &wire),
            receiver: link_of(framing, max_frame_len, &wire, &back),
            wire,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    Frame(OffloadHeader, Vec<u8>),
    Control(Vec<u8>),
}

fn frame(bytes: impl Into<Vec<u8>>) -> Item {
    Item::Frame(OffloadHeader::NONE, bytes.into())
}

/// Sends; `false`: no room now.
fn try_send(link: &mut TestLink, item: &Item) -> Result<bool, LinkError> {
    match item {
        Item::Frame(offload, bytes) => {
            let (_, tx) = link.split();
            let Some(room) = tx.reserve(bytes.len())? else {
                return Ok(false);
            };
            room.copy_from_slice(bytes);
            tx.commit(bytes.len(), *offload);
            tx.flush();
            Ok(true)
        }
        Item::Control(bytes) => link.send_control(bytes),
    }
}

fn send(link: &mut TestLink, item: &Item) {
    assert_eq!(try_send(link, item), Ok(true));
}

fn recv(link: &mut TestLink) -> Result<Option<Item>, LinkError> {
    let mut buf = [0; MAX_CONTROL_LEN];
    if let Some(len) = link.recv_control(&mut buf)? {
        return Ok(Some(Item::Control(buf[..len].to_vec())));
    }
    let (rx, _) = link.split();
    let item = rx
        .peek()?
        .map(|(offload, bytes)| Item::Frame(offload, bytes.to_vec()));
    if item.is_some() {
        let again = rx.peek()?.map(|(o, bytes)| Item::Frame(o, bytes.to_vec()));
        assert_eq!(again, item, "peeking does not change anything");
        rx.consume();
        rx.flush();
    }
    Ok(item)
}

/// Everything that is to be had, and how it ended, if it did.
fn recv_all(link: &mut TestLink, wire: &End) -> (Vec<Item>, Option<LinkError>) {
    let mut items = Vec::new();
    loop {
        match recv(link) {
            Ok(Some(item)) => items.push(item),
            Ok(None) => {
                let asleep = link.arm(None) == Ok(true);
                let wire = wire.0.borrow();
                let idle = wire.bytes.is_empty() && !wire.ended;
                if asleep && (idle || wire.chunks.is_empty()) {
                    return (items, None);
                }
            }
            Err(error) => return (items, Some(error)),
        }
    }
}

/// Bytes in which zeros and runs without zeros are frequent.
fn body(max: usize) -> impl Strategy<Value = Vec<u8>> {
    let fill = prop_oneof![Just(0u8), Just(1), Just(0xff), any::<u8>()];
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..=max.min(600)),
        (fill, 1..=max).prop_map(|(byte, len)| vec![byte; len]),
        (1..=max).prop_map(|len| (0..len).map(|i| (i % 251) as u8).collect()),
    ]
}

fn item(max_frame: usize) -> impl Strategy<Value = Item> {
    prop_oneof![
        3 => (any::<[u8; 12]>(), body(max_frame))
            .prop_map(|(header, bytes)| Item::Frame(OffloadHeader::from_bytes(header), bytes)),
        1 => body(MAX_CONTROL_LEN).prop_map(Item::Control),
    ]
}

fn chunks() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(prop_oneof![0..4usize, 0..40usize, 0..5000usize], 0..200)
}

proptest! {
    #[test]
    fn whatever_the_chunks_everything_arrives_once_in_order_and_unchanged(
        serial: bool,
        surprising: bool,
        sent in proptest::collection::vec(item(6000), 1..30),
        chunks in chunks(),
        capacity in 1..20_000usize,
    ) {
        let framing = FRAMINGS[usize::from(serial)];
        let mut pair = Pair::with(framing, 6000, capacity);
        pair.wire.0.borrow_mut().chunks = chunks.into();
        pair.wire.0.borrow_mut().surprising = surprising;
        let mut received = Vec::new();
        let mut to_send = sent.iter().peekable();
        let mut turns = 0;
        while received.len() < sent.len() {
            while let Some(item) = to_send.peek() {
                if !try_send(&mut pair.sender, item).unwrap() {
                    break;
                }
                to_send.next();
            }
            pair.sender.split().1.flush();
            while let Some(item) = recv(&mut pair.receiver).unwrap() {
                received.push(item);
            }
            turns += 1;
            prop_assert!(turns < 500_000, "stuck");
        }
        prop_assert_eq!(received, sent);
        prop_assert_eq!(pair.receiver.rx().dropped_records(), 0);
        prop_assert!(!pair.sender.wants_write());
    }

    #[test]
    fn damage_on_a_serial_line_costs_the_damaged_records_only(
        sent in proptest::collection::vec(item(1500), 2..20),
        damage in proptest::collection::vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..3u8, any::<u8>()),
            1..6,
        ),
        chunks in chunks(),
    ) {
        let mut pair = Pair::with(Framing::Serial, 1500, usize::MAX);
        pair.sender.split().1.flush();
        let mut records = vec![pair.wire.take()];
        for item in &sent {
            send(&mut pair.sender, item);
            records.push(pair.wire.take());
        }
        let mut harmed = vec![false; records.len()];
        for (which, at, how, byte) in damage {
            let which = which.index(records.len());
            harmed[which] = true;
            let record = &mut records[which];
            if record.is_empty() {
                continue;
            }
            let at = at.index(record.len());
            match how {
                0 => record[at] = byte,
                1 => drop(record.remove(at)),
                _ => record.insert(at, byte),
            }
        }
        for record in &records {
            pair.wire.feed(record);
        }
        pair.wire.0.borrow_mut().chunks = chunks.into();
        let (received, error) = recv_all(&mut pair.receiver, &pair.wire);
        prop_assert_eq!(error, None);
        // Every received one was sent, in that order, and none that was left
        // alone is missing. (A harmed one may still arrive whole: a zero more
        // between two records harms nobody.)
        let mut received = received.into_iter().peekable();
        for (item, harmed) in sent.iter().zip(&harmed[1..]) {
            if received.peek() == Some(item) {
                received.next();
            } else {
                prop_assert!(*harmed, "lost a record that was not damaged");
            }
        }
        prop_assert_eq!(received.next(), None, "a record that nobody sent");
    }

    #[test]
    fn no_bytes_make_a_receiver_panic_or_read_for_ever(
        serial: bool,
        greeted: bool,
        bytes in proptest::collection::vec(prop_oneof![Just(0u8), 0..4u8, any::<u8>()], 0..4000),
        chunks in chunks(),
    ) {
        let mut pair = Pair::with(FRAMINGS[usize::from(serial)], 1500, usize::MAX);
        if greeted {
            pair.sender.split().1.flush();
        }
        pair.wire.feed(&bytes);
        pair.wire.0.borrow_mut().chunks = chunks.into();
        pair.wire.end();
        let (items, error) = recv_all(&mut pair.receiver, &pair.wire);
        prop_assert!(items.len() <= bytes.len());
        let error = error.expect("the stream has ended");
        let expected = [LinkError::Closed, LinkError::Fault(PeerFault::Framing)];
        prop_assert!(expected.contains(&error), "{:?}", error);
        prop_assert_eq!(recv(&mut pair.receiver), Err(error), "for good");
    }
}

#[test]
fn frames_of_the_greatest_length_go_through_the_smallest_buffers() {
    for framing in FRAMINGS {
        let mut pair = Pair::new(framing);
        for fill in [0x00, 0x5a, 0xff] {
            let item = frame(vec![fill; MAX_FRAME_LEN]);
            send(&mut pair.sender, &item);
            assert_eq!(recv(&mut pair.receiver), Ok(Some(item)));
        }
        assert_eq!(pair.sender.split().1.reserve(MAX_FRAME_LEN + 1), Ok(None));
        assert_eq!(pair.sender.split().1.max_frame_len(), MAX_FRAME_LEN);
    }
}

#[test]
fn a_buffer_that_is_too_small_is_named() {
    for framing in FRAMINGS {
        let needed_bytes = framing.buffer_len(1514);
        let (reader, writer) = (End::new(1), End::new(1));
        let result = StreamLink::new(
            framing,
            1514,
            (reader, vec![0; needed_bytes]),
            (writer, vec![0; needed_bytes - 1]),
        );
        assert_eq!(result.unwrap_err(), BufferTooSmall { needed_bytes });
    }
}

#[test]
fn a_frame_may_be_committed_shorter_than_it_was_reserved() {
    for framing in FRAMINGS {
        let mut pair = Pair::new(framing);
        let (_, tx) = pair.sender.split();
        let room = tx.reserve(9000).unwrap().unwrap();
        room[..3].copy_from_slice(b"abc");
        tx.commit(3, OffloadHeader::NONE);
        tx.flush();
        assert_eq!(recv(&mut pair.receiver), Ok(Some(frame(b"abc"))));
    }
}

#[test]
#[should_panic(expected = "committed what was not reserved")]
fn committing_more_than_was_reserved_is_a_mistake_of_the_caller() {
    let mut pair = Pair::new(Framing::Prefixed);
    let (_, tx) = pair.sender.split();
    tx.reserve(10).unwrap().unwrap();
    tx.commit(11, OffloadHeader::NONE);
}

#[test]
fn without_room_nothing_is_reserved_until_the_pending_bytes_went_out() {
    for framing in FRAMINGS {
        let mut pair = Pair::with(framing, 3000, 100);
        let item = frame(vec![7; 3000]);
        let mut sent = 0;
        while try_send(&mut pair.sender, &item).unwrap() {
            sent += 1;
            assert!(sent < 10, "the buffer never fills");
        }
        assert!(pair.sender.wants_write());
        assert_eq!(pair.sender.send_control(&[1; 2000]), Ok(false));
        assert_eq!(pair.sender.arm(Some(3000)), Ok(true), "the wire is full");
        let mut received = 0;
        while pair.sender.wants_write() || pair.wire.len() > 0 {
            while let Some(got) = recv(&mut pair.receiver).unwrap() {
                assert_eq!(got, item);
                received += 1;
            }
            pair.sender.split().1.flush();
        }
        assert_eq!(received, sent);
        assert_eq!(pair.sender.arm(Some(3000)), Ok(false), "there is room now");
        assert_eq!(try_send(&mut pair.sender, &item), Ok(true));
    }
}

#[test]
fn who_waits_for_room_alone_sleeps_although_frames_wait() {
    for framing in FRAMINGS {
        let mut pair = Pair::with(framing, 3000, 100);
        let item = frame(vec![7; 3000]);
        assert_eq!(pair.sender.arm_for_room(3000), Ok(false), "there is room");
        while try_send(&mut pair.sender, &item).unwrap() {}
        assert_eq!(pair.sender.arm_for_room(3000), Ok(true));
        assert!(pair.sender.wants_write() && !pair.sender.wants_read());
        pair.sender.disarm();
        assert!(pair.sender.wants_read());

        let mut turns = 0;
        while pair.sender.arm_for_room(3000).unwrap() {
            recv(&mut pair.receiver).unwrap();
            turns += 1;
            assert!(turns < 1000, "there is never room");
        }
        assert!(turns > 0 && pair.sender.wants_read());
    }
}

#[test]
fn arming_says_whether_there_is_work() {
    for framing in FRAMINGS {
        let mut pair = Pair::new(framing);
        assert_eq!(pair.receiver.arm(None), Ok(true));
        assert_eq!(pair.sender.arm(None), Ok(true));
        assert!(pair.wire.len() > 0, "arming wrote the greeting");
        assert_eq!(pair.receiver.arm(None), Ok(true), "a greeting is no work");

        send(&mut pair.sender, &frame(b"one"));
        send(&mut pair.sender, &frame(b"two"));
        assert_eq!(pair.receiver.arm(None), Ok(false), "a frame arrived");
        assert_eq!(recv(&mut pair.receiver), Ok(Some(frame(b"one"))));
        assert_eq!(pair.wire.len(), 0);
        assert_eq!(pair.receiver.arm(None), Ok(false), "one is in the buffer");
        assert_eq!(recv(&mut pair.receiver), Ok(Some(frame(b"two"))));
        assert_eq!(pair.receiver.arm(None), Ok(true));
        assert_eq!(pair.receiver.arm(Some(100)), Ok(false), "there is room");

        send(&mut pair.sender, &Item::Control(vec![1, 2]));
        assert_eq!(pair.receiver.arm(None), Ok(false), "a message arrived");
        assert_eq!(
            recv(&mut pair.receiver),
            Ok(Some(Item::Control(vec![1, 2])))
        );

        send(&mut pair.sender, &frame(b"three"));
        let whole = pair.wire.take();
        let (front, rest) = whole.split_at(whole.len() / 2);
        pair.wire.feed(front);
        assert_eq!(pair.receiver.arm(None), Ok(true), "a part is no work");
        pair.wire.feed(rest);
        assert_eq!(pair.receiver.arm(None), Ok(false));
        pair.receiver.disarm();
        assert_eq!(recv(&mut pair.receiver), Ok(Some(frame(b"three"))));
    }
}

#[test]
fn a_control_message_hides_the_frames_behind_it_and_a_frame_the_messages() {
    for framing in FRAMINGS {
        let mut pair = Pair::new(framing);
        send(&mut pair.sender, &Item::Control(vec![1]));
        send(&mut pair.sender, &frame(b"f"));
        send(&mut pair.sender, &Item::Control(vec![2]));
        let mut buf = [0; 64];
        let (rx, _) = pair.receiver.split();
        assert_eq!(rx.peek(), Ok(None));
        rx.consume();
        assert_eq!(pair.receiver.recv_control(&mut buf), Ok(Some(1)));
        assert_eq!(pair.receiver.recv_control(&mut buf), Ok(None));
        let (rx, _) = pair.receiver.split();
        assert_eq!(rx.peek(), Ok(Some((OffloadHeader::NONE, &b"f"[..]))));
        rx.consume();
        assert_eq!(pair.receiver.recv_control(&mut buf), Ok(Some(1)));
        assert_eq!(buf[0], 2);
    }
}

#[test]
fn a_control_message_longer_than_the_callers_buffer_is_a_fault() {
    let mut pair = Pair::new(Framing::Prefixed);
    send(&mut pair.sender, &Item::Control(vec![1; 100]));
    assert_eq!(
        pair.receiver.recv_control(&mut [0; 99]),
        Err(LinkError::Fault(PeerFault::RecordLength))
    );
}

#[test]
fn control_messages_of_impossible_length_are_not_sent() {
    let mut pair = Pair::new(Framing::Prefixed);
    assert_eq!(pair.sender.send_control(&[]), Ok(false));
    let long = [0; MAX_CONTROL_LEN + 1];
    assert_eq!(pair.sender.send_control(&long), Ok(false));
    assert_eq!(pair.sender.send_control(&long[1..]), Ok(true));
}

#[test]
fn what_was_sent_before_a_close_arrives_and_then_the_link_is_closed() {
    for framing in FRAMINGS {
        // A wire so narrow that the close has to wait for its turn.
        let mut pair = Pair::with(framing, 1500, 10);
        send(&mut pair.sender, &frame(vec![3; 1500]));
        pair.sender.close();
        pair.sender.close();
        assert!(pair.sender.wants_write());
        let closed = Err(LinkError::Closed);
        assert_eq!(try_send(&mut pair.sender, &frame(b"late")), closed);
        let mut received = Vec::new();
        let error = loop {
            match recv(&mut pair.receiver) {
                Ok(Some(item)) => received.push(item),
                Ok(None) => pair.sender.split().1.flush(),
                Err(error) => break error,
            }
        };
        assert_eq!(error, LinkError::Closed);
        assert_eq!(received, [frame(vec![3; 1500])]);
        assert!(!pair.sender.wants_write());
        assert_eq!(pair.receiver.arm(None), Err(LinkError::Closed));

        // The other direction is still open.
        send(&mut pair.receiver, &frame(b"answer"));
        assert_eq!(recv(&mut pair.sender), Ok(Some(frame(b"answer"))));
    }
}

#[test]
fn an_end_between_records_and_one_in_the_middle_both_close_the_link() {
    for framing in FRAMINGS {
        for missing in [0, 1, 5] {
            let mut pair = Pair::new(framing);
            send(&mut pair.sender, &frame(b"whole"));
            send(&mut pair.sender, &frame(b"perhaps cut"));
            let bytes = pair.wire.take();
            pair.wire.feed(&bytes[..bytes.len() - missing]);
            pair.wire.end();
            let (items, error) = recv_all(&mut pair.receiver, &pair.wire);
            assert_eq!(error, Some(LinkError::Closed));
            let cut = missing > 0;
            assert_eq!(items.len(), if cut { 1 } else { 2 });
            assert_eq!(pair.receiver.rx().dropped_records(), cut.into());
        }
    }
}

#[test]
fn a_peer_that_speaks_something_else_is_noticed_at_its_first_wrong_byte() {
    for words in [&b"S"[..], b"GET / HTTP/1.1\r\n", &[8, 0, 0, 1], &[0]] {
        let mut pair = Pair::new(Framing::Prefixed);
        pair.wire.feed(words);
        let fault = LinkError::Fault(PeerFault::Framing);
        assert_eq!(
            recv_all(&mut pair.receiver, &pair.wire),
            (vec![], Some(fault))
        );
        assert_eq!(pair.receiver.arm(None), Err(fault));
    }
}

#[test]
fn a_peer_with_the_other_framing_is_noticed() {
    let wire = End::new(usize::MAX);
    let back = End::new(usize::MAX);
    let mut serial = link_of(Framing::Serial, 1500, &back, &wire);
    let mut prefixed = link_of(Framing::Prefixed, 1500, &wire, &back);
    serial.split().1.flush();
    assert_eq!(
        recv(&mut prefixed),
        Err(LinkError::Fault(PeerFault::Framing))
    );
}

#[test]
fn a_greeting_of_another_layout_is_a_fault() {
    for framing in FRAMINGS {
        let mut pair = Pair::new(framing);
        pair.sender.split().1.flush();
        let mut bytes = pair.wire.take();
        match framing {
            Framing::Prefixed => *bytes.iter_mut().rev().nth(1).unwrap() = 2,
            Framing::Serial => {
                // Decoded, changed, and encoded again with a good checksum.
                let mut record = cobs::decode_vec(&bytes[1..bytes.len() - 1]).unwrap();
                record.truncate(record.len() - 4);
                *record.iter_mut().rev().nth(1).unwrap() = 2;
                let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);
                let crc = crc.checksum(&record);
                record.extend(crc.to_le_bytes());
                bytes = cobs::encode_vec(&record);
                bytes.push(0);
            }
        }
        pair.wire.feed(&bytes);
        assert_eq!(
            recv(&mut pair.receiver),
            Err(LinkError::Fault(PeerFault::Framing))
        );
    }
}

#[test]
fn a_record_longer_than_agreed_is_a_fault_on_a_stream_and_damage_on_a_line() {
    for framing in FRAMINGS {
        let (wire, back) = (End::new(usize::MAX), End::new(usize::MAX));
        let mut sender = link_of(framing, 9000, &back, &wire);
        let mut receiver = link_of(framing, 3000, &wire, &back);
        send(&mut sender, &frame(vec![1; 3001]));
        send(&mut sender, &frame(vec![2; 9000]));
        send(&mut sender, &frame(vec![3; 3000]));
        let (items, error) = recv_all(&mut receiver, &wire);
        match framing {
            Framing::Prefixed => {
                assert_eq!(error, Some(LinkError::Fault(PeerFault::Framing)));
                assert_eq!(items, []);
            }
            Framing::Serial => {
                assert_eq!(error, None);
                assert_eq!(items, [frame(vec![3; 3000])]);
                assert_eq!(receiver.rx().dropped_records(), 2);
            }
        }
    }
}

#[test]
fn boot_messages_before_a_peer_on_a_serial_line_are_passed_over() {
    let mut pair = Pair::new(Framing::Serial);
    let line = b"[    0.000000] Linux version 6.18 and so on, and so on\r\n";
    for _ in 0..5000 {
        pair.wire.feed(line);
    }
    send(&mut pair.sender, &frame(b"hello"));
    let (items, error) = recv_all(&mut pair.receiver, &pair.wire);
    assert_eq!((items, error), (vec![frame(b"hello")], None));
    assert_eq!(pair.receiver.rx().dropped_records(), 1);
}

#[test]
fn a_serial_line_with_nothing_but_noise_is_given_up() {
    for zeros in [false, true] {
        let mut pair = Pair::new(Framing::Serial);
        let mut fed = 0;
        let error = loop {
            let mut noise = vec![b'x'; 1000];
            if zeros {
                noise[500] = 0;
            }
            pair.wire.feed(&noise);
            fed += noise.len();
            assert!(fed < 2 * MAX_NOISE_LEN, "never given up");
            match recv(&mut pair.receiver) {
                Ok(item) => assert_eq!(item, None),
                Err(error) => break error,
            }
        };
        assert_eq!(error, LinkError::Fault(PeerFault::Framing));
        assert!(fed > MAX_NOISE_LEN);
    }
}

#[test]
fn a_noisy_line_with_good_records_now_and_then_is_kept() {
    let mut pair = Pair::with(Framing::Serial, 1500, usize::MAX);
    let noise = vec![b'x'; MAX_NOISE_LEN / 4];
    for _ in 0..8 {
        pair.wire.feed(&noise);
        send(&mut pair.sender, &frame(b"good"));
        let (items, error) = recv_all(&mut pair.receiver, &pair.wire);
        assert_eq!((items, error), (vec![frame(b"good")], None));
    }
}

#[test]
fn a_write_that_fails_although_ready_is_tried_again_before_sleeping() {
    let mut pair = Pair::new(Framing::Prefixed);
    pair.wire.0.borrow_mut().surprising = true;
    pair.wire.0.borrow_mut().chunks = vec![0, 0].into();
    send(&mut pair.sender, &frame(b"late"));
    assert_eq!(pair.sender.arm(None), Ok(false), "it could be written now");
    assert_eq!(pair.sender.arm(None), Ok(true));
    assert_eq!(recv(&mut pair.receiver), Ok(Some(frame(b"late"))));
}

#[test]
fn much_noise_is_read_one_buffer_at_a_time() {
    let mut pair = Pair::with(Framing::Serial, 1500, usize::MAX);
    let buffer = Framing::Serial.buffer_len(1500);
    pair.wire.feed(&vec![b'x'; 10 * buffer]);
    assert_eq!(recv(&mut pair.receiver), Ok(None));
    assert!(pair.wire.len() >= 6 * buffer);
    assert_eq!(pair.receiver.arm(None), Ok(false), "there is more to read");
}

#[test]
fn a_peer_that_restarts_on_a_serial_line_changes_the_generation() {
    let mut pair = Pair::new(Framing::Serial);
    send(&mut pair.sender, &frame(b"one"));
    assert_eq!(recv(&mut pair.receiver), Ok(Some(frame(b"one"))));
    let generation = pair.receiver.generation();
    // The first peer dies in the middle of a frame; the next one greets.
    send(&mut pair.sender, &frame(b"lost"));
    let bytes = pair.wire.take();
    pair.wire.feed(&bytes[..10]);
    pair.sender = link_of(Framing::Serial, MAX_FRAME_LEN, &End::new(1), &pair.wire);
    send(&mut pair.sender, &frame(b"two"));
    assert_eq!(recv(&mut pair.receiver), Ok(Some(frame(b"two"))));
    assert_ne!(pair.receiver.generation(), generation);
    assert_eq!(pair.receiver.rx().dropped_records(), 1);
}

#[test]
fn a_host_may_greet_a_serial_line_again_and_a_reliable_stream_not() {
    let mut pair = Pair::new(Framing::Serial);
    send(&mut pair.sender, &frame(b"one"));
    assert_eq!(recv(&mut pair.receiver), Ok(Some(frame(b"one"))));
    let generation = pair.receiver.generation();
    assert_eq!(pair.sender.greet_again(), Ok(true));
    assert_eq!(recv(&mut pair.receiver), Ok(None));
    assert_ne!(pair.receiver.generation(), generation);
    let mut pair = Pair::new(Framing::Prefixed);
    send(&mut pair.sender, &frame(b"one"));
    assert_eq!(pair.sender.greet_again(), Ok(false));
    assert_eq!(recv(&mut pair.receiver), Ok(Some(frame(b"one"))));
    assert_eq!(recv(&mut pair.receiver), Ok(None));
}

#[test]
fn a_second_greeting_on_a_reliable_stream_is_a_fault() {
    let mut pair = Pair::new(Framing::Prefixed);
    pair.sender.split().1.flush();
    let greeting = pair.wire.take();
    pair.wire.feed(&greeting);
    pair.wire.feed(&greeting);
    assert_eq!(
        recv(&mut pair.receiver),
        Err(LinkError::Fault(PeerFault::Framing))
    );
}

#[test]
fn an_error_of_the_stream_ends_the_direction_that_met_it() {
    let cases = [
        (ErrorKind::Other, LinkError::Io(ErrorKind::Other)),
        (ErrorKind::ConnectionReset, LinkError::Closed),
        (ErrorKind::BrokenPipe, LinkError::Closed),
    ];
    for (kind, expected) in cases {
        let mut pair = Pair::new(Framing::Prefixed);
        send(&mut pair.sender, &frame(b"one"));
        assert_eq!(recv(&mut pair.receiver), Ok(Some(frame(b"one"))));
        pair.wire.0.borrow_mut().broken = Some(kind);
        assert_eq!(recv(&mut pair.receiver), Err(expected));
        let (_, tx) = pair.sender.split();
        tx.reserve(4).unwrap().unwrap().fill(1);
        tx.commit(4, OffloadHeader::NONE);
        tx.flush();
        assert_eq!(tx.reserve(4), Err(expected));
        assert!(!pair.sender.wants_write());
        assert_eq!(pair.sender.arm(None), Err(expected));
        pair.wire.0.borrow_mut().broken = None;
        assert_eq!(recv(&mut pair.receiver), Err(expected), "for good");
        assert_eq!(try_send(&mut pair.sender, &frame(b"x")), Err(expected));
    }
}
