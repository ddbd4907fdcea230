//! Machines and processes on one daemon and one Linux bridge.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use host_bridge::child::Helper;
use host_bridge::probe::bulk::{SINK_PORT, SOURCE_PORT, bulk_receive, bulk_send};

use super::machine::{Vm, qemu_is_there};
use crate::common::{BULK_PATIENCE, PATIENCE, World, guest_command, in_private_network, netlink};

#[test]
fn two_machines_and_processes_on_a_linux_bridge_talk_to_each_other() {
    if !qemu_is_there() {
        return;
    }
    in_private_network(|| {
        const BYTES: u64 = 5_000_000;
        netlink(async |netlink| {
            let index = netlink.create_bridge("br0").await.unwrap();
            for address in ["10.88.0.1/24", "fd88::1/64"] {
                let added = netlink.add_address(index, address.parse().unwrap()).await;
                added.unwrap();
            }
            netlink.set_up(index).await.unwrap();
        });
        let world = World::start("bridge = \"br0\"\nnet4 = \"10.88.0.0/24\"\nnet6 = \"fd88::/64\"");
        let process = world.guest("process");
        // The first machine calls the process, the second calls the first.
        let first = Vm::boot(&world, "first", &format!("connect={}", process.v4(80)));
        let to_first = format!("connect={}", first.guest.v6(80));
        let second = Vm::boot(&world, "second", &to_first);
        for vm in [&first, &second] {
            vm.until_said("HTTP/1.1 200 OK", 1);
            let sent = bulk_send(vm.guest.v4(SINK_PORT), BYTES, 1, BULK_PATIENCE).unwrap();
            assert!(sent.checksum_ok, "{sent:?}");
            let received = bulk_receive(vm.guest.v6(SOURCE_PORT), BYTES, 1, BULK_PATIENCE).unwrap();
            assert!(received.checksum_ok, "{received:?}");
        }

        // A further process calls both machines.
        let mut asking = guest_command("asking");
        asking
            .arg("--commands")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut asking = Helper::spawn(asking).unwrap();
        let mut commands = asking.child_mut().stdin.take().unwrap();
        let answers = asking.child_mut().stdout.take().unwrap();
        let mut answers = BufReader::new(answers).lines();
        for vm in [&first, &second] {
            for command in [
                format!("ping {} 3", vm.guest.addresses[0]),
                format!("ping {} 3", vm.guest.addresses[1]),
                format!("get {} /bytes/1000000", vm.guest.v6(80)),
                format!("send {} 1000000", vm.guest.v4(SINK_PORT)),
            ] {
                writeln!(commands, "{command}").unwrap();
                let answer = answers.next().unwrap().unwrap();
                assert!(answer.starts_with(&format!("ok {command}: ")), "{answer}");
            }
        }
        drop(commands);
        let ended = asking.wait_timeout(PATIENCE).unwrap();
        assert!(ended.unwrap().success());
    });
}
