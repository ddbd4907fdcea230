//! What others see of a port, and how they ask something of it.
//!
//! The port's task writes [`Shown`]; everybody with a [`PortHandle`] reads it.
//! The handle never waits for the task except for the answer to a change.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use shm_link::control::{NetworkConfig, Prefixed};
use shm_link::fault::PeerFault;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use super::config::PortChange;
use crate::counters::{PortCounters, PortSnapshot};
use crate::impair::ImpairConfig;
use crate::limit::{LimitConfig, Limits};
use crate::policy::Stop;
use crate::pump::PumpEnd;
use crate::session::PortState;
use crate::tap::Tap;

/// A port at one moment, for people and programs to read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PortStatus {
    /// The port's name.
    pub name: String,
    /// The TAP's name.
    pub tap: String,
    /// How far the guest is.
    #[serde(flatten)]
    pub state: PortState,
    /// What the guest calls itself, control characters escaped.
    pub guest: String,
    /// The guest's Ethernet address.
    pub mac: String,
    /// Longest packet, as agreed, or this port's maximum before that.
    pub mtu: u16,
    /// Whether the link is up.
    pub carrier: bool,
    /// The guest's addresses.
    pub addresses: Vec<String>,
    /// The serial of the guest's configuration.
    pub serial: u32,
    /// How much may pass from guest to host; empty: no limit.
    #[serde(default)]
    pub limit_to_host: String,
    /// How much may pass from host to guest; empty: no limit.
    #[serde(default)]
    pub limit_to_guest: String,
    /// Fault injection from guest to host; empty: none.
    pub impair_to_host: String,
    /// Fault injection from host to guest; empty: none.
    pub impair_to_guest: String,
    /// Seconds since the port was made.
    pub age_seconds: u64,
    /// What was moved and dropped.
    pub counters: PortSnapshot,
}

/// Why a port ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortEnd {
    /// The guest broke the rules of the link.
    Fault(PeerFault),
    /// The guest closed the link.
    Closed,
    /// The port's owner let go of it; rings and serial lines stay open.
    Detached,
    /// The same, for another process that takes the guest over at once: its TAP
    /// keeps its carrier.
    Left,
    /// The TAP is gone or broken.
    Tap(String),
    /// Something the port needs from its environment failed.
    Failed(String),
}

impl PortEnd {
    /// How the transport is to be left.
    pub(super) fn stop(&self) -> Stop {
        match self {
            Self::Detached | Self::Left | Self::Tap(_) => Stop::LeaveOpen,
            Self::Fault(_) | Self::Closed | Self::Failed(_) => Stop::Close,
        }
    }
}

impl std::fmt::Display for PortEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fault(fault) => write!(f, "cut off ({}): {fault}", fault.name()),
            Self::Closed => f.write_str("the guest closed the link"),
            Self::Detached => f.write_str("detached"),
            Self::Left => f.write_str("left to the next process"),
            Self::Tap(why) => write!(f, "the TAP failed: {why}"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

impl From<PeerFault> for PortEnd {
    fn from(fault: PeerFault) -> Self {
        Self::Fault(fault)
    }
}

impl From<PumpEnd> for PortEnd {
    fn from(end: PumpEnd) -> Self {
        match end {
            PumpEnd::Fault(fault) => Self::Fault(fault),
            PumpEnd::Closed => Self::Closed,
            PumpEnd::Tap(error) => Self::Tap(error.to_string()),
            PumpEnd::Stream(error) => Self::Failed(error.to_string()),
            PumpEnd::Told(_) => Self::Detached,
        }
    }
}

/// What everybody may look at.
pub(super) struct Shown {
    pub(super) name: String,
    pub(super) tap: String,
    /// Gone with the port, however many look at it.
    pub(super) tap_itself: Weak<AsyncFd<Tap>>,
    pub(super) born: Instant,
    pub(super) counters: Arc<PortCounters>,
    pub(super) view: Mutex<View>,
}

impl Shown {
    pub(super) fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of the status that the session decides.
pub(super) struct View {
    pub(super) state: PortState,
    pub(super) guest: String,
    pub(super) network: NetworkConfig,
    pub(super) limits: Limits,
    pub(super) impair_to_host: ImpairConfig,
    pub(super) impair_to_guest: ImpairConfig,
}

/// What is asked of a port's task.
pub(super) enum Command {
    /// An administrator changes something.
    Change {
        change: Box<PortChange>,
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// The owner lets go of the port.
    Stop,
    /// The owner leaves it to another process.
    Leave,
}

/// A way to look at a port and to change it, for as long as it lives.
#[derive(Clone)]
pub struct PortHandle {
    pub(super) shown: Arc<Shown>,
    pub(super) commands: mpsc::Sender<Command>,
}

impl PortHandle {
    /// The port's name.
    pub fn name(&self) -> &str {
        &self.shown.name
    }

    /// Another descriptor of the port's TAP.
    pub(crate) fn tap_fd(&self) -> io::Result<OwnedFd> {
        let tap = self.shown.tap_itself.upgrade();
        let tap = tap.ok_or_else(|| io::Error::other("the port has ended"))?;
        tap.get_ref().as_fd().try_clone_to_owned()
    }

    /// The port as it is now.
    pub fn status(&self) -> PortStatus {
        let shown = &self.shown;
        let view = shown.view();
        let network = &view.network;
        let mac = network.mac.map(|byte| format!("{byte:02x}")).join(":");
        let v4 = network.v4.iter().map(Prefixed::to_string);
        let v6 = network.v6.iter().map(Prefixed::to_string);
        let shown_impair = |config: &ImpairConfig| {
            if config.is_transparent() {
                String::new()
            } else {
                config.to_string()
            }
        };
        let shown_limit = |limit: LimitConfig| match limit.is_off() {
            true => String::new(),
            false => limit.to_string(),
        };
        PortStatus {
            name: shown.name.clone(),
            tap: shown.tap.clone(),
            state: view.state.clone(),
            guest: view.guest.clone(),
            mac,
            mtu: network.mtu,
            carrier: network.carrier,
            addresses: v4.chain(v6).collect(),
            serial: network.serial,
            limit_to_host: shown_limit(view.limits.to_host),
            limit_to_guest: shown_limit(view.limits.to_guest),
            impair_to_host: shown_impair(&view.impair_to_host),
            impair_to_guest: shown_impair(&view.impair_to_guest),
            age_seconds: shown.born.elapsed().as_secs(),
            counters: shown.counters.snapshot(),
        }
    }

    /// Changes the port. Returns once a running guest has acknowledged what
    /// concerns it.
    ///
    /// # Errors
    /// Words that say what is wrong with the change, why the guest would not
    /// have it, or that the port is gone. Then what held before still holds.
    pub async fn change(&self, change: PortChange) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        let change = Box::new(change);
        let gone = || "the port has ended".to_owned();
        self.commands
            .send(Command::Change { change, reply })
            .await
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}
