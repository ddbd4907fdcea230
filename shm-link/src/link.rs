//! The link as its user sees it: whole frames in and out, control messages
//! beside them.
//!
//! `guest-stack` runs over anything that is a [`Link`]. Two kinds exist: the
//! rings of a shared region ([`crate::shm`]), where frames are built and read in
//! place, and any byte stream ([`crate::stream`]), where they are framed and
//! copied. Neither sleeps: the owner arms the link, sleeps by its own means,
//! and comes back.

use crate::fault::LinkError;
use crate::offload::OffloadHeader;

/// Longest frame a link carries: an Ethernet header and a 65,535-byte packet,
/// with one byte of padding.
pub const MAX_FRAME_LEN: usize = 65_550;

/// Longest control message a link carries, in bytes.
pub const MAX_CONTROL_LEN: usize = 2048;

/// The receiving direction of a link.
pub trait FrameRx {
    /// The oldest frame that was not consumed, with its offload header.
    ///
    /// Calling it again without [`consume`](Self::consume) gives the same
    /// frame. `None` says that nothing has arrived.
    ///
    /// # Errors
    /// [`LinkError::Closed`] after the last frame that the peer wrote before it
    /// closed; [`LinkError::Fault`] when the peer broke the layout's rules.
    fn peek(&mut self) -> Result<Option<(OffloadHeader, &[u8])>, LinkError>;

    /// Lets go of the frame that [`peek`](Self::peek) showed. Without one, does
    /// nothing.
    fn consume(&mut self);

    /// Gives the room of consumed frames back to the peer and wakes it if it
    /// waits for room. Call it once per batch.
    fn flush(&mut self);
}

/// The sending direction of a link.
pub trait FrameTx {
    /// Longest frame, Ethernet header included, that this link can carry.
    fn max_frame_len(&self) -> usize;

    /// Room for a frame of exactly `len` bytes, to be written in place. `None`
    /// says that there is no room now. A second call replaces the first.
    /// The bytes hold whatever was there before.
    ///
    /// # Errors
    /// As for [`FrameRx::peek`]; a frame longer than
    /// [`max_frame_len`](Self::max_frame_len) is `None` for ever, so ask first.
    fn reserve(&mut self, len: usize) -> Result<Option<&mut [u8]>, LinkError>;

    /// Queues the first `len` bytes of the frame last reserved (never more than
    /// were reserved). The peer sees it after [`flush`](Self::flush).
    fn commit(&mut self, len: usize, offload: OffloadHeader);

    /// Makes the bytes `from..len` of the frame last reserved the end of the
    /// frame committed before it, which is then shown whole, its offload header
    /// replaced by `offload`: segments that follow each other become one.
    ///
    /// `None`, which links that cannot do it always say, changes nothing: commit
    /// the reserved frame as usual. Others say it when the frame before was
    /// shown to the peer already, does not lie next to this one, or would be
    /// too long.
    fn join(&mut self, from: usize, len: usize, offload: OffloadHeader) -> Option<&mut [u8]> {
        let _ = (from, len, offload);
        None
    }

    /// Publishes what was committed and rings the peer's doorbell if it sleeps.
    /// Call it once per batch.
    fn flush(&mut self);
}

/// A frame link with its control channel.
pub trait Link {
    /// The receiving direction.
    type Rx: FrameRx;
    /// The sending direction.
    type Tx: FrameTx;

    /// Both directions at once, each on its own: a received frame can be held
    /// while its answer is built.
    fn split(&mut self) -> (&mut Self::Rx, &mut Self::Tx);

    /// Takes the next control message into `buf` and says how long it is.
    /// A message longer than `buf` is a fault; [`MAX_CONTROL_LEN`] is enough.
    ///
    /// # Errors
    /// As for [`FrameRx::peek`].
    fn recv_control(&mut self, buf: &mut [u8]) -> Result<Option<usize>, LinkError>;

    /// Sends one control message whole and rings the peer if it sleeps;
    /// `false` says that there is no room now and nothing was sent.
    ///
    /// # Errors
    /// As for [`FrameRx::peek`].
    fn send_control(&mut self, message: &[u8]) -> Result<bool, LinkError>;

    /// Announces that this side is about to sleep until a frame or a control
    /// message arrives (and, with `tx_room`, until that many bytes of frame can
    /// be reserved). `true`: nothing came in between, go to sleep; the peer will
    /// ring. `false`: there is work, do not sleep.
    ///
    /// # Errors
    /// As for [`FrameRx::peek`].
    fn arm(&mut self, tx_room: Option<usize>) -> Result<bool, LinkError>;

    /// Like [`arm`](Self::arm), for one that cannot take the frames that wait
    /// before it can reserve `tx_room` bytes, for want of room for their answers:
    /// they are no reason to stay awake, nor to wake up. A link that knows no better
    /// sleeps for frames too; its owner then looks again and again until there is room.
    ///
    /// # Errors
    /// As for [`FrameRx::peek`].
    fn arm_for_room(&mut self, tx_room: usize) -> Result<bool, LinkError> {
        self.arm(Some(tx_room))
    }

    /// Takes the announcement back after waking up, so that a busy side is not
    /// rung.
    fn disarm(&mut self);

    /// The other side's incarnation. When it changes, the other side was
    /// restarted: negotiate anew; frames and sockets are unharmed.
    fn generation(&self) -> u32;

    /// Whether control messages may be lost on the way. Then whoever waits for an answer
    /// asks again after a while; elsewhere nobody needs a timer.
    fn may_lose(&self) -> bool {
        false
    }

    /// Says that no more frames or messages will come from this side, and
    /// wakes the peer. What was committed stays readable.
    fn close(&mut self);
}
