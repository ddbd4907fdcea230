//! The stack on a link, and its hot loop.
//!
//! ```text
//!   poll(now):  control ─► frames in (≤ budget) ─► callbacks ─► timers, dirty slots (≤ budget) ─► flush
//!                              │ each: handlers → one socket      │ each: one socket sends
//! ```
//! [`Stack::poll`] does a bounded amount of work, never waits, and says what to
//! do next. Whoever calls it keeps the time and does the sleeping.

use shm_link::fault::LinkError;
use shm_link::link::{FrameRx, FrameTx, Link};
use smoltcp::time::Instant;

use crate::config::{NetConfig, StackConfig};
use crate::context::Context;
use crate::control::Control;
use crate::egress::Turn;
use crate::error::ConfigError;
use crate::flow::Handle;
use crate::sockets::Sockets;
use crate::tcp::TcpStreamId;
use crate::tcp::options::TcpOptions;
use crate::timers::earlier;
use crate::udp::UdpId;

/// What to do after a [`Stack::poll`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Poll {
    /// Poll again at this time at the latest. `None`: only when the link rings.
    pub deadline: Option<Instant>,
    /// There is more to do now: poll again without sleeping.
    pub more_work: bool,
    /// Frames were received.
    pub received: bool,
    /// Somebody wants to send and the link has no room: [`Stack::arm`] asks to
    /// be rung when there is.
    pub wants_room: bool,
    /// Why the link cannot go on, from the first poll that found out until
    /// [`Stack::replace_link`]. The stack behaves as on an unplugged cable.
    pub link_error: Option<LinkError>,
}

/// A TCP/IP stack on a link.
pub struct Stack<L: Link> {
    link: L,
    sockets: Sockets,
    control: Option<Control>,
    generation: u32,
    deadline: Option<Instant>,
    application_deadline: Option<Instant>,
    wants_room: bool,
    /// Frames wait, because there is no room for their answers.
    frames_wait: bool,
}

impl<L: Link> Stack<L> {
    /// A stack with a fixed configuration, which does not listen to the link's
    /// control messages.
    ///
    /// # Errors
    /// [`ConfigError`] when `net` makes no sense.
    pub fn new(
        mut link: L,
        config: StackConfig,
        net: NetConfig,
        now: Instant,
    ) -> Result<Self, ConfigError> {
        let sockets = Sockets::new(config, net, link.split().1.max_frame_len(), now)?;
        Ok(Self::with(link, sockets, None))
    }

    /// A stack that asks the other side of the link for its configuration and
    /// follows its changes. Until it has one its carrier is off, and frames are
    /// not looked at.
    pub fn with_control(mut link: L, config: StackConfig, control: Control, now: Instant) -> Self {
        let mut net = NetConfig::new([2, 0, 0, 0, 0, 0]);
        net.carrier = false;
        // Whatever `config` says: only a configuration's MAC, MTU, addresses and routers
        // can be wrong, and this one has a good MAC, the default MTU and nothing else.
        let sockets = Sockets::new(config, net, link.split().1.max_frame_len(), now);
        let sockets = sockets.unwrap_or_else(|_| unreachable!("an empty configuration is valid"));
        Self::with(link, sockets, Some(control))
    }

    fn with(link: L, sockets: Sockets, control: Option<Control>) -> Self {
        let generation = link.generation();
        Self {
            link,
            sockets,
            control,
            generation,
            deadline: None,
            application_deadline: None,
            wants_room: false,
            frames_wait: false,
        }
    }

