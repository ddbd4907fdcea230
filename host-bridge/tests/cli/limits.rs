//! Limits of a guest, changed while it runs: nothing is lost by them.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use shm_link::control::GuestOffer;
use shm_link::link::{FrameTx, Link};
use shm_link::linux::attach::Attachment;
use shm_link::offload::{OffloadHeader, Offloads};
use shm_link::stream::Framing;

use crate::common::{PATIENCE, RawGuest, address, in_private_network, offer};
use crate::guest::StreamGuest;
use crate::support::{DaemonProcess, LivingGuest};

/// How many frames of the only guest the daemon has taken, or given.
fn frames(daemon: &DaemonProcess, direction: &str) -> u64 {
    let counters = daemon.ports()[0]["counters"][direction].clone();
    assert!(
        counters["drops"].as_object().unwrap().is_empty(),
        "{counters}"
    );
    counters["frames_in"].as_u64().unwrap()
}

/// The processor time that the daemon has used, in hundredths of a second.
fn cpu(daemon: &DaemonProcess) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    // User and system time.
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// As many as the burst and the time let through, and one that was on its way.
fn allowed(start: Instant, per_second: f64) -> u64 {
    64 + (start.elapsed().as_secs_f64() * per_second) as u64 + 2
}

#[test]
fn a_limit_of_frames_holds_the_guest_back_and_loses_nothing() {
    in_private_network(|| async {
        let daemon = DaemonProcess::start(&["--limit-to-host", "frames=5"]);
        let start = Instant::now();
        let guest = LivingGuest::attach(|guest| {
            let frame = guest.arp_request(guest.config.v4[0].addr);
            for _ in 0..300 {
                guest.send(&frame);
            }
        });
        let deadline = Instant::now() + PATIENCE;
        while frames(&daemon, "guest_to_host") < 64 {
            assert!(Instant::now() < deadline, "the burst does not pass");
        }
        std::thread::sleep(Duration::from_millis(300));
        let taken = frames(&daemon, "guest_to_host");
        assert!(
            taken <= allowed(start, 5.0),
            "{taken} in {:?}",
            start.elapsed()
        );
        let text = daemon.succeed(&["status"]);
        assert!(text.contains("limited to host: frames=5"), "{text}");

        let text = daemon.succeed(&["set", "guest0", "--limit-to-host", "off"]);
        assert!(!text.contains("limited"), "{text}");
        while frames(&daemon, "guest_to_host") < 300 {
            assert!(Instant::now() < deadline, "frames were lost");
        }
        drop(guest);
    });
}

#[test]
fn broadcasts_beyond_their_limit_are_dropped_and_nothing_waits_behind_them() {
    in_private_network(|| async {
        let daemon = DaemonProcess::start(&["--groups-per-second", "50"]);
        let start = Instant::now();
        let guest = LivingGuest::attach(|guest| {
            let broadcast = guest.arp_request(guest.config.v4[0].addr);
            let mut unicast = broadcast.clone();
            unicast[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x99]);
            for _ in 0..300 {
                guest.send(&broadcast);
                guest.send(&unicast);
            }
        });
        let deadline = Instant::now() + PATIENCE;
        let counters = loop {
            let counters = daemon.ports()[0]["counters"]["guest_to_host"].clone();
            if counters["frames_in"] == 600 {
                break counters;
            }
            assert!(Instant::now() < deadline, "frames wait: {counters}");
        };
        let drops = counters["drops"].as_object().unwrap();
        assert_eq!(drops.keys().collect::<Vec<_>>(), ["group-limit"]);
        let dropped = drops["group-limit"].as_u64().unwrap();
        let later = (start.elapsed().as_secs_f64() * 50.0) as u64 + 1;
        let least = 250_u64.saturating_sub(later);
        assert!(
            (least..=250).contains(&dropped),
            "{dropped} of 250, {later} later"
        );
        assert_eq!(counters["frames_out"], 600 - dropped);
        drop(guest);
    });
}

/// A guest that leaves checksums to the host.
fn attach_with_offloads() -> RawGuest {
    let attachment = Attachment::connect(&address(), PATIENCE).unwrap();
    let offer = GuestOffer {
        can_send: Offloads::CHECKSUM,
        ..offer()
    };
    let (ring, doorbell) = (attachment.ring_host, attachment.doorbell);
    let socket = Some(attachment.socket);
    RawGuest::offering(offer, attachment.memory, ring, doorbell, socket)
}

