//! One direction of shared memory: a byte ring with contiguous grants.
//!
//! [`Producer`] and [`Consumer`] add the bytes to the cursors of
//! [`cursor`]. Both give out *grants*: contiguous room to write or
//! bytes to read, in place. A grant never wraps; [`Producer::write`] and
//! [`Consumer::read`] copy across the end. Nothing is visible to the other side
//! before `publish`, so any number of writes cost one shared store.

pub mod cursor;

use core::ptr::NonNull;

use crate::fault::PeerFault;
use crate::region::Region;
pub use cursor::{Arm, RING_HEADER_LEN, Wake};
use cursor::{RingHeader, RxCursor, TxCursor};

/// Smallest and largest number of data bytes in a ring. Capacities are powers
/// of two.
pub const MIN_CAPACITY: usize = 4096;
/// See [`MIN_CAPACITY`].
pub const MAX_CAPACITY: usize = 1 << 30;

/// Why a ring cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingError {
    /// The region is not a header and a power of two of data bytes between
    /// [`MIN_CAPACITY`] and [`MAX_CAPACITY`].
    Size,
    /// The cursors that stand in the ring contradict each other.
    Fault(PeerFault),
}

impl core::fmt::Display for RingError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Size => write!(
                f,
                "a ring takes {RING_HEADER_LEN} bytes and a power of two from {MIN_CAPACITY} to {MAX_CAPACITY}"
            ),
            Self::Fault(fault) => fault.fmt(f),
        }
    }
}

impl core::error::Error for RingError {}

impl From<PeerFault> for RingError {
    fn from(fault: PeerFault) -> Self {
        Self::Fault(fault)
    }
}

/// Header and data of a ring, found in a region.
struct Memory {
    data: NonNull<u8>,
    mask: u64,
    /// Keeps header and data mapped.
    region: Region,
}

// SAFETY: `data` points into `region`, which may be used from any thread; the
// halves are moved whole and used through `&mut`.
unsafe impl Send for Memory {}

impl Memory {
    fn new(region: Region) -> Result<(&'static RingHeader, Self), RingError> {
        let capacity = region
            .len()
            .checked_sub(RING_HEADER_LEN)
            .ok_or(RingError::Size)?;
        if !capacity.is_power_of_two() || !(MIN_CAPACITY..=MAX_CAPACITY).contains(&capacity) {
            return Err(RingError::Size);
        }
        let base = region.as_ptr();
        // The header's type wants 128 bytes; a region promises only 64.
        if !base.addr().get().is_multiple_of(align_of::<RingHeader>()) {
            return Err(RingError::Size);
        }
        // SAFETY: the region is at least RING_HEADER_LEN long (checked) and
        // aligned (checked); the header is nothing but atomics, for which any
        // bytes are valid and which others may write at any time. The reference
        // does not outlive the memory, because it stays inside a Producer or a
        // Consumer, which holds the region.
        let header = unsafe { base.cast::<RingHeader>().as_ref() };
        // SAFETY: RING_HEADER_LEN <= region.len().
        let data = unsafe { base.add(RING_HEADER_LEN) };
        Ok((
            header,
            Self {
                data,
                mask: capacity as u64 - 1,
                region,
            },
        ))
    }

    fn capacity(&self) -> u64 {
        self.mask + 1
    }

    /// The byte at `cursor`, and how many follow before the end of the ring.
    #[inline]
    fn at(&self, cursor: u64) -> (NonNull<u8>, u64) {
        let offset = cursor & self.mask;
        // SAFETY: offset <= mask < capacity, and `data` has `capacity` bytes.
        (
            unsafe { self.data.add(offset as usize) },
            self.capacity() - offset,
        )
    }
}

/// Sees when a half that announced sleep is to wake up, without being that half.
/// One task may so wait for the doorbell for several.
pub struct RingWatch {
    watch: cursor::Watch<'static>,
    /// Keeps the header mapped.
    _region: Region,
}

impl RingWatch {
    /// Whether the half has announced sleep, and what it waits for is there. It
    /// may say so again until the half takes its announcement back. The peer can
    /// make it say anything: it is a reason to look, and no more.
    #[inline]
    pub fn is_due(&self) -> bool {
        self.watch.is_due()
    }
}

/// The writing half of a ring.
pub struct Producer {
    cursor: TxCursor<'static>,
    memory: Memory,
}

