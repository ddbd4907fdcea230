//! Guests at unix sockets.

use std::io::Write;
use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::{Duration, Instant};

use host_bridge::bridge::{AttachedPort, Bridge};
use host_bridge::plan::Plan;
use host_bridge::port::{PortChange, PortConfig, PortEnd, PortState};
use host_bridge::server::Server;
use sha2::{Digest, Sha256};
use shm_link::fault::{LinkError, PeerFault};
use shm_link::stream::Framing;
use tokio::net::UdpSocket;

use crate::common::{PATIENCE, RawGuest, address, guest, in_private_network, plan, policy, until};
use crate::guest::{StreamGuest, udp_payload};

/// What slot `slot` of the plan gets.
pub(crate) fn config(slot: u16) -> PortConfig {
    let assignment = plan().assign(slot);
    PortConfig {
        host_addresses: assignment.host_addresses,
        ..PortConfig::new(assignment.name, assignment.network)
    }
}

/// Attaches a stream to the bridge and gives the guest's end of it.
async fn attach(bridge: &Bridge, slot: u16) -> (AttachedPort, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let port = bridge.attach_stream(ours.into(), Framing::Prefixed, config(slot));
    (port.await.unwrap(), theirs)
}

fn connect(name: &str) -> UnixStream {
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap()
}

#[test]
fn a_guest_behind_a_stream_negotiates_and_the_kernel_answers_its_frames() {
    in_private_network(|| async {
        let bridge = Bridge::new().unwrap();
        let (mut port, stream) = attach(&bridge, 0).await;
        let handle = port.handle();
        assert_eq!(handle.status().state, PortState::Waiting);
        let (config, sent) = guest(move || {
            let mut guest = StreamGuest::attach(stream, Framing::Prefixed);
            let mac = guest.resolve_gateway();
            for seq in 0..100 {
                guest.ping(mac, seq);
            }
            (guest.config.clone(), guest.sent)
        })
        .await;
        assert_eq!(config.v4[0].to_string(), "10.77.0.2/30");
        assert_eq!(config.v6[0].to_string(), "fd77::2/126");
        // The stream is gone with the closure.
        assert_eq!(port.ended().await, PortEnd::Closed);
        let status = handle.status();
        assert!(matches!(status.state, PortState::Ended(_)));
        assert_eq!(status.counters.guest_to_host.frames_out, sent);
        status.counters.guest_to_host.check_ledger().unwrap();
        status.counters.host_to_guest.check_ledger().unwrap();
        port.close().await;
        assert!(bridge.status().is_empty());
    });
}

#[test]
fn twenty_megabytes_go_through_the_kernel_and_back_unharmed() {
    const DATAGRAMS: u32 = 15_000;
    const WINDOW: u32 = 64;
    in_private_network(|| async {
        let bridge = Bridge::new().unwrap();
        let (port, stream) = attach(&bridge, 0).await;
        let echo = UdpSocket::bind("0.0.0.0:7").await.unwrap();
        tokio::spawn(async move {
            let mut buf = [0; 2048];
            loop {
                let (len, from) = echo.recv_from(&mut buf).await.unwrap();
                echo.send_to(&buf[..len], from).await.unwrap();
            }
        });
        guest(move || {
            let mut guest = StreamGuest::attach(stream, Framing::Prefixed);
            let mac = guest.resolve_gateway();
            let (mut sent, mut received) = (Sha256::new(), Sha256::new());
            let mut answers = 0;
            for number in 0..DATAGRAMS + WINDOW {
                if number >= WINDOW {
                    let frame = guest.receive(|frame| udp_payload(frame, 7).is_some());
                    received.update(udp_payload(&frame, 7).unwrap());
                    answers += 1;
                }
                if number < DATAGRAMS {
                    let payload: Vec<u8> = (0..1400u32)
                        .map(|at| (at.wrapping_mul(number) >> 3) as u8)
                        .collect();
                    sent.update(&payload);
                    guest.send(&guest.datagram(mac, 7, &payload));
                }
            }
            assert_eq!(answers, DATAGRAMS);
            assert_eq!(sent.finalize(), received.finalize());
        })
        .await;
        let status = port.handle().status();
        status.counters.guest_to_host.check_ledger().unwrap();
        status.counters.host_to_guest.check_ledger().unwrap();
    });
}

