//! One guest's port: its TAP, its session, and what moves its frames.
//!
//! A port is a task. It carries the session's messages, applies what the session
//! decides to the TAP, and ends when the guest breaks the rules or closes, when
//! the TAP is gone, or when its `Port` is dropped; then everything it held is
//! freed.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `config` | what a port is made from, what may be changed |
//! | `status` | what others see of it, and how they reach it |
//! | `tap` | its TAP, opened and set up |
//! | `core` | session, TAP and commands: all that is the same for every guest |
//! | `rings` | the control rings of a guest that shares memory |
//! | `shm` | the task of a guest that shares memory: control rings beside two pumps |
//! | [`stepped`] | the same without tasks, moved by hand: for simulations |
//! | `stream` | the task of a guest behind a byte stream, which moves all itself |

mod config;
mod core;
mod rings;
mod shm;
mod status;
#[cfg(feature = "simulation")]
pub mod stepped;
mod stream;
mod tap;

use std::convert::Infallible;
use std::os::fd::OwnedFd;

use shm_link::region::Region;
use shm_link::stream::Framing;
use shm_link::superblock::Layout;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use self::config::{PortChange, PortConfig};
pub(crate) use self::core::LOG_LINES_PER_SECOND;
use self::status::Command;
pub use self::status::{PortEnd, PortHandle, PortStatus};
pub(crate) use self::tap::{TapPlan, prepare_tap};
use crate::bell::Doorbells;
use crate::error::BridgeError;
use crate::netlink::Netlink;
pub use crate::session::PortState;
use crate::tap::{Tap, TapKind, TapSource};

/// A port. Dropping it detaches the guest; [`close`](Self::close) also waits
/// until everything is freed.
pub(crate) struct Port {
    handle: PortHandle,
    ended: watch::Receiver<Option<PortEnd>>,
    /// Aborted when dropped.
    task: JoinSet<()>,
}

impl Port {
    /// A handle that others may keep.
    pub(crate) fn handle(&self) -> PortHandle {
        self.handle.clone()
    }

    /// Waits until the port has ended and says why.
    pub(crate) async fn ended(&mut self) -> PortEnd {
        match self.ended.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(PortEnd::Closed),
            Err(_) => PortEnd::Failed("the port's task was stopped".to_owned()),
        }
    }

    /// Detaches the guest and returns when its TAP is gone.
    pub(crate) async fn close(self) {
        self.end(Command::Stop).await;
    }

    /// Lets go of a guest that another process takes over, and returns when nothing of
    /// it is under way here.
    pub(crate) async fn leave(self) {
        self.end(Command::Leave).await;
    }

    async fn end(mut self, command: Command) {
        let _ = self.handle.commands.send(command).await;
        while self.task.join_next().await.is_some() {}
    }

    /// Opens the TAP that `config` names, for a guest with such rings (else one behind
    /// such a stream).
    ///
    /// Not for the port's own thread: making a TAP, like closing it, takes the kernel
    /// milliseconds, in which all the other ports of that thread would stand still.
    pub(crate) async fn tap(
        netlink: &Netlink,
        config: &mut PortConfig,
        guest: Result<&Layout, Framing>,
    ) -> Result<Tap, BridgeError> {
        let kind = match guest {
            _ if !config.offloads => TapKind::Plain,
            Ok(layout) => shm::tap_kind(layout),
            Err(Framing::Prefixed) => TapKind::VnetHeader,
            // A super-frame would hold a slow line up for seconds.
            Err(Framing::Serial) => TapKind::Plain,
        };
        let source = std::mem::replace(&mut config.tap, TapSource::Create { name: None });
        let plan = TapPlan {
            guest_mac: config.network.mac,
            mtu: config.network.mtu,
            master: config.master.as_deref(),
            guest_alone: config.filter.enabled,
            host_addresses: &config.host_addresses,
        };
        prepare_tap(netlink, source, kind, plan).await
    }

    /// A port whose guest shares `region` with the host.
    pub(crate) async fn open(
        netlink: &Netlink,
        region: Region,
        layout: Layout,
        doorbells: Doorbells,
        config: PortConfig,
        tap: Tap,
    ) -> Result<Self, BridgeError> {
        shm::open(netlink, region, layout, doorbells, config, tap).await
    }

    /// A port whose guest is at the other end of a byte stream.
    pub(crate) async fn open_stream(
        netlink: &Netlink,
        fd: OwnedFd,
        framing: Framing,
        config: PortConfig,
        tap: Tap,
    ) -> Result<Self, BridgeError> {
        stream::open(netlink, fd, framing, config, tap).await
    }

    /// Starts a port's task, beside which `keeper` looks after its surroundings.
    fn start(
        handle: PortHandle,
        keeper: impl Future<Output = Infallible> + Send + 'static,
        task: impl Future<Output = PortEnd> + Send + 'static,
    ) -> Self {
        let (end, ended) = watch::channel(None);
        let mut set = JoinSet::new();
        set.spawn(async move {
            let ended = tokio::select! {
                ended = task => ended,
                never = keeper => match never {},
            };
            end.send_replace(Some(ended));
        });
        Self {
            handle,
            ended,
            task: set,
        }
    }
}
