//! Ports as a table for people. Programs read `--json`.

use std::fmt::Write as _;
use std::io::{self, StdoutLock, Write, stdout};
use std::time::Instant;

use super::Failure;
use crate::counters::DirectionSnapshot;
use crate::port::{PortState, PortStatus};

/// Frames that may be on their way through a pump at any moment: more than its
/// budget of one turn are lost.
const IN_MOTION: i128 = 64;

/// An earlier look, to show rates.
pub(super) struct Before {
    pub(super) ports: Vec<PortStatus>,
    pub(super) at: Instant,
}

/// Prints. Ends the process quietly if nobody reads any more, as in `| head`.
pub(super) fn quietly(
    print: impl FnOnce(&mut StdoutLock<'static>) -> io::Result<()>,
) -> Result<(), Failure> {
    let mut out = stdout().lock();
    match print(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        done => Ok(done?),
    }
}

const HEAD: [&str; 11] = [
    "PORT", "TAP", "STATE", "GUEST", "MAC", "MTU", "CARRIER", "TO HOST", "TO GUEST", "DROPPED",
    "LEDGER",
];

/// The table, newline at the end. With an earlier look, rates since then.
pub(super) fn table(ports: &[PortStatus], since: Option<(&Before, Instant)>) -> String {
    if ports.is_empty() {
        return "no guest is attached\n".to_owned();
    }
    let rows: Vec<[String; HEAD.len()]> = ports.iter().map(|port| row(port, since)).collect();
    let mut widths = HEAD.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    line(&mut text, HEAD.iter().copied(), &widths);
    for (port, row) in ports.iter().zip(&rows) {
        line(&mut text, row.iter().map(String::as_str), &widths);
        for note in notes(port) {
            // Writing into a String does not fail.
            let _ = writeln!(text, "    {note}");
        }
    }
    text
}

fn line<'a>(text: &mut String, cells: impl Iterator<Item = &'a str>, widths: &[usize]) {
    let start = text.len();
    for (cell, &width) in cells.zip(widths) {
        let _ = write!(text, "{cell:width$}  ");
    }
    let end = start + text.get(start..).unwrap_or_default().trim_end().len();
    text.truncate(end);
    text.push('\n');
}

fn row(port: &PortStatus, since: Option<(&Before, Instant)>) -> [String; HEAD.len()] {
    let counters = &port.counters;
    let earlier = since.and_then(|(before, now)| {
        let seconds = now.duration_since(before.at).as_secs_f64();
        let same = |other: &&PortStatus| {
            other.name == port.name
                && other.counters.guest_to_host.frames_out <= counters.guest_to_host.frames_out
                && other.counters.host_to_guest.frames_out <= counters.host_to_guest.frames_out
        };
        let before = before.ports.iter().find(same)?;
        (seconds > 0.0).then_some((&before.counters, seconds))
    });
    let to_host = earlier.map(|(before, seconds)| (&before.guest_to_host, seconds));
    let to_guest = earlier.map(|(before, seconds)| (&before.host_to_guest, seconds));
    let dropped = counters
        .guest_to_host
        .dropped()
        .wrapping_add(counters.host_to_guest.dropped());
    [
        port.name.clone(),
        port.tap.clone(),
        state(&port.state).to_owned(),
        if port.guest.is_empty() {
            "-".to_owned()
        } else {
            port.guest.clone()
        },
        port.mac.clone(),
        port.mtu.to_string(),
        if port.carrier { "on" } else { "off" }.to_owned(),
        moved(&counters.guest_to_host, to_host),
        moved(&counters.host_to_guest, to_guest),
        dropped.to_string(),
        ledger(&[&counters.guest_to_host, &counters.host_to_guest]),
    ]
}

fn state(state: &PortState) -> &'static str {
    match state {
        PortState::Waiting => "waiting",
        PortState::Refused(_) => "refused",
        PortState::Greeted => "greeted",
        PortState::Running => "running",
        PortState::Ended(_) => "ended",
    }
}

/// What stands beneath a port's line.
fn notes(port: &PortStatus) -> Vec<String> {
    let mut notes = Vec::new();
    if !port.addresses.is_empty() {
        notes.push(format!("addresses: {}", port.addresses.join(", ")));
    }
    if let PortState::Refused(why) | PortState::Ended(why) = &port.state {
        notes.push(format!("{}: {why}", state(&port.state)));
    }
    let directions = [
        ("to host", &port.counters.guest_to_host),
        ("to guest", &port.counters.host_to_guest),
    ];
    for (direction, counters) in directions {
        if !counters.drops.is_empty() {
            let reasons = counters.drops.iter();
            let reasons: Vec<_> = reasons.map(|(why, n)| format!("{why} {n}")).collect();
            notes.push(format!("dropped {direction}: {}", reasons.join(", ")));
        }
    }
    for (direction, limit) in [
        ("to host", &port.limit_to_host),
        ("to guest", &port.limit_to_guest),
    ] {
        if !limit.is_empty() {
            notes.push(format!("limited {direction}: {limit}"));
        }
    }
    let impaired = [
        (
            "to host",
            &port.impair_to_host,
            &port.counters.guest_to_host,
        ),
        (
            "to guest",
            &port.impair_to_guest,
            &port.counters.host_to_guest,
        ),
    ];
    for (direction, config, counters) in impaired {
        if !config.is_empty() {
            notes.push(format!(
                "impaired {direction}: {config} (held {}, duplicated {})",
                counters.held, counters.duplicated
            ));
        }
    }
    notes
}

