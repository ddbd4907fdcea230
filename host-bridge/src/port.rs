//! One guest's port: its TAP, its session, its two pumps.
//!
//! A port is a task. It owns the control rings and the session, applies what the
//! session decides to the TAP, and watches the pumps. It ends when the guest
//! breaks the rules or closes, when the TAP is gone, or when its [`Port`] is
//! dropped; then everything it held is freed.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use shm_link::control::{NetworkConfig, Prefixed};
use shm_link::doorbell::{AsyncWait, Doorbell};
use shm_link::fault::PeerFault;
use shm_link::link::MAX_CONTROL_LEN;
use shm_link::offload::OffloadHeader;
use shm_link::record::{RecordReader, RecordWriter};
use shm_link::region::Region;
use shm_link::ring::{Arm, Wake};
use shm_link::shm::{HostEnd, read_message};
use shm_link::superblock::Layout;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::bell::{Doorbells, GuestBell, HostBell};
use crate::counters::{PortCounters, PortSnapshot};
use crate::error::BridgeError;
use crate::filter::FilterConfig;
use crate::impair::ImpairConfig;
use crate::netlink::Netlink;
use crate::policy::Stop;
use crate::pump::{PumpEnd, PumpShared, ToGuest, ToHost};
pub use crate::session::PortState;
use crate::session::{Action, Session};
use crate::tap::{Tap, TapSource};

/// Control messages handled before other tasks get their turn.
const BUDGET_MESSAGES: usize = 16;
/// Lines of a guest that one port puts into the log per second.
const LOG_LINES_PER_SECOND: u32 = 10;

/// Everything a port needs besides the guest's memory.
#[derive(Debug)]
pub struct PortConfig {
    /// The port's name in logs and commands; unique on a bridge.
    pub name: String,
    /// Where its TAP comes from.
    pub tap: TapSource,
    /// What the guest is told. Its MTU is the most that this port allows.
    pub network: NetworkConfig,
    /// The Linux bridge to put the TAP into; default none.
    pub master: Option<String>,
    /// Addresses for the host's side of the TAP; default none.
    pub host_addresses: Vec<IpNet>,
    /// What the guest's frames are checked for.
    pub filter: FilterConfig,
    /// Fault injection from guest to host; default none.
    pub impair_to_host: ImpairConfig,
    /// Fault injection from host to guest; default none.
    pub impair_to_guest: ImpairConfig,
}

impl PortConfig {
    /// A port with a TAP of its own and nothing else.
    pub fn new(name: impl Into<String>, network: NetworkConfig) -> Self {
        Self {
            name: name.into(),
            tap: TapSource::Create { name: None },
            network,
            master: None,
            host_addresses: Vec::new(),
            filter: FilterConfig::default(),
            impair_to_host: ImpairConfig::default(),
            impair_to_guest: ImpairConfig::default(),
        }
    }
}

/// A change to a running port. What is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PortChange {
    /// Longest packet without the Ethernet header; never more than the guest
    /// can do.
    pub mtu: Option<u16>,
    /// Whether the link is up.
    pub carrier: Option<bool>,
    /// The guest's addresses, all of them.
    pub addresses: Option<Vec<IpNet>>,
    /// The default routers, all of them.
    pub gateways: Option<Vec<IpAddr>>,
    /// Fault injection from guest to host.
    pub impair_to_host: Option<ImpairConfig>,
    /// Fault injection from host to guest.
    pub impair_to_guest: Option<ImpairConfig>,
}

impl PortChange {
    fn touches_network(&self) -> bool {
        self.mtu.is_some()
            || self.carrier.is_some()
            || self.addresses.is_some()
            || self.gateways.is_some()
    }

