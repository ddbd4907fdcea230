//! The kernel has no room: system calls of the daemon fail, made to by strace.
//!
//! Nothing here is a stand-in but the answer of the one system call that is named.

use std::process::{Command, Stdio};

use host_bridge::child::Helper;
use host_bridge::probe::bulk::{SINK_PORT, SOURCE_PORT, bulk_receive, bulk_send};
use host_bridge::probe::http::http_get;
use rustix::process::{Pid, Signal, kill_process};

use crate::common::{
    BULK, BULK_PATIENCE, PATIENCE, World, answers, guest_command, in_private_network, until,
};

/// Makes calls of the daemon fail as `what` says, as long as it lives.
struct Failing {
    strace: Helper,
    record: tempfile::NamedTempFile,
    daemon: u32,
}

impl Failing {
    /// `what`: see `inject=` in strace(1).
    fn begin(world: &mut World, call: &str, what: &str) -> Self {
        let daemon = world.daemon_pid();
        let record = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new("strace");
        command
            .args(["-f", "-p", &daemon.to_string(), "-o"])
            .arg(record.path())
            .args(["-e", &format!("trace={call}")])
            .args(["-e", &format!("inject={call}:{what}")])
            .stderr(Stdio::null());
        let strace = Helper::spawn(command).expect("strace is installed");
        let failing = Self {
            strace,
            record,
            daemon,
        };
        until("strace's attachment", || {
            failing.traced().all(|traced| traced)
        });
        failing
    }

    /// For every thread of the daemon, whether it is watched.
    fn traced(&self) -> impl Iterator<Item = bool> + use<> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.daemon)).unwrap();
        let status = tasks.map(|task| task.unwrap().path().join("status"));
        let status = status.filter_map(|path| std::fs::read_to_string(path).ok());
        status.map(|status| !status.contains("TracerPid:\t0\n"))
    }

    /// Calls succeed again.
    fn end(mut self) {
        let strace = Pid::from_child(self.strace.child_mut());
        // It lets its processes go when it is asked to end.
        kill_process(strace, Signal::INT).unwrap();
        self.strace.wait_timeout(PATIENCE).unwrap();
        assert!(self.traced().all(|traced| !traced));
        let record = std::fs::read_to_string(self.record.path()).unwrap();
        assert!(record.contains("(INJECTED)"), "no call failed");
    }
}

#[test]
fn frames_for_which_the_kernel_has_no_room_are_counted_and_sent_again() {
    in_private_network(|| {
        let mut world = World::start("");
        let guest = world.guest("short");
        let refused = |world: &World| {
            let counters = world.running("short").unwrap().counters.guest_to_host;
            counters.drops.get("tap-refused").copied().unwrap_or(0)
        };
        let failing = Failing::begin(&mut world, "writev", "error=ENOBUFS:when=3+9");
        // Nothing is lost on the way to the guest but its acknowledgements.
        let sent = bulk_send(guest.v6(SINK_PORT), BULK / 4, 1, BULK_PATIENCE).unwrap();
        assert!(sent.checksum_ok);
        let without_acknowledgements = refused(&world);
        assert!(without_acknowledgements > 0);
        let received = bulk_receive(guest.v4(SOURCE_PORT), BULK / 4, 2, BULK_PATIENCE).unwrap();
        assert!(received.checksum_ok);
        failing.end();
        // The ends of connections are sent, and may be refused, until then.
        let all = refused(&world);
        assert!(all > without_acknowledgements);
        // It was one port's trouble, and is over.
        assert_eq!(http_get(guest.v4(80), "/", PATIENCE).unwrap().status, 200);
        until("a ledger that adds up", || world.ledgers_add_up());
        assert_eq!(refused(&world), all);
    });
}

#[test]
fn while_the_kernel_takes_nothing_at_all_connections_wait_and_then_go_on() {
    in_private_network(|| {
        let mut world = World::start("");
        let guest = world.guest("short");
        let source = guest.v4(SOURCE_PORT);
        let transfer = std::thread::spawn(move || bulk_receive(source, 2 * BULK, 1, BULK_PATIENCE));
        let moved = |world: &World| {
            let port = world.running("short");
            port.map_or(0, |port| port.counters.guest_to_host.bytes_out)
        };
        until("the transfer", || moved(&world) > 1_000_000);
        let failing = Failing::begin(&mut world, "writev", "error=ENOBUFS");
        // A call that had begun may have ended well since.
        assert!(!answers(guest.addresses[0]));
        let held = moved(&world);
        assert!(!answers(guest.addresses[0]));
        assert_eq!(moved(&world), held);
        assert!(!transfer.is_finished(), "the calls failed too late");
        // The daemon itself is well.
        assert!(world.running("short").is_some());
        failing.end();
        assert!(transfer.join().unwrap().unwrap().checksum_ok);
    });
}

#[test]
fn a_guest_for_whom_there_is_no_memory_is_turned_away_until_another_goes() {
    in_private_network(|| {
        // Some 12 MiB are the daemon's own, and 1.2 MiB each guest's.
        let world = World::start("memory = \"15mib\"");
        assert!(world.log().contains("come to need 78 MiB, and 3 MiB"));
        let first = world.guest("first");
        let second = world.guest("second");
        let mut third = Helper::spawn(guest_command("third")).unwrap();
        let ended = third.wait_timeout(PATIENCE).unwrap();
        assert!(ended.is_some_and(|status| !status.success()));
        until("a word in the log", || {
            world.log().contains("no memory for it")
        });
        assert!(answers(second.addresses[0]));
        drop(first);
        until("the port's end", || world.running("first").is_none());
        let third = world.guest("third");
        assert!(answers(second.addresses[0]) && answers(third.addresses[0]));
    });
}

#[test]
fn without_asynchronous_operations_the_guest_is_rung_all_the_same() {
    in_private_network(|| {
        let mut world = World::start("");
        let guest = world.guest("short");
        let failing = Failing::begin(&mut world, "io_submit", "error=EAGAIN");
        for _ in 0..20 {
            for &address in &guest.addresses {
                until("an answer of the guest", || answers(address));
            }
        }
        let sent = bulk_send(guest.v4(SINK_PORT), BULK / 4, 1, BULK_PATIENCE).unwrap();
        assert!(sent.checksum_ok);
        failing.end();
    });
}
