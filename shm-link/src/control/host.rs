//! The host's side of the control channel, as a state machine without I/O.
//!
//! `host-bridge` owns one per guest. It hands in what it receives, sends what
//! [`HostControl::poll_transmit`] shows, and pushes changes by
//! [`HostControl::update`]. The machine never waits and has no clock, and it
//! trusts nothing that it is handed.
//!
//! | message | Waiting, Refused | Greeted | Running |
//! | --- | --- | --- | --- |
//! | hello | accept, event: Greeted; or refuse, event: Refused | same | same |
//! | accept, refuse, broken handshake | fault | fault | fault |
//! | configure | error NoSession | config, event: Running; or error Invalid | same |
//! | ping | error NoSession | pong | pong |
//! | report | error NoSession | done, event | done, event |
//! | goodbye | error NoSession | done, event: Waiting | done, event: Waiting |
//! | unknown request | error NoSession | error UnknownRequest | error UnknownRequest |
//! | broken request | error NoSession | error Malformed, UnknownOption | same |
//! | broken or unknown answer | – | fault | fault |
//! | no whole header | fault | fault | fault |
//! | done for the update | – | – | event; newer update sent |
//! | error NoSession for the update | – | – | event: Waiting |
//! | error for the update | – | – | event; newer update sent |
//! | pong, or error, for the ping | – | event | event |
//! | any other answer | – | – | – |
//!
//! "–" means: ignored; it answers a session that is no more, or nothing at all.
//!
//! # A guest that asks and takes no answers
//! The queue is fixed. When it has no room for the longest answer,
//! [`HostControl::wants_input`] is `false`; the owner then leaves messages in the
//! link, the link fills up, and the guest cannot send. Nothing is dropped, and
//! the guest harms itself alone.

use super::Name;
use super::config::{ConfigError, NetworkConfig};
use super::hello::{Handshake, Refusal, VersionRange};
use super::message::{
    Configure, ErrorCode, FromGuest, FromHost, Level, MAX_CONFIG_LEN, Message, is_reply,
};
use super::outbox::{NotNow, Outbox, queued_len, words_for};
use super::wire::{DecodeError, DecodeErrorKind};
use crate::fault::PeerFault;
use crate::offload::Offloads;

/// Room that the longest answer may need in the queue.
const ANSWER_ROOM: usize = queued_len(MAX_CONFIG_LEN);

/// What a host brings to the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostOffer {
    /// The versions to accept: [`VersionRange::SUPPORTED`], or a part of it.
    pub versions: VersionRange,
    /// Feature bits to agree to. Version 1 defines none.
    pub features: u64,
    /// What to tell the guest. Its MTU and its offloads are the most that this
    /// host can do; what is agreed is never more than the guest can do either.
    pub config: NetworkConfig,
}

/// What the host's owner has to know or do. Texts are the guest's: escape
/// control characters before showing them.
#[expect(
    clippy::large_enum_variant,
    reason = "there is no allocator to box with, and one is alive at a time"
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostEvent<'m> {
    /// A guest opened a session. No configuration holds until
    /// [`HostEvent::Configured`].
    Hello {
        /// The version that both speak from now on.
        version: u16,
        /// The features that both can use.
        features: u64,
        /// Whether a session was open before: the guest was restarted, or it
        /// began anew.
        restarted: bool,
    },
    /// A guest was refused.
    Refused(Refusal),
    /// The guest asked for its configuration and gets this one.
    Configured(NetworkConfig),
    /// The guest applied the update with this serial.
    Acknowledged {
        /// The serial of the configuration that holds now.
        serial: u32,
    },
    /// The guest has no configuration, though it was sent one: on a link that loses
    /// messages that may have been lost. It will say hello, and be given what was to
    /// change as well.
    SessionLost,
    /// The guest did not apply the update with this serial; what held before
    /// still holds.
    Rejected {
        /// The serial of the update.
        serial: u32,
        /// Why not.
        code: ErrorCode,
        /// The guest's words for it.
        words: &'m str,
    },
    /// A line for the log.
    Report {
        /// How grave it is.
        level: Level,
        /// What happened.
        text: &'m str,
    },
    /// The guest is about to leave; the session is over.
    Goodbye {
        /// Zero for an orderly end, else the guest's own number.
        code: u32,
        /// The guest's words for it.
        words: &'m str,
    },
    /// The guest answered the ping.
    Pong,
}

