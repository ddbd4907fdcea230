//! Both control machines against each other, and each against nonsense.

use std::collections::VecDeque;

use proptest::prelude::*;
use shm_link::control::hello::Handshake;
use shm_link::control::message::{Configure, FromGuest, FromHost, Message};
use shm_link::control::{
    ConfigError, ErrorCode, GuestControl, GuestEvent, GuestOffer, GuestState, HostControl,
    HostEvent, HostOffer, HostState, Level, NetworkConfig, NotNow, Prefixed, RefusalReason,
    VersionRange,
};
use shm_link::fault::PeerFault;
use shm_link::link::MAX_CONTROL_LEN;
use shm_link::offload::Offloads;

/// Messages that a link holds in one direction before it is full.
const LINK_DEPTH: usize = 4;

fn guest_offer() -> GuestOffer {
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

fn host_config() -> NetworkConfig {
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

fn host_offer() -> HostOffer {
    HostOffer {
        versions: VersionRange::SUPPORTED,
        features: 0b0011,
        config: host_config(),
    }
}

/// Both machines and the messages under way between them.
struct Pair {
    guest: GuestControl,
    host: HostControl,
    to_host: VecDeque<Vec<u8>>,
    to_guest: VecDeque<Vec<u8>>,
    guest_events: Vec<String>,
    host_events: Vec<String>,
    /// Whether the guest acknowledges changes as soon as it sees them.
    obliging: bool,
}

impl Pair {
    fn new() -> Self {
        Self::with(guest_offer(), host_offer())
    }

    fn with(guest: GuestOffer, host: HostOffer) -> Self {
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

    fn running() -> Self {
        let mut pair = Self::new();
        pair.run();
        assert_eq!(pair.guest.state(), GuestState::Running);
        assert_eq!(pair.host.state(), HostState::Running);
        pair.guest_events.clear();
        pair.host_events.clear();
        pair
    }

    fn guest_sends(&mut self) -> bool {
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

    fn host_sends(&mut self) -> bool {
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

    fn guest_receives(&mut self) -> bool {
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

    fn host_receives(&mut self) -> bool {
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
            });
        }
        any
    }

    /// Until nothing moves any more.
    fn run(&mut self) {
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

    fn update(&mut self, change: impl FnOnce(&mut NetworkConfig)) -> u32 {
        let mut config = host_config();
        change(&mut config);
        self.host.update(config).unwrap()
    }
}

fn from_guest(id: u32, body: FromGuest<'_>) -> Vec<u8> {
    let mut buf = [0; MAX_CONTROL_LEN];
    let len = Message { id, body }.encode(&mut buf).unwrap();
    buf[..len].to_vec()
}

fn from_host(id: u32, body: FromHost<'_>) -> Vec<u8> {
    let mut buf = [0; MAX_CONTROL_LEN];
    let len = Message { id, body }.encode(&mut buf).unwrap();
    buf[..len].to_vec()
}

fn handshake(handshake: Handshake) -> Vec<u8> {
    let mut buf = [0; 64];
    let len = handshake.encode(&mut buf).unwrap();
    buf[..len].to_vec()
}

#[test]
fn the_smaller_mtu_and_the_common_offloads_are_agreed() {
    let mut pair = Pair::new();
    pair.run();
    assert_eq!(pair.guest_events, ["configured 0 mtu 9000"]);
    assert_eq!(
        pair.host_events,
        ["hello 1 restarted false", "configured 0 mtu 9000"]
    );
    let agreed = pair.host.agreed().unwrap();
    assert_eq!(
        agreed.offloads_to_guest,
        Offloads::CHECKSUM.union(Offloads::TSO4)
    );
    assert_eq!(agreed.offloads_to_host, Offloads::CHECKSUM);
    assert_eq!(pair.guest.agreed(), Some((1, 0b0010)));
    assert_eq!(pair.host.guest_name(), "arca-1");
}

#[test]
fn segmentation_without_checksum_is_no_offload_at_all() {
    let mut offer = guest_offer();
    offer.can_receive = Offloads::TSO4;
    let mut pair = Pair::with(offer, host_offer());
    pair.run();
    let agreed = pair.host.agreed().unwrap();
    assert_eq!(agreed.offloads_to_guest, Offloads::NONE);
}

#[test]
fn an_incompatible_guest_is_refused_and_both_sides_know_why() {
    let ranges = [
        (VersionRange::new(1, 1), VersionRange::new(2, 3)),
        (VersionRange::new(4, 5), VersionRange::new(2, 3)),
        (VersionRange::new(3, 2), VersionRange::new(2, 3)),
    ];
    let reasons = [
        RefusalReason::GuestTooOld,
        RefusalReason::GuestTooNew,
        RefusalReason::NoVersion,
    ];
    for ((guest, host), reason) in ranges.into_iter().zip(reasons) {
        let mut guest_offer = guest_offer();
        guest_offer.versions = guest;
        let mut host_offer = host_offer();
        host_offer.versions = host;
        let mut pair = Pair::with(guest_offer, host_offer);
        pair.run();
        let GuestState::Refused(refusal) = pair.guest.state() else {
            panic!("not refused");
        };
        assert_eq!(pair.host.state(), HostState::Refused(refusal));
        assert_eq!(
            (refusal.reason, refusal.guest, refusal.host),
            (reason, guest, host)
        );
        assert_eq!(pair.guest_events, [format!("refused: {refusal}")]);
        assert_eq!(pair.host_events, pair.guest_events);
        assert_eq!(pair.guest.ping(), Err(NotNow::NoSession));
    }
}

#[test]
fn a_guest_that_reboots_at_any_moment_ends_up_configured() {
    for steps in 0..12 {
        let mut pair = Pair::new();
        for step in 0..steps {
            match step % 4 {
                0 => pair.guest_sends(),
                1 => pair.host_receives(),
                2 => pair.host_sends(),
                _ => pair.guest_receives(),
            };
        }
        // What is under way stays under way: the link outlives the guest.
        let mut offer = guest_offer();
        offer.session = 200;
        offer.max_mtu = 1400;
        pair.guest = GuestControl::new(offer);
        pair.guest_events.clear();
        pair.run();
        assert_eq!(pair.guest.state(), GuestState::Running, "after {steps}");
        assert_eq!(pair.guest_events, ["configured 0 mtu 1400"]);
        assert_eq!(pair.host.agreed().unwrap().mtu, 1400);
    }
}

#[test]
fn a_guest_that_reboots_with_an_update_open_gets_the_newest_configuration() {
    let mut pair = Pair::running();
    pair.obliging = false;
    pair.update(|c| c.mtu = 2000);
    pair.run();
    pair.update(|c| c.mtu = 3000);
    let mut offer = guest_offer();
    offer.session = 7;
    pair.guest = GuestControl::new(offer);
    pair.run();
    assert_eq!(
        pair.guest_events,
        ["changed 1 mtu 2000", "configured 2 mtu 3000"]
    );
    assert_eq!(
        pair.host_events,
        ["hello 1 restarted true", "configured 2 mtu 3000"]
    );
    pair.obliging = true;
    pair.update(|c| c.mtu = 4000);
    pair.run();
    assert_eq!(pair.host_events[2..], ["acknowledged 3"]);
}

#[test]
fn a_host_that_restarts_at_any_moment_finds_its_guest_again() {
    for steps in 0..12 {
        let mut pair = Pair::new();
        for step in 0..steps {
            match step % 4 {
                0 => pair.guest_sends(),
                1 => pair.host_receives(),
                2 => pair.host_sends(),
                _ => pair.guest_receives(),
            };
        }
        let _ = pair.guest.ping();
        pair.host = HostControl::new(host_offer()).unwrap();
        pair.guest.restart();
        pair.guest_events.clear();
        pair.run();
        assert_eq!(pair.guest.state(), GuestState::Running, "after {steps}");
        assert_eq!(pair.guest_events, ["configured 0 mtu 9000"]);
        assert_eq!(pair.host.state(), HostState::Running);
    }
}

#[test]
fn a_guest_that_no_one_told_of_a_restart_notices_it_and_begins_anew() {
    let mut pair = Pair::running();
    pair.host = HostControl::new(host_offer()).unwrap();
    pair.guest.report(Level::Info, "one").unwrap();
    pair.guest.ping().unwrap();
    pair.guest.report(Level::Info, "two").unwrap();
    pair.run();
    assert_eq!(pair.guest.state(), GuestState::Running);
    assert_eq!(pair.guest_events.len(), 2, "{:?}", pair.guest_events);
    assert!(pair.guest_events[0].starts_with("error NoSession"));
    assert!(pair.guest_events[1].starts_with("configured"));
    assert_eq!(pair.guest.ping(), Ok(()), "the lost ping is forgotten");
}

#[test]
fn a_guest_that_asks_a_restarted_host_for_its_configuration_begins_anew() {
    let mut pair = Pair::new();
    pair.guest_sends();
    pair.host_receives();
    pair.host_sends();
    pair.guest_receives();
    assert_eq!(pair.guest.state(), GuestState::Configuring);
    pair.host = HostControl::new(host_offer()).unwrap();
    pair.run();
    assert_eq!(pair.guest.state(), GuestState::Running);
}

#[test]
fn a_change_reaches_the_guest_and_is_acknowledged() {
    let mut pair = Pair::running();
    let serial = pair.update(|c| c.carrier = false);
    pair.run();
    assert_eq!(serial, 1);
    assert_eq!(pair.guest_events, ["changed 1 mtu 9000"]);
    assert_eq!(pair.host_events, ["acknowledged 1"]);
}

#[test]
fn changes_behind_an_open_update_coalesce_to_the_newest() {
    let mut pair = Pair::running();
    pair.obliging = false;
    pair.update(|c| c.mtu = 1501);
    pair.run();
    for mtu in 1502..1600 {
        pair.update(|c| c.mtu = mtu);
        pair.run();
    }
    assert_eq!(pair.guest_events, ["changed 1 mtu 1501"]);
    assert!(!pair.guest.applied(99), "99 is under way to nobody");
    assert!(pair.guest.applied(1));
    assert!(!pair.guest.applied(1), "acknowledged once already");
    pair.run();
    assert_eq!(pair.guest_events[1..], ["changed 99 mtu 1599"]);
    assert_eq!(pair.host_events, ["acknowledged 1"]);
    assert!(pair.guest.applied(99));
    pair.run();
    assert_eq!(pair.host_events[1..], ["acknowledged 99"]);
}

#[test]
fn a_rejected_update_is_reported_and_the_next_one_is_sent() {
    let mut pair = Pair::running();
    pair.obliging = false;
    pair.update(|c| c.mtu = 1501);
    pair.update(|c| c.mtu = 1502);
    pair.run();
    assert_eq!(pair.guest_events, ["changed 2 mtu 1502"]);
    let words = "é".repeat(100);
    assert!(pair.guest.not_applied(2, ErrorCode::Failed, &words));
    pair.update(|c| c.mtu = 1503);
    pair.run();
    assert_eq!(
        pair.host_events,
        [format!("rejected 2 Failed: {}", "é".repeat(80))]
    );
    assert_eq!(pair.guest_events[1..], ["changed 3 mtu 1503"]);
}

#[test]
fn an_update_that_makes_no_sense_for_this_guest_changes_nothing() {
    let mut offer = guest_offer();
    offer.max_mtu = 1000;
    let mut pair = Pair::with(offer, host_offer());
    pair.run();
    let mut config = host_config();
    config.slaac = true;
    assert_eq!(
        pair.host.update(config.clone()),
        Err(ConfigError::MtuTooSmallForIpv6)
    );
    config.mac = [0; 6];
    assert_eq!(pair.host.update(config), Err(ConfigError::Mac));
    assert!(pair.host.poll_transmit().is_none());
    assert_eq!(pair.update(|c| c.mtu = 999), 1, "no serial was used up");
}

#[test]
fn a_change_that_makes_no_difference_to_the_guest_is_not_sent() {
    let mut offer = guest_offer();
    offer.max_mtu = 1400;
    let mut pair = Pair::with(offer, host_offer());
    pair.run();
    assert_eq!(pair.update(|c| c.mtu = 1450), 0);
    assert!(pair.host.poll_transmit().is_none());
    assert_eq!(pair.host.offered().mtu, 1450);
    assert_eq!(pair.update(|c| c.mtu = 1300), 1);
    pair.run();
    assert_eq!(pair.guest_events[1..], ["changed 1 mtu 1300"]);
}

#[test]
fn an_update_before_the_guest_is_configured_is_what_it_is_configured_with() {
    let mut pair = Pair::new();
    pair.update(|c| c.mtu = 1600);
    pair.run();
    assert_eq!(pair.guest_events, ["configured 1 mtu 1600"]);
}

#[test]
fn a_guest_whose_mtu_is_too_small_is_told_so() {
    let mut offer = guest_offer();
    offer.max_mtu = 500;
    let mut pair = Pair::with(offer, host_offer());
    pair.run();
    assert_eq!(pair.guest.state(), GuestState::Failed(ErrorCode::Invalid));
    assert_eq!(pair.host.state(), HostState::Greeted);
    assert_eq!(
        pair.guest_events,
        ["error Invalid: the MTU is below 576 bytes"]
    );
    assert_eq!(pair.guest.report(Level::Error, "no network"), Ok(()));
    pair.run();
    assert_eq!(pair.host_events[1..], ["report Error: no network"]);
}

#[test]
fn both_sides_ping_each_other_one_at_a_time() {
    let mut pair = Pair::running();
    pair.guest.ping().unwrap();
    pair.host.ping().unwrap();
    assert_eq!(pair.guest.ping(), Err(NotNow::Open));
    assert_eq!(pair.host.ping(), Err(NotNow::Open));
    pair.run();
    assert_eq!(pair.guest_events, ["pong"]);
    assert_eq!(pair.host_events, ["pong"]);
    assert_eq!(pair.guest.ping(), Ok(()));
    assert_eq!(pair.host.ping(), Ok(()));
}

#[test]
fn a_report_is_cut_at_a_character() {
    let mut pair = Pair::running();
    let text = format!("x{}", "ü".repeat(600));
    pair.guest.report(Level::Panic, &text).unwrap();
    pair.run();
    let expected = format!("report Panic: x{}", "ü".repeat(511));
    assert_eq!(pair.host_events, [expected]);
}

#[test]
fn a_goodbye_ends_the_session_and_a_hello_opens_the_next() {
    let mut pair = Pair::running();
    pair.guest.report(Level::Panic, "out of memory").unwrap();
    pair.guest.goodbye(3, "panicked").unwrap();
    assert_eq!(pair.guest.state(), GuestState::Leaving);
    assert_eq!(pair.guest.ping(), Err(NotNow::NoSession));
    pair.run();
    assert_eq!(pair.guest.state(), GuestState::Gone);
    assert_eq!(pair.host.state(), HostState::Waiting);
    assert_eq!(
        pair.host_events,
        ["report Panic: out of memory", "goodbye 3: panicked"]
    );
    pair.guest.restart();
    pair.run();
    assert_eq!(pair.guest.state(), GuestState::Running);
}

#[test]
fn an_update_that_crosses_a_goodbye_is_answered() {
    let mut pair = Pair::running();
    pair.update(|c| c.mtu = 1501);
    pair.host_sends();
    pair.guest.goodbye(0, "").unwrap();
    pair.guest_receives();
    pair.guest_sends();
    assert_eq!(pair.to_host.len(), 2);
    let answer = Message::<FromGuest>::try_from(&pair.to_host[1][..]).unwrap();
    assert!(matches!(
        answer.body,
        FromGuest::Error {
            code: ErrorCode::Leaving,
            ..
        }
    ));
    pair.run();
    assert_eq!(pair.host_events, ["goodbye 0: "]);
}

#[test]
fn unknown_and_broken_requests_are_answered_with_an_error() {
    let mut pair = Pair::running();
    let mut mandatory = from_guest(71, FromGuest::Ping);
    mandatory.extend([1, 0x80, 0, 0]);
    let mut broken = from_guest(72, FromGuest::Ping);
    broken.push(0);
    let requests = [
        (70, from_guest(70, FromGuest::Unknown { kind: 0x1234 })),
        (71, mandatory),
        (72, broken),
    ];
    let codes = [
        ErrorCode::UnknownRequest,
        ErrorCode::UnknownOption,
        ErrorCode::Malformed,
    ];
    for ((id, request), expected) in requests.iter().zip(codes) {
        assert_eq!(pair.host.handle_message(request), Ok(None));
        let answer = pair.host.poll_transmit().unwrap().to_vec();
        pair.host.transmitted();
        let answer = Message::<FromHost>::try_from(&answer[..]).unwrap();
        assert_eq!(answer.id, *id);
        assert!(matches!(answer.body, FromHost::Error { code, .. } if code == expected));

        assert_eq!(pair.guest.handle_message(request), Ok(None));
        let answer = pair.guest.poll_transmit().unwrap().to_vec();
        pair.guest.transmitted();
        let answer = Message::<FromGuest>::try_from(&answer[..]).unwrap();
        assert_eq!(answer.id, *id);
        assert!(matches!(answer.body, FromGuest::Error { code, .. } if code == expected));
    }
}

#[test]
fn every_request_before_a_hello_is_answered_with_no_session() {
    let mut host = HostControl::new(host_offer()).unwrap();
    let mut broken = from_guest(4, FromGuest::Ping);
    broken.push(0);
    let requests = [
        from_guest(1, FromGuest::Ping),
        from_guest(2, FromGuest::Goodbye { code: 0, words: "" }),
        from_guest(3, FromGuest::Unknown { kind: 0x55 }),
        broken,
    ];
    for (id, request) in (1..).zip(&requests) {
        assert_eq!(host.handle_message(request), Ok(None));
        let answer = host.poll_transmit().unwrap().to_vec();
        host.transmitted();
        let answer = Message::<FromHost>::try_from(&answer[..]).unwrap();
        assert_eq!(answer.id, id);
        assert!(matches!(
            answer.body,
            FromHost::Error {
                code: ErrorCode::NoSession,
                ..
            }
        ));
    }
    // Answers to whoever was here before are nobody's business any more.
    assert_eq!(
        host.handle_message(&from_guest(5, FromGuest::Done)),
        Ok(None)
    );
    let unknown = from_guest(6, FromGuest::Unknown { kind: 0x8055 });
    assert_eq!(host.handle_message(&unknown), Ok(None));
    assert!(host.poll_transmit().is_none());
}

#[test]
fn what_cannot_be_answered_is_a_fault() {
    let broken_pong = [from_guest(1, FromGuest::Pong), vec![0]].concat();
    let unknown_answer = from_guest(1, FromGuest::Unknown { kind: 0x9999 });
    let short_hello = b"NGlink!\n".to_vec();
    let no_header = vec![1, 0, 0];
    for bytes in [&broken_pong, &unknown_answer, &short_hello, &no_header] {
        let mut pair = Pair::running();
        let fault = Err(PeerFault::Control);
        assert_eq!(pair.host.handle_message(bytes), fault, "{bytes:?}");
        let fault = Err(PeerFault::Control);
        assert_eq!(pair.guest.handle_message(bytes), fault, "{bytes:?}");
    }
    let hello = handshake(Handshake::Hello {
        versions: VersionRange::SUPPORTED,
        features: 0,
        session: 0,
    });
    let mut pair = Pair::running();
    assert_eq!(pair.guest.handle_message(&hello), Err(PeerFault::Control));
    let accept = handshake(Handshake::Accept {
        versions: VersionRange::SUPPORTED,
        version: 1,
        features: 0,
        session: 100,
    });
    assert_eq!(pair.host.handle_message(&accept), Err(PeerFault::Control));
}

#[test]
fn a_host_that_accepts_what_was_not_offered_is_at_fault() {
    for (version, features) in [(2, 0), (0, 0), (1, 0b1000)] {
        let mut guest = GuestControl::new(guest_offer());
        let accept = handshake(Handshake::Accept {
            versions: VersionRange::new(0, 2),
            version,
            features,
            session: 100,
        });
        assert_eq!(guest.handle_message(&accept), Err(PeerFault::Control));
    }
}

#[test]
fn an_accept_for_an_earlier_incarnation_is_ignored() {
    let mut guest = GuestControl::new(guest_offer());
    let accept = handshake(Handshake::Accept {
        versions: VersionRange::SUPPORTED,
        version: 1,
        features: 0,
        session: 99,
    });
    assert_eq!(guest.handle_message(&accept), Ok(None));
    assert_eq!(guest.state(), GuestState::Greeting);
}

#[test]
fn an_accept_from_before_a_restart_of_the_machine_is_ignored() {
    let mut pair = Pair::new();
    pair.guest_sends();
    pair.host_receives();
    pair.host_sends();
    pair.guest.restart();
    pair.guest_receives();
    assert_eq!(pair.guest.state(), GuestState::Greeting);
    pair.run();
    assert_eq!(pair.guest.state(), GuestState::Running);
}

#[test]
fn a_configuration_that_answers_something_else_is_ignored() {
    let mut pair = Pair::new();
    pair.guest_sends();
    pair.host_receives();
    pair.host_sends();
    pair.guest_receives();
    assert_eq!(pair.guest.state(), GuestState::Configuring);
    let mut config = host_config();
    config.mtu = 1500;
    config.offloads_to_guest = Offloads::NONE;
    config.offloads_to_host = Offloads::NONE;
    for (id, expected) in [(2, GuestState::Configuring), (1, GuestState::Running)] {
        let answer = from_host(id, FromHost::Config(config.clone()));
        pair.guest.handle_message(&answer).unwrap();
        assert_eq!(pair.guest.state(), expected);
    }
}

#[test]
fn a_configuration_beyond_the_guests_offer_is_a_fault_or_an_error() {
    let mut pair = Pair::running();
    let mut config = host_config();
    config.mtu = 9001;
    config.offloads_to_guest = Offloads::NONE;
    config.offloads_to_host = Offloads::NONE;
    let update = from_host(50, FromHost::Update(config.clone()));
    assert_eq!(pair.guest.handle_message(&update), Ok(None));
    let answer = pair.guest.poll_transmit().unwrap().to_vec();
    let answer = Message::<FromGuest>::try_from(&answer[..]).unwrap();
    assert!(matches!(
        answer.body,
        FromGuest::Error {
            code: ErrorCode::Invalid,
            ..
        }
    ));

    let mut guest = GuestControl::new(guest_offer());
    let accept = handshake(Handshake::Accept {
        versions: VersionRange::SUPPORTED,
        version: 1,
        features: 0,
        session: 100,
    });
    guest.handle_message(&accept).unwrap();
    let answer = from_host(1, FromHost::Config(config));
    assert_eq!(guest.handle_message(&answer), Err(PeerFault::Control));
}

#[test]
fn a_second_update_before_the_first_is_applied_is_refused_as_busy() {
    let mut pair = Pair::running();
    let mut config = host_config();
    config.mtu = 1500;
    config.offloads_to_guest = Offloads::NONE;
    config.offloads_to_host = Offloads::NONE;
    let update = from_host(50, FromHost::Update(config.clone()));
    assert!(matches!(
        pair.guest.handle_message(&update),
        Ok(Some(GuestEvent::Changed(_)))
    ));
    let update = from_host(51, FromHost::Update(config));
    assert_eq!(pair.guest.handle_message(&update), Ok(None));
    let answer = pair.guest.poll_transmit().unwrap().to_vec();
    let answer = Message::<FromGuest>::try_from(&answer[..]).unwrap();
    assert_eq!(answer.id, 51);
    assert!(matches!(
        answer.body,
        FromGuest::Error {
            code: ErrorCode::Busy,
            ..
        }
    ));
}

#[test]
fn a_guest_that_floods_and_takes_no_answers_is_held_back_and_nothing_is_lost() {
    let mut host = HostControl::new(host_offer()).unwrap();
    let hello = handshake(Handshake::Hello {
        versions: VersionRange::SUPPORTED,
        features: 0,
        session: 0,
    });
    host.handle_message(&hello).unwrap();
    let mut asked = 0;
    while host.wants_input() {
        asked += 1;
        host.handle_message(&from_guest(asked, FromGuest::Ping))
            .unwrap();
        assert!(asked < 1000, "the queue never fills");
    }
    assert!(asked > 10);
    // One handed in all the same is dropped, and so is its effect.
    let report = FromGuest::Report {
        level: Level::Info,
        text: "flood",
    };
    assert_eq!(host.handle_message(&from_guest(5000, report)), Ok(None));

    let accept = host.poll_transmit().unwrap().to_vec();
    assert!(Handshake::is_handshake(&accept));
    host.transmitted();
    for id in 1..=asked {
        let answer = host.poll_transmit().unwrap().to_vec();
        host.transmitted();
        let answer = Message::<FromHost>::try_from(&answer[..]).unwrap();
        assert_eq!((answer.id, answer.body), (id, FromHost::Pong));
    }
    assert!(host.poll_transmit().is_none());
    assert!(host.wants_input());
}

#[test]
fn the_longest_configuration_always_has_its_room() {
    let mut config = host_config();
    for last in 1..=4 {
        if last > 1 {
            let addr = [10, 1, 2, 3 + last].into();
            config.v4.push(Prefixed::new(addr, 24)).unwrap();
        }
        let addr = std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into());
        config.v6.push(Prefixed::new(addr, 64)).unwrap();
        config.dns.push(addr.into()).unwrap();
    }
    config.gateway6 = Some(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
    config.name = Some("n".repeat(63).as_str().try_into().unwrap());
    let domain = ["d", "e", "f", "g"].map(|label| label.repeat(62)).join(".");
    config.domain = Some(format!("{domain}.h").as_str().try_into().unwrap());
    let offer = HostOffer {
        config,
        ..host_offer()
    };
    let mut pair = Pair::with(guest_offer(), offer);
    pair.run();
    let configure = |max_mtu| {
        FromGuest::Configure(Configure {
            max_mtu,
            can_receive: Offloads::NONE,
            can_send: Offloads::NONE,
            name: "n",
        })
    };
    // With every amount of room in the queue that there can be.
    for pings in 0..400 {
        for id in 0..pings {
            if pair.host.wants_input() {
                pair.host
                    .handle_message(&from_guest(id, FromGuest::Ping))
                    .unwrap();
            }
        }
        if !pair.host.wants_input() {
            return;
        }
        let asked = from_guest(9999, configure(1500));
        let event = pair.host.handle_message(&asked).unwrap();
        assert!(matches!(event, Some(HostEvent::Configured(_))));
        let mut last = Vec::new();
        while let Some(message) = pair.host.poll_transmit() {
            last = message.to_vec();
            pair.host.transmitted();
        }
        let last = Message::<FromHost>::try_from(&last[..]).unwrap();
        assert!(matches!(last.body, FromHost::Config(_)) && last.id == 9999);
    }
    panic!("the queue never fills");
}

#[test]
fn a_hello_gets_through_a_full_queue() {
    let mut pair = Pair::running();
    let mut id = 1000;
    while pair.host.wants_input() {
        id += 1;
        pair.host
            .handle_message(&from_guest(id, FromGuest::Ping))
            .unwrap();
    }
    pair.guest.restart();
    pair.guest_sends();
    let hello = pair.to_host.pop_front().unwrap();
    assert!(pair.host.handle_message(&hello).unwrap().is_some());
    let first = pair.host.poll_transmit().unwrap();
    assert!(Handshake::is_handshake(first), "the old answers are gone");
    pair.run();
    assert_eq!(pair.guest.state(), GuestState::Running);
}

#[test]
fn a_guest_full_of_its_own_reports_still_takes_and_answers_an_update() {
    let mut pair = Pair::running();
    let mut reports = 0;
    while pair.guest.report(Level::Info, "x").is_ok() {
        reports += 1;
    }
    assert_eq!(pair.guest.report(Level::Info, "x"), Err(NotNow::Full));
    assert!(pair.guest.wants_input());
    pair.update(|c| c.mtu = 1501);
    pair.host.ping().unwrap();
    pair.host_sends();
    pair.guest_receives();
    assert_eq!(pair.guest_events, ["changed 1 mtu 1501"]);
    pair.run();
    let reported = pair.host_events.iter().filter(|e| e.starts_with("report"));
    assert_eq!(reported.count(), reports);
    assert!(pair.host_events.contains(&"acknowledged 1".to_owned()));
    assert!(pair.host_events.contains(&"pong".to_owned()));
}

#[test]
fn a_flood_of_host_requests_holds_the_guest_back_and_is_bounded() {
    let mut pair = Pair::running();
    let mut asked = 0;
    while pair.guest.wants_input() {
        asked += 1;
        let ping = from_host(asked, FromHost::Ping);
        assert_eq!(pair.guest.handle_message(&ping), Ok(None));
        assert!(asked < 1000, "the queue never fills");
    }
    for id in 1..=asked {
        let answer = pair.guest.poll_transmit().unwrap().to_vec();
        pair.guest.transmitted();
        let answer = Message::<FromGuest>::try_from(&answer[..]).unwrap();
        assert_eq!((answer.id, answer.body), (id, FromGuest::Pong));
    }
}

/// Bytes that look like control messages, now and then.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let body = proptest::collection::vec(any::<u8>(), 0..80);
    let kind = prop_oneof![0..8u16, 0x8000..0x8006u16, any::<u16>()];
    let message = (kind, 0..4u32, body.clone()).prop_map(|(kind, id, body)| {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(id.to_le_bytes());
        bytes.extend(body);
        bytes
    });
    let handshake = (0..5u8, any::<[u8; 23]>(), 0..3u32).prop_map(|(kind, rest, session)| {
        let mut bytes = b"NGlink!\n".to_vec();
        bytes.extend([kind]);
        bytes.extend(rest);
        bytes[9] = 0;
        if session < 2 {
            bytes[12..18].copy_from_slice(&[1, 0, 1, 0, 1, 0]);
            bytes[20..24].copy_from_slice(&(100 + session).to_le_bytes());
            bytes[24..32].fill(0);
        }
        bytes
    });
    let mut config = host_config();
    config.mtu = 1500;
    config.offloads_to_guest = Offloads::NONE;
    config.offloads_to_host = Offloads::NONE;
    let config_answer = (0..4u32, any::<bool>()).prop_map(move |(id, update)| {
        let config = config.clone();
        from_host(
            id,
            if update {
                FromHost::Update(config)
            } else {
                FromHost::Config(config)
            },
        )
    });
    prop_oneof![body, message, handshake, config_answer]
}

proptest! {
    #[test]
    fn no_bytes_in_any_state_make_a_machine_panic_or_its_queue_grow(
        steps in proptest::collection::vec((0..8u8, noise()), 1..60),
    ) {
        let mut pair = Pair::new();
        for (step, bytes) in steps {
            match step {
                0 => { let _ = pair.guest.handle_message(&bytes); }
                1 => { let _ = pair.host.handle_message(&bytes); }
                2 => { let _ = (pair.guest.ping(), pair.host.ping()); }
                3 => {
                    let _ = pair.guest.report(Level::Info, "x");
                    let _ = pair.host.update(host_config());
                }
                4 => { let _ = pair.guest.applied(1); }
                5 => { let _ = pair.guest.goodbye(0, "y"); }
                6 => pair.guest.restart(),
                _ => {
                    // The real messages, as far as the link holds them.
                    pair.guest_sends();
                    pair.host_sends();
                    if let Some(message) = pair.to_host.pop_front() {
                        let _ = pair.host.handle_message(&message);
                    }
                    if let Some(message) = pair.to_guest.pop_front() {
                        let _ = pair.guest.handle_message(&message);
                    }
                }
            }
        }
        // Whatever happened, a new beginning leads to a configuration.
        pair.to_guest.clear();
        pair.to_host.clear();
        pair.guest = GuestControl::new(GuestOffer { session: 9, ..guest_offer() });
        pair.host = HostControl::new(host_offer()).unwrap();
        pair.run();
        prop_assert_eq!(pair.guest.state(), GuestState::Running);
    }
}
