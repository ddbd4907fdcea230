//! Machines that end, stop or begin anew at moments that suit nobody.

use std::time::Duration;

use host_bridge::port::PortChange;
use host_bridge::probe::bulk::{SINK_PORT, SOURCE_PORT, bulk_receive, bulk_send};
use rustix::process::{Pid, Signal, kill_process};

use super::machine::{Processor, Starting, Vm, qemu_is_there};
use super::restarts::{CONFIGURED, ENDLESS};
use crate::common::{
    BULK, BULK_PATIENCE, Guest, World, answers, in_private_network, stands_still, until,
};

fn pid(guest: &mut Guest) -> Pid {
    Pid::from_raw(guest.pid().cast_signed()).unwrap()
}

#[test]
fn a_machine_that_is_killed_anywhere_in_its_boot_makes_room_for_the_next() {
    if !qemu_is_there() {
        return;
    }
    in_private_network(|| {
        // Sixteen need more places than there are. One that died before the daemon
        // accepted it holds a place for a moment, when the next may be there already.
        let mut world = World::start("max_guests = 4");
        let open = |pid: u32| {
            let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
            descriptors.count()
        };
        let before = open(world.daemon_pid());
        // From QEMU's own start over the handshake, the boot and the negotiation
        // to a machine that has been at work for a while.
        for moment in 0..16 {
            let starting = Starting::new(&Processor::tcg(), "short-lived", "");
            std::thread::sleep(Duration::from_millis(60 * moment));
            drop(starting);
            until("an empty daemon", || world.ports().is_empty());
        }
        let vm = Vm::boot(&world, "next", "");
        let sent = bulk_send(vm.guest.v4(SINK_PORT), 1_000_000, 1, BULK_PATIENCE).unwrap();
        assert!(sent.checksum_ok, "{sent:?}");
        drop(vm);
        until("an empty daemon", || world.ports().is_empty());
        until("no descriptor more than before", || {
            open(world.daemon_pid()) <= before
        });
    });
}

#[test]
fn a_machine_that_is_stopped_and_one_that_is_killed_stall_no_neighbour() {
    if !qemu_is_there() {
        return;
    }
    in_private_network(|| {
        let world = World::start("");
        let mut stopped = Vm::boot(&world, "stopped", "");
        let killed = Vm::boot(&world, "killed", "");
        let process = world.guest("process");
        let (sink, source) = (killed.guest.v6(SINK_PORT), killed.guest.v4(SOURCE_PORT));
        let to_killed = std::thread::spawn(move || bulk_send(sink, ENDLESS, 2, BULK_PATIENCE));
        let from_killed =
            std::thread::spawn(move || bulk_receive(source, ENDLESS, 3, BULK_PATIENCE));
        until("a transfer", || world.taken("killed") > 1_000_000);
        // The last to begin: it must not be through before its machine stops.
        let qemu = pid(&mut stopped.guest);
        let sink = stopped.guest.v4(SINK_PORT);
        let to_stopped = std::thread::spawn(move || bulk_send(sink, 2 * BULK, 1, BULK_PATIENCE));
        until("a transfer", || world.taken("stopped") > 1_000_000);
        kill_process(qemu, Signal::STOP).unwrap();
        until("a QEMU that stands still", || stands_still(qemu));
        // Full rings in both directions, and nobody behind them.
        drop(killed);
        until("a port less", || world.ports().len() == 2);
        for address in [process.v4(SINK_PORT), process.v6(SINK_PORT)] {
            let sent = bulk_send(address, BULK, 4, BULK_PATIENCE).unwrap();
            assert!(sent.checksum_ok, "{sent:?}");
        }
        assert!(!to_stopped.is_finished());
        // A change reaches the machine when it goes on.
        let change = PortChange {
            mtu: Some(1400),
            ..PortChange::default()
        };
        let (admin, port) = (world.admin(), stopped.guest.port.clone());
        let changing = std::thread::spawn(move || admin.change(&port, change));
        std::thread::sleep(Duration::from_millis(200));
        assert!(!changing.is_finished());

        kill_process(qemu, Signal::CONT).unwrap();
        let sent = to_stopped.join().unwrap().unwrap();
        assert!(sent.checksum_ok, "{sent:?}");
        changing.join().unwrap().unwrap();
        stopped.until_said("MTU 1400", 1);
        assert!(to_killed.join().unwrap().is_err());
        assert!(from_killed.join().unwrap().is_err());
        until("frames that are accounted for", || world.ledgers_add_up());
    });
}

#[test]
fn a_machine_that_is_reset_while_its_daemon_is_replaced_comes_back() {
    if !qemu_is_there() {
        return;
    }
    in_private_network(|| {
        let mut world = World::start_kept("");
        let mut vm = Vm::boot(&world, "both", "");
        for round in 0..6 {
            let sink = vm.guest.v4(SINK_PORT);
            let transfer = std::thread::spawn(move || bulk_send(sink, ENDLESS, 1, BULK_PATIENCE));
            // The next daemon's counters may begin anew.
            let before = world.taken("both");
            until("the transfer", || world.taken("both") > before + 1_000_000);
            // The machine boots for some 300 ms; the daemon ends before, in and
            // after that.
            let boots = vm.said().matches(CONFIGURED).count();
            if round == 0 {
                world.kill_worker(Signal::KILL);
                vm.monitor("system_reset");
            } else {
                vm.monitor("system_reset");
                std::thread::sleep(Duration::from_millis(80 * (round - 1)));
                world.kill_worker(Signal::KILL);
            }
            vm.until_said(CONFIGURED, boots + 1);
            until("an answer", || answers(vm.guest.addresses[0]));
            assert!(transfer.join().unwrap().is_err());
            let sent = bulk_send(vm.guest.v6(SINK_PORT), 1_000_000, 5, BULK_PATIENCE).unwrap();
            assert!(sent.checksum_ok, "{sent:?}");
        }
        assert_eq!(world.ports().len(), 1);
    });
}
