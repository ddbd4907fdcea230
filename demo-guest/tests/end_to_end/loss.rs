//! Bytes that get lost under way arrive all the same.

use std::process::Command;

use host_bridge::probe::bulk::{SINK_PORT, SOURCE_PORT, bulk_receive, bulk_send};

use crate::common::{BULK, BULK_PATIENCE, Guest, World, in_private_network, skip, until};

fn bytes_arrive_unchanged(guest: &Guest) {
    for (sink, source) in [
        (guest.v4(SINK_PORT), guest.v4(SOURCE_PORT)),
        (guest.v6(SINK_PORT), guest.v6(SOURCE_PORT)),
    ] {
        let sent = bulk_send(sink, BULK, 5, BULK_PATIENCE).unwrap();
        assert!(sent.checksum_ok, "{sink}: {sent:?}");
        let received = bulk_receive(source, BULK, 6, BULK_PATIENCE).unwrap();
        assert!(received.checksum_ok, "{source}: {received:?}");
    }
}

#[test]
fn five_percent_of_frames_injected_to_be_lost_lose_no_byte() {
    in_private_network(|| {
        let world = World::start(
            "impair_to_host = \"loss=5%,seed=1\"\nimpair_to_guest = \"loss=5%,seed=2\"",
        );
        let guest = world.guest("lossy");
        bytes_arrive_unchanged(&guest);
        until("a ledger that adds up", || world.ledgers_add_up());
        let counters = world.running("lossy").unwrap().counters;
        for direction in [&counters.guest_to_host, &counters.host_to_guest] {
            let lost: u64 = direction.drops.values().sum();
            assert!(lost > 0, "{direction:?}");
        }
    });
}

#[test]
fn five_percent_of_packets_dropped_by_nftables_lose_no_byte() {
    in_private_network(|| {
        const RULES: &str = "table inet loss {
            chain in { type filter hook input priority 0; numgen random mod 100 < 5 counter drop; }
            chain out { type filter hook output priority 0; numgen random mod 100 < 5 counter drop; }
        }";
        let world = World::start("");
        let guest = world.guest("lossy");
        match Command::new("nft").arg(RULES).status() {
            Ok(status) if status.success() => {}
            other => {
                eprintln!("nft: {other:?}");
                return skip("nft and a kernel with numgen");
            }
        }
        bytes_arrive_unchanged(&guest);
        let rules = Command::new("nft")
            .args(["list", "ruleset"])
            .output()
            .unwrap();
        let rules = String::from_utf8(rules.stdout).unwrap();
        let dropping = rules
            .lines()
            .filter(|line| line.contains("counter packets"));
        let idle = dropping.filter(|line| line.contains("packets 0 ")).count();
        assert!(rules.contains("counter packets") && idle == 0, "{rules}");
    });
}
