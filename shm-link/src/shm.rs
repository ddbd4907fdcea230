//! A link over a shared region: the guest's end.
//!
//! [`ShmLink`] finds the rings by the superblock, takes the guest's halves, and
//! is a [`Link`]: frames are built and read in place in the ring. That is sound
//! only where the peer may be trusted not to write a frame that was handed over
//! while it is being read; a guest trusts its host, so its end is made with an
//! `unsafe` promise. The host trusts no guest and uses
//! [`record`](crate::record) directly ([`HostEnd`]).

use crate::doorbell::Doorbell;
use crate::fault::{LinkError, PeerFault};
use crate::link::{FrameRx, FrameTx, Link, MAX_CONTROL_LEN, MAX_FRAME_LEN};
use crate::offload::OffloadHeader;
use crate::record::{RecordReader, RecordWriter};
use crate::region::Region;
use crate::ring::{Arm, Consumer, Producer, RingError};
use crate::superblock::{Layout, LayoutError, RingPlace};

/// Why a link cannot be made on a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShmError {
    /// The superblock cannot be used.
    Layout(LayoutError),
    /// A ring contradicts itself.
    Ring(RingError),
}

impl core::fmt::Display for ShmError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Layout(error) => error.fmt(f),
            Self::Ring(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ShmError {}

impl From<RingError> for ShmError {
    fn from(error: RingError) -> Self {
        Self::Ring(error)
    }
}

impl From<PeerFault> for ShmError {
    fn from(fault: PeerFault) -> Self {
        Self::Ring(RingError::Fault(fault))
    }
}

fn writer(region: &Region, place: RingPlace, limit: usize) -> Result<RecordWriter, ShmError> {
    let part = place
        .region(region)
        .map_err(|_| ShmError::Layout(LayoutError::Fault))?;
    Ok(RecordWriter::new(Producer::resume(part)?, limit)?)
}

fn reader(region: &Region, place: RingPlace, limit: usize) -> Result<RecordReader, ShmError> {
    let part = place
        .region(region)
        .map_err(|_| ShmError::Layout(LayoutError::Fault))?;
    Ok(RecordReader::new(Consumer::resume(part)?, limit)?)
}

/// The host's halves of a region's rings.
pub struct HostEnd {
    /// Frames from the guest.
    pub frames_rx: RecordReader,
    /// Frames to the guest.
    pub frames_tx: RecordWriter,
    /// Control messages from the guest.
    pub control_rx: RecordReader,
    /// Control messages to the guest.
    pub control_tx: RecordWriter,
}

impl HostEnd {
    /// Takes the host's halves of the rings of `layout`, going on where their
    /// cursors stand. Call it before [`Layout::publish`] lets the guest in.
    ///
    /// # Errors
    /// [`ShmError`]; a fault means that the guest wrote over the cursors.
    pub fn resume(region: &Region, layout: &Layout) -> Result<Self, ShmError> {
        Ok(Self {
            frames_rx: reader(region, layout.frames.to_host, MAX_FRAME_LEN)?,
            frames_tx: writer(region, layout.frames.to_guest, MAX_FRAME_LEN)?,
            control_rx: reader(region, layout.control.to_host, MAX_CONTROL_LEN)?,
            control_tx: writer(region, layout.control.to_guest, MAX_CONTROL_LEN)?,
        })
    }
}

/// Frames that there is to be room for when a guest that found none is rung; as many
/// as half the ring holds, if that is less.
const ROOM_FRAMES: usize = 8;

/// The guest's end of a link over shared memory.
pub struct ShmLink<D: Doorbell> {
    rx: ShmRx<D>,
    tx: ShmTx<D>,
    control_rx: RecordReader,
    control_tx: RecordWriter,
    region: Region,
    doorbell: D,
    /// Sleep is announced.
    armed: bool,
}

impl<D: Doorbell + Clone> ShmLink<D> {
    /// Attaches to the region that the host made ready; `doorbell` wakes the
    /// host. A guest that was restarted attaches in the same way and goes on
    /// where its predecessor stopped.
    ///
    /// # Errors
    /// [`ShmError::Layout`] with [`LayoutError::NotReady`]: wait and try again.
    /// Others are final.
    ///
    /// # Safety
    /// The host must be trusted to keep to the layout: it must not write a
    /// frame's bytes between publishing the frame and getting its room back, nor
    /// read into room that was not published. The guest shows these bytes as
    /// Rust slices.
    pub unsafe fn attach(region: Region, doorbell: D) -> Result<Self, ShmError> {
        let layout = Layout::find(&region).map_err(ShmError::Layout)?;
        Ok(Self {
            rx: ShmRx {
                records: reader(&region, layout.frames.to_guest, MAX_FRAME_LEN)?,
                doorbell: doorbell.clone(),
            },
            tx: ShmTx {
                records: writer(&region, layout.frames.to_host, MAX_FRAME_LEN)?,
                doorbell: doorbell.clone(),
            },
            control_rx: reader(&region, layout.control.to_guest, MAX_CONTROL_LEN)?,
            control_tx: writer(&region, layout.control.to_host, MAX_CONTROL_LEN)?,
            region,
            doorbell,
            armed: false,
        })
    }
}

impl<D: Doorbell> ShmLink<D> {
    /// Announces sleep until there is something to do. With `tx_room`, until there
    /// is room for several such frames: a guest that fills the ring faster than the
    /// host empties it would be rung for each else.
    fn arm_all(&mut self, frames: bool, tx_room: Option<usize>) -> Result<bool, LinkError> {
        self.armed = true;
        let sleep = (!frames || self.rx.records.arm()? == Arm::Sleep)
            && self.control_rx.arm()? == Arm::Sleep
            && match tx_room {
                Some(len) => self.tx.records.arm(len * ROOM_FRAMES)? == Arm::Sleep,
                None => true,
            };
        if !sleep {
            self.disarm();
        }
        Ok(sleep)
    }
}

/// The receiving direction of a [`ShmLink`].
pub struct ShmRx<D> {
    records: RecordReader,
    doorbell: D,
}

/// The sending direction of a [`ShmLink`].
pub struct ShmTx<D> {
    records: RecordWriter,
    doorbell: D,
}

impl<D: Doorbell> FrameRx for ShmRx<D> {
    #[inline]
    fn peek(&mut self) -> Result<Option<(OffloadHeader, &[u8])>, LinkError> {
        let Some(record) = self.records.peek()? else {
            return match self.records.is_finished()? {
                true => Err(LinkError::Closed),
                false => Ok(None),
            };
        };
        // SAFETY: the record lies in the ring's published bytes, which are ours
        // until consumed, which takes `&mut self`. The host does not write them
        // meanwhile (promised to `attach`).
        let frame = unsafe { core::slice::from_raw_parts(record.body.as_ptr(), record.len) };
        Ok(Some((record.offload, frame)))
    }

    #[inline]
    fn consume(&mut self) {
        self.records.consume();
    }

    #[inline]
    fn flush(&mut self) {
        self.records.publish().ring(&self.doorbell);
    }
}

impl<D: Doorbell> FrameTx for ShmTx<D> {
    fn max_frame_len(&self) -> usize {
        self.records.max_len()
    }

    #[inline]
    fn reserve(&mut self, len: usize) -> Result<Option<&mut [u8]>, LinkError> {
        let Some(mut room) = self.records.reserve(len)? else {
            return match self.records.is_peer_closed() {
                true => Err(LinkError::Closed),
                false => Ok(None),
            };
        };
        // SAFETY: `len` bytes from `room` are free and ours until committed or
        // reserved again, which takes `&mut self`. The host does not touch
        // unpublished room (promised to `attach`). The bytes are initialised:
        // shared memory always is.
        Ok(Some(unsafe {
            core::slice::from_raw_parts_mut(room.as_mut(), len)
        }))
    }

    #[inline]
    fn commit(&mut self, len: usize, offload: OffloadHeader) {
        self.records.commit(len, offload);
    }

    #[inline]
    fn join(&mut self, from: usize, len: usize, offload: OffloadHeader) -> Option<&mut [u8]> {
        let (mut body, len) = self.records.join(from, len, offload)?;
        // SAFETY: `len` bytes from `body` on are a record of ours that was not
        // published, ours until the next call, which takes `&mut self`; the host
        // does not touch it (promised to `attach`).
        Some(unsafe { core::slice::from_raw_parts_mut(body.as_mut(), len) })
    }

    #[inline]
    fn flush(&mut self) {
        self.records.publish().ring(&self.doorbell);
    }
}

impl<D: Doorbell> Link for ShmLink<D> {
    type Rx = ShmRx<D>;
    type Tx = ShmTx<D>;

    fn split(&mut self) -> (&mut Self::Rx, &mut Self::Tx) {
        (&mut self.rx, &mut self.tx)
    }

    fn recv_control(&mut self, buf: &mut [u8]) -> Result<Option<usize>, LinkError> {
        let message = read_message(&mut self.control_rx, buf)?;
        self.control_rx.publish().ring(&self.doorbell);
        match message {
            None if self.control_rx.is_finished()? => Err(LinkError::Closed),
            other => Ok(other),
        }
    }

    fn send_control(&mut self, message: &[u8]) -> Result<bool, LinkError> {
        let sent = self.control_tx.write(message, OffloadHeader::NONE)?;
        self.control_tx.publish().ring(&self.doorbell);
        match sent {
            false if self.control_tx.is_peer_closed() => Err(LinkError::Closed),
            other => Ok(other),
        }
    }

    fn arm(&mut self, tx_room: Option<usize>) -> Result<bool, LinkError> {
        self.arm_all(true, tx_room)
    }

    fn arm_for_room(&mut self, tx_room: usize) -> Result<bool, LinkError> {
        self.arm_all(false, Some(tx_room))
    }

    fn disarm(&mut self) {
        // The host reads these words whenever it publishes: a side that stays
        // awake leaves them alone.
        if !core::mem::take(&mut self.armed) {
            return;
        }
        self.rx.records.disarm();
        self.control_rx.disarm();
        self.tx.records.disarm();
    }

    fn generation(&self) -> u32 {
        // The word is inside: `attach` has read it.
        Layout::generation(&self.region).unwrap_or(0)
    }

    fn close(&mut self) {
        let wake = self.tx.records.close().or(self.control_tx.close());
        let wake = wake.or(self.rx.records.close()).or(self.control_rx.close());
        wake.ring(&self.doorbell);
    }
}

/// Copies the next record out of `records` as a message; one longer than `buf`
/// is a fault. The room is given back with the reader's next publish.
///
/// # Errors
/// [`PeerFault`].
pub fn read_message(
    records: &mut RecordReader,
    buf: &mut [u8],
) -> Result<Option<usize>, PeerFault> {
    let Some(record) = records.peek()? else {
        return Ok(None);
    };
    let to = buf.get_mut(..record.len).ok_or(PeerFault::RecordLength)?;
    // SAFETY: the record has `len` readable bytes; `to` is private memory of the
    // same length. Only the copy is looked at.
    unsafe { core::ptr::copy_nonoverlapping(record.body.as_ptr(), to.as_mut_ptr(), record.len) };
    records.consume();
    Ok(Some(record.len))
}
