//! The messages of version 1, after the first exchange.
//!
//! | kind | name | from | body | answered by |
//! | --- | --- | --- | --- | --- |
//! | 0x0001 | configure | guest | [`Configure`] | config |
//! | 0x0002 | ping | both | empty | pong |
//! | 0x0003 | report | guest | level, text | done |
//! | 0x0004 | goodbye | guest | code, words | done |
//! | 0x0005 | update | host | [`NetworkConfig`] | done |
//! | 0x8001 | config | host | [`NetworkConfig`] | |
//! | 0x8002 | pong | both | empty | |
//! | 0x8003 | done | both | empty | |
//! | 0x8004 | error | both | [`ErrorCode`], words | |
//!
//! Any request may be answered by error instead. Header and options are
//! described in `wire`. An unknown kind decodes to `Unknown`, whatever its body
//! holds. Each direction has its own type, so a machine cannot be handed a
//! message that only the other side may send: such a message is `Unknown` too.
//!
//! Used by the two machines. Texts are borrowed from the received bytes and
//! come from the other side: escape control characters before showing them.

use core::fmt;

use super::config::{MAX_CONFIG_BODY_LEN, NetworkConfig};
use super::wire::{
    DecodeError, DecodeErrorKind, EncodeError, HEADER_LEN, OPTION_HEADER_LEN, REPLY_BIT, Raw,
    Writer, required,
};
use super::{MAX_NAME_LEN, MAX_TEXT_LEN, MAX_WORDS_LEN};
use crate::offload::Offloads;

const CONFIGURE: u16 = 1;
const PING: u16 = 2;
const REPORT: u16 = 3;
const GOODBYE: u16 = 4;
const UPDATE: u16 = 5;
const CONFIG: u16 = REPLY_BIT | 1;
const PONG: u16 = REPLY_BIT | 2;
const DONE: u16 = REPLY_BIT | 3;
const ERROR: u16 = REPLY_BIT | 4;

/// Numbers of the options of the bodies in this file, per kind.
mod tag {
    pub(super) const CONFIGURE_MAX_MTU: u16 = 1;
    pub(super) const CONFIGURE_CAN_RECEIVE: u16 = 2;
    pub(super) const CONFIGURE_CAN_SEND: u16 = 3;
    pub(super) const CONFIGURE_NAME: u16 = 4;
    pub(super) const REPORT_LEVEL: u16 = 1;
    pub(super) const REPORT_TEXT: u16 = 2;
    /// Of error (a u16) and goodbye (a u32).
    pub(super) const CODE: u16 = 1;
    pub(super) const WORDS: u16 = 2;
}

/// Longest config or update message, in bytes.
pub(crate) const MAX_CONFIG_LEN: usize = HEADER_LEN + MAX_CONFIG_BODY_LEN;

/// Longest error message, in bytes.
pub(crate) const MAX_ERROR_LEN: usize =
    HEADER_LEN + OPTION_HEADER_LEN + 2 + OPTION_HEADER_LEN + MAX_WORDS_LEN;

/// Why a request failed. The codes are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// Code 1: the kind of request is unknown here.
    UnknownRequest,
    /// Code 2: the body of the request could not be decoded.
    Malformed,
    /// Code 3: the request has a mandatory option that is unknown here.
    UnknownOption,
    /// Code 4: the request stands outside a session: send a hello first.
    NoSession,
    /// Code 5: the values in the request make no sense or break an agreement.
    Invalid,
    /// Code 6: an earlier request of this kind was not answered yet.
    Busy,
    /// Code 7: the receiver is about to leave.
    Leaving,
    /// Code 8: the receiver tried and failed.
    Failed,
    /// A code that a later release may know.
    Other(u16),
}

impl ErrorCode {
    /// The error with this code.
    pub const fn from_code(code: u16) -> Self {
        match code {
            1 => Self::UnknownRequest,
            2 => Self::Malformed,
            3 => Self::UnknownOption,
            4 => Self::NoSession,
            5 => Self::Invalid,
            6 => Self::Busy,
            7 => Self::Leaving,
            8 => Self::Failed,
            other => Self::Other(other),
        }
    }

