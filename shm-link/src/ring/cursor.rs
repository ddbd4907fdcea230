//! The cursors of a ring: who may touch which bytes, and who must be woken.
//!
//! One producer and one consumer, in different programs or machines, share a
//! [`RingHeader`]. Cursors count bytes since the ring was made and never wrap
//! (64 bits); `cursor % capacity` is the place in the data. Each side keeps a
//! private copy of its own cursor, which it never reads back, and a cached copy
//! of the other's, which it checks whenever it reloads it.
//!
//! This file moves no data. That keeps it small enough for the loom model in
//! `tests/loom_cursor.rs`, which checks the three promises made here:
//! published bytes are visible, no wake-up is lost, and what was written before
//! a close is readable after it.
//!
//! # Sleeping and waking
//! A side that has nothing to do writes into its *wait word* the value of the
//! other side's cursor at which it wants to be woken (0: awake), issues a full
//! fence, and looks once more. The other side moves its cursor, issues a full
//! fence, and reads the wait word. Of the two fences one comes first, so either
//! the sleeper sees the new cursor or the mover sees the wait word: this is the
//! store-fence-recheck handshake of virtio's event index. A wait word that was
//! already rung for is not rung for again, so a sleeper costs one doorbell,
//! however much is published before it gets up.

use crate::fault::PeerFault;
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// Size of a ring's header in the region, in bytes; the data follow it.
pub const RING_HEADER_LEN: usize = 512;

/// A cursor found beyond this was not reached by counting: at 100 GB/s it takes
/// more than a year to get there. Below it no sum with a length overflows.
const CURSOR_LIMIT: u64 = 1 << 62;

/// Words written by different sides, or read in different moods, stand 128
/// bytes apart: two cache lines, because x86 prefetches lines in pairs.
#[repr(C, align(128))]
struct Line<T>(T);

/// A cursor and the closed flag of the side that owns it.
#[repr(C)]
struct Side {
    cursor: AtomicU64,
    closed: AtomicU32,
}

/// The shared part of a ring. All zero is a new, empty, open ring on which
/// nobody sleeps.
///
/// | offset | word | written by |
/// | --- | --- | --- |
/// | 0 | tail: bytes published | producer |
/// | 8 | 1: the producer closed | producer |
/// | 128 | head: bytes given back | consumer |
/// | 136 | 1: the consumer closed | consumer |
/// | 256 | producer's wait word: wake me when head reaches this | producer |
/// | 384 | consumer's wait word: wake me when tail reaches this | consumer |
#[repr(C)]
pub struct RingHeader {
    producer: Line<Side>,
    consumer: Line<Side>,
    producer_wait: Line<AtomicU64>,
    consumer_wait: Line<AtomicU64>,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<RingHeader>() == RING_HEADER_LEN);

impl RingHeader {
    /// A new ring's header, for a ring that lives in private memory.
    // Under loom, atomics cannot be made in a const context.
    #[allow(
        clippy::new_without_default,
        reason = "a header is shared state, not a value with a default"
    )]
    pub fn new() -> Self {
        let side = || {
            Line(Side {
                cursor: AtomicU64::new(0),
                closed: AtomicU32::new(0),
            })
        };
        Self {
            producer: side(),
            consumer: side(),
            producer_wait: Line(AtomicU64::new(0)),
            consumer_wait: Line(AtomicU64::new(0)),
        }
    }
}

/// Whether the peer must be rung.
#[must_use = "a peer that sleeps stays asleep unless its doorbell is rung"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The peer is awake, or was rung already.
    NotNeeded,
    /// The peer sleeps and waits for what just happened.
    Ring,
}

impl Wake {
    /// Rings `doorbell` if that is needed.
    pub fn ring(self, doorbell: &impl crate::doorbell::Doorbell) {
        if self == Self::Ring {
            doorbell.ring();
        }
    }

    /// One ring for both.
    pub fn or(self, other: Self) -> Self {
        if self == Self::Ring { self } else { other }
    }
}

/// Whether a side may go to sleep.
#[must_use = "sleeping with work at hand, or not sleeping without, are both bugs"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arm {
    /// Nothing happened in between: sleep, the peer will ring.
    Sleep,
    /// There is work (or an end to notice): do not sleep. Already disarmed.
    Awake,
}

