//! Changes of the configuration while a session runs.

use shm_link::control::{ConfigError, ErrorCode, GuestState, HostState, Level};

use crate::common::{Pair, guest_offer, host_config, host_offer};

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
fn an_update_for_a_guest_that_lost_its_configuration_is_given_when_it_asks() {
    let mut pair = Pair::new();
    // Hello and accept; configure; the configuration is lost on the way.
    pair.guest_sends();
    pair.host_receives();
    pair.host_sends();
    pair.guest_receives();
    pair.guest_sends();
    pair.host_receives();
    while pair.host.poll_transmit().is_some() {
        pair.host.transmitted();
    }
    assert_eq!(pair.guest.state(), GuestState::Configuring);
    assert_eq!(pair.host.state(), HostState::Running);
    pair.update(|c| c.mtu = 1501);
    pair.run();
    assert_eq!(pair.host_events.last().unwrap(), "session lost");
    assert_eq!(pair.host.state(), HostState::Waiting);
    pair.guest.restart();
    pair.run();
    assert_eq!(pair.guest_events, ["configured 1 mtu 1501"]);
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
fn an_update_that_was_lost_or_whose_answer_was_lost_is_said_again() {
    let mut pair = Pair::running();
    assert!(!pair.host.repeat_update(), "there is none");
    pair.update(|c| c.mtu = 1501);
    assert!(!pair.host.repeat_update(), "it was not said yet");
    pair.host_sends();
    pair.to_guest.clear();
    pair.run();
    assert!(pair.guest_events.is_empty());

    assert!(pair.host.repeat_update());
    assert!(!pair.host.repeat_update(), "it is queued already");
    pair.host_sends();
    pair.guest_receives();
    pair.guest_sends();
    pair.to_host.clear();
    assert_eq!(pair.guest_events, ["changed 1 mtu 1501"]);
    assert!(pair.host_events.is_empty());

    // A newer one waits behind it.
    pair.update(|c| c.mtu = 1502);
    assert!(pair.host.repeat_update());
    pair.run();
    assert_eq!(
        pair.guest_events[1..],
        ["changed 1 mtu 1501", "changed 2 mtu 1502"]
    );
    assert_eq!(pair.host_events, ["acknowledged 1", "acknowledged 2"]);
}

#[test]
fn a_guest_that_works_on_an_update_ignores_its_repetition() {
    let mut pair = Pair::running();
    pair.obliging = false;
    pair.update(|c| c.mtu = 1501);
    pair.run();
    for _ in 0..3 {
        assert!(pair.host.repeat_update());
        pair.run();
    }
    assert_eq!(pair.guest_events, ["changed 1 mtu 1501"]);
    assert!(pair.host_events.is_empty());
    assert!(pair.guest.applied(1));
    pair.run();
    assert_eq!(pair.host_events, ["acknowledged 1"]);
    assert!(!pair.host.repeat_update());
}
