//! The task of a port whose guest shares memory with the host.
//!
//! It owns the control rings and watches the pump, which is a task of its own and
//! waits for the doorbell for both. The frames that the guest sent before it
//! closed are still to be delivered, so the pump ends the port, not the control
//! rings.

use std::sync::Arc;

use shm_link::doorbell::Doorbell;
use shm_link::link::{MAX_CONTROL_LEN, MAX_FRAME_LEN};
use shm_link::region::Region;
use shm_link::ring::{Arm, Wake};
use shm_link::shm::HostEnd;
use shm_link::superblock::Layout;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::core::Core;
use super::rings::ControlRings;
use super::status::PortEnd;
use super::{Port, PortConfig};
use crate::bell::{Doorbells, GuestBell, HostBell};
use crate::error::BridgeError;
use crate::netlink::Netlink;
use crate::policy::Stop;
use crate::pump::{BUDGET_MESSAGES, ControlWatch, PumpEnd, ShmPump, sleep_until};
use crate::tap::{Tap, TapKind};

/// What TAP a guest with such rings can use.
pub(super) fn tap_kind(layout: &Layout) -> TapKind {
    // A super-frame that did not fit the ring would lose its end.
    match layout.frames.to_guest.max_frame_len() {
        MAX_FRAME_LEN => TapKind::VnetHeader,
        _ => TapKind::Plain,
    }
}

/// Publishes the memory map in `region`, and starts to serve the guest.
pub(super) async fn open(
    netlink: &Netlink,
    region: Region,
    layout: Layout,
    doorbells: Doorbells,
    config: PortConfig,
    tap: Tap,
) -> Result<Port, BridgeError> {
    let (core, handle) = Core::open(netlink, config, tap).await?;
    let io = |doing: &str| {
        let doing = format!("{doing} of port {}", core.name());
        move |error| BridgeError::io(doing, error)
    };
    let host = HostEnd::resume(&region, &layout)
        .map_err(|error| io("taking the rings")(std::io::Error::other(error)))?;
    let bell = HostBell::new(&doorbells.rung_by_guest).map_err(io("registering the doorbell"))?;
    let ring_guest = GuestBell::new(doorbells.ring_guest);
    let rung = Arc::new(Notify::new());
    let control = ControlWatch {
        rings: [host.control_rx.watch(), host.control_tx.watch()],
        task: rung.clone(),
    };
    let frames = (host.frames_rx, host.frames_tx);
    let shared = core.pump_shared();
    let pump = ShmPump::new(frames, bell, ring_guest.clone(), control, shared);
    // In a set, so that it ends with the port's task, however that ends.
    let mut pumps = JoinSet::new();
    pumps.spawn(pump.run());
    // Everything is in its place: let the guest in, and wake one that waits.
    layout
        .publish(&region)
        .map_err(|error| io("publishing the memory")(std::io::Error::other(error)))?;
    ring_guest.ring();
    let keeper = core.keeper();
    let task = Task {
        core,
        rings: ControlRings::new(host.control_rx, host.control_tx),
        rung,
        ring_guest,
    };
    Ok(Port::start(handle, keeper, async move {
        let _memory = region;
        task.run(pumps).await
    }))
}

/// The task.
struct Task {
    core: Core,
    rings: ControlRings,
    /// The guest rang, and a control ring has what this task waits for.
    rung: Arc<Notify>,
    ring_guest: GuestBell,
}

impl Task {
    async fn run(mut self, mut pump: JoinSet<PumpEnd>) -> PortEnd {
        let end = match self.serve(&mut pump).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        let stop = self.core.end(&end);
        while pump.join_next().await.is_some() {}
        if stop == Stop::Close {
            self.rings.close();
            // Whatever it waits for, the guest is to see that it is over.
            self.ring_guest.ring();
        }
        self.core.finish(&end);
        end
    }

    async fn serve(
        &mut self,
        pump: &mut JoinSet<PumpEnd>,
    ) -> Result<std::convert::Infallible, PortEnd> {
        loop {
            let busy = self.exchange().await?;
            self.core.show();
            if busy {
                tokio::task::yield_now().await;
                continue;
            }
            let takes_message = self.core.takes_message();
            if self.rings.arm(&mut self.core.session, takes_message)? == Arm::Awake {
                continue;
            }
            let command = tokio::select! {
                () = self.rung.notified(), if !self.rings.is_closed() => None,
                () = sleep_until(self.core.message_pause()) => None,
                Some(command) = self.core.inbox.recv() => Some(command),
                Some(end) = pump.join_next() => return Err(match end {
                    Ok(end) => end.into(),
                    Err(error) => PortEnd::Failed(format!("the pump stopped: {error}")),
                }),
            };
            self.rings.disarm();
            if let Some(command) = command {
                self.core.handle_command(command).await?;
            }
        }
    }

    /// Moves control messages both ways; `true` if there may be more.
    async fn exchange(&mut self) -> Result<bool, PortEnd> {
        let mut buf = [0; MAX_CONTROL_LEN];
        let mut busy = true;
        let mut wake = Wake::NotNeeded;
        for _ in 0..BUDGET_MESSAGES {
            wake = wake.or(self.rings.transmit(&mut self.core.session)?);
            if !self.core.takes_message() {
                // Answers first: the guest has to make room for them.
                busy = false;
                break;
            }
            let Some(len) = self.rings.receive(&mut buf)? else {
                busy = false;
                break;
            };
            self.core.handle_message(&buf[..len]).await?;
        }
        wake = wake.or(self.rings.transmit(&mut self.core.session)?);
        wake = wake.or(self.rings.give_back());
        wake.ring(&self.ring_guest);
        Ok(busy)
    }
}
