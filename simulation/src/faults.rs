//! What is done to the network while it works, and how its parts come back.

use host_bridge::port::{PortChange, PortEnd, PortState};
use shm_link::region::Region;

use crate::clock::{MICROSECOND, MILLISECOND, NEVER, Nanos, SECOND};
use crate::connection::{CLIENT, SERVER};
use crate::guest::Guest;
use crate::host::Host;
use crate::machine::Cable;
use crate::memory;
use crate::random::Random;
use crate::scenario::{Fault, Memory};
use crate::stream::{GUEST, HOST, Line};
use crate::world::{Event, World, set_addresses};

impl World {
    /// Does what the scenario says.
    pub(crate) fn inflict(&mut self, number: usize) -> Result<(), String> {
        let now = self.clock.now();
        let fault = self.scenario.faults[number].1.clone();
        self.trace.line(now, format_args!("fault {fault:?}"));
        match fault {
            Fault::KillHost {
                port,
                midway,
                down,
                memory,
            } => {
                self.count("host killed");
                if midway {
                    self.kill_midway(port, false);
                }
                if let Some(host) = self.places[port].host.take() {
                    host.kill()?;
                }
                self.host_gone(port, down, memory);
            }
            Fault::DetachHost { port, down, memory } => {
                self.count("host detached");
                if let Some(host) = self.places[port].host.take() {
                    host.end(&PortEnd::Detached)?;
                }
                self.host_gone(port, down, memory);
            }
            Fault::KillGuest {
                guest,
                midway,
                down,
            } => {
                self.count("guest killed");
                if midway {
                    self.kill_midway(guest, true);
                }
                self.guest_gone(guest, down)?;
            }
            Fault::FreezeGuest { guest, time } => {
                self.count("guest frozen");
                let turn = &mut self.places[guest].guest_turn;
                turn.busy = now + time;
                turn.at = turn.at.max(turn.busy);
            }
            Fault::FreezeHost { port, time } => {
                self.count("host frozen");
                let place = &mut self.places[port];
                for turn in [&mut place.pump_turn, &mut place.control_turn] {
                    turn.busy = now + time;
                    turn.at = turn.at.max(turn.busy);
                }
            }
            Fault::Change { port, change } => self.change(port, &change)?,
            Fault::Renumber { port } => self.renumber(port)?,
            Fault::DeleteTap { port, down } => {
                self.count("TAP deleted");
                let place = &mut self.places[port];
                place.tap.borrow_mut().delete(down);
                if place.host.as_ref().is_some_and(Host::sleeps_for_frames) {
                    place.pump_turn.wake(now);
                }
            }
            Fault::Spurious { port, guest } => {
                self.count("spurious doorbell");
                let event = if guest {
                    Event::RingGuest(port)
                } else {
                    Event::RingHost(port)
                };
                self.schedule(now, event);
            }
        }
        Ok(())
    }

    /// Takes half a turn: what it did to the outside world is done, what it would have
    /// published is not.
    fn kill_midway(&mut self, index: usize, guest: bool) {
        let place = &mut self.places[index];
        let cable = match (&place.guest, &place.host) {
            (Some(side), _) if guest => side.cable().clone(),
            (_, Some(side)) if !guest => side.cable.clone(),
            _ => return,
        };
        let before = match &cable {
            Cable::Memory(region, _) => memory::copy(region),
            Cable::Line(_) => Vec::new(),
        };
        if let Some(side) = place.guest.as_mut().filter(|_| guest) {
            let _ = side.step(
                (&mut self.connections, &mut self.exchanges),
                &mut place.starts,
                &self.addresses,
                &self.clock,
            );
        } else if let Some(side) = place.host.as_mut() {
            let _ = side.step_pump(&self.clock);
        }
        match &cable {
            Cable::Memory(region, _) => region.copy_in(0, &before).expect("as long as it was"),
            Cable::Line(line) => line.cut(if guest { GUEST } else { HOST }),
        }
        self.settle(index);
        // Whatever was rung for was not published.
        for bell in &self.places[index].bells {
            bell.take();
        }
    }

    fn host_gone(&mut self, port: usize, down: Nanos, memory: Memory) {
        let place = &mut self.places[port];
        place.pump_turn.at = NEVER;
        place.control_turn.at = NEVER;
        place.tap.borrow_mut().close();
        if let Some(line) = &place.line {
            line.dies(HOST);
            place.deserted = true;
            self.carry_rings(port);
            self.schedule(self.clock.now() + down, Event::HostBack(port, false));
            return;
        }
        // The last rings of the dead may not have come through.
        for bell in &place.bells {
            if self.random.percent(50) {
                bell.take();
            }
        }
        self.carry_rings(port);
        let now = self.clock.now();
        match memory {
            Memory::Same => self.schedule(now + down, Event::HostBack(port, false)),
            Memory::New(later) => {
                self.schedule(now + down, Event::HostBack(port, true));
                self.schedule(now + down + later, Event::NewMemory(port));
            }
        }
    }

