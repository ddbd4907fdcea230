//! The half of a port that does not depend on how frames travel: the TAP, the
//! session, and what an administrator asks.
//!
//! Each transport's task owns one. It carries the session's messages and moves
//! the frames; what they mean for the TAP, the status and those who wait for an
//! answer is decided and done here. Nothing here touches a transport.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use super::config::{PortChange, PortConfig};
use super::status::{Command, PortEnd, PortHandle, Shown, View};
use super::tap::{keep_in_bridge, set_mtu};
use crate::counters::PortCounters;
use crate::error::BridgeError;
use crate::limit::{LimitConfig, Limiter, Limits};
use crate::log_limit::PortLog;
use crate::netlink::Netlink;
use crate::policy::Stop;
use crate::pump::PumpShared;
use crate::session::{Action, Session, TapSettings};
use crate::store::Record;
use crate::tap::Tap;

/// Lines of a guest that one port puts into the log per second.
pub(crate) const LOG_LINES_PER_SECOND: u32 = 10;
/// Control messages of a guest that are taken per second, after a burst of as many as
/// a guest in order never sends: a greeting takes two, a change one, and a program may
/// report and ping. A message costs the daemon some microseconds.
pub(super) const MESSAGES: LimitConfig = LimitConfig::frames(1000);
/// Commands that wait for the port's task; whoever sends more waits as well.
const INBOX_LEN: usize = 16;
/// How long a guest waits at the most for its TAP's queue to start. It takes
/// the kernel well under a millisecond, unless the machine is very busy: it gives
/// itself a second.
const QUEUE_PATIENCE: Duration = Duration::from_secs(1);

/// A change that waits for the guest's answer.
struct Pending {
    serial: u32,
    change: Box<PortChange>,
    reply: oneshot::Sender<Result<(), String>>,
}

/// What every port's task has, whatever carries its frames.
pub(super) struct Core {
    pub(super) session: Session,
    /// What is asked of the task; [`handle_command`](Self::handle_command) does it.
    pub(super) inbox: mpsc::Receiver<Command>,
    tap: Arc<AsyncFd<Tap>>,
    /// The Linux bridge that the TAP is to be a port of.
    master: Option<String>,
    /// The only Ethernet address behind the TAP, where the filter sees to that and the TAP
    /// is ours to set up.
    alone: Option<[u8; 6]>,
    netlink: Netlink,
    record: Option<Record>,
    shown: Arc<Shown>,
    pending: Vec<Pending>,
    log: PortLog,
    messages: Limiter,
    /// The guest was told of in the log for its messages.
    warned: bool,
}

impl Core {
    /// Makes the port's TAP and its session.
    pub(super) async fn open(
        netlink: &Netlink,
        config: PortConfig,
        tap: Tap,
    ) -> Result<(Self, PortHandle), BridgeError> {
        let name = config.name;
        let capable = tap.capable();
        let alone = config.filter.enabled && !tap.is_persistent();
        let alone = alone.then_some(config.network.mac);
        let log = config
            .log
            .unwrap_or_else(|| PortLog::new(&name, LOG_LINES_PER_SECOND));
        let mut session = Session::new(
            config.network.clone(),
            capable,
            config.filter,
            config.limits,
            config.impair_to_host,
            config.impair_to_guest,
        )
        .map_err(|error| {
            let error = std::io::Error::other(error);
            BridgeError::io(format!("configuring port {name}"), error)
        })?;
        if let Some(record) = &config.record {
            // What held for this guest when the process before this one ended.
            let change = record.change();
            change_session(&mut session, &change).map_err(|why| {
                let doing = format!("changing port {name} as before");
                BridgeError::io(doing, std::io::Error::other(why))
            })?;
        }
        // SAFETY: a Tap's descriptor is open as long as the Tap and never changes.
        let tap = unsafe { AsyncFd::register(tap) }.map_err(|refused| {
            let error = refused.into_parts().1;
            BridgeError::io(format!("registering the TAP of port {name}"), error)
        })?;
        let (impair_to_host, impair_to_guest) = session.impairments();
        let tap = Arc::new(tap);
        let shown = Arc::new(Shown {
            name,
            tap: tap.get_ref().name().to_owned(),
            tap_itself: Arc::downgrade(&tap),
            born: Instant::now(),
            counters: Arc::new(PortCounters::default()),
            view: Mutex::new(View {
                state: session.state().clone(),
                guest: String::new(),
                network: session.offered().clone(),
                limits: session.limits(),
                impair_to_host,
                impair_to_guest,
            }),
        });
        let (commands, inbox) = mpsc::channel(INBOX_LEN);
        let core = Self {
            session,
            inbox,
            tap,
            master: config.master,
            alone,
            netlink: netlink.clone(),
            record: config.record,
            shown: shown.clone(),
            pending: Vec::new(),
            log,
            messages: Limiter::new(MESSAGES),
            warned: false,
        };
        Ok((core, PortHandle { shown, commands }))
    }

