//! The task of a port whose guest is at the other end of a byte stream.
//!
//! One task does it all, because frames and control messages come and go in one
//! order: it takes a budget of input, sends the session's answers, moves a budget
//! of frames from the TAP, and sleeps when all of that has stopped. A guest that
//! does not read gets nothing from the TAP, and one that does not read its
//! answers is not listened to.

use std::convert::Infallible;
use std::io::IsTerminal;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use shm_link::link::{Link, MAX_CONTROL_LEN};
use shm_link::stream::Framing;
use shm_link::stream::fd::StreamFd;

use super::core::{BUDGET_MESSAGES, Core};
use super::status::PortEnd;
use super::{Port, PortConfig};
use crate::error::BridgeError;
use crate::netlink::Netlink;
use crate::policy::Stop;
use crate::pump::{BUDGET_FRAMES, PumpEnd, StreamPump, Turn, sleep_until};
use crate::tap::Tap;

/// How long an answer may take on a line that loses messages until the update is said
/// again: an update of 200 bytes and its answer take a fifth of that at 9,600 baud.
const REPEAT_AFTER: Duration = Duration::from_secs(1);

/// Starts to serve the guest.
pub(super) async fn open(
    netlink: &Netlink,
    fd: OwnedFd,
    framing: Framing,
    config: PortConfig,
    tap: Tap,
) -> Result<Port, BridgeError> {
    let doing = format!("taking the stream of port {}", config.name);
    let io = |error| BridgeError::io(doing.as_str(), error);
    let fd = if fd.is_terminal() {
        StreamFd::new_raw_terminal(fd)
    } else {
        StreamFd::new(fd)
    };
    let fd = fd.map_err(|error| io(error.into()))?;
    let (core, handle) = Core::open(netlink, config, tap).await?;
    let pump = StreamPump::new(fd, framing, core.pump_shared()).map_err(io)?;
    let keeper = core.keeper();
    let task = Task {
        core,
        pump,
        loses: framing == Framing::Serial,
        repeat_at: None,
    };
    Ok(Port::start(handle, keeper, task.run()))
}

/// The task.
struct Task {
    core: Core,
    pump: StreamPump,
    /// Whether messages may be lost.
    loses: bool,
    /// When the update that the guest has not answered is said again.
    repeat_at: Option<Instant>,
}

impl Task {
    async fn run(mut self) -> PortEnd {
        let end = match self.serve().await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        let stop = self.core.end(&end);
        // Who closed need not be told: on a serial line the next guest might read
        // it.
        let tell = stop == Stop::Close && end != PortEnd::Closed;
        self.pump.end(tell);
        self.core.finish(&end);
        end
    }

    async fn serve(&mut self) -> Result<Infallible, PortEnd> {
        loop {
            let more = self.take_input().await?;
            self.repeat();
            let stopped = match self.give_output() {
                Ok(stopped) => stopped,
                Err(PumpEnd::Closed) => return self.drain().await,
                Err(end) => return Err(end.into()),
            };
            let pause = self.pump.input_pause().max(self.core.message_pause());
            let takes_input = pause.is_none() && self.core.session.wants_input();
            let command = if more || !self.pump.may_sleep(takes_input, stopped)? {
                tokio::task::yield_now().await;
                self.core.inbox.try_recv().ok()
            } else {
                tokio::select! {
                    woken = self.pump.sleep(takes_input, pause, stopped) => {
                        woken?;
                        None
                    }
                    () = sleep_until(self.repeat_at) => None,
                    Some(command) = self.core.inbox.recv() => Some(command),
                }
            };
            if let Some(command) = command {
                self.core.handle_command(command).await?;
            }
        }
    }

    /// Says an update again that was not answered in time.
    fn repeat(&mut self) {
        if !self.loses || !self.core.session.awaits_answer() {
            self.repeat_at = None;
            return;
        }
        let now = Instant::now();
        match self.repeat_at {
            Some(at) if now < at => return,
            Some(_) => self.core.session.repeat_update(),
            None => {}
        }
        self.repeat_at = Some(now + REPEAT_AFTER);
    }

    /// Takes at most a budget of what the guest sent; `true` if there may be
    /// more.
    async fn take_input(&mut self) -> Result<bool, PortEnd> {
        let mut message = [0; MAX_CONTROL_LEN];
        let mut budget = BUDGET_FRAMES;
        for _ in 0..BUDGET_MESSAGES {
            self.pump.take_frames(&mut budget)?;
            if budget == 0 {
                return Ok(true);
            }
            if self.pump.input_pause().is_some() || !self.core.takes_message() {
                // Answers first: the guest has to make room for them.
                return Ok(false);
            }
            let received = self.pump.link().recv_control(&mut message);
            let Some(len) = received.map_err(PumpEnd::from)? else {
                return Ok(false);
            };
            self.core.handle_message(&message[..len]).await?;
            self.core.show();
        }
        Ok(true)
    }

    /// Sends answers, then at most a budget of frames.
    fn give_output(&mut self) -> Result<Turn, PumpEnd> {
        while let Some(message) = self.core.session.poll_transmit() {
            if !self.pump.link().send_control(message)? {
                break;
            }
            self.core.session.transmitted();
        }
        self.pump.give_frames()
    }

    /// The guest takes nothing any more. What it sent before is still to be
    /// delivered.
    async fn drain(&mut self) -> Result<Infallible, PortEnd> {
        loop {
            let more = self.take_input().await?;
            match self.pump.input_pause().max(self.core.message_pause()) {
                Some(until) => tokio::time::sleep_until(until.into()).await,
                None if more => tokio::task::yield_now().await,
                None => return Err(PortEnd::Closed),
            }
        }
    }
}
