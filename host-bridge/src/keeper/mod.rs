//! The keeper: a process that does nothing but hold what a daemon's process needs to
//! go on where the one before it ended.
//!
//! `host-bridge run --keep` is one. It starts the daemon as a process of its own, the
//! worker, keeps the descriptors that the worker gives it ([`Shelf`]), and starts
//! another one with all of them when the worker has ended, however it ended: killed,
//! crashed, or asked to by an administrator who put a new program in its place. It
//! speaks systemd's protocol (see [`store`](crate::store)), so under systemd, with
//! `FileDescriptorStoreMax=`, no keeper is needed.
//!
//! It reads nothing of guests, and of the worker only short lines with descriptors. It
//! must not end by anything that the worker does.

mod shelf;

use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram as StdDatagram};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::io::{IoSliceMut, fcntl_dupfd_cloexec};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags};
use rustix::process::{Resource, Rlimit, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixDatagram;

pub use self::shelf::{Said, Shelf};
use crate::child::Helper;
use crate::signals::Signals;
use crate::store::{
    FDSTORE, FIRST_FD, KEEPER_PID, LISTEN_FDNAMES, LISTEN_FDS, LISTEN_PID, NOTIFY_SOCKET,
};

/// A worker that lives shorter may have ended by something that ends the next one too.
const SHORT_LIFE: Duration = Duration::from_secs(1);
/// The rest after a short life; with every further one that ended by the worker's own
/// fault it doubles.
const REST: Duration = Duration::from_millis(20);
/// After so many of those in a row nothing is kept for the next worker: it may be
/// something kept that they die of.
const FAULTS: u32 = 5;
/// How long after a vain attempt to start a worker the next is made.
const START_REST: Duration = Duration::from_millis(200);
/// How long the worker may take to end: longer than it gives its guests.
const PATIENCE: Duration = Duration::from_secs(12);
/// Longest message, in bytes, and most descriptors beside one.
const MESSAGE_LEN: usize = 4096;
const MESSAGE_FDS: usize = 16;

/// Runs workers, one after the other, until SIGINT, SIGTERM or SIGHUP, and says the code
/// that the keeper is to exit with. `worker` is the worker's command, without anything about the
/// keeper. Call it on the main thread, which must live as long as the workers.
///
/// # Errors
/// The system's, when the keeper itself cannot work.
pub fn run(shelf: Shelf, worker: impl FnMut() -> Command) -> io::Result<u8> {
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async { Keeper::new(shelf)?.run(worker).await })
}

/// Everything kept is an open descriptor here: six for each guest.
fn raise_file_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        log::warn!("keeper: raising the limit of open files: {error}");
    }
}

struct Keeper {
    shelf: Shelf,
    socket: UnixDatagram,
    address: String,
    /// The number of the worker, which alone is heard.
    worker: u32,
    /// A worker has served.
    was_ready: bool,
}

/// How a worker's life ended.
enum Life {
    /// By itself, or by somebody who killed it.
    Over(ExitStatus),
    /// Because the keeper is to end.
    Told(&'static str, ExitStatus),
}

impl Keeper {
    fn new(shelf: Shelf) -> io::Result<Self> {
        // Abstract: no file to remove. Nobody else's messages are heard.
        let name = format!("host-bridge-keeper-{:032x}", rand::random::<u128>());
        let socket = StdDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        rustix::net::sockopt::set_socket_passcred(&socket, true)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            shelf,
            socket: UnixDatagram::from_std(socket)?,
            address: format!("@{name}"),
            worker: 0,
            was_ready: false,
        })
    }

    async fn run(&mut self, mut worker: impl FnMut() -> Command) -> io::Result<u8> {
        let mut signals = Signals::new()?;
        let mut faults = 0;
        loop {
            let born = Instant::now();
            let status = match self.live(worker(), &mut signals).await {
                Ok(Life::Over(status)) => status,
                Ok(Life::Told(name, status)) => {
                    log::info!("keeper: {name}: the worker has ended ({status})");
                    return Ok(0);
                }
                // The program's file is being replaced, or the system is short of
                // something: what is kept is worth waiting for.
                Err(error) if self.was_ready => {
                    log::error!("keeper: no worker can be started: {error}; trying again");
                    match rest(START_REST, &mut signals).await {
                        Some(_) => return Ok(0),
                        None => continue,
                    }
                }
                Err(error) => return Err(error),
            };
            let is_short = born.elapsed() < SHORT_LIFE;
            let is_fault = !status.success() && status.signal() != Some(Signal::KILL.as_raw());
            faults = match is_short {
                true => faults + u32::from(is_fault),
                false => 0,
            };
            if !self.was_ready && (status.code().is_some() || faults >= FAULTS) {
                // It has said why: settings, rights, an address in use.
                let code = status.code().and_then(|code| u8::try_from(code).ok());
                return Ok(code.filter(|&code| code != 0).unwrap_or(1));
            }
            log::warn!(
                "keeper: the worker has ended ({status}); another takes over {} kept descriptors",
                self.shelf.len()
            );
            if faults >= FAULTS {
                log::error!(
                    "keeper: {faults} workers in a row have ended at once: everything kept is let go"
                );
                self.shelf.clear();
                faults = 0;
            }
            if is_short && rest(REST * (1 << faults), &mut signals).await.is_some() {
                return Ok(0);
            }
        }
    }

    /// One worker, from its start to its end.
    async fn live(&mut self, command: Command, signals: &mut Signals) -> io::Result<Life> {
        let mut worker = start(command, &self.shelf, &self.address)?;
        let number = worker.child_mut().id();
        self.worker = number;
        log::info!("keeper: the worker is process {number}");
        // SAFETY: an OwnedFd is open as long as it exists and never changes.
        let pidfd = unsafe { AsyncFd::register_with_interest(worker.pidfd()?, Interest::READABLE) }
            .map_err(|refused| refused.into_parts().1)?;
        let (mut told, mut deadline) = (None, None);
        loop {
            tokio::select! {
                // What was said before the end counts.
                biased;
                message = self.receive() => self.hear(message?),
                ended = pidfd.readable() => {
                    ended?.retain_ready();
                    break;
                }
                name = signals.next() => {
                    told = Some(name);
                    // Unlike SIGTERM it says that nothing will be kept.
                    worker.signal(Signal::INT);
                    deadline.get_or_insert(tokio::time::Instant::now() + PATIENCE);
                }
                () = sleep_until(deadline) => break,
            }
        }
        drop(pidfd);
        let status = worker.stop(Duration::ZERO)?;
        Ok(match told {
            Some(name) => Life::Told(name, status),
            None => Life::Over(status),
        })
    }

    async fn receive(&self) -> io::Result<Message> {
        loop {
            self.socket.readable().await?;
            let received = || receive(&self.socket);
            match self.socket.try_io(Interest::READABLE, received) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return received,
            }
        }
    }

    fn hear(&mut self, message: Message) {
        if message.from != Some(self.worker) {
            log::debug!("keeper: a message of another process is not heard");
            return;
        }
        if message.cut {
            log::error!(
                "keeper: a descriptor could not be kept: raise the limit of open files (ulimit -n)"
            );
        }
        match self.shelf.hear(&message.text, message.fds) {
            Said::Ready => self.was_ready = true,
            Said::Nothing => {}
        }
    }
}

