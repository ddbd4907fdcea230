//! Two threads over a real memfd and real eventfds, as two processes would use
//! them: nothing is lost, nobody spins, and an idle side makes no system call.
#![cfg(feature = "linux")]

use embedded_io::{Read, ReadReady, Write, WriteReady};
use shm_link::doorbell::{AsyncWait, Doorbell, Wait};
use shm_link::fault::LinkError;
use shm_link::linux::event::EventFd;
use shm_link::linux::memory::SharedMemory;
use shm_link::offload::OffloadHeader;
use shm_link::pipe::{Pipe, PipeReader, PipeWriter};
use shm_link::record::{RecordReader, RecordWriter};
use shm_link::region::Region;
use shm_link::ring::{Arm, Consumer, Producer, RING_HEADER_LEN};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const CAPACITY: usize = 4096;
const RING_LEN: usize = RING_HEADER_LEN + CAPACITY;

/// An eventfd that counts how often it was rung, and waited on.
#[derive(Clone)]
struct Bell {
    event: Arc<EventFd>,
    rings: Arc<AtomicU64>,
    waits: Arc<AtomicU64>,
}

impl Bell {
    fn new() -> Self {
        Self {
            event: Arc::new(EventFd::new().unwrap()),
            rings: Arc::default(),
            waits: Arc::default(),
        }
    }
}

impl Doorbell for Bell {
    fn ring(&self) {
        self.rings.fetch_add(1, Ordering::Relaxed);
        self.event.ring();
    }
}

impl Wait for Bell {
    fn wait(&self, timeout: Option<Duration>) {
        self.waits.fetch_add(1, Ordering::Relaxed);
        // A lost wake-up must fail the test instead of hanging it.
        let patience = Duration::from_secs(20);
        let start = std::time::Instant::now();
        self.event.wait(Some(timeout.unwrap_or(patience)));
        assert!(start.elapsed() < patience, "nobody rang");
    }
}

/// The same wait on a thread of its own.
#[derive(Clone)]
struct AsyncBell(Bell);

impl Doorbell for AsyncBell {
    fn ring(&self) {
        self.0.ring();
    }
}

impl AsyncWait for AsyncBell {
    async fn wait(&self) {
        Wait::wait(&self.0, None);
    }
}

struct Ends {
    here: Pipe<Bell, Bell>,
    there: Pipe<Bell, Bell>,
    bells: [Bell; 2],
}

/// Both ends of a pipe, each over a mapping of its own of the same memory.
fn pipe() -> Ends {
    let ours = SharedMemory::create("two-threads", 16 << 10).unwrap();
    let theirs = SharedMemory::from_fd(ours.fd().try_clone_to_owned().unwrap()).unwrap();
    let second = RING_LEN.next_multiple_of(128);
    let bells = [Bell::new(), Bell::new()];
    let tx = Producer::resume(ours.region().part(0, RING_LEN).unwrap()).unwrap();
    let rx = Consumer::resume(ours.region().part(second, RING_LEN).unwrap()).unwrap();
    // Each rings the other's bell and waits on its own.
    let here = Pipe::new(tx, rx, bells[1].clone(), bells[0].clone());
    let tx = Producer::resume(theirs.region().part(second, RING_LEN).unwrap()).unwrap();
    let rx = Consumer::resume(theirs.region().part(0, RING_LEN).unwrap()).unwrap();
    let there = Pipe::new(tx, rx, bells[0].clone(), bells[1].clone());
    Ends { here, there, bells }
}

fn pattern(i: usize) -> u8 {
    (i.wrapping_mul(31) >> 3) as u8
}

