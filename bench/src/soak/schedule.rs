//! What happens next, and when: a pure function of a seed and of the time since the
//! start. Does nothing itself.

use std::fmt;
use std::time::Duration;

use super::random::Random;

/// Pauses between two events.
const PAUSE_MS: (u64, u64) = (500, 5500);
/// The part of the run, in hundredths, in which the daemon is left alone, so that one
/// of its lives is long enough to show a trend.
const LEFT_ALONE: (u128, u128) = (45, 75);

/// Impairments, as `host-bridge set` takes them.
const IMPAIRMENTS: [&str; 7] = [
    "loss=1%",
    "delay=5ms,jitter=2ms",
    "loss=0.5%,delay=20ms",
    "reorder=2%,gap=5,delay=1ms",
    "dup=2%",
    "corrupt=0.5%",
    "rate=40mbit",
];
const LIMITS: [&str; 4] = [
    "rate=30mbit",
    "rate=60mbit,burst=128kib",
    "frames=4000",
    "rate=100mbit,frames=9000",
];
const MTUS: [u16; 6] = [1280, 1400, 1500, 1500, 4000, 9000];

/// Something that happens. `guest` is the number of a guest that stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The daemon is killed; its keeper starts another.
    Kill,
    /// The daemon is replaced by another.
    Replace,
    /// Daemon and keeper are told to end, and started again: guests attach anew.
    Restart,
    /// The guest that comes and goes does so; `killed`: without a word.
    ComeOrGo { killed: bool },
    /// A guest's link is impaired, in one direction.
    Impair {
        guest: u16,
        to_host: bool,
        how: &'static str,
    },
    /// A guest's link is limited, in one direction.
    Limit {
        guest: u16,
        to_host: bool,
        how: &'static str,
    },
    /// A guest gets another MTU.
    Mtu { guest: u16, mtu: u16 },
    /// A guest's cable is pulled out for so long.
    Unplug { guest: u16, ms: u64 },
    /// A guest's link is as good as it gets again.
    Calm { guest: u16 },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = |to_host: &bool| if *to_host { "to host" } else { "to guest" };
        match self {
            Self::Kill => f.write_str("kill -9 of the daemon"),
            Self::Replace => f.write_str("another daemon"),
            Self::Restart => f.write_str("SIGTERM to the keeper"),
            Self::ComeOrGo { killed: false } => f.write_str("a guest comes or goes"),
            Self::ComeOrGo { killed: true } => f.write_str("a guest comes or is killed"),
            Self::Impair {
                guest,
                to_host,
                how,
            } => {
                write!(f, "guest {guest}, {}: {how}", direction(to_host))
            }
            Self::Limit {
                guest,
                to_host,
                how,
            } => {
                write!(f, "guest {guest}, limited {}: {how}", direction(to_host))
            }
            Self::Mtu { guest, mtu } => write!(f, "guest {guest}: MTU {mtu}"),
            Self::Unplug { guest, ms } => write!(f, "guest {guest}: no carrier for {ms} ms"),
            Self::Calm { guest } => write!(f, "guest {guest}: calm"),
        }
    }
}

/// The events of one run.
#[derive(Debug)]
pub(super) struct Schedule {
    random: Random,
    guests: u16,
    length: Duration,
}

impl Schedule {
    pub(super) fn new(random: Random, guests: u16, length: Duration) -> Self {
        Self {
            random,
            guests,
            length,
        }
    }

    /// How long it is to the next event.
    pub(super) fn pause(&mut self) -> Duration {
        Duration::from_millis(self.random.within(PAUSE_MS.0, PAUSE_MS.1))
    }

    /// The next event, at this time since the start.
    pub(super) fn next(&mut self, now: Duration) -> Event {
        let random = &mut self.random;
        let part = now.as_nanos() * 100 / self.length.as_nanos().max(1);
        let left_alone = (LEFT_ALONE.0..LEFT_ALONE.1).contains(&part);
        let guest = random.within(0, u64::from(self.guests)) as u16;
        let to_host = random.next().is_multiple_of(2);
        // The first guest is the witness for latency: its link stays good.
        let harmed = (guest > 0).then_some(guest);
        match (random.within(0, 24), harmed) {
            (0..=1, _) if !left_alone => Event::Kill,
            (2, _) if !left_alone => Event::Replace,
            (3, _) if !left_alone => Event::Restart,
            (4..=8, _) => Event::ComeOrGo { killed: to_host },
            (9..=12, Some(guest)) => Event::Impair {
                guest,
                to_host,
                how: random.one_of(&IMPAIRMENTS),
            },
            (13..=15, Some(guest)) => Event::Limit {
                guest,
                to_host,
                how: random.one_of(&LIMITS),
            },
            (16..=18, _) => Event::Mtu {
                guest,
                mtu: random.one_of(&MTUS),
            },
            (19, Some(guest)) => Event::Unplug {
                guest,
                ms: random.within(50, 1500),
            },
            _ => Event::Calm { guest },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_secs(3600);

    fn events(seed: u64, from: u64, end: u64) -> Vec<Event> {
        let mut schedule = Schedule::new(Random::new(seed), 3, LENGTH);
        (from..end)
            .map(|second| schedule.next(Duration::from_secs(second)))
            .collect()
    }

    #[test]
    fn one_seed_gives_one_schedule() {
        assert_eq!(events(7, 0, 500), events(7, 0, 500));
        assert_ne!(events(7, 0, 500), events(8, 0, 500));
    }

    #[test]
    fn everything_happens_and_the_daemon_is_left_alone_for_a_while() {
        let kind = |event: &Event| std::mem::discriminant(event);
        let kinds: std::collections::HashSet<_> = events(1, 0, 1600).iter().map(kind).collect();
        assert_eq!(kinds.len(), 9);
        let quiet = events(1, 1620, 2700);
        assert!(
            !quiet
                .iter()
                .any(|event| matches!(event, Event::Kill | Event::Replace | Event::Restart))
        );
    }

    #[test]
    fn the_witness_has_a_good_link() {
        for event in events(3, 0, 3600) {
            match event {
                Event::Impair { guest, .. }
                | Event::Limit { guest, .. }
                | Event::Unplug { guest, .. } => {
                    assert_ne!(guest, 0, "{event}");
                }
                Event::Kill
                | Event::Replace
                | Event::Restart
                | Event::ComeOrGo { .. }
                | Event::Mtu { .. }
                | Event::Calm { .. } => {}
            }
        }
    }

    #[test]
    fn what_is_asked_for_is_what_the_daemon_understands() {
        for text in IMPAIRMENTS {
            assert!(
                text.parse::<host_bridge::impair::ImpairConfig>().is_ok(),
                "{text}"
            );
        }
        for text in LIMITS {
            assert!(
                text.parse::<host_bridge::limit::LimitConfig>().is_ok(),
                "{text}"
            );
        }
    }
}
