//! The first exchange: the guest says what it speaks, the host accepts or
//! refuses. Its layout never changes, so any two releases can at least tell
//! each other why they cannot work together.
//!
//! ```text
//! offset  size  field
//!  0      8     magic: the bytes 4e 47 6c 69 6e 6b 21 0a ("NGlink!\n")
//!  8      2     kind: 1 hello, 2 accept, 3 refuse
//! 10      2     refusal reason; zero in a hello and an accept
//! 12      2     oldest version that the sender speaks
//! 14      2     newest version that the sender speaks
//! 16      2     chosen version; zero in a hello and a refusal
//! 18      2     reserved: sent as zero, ignored
//! 20      4     session: chosen by the guest, repeated by the host
//! 24      8     features: bits offered (hello), agreed (accept), zero (refuse)
//! 32      …     sent by no release yet, ignored
//! ```
//! All numbers are little endian. A control message that begins with the magic
//! belongs to this exchange, in every version; the kind 0x474e, which is how the
//! magic would read as a header of [`super::message`], is never assigned there.
//!
//! Used by the two machines only. What they make of it stands there.

use core::fmt;

use super::wire::EncodeError;

/// What every message of the first exchange begins with.
pub const MAGIC: [u8; 8] = *b"NGlink!\n";

/// Length of a message of the first exchange, in bytes.
pub const HELLO_LEN: usize = 32;

const KIND_HELLO: u16 = 1;
const KIND_ACCEPT: u16 = 2;
const KIND_REFUSE: u16 = 3;

/// The versions that one side speaks, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VersionRange {
    /// The oldest version spoken.
    pub oldest: u16,
    /// The newest version spoken.
    pub newest: u16,
}

impl VersionRange {
    /// What this release speaks.
    pub const SUPPORTED: Self = Self::new(1, 1);

    /// The versions from `oldest` to `newest`.
    pub const fn new(oldest: u16, newest: u16) -> Self {
        Self { oldest, newest }
    }

    /// Whether `version` is in the range.
    pub const fn contains(self, version: u16) -> bool {
        self.oldest <= version && version <= self.newest
    }

    /// The version to speak: the newest in both ranges.
    ///
    /// # Errors
    /// Why there is none, with `self` the host's range and `guest` the guest's.
    pub const fn choose(self, guest: Self) -> Result<u16, RefusalReason> {
        if guest.oldest > guest.newest {
            return Err(RefusalReason::NoVersion);
        }
        if guest.newest < self.oldest {
            return Err(RefusalReason::GuestTooOld);
        }
        if guest.oldest > self.newest {
            return Err(RefusalReason::GuestTooNew);
        }
        Ok(if guest.newest < self.newest {
            guest.newest
        } else {
            self.newest
        })
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.oldest == self.newest {
            write!(f, "version {}", self.oldest)
        } else {
            write!(f, "versions {} to {}", self.oldest, self.newest)
        }
    }
}

/// Why a host refuses a guest. The codes are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusalReason {
    /// Code 1: the guest's newest version is older than the host's oldest.
    GuestTooOld,
    /// Code 2: the guest's oldest version is newer than the host's newest.
    GuestTooNew,
    /// Code 3: the guest's hello names an empty range of versions.
    NoVersion,
    /// A code that a later release may know.
    Other(u16),
}

impl RefusalReason {
    /// The reason with this code.
    pub const fn from_code(code: u16) -> Self {
        match code {
            1 => Self::GuestTooOld,
            2 => Self::GuestTooNew,
            3 => Self::NoVersion,
            other => Self::Other(other),
        }
    }

    /// The reason's stable code.
    pub const fn code(self) -> u16 {
        match self {
            Self::GuestTooOld => 1,
            Self::GuestTooNew => 2,
            Self::NoVersion => 3,
            Self::Other(code) => code,
        }
    }
}