    fn apply(&self, network: &mut NetworkConfig) -> Result<(), String> {
        let too_many = |_| "a guest has at most four addresses of each family".to_owned();
        if let Some(mtu) = self.mtu {
            network.mtu = mtu;
        }
        if let Some(carrier) = self.carrier {
            network.carrier = carrier;
        }
        if let Some(addresses) = &self.addresses {
            network.v4.clear();
            network.v6.clear();
            for net in addresses {
                match net {
                    IpNet::V4(net) => network
                        .v4
                        .push(Prefixed::new(net.addr(), net.prefix_len()))
                        .map_err(|_| too_many(()))?,
                    IpNet::V6(net) => network
                        .v6
                        .push(Prefixed::new(net.addr(), net.prefix_len()))
                        .map_err(|_| too_many(()))?,
                }
            }
        }
        if let Some(gateways) = &self.gateways {
            let first4 = |a: &IpAddr| match a {
                IpAddr::V4(a) => Some(*a),
                IpAddr::V6(_) => None,
            };
            let first6 = |a: &IpAddr| match a {
                IpAddr::V6(a) => Some(*a),
                IpAddr::V4(_) => None,
            };
            network.gateway4 = gateways.iter().find_map(first4);
            network.gateway6 = gateways.iter().find_map(first6);
        }
        Ok(())
    }
}

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
    /// The port's owner let go of it; the rings stay open.
    Detached,
    /// The TAP is gone or broken.
    Tap(String),
    /// Something the port needs from its environment failed.
    Failed(String),
}

impl std::fmt::Display for PortEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fault(fault) => write!(f, "cut off ({}): {fault}", fault.name()),
            Self::Closed => f.write_str("the guest closed the link"),
            Self::Detached => f.write_str("detached"),
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
            PumpEnd::Told(_) => Self::Detached,
        }
    }
}

/// What everybody may look at.
struct Shown {
    name: String,
    tap: String,
    born: Instant,
    counters: Arc<PortCounters>,
    view: Mutex<View>,
}

/// The part of the status that the session decides.
struct View {
    state: PortState,
    guest: String,
    network: NetworkConfig,
    impair_to_host: ImpairConfig,
    impair_to_guest: ImpairConfig,
}

/// What is asked of a port's task.
enum Command {
    /// An administrator changes something.
    Change {
        change: PortChange,
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// The owner lets go of the port.
    Stop,
}

/// A way to look at a port and to change it, for as long as it lives.
#[derive(Clone)]
pub struct PortHandle {
    shown: Arc<Shown>,
    commands: mpsc::Sender<Command>,
}

impl PortHandle {
    /// The port's name.
    pub fn name(&self) -> &str {
        &self.shown.name
    }

