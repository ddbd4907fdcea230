//! The ring's cursors under loom: every interleaving that the memory model
//! allows. Run with
//! `RUSTFLAGS="--cfg loom" cargo test -p shm-link --release --test loom_cursor`.
//!
//! The payload stands in relaxed atomics beside the ring: loom shows a stale one
//! wherever the cursors' orderings would permit it.
#![cfg(loom)]

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Arc, Notify};
use loom::thread;
use shm_link::ring::Arm;
use shm_link::ring::Wake;
use shm_link::ring::cursor::{RingHeader, RxCursor, TxCursor};

struct Shared {
    header: RingHeader,
    slots: [AtomicU64; 2],
    /// The doorbell of each side. A lost wake-up is a deadlock, which loom reports.
    consumer_bell: Notify,
    producer_bell: Notify,
}

/// A model of at most this many involuntary switches: all of them take minutes
/// and were run once; three find every fence that is taken away.
fn model(body: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(body);
}

fn shared() -> Arc<Shared> {
    Arc::new(Shared {
        header: RingHeader::new(),
        slots: [AtomicU64::new(0), AtomicU64::new(0)],
        consumer_bell: Notify::new(),
        producer_bell: Notify::new(),
    })
}

fn put(s: &Shared, tx: &mut TxCursor<'_>, value: u64) {
    let capacity = s.slots.len() as u64;
    while tx.free(1).unwrap() == 0 {
        if tx.arm(1).unwrap() == Arm::Sleep {
            s.producer_bell.wait();
            tx.disarm();
        }
    }
    s.slots[(tx.position() % capacity) as usize].store(value, Ordering::Relaxed);
    tx.advance(1);
    if tx.publish() == Wake::Ring {
        s.consumer_bell.notify();
    }
}

fn take(s: &Shared, rx: &mut RxCursor<'_>) -> Option<u64> {
    let capacity = s.slots.len() as u64;
    while rx.readable(1).unwrap() == 0 {
        if rx.is_finished().unwrap() {
            return None;
        }
        if rx.arm().unwrap() == Arm::Sleep {
            s.consumer_bell.wait();
            rx.disarm();
        }
    }
    let value = s.slots[(rx.position() % capacity) as usize].load(Ordering::Relaxed);
    rx.advance(1);
    if rx.publish() == Wake::Ring {
        s.producer_bell.notify();
    }
    Some(value)
}

#[test]
fn what_is_published_is_visible_and_no_wake_up_is_lost() {
    model(|| {
        let s = shared();
        let producer = {
            let s = s.clone();
            thread::spawn(move || {
                let mut tx = TxCursor::resume(&s.header, 2).unwrap();
                put(&s, &mut tx, 7);
                put(&s, &mut tx, 8);
            })
        };
        let mut rx = RxCursor::resume(&s.header, 2).unwrap();
        assert_eq!(take(&s, &mut rx), Some(7));
        assert_eq!(take(&s, &mut rx), Some(8));
        producer.join().unwrap();
    });
}

#[test]
fn a_full_ring_wakes_its_producer() {
    model(|| {
        let s = shared();
        let producer = {
            let s = s.clone();
            thread::spawn(move || {
                let mut tx = TxCursor::resume(&s.header, 2).unwrap();
                for value in 1..=3 {
                    put(&s, &mut tx, value);
                }
            })
        };
        let mut rx = RxCursor::resume(&s.header, 2).unwrap();
        for value in 1..=3 {
            assert_eq!(take(&s, &mut rx), Some(value));
        }
        producer.join().unwrap();
    });
}

#[test]
fn what_was_written_before_a_close_is_read_before_the_end() {
    model(|| {
        let s = shared();
        let producer = {
            let s = s.clone();
            thread::spawn(move || {
                let mut tx = TxCursor::resume(&s.header, 2).unwrap();
                put(&s, &mut tx, 7);
                if tx.close() == Wake::Ring {
                    s.consumer_bell.notify();
                }
            })
        };
        let mut rx = RxCursor::resume(&s.header, 2).unwrap();
        // The producer's `resume` opens the ring, so a consumer never sees an
        // old close here.
        assert_eq!(take(&s, &mut rx), Some(7));
        assert_eq!(take(&s, &mut rx), None);
        producer.join().unwrap();
    });
}

#[test]
fn a_reader_that_closes_wakes_a_writer_that_waits_for_room() {
    model(|| {
        let s = shared();
        // Made before the threads start: who resumes later would open the ring
        // again.
        let mut tx = TxCursor::resume(outliving(&s), 2).unwrap();
        let mut rx = RxCursor::resume(outliving(&s), 2).unwrap();
        tx.advance(2);
        let _ = tx.publish();
        let consumer = {
            let s = s.clone();
            thread::spawn(move || {
                if rx.close() == Wake::Ring {
                    s.producer_bell.notify();
                }
            })
        };
        while !tx.is_peer_closed() {
            if tx.arm(1).unwrap() == Arm::Sleep {
                s.producer_bell.wait();
                tx.disarm();
            }
        }
        consumer.join().unwrap();
    });
}

/// A reference that may move to another thread of the model.
fn outliving(s: &Arc<Shared>) -> &'static RingHeader {
    // SAFETY: both threads of the model hold a clone of `s` until they end.
    unsafe { &*std::ptr::from_ref(&s.header) }
}
