//! The fuzzer for the target `kept_record` of this crate's library, which says what it checks.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::call("kept_record", bytes));