/// How far the host is with its guest, for its owner to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostState {
    /// No guest has said hello, or it said goodbye.
    Waiting,
    /// The last hello was refused.
    Refused(Refusal),
    /// A version is agreed, the guest has no configuration yet.
    Greeted,
    /// The guest has a configuration.
    Running,
}

/// What the guest said that it can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    max_mtu: u16,
    can_receive: Offloads,
    can_send: Offloads,
}

impl Limits {
    /// What both sides can do of what the host would like.
    fn agree(&self, wish: &NetworkConfig) -> Result<NetworkConfig, ConfigError> {
        let agreed = NetworkConfig {
            mtu: wish.mtu.min(self.max_mtu),
            offloads_to_guest: usable(wish.offloads_to_guest.intersection(self.can_receive)),
            offloads_to_host: usable(wish.offloads_to_host.intersection(self.can_send)),
            ..wish.clone()
        };
        agreed.validate()?;
        Ok(agreed)
    }
}

/// Segmentation needs the unfinished checksum; without it nothing is left.
fn usable(common: Offloads) -> Offloads {
    if common.contains(Offloads::CHECKSUM) {
        common
    } else {
        Offloads::NONE
    }
}

/// The update that was sent last and is not answered yet.
#[derive(Debug, Clone)]
struct OpenUpdate {
    id: u32,
    config: NetworkConfig,
}

#[expect(
    clippy::large_enum_variant,
    reason = "there is no allocator to box with, and each machine has one"
)]
#[derive(Debug)]
enum State {
    Waiting,
    Refused(Refusal),
    Greeted,
    Running {
        limits: Limits,
        /// What the guest is to have: the newest configuration, as agreed.
        agreed: NetworkConfig,
        /// Whether `agreed` was not sent yet.
        unsent: bool,
        update: Option<OpenUpdate>,
    },
}

/// The host's side of the control channel. See the module's table.
#[derive(Debug)]
pub struct HostControl {
    offer: HostOffer,
    state: State,
    outbox: Outbox,
    next_id: u32,
    ping: Option<u32>,
    guest_name: Name,
}

impl HostControl {
    /// A machine that waits for a guest.
    ///
    /// # Errors
    /// When the configuration to offer makes no sense.
    pub fn new(offer: HostOffer) -> Result<Self, ConfigError> {
        offer.config.validate()?;
        Ok(Self {
            offer,
            state: State::Waiting,
            outbox: Outbox::new(),
            next_id: 1,
            ping: None,
            guest_name: Name::new(),
        })
    }

    /// How far the host is.
    pub fn state(&self) -> HostState {
        match self.state {
            State::Waiting => HostState::Waiting,
            State::Refused(refusal) => HostState::Refused(refusal),
            State::Greeted => HostState::Greeted,
            State::Running { .. } => HostState::Running,
        }
    }

    /// What the guest called itself when it was last configured; empty before.
    /// The guest's text: escape control characters before showing it.
    pub fn guest_name(&self) -> &str {
        &self.guest_name
    }

    /// The newest configuration as agreed with the guest, applied or not.
    /// `None` while no guest is configured.
    pub fn agreed(&self) -> Option<&NetworkConfig> {
        match &self.state {
            State::Running { agreed, .. } => Some(agreed),
            State::Waiting | State::Refused(_) | State::Greeted => None,
        }
    }

