#!/bin/bash
# A long run: a daemon and guests in a private network namespace, mixed load of which
# every byte is compared, and meanwhile restarts, guests that come and go, changes of
# impairment, limits, MTU and carrier, by a schedule that one seed decides.
#
#   scripts/soak.sh --minutes 60 --seed 1
#
# Fails when a byte was wrong, a connection was reset without cause, memory or
# descriptors grew, or round trips became slower; it says which. A JSON line every ten
# seconds goes to target/soak/soak.jsonl, a figure of them to soak.svg beside it.
# `--help` explains the options. HOST_BRIDGE and DEMO_GUEST name other programs;
# SOAK_PROFILE=dev takes those that are not optimised. All that is started ends with
# this process, however it ends.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v cargo >/dev/null || {
    echo "soak: cargo is missing: install Rust 1.95 or newer (https://rustup.rs)" >&2
    exit 1
}
profile=${SOAK_PROFILE:-release}
target=${CARGO_TARGET_DIR:-target}
cargo build --profile "$profile" --locked --quiet -p host-bridge -p demo-guest -p bench
[ "$profile" = dev ] && profile=debug
mkdir -p "$target/soak" && target=$(realpath "$target")
# Copies, so that building meanwhile disturbs nobody.
for program in bench host-bridge demo-guest; do
    cp -f "$target/$profile/$program" "$target/soak/$program.new"
    mv -f "$target/soak/$program.new" "$target/soak/$program"
done
exec "$target/soak/bench" soak --out "$target/soak/soak.jsonl" --chart "$target/soak/soak.svg" "$@"
