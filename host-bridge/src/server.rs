//! The attach socket: guests come and go.
//!
//! It speaks QEMU's ivshmem-server protocol, so a stock QEMU
//! (`-chardev socket -device ivshmem-doorbell`) and a plain process attach in
//! the same way. Every client gets memory and eventfds of its own; none ever
//! sees another's. Clients only receive on the socket: its end of file is the
//! sign that a guest is gone.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode;

use shm_link::linux::address::Address;
use shm_link::linux::event::EventFd;
use shm_link::linux::ivshmem::{ServerSetup, send_setup};
use shm_link::linux::memory::SharedMemory;
use shm_link::superblock::{Layout, LayoutOptions};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::bell::Doorbells;
use crate::bridge::Bridge;
use crate::error::BridgeError;
use crate::filter::FilterConfig;
use crate::impair::ImpairConfig;
use crate::plan::{Assignment, Plan, Slot, Slots};
use crate::port::PortConfig;
use crate::tap::TapSource;

/// The id under which guests ring the host; guests have ids from 1.
const HOST_ID: u16 = 0;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// How long the listener rests when the system has no descriptor or memory for
/// another client.
const ACCEPT_REST: Duration = Duration::from_millis(200);

/// What every guest of a socket gets besides its place in the plan.
#[derive(Debug, Clone)]
pub struct GuestPolicy {
    /// Sizes of the rings.
    pub layout: LayoutOptions,
    /// What frames are checked for.
    pub filter: FilterConfig,
    /// Fault injection from guest to host.
    pub impair_to_host: ImpairConfig,
    /// Fault injection from host to guest.
    pub impair_to_guest: ImpairConfig,
    /// TAPs for the first slots; later slots make their own, named like the port.
    pub taps: Vec<GivenTap>,
}

/// A TAP that an administrator chose for a slot.
#[derive(Debug, Clone)]
pub enum GivenTap {
    /// To be made under this name whenever a guest comes.
    New(String),
    /// A persistent TAP that exists already.
    Existing(String),
    /// A descriptor attached to a TAP. It stays open between guests.
    Fd(Arc<OwnedFd>),
}

impl GivenTap {
    /// The TAP for one guest.
    ///
    /// # Errors
    /// The system's, if there is no descriptor left.
    pub fn source(&self) -> io::Result<TapSource> {
        Ok(match self {
            Self::New(name) => TapSource::Create {
                name: Some(name.clone()),
            },
            Self::Existing(name) => TapSource::Existing { name: name.clone() },
            Self::Fd(fd) => TapSource::Fd(fd.try_clone()?),
        })
    }
}

/// Who may attach to a socket, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Places {
    /// Guests come and go; the lowest free slot decides who each is.
    Plan(Plan),
    /// One guest at a time, always as the same machine.
    One(Box<Assignment>),
}

impl Places {
    fn count(&self) -> u16 {
        match self {
            Self::Plan(plan) => plan.max_guests,
            Self::One(_) => 1,
        }
    }

    /// What slot `slot` (from 0) gets.
    pub fn assign(&self, slot: u16) -> Assignment {
        match self {
            Self::Plan(plan) => plan.assign(slot),
            Self::One(assignment) => Assignment::clone(assignment),
        }
    }
}

impl From<Plan> for Places {
    fn from(plan: Plan) -> Self {
        Self::Plan(plan)
    }
}

/// A listening attach socket.
pub struct Server {
    listener: UnixListener,
    bridge: Bridge,
    places: Places,
    policy: GuestPolicy,
    slots: Slots,
    _file: SocketFile,
}

impl Server {
    /// Listens at `address`.
    ///
    /// # Errors
    /// [`BridgeError`] if the address is in use or cannot be made.
    pub fn bind(
        address: &Address,
        bridge: Bridge,
        places: impl Into<Places>,
        policy: GuestPolicy,
    ) -> Result<Self, BridgeError> {
        let (listener, file) = listen(address)?;
        let places = places.into();
        let slots = Slots::new(places.count());
        Ok(Self {
            listener,
            bridge,
            places,
            policy,
            slots,
            _file: file,
        })
    }