    /// The configuration that the guest was sent last and has not answered: it may
    /// have applied it already. Newer ones wait behind it.
    pub fn under_way(&self) -> Option<&NetworkConfig> {
        match &self.state {
            State::Running { update, .. } => update.as_ref().map(|open| &open.config),
            State::Waiting | State::Refused(_) | State::Greeted => None,
        }
    }

    /// What the host would give a guest that can do everything it can.
    pub fn offered(&self) -> &NetworkConfig {
        &self.offer.config
    }

    /// Whether the machine can take another message. Where not, leave messages
    /// in the link and transmit first.
    pub fn wants_input(&self) -> bool {
        self.outbox.free() >= ANSWER_ROOM
    }

    /// Takes a message from the guest. Without [`wants_input`](Self::wants_input)
    /// a request is dropped unanswered; a hello never is.
    ///
    /// # Errors
    /// [`PeerFault::Control`] for an accept, a refusal or a broken handshake
    /// message; for a message without a whole header; and inside a session for an
    /// answer that cannot be decoded or whose kind is unknown.
    pub fn handle_message<'m>(
        &mut self,
        bytes: &'m [u8],
    ) -> Result<Option<HostEvent<'m>>, PeerFault> {
        if Handshake::is_handshake(bytes) {
            return match Handshake::try_from(bytes) {
                Ok(Handshake::Hello {
                    versions,
                    features,
                    session,
                }) => Ok(Some(self.handle_hello(versions, features, session))),
                Ok(Handshake::Accept { .. } | Handshake::Refuse { .. }) | Err(_) => {
                    Err(PeerFault::Control)
                }
            };
        }
        let decoded = Message::<FromGuest<'m>>::try_from(bytes);
        match self.state {
            State::Waiting | State::Refused(_) => self.handle_outside_session(decoded),
            State::Greeted | State::Running { .. } => match decoded {
                Ok(message) => self.handle_in_session(message),
                Err(DecodeError { reply_to, kind }) => {
                    let id = reply_to.ok_or(PeerFault::Control)?;
                    self.refuse(id, kind.into(), &words_for(kind));
                    Ok(None)
                }
            },
        }
    }

    /// The next message to send. The same until [`transmitted`](Self::transmitted).
    #[must_use]
    pub fn poll_transmit(&mut self) -> Option<&[u8]> {
        self.queue_update();
        self.outbox.front()
    }

    /// Takes off the queue what [`poll_transmit`](Self::poll_transmit) showed.
    /// Call it as soon as that was sent, before any other method.
    pub fn transmitted(&mut self) {
        self.outbox.pop();
    }

    /// Changes the configuration and says its serial, whatever serial `config`
    /// has. A running guest is told; while it still has an earlier update to
    /// answer, only the newest waits behind it. Any other guest gets it when it
    /// asks. A change that makes no difference to a running guest keeps the
    /// serial, and the guest is not told.
    ///
    /// # Errors
    /// When the configuration makes no sense, or does not once it is cut down to
    /// what the running guest can do; then nothing changes.
    pub fn update(&mut self, mut config: NetworkConfig) -> Result<u32, ConfigError> {
        let serial = self.offer.config.serial;
        config.serial = serial.wrapping_add(1);
        config.validate()?;
        match &mut self.state {
            State::Waiting | State::Refused(_) | State::Greeted => {}
            State::Running {
                limits,
                agreed,
                unsent,
                ..
            } => {
                let next = limits.agree(&config)?;
                if next.differs_only_in_serial(agreed) {
                    config.serial = serial;
                } else {
                    *agreed = next;
                    *unsent = true;
                }
            }
        }
        self.offer.config = config;
        Ok(self.offer.config.serial)
    }

    /// Queues the update that waits for its answer once more, as the same request:
    /// for a link that may have lost it, or the answer. A guest that works on it
    /// ignores the repetition, one that is done applies it again. `false`: there is
    /// none, or older messages have not left yet.
    pub fn repeat_update(&mut self) -> bool {
        let State::Running {
            update: Some(open), ..
        } = &self.state
        else {
            return false;
        };
        if self.outbox.front().is_some() {
            return false;
        }
        let message = Message {
            id: open.id,
            body: FromHost::Update(open.config.clone()),
        };
        self.outbox.push(0, |buf| message.encode(buf)).is_ok()
    }

    /// Asks whether the guest's machine is there. The answer is
    /// [`HostEvent::Pong`].
    ///
    /// # Errors
    /// Why not now; nothing was queued.
    pub fn ping(&mut self) -> Result<(), NotNow> {
        match self.state {
            State::Waiting | State::Refused(_) => return Err(NotNow::NoSession),
            State::Greeted | State::Running { .. } => {}
        }
        if self.ping.is_some() {
            return Err(NotNow::Open);
        }
        self.ping = Some(self.request(FromHost::Ping)?);
        Ok(())
    }

    /// Queues the newest configuration if the guest does not have it and has
    /// answered the update before.
    fn queue_update(&mut self) {
        let State::Running {
            agreed,
            unsent: unsent @ true,
            update: update @ None,
            ..
        } = &mut self.state
        else {
            return;
        };
        let id = self.next_id;
        let message = Message {
            id,
            body: FromHost::Update(agreed.clone()),
        };
        if self.outbox.push(0, |buf| message.encode(buf)).is_ok() {
            self.next_id = id.wrapping_add(1);
            let config = agreed.clone();
            *update = Some(OpenUpdate { id, config });
            *unsent = false;
        }
    }

    fn request(&mut self, body: FromHost<'_>) -> Result<u32, NotNow> {
        let id = self.next_id;
        let message = Message { id, body };
        self.outbox.push(0, |buf| message.encode(buf))?;
        self.next_id = id.wrapping_add(1);
        Ok(id)
    }

    /// Queues an answer; `wants_input` said that there is room.
    fn answer(&mut self, id: u32, body: FromHost<'_>) {
        let message = Message { id, body };
        let queued = self.outbox.push(0, |buf| message.encode(buf));
        debug_assert!(queued.is_ok() || !self.wants_input(), "room was kept");
    }

    fn refuse(&mut self, id: u32, code: ErrorCode, words: &str) {
        self.answer(id, FromHost::Error { code, words });
    }

    fn handle_hello<'m>(
        &mut self,
        guest: VersionRange,
        features: u64,
        session: u32,
    ) -> HostEvent<'m> {
        let restarted = match self.state {
            State::Waiting | State::Refused(_) => false,
            State::Greeted | State::Running { .. } => true,
        };
        // Whatever is queued answers a session that is no more.
        self.outbox.clear();
        self.ping = None;
        let host = self.offer.versions;
        let (answer, event) = match host.choose(guest) {
            Ok(version) => {
                let features = features & self.offer.features;
                self.state = State::Greeted;
                (
                    Handshake::Accept {
                        versions: host,
                        version,
                        features,
                        session,
                    },
                    HostEvent::Hello {
                        version,
                        features,
                        restarted,
                    },
                )
            }
            Err(reason) => {
                let refusal = Refusal {
                    reason,
                    host,
                    guest,
                };
                self.state = State::Refused(refusal);
                (
                    Handshake::Refuse {
                        versions: host,
                        reason,
                        session,
                    },
                    HostEvent::Refused(refusal),
                )
            }
        };
        let queued = self.outbox.push(0, |buf| answer.encode(buf));
        debug_assert!(queued.is_ok(), "an answer fits an empty queue");
        event
    }

    fn handle_outside_session<'m>(
        &mut self,
        decoded: Result<Message<FromGuest<'m>>, DecodeError>,
    ) -> Result<Option<HostEvent<'m>>, PeerFault> {
        let request = match decoded {
            Ok(Message { id, body }) => match body {
                FromGuest::Configure(_)
                | FromGuest::Ping
                | FromGuest::Report { .. }
                | FromGuest::Goodbye { .. } => Some(id),
                FromGuest::Unknown { kind } => (!is_reply(kind)).then_some(id),
                FromGuest::Pong | FromGuest::Done | FromGuest::Error { .. } => None,
            },
            Err(DecodeError {
                kind: DecodeErrorKind::NoHeader,
                ..
            }) => return Err(PeerFault::Control),
            Err(DecodeError { reply_to, .. }) => reply_to,
        };
        if let Some(id) = request {
            let words = "this host knows no session of yours: send a hello first";
            self.refuse(id, ErrorCode::NoSession, words);
        }
        Ok(None)
    }

    fn handle_in_session<'m>(
        &mut self,
        message: Message<FromGuest<'m>>,
    ) -> Result<Option<HostEvent<'m>>, PeerFault> {
        let Message { id, body } = message;
        if body.is_request() && !self.wants_input() {
            return Ok(None);
        }
        Ok(match body {
            FromGuest::Configure(configure) => self.handle_configure(id, &configure),
            FromGuest::Ping => {
                self.answer(id, FromHost::Pong);
                None
            }
            FromGuest::Report { level, text } => {
                self.answer(id, FromHost::Done);
                Some(HostEvent::Report { level, text })
            }
            FromGuest::Goodbye { code, words } => {
                self.answer(id, FromHost::Done);
                self.state = State::Waiting;
                self.ping = None;
                Some(HostEvent::Goodbye { code, words })
            }
            FromGuest::Pong => self.close_ping(id).then_some(HostEvent::Pong),
            FromGuest::Done => self
                .close_update(id)
                .map(|serial| HostEvent::Acknowledged { serial }),
            FromGuest::Error { code, words } => {
                // A guest that cannot even pong is there all the same.
                if self.close_ping(id) {
                    return Ok(Some(HostEvent::Pong));
                }
                let serial = self.close_update(id);
                if serial.is_some() && code == ErrorCode::NoSession {
                    self.state = State::Waiting;
                    return Ok(Some(HostEvent::SessionLost));
                }
                serial.map(|serial| HostEvent::Rejected {
                    serial,
                    code,
                    words,
                })
            }
            FromGuest::Unknown { kind } if is_reply(kind) => return Err(PeerFault::Control),
            FromGuest::Unknown { kind } => {
                let words = words_for(format_args!("this host knows no request {kind:#06x}"));
                self.refuse(id, ErrorCode::UnknownRequest, &words);
                None
            }
        })
    }

    fn handle_configure<'m>(&mut self, id: u32, asked: &Configure<'_>) -> Option<HostEvent<'m>> {
        let limits = Limits {
            max_mtu: asked.max_mtu,
            can_receive: asked.can_receive,
            can_send: asked.can_send,
        };
        let agreed = match limits.agree(&self.offer.config) {
            Ok(agreed) => agreed,
            Err(error) => {
                self.refuse(id, ErrorCode::Invalid, &words_for(error));
                return None;
            }
        };
        self.answer(id, FromHost::Config(agreed.clone()));
        // The decoder let no longer name through than a Name holds.
        self.guest_name = Name::try_from(asked.name).unwrap_or_default();
        let update = match &mut self.state {
            State::Running { update, .. } => update.take(),
            State::Waiting | State::Refused(_) | State::Greeted => None,
        };
        self.state = State::Running {
            limits,
            agreed: agreed.clone(),
            unsent: false,
            update,
        };
        Some(HostEvent::Configured(agreed))
    }

    fn close_ping(&mut self, id: u32) -> bool {
        self.ping.take_if(|ping| *ping == id).is_some()
    }

    /// The serial of the open update, if it has this id; it is closed then.
    fn close_update(&mut self, id: u32) -> Option<u32> {
        match &mut self.state {
            State::Running { update, .. } => {
                let closed = update.take_if(|open| open.id == id);
                closed.map(|open| open.config.serial)
            }
            State::Waiting | State::Refused(_) | State::Greeted => None,
        }
    }
}