    pub(super) fn name(&self) -> &str {
        &self.shown.name
    }

    /// What the port's pumps need of it.
    pub(super) fn pump_shared(&self) -> PumpShared {
        PumpShared {
            tap: self.tap.clone(),
            counters: self.shown.counters.clone(),
            policy: self.session.policy(),
        }
    }

    /// Until when the guest's messages wait because there were too many.
    pub(super) fn message_pause(&self) -> Option<Instant> {
        self.messages.pause(Instant::now())
    }

    /// Whether a message of the guest may be taken now.
    pub(super) fn takes_message(&mut self) -> bool {
        let paused = self.message_pause().is_some();
        if paused && !self.warned {
            self.warned = true;
            log::warn!(
                "port {}: the guest sends more control messages than are taken: they wait",
                self.shown.name
            );
        }
        !paused && self.session.wants_input()
    }

    /// Keeps the TAP in its bridge for as long as the port lives.
    pub(super) fn keeper(&self) -> impl Future<Output = Infallible> + Send + use<> {
        let netlink = self.netlink.clone();
        let (port, tap) = (self.shown.name.clone(), self.shown.tap.clone());
        let kept = self.master.clone().zip(self.tap.get_ref().ifindex());
        let alone = self.alone;
        async move {
            match kept {
                Some((master, index)) => {
                    keep_in_bridge(&netlink, &port, (&tap, index), (&master, alone)).await
                }
                None => std::future::pending().await,
            }
        }
    }

    /// Takes one message of the guest and does what follows from it.
    pub(super) async fn handle_message(&mut self, message: &[u8]) -> Result<(), PortEnd> {
        self.messages.charge(Instant::now(), 0);
        for action in self.session.handle_message(message)? {
            self.act(action).await;
        }
        Ok(())
    }

    /// Does what was asked, or ends the port.
    pub(super) async fn handle_command(&mut self, command: Command) -> Result<(), PortEnd> {
        match command {
            Command::Change { change, reply } => self.handle_change(*change, reply).await,
            Command::Stop => return Err(PortEnd::Detached),
            Command::Leave => return Err(PortEnd::Left),
        }
        Ok(())
    }

    /// Ends the session; the pumps learn of it by their policy. Says how the
    /// transport is to be left.
    pub(super) fn end(&mut self, end: &PortEnd) -> Stop {
        let stop = end.stop();
        self.session.end(end.to_string(), stop);
        stop
    }