    /// The port as it is now.
    pub fn status(&self) -> PortStatus {
        let shown = &self.shown;
        let view = shown.view.lock().unwrap_or_else(PoisonError::into_inner);
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
        let gone = || "the port has ended".to_owned();
        self.commands
            .send(Command::Change { change, reply })
            .await
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

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
    pub(crate) async fn close(mut self) {
        let _ = self.handle.commands.send(Command::Stop).await;
        while self.task.join_next().await.is_some() {}
    }

    /// Makes the port's TAP, publishes the memory map in `region`, and starts
    /// to serve the guest.
    pub(crate) async fn open(
        netlink: &Netlink,
        region: Region,
        layout: Layout,
        doorbells: Doorbells,
        config: PortConfig,
    ) -> Result<Self, BridgeError> {
        let name = config.name.clone();
        let io = |doing: &str| {
            let doing = format!("{doing} of port {name}");
            move |error| BridgeError::io(doing, error)
        };
        let tap = prepare_tap(
            netlink,
            config.tap,
            &config.network,
            config.master.as_deref(),
            &config.host_addresses,
        )
        .await?;
        let host = HostEnd::resume(&region, &layout).map_err(|error| {
            BridgeError::io(
                format!("taking the rings of port {name}"),
                std::io::Error::other(error),
            )
        })?;
        let session = Session::new(
            config.network.clone(),
            config.filter,
            config.impair_to_host,
            config.impair_to_guest,
        )
        .map_err(|error| {
            BridgeError::io(
                format!("configuring port {name}"),
                std::io::Error::other(error),
            )
        })?;
        let bell =
            || HostBell::new(&doorbells.rung_by_guest).map_err(io("registering the doorbell"));
        let bells = (bell()?, bell()?, bell()?);
        let ring_guest = GuestBell::new(doorbells.ring_guest);
        // SAFETY: a Tap's descriptor is open as long as the Tap and never changes.
        let tap = unsafe { AsyncFd::register(tap) }.map_err(|refused| refused.into_parts().1);
        let tap = Arc::new(tap.map_err(io("registering the TAP"))?);
        let counters = Arc::new(PortCounters::default());
        let shared = PumpShared {
            tap: tap.clone(),
            counters: counters.clone(),
            policy: session.policy(),
            ring_guest: ring_guest.clone(),
        };
        let (impair_to_host, impair_to_guest) = session.impairments();
        let shown = Arc::new(Shown {
            name: config.name,
            tap: tap.get_ref().name().to_owned(),
            born: Instant::now(),
            counters,
            view: Mutex::new(View {
                state: session.state().clone(),
                guest: String::new(),
                network: config.network,
                impair_to_host,
                impair_to_guest,
            }),
        });
        let (commands, inbox) = mpsc::channel(16);
        let (end, ended) = watch::channel(None);
        let task = Task {
            session,
            control_rx: host.control_rx,
            control_tx: host.control_tx,
            bell: bells.0,
            ring_guest: ring_guest.clone(),
            tap,
            netlink: netlink.clone(),
            shown: shown.clone(),
            inbox,
            pending: Vec::new(),
            closed: false,
            log: LogLimit::new(),
        };
        let mut pumps = JoinSet::new();
        pumps.spawn(ToHost::new(host.frames_rx, bells.1, shared.clone()).run());
        pumps.spawn(ToGuest::new(host.frames_tx, bells.2, shared).run());
        // Everything is in its place: let the guest in, and wake one that waits.
        layout.publish(&region).map_err(|error| {
            BridgeError::io(
                format!("publishing the memory of port {name}"),
                std::io::Error::other(error),
            )
        })?;
        ring_guest.ring();
        let mut set = JoinSet::new();
        set.spawn(async move {
            let _memory = region;
            end.send_replace(Some(task.run(pumps).await));
        });
        Ok(Self {
            handle: PortHandle { shown, commands },
            ended,
            task: set,
        })
    }
}

/// Opens the TAP and sets everything about it that does not depend on the guest.
async fn prepare_tap(
    netlink: &Netlink,
    source: TapSource,
    network: &NetworkConfig,
    master: Option<&str>,
    host_addresses: &[IpNet],
) -> Result<Tap, BridgeError> {
    let tap = Tap::open(source)?;
    // A guest that is not there has no carrier. A descriptor from elsewhere may
    // refuse that; its owner looks after it.
    let carrier = tap.set_carrier(false);
    let Some(index) = tap.ifindex() else {
        return Ok(tap);
    };
    carrier.map_err(|error| {
        BridgeError::io(
            format!("switching off the carrier of {}", tap.name()),
            error,
        )
    })?;
    let _ = netlink.quiet_ipv6(index).await;
    netlink.set_mtu(index, network.mtu.into()).await?;
    if let Some(master) = master {
        netlink.set_master(index, master).await?;
    }
    for &address in host_addresses {
        match netlink.add_address(index, address).await {
            Err(error) if !error.is_already_there() => return Err(error.into()),
            _ => {}
        }
    }
    netlink.set_up(index).await?;
    Ok(tap)
}

/// A change that waits for the guest's answer.
struct Pending {
    serial: u32,
    reply: oneshot::Sender<Result<(), String>>,
}

/// The port's task.
struct Task {
    session: Session,
    control_rx: RecordReader,
    control_tx: RecordWriter,
    bell: HostBell,
    ring_guest: GuestBell,
    tap: Arc<AsyncFd<Tap>>,
    netlink: Netlink,
    shown: Arc<Shown>,
    inbox: mpsc::Receiver<Command>,
    pending: Vec<Pending>,
    /// The guest closed the control pipe.
    closed: bool,
    log: LogLimit,
}

impl Task {
    async fn run(mut self, mut pumps: JoinSet<PumpEnd>) -> PortEnd {
        let end = match self.serve(&mut pumps).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        let stop = match end {
            PortEnd::Detached => Stop::LeaveOpen,
            PortEnd::Fault(_) | PortEnd::Closed | PortEnd::Tap(_) | PortEnd::Failed(_) => Stop::Close,
        };
        self.session.end(end.to_string(), stop);
        while pumps.join_next().await.is_some() {}
        if stop == Stop::Close {
            let _ = self.control_rx.close().or(self.control_tx.close());
            // Whatever it waits for, the guest is to see that it is over.
            self.ring_guest.ring();
        }
        let _ = self.tap.get_ref().set_carrier(false);
        self.show();
        end
    }

