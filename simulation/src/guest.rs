//! A guest: a stack on its end of the shared memory, and its applications.
//!
//! [`Guest::step`] is the loop that drives any stack: poll, let the applications
//! work, arm, sleep. It sleeps only where the link says so.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use guest_stack::config::StackConfig;
use guest_stack::control::{Control, offer};
use guest_stack::error::StreamError;
use guest_stack::tcp::TcpListenerId;
use guest_stack::tcp::options::TcpOptions;
use guest_stack::time::Duration;
use shm_link::doorbell::Doorbell;
use shm_link::fault::LinkError;
use shm_link::offload::Offloads;

use crate::clock::{Clock, MILLISECOND, NEVER, Nanos, SECOND};
use crate::connection::{CLIENT, Connection, End, Outcome, SERVER, Stepped, Wrong};
use crate::datagrams::{Datagrams, Exchange};
use crate::hostile;
use crate::machine::{self, Cable, Machine};
use crate::random::Random;
use crate::scenario::{Addresses, GuestPlan};

/// The port that every guest serves.
pub(crate) const PORT: u16 = 7000;

/// Counts rings; the world carries them to the other side.
#[derive(Clone, Default)]
pub(crate) struct Bell(Arc<AtomicU64>);

impl Bell {
    /// Whether it was rung since the last call.
    pub(crate) fn take(&self) -> bool {
        // ORDERING: one thread.
        self.0.swap(0, Ordering::Relaxed) != 0
    }

    pub(crate) fn ring_once(&self) {
        // ORDERING: one thread.
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Doorbell for Bell {
    fn ring(&self) {
        self.ring_once();
    }
}

/// What a guest does after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Again,
    SleepUntil(Nanos),
}

/// A guest.
pub(crate) struct Guest {
    index: usize,
    stack: Box<dyn Machine>,
    listener: TcpListenerId,
    ends: Vec<End>,
    datagrams: Datagrams,
    cable: Cable,
    asleep: bool,
    link_error: Option<LinkError>,
    connecting: bool,
    /// It has a DHCP client.
    leases: bool,
    hostile: Option<Random>,
    /// What a hostile guest will still do.
    misdeeds: u32,
    mac: [u8; 6],
    frames: u64,
}

/// What a step took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Work {
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
}

impl Guest {
    /// A guest that attaches to `cable` and begins to negotiate.
    pub(crate) fn new(
        index: usize,
        plan: &GuestPlan,
        (seed, session): (u64, u32),
        cable: Cable,
        clock: &Clock,
    ) -> Result<Self, String> {
        let mut random = Random::new(seed, u64::from(session));
        let mut config = StackConfig::new([random.next_u64(), random.next_u64()]);
        config.budget = plan.budget;
        // Networks as bad as these take longer than the defaults allow; nobody is to be
        // reset because of that.
        config.limits.half_open_timeout = Duration::from_secs(300);
        config.limits.orphan_timeout = Duration::from_secs(1200);
        let mut offer = offer(session, "simulated");
        if !plan.its_offloads {
            (offer.can_receive, offer.can_send) = (Offloads::NONE, Offloads::NONE);
        }
        let control = Control::new(offer);
        let mut stack = machine::boot(&cable, config, control, clock.guest())?;
        let options = options(plan.buffers, plan.nodelay);
        let listener = stack
            .sockets()
            .tcp_listen(PORT, plan.backlog, options)
            .map_err(|error| error.to_string())?;
        let datagrams = Datagrams::new(stack.sockets())?;
        Ok(Self {
            index,
            datagrams,
            stack,
            listener,
            ends: Vec::new(),
            cable,
            asleep: false,
            link_error: None,
            connecting: false,
            leases: plan.lease.is_some(),
            hostile: plan
                .hostile
                .then(|| Random::new(seed, 1000 + u64::from(session))),
            misdeeds: 1000,
            mac: plan.mac(),
            frames: 0,
        })
    }

    pub(crate) fn cable(&self) -> &Cable {
        &self.cable
    }

    /// Whether it wakes up when it is rung.
    pub(crate) fn is_woken(&mut self) -> bool {
        !self.asleep || self.stack.is_woken(&self.cable)
    }

    /// Why the link cannot go on, if it cannot.
    pub(crate) fn link_error(&self) -> Option<LinkError> {
        self.link_error
    }

    /// Whether it has just found that its link has ended.
    pub(crate) fn begins_to_connect(&mut self) -> bool {
        self.link_error.is_some() && !std::mem::replace(&mut self.connecting, true)
    }

