//! Guests come and go. Alone in its process, because it counts descriptors.

#[path = "common.rs"]
#[allow(dead_code, reason = "this file uses its part")]
mod common;

use common::{
    PATIENCE, RawGuest, address, guest, in_private_network_within, plan, policy, serve, until,
};
use shm_link::linux::attach::Attachment;
use std::time::Duration;

/// Attachments in one run; `LEAK_ROUNDS` asks for more.
const ROUNDS: usize = 300;

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Resident memory in pages.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Shared mapped areas: a region that stays mapped is one more. Private ones are
/// left out: a runtime's new thread brings a stack and an arena of its own.
fn shared_mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps")
        .unwrap()
        .lines()
        .filter(|line| {
            let permissions = line.split_whitespace().nth(1).unwrap();
            permissions.ends_with('s')
        })
        .count()
}

fn interfaces() -> usize {
    std::fs::read_to_string("/proc/thread-self/net/dev")
        .unwrap()
        .lines()
        .count()
}

#[test]
fn guests_come_and_go_and_leave_no_descriptor_no_memory_and_no_tap() {
    let rounds = std::env::var("LEAK_ROUNDS").map_or(ROUNDS, |text| text.parse().unwrap());
    let limit = Duration::from_secs(60) + Duration::from_millis(100) * rounds as u32;
    in_private_network_within(limit, move || async move {
        let bridge = serve(plan(), policy());
        let mut before = (0, 0, 0);
        for round in 0..rounds + 20 {
            guest(move || match round % 3 {
                // Gone without a word.
                0 => drop(Attachment::connect(&address(), PATIENCE).unwrap()),
                // Gone with a configuration.
                1 => drop(RawGuest::attach()),
                _ => {
                    let mut guest = RawGuest::attach();
                    guest.resolve_gateway();
                }
            })
            .await;
            if round == 20 {
                // Whatever stays for good is there by now.
                until("the port's end", || bridge.status().is_empty()).await;
                before = (open_fds(), shared_mappings(), resident());
            }
        }
        until("the last port's end", || bridge.status().is_empty()).await;
        until("the last descriptor's end", || open_fds() <= before.0).await;
        let (maps, pages) = (shared_mappings(), resident());
        assert!(
            maps <= before.1,
            "{} shared mappings became {maps}",
            before.1
        );
        // Allocators keep a little; 300 leaked regions would be 300 MiB.
        assert!(
            pages <= before.2 + 2048,
            "{} resident pages became {pages}",
            before.2
        );
        // Two header lines and the loopback.
        assert_eq!(interfaces(), 3);
    });
}
