//! Guests, connections and TAPs that outlive the daemon's process.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use host_bridge::child::Helper;
use host_bridge::port::PortChange;
use rustix::process::{Pid, Signal, kill_process};

use crate::common::{
    PATIENCE, World, answers, guest_command, in_private_network, interface, stands_still, until,
};

/// Connections at a time, to two guests over both versions of IP.
const CONNECTIONS: usize = 240;
/// How often the daemon is killed under them.
const KILLS: u64 = 8;
/// Bytes that a connection has on its way at a time.
const PIECE: usize = 8192;

fn open(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn echo(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).unwrap();
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, text);
}

/// Bytes that are unlike those of other connections and rounds.
fn piece(connection: usize, round: u64) -> Vec<u8> {
    let mut state = ((connection as u64 + 1) << 32) | (round + 1);
    let next = |_| {
        // xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..PIECE).map(next).collect()
}

#[test]
fn hundreds_of_connections_go_on_while_their_daemon_is_killed_again_and_again() {
    in_private_network(|| {
        let mut world = World::start_kept("");
        let guests = [world.guest("one"), world.guest("two")];
        let taps = guests.each_ref().map(|guest| interface(&guest.port));
        let addresses: Vec<SocketAddr> = guests
            .iter()
            .flat_map(|guest| [guest.v4(7), guest.v6(7)])
            .collect();
        let (over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for connection in 0..CONNECTIONS {
                let address = addresses[connection % addresses.len()];
                let (over, rounds) = (&over, &rounds);
                scope.spawn(move || {
                    let mut stream = open(address);
                    let mut round = 0;
                    while !over.load(Ordering::Relaxed) {
                        echo(&mut stream, &piece(connection, round));
                        round += 1;
                        rounds.fetch_add(1, Ordering::Relaxed);
                    }
                    assert!(round > KILLS, "this one did its part");
                    echo(&mut stream, b"to the end");
                });
            }
            for kill in 0..KILLS {
                // At moments that have nothing to do with what is under way.
                std::thread::sleep(Duration::from_millis(150 + kill * 37));
                world.kill_worker(Signal::KILL);
                let before = rounds.load(Ordering::Relaxed);
                until("traffic after the kill", || {
                    rounds.load(Ordering::Relaxed) > before + CONNECTIONS as u64
                });
            }
            over.store(true, Ordering::Relaxed);
        });
        // No TAP was made anew, and nothing is counted that was not moved.
        let now = guests.each_ref().map(|guest| interface(&guest.port));
        assert_eq!(now, taps);
        until("ledgers that add up", || world.ledgers_add_up());
    });
}

#[test]
fn what_an_administrator_changed_outlives_the_daemon() {
    in_private_network(|| {
        let mut world = World::start_kept("");
        let guest = world.guest("changed");
        let change = PortChange {
            mtu: Some(1400),
            addresses: Some(vec![
                "10.77.0.2/29".parse().unwrap(),
                "10.77.0.5/29".parse().unwrap(),
                "fd77::2/126".parse().unwrap(),
            ]),
            limit_to_host: Some("rate=900mbit".parse().unwrap()),
            impair_to_guest: Some("delay=1ms".parse().unwrap()),
            ..PortChange::default()
        };
        let before = world.change(&guest.port, change);
        // The kernel's side of the TAP knows the smaller subnet only.
        let tap = interface(&guest.port).unwrap();
        crate::common::netlink(async |netlink| {
            let address = "10.77.0.1/29".parse().unwrap();
            netlink.add_address(tap, address).await.unwrap();
        });
        let mut stream = open("10.77.0.5:7".parse().unwrap());
        for _ in 0..3 {
            echo(&mut stream, b"at the second address");
            world.kill_worker(Signal::KILL);
            echo(&mut stream, b"and again");
            until("the guest's configuration", || {
                world.running("changed").is_some()
            });
            let after = world.running("changed").unwrap();
            assert_eq!(after.addresses, before.addresses);
            assert_eq!(
                (after.mtu, &after.limit_to_host, &after.impair_to_guest),
                (1400, &before.limit_to_host, &before.impair_to_guest)
            );
        }
    });
}

