//! Guests attach to a real bridge with real TAPs, in a private network.

mod common;

use common::{PATIENCE, RawGuest, address, guest, in_private_network, plan, policy, serve, until};
use etherparse::PacketBuilder;
use host_bridge::bell::Doorbells;
use host_bridge::bridge::Bridge;
use host_bridge::port::{PortChange, PortConfig, PortState};
use shm_link::fault::LinkError;
use shm_link::link::{FrameRx, Link};
use shm_link::linux::attach::Attachment;
use shm_link::linux::event::EventFd;
use shm_link::linux::memory::SharedMemory;
use std::time::{Duration, Instant};

fn echo_request(guest: &RawGuest, gateway_mac: [u8; 6], seq: u16, payload: usize) -> Vec<u8> {
    let config = &guest.config;
    let builder = PacketBuilder::ethernet2(config.mac, gateway_mac)
        .ipv4(
            config.v4[0].addr.octets(),
            config.gateway4.unwrap().octets(),
            64,
        )
        .icmpv4_echo_request(7, seq);
    let mut frame = Vec::new();
    builder
        .write(&mut frame, &vec![seq as u8; payload])
        .unwrap();
    frame
}

fn is_echo_reply(frame: &[u8], seq: u16) -> bool {
    frame.len() > 42
        && frame[12..14] == [8, 0]
        && frame[23] == 1
        && frame[34] == 0
        && frame[40..42] == seq.to_be_bytes()
}

fn tap_mtu(name: &str) -> Option<u32> {
    // /sys shows the namespace it was mounted in; /proc/thread-self/net the
    // thread's own, without the MTU. Netlink, through `ip`, shows it all.
    let output = std::process::Command::new("ip")
        .args(["-o", "link", "show", "dev", name])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut words = text.split_whitespace();
    words.find(|word| *word == "mtu")?;
    words.next()?.parse().ok()
}

#[test]
fn a_guest_negotiates_and_the_kernel_answers_its_frames() {
    in_private_network(|| async {
        let bridge = serve(plan(), policy());
        let (rtt_ok, config) = guest(|| {
            let mut guest = RawGuest::attach();
            let mac = guest.resolve_gateway();
            for seq in 0..100 {
                guest.send(&echo_request(&guest, mac, seq, 1000));
                let reply = guest.receive(|frame| is_echo_reply(frame, seq));
                assert_eq!(reply[42..], vec![seq as u8; 1000]);
            }
            (true, guest.config.clone())
        })
        .await;
        assert!(rtt_ok);
        assert_eq!(config.v4[0].to_string(), "10.77.0.2/30");
        assert_eq!(config.v6[0].to_string(), "fd77::2/126");
        assert_eq!(config.mtu, 1500);
        // The guest is gone with its closure; so is its port.
        until("the port's end", || bridge.status().is_empty()).await;
        assert_eq!(tap_mtu("guest0"), None);
    });
}

#[test]
fn spoofed_frames_are_dropped_by_name_and_the_ledger_adds_up() {
    in_private_network(|| async {
        let bridge = serve(plan(), policy());
        let watched = bridge.clone();
        guest(move || {
            let mut guest = RawGuest::attach();
            let mac = guest.resolve_gateway();
            let good = echo_request(&guest, mac, 1, 10);
            let mut wrong_mac = good.clone();
            wrong_mac[6..12].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
            let mut wrong_ip = good.clone();
            wrong_ip[26..30].copy_from_slice(&[10, 77, 0, 99]);
            for _ in 0..5 {
                guest.send(&wrong_mac);
                guest.send(&wrong_ip);
                guest.send(&[1, 2, 3]);
                guest.send(&vec![0; 2000]);
            }
            // In order behind them.
            guest.send(&good);
            guest.receive(|frame| is_echo_reply(frame, 1));
            let status = watched.status().remove(0);
            let counters = status.counters.guest_to_host;
            for reason in ["spoofed-mac", "spoofed-ipv4", "truncated", "too-long"] {
                assert_eq!(
                    counters.drops.get(reason),
                    Some(&5),
                    "{reason} in {counters:?}"
                );
            }
            assert_eq!(counters.frames_in, 22);
            assert_eq!(counters.frames_out, 2);
            counters.check_ledger().unwrap();
            status.counters.host_to_guest.check_ledger().unwrap();
        })
        .await;
    });
}