    /// Has every guest look then whether an end of its own gives up: one that only
    /// reads may sleep for ever.
    fn wake_guests(&mut self, at: Nanos) {
        for place in self.places.iter_mut().filter(|place| place.guest.is_some()) {
            place.guest_turn.wake(at);
        }
    }

    fn guest_gone(&mut self, guest: usize, down: Nanos) -> Result<(), String> {
        let now = self.clock.now();
        let later = now + self.random.below(3 * SECOND);
        let place = &mut self.places[guest];
        place.guest_turn.at = NEVER;
        let Some(dead) = place.guest.take() else {
            return Ok(());
        };
        for connection in &mut self.connections {
            let begun = connection.addresses.is_some();
            if begun && connection.plan.guests.contains(&guest) {
                connection.doom(later);
            }
        }
        self.wake_guests(later);
        dead.die(&mut self.connections, &mut self.exchanges, now)?;
        for connection in &mut self.connections {
            // Also those that had ended here, and were being sent in the background.
            if connection.doomed.is_some()
                && connection.plan.guests[CLIENT] == guest
                && connection.addresses.is_some()
            {
                connection.outcomes[CLIENT].get_or_insert(crate::connection::Outcome::Died);
            }
        }
        match &self.places[guest].line {
            Some(line) => line.dies(GUEST),
            None => {
                for bell in &self.places[guest].bells {
                    if self.random.percent(50) {
                        bell.take();
                    }
                }
            }
        }
        self.carry_rings(guest);
        self.schedule(now + down, Event::GuestBack(guest));
        Ok(())
    }

    /// A host takes a port's rings.
    pub(crate) fn attach(&mut self, index: usize, new: bool) -> Result<(), String> {
        if self.places[index].host.is_some() {
            // Two faults overlapped; the first one to come back is there.
            return Ok(());
        }
        self.places[index].deserted = false;
        if let Some(plan) = self.scenario.guests[index].line {
            // Who has a socket connects when it finds that it must.
            return match plan.serial {
                true => self.serve_line(index),
                false => Ok(()),
            };
        }
        let layout = self.scenario.guests[index].layout();
        let hostile = self.scenario.guests[index].hostile;
        let fresh = || memory::region(layout.region_len);
        let place = &self.places[index];
        let mut region = match (new, &place.new_region) {
            (true, None) => fresh(),
            (_, Some(region)) => region.clone(),
            (false, None) => place.region.clone(),
        };
        let [ring_host, ring_guest] = place.bells.clone();
        let tap = (&place.tap, &self.clock);
        let make = |region: &Region| {
            let cable = Cable::Memory(region.clone(), ring_host.clone());
            Host::new(cable, &layout, &ring_guest, tap, self.port_config(index))
        };
        let mut made = make(&region);
        if made.is_err() && hostile {
            region = fresh();
            made = make(&region);
        }
        let host = made.map_err(|error| format!("port {index} cannot be attached: {error}"))?;
        let replaced = !same(&region, &place.region);
        let now = self.clock.now();
        self.trace.line(
            now,
            format_args!("port {index} attached, replaced {replaced}"),
        );
        self.places[index].tap.borrow_mut().scribbled = hostile.then(|| region.clone());
        self.begin(index, host);
        if replaced {
            if hostile {
                self.schedule(now + MILLISECOND, Event::NewMemory(index));
            }
            self.places[index].new_region = Some(region);
        }
        self.carry_rings(index);
        Ok(())
    }

    /// A port begins to work.
    fn begin(&mut self, index: usize, host: Host) {
        let now = self.clock.now();
        let place = &mut self.places[index];
        place.tap.borrow_mut().open();
        place.host = Some(host);
        place.pump_turn.busy = now;
        place.pump_turn.wake(now);
        place.control_turn.busy = now;
        place.control_turn.wake(now);
    }

