//! The link's rings beside the ring crates: frames are copied in by one thread
//! and copied out by another, both awake.
//!
//! Every peer carries the same frames in a buffer of the same size, with its own
//! best interface: ours and rtrb publish when they like, ringbuf's cached halves
//! publish by themselves, bbqueue has frames of its own. The reader checks the
//! number in every frame.

use std::hint::spin_loop;
use std::thread;
use std::time::{Duration, Instant};

use bbqueue::BBQueue;
use bbqueue::nicknames::GogiGui;
use bbqueue::prod_cons::framed::{FramedConsumer, FramedProducer};
use bbqueue::traits::coordination::cas::AtomicCoord;
use bbqueue::traits::notifier::polling::Polling;
use bbqueue::traits::storage::BoxedSlice;
use ringbuf::traits::{Consumer as _, Observer as _, Producer as _, Split as _};
use shm_link::linux::memory::SharedMemory;
use shm_link::offload::OffloadHeader;
use shm_link::record::{RecordReader, RecordWriter};
use shm_link::ring::{Consumer, Producer, RING_HEADER_LEN};

/// Data bytes of every ring.
const CAPACITY: usize = 512 << 10;
/// Frames, and bytes, that ours publishes at once; the pumps of the bridge do the
/// same.
const BATCH: u64 = 64;
/// See [`BATCH`].
const BATCH_BYTES: usize = 64 << 10;

/// Takes frames in.
trait Sender: Send {
    /// `false`: no room now.
    fn send(&mut self, frame: &[u8]) -> bool;
    /// Shows what was sent.
    fn flush(&mut self) {}
}

/// Gives frames out.
trait Receiver: Send {
    /// Copies the next frame into `to` and says how long it is; 0: none now.
    fn receive(&mut self, to: &mut [u8]) -> usize;
    /// Gives room back.
    fn flush(&mut self) {}
}

/// A ring to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ring {
    /// shm-link's records over a memfd.
    ShmLink,
    /// rtrb, bytes with a length in front.
    Rtrb,
    /// ringbuf, the same.
    Ringbuf,
    /// bbqueue, framed.
    Bbqueue,
}

impl Ring {
    /// Name and release, as far as it is a peer.
    pub fn name(self) -> &'static str {
        match self {
            Self::ShmLink => "shm-link",
            Self::Rtrb => "rtrb 0.4",
            Self::Ringbuf => "ringbuf 0.6",
            Self::Bbqueue => "bbqueue 0.7, framed",
        }
    }

    /// Frames per second of `len` bytes, over about `time`.
    ///
    /// # Panics
    /// If a frame is lost, cut or out of order.
    pub fn rate(self, len: usize, time: Duration) -> f64 {
        match self {
            Self::ShmLink => {
                let memory =
                    SharedMemory::create("bench", (RING_HEADER_LEN + CAPACITY).next_power_of_two());
                let region = memory.expect("memfd").region();
                let part = region
                    .part(0, RING_HEADER_LEN + CAPACITY)
                    .expect("it is that long");
                let tx = RecordWriter::new(Producer::resume(part.clone()).expect("fresh"), len);
                let rx = RecordReader::new(Consumer::resume(part).expect("fresh"), len);
                run(
                    Ours(tx.expect("fresh")),
                    Ours(rx.expect("fresh")),
                    len,
                    time,
                )
            }
            Self::Rtrb => {
                let (tx, rx) = rtrb::RingBuffer::<u8>::new(CAPACITY);
                run(tx, rx, len, time)
            }
            Self::Ringbuf => {
                let (tx, rx) = ringbuf::HeapRb::<u8>::new(CAPACITY).split();
                run(tx, rx, len, time)
            }
            Self::Bbqueue => {
                let queue = GogiGui::new_with_storage(BoxedSlice::new(CAPACITY));
                run(
                    Framed(queue.framed_producer()),
                    Framed(queue.framed_consumer()),
                    len,
                    time,
                )
            }
        }
    }
}

