//! The seed: 128 bits that are new at every boot.
//!
//! RDSEED or RDRAND where the processor has one (`-cpu host`, or `-cpu max` under
//! TCG), always mixed with the time stamp counter and with `seed=` of the command
//! line. With neither, somebody who can guess to the nanosecond when the machine
//! was started can guess sequence numbers; the log says so.

use core::arch::x86_64::__cpuid_count;

use crate::clock::ticks;

/// How often an instruction is asked that may be out of numbers.
const TRIES: usize = 16;

/// SplitMix64's finaliser: every bit of the input moves every bit of the output.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A number from the processor.
fn hardware() -> Option<u64> {
    let has_rdseed = __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).ebx & (1 << 18) != 0;
    let has_rdrand = __cpuid_count(1, 0).ecx & (1 << 30) != 0;
    for _ in 0..TRIES {
        let (mut value, mut worked) = (0u64, 0u8);
        // SAFETY: only executed where the processor has the instruction.
        unsafe {
            if has_rdseed {
                core::arch::asm!("rdseed {}", "setc {}", out(reg) value, out(reg_byte) worked);
            }
            if worked == 0 && has_rdrand {
                core::arch::asm!("rdrand {}", "setc {}", out(reg) value, out(reg_byte) worked);
            }
        }
        if worked != 0 {
            return Some(value);
        }
    }
    None
}

/// The seed, given what the command line adds.
pub fn seed(given: u64) -> [u64; 2] {
    if hardware().is_none() && given == 0 {
        log::warn!(
            "the processor has no random numbers, so sequence numbers are guessable: use -cpu host or max, or seed="
        );
    }
    let mut state = mix(given);
    [0; 2].map(|_: u64| {
        state = mix(state ^ ticks());
        state = mix(state ^ hardware().unwrap_or(0));
        state
    })
}
