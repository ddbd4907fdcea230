//! Settings that change under running connections.

use host_bridge::port::PortChange;
use host_bridge::probe::bulk::{SINK_PORT, SOURCE_PORT, bulk_receive, bulk_send};

use crate::common::{BULK_PATIENCE, World, answers, in_private_network, interface, netlink, until};

/// Takes about two seconds at the rate of the test.
const BYTES: u64 = 20_000_000;

#[test]
fn transfers_survive_changes_of_mtu_and_addresses() {
    in_private_network(|| {
        let world = World::start(
            "mtu = 9000\nimpair_to_host = \"rate=80mbit\"\nimpair_to_guest = \"rate=80mbit\"",
        );
        let guest = world.guest("changing");
        let (sink, source) = (guest.v4(SINK_PORT), guest.v6(SOURCE_PORT));
        let mut changes = 0;
        std::thread::scope(|scope| {
            // The threads are made by this one and inherit its namespace.
            let transfers = [
                scope.spawn(move || bulk_send(sink, BYTES, 3, BULK_PATIENCE)),
                scope.spawn(move || bulk_receive(source, BYTES, 4, BULK_PATIENCE)),
            ];
            let own = ["10.77.0.2/30", "fd77::2/126"];
            let more = ["10.77.0.2/30", "fd77::2/126", "10.99.0.2/24"];
            for (mtu, addresses) in [
                (1400, &own[..]),
                (9000, &more[..]),
                (1280, &own[..]),
                (4000, &more[..]),
            ] {
                world.change(
                    &guest.port,
                    PortChange {
                        mtu: Some(mtu),
                        addresses: Some(addresses.iter().map(|a| a.parse().unwrap()).collect()),
                        ..PortChange::default()
                    },
                );
                changes += transfers.iter().filter(|t| !t.is_finished()).count();
                std::thread::sleep(std::time::Duration::from_millis(150));
            }
            for transfer in transfers {
                let report = transfer.join().unwrap().unwrap();
                assert!(report.checksum_ok && report.bytes == BYTES, "{report:?}");
            }
        });
        assert_eq!(changes, 8, "the transfers ended before the changes");

        let port = world.running("changing").unwrap();
        assert_eq!((port.mtu, port.addresses.len()), (4000, 3));
        let tap = interface(&port.tap).unwrap();
        netlink(async |netlink| {
            let address = netlink
                .add_address(tap, "10.99.0.1/24".parse().unwrap())
                .await;
            address.unwrap();
        });
        until("an answer of the new address", || {
            answers("10.99.0.2".parse().unwrap())
        });
    });
}