/// Fault injection takes offloads back. The guest's acknowledgement overtakes the frames
/// that a limit holds back in another ring, and it broke no rule with them.
#[test]
fn frames_that_left_before_offloads_were_taken_back_are_taken_and_later_ones_are_a_fault() {
    in_private_network(|| async {
        const FRAMES: u64 = 200;
        let daemon = DaemonProcess::start(&["--limit-to-host", "frames=5"]);
        let unfinished = OffloadHeader {
            flags: 1,
            csum_start: 34,
            csum_offset: 6,
            ..OffloadHeader::NONE
        };
        let (attached, is_attached) = std::sync::mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let guest = std::thread::spawn(move || {
            let mut guest = attach_with_offloads();
            // A datagram from the guest to a broadcast address.
            let mut frame = vec![0xff; 6];
            frame.extend(guest.config.mac);
            frame.extend([8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0]);
            frame.extend(guest.config.v4[0].addr.octets());
            frame.extend([10, 77, 0, 3, 0, 9, 0, 9, 0, 8, 0, 0]);
            for _ in 0..FRAMES {
                guest.send_offloaded(&frame, unfinished);
            }
            attached.send(()).unwrap();
            while !stopped.load(Ordering::Relaxed) {
                guest.control_step().unwrap();
                guest.doorbell_nap();
            }
            guest.send_offloaded(&frame, unfinished);
            guest
        });
        is_attached.recv_timeout(PATIENCE).unwrap();
        daemon.succeed(&["set", "guest0", "--impair-to-host", "delay=1ms"]);
        assert!(frames(&daemon, "guest_to_host") < FRAMES, "nothing waited");
        daemon.succeed(&["set", "guest0", "--limit-to-host", "off"]);
        let deadline = Instant::now() + PATIENCE;
        while frames(&daemon, "guest_to_host") < FRAMES {
            assert!(Instant::now() < deadline, "the guest is cut off");
        }
        assert!(!daemon.log().contains("cut off"));
        stop.store(true, Ordering::Relaxed);
        let guest = guest.join().unwrap();
        daemon.until_logged("cut off (offload)");
        drop(guest);
    });
}

#[test]
fn a_limit_holds_a_guest_behind_a_stream_back_as_well() {
    in_private_network(|| async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stream");
        let daemon = DaemonProcess::start(&["--stream", path.to_str().unwrap()]);
        let socket = UnixStream::connect(&path).unwrap();
        let mut guest = StreamGuest::attach(socket, Framing::Prefixed);
        guest.resolve_gateway();
        let limit = |text| daemon.succeed(&["set", "guest0", "--limit-to-host", text]);
        limit("frames=5");
        let (start, used) = (Instant::now(), cpu(&daemon));
        let before = frames(&daemon, "guest_to_host");
        let mut frame = vec![0xff; 6];
        frame.extend(guest.config.mac);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(guest.config.mac);
        frame.extend(guest.address().octets());
        frame.extend([0; 10]);
        for _ in 0..300 {
            guest.send(&frame);
        }
        std::thread::sleep(Duration::from_millis(500));
        let taken = frames(&daemon, "guest_to_host") - before;
        assert!((60..=allowed(start, 5.0)).contains(&taken), "{taken}");
        assert!(cpu(&daemon) - used < 20, "it spins while it waits");
        limit("off");
        let deadline = Instant::now() + PATIENCE;
        while frames(&daemon, "guest_to_host") < before + 300 {
            // What the socket did not take while the host did not read.
            guest.link.split().1.flush();
            assert!(Instant::now() < deadline, "frames were lost");
        }
    });
}