    /// Puts another cable under the running stack.
    pub(crate) fn replace(&mut self, cable: Cable, clock: &Clock) -> Result<(), String> {
        self.stack.replace(&cable, clock.guest())?;
        self.cable = cable;
        self.connecting = false;
        self.asleep = false;
        self.link_error = None;
        Ok(())
    }

    /// Runs the stack and its applications once.
    pub(crate) fn step(
        &mut self,
        (connections, exchanges): (&mut [Connection], &mut [Exchange]),
        starts: &mut [(Nanos, usize)],
        addresses: &[Addresses],
        clock: &Clock,
    ) -> Result<(Next, Work), Wrong> {
        let now = clock.now();
        if std::mem::take(&mut self.asleep) {
            self.stack.disarm();
        }
        let poll = self.stack.poll(clock.guest());
        if let Some(error) = poll.link_error {
            self.link_error.get_or_insert(error);
        }
        let read_before: u64 = connections.iter().map(|c| c.read[0] + c.read[1]).sum();
        let mut moved = self.connect(connections, starts, addresses, clock);
        moved |= self.accept();
        moved |= self.step_ends(connections, now)?;
        let sockets = self.stack.sockets();
        moved |= self
            .datagrams
            .step(sockets, self.index, exchanges, addresses, now)?;
        let read_after: u64 = connections.iter().map(|c| c.read[0] + c.read[1]).sum();
        if self.misdeeds > 0 {
            self.misbehave();
        }
        let counters = self.stack.sockets().counters();
        let frames = counters.rx_frames + counters.tx_frames;
        let work = Work {
            frames: frames - std::mem::replace(&mut self.frames, frames),
            bytes: read_after - read_before,
        };
        if moved || poll.more_work || !self.stack.arm() {
            return Ok((Next::Again, work));
        }
        self.asleep = true;
        let deadline = poll.deadline.map_or(NEVER, Clock::of_guest);
        let ends = self.ends.iter().filter_map(End::due).min().unwrap_or(NEVER);
        let start = starts.iter().map(|start| start.0).min().unwrap_or(NEVER);
        let doom = self
            .ends
            .iter()
            .filter_map(|end| connections[end.id?].doomed)
            .min();
        let mut until = deadline.min(ends).min(start).min(doom.unwrap_or(NEVER));
        until = until.min(Datagrams::due(self.index, exchanges));
        if self.hostile.is_some() && self.misdeeds > 0 {
            until = until.min(now + MILLISECOND);
        }
        Ok((Next::SleepUntil(until), work))
    }

    /// Begins the connections that are due; one that cannot be begun yet is put off.
    fn connect(
        &mut self,
        connections: &mut [Connection],
        starts: &mut [(Nanos, usize)],
        addresses: &[Addresses],
        clock: &Clock,
    ) -> bool {
        let now = clock.now();
        let mut moved = false;
        for (at, id) in starts.iter_mut().filter(|(at, _)| *at <= now) {
            let connection = &mut connections[*id];
            let plan = &connection.plan;
            let there = addresses[plan.guests[SERVER]];
            let remote = SocketAddr::new(there.of(plan.v6), PORT);
            let mut options = options(plan.buffers, plan.nodelay);
            if *id % 4 == 3 {
                options.keep_alive = Some(Duration::from_secs(30));
                // Nobody is away for longer.
                options.user_timeout = Some(Duration::from_secs(2 * 3600));
            }
            match self
                .stack
                .sockets()
                .tcp_connect(clock.guest(), remote, options)
            {
                Ok(stream) => {
                    *at = NEVER;
                    moved = true;
                    if let Ok(local) = self.stack.sockets().tcp_local_addr(stream) {
                        connection.port = local.port();
                        connection.addresses = Some((local.ip(), remote.ip()));
                        if local.ip() != addresses[self.index].of(connection.plan.v6) {
                            // It was told to use another, and has not heard of it yet.
                            connection.doom(now + 2 * SECOND);
                        }
                    }
                    self.ends.push(End::new(stream, CLIENT, Some(*id)));
                }
                // No configuration yet, or no address of this family.
                Err(StreamError::Unreachable) => *at = now + 10 * MILLISECOND,
                Err(error) => {
                    *at = NEVER;
                    connection.outcomes[CLIENT] = Some(Outcome::Failed(error));
                }
            }
        }
        moved
    }