#[test]
fn changes_reach_a_guest_behind_a_stream_and_are_acknowledged() {
    in_private_network(|| async {
        let bridge = Bridge::new().unwrap();
        let (port, stream) = attach(&bridge, 0).await;
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let running = tokio::task::spawn_blocking(move || {
            let mut guest = StreamGuest::attach(stream, Framing::Prefixed);
            while stopped.try_recv().is_err() {
                guest.try_receive().unwrap();
                guest.nap(Duration::from_millis(20));
            }
            guest.changes
        });
        let handle = port.handle();
        until("the guest is configured", || {
            handle.status().state == PortState::Running
        })
        .await;
        let change = PortChange {
            mtu: Some(1300),
            addresses: Some(vec!["10.99.0.2/24".parse().unwrap()]),
            gateways: Some(vec![]),
            ..PortChange::default()
        };
        handle.change(change).await.unwrap();
        let status = handle.status();
        assert_eq!(status.mtu, 1300);
        assert_eq!(status.addresses, ["10.99.0.2/24"]);
        let error = handle
            .change(PortChange {
                mtu: Some(68),
                ..PortChange::default()
            })
            .await
            .unwrap_err();
        assert!(error.contains("MTU"), "{error}");
        stop.send(()).unwrap();
        let changes = running.await.unwrap();
        let seen: Vec<_> = changes.iter().map(|c| (c.mtu, c.v4[0].addr)).collect();
        assert_eq!(seen, [(1300, Ipv4Addr::new(10, 99, 0, 2))]);
    });
}

#[test]
fn garbage_on_a_stream_is_a_named_fault_and_the_neighbour_notices_nothing() {
    in_private_network(|| async {
        let bridge = Bridge::new().unwrap();
        let (_port, stream) = attach(&bridge, 0).await;
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let neighbour = tokio::task::spawn_blocking(move || {
            let mut guest = StreamGuest::attach(stream, Framing::Prefixed);
            let mac = guest.resolve_gateway();
            for seq in 0u16.. {
                guest.ping(mac, seq);
                if seq >= 100 && stopped.try_recv().is_ok() {
                    return;
                }
            }
        });
        // At once, in place of a record's header, and as a message.
        let (mut port, mut stream) = attach(&bridge, 1).await;
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(port.ended().await, PortEnd::Fault(PeerFault::Framing));
        let status = port.handle().status();
        let PortState::Ended(why) = status.state else {
            panic!("{:?}", status.state)
        };
        assert!(why.contains("cut off (framing)"), "{why}");
        port.close().await;

        let (mut port, stream) = attach(&bridge, 1).await;
        guest(move || {
            let mut guest = StreamGuest::attach(stream, Framing::Prefixed);
            guest.resolve_gateway();
            guest.write_raw(&[0xff; 64]);
            // It is told: what was on its way comes first.
            let error = loop {
                match guest.try_receive() {
                    Ok(_) => guest.nap(Duration::from_millis(50)),
                    Err(error) => break error,
                }
            };
            assert_eq!(error, LinkError::Closed);
        })
        .await;
        assert_eq!(port.ended().await, PortEnd::Fault(PeerFault::Framing));
        port.close().await;

        let (mut port, stream) = attach(&bridge, 1).await;
        guest(move || {
            use shm_link::link::Link;
            let mut guest = StreamGuest::attach(stream, Framing::Prefixed);
            assert!(guest.link.send_control(&[0xee]).unwrap());
        })
        .await;
        assert_eq!(port.ended().await, PortEnd::Fault(PeerFault::Control));
        port.close().await;
        let _ = stop.send(());
        neighbour.await.unwrap();
    });
}

#[test]
fn a_guest_that_does_not_read_costs_nobody_anything_and_gets_it_all_later() {
    in_private_network(|| async {
        let bridge = Bridge::new().unwrap();
        let (slow_port, slow_stream) = attach(&bridge, 0).await;
        let (_port, stream) = attach(&bridge, 1).await;
        let slow = guest(move || {
            let mut slow = StreamGuest::attach(slow_stream, Framing::Prefixed);
            // So that the kernel need not ask for its MAC address.
            let mac = slow.resolve_gateway();
            slow.ping(mac, 0);
            slow
        })
        .await;
        let handle = slow_port.handle();
        let counters = move || handle.status().counters.host_to_guest;
        // More than the stream holds, and more than the TAP's queue of a thousand
        // takes.
        let flood = UdpSocket::bind("10.77.0.1:9").await.unwrap();
        let mut numbered = [0; 1400];
        for number in 0..3000u32 {
            numbered[..4].copy_from_slice(&number.to_be_bytes());
            flood.send_to(&numbered, "10.77.0.2:4000").await.unwrap();
        }
        let mut before = counters();
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let after = counters();
            if after == before {
                break;
            }
            before = after;
        }
        assert!(
            before.frames_out < 1000,
            "the stream does not hold that much"
        );
        guest(move || {
            let mut guest = StreamGuest::attach(stream, Framing::Prefixed);
            let mac = guest.resolve_gateway();
            for seq in 0..200 {
                guest.ping(mac, seq);
            }
        })
        .await;
        // Blocked, it did not even wake up.
        assert_eq!(counters(), before);
        let out = counters.clone();
        let got = guest(move || {
            let mut slow = slow;
            let mut got = Vec::new();
            let deadline = Instant::now() + PATIENCE;
            // The TAP's queue lost what it could not take; the bridge loses
            // nothing.
            while slow.received < out().frames_out || got.len() < 1000 {
                match slow.try_receive().unwrap() {
                    Some(frame) => {
                        let payload = udp_payload(&frame, 9);
                        got.extend(payload.map(|p| u32::from_be_bytes(p[..4].try_into().unwrap())));
                    }
                    None => slow.sleep(deadline),
                }
            }
            got
        })
        .await;
        assert!(got.is_sorted_by(|a, b| a < b), "out of order");
        counters().check_ledger().unwrap();
    });
}

