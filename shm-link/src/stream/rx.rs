//! The receiving direction: bytes from the reader into the caller's buffer, and
//! whole records out of it, shown in place.
//!
//! Reads only when the reader says that it is ready, so it never waits. What a
//! record is, `framing` decides; what becomes of one, this file.

use core::ops::Range;

use embedded_io::{Read, ReadReady};

use super::framing::{Framing, open_serial};
use super::io_error;
use super::record::{Channel, GREETING, HEADER_LEN, Header, begins_greeting};
use crate::fault::{LinkError, PeerFault};
use crate::link::FrameRx;
use crate::offload::OffloadHeader;

/// Bytes of damage in a row after which a serial line is given up: whatever is
/// at its other end does not speak this. Long enough for the boot messages of a
/// talkative machine.
pub const MAX_NOISE_LEN: usize = 1024 * 1024;

/// What the oldest record in the buffer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Front {
    Frame,
    Control,
}

/// The oldest record in the buffer, checked.
#[derive(Debug, Clone)]
struct Record {
    front: Front,
    offload: OffloadHeader,
    body: Range<usize>,
    /// Where the bytes behind the record begin.
    next: usize,
}

/// The receiving direction of a [`super::StreamLink`].
#[derive(Debug)]
pub struct StreamRx<R, B> {
    reader: R,
    buf: B,
    framing: Framing,
    max_frame_len: usize,
    /// The bytes of the buffer that were read and not consumed.
    held: Range<usize>,
    current: Option<Record>,
    /// Whether any whole record arrived.
    heard: bool,
    generation: u32,
    dropped: u64,
    /// Why there will be no further record.
    ended: Option<LinkError>,
    /// Serial: how many of the held bytes are known to hold no zero.
    scanned: usize,
    /// Serial: what is held is the rest of a run that was too long to be held.
    overlong: bool,
    /// Serial: bytes dropped since the last good record.
    noise: usize,
}

impl<R: Read + ReadReady, B: AsMut<[u8]>> StreamRx<R, B> {
    pub(super) fn new(reader: R, buf: B, framing: Framing, max_frame_len: usize) -> Self {
        Self {
            reader,
            buf,
            framing,
            max_frame_len,
            held: 0..0,
            current: None,
            heard: false,
            generation: 0,
            dropped: 0,
            ended: None,
            scanned: 0,
            overlong: false,
            noise: 0,
        }
    }

    /// The reader underneath.
    pub fn reader(&self) -> &R {
        &self.reader
    }

