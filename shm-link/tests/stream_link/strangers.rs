//! Peers that speak something else, restart, or are drowned in noise.

use embedded_io::ErrorKind;
use shm_link::fault::{LinkError, PeerFault};
use shm_link::link::{FrameTx, Link, MAX_FRAME_LEN};
use shm_link::offload::OffloadHeader;
use shm_link::stream::{Framing, MAX_NOISE_LEN};

use crate::common::{End, FRAMINGS, Pair, frame, link_of, recv, recv_all, send, try_send};

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
