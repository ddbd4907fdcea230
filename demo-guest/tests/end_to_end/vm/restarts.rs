//! Machines that are reset, that panic, and that are killed.

use std::io::{Read, Write};
use std::net::TcpStream;

use host_bridge::port::PortState;
use host_bridge::probe::bulk::{SINK_PORT, bulk_send};
use rustix::process::Signal;

use super::machine::{Vm, qemu_is_there};
use crate::common::{BULK, BULK_PATIENCE, PATIENCE, World, answers, in_private_network, until};

/// Bytes that no transfer gets through before its machine is reset.
pub(super) const ENDLESS: u64 = 100_000_000_000;
pub(super) const CONFIGURED: &str = "configured: MTU";

#[test]
fn a_machine_that_is_reset_attaches_again_to_the_same_memory() {
    if !qemu_is_there() {
        return;
    }
    in_private_network(|| {
        let world = World::start("");
        let mut vm = Vm::boot(&world, "again", "");
        for boots in 2..=4 {
            let mut old = TcpStream::connect_timeout(&vm.guest.v4(7), PATIENCE).unwrap();
            old.set_read_timeout(Some(PATIENCE)).unwrap();
            old.write_all(b"before").unwrap();
            old.read_exact(&mut [0; 6]).unwrap();
            // In the middle of a transfer, so that both rings are in use.
            let sink = vm.guest.v4(SINK_PORT);
            // The port's counters go on over a reset.
            let before = world.taken("again");
            let transfer = std::thread::spawn(move || bulk_send(sink, ENDLESS, 1, BULK_PATIENCE));
            until("the transfer", || world.taken("again") > before + 1_000_000);
            vm.monitor("system_reset");
            vm.until_said(CONFIGURED, boots);
            until("an answer", || answers(vm.guest.addresses[0]));
            // The new kernel knows nothing of the connections of the old one.
            assert!(transfer.join().unwrap().is_err());
            old.write_all(b"after").unwrap();
            assert!(old.read_exact(&mut [0; 5]).is_err());
            let sent = bulk_send(vm.guest.v4(SINK_PORT), 1_000_000, 1, BULK_PATIENCE).unwrap();
            assert!(sent.checksum_ok);
        }
        assert_eq!(world.ports().len(), 1);
    });
}

#[test]
fn the_bridge_hears_of_a_panic_and_the_machine_comes_back_by_a_reset() {
    if !qemu_is_there() {
        return;
    }
    in_private_network(|| {
        let world = World::start("");
        let mut vm = Vm::boot(&world, "falling", "panic=4");
        vm.until_said("the command line asked for it", 1);
        // Goodbye: the port waits for a guest, and does not pretend to have one.
        until("the goodbye", || world.running("falling").is_none());
        assert!(matches!(world.ports()[..], [ref port] if port.state == PortState::Waiting));
        vm.monitor("system_reset");
        vm.until_said(CONFIGURED, 2);
        until("an answer", || answers(vm.guest.addresses[0]));
    });
}

#[test]
fn a_machine_that_is_killed_makes_room_for_the_next() {
    if !qemu_is_there() {
        return;
    }
    in_private_network(|| {
        let world = World::start("max_guests = 1");
        for name in ["first", "second"] {
            let vm = Vm::boot(&world, name, "");
            let sent = bulk_send(vm.guest.v4(SINK_PORT), 1_000_000, 1, BULK_PATIENCE).unwrap();
            assert!(sent.checksum_ok);
            // Kills it.
            drop(vm);
            until("an empty daemon", || world.ports().is_empty());
        }
    });
}

#[test]
fn a_machine_goes_on_when_its_daemon_is_killed_and_replaced() {
    if !qemu_is_there() {
        return;
    }
    in_private_network(|| {
        let mut world = World::start_kept("");
        let vm = Vm::boot(&world, "kept", "");
        let mut old = TcpStream::connect_timeout(&vm.guest.v4(7), PATIENCE).unwrap();
        old.set_read_timeout(Some(PATIENCE)).unwrap();
        for round in 0..4 {
            let sink = vm.guest.v4(SINK_PORT);
            let transfer = std::thread::spawn(move || bulk_send(sink, BULK, 2, BULK_PATIENCE));
            let before = world.taken("kept");
            until("the transfer", || world.taken("kept") > before + 1_000_000);
            if round % 2 == 0 {
                world.kill_worker(Signal::KILL);
            } else {
                world.admin().restart().unwrap();
            }
            assert!(transfer.join().unwrap().unwrap().checksum_ok);
            old.write_all(b"the same connection").unwrap();
            old.read_exact(&mut [0; 19]).unwrap();
        }
    });
}