    /// The error's stable code.
    pub const fn code(self) -> u16 {
        match self {
            Self::UnknownRequest => 1,
            Self::Malformed => 2,
            Self::UnknownOption => 3,
            Self::NoSession => 4,
            Self::Invalid => 5,
            Self::Busy => 6,
            Self::Leaving => 7,
            Self::Failed => 8,
            Self::Other(code) => code,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownRequest => "the request is unknown to the other side",
            Self::Malformed => "the request could not be decoded",
            Self::UnknownOption => "the request needs an option unknown to the other side",
            Self::NoSession => "there is no session: a hello must come first",
            Self::Invalid => "the values in the request make no sense",
            Self::Busy => "an earlier request of this kind is still open",
            Self::Leaving => "the other side is about to leave",
            Self::Failed => "the other side tried and failed",
            Self::Other(code) => return write!(f, "error {code}, which is unknown here"),
        })
    }
}

impl From<DecodeErrorKind> for ErrorCode {
    fn from(kind: DecodeErrorKind) -> Self {
        match kind {
            DecodeErrorKind::Unknown(_) => Self::UnknownOption,
            DecodeErrorKind::NoHeader
            | DecodeErrorKind::Truncated
            | DecodeErrorKind::Missing(_)
            | DecodeErrorKind::Duplicate(_)
            | DecodeErrorKind::TooMany(_)
            | DecodeErrorKind::BadValue(_) => Self::Malformed,
        }
    }
}

/// How grave a report is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Level {
    /// 0: the guest is about to stop, and this is why.
    Panic,
    /// 1: something failed.
    Error,
    /// 2: something is odd.
    Warn,
    /// 3: something happened.
    Info,
    /// 4: for whoever looks for a mistake.
    Debug,
    /// 5: everything.
    Trace,
    /// A level that a later release may know.
    Other(u8),
}

impl Level {
    /// The level with this number.
    pub const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Panic,
            1 => Self::Error,
            2 => Self::Warn,
            3 => Self::Info,
            4 => Self::Debug,
            5 => Self::Trace,
            other => Self::Other(other),
        }
    }

    /// The level's stable number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Panic => 0,
            Self::Error => 1,
            Self::Warn => 2,
            Self::Info => 3,
            Self::Debug => 4,
            Self::Trace => 5,
            Self::Other(number) => number,
        }
    }
}

/// A guest's request for its configuration, with what it can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Configure<'a> {
    /// The largest MTU the guest can use, in bytes without the Ethernet header.
    pub max_mtu: u16,
    /// What frames to the guest may leave undone.
    pub can_receive: Offloads,
    /// What the guest would like to leave undone in frames to the host.
    pub can_send: Offloads,
    /// What the guest calls itself, for logs and status output;
    /// at most [`MAX_NAME_LEN`] bytes.
    pub name: &'a str,
}

/// A control message: its id and what it says.
///
/// `Message<FromGuest>` and `Message<FromHost>` are decoded by `TryFrom<&[u8]>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message<B> {
    /// In a request: its sender's number for it. In an answer: the number of
    /// the request that it answers.
    pub id: u32,
    /// What it says.
    pub body: B,
}

/// What a guest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromGuest<'a> {
    /// Request: tell me my configuration.
    Configure(Configure<'a>),
    /// Request: are you there?
    Ping,
    /// Request: put this into your log.
    Report {
        /// How grave it is.
        level: Level,
        /// What happened, at most [`MAX_TEXT_LEN`] bytes.
        text: &'a str,
    },
    /// Request: I am about to leave; the session ends.
    Goodbye {
        /// Zero for an orderly end, else the guest's own number for the cause.
        code: u32,
        /// Why, at most [`MAX_WORDS_LEN`] bytes.
        words: &'a str,
    },
    /// Answer: I am here.
    Pong,
    /// Answer: done.
    Done,
    /// Answer: not done.
    Error {
        /// Why not.
        code: ErrorCode,
        /// The same for people, at most [`MAX_WORDS_LEN`] bytes.
        words: &'a str,
    },
    /// A kind that this release does not know, or that only a host may send.
    Unknown {
        /// The kind.
        kind: u16,
    },
}

/// What a host says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromHost<'a> {
    /// Request: this is your configuration from now on.
    Update(NetworkConfig),
    /// Request: are you there?
    Ping,
    /// Answer: your configuration.
    Config(NetworkConfig),
    /// Answer: I am here.
    Pong,
    /// Answer: done.
    Done,
    /// Answer: not done.
    Error {
        /// Why not.
        code: ErrorCode,
        /// The same for people, at most [`MAX_WORDS_LEN`] bytes.
        words: &'a str,
    },
    /// A kind that this release does not know, or that only a guest may send.
    Unknown {
        /// The kind.
        kind: u16,
    },
}

