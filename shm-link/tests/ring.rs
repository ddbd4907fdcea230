//! Rings, records and links by operations, and against a peer that writes
//! nonsense.

mod common;

use common::{Count, region};
use proptest::collection::vec;
use proptest::prelude::*;
use shm_link::fault::{LinkError, PeerFault};
use shm_link::link::{FrameRx, FrameTx, Link, MAX_FRAME_LEN};
use shm_link::offload::OffloadHeader;
use shm_link::record::{RecordReader, RecordWriter};
use shm_link::region::Region;
use shm_link::ring::{Arm, Consumer, Producer, RING_HEADER_LEN, Wake};
use shm_link::shm::{HostEnd, ShmLink};
use shm_link::superblock::{Layout, LayoutOptions};
use std::collections::VecDeque;

fn ring(capacity: usize) -> (Producer, Consumer, Region) {
    let region = region(RING_HEADER_LEN + capacity);
    (
        Producer::resume(region.clone()).unwrap(),
        Consumer::resume(region.clone()).unwrap(),
        region,
    )
}

fn records(capacity: usize) -> (RecordWriter, RecordReader, Region) {
    let (tx, rx, region) = ring(capacity);
    (
        RecordWriter::new(tx, MAX_FRAME_LEN).unwrap(),
        RecordReader::new(rx, MAX_FRAME_LEN).unwrap(),
        region,
    )
}

fn body(reader: &mut RecordReader) -> Result<Option<Vec<u8>>, PeerFault> {
    Ok(reader.peek()?.map(|record| {
        let mut copy = vec![0; record.len];
        // SAFETY: a record shown by `peek` has `len` readable bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(record.body.as_ptr(), copy.as_mut_ptr(), record.len)
        };
        copy
    }))
}

#[derive(Debug, Clone)]
enum Op {
    Write(Vec<u8>),
    Read(usize),
    PublishTx,
    PublishRx,
    /// Both owners die and are replaced: what was published is what counts.
    Resume,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    vec(
        prop_oneof![
            4 => vec(any::<u8>(), 0..3000).prop_map(Op::Write),
            4 => (0usize..5000).prop_map(Op::Read),
            2 => Just(Op::PublishTx),
            2 => Just(Op::PublishRx),
            1 => Just(Op::Resume),
        ],
        1..60,
    )
}

