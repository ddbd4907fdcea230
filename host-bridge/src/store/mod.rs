//! What outlives the daemon's process: descriptors that whoever started it keeps.
//!
//! The protocol is systemd's (`sd_notify(3)`, `FDSTORE=1`; `sd_listen_fds(3)`):
//! the daemon sends descriptors with names to the datagram socket `NOTIFY_SOCKET`,
//! and when it is started again it finds them from descriptor 3 on. The keeper of
//! this program (`keeper`) speaks the other end where there is no systemd.
//!
//! Every guest that shares memory has its connection, memory, doorbells and TAP
//! here, and a record of what was changed about it; so does every listening socket.
//! Nothing in here touches what it keeps. The socket is connected at the start,
//! because the daemon may connect to nothing later on.

mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::{Errno, IoSlice};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use shm_link::linux::address::Address;

pub use self::record::Record;

/// The first descriptor that is passed on (`SD_LISTEN_FDS_START`).
pub(crate) const FIRST_FD: RawFd = 3;
/// The environment's variables of the protocol.
pub(crate) const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
pub(crate) const FDSTORE: &str = "FDSTORE";
pub(crate) const LISTEN_PID: &str = "LISTEN_PID";
pub(crate) const LISTEN_FDS: &str = "LISTEN_FDS";
pub(crate) const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";
/// Set by this program's keeper, which cannot know the number of a process that it
/// has yet to start, in place of `LISTEN_PID`: its own number. The first descriptor is
/// then a list of the others' names, one per line, in place of `LISTEN_FDNAMES`.
pub(crate) const KEEPER_PID: &str = "HOST_BRIDGE_KEEPER";

/// How long a message waits for its receiver.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long after a vain attempt to send the next is made.
const REST: Duration = Duration::from_millis(1);

/// Descriptors that are kept beyond this process. Clones are the same store.
#[derive(Debug, Clone, Default)]
pub struct Store(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    socket: UnixDatagram,
    /// Whether descriptors are taken; otherwise only words.
    keeps: bool,
    /// What was kept before this process began and was not asked for yet.
    found: Mutex<BTreeMap<String, OwnedFd>>,
    leaving: AtomicBool,
}

impl Store {
    /// A store that keeps nothing.
    pub fn none() -> Self {
        Self::default()
    }

    /// The store that this process was started with, if it was. Call it once, before
    /// the process opens descriptors of its own.
    ///
    /// # Errors
    /// The system's, if there is one that cannot be reached.
    pub fn from_env() -> io::Result<Self> {
        let found = found_at_start();
        let Some(address) = env::var_os(NOTIFY_SOCKET) else {
            return Ok(Self::none());
        };
        let address: Address = address
            .to_str()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| io::Error::other(format!("{NOTIFY_SOCKET} is no address")))?;
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address.socket_addr()?)?;
        socket.set_nonblocking(true)?;
        Ok(Self(Some(Arc::new(Inner {
            socket,
            keeps: env::var_os(FDSTORE).is_some(),
            found: Mutex::new(found),
            leaving: AtomicBool::new(false),
        }))))
    }

    /// Whether descriptors are kept.
    pub fn keeps(&self) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.keeps)
    }

    /// Says that this process ends and another goes on: guests are not detached, and
    /// sockets keep their files.
    pub(crate) fn leave(&self) {
        if let Some(inner) = &self.0 {
            // ORDERING: Relaxed; those who look are told to by a channel.
            inner.leaving.store(true, Ordering::Relaxed);
        }
    }

    /// Whether another process goes on.
    pub(crate) fn is_leaving(&self) -> bool {
        // ORDERING: Relaxed; see `leave`.
        let leaving = |inner: &Arc<Inner>| inner.leaving.load(Ordering::Relaxed);
        self.0.as_ref().is_some_and(leaving)
    }

    /// Takes out what was kept under this name before this process began. It stays
    /// kept.
    pub(crate) fn take(&self, name: &str) -> Option<OwnedFd> {
        self.found()?.remove(name)
    }

    /// Whether something was kept under this name and was not taken out yet.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.found().is_some_and(|found| found.contains_key(name))
    }

    /// What was kept and nobody took out: a guest whose place is no more. Call it when
    /// everybody had their turn, and [`forget`](Self::forget) it.
    pub(crate) fn rest(&self) -> Vec<String> {
        let rest = self.found().map(|mut found| std::mem::take(&mut *found));
        rest.unwrap_or_default().into_keys().collect()
    }

    /// Keeps a descriptor under a name: letters, digits, dots.
    ///
    /// # Errors
    /// The system's, if the receiver is gone or does not read.
    pub(crate) async fn keep(&self, name: &str, fd: impl AsFd) -> io::Result<()> {
        let text = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}");
        self.send(&text, Some(fd.as_fd())).await
    }

    /// Keeps what has one of these names no longer. Returns when that is done: a TAP's
    /// name is free only when the last descriptor of it is closed.
    ///
    /// # Errors
    /// As for [`keep`](Self::keep).
    pub(crate) async fn forget(
        &self,
        names: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> io::Result<()> {
        for name in names {
            let name = name.as_ref();
            self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None)
                .await?;
        }
        self.settled().await
    }

    /// Returns when all that was sent before has been done.
    async fn settled(&self) -> io::Result<()> {
        if !self.keeps() {
            return Ok(());
        }
        // The receiver closes its end when it gets there.
        let (ours, theirs) = UnixStream::pair()?;
        self.send("BARRIER=1", Some(theirs.as_fd())).await?;
        drop(theirs);
        ours.set_nonblocking(true)?;
        let ours = tokio::net::UnixStream::from_std(ours)?;
        tokio::time::timeout(PATIENCE, ours.readable()).await?
    }

    /// Says that the daemon serves.
    pub(crate) async fn ready(&self) {
        if let Some(inner) = &self.0
            && let Err(error) = inner.send("READY=1", None).await
        {
            log::warn!("telling whoever started the daemon that it serves: {error}");
        }
    }

    async fn send(&self, text: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        match &self.0 {
            Some(inner) if inner.keeps => inner.send(text, fd).await,
            _ => Ok(()),
        }
    }

    fn found(&self) -> Option<MutexGuard<'_, BTreeMap<String, OwnedFd>>> {
        let inner = self.0.as_ref()?;
        Some(inner.found.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Inner {
    async fn send(&self, text: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match send_once(&self.socket, text, fd.as_ref()) {
                // Its queue is full: a few datagrams of one sender.
                Err(Errno::AGAIN | Errno::NOBUFS) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(REST).await;
                }
                Err(Errno::INTR) => {}
                sent => return sent.map_err(io::Error::from),
            }
        }
    }
}

