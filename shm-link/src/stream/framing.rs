//! The two ways to tell records apart on a byte stream.
//!
//! ```text
//! Prefixed   header │ body                                 (nothing else)
//! Serial     00 │ COBS( header │ body │ CRC-32 ) │ 00
//! ```
//! The CRC-32 is that of Ethernet (ISO 3309), little endian, over header and
//! body. COBS (Cheshire and Baker, 1999) leaves no zero inside, so a zero always
//! stands between two records. Every record brings both of its own: bytes that
//! are lost, added or changed harm the records that they belong to and no other.
//!
//! Used by `rx` and `tx`, which own the buffers. Does no I/O.

use core::ops::Range;

use cobs::{EncoderState, PushResult};
use crc::{CRC_32_ISO_HDLC, Crc};

use super::record::{HEADER_LEN, Header};
use crate::link::MAX_CONTROL_LEN;

const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
const CRC_LEN: usize = 4;

/// How records are told apart. Both sides must use the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// By the length in front of each record, for streams that lose and change
    /// nothing: a unix stream, vsock, TCP. Anything unexpected is a fault.
    Prefixed,
    /// By zero bytes between records, each with a checksum, for lines that may
    /// lose or change bytes, and may carry somebody else's output before the
    /// peer is up. A damaged record is dropped and counted.
    Serial,
}

impl Framing {
    /// Bytes that a buffer for frames of up to `max_frame_len` bytes must have,
    /// in each direction.
    pub const fn buffer_len(self, max_frame_len: usize) -> usize {
        let longest = if max_frame_len > MAX_CONTROL_LEN {
            max_frame_len
        } else {
            MAX_CONTROL_LEN
        };
        self.room(longest) + self.room(0)
    }

    /// Bytes that a record with a body of `len` bytes takes at most, the space
    /// in which it is made included.
    pub(super) const fn room(self, len: usize) -> usize {
        match self {
            Self::Prefixed => HEADER_LEN + len,
            Self::Serial => self.body_offset(len) + len + CRC_LEN + 1,
        }
    }

    /// Where the body of a record has to be written, from the record's start.
    pub(super) const fn body_offset(self, len: usize) -> usize {
        match self {
            Self::Prefixed => HEADER_LEN,
            Self::Serial => 1 + overhead(HEADER_LEN + len + CRC_LEN) + HEADER_LEN,
        }
    }

    /// Makes a record that starts at `start` of a body that stands at `body_at`
    /// (and may move), and says where the record ends.
    pub(super) fn seal(
        self,
        buf: &mut [u8],
        start: usize,
        body_at: usize,
        header: Header,
    ) -> usize {
        // All indices are inside the room that `tx` keeps for this record.
        let raw_at = body_at - HEADER_LEN;
        let raw_end = body_at + header.len;
        buf[raw_at..body_at].copy_from_slice(&header.to_bytes());
        match self {
            Self::Prefixed => raw_end,
            Self::Serial => {
                let crc = CRC.checksum(&buf[raw_at..raw_end]);
                buf[raw_end..raw_end + CRC_LEN].copy_from_slice(&crc.to_le_bytes());
                buf[start] = 0;
                let end = encode_in_place(buf, start + 1, raw_at..raw_end + CRC_LEN);
                buf[end] = 0;
                end + 1
            }
        }
    }
}

/// Bytes between the place that COBS writes to and the one it reads from, so
/// that `len` bytes can be encoded in one buffer: one code byte in front, and one
/// more for every 254 bytes.
const fn overhead(len: usize) -> usize {
    2 + len / 254
}

/// Encodes the bytes in `raw` to `to`, which lies [`overhead`] bytes in front of
/// them or further, and says where the encoded bytes end.
fn encode_in_place(buf: &mut [u8], to: usize, raw: Range<usize>) -> usize {
    let mut state = EncoderState::default();
    // Behind the first code byte. After n bytes, `out` is at most
    // to + 1 + n + n / 254: never past the bytes that are still to be read.
    let mut out = to + 1;
    for at in raw {
        match state.push(buf[at]) {
            PushResult::AddSingle(byte) => {
                buf[out] = byte;
                out += 1;
            }
            PushResult::ModifyFromStartAndSkip((code_at, code)) => {
                buf[to + code_at] = code;
                out += 1;
            }
            PushResult::ModifyFromStartAndPushAndSkip((code_at, code, byte)) => {
                buf[to + code_at] = code;
                buf[out] = byte;
                out += 2;
            }
        }
    }
    let (code_at, code) = state.finalize();
    buf[to + code_at] = code;
    out
}

/// Decodes what stood between two zeros, in place: header and body are then the
/// front of `run`. `None`: it is damaged.
pub(super) fn open_serial(run: &mut [u8], max_frame_len: usize) -> Option<Header> {
    let len = cobs::decode_in_place(run).ok()?;
    let (record, crc) = run.get(..len)?.split_last_chunk::<CRC_LEN>()?;
    if CRC.checksum(record) != u32::from_le_bytes(*crc) {
        return None;
    }
    let header = Header::from_bytes(record.first_chunk()?, max_frame_len)?;
    (record.len() == HEADER_LEN + header.len).then_some(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::MAX_FRAME_LEN;
    use crate::offload::OffloadHeader;
    use crate::stream::record::Channel;
    use std::vec;
    use std::vec::Vec;

    fn bodies(len: usize) -> [Vec<u8>; 4] {
        let count = |n: usize| (0..len).map(|i| (i % n) as u8).collect();
        [vec![0; len], vec![0xff; len], count(256), count(255)]
    }

    #[test]
    fn serial_records_of_every_awkward_length_survive_in_their_room() {
        let lengths = (1..=20).chain(220..=260).chain(480..=520).chain([
            2048,
            MAX_FRAME_LEN - 1,
            MAX_FRAME_LEN,
        ]);
        for len in lengths {
            for body in bodies(len) {
                let room = Framing::Serial.room(len);
                let mut buf = vec![0x77; room];
                let body_at = Framing::Serial.body_offset(len);
                buf[body_at..body_at + len].copy_from_slice(&body);
                let header = Header {
                    channel: Channel::Frame,
                    len,
                    offload: OffloadHeader::NONE,
                };
                let end = Framing::Serial.seal(&mut buf, 0, body_at, header);
                assert_eq!((buf[0], buf[end - 1]), (0, 0));
                let run = &mut buf[1..end - 1];
                assert!(!run.contains(&0));
                assert_eq!(open_serial(run, MAX_FRAME_LEN), Some(header));
                assert_eq!(run[HEADER_LEN..HEADER_LEN + len], body);
            }
        }
    }

    #[test]
    fn a_record_committed_shorter_than_reserved_survives() {
        let mut buf = vec![0; Framing::Serial.room(5000)];
        let body_at = Framing::Serial.body_offset(5000);
        buf[body_at..body_at + 300].fill(9);
        let header = Header {
            channel: Channel::Frame,
            len: 300,
            offload: OffloadHeader::NONE,
        };
        let end = Framing::Serial.seal(&mut buf, 0, body_at, header);
        let run = &mut buf[1..end - 1];
        assert_eq!(open_serial(run, MAX_FRAME_LEN), Some(header));
        assert_eq!(run[HEADER_LEN..HEADER_LEN + 300], [9; 300]);
    }
}
