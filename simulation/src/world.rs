//! The loop of a run: whose turn it is, what wakes whom, and what is done to them.
//!
//! ```text
//!  Guest ─ ring ─► Pump ─► switch ─► Pump ─ ring ─► Guest
//!    ▲              ▲ Control                        ▲
//!    └── doorbells, each a moment late ──────────────┘
//! ```
//! One thing happens after the other; what takes time is put down as the earliest
//! moment of the next turn. Nothing here decides anything that is under test.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::Ipv4Addr;
use std::rc::Rc;

use host_bridge::port::{PortConfig, PortEnd};
use ipnet::Ipv4Net;
use shm_link::control::{NetworkConfig, Prefixed};
use shm_link::offload::OffloadHeader;
use shm_link::region::Region;

use crate::clock::{Clock, MICROSECOND, MILLISECOND, NEVER, Nanos, SECOND};
use crate::connection::{CLIENT, Connection, SERVER};
use crate::datagrams::Exchange;
use crate::ethernet::{Tap, switch};
use crate::guest::{Bell, FORGET, Guest, Next};
use crate::host::Host;
use crate::memory;
use crate::random::Random;
use crate::scenario::{Addresses, Scenario};
use crate::services;
use crate::stream::Line;
use crate::trace::Trace;

/// Turns after which a run that does not end is said to spin.
const MOST_TURNS: u64 = 20_000_000;

/// How often the router advertises its prefix.
const ADVERTISED: Nanos = 150 * SECOND;

/// Who has a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Guest(usize),
    Pump(usize),
    Control(usize),
}

/// When somebody has the next turn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    pub(crate) at: Nanos,
    /// Not before this: the last turn, or a pause, takes until then.
    pub(crate) busy: Nanos,
    /// A doorbell rang that nobody has waited for yet.
    pub(crate) rung: bool,
}

impl Turn {
    const NEVER: Self = Self {
        at: NEVER,
        busy: 0,
        rung: false,
    };

    /// Brings the next turn forward.
    pub(crate) fn wake(&mut self, at: Nanos) {
        self.at = self.at.min(at.max(self.busy));
    }
}

/// What happens at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// The host's doorbell rings.
    RingHost(usize),
    /// The guest's doorbell rings.
    RingGuest(usize),
    /// A fault of the scenario.
    Fault(usize),
    /// A host comes back, on new memory or not.
    HostBack(usize, bool),
    /// A guest comes back.
    GuestBack(usize),
    /// A guest is given the new memory, or connects anew.
    NewMemory(usize),
    /// The router advertises its prefix.
    Advertise,
}

/// A guest, its port, and all between them.
pub(crate) struct Place {
    pub(crate) guest: Option<Guest>,
    pub(crate) host: Option<Host>,
    pub(crate) region: Region,
    /// The byte stream between them, where they share no memory.
    pub(crate) line: Option<Line>,
    /// No daemon is there that a guest could connect to.
    pub(crate) deserted: bool,
    pub(crate) tap: Rc<RefCell<Tap>>,
    /// Rung by the guest, and by the host.
    pub(crate) bells: [Bell; 2],
    pub(crate) guest_turn: Turn,
    pub(crate) pump_turn: Turn,
    pub(crate) control_turn: Turn,
    /// What the port is to be like when it is made anew.
    pub(crate) network: NetworkConfig,
    pub(crate) change: host_bridge::port::PortChange,
    /// How often it was given other addresses.
    pub(crate) round: u8,
    /// Connections that its guest is to begin.
    pub(crate) starts: Vec<(Nanos, usize)>,
    /// Memory that the guest will be given.
    pub(crate) new_region: Option<Region>,
}

impl Place {
    /// Frames on their way through the port.
    pub(crate) fn held(&mut self) -> u64 {
        let waiting = u64::from(self.tap.borrow().has_frames());
        let Some(host) = &mut self.host else {
            return waiting;
        };
        let counters = host.port().counters();
        waiting + counters.guest_to_host.held + counters.host_to_guest.held
    }
}

/// What came of a run.
#[derive(Debug, Default, Clone)]
pub struct Summary {
    /// Hash of everything that happened.
    pub hash: u64,
    /// Lines of its trace.
    pub lines: u64,
    /// Virtual time from the beginning until the last connection ended, in nanoseconds.
    pub time: Nanos,
    /// Bytes that applications read.
    pub bytes: u64,
    /// The longest time between two reads of one connection, in nanoseconds.
    pub longest_pause: Nanos,
    /// Frames to guests that their last hosts dropped by then.
    pub lost_to_guests: u64,
    /// Turns of all parts.
    pub turns: u64,
    /// Datagrams that were asked and answered.
    pub answers: u64,
    /// Connections that had to end well, and did.
    pub clean: usize,
    /// Connections that something was done to.
    pub doomed: usize,
    /// What was done, and what came of it, by name.
    pub events: BTreeMap<String, u64>,
}

