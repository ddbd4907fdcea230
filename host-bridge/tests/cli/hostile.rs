//! Guests that use against the daemon what they were given.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use shm_link::link::{FrameRx, Link};

use crate::common::{PATIENCE, RawGuest, in_private_network};
use crate::support::{DaemonProcess, LivingGuest};

/// The daemon has one thread for all its guests here. The offender makes the eventfd
/// by which it is woken block whoever writes to it, and then has itself woken.
#[test]
fn a_guest_whose_doorbell_would_block_its_ringer_stops_neither_neighbours_nor_the_daemon() {
    in_private_network(|| async {
        let daemon = DaemonProcess::start(&["--workers", "1"]);
        let mut offender = RawGuest::attach();
        offender.resolve_gateway();
        let doorbell = offender.doorbell.as_fd();
        rustix::fs::fcntl_setfl(doorbell, OFlags::empty()).unwrap();
        rustix::io::write(doorbell, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        for _ in 0..20 {
            while !offender.link.arm(None).unwrap() {
                take_one(&mut offender);
            }
            let request = offender.arp_request(offender.config.gateway4.unwrap());
            offender.send(&request);
            // The answer comes, with a ring that nobody hears. The offender looks.
            let deadline = Instant::now() + PATIENCE;
            while !take_one(&mut offender) {
                assert!(Instant::now() < deadline, "the daemon does not answer");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let rung = &daemon.ports()[0]["counters"]["host_to_guest"]["doorbells"];
        assert!(rung.as_u64().unwrap() >= 20, "{rung}");
        let neighbour = LivingGuest::attach(|guest| {
            guest.resolve_gateway();
        });
        daemon.succeed(&["set", "guest1", "--mtu", "1300"]);
        drop(neighbour);
        drop(offender);
        daemon.until_states(&[]);
    });
}

/// Takes a frame that is there; says whether one was.
fn take_one(guest: &mut RawGuest) -> bool {
    guest.control_step().unwrap();
    let (rx, _) = guest.link.split();
    let found = rx.peek().unwrap().is_some();
    rx.consume();
    rx.flush();
    found
}