    /// Takes frames in, runs what they and the time set off, and sends what can
    /// be sent.
    #[must_use]
    pub fn poll(&mut self, now: Instant) -> Poll {
        self.poll_control(now);
        let (rx, tx) = self.link.split();
        let sockets = &mut self.sockets;
        let budget = sockets.config.budget.max(1);
        let mut more_work = false;
        sockets.io.paths.expire(now);
        sockets.io.datagram_paths.expire(now);
        sockets.io.blocked = false;
        let mut blocked = false;
        self.frames_wait = false;

        let mut taken = 0;
        while sockets.io.link_error.is_none() {
            if taken == budget {
                more_work = true;
                break;
            }
            match rx.peek() {
                Ok(None) => break,
                Ok(Some((offload, frame))) => {
                    // Without room for an answer the frame stays where it is,
                    // and the other side waits: nothing is lost.
                    if !sockets.finish_fragments(now, tx) || !sockets.room_for_answer(tx) {
                        blocked = true;
                        self.frames_wait = true;
                        break;
                    }
                    sockets.receive(now, offload, frame, tx);
                    rx.consume();
                    taken += 1;
                }
                Err(error) => sockets.io.link_error = Some(error),
            }
        }
        rx.flush();
        // Once for all frames: anybody can send many.
        if core::mem::take(&mut sockets.neighbour_spoke) {
            sockets.table.mark_waiting();
        }

        sockets.poll_autoconf(now, tx);
        sockets.call_stream_handlers(now, budget, tx);
        for _ in 0..budget {
            let Some(index) = sockets.table.next_expired(now) else {
                break;
            };
            sockets.deadline_came(index, now, tx);
        }

        blocked |= !sockets.finish_fragments(now, tx);
        // Each dirty slot gets a turn; those that are not done line up again.
        let mut sent = sockets.io.frames;
        let stop = sent + budget as u64;
        let mut turns = sockets.table.dirty_len().min(budget);
        while turns > 0 && sent < stop && !blocked {
            let Some(index) = sockets.table.next_dirty() else {
                break;
            };
            blocked = sockets.serve(index, now, tx) == Turn::Blocked;
            sent = sockets.io.frames;
            turns -= 1;
        }
        if !blocked
            && (sockets.application_dirty
                || earlier(self.application_deadline, sockets.groups_at)
                    .is_some_and(|at| at <= now))
        {
            sockets.io.blocked = false;
            self.application_deadline = sockets.serve_application(now, tx);
            blocked = sockets.io.blocked;
        }
        sockets.poll_autoconf(now, tx);
        tx.flush();

        self.wants_room = blocked;
        more_work |= !blocked && (sockets.table.any_dirty() || !sockets.notices.is_empty());
        let timers = earlier(sockets.table.deadline(), sockets.autoconf.deadline());
        let others = earlier(self.application_deadline, sockets.groups_at);
        // On a link that has ended nobody is asked.
        let control = self.control.as_ref();
        let control = control.filter(|_| sockets.io.link_error.is_none());
        let asked = control.and_then(Control::deadline);
        // What cannot be said without room waits for that, and for no time.
        let others = others.filter(|at| !blocked || *at > now);
        self.deadline = earlier(asked, earlier(timers, others));
        more_work |= !blocked && self.deadline.is_some_and(|at| at <= now);
        self.status(more_work, taken > 0)
    }

    /// What is to be done after something was done without a poll.
    pub(crate) fn due(&self) -> Poll {
        self.status(self.sockets.table.any_dirty(), false)
    }

    fn status(&self, more_work: bool, received: bool) -> Poll {
        Poll {
            deadline: self.deadline,
            more_work,
            received,
            wants_room: self.wants_room,
            link_error: self.link_error(),
        }
    }

    /// Announces that the caller is about to sleep until the link rings or the
    /// deadline of the last poll comes. `false`: something has happened since,
    /// poll instead.
    pub fn arm(&mut self) -> bool {
        if self.sockets.io.link_error.is_some() {
            return true;
        }
        let room = self.wants_room.then(|| self.sockets.io.max_frame_len());
        let room = room.map(|len| len.min(self.link.split().1.max_frame_len()));
        // Frames that wait for room must not keep it awake: in a crowd the host is
        // what has to run now, and whoever looks again and again takes its time.
        let asleep = match room {
            Some(room) if self.frames_wait => self.link.arm_for_room(room),
            room => self.link.arm(room),
        };
        match asleep {
            // A host that was restarted on a serial line greets and waits for our hello.
            Ok(true) if self.host_is_new() => {
                self.link.disarm();
                false
            }
            Ok(asleep) => asleep,
            Err(error) => {
                self.sockets.io.link_error = Some(error);
                false
            }
        }
    }

    /// Takes the announcement back after sleeping.
    pub fn disarm(&mut self) {
        if self.sockets.io.link_error.is_none() {
            self.link.disarm();
        }
    }

    /// Lets one stream send now what was written to it, without waiting for the
    /// next poll. Says what the next deadline is, as [`poll`](Self::poll) does.
    pub fn push(&mut self, stream: TcpStreamId, now: Instant) -> Poll {
        self.push_slot(stream.0, now)
    }

    /// Lets one UDP socket send now what it queued; as [`push`](Self::push).
    pub fn push_udp(&mut self, socket: UdpId, now: Instant) -> Poll {
        self.push_slot(socket.0, now)
    }

