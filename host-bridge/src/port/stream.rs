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

use shm_link::link::MAX_CONTROL_LEN;
use shm_link::stream::Framing;
use shm_link::stream::fd::StreamFd;
use tokio::io::unix::AsyncFd;

use super::core::Core;
use super::status::PortEnd;
use super::{Port, PortConfig};
use crate::error::BridgeError;
use crate::netlink::Netlink;
use crate::policy::Stop;
use crate::pump::{Input, InputTurn, PumpEnd, StreamPump, sleep_until};
use crate::session::Session;
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
    let pump = StreamPump::new(&fd, framing, core.pump_shared()).map_err(io)?;
    // SAFETY: a StreamFd is open as long as it exists and never changes.
    let fd = unsafe { AsyncFd::register(fd) }.map_err(|refused| io(refused.into_parts().1))?;
    let keeper = core.keeper();
    let task = Task {
        core,
        pump,
        fd,
        repeater: Repeater::new(framing),
    };
    Ok(Port::start(handle, keeper, task.run()))
}

/// How often a line is greeted again on which nobody has said hello. No more often: a machine
/// that is just booting may take it for a key that was pressed.
const GREETINGS: u8 = 3;

/// The longest time between two greetings, of those that a guest's frames are worth.
const LONGEST_SILENCE: Duration = Duration::from_secs(16);

/// Says what may have been lost again, where messages may be: an update that was not
/// answered in time, and the greeting, which tells a guest that was there before that this
/// side is new.
#[derive(Debug)]
pub(super) struct Repeater {
    loses: bool,
    /// When the next word is due.
    pub(super) at: Option<Instant>,
    /// Greetings to come, and the time before the next.
    greetings: u8,
    silence: Duration,
}

impl Repeater {
    pub(super) fn new(framing: Framing) -> Self {
        Self {
            loses: framing == Framing::Serial,
            at: None,
            greetings: GREETINGS,
            silence: REPEAT_AFTER,
        }
    }

    /// Says what is due. `heard`: a guest has sent something since the last time. `greet` sends
    /// a greeting.
    pub(super) fn repeat<E>(
        &mut self,
        session: &mut Session,
        (now, heard): (Instant, bool),
        greet: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.loses {
            return Ok(());
        }
        let waits = session.is_waiting();
        if waits && heard {
            self.greetings = self.greetings.max(1);
        }
        let due = match waits {
            true => self.greetings > 0,
            false => session.awaits_answer(),
        };
        if !due {
            self.at = None;
            return Ok(());
        }
        match self.at {
            Some(at) if now < at => return Ok(()),
            Some(_) if waits => {
                self.greetings -= 1;
                self.silence = (self.silence * 2).min(LONGEST_SILENCE);
                greet()?;
            }
            Some(_) => session.repeat_update(),
            None => {}
        }
        let wait = if waits { self.silence } else { REPEAT_AFTER };
        self.at = Some(now + wait);
        Ok(())
    }
}

/// The task.
struct Task {
    core: Core,
    pump: StreamPump,
    fd: AsyncFd<StreamFd>,
    repeater: Repeater,
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
            let session = &mut self.core.session;
            let now = (Instant::now(), self.pump.take_heard());
            let greet = || self.pump.greet_again();
            let stopped = match self
                .repeater
                .repeat(session, now, greet)
                .and_then(|()| self.pump.give_output(session))
            {
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
                    woken = self.pump.sleep(&self.fd, takes_input, pause, stopped) => {
                        woken?;
                        None
                    }
                    () = sleep_until(self.repeater.at) => None,
                    Some(command) = self.core.inbox.recv() => Some(command),
                }
            };
            if let Some(command) = command {
                self.core.handle_command(command).await?;
            }
        }
    }

    /// Takes at most a budget of what the guest sent; `true` if there may be
    /// more.
    async fn take_input(&mut self) -> Result<bool, PortEnd> {
        let mut message = [0; MAX_CONTROL_LEN];
        let mut turn = InputTurn::FULL;
        loop {
            let takes_message = || self.core.takes_message();
            let input = self
                .pump
                .next_input(&mut turn, takes_message, &mut message)?;
            match input {
                Input::Message(len) => self.core.handle_message(&message[..len]).await?,
                Input::Idle => return Ok(false),
                Input::Budget => return Ok(true),
            }
            self.core.show();
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::FilterConfig;
    use crate::impair::ImpairConfig;
    use crate::limit::Limits;
    use shm_link::control::NetworkConfig;
    use shm_link::offload::Offloads;

    /// The seconds, of so many, at which a line is greeted on which something is heard at
    /// these.
    fn greeted(framing: Framing, seconds: u64, heard: &[u64]) -> Vec<u64> {
        let mut session = Session::new(
            NetworkConfig::new([2, 0, 0, 0, 0, 1], 1500),
            Offloads::NONE,
            FilterConfig::default(),
            Limits::default(),
            ImpairConfig::default(),
            ImpairConfig::default(),
        )
        .unwrap();
        let mut repeater = Repeater::new(framing);
        let begin = Instant::now();
        let mut greeted = Vec::new();
        for second in 0..seconds {
            let now = begin + Duration::from_secs(second);
            let greet = || {
                greeted.push(second);
                Ok::<_, PumpEnd>(())
            };
            repeater
                .repeat(&mut session, (now, heard.contains(&second)), greet)
                .unwrap();
        }
        greeted
    }

    #[test]
    fn a_line_is_greeted_thrice_and_then_when_something_is_heard() {
        assert_eq!(greeted(Framing::Serial, 1000, &[]), [1, 3, 7]);
        let heard: Vec<u64> = (100..140).collect();
        assert_eq!(
            greeted(Framing::Serial, 1000, &heard),
            [1, 3, 7, 108, 124, 140]
        );
        assert!(greeted(Framing::Prefixed, 1000, &heard).is_empty());
    }
}
