//! What the tests share: offers, messages made by hand, and both machines with the messages
//! under way between them.

use std::collections::VecDeque;

use shm_link::control::hello::Handshake;
use shm_link::control::message::{FromGuest, FromHost, Message};
use shm_link::control::{
    GuestControl, GuestEvent, GuestOffer, GuestState, HostControl, HostEvent, HostOffer, HostState,
    NetworkConfig, Prefixed, VersionRange,
};
use shm_link::link::MAX_CONTROL_LEN;
use shm_link::offload::Offloads;

/// Messages that a link holds in one direction before it is full.
pub(crate) const LINK_DEPTH: usize = 4;

pub(crate) fn guest_offer() -> GuestOffer {
    GuestOffer {
        session: 100,
        versions: VersionRange::SUPPORTED,
        features: 0b0110,
        max_mtu: 9000,
        can_receive: Offloads::CHECKSUM.union(Offloads::TSO4),
        can_send: Offloads::CHECKSUM,
        name: "arca-1".try_into().unwrap(),
    }
}

pub(crate) fn host_config() -> NetworkConfig {
    let mut config = NetworkConfig::new([2, 0, 0, 0, 0, 7], 65535);
    let addr = [10, 1, 2, 3].into();
    config.v4.push(Prefixed::new(addr, 24)).unwrap();
    config.gateway4 = Some([10, 1, 2, 1].into());
    config.offloads_to_guest = Offloads::CHECKSUM
        .union(Offloads::TSO4)
        .union(Offloads::TSO6);
    config.offloads_to_host = Offloads::CHECKSUM.union(Offloads::TSO4);
    config
}

pub(crate) fn host_offer() -> HostOffer {
    HostOffer {
        versions: VersionRange::SUPPORTED,
        features: 0b0011,
        config: host_config(),
    }
}

/// Both machines and the messages under way between them.
pub(crate) struct Pair {
    pub(crate) guest: GuestControl,
    pub(crate) host: HostControl,
    pub(crate) to_host: VecDeque<Vec<u8>>,
    pub(crate) to_guest: VecDeque<Vec<u8>>,
    pub(crate) guest_events: Vec<String>,
    pub(crate) host_events: Vec<String>,
    /// Whether the guest acknowledges changes as soon as it sees them.
    pub(crate) obliging: bool,
}

impl Pair {
    pub(crate) fn new() -> Self {
        Self::with(guest_offer(), host_offer())
    }

    pub(crate) fn with(guest: GuestOffer, host: HostOffer) -> Self {
        Self {
            guest: GuestControl::new(guest),
            host: HostControl::new(host).unwrap(),
            to_host: VecDeque::new(),
            to_guest: VecDeque::new(),
            guest_events: Vec::new(),
            host_events: Vec::new(),
            obliging: true,
        }
    }

    pub(crate) fn running() -> Self {
        let mut pair = Self::new();
        pair.run();
        assert_eq!(pair.guest.state(), GuestState::Running);
        assert_eq!(pair.host.state(), HostState::Running);
        pair.guest_events.clear();
        pair.host_events.clear();
        pair
    }

    pub(crate) fn guest_sends(&mut self) -> bool {
        let mut any = false;
        while self.to_host.len() < LINK_DEPTH {
            let Some(message) = self.guest.poll_transmit() else {
                break;
            };
            self.to_host.push_back(message.to_vec());
            self.guest.transmitted();
            any = true;
        }
        any
    }

    pub(crate) fn host_sends(&mut self) -> bool {
        let mut any = false;
        while self.to_guest.len() < LINK_DEPTH {
            let Some(message) = self.host.poll_transmit() else {
                break;
            };
            self.to_guest.push_back(message.to_vec());
            self.host.transmitted();
            any = true;
        }
        any
    }

    pub(crate) fn guest_receives(&mut self) -> bool {
        let mut any = false;
        while self.guest.wants_input() {
            let Some(message) = self.to_guest.pop_front() else {
                break;
            };
            any = true;
            let Some(event) = self.guest.handle_message(&message).unwrap() else {
                continue;
            };
            let text = match &event {
                GuestEvent::Configured(c) => format!("configured {} mtu {}", c.serial, c.mtu),
                GuestEvent::Changed(c) => format!("changed {} mtu {}", c.serial, c.mtu),
                GuestEvent::Refused(refusal) => format!("refused: {refusal}"),
                GuestEvent::HostError { code, words } => format!("error {code:?}: {words}"),
                GuestEvent::Pong => "pong".to_owned(),
            };
            self.guest_events.push(text);
            if let GuestEvent::Changed(config) = event
                && self.obliging
            {
                assert!(self.guest.applied(config.serial));
            }
        }
        any
    }

    pub(crate) fn host_receives(&mut self) -> bool {
        let mut any = false;
        while self.host.wants_input() {
            let Some(message) = self.to_host.pop_front() else {
                break;
            };
            any = true;
            let Some(event) = self.host.handle_message(&message).unwrap() else {
                continue;
            };
            self.host_events.push(match event {
                HostEvent::Hello {
                    version, restarted, ..
                } => format!("hello {version} restarted {restarted}"),
                HostEvent::Refused(refusal) => format!("refused: {refusal}"),
                HostEvent::Configured(c) => format!("configured {} mtu {}", c.serial, c.mtu),
                HostEvent::Acknowledged { serial } => format!("acknowledged {serial}"),
                HostEvent::Rejected {
                    serial,
                    code,
                    words,
                } => format!("rejected {serial} {code:?}: {words}"),
                HostEvent::Report { level, text } => format!("report {level:?}: {text}"),
                HostEvent::Goodbye { code, words } => format!("goodbye {code}: {words}"),
                HostEvent::Pong => "pong".to_owned(),
                HostEvent::SessionLost => "session lost".to_owned(),
            });
        }
        any
    }

    /// Until nothing moves any more.
    pub(crate) fn run(&mut self) {
        for _ in 0..1000 {
            let moved = [
                self.guest_sends(),
                self.host_receives(),
                self.host_sends(),
                self.guest_receives(),
            ];
            if moved == [false; 4] {
                return;
            }
        }
        panic!("the machines talk for ever");
    }

    pub(crate) fn update(&mut self, change: impl FnOnce(&mut NetworkConfig)) -> u32 {
        let mut config = host_config();
        change(&mut config);
        self.host.update(config).unwrap()
    }
}

pub(crate) fn from_guest(id: u32, body: FromGuest<'_>) -> Vec<u8> {
    let mut buf = [0; MAX_CONTROL_LEN];
    let len = Message { id, body }.encode(&mut buf).unwrap();
    buf[..len].to_vec()
}

pub(crate) fn from_host(id: u32, body: FromHost<'_>) -> Vec<u8> {
    let mut buf = [0; MAX_CONTROL_LEN];
    let len = Message { id, body }.encode(&mut buf).unwrap();
    buf[..len].to_vec()
}

pub(crate) fn handshake(handshake: Handshake) -> Vec<u8> {
    let mut buf = [0; 64];
    let len = handshake.encode(&mut buf).unwrap();
    buf[..len].to_vec()
}
