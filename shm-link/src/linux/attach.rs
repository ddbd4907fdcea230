//! A process guest's way in: connect to the daemon, shake hands, map the memory.
//!
//! Called once at the start by a guest that is an ordinary process. It blocks,
//! within the time it is given. Afterwards the socket only tells whether the
//! daemon is still there; the link itself lives in the shared memory and
//! survives the daemon.

use core::fmt;
use core::time::Duration;
use std::format;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::sockopt::Timeout;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::address::Address;
use super::event::EventFd;
use super::ivshmem::{ClientSetup, Setup, SetupError, Stage, Step};
use super::memory::{MemoryError, SharedMemory};
use super::wire::{MessageReader, Received, WireError};

/// Messages that [`Attachment::daemon_alive`] throws away in one call. The
/// daemon sends none after the handshake, so any bound will do.
const STRAY_MESSAGES: usize = 64;
/// How long after a connection was closed early the next is tried.
const BREATH: Duration = Duration::from_millis(10);

/// A guest's end of an attachment.
#[derive(Debug)]
pub struct Attachment {
    /// The memory it shares with the host.
    pub memory: SharedMemory,
    /// Rings the host.
    pub ring_host: EventFd,
    /// Rung by the host.
    pub doorbell: EventFd,
    /// The id that the daemon gave this guest.
    pub id: u16,
    /// The connection to the daemon. Keep it open: closing it detaches. It
    /// becomes readable when the daemon goes away.
    pub socket: OwnedFd,
}

/// Why a guest could not attach.
#[derive(Debug)]
pub enum AttachError {
    /// Nobody answered at the address.
    Connect {
        /// The address.
        address: Address,
        /// What the kernel said.
        source: io::Error,
    },
    /// Whoever listens closed the connection before the handshake was complete, or
    /// went away, again and again.
    Closed {
        /// What this guest was waiting for at last.
        waiting_for: Stage,
        /// How long the whole attempt was allowed to last.
        after: Duration,
    },
    /// The daemon was silent for too long.
    Timeout {
        /// What this guest was waiting for.
        waiting_for: Stage,
        /// How long the whole attempt was allowed to last.
        after: Duration,
    },
    /// What came was no message.
    Wire(WireError),
    /// The daemon turned this guest away ([`SetupError::Refused`]), or its messages
    /// were not the protocol's.
    Setup(SetupError),
    /// The memory could not be used.
    Memory(MemoryError),
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect { address, source } => {
                let advice = match source.kind() {
                    io::ErrorKind::NotFound => "start the daemon first, or check the path",
                    io::ErrorKind::ConnectionRefused => "no daemon listens there; start it",
                    io::ErrorKind::PermissionDenied => {
                        "this user may not open the socket; change its group or mode, or the user"
                    }
                    io::ErrorKind::WouldBlock => {
                        "the daemon does not accept connections in time; it may be stuck"
                    }
                    _ => "check the address",
                };
                write!(f, "cannot connect to {address}: {source} ({advice})")
            }
            Self::Closed { waiting_for, after } => write!(
                f,
                "the daemon closed the connection instead of sending {waiting_for}, again and again for {after:?}: its log says why, if it is this project's daemon"
            ),
            Self::Timeout { waiting_for, after } => write!(
                f,
                "the daemon did not send {waiting_for} within {after:?}: it may be stuck, or another program listens there"
            ),
            Self::Wire(source) => source.fmt(f),
            Self::Setup(source) => source.fmt(f),
            Self::Memory(source) => source.fmt(f),
        }
    }
}

impl core::error::Error for AttachError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Connect { source, .. } => Some(source),
            // Their words are this error's words already: go on to their cause.
            Self::Wire(source) => source.source(),
            Self::Memory(source) => source.source(),
            Self::Closed { .. } | Self::Timeout { .. } | Self::Setup(_) => None,
        }
    }
}

impl Attachment {
    /// Attaches to the daemon that listens at `address`. The whole attempt
    /// lasts no longer than `timeout`.
    ///
    /// A daemon that dies in the middle of it is waited for: the next one may be
    /// there in a moment.
    ///
    /// # Errors
    /// [`AttachError`]; nothing stays open then.
    pub fn connect(address: &Address, timeout: Duration) -> Result<Self, AttachError> {
        Self::attempt(address, None, timeout)
    }

    /// Attaches again, as the guest that had this id ([`Attachment::id`]) before the
    /// daemon was restarted: it gets the same place again, and with it its addresses,
    /// unless somebody else has it. The socket carries the wish as its own name, since
    /// the protocol lets guests say nothing.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect).
    pub fn connect_again(
        address: &Address,
        id: u16,
        timeout: Duration,
    ) -> Result<Self, AttachError> {
        Self::attempt(address, Some(id), timeout)
    }

