//! Whatever the bytes and the chunks are.

use proptest::prelude::*;
use shm_link::fault::{LinkError, PeerFault};
use shm_link::link::{FrameTx, Link, MAX_CONTROL_LEN};
use shm_link::offload::OffloadHeader;
use shm_link::stream::Framing;

use crate::common::{FRAMINGS, Item, Pair, recv, recv_all, send, try_send};

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
