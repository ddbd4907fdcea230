//! The bridge: all ports of one process.
//!
//! This is what a monitor embeds. It brings the memory and the doorbells of a
//! guest, or a byte stream to it; [`Bridge::attach`] and
//! [`Bridge::attach_stream`] do the rest. The daemon's sockets are one user of
//! them.

use std::collections::BTreeMap;
use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shm_link::region::Region;
use shm_link::stream::Framing;
use shm_link::superblock::Layout;

use crate::allowance::Allowance;
use crate::bell::Doorbells;
use crate::error::BridgeError;
use crate::netlink::Netlink;
use crate::port::{Port, PortConfig, PortEnd, PortHandle, PortStatus};
use crate::tap::Tap;
use crate::workers::{Seat, Workers};

/// All ports of this process. Clones are the same bridge.
#[derive(Clone)]
pub struct Bridge {
    netlink: Netlink,
    workers: Workers,
    ports: Arc<Mutex<BTreeMap<String, PortHandle>>>,
    memory: Allowance,
}

impl Bridge {
    /// A bridge without ports, which will run on the caller's runtime. Call it
    /// inside a tokio runtime, in the network namespace that the TAPs are to be
    /// in.
    ///
    /// # Errors
    /// [`BridgeError`] if the kernel's network configuration cannot be reached.
    pub fn new() -> Result<Self, BridgeError> {
        Self::with_workers(Workers::none())
    }

    /// A bridge whose ports run on threads of their own; else as
    /// [`new`](Self::new).
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn with_workers(workers: Workers) -> Result<Self, BridgeError> {
        Ok(Self {
            netlink: Netlink::connect()?,
            workers,
            ports: Arc::default(),
            memory: Allowance::unlimited(),
        })
    }

    /// The same, for guests that come to servers of its own: these may use no more memory
    /// than this, together. A monitor's guests have memory of the monitor's.
    #[must_use]
    pub fn with_memory(self, memory: Allowance) -> Self {
        Self { memory, ..self }
    }

    /// What its servers' guests may use.
    pub(crate) fn memory(&self) -> &Allowance {
        &self.memory
    }

