#!/bin/bash
# Measures this project beside its peers, pair by pair: builds what it needs and
# runs it in private network namespaces. `scripts/bench.sh --help` lists the
# options, `--list` the comparisons; words choose among them.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v cargo >/dev/null || {
    echo "bench: cargo is missing: install Rust 1.95 or newer (https://rustup.rs)" >&2
    exit 1
}
cargo build --release --locked --quiet -p host-bridge -p demo-guest -p bench
cargo build --release --locked --quiet -p guest-stack --example cost
exec "${CARGO_TARGET_DIR:-target}/release/bench" "$@"