#[test]
fn changes_reach_a_running_guest_and_are_acknowledged() {
    in_private_network(|| async {
        let bridge = serve(plan(), policy());
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let running = tokio::task::spawn_blocking(move || {
            let mut guest = RawGuest::attach();
            while stopped.try_recv().is_err() {
                guest.control_step().unwrap();
                guest.doorbell_nap();
            }
            guest.changes
        });
        until("the guest is configured", || {
            bridge
                .status()
                .first()
                .is_some_and(|s| s.state == PortState::Running)
        })
        .await;
        let port = bridge.port("guest0").unwrap();
        port.change(PortChange {
            mtu: Some(1300),
            ..PortChange::default()
        })
        .await
        .unwrap();
        assert_eq!(port.status().mtu, 1300);
        assert_eq!(tap_mtu("guest0"), Some(1300));
        port.change(PortChange {
            addresses: Some(vec!["10.99.0.2/24".parse().unwrap()]),
            gateways: Some(vec![]),
            ..PortChange::default()
        })
        .await
        .unwrap();
        assert_eq!(port.status().addresses, ["10.99.0.2/24"]);
        port.change(PortChange {
            carrier: Some(false),
            ..PortChange::default()
        })
        .await
        .unwrap();
        assert!(!port.status().carrier);
        let error = port
            .change(PortChange {
                mtu: Some(68),
                ..PortChange::default()
            })
            .await
            .unwrap_err();
        assert!(error.contains("MTU"), "{error}");
        // More than the guest can do is cut down to what it can.
        port.change(PortChange {
            mtu: Some(9000),
            carrier: Some(true),
            ..PortChange::default()
        })
        .await
        .unwrap();
        assert_eq!(port.status().mtu, 1500);
        stop.send(()).unwrap();
        let changes = running.await.unwrap();
        let seen: Vec<_> = changes
            .iter()
            .map(|c| (c.mtu, c.v4[0].to_string(), c.carrier))
            .collect();
        assert_eq!(
            seen,
            [
                (1300, "10.77.0.2/30".to_owned(), true),
                (1300, "10.99.0.2/24".to_owned(), true),
                (1300, "10.99.0.2/24".to_owned(), false),
                (1500, "10.99.0.2/24".to_owned(), true),
            ]
        );
    });
}

#[test]
fn a_guest_that_writes_nonsense_is_cut_off_and_its_neighbour_notices_nothing() {
    in_private_network(|| async {
        let bridge = serve(plan(), policy());
        let watched = bridge.clone();
        let neighbour = tokio::task::spawn_blocking(|| {
            let mut guest = RawGuest::attach();
            let mac = guest.resolve_gateway();
            let deadline = Instant::now() + Duration::from_secs(4);
            let mut seq = 0u16;
            while Instant::now() < deadline {
                seq = seq.wrapping_add(1);
                guest.send(&echo_request(&guest, mac, seq, 200));
                guest.receive(|frame| is_echo_reply(frame, seq));
            }
            seq
        });
        until("the neighbour's port", || bridge.status().len() == 1).await;
        let offender = guest(move || {
            let mut random = 0x9e37_79b9_7f4a_7c15u64;
            let mut ends = 0;
            let deadline = Instant::now() + Duration::from_secs(3);
            while Instant::now() < deadline {
                let mut guest = RawGuest::attach();
                guest.resolve_gateway();
                let region = guest.memory.region();
                // Random words over everything, the rings' headers more often.
                for step in 0..4000 {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let span = if step % 2 == 0 {
                        64 << 10
                    } else {
                        region.len()
                    };
                    let at = (random as usize % span) & !7;
                    region.copy_in(at, &random.to_le_bytes()).unwrap();
                    if step % 16 == 0 {
                        guest.send_unchecked();
                    }
                }
                let deadline = Instant::now() + Duration::from_millis(300);
                guest.ring();
                while Instant::now() < deadline {
                    let (rx, _) = guest.link.split();
                    match rx.peek() {
                        Err(LinkError::Closed | LinkError::Fault(_)) => {
                            ends += 1;
                            break;
                        }
                        _ => std::thread::sleep(Duration::from_millis(10)),
                    }
                }
            }
            ends
        })
        .await;
        assert!(offender > 0, "nonsense was never noticed");
        let echoes = neighbour.await.unwrap();
        assert!(
            echoes > 100,
            "the neighbour got only {echoes} echoes through"
        );
        until("all ports' ends", || watched.status().is_empty()).await;
    });
}

#[test]
fn when_all_places_are_taken_the_next_guest_is_turned_away_in_words() {
    in_private_network(|| async {
        let bridge = serve(
            host_bridge::plan::Plan {
                max_guests: 1,
                ..plan()
            },
            policy(),
        );
        guest(|| {
            let first = RawGuest::attach();
            let error = Attachment::connect(&address(), PATIENCE).unwrap_err();
            assert!(error.to_string().contains("refused"), "{error}");
            drop(first);
        })
        .await;
        until("the place is free", || bridge.status().is_empty()).await;
        guest(|| drop(RawGuest::attach())).await;
    });
}

#[test]
fn a_monitor_attaches_memory_and_doorbells_of_its_own() {
    in_private_network(|| async {
        let bridge = Bridge::new().unwrap();
        let memory = SharedMemory::create("monitor", 1 << 20).unwrap();
        let guests = SharedMemory::from_fd(memory.fd().try_clone_to_owned().unwrap()).unwrap();
        let (ring_guest, ring_host) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        let doorbells = Doorbells {
            ring_guest: ring_guest.try_clone().unwrap().into(),
            rung_by_guest: ring_host.try_clone().unwrap().into(),
        };
        let assignment = plan().assign(0);
        let mut config = PortConfig::new("owned", assignment.network);
        config.host_addresses = assignment.host_addresses;
        let port = bridge
            .attach(memory.region(), doorbells, config)
            .await
            .unwrap();
        guest(move || {
            let mut guest = RawGuest::over(guests, ring_host, ring_guest, None);
            let mac = guest.resolve_gateway();
            guest.send(&echo_request(&guest, mac, 1, 100));
            guest.receive(|frame| is_echo_reply(frame, 1));
        })
        .await;
        assert_eq!(bridge.status()[0].name, "owned");
        port.close().await;
        assert!(bridge.status().is_empty());
    });
}
