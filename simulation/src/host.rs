//! A port of the bridge as two tasks, the pump and the control task, and what wakes
//! them.
//!
//! The port itself is the bridge's own; this is what the executor and the kernel do.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use host_bridge::counters::PortSnapshot;
use host_bridge::port::stepped::{Interest, Step, SteppedPort};
use host_bridge::port::{PortConfig, PortEnd};
use shm_link::shm::ShmError;
use shm_link::superblock::Layout;

use crate::clock::{Clock, NEVER};
use crate::ethernet::{Handle, Tap};
use crate::guest::{Bell, Next};
use crate::machine::Cable;
use crate::stream::{HOST, LineEnd};

/// A port that is up.
pub(crate) struct Host {
    port: SteppedPort<Handle, LineEnd>,
    pub(crate) cable: Cable,
    /// The pump sleeps, and what of frames and of the stream is to wake it.
    sleep: Option<(bool, Interest)>,
}

impl Host {
    pub(crate) fn new(
        cable: Cable,
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
        let port = match &cable {
            Cable::Memory(region, _) => {
                SteppedPort::new(region.clone(), layout, ring, handle, config)?
            }
            Cable::Line(line) => {
                SteppedPort::over_stream(&line.end(HOST), line.framing, handle, config)
            }
        };
        Ok(Self {
            port,
            cable,
            sleep: None,
        })
    }

    fn next(step: Step, clock: &Clock) -> (Next, (bool, Interest)) {
        match step {
            Step::Again => (Next::Again, (false, Interest::default())),
            Step::Sleep {
                readable,
                stream,
                due,
            } => {
                let due = due.map_or(NEVER, |due| clock.of_host(due));
                (Next::SleepUntil(due), (readable, stream))
            }
        }
    }

    pub(crate) fn step_pump(&mut self, clock: &Clock) -> Result<Next, PortEnd> {
        self.sleep = None;
        let (next, sleep) = Self::next(self.port.step_pump()?, clock);
        if next != Next::Again {
            self.sleep = Some(sleep);
        }
        Ok(next)
    }

    pub(crate) fn step_control(&mut self, clock: &Clock) -> Result<Next, PortEnd> {
        Ok(Self::next(self.port.step_control()?, clock).0)
    }

    pub(crate) fn port(&mut self) -> &mut SteppedPort<Handle, LineEnd> {
        &mut self.port
    }

    /// Whether the pump sleeps.
    pub(crate) fn sleeps(&self) -> bool {
        self.sleep.is_some()
    }

    /// Whether the pump sleeps and this ring wakes it.
    pub(crate) fn is_woken(&self, rung: bool) -> bool {
        match (self.sleep, &self.cable) {
            (None, _) => false,
            (Some(_), Cable::Memory(..)) => rung,
            (Some((_, stream)), Cable::Line(line)) => {
                line.takes_edge(HOST, stream.input, stream.output)
            }
        }
    }

    /// Whether the pump sleeps until there is a frame for it.
    pub(crate) fn sleeps_for_frames(&self) -> bool {
        self.sleep.is_some_and(|(frames, _)| frames)
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
