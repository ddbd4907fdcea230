//! Room, sleeping, the order of frames and messages, the end.

use shm_link::fault::{LinkError, PeerFault};
use shm_link::link::{FrameRx, FrameTx, Link, MAX_CONTROL_LEN, MAX_FRAME_LEN};
use shm_link::offload::OffloadHeader;
use shm_link::stream::{BufferTooSmall, Framing, StreamLink};

use crate::common::{End, FRAMINGS, Item, Pair, frame, recv, recv_all, send, try_send};

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