    /// Attaches a guest to a TAP. `region` is memory that the guest can see, all
    /// zero or used by an earlier attachment; the bridge writes its superblock.
    /// The guest may be running already, or start later.
    ///
    /// The port lives as long as the [`AttachedPort`].
    ///
    /// # Errors
    /// [`BridgeError`] says what is missing and what to do.
    pub async fn attach(
        &self,
        region: Region,
        doorbells: Doorbells,
        config: PortConfig,
    ) -> Result<AttachedPort, BridgeError> {
        let layout = Layout::fitting(region.len()).map_err(|_| {
            let why = std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                format!(
                    "{} bytes are too few for a link: give at least 64 KiB",
                    region.len()
                ),
            );
            BridgeError::io(
                format!("laying out the memory of port {}", config.name),
                why,
            )
        })?;
        self.attach_as(region, layout, doorbells, config).await
    }

    /// Attaches a guest whose memory is laid out in a given way.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    pub async fn attach_as(
        &self,
        region: Region,
        layout: Layout,
        doorbells: Doorbells,
        mut config: PortConfig,
    ) -> Result<AttachedPort, BridgeError> {
        self.check_name(&config.name)?;
        let netlink = self.netlink.clone();
        let tap = Port::tap(&netlink, &mut config, Ok(&layout)).await?;
        let kept = keep(&tap, &config.name)?;
        let open =
            async move { Port::open(&netlink, region, layout, doorbells, config, tap).await };
        self.seated(open, kept).await
    }

    /// Attaches a guest that is at the other end of a byte stream: a connected
    /// unix or vsock socket, or a terminal, which is made raw (a serial port, a
    /// pty). Both ends must use the same framing, and frames of up to
    /// [`MAX_FRAME_LEN`](shm_link::link::MAX_FRAME_LEN) bytes. The descriptor is
    /// put into non-blocking mode, for all who share it.
    ///
    /// The port ends with the stream, or when the [`AttachedPort`] is dropped.
    ///
    /// # Errors
    /// [`BridgeError`] says what is missing and what to do.
    pub async fn attach_stream(
        &self,
        fd: OwnedFd,
        framing: Framing,
        mut config: PortConfig,
    ) -> Result<AttachedPort, BridgeError> {
        self.check_name(&config.name)?;
        let netlink = self.netlink.clone();
        let tap = Port::tap(&netlink, &mut config, Err(framing)).await?;
        let kept = keep(&tap, &config.name)?;
        let open = async move { Port::open_stream(&netlink, fd, framing, config, tap).await };
        self.seated(open, kept).await
    }

    /// Opens a port on a thread that has room.
    async fn seated(
        &self,
        open: impl Future<Output = Result<Port, BridgeError>> + Send + 'static,
        kept: OwnedFd,
    ) -> Result<AttachedPort, BridgeError> {
        let seat = self.workers.seat();
        let opened = seat.run(open).await;
        let opened = opened.map_err(|error| {
            BridgeError::io("making a port".to_owned(), std::io::Error::other(error))
        })?;
        Ok(self.attached(opened?, seat, kept))
    }

    fn check_name(&self, name: &str) -> Result<(), BridgeError> {
        if !self.ports().contains_key(name) {
            return Ok(());
        }
        let why = std::io::Error::new(
            std::io::ErrorKind::AlreadyExists,
            "a port of this name exists: choose another",
        );
        Err(BridgeError::io(format!("making port {name}"), why))
    }

    fn attached(&self, port: Port, seat: Seat, tap: OwnedFd) -> AttachedPort {
        let handle = port.handle();
        self.ports()
            .insert(handle.name().to_owned(), handle.clone());
        AttachedPort {
            port: Some(port),
            handle,
            bridge: self.clone(),
            tap: Some(tap),
            _seat: seat,
        }
    }

    /// All ports as they are now, by name.
    pub fn status(&self) -> Vec<PortStatus> {
        let handles: Vec<_> = self.ports().values().cloned().collect();
        handles.iter().map(PortHandle::status).collect()
    }

    /// The port with this name.
    pub fn port(&self, name: &str) -> Option<PortHandle> {
        self.ports().get(name).cloned()
    }

    fn ports(&self) -> MutexGuard<'_, BTreeMap<String, PortHandle>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A port on its bridge. Dropping it detaches the guest; [`close`](Self::close)
/// also waits until everything is freed.
pub struct AttachedPort {
    /// `None` only while being closed.
    port: Option<Port>,
    handle: PortHandle,
    bridge: Bridge,
    /// The last one of this TAP to be closed, so that it happens here and not on the
    /// port's thread.
    tap: Option<OwnedFd>,
    _seat: Seat,
}

/// A descriptor that keeps a TAP until it is closed where closing it may take its time.
fn keep(tap: &Tap, port: &str) -> Result<OwnedFd, BridgeError> {
    let doing = || format!("copying the TAP's descriptor of port {port}");
    tap.as_fd()
        .try_clone_to_owned()
        .map_err(|error| BridgeError::io(doing(), error))
}

impl AttachedPort {
    /// A handle that others may keep.
    pub fn handle(&self) -> PortHandle {
        self.handle.clone()
    }

    /// Waits until the port has ended and says why.
    pub async fn ended(&mut self) -> PortEnd {
        match &mut self.port {
            Some(port) => port.ended().await,
            None => PortEnd::Detached,
        }
    }

    /// Detaches the guest and returns when its TAP is gone.
    pub async fn close(mut self) {
        if let Some(port) = self.port.take() {
            port.close().await;
        }
    }

    /// Lets go of the guest for another process that takes it over at once.
    pub(crate) async fn leave(mut self) {
        if let Some(port) = self.port.take() {
            port.leave().await;
        }
    }
}

impl Drop for AttachedPort {
    fn drop(&mut self) {
        // The name is free when the TAP of that name is gone.
        drop(self.tap.take());
        self.bridge.ports().remove(self.handle.name());
    }
}