    /// Serves guests until dropped, which detaches them all.
    pub async fn run(&self) -> std::convert::Infallible {
        let mut guests = Guests::new();
        self.accept(&mut guests).await
    }

    /// Serves guests until `stop` is done, detaches them all, and returns when
    /// their TAPs are gone.
    pub async fn run_until(&self, stop: impl Future<Output = ()>) {
        let mut guests = Guests::new();
        tokio::select! {
            never = self.accept(&mut guests) => match never {},
            () = stop => {}
        }
        drop(guests.serving);
        while guests.tasks.join_next().await.is_some() {}
    }

    async fn accept(&self, guests: &mut Guests) -> std::convert::Infallible {
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = guests.tasks.join_next() => continue,
            };
            let socket = match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    log::warn!("cannot accept a guest: {error}; trying again");
                    tokio::time::sleep(ACCEPT_REST).await;
                    continue;
                }
            };
            let slot = match self.slots.take() {
                Ok(slot) => slot,
                Err(error) => {
                    // The client sees the end of the connection.
                    log::warn!("a guest was turned away: {error}");
                    continue;
                }
            };
            let config = match self.port_config(&slot) {
                Ok(config) => config,
                Err(error) => {
                    log::error!("a guest was turned away: copying its TAP's descriptor: {error}");
                    continue;
                }
            };
            let (bridge, layout) = (self.bridge.clone(), self.policy.layout);
            let mut stop = guests.serving.subscribe();
            guests.tasks.spawn(async move {
                let name = config.name.clone();
                // Nothing is ever sent: it changes when the server ends.
                let stop = async move {
                    let _ = stop.changed().await;
                };
                if let Err(error) = serve_guest(socket, &slot, bridge, layout, config, stop).await {
                    log::error!("port {name}: {error}");
                }
            });
        }
    }

    fn port_config(&self, slot: &Slot) -> io::Result<PortConfig> {
        let assignment = self.places.assign(slot.number);
        let tap = match self.policy.taps.get(usize::from(slot.number)) {
            Some(given) => given.source()?,
            None => TapSource::Create {
                name: Some(assignment.name.clone()),
            },
        };
        Ok(PortConfig {
            name: assignment.name,
            tap,
            network: assignment.network,
            master: assignment.master,
            host_addresses: assignment.host_addresses,
            filter: self.policy.filter.clone(),
            impair_to_host: self.policy.impair_to_host.clone(),
            impair_to_guest: self.policy.impair_to_guest.clone(),
        })
    }
}

/// The guests of a running server. Dropping it detaches them.
struct Guests {
    tasks: JoinSet<()>,
    /// Dropped to tell the tasks to end.
    serving: watch::Sender<()>,
}

impl Guests {
    fn new() -> Self {
        Self {
            tasks: JoinSet::new(),
            serving: watch::Sender::new(()),
        }
    }
}