#[test]
fn a_limit_towards_the_guest_leaves_frames_with_the_kernel() {
    in_private_network(|| async {
        let daemon = DaemonProcess::start(&[]);
        let guest = LivingGuest::attach(|guest| {
            guest.resolve_gateway();
        });
        daemon.succeed(&["set", "guest0", "--limit-to-guest", "frames=5"]);
        let (start, before) = (Instant::now(), frames(&daemon, "host_to_guest"));
        // Without an answer from the guest the kernel sends no datagram: it is told
        // the guest's address.
        let mac = "02:53:4c:00:00:00";
        crate::support::ip(&format!("neigh replace 10.77.0.2 lladdr {mac} dev guest0")).unwrap();
        let socket = std::net::UdpSocket::bind("10.77.0.1:0").unwrap();
        for _ in 0..200 {
            socket.send_to(b"x", "10.77.0.2:9").unwrap();
        }
        std::thread::sleep(Duration::from_millis(300));
        let given = frames(&daemon, "host_to_guest") - before;
        assert!((60..=allowed(start, 5.0)).contains(&given), "{given}");
        daemon.succeed(&["set", "guest0", "--limit-to-guest", "off"]);
        let deadline = Instant::now() + PATIENCE;
        while frames(&daemon, "host_to_guest") < before + 200 {
            assert!(Instant::now() < deadline, "frames were lost");
        }
        drop(guest);
    });
}

#[test]
fn a_guest_that_floods_control_requests_waits_and_the_daemon_serves_others() {
    in_private_network(|| async {
        let daemon = DaemonProcess::start(&["--workers", "1"]);
        let cpu = || cpu(&daemon);
        let mut flooder = RawGuest::attach();
        let (start, mut sent) = (Instant::now(), 0u64);
        let mut neighbour = None;
        let (mut answers, used) = ([0; shm_link::link::MAX_CONTROL_LEN], cpu());
        while start.elapsed() < Duration::from_secs(2) {
            // A ping of version 1: kind, flags, id.
            let ping = [2, 0, 0, 0, 1, 0, 0, 0];
            while flooder.link.send_control(&ping).unwrap() {
                sent += 1;
            }
            while flooder.link.recv_control(&mut answers).unwrap().is_some() {}
            flooder.ring();
            neighbour.get_or_insert_with(|| {
                LivingGuest::attach(|guest| {
                    guest.resolve_gateway();
                })
            });
        }
        daemon.until_logged("sends more control messages than are taken");
        daemon.succeed(&["set", "guest1", "--mtu", "1300"]);
        // What was taken, and what fits into the ring.
        let taken = 1000.0 * start.elapsed().as_secs_f64() + 64.0 + 1000.0;
        assert!((sent as f64) < taken, "{sent} messages");
        assert!(
            cpu() - used < 100,
            "the flood costs {} hundredths of a second",
            cpu() - used
        );
        drop(flooder);
        daemon.until_states(&["running"]);
    });
}

#[test]
fn a_guest_that_comes_and_goes_as_fast_as_it_can_fills_no_log() {
    in_private_network(|| async {
        let daemon = DaemonProcess::start(&["--max-guests", "1"]);
        let begin = Instant::now();
        let mut attached = 0;
        while attached < 60 {
            // One who comes too early is turned away.
            attached += u32::from(Attachment::connect(&address(), PATIENCE).is_ok());
        }
        let seconds = begin.elapsed().as_secs() as usize + 1;
        daemon.until_states(&[]);
        let log = daemon.log();
        let lines = log.lines().filter(|line| line.contains("port guest0"));
        let lines = lines.count();
        assert!(
            lines <= 10 * (seconds + 1),
            "{lines} in {seconds} s:\n{log}"
        );
        assert!(log.contains("are left out"), "{log}");
    });
}

#[test]
fn clients_that_hang_up_before_they_have_a_port_fill_no_log() {
    in_private_network(|| async {
        let daemon = DaemonProcess::start(&[]);
        let begin = Instant::now();
        let address = address();
        let name = address.to_string();
        let name = SocketAddr::from_abstract_name(name.strip_prefix('@').unwrap()).unwrap();
        // More than have a place at the same time, and more than one burst of them.
        for _ in 0..5 {
            for _ in 0..100 {
                drop(UnixStream::connect_addr(&name).unwrap());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        daemon.until_logged("more of these are not told of");
        daemon.until_states(&[]);
        drop(Attachment::connect(&address, PATIENCE).unwrap());
        daemon.until_states(&[]);
        let seconds = begin.elapsed().as_secs() as usize + 1;
        let log = daemon.log();
        let lines = log
            .lines()
            .filter(|line| line.contains("host_bridge::server"));
        let lines = lines.count();
        assert!(lines <= 5 * (seconds + 1), "{lines} in {seconds} s:\n{log}");
    });
}
