//! What the system runs out of, or takes away, hurts one port and not the daemon.

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use shm_link::linux::attach::Attachment;

use crate::common::{PATIENCE, address, in_private_network};
use crate::support::{DaemonProcess, LivingGuest, ip};

fn attach() -> LivingGuest {
    LivingGuest::attach(|guest| {
        guest.resolve_gateway();
    })
}

#[test]
fn without_descriptors_guests_are_turned_away_and_come_in_when_there_are_some_again() {
    in_private_network(|| async {
        let daemon = DaemonProcess::start(&[]);
        let first = attach();
        let pid = Pid::from_raw(daemon.pid());
        let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
            .unwrap()
            .count() as u64;
        let usual = getrlimit(Resource::Nofile);
        // One for its connection, and one for part of what it needs.
        let few = Rlimit {
            current: Some(open + 2),
            ..usual
        };
        prlimit(pid, Resource::Nofile, few).unwrap();
        for _ in 0..3 {
            assert!(Attachment::connect(&address(), PATIENCE).is_err());
        }
        daemon.until_logged("Too many open files");
        prlimit(pid, Resource::Nofile, usual).unwrap();
        let second = attach();
        daemon.until_states(&["running", "running"]);
        daemon.succeed(&["set", "guest0", "--mtu", "1300"]);
        drop((first, second));
        daemon.until_states(&[]);
        // Nothing is left of those who were turned away.
        let left = ip("-o link show type tun").unwrap_or_default();
        assert_eq!(left, "");
    });
}

#[test]
fn a_guest_for_whose_memory_there_is_no_room_is_turned_away_and_the_next_one_comes_in() {
    in_private_network(|| async {
        let daemon = DaemonProcess::start(&[]);
        let first = attach();
        let pid = Pid::from_raw(daemon.pid());
        let usual = getrlimit(Resource::Fsize);
        let little = Rlimit {
            current: Some(1 << 20),
            ..usual
        };
        prlimit(pid, Resource::Fsize, little).unwrap();
        for _ in 0..3 {
            assert!(Attachment::connect(&address(), PATIENCE).is_err());
        }
        daemon.until_logged("File too large");
        daemon.until_states(&["running"]);
        prlimit(pid, Resource::Fsize, usual).unwrap();
        let second = attach();
        daemon.until_states(&["running", "running"]);
        drop((first, second));
        daemon.until_states(&[]);
        let left = ip("-o link show type tun").unwrap_or_default();
        assert_eq!(left, "");
    });
}

#[test]
fn a_persistent_tap_that_was_deleted_is_waited_for() {
    in_private_network(|| async {
        ip("tuntap add mode tap name mine").unwrap();
        let daemon = DaemonProcess::start(&["--tap", "mine"]);
        let guest = attach();
        ip("link del dev mine").unwrap();
        daemon.until_logged("the TAP failed: ");
        daemon.until_logged("there is no persistent TAP named mine");
        ip("tuntap add mode tap name mine").unwrap();
        daemon.until_logged("its TAP is there again");
        assert_eq!(daemon.ports()[0]["tap"], "mine");
        drop(guest);
        daemon.until_states(&[]);
    });
}
