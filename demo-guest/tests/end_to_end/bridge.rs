//! Two guests on a Linux bridge.

use std::io::{BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::process::Stdio;

use host_bridge::child::Helper;
use host_bridge::probe::bulk::{SINK_PORT, SOURCE_PORT, bulk_receive, bulk_send};
use host_bridge::probe::http::http_get;

use crate::common::{
    BULK, BULK_PATIENCE, PATIENCE, World, answers, guest_command, in_private_network, ip,
    make_bridge, run, until,
};

#[test]
fn two_guests_on_a_linux_bridge_are_reached_and_reach_each_other() {
    in_private_network(|| {
        make_bridge("br0", &["10.88.0.1/24", "fd88::1/64"]);
        let world = World::start("bridge = \"br0\"\nnet4 = \"10.88.0.0/24\"\nnet6 = \"fd88::/64\"");
        let (first, second) = (world.guest("first"), world.guest("second"));
        for (guest, name) in [(&first, "first"), (&second, "second")] {
            for address in [guest.v4(80), guest.v6(80)] {
                let page = http_get(address, "/", PATIENCE).unwrap();
                let text = String::from_utf8(page.body).unwrap();
                assert!(text.contains(&format!("Hello from {name}")), "{text}");
            }
            let sent = bulk_send(guest.v4(SINK_PORT), BULK, 1, BULK_PATIENCE).unwrap();
            assert!(sent.checksum_ok, "{sent:?}");
            let received = bulk_receive(guest.v6(SOURCE_PORT), BULK, 1, BULK_PATIENCE).unwrap();
            assert!(received.checksum_ok, "{received:?}");
        }

        // A third one is told what to ask the first two, one thing after the other.
        let mut asking = guest_command("third");
        asking
            .arg("--commands")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut asking = Helper::spawn(asking).unwrap();
        let mut commands = asking.child_mut().stdin.take().unwrap();
        let answers = asking.child_mut().stdout.take().unwrap();
        let mut answers = BufReader::new(answers).lines();
        for guest in [&first, &second] {
            for command in [
                format!("ping {} 5", guest.addresses[0]),
                format!("ping {} 5", guest.addresses[1]),
                format!("get {} /", guest.v4(80)),
                format!("get {} /bytes/3000000", guest.v6(80)),
                format!("send {} 3000000", guest.v4(SINK_PORT)),
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

#[test]
fn a_bridge_sends_guests_no_frames_for_addresses_that_it_does_not_know() {
    const STRANGER: &str = "10.88.0.99";
    in_private_network(|| {
        make_bridge("br0", &["10.88.0.1/24", "fd88::1/64"]);
        let world = World::start("bridge = \"br0\"\nnet4 = \"10.88.0.0/24\"\nnet6 = \"fd88::/64\"");
        let guests = [world.guest("first"), world.guest("second")];
        ip(&format!(
            "neigh replace {STRANGER} lladdr 02:00:00:00:00:99 dev br0"
        ));
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let flood = || {
            for _ in 0..50 {
                socket.send_to(b"to nobody", (STRANGER, 9)).unwrap();
            }
        };
        let check = || {
            flood();
            // Known to the bridge although they never said a word that it remembers.
            run("bridge", "fdb flush dev br0 dynamic");
            for guest in &guests {
                for address in guest.addresses.iter().copied() {
                    until("an answer", || answers(address));
                }
                let port = world
                    .ports()
                    .into_iter()
                    .find(|port| port.name == guest.port);
                let counters = port.unwrap().counters;
                let drops = counters.host_to_guest.drops;
                assert!(drops.is_empty(), "{drops:?}");
            }
        };
        check();
        // One that left and came back is told anew.
        let tap = &guests[0].port;
        ip(&format!("link set {tap} nomaster"));
        until("a TAP in its bridge", || {
            world
                .log()
                .contains(&format!("{tap} is a port of the bridge br0 again"))
        });
        check();
    });
}
