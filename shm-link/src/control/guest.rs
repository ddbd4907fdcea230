//! The guest's side of the control channel, as a state machine without I/O.
//!
//! `guest-stack` owns one. It hands in what it receives, sends what
//! [`GuestControl::poll_transmit`] shows, applies the configurations it is given
//! and says so. The machine never waits and has no clock.
//!
//! | message | Greeting | Refused | Configuring | Failed | Running | Leaving | Gone |
//! | --- | --- | --- | --- | --- | --- | --- | --- |
//! | accept, own session | ask: Configuring | – | – | – | – | – | – |
//! | refuse, own session | event: Refused | – | – | – | – | – | – |
//! | hello, broken handshake | fault | fault | fault | fault | fault | fault | fault |
//! | update | – | – | error NoSession | error NoSession | event (or error Busy, Invalid; – if repeated) | error Leaving | – |
//! | ping | – | – | pong | pong | pong | pong | – |
//! | unknown request | – | – | error | error | error | error | – |
//! | broken request | – | – | error | error | error | error | – |
//! | broken answer, no header | – | – | fault | fault | fault | fault | – |
//! | config, own id | – | – | event: Running | – | – | – | – |
//! | pong, own id | – | – | event | event | event | – | – |
//! | done, own id | – | – | – | – | – | Gone | – |
//! | error for configure | – | – | event: Failed | – | – | – | – |
//! | error for goodbye | – | – | – | – | – | Gone | – |
//! | error NoSession | – | – | event: Greeting | event | event: Greeting | – | – |
//! | error, else | – | – | event | event | event | – | – |
//!
//! "–" means: ignored. Outside a session that is all that can be there, leftovers
//! of the session before; inside one it is an answer nobody waits for.
//! [`GuestControl::restart`] leads from every state to Greeting.

use super::config::NetworkConfig;
use super::hello::{Handshake, Refusal, VersionRange};
use super::message::{
    Configure, ErrorCode, FromGuest, FromHost, Level, MAX_ERROR_LEN, Message, is_reply,
};
use super::outbox::{NotNow, Outbox, clip, queued_len, words_for};
use super::wire::DecodeError;
use super::{MAX_HOST_REQUESTS, MAX_TEXT_LEN, MAX_WORDS_LEN, Name};
use crate::fault::PeerFault;
use crate::offload::Offloads;

/// Room that one answer of the guest may need in the queue.
const ANSWER_ROOM: usize = queued_len(MAX_ERROR_LEN);

/// Room that the guest's own requests leave to its answers.
const ANSWER_RESERVE: usize = MAX_HOST_REQUESTS * ANSWER_ROOM;

/// What a guest brings to the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestOffer {
    /// A number that the guest did not use before on this link: a boot counter,
    /// a clock, noise. By it the guest knows answers to an earlier incarnation
    /// of itself, which may still wait in the link.
    pub session: u32,
    /// The versions to offer: [`VersionRange::SUPPORTED`], or a part of it.
    pub versions: VersionRange,
    /// Feature bits to offer. Version 1 defines none.
    pub features: u64,
    /// The largest MTU the guest can use, in bytes without the Ethernet header.
    pub max_mtu: u16,
    /// What frames to the guest may leave undone.
    pub can_receive: Offloads,
    /// What the guest would like to leave undone in frames to the host.
    pub can_send: Offloads,
    /// What the guest calls itself, for the host's logs and status output.
    pub name: Name,
}

/// What the guest's owner has to know or do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestEvent<'m> {
    /// The session is open and this is the configuration. Apply it, whatever
    /// held before; it needs no acknowledgement.
    Configured(NetworkConfig),
    /// The configuration changes. Apply it and call [`GuestControl::applied`] or
    /// [`GuestControl::not_applied`] with its serial. The same one may come again,
    /// when its answer was lost.
    Changed(NetworkConfig),
    /// The host speaks no version that the guest speaks.
    Refused(Refusal),
    /// The host could not do what the guest asked. Look at
    /// [`GuestControl::state`]: after a failed configure it is
    /// [`GuestState::Failed`]; after [`ErrorCode::NoSession`] it is
    /// [`GuestState::Greeting`], the machine has begun anew.
    HostError {
        /// Why not.
        code: ErrorCode,
        /// The host's words for it.
        words: &'m str,
    },
    /// The host answered the ping.
    Pong,
}

/// How far the guest is, for its owner to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestState {
    /// A hello is sent or queued.
    Greeting,
    /// The host refused; only [`GuestControl::restart`] leads on.
    Refused(Refusal),
    /// A version is agreed, the configuration is asked for.
    Configuring,
    /// The host gave no configuration; only [`GuestControl::restart`] leads on.
    Failed(ErrorCode),
    /// A configuration holds.
    Running,
    /// A goodbye is sent or queued.
    Leaving,
    /// The goodbye was answered.
    Gone,
}

