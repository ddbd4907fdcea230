//! A guest that has lost its mind.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use host_bridge::probe::bulk::{SINK_PORT, SOURCE_PORT, bulk_receive, bulk_send};
use host_bridge::probe::ping::ping;

use crate::common::{BULK, BULK_PATIENCE, World, in_private_network, until};

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