    fn accept(&mut self) -> bool {
        let mut moved = false;
        while let Ok((stream, _)) = self.stack.sockets().tcp_accept(self.listener) {
            self.ends.push(End::new(stream, SERVER, None));
            moved = true;
        }
        moved
    }

    fn step_ends(&mut self, connections: &mut [Connection], now: Nanos) -> Result<bool, Wrong> {
        let sockets = self.stack.sockets();
        let mut moved = false;
        let mut wrong = None;
        self.ends.retain_mut(|end| {
            let doomed = end.id.and_then(|id| connections[id].doomed);
            if doomed.is_some_and(|at| at <= now) {
                end.abort(sockets, connections, now);
                moved = true;
                return false;
            }
            if wrong.is_some() || !end.is_woken(now) {
                return true;
            }
            match end.step(sockets, connections, now) {
                Ok(stepped) => {
                    moved |= stepped != Stepped::Idle;
                    stepped != Stepped::Over
                }
                Err(error) => {
                    wrong = Some(error);
                    true
                }
            }
        });
        wrong.map_or(Ok(moved), Err)
    }

    /// A hostile guest changes its memory and sends nonsense.
    fn misbehave(&mut self) {
        let Some(random) = &mut self.hostile else {
            return;
        };
        self.misdeeds -= 1;
        self.stack.send_nonsense(self.mac, random);
        if random.percent(10) {
            match &self.cable {
                Cable::Memory(region, _) => hostile::scribble(region, random),
                Cable::Line(line) => line.scribble(random),
            }
        }
    }

    /// Gives up what was accepted and never said what it is.
    pub(crate) fn give_up_nameless(&mut self, connections: &mut [Connection], now: Nanos) {
        let sockets = self.stack.sockets();
        self.ends.retain_mut(|end| {
            if end.id.is_none() {
                end.abort(sockets, connections, now);
            }
            end.id.is_some()
        });
    }

    /// It dies: its connections die with it.
    pub(crate) fn die(
        mut self,
        connections: &mut [Connection],
        exchanges: &mut [Exchange],
        now: Nanos,
    ) -> Result<(), String> {
        self.datagrams.die(exchanges);
        for end in &mut self.ends {
            end.over(connections, Outcome::Died, now);
        }
        self.check()
    }

    /// Whether the frames that it received add up.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        let counters = self.stack.sockets().counters();
        match counters.rx_ledger() == counters.rx_frames {
            true => Ok(()),
            false => Err(format!(
                "guest {}: its frames do not add up: {counters:?}",
                self.index
            )),
        }
    }

    /// Whether all that it had is gone, but for its listener.
    pub(crate) fn check_empty(&mut self) -> Result<(), String> {
        let live = self.stack.sockets().live();
        // Its listener, and the stack's DHCP client.
        let own = 1 + self.datagrams.sockets() + usize::from(self.leases);
        match (live, self.ends.len()) {
            (live, 0) if live == own && self.datagrams.sockets() == 1 => Ok(()),
            (live, ends) => Err(format!(
                "guest {}: {live} sockets ({own} of them known) and {ends} applications are left \
                 over",
                self.index,
            )),
        }
    }

    /// For a trace.
    pub(crate) fn describe(&mut self) -> String {
        let counters = self.stack.sockets().counters();
        format!(
            "rx {} tx {} lost {} live {} ends {}",
            counters.rx_frames,
            counters.tx_frames,
            counters.tx_dropped
                + counters.tx_no_room
                + counters.rx_bad_offload
                + counters.rx_malformed,
            self.stack.sockets().live(),
            self.ends.len()
        )
    }

    /// One end for a report of what stands still.
    pub(crate) fn describe_ends(&mut self) -> Vec<String> {
        let sockets = self.stack.sockets();
        let line = |end: &End| {
            let state = sockets.tcp_state(end.stream);
            let unacknowledged = sockets.tcp_unacknowledged(end.stream);
            format!(
                "{:?} side {}: {state:?}, {unacknowledged:?} unacknowledged",
                end.id, end.side
            )
        };
        self.ends.iter().map(line).collect()
    }
}

fn options((rx, tx): (usize, usize), nodelay: bool) -> TcpOptions {
    TcpOptions {
        rx_buffer_bytes: rx,
        tx_buffer_bytes: tx,
        nodelay,
        user_timeout: None,
        connect_timeout: Duration::from_secs(2 * 3600),
        ..TcpOptions::default()
    }
}

/// How long after its death a guest's last traces must be gone: handshakes, and
/// TIME-WAIT.
pub(crate) const FORGET: Nanos = 1500 * SECOND;
