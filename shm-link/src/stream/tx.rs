//! The sending direction: records are built in the caller's buffer and written
//! from there, as much at a time as the writer takes.
//!
//! Writes only when the writer says that it is ready, so it never waits. The
//! buffer holds as many records as fit; several go out in one write.

use core::ops::Range;

use embedded_io::{ErrorKind, Write, WriteReady};

use super::framing::Framing;
use super::io_error;
use super::record::{Channel, GREETING, Header};
use crate::fault::LinkError;
use crate::link::{FrameTx, MAX_CONTROL_LEN};
use crate::offload::OffloadHeader;

/// A frame that the owner may be writing into the buffer.
#[derive(Debug, Clone, Copy)]
struct Reserved {
    body_at: usize,
    len: usize,
}

/// The sending direction of a [`super::StreamLink`].
#[derive(Debug)]
pub struct StreamTx<W, B> {
    writer: W,
    buf: B,
    framing: Framing,
    max_frame_len: usize,
    /// The bytes of the buffer that are to be written. Behind them there is
    /// always room for a close.
    unsent: Range<usize>,
    reserved: Option<Reserved>,
    /// Why nothing more can be sent: the writer failed, or this side closed.
    ended: Option<LinkError>,
}

impl<W: Write + WriteReady, B: AsMut<[u8]>> StreamTx<W, B> {
    pub(super) fn new(writer: W, buf: B, framing: Framing, max_frame_len: usize) -> Self {
        let mut tx = Self {
            writer,
            buf,
            framing,
            max_frame_len,
            unsent: 0..0,
            reserved: None,
            ended: None,
        };
        tx.push(Channel::Greeting, &GREETING);
        tx
    }

    /// The writer underneath.
    pub fn writer(&self) -> &W {
        &self.writer
    }

    /// Bytes that were committed and that the writer did not take yet.
    pub fn unsent_len(&self) -> usize {
        self.unsent.len()
    }

    /// Sends a control message; `false`: no room now, or no message has this
    /// length.
    pub(super) fn send_control(&mut self, message: &[u8]) -> Result<bool, LinkError> {
        self.reserved = None;
        let possible = (1..=MAX_CONTROL_LEN).contains(&message.len());
        if !possible || !self.make_room(message.len())? {
            return Ok(false);
        }
        self.push(Channel::Control, message);
        self.drain();
        Ok(true)
    }

    pub(super) fn may_lose(&self) -> bool {
        self.framing == Framing::Serial
    }

    pub(super) fn greet_again(&mut self) -> Result<bool, LinkError> {
        self.reserved = None;
        if !self.may_lose() || !self.make_room(GREETING.len())? {
            return Ok(false);
        }
        self.push(Channel::Greeting, &GREETING);
        self.drain();
        Ok(true)
    }

    /// Whether a frame of `len` bytes could be reserved.
    pub(super) fn has_room(&mut self, len: usize) -> Result<bool, LinkError> {
        Ok(self.is_possible(len) && self.make_room(len)?)
    }

    /// Whether something is to be written and the writer would take it.
    pub(super) fn is_ready(&mut self) -> Result<bool, LinkError> {
        if self.unsent.is_empty() {
            return Ok(false);
        }
        match self.writer.write_ready() {
            Ok(ready) => Ok(ready),
            // The next write says what is wrong.
            Err(error) => Ok(io_error(&error).is_some()),
        }
    }

    pub(super) fn check(&self) -> Result<(), LinkError> {
        self.ended.map_or(Ok(()), Err)
    }

    /// Sends what is queued and a close behind it, as far as the writer takes it;
    /// `flush` sends the rest.
    pub(super) fn close(&mut self) {
        if self.ended.is_none() {
            self.push(Channel::Close, &[]);
            self.ended = Some(LinkError::Closed);
        }
        self.drain();
    }

    /// Writes until nothing is left or the writer takes no more now.
    pub(super) fn drain(&mut self) {
        while !self.unsent.is_empty() {
            let written = match self.writer.write_ready() {
                Ok(true) => self.writer.write(&self.buf.as_mut()[self.unsent.clone()]),
                Ok(false) => return,
                Err(error) => Err(error),
            };
            let error = match written {
                Ok(0) => Some(LinkError::Io(ErrorKind::WriteZero)),
                Ok(len) => {
                    self.unsent.start += len.min(self.unsent.len());
                    continue;
                }
                Err(error) => io_error(&error),
            };
            if let Some(error) = error {
                self.ended = Some(error);
                self.unsent = 0..0;
            }
            return;
        }
    }

    fn is_possible(&self, len: usize) -> bool {
        (1..=self.max_frame_len).contains(&len)
    }

    /// Makes room for a record of `len` bytes behind what is unsent; `false`: not
    /// now.
    fn make_room(&mut self, len: usize) -> Result<bool, LinkError> {
        self.check()?;
        let need = self.framing.room(len);
        let end = self.buf.as_mut().len() - self.framing.room(0);
        if end - self.unsent.end >= need {
            return Ok(true);
        }
        self.drain();
        self.check()?;
        if end - self.unsent.len() < need {
            return Ok(false);
        }
        self.buf.as_mut().copy_within(self.unsent.clone(), 0);
        self.unsent = 0..self.unsent.len();
        Ok(true)
    }

    /// Queues a record for which there is room.
    fn push(&mut self, channel: Channel, body: &[u8]) {
        let body_at = self.unsent.end + self.framing.body_offset(body.len());
        self.buf.as_mut()[body_at..body_at + body.len()].copy_from_slice(body);
        self.seal(body_at, channel, body.len(), OffloadHeader::NONE);
    }

    fn seal(&mut self, body_at: usize, channel: Channel, len: usize, offload: OffloadHeader) {
        let header = Header {
            channel,
            len,
            offload,
        };
        let buf = self.buf.as_mut();
        self.unsent.end = self.framing.seal(buf, self.unsent.end, body_at, header);
    }
}

impl<W: Write + WriteReady, B: AsMut<[u8]>> FrameTx for StreamTx<W, B> {
    fn max_frame_len(&self) -> usize {
        self.max_frame_len
    }

    /// As [`FrameTx::reserve`] says. A control message sent before the commit
    /// takes the room away again.
    fn reserve(&mut self, len: usize) -> Result<Option<&mut [u8]>, LinkError> {
        self.reserved = None;
        if !self.has_room(len)? {
            return Ok(None);
        }
        let body_at = self.unsent.end + self.framing.body_offset(len);
        self.reserved = Some(Reserved { body_at, len });
        Ok(Some(&mut self.buf.as_mut()[body_at..body_at + len]))
    }

    /// As [`FrameTx::commit`] says.
    ///
    /// # Panics
    /// If `len` is zero or more than was reserved.
    fn commit(&mut self, len: usize, offload: OffloadHeader) {
        let reserved = self.reserved.take();
        let fits = reserved.filter(|reserved| (1..=reserved.len).contains(&len));
        let body_at = fits.expect("committed what was not reserved").body_at;
        self.seal(body_at, Channel::Frame, len, offload);
    }

    /// Writes what the writer takes now. An error is reported by the next
    /// `reserve`.
    fn flush(&mut self) {
        self.drain();
    }
}