    /// Records that were dropped because they were damaged or cut off.
    pub fn dropped_records(&self) -> u64 {
        self.dropped
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    /// What the oldest record is, after reading what there is to read. `None`:
    /// no whole record arrived, and either the reader has no more for now or it
    /// is at the end of its share of this turn.
    pub(super) fn front(&mut self) -> Result<Option<Front>, LinkError> {
        if let Some(record) = &self.current {
            return Ok(Some(record.front));
        }
        if let Some(error) = self.ended {
            return Err(error);
        }
        match self.advance() {
            Ok(()) => Ok(self.current.as_ref().map(|record| record.front)),
            Err(error) => {
                self.ended = Some(error);
                Err(error)
            }
        }
    }

    /// Whether the reader has something that was not read.
    pub(super) fn is_ready(&mut self) -> Result<bool, LinkError> {
        if let Some(error) = self.ended {
            return Err(error);
        }
        match self.reader.read_ready() {
            Ok(ready) => Ok(ready),
            // The next read says what is wrong.
            Err(error) => Ok(io_error(&error).is_some()),
        }
    }

    /// The body of the record that [`front`](Self::front) spoke of.
    pub(super) fn body(&mut self) -> &[u8] {
        let body = self.current.as_ref().map_or(0..0, |r| r.body.clone());
        &self.buf.as_mut()[body]
    }

    pub(super) fn consume_record(&mut self) {
        if let Some(record) = self.current.take() {
            self.held.start = record.next;
        }
    }

    /// Reads until a record is current or nothing more is to be had; at most one
    /// buffer full, so that a line full of noise does not hold up its owner.
    fn advance(&mut self) -> Result<(), LinkError> {
        let mut budget = self.buf.as_mut().len();
        loop {
            match self.framing {
                Framing::Prefixed => self.parse_prefixed()?,
                Framing::Serial => self.parse_serial()?,
            }
            if self.current.is_some() || budget == 0 {
                return Ok(());
            }
            match self.fill()? {
                0 => return Ok(()),
                read => budget = budget.saturating_sub(read),
            }
        }
    }

    /// Reads once if that does not wait, and says how many bytes came.
    fn fill(&mut self) -> Result<usize, LinkError> {
        let buf = self.buf.as_mut();
        if self.held.is_empty() {
            self.held = 0..0;
        } else if self.held.end == buf.len() {
            buf.copy_within(self.held.clone(), 0);
            self.held = 0..self.held.len();
        }
        // Never empty: a whole record fits the buffer, and `parse_serial` drops
        // what fills it without being one.
        let room = &mut buf[self.held.end..];
        let read = match self.reader.read_ready() {
            Ok(true) => self.reader.read(room),
            Ok(false) => return Ok(0),
            Err(error) => Err(error),
        };
        match read {
            Ok(0) => {
                // A peer that was killed may leave a part of a record behind. It
                // broke no rule; the part is dropped.
                self.dropped += u64::from(!self.held.is_empty());
                Err(LinkError::Closed)
            }
            Ok(len) => {
                self.held.end += len;
                Ok(len)
            }
            Err(error) => io_error(&error).map_or(Ok(0), Err),
        }
    }

    fn parse_prefixed(&mut self) -> Result<(), LinkError> {
        loop {
            let held = &self.buf.as_mut()[self.held.clone()];
            if !self.heard && !begins_greeting(held) {
                return Err(PeerFault::Framing.into());
            }
            let Some(header) = held.first_chunk::<HEADER_LEN>() else {
                return Ok(());
            };
            let header = Header::from_bytes(header, self.max_frame_len)
                .filter(|header| (header.channel == Channel::Greeting) != self.heard)
                .ok_or(PeerFault::Framing)?;
            if held.len() < HEADER_LEN + header.len {
                return Ok(());
            }
            let body = self.held.start + HEADER_LEN..self.held.start + HEADER_LEN + header.len;
            let next = body.end;
            if self.accept(header, body, next)? {
                return Ok(());
            }
        }
    }

    fn parse_serial(&mut self) -> Result<(), LinkError> {
        loop {
            let buf = self.buf.as_mut();
            let unscanned = self.held.start + self.scanned..self.held.end;
            let Some(run_len) = buf[unscanned].iter().position(|byte| *byte == 0) else {
                self.scanned = self.held.len();
                if self.scanned == buf.len() {
                    // No record is that long.
                    return self.drop_overlong();
                }
                return Ok(());
            };
            let run = self.held.start..self.held.start + self.scanned + run_len;
            let next = run.end + 1;
            self.scanned = 0;
            let overlong = core::mem::take(&mut self.overlong);
            if run.is_empty() || overlong {
                self.held.start = next;
                continue;
            }
            match open_serial(&mut buf[run.clone()], self.max_frame_len) {
                Some(header) => {
                    self.noise = 0;
                    let body = run.start + HEADER_LEN..run.start + HEADER_LEN + header.len;
                    if self.accept(header, body, next)? {
                        return Ok(());
                    }
                }
                None => {
                    self.held.start = next;
                    self.dropped += 1;
                    self.count_noise(run.len())?;
                }
            }
        }
    }

    fn drop_overlong(&mut self) -> Result<(), LinkError> {
        let len = self.held.len();
        self.held = 0..0;
        self.scanned = 0;
        self.dropped += u64::from(!self.overlong);
        self.overlong = true;
        self.count_noise(len)
    }

    fn count_noise(&mut self, len: usize) -> Result<(), LinkError> {
        self.noise += len;
        if self.noise > MAX_NOISE_LEN {
            return Err(PeerFault::Framing.into());
        }
        Ok(())
    }

    /// Does what a whole record asks for; `true` if it is now current.
    fn accept(
        &mut self,
        header: Header,
        body: Range<usize>,
        next: usize,
    ) -> Result<bool, LinkError> {
        let heard = core::mem::replace(&mut self.heard, true);
        let front = match header.channel {
            Channel::Frame => Front::Frame,
            Channel::Control => Front::Control,
            Channel::Close => return Err(LinkError::Closed),
            Channel::Greeting => {
                if self.buf.as_mut()[body] != GREETING {
                    return Err(PeerFault::Framing.into());
                }
                // Serial only: whoever greets in the middle was restarted.
                self.generation = self.generation.wrapping_add(heard.into());
                self.held.start = next;
                return Ok(false);
            }
        };
        self.current = Some(Record {
            front,
            offload: header.offload,
            body,
            next,
        });
        Ok(true)
    }
}

impl<R: Read + ReadReady, B: AsMut<[u8]>> FrameRx for StreamRx<R, B> {
    /// As [`FrameRx::peek`] says; `None` also while a control message stands in
    /// front of the next frame.
    fn peek(&mut self) -> Result<Option<(OffloadHeader, &[u8])>, LinkError> {
        self.front()?;
        Ok(match &self.current {
            Some(Record {
                front: Front::Frame,
                offload,
                body,
                ..
            }) => Some((*offload, &self.buf.as_mut()[body.clone()])),
            _ => None,
        })
    }

    fn consume(&mut self) {
        if let Some(Record {
            front: Front::Frame,
            ..
        }) = self.current
        {
            self.consume_record();
        }
    }

    /// Nothing to do: the stream underneath gives room back by itself.
    fn flush(&mut self) {}
}