/// One guest from its connection to its end.
async fn serve_guest(
    mut socket: UnixStream,
    slot: &Slot,
    bridge: Bridge,
    layout: LayoutOptions,
    config: PortConfig,
    stop: impl Future<Output = ()>,
) -> Result<(), BridgeError> {
    let name = config.name.clone();
    let io = |doing: &str| {
        let doing = doing.to_owned();
        move |error| BridgeError::io(doing, error)
    };
    let layout = Layout::new(layout)
        .map_err(|error| BridgeError::io("laying out the memory", io::Error::other(error)))?;
    let memory = SharedMemory::create(&name, layout.region_len)
        .map_err(|error| BridgeError::io("making the guest's memory", io::Error::other(error)))?;
    let event = || {
        EventFd::new()
            .map(OwnedFd::from)
            .map_err(io("making an eventfd"))
    };
    let (ring_guest, rung_by_guest) = (event()?, event()?);
    let copies = (
        ring_guest.try_clone().map_err(io("copying an eventfd"))?,
        rung_by_guest
            .try_clone()
            .map_err(io("copying an eventfd"))?,
    );
    let doorbells = Doorbells {
        ring_guest,
        rung_by_guest,
    };
    let mut port = bridge
        .attach_as(memory.region(), layout, doorbells, config)
        .await?;
    let setup = ServerSetup {
        client_id: slot.number + 1,
        host_id: HOST_ID,
        memory: memory.fd(),
        ring_host: &[copies.1.as_fd()],
        ring_client: &[copies.0.as_fd()],
    };
    let sent = send_setup(&socket, setup).map_err(io("sending the guest its memory"));
    // The guest holds its own copies now.
    drop((memory, copies));
    if sent.is_ok() {
        log::info!("port {name}: a guest attached");
        tokio::select! {
            () = end_of_file(&mut socket) => log::info!("port {name}: the guest detached"),
            end = port.ended() => log::warn!("port {name}: {end}"),
            () = stop => log::info!("port {name}: the guest is detached, the bridge ends"),
        }
    }
    // The slot is free for the next guest only once the TAP is gone.
    port.close().await;
    sent
}

/// Waits until the client is gone. Clients have nothing to say here; what one
/// says all the same is thrown away.
async fn end_of_file(socket: &mut UnixStream) {
    let mut stray = [0; 64];
    while matches!(socket.read(&mut stray).await, Ok(n) if n > 0) {}
}

/// Binds a listening socket, over a stale file but never over a live one.
pub(crate) fn listen(address: &Address) -> Result<(UnixListener, SocketFile), BridgeError> {
    let io = |doing: &str, error| BridgeError::io(format!("{doing} {address}"), error);
    if let Some(path) = address.path()
        && fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
        && StdStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    {
        fs::remove_file(path).map_err(|error| io("removing the stale socket", error))?;
    }
    let listener = bind(address).map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another program listens there, or a file of this name exists: choose another \
                 address or stop that program"
            }
            io::ErrorKind::NotFound => "the directory does not exist: make it first",
            io::ErrorKind::PermissionDenied => {
                "no permission: choose a directory that this user may write to, or an abstract \
                 name (@name), or run as root"
            }
            _ => return io("listening at", error),
        };
        io("listening at", io::Error::new(error.kind(), advice))
    })?;
    let file = SocketFile::new(address.path());
    let listener = UnixListener::from_std(listener).map_err(|error| io("registering", error))?;
    Ok((listener, file))
}

/// A listening socket that does not block and that only its user may open: who
/// may open it may have a guest on this network, or administer it.
fn bind(address: &Address) -> io::Result<StdListener> {
    let name = match address.path() {
        Some(path) => SockAddr::unix(path)?,
        // socket2 writes abstract names with a NUL where people write an @.
        None => SockAddr::unix(address.to_string().replacen('@', "\0", 1))?,
    };
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Before the file exists: Linux gives it the socket's own mode, so it is
    // never open to others, not even for a moment.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    socket.bind(&name)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(OwnedFd::from(socket).into())
}

/// The file of a listening socket, removed when dropped, unless another program
/// put its own there meanwhile.
pub(crate) struct SocketFile(Option<(PathBuf, Inode)>);

/// Device and number of a file.
type Inode = (u64, u64);

impl SocketFile {
    fn new(path: Option<&Path>) -> Self {
        Self(path.and_then(|path| Some((path.to_owned(), inode(path)?))))
    }
}

fn inode(path: &Path) -> Option<Inode> {
    let file = fs::symlink_metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some((path, ours)) = &self.0
            && inode(path) == Some(*ours)
        {
            let _ = fs::remove_file(path);
        }
    }
}