    fn push_slot(&mut self, slot: Handle, now: Instant) -> Poll {
        let (_, tx) = self.link.split();
        let mut more_work = false;
        // A read that found nothing, say, leaves nothing to be sent.
        let table = &mut self.sockets.table;
        if table.named(slot).is_some() && table.is_dirty(slot.index) {
            self.sockets.table.unmark_last(slot.index);
            match self.sockets.serve(slot.index, now, tx) {
                Turn::Done => {}
                Turn::More => more_work = true,
                Turn::Blocked => self.wants_room = true,
            }
            tx.flush();
        }
        more_work |= !self.sockets.notices.is_empty();
        self.deadline = earlier(self.deadline, self.sockets.table.deadline());
        self.status(more_work, false)
    }

    /// Why the link cannot go on, if it cannot; also in every [`Poll`].
    pub fn link_error(&self) -> Option<LinkError> {
        self.sockets.io.link_error
    }

    /// Options of streams for which nothing else is said.
    pub fn default_tcp_options(&self) -> TcpOptions {
        self.sockets.config.tcp
    }

    /// The sockets. Poll again after using them: what was written or closed has
    /// yet to be sent, and the deadline may be another.
    pub fn sockets(&mut self) -> &mut Sockets {
        &mut self.sockets
    }

    /// The link.
    pub fn link(&mut self) -> &mut L {
        &mut self.link
    }

    /// The conversation with the other side, if this stack holds one.
    pub fn control(&mut self) -> Option<&mut Control> {
        self.control.as_mut()
    }

    /// How far the conversation with the other side is, and what came of it.
    pub fn conversation(&self) -> Option<&Control> {
        self.control.as_ref()
    }

    /// Applies a configuration to the running stack. Sockets stay, but for
    /// streams whose address is gone.
    ///
    /// # Errors
    /// [`ConfigError`]; nothing was changed then.
    pub fn configure(&mut self, net: NetConfig, now: Instant) -> Result<(), ConfigError> {
        self.sockets.configure(net, now)
    }

    /// Puts another link under the running stack and gives the old one back.
    /// Sockets stay; control begins anew.
    pub fn replace_link(&mut self, link: L, now: Instant) -> L {
        let old = core::mem::replace(&mut self.link, link);
        self.sockets.io.link_error = None;
        self.sockets.link_frame_len = self.link.split().1.max_frame_len();
        if self.control.is_some() {
            self.sockets.expect_no_offloads();
        }
        self.sockets.rebuild(now);
        self.generation = self.link.generation();
        if let Some(control) = &mut self.control {
            control.restart();
        }
        self.sockets.link_is_back(now);
        for index in self.sockets.table.occupied() {
            self.sockets.table.mark(index);
        }
        self.sockets.application_dirty = true;
        old
    }

    /// Whether the link has another host than the one that was last spoken with.
    fn host_is_new(&self) -> bool {
        self.control.is_some() && self.link.generation() != self.generation
    }

    fn poll_control(&mut self, now: Instant) {
        let is_new = self.host_is_new();
        let Some(control) = &mut self.control else {
            return;
        };
        if is_new {
            self.generation = self.link.generation();
            control.restart();
            if self.sockets.expect_no_offloads() {
                self.sockets.rebuild(now);
            }
        }
        if self.sockets.io.link_error.is_none()
            && let Err(error) = control.poll(&mut self.link, &mut self.sockets, now)
        {
            self.sockets.io.link_error = Some(error);
            self.link.close();
        }
    }
}

impl Sockets {
    fn room_for_answer(&mut self, tx: &mut dyn FrameTx) -> bool {
        let len = self.answer_len();
        let mut wire = crate::device::Wire {
            tx,
            state: &mut self.io,
        };
        wire.room(len)
    }

    /// Calls the handlers of streams on which something happened.
    fn call_stream_handlers(&mut self, now: Instant, budget: usize, tx: &mut dyn FrameTx) {
        for _ in 0..self.notices.len().min(budget) {
            let Some(stream) = self.notices.pop_front() else {
                return;
            };
            let Some(readiness) = self.noticed(stream) else {
                self.registry.streams.remove(stream);
                continue;
            };
            let Some(mut running) = self.registry.streams.start(stream) else {
                continue;
            };
            let mut context = Context {
                sockets: self,
                tx: &mut *tx,
                now,
                source: None,
            };
            (running.handler)(&mut context, stream, readiness);
            self.registry.streams.finish(running);
        }
    }
}
