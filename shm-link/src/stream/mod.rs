//! A frame link over any byte stream: a unix stream, vsock, a serial port.
//!
//! ```text
//!   FrameTx, send_control                     FrameRx, recv_control
//!          │  records in the caller's buffer        ▲
//!          ▼                                        │
//!   embedded_io::Write ──── bytes, any chunks ────► embedded_io::Read
//! ```
//!
//! | file | what it holds |
//! | --- | --- |
//! | `record` | what travels: a header of 16 bytes and a body, in four channels |
//! | [`Framing`] | how records are told apart, for reliable streams and for lines |
//! | [`StreamRx`] | the receiving direction |
//! | [`StreamTx`] | the sending direction |
//! | `fd` | Linux file descriptors as such a stream (feature `linux`) |
//!
//! Frames and control messages share the stream and come in the order in which
//! they were sent: a control message in front hides the frames behind it until
//! it is taken, and a frame hides control messages. So ask for both in turn.
//!
//! # Not waiting
//! The reader and the writer are asked whether they are ready before they are
//! used, and a `read` or `write` whose error has the kind
//! [`embedded_io::ErrorKind::Interrupted`] is taken as "not ready after all". So
//! nothing here waits; partial reads and writes are kept for the next call. There
//! is no doorbell: whoever sleeps until the stream is readable (or writable,
//! while [`StreamLink::wants_write`]) misses nothing.
//!
//! # The end
//! [`LinkError::Closed`] after a close record, at the end of the stream, or when
//! the stream says that the connection is gone. The end of the stream in the
//! middle of a record is no fault: a peer that was killed leaves such a part
//! behind. It is dropped and counted. A serial line has no end; there
//! only a close record ends the link. A peer that greets anew on a serial line
//! was restarted: [`Link::generation`] changes. On a reliable stream it is
//! constant.
//!
//! # Under tokio
//! Put a clone of the file descriptor into an `AsyncFd`. When it is readable, call
//! `recv_control` and `peek` until both say `None`, then clear its readiness;
//! while [`StreamLink::wants_write`], wait for it to be writable as well and call
//! `flush`. [`Link::arm`] says `false` where something was left over. After
//! [`Link::arm_for_room`] only room is waited for ([`StreamLink::wants_read`]).

#[cfg(feature = "linux")]
pub mod fd;
mod framing;
mod record;
mod rx;
mod tx;

use core::fmt;

use embedded_io::{Error, ErrorKind, Read, ReadReady, Write, WriteReady};

pub use framing::Framing;
pub use rx::{MAX_NOISE_LEN, StreamRx};
pub use tx::StreamTx;

use self::rx::Front;
use crate::fault::{LinkError, PeerFault};
use crate::link::{FrameTx, Link, MAX_FRAME_LEN};

/// A buffer is shorter than its framing and its frames need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferTooSmall {
    /// Bytes that each buffer must have at least.
    pub needed_bytes: usize,
}

impl fmt::Display for BufferTooSmall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "each buffer of the stream needs {} bytes at least",
            self.needed_bytes
        )
    }
}

impl core::error::Error for BufferTooSmall {}

/// A frame link over a reader and a writer, with buffers that the caller gives.
#[derive(Debug)]
pub struct StreamLink<R, W, B> {
    rx: StreamRx<R, B>,
    tx: StreamTx<W, B>,
    waits_for_room: bool,
}

