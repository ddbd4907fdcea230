#!/bin/sh
# The main job: builds everything and shows the Linux kernel talking to a guest's
# own TCP/IP stack, in a private network namespace. Options go to
# `host-bridge demo`; `--help` lists them.
set -eu
cd "$(dirname "$0")/.."

command -v cargo >/dev/null || {
    echo "demo: cargo is missing: install Rust 1.95 or newer (https://rustup.rs)" >&2
    exit 1
}
command -v cc >/dev/null || {
    echo "demo: a C compiler is missing, which the tun-tap crate needs: apt-get install gcc libc6-dev" >&2
    exit 1
}
cargo build --release --locked --quiet -p host-bridge -p demo-guest
exec "${CARGO_TARGET_DIR:-target}/release/host-bridge" demo "$@"
