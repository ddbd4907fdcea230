//! Somebody dies in the middle.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use host_bridge::probe::bulk::{SINK_PORT, SOURCE_PORT, bulk_receive, bulk_send};
use host_bridge::probe::http::http_get;

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{
    BULK, BULK_PATIENCE, Guest, PATIENCE, World, answers, in_private_network, interface, netlink,
    until,
};

fn open(address: std::net::SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn echo(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, text.as_bytes());
}

#[test]
fn a_connection_outlives_the_daemon() {
    in_private_network(|| {
        let mut world = World::start("");
        let guest = world.guest("patient");
        let mut streams = [open(guest.v4(7)), open(guest.v6(7))];
        for round in 0..3 {
            for stream in &mut streams {
                echo(stream, &format!("before {round}"));
            }
            world.kill_daemon();
            until("the TAP's end", || interface(&guest.port).is_none());
            world.start_daemon();
            until("the guest's return", || world.running("patient").is_some());
            for &address in &guest.addresses {
                until("an answer of the guest", || answers(address));
            }
            for stream in &mut streams {
                echo(stream, &format!("after {round}"));
            }
        }
        assert_eq!(http_get(guest.v4(80), "/", PATIENCE).unwrap().status, 200);
    });
}

#[test]
fn bulk_transfers_both_ways_go_on_when_the_daemon_is_back() {
    in_private_network(|| {
        let mut world = World::start("");
        let mut guest = world.guest("patient");
        transfers_go_on(&mut world, &mut guest, "patient");
    });
}

/// Kills the daemon in the middle of a transfer each way, thrice, and has another go on.
pub(crate) fn transfers_go_on(world: &mut World, guest: &mut Guest, name: &str) {
    let moved = |world: &World| {
        let port = world.running(name);
        port.map_or([0, 0], |port| {
            let counters = port.counters;
            [counters.guest_to_host, counters.host_to_guest].map(|way| way.bytes_out)
        })
    };
    for from_guest in [true, false] {
        let (source, sink) = (guest.v4(SOURCE_PORT), guest.v6(SINK_PORT));
        let transfer = std::thread::spawn(move || match from_guest {
            true => bulk_receive(source, 10 * BULK, 1, BULK_PATIENCE),
            false => bulk_send(sink, 10 * BULK, 1, BULK_PATIENCE),
        });
        let before = moved(world);
        let way = usize::from(!from_guest);
        until("the transfer", || {
            moved(world)[way] > before[way] + 5_000_000
        });
        let pid = Pid::from_raw(guest.pid().try_into().unwrap()).unwrap();
        for _ in 0..3 {
            // The guest stands still meanwhile: it has much to read then, and finds out by
            // answering that nobody is there.
            kill_process(pid, Signal::STOP).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            world.kill_daemon();
            kill_process(pid, Signal::CONT).unwrap();
            assert!(!transfer.is_finished(), "it was killed too late");
            until("the TAP's end", || interface(&guest.port).is_none());
            std::thread::sleep(Duration::from_millis(300));
            world.start_daemon();
            until("the transfer again", || moved(world)[way] > 1_000_000);
        }
        assert!(transfer.join().unwrap().unwrap().checksum_ok);
    }
}

#[test]
fn guests_of_one_socket_are_who_they_were_after_a_restart() {
    in_private_network(|| {
        let mut world = World::start("");
        let guests: Vec<_> = ["one", "two", "three", "four"]
            .map(|name| (name, world.guest(name)))
            .into();
        let mut streams: Vec<_> = guests.iter().map(|(_, guest)| open(guest.v4(7))).collect();
        for round in 0..3 {
            for stream in &mut streams {
                echo(stream, &format!("before {round}"));
            }
            world.kill_daemon();
            for (_, guest) in &guests {
                until("the TAP's end", || interface(&guest.port).is_none());
            }
            world.start_daemon();
            for (name, guest) in &guests {
                until("the guest's return", || world.running(name).is_some());
                assert_eq!(world.running(name).unwrap().name, guest.port);
            }
            for stream in &mut streams {
                echo(stream, &format!("after {round}"));
            }
        }
    });
}