    fn attempt(address: &Address, id: Option<u16>, timeout: Duration) -> Result<Self, AttachError> {
        let start = Instant::now();
        let mut before = None;
        loop {
            let error = match Self::try_once(address, id, start, timeout) {
                Ok(attachment) => return Ok(attachment),
                Err(error) => error,
            };
            let closed = match (error, before) {
                (closed @ AttachError::Closed { .. }, _) => closed,
                // Somebody listened a moment ago.
                (AttachError::Connect { .. }, Some(closed)) => closed,
                (error, _) => return Err(error),
            };
            if start.elapsed() + BREATH >= timeout {
                return Err(closed);
            }
            std::thread::sleep(BREATH);
            before = Some(closed);
        }
    }

    fn try_once(
        address: &Address,
        id: Option<u16>,
        start: Instant,
        timeout: Duration,
    ) -> Result<Self, AttachError> {
        let left = || timeout.saturating_sub(start.elapsed());
        let socket = connect(address, id, left()).map_err(|e| AttachError::Connect {
            address: address.clone(),
            source: e.into(),
        })?;
        let mut reader = MessageReader::default();
        let mut client = ClientSetup::default();
        loop {
            let waiting_for = client.stage();
            let closed = || AttachError::Closed {
                waiting_for,
                after: timeout,
            };
            match reader.read(&socket) {
                Ok(Received::Message(value, fd)) => {
                    match client
                        .handle_message(value, fd)
                        .map_err(AttachError::Setup)?
                    {
                        Step::More(next) => client = next,
                        Step::Done(setup) => return Self::complete(setup, socket),
                    }
                }
                Ok(Received::Pending) => {
                    let left = left();
                    if left.is_zero() {
                        return Err(AttachError::Timeout {
                            waiting_for,
                            after: timeout,
                        });
                    }
                    wait_readable(&socket, left).map_err(AttachError::Wire)?;
                }
                Ok(Received::Closed) => return Err(closed()),
                // A server that closes with something of ours unread does this.
                Err(WireError::Io(e)) if e.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(closed());
                }
                Err(error) => return Err(AttachError::Wire(error)),
            }
        }
    }

    fn complete(setup: Setup, socket: OwnedFd) -> Result<Self, AttachError> {
        Ok(Self {
            memory: SharedMemory::from_fd(setup.memory).map_err(AttachError::Memory)?,
            ring_host: setup.ring_host.into(),
            doorbell: setup.doorbell.into(),
            id: setup.id,
            socket,
        })
    }

    /// Whether the daemon still holds its end of the connection. When it does
    /// not, the memory stays usable, and a new attachment is the way back.
    pub fn daemon_alive(&self) -> bool {
        for _ in 0..STRAY_MESSAGES {
            match MessageReader::default().read(&self.socket) {
                Ok(Received::Message(..)) => {}
                Ok(Received::Pending) => return true,
                Ok(Received::Closed) | Err(_) => return false,
            }
        }
        true
    }
}

fn connect(address: &Address, id: Option<u16>, timeout: Duration) -> rustix::io::Result<OwnedFd> {
    let family = AddressFamily::UNIX;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // While the daemon's backlog is full, connect waits as long as a send may.
    // No time at all would mean "for ever" to the kernel.
    let patience = timeout.max(Duration::from_millis(1));
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
    if let Some(id) = id {
        // A wish; without a name it attaches as anybody.
        let _ = rustix::net::bind(&socket, &name_again(id)?);
    }
    let address = address.to_rustix()?;
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address))?;
    Ok(socket)
}

/// What the name of a socket that attaches again begins with.
const AGAIN: &str = "shm-link-again/";

/// An abstract name for a socket that attaches as `id` again, like no other's.
fn name_again(id: u16) -> rustix::io::Result<SocketAddrUnix> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap_or_default().as_nanos();
    let name = format!("{AGAIN}{id}/{}/{now}", std::process::id());
    SocketAddrUnix::new_abstract_name(name.as_bytes())
}

/// The id that a client had before, if the abstract name of its socket says so
/// ([`Attachment::connect_again`]). Who may attach may say anything: a place that is
/// free is anybody's.
pub fn id_before(name: &[u8]) -> Option<u16> {
    let rest = name.strip_prefix(AGAIN.as_bytes())?;
    let id = rest.split(|&byte| byte == b'/').next()?;
    core::str::from_utf8(id).ok()?.parse().ok()
}