/// Whether a kind is an answer's. An unknown request is answered with an error,
/// an unknown answer is not.
pub(crate) const fn is_reply(kind: u16) -> bool {
    kind & REPLY_BIT != 0
}

fn write_error(w: &mut Writer<'_>, code: ErrorCode, words: &str) -> Result<(), EncodeError> {
    w.u16(tag::CODE, code.code())?;
    w.text(tag::WORDS, words, MAX_WORDS_LEN)
}

fn read_error<'a>(raw: &Raw<'a>) -> Result<(ErrorCode, &'a str), DecodeErrorKind> {
    let (mut code, mut words) = (None, None);
    for option in raw.options() {
        let o = option?;
        match o.number() {
            tag::CODE => o.once(&mut code, o.u16()?)?,
            tag::WORDS => o.once(&mut words, o.text(MAX_WORDS_LEN)?)?,
            _ => o.skip()?,
        }
    }
    let code = required(code, tag::CODE)?;
    Ok((ErrorCode::from_code(code), words.unwrap_or_default()))
}

/// Checks a body that has no options of its own.
fn read_empty(raw: &Raw<'_>) -> Result<(), DecodeErrorKind> {
    raw.options().try_for_each(|option| option?.skip())
}

impl<'a> Configure<'a> {
    fn write(&self, w: &mut Writer<'_>) -> Result<(), EncodeError> {
        w.u16(tag::CONFIGURE_MAX_MTU, self.max_mtu)?;
        w.offloads(tag::CONFIGURE_CAN_RECEIVE, self.can_receive)?;
        w.offloads(tag::CONFIGURE_CAN_SEND, self.can_send)?;
        w.text(tag::CONFIGURE_NAME, self.name, MAX_NAME_LEN)
    }

    fn read(raw: &Raw<'a>) -> Result<Self, DecodeErrorKind> {
        let (mut max_mtu, mut can_receive, mut can_send, mut name) = (None, None, None, None);
        for option in raw.options() {
            let o = option?;
            match o.number() {
                tag::CONFIGURE_MAX_MTU => o.once(&mut max_mtu, o.u16()?)?,
                tag::CONFIGURE_CAN_RECEIVE => o.once(&mut can_receive, o.offloads()?)?,
                tag::CONFIGURE_CAN_SEND => o.once(&mut can_send, o.offloads()?)?,
                tag::CONFIGURE_NAME => o.once(&mut name, o.text(MAX_NAME_LEN)?)?,
                _ => o.skip()?,
            }
        }
        Ok(Self {
            max_mtu: required(max_mtu, tag::CONFIGURE_MAX_MTU)?,
            can_receive: can_receive.unwrap_or_default(),
            can_send: can_send.unwrap_or_default(),
            name: name.unwrap_or_default(),
        })
    }
}

impl<'a> FromGuest<'a> {
    fn kind(&self) -> u16 {
        match self {
            Self::Configure(_) => CONFIGURE,
            Self::Ping => PING,
            Self::Report { .. } => REPORT,
            Self::Goodbye { .. } => GOODBYE,
            Self::Pong => PONG,
            Self::Done => DONE,
            Self::Error { .. } => ERROR,
            Self::Unknown { kind } => *kind,
        }
    }

    /// Whether this is to be answered.
    pub(crate) fn is_request(&self) -> bool {
        !is_reply(self.kind())
    }

    fn read_report(raw: &Raw<'a>) -> Result<Self, DecodeErrorKind> {
        let (mut level, mut text) = (None, None);
        for option in raw.options() {
            let o = option?;
            match o.number() {
                tag::REPORT_LEVEL => o.once(&mut level, o.u8()?)?,
                tag::REPORT_TEXT => o.once(&mut text, o.text(MAX_TEXT_LEN)?)?,
                _ => o.skip()?,
            }
        }
        Ok(Self::Report {
            level: Level::from_number(required(level, tag::REPORT_LEVEL)?),
            text: required(text, tag::REPORT_TEXT)?,
        })
    }

    fn read_goodbye(raw: &Raw<'a>) -> Result<Self, DecodeErrorKind> {
        let (mut code, mut words) = (None, None);
        for option in raw.options() {
            let o = option?;
            match o.number() {
                tag::CODE => o.once(&mut code, o.u32()?)?,
                tag::WORDS => o.once(&mut words, o.text(MAX_WORDS_LEN)?)?,
                _ => o.skip()?,
            }
        }
        Ok(Self::Goodbye {
            code: required(code, tag::CODE)?,
            words: words.unwrap_or_default(),
        })
    }