#[test]
fn megabytes_cross_a_small_pipe_both_ways_at_once_and_half_close_ends_each_way() {
    const TOTAL: usize = 3 << 20;
    let memory = SharedMemory::create("both-ways", 16 << 10).unwrap();
    let part = |n: usize| {
        memory
            .region()
            .part(n * RING_LEN.next_multiple_of(128), RING_LEN)
            .unwrap()
    };
    let run = |ring: Region| {
        let (to_reader, to_writer) = (Bell::new(), Bell::new());
        let mut writer = PipeWriter::new(
            Producer::resume(ring.clone()).unwrap(),
            to_reader.clone(),
            to_writer.clone(),
        );
        let mut reader = PipeReader::new(Consumer::resume(ring).unwrap(), to_writer, to_reader);
        let sender = thread::spawn(move || {
            let data: Vec<u8> = (0..TOTAL).map(pattern).collect();
            for chunk in data.chunks(1777) {
                writer.write_all(chunk).unwrap();
            }
            writer.close();
        });
        let receiver = thread::spawn(move || {
            let (mut buf, mut seen) = ([0; 3000], 0);
            loop {
                match reader.read(&mut buf).unwrap() {
                    0 => return seen,
                    n => {
                        assert!(
                            buf[..n]
                                .iter()
                                .enumerate()
                                .all(|(i, &b)| b == pattern(seen + i))
                        );
                        seen += n;
                    }
                }
            }
        });
        (sender, receiver)
    };
    let (a, b) = (run(part(0)), run(part(1)));
    for (sender, receiver) in [a, b] {
        sender.join().unwrap();
        assert_eq!(receiver.join().unwrap(), TOTAL);
    }
}

#[test]
fn the_asynchronous_twins_carry_the_same_bytes() {
    fn block_on<F: Future>(future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        loop {
            if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
        }
    }
    let memory = SharedMemory::create("async", 16 << 10).unwrap();
    let part = || memory.region().part(0, RING_LEN).unwrap();
    let second = || {
        memory
            .region()
            .part(RING_LEN.next_multiple_of(128), RING_LEN)
            .unwrap()
    };
    let (a, b) = (AsyncBell(Bell::new()), AsyncBell(Bell::new()));
    let mut here = Pipe::new(
        Producer::resume(part()).unwrap(),
        Consumer::resume(second()).unwrap(),
        b.clone(),
        a.clone(),
    );
    let mut there = Pipe::new(
        Producer::resume(second()).unwrap(),
        Consumer::resume(part()).unwrap(),
        a,
        b,
    );
    let echo = thread::spawn(move || {
        block_on(async {
            let mut buf = [0; 512];
            loop {
                let n = embedded_io_async::Read::read(&mut there, &mut buf)
                    .await
                    .unwrap();
                if n == 0 {
                    return;
                }
                embedded_io_async::Write::write_all(&mut there, &buf[..n])
                    .await
                    .unwrap();
            }
        });
    });
    block_on(async {
        for i in 0..2000usize {
            let message = [pattern(i); 100];
            embedded_io_async::Write::write_all(&mut here, &message)
                .await
                .unwrap();
            let mut answer = [0; 100];
            embedded_io_async::Read::read_exact(&mut here, &mut answer)
                .await
                .unwrap();
            assert_eq!(answer, message);
        }
    });
    here.split().1.close();
    echo.join().unwrap();
}

#[test]
fn writing_to_a_reader_that_closed_is_a_broken_pipe() {
    let Ends {
        mut here,
        mut there,
        ..
    } = pipe();
    here.write_all(b"heard").unwrap();
    there.split().0.close();
    assert_eq!(here.write(b"unheard"), Err(LinkError::Closed));
    assert!(here.write_ready().unwrap());
    // The other direction is untouched.
    there.write_all(b"still here").unwrap();
    let mut buf = [0; 32];
    assert_eq!(here.read(&mut buf), Ok(10));
}

#[test]
fn readiness_says_whether_a_call_would_wait() {
    let Ends {
        mut here,
        mut there,
        ..
    } = pipe();
    assert!(!there.read_ready().unwrap());
    assert!(here.write_ready().unwrap());
    while here.split().1.try_write(&[1; 1000]).unwrap() > 0 {}
    assert!(!here.write_ready().unwrap());
    assert_eq!(there.split().0.readable_len(), Ok(CAPACITY));
    assert_eq!(here.split().1.writable_len(), Ok(0));
    assert!(there.read_ready().unwrap());
    here.split().1.close();
    while there.read(&mut [0; 512]).unwrap() > 0 {}
    // The end is something to read at once.
    assert!(there.read_ready().unwrap());
}

