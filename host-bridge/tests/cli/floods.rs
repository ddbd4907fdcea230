//! Guests that keep the daemon busy with nothing: it looks at them a thousand times a
//! second at the most.

use std::time::{Duration, Instant};

use shm_link::link::{FrameTx, Link};
use shm_link::offload::OffloadHeader;

use crate::common::{PATIENCE, RawGuest, in_private_network};
use crate::support::DaemonProcess;

fn to_host(daemon: &DaemonProcess) -> serde_json::Value {
    daemon.ports()[0]["counters"]["guest_to_host"].clone()
}

/// Waits until that many frames of the guest were looked at.
fn until_taken(daemon: &DaemonProcess, frames: u64) -> serde_json::Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let counters = to_host(daemon);
        if counters["frames_in"].as_u64().unwrap() >= frames {
            return counters;
        }
        assert!(Instant::now() < deadline, "frames wait: {counters}");
    }
}

#[test]
fn a_guest_none_of_whose_frames_may_pass_is_looked_at_once_a_millisecond() {
    const FLOOD: u64 = 64 * 90;
    in_private_network(|| async {
        let daemon = DaemonProcess::start(&[]);
        let mut guest = RawGuest::attach();
        let frame = guest.arp_request(guest.config.v4[0].addr);
        let mut spoofed = frame.clone();
        spoofed[11] ^= 1;
        let start = Instant::now();
        // All at once: the ring has room for them.
        let (_, tx) = guest.link.split();
        for _ in 0..FLOOD {
            let room = tx.reserve(spoofed.len()).unwrap().unwrap();
            room.copy_from_slice(&spoofed);
            tx.commit(spoofed.len(), OffloadHeader::NONE);
        }
        tx.flush();
        guest.send(&frame);
        let counters = until_taken(&daemon, FLOOD + 1);
        let time = start.elapsed();
        // A turn of 64, and then a rest.
        assert!(time >= Duration::from_millis(FLOOD / 64 - 1), "in {time:?}");
        assert_eq!(counters["drops"]["spoofed-mac"], FLOOD);
        assert_eq!(counters["frames_out"], 1, "what may pass does");
    });
}

#[test]
fn a_doorbell_that_rings_for_nothing_is_not_listened_to() {
    in_private_network(|| async {
        let daemon = DaemonProcess::start(&[]);
        let mut guest = RawGuest::attach();
        let frame = guest.arp_request(guest.config.v4[0].addr);
        let before = to_host(&daemon)["wakeups"].as_u64().unwrap();
        let (start, mut rings) = (Instant::now(), 0_u64);
        while start.elapsed() < Duration::from_millis(500) {
            guest.ring();
            rings += 1;
        }
        let wakeups = to_host(&daemon)["wakeups"].as_u64().unwrap() - before;
        assert!(rings > 10_000, "it was no storm");
        // Sixteen, and again after each frame that the kernel sends meanwhile.
        assert!(wakeups <= 16 * 30, "{wakeups} wake-ups of {rings} rings");
        // It is heard again when it rings for something.
        for taken in 1..=3 {
            guest.send(&frame);
            let counters = until_taken(&daemon, taken);
            assert_eq!(counters["frames_out"], taken);
        }
        guest.ring();
        let deadline = Instant::now() + PATIENCE;
        while to_host(&daemon)["wakeups"].as_u64().unwrap() <= before + wakeups {
            assert!(Instant::now() < deadline, "nobody listens any more");
            guest.ring();
        }
    });
}