/// What the first exchange agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Agreement {
    version: u16,
    features: u64,
}

/// An update that was handed to the owner and is not answered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OpenUpdate {
    id: u32,
    serial: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    Refused(Refusal),
    Configuring {
        agreement: Agreement,
        request: u32,
    },
    Failed {
        agreement: Agreement,
        code: ErrorCode,
    },
    Running {
        agreement: Agreement,
        update: Option<OpenUpdate>,
    },
    Leaving {
        request: u32,
    },
    Gone,
}

/// The guest's side of the control channel. See the module's table.
#[derive(Debug)]
pub struct GuestControl {
    offer: GuestOffer,
    state: State,
    outbox: Outbox,
    next_id: u32,
    ping: Option<u32>,
}

impl GuestControl {
    /// A machine with its hello queued.
    pub fn new(offer: GuestOffer) -> Self {
        let mut machine = Self {
            offer,
            state: State::Greeting,
            outbox: Outbox::new(),
            next_id: 1,
            ping: None,
        };
        machine.greet();
        machine
    }

    /// Begins anew, after [`crate::link::Link::generation`] changed or because
    /// the owner wants a configuration again. Queued messages are dropped.
    pub fn restart(&mut self) {
        self.offer.session = self.offer.session.wrapping_add(1);
        self.greet();
    }

    /// How far the guest is.
    pub fn state(&self) -> GuestState {
        match self.state {
            State::Greeting => GuestState::Greeting,
            State::Refused(refusal) => GuestState::Refused(refusal),
            State::Configuring { .. } => GuestState::Configuring,
            State::Failed { code, .. } => GuestState::Failed(code),
            State::Running { .. } => GuestState::Running,
            State::Leaving { .. } => GuestState::Leaving,
            State::Gone => GuestState::Gone,
        }
    }

    /// The version and the features agreed on, once they are.
    pub fn agreed(&self) -> Option<(u16, u64)> {
        match self.state {
            State::Configuring { agreement, .. }
            | State::Failed { agreement, .. }
            | State::Running { agreement, .. } => Some((agreement.version, agreement.features)),
            State::Greeting | State::Refused(_) | State::Leaving { .. } | State::Gone => None,
        }
    }

    /// Whether the machine can take another message. Where not, leave messages
    /// in the link and transmit first. A host that keeps to
    /// [`MAX_HOST_REQUESTS`] never makes this `false`.
    pub fn wants_input(&self) -> bool {
        let owed = match self.state {
            State::Running {
                update: Some(_), ..
            } => 1,
            _ => 0,
        };
        self.outbox.free() >= (owed + 1) * ANSWER_ROOM
    }

