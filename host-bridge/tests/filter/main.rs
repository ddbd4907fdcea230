//! The anti-spoofing filter, seen from outside: every rule each way, and
//! arbitrary bytes.

mod frames;

mod properties;
mod rules;