    /// A host opens the line of a guest, which there is from the beginning.
    fn serve_line(&mut self, index: usize) -> Result<(), String> {
        let plan = &self.scenario.guests[index];
        let place = &mut self.places[index];
        if place.line.is_none() {
            let line = plan.line.map(|line| {
                self.sessions += 1;
                let random = Random::new(self.scenario.seed, 10_000 + u64::from(self.sessions));
                Line::new(line, &place.bells, random)
            });
            place.line = line;
        }
        let Some(line) = place.line.clone() else {
            return Ok(());
        };
        line.opens(HOST);
        let (ring, tap) = (place.bells[1].clone(), place.tap.clone());
        let (cable, layout) = (Cable::Line(line), plan.layout());
        let config = self.port_config(index);
        let host = Host::new(cable, &layout, &ring, (&tap, &self.clock), config);
        let host = host.map_err(|error| format!("port {index} has no line: {error}"))?;
        let now = self.clock.now();
        self.trace
            .line(now, format_args!("port {index} serves its line"));
        self.begin(index, host);
        self.carry_rings(index);
        Ok(())
    }

    /// The cable that a guest finds; `None`: it is to try again.
    fn connect(&mut self, index: usize) -> Result<Option<Cable>, String> {
        let place = &mut self.places[index];
        let Some(plan) = self.scenario.guests[index].line else {
            if let Some(region) = place.new_region.take() {
                place.region = region;
            }
            let cable = Cable::Memory(place.region.clone(), place.bells[0].clone());
            return Ok(Some(cable));
        };
        if !plan.serial {
            if place.deserted || place.host.is_some() {
                return Ok(None);
            }
            place.line = None;
            self.serve_line(index)?;
        }
        let line = self.places[index].line.clone();
        Ok(line.map(Cable::Line))
    }

    /// A guest boots and finds its memory, or connects.
    pub(crate) fn boot(&mut self, index: usize) -> Result<(), String> {
        let now = self.clock.now();
        let place = &mut self.places[index];
        if place.guest.is_some() {
            return Ok(());
        }
        let Some(cable) = self.connect(index)? else {
            self.schedule(now + MILLISECOND, Event::GuestBack(index));
            return Ok(());
        };
        self.sessions += 1;
        let plan = &self.scenario.guests[index];
        let place = &mut self.places[index];
        let made = Guest::new(
            index,
            plan,
            (self.scenario.seed, self.sessions),
            cable,
            &self.clock,
        );
        match made {
            Ok(guest) => {
                self.trace.line(now, format_args!("guest {index} boots"));
                place.guest = Some(guest);
                place.guest_turn.busy = now;
                place.guest_turn.wake(now);
                self.carry_rings(index);
                Ok(())
            }
            // It spoilt its own memory, and waits for another.
            Err(_) if plan.hostile => {
                self.schedule(now + 100 * MILLISECOND, Event::GuestBack(index));
                Ok(())
            }
            Err(error) => Err(format!("guest {index} cannot attach: {error}")),
        }
    }

    /// A guest whose stream has ended connects anew.
    fn connect_again(&mut self, index: usize) -> Result<(), String> {
        let now = self.clock.now();
        let guest = self.places[index].guest.as_ref();
        if guest.is_none_or(|guest| guest.link_error().is_none()) {
            return Ok(());
        }
        let Some(cable) = self.connect(index)? else {
            self.schedule(now + MILLISECOND, Event::NewMemory(index));
            return Ok(());
        };
        self.trace
            .line(now, format_args!("guest {index} connects anew"));
        let place = &mut self.places[index];
        if let Some(guest) = &mut place.guest {
            guest.replace(cable, &self.clock)?;
            place.guest_turn.wake(now);
        }
        self.carry_rings(index);
        Ok(())
    }

    /// A guest is given the memory that its host has now.
    pub(crate) fn give_memory(&mut self, index: usize) -> Result<(), String> {
        if self.scenario.guests[index].line.is_some() {
            return self.connect_again(index);
        }
        let now = self.clock.now();
        let place = &mut self.places[index];
        // A guest that booted meanwhile found it by itself.
        let (Some(guest), Some(region)) = (&mut place.guest, &place.new_region) else {
            return Ok(());
        };
        let cable = Cable::Memory(region.clone(), place.bells[0].clone());
        match guest.replace(cable, &self.clock) {
            Ok(()) => {
                self.trace
                    .line(now, format_args!("guest {index} has new memory"));
                place.region = region.clone();
                place.new_region = None;
                place.guest_turn.wake(now);
                self.carry_rings(index);
                Ok(())
            }
            Err(_) if self.scenario.guests[index].hostile => {
                self.schedule(now + 100 * MILLISECOND, Event::NewMemory(index));
                Ok(())
            }
            Err(error) => Err(format!("guest {index} cannot take its new memory: {error}")),
        }
    }

