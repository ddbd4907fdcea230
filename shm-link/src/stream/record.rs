//! What travels on a byte stream: records of several channels, whatever framing
//! tells them apart.
//!
//! ```text
//! offset  size  field
//!  0      3     length of the body in bytes, little endian
//!  3      1     channel: 0 greeting, 1 frame, 2 control message, 3 close
//!  4      12    the frame's offload header; zero in other channels, ignored
//! 16      …     body
//! ```
//! A greeting is the first record in each direction. Its body is the six bytes
//! "SHMstr", the version of this layout (1) and a reserved zero; by it each side
//! notices a peer that speaks something else (with the framing for reliable
//! streams at its first wrong byte). A close has no body and nothing
//! follows it.
//!
//! Used by both framings. Knows no buffers and does no I/O.

use crate::link::MAX_CONTROL_LEN;
use crate::offload::{OFFLOAD_HEADER_LEN, OffloadHeader};

/// Bytes in front of a body.
pub(super) const HEADER_LEN: usize = 4 + OFFLOAD_HEADER_LEN;

/// The body of a greeting.
pub(super) const GREETING: [u8; 8] = *b"SHMstr\x01\x00";

/// Whether `bytes` are a greeting that is not framed any further, or the front
/// part of one.
pub(super) fn begins_greeting(bytes: &[u8]) -> bool {
    let header = Header {
        channel: Channel::Greeting,
        len: GREETING.len(),
        offload: OffloadHeader::NONE,
    };
    let mut greeting = [0; HEADER_LEN + GREETING.len()];
    greeting[..HEADER_LEN].copy_from_slice(&header.to_bytes());
    greeting[HEADER_LEN..].copy_from_slice(&GREETING);
    bytes
        .iter()
        .zip(&greeting)
        .all(|(byte, expected)| byte == expected)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channel {
    Greeting,
    Frame,
    Control,
    Close,
}

impl Channel {
    const fn number(self) -> u8 {
        match self {
            Self::Greeting => 0,
            Self::Frame => 1,
            Self::Control => 2,
            Self::Close => 3,
        }
    }

    const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Greeting),
            1 => Some(Self::Frame),
            2 => Some(Self::Control),
            3 => Some(Self::Close),
            _ => None,
        }
    }

    /// Whether a body of this channel may have this length.
    const fn allows(self, len: usize, max_frame_len: usize) -> bool {
        match self {
            Self::Greeting => len == GREETING.len(),
            Self::Frame => 1 <= len && len <= max_frame_len,
            Self::Control => 1 <= len && len <= MAX_CONTROL_LEN,
            Self::Close => len == 0,
        }
    }
}

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) channel: Channel,
    pub(super) len: usize,
    pub(super) offload: OffloadHeader,
}

impl Header {
    /// Only for lengths that the channel allows, which fit in 24 bits.
    pub(super) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [l0, l1, l2, _] = (self.len as u32).to_le_bytes();
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&[l0, l1, l2, self.channel.number()]);
        bytes[4..].copy_from_slice(&self.offload.to_bytes());
        bytes
    }

    /// Reads a header. `None`: no such channel, or its records cannot have this
    /// length.
    pub(super) fn from_bytes(bytes: &[u8; HEADER_LEN], max_frame_len: usize) -> Option<Self> {
        let [l0, l1, l2, channel, offload @ ..] = *bytes;
        let channel = Channel::from_number(channel)?;
        let len = u32::from_le_bytes([l0, l1, l2, 0]) as usize;
        channel.allows(len, max_frame_len).then(|| Self {
            channel,
            len,
            offload: OffloadHeader::from_bytes(offload),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::MAX_FRAME_LEN;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let offload = OffloadHeader {
            flags: 1,
            gso_type: 2,
            hdr_len: 3,
            gso_size: 4,
            csum_start: 5,
            csum_offset: 6,
            num_buffers: 7,
        };
        for (channel, len) in [
            (Channel::Greeting, 8),
            (Channel::Frame, 1),
            (Channel::Frame, MAX_FRAME_LEN),
            (Channel::Control, MAX_CONTROL_LEN),
            (Channel::Close, 0),
        ] {
            let header = Header {
                channel,
                len,
                offload,
            };
            let bytes = header.to_bytes();
            assert_eq!(Header::from_bytes(&bytes, MAX_FRAME_LEN), Some(header));
        }
    }

    #[test]
    fn a_header_of_impossible_length_or_channel_is_none() {
        for (channel, len) in [
            (0, 7),
            (0, 9),
            (1, 0),
            (1, MAX_FRAME_LEN + 1),
            (2, 0),
            (2, MAX_CONTROL_LEN + 1),
            (3, 1),
            (4, 8),
            (255, 8),
        ] {
            let mut bytes = [0; HEADER_LEN];
            bytes[..4].copy_from_slice(&(len as u32).to_le_bytes());
            bytes[3] = channel;
            assert_eq!(Header::from_bytes(&bytes, MAX_FRAME_LEN), None);
        }
    }
}
