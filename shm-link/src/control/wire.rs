//! The header and the options that every message after the first exchange is
//! made of, and the two cursors that write and read them.
//!
//! ```text
//! header   kind u16 │ flags u16 (sent as zero, ignored) │ request id u32
//! option   tag u16  │ length u16                        │ value …   (repeated)
//! ```
//! All numbers are little endian. Bit 15 of a kind says that the message is an
//! answer. Bit 15 of a tag says that a receiver which does not know the option
//! must not act on the message; without the bit it skips the option. A receiver
//! that knows an option ignores the bit.
//!
//! Used by `message` and `config`. Reads a slice that the caller owns, never
//! memory that a peer can still write.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::offload::Offloads;

/// Length of the header, in bytes.
pub(crate) const HEADER_LEN: usize = 8;

/// Length of an option's tag and length, in bytes.
pub(crate) const OPTION_HEADER_LEN: usize = 4;

/// Bit of a kind: this message answers a request.
pub(crate) const REPLY_BIT: u16 = 0x8000;

/// Bit of a tag: who does not know the option must not act on the message.
const MANDATORY_BIT: u16 = 0x8000;

/// A message did not become bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncodeError {
    /// The buffer is shorter than the message.
    /// [`crate::link::MAX_CONTROL_LEN`] bytes are enough for every message.
    BufferTooSmall,
    /// A text is longer than its limit allows.
    TextTooLong,
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BufferTooSmall => "the buffer is shorter than the control message",
            Self::TextTooLong => "a text in the control message is longer than its limit",
        })
    }
}

impl core::error::Error for EncodeError {}

/// Bytes did not become a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeError {
    /// The id to answer with an error. `None` if the bytes hold no whole header,
    /// or if they are an answer themselves.
    pub reply_to: Option<u32>,
    /// What is wrong with the bytes.
    pub kind: DecodeErrorKind,
}

/// What is wrong with a message. The numbers are option tags without bit 15.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeErrorKind {
    /// The message is shorter than a header.
    NoHeader,
    /// The message ends in the middle of an option.
    Truncated,
    /// An option that the message cannot do without is missing.
    Missing(u16),
    /// An option that may stand once stands twice.
    Duplicate(u16),
    /// An option that may be repeated is repeated too often.
    TooMany(u16),
    /// An option's length or value is impossible.
    BadValue(u16),
    /// An option is unknown here, and its sender says that it must not be skipped.
    Unknown(u16),
}

impl fmt::Display for DecodeErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader => f.write_str("the message is shorter than a header"),
            Self::Truncated => f.write_str("the message is cut off"),
            Self::Missing(tag) => write!(f, "option {tag} is missing"),
            Self::Duplicate(tag) => write!(f, "option {tag} stands twice"),
            Self::TooMany(tag) => write!(f, "option {tag} is repeated too often"),
            Self::BadValue(tag) => write!(f, "option {tag} has an impossible length or value"),
            Self::Unknown(tag) => write!(f, "option {tag} is mandatory and unknown here"),
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad control message: {}", self.kind)
    }
}

impl core::error::Error for DecodeError {}