impl Producer {
    /// Takes the writing half of the ring that fills `region`, going on where
    /// its cursors stand: a fresh ring is all zero, and a restarted owner goes
    /// on behind what its predecessor published.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn resume(region: Region) -> Result<Self, RingError> {
        let (header, memory) = Memory::new(region)?;
        let cursor = TxCursor::resume(header, memory.capacity())?;
        Ok(Self { cursor, memory })
    }

    /// Data bytes in the ring.
    pub fn capacity(&self) -> usize {
        self.memory.capacity() as usize
    }

    /// Watches this half's sleep.
    pub fn watch(&self) -> RingWatch {
        RingWatch {
            watch: self.cursor.watch(),
            _region: self.memory.region.clone(),
        }
    }

    /// The cursor: bytes written since the ring was made.
    pub(crate) fn position(&self) -> u64 {
        self.cursor.position()
    }

    /// Bytes that can be written now.
    ///
    /// # Errors
    /// [`PeerFault::Cursor`].
    pub fn writable_len(&mut self) -> Result<usize, PeerFault> {
        Ok(self.cursor.free(u64::MAX)? as usize)
    }

    /// Whether `n` bytes can be written now; cheaper than
    /// [`writable_len`](Self::writable_len) when they are known to be.
    #[inline]
    pub(crate) fn has_room(&mut self, n: u64) -> Result<bool, PeerFault> {
        Ok(self.cursor.free(n)? >= n)
    }

    /// Bytes from the cursor to the end of the ring's memory.
    #[inline]
    pub(crate) fn to_end(&self) -> u64 {
        self.memory.at(self.cursor.position()).1
    }

    /// Contiguous room for at least one byte, in place; `None` if full.
    ///
    /// # Errors
    /// [`PeerFault::Cursor`].
    pub fn grant(&mut self) -> Result<Option<WriteGrant<'_>>, PeerFault> {
        let free = self.cursor.free(u64::MAX)?;
        let (start, to_end) = self.memory.at(self.cursor.position());
        match free.min(to_end) as usize {
            0 => Ok(None),
            len => Ok(Some(WriteGrant {
                producer: self,
                start,
                len,
            })),
        }
    }

    /// Copies as much of `bytes` as there is room for and says how much.
    ///
    /// # Errors
    /// [`PeerFault::Cursor`].
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<usize, PeerFault> {
        let mut written = 0;
        while !bytes.is_empty() {
            let Some(mut grant) = self.grant()? else {
                break;
            };
            let n = grant.copy_from(bytes);
            grant.commit(n);
            bytes = &bytes[n..];
            written += n;
        }
        Ok(written)
    }

    /// The address of the byte `ahead` of the cursor. The caller has checked the
    /// room.
    #[inline]
    pub(crate) fn start(&self, ahead: u64) -> NonNull<u8> {
        self.memory.at(self.cursor.position() + ahead).0
    }

    /// The address of the byte `back` before the cursor, which was written and
    /// not yet published.
    #[inline]
    pub(crate) fn start_back(&self, back: u64) -> NonNull<u8> {
        self.memory.at(self.cursor.position() - back).0
    }

    /// Counts `n` bytes as written; never more than are free.
    #[inline]
    pub(crate) fn advance(&mut self, n: u64) {
        self.cursor.advance(n);
    }

    /// Makes what was written visible to the consumer.
    #[inline]
    pub fn publish(&mut self) -> Wake {
        self.cursor.publish()
    }

    /// Announces sleep until `need` bytes can be written.
    ///
    /// # Errors
    /// [`PeerFault::Cursor`].
    pub fn arm(&mut self, need: usize) -> Result<Arm, PeerFault> {
        self.cursor.arm(need as u64)
    }

    /// Takes the announcement back.
    pub fn disarm(&self) {
        self.cursor.disarm();
    }

    /// Publishes, and says that nothing follows.
    pub fn close(&mut self) -> Wake {
        self.cursor.close()
    }

    /// Whether the consumer will read no more.
    pub fn is_peer_closed(&self) -> bool {
        self.cursor.is_peer_closed()
    }
}

/// Contiguous room in a ring. Dropped without [`commit`](Self::commit), it
/// leaves no trace.
pub struct WriteGrant<'a> {
    producer: &'a mut Producer,
    start: NonNull<u8>,
    len: usize,
}

impl WriteGrant<'_> {
    /// Bytes of room.
    #[allow(clippy::len_without_is_empty, reason = "a grant is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The first byte, for a system call or a device that writes here. Valid
    /// until the grant is committed or dropped.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Copies the front of `bytes`, as much as fits, and says how much.
    pub fn copy_from(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.len);
        // SAFETY: `start` has `len >= n` bytes of room inside the ring, which the
        // cursors give to us alone; `bytes` is private memory.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr(), n) };
        n
    }

    /// Counts the first `n` bytes as written.
    ///
    /// # Panics
    /// If `n` is more than the grant's length.
    pub fn commit(self, n: usize) {
        assert!(n <= self.len, "committed more than was granted");
        self.producer.advance(n as u64);
    }
}

/// The reading half of a ring.
pub struct Consumer {
    cursor: RxCursor<'static>,
    memory: Memory,
}