/// Frames and bytes that reached the other side, in all or per second.
fn moved(now: &DirectionSnapshot, since: Option<(&DirectionSnapshot, f64)>) -> String {
    let Some((before, seconds)) = since else {
        return format!(
            "{} frames, {}",
            now.frames_out,
            scaled(now.bytes_out as f64, "B")
        );
    };
    let frames = now.frames_out.saturating_sub(before.frames_out) as f64 / seconds;
    let bits = now.bytes_out.saturating_sub(before.bytes_out) as f64 * 8.0 / seconds;
    format!("{frames:.0} frames/s, {}", scaled(bits, "bit/s"))
}

/// With a decimal prefix.
fn scaled(value: f64, unit: &str) -> String {
    for (factor, prefix) in [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if value >= factor {
            return format!("{:.1} {prefix}{unit}", value / factor);
        }
    }
    format!("{value:.0} {unit}")
}

/// Whether every frame is accounted for.
fn ledger(directions: &[&DirectionSnapshot]) -> String {
    let gaps = directions
        .iter()
        .map(|direction| direction.check_ledger().err().map_or(0, |gap| gap.missing));
    let worst = gaps.clone().find(|gap| !(0..=IN_MOTION).contains(gap));
    let moving: i128 = gaps.sum();
    match worst {
        Some(gap) => format!("NOT OK ({gap} frames)"),
        None if moving == 0 => "ok".to_owned(),
        None => format!("ok ({moving} in motion)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::{DropReason, PortCounters};
    use std::time::Duration;

    fn port(counters: &PortCounters) -> PortStatus {
        PortStatus {
            name: "guest0".into(),
            tap: "tap7".into(),
            state: PortState::Running,
            guest: String::new(),
            mac: "02:53:4c:00:00:00".into(),
            mtu: 1500,
            carrier: true,
            addresses: vec!["10.0.0.2/30".into(), "fd77::2/126".into()],
            serial: 1,
            limit_to_host: String::new(),
            limit_to_guest: String::new(),
            impair_to_host: "loss=5%".into(),
            impair_to_guest: String::new(),
            age_seconds: 1,
            counters: counters.snapshot(),
        }
    }

    fn counters() -> PortCounters {
        let counters = PortCounters::default();
        for _ in 0..3 {
            counters.guest_to_host.frame_in(1000);
        }
        counters.guest_to_host.frame_out(1000);
        counters.guest_to_host.dropped(DropReason::SpoofedMac);
        counters.guest_to_host.dropped(DropReason::RogueDhcp);
        counters
    }

    #[test]
    fn the_table_has_a_line_per_port_and_the_reasons_beneath() {
        let text = table(&[port(&counters())], None);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("PORT    TAP   STATE"), "{text}");
        let cells: Vec<_> = lines[1].split("  ").filter(|c| !c.is_empty()).collect();
        let cells: Vec<_> = cells.iter().map(|c| c.trim()).collect();
        assert_eq!(
            cells,
            [
                "guest0",
                "tap7",
                "running",
                "-",
                "02:53:4c:00:00:00",
                "1500",
                "on",
                "1 frames, 1.0 kB",
                "0 frames, 0 B",
                "2",
                "ok"
            ]
        );
        assert_eq!(
            lines[2..],
            [
                "    addresses: 10.0.0.2/30, fd77::2/126",
                "    dropped to host: rogue-dhcp 1, spoofed-mac 1",
                "    impaired to host: loss=5% (held 0, duplicated 0)",
            ]
        );
    }

    #[test]
    fn rates_are_what_happened_since_the_earlier_look() {
        let counters = counters();
        let at = Instant::now();
        let before = Before {
            ports: vec![port(&counters)],
            at,
        };
        for _ in 0..500 {
            counters.guest_to_host.frame_in(1000);
            counters.guest_to_host.frame_out(1000);
        }
        let now = at + Duration::from_secs(2);
        let text = table(&[port(&counters)], Some((&before, now)));
        assert!(text.contains("250 frames/s, 2.0 Mbit/s"), "{text}");
        // A port that was not there before, or was another one, has totals.
        let fresh = port(&PortCounters::default());
        let text = table(&[fresh], Some((&before, now)));
        assert!(text.contains("0 frames, 0 B"), "{text}");
    }

    #[test]
    fn a_ledger_that_does_not_add_up_is_called_so() {
        let counters = PortCounters::default();
        counters.host_to_guest.frame_in(60);
        let text = |counters: &PortCounters| {
            let snapshot = counters.snapshot();
            ledger(&[&snapshot.guest_to_host, &snapshot.host_to_guest])
        };
        assert_eq!(text(&counters), "ok (1 in motion)");
        for _ in 0..64 {
            counters.host_to_guest.frame_in(60);
        }
        assert_eq!(text(&counters), "NOT OK (65 frames)");
        counters.guest_to_host.frame_out(60);
        assert_eq!(text(&counters), "NOT OK (-1 frames)");
    }

    #[test]
    fn without_ports_there_is_a_sentence() {
        assert_eq!(table(&[], None), "no guest is attached\n");
    }
}
