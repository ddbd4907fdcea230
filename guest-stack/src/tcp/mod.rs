//! TCP: everything around smoltcp's state machine that a host needs and smoltcp
//! leaves to its user.
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`options`] | options and buffer sizes |
//! | `segment` | segments written without a socket |
//! | `birth` | sockets with an initial sequence number of our choice |
//! | `half_open` | a handshake before it has a socket |
//! | `time_wait` | a connection after it had one |
//! | [`stream`] | a connection: handles, reading, writing, ends |
//! | `listener` | ports, backlogs, and the way from SYN to stream |

pub(crate) mod birth;
pub(crate) mod half_open;
pub mod listener;
pub mod options;
pub(crate) mod segment;
pub mod stream;
pub(crate) mod time_wait;

use crate::flow::Handle;

/// Names a TCP stream until it is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TcpStreamId(pub(crate) Handle);

/// Names a TCP listener until it is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TcpListenerId(pub(crate) Handle);