fn wait_readable(socket: &OwnedFd, timeout: Duration) -> Result<(), WireError> {
    let timeout = Timespec::try_from(timeout).ok();
    match rustix::event::poll(&mut [PollFd::new(socket, PollFlags::IN)], timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(WireError::Io(e.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doorbell::{Doorbell, Wait};
    use crate::linux::ivshmem::{ServerSetup, send_refusal, send_setup};
    use crate::linux::wire::send_message;
    use std::format;
    use std::os::fd::AsFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::string::ToString;
    use std::thread::{self, JoinHandle};

    const LONG: Duration = Duration::from_secs(20);

    /// A server with one conversation in it, on an abstract address of its own.
    fn serve<T: Send + 'static>(
        name: &str,
        talk: impl FnOnce(UnixStream) -> T + Send + 'static,
    ) -> (Address, JoinHandle<T>) {
        let address: Address = format!("@shm-link-test-{}-{name}", std::process::id())
            .parse()
            .unwrap();
        let listener = UnixListener::bind_addr(&address.socket_addr().unwrap()).unwrap();
        (
            address,
            thread::spawn(move || talk(listener.accept().unwrap().0)),
        )
    }

    struct Host {
        memory: SharedMemory,
        doorbell: EventFd,
        ring_guest: EventFd,
        socket: UnixStream,
    }

    fn welcome(socket: UnixStream) -> Host {
        let host = Host {
            memory: SharedMemory::create("test", 65536).unwrap(),
            doorbell: EventFd::new().unwrap(),
            ring_guest: EventFd::new().unwrap(),
            socket,
        };
        let setup = ServerSetup {
            client_id: 9,
            host_id: 0,
            memory: host.memory.fd(),
            ring_host: &[host.doorbell.as_fd()],
            ring_client: &[host.ring_guest.as_fd()],
        };
        send_setup(&host.socket, setup).unwrap();
        host
    }

    #[test]
    fn an_attached_guest_shares_memory_and_doorbells_with_the_host() {
        let (address, server) = serve("welcome", |socket| {
            let host = welcome(socket);
            host.doorbell.wait(Some(LONG));
            let mut question = [0; 4];
            host.memory.region().copy_out(128, &mut question).unwrap();
            host.memory.region().copy_in(256, &question).unwrap();
            host.ring_guest.ring();
            host
        });
        let guest = Attachment::connect(&address, LONG).unwrap();
        assert_eq!((guest.id, guest.memory.len()), (9, 65536));
        guest.memory.region().copy_in(128, b"ping").unwrap();
        guest.ring_host.ring();
        guest.doorbell.wait(Some(LONG));
        let mut answer = [0; 4];
        guest.memory.region().copy_out(256, &mut answer).unwrap();
        assert_eq!(&answer, b"ping");
        drop(server.join().unwrap());
    }

    #[test]
    fn a_guest_sees_that_the_daemon_went_away_and_keeps_its_memory() {
        let (address, server) = serve("leaving", welcome);
        let guest = Attachment::connect(&address, LONG).unwrap();
        let host = server.join().unwrap();
        assert!(guest.daemon_alive());
        // Later notices of the protocol are no sign of life or death.
        send_message(&host.socket, 3, Some(host.doorbell.as_fd())).unwrap();
        send_message(&host.socket, 3, None).unwrap();
        assert!(guest.daemon_alive());
        drop(host);
        assert!(!guest.daemon_alive());
        assert!(!guest.daemon_alive());
        guest.memory.region().copy_in(0, b"mine").unwrap();
    }

    #[test]
    fn a_refusal_points_to_the_daemons_log() {
        let (address, server) = serve("refusing", |socket| send_refusal(&socket).unwrap());
        let error = Attachment::connect(&address, LONG).unwrap_err();
        assert!(
            matches!(error, AttachError::Setup(SetupError::Refused)),
            "{error}"
        );
        assert!(error.to_string().contains("refused this guest"), "{error}");
        server.join().unwrap();
    }

    #[test]
    fn a_daemon_that_goes_away_at_any_step_is_waited_for() {
        let address: Address = format!("@shm-link-test-{}-dying", std::process::id())
            .parse()
            .unwrap();
        let listen = {
            let address = address.socket_addr().unwrap();
            move || UnixListener::bind_addr(&address).unwrap()
        };
        let mut listener = listen();
        let server = thread::spawn(move || {
            for messages in 0..4 {
                let socket = listener.accept().unwrap().0;
                for value in [0, 5, -1].into_iter().take(messages) {
                    let memory = SharedMemory::create("test", 65536).unwrap();
                    let fd = (value == -1).then(|| memory.fd());
                    send_message(&socket, value, fd).unwrap();
                }
                // Both at once, as when its process is killed.
                drop((listener, socket));
                thread::sleep(3 * BREATH);
                listener = listen();
            }
            welcome(listener.accept().unwrap().0)
        });
        let guest = Attachment::connect(&address, LONG).unwrap();
        assert_eq!(guest.id, 9);
        drop(server.join().unwrap());
    }

    #[test]
    fn conversations_that_always_break_off_end_at_the_timeout_and_say_what_was_missing() {
        let (address, server) = serve("breaking", |socket| {
            send_message(&socket, 0, None).unwrap();
            send_message(&socket, 5, None).unwrap();
        });
        let timeout = Duration::from_millis(100);
        let begin = Instant::now();
        let error = Attachment::connect(&address, timeout).unwrap_err();
        assert!(begin.elapsed() < LONG);
        assert!(
            matches!(
                error,
                AttachError::Closed {
                    waiting_for: Stage::Memory,
                    ..
                }
            ),
            "{error}"
        );
        server.join().unwrap();
    }

    #[test]
    fn a_silent_server_and_a_partial_message_end_at_the_timeout() {
        for (name, bytes) in [("silent", &[][..]), ("partial", &[0; 5])] {
            let (address, server) = serve(name, move |mut socket| {
                io::Write::write_all(&mut socket, bytes).unwrap();
                // Until the client has had enough.
                let _ = io::Read::read(&mut socket, &mut [0]);
            });
            let timeout = Duration::from_millis(50);
            let error = Attachment::connect(&address, timeout).unwrap_err();
            assert!(matches!(
                error,
                AttachError::Timeout {
                    waiting_for: Stage::Version,
                    ..
                }
            ));
            server.join().unwrap();
        }
    }

    #[test]
    fn a_full_backlog_ends_at_the_timeout() {
        let address: Address = format!("@shm-link-test-{}-full", std::process::id())
            .parse()
            .unwrap();
        let family = AddressFamily::UNIX;
        let listener =
            rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .unwrap();
        rustix::net::bind(&listener, &address.to_rustix().unwrap()).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let _queued = connect(&address, None, LONG).unwrap();
        let error = Attachment::connect(&address, Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("in time"), "{error}");
    }

    #[test]
    fn an_address_where_nobody_listens_is_named_in_the_error() {
        let missing: Address = "/nowhere/at-all.sock".parse().unwrap();
        let error = Attachment::connect(&missing, LONG).unwrap_err().to_string();
        assert!(error.contains("/nowhere/at-all.sock") && error.contains("start the daemon"));

        let abandoned: Address = "@shm-link-test-nobody".parse().unwrap();
        let error = Attachment::connect(&abandoned, LONG)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("@shm-link-test-nobody") && error.contains("start it"),
            "{error}"
        );
    }

    #[test]
    fn memory_that_the_server_could_shrink_is_refused() {
        let (address, server) = serve("unsealed", |socket| {
            let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
            let memory = rustix::fs::memfd_create("test", flags).unwrap();
            rustix::fs::ftruncate(&memory, 4096).unwrap();
            let event = EventFd::new().unwrap();
            let setup = ServerSetup {
                client_id: 1,
                host_id: 0,
                memory: memory.as_fd(),
                ring_host: &[event.as_fd()],
                ring_client: &[event.as_fd()],
            };
            send_setup(&socket, setup).unwrap();
        });
        let error = Attachment::connect(&address, LONG).unwrap_err();
        assert!(
            matches!(error, AttachError::Memory(MemoryError::NotSealed)),
            "{error}"
        );
        server.join().unwrap();
    }

    #[test]
    fn a_guest_that_attaches_again_says_who_it_was() {
        let (address, server) = serve("again", |socket| {
            let name = socket.peer_addr().unwrap();
            let name = name.as_abstract_name().unwrap();
            assert_eq!(id_before(name), Some(7));
        });
        // The server closes without a word.
        let timeout = Duration::from_millis(50);
        let closed = Attachment::connect_again(&address, 7, timeout).unwrap_err();
        assert!(matches!(closed, AttachError::Closed { .. }), "{closed}");
        server.join().unwrap();
        for nonsense in [
            "",
            "7",
            "shm-link-again/",
            "shm-link-again/x/1",
            "shm-link-again/65536/",
        ] {
            assert_eq!(id_before(nonsense.as_bytes()), None, "{nonsense}");
        }
    }
}