#[test]
fn an_administrator_replaces_the_daemon_and_no_guest_loses_anything() {
    in_private_network(|| {
        let mut world = World::start_kept("");
        let guest = world.guest("kept");
        let tap = interface(&guest.port);
        let mut stream = open(guest.v4(7));
        for _ in 0..3 {
            let before = world.worker();
            let ports = world.admin().restart().unwrap();
            assert_eq!(ports.len(), 1, "the next process has the guest");
            assert_ne!(world.worker(), before);
            echo(&mut stream, b"on and on");
            assert_eq!(interface(&guest.port), tap);
        }
    });
}

#[test]
fn a_daemon_that_nobody_keeps_refuses_to_be_replaced() {
    in_private_network(|| {
        let world = World::start("");
        let why = world.admin().restart().unwrap_err().to_string();
        assert!(why.contains("--keep"), "{why}");
    });
}

#[test]
fn a_guest_that_dies_with_its_daemon_leaves_nothing_behind() {
    in_private_network(|| {
        let mut world = World::start_kept("max_guests = 1");
        for _ in 0..3 {
            let mut guest = world.guest("mortal");
            let port = guest.port.clone();
            let pid = Pid::from_raw(guest.pid().cast_signed()).unwrap();
            // So that the daemon does not see the guest's end.
            let worker = world.worker().unwrap();
            kill_process(worker, Signal::STOP).unwrap();
            until("the daemon's standstill", || stands_still(worker));
            kill_process(pid, Signal::KILL).unwrap();
            drop(guest);
            world.kill_worker(Signal::KILL);
            until("the TAP's end", || interface(&port).is_none());
        }
        world.guest("heir");
    });
}

#[test]
fn a_guest_that_comes_while_there_is_no_daemon_waits_and_is_served() {
    in_private_network(|| {
        let mut world = World::start_kept("");
        // It takes nobody from here on.
        let worker = world.worker().unwrap();
        kill_process(worker, Signal::STOP).unwrap();
        until("the daemon's standstill", || stands_still(worker));
        let helper = Helper::spawn(guest_command("early")).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        world.kill_worker(Signal::KILL);
        let guest = world.attached("early", helper);
        assert!(answers(guest.addresses[0]));
    });
}

#[test]
fn guests_that_come_while_their_daemon_dies_are_served_by_the_next() {
    in_private_network(|| {
        let mut world = World::start_kept("max_guests = 8");
        for round in 0..8 {
            let name = format!("early-{round}");
            let helper = Helper::spawn(guest_command(&name)).unwrap();
            // Some are still on their way, some are in the middle of the handshake.
            std::thread::sleep(Duration::from_millis(round));
            world.kill_worker(Signal::KILL);
            drop(world.attached(&name, helper));
        }
    });
}

#[test]
fn with_the_keeper_everything_goes() {
    in_private_network(|| {
        let mut world = World::start_kept("");
        let guest = world.guest("kept");
        world.kill_daemon();
        until("the TAP's end", || interface(&guest.port).is_none());
    });
}

#[test]
fn what_daemons_die_of_at_once_again_and_again_is_let_go() {
    in_private_network(|| {
        let mut world = World::start_kept("");
        let guest = world.guest("suspect");
        let tap = interface(&guest.port);
        let begin = Instant::now();
        while interface(&guest.port) == tap {
            assert!(begin.elapsed() < PATIENCE, "the guest is kept for ever");
            world.kill_worker(Signal::ABORT);
        }
        until("a daemon", || world.admin().status(None).is_ok());
        // It attaches anew, as it would to a daemon that nobody keeps.
        until("the guest's return", || world.running("suspect").is_some());
        until("an answer", || answers(guest.addresses[0]));
        assert_ne!(interface(&guest.port), tap);
    });
}
