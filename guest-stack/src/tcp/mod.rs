//! TCP: everything around smoltcp's state machine that a host needs and smoltcp
//! leaves to its user.
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`options`] | options and buffer sizes |
//! | `segment` | segments written without a socket |
//! | `memory` | a socket with the memory of its buffers, which is used again |
//! | `birth` | sockets with an initial sequence number of our choice |
//! | `cookie` | a handshake that is kept in its own sequence number |
//! | `half_open` | a handshake before it has a socket |
//! | `congestion` | how much may be in flight where there is a queue |
//! | `recovery` | what was lost: which holes are resent (`recovery/holes`, `recovery/scoreboard`), and how a socket is made to (`recovery/flow`) |
//! | `connection` | a connection while it has one |
//! | `answers` | when an acknowledgement waits for the application's answer |
//! | `fin` | the end behind data that do not fit, and behind data that are not acknowledged |
//! | `time_wait` | a connection after it had one |
//! | [`listener`] | ports, backlogs, accepting |
//! | [`stream`] | connecting, reading, writing, closing |
//! | `blind` | forged resets and SYNs |
//! | `handshake` | the way from a SYN to a stream |
//! | `ending` | the ways in which connections end |

pub mod options;
pub(crate) mod segment;
pub(crate) mod memory;
pub(crate) mod birth;
pub(crate) mod cookie;
pub(crate) mod half_open;
mod congestion;
pub(crate) mod recovery;
pub(crate) mod connection;
mod answers;
mod fin;
pub(crate) mod time_wait;
pub mod listener;
pub mod stream;
pub(crate) mod blind;
mod handshake;
mod ending;

use crate::flow::Handle;

/// Names a TCP stream until it is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TcpStreamId(pub(crate) Handle);

/// Names a TCP listener until it is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TcpListenerId(pub(crate) Handle);
