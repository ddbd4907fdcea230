//! Whole records in a byte ring: frames and control messages.
//!
//! A record is a 16-byte header and its bytes, contiguous, padded so that the
//! next header is aligned:
//!
//! ```text
//! 0        4                     16                    16 + len   (16-aligned)
//! | len u32 | offload header, 12 | frame ...           | padding |
//! ```
//!
//! A record that does not fit before the end of the ring is put at its start,
//! and a header with `len` = 0xffff_ffff fills the gap (a *skip*). The offload
//! header stands directly before the frame, as a TAP with a virtio header of 12
//! bytes reads and writes it.
//!
//! The reader trusts nothing: the header is copied once and checked in the copy;
//! what it shows is inside the published bytes, whatever the peer does. The
//! frame's bytes stay in the ring and may still change: who needs to decide
//! something by them copies them first.

use core::ptr::NonNull;

use crate::fault::PeerFault;
use crate::offload::{OFFLOAD_HEADER_LEN, OffloadHeader};
use crate::ring::{Arm, Consumer, Producer, RingWatch, Wake};

/// Bytes in front of a record's body.
pub const RECORD_HEADER_LEN: usize = 16;
/// Every record begins at a multiple of this.
pub const RECORD_ALIGN: u64 = 16;

const SKIP: u32 = u32::MAX;

/// Ring bytes that a record with a body of `len` bytes takes.
const fn record_len(len: usize) -> u64 {
    (RECORD_HEADER_LEN as u64 + len as u64).next_multiple_of(RECORD_ALIGN)
}

/// The longest body that always fits a ring of `capacity` bytes, wherever its
/// cursors stand: a record and the skip before it take less than twice its
/// length.
pub(crate) const fn longest(capacity: usize) -> usize {
    capacity / 2 - RECORD_HEADER_LEN
}

/// Writes records.
pub struct RecordWriter {
    ring: Producer,
    max_len: usize,
    /// Bytes of body that the record last reserved has room for.
    reserved: usize,
    /// Bytes to skip before that record, up to the end of the ring.
    skip: u64,
    /// Length of the body committed last, until it is published.
    last: Option<usize>,
}

impl RecordWriter {
    /// Writes records of at most `limit` bytes (less if the ring is small).
    ///
    /// # Errors
    /// [`PeerFault::Alignment`] if the ring's cursor is not at a record.
    pub fn new(ring: Producer, limit: usize) -> Result<Self, PeerFault> {
        if !ring.position().is_multiple_of(RECORD_ALIGN) {
            return Err(PeerFault::Alignment);
        }
        let max_len = limit.min(longest(ring.capacity()));
        Ok(Self {
            ring,
            max_len,
            reserved: 0,
            skip: 0,
            last: None,
        })
    }

    /// The longest body that can be written.
    pub fn max_len(&self) -> usize {
        self.max_len
    }

    /// Room for a body of `len` bytes, to be written through the pointer until
    /// the next call on this writer. `None`: no room now, or `len` is over
    /// [`max_len`](Self::max_len).
    ///
    /// # Errors
    /// [`PeerFault::Cursor`].
    #[inline]
    pub fn reserve(&mut self, len: usize) -> Result<Option<NonNull<u8>>, PeerFault> {
        self.reserved = 0;
        if len > self.max_len {
            return Ok(None);
        }
        let need = record_len(len);
        let to_end = self.ring.to_end();
        let skip = if to_end < need { to_end } else { 0 };
        if !self.ring.has_room(skip + need)? {
            return Ok(None);
        }
        self.reserved = len;
        self.skip = skip;
        // SAFETY: behind the skip, `need` contiguous bytes are free, and need is
        // at least RECORD_HEADER_LEN.
        Ok(Some(unsafe {
            self.ring.start(skip).add(RECORD_HEADER_LEN)
        }))
    }

    /// Finishes the record last reserved with the first `len` bytes of its
    /// body. The peer sees it after [`publish`](Self::publish).
    ///
    /// # Panics
    /// If `len` is zero or more than was reserved.
    #[inline]
    pub fn commit(&mut self, len: usize, offload: OffloadHeader) {
        assert!(
            len != 0 && len <= self.reserved,
            "committed what was not reserved"
        );
        self.reserved = 0;
        if self.skip != 0 {
            // Only now: a skip without a record behind it would be a fault.
            self.write_header(0, SKIP, OffloadHeader::NONE);
            self.ring.advance(self.skip);
            self.skip = 0;
        }
        self.write_header(0, len as u32, offload);
        self.ring.advance(record_len(len));
        self.last = Some(len);
    }