    async fn serve(
        &mut self,
        pumps: &mut JoinSet<PumpEnd>,
    ) -> Result<std::convert::Infallible, PortEnd> {
        loop {
            let busy = self.exchange().await?;
            self.show();
            if busy {
                tokio::task::yield_now().await;
                continue;
            }
            if self.arm()? == Arm::Awake {
                continue;
            }
            let command = tokio::select! {
                () = self.bell.wait(), if !self.closed => None,
                Some(command) = self.inbox.recv() => Some(command),
                Some(end) = pumps.join_next() => return Err(match end {
                    Ok(end) => end.into(),
                    Err(error) => PortEnd::Failed(format!("a pump stopped: {error}")),
                }),
            };
            self.control_rx.disarm();
            self.control_tx.disarm();
            match command {
                None => {}
                Some(Command::Change { change, reply }) => self.handle_change(change, reply).await,
                Some(Command::Stop) => return Err(PortEnd::Detached),
            }
        }
    }

    /// Moves control messages both ways; `true` if there may be more.
    async fn exchange(&mut self) -> Result<bool, PortEnd> {
        let mut buf = [0; MAX_CONTROL_LEN];
        let mut busy = true;
        let mut wake = Wake::NotNeeded;
        for _ in 0..BUDGET_MESSAGES {
            wake = wake.or(self.transmit()?);
            if !self.session.wants_input() {
                // Answers first: the guest has to make room for them.
                busy = false;
                break;
            }
            let Some(len) = read_message(&mut self.control_rx, &mut buf)? else {
                busy = false;
                break;
            };
            for action in self.session.handle_message(&buf[..len])? {
                self.act(action).await;
            }
        }
        wake = wake.or(self.transmit()?).or(self.control_rx.publish());
        wake.ring(&self.ring_guest);
        Ok(busy)
    }

    fn transmit(&mut self) -> Result<Wake, PortEnd> {
        while let Some(message) = self.session.poll_transmit() {
            if !self.control_tx.write(message, OffloadHeader::NONE)? {
                break;
            }
            self.session.transmitted();
        }
        Ok(self.control_tx.publish())
    }

    /// Announces sleep until there is something to do for this task.
    fn arm(&mut self) -> Result<Arm, PortEnd> {
        if self.closed {
            return Ok(Arm::Sleep);
        }
        let wants_room = self.session.poll_transmit().is_some();
        let wants_input = self.session.wants_input();
        if wants_room && self.control_tx.arm(MAX_CONTROL_LEN)? == Arm::Awake {
            return self.awake();
        }
        if wants_input && self.control_rx.arm()? == Arm::Awake {
            self.control_tx.disarm();
            return self.awake();
        }
        Ok(Arm::Sleep)
    }

