//! Messages that break the rules.

use shm_link::control::hello::Handshake;
use shm_link::control::message::{FromGuest, FromHost, Message};
use shm_link::control::{
    ErrorCode, GuestControl, GuestEvent, GuestState, HostControl, VersionRange,
};
use shm_link::fault::PeerFault;
use shm_link::offload::Offloads;

use crate::common::{Pair, from_guest, from_host, guest_offer, handshake, host_config, host_offer};

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