proptest! {
    #[test]
    fn a_ring_is_a_queue_of_bytes_whatever_the_order_of_operations(ops in ops()) {
        let (mut tx, mut rx, region) = ring(4096);
        // Bytes written and not published, published and not read, read and not
        // given back.
        let (mut written, mut visible, mut held) = (VecDeque::new(), VecDeque::new(), VecDeque::<u8>::new());
        for op in ops {
            match op {
                Op::Write(bytes) => {
                    let room = 4096 - written.len() - visible.len() - held.len();
                    prop_assert_eq!(tx.writable_len().unwrap(), room);
                    let n = tx.write(&bytes).unwrap();
                    prop_assert_eq!(n, bytes.len().min(room));
                    written.extend(&bytes[..n]);
                }
                Op::Read(len) => {
                    prop_assert_eq!(rx.readable_len().unwrap(), visible.len());
                    let mut to = vec![0; len];
                    let n = rx.read(&mut to).unwrap();
                    let expected: Vec<u8> = visible.drain(..len.min(visible.len())).collect();
                    prop_assert_eq!(&to[..n], &expected[..]);
                    held.extend(expected);
                }
                Op::PublishTx => {
                    prop_assert_eq!(tx.publish(), Wake::NotNeeded);
                    visible.append(&mut written);
                }
                Op::PublishRx => {
                    prop_assert_eq!(rx.publish(), Wake::NotNeeded);
                    held.clear();
                }
                Op::Resume => {
                    tx = Producer::resume(region.clone()).unwrap();
                    rx = Consumer::resume(region.clone()).unwrap();
                    written.clear();
                    held.append(&mut visible);
                    std::mem::swap(&mut held, &mut visible);
                }
            }
        }
    }

    #[test]
    fn records_arrive_whole_and_in_order(lens in vec(1usize..2000, 1..200), batch in 1usize..8) {
        let (mut tx, mut rx, _) = records(8192);
        let mut sent = VecDeque::new();
        let frame = |i: usize, len: usize| -> Vec<u8> { (0..len).map(|k| (i * 7 + k) as u8).collect() };
        for (i, &len) in lens.iter().enumerate() {
            let offload = OffloadHeader { csum_start: i as u16, ..OffloadHeader::NONE };
            while !tx.write(&frame(i, len), offload).unwrap() {
                let _ = tx.publish();
                let (j, len) = sent.pop_front().expect("a full ring has records");
                prop_assert_eq!(rx.peek().unwrap().unwrap().offload.csum_start, j as u16);
                prop_assert_eq!(body(&mut rx).unwrap().unwrap(), frame(j, len));
                rx.consume();
                let _ = rx.publish();
            }
            sent.push_back((i, len));
            if i % batch == 0 {
                let _ = tx.publish();
            }
        }
        let _ = tx.publish();
        for (j, len) in sent {
            prop_assert_eq!(body(&mut rx).unwrap().unwrap(), frame(j, len));
            rx.consume();
        }
        prop_assert!(body(&mut rx).unwrap().is_none());
    }

    /// Bodies that are joined and bodies that are not arrive as if each had been
    /// written at once.
    #[test]
    fn joined_records_arrive_as_one(
        parts in vec((1usize..1500, 0usize..200, any::<bool>()), 1..200),
        batch in 1usize..12,
    ) {
        let (mut tx, mut rx, _) = records(8192);
        let mut expected: VecDeque<Vec<u8>> = VecDeque::new();
        let mut fresh = false;
        for (i, &(len, from, join)) in parts.iter().enumerate() {
            let bytes: Vec<u8> = (0..len).map(|k| (i * 13 + k) as u8).collect();
            let room = loop {
                if let Some(room) = tx.reserve(len).unwrap() {
                    break room;
                }
                let _ = tx.publish();
                fresh = false;
                let whole = expected.pop_front().expect("a full ring has records");
                prop_assert_eq!(body(&mut rx).unwrap().unwrap(), whole);
                rx.consume();
                let _ = rx.publish();
            };
            // SAFETY: `room` has `len` free bytes.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), room.as_ptr(), len) };
            let from = from.min(len);
            let joined = if join { tx.join(from, len, OffloadHeader::NONE) } else { None };
            if let Some((start, joined_len)) = joined {
                prop_assert!(fresh, "what was published is not changed any more");
                let last = expected.back_mut().unwrap();
                last.extend_from_slice(&bytes[from..]);
                prop_assert_eq!(joined_len, last.len());
                // SAFETY: the joined body has that many bytes.
                let whole = unsafe { std::slice::from_raw_parts(start.as_ptr(), joined_len) };
                prop_assert_eq!(whole, &last[..]);
            } else {
                tx.commit(len, OffloadHeader::NONE);
                expected.push_back(bytes);
            }
            fresh = true;
            if i % batch == 0 {
                let _ = tx.publish();
                fresh = false;
            }
        }
        let _ = tx.publish();
        for whole in expected {
            prop_assert_eq!(body(&mut rx).unwrap().unwrap(), whole);
            rx.consume();
        }
        prop_assert!(body(&mut rx).unwrap().is_none());
    }

    /// The reader is bounded and stays inside the ring for any bytes in it.
    #[test]
    fn random_bytes_over_a_ring_are_records_or_a_fault(
        bytes in vec(prop_oneof![3 => Just(0u8), 2 => any::<u8>(), 1 => Just(0xff)], 4096),
        small_lens in vec((0usize..256, 0u32..300), 0..40),
        cursors in vec((prop_oneof![Just(0usize), Just(128), Just(256), Just(384)], prop_oneof![0u64..9000, any::<u64>()]), 0..4),
        tail in (0u64..=256).prop_map(|n| n * 16),
    ) {
        let (_, _, region) = ring(4096);
        region.copy_in(RING_HEADER_LEN, &bytes).unwrap();
        for (slot, len) in small_lens {
            region.copy_in(RING_HEADER_LEN + slot * 16, &len.to_le_bytes()).unwrap();
        }
        region.copy_in(0, &tail.to_le_bytes()).unwrap();
        for (at, value) in cursors {
            region.copy_in(at, &value.to_le_bytes()).unwrap();
        }
        let Ok(ring) = Consumer::resume(region.clone()) else { return Ok(()) };
        let Ok(mut rx) = RecordReader::new(ring, 2000) else { return Ok(()) };
        let mut seen = 0;
        while let Ok(Some(record)) = rx.peek() {
            let start = record.body.as_ptr() as usize - region.as_ptr().as_ptr() as usize;
            prop_assert!(start >= RING_HEADER_LEN + 16 && start + record.len <= region.len());
            prop_assert!((1..=2000).contains(&record.len));
            rx.consume();
            seen += 1;
            prop_assert!(seen <= 4096 / 16, "more records than the ring can hold");
        }
    }
}

