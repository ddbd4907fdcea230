//! A port of the bridge as two tasks, the pump and the control task, and what wakes
//! them.
//!
//! The port itself is the bridge's own; this is what the executor and the kernel do.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use host_bridge::counters::PortSnapshot;
use host_bridge::port::stepped::{Step, SteppedPort};
use host_bridge::port::{PortConfig, PortEnd};
use shm_link::region::Region;
use shm_link::shm::ShmError;
use shm_link::superblock::Layout;

use crate::clock::{Clock, NEVER};
use crate::ethernet::{Handle, Tap};
use crate::guest::{Bell, Next};

/// A port that is up.
pub(crate) struct Host {
    port: SteppedPort<Handle>,
    pub(crate) region: Region,
    /// The pump sleeps, and whether a frame is to wake it.
    sleeps_for_frames: Option<bool>,
}

impl Host {
    pub(crate) fn new(
        region: Region,
        layout: &Layout,
        bell: &Bell,
        (tap, clock): (&Rc<RefCell<Tap>>, &Clock),
        config: PortConfig,
    ) -> Result<Self, ShmError> {
        let bell = bell.clone();
        let ring = Arc::new(move || bell.ring_once());
        let handle = Handle {
            tap: tap.clone(),
            clock: clock.clone(),
        };
        let port = SteppedPort::new(region.clone(), layout, ring, handle, config)?;
        Ok(Self {
            port,
            region,
            sleeps_for_frames: None,
        })
    }

    fn next(step: Step, clock: &Clock) -> (Next, bool) {
        match step {
            Step::Again => (Next::Again, false),
            Step::Sleep { readable, due } => {
                let due = due.map_or(NEVER, |due| clock.of_host(due));
                (Next::SleepUntil(due), readable)
            }
        }
    }

    pub(crate) fn step_pump(&mut self, clock: &Clock) -> Result<Next, PortEnd> {
        self.sleeps_for_frames = None;
        let (next, readable) = Self::next(self.port.step_pump()?, clock);
        if next != Next::Again {
            self.sleeps_for_frames = Some(readable);
        }
        Ok(next)
    }

    pub(crate) fn step_control(&mut self, clock: &Clock) -> Result<Next, PortEnd> {
        Ok(Self::next(self.port.step_control()?, clock).0)
    }

    pub(crate) fn port(&mut self) -> &mut SteppedPort<Handle> {
        &mut self.port
    }

    /// Whether the pump sleeps.
    pub(crate) fn sleeps(&self) -> bool {
        self.sleeps_for_frames.is_some()
    }

    /// Whether the pump sleeps until there is a frame for it.
    pub(crate) fn sleeps_for_frames(&self) -> bool {
        self.sleeps_for_frames == Some(true)
    }

    pub(crate) fn end(self, end: &PortEnd) -> Result<PortSnapshot, String> {
        let counters = self.port.end(end);
        check(&counters).map(|()| counters)
    }

    /// `kill -9`.
    pub(crate) fn kill(self) -> Result<(), String> {
        check(&self.port.counters())
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        check(&self.port.counters())
    }
}

/// Whether every frame is accounted for.
fn check(counters: &PortSnapshot) -> Result<(), String> {
    for (direction, counters) in [
        ("guest to host", &counters.guest_to_host),
        ("host to guest", &counters.host_to_guest),
    ] {
        if let Err(gap) = counters.check_ledger() {
            return Err(format!(
                "{direction}: the bridge's frames do not add up: {gap:?}"
            ));
        }
    }
    Ok(())
}