    /// Makes the bytes `from..len` of the record last reserved the end of the
    /// one committed before it, whose offload header becomes `offload`, and
    /// shows its body, to be written until the next call on this writer. The
    /// rest of the reserved record is forgotten.
    ///
    /// `None` changes nothing, and the reserved record can be committed as ever:
    /// the one before was published, does not lie directly before it, or would
    /// be longer than [`max_len`](Self::max_len).
    ///
    /// # Panics
    /// If `len` is more than was reserved, or less than `from`.
    #[inline]
    pub fn join(
        &mut self,
        from: usize,
        len: usize,
        offload: OffloadHeader,
    ) -> Option<(NonNull<u8>, usize)> {
        assert!(
            from <= len && len <= self.reserved,
            "joined what was not reserved"
        );
        let last = self.last?;
        let (joined, added) = (last + len - from, len - from);
        // A record that ends where the ring does has the next one at its start.
        let apart = self.skip != 0 || self.ring.to_end() == self.ring.capacity() as u64;
        if apart || joined > self.max_len {
            return None;
        }
        let back = record_len(last);
        // SAFETY: the last record lies directly before the cursor (it was
        // committed there, and since then nothing was), not wrapped, because
        // records never are; behind it, not apart, lie a header and
        // `reserved >= len` bytes of free room, contiguous with it. All of it is
        // unpublished, so ours. Source and destination may overlap.
        let body = unsafe {
            let header = self.ring.start_back(back);
            let body = header.add(RECORD_HEADER_LEN);
            let source = header.add(back as usize + RECORD_HEADER_LEN + from);
            core::ptr::copy(source.as_ptr(), body.add(last).as_ptr(), added);
            body
        };
        self.write_header(back, joined as u32, offload);
        self.ring.advance(record_len(joined) - back);
        self.reserved = 0;
        self.last = Some(joined);
        Some((body, joined))
    }

    /// Copies a whole body in; `false` if there is no room now.
    ///
    /// # Errors
    /// [`PeerFault::Cursor`].
    pub fn write(&mut self, body: &[u8], offload: OffloadHeader) -> Result<bool, PeerFault> {
        let Some(room) = self.reserve(body.len())? else {
            return Ok(false);
        };
        // SAFETY: `room` has body.len() free bytes; `body` is private memory.
        unsafe { core::ptr::copy_nonoverlapping(body.as_ptr(), room.as_ptr(), body.len()) };
        self.commit(body.len(), offload);
        Ok(true)
    }

    /// Writes the header of the record that begins `back` bytes before the
    /// cursor.
    #[inline]
    fn write_header(&mut self, back: u64, len: u32, offload: OffloadHeader) {
        let mut header = [0; RECORD_HEADER_LEN];
        header[..4].copy_from_slice(&len.to_le_bytes());
        header[4..].copy_from_slice(&offload.to_bytes());
        // SAFETY: callers have checked that the record there is free or not yet
        // published; records begin at multiples of 16, which the capacity is
        // too, so the header does not wrap, and the ring's data are aligned to
        // 16.
        unsafe {
            self.ring
                .start_back(back)
                .cast::<[u8; RECORD_HEADER_LEN]>()
                .write(header)
        };
    }

    /// Makes the committed records visible.
    #[inline]
    pub fn publish(&mut self) -> Wake {
        self.last = None;
        self.ring.publish()
    }

    /// Announces sleep until a body of `len` bytes can be reserved. With more than
    /// [`max_len`](Self::max_len), until several can that are so long together, or
    /// half the ring is free.
    ///
    /// # Errors
    /// [`PeerFault::Cursor`].
    pub fn arm(&mut self, len: usize) -> Result<Arm, PeerFault> {
        let need = record_len(len.min(self.max_len));
        let to_end = self.ring.to_end();
        let skip = if to_end < need { to_end } else { 0 };
        let several = record_len(len.min(self.ring.capacity() / 2));
        self.ring.arm((skip + need).max(several) as usize)
    }

    /// Takes the announcement back.
    pub fn disarm(&self) {
        self.ring.disarm();
    }

    /// Watches this writer's sleep.
    pub fn watch(&self) -> RingWatch {
        self.ring.watch()
    }

    /// Publishes, and says that nothing follows.
    pub fn close(&mut self) -> Wake {
        self.last = None;
        self.ring.close()
    }

    /// Whether the reader will read no more.
    pub fn is_peer_closed(&self) -> bool {
        self.ring.is_peer_closed()
    }
}

/// A record as it stands in the ring.
#[derive(Debug, Clone, Copy)]
pub struct Record {
    /// The body's first byte. Readable until the record is consumed; the peer
    /// may change it at any time.
    pub body: NonNull<u8>,
    /// The body's length in bytes, at least 1.
    pub len: usize,
    /// The header's private copy.
    pub offload: OffloadHeader,
}

/// Reads records.
pub struct RecordReader {
    ring: Consumer,
    max_len: usize,
    /// The record at the cursor, once its header was copied and checked.
    current: Option<Record>,
}