#[test]
fn the_longest_frame_crosses_a_default_ring_at_every_offset() {
    let (mut tx, mut rx, _) = records(512 << 10);
    assert_eq!(tx.max_len(), MAX_FRAME_LEN);
    let frame: Vec<u8> = (0..MAX_FRAME_LEN).map(|i| (i % 251) as u8).collect();
    for step in 0..64 {
        assert!(tx.write(&frame, OffloadHeader::NONE).unwrap());
        // A short one shifts the next.
        assert!(
            tx.write(&frame[..step * 16 + 1], OffloadHeader::NONE)
                .unwrap()
        );
        let _ = tx.publish();
        assert_eq!(body(&mut rx).unwrap().unwrap(), frame);
        rx.consume();
        assert_eq!(body(&mut rx).unwrap().unwrap().len(), step * 16 + 1);
        rx.consume();
        let _ = rx.publish();
    }
}

#[test]
fn a_small_ring_always_has_room_for_its_longest_record_once_it_is_empty() {
    let (mut tx, mut rx, _) = records(4096);
    let longest = vec![1; tx.max_len()];
    for shift in 0..300 {
        assert!(
            tx.write(&longest, OffloadHeader::NONE).unwrap(),
            "stuck at {shift}"
        );
        let _ = tx.publish();
        assert_eq!(body(&mut rx).unwrap().unwrap().len(), longest.len());
        rx.consume();
        let _ = rx.publish();
        assert!(tx.write(&[0], OffloadHeader::NONE).unwrap());
        let _ = tx.publish();
        rx.peek().unwrap();
        rx.consume();
        let _ = rx.publish();
    }
    assert!(tx.reserve(longest.len() + 1).unwrap().is_none());
}

#[test]
fn room_that_is_reserved_and_not_used_leaves_no_trace() {
    let (mut tx, mut rx, _) = records(4096);
    for lap in 0..40u8 {
        // At some lap this reserves across the end of the ring.
        assert!(tx.reserve(tx.max_len()).unwrap().is_some());
        let _ = tx.publish();
        assert!(rx.peek().unwrap().is_none(), "lap {lap}");
        assert!(tx.write(&[lap; 200], OffloadHeader::NONE).unwrap());
        let _ = tx.publish();
        assert_eq!(body(&mut rx).unwrap().unwrap(), [lap; 200]);
        rx.consume();
        let _ = rx.publish();
    }
}

