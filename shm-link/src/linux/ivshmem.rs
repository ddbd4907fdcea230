//! The attach handshake: QEMU's ivshmem-server protocol, version 0, without I/O.
//!
//! The daemon's side is [`ServerSetup`], a process guest's is [`ClientSetup`];
//! a stock QEMU (`-device ivshmem-doorbell`) is a client too. Only the server
//! talks. See QEMU's `docs/specs/ivshmem-spec`, "The ivshmem Client-Server
//! Protocol". The spec lets many clients share one memory; here each client has
//! its own, and the only other peer in it is the host.
//!
//! A server that turns a client away sends `-1` where the version belongs: no client
//! takes that for a version, and it differs from a server that died.
//!
//! The client's states, what each expects, and what it does with the rest:
//!
//! | state    | `0`, no fd | id, no fd | `-1` + fd | other's id + fd  | own id + fd |
//! | ---      | ---        | ---       | ---       | ---              | ---         |
//! | Version  | → OwnId    | error, `-1`: refused | error | error     | error       |
//! | OwnId    | → Memory (0 is an id) | → Memory | error | error     | error       |
//! | Memory   | error      | error     | → Host    | error            | error       |
//! | Host     | error      | error     | error     | → Doorbell       | error       |
//! | Doorbell | error      | error     | error     | the host's: closed, a further vector; else error | done |
//!
//! One doorbell each way is used. Vectors beyond the first that come after the
//! last step stay in the socket and are closed with it.

use core::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::wire::send_message;

/// The protocol's version: the only one there is.
const VERSION: i64 = 0;
/// Instead of a version: the client is turned away.
const REFUSED: i64 = -1;
/// The number beside which the memory travels.
const MEMORY: i64 = -1;

/// What a server hands to a new client.
#[derive(Debug, Clone, Copy)]
pub struct ServerSetup<'a> {
    /// The client's id, its own among all clients of this server.
    pub client_id: u16,
    /// The id under which the client rings the host; not the client's.
    pub host_id: u16,
    /// The client's memory. For QEMU its size is a power of two.
    pub memory: BorrowedFd<'a>,
    /// Eventfds that the client rings and the host waits on, one per vector.
    pub ring_host: &'a [BorrowedFd<'a>],
    /// Eventfds that the host rings and the client waits on, one per vector.
    pub ring_client: &'a [BorrowedFd<'a>],
}

impl<'a> ServerSetup<'a> {
    /// The messages in the order in which they are sent.
    pub fn messages(self) -> impl Iterator<Item = (i64, Option<BorrowedFd<'a>>)> {
        let with_id = |id: u16| move |fd: &BorrowedFd<'a>| (i64::from(id), Some(*fd));
        [
            (VERSION, None),
            (i64::from(self.client_id), None),
            (MEMORY, Some(self.memory)),
        ]
        .into_iter()
        .chain(self.ring_host.iter().map(with_id(self.host_id)))
        .chain(self.ring_client.iter().map(with_id(self.client_id)))
    }
}

/// Sends a new client everything it needs. Never blocks: the messages are
/// small, and a fresh connection has room for them.
///
/// Until the client reads them, the descriptors count as in flight against the
/// daemon's user (`RLIMIT_NOFILE`); a server bounds its clients, and with them
/// these.
///
/// # Errors
/// The kernel's; [`io::ErrorKind::WouldBlock`] if the socket has no room, after
/// which the connection should be closed. The client sees that as a refusal.
pub fn send_setup(socket: impl AsFd, setup: ServerSetup<'_>) -> io::Result<()> {
    setup
        .messages()
        .try_for_each(|(value, fd)| send_message(&socket, value, fd))
}

/// Tells a new client that it is turned away. Close the connection afterwards. Never
/// blocks.
///
/// # Errors
/// The kernel's; the client takes a closed connection for a server that died, and may
/// come again.
pub fn send_refusal(socket: impl AsFd) -> io::Result<()> {
    send_message(&socket, REFUSED, None)
}

/// What a client holds after the handshake.
#[derive(Debug)]
pub struct Setup {
    /// The client's id.
    pub id: u16,
    /// The host's id, by which QEMU's doorbell register names it.
    pub host_id: u16,
    /// The shared memory.
    pub memory: OwnedFd,
    /// Rings the host.
    pub ring_host: OwnedFd,
    /// Rung by the host.
    pub doorbell: OwnedFd,
}

/// What the client is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The protocol's version.
    Version,
    /// The client's own id.
    OwnId,
    /// The shared memory.
    Memory,
    /// The eventfd that rings the host.
    Host,
    /// The eventfd on which the client waits.
    Doorbell,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "the protocol's version",
            Self::OwnId => "this guest's id",
            Self::Memory => "the shared memory",
            Self::Host => "the host's doorbell",
            Self::Doorbell => "this guest's doorbell",
        })
    }
}