fn send_once(socket: &UnixDatagram, text: &str, fd: Option<&BorrowedFd<'_>>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(fd) = fd {
        let fits = control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
        debug_assert!(fits, "the space is for exactly one descriptor");
    }
    let bytes = [IoSlice::new(text.as_bytes())];
    rustix::net::sendmsg(socket, &bytes, &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// The descriptors that this process was started with, by name. Of two with the same
/// name the later is the newer.
fn found_at_start() -> BTreeMap<String, OwnedFd> {
    let number = |name: &str| env::var(name).ok()?.parse::<u32>().ok();
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_pid().unsigned_abs());
    let by_keeper = number(KEEPER_PID).is_some() && number(KEEPER_PID) == parent;
    let Some(count) = number(LISTEN_FDS).and_then(|count| RawFd::try_from(count).ok()) else {
        return BTreeMap::new();
    };
    if !by_keeper && number(LISTEN_PID) != Some(std::process::id()) {
        return BTreeMap::new();
    }
    let mut fds = (FIRST_FD..FIRST_FD.saturating_add(count)).map(passed_on);
    let names = match by_keeper {
        true => fds.next().flatten().map(File::from).and_then(read_list),
        false => env::var(LISTEN_FDNAMES)
            .ok()
            .map(|names| names.replace(':', "\n")),
    };
    let names = names.unwrap_or_default();
    let named = names.lines().zip(fds);
    named
        .filter_map(|(name, fd)| Some((name.to_owned(), fd?)))
        .collect()
}

/// Takes over a descriptor that this process was started with, if it is open.
fn passed_on(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: the number is not -1, and the descriptor is only asked for its flags, which
    // fails if it is not open.
    rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) }).ok()?;
    // SAFETY: it is open, and was passed to this process at its start: the environment
    // says so, by the number of this process or of its parent. The promise of
    // `Store::from_env`'s caller is that nothing was opened since, and that it calls once.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    // Not for the programs that this one may start.
    let _ = rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC);
    Some(fd)
}

/// A list of names, which its writer left at its end.
fn read_list(mut file: File) -> Option<String> {
    let mut names = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut names).ok()?;
    Some(names)
}

/// The names under which a guest's things are kept.
#[derive(Debug, Clone)]
pub(crate) struct Names(String);

impl Names {
    /// Those of the port with this name.
    pub(crate) fn of(port: &str) -> Self {
        Self(port.to_owned())
    }

    /// The port's name.
    pub(crate) fn port(&self) -> &str {
        &self.0
    }

    pub(crate) fn tap(&self) -> String {
        format!("{}.tap", self.0)
    }

    pub(crate) fn memory(&self) -> String {
        format!("{}.memory", self.0)
    }

    pub(crate) fn ring_guest(&self) -> String {
        format!("{}.ring-guest", self.0)
    }

    pub(crate) fn rung_by_guest(&self) -> String {
        format!("{}.rung-by-guest", self.0)
    }

    pub(crate) fn record(&self) -> String {
        format!("{}.record", self.0)
    }

    /// Kept last: who has a connection here has been given all the rest.
    pub(crate) fn connection(&self) -> String {
        format!("{}.connection", self.0)
    }

    pub(crate) fn all(&self) -> [String; 6] {
        [
            self.connection(),
            self.tap(),
            self.memory(),
            self.ring_guest(),
            self.rung_by_guest(),
            self.record(),
        ]
    }
}

/// The ports that some of these names belong to.
pub(crate) fn ports_of<'a>(names: impl IntoIterator<Item = &'a String>) -> BTreeSet<&'a str> {
    let port = |name: &'a String| {
        let (port, _) = name.rsplit_once('.')?;
        Names::of(port).all().contains(name).then_some(port)
    };
    names.into_iter().filter_map(port).collect()
}
