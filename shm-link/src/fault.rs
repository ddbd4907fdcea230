//! What a peer can do wrong, and what a link can report.
//!
//! Every layer above uses these two types. A [`PeerFault`] is final for the
//! link that saw it: the side that finds one closes its end and reports it.
//! Nothing here describes a mistake of our own caller.

use core::fmt;

/// The other side of the shared memory broke the rules of the layout.
///
/// The codes are stable: they appear in counters, logs and status output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u16)]
pub enum PeerFault {
    /// A cursor moved backwards, or further than the ring is long.
    Cursor = 1,
    /// A record began at a cursor that is not a multiple of the record alignment.
    Alignment = 2,
    /// A record's length is zero, over the limit, or over what was published.
    RecordLength = 3,
    /// A skip marker where none may stand (two in a row, or with nothing behind it).
    Skip = 4,
    /// An offload header names offsets or sizes outside its frame, or an
    /// offload that was not negotiated.
    Offload = 5,
    /// The superblock does not describe this region (magic, version, table).
    Superblock = 6,
    /// A control message could not be decoded.
    Control = 7,
    /// A byte stream lost its framing (bad length, channel or checksum).
    Framing = 8,
}

impl PeerFault {
    /// The fault's stable name, for counters and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cursor => "cursor",
            Self::Alignment => "alignment",
            Self::RecordLength => "record-length",
            Self::Skip => "skip",
            Self::Offload => "offload",
            Self::Superblock => "superblock",
            Self::Control => "control",
            Self::Framing => "framing",
        }
    }
}

impl fmt::Display for PeerFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cursor => "the peer published a cursor outside the ring",
            Self::Alignment => "the peer published a record at a misaligned cursor",
            Self::RecordLength => "the peer published a record of an impossible length",
            Self::Skip => "the peer published a skip marker where none may stand",
            Self::Offload => "the peer sent an offload header that does not fit its frame",
            Self::Superblock => "the superblock does not describe this region",
            Self::Control => "the peer sent a control message that cannot be decoded",
            Self::Framing => "the byte stream lost its framing",
        })
    }
}

impl core::error::Error for PeerFault {}

/// Why a link cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkError {
    /// The peer closed its side. What it wrote before was delivered first.
    Closed,
    /// The peer broke the rules; this link is closed for good.
    Fault(PeerFault),
    /// The byte stream underneath failed (never happens on shared memory).
    Io(embedded_io::ErrorKind),
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the peer closed the link"),
            Self::Fault(fault) => fault.fmt(f),
            Self::Io(kind) => write!(f, "the byte stream under the link failed: {kind:?}"),
        }
    }
}

impl core::error::Error for LinkError {}

impl From<PeerFault> for LinkError {
    fn from(fault: PeerFault) -> Self {
        Self::Fault(fault)
    }
}

impl embedded_io::Error for LinkError {
    fn kind(&self) -> embedded_io::ErrorKind {
        match self {
            Self::Closed => embedded_io::ErrorKind::BrokenPipe,
            Self::Fault(_) => embedded_io::ErrorKind::InvalidData,
            Self::Io(kind) => *kind,
        }
    }
}