/// Writes a message into a buffer.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    buf: &'a mut [u8],
    len: usize,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(buf: &'a mut [u8]) -> Self {
        Self { buf, len: 0 }
    }

    /// Bytes written so far.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        let end = self.len + bytes.len();
        self.buf
            .get_mut(self.len..end)
            .ok_or(EncodeError::BufferTooSmall)?
            .copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    pub(crate) fn header(&mut self, kind: u16, id: u32) -> Result<(), EncodeError> {
        self.put(&kind.to_le_bytes())?;
        self.put(&0u16.to_le_bytes())?;
        self.put(&id.to_le_bytes())
    }

    /// An option whose value is the concatenation of `parts`.
    fn option_parts(&mut self, tag: u16, parts: &[&[u8]]) -> Result<(), EncodeError> {
        let len = parts.iter().map(|p| p.len()).sum::<usize>();
        let len = u16::try_from(len).map_err(|_| EncodeError::TextTooLong)?;
        self.put(&tag.to_le_bytes())?;
        self.put(&len.to_le_bytes())?;
        parts.iter().try_for_each(|part| self.put(part))
    }

    pub(crate) fn bytes(&mut self, tag: u16, value: &[u8]) -> Result<(), EncodeError> {
        self.option_parts(tag, &[value])
    }

    pub(crate) fn u8(&mut self, tag: u16, value: u8) -> Result<(), EncodeError> {
        self.bytes(tag, &[value])
    }

    pub(crate) fn bool(&mut self, tag: u16, value: bool) -> Result<(), EncodeError> {
        self.u8(tag, value.into())
    }

    pub(crate) fn u16(&mut self, tag: u16, value: u16) -> Result<(), EncodeError> {
        self.bytes(tag, &value.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, tag: u16, value: u32) -> Result<(), EncodeError> {
        self.bytes(tag, &value.to_le_bytes())
    }

    pub(crate) fn offloads(&mut self, tag: u16, value: Offloads) -> Result<(), EncodeError> {
        self.u32(tag, value.bits())
    }

    /// An address, in network order: 4 or 16 bytes.
    pub(crate) fn ip(&mut self, tag: u16, addr: IpAddr) -> Result<(), EncodeError> {
        match addr {
            IpAddr::V4(addr) => self.bytes(tag, &addr.octets()),
            IpAddr::V6(addr) => self.bytes(tag, &addr.octets()),
        }
    }

    /// An address in network order and behind it the length of its prefix.
    pub(crate) fn prefixed(
        &mut self,
        tag: u16,
        addr: IpAddr,
        prefix_len: u8,
    ) -> Result<(), EncodeError> {
        match addr {
            IpAddr::V4(addr) => self.option_parts(tag, &[&addr.octets(), &[prefix_len]]),
            IpAddr::V6(addr) => self.option_parts(tag, &[&addr.octets(), &[prefix_len]]),
        }
    }

    pub(crate) fn text(
        &mut self,
        tag: u16,
        text: &str,
        limit_bytes: usize,
    ) -> Result<(), EncodeError> {
        if text.len() > limit_bytes {
            return Err(EncodeError::TextTooLong);
        }
        self.bytes(tag, text.as_bytes())
    }
}

/// A message cut into header and body; nothing in the body is checked yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Raw<'a> {
    pub(crate) kind: u16,
    pub(crate) id: u32,
    pub(crate) body: &'a [u8],
}

impl<'a> Raw<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, DecodeErrorKind> {
        let (header, body) = bytes
            .split_first_chunk::<HEADER_LEN>()
            .ok_or(DecodeErrorKind::NoHeader)?;
        let [k0, k1, _, _, i0, i1, i2, i3] = *header;
        Ok(Self {
            kind: u16::from_le_bytes([k0, k1]),
            id: u32::from_le_bytes([i0, i1, i2, i3]),
            body,
        })
    }

    pub(crate) fn options(&self) -> Options<'a> {
        Options { rest: self.body }
    }
}

/// The options of a body, one after the other. Ends after the first error.
#[derive(Debug, Clone)]
pub(crate) struct Options<'a> {
    rest: &'a [u8],
}

impl<'a> Options<'a> {
    fn split(&mut self) -> Option<RawOption<'a>> {
        let (header, rest) = self.rest.split_first_chunk::<OPTION_HEADER_LEN>()?;
        let [t0, t1, l0, l1] = *header;
        let (value, rest) = rest.split_at_checked(u16::from_le_bytes([l0, l1]).into())?;
        self.rest = rest;
        Some(RawOption {
            tag: u16::from_le_bytes([t0, t1]),
            value,
        })
    }
}

impl<'a> Iterator for Options<'a> {
    type Item = Result<RawOption<'a>, DecodeErrorKind>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let option = self.split().ok_or(DecodeErrorKind::Truncated);
        if option.is_err() {
            self.rest = &[];
        }
        Some(option)
    }
}

