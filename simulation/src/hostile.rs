//! What a hostile guest does to its own memory, and so to its host.
//!
//! Any word of the region, at random and by design: the places that mean something
//! (superblock, cursors, flags, wait words, record headers near the cursors) and the
//! values that hurt there.

use shm_link::region::Region;
use shm_link::ring::RING_HEADER_LEN;
use shm_link::superblock::{Layout, SUPERBLOCK_LEN};

use crate::random::Random;

/// Words of a ring's header: cursors, closed flags, wait words.
const WORDS: [usize; 6] = [0, 8, 128, 136, 256, 384];

/// Changes one or a few words.
pub(crate) fn scribble(region: &Region, random: &mut Random) {
    let rings = rings(region);
    for _ in 0..random.between(1, 3) {
        let place = match rings.is_empty() {
            true => 0,
            false => random.below(10),
        };
        match place {
            0 => write(
                region,
                random.below(region.len() as u64) as usize,
                random.next_u64(),
                8,
            ),
            1 => write(region, random.below(160) as usize, random.next_u64(), 4),
            2..=5 => {
                let (start, capacity) = *random.pick(&rings);
                let at = start + *random.pick(&WORDS);
                let old = read(region, at);
                let value = value(old, capacity, random);
                write(region, at, value, 8);
            }
            6..=8 => record(region, *random.pick(&rings), random),
            _ => {
                let (start, capacity) = *random.pick(&rings);
                let at = start + RING_HEADER_LEN + random.below(capacity as u64) as usize;
                write(region, at, random.next_u64(), 8);
            }
        }
    }
}

/// Where the rings begin and how long they are, as the superblock says now.
fn rings(region: &Region) -> Vec<(usize, usize)> {
    let Ok(layout) = Layout::find(region) else {
        return Vec::new();
    };
    [layout.control, layout.frames]
        .iter()
        .flat_map(|pipe| [pipe.to_host, pipe.to_guest])
        .map(|ring| (ring.offset, ring.capacity))
        .collect()
}

/// A number that may hurt where `old` stands.
fn value(old: u64, capacity: usize, random: &mut Random) -> u64 {
    let capacity = capacity as u64;
    match random.below(12) {
        0 => 0,
        1 => u64::MAX,
        2 => old.wrapping_add(1),
        3 => old.wrapping_sub(1),
        4 => old.wrapping_add(16),
        5 => old.wrapping_sub(16),
        6 => old.wrapping_add(capacity),
        7 => old.wrapping_sub(capacity),
        8 => old.wrapping_add(capacity + 16),
        9 => old.wrapping_add(random.below(capacity) & !15),
        10 => 1 << random.below(64),
        _ => random.next_u64(),
    }
}

/// Spoils the header of a record near one of the ring's cursors.
fn record(region: &Region, (start, capacity): (usize, usize), random: &mut Random) {
    let cursor = read(region, start + *random.pick(&[0, 128]));
    let back = random.below(4) * 16;
    let at = (cursor.wrapping_sub(back) as usize) & (capacity - 1) & !15;
    let at = start + RING_HEADER_LEN + at;
    match random.below(4) {
        0 => {
            let len = [0, 1, u32::MAX, u32::MAX - 1, capacity as u32, 65_551, 13];
            write(region, at, (*random.pick(&len)).into(), 4);
        }
        1 => write(region, at, random.below(70_000), 4),
        // The offload header.
        2 => {
            let flags = [0x01, 0x0101, 0x0401, 0x0501, 0xff00, 0x8101];
            write(
                region,
                at + 4,
                random.next_u64() & !0xffff | random.pick(&flags),
                8,
            );
        }
        _ => write(region, at + 8, random.next_u64(), 8),
    }
}

fn read(region: &Region, at: usize) -> u64 {
    let mut bytes = [0; 8];
    // What lies outside is zero.
    let _ = region.copy_out(at, &mut bytes);
    u64::from_le_bytes(bytes)
}

fn write(region: &Region, at: usize, value: u64, len: usize) {
    // What does not fit is left.
    let _ = region.copy_in(at, &value.to_le_bytes()[..len]);
}

/// A frame that the guest had better not have sent: noise, or something that looks
/// like a frame of its own.
pub(crate) fn frame(mac: [u8; 6], random: &mut Random, max_len: usize) -> Vec<u8> {
    let len = random.spread(1, 1600).min(max_len as u64) as usize;
    let mut frame: Vec<u8> = (0..len).map(|_| random.next_u64() as u8).collect();
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = frame.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    if random.percent(90) {
        put(
            0,
            &random.pick(&[[0xff; 6], [2, 0, 0, 0, 0, 0x10], [2, 0, 0, 0, 0, 0x11]])[..],
        );
        put(6, &mac);
        let ethertype = *random.pick(&[0x0800u16, 0x0806, 0x86dd, 0x8100, 0x1234]);
        put(12, &ethertype.to_be_bytes());
        if ethertype == 0x0800 {
            put(14, &[0x45, 0]);
            put(16, &((len.saturating_sub(14)) as u16).to_be_bytes());
            put(23, &[*random.pick(&[1, 6, 17, 2])]);
            put(26, &[10, 0, 0, 10 + (mac[5] & 0xf)]);
        }
        if ethertype == 0x86dd {
            put(14, &[0x60, 0, 0, 0]);
            put(20, &[*random.pick(&[58, 6, 0, 44, 43])]);
        }
    }
    frame
}

/// Bytes in front of the rings, for the reader of this file: nothing there is a ring.
const _: () = assert!(SUPERBLOCK_LEN > 160);
