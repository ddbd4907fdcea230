#!/bin/bash
# Measures this project beside its peers, pair by pair, in private network
# namespaces: builds what it needs, installs (as root, on Debian) or names the peers
# that are missing, and runs. Words choose among the comparisons; `--list` names
# them, `--help` explains the options, `--quick` takes some two minutes.
#
# Results go to target/bench: results.jsonl, and figures as SVG and PNG.
# All that is started ends with this process, however it ends.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin

command -v cargo >/dev/null || {
    echo "bench: cargo is missing: install Rust 1.95 or newer (https://rustup.rs)" >&2
    exit 1
}

missing=()
need() { # command package
    command -v "$1" >/dev/null || missing+=("$2")
}
need ip iproute2
need nsenter util-linux
need passt passt
need slirp4netns slirp4netns
need wrk wrk
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        echo "bench: installing ${missing[*]}" >&2
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; } ||
            echo "bench: not installed: comparisons with ${missing[*]} give no figure" >&2
    else
        echo "bench: missing: apt-get install ${missing[*]}; their comparisons give no figure" >&2
    fi
fi

target=${CARGO_TARGET_DIR:-target}
cargo build --release --locked --quiet -p host-bridge -p demo-guest -p bench
cargo build --release --locked --quiet -p guest-stack --example cost
mkdir -p "$target/bench"
exec "$target/release/bench" --json "$target/bench/results.jsonl" --plots "$target/bench" "$@"