/// Sees when a half that announced sleep is to wake up, without being that half.
/// One task may so wait for the doorbell for several.
pub struct Watch<'a> {
    /// The other side, which the half waits for.
    side: &'a Side,
    wait: &'a AtomicU64,
}

impl Watch<'_> {
    /// Whether the half has announced sleep, and what it waits for is there. It
    /// may have been seen already, so this may come again until the half takes
    /// its announcement back.
    #[inline]
    pub fn is_due(&self) -> bool {
        // ORDERING: a hint. Who is woken by it reloads the cursor with Acquire;
        // what is missed here is seen after the doorbell, whose ring comes
        // behind the store.
        let wait = self.wait.load(Ordering::Relaxed);
        wait != 0
            && (self.side.cursor.load(Ordering::Relaxed) >= wait
                || self.side.closed.load(Ordering::Relaxed) != 0)
    }
}

/// The producer's half.
pub struct TxCursor<'a> {
    header: &'a RingHeader,
    capacity: u64,
    /// Ours, private: bytes written, published or not.
    tail: u64,
    /// What `header.producer` holds.
    published: u64,
    /// The consumer's, as last loaded and checked.
    head: u64,
    /// The consumer's wait word that was last rung for.
    rung_for: u64,
}

impl<'a> TxCursor<'a> {
    /// Takes the producer's half of a ring of `capacity` data bytes, going on
    /// where the shared cursors stand, and opens it.
    ///
    /// # Errors
    /// [`PeerFault::Cursor`] if the two cursors contradict each other.
    pub fn resume(header: &'a RingHeader, capacity: u64) -> Result<Self, PeerFault> {
        // ORDERING: nothing is published by this side yet; the head is reloaded
        // with Acquire before any byte behind it is reused.
        let tail = header.producer.0.cursor.load(Ordering::Relaxed);
        let head = header.consumer.0.cursor.load(Ordering::Acquire);
        if tail > CURSOR_LIMIT || tail.wrapping_sub(head) > capacity {
            return Err(PeerFault::Cursor);
        }
        let this = Self {
            header,
            capacity,
            tail,
            published: tail,
            head,
            rung_for: 0,
        };
        this.disarm();
        // ORDERING: Release pairs with the Acquire in `RxCursor::is_finished`;
        // only a new incarnation clears the flag.
        header.producer.0.closed.store(0, Ordering::Release);
        Ok(this)
    }

    /// Where the next byte goes.
    pub fn position(&self) -> u64 {
        self.tail
    }

    /// Free bytes; reloads the consumer's cursor only if fewer than `enough`
    /// are known to be free.
    ///
    /// # Errors
    /// [`PeerFault::Cursor`] if the consumer's cursor makes no sense.
    #[inline]
    pub fn free(&mut self, enough: u64) -> Result<u64, PeerFault> {
        let known = self.capacity - (self.tail - self.head);
        if known >= enough {
            return Ok(known);
        }
        self.reload()
    }

    fn reload(&mut self) -> Result<u64, PeerFault> {
        // ORDERING: Acquire pairs with the Release in `RxCursor::publish`: the
        // consumer's reads of a byte happen before we write it again.
        let head = self.header.consumer.0.cursor.load(Ordering::Acquire);
        // The consumer may only go forward, and not past what was published.
        if head.wrapping_sub(self.head) > self.published - self.head {
            return Err(PeerFault::Cursor);
        }
        self.head = head;
        Ok(self.capacity - (self.tail - head))
    }

    /// Counts `n` bytes as written. The consumer does not see them yet.
    ///
    /// # Panics
    /// If more is counted than is free: that would be a bug of the caller.
    #[inline]
    pub fn advance(&mut self, n: u64) {
        assert!(
            n <= self.capacity - (self.tail - self.head),
            "wrote more than was free"
        );
        self.tail += n;
    }

    /// Makes everything written so far visible.
    #[inline]
    pub fn publish(&mut self) -> Wake {
        if self.published == self.tail {
            return Wake::NotNeeded;
        }
        self.published = self.tail;
        // ORDERING: Release pairs with the Acquire in `RxCursor::reload`.
        self.header
            .producer
            .0
            .cursor
            .store(self.tail, Ordering::Release);
        // ORDERING: pairs with the fence in `RxCursor::arm`.
        fence(Ordering::SeqCst);
        let wait = self.header.consumer_wait.0.load(Ordering::Relaxed);
        if wait != 0 && wait != self.rung_for && self.tail >= wait {
            self.rung_for = wait;
            return Wake::Ring;
        }
        Wake::NotNeeded
    }