/// A run.
pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) clock: Clock,
    pub(crate) places: Vec<Place>,
    pub(crate) taps: Vec<Rc<RefCell<Tap>>>,
    pub(crate) connections: Vec<Connection>,
    pub(crate) exchanges: Vec<Exchange>,
    pub(crate) addresses: Vec<Addresses>,
    events: BinaryHeap<Reverse<(Nanos, u64, Event)>>,
    sequence: u64,
    pub(crate) random: Random,
    pub(crate) trace: Trace,
    pub(crate) sessions: u32,
    pub(crate) summary: Summary,
}

impl World {
    pub(crate) fn new(scenario: Scenario, print: bool) -> Result<Self, String> {
        let clock = Clock::new();
        let seed = scenario.seed;
        let addresses: Vec<_> = scenario
            .guests
            .iter()
            .map(|plan| plan.addresses(0))
            .collect();
        let mut places = Vec::new();
        for (index, plan) in scenario.guests.iter().enumerate() {
            let mut tap = Tap::new(plan.mac(), Random::new(seed, 100 + index as u64));
            tap.refused = plan.refused;
            let mut network = NetworkConfig::new(plan.mac(), plan.mtu);
            match plan.lease {
                Some(_) => (network.dhcp4, network.slaac) = (true, plan.v6),
                None => set_addresses(&mut network, addresses[index]),
            }
            places.push(Place {
                guest: None,
                host: None,
                region: memory::region(plan.layout().region_len),
                line: None,
                deserted: false,
                tap: Rc::new(RefCell::new(tap)),
                bells: Default::default(),
                guest_turn: Turn::NEVER,
                pump_turn: Turn::NEVER,
                control_turn: Turn::NEVER,
                network,
                change: host_bridge::port::PortChange {
                    impair_to_host: Some(plan.impair_to_host.clone()),
                    impair_to_guest: Some(plan.impair_to_guest.clone()),
                    limit_to_host: Some(plan.limits.to_host),
                    limit_to_guest: Some(plan.limits.to_guest),
                    ..Default::default()
                },
                round: 0,
                starts: Vec::new(),
                new_region: None,
            });
        }
        let taps = places.iter().map(|place| place.tap.clone()).collect();
        let connections: Vec<_> = scenario
            .connections
            .iter()
            .cloned()
            .map(Connection::new)
            .collect();
        for (id, connection) in connections.iter().enumerate() {
            let plan = &connection.plan;
            places[plan.guests[CLIENT]].starts.push((plan.at, id));
        }
        let askings = scenario.askings.iter().cloned().enumerate();
        let exchanges = askings.map(|(id, plan)| Exchange::new(id, plan)).collect();
        let mut world = Self {
            clock,
            places,
            taps,
            connections,
            exchanges,
            addresses,
            events: BinaryHeap::new(),
            sequence: 0,
            random: Random::new(seed, 2),
            trace: Trace::new(print),
            sessions: 0,
            summary: Summary::default(),
            scenario,
        };
        for index in 0..world.places.len() {
            world.attach(index, false)?;
            let early = world.random.below(MILLISECOND);
            world.schedule(early, Event::GuestBack(index));
        }
        if world.scenario.is_served() {
            world.schedule(world.scenario.seed % ADVERTISED, Event::Advertise);
        }
        for index in 0..world.scenario.faults.len() {
            world.schedule(world.scenario.faults[index].0, Event::Fault(index));
        }
        Ok(world)
    }