#[test]
fn an_idle_reader_sleeps_once_and_is_rung_once() {
    let Ends {
        mut here,
        mut there,
        bells,
    } = pipe();
    let reader = thread::spawn(move || {
        let mut buf = [0; 64];
        let n = there.read(&mut buf).unwrap();
        assert_eq!(&buf[..n], b"at last");
    });
    // Only a sleeper is rung: wait until it has gone to sleep.
    while bells[1].waits.load(Ordering::Relaxed) == 0 {
        thread::yield_now();
    }
    thread::sleep(Duration::from_millis(200));
    assert_eq!(
        bells[1].waits.load(Ordering::Relaxed),
        1,
        "the reader got up without being rung"
    );
    here.write_all(b"at last").unwrap();
    reader.join().unwrap();
    assert_eq!(bells[1].rings.load(Ordering::Relaxed), 1);
    assert_eq!(bells[1].waits.load(Ordering::Relaxed), 1);
    assert_eq!(
        bells[0].rings.load(Ordering::Relaxed),
        0,
        "a writer that does not wait was rung"
    );
}

#[test]
fn a_hundred_thousand_frames_cross_in_order_with_few_doorbells() {
    const FRAMES: u32 = 100_000;
    let memory = SharedMemory::create("frames", 512 << 10).unwrap();
    let part = memory
        .region()
        .part(0, RING_HEADER_LEN + (256 << 10))
        .unwrap();
    let mut tx = RecordWriter::new(Producer::resume(part.clone()).unwrap(), 2000).unwrap();
    let mut rx = RecordReader::new(Consumer::resume(part).unwrap(), 2000).unwrap();
    let (to_rx, to_tx) = (Bell::new(), Bell::new());
    let (rx_bell, tx_bell) = (to_rx.clone(), to_tx.clone());
    let reader = thread::spawn(move || {
        let mut expected = 0;
        while expected < FRAMES {
            let mut batch = 0;
            while let Some(record) = rx.peek().unwrap() {
                let mut head = [0; 4];
                // SAFETY: every frame sent here has at least 60 readable bytes.
                unsafe {
                    std::ptr::copy_nonoverlapping(record.body.as_ptr(), head.as_mut_ptr(), 4)
                };
                assert_eq!(u32::from_le_bytes(head), expected);
                assert_eq!(record.len, 60 + (expected as usize * 7) % 1400);
                assert_eq!(record.offload.csum_start, expected as u16);
                rx.consume();
                expected += 1;
                batch += 1;
                if batch % 64 == 0 {
                    rx.publish().ring(&tx_bell);
                }
            }
            rx.publish().ring(&tx_bell);
            if expected < FRAMES && rx.arm().unwrap() == Arm::Sleep {
                rx_bell.wait(None);
                rx.disarm();
            }
        }
    });
    for i in 0..FRAMES {
        let mut frame = vec![i as u8; 60 + (i as usize * 7) % 1400];
        frame[..4].copy_from_slice(&i.to_le_bytes());
        let offload = OffloadHeader {
            csum_start: i as u16,
            ..OffloadHeader::NONE
        };
        while !tx.write(&frame, offload).unwrap() {
            tx.publish().ring(&to_rx);
            if tx.arm(64 << 10).unwrap() == Arm::Sleep {
                to_tx.wait(None);
                tx.disarm();
            }
        }
        if i % 32 == 31 {
            tx.publish().ring(&to_rx);
        }
    }
    tx.publish().ring(&to_rx);
    reader.join().unwrap();
    let rings = to_rx.rings.load(Ordering::Relaxed) + to_tx.rings.load(Ordering::Relaxed);
    assert!(
        rings < u64::from(FRAMES) / 10,
        "{rings} doorbells for {FRAMES} frames"
    );
}
