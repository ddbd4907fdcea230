//! Probes: the host's kernel talks to a guest's stack, and the answer is checked.
//!
//! Small clients on ordinary sockets, used by the `demo` subcommand, the
//! topology scripts and the tests. They know nothing of rings or TAPs: what
//! they see is what any program on the host would see. Each blocks for a
//! bounded time and returns a small result; none prints or logs.
//!
//! | file | what it asks the guest |
//! | --- | --- |
//! | [`ping`] | to answer ICMP and ICMPv6 echo requests |
//! | [`http`] | for a page |
//! | [`pattern`] | (the bytes that bulk transfers carry) |
//! | [`bulk`] | to take, or to send, many bytes unharmed |
//! | [`udp`] | to send datagrams back |

pub mod ping;
pub mod http;
pub mod pattern;
pub mod bulk;
pub mod udp;

mod stream;

use std::io;
use std::time::Duration;

use thiserror::Error;

/// Why a probe has no result.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// The guest did not answer in time.
    #[error("{doing}: no answer within {after:?}")]
    Timeout {
        /// What was being done, as a clause.
        doing: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The guest answered, but not what the protocol asks for.
    #[error("{doing}: the guest answered wrongly: {what}")]
    Answer {
        /// What was being done, as a clause.
        doing: String,
        /// What is wrong with the answer.
        what: String,
    },
    /// The kernel lets this process send no ICMP packets.
    #[error(
        "ping: the kernel allows no ICMP socket: run as root, in a namespace of your own, or widen \
         the sysctl net.ipv4.ping_group_range"
    )]
    NoIcmpSocket,
    /// A socket failed: refused, reset, unreachable.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, as a clause.
        doing: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ProbeError {
    /// Sorts a socket's error; a socket with a timeout reports it as an error.
    fn from_io(doing: &str, after: Duration, source: io::Error) -> Self {
        let doing = doing.to_owned();
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Timeout { doing, after },
            _ => Self::Io { doing, source },
        }
    }

    fn answer(doing: &str, what: impl Into<String>) -> Self {
        Self::Answer {
            doing: doing.to_owned(),
            what: what.into(),
        }
    }
}
