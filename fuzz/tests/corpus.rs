//! Replays what was kept of the fuzzer's inputs, and what it found.

use std::path::Path;

use fuzz::TARGETS;

#[test]
fn every_target_takes_every_input_that_was_kept() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, target) in TARGETS {
        let mut inputs = 0;
        let directory = std::fs::read_dir(root.join(name));
        for file in directory.unwrap_or_else(|error| panic!("corpus/{name}: {error}")) {
            let path = file.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            let taken = std::panic::catch_unwind(|| target(&bytes));
            assert!(taken.is_ok(), "{}", path.display());
            inputs += 1;
        }
        assert!(inputs >= 4, "corpus/{name} has only {inputs} inputs");
    }
}

#[test]
fn every_target_takes_nothing_noise_and_ones() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(60_000)
    .collect();
    for (_, target) in TARGETS {
        target(&[]);
        target(&[0xff; 5000]);
        for part in noise.chunks(1 + noise.len() / 200) {
            target(part);
        }
    }
}
