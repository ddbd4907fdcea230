//! The tables of `THROUGHPUT.md`, made anew.

use simulation::throughput::{
    AWAY, Away, DELAYS, INTERRUPTED, LOSSES, Narrow, OUTAGES, QUEUES, SHALLOW, Through, after,
    goodput, narrow, pause,
};

/// The figures of the rows that begin with `| name |`.
fn row(name: &str) -> Vec<f64> {
    let text = include_str!("../THROUGHPUT.md");
    let begin = format!("| {name} |");
    let line = text.lines().find_map(|line| line.strip_prefix(&begin));
    let cells = line.unwrap_or_else(|| panic!("no row {name}")).split('|');
    let cells = cells.map(str::trim).filter(|cell| !cell.is_empty());
    cells.map(|cell| cell.parse().unwrap()).collect()
}

fn compare(what: &str, kept: f64, found: f64) {
    // Three digits are kept.
    let near = (kept - found).abs() <= 0.05 * kept.max(found) + 0.006;
    assert!(
        near,
        "{what}: {found:.3}, and the table says {kept}; if that is meant: \
         cargo run --release -p simulation -- --throughput > simulation/THROUGHPUT.md"
    );
}

#[test]
fn goodput_under_loss_and_delay_is_what_the_table_says() {
    for loss in LOSSES {
        let kept = row(&format!("{loss} %"));
        assert_eq!(kept.len(), DELAYS.len());
        for (delay, kept) in DELAYS.into_iter().zip(kept) {
            // Without optimisation all of it takes a minute.
            if cfg!(debug_assertions) && (loss != 2 || delay != 10) {
                continue;
            }
            let found = goodput(loss, delay).unwrap();
            compare(&format!("{loss} %, {delay} ms"), kept, found);
        }
    }
}

#[test]
fn goodput_through_a_narrow_queue_is_what_the_table_says() {
    let (kept, losses) = (row("Mbit/s"), row("frames lost of 100"));
    assert_eq!([kept.len(), losses.len()], [QUEUES.len(); 2]);
    for (queue, (kept, lost)) in QUEUES.into_iter().zip(kept.into_iter().zip(losses)) {
        if cfg!(debug_assertions) && queue != 45 {
            continue;
        }
        let found = narrow(&Narrow::with_queue(queue)).unwrap();
        compare(&format!("{queue} frames"), kept, found.mbit);
        compare(&format!("{queue} frames, lost"), lost, found.lost);
    }
}

#[test]
fn what_a_shallow_path_loses_is_what_the_table_says() {
    for path in SHALLOW {
        let [kept, losses] = row(&path.to_string())[..] else {
            panic!("{path}: two figures");
        };
        if cfg!(debug_assertions) && (path.mbit != 10 || path.connections != 1) {
            continue;
        }
        let Through { mbit, lost } = narrow(&path).unwrap();
        compare(&path.to_string(), kept, mbit);
        compare(&format!("{path}, lost"), losses, lost);
    }
}

#[test]
fn a_restart_of_the_host_holds_a_transfer_up_no_longer_than_the_table_says() {
    for (name, how) in [
        ("planned, the same memory", Away::Planned),
        ("killed in a turn, the same memory", Away::Killed),
        ("killed in a turn, new memory", Away::KilledNewMemory),
    ] {
        let kept = row(name);
        assert_eq!(kept.len(), AWAY.len());
        for (away, kept) in AWAY.into_iter().zip(kept) {
            if cfg!(debug_assertions) && away != 10 {
                continue;
            }
            let found = pause(how, away).unwrap();
            compare(&format!("{name}, {away} ms"), kept, found);
            assert!(found < 1000.0, "{name}: {found} ms");
        }
    }
}

#[test]
fn an_outage_holds_a_transfer_up_no_longer_than_the_table_says() {
    for (name, how) in OUTAGES {
        let kept = row(name);
        assert_eq!(kept.len(), INTERRUPTED.len());
        for ((mtu, delay), kept) in INTERRUPTED.into_iter().zip(kept) {
            if cfg!(debug_assertions) && (name, mtu, delay) != ("all data are lost", 9000, 10) {
                continue;
            }
            let found = after(how, mtu, delay).unwrap();
            compare(&format!("{name}, {mtu}, {delay} ms"), kept, found);
            assert!(found < 6000.0, "{name}: {found} ms");
        }
    }
}
