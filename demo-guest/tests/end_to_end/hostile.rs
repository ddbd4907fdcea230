//! A guest that has lost its mind, and one that attacks.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use host_bridge::child::Helper;
use host_bridge::probe::bulk::{SINK_PORT, SOURCE_PORT, bulk_receive, bulk_send};
use host_bridge::probe::ping::ping;

use crate::common::{
    BULK, BULK_PATIENCE, Guest, PATIENCE, SOCKET, World, in_private_network, make_bridge, until,
};

/// The memory that a guest shares with the daemon, through the back door.
fn shared_memory(pid: u32) -> File {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let is_memfd = |path: &std::path::PathBuf| {
        let target = std::fs::read_link(path);
        target.is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:"))
    };
    let path = fds.map(|fd| fd.unwrap().path()).find(is_memfd).unwrap();
    File::options().read(true).write(true).open(path).unwrap()
}

#[test]
fn random_bytes_in_one_guests_memory_do_not_disturb_its_neighbours_transfers() {
    in_private_network(|| {
        let world = World::start("");
        let neighbour = world.guest("neighbour");
        let (sink, source) = (neighbour.v4(SINK_PORT), neighbour.v6(SOURCE_PORT));
        let mut cut_off = 0;
        std::thread::scope(|scope| {
            let transfers = scope.spawn(move || {
                for seed in 0..5 {
                    let sent = bulk_send(sink, BULK, seed, BULK_PATIENCE).unwrap();
                    assert!(sent.checksum_ok, "{sent:?}");
                    let received = bulk_receive(source, BULK, seed, BULK_PATIENCE).unwrap();
                    assert!(received.checksum_ok, "{received:?}");
                }
            });
            let mut random = 0x9e37_79b9_7f4a_7c15u64;
            while !transfers.is_finished() {
                let mut offender = world.guest("offender");
                let memory = shared_memory(offender.pid());
                let len = memory.metadata().unwrap().len();
                // The rings' own words more often than what is in them.
                for step in 0..2000 {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let span = if step % 2 == 0 { 16 << 10 } else { len };
                    let written =
                        memory.write_at(&random.to_le_bytes(), (random % (span - 8)) & !7);
                    written.unwrap();
                    if step % 100 == 0 {
                        // Makes the daemon look.
                        let _ = ping(offender.addresses[0], 0, 1, Duration::from_millis(5));
                    }
                }
                let gone = world.running("offender").is_none();
                cut_off += usize::from(gone);
                drop(offender);
                until("the offender's end", || world.ports().len() == 1);
            }
            transfers.join().unwrap();
        });
        assert!(cut_off > 0, "nonsense was never noticed");
        assert!(world.running("neighbour").is_some());
    });
}

const ATTACKS: [&str; 7] = [
    "scribble",
    "frames",
    "arp",
    "syn",
    "control",
    "wait",
    "come-and-go",
];
/// How long each attack lasts.
const ATTACK: Duration = Duration::from_millis(1500);
/// How long the administrator may wait for an answer meanwhile, on a machine where all
/// others of this test want the processors as well.
const ADMIN_PATIENCE: Duration = Duration::from_secs(5);
const NEIGHBOURS: usize = 8;

/// A running attack.
struct Attack {
    process: Helper,
    seed: u64,
}

