//! Time: the time stamp counter as the clock, the local APIC's timer as the
//! alarm.
//!
//! Neither tells its own speed in every machine, so both are measured once
//! against the programmable interval timer, which always runs at 1,193,182 Hz.
//! The alarm is set for the moment somebody wants to be woken at, and not at all
//! otherwise: there is no periodic tick.

use core::arch::x86_64::_rdtsc;

use guest_stack::time::Instant;
use x86_64::instructions::port::Port;

use crate::interrupts::{SPURIOUS_VECTOR, TIMER_VECTOR};

const PIT_HZ: u64 = 1_193_182;
/// How long to measure, in ticks of the PIT: about 10 ms.
const MEASURED_TICKS: u16 = 11_932;
/// How often a pair of counters is read, to get one that nothing came between.
const TRIES: usize = 8;

const APIC: usize = 0xfee0_0000;
const APIC_ID: usize = 0x20;
const APIC_SPURIOUS: usize = 0xf0;
const APIC_TIMER: usize = 0x320;
const APIC_INITIAL: usize = 0x380;
const APIC_CURRENT: usize = 0x390;
const APIC_DIVIDE: usize = 0x3e0;
const DIVIDE_BY_16: u32 = 0b0011;
const MASKED: u32 = 1 << 16;

fn apic_read(register: usize) -> u32 {
    // SAFETY: the local APIC's registers are mapped there.
    unsafe { ((APIC + register) as *const u32).read_volatile() }
}

fn apic_write(register: usize, value: u32) {
    // SAFETY: as above; none of the registers used here endangers memory.
    unsafe { ((APIC + register) as *mut u32).write_volatile(value) }
}

/// This processor's number, to which interrupts are sent.
pub fn apic_id() -> u8 {
    (apic_read(APIC_ID) >> 24) as u8
}

/// The time stamp counter.
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has it.
    unsafe { _rdtsc() }
}

/// A clock and an alarm.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: u64,
    tsc_hz: u64,
    alarm_hz: u64,
}

/// All three counters at one moment.
struct Reading {
    tsc: u64,
    pit: u16,
    alarm: u32,
}

impl Reading {
    /// Reads them, the best of some tries: a host may take the processor away in
    /// between.
    fn take() -> Self {
        let once = || {
            let begun = ticks();
            // SAFETY: counter 2 of the PIT is latched and read: nobody else does.
            let pit = unsafe {
                Port::<u8>::new(0x43).write(0b1000_0000);
                let mut counter = Port::<u8>::new(0x42);
                let low = counter.read();
                u16::from_le_bytes([low, counter.read()])
            };
            let alarm = apic_read(APIC_CURRENT);
            let took = ticks() - begun;
            let tsc = begun + took / 2;
            (took, Self { tsc, pit, alarm })
        };
        let mut best = once();
        for _ in 1..TRIES {
            let next = once();
            if next.0 < best.0 {
                best = next;
            }
        }
        best.1
    }
}

impl Clock {
    /// Measures for 10 ms, and enables the local APIC.
    ///
    /// # Panics
    /// If there is no PIT.
    pub fn measure() -> Self {
        apic_write(APIC_SPURIOUS, 0x100 | u32::from(SPURIOUS_VECTOR));
        apic_write(APIC_TIMER, MASKED | u32::from(TIMER_VECTOR));
        apic_write(APIC_DIVIDE, DIVIDE_BY_16);
        apic_write(APIC_INITIAL, u32::MAX);
        // SAFETY: counter 2 is the loudspeaker's; it counts down from 65,535
        // once, with the speaker off.
        unsafe {
            let mut gate = Port::<u8>::new(0x61);
            let old = gate.read();
            gate.write(old & !2 | 1);
            Port::<u8>::new(0x43).write(0b1011_0000);
            Port::<u8>::new(0x42).write(0xff);
            Port::<u8>::new(0x42).write(0xff);
        }
        let first = Reading::take();
        let mut last = Reading::take();
        let mut turns = 0u32;
        while first.pit.wrapping_sub(last.pit) < MEASURED_TICKS {
            last = Reading::take();
            turns += 1;
            assert!(turns < 1_000_000, "the interval timer stands still");
        }
        let pit = u64::from(first.pit.wrapping_sub(last.pit));
        let hz = |ticks: u64| (u128::from(ticks) * u128::from(PIT_HZ) / u128::from(pit)) as u64;
        apic_write(APIC_INITIAL, 0);
        Self {
            start: ticks(),
            tsc_hz: hz(last.tsc - first.tsc).max(1),
            alarm_hz: hz(u64::from(first.alarm - last.alarm)).max(1),
        }
    }

    /// Time since the clock was made.
    pub fn now(&self) -> Instant {
        let passed = u128::from(ticks() - self.start) * 1_000_000 / u128::from(self.tsc_hz);
        Instant::from_micros(passed as i64)
    }

    /// Raises [`TIMER_VECTOR`] at that time, or earlier if it is more than a
    /// minute away; `None`: never. It replaces the alarm before.
    pub fn set_alarm(&self, until: Option<Instant>) {
        let count = match until {
            // Zero stops the timer.
            None => 0,
            Some(until) => {
                let left = (until.total_micros() - self.now().total_micros()).max(0) as u128;
                let count = left * u128::from(self.alarm_hz) / 1_000_000 + 1;
                u32::try_from(count).unwrap_or(u32::MAX)
            }
        };
        apic_write(APIC_TIMER, u32::from(TIMER_VECTOR));
        apic_write(APIC_INITIAL, count);
    }

    /// Ticks of the time stamp counter in a second.
    pub fn hz(&self) -> u64 {
        self.tsc_hz
    }
}
