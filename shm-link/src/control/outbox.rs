//! Encoded messages that wait for room on the link, oldest first.
//!
//! Each machine owns one. Its memory is fixed: when it is full, the machine
//! refuses its owner's wishes and stops taking messages in (back pressure); it
//! never drops what is queued, except all at once when a session ends.

use core::fmt;

use super::wire::EncodeError;
use super::{MAX_TEXT_LEN, MAX_WORDS_LEN};
use crate::link::MAX_CONTROL_LEN;

/// Bytes of the queue: the longest message that is sent (a report or a
/// configuration), its answers in reserve, and as much again.
const CAPACITY: usize = 2 * MAX_CONTROL_LEN;

/// Bytes in front of each queued message: its length.
const PREFIX_LEN: usize = 2;

const _: () = assert!(MAX_TEXT_LEN + 64 <= MAX_CONTROL_LEN);

/// Why a machine cannot do its owner's wish at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotNow {
    /// No session is open: the first exchange is not over, or it failed.
    NoSession,
    /// The queue is full: transmit, and ask again.
    Full,
    /// An earlier request of this kind is still without its answer.
    Open,
}

impl fmt::Display for NotNow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSession => "no control session is open",
            Self::Full => "the queue of control messages is full",
            Self::Open => "an earlier request of this kind is still open",
        })
    }
}

impl core::error::Error for NotNow {}

/// Bytes of the queue that a message of `len` bytes takes up.
pub(crate) const fn queued_len(len: usize) -> usize {
    PREFIX_LEN + len
}

#[derive(Debug)]
pub(crate) struct Outbox {
    bytes: [u8; CAPACITY],
    used: usize,
}

impl Outbox {
    pub(crate) const fn new() -> Self {
        Self {
            bytes: [0; CAPACITY],
            used: 0,
        }
    }

    /// Bytes that are free, the prefixes of messages to come included.
    pub(crate) fn free(&self) -> usize {
        CAPACITY - self.used
    }

    /// Queues what `encode` writes, if `reserve` bytes stay free behind it.
    ///
    /// # Errors
    /// [`NotNow::Full`] if not; the queue is as before.
    pub(crate) fn push(
        &mut self,
        reserve: usize,
        encode: impl FnOnce(&mut [u8]) -> Result<usize, EncodeError>,
    ) -> Result<(), NotNow> {
        let end = CAPACITY.saturating_sub(reserve);
        let room = self.bytes.get_mut(self.used..end);
        let (prefix, body) = room
            .and_then(|room| room.split_first_chunk_mut::<PREFIX_LEN>())
            .ok_or(NotNow::Full)?;
        // The machines clip their texts, so only a lack of room is left.
        let len = encode(body).map_err(|_| NotNow::Full)?;
        // CAPACITY fits a u16, so every length in it does.
        *prefix = (len as u16).to_le_bytes();
        self.used += queued_len(len);
        Ok(())
    }

    /// The oldest message.
    pub(crate) fn front(&self) -> Option<&[u8]> {
        let (prefix, rest) = self.bytes[..self.used].split_first_chunk::<PREFIX_LEN>()?;
        rest.get(..u16::from_le_bytes(*prefix).into())
    }

    /// Takes the oldest message off. Without one, does nothing.
    pub(crate) fn pop(&mut self) {
        if let Some(front) = self.front() {
            let gone = queued_len(front.len());
            self.bytes.copy_within(gone..self.used, 0);
            self.used -= gone;
        }
    }

    pub(crate) fn clear(&mut self) {
        self.used = 0;
    }
}

/// The longest front part of `text` that has at most `limit_bytes`.
pub(crate) fn clip(text: &str, limit_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(limit_bytes)]
}

/// The text of `cause`, clipped to what an error may carry.
pub(crate) fn words_for(cause: impl fmt::Display) -> heapless::String<MAX_WORDS_LEN> {
    struct Clipped(heapless::String<MAX_WORDS_LEN>);

    impl fmt::Write for Clipped {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let room = self.0.capacity() - self.0.len();
            self.0.push_str(clip(text, room)).map_err(|_| fmt::Error)
        }
    }

    let mut words = Clipped(heapless::String::new());
    // A Display that gives up half-way leaves the words it wrote.
    let _ = fmt::Write::write_fmt(&mut words, format_args!("{cause}"));
    words.0
}
