//! Guests at serial lines: the host has a terminal, the guest its other end.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use host_bridge::bridge::Bridge;
use host_bridge::port::{PortChange, PortEnd, PortState};
use host_bridge::server::Server;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use shm_link::fault::PeerFault;
use shm_link::link::Link;
use shm_link::stream::{Framing, MAX_NOISE_LEN};

use crate::common::{PATIENCE, address, guest, in_private_network, plan, policy, until};
use crate::guest::StreamGuest;
use crate::sockets::config;

const SOON: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};

/// The guest's end of a new line, and the device that the host opens.
fn line() -> (OwnedFd, PathBuf) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_bytes();
    (master, std::ffi::OsString::from_vec(name).into())
}

fn open(device: &Path) -> OwnedFd {
    let device = File::options().read(true).write(true).open(device);
    device.unwrap().into()
}

#[test]
fn a_guest_at_a_serial_line_survives_damage_and_a_new_host() {
    in_private_network(|| async {
        let bridge = Bridge::new().unwrap();
        let (master, device) = line();
        let device_fd = open(&device);
        // As on a machine that talks before its guest does.
        let attached = bridge.attach_stream(device_fd, Framing::Serial, config(0));
        let port = attached.await.unwrap();
        let handle = port.handle();
        let mut guest_at_line = guest(move || {
            let mut guest = StreamGuest::new(master, Framing::Serial);
            guest.write_raw(b"\r\nBooting from ROM...\r\n\0\0\x03ab");
            guest.negotiate();
            let mac = guest.resolve_gateway();
            for seq in 0..50 {
                guest.ping(mac, seq);
                if seq % 10 == 0 {
                    // The ends of two records and the middle of a third.
                    guest.write_raw(b"\x04abc\0\xff\xff\xff\0\x01lost");
                }
            }
            guest
        })
        .await;
        let counters = handle.status().counters.guest_to_host;
        let damaged = counters.drops.get("damaged").copied().unwrap_or(0);
        assert!(damaged >= 12, "{counters:?}");
        counters.check_ledger().unwrap();
        assert_eq!(handle.status().state, PortState::Running);

        // The daemon goes and another comes; the guest stays.
        let kept_open = open(&device);
        port.close().await;
        assert!(bridge.status().is_empty());
        let attached = bridge.attach_stream(kept_open, Framing::Serial, config(0));
        let mut port = attached.await.unwrap();
        guest(move || {
            guest_at_line.negotiate();
            let mac = guest_at_line.resolve_gateway();
            guest_at_line.ping(mac, 99);
            guest_at_line.link.close();
            assert!(!guest_at_line.link.wants_write());
            guest_at_line
        })
        .await;
        assert_eq!(port.ended().await, PortEnd::Closed);
    });
}

#[test]
fn a_change_that_a_line_loses_is_said_again() {
    in_private_network(|| async {
        let bridge = Bridge::new().unwrap();
        let (master, device) = line();
        let attached = bridge.attach_stream(open(&device), Framing::Serial, config(0));
        let port = attached.await.unwrap();
        let handle = port.handle();
        let mut at_line = guest(move || StreamGuest::attach(master, Framing::Serial)).await;
        let change = PortChange {
            mtu: Some(1400),
            ..PortChange::default()
        };
        let changed = tokio::spawn(async move { handle.change(change).await });
        // Kept until the change is answered: a line that hangs up ends the port.
        let at_line = guest(move || {
            // The line loses everything up to the new MTU in the message.
            let mut lost = Vec::new();
            let deadline = Instant::now() + PATIENCE;
            while !lost.windows(2).any(|bytes| bytes == 1400_u16.to_le_bytes()) {
                at_line.sleep(deadline);
                let mut some = [0; 64];
                let len = rustix::io::read(at_line.fd.as_fd(), &mut some).unwrap_or(0);
                lost.extend_from_slice(&some[..len]);
            }
            while at_line.changes.is_empty() {
                if at_line.try_receive().expect("control").is_none() && at_line.changes.is_empty() {
                    at_line.sleep(deadline);
                }
            }
            assert_eq!(at_line.changes[0].mtu, 1400);
            // The answer leaves.
            while at_line.link.wants_write() {
                at_line.sleep(deadline);
                at_line.control_step().expect("control");
            }
            at_line
        })
        .await;
        changed.await.unwrap().unwrap();
        drop(at_line);
        port.close().await;
    });
}

#[test]
fn a_line_that_carries_only_noise_is_given_up_by_name() {
    in_private_network(|| async {
        let bridge = Bridge::new().unwrap();
        let (master, device) = line();
        let attached = bridge.attach_stream(open(&device), Framing::Serial, config(0));
        let mut port = attached.await.unwrap();
        let noise = tokio::task::spawn_blocking(move || {
            // Without waiting: a write that the hang-up finds asleep stays so.
            rustix::io::ioctl_fionbio(&master, true).unwrap();
            let mut written = 0;
            loop {
                let mut fds = [PollFd::new(&master, PollFlags::OUT)];
                poll(&mut fds, Some(&SOON)).unwrap();
                if fds[0].revents().contains(PollFlags::HUP) {
                    return written;
                }
                written += rustix::io::write(&master, &[b'u'; 1024]).unwrap_or(0);
            }
        });
        assert_eq!(port.ended().await, PortEnd::Fault(PeerFault::Framing));
        port.close().await;
        assert!(noise.await.unwrap() > MAX_NOISE_LEN);
    });
}

#[test]
fn a_server_keeps_a_place_for_each_line_and_takes_the_next_guest_there() {
    in_private_network(|| async {
        let bridge = Bridge::new().unwrap();
        let (master, device) = line();
        let mut server = Server::bind(&address(), bridge.clone(), plan(), policy()).unwrap();
        let error = server.add_line("/dev/null").unwrap_err().to_string();
        assert!(error.contains("no terminal"), "{error}");
        server.add_line(&device).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let served = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            server.run_until(stopped).await;
        });
        until("the line's port", || bridge.status().len() == 1).await;
        let master = guest(move || {
            let kept = master.try_clone().unwrap();
            let mut first = StreamGuest::attach(master, Framing::Serial);
            first.resolve_gateway();
            assert_eq!(first.config.v4[0].to_string(), "10.77.0.2/30");
            first.link.close();
            kept
        })
        .await;
        until("the next port", || {
            let ports = bridge.status();
            ports
                .first()
                .is_some_and(|port| port.state == PortState::Waiting)
        })
        .await;
        guest(move || {
            let mut second = StreamGuest::attach(master, Framing::Serial);
            let mac = second.resolve_gateway();
            second.ping(mac, 1);
            assert_eq!(second.config.v4[0].to_string(), "10.77.0.2/30");
            second
        })
        .await;
        stop.send(()).unwrap();
        served.await.unwrap();
        assert!(bridge.status().is_empty());
    });
}