    /// Something happened: work, or the end of the control pipe. The frames that
    /// the guest sent before are still to be delivered, so the pumps end the
    /// port.
    fn awake(&mut self) -> Result<Arm, PortEnd> {
        self.closed = self.control_tx.is_peer_closed() || self.control_rx.is_finished()?;
        Ok(Arm::Awake)
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::SetTap { mtu, carrier } => {
                if let Some(index) = self.tap.get_ref().ifindex()
                    && let Err(error) = self.netlink.set_mtu(index, mtu.into()).await
                {
                    log::warn!("port {}: {error}", self.shown.name);
                }
                if let Err(error) = self.tap.get_ref().set_carrier(carrier) {
                    log::warn!(
                        "port {}: setting the carrier of {}: {error}",
                        self.shown.name,
                        self.shown.tap
                    );
                }
            }
            Action::Answered { serial, result } => {
                // An answer covers the changes that were folded into it.
                let (answered, open) = self
                    .pending
                    .drain(..)
                    .partition(|p: &Pending| p.serial <= serial);
                self.pending = open;
                for pending in answered {
                    let _ = pending.reply.send(result.clone());
                }
            }
            Action::Log { level, text } => {
                if self.log.allows(Instant::now()) {
                    log::log!(level, "port {}: {text}", self.shown.name);
                }
            }
        }
    }

    async fn handle_change(
        &mut self,
        change: PortChange,
        reply: oneshot::Sender<Result<(), String>>,
    ) {
        self.session.set_impairments(
            change.impair_to_host.clone(),
            change.impair_to_guest.clone(),
        );
        if !change.touches_network() {
            self.show();
            let _ = reply.send(Ok(()));
            return;
        }
        let mut trial = Ok(());
        let updated = self.session.update(|network| trial = change.apply(network));
        let serial = match (trial, updated) {
            (Err(why), _) => {
                let _ = reply.send(Err(why));
                return;
            }
            (Ok(()), Err(error)) => {
                let _ = reply.send(Err(error.to_string()));
                return;
            }
            (Ok(()), Ok(serial)) => serial,
        };
        match self
            .session
            .agreed()
            .map(|agreed| (agreed.mtu, agreed.carrier))
        {
            // Nobody to ask: the next guest is told.
            None => {
                let _ = reply.send(Ok(()));
            }
            Some((mtu, carrier)) => {
                // The carrier goes at once; a guest that was cut off cannot be
                // asked through frames, but the control pipe still works. A
                // larger MTU waits for the guest, a smaller one does not.
                let mtu = mtu.min(self.shown_mtu());
                self.act(Action::SetTap { mtu, carrier }).await;
                self.pending.push(Pending { serial, reply });
            }
        }
        self.show();
    }

    fn shown_mtu(&self) -> u16 {
        self.shown
            .view
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .network
            .mtu
    }

    /// Brings the status up to date.
    fn show(&self) {
        let mut view = self
            .shown
            .view
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        view.state = self.session.state().clone();
        view.guest = self.session.guest_name();
        if let Some(agreed) = self.session.agreed()
            && (view.network.serial != agreed.serial || view.network.mtu != agreed.mtu)
        {
            view.network = agreed.clone();
        }
        (view.impair_to_host, view.impair_to_guest) = self.session.impairments();
    }
}

/// A guest may write to the log, but not flood it.
struct LogLimit {
    window: Instant,
    lines: u32,
}

impl LogLimit {
    fn new() -> Self {
        Self {
            window: Instant::now(),
            lines: 0,
        }
    }

    fn allows(&mut self, now: Instant) -> bool {
        if now.duration_since(self.window).as_secs() >= 1 {
            *self = Self {
                window: now,
                lines: 0,
            };
        }
        self.lines += 1;
        self.lines <= LOG_LINES_PER_SECOND
    }
}