    /// The last thing a port does.
    pub(super) fn finish(&self, end: &PortEnd) {
        if *end != PortEnd::Left {
            // A TAP that is gone has no carrier either.
            let _ = self.tap.get_ref().set_carrier(false);
        }
        self.show();
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::SetTap(settings) => self.set_tap(settings).await,
            Action::Open => self.session.open(),
            Action::Answered { serial, result } => {
                // An answer covers the changes that were folded into it.
                let (answered, open) = self
                    .pending
                    .drain(..)
                    .partition(|p: &Pending| p.serial <= serial);
                self.pending = open;
                for pending in answered {
                    if result.is_ok() {
                        self.note(&pending.change);
                    }
                    let _ = pending.reply.send(result.clone());
                }
            }
            Action::Log { level, text } => {
                self.log.log(level, text);
            }
        }
    }

    async fn handle_change(
        &mut self,
        change: PortChange,
        reply: oneshot::Sender<Result<(), String>>,
    ) {
        let serial = match change_session(&mut self.session, &change) {
            Ok(Some(serial)) => serial,
            Ok(None) => {
                self.note(&change);
                self.show();
                let _ = reply.send(Ok(()));
                return;
            }
            Err(why) => {
                let _ = reply.send(Err(why));
                return;
            }
        };
        match self.session.agreed_tap() {
            // Nobody to ask: the next guest is told.
            None => {
                self.note(&change);
                let _ = reply.send(Ok(()));
            }
            Some(mut settings) => {
                // The carrier goes at once; a guest that was cut off cannot be
                // asked through frames, but the control pipe still works. A
                // larger MTU waits for the guest, a smaller one does not.
                settings.mtu = settings.mtu.min(self.shown_mtu());
                self.set_tap(settings).await;
                let change = Box::new(change);
                self.pending.push(Pending {
                    serial,
                    change,
                    reply,
                });
            }
        }
        self.show();
    }

    /// Notes a change that holds, for the process after this one.
    fn note(&self, change: &PortChange) {
        if let Some(record) = &self.record
            && let Err(error) = record.note(change)
        {
            let name = &self.shown.name;
            log::warn!("port {name}: a change will not outlive this process: {error}");
        }
    }

    /// Sets what the kernel is to know of the link. Trouble is logged: the link
    /// works all the same, or its pumps find out.
    async fn set_tap(&self, settings: TapSettings) {
        let tap = self.tap.get_ref();
        let warn = |doing: &str, error: &dyn std::fmt::Display| {
            log::warn!(
                "port {}: {doing} of {}: {error}",
                self.shown.name,
                tap.name()
            );
        };
        if let Err(error) = tap.set_offloads(settings.offloads) {
            warn("setting the offloads", &error);
        }
        if let Some(index) = tap.ifindex()
            && let Err(error) = set_mtu(&self.netlink, tap.name(), index, settings.mtu).await
        {
            warn("setting the MTU", &error);
        }
        if let Err(error) = tap.set_carrier(settings.carrier) {
            warn("setting the carrier", &error);
        }
        // Frames flow only afterwards: the first ones, and the answers to them, are
        // not to be lost on a queue that is not there yet.
        if settings.carrier && tap.ifindex().is_some() {
            match self.netlink.wait_running(tap.name(), QUEUE_PATIENCE).await {
                Ok(true) => {}
                Ok(false) => log::debug!(
                    "port {}: {} is not running yet",
                    self.shown.name,
                    tap.name()
                ),
                Err(error) => warn("waiting for the queue", &error),
            }
        }
    }

    fn shown_mtu(&self) -> u16 {
        self.shown.view().network.mtu
    }

    /// Brings the status up to date.
    pub(super) fn show(&self) {
        let mut view = self.shown.view();
        view.state = self.session.state().clone();
        view.guest = self.session.guest_name();
        if let Some(agreed) = self.session.agreed()
            && (view.network.serial != agreed.serial || view.network.mtu != agreed.mtu)
        {
            view.network = agreed.clone();
        }
        view.limits = self.session.limits();
        (view.impair_to_host, view.impair_to_guest) = self.session.impairments();
    }
}

/// Changes what the guest is to have, and what its frames meet; all or nothing. Says the
/// serial that the guest is to acknowledge, if it is to.
fn change_session(session: &mut Session, change: &PortChange) -> Result<Option<u32>, String> {
    let serial = session.update(
        |network| change.apply(network),
        change.impair_to_host.clone(),
        change.impair_to_guest.clone(),
    )?;
    let before = session.limits();
    session.set_limits(Limits {
        to_host: change.limit_to_host.unwrap_or(before.to_host),
        to_guest: change.limit_to_guest.unwrap_or(before.to_guest),
    });
    Ok(serial)
}