/// Writes one word of a record header at the start of a fresh ring's data.
fn with_first_word(word: u32, tail: u64) -> PeerFault {
    let (_, _, region) = ring(4096);
    region
        .copy_in(RING_HEADER_LEN, &word.to_le_bytes())
        .unwrap();
    region.copy_in(0, &tail.to_le_bytes()).unwrap();
    let mut rx = RecordReader::new(Consumer::resume(region).unwrap(), 2000).unwrap();
    rx.peek().unwrap_err()
}

#[test]
fn every_broken_record_is_its_named_fault() {
    assert_eq!(with_first_word(0, 64), PeerFault::RecordLength);
    assert_eq!(with_first_word(2001, 4096), PeerFault::RecordLength);
    assert_eq!(with_first_word(49, 64), PeerFault::RecordLength);
    assert_eq!(with_first_word(u32::MAX, 64), PeerFault::Skip);
    assert_eq!(with_first_word(u32::MAX, 4096), PeerFault::Skip);
    assert_eq!(with_first_word(4, 24), PeerFault::Alignment);
}

#[test]
fn a_cursor_that_jumps_is_a_fault_and_not_a_loop() {
    for tail in [4097u64, 1 << 40, u64::MAX, u64::MAX - 15] {
        let (_, mut rx, region) = ring(4096);
        region.copy_in(0, &tail.to_le_bytes()).unwrap();
        assert_eq!(rx.readable_len(), Err(PeerFault::Cursor), "tail {tail}");
        assert_eq!(rx.arm(), Err(PeerFault::Cursor));
    }
    for head in [1u64, 4096, u64::MAX] {
        let (mut tx, _, region) = ring(4096);
        region.copy_in(128, &head.to_le_bytes()).unwrap();
        assert_eq!(tx.writable_len(), Err(PeerFault::Cursor), "head {head}");
    }
    // Backwards, after having been further.
    let (mut tx, mut rx, region) = ring(4096);
    tx.write(&[0; 100]).unwrap();
    let _ = tx.publish();
    assert_eq!(rx.readable_len(), Ok(100));
    region.copy_in(0, &50u64.to_le_bytes()).unwrap();
    assert_eq!(rx.readable_len(), Err(PeerFault::Cursor));
}

#[test]
fn a_cursor_that_goes_back_over_what_was_read_and_not_given_back_is_a_fault() {
    let (mut tx, mut rx, region) = ring(4096);
    tx.write(&[0; 100]).unwrap();
    let _ = tx.publish();
    assert_eq!(rx.read(&mut [0; 100]), Ok(100));
    // Not given back yet, so within the ring's length of what was.
    for tail in [0u64, 50, 99] {
        region.copy_in(0, &tail.to_le_bytes()).unwrap();
        assert_eq!(rx.readable_len(), Err(PeerFault::Cursor), "tail {tail}");
        assert_eq!(rx.arm(), Err(PeerFault::Cursor), "tail {tail}");
    }
    region.copy_in(0, &100u64.to_le_bytes()).unwrap();
    assert_eq!(rx.readable_len(), Ok(0));
}

#[test]
fn a_header_is_read_once_however_often_the_peer_changes_it() {
    let (mut tx, mut rx, region) = records(4096);
    tx.write(&[9; 40], OffloadHeader::NONE).unwrap();
    let _ = tx.publish();
    assert_eq!(rx.peek().unwrap().unwrap().len, 40);
    region
        .copy_in(RING_HEADER_LEN, &1999u32.to_le_bytes())
        .unwrap();
    assert_eq!(rx.peek().unwrap().unwrap().len, 40);
    rx.consume();
    assert!(rx.peek().unwrap().is_none());
}

#[test]
fn one_doorbell_wakes_a_sleeper_however_much_is_published() {
    let (mut tx, mut rx, _) = ring(4096);
    assert_eq!(rx.arm(), Ok(Arm::Sleep));
    tx.write(b"a").unwrap();
    assert_eq!(tx.publish(), Wake::Ring);
    tx.write(b"b").unwrap();
    assert_eq!(tx.publish(), Wake::NotNeeded);
    rx.disarm();
    rx.read(&mut [0; 2]).unwrap();
    assert_eq!(rx.arm(), Ok(Arm::Sleep));
    tx.write(b"c").unwrap();
    assert_eq!(tx.publish(), Wake::Ring);
    // Work at hand: no sleep.
    assert_eq!(rx.arm(), Ok(Arm::Awake));
}