    /// Takes a message from the host. Without [`wants_input`](Self::wants_input)
    /// a request is dropped unanswered.
    ///
    /// # Errors
    /// [`PeerFault::Control`] for a hello, a broken handshake message, an accept
    /// of what was not offered; and inside a session for a message without a
    /// whole header, an answer that cannot be decoded, an answer of unknown kind,
    /// a config that makes no sense or breaks the agreement.
    pub fn handle_message<'m>(
        &mut self,
        bytes: &'m [u8],
    ) -> Result<Option<GuestEvent<'m>>, PeerFault> {
        if Handshake::is_handshake(bytes) {
            let handshake = Handshake::try_from(bytes).map_err(|_| PeerFault::Control)?;
            return self.handle_handshake(handshake);
        }
        match self.state {
            State::Greeting | State::Refused(_) | State::Gone => return Ok(None),
            State::Configuring { .. }
            | State::Failed { .. }
            | State::Running { .. }
            | State::Leaving { .. } => {}
        }
        let Message { id, body } = match Message::<FromHost<'m>>::try_from(bytes) {
            Ok(message) => message,
            Err(DecodeError { reply_to, kind }) => {
                let id = reply_to.ok_or(PeerFault::Control)?;
                self.refuse(id, kind.into(), &words_for(kind));
                return Ok(None);
            }
        };
        match body {
            FromHost::Update(config) => Ok(self.handle_update(id, config)),
            FromHost::Ping => {
                self.answer(id, FromGuest::Pong);
                Ok(None)
            }
            FromHost::Config(config) => self.handle_config(id, config),
            FromHost::Pong => Ok(self.handle_pong(id)),
            FromHost::Done => {
                if self.state == (State::Leaving { request: id }) {
                    self.state = State::Gone;
                }
                Ok(None)
            }
            FromHost::Error { code, words } => Ok(self.handle_error(id, code, words)),
            FromHost::Unknown { kind } if is_reply(kind) => Err(PeerFault::Control),
            FromHost::Unknown { kind } => {
                let words = words_for(format_args!("this guest knows no request {kind:#06x}"));
                self.refuse(id, ErrorCode::UnknownRequest, &words);
                Ok(None)
            }
        }
    }

    /// The next message to send. The same until [`transmitted`](Self::transmitted).
    #[must_use]
    pub fn poll_transmit(&mut self) -> Option<&[u8]> {
        self.outbox.front()
    }

    /// Takes off the queue what [`poll_transmit`](Self::poll_transmit) showed.
    /// Call it as soon as that was sent, before any other method.
    pub fn transmitted(&mut self) {
        self.outbox.pop();
    }

    /// Acknowledges the change with this serial. `false`: no such change is open
    /// (any more); nothing is sent.
    pub fn applied(&mut self, serial: u32) -> bool {
        self.close_update(serial, FromGuest::Done)
    }

    /// Reports that the change with this serial could not be applied; what held
    /// before still holds. `false`: as for [`applied`](Self::applied).
    pub fn not_applied(&mut self, serial: u32, code: ErrorCode, words: &str) -> bool {
        let words = clip(words, MAX_WORDS_LEN);
        self.close_update(serial, FromGuest::Error { code, words })
    }

    /// Asks whether the host is there. The answer is [`GuestEvent::Pong`].
    ///
    /// # Errors
    /// Why not now; nothing was queued.
    pub fn ping(&mut self) -> Result<(), NotNow> {
        if self.ping.is_some() {
            return Err(NotNow::Open);
        }
        self.ping = Some(self.request(FromGuest::Ping)?);
        Ok(())
    }

    /// Sends a line for the host's log. What is over [`MAX_TEXT_LEN`] bytes is
    /// cut off.
    ///
    /// # Errors
    /// Why not now; nothing was queued.
    pub fn report(&mut self, level: Level, text: &str) -> Result<(), NotNow> {
        let text = clip(text, MAX_TEXT_LEN);
        self.request(FromGuest::Report { level, text }).map(drop)
    }

    /// Says that the guest is about to leave: `code` zero for an orderly end,
    /// else the guest's own number; `words` over [`MAX_WORDS_LEN`] bytes are cut
    /// off.
    ///
    /// # Errors
    /// Why not now; nothing was queued.
    pub fn goodbye(&mut self, code: u32, words: &str) -> Result<(), NotNow> {
        let words = clip(words, MAX_WORDS_LEN);
        let request = self.request(FromGuest::Goodbye { code, words })?;
        self.state = State::Leaving { request };
        Ok(())
    }

    fn greet(&mut self) {
        self.state = State::Greeting;
        self.ping = None;
        self.outbox.clear();
        let hello = Handshake::Hello {
            versions: self.offer.versions,
            features: self.offer.features,
            session: self.offer.session,
        };
        let queued = self.outbox.push(0, |buf| hello.encode(buf));
        debug_assert!(queued.is_ok(), "a hello fits an empty queue");
    }

    /// Queues a request of the guest's own and says its id.
    fn request(&mut self, body: FromGuest<'_>) -> Result<u32, NotNow> {
        match self.state {
            State::Configuring { .. } | State::Failed { .. } | State::Running { .. } => {}
            State::Greeting | State::Refused(_) | State::Leaving { .. } | State::Gone => {
                return Err(NotNow::NoSession);
            }
        }
        self.push_request(body)
    }

    fn push_request(&mut self, body: FromGuest<'_>) -> Result<u32, NotNow> {
        let id = self.next_id;
        let message = Message { id, body };
        self.outbox
            .push(ANSWER_RESERVE, |buf| message.encode(buf))?;
        self.next_id = id.wrapping_add(1);
        Ok(id)
    }

    /// Queues an answer. `false`: there was no room, because the owner handed in
    /// a request although the machine did not want input.
    fn answer(&mut self, id: u32, body: FromGuest<'_>) -> bool {
        let message = Message { id, body };
        self.outbox.push(0, |buf| message.encode(buf)).is_ok()
    }

    fn refuse(&mut self, id: u32, code: ErrorCode, words: &str) -> bool {
        self.answer(id, FromGuest::Error { code, words })
    }

    fn close_update(&mut self, serial: u32, answer: FromGuest<'_>) -> bool {
        let State::Running { agreement, update } = self.state else {
            return false;
        };
        let Some(open) = update.filter(|open| open.serial == serial) else {
            return false;
        };
        let answered = self.answer(open.id, answer);
        if answered {
            let update = None;
            self.state = State::Running { agreement, update };
        }
        answered
    }

    fn handle_handshake<'m>(
        &mut self,
        handshake: Handshake,
    ) -> Result<Option<GuestEvent<'m>>, PeerFault> {
        let (Handshake::Accept { session, .. } | Handshake::Refuse { session, .. }) = handshake
        else {
            return Err(PeerFault::Control);
        };
        if self.state != State::Greeting || session != self.offer.session {
            return Ok(None);
        }
        match handshake {
            Handshake::Hello { .. } => Err(PeerFault::Control),
            Handshake::Accept {
                version, features, ..
            } => {
                if !self.offer.versions.contains(version) || features & !self.offer.features != 0 {
                    return Err(PeerFault::Control);
                }
                self.configure(Agreement { version, features });
                Ok(None)
            }
            Handshake::Refuse {
                versions, reason, ..
            } => {
                let refusal = Refusal {
                    reason,
                    host: versions,
                    guest: self.offer.versions,
                };
                self.state = State::Refused(refusal);
                Ok(Some(GuestEvent::Refused(refusal)))
            }
        }
    }

    fn configure(&mut self, agreement: Agreement) {
        let name = self.offer.name.clone();
        let body = FromGuest::Configure(Configure {
            max_mtu: self.offer.max_mtu,
            can_receive: self.offer.can_receive,
            can_send: self.offer.can_send,
            name: &name,
        });
        // While greeting, the queue holds a hello at most, so this has room.
        if let Ok(request) = self.push_request(body) {
            self.state = State::Configuring { agreement, request };
        }
    }

    fn handle_config<'m>(
        &mut self,
        id: u32,
        config: NetworkConfig,
    ) -> Result<Option<GuestEvent<'m>>, PeerFault> {
        let State::Configuring { agreement, request } = self.state else {
            return Ok(None);
        };
        if id != request {
            return Ok(None);
        }
        if config.validate().is_err() || !self.keeps_agreement(&config) {
            return Err(PeerFault::Control);
        }
        let update = None;
        self.state = State::Running { agreement, update };
        Ok(Some(GuestEvent::Configured(config)))
    }

    fn handle_update<'m>(&mut self, id: u32, config: NetworkConfig) -> Option<GuestEvent<'m>> {
        if !self.wants_input() {
            return None;
        }
        let agreement = match self.state {
            State::Running {
                agreement,
                update: None,
            } => agreement,
            // The host's patience ended: the answer follows.
            State::Running {
                update: Some(open), ..
            } if open.id == id => return None,
            State::Running {
                update: Some(_), ..
            } => {
                self.refuse(id, ErrorCode::Busy, "the update before is not applied yet");
                return None;
            }
            State::Leaving { .. } => {
                self.refuse(id, ErrorCode::Leaving, "this guest is about to leave");
                return None;
            }
            State::Greeting
            | State::Refused(_)
            | State::Configuring { .. }
            | State::Failed { .. }
            | State::Gone => {
                self.refuse(id, ErrorCode::NoSession, "this guest is not configured");
                return None;
            }
        };
        if let Err(error) = config.validate() {
            self.refuse(id, ErrorCode::Invalid, &words_for(error));
            return None;
        }
        if !self.keeps_agreement(&config) {
            let words = "the MTU or an offload is more than this guest can do";
            self.refuse(id, ErrorCode::Invalid, words);
            return None;
        }
        let serial = config.serial;
        let update = Some(OpenUpdate { id, serial });
        self.state = State::Running { agreement, update };
        Some(GuestEvent::Changed(config))
    }

    /// Whether the configuration asks no more of the guest than it offered.
    fn keeps_agreement(&self, config: &NetworkConfig) -> bool {
        config.mtu <= self.offer.max_mtu
            && self.offer.can_receive.contains(config.offloads_to_guest)
            && self.offer.can_send.contains(config.offloads_to_host)
    }

    fn handle_pong<'m>(&mut self, id: u32) -> Option<GuestEvent<'m>> {
        self.ping.take_if(|ping| *ping == id)?;
        match self.state {
            State::Configuring { .. } | State::Failed { .. } | State::Running { .. } => {
                Some(GuestEvent::Pong)
            }
            State::Greeting | State::Refused(_) | State::Leaving { .. } | State::Gone => None,
        }
    }

    fn handle_error<'m>(
        &mut self,
        id: u32,
        code: ErrorCode,
        words: &'m str,
    ) -> Option<GuestEvent<'m>> {
        self.ping.take_if(|ping| *ping == id);
        match self.state {
            // The host forgot this session: it was restarted, and nobody said so.
            State::Configuring { .. } | State::Running { .. } if code == ErrorCode::NoSession => {
                self.restart();
            }
            State::Configuring { agreement, request } => {
                if id == request {
                    self.state = State::Failed { agreement, code };
                }
            }
            State::Running { .. } | State::Failed { .. } => {}
            State::Leaving { request } => {
                if id == request {
                    self.state = State::Gone;
                }
                return None;
            }
            State::Greeting | State::Refused(_) | State::Gone => return None,
        }
        Some(GuestEvent::HostError { code, words })
    }
}
