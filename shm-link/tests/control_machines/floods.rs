//! More messages than the other side takes, and bytes that are none.

use proptest::prelude::*;
use shm_link::control::hello::Handshake;
use shm_link::control::message::{Configure, FromGuest, FromHost, Message};
use shm_link::control::{
    GuestControl, GuestOffer, GuestState, HostControl, HostEvent, HostOffer, Level, NotNow,
    Prefixed, VersionRange,
};
use shm_link::offload::Offloads;

use crate::common::{Pair, from_guest, from_host, guest_offer, handshake, host_config, host_offer};

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