#[test]
fn a_tap_deleted_under_a_guest_is_made_anew_and_its_connections_go_on() {
    in_private_network(|| {
        let world = World::start("");
        let neighbour = world.guest("neighbour");
        let guest = world.guest("patient");
        let mut streams = [open(guest.v4(7)), open(guest.v6(7)), open(neighbour.v4(7))];
        for round in 0..3 {
            for stream in &mut streams {
                echo(stream, &format!("before {round}"));
            }
            let index = interface(&guest.port).unwrap();
            netlink(async |netlink| netlink.delete_link(index).await.unwrap());
            until("another TAP", || {
                interface(&guest.port).is_some_and(|now| now != index)
            });
            until("the guest's return", || world.running("patient").is_some());
            for &address in &guest.addresses {
                until("an answer of the guest", || answers(address));
            }
            for stream in &mut streams {
                echo(stream, &format!("after {round}"));
            }
        }
        assert!(world.running("neighbour").is_some());
    });
}

#[test]
fn a_tap_that_left_its_bridge_is_put_back_and_waits_for_a_bridge_that_was_deleted() {
    fn make_bridge() {
        netlink(async |netlink| {
            let index = netlink.create_bridge("br0").await.unwrap();
            let address = "10.88.0.1/24".parse().unwrap();
            netlink.add_address(index, address).await.unwrap();
            netlink.set_up(index).await.unwrap();
        });
    }
    in_private_network(|| {
        make_bridge();
        let world = World::start("bridge = \"br0\"\nnet4 = \"10.88.0.0/24\"");
        let guest = world.guest("member");
        let mut stream = open(guest.v4(7));
        echo(&mut stream, "before");
        let tap = interface(&guest.port).unwrap();
        netlink(async |netlink| netlink.clear_master(tap).await.unwrap());
        until("the guest's network", || answers(guest.addresses[0]));
        echo(&mut stream, "taken out and put back");
        let bridge = interface("br0").unwrap();
        netlink(async |netlink| netlink.delete_link(bridge).await.unwrap());
        assert!(!answers(guest.addresses[0]));
        make_bridge();
        until("the guest's network", || answers(guest.addresses[0]));
        echo(&mut stream, "another bridge");
        assert_eq!(
            interface(&guest.port),
            Some(tap),
            "the port was not touched"
        );
    });
}

#[test]
fn a_guest_killed_in_the_middle_of_a_transfer_frees_its_port_at_once() {
    in_private_network(|| {
        let world = World::start("");
        let neighbour = world.guest("neighbour");
        let guest = world.guest("mortal");
        let (port, addresses) = (guest.port.clone(), guest.addresses.clone());
        let mut download = open(guest.v4(80));
        download
            .write_all(b"GET /bytes/1000000000000 HTTP/1.1\r\n\r\n")
            .unwrap();
        let mut buffer = vec![0; 1 << 20];
        download.read_exact(&mut buffer).unwrap();
        drop(guest);
        until("the port's end", || world.ports().len() == 1);
        assert_eq!(interface(&port), None);
        // The next one gets the same place.
        let guest = world.guest("heir");
        assert_eq!((&guest.port, &guest.addresses), (&port, &addresses));
        for address in [guest.v4(80), neighbour.v4(80)] {
            assert_eq!(http_get(address, "/", PATIENCE).unwrap().status, 200);
        }
        // What is left of the old connection hurts nobody: the new guest resets it.
        download
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        while matches!(download.read(&mut buffer), Ok(1..)) {}
    });
}

#[test]
fn a_guest_or_a_daemon_that_stood_still_for_a_while_goes_on() {
    in_private_network(|| {
        let mut world = World::start("");
        let mut guest = world.guest("patient");
        let mut idle = [open(guest.v4(7)), open(guest.v6(7))];
        for who in ["guest", "daemon"] {
            let pid = match who {
                "guest" => guest.pid(),
                _ => world.daemon_pid(),
            };
            let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
            let (sink, source) = (guest.v4(SINK_PORT), guest.v6(SOURCE_PORT));
            let transfers = [
                std::thread::spawn(move || bulk_send(sink, 10 * BULK, 1, BULK_PATIENCE)),
                std::thread::spawn(move || bulk_receive(source, 10 * BULK, 2, BULK_PATIENCE)),
            ];
            std::thread::sleep(Duration::from_millis(200));
            kill_process(pid, Signal::STOP).unwrap();
            // Longer than several of the time-outs of both ends.
            std::thread::sleep(Duration::from_secs(5));
            kill_process(pid, Signal::CONT).unwrap();
            assert!(transfers.iter().all(|t| !t.is_finished()), "too late");
            for stream in &mut idle {
                echo(stream, who);
            }
            for transfer in transfers {
                assert!(transfer.join().unwrap().unwrap().checksum_ok, "{who}");
            }
        }
    });
}
