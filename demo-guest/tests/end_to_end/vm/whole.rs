//! One machine, used as a user would.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use host_bridge::port::PortChange;
use host_bridge::probe::bulk::{SINK_PORT, SOURCE_PORT, bulk_receive, bulk_send};

use super::machine::{Vm, qemu_is_there};
use crate::common::{BULK_PATIENCE, World, answers, in_private_network, interface, netlink, until};
use crate::services::use_everything;

#[test]
fn a_machine_serves_everything_over_ipv4_and_ipv6_and_sleeps_afterwards() {
    if !qemu_is_there() {
        return;
    }
    in_private_network(|| {
        let world = World::start("");
        // It asks this listener for a page by its own accord.
        let listener = TcpListener::bind("0.0.0.0:8080").unwrap();
        let mut vm = Vm::boot(&world, "server", "connect=10.77.0.1:8080");
        let (mut asking, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), vm.guest.addresses[0]);
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            asking.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        assert!(request.starts_with(b"GET / HTTP/1.0\r\n"));
        asking.write_all(b"HTTP/1.0 204 Welcome\r\n\r\n").unwrap();
        drop((asking, listener));
        vm.until_said("answered", 1);

        for (seed, &address) in vm.guest.addresses.clone().iter().enumerate() {
            use_everything(address, seed as u64);
        }
        let page = Command::new("curl")
            .args(["--silent", "--max-time", "10"])
            .arg(format!("http://{}/", vm.guest.v4(80)))
            .output()
            .unwrap();
        let page = String::from_utf8(page.stdout).unwrap();
        assert!(page.contains("Hello from server"), "{page}");
        until("a ledger that adds up", || world.ledgers_add_up());

        // The machine is asleep as soon as the connections of before are gone
        // from its timers; the kernel's own questions are a few frames.
        std::thread::sleep(Duration::from_millis(300));
        let before = (vm.cpu_ticks(), vm.wake_ups());
        std::thread::sleep(Duration::from_secs(3));
        let used = vm.cpu_ticks() - before.0;
        assert!(used <= 3, "{used} ticks of 10 ms in 3 s");
        // Firmware's interval timer alone would be some 130.
        let woken = vm.wake_ups() - before.1;
        assert!(woken <= 60, "QEMU's threads woke up {woken} times in 3 s");
    });
}

#[test]
fn more_connections_than_a_machine_has_memory_for_leave_it_alive() {
    if !qemu_is_there() {
        return;
    }
    in_private_network(|| {
        let world = World::start("");
        let vm = Vm::boot(&world, "crowded", "");
        let connect = || TcpStream::connect_timeout(&vm.guest.v4(80), Duration::from_millis(900));
        let mut open = Vec::new();
        while let Ok(stream) = connect() {
            open.push(stream);
            assert!(open.len() < 2000, "nothing bounds the connections");
        }
        assert!(open.len() >= 100, "only {} connections", open.len());
        assert!(connect().is_err());
        assert!(answers(vm.guest.addresses[0]));
        drop(open);
        until("room for a connection", || connect().is_ok());
        assert!(!vm.said().contains("panicked"), "{}", vm.said());
    });
}

#[test]
fn a_transfer_to_and_from_a_machine_survives_changes_of_mtu_and_addresses() {
    if !qemu_is_there() {
        return;
    }
    in_private_network(|| {
        const BYTES: u64 = 10_000_000;
        let world = World::start(
            "mtu = 9000\nimpair_to_host = \"rate=60mbit\"\nimpair_to_guest = \"rate=60mbit\"",
        );
        let vm = Vm::boot(&world, "changing", "");
        let (sink, source) = (vm.guest.v4(SINK_PORT), vm.guest.v6(SOURCE_PORT));
        std::thread::scope(|scope| {
            let transfers = [
                scope.spawn(move || bulk_send(sink, BYTES, 3, BULK_PATIENCE)),
                scope.spawn(move || bulk_receive(source, BYTES, 4, BULK_PATIENCE)),
            ];
            let own = ["10.77.0.2/30", "fd77::2/126"];
            let more = ["10.77.0.2/30", "fd77::2/126", "10.99.0.2/24"];
            for (mtu, addresses) in [(1400, &own[..]), (9000, &own[..]), (4000, &more[..])] {
                let change = PortChange {
                    mtu: Some(mtu),
                    addresses: Some(addresses.iter().map(|a| a.parse().unwrap()).collect()),
                    ..PortChange::default()
                };
                world.change(&vm.guest.port, change);
                let running = transfers.iter().filter(|t| !t.is_finished()).count();
                assert_eq!(running, 2, "a transfer ended before the changes");
                std::thread::sleep(Duration::from_millis(100));
            }
            for transfer in transfers {
                let report = transfer.join().unwrap().unwrap();
                assert!(report.checksum_ok && report.bytes == BYTES, "{report:?}");
            }
        });
        let port = world.running("changing").unwrap();
        let tap = interface(&port.tap).unwrap();
        netlink(async |netlink| {
            let address = "10.99.0.1/24".parse().unwrap();
            netlink.add_address(tap, address).await.unwrap();
        });
        until("an answer of the new address", || {
            answers("10.99.0.2".parse().unwrap())
        });
    });
}