/// What a server said that the protocol does not allow, or that needs a server
/// of another kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetupError {
    /// The server turned this client away.
    Refused,
    /// A protocol version that is not 0.
    Version(i64),
    /// A descriptor came where none belongs.
    UnexpectedFd(Stage),
    /// No descriptor came where one belongs.
    MissingFd(Stage),
    /// A number that is no id (0 to 65,535) where one belongs.
    Id(i64),
    /// Another number where -1 announces the memory.
    NotMemory(i64),
    /// This guest's doorbell came before any peer's: there is no host to talk to.
    NoHost,
    /// A second peer shares the memory.
    OtherPeer(u16),
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("the daemon refused this guest, and its log says why"),
            Self::Version(version) => write!(
                f,
                "the server speaks version {version} of the ivshmem-server protocol and this guest speaks 0: check which program listens there"
            ),
            Self::UnexpectedFd(stage) => write!(
                f,
                "the server sent a descriptor with {stage}: it does not speak the ivshmem-server protocol"
            ),
            Self::MissingFd(stage) => write!(
                f,
                "the server sent {stage} without a descriptor: it has run out of them, or does not speak the ivshmem-server protocol"
            ),
            Self::Id(id) => write!(f, "the server sent the id {id}, and ids are 0 to 65535"),
            Self::NotMemory(value) => write!(
                f,
                "the server sent {value} where -1 announces the memory: it speaks a protocol older than QEMU 2.5, or another one"
            ),
            Self::NoHost => f.write_str(
                "the server has no host side to talk to: attach to this project's daemon, not to QEMU's ivshmem-server",
            ),
            Self::OtherPeer(id) => write!(
                f,
                "the memory is shared with a further peer ({id}), and a link has two ends: attach to this project's daemon, not to QEMU's ivshmem-server"
            ),
        }
    }
}

impl core::error::Error for SetupError {}

/// A client in the middle of the handshake. Dropping it closes all it received.
#[derive(Debug)]
pub struct ClientSetup(State);

#[derive(Debug)]
enum State {
    Version,
    OwnId,
    Memory {
        id: u16,
    },
    Host {
        id: u16,
        memory: OwnedFd,
    },
    Doorbell {
        id: u16,
        memory: OwnedFd,
        host_id: u16,
        ring_host: OwnedFd,
    },
}

/// What a message led to.
#[derive(Debug)]
pub enum Step {
    /// More messages are needed.
    More(ClientSetup),
    /// The handshake is complete.
    Done(Setup),
}

impl Default for ClientSetup {
    fn default() -> Self {
        Self(State::Version)
    }
}

impl ClientSetup {
    /// What the client is waiting for.
    pub fn stage(&self) -> Stage {
        match self.0 {
            State::Version => Stage::Version,
            State::OwnId => Stage::OwnId,
            State::Memory { .. } => Stage::Memory,
            State::Host { .. } => Stage::Host,
            State::Doorbell { .. } => Stage::Doorbell,
        }
    }

    /// Takes the next message.
    ///
    /// # Errors
    /// [`SetupError`]; every descriptor received so far is closed.
    pub fn handle_message(self, value: i64, fd: Option<OwnedFd>) -> Result<Step, SetupError> {
        let stage = self.stage();
        let needed = || SetupError::MissingFd(stage);
        if matches!(stage, Stage::Version | Stage::OwnId) && fd.is_some() {
            return Err(SetupError::UnexpectedFd(stage));
        }
        let next = match self.0 {
            State::Version if value == VERSION => State::OwnId,
            State::Version if value == REFUSED => return Err(SetupError::Refused),
            State::Version => return Err(SetupError::Version(value)),
            State::OwnId => State::Memory {
                id: peer_id(value)?,
            },
            State::Memory { id } if value == MEMORY => State::Host {
                id,
                memory: fd.ok_or_else(needed)?,
            },
            State::Memory { .. } => return Err(SetupError::NotMemory(value)),
            State::Host { id, memory } => {
                let (host_id, ring_host) = (peer_id(value)?, fd.ok_or_else(needed)?);
                if host_id == id {
                    return Err(SetupError::NoHost);
                }
                State::Doorbell {
                    id,
                    memory,
                    host_id,
                    ring_host,
                }
            }
            State::Doorbell {
                id,
                memory,
                host_id,
                ring_host,
            } => {
                let (peer, fd) = (peer_id(value)?, fd.ok_or_else(needed)?);
                if peer == id {
                    return Ok(Step::Done(Setup {
                        id,
                        host_id,
                        memory,
                        ring_host,
                        doorbell: fd,
                    }));
                }
                if peer != host_id {
                    return Err(SetupError::OtherPeer(peer));
                }
                // A further vector of the host: one is enough, `fd` is closed.
                State::Doorbell {
                    id,
                    memory,
                    host_id,
                    ring_host,
                }
            }
        };
        Ok(Step::More(Self(next)))
    }
}

