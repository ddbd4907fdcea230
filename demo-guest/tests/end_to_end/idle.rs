//! Nothing to do, nothing done.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::common::{World, in_private_network};

/// How often each thread of a process was switched away from, by its own will
/// and by the scheduler's.
fn switches(pid: u32) -> BTreeMap<String, (u64, u64)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |path: std::path::PathBuf| {
        let status = std::fs::read_to_string(path.join("status")).unwrap();
        let count = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim().parse().unwrap()
        };
        let counts = (
            count("voluntary_ctxt_switches:"),
            count("nonvoluntary_ctxt_switches:"),
        );
        (path.display().to_string(), counts)
    };
    tasks.map(|task| of(task.unwrap().path())).collect()
}

#[test]
fn an_idle_guest_and_an_idle_daemon_are_never_woken() {
    in_private_network(|| {
        let mut world = World::start("");
        let mut guests = [world.guest("idle"), world.guest("also-idle")];
        let mut pids = vec![world.daemon_pid()];
        pids.extend(guests.iter_mut().map(|guest| guest.pid()));
        // Frames of the kernel's own accord, such as questions whether a
        // neighbour is still there, are something to do: another look then.
        for _ in 0..10 {
            let moved = |world: &World| -> u64 {
                let ports = world.ports().into_iter().map(|port| port.counters);
                ports
                    .map(|c| c.guest_to_host.frames_in + c.host_to_guest.frames_in)
                    .sum()
            };
            let before = moved(&world);
            // The daemon has just answered a question.
            std::thread::sleep(Duration::from_millis(200));
            let asleep: Vec<_> = pids.iter().map(|&pid| switches(pid)).collect();
            std::thread::sleep(Duration::from_secs(2));
            let still: Vec<_> = pids.iter().map(|&pid| switches(pid)).collect();
            if moved(&world) == before {
                assert_eq!(asleep, still);
                return;
            }
        }
        panic!("the kernel never left the guests alone");
    });
}
