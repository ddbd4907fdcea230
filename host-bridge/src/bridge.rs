//! The bridge: all ports of one process.
//!
//! This is what a monitor embeds. It brings the memory and the doorbells of a
//! guest, [`Bridge::attach`] does the rest; the daemon's socket is one user of
//! it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shm_link::region::Region;
use shm_link::superblock::Layout;

use crate::bell::Doorbells;
use crate::error::BridgeError;
use crate::netlink::Netlink;
use crate::port::{Port, PortConfig, PortEnd, PortHandle, PortStatus};

/// All ports of this process. Clones are the same bridge.
#[derive(Clone)]
pub struct Bridge {
    netlink: Netlink,
    ports: Arc<Mutex<BTreeMap<String, PortHandle>>>,
}

impl Bridge {
    /// A bridge without ports. Call it inside a tokio runtime, in the network
    /// namespace that the TAPs are to be in.
    ///
    /// # Errors
    /// [`BridgeError`] if the kernel's network configuration cannot be reached.
    pub fn new() -> Result<Self, BridgeError> {
        Ok(Self {
            netlink: Netlink::connect()?,
            ports: Arc::default(),
        })
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
        config: PortConfig,
    ) -> Result<AttachedPort, BridgeError> {
        let name = config.name.clone();
        if self.ports().contains_key(&name) {
            let why = std::io::Error::new(
                std::io::ErrorKind::AlreadyExists,
                "a port of this name exists: choose another",
            );
            return Err(BridgeError::io(format!("making port {name}"), why));
        }
        let port = Port::open(&self.netlink, region, layout, doorbells, config).await?;
        let handle = port.handle();
        self.ports().insert(name, handle.clone());
        Ok(AttachedPort {
            port: Some(port),
            handle,
            bridge: self.clone(),
        })
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
}

impl Drop for AttachedPort {
    fn drop(&mut self) {
        self.bridge.ports().remove(self.handle.name());
    }
}