// SAFETY: `current` points into the ring's memory, which `ring` keeps and which
// may be used from any thread.
unsafe impl Send for RecordReader {}

impl RecordReader {
    /// Reads records of at most `limit` bytes; a longer one is a fault.
    ///
    /// # Errors
    /// [`PeerFault::Alignment`] if the ring's cursor is not at a record.
    pub fn new(ring: Consumer, limit: usize) -> Result<Self, PeerFault> {
        if !ring.position().is_multiple_of(RECORD_ALIGN) {
            return Err(PeerFault::Alignment);
        }
        Ok(Self {
            ring,
            max_len: limit,
            current: None,
        })
    }

    /// The oldest record that was not consumed; the same one until
    /// [`consume`](Self::consume).
    ///
    /// # Errors
    /// [`PeerFault`] when the peer broke the layout. The reader is of no use
    /// then: what follows in the ring has no meaning.
    #[inline]
    pub fn peek(&mut self) -> Result<Option<Record>, PeerFault> {
        if self.current.is_none() {
            self.current = self.next()?;
        }
        Ok(self.current)
    }

    fn next(&mut self) -> Result<Option<Record>, PeerFault> {
        let Some((mut len, mut offload, mut readable)) = self.header()? else {
            return Ok(None);
        };
        if len == SKIP {
            // A writer skips only what the next record needs, and publishes both
            // together.
            let to_end = self.ring.to_end();
            if to_end >= readable {
                return Err(PeerFault::Skip);
            }
            self.ring.advance(to_end);
            (len, offload, readable) = self.header()?.ok_or(PeerFault::Skip)?;
            if len == SKIP {
                return Err(PeerFault::Skip);
            }
        }
        let len = len as usize;
        if len == 0 || len > self.max_len {
            return Err(PeerFault::RecordLength);
        }
        if record_len(len) > readable.min(self.ring.to_end()) {
            return Err(PeerFault::RecordLength);
        }
        // SAFETY: RECORD_HEADER_LEN is less than the record's length, which is
        // readable and contiguous (checked).
        let body = unsafe { self.ring.start().add(RECORD_HEADER_LEN) };
        Ok(Some(Record { body, len, offload }))
    }

    /// A private copy of the header at the cursor, and the readable bytes.
    #[inline]
    fn header(&mut self) -> Result<Option<(u32, OffloadHeader, u64)>, PeerFault> {
        let readable = self.ring.readable(1)?;
        if readable == 0 {
            return Ok(None);
        }
        if !readable.is_multiple_of(RECORD_ALIGN) {
            return Err(PeerFault::Alignment);
        }
        // SAFETY: at least 16 bytes are readable; our cursor and the capacity are
        // multiples of 16, so they are contiguous, and the data are aligned. The
        // copy is made once: volatile, so that the compiler does not look at the
        // shared bytes again.
        let words = unsafe { self.ring.start().cast::<[u32; 4]>().read_volatile() };
        let mut offload = [0; OFFLOAD_HEADER_LEN];
        for (bytes, word) in offload.chunks_exact_mut(4).zip(&words[1..]) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Ok(Some((
            u32::from_le(words[0]),
            OffloadHeader::from_bytes(offload),
            readable,
        )))
    }

    /// Where the next record begins, in bytes since the ring was made.
    pub fn position(&self) -> u64 {
        self.ring.position()
    }

    /// Where the next record begins, and where what the writer has published ends, in
    /// bytes since the ring was made.
    ///
    /// # Errors
    /// [`PeerFault::Cursor`].
    pub fn extent(&mut self) -> Result<(u64, u64), PeerFault> {
        let position = self.ring.position();
        Ok((position, position + self.ring.readable_len()? as u64))
    }

    /// Lets go of the record that [`peek`](Self::peek) showed.
    #[inline]
    pub fn consume(&mut self) {
        if let Some(record) = self.current.take() {
            self.ring.advance(record_len(record.len));
        }
    }

    /// Gives the room of consumed records back.
    #[inline]
    pub fn publish(&mut self) -> Wake {
        self.ring.publish()
    }

    /// Announces sleep until a record arrives.
    ///
    /// # Errors
    /// [`PeerFault::Cursor`].
    pub fn arm(&mut self) -> Result<Arm, PeerFault> {
        self.ring.arm()
    }

    /// Takes the announcement back.
    pub fn disarm(&self) {
        self.ring.disarm();
    }

    /// Watches this reader's sleep.
    pub fn watch(&self) -> RingWatch {
        self.ring.watch()
    }

    /// Says that this side will read no more.
    pub fn close(&mut self) -> Wake {
        self.ring.close()
    }

    /// Whether the writer closed and every record was consumed.
    ///
    /// # Errors
    /// [`PeerFault::Cursor`].
    pub fn is_finished(&mut self) -> Result<bool, PeerFault> {
        self.ring.is_finished()
    }
}