impl<R, W, B> StreamLink<R, W, B>
where
    R: Read + ReadReady,
    W: Write + WriteReady,
    B: AsMut<[u8]>,
{
    /// A link for frames of up to `max_frame_len` bytes (at most
    /// [`MAX_FRAME_LEN`]; the same on both sides, a longer frame is not
    /// accepted). The greeting is queued; the first call writes it.
    ///
    /// # Errors
    /// When a buffer is shorter than [`Framing::buffer_len`]. A longer buffer for
    /// sending makes fewer, larger writes.
    pub fn new(
        framing: Framing,
        max_frame_len: usize,
        (reader, mut rx_buf): (R, B),
        (writer, mut tx_buf): (W, B),
    ) -> Result<Self, BufferTooSmall> {
        let max_frame_len = max_frame_len.min(MAX_FRAME_LEN);
        let needed_bytes = framing.buffer_len(max_frame_len);
        if rx_buf.as_mut().len().min(tx_buf.as_mut().len()) < needed_bytes {
            return Err(BufferTooSmall { needed_bytes });
        }
        Ok(Self {
            rx: StreamRx::new(reader, rx_buf, framing, max_frame_len),
            tx: StreamTx::new(writer, tx_buf, framing, max_frame_len),
            waits_for_room: false,
        })
    }

    /// The receiving direction, to look at.
    pub fn rx(&self) -> &StreamRx<R, B> {
        &self.rx
    }

    /// The sending direction, to look at.
    pub fn tx(&self) -> &StreamTx<W, B> {
        &self.tx
    }

    /// Whether bytes wait for the writer. If so, whoever sleeps also waits for
    /// the stream to be writable, and then calls `flush`.
    pub fn wants_write(&self) -> bool {
        self.tx.unsent_len() > 0
    }

    /// Serial: greets once more, for a peer that was there before and may not have heard
    /// of this side: it negotiates anew. `false`: no room now, or the stream loses
    /// nothing.
    ///
    /// # Errors
    /// As for [`FrameTx::reserve`].
    pub fn greet_again(&mut self) -> Result<bool, LinkError> {
        self.tx.greet_again()
    }

    /// Whether bytes of the reader are a reason to wake up: not while
    /// [`Link::arm_for_room`] holds.
    pub fn wants_read(&self) -> bool {
        !self.waits_for_room
    }
}

impl<R, W, B> Link for StreamLink<R, W, B>
where
    R: Read + ReadReady,
    W: Write + WriteReady,
    B: AsMut<[u8]>,
{
    type Rx = StreamRx<R, B>;
    type Tx = StreamTx<W, B>;

    fn split(&mut self) -> (&mut Self::Rx, &mut Self::Tx) {
        (&mut self.rx, &mut self.tx)
    }

    fn recv_control(&mut self, buf: &mut [u8]) -> Result<Option<usize>, LinkError> {
        match self.rx.front()? {
            None | Some(Front::Frame) => return Ok(None),
            Some(Front::Control) => {}
        }
        let message = self.rx.body();
        let len = message.len();
        buf.get_mut(..len)
            .ok_or(PeerFault::RecordLength)?
            .copy_from_slice(message);
        self.rx.consume_record();
        Ok(Some(len))
    }

    fn send_control(&mut self, message: &[u8]) -> Result<bool, LinkError> {
        self.tx.send_control(message)
    }

    /// Writes and reads what can be, and then says `true` if, and only if: no
    /// record is in the buffer, the reader is not ready, no unsent byte could be
    /// written, and no frame of `tx_room` bytes could be reserved. The owner then
    /// sleeps until the stream is readable, or, while
    /// [`wants_write`](StreamLink::wants_write), readable or writable. Nothing is
    /// announced to the peer.
    fn arm(&mut self, tx_room: Option<usize>) -> Result<bool, LinkError> {
        self.waits_for_room = false;
        self.tx.flush();
        if self.rx.front()?.is_some() || self.rx.is_ready()? {
            return Ok(false);
        }
        self.tx.check()?;
        if let Some(len) = tx_room
            && self.tx.has_room(len)?
        {
            return Ok(false);
        }
        Ok(!self.tx.is_ready()?)
    }

    /// Like [`arm`](Link::arm), whatever the reader has. Without room there are unsent
    /// bytes, so the owner sleeps until the stream is writable.
    fn arm_for_room(&mut self, tx_room: usize) -> Result<bool, LinkError> {
        self.tx.flush();
        self.tx.check()?;
        self.waits_for_room = !self.tx.has_room(tx_room)? && !self.tx.is_ready()?;
        Ok(self.waits_for_room)
    }

    fn disarm(&mut self) {
        self.waits_for_room = false;
    }

    fn generation(&self) -> u32 {
        self.rx.generation()
    }

    fn may_lose(&self) -> bool {
        self.tx.may_lose()
    }

    /// Queues a close and writes what the writer takes. While
    /// [`wants_write`](StreamLink::wants_write), `flush` still has to be called
    /// for the rest; frames can still be received.
    fn close(&mut self) {
        self.tx.close();
    }
}

/// What an error of the reader or the writer means; `None`: not ready after all.
fn io_error(error: &impl Error) -> Option<LinkError> {
    match error.kind() {
        ErrorKind::Interrupted => None,
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
            Some(LinkError::Closed)
        }
        kind => Some(LinkError::Io(kind)),
    }
}