    pub(crate) fn schedule(&mut self, at: Nanos, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence, event)));
    }

    /// Notes that something happened, by its name.
    pub(crate) fn count(&mut self, name: impl Into<String>) {
        *self.summary.events.entry(name.into()).or_default() += 1;
    }

    /// Runs until every connection is over and everything is forgotten.
    pub(crate) fn run(mut self) -> Result<Summary, String> {
        let result = self.run_through();
        self.summary.hash = self.trace.hash();
        self.summary.lines = self.trace.lines();
        result.map(|()| self.summary)
    }

    fn run_through(&mut self) -> Result<(), String> {
        while !self.connections.iter().all(Connection::is_over)
            || !self.exchanges.iter().all(Exchange::is_over)
        {
            if !self.advance(self.scenario.patience)? {
                return Err(self.standstill());
            }
        }
        let now = self.clock.now();
        self.summary.time = self
            .connections
            .iter()
            .map(|c| c.done_at)
            .max()
            .unwrap_or(now);
        self.summary.answers = self.exchanges.iter().map(|e| e.answers).sum();
        self.summary.bytes = self.connections.iter().map(|c| c.read[0] + c.read[1]).sum();
        let hosts = self
            .places
            .iter_mut()
            .filter_map(|place| place.host.as_mut());
        self.summary.lost_to_guests = hosts
            .map(|host| host.port().counters().host_to_guest.dropped())
            .sum();
        let pauses = self.connections.iter().map(|c| c.longest_pause);
        self.summary.longest_pause = pauses.max().unwrap_or(0);
        if self.scenario.is_calm() {
            self.exchanges.iter().try_for_each(Exchange::check_calm)?;
        }
        for connection in &self.connections {
            match connection.doomed {
                Some(_) => self.summary.doomed += 1,
                None if connection.is_clean() => self.summary.clean += 1,
                None => return Err(format!("{connection:?} did not end well")),
            }
        }
        // Faults that are still to come have nobody left to hurt, but are to do no harm.
        let last = self.scenario.faults.last().map_or(0, |fault| fault.0);
        let settled = now.max(last) + FORGET;
        while self.advance(settled)? {}
        for index in 0..self.places.len() {
            let now = self.clock.now();
            if let Some(guest) = &mut self.places[index].guest {
                guest.give_up_nameless(&mut self.connections, now);
            }
            self.places[index].guest_turn.wake(now);
        }
        while self.advance(settled + FORGET)? {}
        let turns = self.summary.turns;
        while self.advance(settled + 2 * FORGET)? {}
        let idle = self.summary.turns - turns;
        // Leases are renewed, and prefixes advertised.
        if idle
            > if self.scenario.is_served() {
                8000
            } else {
                2000
            }
        {
            return Err(format!(
                "{idle} turns in {} s without anything to do",
                FORGET / 1_000_000_000
            ));
        }
        // A lease that is being renewed just now.
        let mut limit = settled + 2 * FORGET;
        for _ in 0..10 {
            if self.places.iter_mut().all(|place| place.held() == 0) {
                break;
            }
            limit += SECOND;
            while self.advance(limit)? {}
        }
        self.check_rest()
    }

    /// The next thing that happens; `false` if nothing does before `limit`.
    fn advance(&mut self, limit: Nanos) -> Result<bool, String> {
        let mut next: Option<(Nanos, Who)> = None;
        for (index, place) in self.places.iter().enumerate() {
            for (turn, who) in [
                (&place.guest_turn, Who::Guest(index)),
                (&place.pump_turn, Who::Pump(index)),
                (&place.control_turn, Who::Control(index)),
            ] {
                if turn.at != NEVER && next.is_none_or(|(at, _)| turn.at < at) {
                    next = Some((turn.at, who));
                }
            }
        }
        let event = self.events.peek().map(|Reverse((at, ..))| *at);
        let event = event.filter(|at| next.is_none_or(|(turn, _)| *at <= turn));
        let at = event.or(next.map(|(at, _)| at)).unwrap_or(NEVER);
        if at > limit {
            self.clock.set(limit);
            return Ok(false);
        }
        // An event may have been put into the past by a fault; time does not go back.
        self.clock.set(at.max(self.clock.now()));
        self.summary.turns += 1;
        if self.summary.turns > MOST_TURNS {
            return Err(format!(
                "no end after {MOST_TURNS} turns: {}",
                self.standstill()
            ));
        }
        if event.is_some() {
            if let Some(Reverse((_, _, event))) = self.events.pop() {
                self.handle(event)?;
            }
        } else if let Some((_, who)) = next {
            match who {
                Who::Guest(index) => self.guest_turn(index)?,
                Who::Pump(index) => self.pump_turn(index)?,
                Who::Control(index) => self.control_turn(index)?,
            }
        }
        Ok(true)
    }

    fn handle(&mut self, event: Event) -> Result<(), String> {
        let now = self.clock.now();
        match event {
            Event::RingHost(index) => {
                let place = &mut self.places[index];
                place.pump_turn.rung = true;
                if place.host.as_ref().is_some_and(|host| host.is_woken(true)) {
                    place.pump_turn.wake(now);
                }
            }
            Event::RingGuest(index) => {
                let place = &mut self.places[index];
                place.guest_turn.rung = true;
                if place.guest.as_mut().is_none_or(Guest::is_woken) {
                    place.guest_turn.wake(now);
                }
            }
            Event::Fault(index) => self.inflict(index)?,
            Event::HostBack(index, new) => self.attach(index, new)?,
            Event::GuestBack(index) => self.boot(index)?,
            Event::NewMemory(index) => self.give_memory(index)?,
            Event::Advertise => {
                self.serve(services::advertisement());
                self.schedule(now + ADVERTISED, Event::Advertise);
            }
        }
        Ok(())
    }

    fn guest_turn(&mut self, index: usize) -> Result<(), String> {
        let now = self.clock.now();
        let place = &mut self.places[index];
        place.guest_turn.at = NEVER;
        let Some(guest) = &mut place.guest else {
            return Ok(());
        };
        place.guest_turn.rung = false;
        let stepped = guest.step(
            (&mut self.connections, &mut self.exchanges),
            &mut place.starts,
            &self.addresses,
            &self.clock,
        );
        let (next, work) = stepped.map_err(|wrong| wrong.0)?;
        let cost = 500 + 700 * work.frames + work.bytes / 8;
        place.guest_turn.busy = now + cost;
        let (link_error, connects) = (guest.link_error(), guest.begins_to_connect());
        let honest = !self.scenario.guests[index].hostile;
        let line = self.trace_guest(index);
        self.trace
            .line(now, format_args!("guest {index}: {next:?} {work:?} {line}"));
        let place = &mut self.places[index];
        match next {
            Next::Again => place.guest_turn.wake(now + cost),
            Next::SleepUntil(at) => place.guest_turn.wake(at),
        }
        let socket = self.scenario.guests[index]
            .line
            .is_some_and(|line| !line.serial);
        if socket && connects {
            let later = now + self.random.between(MICROSECOND, MILLISECOND);
            self.schedule(later, Event::NewMemory(index));
        } else if let Some(error) = link_error
            && honest
            && !socket
            && place.new_region.is_none()
        {
            return Err(format!("guest {index}: its link ended: {error}"));
        }
        self.carry_rings(index);
        Ok(())
    }

    fn trace_guest(&mut self, index: usize) -> String {
        match &mut self.places[index].guest {
            Some(guest) => guest.describe(),
            None => String::new(),
        }
    }

    fn pump_turn(&mut self, index: usize) -> Result<(), String> {
        let now = self.clock.now();
        let place = &mut self.places[index];
        place.pump_turn.at = NEVER;
        let Some(host) = &mut place.host else {
            return Ok(());
        };
        let next = host.step_pump(&self.clock);
        self.settle(index);
        self.after(index, Who::Pump(index), next, now)
    }

    fn control_turn(&mut self, index: usize) -> Result<(), String> {
        let now = self.clock.now();
        let place = &mut self.places[index];
        place.control_turn.at = NEVER;
        let Some(host) = &mut place.host else {
            return Ok(());
        };
        let next = host.step_control(&self.clock);
        self.settle(index);
        self.after(index, Who::Control(index), next, now)
    }

    /// What follows from a turn of a host's task.
    fn after(
        &mut self,
        index: usize,
        who: Who,
        next: Result<Next, PortEnd>,
        now: Nanos,
    ) -> Result<(), String> {
        let (frames, bytes) = self.places[index].tap.borrow_mut().take_work();
        let cost = 1000 + 1500 * frames + bytes / 10;
        self.trace.line(
            now,
            format_args!("{who:?}: {next:?}, {frames} frames, {bytes} bytes"),
        );
        let logged = std::mem::take(&mut self.places[index].tap.borrow_mut().log);
        for text in logged {
            self.trace.line(now, format_args!("port {index}: {text}"));
        }
        let place = &mut self.places[index];
        let next = match next {
            Ok(next) => next,
            Err(end) => return self.port_ended(index, &end),
        };
        let turn = match who {
            Who::Pump(_) => &mut place.pump_turn,
            Who::Guest(_) | Who::Control(_) => &mut place.control_turn,
        };
        turn.busy = now + cost;
        match next {
            Next::Again => turn.wake(now + cost),
            Next::SleepUntil(at) => turn.wake(at),
        }
        if let Some(host) = &mut place.host {
            if host.sleeps() {
                // Rings and news that came while it was awake count.
                let rung = std::mem::take(&mut place.pump_turn.rung);
                let news = host.is_woken(rung)
                    || host.port().policy_changed()
                    || (host.sleeps_for_frames() && place.tap.borrow().is_readable());
                if news {
                    place.pump_turn.wake(now + cost);
                }
            }
            if host.port().is_notified() {
                place.control_turn.wake(now + cost);
            }
        }
        self.carry_rings(index);
        Ok(())
    }

    /// Sends on what a port gave to its interface.
    pub(crate) fn settle(&mut self, index: usize) {
        let now = self.clock.now();
        let sent = self.places[index].tap.borrow_mut().take_sent();
        for frame in sent {
            let reached = switch(&self.taps, index, &frame);
            self.trace.frame(now, (index, reached), &frame.1);
            self.reach(reached);
            if self.scenario.is_served()
                && let Some(answer) = services::answer(&frame.1, &self.scenario.guests)
            {
                self.serve(answer);
            }
        }
    }

    /// A frame of somebody who is no guest.
    fn serve(&mut self, frame: Vec<u8>) {
        let frame = (OffloadHeader::NONE, frame);
        let nobody = self.taps.len();
        let reached = switch(&self.taps, nobody, &frame);
        self.trace
            .frame(self.clock.now(), (nobody, reached), &frame.1);
        self.reach(reached);
    }

    /// Frames have come to these ports.
    fn reach(&mut self, reached: u64) {
        let now = self.clock.now();
        for (other, place) in self.places.iter_mut().enumerate() {
            if reached & (1 << other) != 0
                && place.host.as_ref().is_some_and(Host::sleeps_for_frames)
            {
                place.pump_turn.wake(now + 3 * MICROSECOND);
            }
        }
    }

    /// Carries rings to the other side, each in its own time.
    pub(crate) fn carry_rings(&mut self, index: usize) {
        let bells = self.places[index].bells.clone();
        let events = [Event::RingHost(index), Event::RingGuest(index)];
        for (bell, event) in bells.iter().zip(events) {
            if bell.take() {
                let mut late = self.random.between(3 * MICROSECOND, 15 * MICROSECOND);
                let (chance, most) = self.scenario.late_bells;
                if self.random.percent(chance) {
                    late += self.random.below(most);
                }
                self.schedule(self.clock.now() + late, event);
            }
        }
    }

    /// The port of `index` as it is to be now.
    pub(crate) fn port_config(&self, index: usize) -> PortConfig {
        let place = &self.places[index];
        let plan = &self.scenario.guests[index];
        let mut config = PortConfig::new(format!("port{index}"), place.network.clone());
        config.offloads = plan.offloads;
        if plan.lease.is_some() {
            // Of whatever a server gives it.
            let network = Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), 16).expect("a prefix");
            config.filter.allow_sources.push(network.into());
        }
        config.impair_to_host = place.change.impair_to_host.clone().unwrap_or_default();
        config.impair_to_guest = place.change.impair_to_guest.clone().unwrap_or_default();
        config.limits.to_host = place.change.limit_to_host.unwrap_or_default();
        config.limits.to_guest = place.change.limit_to_guest.unwrap_or_default();
        config
    }

    /// Says what stands still.
    fn standstill(&mut self) -> String {
        let mut text = String::from("it does not end:");
        for (id, connection) in self.connections.iter().enumerate() {
            if !connection.is_over() {
                let plan = &connection.plan;
                text += &format!(
                    "\n  connection {id} (port {}) of {:?} at {} ms: read {:?} of {:?}, {:?}, doomed {:?}, {:?}",
                    connection.port,
                    plan.guests,
                    plan.at / MILLISECOND,
                    connection.read,
                    [plan.bytes[SERVER], plan.bytes[CLIENT]],
                    connection.outcomes,
                    connection.doomed,
                    plan.order,
                );
            }
        }
        for exchange in self.exchanges.iter().filter(|exchange| !exchange.is_over()) {
            text += &format!("\n  {exchange:?}");
        }
        for (index, place) in self.places.iter_mut().enumerate() {
            if let Some(guest) = &mut place.guest {
                text += &format!("\n  guest {index}: {}", guest.describe());
                for line in guest.describe_ends() {
                    text += &format!("\n    {line}");
                }
            }
            if let Some(host) = &mut place.host {
                let state = host.port().state().to_string();
                let counters = host.port().counters();
                let dropped = place.tap.borrow().dropped;
                text += &format!(
                    "\n  port {index}: {state}, {counters:?}, the segment dropped {dropped}"
                );
            }
        }
        text
    }
}

/// Gives a configuration these addresses.
pub(crate) fn set_addresses(network: &mut NetworkConfig, addresses: Addresses) {
    network.v4.clear();
    network.v6.clear();
    // There is room for four of each.
    let _ = network.v4.push(Prefixed::new(addresses.v4, 16));
    if let Some(v6) = addresses.v6 {
        let _ = network.v6.push(Prefixed::new(v6, 64));
    }
}