#[test]
fn an_idle_guest_behind_a_stream_wakes_nobody() {
    in_private_network(|| async {
        let bridge = Bridge::new().unwrap();
        let (port, stream) = attach(&bridge, 0).await;
        let handle = port.handle();
        guest(move || {
            let mut guest = StreamGuest::attach(stream, Framing::Prefixed);
            let mac = guest.resolve_gateway();
            guest.ping(mac, 1);
            // What the kernel says of its own accord at the beginning.
            guest.nap(Duration::from_millis(200));
            while guest.try_receive().unwrap().is_some() {}
            let before = handle.status().counters;
            std::thread::sleep(Duration::from_millis(500));
            let after = handle.status().counters;
            let frames = after.host_to_guest.frames_in - before.host_to_guest.frames_in;
            let wakeups = after.host_to_guest.wakeups - before.host_to_guest.wakeups;
            assert!(wakeups <= frames, "{wakeups} wake-ups for {frames} frames");
            assert_eq!(after.guest_to_host.wakeups, before.guest_to_host.wakeups);
        })
        .await;
    });
}

#[test]
fn fault_injection_holds_and_loses_frames_of_a_stream_both_ways() {
    in_private_network(|| async {
        let bridge = Bridge::new().unwrap();
        let (port, stream) = attach(&bridge, 0).await;
        let handle = port.handle();
        guest(move || {
            let mut guest = StreamGuest::attach(stream, Framing::Prefixed);
            let mac = guest.resolve_gateway();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            let change = PortChange {
                impair_to_host: Some("delay=30ms".parse().unwrap()),
                impair_to_guest: Some("delay=40ms".parse().unwrap()),
                ..PortChange::default()
            };
            runtime.block_on(handle.change(change)).unwrap();
            for seq in 0..3 {
                let rtt = guest.ping(mac, seq);
                assert!(rtt >= Duration::from_millis(70), "{rtt:?}");
            }
            let change = PortChange {
                impair_to_host: Some("loss=100%".parse().unwrap()),
                impair_to_guest: Some("off".parse().unwrap()),
                ..PortChange::default()
            };
            runtime.block_on(handle.change(change)).unwrap();
            for seq in 10..15 {
                guest.send(&guest.echo_request(mac, seq, 10));
            }
            let change = PortChange {
                impair_to_host: Some("off".parse().unwrap()),
                ..PortChange::default()
            };
            // Everything sent before was taken before this is done.
            let deadline = Instant::now() + Duration::from_secs(5);
            while handle
                .status()
                .counters
                .guest_to_host
                .drops
                .get("impair-loss")
                != Some(&5)
            {
                assert!(Instant::now() < deadline, "{:?}", handle.status());
                std::thread::yield_now();
            }
            runtime.block_on(handle.change(change)).unwrap();
            guest.ping(mac, 20);
            let counters = handle.status().counters;
            counters.guest_to_host.check_ledger().unwrap();
            counters.host_to_guest.check_ledger().unwrap();
        })
        .await;
    });
}

#[test]
fn guests_of_both_kinds_share_the_slots_and_the_end_of_a_stream_frees_its_own() {
    in_private_network(|| async {
        let bridge = Bridge::new().unwrap();
        let two = Plan {
            max_guests: 2,
            ..plan()
        };
        let mut server = Server::bind(&address(), bridge.clone(), two, policy()).unwrap();
        server.bind_stream(&"@streams".parse().unwrap()).unwrap();
        tokio::spawn(async move { server.run().await });
        let watched = bridge.clone();
        let (memory, stream) = guest(move || {
            let mut memory = RawGuest::attach();
            memory.resolve_gateway();
            let mut stream = StreamGuest::attach(connect("streams"), Framing::Prefixed);
            stream.resolve_gateway();
            assert_eq!(stream.config.v4[0].to_string(), "10.77.0.6/30");
            // No place is left: the end of the connection says so.
            let mut third = StreamGuest::new(connect("streams"), Framing::Prefixed);
            loop {
                match third.control_step() {
                    Ok(()) => third.nap(Duration::from_millis(50)),
                    Err(error) => break assert_eq!(error, LinkError::Closed),
                }
            }
            let names: Vec<_> = watched.status().into_iter().map(|port| port.name).collect();
            assert_eq!(names, ["guest0", "guest1"]);
            (memory, stream)
        })
        .await;
        drop(stream);
        until("the place is free", || bridge.status().len() == 1).await;
        guest(|| {
            let mut next = StreamGuest::attach(connect("streams"), Framing::Prefixed);
            let mac = next.resolve_gateway();
            assert_eq!(next.config.v4[0].to_string(), "10.77.0.6/30");
            next.ping(mac, 1);
        })
        .await;
        drop(memory);
        until("both places are free", || bridge.status().is_empty()).await;
    });
}