/// One option as it stands in a body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawOption<'a> {
    tag: u16,
    value: &'a [u8],
}

impl<'a> RawOption<'a> {
    /// The tag without its mandatory bit.
    pub(crate) fn number(&self) -> u16 {
        self.tag & !MANDATORY_BIT
    }

    /// Passes over an option that is unknown here, if its sender allows that.
    pub(crate) fn skip(&self) -> Result<(), DecodeErrorKind> {
        if self.tag & MANDATORY_BIT == 0 {
            Ok(())
        } else {
            Err(DecodeErrorKind::Unknown(self.number()))
        }
    }

    pub(crate) fn bad_value(&self) -> DecodeErrorKind {
        DecodeErrorKind::BadValue(self.number())
    }

    pub(crate) fn array<const N: usize>(&self) -> Result<[u8; N], DecodeErrorKind> {
        self.value.try_into().map_err(|_| self.bad_value())
    }

    pub(crate) fn u8(&self) -> Result<u8, DecodeErrorKind> {
        let [value] = self.array()?;
        Ok(value)
    }

    pub(crate) fn bool(&self) -> Result<bool, DecodeErrorKind> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.bad_value()),
        }
    }

    pub(crate) fn u16(&self) -> Result<u16, DecodeErrorKind> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&self) -> Result<u32, DecodeErrorKind> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn offloads(&self) -> Result<Offloads, DecodeErrorKind> {
        self.u32().map(Offloads::from_bits)
    }

    pub(crate) fn ipv4(&self) -> Result<Ipv4Addr, DecodeErrorKind> {
        self.array::<4>().map(Ipv4Addr::from)
    }

    pub(crate) fn ipv6(&self) -> Result<Ipv6Addr, DecodeErrorKind> {
        self.array::<16>().map(Ipv6Addr::from)
    }

    pub(crate) fn ip(&self) -> Result<IpAddr, DecodeErrorKind> {
        match self.value.len() {
            4 => self.ipv4().map(IpAddr::V4),
            _ => self.ipv6().map(IpAddr::V6),
        }
    }

    pub(crate) fn ipv4_prefixed(&self) -> Result<(Ipv4Addr, u8), DecodeErrorKind> {
        let [a, b, c, d, prefix_len] = self.array()?;
        Ok((Ipv4Addr::new(a, b, c, d), prefix_len))
    }

    pub(crate) fn ipv6_prefixed(&self) -> Result<(Ipv6Addr, u8), DecodeErrorKind> {
        let bytes: [u8; 17] = self.array()?;
        // 17 bytes always split into 16 and 1.
        let (octets, prefix_len) = bytes
            .split_first_chunk::<16>()
            .ok_or_else(|| self.bad_value())?;
        Ok((Ipv6Addr::from(*octets), prefix_len[0]))
    }

    pub(crate) fn text(&self, limit_bytes: usize) -> Result<&'a str, DecodeErrorKind> {
        if self.value.len() > limit_bytes {
            return Err(self.bad_value());
        }
        core::str::from_utf8(self.value).map_err(|_| self.bad_value())
    }

    /// Puts `value` where the message keeps this option, which may stand once.
    pub(crate) fn once<T>(&self, slot: &mut Option<T>, value: T) -> Result<(), DecodeErrorKind> {
        match slot {
            Some(_) => Err(DecodeErrorKind::Duplicate(self.number())),
            None => {
                *slot = Some(value);
                Ok(())
            }
        }
    }

    /// Adds `value` to the list that keeps this option, which may be repeated.
    pub(crate) fn append<T, const N: usize>(
        &self,
        list: &mut heapless::Vec<T, N>,
        value: T,
    ) -> Result<(), DecodeErrorKind> {
        list.push(value)
            .map_err(|_| DecodeErrorKind::TooMany(self.number()))
    }
}

/// The value of an option that the message cannot do without.
pub(crate) fn required<T>(slot: Option<T>, tag: u16) -> Result<T, DecodeErrorKind> {
    slot.ok_or(DecodeErrorKind::Missing(tag))
}