/// Rests, unless the keeper is told to end: then says how.
async fn rest(time: Duration, signals: &mut Signals) -> Option<&'static str> {
    tokio::select! {
        () = tokio::time::sleep(time) => None,
        name = signals.next() => {
            log::info!("keeper: {name}");
            Some(name)
        }
    }
}

/// What came from the worker.
struct Message {
    /// Who sent it, by the kernel's word.
    from: Option<u32>,
    text: Vec<u8>,
    fds: Vec<OwnedFd>,
    /// Descriptors are missing.
    cut: bool,
}

fn receive(socket: impl AsFd) -> io::Result<Message> {
    let mut text = vec![0; MESSAGE_LEN];
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_FDS), ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let mut into = [IoSliceMut::new(&mut text)];
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(&socket, &mut into, &mut control, flags)
    })?;
    let mut message = Message {
        from: None,
        text: Vec::new(),
        fds: Vec::new(),
        cut: received.flags.contains(ReturnFlags::CTRUNC),
    };
    for part in control.drain() {
        match part {
            RecvAncillaryMessage::ScmRights(fds) => message.fds.extend(fds),
            RecvAncillaryMessage::ScmCredentials(credentials) => {
                message.from = Some(credentials.pid.as_raw_pid().unsigned_abs());
            }
            _ => {}
        }
    }
    text.truncate(received.bytes);
    message.text = text;
    Ok(message)
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Starts a worker with all that is kept.
///
/// The first descriptor that it finds is a list of the others' names, since there may be
/// more than fit into a variable of the environment.
fn start(mut command: Command, shelf: &Shelf, address: &str) -> io::Result<Helper> {
    let count = shelf.len() + 1;
    let above = i32::try_from(count).map_or(i32::MAX, |count| FIRST_FD.saturating_add(count));
    let mut passed = vec![fcntl_dupfd_cloexec(name_list(shelf)?, above)?];
    for (_, fd) in shelf.entries() {
        passed.push(fcntl_dupfd_cloexec(fd, above)?);
    }
    command
        .env(NOTIFY_SOCKET, address)
        .env(FDSTORE, i32::MAX.to_string())
        .env(KEEPER_PID, std::process::id().to_string())
        .env(LISTEN_FDS, count.to_string())
        .env_remove(LISTEN_PID)
        .env_remove(LISTEN_FDNAMES);
    let place = move || {
        for (number, fd) in (FIRST_FD..).zip(&passed) {
            // SAFETY: `fd` is open, and nothing in this process uses the number: see below.
            if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec, `place` makes system calls and neither allocates,
    // locks nor panics.
    unsafe { command.pre_exec(place) };
    // Whatever is opened for the start itself is not to have one of these numbers.
    let null = std::fs::File::open("/dev/null")?;
    let mut plugs = vec![fcntl_dupfd_cloexec(&null, FIRST_FD)?];
    while plugs.last().is_some_and(|plug| plug.as_raw_fd() < above) {
        plugs.push(fcntl_dupfd_cloexec(&null, FIRST_FD)?);
    }
    Helper::spawn(command)
}

/// The names of what is kept, one per line.
fn name_list(shelf: &Shelf) -> io::Result<OwnedFd> {
    let mut file = std::fs::File::from(rustix::fs::memfd_create("names", MemfdFlags::CLOEXEC)?);
    for (name, _) in shelf.entries() {
        writeln!(file, "{name}")?;
    }
    Ok(file.into())
}