#[test]
fn a_writer_that_waits_for_room_is_rung_when_the_room_is_there_and_not_before() {
    let (mut tx, mut rx, _) = ring(4096);
    tx.write(&[0; 4096]).unwrap();
    let _ = tx.publish();
    assert_eq!(tx.arm(1000), Ok(Arm::Sleep));
    rx.read(&mut [0; 999]).unwrap();
    assert_eq!(rx.publish(), Wake::NotNeeded);
    rx.read(&mut [0; 1]).unwrap();
    assert_eq!(rx.publish(), Wake::Ring);
}

#[test]
fn closing_rings_a_sleeper_and_leaves_what_was_written() {
    let (mut tx, mut rx, _) = ring(4096);
    assert_eq!(rx.arm(), Ok(Arm::Sleep));
    tx.write(b"last words").unwrap();
    assert_eq!(tx.close(), Wake::Ring);
    assert_eq!(rx.is_finished(), Ok(false));
    let mut to = [0; 32];
    assert_eq!(rx.read(&mut to), Ok(10));
    assert_eq!(rx.is_finished(), Ok(true));
    assert_eq!(rx.arm(), Ok(Arm::Awake));
    assert_eq!(rx.close(), Wake::NotNeeded);
    assert!(tx.is_peer_closed());
}

#[test]
fn a_guest_without_room_sleeps_over_waiting_frames_until_half_the_ring_is_free() {
    let (mut guest, mut host, ..) = link();
    let frame = [1; 60_000];
    while let Some(room) = guest.split().1.reserve(frame.len()).unwrap() {
        room.copy_from_slice(&frame);
        guest.split().1.commit(frame.len(), OffloadHeader::NONE);
        guest.split().1.flush();
    }
    assert!(
        host.frames_tx
            .write(b"answer me", OffloadHeader::NONE)
            .unwrap()
    );
    let _ = host.frames_tx.publish();
    assert!(!guest.arm(Some(frame.len())).unwrap(), "a frame has come");
    assert!(guest.arm_for_room(frame.len()).unwrap());
    let mut taken = 0;
    let rung = loop {
        host.frames_rx.peek().unwrap().unwrap();
        host.frames_rx.consume();
        taken += 1;
        if host.frames_rx.publish() == Wake::Ring {
            break taken;
        }
    };
    assert_eq!(rung, 4, "of eight that fill it");
    guest.disarm();
    assert!(!guest.arm_for_room(frame.len()).unwrap());
}

fn link() -> (ShmLink<Count>, HostEnd, Region, Count, Layout) {
    let layout = Layout::new(LayoutOptions::default()).unwrap();
    let region = region(layout.region_len);
    let host = HostEnd::resume(&region, &layout).unwrap();
    layout.publish(&region).unwrap();
    let bell = Count::default();
    // SAFETY: the host's end is ours too and keeps to the layout.
    let guest = unsafe { ShmLink::attach(region.clone(), bell.clone()) }.unwrap();
    (guest, host, region, bell, layout)
}

#[test]
fn a_guest_builds_and_reads_frames_in_place() {
    let (mut guest, mut host, region, bell, _) = link();
    assert_eq!(host.frames_rx.arm(), Ok(Arm::Sleep));
    let (rx, tx) = guest.split();
    let frame = tx.reserve(60).unwrap().unwrap();
    frame.fill(5);
    let at = frame.as_ptr() as usize;
    assert!(
        (region.as_ptr().as_ptr() as usize..).contains(&at)
            && at < region.as_ptr().as_ptr() as usize + region.len()
    );
    tx.commit(60, OffloadHeader::NONE);
    assert_eq!(bell.rings(), 0);
    tx.flush();
    assert_eq!(bell.rings(), 1);
    assert_eq!(body(&mut host.frames_rx).unwrap().unwrap(), [5; 60]);

    host.frames_tx.write(&[6; 90], OffloadHeader::NONE).unwrap();
    let _ = host.frames_tx.publish();
    assert_eq!(rx.peek().unwrap().unwrap().1, [6; 90]);
    rx.consume();
    assert!(rx.peek().unwrap().is_none());
}