    /// Announces sleep until `need` bytes are free (at most the capacity).
    ///
    /// # Errors
    /// As for [`free`](Self::free); the announcement is taken back.
    pub fn arm(&mut self, need: u64) -> Result<Arm, PeerFault> {
        let need = need.min(self.capacity);
        // Free bytes = capacity - (tail - head), so `need` are free from here on.
        let target = (self.tail + need).saturating_sub(self.capacity).max(1);
        self.header.producer_wait.0.store(target, Ordering::Relaxed);
        // ORDERING: pairs with the fence in `RxCursor::publish` and `close`.
        fence(Ordering::SeqCst);
        match self.reload() {
            Ok(free) if free < need && !self.is_peer_closed() => Ok(Arm::Sleep),
            Ok(_) => {
                self.disarm();
                Ok(Arm::Awake)
            }
            Err(fault) => {
                self.disarm();
                Err(fault)
            }
        }
    }

    /// Takes the announcement back.
    pub fn disarm(&self) {
        // ORDERING: a late ring for an old wait word is harmless.
        self.header.producer_wait.0.store(0, Ordering::Relaxed);
    }

    /// Watches this half's sleep.
    pub fn watch(&self) -> Watch<'a> {
        Watch {
            side: &self.header.consumer.0,
            wait: &self.header.producer_wait.0,
        }
    }

    /// Publishes what was written, then says that nothing follows.
    pub fn close(&mut self) -> Wake {
        let wake = self.publish();
        // ORDERING: Release pairs with the Acquire in `RxCursor::is_finished`:
        // who sees the flag sees the last published cursor.
        self.header.producer.0.closed.store(1, Ordering::Release);
        // ORDERING: pairs with the fence in `RxCursor::arm`.
        fence(Ordering::SeqCst);
        match self.header.consumer_wait.0.load(Ordering::Relaxed) {
            0 => wake,
            _ => Wake::Ring,
        }
    }

    /// Whether the consumer said that it will read no more.
    pub fn is_peer_closed(&self) -> bool {
        // ORDERING: Acquire pairs with the Release in `RxCursor::close`.
        self.header.consumer.0.closed.load(Ordering::Acquire) != 0
    }
}

/// The consumer's half.
pub struct RxCursor<'a> {
    header: &'a RingHeader,
    capacity: u64,
    /// Ours, private: bytes read, given back or not.
    head: u64,
    /// What `header.consumer` holds.
    published: u64,
    /// The producer's, as last loaded and checked.
    tail: u64,
    /// The producer's wait word that was last rung for.
    rung_for: u64,
}

impl<'a> RxCursor<'a> {
    /// Takes the consumer's half of a ring of `capacity` data bytes, going on
    /// where the shared cursors stand, and opens it.
    ///
    /// # Errors
    /// [`PeerFault::Cursor`] if the two cursors contradict each other.
    pub fn resume(header: &'a RingHeader, capacity: u64) -> Result<Self, PeerFault> {
        // ORDERING: our own cursor, and no byte is read before `reload`.
        let head = header.consumer.0.cursor.load(Ordering::Relaxed);
        if head > CURSOR_LIMIT {
            return Err(PeerFault::Cursor);
        }
        let mut this = Self {
            header,
            capacity,
            head,
            published: head,
            tail: head,
            rung_for: 0,
        };
        this.reload()?;
        this.disarm();
        // ORDERING: Release pairs with the Acquire in `TxCursor::is_peer_closed`.
        header.consumer.0.closed.store(0, Ordering::Release);
        Ok(this)
    }

