#!/bin/bash
# Every check of this repository. As root it first installs the Debian packages
# that are missing; otherwise it names them. Privileged tests work in network
# namespaces of their own; without the privilege they are skipped, or fail where
# REQUIRE_PRIVILEGED=1 says that they must run.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }

need() { # command package
    command -v "$1" >/dev/null || missing+=("$2")
}
missing=()
need cc gcc
need ip iproute2
need ping iputils-ping
need curl curl
need nft nftables
need tcpdump tcpdump
need iperf3 iperf3
need nc netcat-openbsd
need strace strace
need qemu-system-x86_64 qemu-system-x86
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        step "installing ${missing[*]}"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    else
        echo "test: these Debian packages are missing: apt-get install ${missing[*]}" >&2
        exit 1
    fi
fi
command -v cargo >/dev/null || {
    echo "test: cargo is missing: install Rust 1.95 or newer (https://rustup.rs)" >&2
    exit 1
}
if [ "${REQUIRE_PRIVILEGED:-}" = 1 ] && { [ "$(id -u)" -ne 0 ] || [ ! -c /dev/net/tun ]; }; then
    echo "test: REQUIRE_PRIVILEGED=1 needs root and /dev/net/tun" >&2
    exit 1
fi

step "format"
cargo fmt --all --check

step "clippy"
cargo clippy --locked --workspace --all-targets --all-features -- -D warnings

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --all-features --no-deps --quiet

step "no_std"
cargo build --locked --manifest-path scripts/no-std/Cargo.toml --target-dir "${CARGO_TARGET_DIR:-target}/no-std" --quiet
for crate in shm-link guest-stack; do
    cargo clippy --locked -p "$crate" --lib --no-default-features --quiet -- -D warnings
done

step "virtual machine image"
image_target=${CARGO_TARGET_DIR:-target}/vm-guest
(cd vm-guest && cargo fmt --check)
cargo clippy --locked --manifest-path vm-guest/Cargo.toml --target-dir "$image_target" --all-targets --quiet -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --locked --manifest-path vm-guest/Cargo.toml --target-dir "$image_target" --no-deps --quiet
cargo test --locked --manifest-path vm-guest/Cargo.toml --target-dir "$image_target" --quiet
cargo build --locked --release --manifest-path vm-guest/Cargo.toml --target-dir "$image_target" --quiet

step "virtual machine image for x86_64-unknown-none"
if [ "${REQUIRE_PRIVILEGED:-}" = 1 ] && ! scripts/freestanding-image.sh --check >/dev/null 2>&1; then
    # A second compiler: nothing to install on a user's machine unasked.
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
        --no-install-recommends rustc-web cargo-web rust-web-src >/dev/null; } || true
fi
if scripts/freestanding-image.sh --check; then
    VM_GUEST_FREESTANDING_IMAGE=$(scripts/freestanding-image.sh)
    export VM_GUEST_FREESTANDING_IMAGE
else
    echo "skipped: the image was built for the host's target only"
fi

step "tests"
cargo test --locked --workspace --all-features

step "simulation"
cargo test --locked --release -p simulation

step "what the fuzzer kept"
cargo fmt --manifest-path fuzz/Cargo.toml --check
cargo clippy --locked --manifest-path fuzz/Cargo.toml --all-targets --target-dir "${CARGO_TARGET_DIR:-target}/fuzz" --quiet -- -D warnings
cargo test --locked --manifest-path fuzz/Cargo.toml --target-dir "${CARGO_TARGET_DIR:-target}/fuzz"

step "loom"
RUSTFLAGS="--cfg loom" cargo test --locked -p shm-link --release --test loom_cursor \
    --target-dir "${CARGO_TARGET_DIR:-target}/loom"

step "sanitizers"
scripts/sanitizers.sh

if [ "$(id -u)" -eq 0 ] && [ -c /dev/net/tun ]; then
    step "demo"
    scripts/demo.sh
    step "topologies"
    scripts/topology/all.sh
    step "virtual machine"
    scripts/vm.sh run
    if [ -n "${VM_GUEST_FREESTANDING_IMAGE:-}" ]; then
        VM_GUEST_IMAGE=$VM_GUEST_FREESTANDING_IMAGE scripts/vm.sh run
    fi
    step "soak, for half a minute"
    SOAK_PROFILE=dev scripts/soak.sh --minutes 0.5 --every 2
else
    echo "skipped: the demo, the topologies, the virtual machine and the soak need root and /dev/net/tun here"
fi

printf '\nEverything passed.\n'