impl Attack {
    fn start(attack: &str, seed: u64, targets: &[String]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hostile-guest"));
        command
            .args(["--socket", SOCKET, "--attack", attack])
            .args(["--seed", &seed.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        for target in targets {
            command.args(["--target", target]);
        }
        let process = Helper::spawn(command).unwrap();
        Self { process, seed }
    }

    /// Ends it; gives how many lives it had, and what it did in them.
    fn end(mut self) -> (u64, u64) {
        let _ = self.process.child_mut().kill();
        let output = self.process.child_mut().stdout.take().unwrap();
        let last = BufReader::new(output).lines().map_while(Result::ok).last();
        let last = last.unwrap_or_else(|| panic!("seed {}: it did nothing", self.seed));
        let (lives, actions) = last.split_once(' ').unwrap();
        (lives.parse().unwrap(), actions.parse().unwrap())
    }
}

/// Moves bytes both ways until told to stop; all must arrive.
fn transfers(guest: &Guest, stop: &AtomicBool, ended: &AtomicUsize) {
    let mut seed = 0;
    while !stop.load(Ordering::Relaxed) {
        seed += 1;
        let sent = bulk_send(guest.v4(SINK_PORT), BULK / 100, seed, BULK_PATIENCE).unwrap();
        assert!(sent.checksum_ok, "{sent:?}");
        let received =
            bulk_receive(guest.v6(SOURCE_PORT), BULK / 100, seed, BULK_PATIENCE).unwrap();
        assert!(received.checksum_ok, "{received:?}");
        ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// Tells the transfers to stop, also when an assertion fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Open descriptors of a process, and its memory in KiB: its own, and shared memory that it
/// has touched.
pub(crate) fn held(pid: u32) -> (usize, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.unwrap().split_whitespace().next().unwrap();
        number.parse().unwrap()
    };
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count();
    (fds, field("RssAnon:") + field("RssShmem:"))
}

#[test]
fn whatever_a_guest_attacks_with_eight_neighbours_lose_no_byte_and_no_connection() {
    in_private_network(|| {
        make_bridge("br0", &["10.88.0.1/24", "fd88::1/64"]);
        let mut world =
            World::start("bridge = \"br0\"\nnet4 = \"10.88.0.0/24\"\nnet6 = \"fd88::/64\"");
        let neighbours: Vec<Guest> = (0..NEIGHBOURS)
            .map(|number| world.guest(&format!("neighbour{number}")))
            .collect();
        let mut targets = vec!["10.88.0.1:80".to_owned()];
        targets.extend(neighbours.iter().map(|guest| guest.v4(80).to_string()));
        let daemon = world.daemon_pid();
        let (stop, ended) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for neighbour in &neighbours {
                scope.spawn(|| transfers(neighbour, &stop, &ended));
            }
            let _stop = Stop(&stop);
            let mut before = None;
            for round in 0..2 {
                for (number, attack) in ATTACKS.into_iter().enumerate() {
                    let so_far = ended.load(Ordering::Relaxed);
                    let offender = Attack::start(attack, round * 100 + number as u64, &targets);
                    let start = Instant::now();
                    // Neighbours are served meanwhile, and not only afterwards.
                    while start.elapsed() < ATTACK || ended.load(Ordering::Relaxed) == so_far {
                        assert!(start.elapsed() < PATIENCE, "{attack}: nobody is served");
                        let asked = Instant::now();
                        assert!(world.ports().len() >= NEIGHBOURS);
                        let waited = asked.elapsed();
                        assert!(waited < ADMIN_PATIENCE, "{attack}: {waited:?}");
                        std::thread::sleep(Duration::from_millis(50));
                    }
                    let (lives, actions) = offender.end();
                    assert!(
                        actions > 10,
                        "{attack} was no attack: {lives} lives, {actions}"
                    );
                    until("the offender's end", || world.ports().len() == NEIGHBOURS);
                }
                let (fds, kib) = *before.get_or_insert_with(|| held(daemon));
                // A port leaves the list a moment before its last descriptor is closed.
                until("as few descriptors as before", || held(daemon).0 <= fds + 2);
                let now = held(daemon);
                assert!(now.1 <= kib + 1024, "memory: {kib} KiB, then {} KiB", now.1);
            }
        });
        assert_eq!(world.daemon_pid(), daemon);
        until("a ledger that adds up", || world.ledgers_add_up());
        for number in 0..NEIGHBOURS {
            assert!(world.running(&format!("neighbour{number}")).is_some());
        }
        let log = world.log();
        assert!(!log.contains("panicked"), "{log}");
        // By name, and it came back: which fault it is, is a matter of what was hit first.
        assert!(log.matches(": cut off (").count() > 1, "{log}");
    });
}
