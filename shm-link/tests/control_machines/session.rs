//! What else a session carries, and how it ends.

use shm_link::control::message::{FromGuest, Message};
use shm_link::control::{ErrorCode, GuestState, HostState, Level, NotNow};

use crate::common::Pair;

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
