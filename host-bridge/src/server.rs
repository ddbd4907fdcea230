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
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::PathBuf;
use std::time::Duration;

use shm_link::linux::address::Address;
use shm_link::linux::event::EventFd;
use shm_link::linux::ivshmem::{ServerSetup, send_setup};
use shm_link::linux::memory::SharedMemory;
use shm_link::superblock::{Layout, LayoutOptions};
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::bell::Doorbells;
use crate::bridge::Bridge;
use crate::error::BridgeError;
use crate::filter::FilterConfig;
use crate::impair::ImpairConfig;
use crate::plan::{Plan, Slot, Slots};
use crate::port::PortConfig;
use crate::tap::TapSource;

/// The id under which guests ring the host; guests have ids from 1.
const HOST_ID: u16 = 0;
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
    /// TAPs that exist already, for the first slots; later slots make their own.
    pub existing_taps: Vec<String>,
}

/// A listening attach socket.
pub struct Server {
    listener: UnixListener,
    bridge: Bridge,
    plan: Plan,
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
        plan: Plan,
        policy: GuestPolicy,
    ) -> Result<Self, BridgeError> {
        let (listener, file) = listen(address)?;
        let slots = Slots::new(plan.max_guests);
        Ok(Self {
            listener,
            bridge,
            plan,
            policy,
            slots,
            _file: file,
        })
    }

    /// Serves guests until dropped, which detaches them all.
    pub async fn run(&self) -> std::convert::Infallible {
        let mut guests = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = guests.join_next() => continue,
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
            let config = self.port_config(&slot);
            let (bridge, layout) = (self.bridge.clone(), self.policy.layout);
            guests.spawn(async move {
                let name = config.name.clone();
                if let Err(error) = serve_guest(socket, &slot, bridge, layout, config).await {
                    log::error!("port {name}: {error}");
                }
            });
        }
    }

    fn port_config(&self, slot: &Slot) -> PortConfig {
        let assignment = self.plan.assign(slot.number);
        let tap = match self.policy.existing_taps.get(usize::from(slot.number)) {
            Some(name) => TapSource::Existing { name: name.clone() },
            None => TapSource::Create {
                name: Some(assignment.name.clone()),
            },
        };
        PortConfig {
            name: assignment.name,
            tap,
            network: assignment.network,
            master: assignment.master,
            host_addresses: assignment.host_addresses,
            filter: self.policy.filter.clone(),
            impair_to_host: self.policy.impair_to_host.clone(),
            impair_to_guest: self.policy.impair_to_guest.clone(),
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
    let socket_address = address
        .socket_addr()
        .map_err(|error| io("using the address", error))?;
    if let Some(path) = address.path()
        && fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
        && StdStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    {
        fs::remove_file(path).map_err(|error| io("removing the stale socket", error))?;
    }
    let listener = StdListener::bind_addr(&socket_address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => io(
            "listening at",
            io::Error::new(error.kind(), "another program listens there, or a file of this name exists: choose another address or stop that program"),
        ),
        io::ErrorKind::NotFound => io("listening at", io::Error::new(error.kind(), "the directory does not exist: make it first")),
        _ => io("listening at", error),
    })?;
    let file = SocketFile(address.path().map(PathBuf::from));
    if let Some(path) = address.path() {
        // Who may open the socket may have a guest on this network.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .map_err(|error| io("protecting", error))?;
    }
    listener
        .set_nonblocking(true)
        .map_err(|error| io("preparing", error))?;
    let listener = UnixListener::from_std(listener).map_err(|error| io("registering", error))?;
    Ok((listener, file))
}

/// The file of a listening socket, removed when dropped.
pub(crate) struct SocketFile(Option<PathBuf>);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}
