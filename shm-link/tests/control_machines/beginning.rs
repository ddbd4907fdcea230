//! How a session begins: what is agreed, who is refused, and restarts of either side.

use shm_link::control::{
    GuestControl, GuestState, HostControl, HostState, Level, NotNow, RefusalReason, VersionRange,
};
use shm_link::offload::Offloads;

use crate::common::{Pair, guest_offer, host_offer};

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