    /// A port ended by itself.
    pub(crate) fn port_ended(&mut self, index: usize, end: &PortEnd) -> Result<(), String> {
        let now = self.clock.now();
        let place = &mut self.places[index];
        let Some(host) = place.host.take() else {
            return Ok(());
        };
        host.end(end)?;
        let deleted = place.tap.borrow().deleted();
        if let (PortEnd::Tap(_), Some(down)) = (end, deleted) {
            self.count("TAP missed");
            self.host_gone(index, down, Memory::Same);
            return Ok(());
        }
        let left = place.line.as_ref().is_some_and(|line| line.is_gone(GUEST));
        if let Some(line) = &place.line {
            line.dies(HOST);
        }
        if left && *end == PortEnd::Closed {
            place.pump_turn.at = NEVER;
            place.tap.borrow_mut().close();
            return Ok(());
        }
        if !self.scenario.guests[index].hostile {
            return Err(format!("port {index} ended: {end}"));
        }
        self.count(format!("hostile: {end}"));
        place_is_hostile_again(self, index, now);
        Ok(())
    }

    /// An administrator changes a port; one that is not there is made so later.
    fn change(&mut self, port: usize, change: &PortChange) -> Result<(), String> {
        let place = &mut self.places[port];
        let wanted = &mut place.change;
        if let Some(mtu) = change.mtu {
            self.summary
                .events
                .entry("MTU changed".to_owned())
                .and_modify(|n| *n += 1)
                .or_insert(1);
            place.network.mtu = mtu;
        }
        if let Some(carrier) = change.carrier {
            place.network.carrier = carrier;
        }
        for (to, from) in [
            (&mut wanted.impair_to_host, &change.impair_to_host),
            (&mut wanted.impair_to_guest, &change.impair_to_guest),
        ] {
            if from.is_some() {
                to.clone_from(from);
            }
        }
        wanted.limit_to_host = change.limit_to_host.or(wanted.limit_to_host);
        wanted.limit_to_guest = change.limit_to_guest.or(wanted.limit_to_guest);
        if let Some(host) = &mut place.host {
            let changed = host.port().change(change);
            let now = self.clock.now();
            place.control_turn.wake(now);
            let told = matches!(host.cable, Cable::Line(_)) || host.port().policy_changed();
            if host.sleeps() && told {
                place.pump_turn.wake(now);
            }
            changed?;
        }
        self.count("changed");
        Ok(())
    }

    fn renumber(&mut self, port: usize) -> Result<(), String> {
        self.count("renumbered");
        let old = self.addresses[port];
        self.places[port].round += 1;
        let new = self.scenario.guests[port].addresses(self.places[port].round);
        self.addresses[port] = new;
        set_addresses(&mut self.places[port].network, new);
        let later = self.clock.now() + self.random.below(5 * SECOND);
        for connection in &mut self.connections {
            let lost = [old.of(false), old.of(true)];
            if let Some((client, server)) = connection.addresses {
                let ends = connection.plan.guests;
                let hit = (ends[CLIENT] == port && lost.contains(&client))
                    || (ends[SERVER] == port && lost.contains(&server));
                if hit {
                    connection.doom(later);
                }
            }
        }
        self.wake_guests(later);
        let change = PortChange {
            addresses: Some(new.nets()),
            ..PortChange::default()
        };
        self.change(port, &change)
    }

    /// What must be true when everything is over.
    pub(crate) fn check_rest(&mut self) -> Result<(), String> {
        for index in 0..self.places.len() {
            let hostile = self.scenario.guests[index].hostile;
            let place = &mut self.places[index];
            let (Some(guest), Some(host)) = (&mut place.guest, &mut place.host) else {
                match hostile {
                    true => continue,
                    false => return Err(format!("guest {index} or its port is not back")),
                }
            };
            guest.check()?;
            host.check()?;
            if hostile {
                continue;
            }
            guest.check_empty()?;
            if *host.port().state() != PortState::Running {
                return Err(format!("port {index} is {}", host.port().state()));
            }
            let held = place.held();
            if held != 0 {
                return Err(format!("port {index} still holds {held} frames"));
            }
        }
        Ok(())
    }
}

/// A hostile guest may attach again, as any guest may.
fn place_is_hostile_again(world: &mut World, index: usize, now: Nanos) {
    world.places[index].pump_turn.at = NEVER;
    world.places[index].control_turn.at = NEVER;
    world.places[index].tap.borrow_mut().close();
    world.carry_rings(index);
    let new = world.random.percent(50);
    let later = now + world.random.between(MILLISECOND, 100 * MILLISECOND);
    world.schedule(later, Event::HostBack(index, new));
    if world.places[index].line.is_some() {
        // It notices that its stream has ended, or on a line that nobody listens.
        let later = later + world.random.between(MICROSECOND, 2 * MILLISECOND);
        world.schedule(later, Event::NewMemory(index));
    }
}

/// Whether two views are of the same memory.
fn same(a: &Region, b: &Region) -> bool {
    a.as_ptr() == b.as_ptr()
}