impl Consumer {
    /// Takes the reading half of the ring that fills `region`, going on where
    /// its cursors stand.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn resume(region: Region) -> Result<Self, RingError> {
        let (header, memory) = Memory::new(region)?;
        let cursor = RxCursor::resume(header, memory.capacity())?;
        Ok(Self { cursor, memory })
    }

    /// Data bytes in the ring.
    pub fn capacity(&self) -> usize {
        self.memory.capacity() as usize
    }

    /// Watches this half's sleep.
    pub fn watch(&self) -> RingWatch {
        RingWatch {
            watch: self.cursor.watch(),
            _region: self.memory.region.clone(),
        }
    }

    /// The cursor: bytes read since the ring was made.
    pub(crate) fn position(&self) -> u64 {
        self.cursor.position()
    }

    /// Bytes that can be read now.
    ///
    /// # Errors
    /// [`PeerFault::Cursor`].
    pub fn readable_len(&mut self) -> Result<usize, PeerFault> {
        Ok(self.cursor.readable(u64::MAX)? as usize)
    }

    /// Readable bytes; looks at shared memory only if fewer than `enough` are
    /// known.
    #[inline]
    pub(crate) fn readable(&mut self, enough: u64) -> Result<u64, PeerFault> {
        self.cursor.readable(enough)
    }

    /// Bytes from the cursor to the end of the ring's memory.
    #[inline]
    pub(crate) fn to_end(&self) -> u64 {
        self.memory.at(self.cursor.position()).1
    }

    /// Contiguous bytes to read, in place; `None` if there are none.
    ///
    /// # Errors
    /// [`PeerFault::Cursor`].
    pub fn grant(&mut self) -> Result<Option<ReadGrant<'_>>, PeerFault> {
        let readable = self.cursor.readable(1)?;
        let (start, to_end) = self.memory.at(self.cursor.position());
        match readable.min(to_end) as usize {
            0 => Ok(None),
            len => Ok(Some(ReadGrant {
                consumer: self,
                start,
                len,
            })),
        }
    }

    /// Copies what is there into `to` and says how much.
    ///
    /// # Errors
    /// [`PeerFault::Cursor`].
    pub fn read(&mut self, to: &mut [u8]) -> Result<usize, PeerFault> {
        let mut read = 0;
        while read < to.len() {
            let Some(grant) = self.grant()? else { break };
            let n = grant.copy_to(&mut to[read..]);
            grant.release(n);
            read += n;
        }
        Ok(read)
    }

    /// The address of the byte at the cursor. The caller has checked that it is
    /// readable.
    #[inline]
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.memory.at(self.cursor.position()).0
    }

    /// Counts `n` bytes as read; never more than are readable.
    #[inline]
    pub(crate) fn advance(&mut self, n: u64) {
        self.cursor.advance(n);
    }

    /// Gives what was read back to the producer.
    #[inline]
    pub fn publish(&mut self) -> Wake {
        self.cursor.publish()
    }

    /// Announces sleep until something is readable.
    ///
    /// # Errors
    /// [`PeerFault::Cursor`].
    pub fn arm(&mut self) -> Result<Arm, PeerFault> {
        self.cursor.arm()
    }

    /// Takes the announcement back.
    pub fn disarm(&self) {
        self.cursor.disarm();
    }

    /// Says that this side will read no more.
    pub fn close(&mut self) -> Wake {
        self.cursor.close()
    }

    /// Whether the producer closed and everything it wrote was read.
    ///
    /// # Errors
    /// [`PeerFault::Cursor`].
    pub fn is_finished(&mut self) -> Result<bool, PeerFault> {
        self.cursor.is_finished()
    }
}

/// Contiguous bytes to read. They stay in the ring until
/// [`release`](Self::release)d.
pub struct ReadGrant<'a> {
    consumer: &'a mut Consumer,
    start: NonNull<u8>,
    len: usize,
}

impl ReadGrant<'_> {
    /// Bytes to read.
    #[allow(clippy::len_without_is_empty, reason = "a grant is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The first byte, for a system call or a device that reads here. The peer
    /// may change the bytes under it. Valid until the grant is released or
    /// dropped.
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// Copies the front of the grant into `to` and says how much.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let n = to.len().min(self.len);
        // SAFETY: `start` has `len >= n` readable bytes inside the ring; `to` is
        // private memory. Only the copy is looked at.
        unsafe { core::ptr::copy_nonoverlapping(self.start.as_ptr(), to.as_mut_ptr(), n) };
        n
    }

    /// Counts the first `n` bytes as read.
    ///
    /// # Panics
    /// If `n` is more than the grant's length.
    pub fn release(self, n: usize) {
        assert!(n <= self.len, "released more than was granted");
        self.consumer.advance(n as u64);
    }
}