    fn read(raw: &Raw<'a>) -> Result<Self, DecodeErrorKind> {
        Ok(match raw.kind {
            CONFIGURE => Self::Configure(Configure::read(raw)?),
            PING => read_empty(raw).map(|()| Self::Ping)?,
            REPORT => Self::read_report(raw)?,
            GOODBYE => Self::read_goodbye(raw)?,
            PONG => read_empty(raw).map(|()| Self::Pong)?,
            DONE => read_empty(raw).map(|()| Self::Done)?,
            ERROR => {
                let (code, words) = read_error(raw)?;
                Self::Error { code, words }
            }
            kind => Self::Unknown { kind },
        })
    }
}

impl<'a> FromHost<'a> {
    fn kind(&self) -> u16 {
        match self {
            Self::Update(_) => UPDATE,
            Self::Ping => PING,
            Self::Config(_) => CONFIG,
            Self::Pong => PONG,
            Self::Done => DONE,
            Self::Error { .. } => ERROR,
            Self::Unknown { kind } => *kind,
        }
    }

    fn read(raw: &Raw<'a>) -> Result<Self, DecodeErrorKind> {
        Ok(match raw.kind {
            UPDATE => Self::Update(NetworkConfig::read(raw.options())?),
            PING => read_empty(raw).map(|()| Self::Ping)?,
            CONFIG => Self::Config(NetworkConfig::read(raw.options())?),
            PONG => read_empty(raw).map(|()| Self::Pong)?,
            DONE => read_empty(raw).map(|()| Self::Done)?,
            ERROR => {
                let (code, words) = read_error(raw)?;
                Self::Error { code, words }
            }
            kind => Self::Unknown { kind },
        })
    }
}

impl Message<FromGuest<'_>> {
    /// Writes the message to the front of `buf` and says how long it is.
    ///
    /// # Errors
    /// When it does not fit, or a text is over its limit.
    pub fn encode(&self, buf: &mut [u8]) -> Result<usize, EncodeError> {
        let mut w = Writer::new(buf);
        w.header(self.body.kind(), self.id)?;
        match &self.body {
            FromGuest::Configure(configure) => configure.write(&mut w)?,
            FromGuest::Report { level, text } => {
                w.u8(tag::REPORT_LEVEL, level.number())?;
                w.text(tag::REPORT_TEXT, text, MAX_TEXT_LEN)?;
            }
            FromGuest::Goodbye { code, words } => {
                w.u32(tag::CODE, *code)?;
                w.text(tag::WORDS, words, MAX_WORDS_LEN)?;
            }
            FromGuest::Error { code, words } => write_error(&mut w, *code, words)?,
            FromGuest::Ping | FromGuest::Pong | FromGuest::Done | FromGuest::Unknown { .. } => {}
        }
        Ok(w.len())
    }
}

impl Message<FromHost<'_>> {
    /// Writes the message to the front of `buf` and says how long it is.
    ///
    /// # Errors
    /// When it does not fit, or a text is over its limit.
    pub fn encode(&self, buf: &mut [u8]) -> Result<usize, EncodeError> {
        let mut w = Writer::new(buf);
        w.header(self.body.kind(), self.id)?;
        match &self.body {
            FromHost::Update(config) | FromHost::Config(config) => config.write(&mut w)?,
            FromHost::Error { code, words } => write_error(&mut w, *code, words)?,
            FromHost::Ping | FromHost::Pong | FromHost::Done | FromHost::Unknown { .. } => {}
        }
        Ok(w.len())
    }
}

/// Cuts `bytes` into header and body and reads the body with `read`.
fn decode<'a, B>(
    bytes: &'a [u8],
    read: impl FnOnce(&Raw<'a>) -> Result<B, DecodeErrorKind>,
) -> Result<Message<B>, DecodeError> {
    let no_id = |kind| DecodeError {
        reply_to: None,
        kind,
    };
    let raw = Raw::parse(bytes).map_err(no_id)?;
    let body = read(&raw).map_err(|kind| DecodeError {
        reply_to: (!is_reply(raw.kind)).then_some(raw.id),
        kind,
    })?;
    Ok(Message { id: raw.id, body })
}

impl<'a> TryFrom<&'a [u8]> for Message<FromGuest<'a>> {
    type Error = DecodeError;

    fn try_from(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        decode(bytes, FromGuest::read)
    }
}

impl<'a> TryFrom<&'a [u8]> for Message<FromHost<'a>> {
    type Error = DecodeError;

    fn try_from(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        decode(bytes, FromHost::read)
    }
}