fn peer_id(value: i64) -> Result<u16, SetupError> {
    u16::try_from(value).map_err(|_| SetupError::Id(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::event::EventFd;
    use std::format;
    use std::os::fd::AsRawFd;
    use std::string::String;
    use std::vec::Vec;

    /// One message of a script: its number, and whether a descriptor comes along.
    type Line = (i64, bool);
    const GOOD: [Line; 5] = [(0, false), (7, false), (-1, true), (0, true), (7, true)];

    fn play(script: &[Line]) -> Result<Step, SetupError> {
        let mut client = ClientSetup::default();
        for &(value, with_fd) in script {
            let fd = with_fd.then(|| OwnedFd::from(EventFd::new().unwrap()));
            match client.handle_message(value, fd)? {
                Step::More(next) => client = next,
                done @ Step::Done(_) => return Ok(done),
            }
        }
        Ok(Step::More(client))
    }

    fn with(change: impl FnOnce(&mut Vec<Line>)) -> SetupError {
        let mut script = GOOD.to_vec();
        change(&mut script);
        play(&script).unwrap_err()
    }

    #[test]
    fn what_the_server_sends_is_what_the_client_gets() {
        let events: Vec<EventFd> = (0..5).map(|_| EventFd::new().unwrap()).collect();
        let fds: Vec<BorrowedFd<'_>> = events.iter().map(AsFd::as_fd).collect();
        let setup = ServerSetup {
            client_id: 65535,
            host_id: 0,
            memory: fds[0],
            ring_host: &fds[1..3],
            ring_client: &fds[3..5],
        };
        let mut client = ClientSetup::default();
        let mut messages = setup.messages();
        let done = loop {
            let (value, fd) = messages
                .next()
                .expect("the handshake ends before the messages do");
            match client.handle_message(value, fd.map(|f| f.try_clone_to_owned().unwrap())) {
                Ok(Step::More(next)) => client = next,
                Ok(Step::Done(setup)) => break setup,
                Err(e) => panic!("{e}"),
            }
        };
        assert_eq!((done.id, done.host_id), (65535, 0));
        assert_eq!(eventfd_id(done.memory), eventfd_id(fds[0]));
        assert_eq!(eventfd_id(done.ring_host), eventfd_id(fds[1]));
        assert_eq!(eventfd_id(done.doorbell), eventfd_id(fds[3]));
        let left: Vec<i64> = messages.map(|(value, _)| value).collect();
        assert_eq!(
            left,
            [65535],
            "only a further vector of the client's own follows"
        );
    }

    /// The kernel's number for the open file behind a descriptor.
    fn eventfd_id(fd: impl AsFd) -> String {
        let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
        let info = std::fs::read_to_string(path).unwrap();
        info.lines()
            .find(|l| l.starts_with("eventfd-id"))
            .unwrap()
            .into()
    }

    #[test]
    fn every_beginning_of_a_good_conversation_waits_for_the_next_message() {
        let stages = [
            Stage::Version,
            Stage::OwnId,
            Stage::Memory,
            Stage::Host,
            Stage::Doorbell,
        ];
        for (len, expected) in stages.into_iter().enumerate() {
            match play(&GOOD[..len]) {
                Ok(Step::More(client)) => assert_eq!(client.stage(), expected),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(play(&GOOD), Ok(Step::Done(_))));
    }

    #[test]
    fn a_version_that_is_not_zero_is_refused() {
        for version in [1, -2, i64::MAX] {
            assert_eq!(with(|s| s[0].0 = version), SetupError::Version(version));
        }
        assert_eq!(with(|s| s[0].0 = -1), SetupError::Refused);
    }

    #[test]
    fn numbers_that_are_no_ids_are_refused() {
        for id in [-1, -2, 65536, i64::MIN, i64::MAX] {
            for line in [1, 3, 4] {
                assert_eq!(with(|s| s[line].0 = id), SetupError::Id(id));
            }
        }
    }

    #[test]
    fn a_descriptor_in_the_wrong_place_is_refused() {
        assert_eq!(
            with(|s| s[0].1 = true),
            SetupError::UnexpectedFd(Stage::Version)
        );
        assert_eq!(
            with(|s| s[1].1 = true),
            SetupError::UnexpectedFd(Stage::OwnId)
        );
        assert_eq!(
            with(|s| s[2].1 = false),
            SetupError::MissingFd(Stage::Memory)
        );
        assert_eq!(with(|s| s[3].1 = false), SetupError::MissingFd(Stage::Host));
        assert_eq!(
            with(|s| s[4].1 = false),
            SetupError::MissingFd(Stage::Doorbell)
        );
    }

    #[test]
    fn messages_left_out_or_repeated_are_refused() {
        assert_eq!(
            with(|s| {
                s.remove(1);
            }),
            SetupError::UnexpectedFd(Stage::OwnId)
        );
        assert_eq!(
            with(|s| {
                s.remove(2);
            }),
            SetupError::NotMemory(0)
        );
        assert_eq!(
            with(|s| {
                s.remove(3);
            }),
            SetupError::NoHost
        );
        assert_eq!(with(|s| s.insert(3, (-1, true))), SetupError::Id(-1));
    }

    #[test]
    fn a_second_peer_is_refused_and_a_second_vector_of_the_host_is_not() {
        assert_eq!(with(|s| s.insert(4, (3, true))), SetupError::OtherPeer(3));
        let mut script = GOOD.to_vec();
        script.insert(4, (0, true));
        assert!(matches!(play(&script), Ok(Step::Done(_))));
    }
}