/// The inner loops, the same for all.
fn run(mut tx: impl Sender, mut rx: impl Receiver, len: usize, time: Duration) -> f64 {
    let deadline = Instant::now() + time;
    thread::scope(|scope| {
        let sender = scope.spawn(move || {
            let mut frame = vec![7; len];
            let mut number = 0u64;
            let mut unpublished = 0;
            loop {
                // The clock is looked at between batches.
                let last = Instant::now() >= deadline;
                for _ in 0..BATCH {
                    frame[..8].copy_from_slice(&number.to_le_bytes());
                    // The last frame of all says so.
                    frame[8] = u8::from(last);
                    while !tx.send(&frame) {
                        tx.flush();
                        spin_loop();
                    }
                    number += 1;
                    unpublished += len;
                    if unpublished >= BATCH_BYTES {
                        unpublished = 0;
                        tx.flush();
                    }
                    if last {
                        tx.flush();
                        return number;
                    }
                }
                tx.flush();
            }
        });
        let start = Instant::now();
        let mut to = vec![0; len];
        let mut expected = 0u64;
        'all: loop {
            let mut taken = 0;
            while taken < BATCH && taken as usize * len < BATCH_BYTES {
                let got = rx.receive(&mut to);
                if got == 0 {
                    break;
                }
                assert_eq!(got, len, "a frame was cut");
                let number = u64::from_le_bytes(to[..8].try_into().expect("eight bytes"));
                assert_eq!(number, expected, "a frame was lost");
                expected += 1;
                taken += 1;
                if to[8] == 1 {
                    break 'all;
                }
            }
            rx.flush();
            if taken == 0 {
                spin_loop();
            }
        }
        let elapsed = start.elapsed();
        assert_eq!(sender.join().expect("sender"), expected);
        expected as f64 / elapsed.as_secs_f64()
    })
}

struct Ours<T>(T);

impl Sender for Ours<RecordWriter> {
    fn send(&mut self, frame: &[u8]) -> bool {
        self.0
            .write(frame, OffloadHeader::NONE)
            .expect("the reader keeps the rules")
    }
    fn flush(&mut self) {
        // Both sides are awake: nobody is to be rung.
        let _ = self.0.publish();
    }
}

impl Receiver for Ours<RecordReader> {
    fn receive(&mut self, to: &mut [u8]) -> usize {
        let Some(record) = self.0.peek().expect("the writer keeps the rules") else {
            return 0;
        };
        let n = record.len.min(to.len());
        // SAFETY: the record has `len` readable bytes; `to` is private memory.
        unsafe { std::ptr::copy_nonoverlapping(record.body.as_ptr(), to.as_mut_ptr(), n) };
        self.0.consume();
        record.len
    }
    fn flush(&mut self) {
        let _ = self.0.publish();
    }
}

impl Sender for rtrb::Producer<u8> {
    fn send(&mut self, frame: &[u8]) -> bool {
        let len = (frame.len() as u32).to_le_bytes();
        if self.slots() < len.len() + frame.len() {
            return false;
        }
        self.push_entire_slice(&len).is_ok() && self.push_entire_slice(frame).is_ok()
    }
}

impl Receiver for rtrb::Consumer<u8> {
    fn receive(&mut self, to: &mut [u8]) -> usize {
        if self.slots() < 4 + to.len() {
            return 0;
        }
        let mut len = [0; 4];
        self.pop_entire_slice(&mut len)
            .expect("there are enough bytes");
        self.pop_entire_slice(to).expect("there are enough bytes");
        u32::from_le_bytes(len) as usize
    }
}

impl Sender for ringbuf::HeapProd<u8> {
    fn send(&mut self, frame: &[u8]) -> bool {
        let len = (frame.len() as u32).to_le_bytes();
        if self.vacant_len() < len.len() + frame.len() {
            return false;
        }
        self.push_slice(&len) == len.len() && self.push_slice(frame) == frame.len()
    }
}

impl Receiver for ringbuf::HeapCons<u8> {
    fn receive(&mut self, to: &mut [u8]) -> usize {
        let mut len = [0; 4];
        if self.occupied_len() < len.len() + to.len() {
            return 0;
        }
        self.pop_slice(&mut len);
        self.pop_slice(to);
        u32::from_le_bytes(len) as usize
    }
}

type Queue = std::sync::Arc<BBQueue<BoxedSlice, AtomicCoord, Polling>>;

struct Framed<T>(T);

impl Sender for Framed<FramedProducer<Queue>> {
    fn send(&mut self, frame: &[u8]) -> bool {
        let Ok(mut grant) = self.0.grant(frame.len() as u16) else {
            return false;
        };
        grant[..frame.len()].copy_from_slice(frame);
        grant.commit(frame.len() as u16);
        true
    }
}

impl Receiver for Framed<FramedConsumer<Queue>> {
    fn receive(&mut self, to: &mut [u8]) -> usize {
        let Ok(grant) = self.0.read() else { return 0 };
        let n = grant.len();
        to[..n].copy_from_slice(&grant);
        grant.release();
        n
    }
}