#[test]
fn a_guest_that_is_reborn_goes_on_where_the_dead_one_stopped() {
    let (mut guest, mut host, region, bell, _) = link();
    for byte in 1..=3 {
        host.frames_tx
            .write(&[byte; 60], OffloadHeader::NONE)
            .unwrap();
    }
    let _ = host.frames_tx.publish();
    let (rx, tx) = guest.split();
    assert_eq!(rx.peek().unwrap().unwrap().1[0], 1);
    rx.consume();
    rx.flush();
    tx.reserve(60).unwrap().unwrap().fill(9);
    tx.commit(60, OffloadHeader::NONE);
    // It dies with a frame that it never published.
    drop(guest);
    // SAFETY: as in `link`.
    let mut guest = unsafe { ShmLink::attach(region, bell) }.unwrap();
    let (rx, tx) = guest.split();
    assert_eq!(rx.peek().unwrap().unwrap().1[0], 2);
    tx.reserve(70).unwrap().unwrap().fill(8);
    tx.commit(70, OffloadHeader::NONE);
    tx.flush();
    assert_eq!(body(&mut host.frames_rx).unwrap().unwrap(), [8; 70]);
}

#[test]
fn a_host_that_is_reborn_loses_no_frame_and_shows_a_new_generation() {
    let (mut guest, host, region, _, layout) = link();
    let before = guest.generation();
    let (_, tx) = guest.split();
    tx.reserve(60).unwrap().unwrap().fill(7);
    tx.commit(60, OffloadHeader::NONE);
    tx.flush();
    drop(host);
    let mut host = HostEnd::resume(&region, &layout).unwrap();
    layout.publish(&region).unwrap();
    assert_ne!(guest.generation(), before);
    assert_eq!(body(&mut host.frames_rx).unwrap().unwrap(), [7; 60]);
}

#[test]
fn a_link_that_the_host_closed_delivers_its_last_frames_first() {
    let (mut guest, mut host, ..) = link();
    host.frames_tx.write(&[1; 60], OffloadHeader::NONE).unwrap();
    let _ = host.frames_tx.close();
    let (rx, _) = guest.split();
    assert_eq!(rx.peek().unwrap().unwrap().1, [1; 60]);
    rx.consume();
    assert_eq!(rx.peek().unwrap_err(), LinkError::Closed);
}

#[test]
fn control_messages_cross_whole_and_a_full_channel_says_so() {
    let (mut guest, mut host, ..) = link();
    let mut sent = 0;
    while guest.send_control(&[sent as u8; 1000]).unwrap() {
        sent += 1;
    }
    assert!(sent >= 8);
    let mut buf = [0; 2048];
    for byte in 0..sent {
        assert_eq!(
            shm_link::shm::read_message(&mut host.control_rx, &mut buf),
            Ok(Some(1000))
        );
        assert_eq!(buf[..1000], [byte as u8; 1000]);
    }
    assert_eq!(
        shm_link::shm::read_message(&mut host.control_rx, &mut buf),
        Ok(None)
    );
    host.control_tx
        .write(b"hello", OffloadHeader::NONE)
        .unwrap();
    let _ = host.control_tx.publish();
    assert_eq!(guest.arm(None), Ok(false));
    assert_eq!(guest.recv_control(&mut buf), Ok(Some(5)));
    assert_eq!(guest.arm(None), Ok(true));
}
