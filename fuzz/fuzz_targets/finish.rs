//! The fuzzer for the target `finish` of this crate's library, which says what it checks.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::call("finish", bytes));