    /// Watches this half's sleep.
    pub fn watch(&self) -> Watch<'a> {
        Watch {
            side: &self.header.producer.0,
            wait: &self.header.consumer_wait.0,
        }
    }

    /// Where the next byte to read is.
    pub fn position(&self) -> u64 {
        self.head
    }

    /// Readable bytes; reloads the producer's cursor only if fewer than
    /// `enough` are known to be there.
    ///
    /// # Errors
    /// [`PeerFault::Cursor`] if the producer's cursor makes no sense.
    #[inline]
    pub fn readable(&mut self, enough: u64) -> Result<u64, PeerFault> {
        let known = self.tail - self.head;
        if known >= enough {
            return Ok(known);
        }
        self.reload()
    }

    fn reload(&mut self) -> Result<u64, PeerFault> {
        // ORDERING: Acquire pairs with the Release in `TxCursor::publish`: the
        // bytes in front of the cursor were written before.
        let tail = self.header.producer.0.cursor.load(Ordering::Acquire);
        let readable = tail.wrapping_sub(self.head);
        // The producer may only go forward, and may write over nothing that was
        // not given back. One that went back behind our own cursor would be far
        // ahead of it instead.
        let most = self.capacity - (self.head - self.published);
        if readable < self.tail - self.head || readable > most {
            return Err(PeerFault::Cursor);
        }
        self.tail = tail;
        Ok(readable)
    }

    /// Counts `n` bytes as read. The producer may not write over them yet.
    ///
    /// # Panics
    /// If more is counted than is readable: that would be a bug of the caller.
    #[inline]
    pub fn advance(&mut self, n: u64) {
        assert!(n <= self.tail - self.head, "read more than was readable");
        self.head += n;
    }

    /// Gives everything read so far back to the producer.
    #[inline]
    pub fn publish(&mut self) -> Wake {
        if self.published == self.head {
            return Wake::NotNeeded;
        }
        self.published = self.head;
        // ORDERING: Release pairs with the Acquire in `TxCursor::reload`.
        self.header
            .consumer
            .0
            .cursor
            .store(self.head, Ordering::Release);
        // ORDERING: pairs with the fence in `TxCursor::arm`.
        fence(Ordering::SeqCst);
        let wait = self.header.producer_wait.0.load(Ordering::Relaxed);
        if wait != 0 && wait != self.rung_for && self.head >= wait {
            self.rung_for = wait;
            return Wake::Ring;
        }
        Wake::NotNeeded
    }

    /// Announces sleep until a byte is readable that is not now.
    ///
    /// # Errors
    /// As for [`readable`](Self::readable); the announcement is taken back.
    pub fn arm(&mut self) -> Result<Arm, PeerFault> {
        self.header
            .consumer_wait
            .0
            .store(self.head + 1, Ordering::Relaxed);
        // ORDERING: pairs with the fence in `TxCursor::publish` and `close`.
        fence(Ordering::SeqCst);
        match self.reload() {
            Ok(0) if !self.is_peer_closed() => Ok(Arm::Sleep),
            Ok(_) => {
                self.disarm();
                Ok(Arm::Awake)
            }
            Err(fault) => {
                self.disarm();
                Err(fault)
            }
        }
    }

    /// Takes the announcement back.
    pub fn disarm(&self) {
        // ORDERING: a late ring for an old wait word is harmless.
        self.header.consumer_wait.0.store(0, Ordering::Relaxed);
    }

    /// Says that this side will read no more.
    pub fn close(&mut self) -> Wake {
        let wake = self.publish();
        // ORDERING: Release pairs with the Acquire in `TxCursor::is_peer_closed`.
        self.header.consumer.0.closed.store(1, Ordering::Release);
        // ORDERING: pairs with the fence in `TxCursor::arm`.
        fence(Ordering::SeqCst);
        match self.header.producer_wait.0.load(Ordering::Relaxed) {
            0 => wake,
            _ => Wake::Ring,
        }
    }

    /// Whether the producer closed. There may still be bytes to read.
    pub fn is_peer_closed(&self) -> bool {
        // ORDERING: Acquire pairs with the Release in `TxCursor::close`.
        self.header.producer.0.closed.load(Ordering::Acquire) != 0
    }

    /// Whether the producer closed and everything it wrote was read.
    ///
    /// # Errors
    /// As for [`readable`](Self::readable).
    pub fn is_finished(&mut self) -> Result<bool, PeerFault> {
        // The flag first, then the cursor: the other order would lose what was
        // written between the two looks.
        Ok(self.tail == self.head && self.is_peer_closed() && self.reload()? == 0)
    }
}
