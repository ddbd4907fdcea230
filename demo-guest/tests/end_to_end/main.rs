//! The whole way, with nothing replaced: the kernel's own TCP/IP, a TAP, a daemon
//! and guests as processes of their own, each test in a network namespace of its
//! own.
//!
//! They need root and `/dev/net/tun`; without them they say so and are skipped,
//! unless REQUIRE_PRIVILEGED=1.

mod bad_links;
mod bridge;
mod burst;
mod changes;
mod common;
mod hostile;
mod idle;
mod iperf3;
mod keeping;
mod narrow;
mod outages;
mod services;
mod shortage;
mod storms;
mod streams;
mod vm;