/// A refusal as both sides see it. Its text says what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Why the host refuses.
    pub reason: RefusalReason,
    /// What the host speaks.
    pub host: VersionRange,
    /// What the guest speaks.
    pub guest: VersionRange,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, guest, .. } = self;
        match self.reason {
            RefusalReason::GuestTooOld => write!(
                f,
                "the guest speaks control {guest}, the host {host}: \
                 build the guest with a newer shm-link, or run an older bridge"
            ),
            RefusalReason::GuestTooNew => write!(
                f,
                "the guest speaks control {guest}, the host {host}: \
                 run a newer bridge, or build the guest with an older shm-link"
            ),
            RefusalReason::NoVersion => write!(
                f,
                "the guest offers no version at all (oldest {}, newest {}): \
                 correct the guest's range of versions",
                guest.oldest, guest.newest
            ),
            RefusalReason::Other(code) => write!(
                f,
                "the host (control {host}) refuses this guest (control {guest}) for reason \
                 {code}, which is unknown here: look into the log of the bridge"
            ),
        }
    }
}

impl core::error::Error for Refusal {}

/// A message of the first exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    /// Guest to host: forget what was, this is what I speak.
    Hello {
        /// What the guest speaks.
        versions: VersionRange,
        /// Feature bits that the guest can use.
        features: u64,
        /// The guest's number for this session.
        session: u32,
    },
    /// Host to guest: speak this.
    Accept {
        /// What the host speaks.
        versions: VersionRange,
        /// The version to speak from now on.
        version: u16,
        /// Feature bits that both sides can use.
        features: u64,
        /// The session of the hello that this answers.
        session: u32,
    },
    /// Host to guest: we have no version in common.
    Refuse {
        /// What the host speaks.
        versions: VersionRange,
        /// Why it refuses.
        reason: RefusalReason,
        /// The session of the hello that this answers.
        session: u32,
    },
}

/// Bytes that begin with the magic and are no message of the first exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadHandshake;

impl fmt::Display for BadHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a message of the first exchange")
    }
}

impl core::error::Error for BadHandshake {}

impl Handshake {
    /// Whether a control message belongs to the first exchange.
    pub fn is_handshake(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    /// Writes the message to the front of `buf` and says how long it is.
    ///
    /// # Errors
    /// [`EncodeError::BufferTooSmall`] below [`HELLO_LEN`] bytes.
    pub fn encode(&self, buf: &mut [u8]) -> Result<usize, EncodeError> {
        let (kind, reason, versions, version, session, features) = match *self {
            Self::Hello {
                versions,
                features,
                session,
            } => (KIND_HELLO, 0, versions, 0, session, features),
            Self::Accept {
                versions,
                version,
                features,
                session,
            } => (KIND_ACCEPT, 0, versions, version, session, features),
            Self::Refuse {
                versions,
                reason,
                session,
            } => (KIND_REFUSE, reason.code(), versions, 0, session, 0),
        };
        let out = buf
            .first_chunk_mut::<HELLO_LEN>()
            .ok_or(EncodeError::BufferTooSmall)?;
        out[0..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&kind.to_le_bytes());
        out[10..12].copy_from_slice(&reason.to_le_bytes());
        out[12..14].copy_from_slice(&versions.oldest.to_le_bytes());
        out[14..16].copy_from_slice(&versions.newest.to_le_bytes());
        out[16..18].copy_from_slice(&version.to_le_bytes());
        out[18..20].fill(0);
        out[20..24].copy_from_slice(&session.to_le_bytes());
        out[24..32].copy_from_slice(&features.to_le_bytes());
        Ok(HELLO_LEN)
    }
}

impl TryFrom<&[u8]> for Handshake {
    type Error = BadHandshake;

    fn try_from(bytes: &[u8]) -> Result<Self, BadHandshake> {
        let b = bytes.first_chunk::<HELLO_LEN>().ok_or(BadHandshake)?;
        if !Self::is_handshake(b) {
            return Err(BadHandshake);
        }
        // All offsets below are constants inside the 32 bytes of `b`.
        let u16_at = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        let versions = VersionRange::new(u16_at(12), u16_at(14));
        let session = u32::from_le_bytes([b[20], b[21], b[22], b[23]]);
        let features = u64::from_le_bytes([b[24], b[25], b[26], b[27], b[28], b[29], b[30], b[31]]);
        match u16_at(8) {
            KIND_HELLO => Ok(Self::Hello {
                versions,
                features,
                session,
            }),
            KIND_ACCEPT => Ok(Self::Accept {
                versions,
                version: u16_at(16),
                features,
                session,
            }),
            KIND_REFUSE => Ok(Self::Refuse {
                versions,
                reason: RefusalReason::from_code(u16_at(10)),
                session,
            }),
            _ => Err(BadHandshake),
        }
    }
}
