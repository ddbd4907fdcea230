//! What the clients, the schedule and the figures share. Counts and remembers; does no
//! input or output but its log.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::sample::{Done, Held, Latency, Sample};
use super::schedule::Event;

/// How long after the daemon came back a connect may still fail for want of it: the
/// kernel may have tried while there was no way, and it waits for its next attempt.
const EXCUSE: Duration = Duration::from_secs(10);
/// Events that are named with an error.
const REMEMBERED: usize = 4;
/// Errors that are told; the rest are counted.
const TOLD: u64 = 200;

/// See the file's head.
pub(super) struct Shared {
    start: Instant,
    stop: AtomicBool,
    done: Mutex<Done>,
    round_trips: Mutex<Vec<u64>>,
    last_events: Mutex<VecDeque<String>>,
    alive: AtomicU64,
    wanted: AtomicU64,
    daemon_born_ms: AtomicU64,
    /// When a failing connect was last excused, in milliseconds since the start.
    excused_until_ms: AtomicU64,
    /// The same for a connect to a guest that no keeper keeps.
    unkept_until_ms: AtomicU64,
    /// Counts up whenever the guest that comes and goes does so; odd while it is there.
    passing: AtomicU64,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            stop: AtomicBool::new(false),
            done: Mutex::default(),
            round_trips: Mutex::default(),
            last_events: Mutex::default(),
            alive: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            daemon_born_ms: AtomicU64::new(0),
            excused_until_ms: AtomicU64::new(0),
            unkept_until_ms: AtomicU64::new(0),
            passing: AtomicU64::new(0),
        }
    }

    fn now_ms(&self) -> u64 {
        // An hour has some millions.
        self.start.elapsed().as_millis() as u64
    }

    /// Whether clients are to come to an end.
    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// The run is over.
    pub(super) fn finish(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Counts something.
    pub(super) fn count(&self, change: impl FnOnce(&mut Done)) {
        change(&mut lock(&self.done));
    }

    /// Something that must not be.
    pub(super) fn error(&self, what: impl Display) {
        let mut done = lock(&self.done);
        done.errors += 1;
        if done.errors <= TOLD {
            let events: Vec<_> = lock(&self.last_events).iter().cloned().collect();
            eprintln!(
                "[{:7.1}] ERROR {what}; before it: {}",
                self.start.elapsed().as_secs_f64(),
                events.join(", ")
            );
        }
    }

    /// Something happens now.
    pub(super) fn note(&self, event: &Event) {
        let seconds = self.start.elapsed().as_secs_f64();
        eprintln!("[{seconds:7.1}] {event}");
        let mut events = lock(&self.last_events);
        events.push_back(format!("[{seconds:.1}] {event}"));
        if events.len() > REMEMBERED {
            events.pop_front();
        }
        self.count(|done| done.events += 1);
    }

    /// From now on until [`daemon_is_there`](Self::daemon_is_there) nobody can connect.
    pub(super) fn daemon_goes(&self) {
        self.excused_until_ms.store(u64::MAX, Relaxed);
        self.daemon_is_replaced();
    }

    /// The same for guests that are not kept; others notice a pause.
    pub(super) fn daemon_is_replaced(&self) {
        self.unkept_until_ms.store(u64::MAX, Relaxed);
    }

    /// A daemon is there that was not before, and the guests that stay have it.
    pub(super) fn daemon_is_there(&self) {
        self.daemon_born_ms.store(self.now_ms(), Relaxed);
        let until = self.now_ms() + EXCUSE.as_millis() as u64;
        for missed in [&self.excused_until_ms, &self.unkept_until_ms] {
            if missed.load(Relaxed) == u64::MAX {
                missed.store(until, Relaxed);
            }
        }
    }

    /// Connects may fail for a while: a link was taken down.
    pub(super) fn excuse(&self) {
        self.excused_until_ms
            .store(self.now_ms() + EXCUSE.as_millis() as u64, Relaxed);
    }

    /// Whether a connect may have failed for want of a daemon, to a guest that a keeper
    /// keeps or not.
    pub(super) fn excused(&self, kept: bool) -> bool {
        let now = self.now_ms();
        let until = self.excused_until_ms.load(Relaxed);
        now < until || (!kept && now < self.unkept_until_ms.load(Relaxed))
    }

    /// The guest that comes and goes did so.
    pub(super) fn passed(&self) {
        self.passing.fetch_add(1, Relaxed);
    }

    /// Which of its lives the guest that comes and goes is in; odd while it is there.
    pub(super) fn life(&self) -> u64 {
        self.passing.load(Relaxed)
    }

    /// A long-lived connection is wanted.
    pub(super) fn want(&self) {
        self.wanted.fetch_add(1, Relaxed);
    }

    /// The run was over before it could be there.
    pub(super) fn want_no_more(&self) {
        self.wanted.fetch_sub(1, Relaxed);
    }

    /// A long-lived connection is there.
    pub(super) fn opened(&self) {
        self.alive.fetch_add(1, Relaxed);
    }

    /// A long-lived connection is gone.
    pub(super) fn lost(&self) {
        self.alive.fetch_sub(1, Relaxed);
    }

    /// The witness's round trip took so long.
    pub(super) fn round_trip(&self, time: Duration) {
        lock(&self.round_trips).push(time.as_micros() as u64);
    }

    /// The figures of this moment.
    pub(super) fn sample(&self, now: Duration, (daemon, guests): (Held, Vec<Held>)) -> Sample {
        let tenths = |seconds: f64| (seconds * 10.0).round() / 10.0;
        let born = self.daemon_born_ms.load(Relaxed);
        Sample {
            t: tenths(now.as_secs_f64()),
            age: tenths(self.now_ms().saturating_sub(born) as f64 / 1000.0),
            daemon,
            guests,
            echo_us: Latency::of(std::mem::take(&mut *lock(&self.round_trips))),
            alive: self.alive.load(Relaxed),
            wanted: self.wanted.load(Relaxed),
            done: *lock(&self.done),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
